//! Plugins of older and newer contracts: additions to the contract are compatible, other changes
//! are refused.

use crate::harness::{Place, build_beside_host, built, patch, repository, write_sealed};
use serde_json::Value;
use std::fs;
use std::path::Path;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --threads 1 --epochs 5 --batch 20 --epsilon 0.1";

#[test]
fn plugins_built_against_the_first_contract_conform_train_and_attack() {
    build_beside_host(&repository().join("tests/first-contract"), []);
    let place = Place::with_digits(8, 200);
    let checks = place.host("conform first_contract.so --json").succeeds().json_lines();
    let passed: Vec<_> = checks.iter().filter(|line| line["status"] == "passed").collect();
    for plugin in ["old-model", "old-sampler", "old-attack"] {
        assert!(passed.iter().filter(|line| line["plugin"] == plugin).count() > 30, "{checks:?}");
    }
    let plugins = "--model first_contract.so,plugin=old-model --sampler first_contract.so,plugin=old-sampler";
    place.host(&format!("{TRAIN} {plugins} --out run")).ended_with(0);
    let command = "eval run --json --attack first_contract.so,plugin=old-attack --attack first_contract.so,plugin=old-sampler";
    let printed = place.host(command).succeeds().json();
    let clean = printed["clean"].as_f64().expect("clean accuracy");
    assert!(clean > 0.5, "it learns: {printed}");
    let attacks = printed["attacks"].as_array().expect("a list of attacks");
    assert!(attacks.iter().all(|attack| attack["robust"].as_f64().is_some_and(|robust| robust < clean)));
}

#[test]
fn a_changed_signature_is_refused_by_name() {
    let place = Place::with_digits(8, 60);
    let source = place.path("changed");
    copy_folder(&repository().join("tests/first-contract"), &source);
    let edit_text = |file: &str, old: &str, new: &str| {
        let path = source.join(file);
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.contains(old), "no {old:?} in {file}");
        fs::write(&path, text.replace(old, new)).expect("writable");
    };
    edit_text("Cargo.toml", r#"name = "first-contract""#, r#"name = "changed-contract""#);
    edit_text("Cargo.lock", r#"name = "first-contract""#, r#"name = "changed-contract""#);
    edit_text("Cargo.toml", "plugin-api-1.0", "plugin-api-changed");
    fs::rename(source.join("plugin-api-1.0"), source.join("plugin-api-changed")).expect("renamed");
    // The number of points becomes signed.
    edit_text("plugin-api-changed/src/abi.rs", "points_length: usize,", "points_length: isize,");
    edit_text(
        "plugin-api-changed/src/abi.rs",
        "points_length: step.points.len(),",
        "points_length: step.points.len() as isize,",
    );
    edit_text(
        "plugin-api-changed/src/abi.rs",
        "points_length: points.len(),",
        "points_length: points.len() as isize,",
    );
    edit_text("plugin-api-changed/src/abi.rs", "call.points_length()", "call.points_length() as usize");
    let config = repository().join(".cargo/config.toml").display().to_string();
    let target = built("").parent().expect("the target folder").display().to_string();
    build_beside_host(&source, ["--config", &config, "--target-dir", &target]);

    let library = built("libchanged_contract.so").display().to_string();
    let words =
        "its layout is not the one this host was built with; rebuild both against the same plugin-api";
    place.refuses(
        &format!("{TRAIN} --sampler {library},plugin=old-sampler --out run"),
        &["libchanged_contract.so cannot be opened", words],
    );
    let command = format!("conform {library},plugin=old-sampler --include load-cold --json");
    let checks = place.host(&command).ended_with(1).json_lines();
    assert_eq!(checks[0]["status"], "failed");
    assert!(checks[0]["got"].as_str().is_some_and(|got| got.contains(words)), "{checks:?}");
    fs::remove_file(library).expect("built here");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let copy = to.join(entry.file_name());
        if !entry.file_type().expect("a type").is_dir() {
            fs::copy(entry.path(), copy).expect("copied");
        } else if entry.file_name() != "target" {
            copy_folder(&entry.path(), &copy);
        }
    }
}

#[test]
fn plugins_of_a_kind_that_this_host_does_not_support_are_ignored() {
    let place = Place::with_digits(8, 60);
    let newer = r#"{"kind":"sorcery","name":"momentum""#;
    patch(&place.copy_built("libbad_plugins.so"), r#"{"kind":"sampler","name":"momentum""#, newer);
    let listed = place.host("inspect ./bad_plugins.so --json").succeeds().json();
    let plugins = listed["plugins"].as_array().expect("a list");
    let unknown = plugins.iter().find(|plugin| plugin["manifest"]["name"] == "momentum").expect("listed");
    assert!(
        unknown["error"].as_str().is_some_and(|why| why.contains("does not support plugins of this kind")),
        "{unknown}"
    );

    // The other plugins of the library work.
    let checks = place.host("conform ./bad_plugins.so --include load-cold --json").succeeds().json_lines();
    assert!(checks.iter().any(|line| line["plugin"] == "linear"), "{checks:?}");
    assert!(checks.iter().all(|line| line["plugin"] != "momentum"), "{checks:?}");
    let model = "--model ./bad_plugins.so,plugin=linear --sampler none";
    place.host(&format!("{TRAIN} {model} --out run")).ended_with(0);
    place
        .refuses(&format!("{TRAIN} --sampler ./bad_plugins.so,plugin=momentum --out other"), &["`momentum`"]);

    patch(&place.copy_built("liblangevin.so"), r#""kind":"sampler""#, r#""kind":"sorcery""#);
    place.refuses("conform ./langevin.so", &["no plugin of a kind that this host supports"]);
}

#[test]
fn weights_of_another_model_are_refused() {
    let place = Place::with_digits(9, 60);
    place.host(&format!("{TRAIN} --model cnn.so,arch=B --sampler none --out run")).ended_with(0);
    let text = place.run("run").record().to_string();
    assert!(text.contains("cnn.so,arch=B"));
    write_sealed(&place.path("run/run.json"), &text.replace("cnn.so,arch=B", "cnn.so,arch=A"));
    let before: Value = place.run("run").record();
    place.host("eval run --attack fgsm.so").fails(2, &["the weights do not match model cnn"]).explains(&[
        "`conv1.bias`: expected Float [64], got Float [32]",
        "the model plugin and options that the weights were saved with",
    ]);
    assert_eq!(place.run("run").record(), before);
}
