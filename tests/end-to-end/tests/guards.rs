//! What careless plugins do to results, files and output: nothing, or an error that names them.

use crate::harness::{Outcome, Place};

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --epochs 6 --batch 20 --epsilon 0.05 \
                     --optimizer adam --learning-rate 0.01 --out run";

/// A run of a model among the careless plugins, without a sampler.
fn trained(model: &str) -> Place {
    let place = Place::with_digits(8, 200);
    let flags = format!("--model nonconforming.so,plugin={model} --sampler none");
    place.host(&format!("{TRAIN} {flags}")).succeeds();
    place
}

fn number(outcome: &Outcome, key: &str) -> f64 {
    outcome.json()[key].as_f64().unwrap_or_else(|| panic!("{key}: {}", outcome.report()))
}

#[test]
fn a_model_that_returns_one_buffer_is_judged_alike_in_parts_and_as_a_whole() {
    let place = trained("reuses-its-output");
    // One thread computes logits in parts of 32 images.
    let found = [7, 32, 64, 100].map(|batch| {
        let eval =
            format!("eval run --threads 1 --points 100 --attack pgd.so,steps=3 --json --batch {batch}");
        let outcome = place.host(&eval).ended_with(0);
        [number(&outcome, "clean"), number(&outcome, "worst_case")]
    });
    assert!(found[0][0] > 0.9, "{found:?}");
    assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
}

#[test]
fn a_model_that_keeps_an_alias_of_its_weights_is_evaluated_as_it_was_trained() {
    for model in ["keeps-an-alias", "ties-weights"] {
        let place = trained(model);
        let outcome = place.host("eval run --attack pgd.so,steps=3 --json").ended_with(0);
        assert!(number(&outcome, "clean") > 0.9, "{model}: {}", outcome.report());
    }
}

#[test]
fn tied_weights_are_moved_once() {
    let weights = trained("ties-weights").run("run").weights();
    assert_eq!(weights["tied"], weights["weights"]);
    assert_eq!(trained("once").run("run").weights()["weights"], weights["weights"]);
}

#[test]
fn a_model_that_lists_memory_twice_is_refused() {
    let place = Place::with_digits(8, 200);
    place.refuses(
        &format!("{TRAIN} --model nonconforming.so,plugin=lists-an-alias --sampler none"),
        &["lists-an-alias: its tensors `alias` and `weights` share memory"],
    );
}

#[test]
fn an_attack_that_writes_into_natural_examples_has_no_result() {
    let place = trained("batch-norm");
    let eval = "eval run --attack nonconforming.so,plugin=writes-natural --json";
    place.host(eval).fails(1, &["writes-natural: run wrote to `natural`"]);
    assert!(!place.path("run/eval.json").exists(), "no verdicts");
    // The results of attacks before it stay, and are those of an evaluation without it.
    place.host(&eval.replace("eval run", "eval run --attack fgsm.so")).fails(1, &["wrote to `natural`"]);
    place.host("eval run --attack fgsm.so --json").ended_with(0);
    let found = place.run("run").evaluations();
    assert_eq!(found[0]["verdicts"], found[1]["verdicts"]);
}

#[test]
fn a_sampler_that_writes_into_lent_tensors_ends_training() {
    let place = Place::with_digits(8, 200);
    let train = format!("{TRAIN} --sampler nonconforming.so,plugin=writes-inputs,steps=2");
    place.host(&train).fails(1, &["writes-inputs: step wrote to `particles`"]);
}

#[test]
fn a_model_that_writes_its_buffers_in_evaluation_has_no_result() {
    let place = trained("always-trains");
    let eval = "eval run --attack fgsm.so --json";
    for _ in 0..2 {
        place.host(eval).fails(1, &["the weights of always-trains changed while it was evaluated"]);
        assert!(!place.path("run/eval.json").exists() && !place.path("run/unfinished").exists());
    }
}

#[test]
fn a_plugin_that_changes_the_process_is_named_at_once() {
    for (plugin, changed) in [
        ("switches-onednn-off", "oneDNN (1, then 0)"),
        ("switches-cudnn-off", "cuDNN (1, then 0)"),
        ("changes-the-directory", "the working directory (now /)"),
        ("sets-a-variable", "the environment: NONCONFORMING_VARIABLE"),
        ("takes-a-signal", "the handler of SIGTERM"),
        ("closes-the-output", "where standard output leads"),
    ] {
        let place = Place::with_digits(8, 200);
        let train = format!("{TRAIN} --sampler nonconforming.so,plugin={plugin},steps=2");
        let what = format!("{plugin}: step changed the process and left it so: {changed}");
        place.host(&train).fails(1, &[&what]);
    }
}

#[test]
fn what_a_plugin_prints_does_not_mix_with_json() {
    let place = Place::with_digits(8, 40);
    let train = format!("{TRAIN} --sampler nonconforming.so,plugin=prints,steps=1 --json");
    let lines = place.host(&train).ended_with(0).json_lines();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.get("check").is_none()), "{lines:?}");
}
