//! `host conform`: its results for plugins that are known to be good or bad.

use crate::harness::{PATIENCE, Place, patch, repository};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

/// For each plugin, the checks that did not pass, with their status. Skipped checks are not
/// included.
type Complaints = BTreeMap<String, BTreeSet<String>>;

/// Checks a library and returns every printed line.
fn checked(place: &Place, library: &str, code: i32) -> Vec<Value> {
    // Only checks of bad plugins may not end.
    let timeout = if code == 0 { 600 } else { 120 };
    let command = format!("conform {library} --timeout {timeout} --jobs 2 --json");
    let outcome = place.host(&command);
    if code == 0 { outcome.succeeds().json_lines() } else { outcome.ended_with(code).json_lines() }
}

/// The seconds that a check may take: few where it does not end. They count from the start of the
/// process that checks.
fn limit(behaviour: &str) -> u32 {
    if behaviour == "never-ends" { 10 } else { 120 }
}

fn text<'a>(line: &'a Value, key: &str) -> &'a str {
    line[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {line}"))
}

fn complaints(lines: &[Value]) -> Complaints {
    let mut complaints = Complaints::new();
    for line in lines {
        let all = complaints.entry(text(line, "plugin").to_owned()).or_default();
        if !["passed", "skipped"].contains(&text(line, "status")) {
            all.insert(format!("{} {}", text(line, "check"), text(line, "status")));
        }
    }
    complaints
}

fn expected(table: &[(&str, &[&str])]) -> Complaints {
    let set = |complaints: &[&str]| complaints.iter().map(|complaint| (*complaint).to_owned()).collect();
    table.iter().map(|(plugin, complaints)| ((*plugin).to_owned(), set(complaints))).collect()
}

/// The lines with one of these statuses.
fn with_status<'a>(lines: &'a [Value], statuses: &[&str]) -> Vec<&'a Value> {
    lines.iter().filter(|line| statuses.contains(&text(line, "status"))).collect()
}

#[test]
fn the_shipped_plugins_pass_every_check() {
    let folders = fs::read_dir(repository().join("plugins")).expect("the shipped plugins");
    let names = folders.map(|folder| folder.expect("a folder").file_name().to_string_lossy().into_owned());
    // A plugin in Python is a file: python.rs checks some.
    for name in names.filter(|name| name != "python") {
        let lines = checked(&Place::empty(), &format!("{}.so", name.replace('-', "_")), 0);
        assert!(lines.len() > 40, "{name}: {} checks", lines.len());
        assert!(complaints(&lines).values().all(BTreeSet::is_empty), "{name}: {:?}", complaints(&lines));
    }
}

/// Checks that need a GPU.
const NEEDS_GPU: [&str; 1] = ["tensors-cuda"];

#[test]
fn every_bad_plugin_fails_its_check_and_every_check_fails_for_one() {
    let place = Place::empty();
    let lines = checked(&place, "nonconforming.so", 1);
    assert_eq!(complaints(&lines), expected(&NONCONFORMING));
    let bad = checked(&place, "bad_plugins.so", 1);
    assert_eq!(complaints(&bad), expected(&BAD));
    let at_load = badly_loaded();

    let all: BTreeSet<_> = lines.iter().map(|line| text(line, "check")).collect();
    let statuses = ["failed", "crashed", "timed out", "warning"];
    let complained = [lines.as_slice(), &bad, &at_load].map(|lines| with_status(lines, &statuses));
    let found = complained.iter().flatten().map(|line| text(line, "check"));
    let found: BTreeSet<_> = found.chain(NEEDS_GPU).collect();
    assert_eq!(found, all, "every check has a bad plugin");
}

/// The printed lines for libraries that cannot be loaded. Each fails one check, which blocks all
/// checks that need the open library.
fn badly_loaded() -> Vec<Value> {
    let mut printed = Vec::new();
    for (old, new, failing, parts) in [
        (r#""contract":1,"#, r#""contract":7,"#, "load-contract", ["contract 1", "contract 7"]),
        (
            r#""libtorch":"2.13."#,
            r#""libtorch":"2.12."#,
            "load-libtorch",
            ["libtorch 2.13.", "libtorch 2.12."],
        ),
        (
            r#""name":"langevin""#,
            r#""name":"langevim""#,
            "load-cold",
            ["the plugin that the manifest names", "names `langevim` in its manifest but does not export it"],
        ),
    ] {
        let place = Place::empty();
        patch(&place.copy_built("liblangevin.so"), old, new);
        let lines = checked(&place, "./langevin.so", 1);
        let bad = assert_blocks(&lines, failing, "failed");
        assert!(text(bad, "expected").contains(parts[0]) && text(bad, "got").contains(parts[1]), "{bad}");
        printed.extend(lines);
    }
    for (behaviour, failing, status) in [
        ("aborts", "load-cold", "failed"),
        ("exits", "load-cold", "failed"),
        ("never-ends", "load-cold", "timed out"),
        ("prints", "load-silent", "failed"),
    ] {
        let place = Place::empty();
        let timeout = limit(behaviour);
        let arguments = format!("conform nonconforming.so,plugin=batch-norm --timeout {timeout} --json");
        let mut command = place.command(&arguments);
        command.env("NONCONFORMING_AT_LOAD", behaviour);
        let lines = place.outcome(&mut command).ended_with(1).json_lines();
        if behaviour == "prints" {
            let bad = with_status(&lines, &["failed", "crashed", "timed out", "warning"]);
            assert_eq!(bad.len(), 1, "{bad:?}");
            assert_eq!((text(bad[0], "check"), text(bad[0], "got")), (failing, r#""welcome\n""#));
        } else {
            let bad = assert_blocks(&lines, failing, status);
            let how = match behaviour {
                "aborts" => "crashes the process: signal: 6 (SIGABRT)",
                "exits" => "ends the process: exit status: 0",
                _ => "did not end",
            };
            assert!(text(bad, "got").contains(how), "{bad}");
        }
        printed.extend(lines);
    }
    printed
}

/// Asserts that one check has this status, that those before it passed, and that it blocks all
/// others. Returns the line of the check.
#[track_caller]
fn assert_blocks<'a>(lines: &'a [Value], failing: &str, status: &str) -> &'a Value {
    let at = lines.iter().position(|line| text(line, "check") == failing).expect("a line of the check");
    assert_eq!(text(&lines[at], "status"), status);
    for (number, line) in lines.iter().enumerate() {
        if number < at {
            assert_eq!(text(line, "status"), "passed", "{line}");
        } else if number > at {
            let skip = (text(line, "status"), text(line, "reason"));
            assert_eq!(skip, ("skipped", format!("blocked by {failing}").as_str()), "{line}");
        }
    }
    &lines[at]
}

#[test]
fn every_status_is_printed_with_the_seed_and_the_command_that_reproduces_it() {
    let place = Place::empty();
    let check_plugin = |plugin: &str, flags: &str| {
        let timeout = limit(plugin);
        let command =
            format!("conform nonconforming.so,plugin={plugin} --seed 7 --timeout {timeout} {flags}");
        let outcome = place.host(&command);
        (outcome.words(), place.host(&format!("{command} --json")).json_lines())
    };
    for (plugin, check, status, upper) in [
        ("batch-norm", "model-logits", "passed", "passed"),
        ("squeezes", "tensors-one", "failed", "FAILED"),
        ("aborts", "tensors-result", "crashed", "CRASHED"),
        ("never-ends", "tensors-result", "timed out", "TIMED OUT"),
        ("probabilities", "model-logits", "warning", "warning"),
        ("explores", "sampler-ascent", "skipped", "skipped"),
    ] {
        let (words, lines) = check_plugin(plugin, &format!("--include {check}"));
        let [line] = lines.as_slice() else { panic!("one line, not {lines:?}") };
        assert_eq!(text(line, "status"), status);
        assert!(text(line, "sentence").len() > 10);
        assert_eq!(line["seed"], 7);
        let again = text(line, "reproduce").strip_prefix("host ").expect("a command of the host");
        assert!(again.starts_with(&format!("conform nonconforming.so,plugin={plugin} ")), "{again}");
        assert_eq!(place.host(&format!("{again} --json")).json_lines(), lines, "{again}");
        for (key, printed) in [
            ("expected", ["failed", "crashed", "timed out"].contains(&status)),
            ("got", ["failed", "crashed", "timed out"].contains(&status)),
            ("reason", ["warning", "skipped"].contains(&status)),
        ] {
            assert_eq!(line[key].is_string(), printed, "{key} in {line}");
            assert!(!printed || words.contains(text(line, key)), "{words}");
        }
        assert!(words.starts_with(&format!("{plugin:10} {check:26} {upper}")), "{words}");
        let has_details = ["failed", "crashed", "timed out", "warning"].contains(&status);
        for part in ["seed      7", text(line, "reproduce"), &format!("docs/conformance.md, section {check}")]
        {
            assert_eq!(words.contains(part), has_details, "{part} in {words}");
        }
    }
}

#[test]
fn a_needed_check_runs_first_and_is_printed_if_it_fails() {
    let place = Place::empty();
    let command = "conform bad_plugins.so,plugin=panics --include tensors-strides --json";
    let lines = place.host(command).ended_with(1).json_lines();
    let results: Vec<_> = lines.iter().map(|line| (text(line, "check"), text(line, "status"))).collect();
    assert_eq!(results, [("tensors-result", "failed"), ("tensors-strides", "skipped")]);
    assert_eq!(text(&lines[1], "reason"), "blocked by tensors-result");
}

#[test]
fn a_crash_is_reported_with_the_last_action() {
    let place = Place::empty();
    let command = "conform nonconforming.so,plugin=aborts-on-options --include options-fuzz --json";
    let lines = place.host(command).ended_with(1).json_lines();
    assert_eq!(text(&lines[0], "got"), r#"signal: 6 (SIGABRT), about to use the options {"strength":-1}"#);
    let command = "conform bad_plugins.so,plugin=misbehaves,how=step-exits --include tensors-result --json";
    let lines = place.host(command).ended_with(1).json_lines();
    assert_eq!((text(&lines[0], "status"), text(&lines[0], "got")), ("crashed", "exit status: 0"));
}

#[test]
fn the_checking_process_ends_when_the_host_is_killed() {
    let place = Place::empty();
    let mut command = place.command("conform nonconforming.so,plugin=never-ends --timeout 600");
    let mut host = command.stdout(Stdio::null()).spawn().expect("the host starts");
    let started = Instant::now();
    let until = |what: &str, good: &dyn Fn() -> bool| {
        while !good() {
            assert!(started.elapsed() < PATIENCE, "{what}");
            std::thread::yield_now();
        }
    };
    let thread_files = || fs::read_dir(format!("/proc/{}/task", host.id())).into_iter().flatten().flatten();
    let children = || -> Vec<String> {
        let lists =
            thread_files().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    until("no checking process", &|| {
        let maps = children().pop().and_then(|child| fs::read_to_string(format!("/proc/{child}/maps")).ok());
        maps.is_some_and(|maps| maps.contains("libnonconforming.so"))
    });
    let child = children().pop().expect("a checking process");
    host.kill().expect("killed");
    host.wait().expect("ended");
    until("the checking process still runs", &|| {
        // The process is gone, or it has ended and its new parent has not waited for it yet.
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        !status.contains("libnonconforming") && (status.is_empty() || status.contains("State:\tZ"))
    });
}

#[test]
fn a_check_that_cannot_run_is_an_error() {
    let place = Place::empty();
    place.refuses("conform nowhere.so", &["nowhere.so was not found"]);
    place.refuses("conform langevin.so --include tensor-*", &["no check has such a name"]);
    place.refuses("conform langevin.so --exclude *", &["no check was selected"]);
    place.refuses("conform langevin.so,steps=3", &["a sampler has no option `steps` here"]);
    place
        .refuses("conform bad_plugins.so,plugin=nobody", &["bad_plugins.so has no such plugin"])
        .explains(&["plugin=NAME", "momentum"]);
}

#[test]
fn options_that_are_given_are_used_by_every_check() {
    let place = Place::empty();
    for (library, code, complaint) in [
        ("nonconforming.so,plugin=needs-a-file,file=/dev/null", 0, None),
        ("nonconforming.so,plugin=needs-a-file,file=nowhere", 1, Some("options-defaults failed")),
        // The user's options come before those that the plugin asks for.
        ("nonconforming.so,plugin=asks-to-be-small,large=true", 1, Some("tensors-result failed")),
    ] {
        let found = complaints(&checked(&place, library, code)).pop_first().expect("a plugin").1;
        assert_eq!(
            found.iter().map(String::as_str).collect::<Vec<_>>(),
            Vec::from_iter(complaint),
            "{library}"
        );
    }
}

#[test]
fn a_result_is_printed_as_soon_as_it_is_known() {
    let place = Place::empty();
    let mut command = place.command("conform nonconforming.so,plugin=never-ends --timeout 600");
    let mut host = command.stdout(Stdio::piped()).spawn().expect("the host starts");
    let mut line = String::new();
    BufReader::new(host.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert!(line.starts_with("never-ends load-manifest              "), "{line}");
    assert!(host.try_wait().expect("a child").is_none(), "the checks are not over");
    host.kill().expect("killed");
    host.wait().expect("ended");
}

#[test]
fn a_folder_for_temporary_files_is_not_needed() {
    let place = Place::empty();
    let mut command = place.command("conform langevin.so --include load-side-by-side --json");
    let lines = place.outcome(command.env("TMPDIR", "/nowhere")).succeeds().json_lines();
    assert_eq!(text(&lines[0], "status"), "passed");
}

const NONCONFORMING: [(&str, &[&str]); 91] = [
    ("aborts", &["tensors-result crashed"]),
    ("aborts-in-drop", &["errors-drop crashed", "errors-shape crashed"]),
    ("aborts-on-dtype", &["errors-dtype crashed"]),
    ("aborts-on-options", &["options-fuzz crashed"]),
    ("aborts-on-rank", &["errors-rank crashed"]),
    ("accepts-any-shape", &["errors-shape failed"]),
    ("accepts-unknown-option", &["options-unknown failed"]),
    ("always-trains", &["determinism-neighbours failed", "model-modes failed"]),
    ("asks-to-be-small", &[]),
    ("batch-norm", &[]),
    ("begins-among-its-neighbours", &["sampler-begin failed"]),
    ("calls-backward", &["objective-parameters failed"]),
    ("changes-its-table", &["load-twice failed"]),
    ("changes-the-directory", &["hygiene-process failed"]),
    ("changes-the-victim", &["attack-victim failed"]),
    ("closes-the-output", &["hygiene-process failed"]),
    ("counts-calls", &["determinism-repeats failed"]),
    ("couples-in-secret", &["determinism-neighbours failed", "objective-grouping failed"]),
    ("declares-no-passes", &["objective-passes failed"]),
    ("descends", &["sampler-ascent failed"]),
    ("detached", &["model-gradients failed"]),
    ("detaches-logits", &["tensors-result failed"]),
    ("divides-by-zero", &["sampler-zero-gradient failed"]),
    ("exceeds-its-budget", &["attack-budget failed"]),
    ("explores", &[]),
    ("forgets-state", &["sampler-state failed"]),
    ("forgets-the-way-back", &["law-linear failed", "law-small failed", "law-softmax failed"]),
    ("forgets-to-judge", &["law-linear failed", "law-small failed", "law-softmax failed"]),
    ("gathers", &[]),
    ("good-number", &[]),
    ("good-rows", &[]),
    ("groups-in-pairs", &["objective-grouping failed", "objective-split failed"]),
    ("halves-lambda", &["law-linear failed", "law-small failed", "law-softmax failed"]),
    ("has-no-graph", &["tensors-result failed"]),
    ("hides-parameters", &["model-parameters failed"]),
    ("ignores-channels-last", &["tensors-channels-last failed"]),
    ("ignores-random-errors", &["errors-passed-on failed"]),
    ("ignores-strides", &["tensors-channels-last failed", "tensors-strides failed"]),
    ("ignores-the-domain", &["attack-inside failed"]),
    ("ignores-victim-errors", &["errors-passed-on failed"]),
    ("infinite-gradient", &["objective-gradient failed"]),
    ("keeps-an-alias", &[]),
    ("interacts-in-order", &["sampler-interaction failed"]),
    ("interacts-with-nobody", &["sampler-interaction warning"]),
    ("joins-threads", &[]),
    ("keeps-state-in-field", &["sampler-shuffled failed"]),
    (
        "keeps-state-in-itself",
        &[
            "objective-grouping failed",
            "objective-permutation failed",
            "objective-split failed",
            "objective-state failed",
        ],
    ),
    ("leaks-memory", &["hygiene-memory failed"]),
    ("leaves-files", &["hygiene-leftovers failed"]),
    ("leaves-files-at-errors", &["errors-drop failed"]),
    ("leaves-threads", &["hygiene-leftovers failed"]),
    ("leaves-no-grad", &["hygiene-grad-mode failed"]),
    ("limits-instances", &["lifecycle-many failed"]),
    ("lists-an-alias", &["model-memory failed"]),
    ("lowers-the-loss", &["attack-not-easier failed"]),
    ("minds-the-order", &["objective-permutation failed"]),
    ("needs-a-file", &["options-defaults failed"]),
    ("needs-a-row", &["tensors-none failed"]),
    ("needs-its-thread", &["lifecycle-threads failed"]),
    ("never-ends", &["tensors-result timed out"]),
    ("no-defaults", &["options-defaults failed"]),
    ("normalises-batches", &["determinism-neighbours failed"]),
    ("once", &[]),
    ("prints", &[]),
    ("probabilities", &["model-logits warning"]),
    ("projects-proposals", &["law-linear failed", "law-small failed", "law-softmax failed"]),
    ("reaches-nowhere", &["sampler-reach failed"]),
    ("returns-input", &["sampler-ascent failed", "tensors-memory failed"]),
    ("reuses-its-output", &["tensors-kept failed"]),
    ("reuses-its-result", &["tensors-kept failed"]),
    ("serves-one-instance", &["determinism-instances failed"]),
    ("sets-a-variable", &["hygiene-process failed"]),
    ("single-precision", &["tensors-double failed"]),
    ("squeezes", &["tensors-one failed"]),
    ("switches-cudnn-off", &["hygiene-precision failed", "hygiene-process failed"]),
    ("switches-onednn-off", &["hygiene-process failed"]),
    ("takes-a-signal", &["hygiene-process failed"]),
    ("ten-classes-only", &["attack-classes failed"]),
    ("ties-weights", &[]),
    ("twins", &["load-manifest failed"]),
    ("undeclared-dropout", &["model-modes failed"]),
    ("undocumented", &["options-documented failed"]),
    ("unlisted-buffer", &["lifecycle-state failed"]),
    ("unusual-parameters", &[]),
    ("uses-environment", &["hygiene-process failed", "load-side-by-side failed"]),
    ("uses-libtorchs-generator", &["determinism-generator failed"]),
    ("wastes-draws", &["determinism-seed failed"]),
    ("without-a-graph", &["model-gradients failed"]),
    ("writes-inputs", &["tensors-inputs failed"]),
    ("writes-natural", &["attack-inside failed", "tensors-inputs failed"]),
    ("wrong-gradients", &["model-derivative failed"]),
];

const BAD: [(&str, &[&str]); 19] = [
    ("attack-panics", &["tensors-result failed"]),
    ("changes-grad-mode", &["hygiene-grad-mode failed", "sampler-ascent failed"]),
    ("changes-threads", &["hygiene-threads failed", "sampler-ascent failed"]),
    ("escapes", &["sampler-projection failed"]),
    ("explodes", &[]),
    ("linear", &[]),
    ("linf-only", &[]),
    ("metropolis", &[]),
    ("misbehaves", &[]),
    ("misbehaving-model", &[]),
    ("momentum", &[]),
    ("nan", &["tensors-finite failed"]),
    ("normalised", &[]),
    ("outside", &["attack-inside failed"]),
    ("panics", &["tensors-result failed"]),
    ("slow", &[]),
    ("wrong-dtype", &["tensors-shape failed"]),
    ("wrong-logits", &["tensors-shape failed"]),
    ("wrong-shape", &["tensors-shape failed"]),
];
