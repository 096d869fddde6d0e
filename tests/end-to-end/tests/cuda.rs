//! `--device cuda`. These tests need a GPU: `make gpu-test` runs them.

use crate::eval::{trained, verdicts};
use crate::harness::{Place, Tensors, built};
use crate::resume::goes_on_after_a_kill;
use serde_json::Value;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --device cuda --threads 1 --batch 20 --epsilon 0.1 --epochs 2";

fn largest_difference(one: &Tensors, other: &Tensors) -> f32 {
    let values =
        |tensors: &Tensors| tensors.values().flat_map(|(_, values)| values.clone()).collect::<Vec<_>>();
    let pairs = values(one).into_iter().zip(values(other));
    pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

#[test]
#[ignore = "needs a GPU"]
fn a_repeated_training_has_the_same_weights() {
    let place = Place::with_digits(9, 400);
    for (name, flags) in [
        ("fused", "--model cnn.so,arch=A --mode fused --replay 4 --average 0.9 --warmup-epsilon 1"),
        ("faithful", "--model cnn.so,arch=B --mode faithful --momentum 0.9 --particles 3"),
        ("trades", "--model cnn.so,arch=A --objective trades.so --sampler pgd.so,steps=3 --start uniform"),
        ("bf16", "--model cnn.so,arch=B --mode fused --precision bf16 --store u8 --optimizer adam"),
        ("tf32", "--model cnn.so,arch=B --mode fused --precision tf32"),
        ("probed", "--model bad_plugins.so,plugin=normalised --probe pgd.so,steps=3 --validation-points 50"),
    ] {
        let runs = [1, 2].map(|time| {
            let out = format!("{name}{time}");
            place.host(&format!("{TRAIN} {flags} --out {out}")).ended_with(0);
            place.run(&out)
        });
        runs[0].assert_same_as(&runs[1]);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn tf32_is_of_updates_alone() {
    let place = Place::with_digits(9, 400);
    place.host(&format!("{TRAIN} --precision tf32 --out run")).ended_with(0);
    place.host("eval run --attack fgsm.so").ended_with(0);
    let run = place.run("run");
    let (record, evaluation) = (run.record(), run.evaluations().remove(0));
    for flag in ["tf32_cudnn", "tf32_cublas"] {
        assert_eq!(record["arithmetic"][flag], true, "{flag}");
        assert_eq!(evaluation["settings"]["arithmetic"][flag], false, "{flag}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn numbers_that_are_drawn_ahead_train_the_same_network_on_a_gpu() {
    let place = Place::with_digits(9, 400);
    let runs = ["0", "1"].map(|ahead| {
        let train = format!("{TRAIN} --sampler langevin.so,steps=2 --particles 2 --out run-{ahead}");
        place.outcome(place.command(&train).env("DRO_DRAW_AHEAD", ahead)).ended_with(0);
        place.run(&format!("run-{ahead}"))
    });
    runs[0].assert_same_as(&runs[1]);
}

#[test]
#[ignore = "needs a GPU"]
fn a_run_that_was_killed_ends_in_the_same_weights() {
    goes_on_after_a_kill(
        9,
        "--device cuda --model cnn.so,arch=A --mode fused --replay 3 --average 0.9 --warmup-epsilon 2.5 --store u8",
    );
}

#[test]
#[ignore = "needs a GPU"]
fn weights_after_two_updates_are_those_of_the_cpu() {
    let place = Place::with_digits(8, 40);
    let runs = ["cpu", "cuda"].map(|device| {
        let flags = format!("--epochs 1 --model cnn.so,arch=B --device {device} --out {device}");
        place
            .host(&format!(
                "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epsilon 0.1 {flags}"
            ))
            .ended_with(0);
        place.run(device).weights()
    });
    let difference = largest_difference(&runs[0], &runs[1]);
    assert!(difference < 1e-5, "two updates apart by {difference}");
}

#[test]
#[ignore = "needs a GPU"]
fn attacks_have_the_verdicts_of_the_cpu() {
    let place = trained(0.08);
    let attacks = ["fgsm.so", "pgd.so,steps=10", "apgd.so,loss=dlr", "fab.so", "square.so,queries=200"];
    for attack in attacks {
        let [here, there] = ["cpu", "cuda"].map(|device| {
            place
                .host(&format!("eval run --device {device} --save-examples --attack {attack}"))
                .ended_with(0);
            let saved = place.run("run").evaluations().pop().expect("an evaluation");
            verdicts(&saved["verdicts"]["attacks"][0])
        });
        assert!(here.contains(&false) && here.contains(&true), "{attack}: both verdicts occur");
        // Iterates differ where a gradient is nearly zero.
        let differ = here.iter().zip(&there).filter(|(here, there)| here != there).count();
        assert!(differ * 50 <= here.len(), "{attack}: {differ} of {} verdicts differ", here.len());
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_suite_runs_to_its_end() {
    let place = trained(0.06);
    let suite = place.host("eval run --device cuda --suite autoattack --json").ended_with(0).json();
    let transferred =
        place.host("eval run --device cuda --source run --attack fgsm.so --json").ended_with(0).json();
    let worst = |evaluation: &Value| evaluation["worst_case"].as_f64().expect("a share");
    assert!(worst(&suite) <= worst(&transferred));
}

#[test]
#[ignore = "needs a GPU"]
fn every_plugin_passes_its_checks_on_the_gpu() {
    let place = Place::empty();
    let models = ["cnn", "linear", "resnet", "wide_resnet"].into_iter();
    let samplers = ["langevin", "ula", "mala", "metropolis", "pgd", "fgsm"];
    for library in models.chain(samplers).chain(["apgd", "fab", "square"]) {
        let options = if library.contains("resnet") { ",width=1" } else { "" };
        let library = built(&format!("lib{library}.so"));
        let outcome = place.host(&format!("conform {}{options} --include tensors-cuda", library.display()));
        let words = outcome.ended_with(0).words();
        assert!(words.contains("tensors-cuda") && !words.contains("skipped:"), "{words}");
    }
}
