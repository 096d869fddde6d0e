//! Libraries that only the folder of a run names, and the order in which libraries are searched.

use crate::harness::{Outcome, Place, built, repository, sha256};
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 1";

/// Runs the host as another user, who has a list of trusted libraries of their own. The library
/// prints a line when it is opened.
fn as_another<'a>(place: &'a Place, arguments: &str) -> Outcome<'a> {
    let mut command = place.command(arguments);
    command.env("XDG_DATA_HOME", place.path("another")).env("NONCONFORMING_AT_LOAD", "prints");
    place.outcome(&mut command)
}

#[test]
fn a_library_that_only_a_run_names_is_not_opened_until_it_is_trusted() {
    let place = Place::with_digits(12, 60);
    fs::create_dir(place.path("theirs")).expect("a folder");
    let library = place.path("theirs/libnonconforming.so");
    fs::copy(built("libnonconforming.so"), &library).expect("copied");
    let model = "--model theirs/nonconforming.so,plugin=batch-norm";
    place.host(&format!("{TRAIN} {model} --sampler none --out run")).succeeds();
    place.host("eval run --attack fgsm.so --save-examples").ended_with(0);
    // The user who named it in `host train` may go on.
    let listed = fs::read_to_string(place.trusted()).expect("a list");
    assert_eq!(listed, format!("{} libnonconforming.so\n", sha256(&library)));

    let library = library.canonicalize().expect("a path").display().to_string();
    let refusal = ["the run names the library", library.as_str(), "which is not trusted here"];
    for arguments in
        ["eval run --attack fgsm.so", "eval run --attack fgsm.so --allow-changed", "train --resume run"]
    {
        let refused = as_another(&place, arguments).fails(2, &refusal);
        assert!(!refused.errors().contains("welcome"), "it was opened");
        refused.explains(&[&format!("host trust {library}")]);
    }
    let page = || fs::read_to_string(place.path("report.html")).expect("a page");
    let errors = as_another(&place, "report run").ended_with(0).errors();
    assert!(!errors.contains("welcome"), "it was opened: {errors}");
    assert!(page().contains("which is not trusted here"));

    let words = as_another(&place, &format!("trust {library}")).succeeds().words();
    assert!(words.starts_with(&format!("trusted: {library}")), "{words}");
    let errors = as_another(&place, "eval run --attack fgsm.so").ended_with(0).errors();
    assert!(errors.starts_with("welcome\n"), "{errors}");
    as_another(&place, "report run --force").ended_with(0);
    assert!(!page().contains("which is not trusted here"));
    // Another file of that name is another library.
    fs::write(&library, [fs::read(&library).expect("a file").as_slice(), b"more"].concat()).expect("written");
    as_another(&place, "eval run --attack fgsm.so --allow-changed").fails(2, &refusal);
}

#[test]
fn attacks_that_only_a_run_names_are_not_opened() {
    let place = Place::with_digits(12, 60);
    place.copy_built("libbad_plugins.so");
    let attack = "./bad_plugins.so,plugin=linf-only";
    let text = format!(
        "[data]\nname = \"digits\"\n[train]\nepochs = 1\nthreads = 1\n[eval]\nattacks = [\"{attack}\"]\n"
    );
    fs::write(place.path("experiment.toml"), text).expect("written");
    place.host("train --config experiment.toml --sampler none --out run").ended_with(0);
    as_another(&place, "eval run")
        .fails(2, &["the run names the library", "libbad_plugins.so", "not trusted"]);
    as_another(&place, &format!("eval run --attack {attack}")).ended_with(0);
    place.host("eval run").ended_with(0);
}

#[test]
fn a_file_in_the_working_directory_does_not_take_the_place_of_an_installed_plugin() {
    let place = Place::with_digits(8, 60);
    fs::write(place.path("libfgsm.so"), "not a library").expect("written");
    let train = format!("{TRAIN} --model bad_plugins.so,plugin=linear --out run --sampler");
    let warning = ["fgsm.so is", "the file libfgsm.so in the working directory is not used"];
    place.host(&format!("{train} fgsm.so")).succeeds_with_warning(&warning);
    let path = place.run("run").record()["plugins"]["sampler"]["path"].clone();
    assert_eq!(path, built("libfgsm.so").canonicalize().expect("a path").display().to_string());
    place.refuses(&format!("{train} ./fgsm.so").replace("run", "other"), &["is not a shared library"]);
    // A name that is installed nowhere is searched for in the working directory last.
    fs::rename(place.path("libfgsm.so"), place.path("mine.so")).expect("renamed");
    place.refuses(&format!("{train} mine.so").replace("run", "other"), &["mine.so is not a shared library"]);
}

#[test]
fn only_plugins_can_be_trusted() {
    let place = Place::empty();
    fs::write(place.path("notes.so"), "remember the milk").expect("written");
    place.refuses("trust ./notes.so", &["notes.so is not a shared library"]);
    assert!(!place.trusted().exists());
    place.host("trust langevin.so fgsm.so").succeeds();
    place.host("trust langevin.so").succeeds();
    let listed = fs::read_to_string(place.trusted()).expect("a list");
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[test]
fn plugins_that_are_made_for_tests_are_not_listed() {
    let words = Place::empty().host("plugins").succeeds().words();
    assert!(words.contains("langevin") && words.contains("wide-resnet"), "{words}");
    assert!(!words.contains("bad_plugins") && !words.contains("nonconforming"), "{words}");
}

#[test]
fn the_default_build_leaves_the_plugins_of_the_tests_out() {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    let output =
        cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(repository());
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.output().expect("cargo starts").stdout).expect("JSON");
    let members = metadata["workspace_default_members"].as_array().expect("a list");
    let has =
        |folder: &str| members.iter().any(|member| member.as_str().is_some_and(|id| id.contains(folder)));
    assert!(has("/host") && has("/plugins/langevin"), "{members:?}");
    assert!(!has("/tests/"), "{members:?}");
}
