//! Plugins that end the process, crash it or print what they should not, and output that cannot be
//! written.

use crate::harness::{Outcome, Place, edit, patch};
use std::fs::File;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 1 --out run";

/// Trains with the sampler or the model that misbehaves in this way.
fn train<'a>(place: &'a Place, plugin: &str, how: &str) -> Outcome<'a> {
    let other = if plugin == "misbehaves" {
        "--model bad_plugins.so,plugin=linear --sampler"
    } else {
        "--sampler none --model"
    };
    place.host(&format!("{TRAIN} {other} bad_plugins.so,plugin={plugin},how={how}"))
}

#[test]
fn a_plugin_that_ends_the_process_is_an_error_that_names_it() {
    for (plugin, how, parts) in [
        ("misbehaves", "new-exits", ["misbehaves: new", "the plugin ended the process"]),
        ("misbehaves", "step-exits", ["misbehaves: step", "the plugin ended the process"]),
        ("misbehaves", "drop-exits", ["misbehaves: drop", "the plugin ended the process"]),
        ("misbehaving-model", "new-exits", ["misbehaving-model: new", "the plugin ended the process"]),
        (
            "misbehaving-model",
            "forward-exits",
            ["misbehaving-model: forward", "the plugin ended the process"],
        ),
        (
            "misbehaving-model",
            "training-exits",
            ["misbehaving-model: forward", "the plugin ended the process"],
        ),
    ] {
        train(&Place::with_digits(8, 60), plugin, how).fails(1, &parts).explains(&["return an error"]);
    }
    let place = Place::with_digits(8, 60);
    let mut command = place.command(&format!("{TRAIN} --sampler nonconforming.so,plugin=explores"));
    command.env("NONCONFORMING_AT_LOAD", "exits");
    place.outcome(&mut command).fails(1, &["libnonconforming.so ends the process: exit status: 0"]);
}

#[test]
fn a_plugin_that_aborts_the_process_is_named() {
    use std::os::unix::process::ExitStatusExt;
    let place = Place::with_digits(8, 60);
    let train = format!("{TRAIN} --sampler nonconforming.so,plugin=aborts");
    let output = place.command(&train).output().expect("the host starts");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("error: aborts: step: the plugin aborted the process (SIGABRT)"), "{errors}");
}

#[test]
fn a_panic_that_panics_when_it_is_dropped_is_an_error() {
    for (plugin, how, code, place_of_it) in [
        ("misbehaves", "new-panics-in-drop", 2, "misbehaves: new: panicked at "),
        ("misbehaves", "step-panics-in-drop", 1, "misbehaves: step: panicked at "),
        ("misbehaving-model", "training-panics-in-drop", 1, "misbehaving-model: forward: panicked at "),
    ] {
        let place = Place::with_digits(8, 60);
        train(&place, plugin, how).fails(code, &[place_of_it, "misbehaves.rs:"]);
    }
    train(&Place::with_digits(8, 60), "misbehaves", "drop-panics-in-drop").succeeds();
}

#[test]
fn messages_of_plugins_and_of_libtorch_are_one_harmless_line_with_the_name_of_the_plugin() {
    for (plugin, how, code, start, part) in [
        ("misbehaves", "step-prints-escapes", 1, "misbehaves: step: \u{fffd}[31mred", ""),
        ("misbehaves", "new-prints-escapes", 2, "misbehaves: new: \u{fffd}[31mred", ""),
        ("misbehaves", "step-is-verbose", 1, "misbehaves: step: a long message", " […]"),
        ("misbehaves", "new-quotes-libtorch", 2, "misbehaves: new: ", "matmul"),
        ("misbehaves", "step-quotes-libtorch", 1, "misbehaves: step: ", "matmul"),
        ("misbehaves", "step-panics-in-libtorch", 1, "misbehaves: step: panicked at ", "matmul"),
        ("misbehaving-model", "new-quotes-libtorch", 2, "misbehaving-model: new: ", "matmul"),
        ("misbehaving-model", "forward-quotes-libtorch", 2, "misbehaving-model: forward: ", "matmul"),
        ("misbehaving-model", "training-quotes-libtorch", 1, "misbehaving-model: forward: ", "matmul"),
        (
            "misbehaving-model",
            "training-panics-in-libtorch",
            1,
            "misbehaving-model: forward: panicked at ",
            "matmul",
        ),
    ] {
        let place = Place::with_digits(8, 60);
        let outcome = train(&place, plugin, how).fails(code, &[start, part]);
        let errors = outcome.errors();
        assert!(errors.len() < 3000 && !errors.contains("frame #"), "{errors}");
        assert!(!errors.contains(|letter: char| letter.is_control() && letter != '\n'), "{errors:?}");
    }
    let place = Place::empty();
    let conform = "conform bad_plugins.so,plugin=misbehaves,how=step-prints-escapes";
    let printed = place.host(conform).ended_with(1).words();
    assert!(printed.contains("got       \u{fffd}[31mred"), "{printed}");
    assert!(!printed.contains(|letter: char| letter.is_control() && letter != '\n'), "{printed:?}");
}

#[test]
fn numbers_that_a_plugin_declares_are_limited() {
    for (how, declared) in [
        ("many-steps", "declares 65535 steps; expected 1 to 65534"),
        ("many-states", "declares 18446744073709551615 state tensors; expected 0 to 64"),
    ] {
        let place = Place::with_digits(8, 60);
        train(&place, "misbehaves", how).fails(2, &["misbehaves: new", declared]);
    }
}

#[test]
fn a_manifest_with_control_characters_is_refused() {
    let place = Place::empty();
    // The escape takes as many bytes as the letters that it replaces.
    patch(&place.copy_built("liblangevin.so"), r#""name":"langevin""#, r#""name":"\u001b[m""#);
    place.refuses("inspect ./langevin.so", &["liblangevin.so has a manifest with a control character"]);
}

#[test]
fn a_library_that_crashes_the_loader_is_an_error() {
    let place = Place::with_digits(8, 60);
    edit(&place.copy_built("liblangevin.so"), |library| break_dynamic_section(library));
    place.refuses(
        &format!("{TRAIN} --sampler ./langevin.so"),
        &["liblangevin.so crashes the process: signal: 11 (SIGSEGV)"],
    );
    let described = place.host("inspect ./langevin.so").succeeds().words();
    assert!(described.contains("cannot be opened: opening"), "{described}");
}

/// Moves the table of symbols of a library to an address that does not exist.
fn break_dynamic_section(library: &mut [u8]) {
    let number = |library: &[u8], at: usize| {
        u64::from_le_bytes(library[at..at + 8].try_into().expect("eight bytes")) as usize
    };
    // Program headers begin at byte 64 and have 56 bytes; the dynamic section's has type 2.
    let mut headers = (64..).step_by(56);
    let header = headers.find(|at| library[*at..*at + 4] == [2, 0, 0, 0]).expect("a dynamic section");
    // Its entries are pairs of a tag and a value; the table of symbols has tag 6.
    let mut entries = (number(library, header + 8)..).step_by(16);
    let entry = entries.find(|at| number(library, *at) == 6).expect("a table of symbols");
    library[entry + 8..entry + 16].copy_from_slice(&0x7000_0000_0000u64.to_le_bytes());
}

#[test]
fn output_that_cannot_be_written_is_an_error_after_the_work_is_done() {
    let place = Place::with_digits(8, 60);
    let onto_full_disk = |arguments: &str| {
        let mut command = place.command(arguments);
        command.stdout(File::options().write(true).open("/dev/full").expect("a device"));
        place.outcome(&mut command)
    };
    let lost = ["cannot write to standard output: No space left on device"];
    let train = format!("{TRAIN} --model bad_plugins.so,plugin=linear --sampler none");
    onto_full_disk(&format!("{train} --json")).fails(1, &lost);
    assert_eq!(place.run("run").metrics().len(), 1, "the run is whole");
    onto_full_disk(&train.replace("--out run", "--out other")).fails(1, &lost);
    for arguments in ["eval run --attack fgsm.so", "eval run --attack fgsm.so --json"] {
        onto_full_disk(arguments).fails(1, &lost);
    }
    assert_eq!(place.run("run").evaluations().len(), 2, "both are saved");
    for arguments in
        ["plugins", "inspect langevin.so --json", "conform langevin.so --include load-*", "report run"]
    {
        onto_full_disk(arguments).fails(1, &lost);
    }
    onto_full_disk("--help").ended_with(1);
}
