//! The judge is judged: what `host conform` finds of plugins that are known to be good or bad.

use crate::harness::Place;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// For each plugin, the checks that did not pass and what became of them; skips do not count.
type Complaints = BTreeMap<String, BTreeSet<String>>;

/// Judges a library; every line that was printed, and the complaints among them.
fn judged(library: &str, code: i32) -> (Vec<Value>, Complaints) {
    let place = Place::empty();
    let command = format!("conform {library} --timeout 30 --jobs 2 --json");
    let lines = match code {
        0 => place.host(&command).succeeds().json_lines(),
        _ => place.host(&command).ended_with(code).json_lines(),
    };
    let mut complaints = Complaints::new();
    for line in &lines {
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let complaint = match &line["status"] {
            status if status["judged"] == "passed" || status["judged"]["skipped"].is_string() => None,
            status => {
                status["judged"].as_object().or(status.as_object()).and_then(|found| found.keys().next())
            }
        };
        let all = complaints.entry(text("plugin")).or_default();
        all.extend(complaint.map(|complaint| format!("{} {complaint}", text("check"))));
    }
    (lines, complaints)
}

fn expected(table: &[(&str, &[&str])]) -> Complaints {
    let set = |complaints: &[&str]| complaints.iter().map(|complaint| (*complaint).to_owned()).collect();
    table.iter().map(|(plugin, complaints)| ((*plugin).to_owned(), set(complaints))).collect()
}

#[test]
fn the_shipped_plugins_pass_every_check() {
    for library in ["cnn.so", "langevin.so", "pgd.so", "fgsm.so", "apgd.so"] {
        let (lines, complaints) = judged(library, 0);
        assert!(lines.len() > 20, "{library}");
        assert!(complaints.values().all(BTreeSet::is_empty), "{complaints:?}");
    }
}

#[test]
fn every_bad_plugin_is_found_out_and_every_check_finds_one() {
    let (lines, nonconforming) = judged("nonconforming.so", 1);
    assert_eq!(nonconforming, expected(&NONCONFORMING));
    let (_, bad) = judged("bad_plugins.so", 1);
    assert_eq!(bad, expected(&BAD));

    let judged: BTreeSet<_> = lines.iter().filter_map(|line| line["check"].as_str()).collect();
    let found: BTreeSet<_> = nonconforming
        .values()
        .chain(bad.values())
        .flatten()
        .filter_map(|text| text.split(' ').next())
        .collect();
    assert_eq!(found, judged, "every check has a bad plugin");
}

#[test]
fn a_failure_says_how_to_see_it_again_and_where_to_read_on() {
    let place = Place::empty();
    let outcome = place.host("conform bad_plugins.so --include tensors-shape --seed 7").ended_with(1);
    let words = outcome.words();
    assert!(
        words.contains("again     host conform bad_plugins.so --include tensors-shape --seed 7"),
        "{words}"
    );
    assert!(words.contains("docs/conformance.md, section tensors-shape"), "{words}");
}

#[test]
fn what_cannot_be_judged_is_an_error() {
    let place = Place::empty();
    place.refuses("conform nowhere.so", &["nowhere.so was not found"]);
    place.refuses("conform langevin.so --include tensor-*", &["no check has such a name"]);
    place.refuses("conform langevin.so --exclude *", &["no check was selected"]);
}

const NONCONFORMING: [(&str, &[&str]); 32] = [
    ("aborts", &["tensors-result crashed"]),
    ("aborts-on-options", &["options-fuzz crashed"]),
    (
        "counts-calls",
        &[
            "determinism-instances failed",
            "determinism-neighbours failed",
            "determinism-repeats failed",
            "sampler-ascent warning",
            "tensors-strides failed",
        ],
    ),
    ("descends", &["sampler-ascent warning"]),
    ("detached", &["model-gradients failed"]),
    ("divides-by-zero", &["sampler-zero-gradient failed"]),
    ("draws-elsewhere", &["determinism-generator failed"]),
    ("forgets-state", &["sampler-state failed"]),
    ("helps", &["attack-not-easier failed"]),
    ("hides-parameters", &["model-parameters failed"]),
    ("homesick", &["lifecycle-threads failed"]),
    ("ignores-strides", &["tensors-strides failed"]),
    ("leaks-memory", &["hygiene-memory failed"]),
    ("leaves-files", &["hygiene-leftovers failed"]),
    ("masks-gradients", &["model-derivative failed"]),
    ("needs-somebody", &["tensors-none failed"]),
    ("never-ends", &["tensors-result timed-out"]),
    ("no-defaults", &["options-defaults failed"]),
    ("normalises-batches", &["determinism-neighbours failed"]),
    ("probabilities", &["model-logits warning"]),
    ("returns-input", &["sampler-ascent warning", "tensors-memory failed"]),
    ("runs-out", &["lifecycle-many failed"]),
    (
        "shares-state",
        &["determinism-neighbours failed", "determinism-repeats failed", "tensors-strides failed"],
    ),
    ("single-precision", &["tensors-double failed"]),
    ("squeezes", &["tensors-one failed"]),
    ("swallows-options", &["options-unknown failed"]),
    ("takes-anything", &["errors-shape failed"]),
    ("talks", &[]),
    ("ten-classes-only", &["attack-classes failed"]),
    ("touches-victim", &["attack-victim failed"]),
    ("undocumented", &["options-documented failed"]),
    ("writes-inputs", &["tensors-inputs failed"]),
];

const BAD: [(&str, &[&str]); 14] = [
    ("attack-panics", &["tensors-result failed"]),
    ("changes-grad-mode", &["hygiene-grad-mode failed", "sampler-ascent warning"]),
    (
        "changes-threads",
        &["hygiene-threads failed", "lifecycle-threads failed", "tensors-none failed", "tensors-one failed"],
    ),
    ("escapes", &["sampler-projection failed"]),
    ("explodes", &[]),
    ("linear", &[]),
    ("metropolis", &["sampler-ascent warning"]),
    ("momentum", &[]),
    ("nan", &["sampler-ascent warning", "tensors-finite failed"]),
    ("outside", &["attack-inside failed"]),
    ("panics", &["tensors-result failed"]),
    ("wrong-dtype", &["sampler-ascent warning", "tensors-shape failed"]),
    ("wrong-logits", &["tensors-shape failed"]),
    ("wrong-shape", &["tensors-memory failed", "tensors-shape failed"]),
];
