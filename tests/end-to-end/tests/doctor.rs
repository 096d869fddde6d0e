//! `host doctor`, and an installed host.

use crate::harness::{Outcome, Place, built, repository};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The finding about one thing.
fn finding(outcome: &Outcome, section: &str, name: &str) -> Value {
    let findings = outcome.json_lines();
    let found = findings.iter().find(|finding| finding["section"] == section && finding["name"] == name);
    found.unwrap_or_else(|| panic!("no {section} {name}\n{}", outcome.report())).clone()
}

#[test]
fn a_fresh_folder_is_well() {
    let place = Place::empty();
    let outcome = place.host("doctor --json").succeeds();
    for (section, name, part) in [
        ("version", "host", "build"),
        ("version", "contract", "1."),
        ("version", "libtorch", "2.13.0"),
        ("device", "cpu", "threads"),
        ("device", "cuda", "usable"),
        ("plugin", "langevin", "sampler"),
        ("plugin", "torchscript", "model"),
        ("data", "mnist", "not there; `host data fetch mnist --data-folder data`"),
        ("trust", "list", "0 files"),
    ] {
        let finding = finding(&outcome, section, name);
        assert!(finding["state"].as_str().expect("a text").contains(part), "{finding}");
        assert_eq!(finding["wrong"], Value::Null, "{finding}");
    }
    let words = place.host("doctor").succeeds().words();
    assert!(words.ends_with("all is well\n"), "{words}");
}

#[test]
fn broken_plugins_and_damaged_data_are_named_with_a_fix() {
    let place = Place::empty();
    let library = fs::read(built("liblangevin.so")).expect("a library");
    let plugins = place.path("plugins");
    fs::create_dir(&plugins).expect("a folder");
    fs::write(plugins.join("cut.so"), &library[..library.len() / 2]).expect("written");
    fs::write(plugins.join("text.so"), "no library").expect("written");
    fs::create_dir_all(place.path("data/mnist")).expect("a folder");
    fs::write(place.path("data/mnist/train-images-idx3-ubyte"), "short").expect("written");
    let mut command = place.command("doctor --json");
    let outcome = place.outcome(command.env("DRO_PLUGIN_PATH", &plugins)).ended_with(1);
    for (section, name, wrong) in [
        ("plugin", "cut.so", "cut.so is"),
        ("plugin", "text.so", "is not a shared library"),
        ("data", "mnist", "has no file train-labels-idx1-ubyte"),
    ] {
        let finding = finding(&outcome, section, name);
        assert!(finding["wrong"].as_str().expect("wrong").contains(wrong), "{finding}");
        assert!(!finding["fix"].as_str().expect("a fix").is_empty(), "{finding}");
    }
    let mut command = place.command("doctor");
    let outcome = place.outcome(command.env("DRO_PLUGIN_PATH", &plugins)).ended_with(1);
    assert!(outcome.words().ends_with("3 things are wrong\n"), "{}", outcome.report());
}

#[test]
fn a_python_that_is_named_must_be_usable() {
    let place = Place::empty();
    let mut command = place.command("doctor --json");
    let outcome = place.outcome(command.env("DRO_PYTHON", "/nowhere/python")).ended_with(1);
    let finding = finding(&outcome, "python", "for python.so");
    assert!(finding["wrong"].as_str().expect("wrong").contains("/nowhere/python"), "{finding}");
}

/// Installs what this test's build made, and runs it from another folder without any variable.
/// libtorch is linked, as one of the user's own is: a copy takes half a gigabyte.
#[test]
fn an_installed_host_works_from_any_folder_without_variables() {
    let place = Place::empty();
    let prefix = place.path("prefix");
    let build = built("host").parent().expect("a folder").to_owned();
    let make = |target: &str| -> String {
        let mut make = Command::new("make");
        make.arg("--no-print-directory").arg("-C").arg(repository()).arg(target);
        make.arg(format!("PREFIX={}", prefix.display()))
            .arg(format!("build={}", build.display()))
            .arg("libtorch=/nowhere");
        let output = make.output().expect("make starts");
        let printed = [output.stdout, output.stderr].concat();
        format!("{} {}", output.status.success(), String::from_utf8_lossy(&printed))
    };
    fs::create_dir_all(prefix.join("bin")).expect("a folder");
    fs::write(prefix.join("bin/host"), "another program").expect("written");
    for target in ["install-files", "uninstall"] {
        let refused = make(target);
        assert!(refused.starts_with("false ") && refused.contains("is another program"), "{refused}");
    }
    assert_eq!(fs::read_to_string(prefix.join("bin/host")).expect("kept"), "another program");
    fs::remove_file(prefix.join("bin/host")).expect("removed");
    let installing = make("install-files");
    assert!(installing.starts_with("true "), "{installing}");
    for file in [
        "bin/host",
        "lib/host/plugins/liblangevin.so",
        "lib/host/plugins/libtorchscript.so",
        "share/man/man1/host-train.1",
        "share/bash-completion/completions/host",
        "share/zsh/site-functions/_host",
        "share/fish/vendor_completions.d/host.fish",
    ] {
        assert!(prefix.join(file).metadata().is_ok_and(|file| file.len() > 0), "{file}");
    }
    assert!(!prefix.join("lib/host/plugins/libbad_plugins.so").exists(), "plugins for tests stay");
    let installed = |arguments: &str| {
        let mut command = Command::new(prefix.join("bin/host"));
        command.args(arguments.split_whitespace()).current_dir(place.path("")).env_clear();
        command.env("XDG_DATA_HOME", place.path("home"));
        place.outcome(&mut command).succeeds()
    };
    let listed = installed("plugins --json");
    let is_installed = |line: &Value| Path::new(line["path"].as_str().expect("a path")).starts_with(&prefix);
    assert!(
        listed.json_lines().len() >= 13 && listed.json_lines().iter().all(is_installed),
        "{}",
        listed.report()
    );
    let libtorch = prefix.join("lib/host/libtorch/torch");
    let linked = fs::read_link(&libtorch);
    assert!(libtorch.join("lib/libtorch_cpu.so").is_file(), "{linked:?} after\n{installing}");
    let program = finding(&installed("doctor --json"), "version", "host");
    let path = prefix.join("bin/host").canonicalize().expect("a path");
    assert!(program["state"].as_str().expect("a text").ends_with(&path.display().to_string()), "{program}");
    assert!(installed("inspect langevin.so").words().contains("step_size"));
    let uninstalling = make("uninstall");
    assert!(uninstalling.starts_with("true "), "{uninstalling}");
    let left: Vec<_> = ["bin/host", "lib/host", "share/man/man1/host.1"].map(|file| prefix.join(file)).into();
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
}
