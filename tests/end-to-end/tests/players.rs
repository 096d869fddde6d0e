//! The field's inner players: samplers that begin a visit themselves, go on from the minibatch
//! before, leave the ball or act on one another; and the norm l1.

use crate::harness::{Place, built, repository};
use crate::ranks::has_gloo;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --model linear.so --threads 1 --batch 20 --epochs 1";

/// How far the stored particles of a run are from their natural examples, pixel by pixel.
fn changes(place: &Place, run: &str) -> Vec<f32> {
    let (_, particles) = &place.run(run).tensors("particles.safetensors")["particles"];
    let images = std::fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    let pixels = images[16..].iter().map(|pixel| f32::from(*pixel) / 255.0);
    particles.iter().zip(pixels).map(|(particle, pixel)| particle - pixel).collect()
}

/// The samplers, with the passes of an epoch in mode faithful: their steps and one for the weights.
const PLAYERS: [(&str, u64); 9] = [
    ("fgsm.so,start=uniform,step_scale=1.25", 2),
    ("fast.so,plugin=n_fgsm", 2),
    ("fast.so,plugin=fgsm_pgi", 2),
    ("fast.so,plugin=atta", 2),
    ("fast.so,plugin=mi_fgsm,steps=3", 4),
    ("fast.so,plugin=free", 2),
    ("dale.so", 8),
    ("daa.so,steps=4", 5),
    ("daa.so,variant=dgf,steps=4", 5),
];

#[test]
fn every_player_trains_in_every_norm() {
    let place = Place::with_digits(8, 60);
    let loss_of = |run: &str| place.run(run).metrics()[0]["train_loss"].as_f64().expect("a loss");
    place.host(&format!("{TRAIN} --sampler none --out ordinary")).ended_with(0);
    let ordinary = loss_of("ordinary");
    for (number, (sampler, passes)) in PLAYERS.iter().enumerate() {
        for (norm, epsilon) in [("linf", "0.1"), ("l2", "0.5"), ("l1", "3")] {
            let out = format!("run-{number}-{norm}");
            let threat = format!("--norm {norm} --epsilon {epsilon}");
            place.host(&format!("{TRAIN} {threat} --sampler {sampler} --out {out}")).ended_with(0);
            let metrics = place.run(&out).metrics();
            assert_eq!(metrics[0]["passes_per_sample"], *passes, "{sampler}");
            // An adversary raises the loss beyond that of ordinary training.
            assert!(loss_of(&out) > ordinary, "{sampler}, {norm}: {} and {ordinary}", loss_of(&out));
        }
    }
}

#[test]
fn the_original_free_adversarial_training_carries_perturbations_and_keeps_no_store() {
    let place = Place::with_digits(8, 70);
    let flags = "--sampler fast.so,plugin=free --mode fused --replay 4 --epsilon 0.1 --crop 1 --flip";
    place.host(&format!("{TRAIN} {flags} --out run")).ended_with(0);
    let run = place.run("run");
    assert_eq!(run.metrics()[0]["passes_per_sample"], 4);
    assert!(run.checkpoints().values().all(|folder| !folder.join("particles.safetensors").exists()));
    let carried = run.tensors("carried.safetensors");
    // A row for each of the 20 points of a minibatch: the perturbation of the image, which the domain
    // cuts, and the sampler's own, in the ball.
    for (name, is_own) in [("perturbations", false), ("state.1", true)] {
        let (shape, values) = &carried[name];
        assert_eq!(*shape, [20, 1, 8, 8], "{name}");
        assert!(values.iter().all(|value| value.abs() <= 0.1 + 1e-6), "{name}");
        assert!(values.iter().any(|value| value.abs() >= 0.1 - 1e-6), "{name} reaches the edge");
        let cut = values.iter().filter(|value| **value == 0.0).count();
        assert_eq!(cut > values.len() / 10, !is_own, "{name}: {cut} pixels without a change");
    }
    // Reports show what the run has: no distances of particles.
    place.host("report run").ended_with(0);
    place.refuses("diagnose run", &[]).explains(&["free go on from minibatch to minibatch"]);
}

#[test]
fn one_replay_is_enough_where_the_minibatch_before_goes_on() {
    let place = Place::with_digits(8, 60);
    let fused = "--mode fused --replay 1 --epsilon 0.1";
    place.host(&format!("{TRAIN} {fused} --sampler fast.so,plugin=free --out run")).ended_with(0);
    place.host(&format!("{TRAIN} {fused} --sampler langevin.so --start carried --out other")).ended_with(0);
    place.refuses(
        &format!("{TRAIN} {fused} --sampler fgsm.so --out third"),
        &["train.replay: expected 2 or more"],
    );
}

#[test]
fn a_sampler_that_leaves_the_ball_is_for_training_only() {
    let place = Place::with_digits(8, 60);
    let wide = "fast.so,plugin=n_fgsm";
    let parts = ["n_fgsm: expected particles within epsilon", "got 3 epsilon"];
    place.refuses(
        &format!("{TRAIN} --epsilon 0.1 --sampler none --probe {wide} --validation-points 20 --out run"),
        &parts,
    );
    place.host(&format!("{TRAIN} --epsilon 0.1 --sampler {wide} --start store --out run")).ended_with(0);
    place.refuses(&format!("eval run --attack {wide}"), &parts);
    // Its particles are up to 3 epsilon away.
    let farthest = changes(&place, "run").into_iter().map(f32::abs).fold(0.0, f32::max);
    assert!((0.2..=0.3 + 1e-5).contains(&farthest), "{farthest}");
    for store in ["f16", "u8"] {
        place.refuses(
            &format!("{TRAIN} --epsilon 0.1 --sampler {wide} --store {store} --out other"),
            &["train.store: expected f32 for n_fgsm", &format!("got {store}")],
        );
    }
}

#[test]
fn chains_that_act_on_one_another_train_in_one_process() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} --epsilon 0.1 --sampler daa.so,steps=2 --shards 2 --out run")).ended_with(0);
    place.host("eval run --attack daa.so,steps=3 --points 20").ended_with(0);
    place
        .refuses("eval run --attack daa.so --points 20 --shard 1/2", &["daa: its chains act on one another"]);
    if !has_gloo(&place) {
        return;
    }
    let two =
        place.host(&format!("launch -n 2 -- {TRAIN} --epsilon 0.1 --sampler daa.so --shards 2 --out two"));
    let words = two.ended_with(2).errors();
    assert!(words.contains("daa: expected one process, got 2"), "{words}");
}

#[test]
fn two_lengths_of_a_step_are_refused() {
    let place = Place::with_digits(8, 60);
    let both = "fgsm.so,step_size=8/255,step_scale=1.25";
    place.refuses(
        &format!("{TRAIN} --epsilon 0.1 --sampler {both} --out run"),
        &["expected step_size or step_scale, got both"],
    );
}

// ---------------------------------------------------------------------------------------- l1

#[test]
fn l1_trains_evaluates_and_reports() {
    let place = Place::with_digits(8, 100);
    let threat = "--norm l1 --epsilon 5/2";
    let flags = "--sampler pgd.so,steps=3,step_size=1 --start store --crop 1";
    place.host(&format!("{TRAIN} {threat} {flags} --out run")).ended_with(0);
    let changes = changes(&place, "run");
    assert_eq!(changes.len(), 100 * 64);
    let lengths = changes.chunks(64).map(|change| change.iter().map(|pixel| pixel.abs()).sum::<f32>());
    let farthest = lengths.fold(0.0, f32::max);
    assert!((2.0..2.51).contains(&farthest), "{farthest}");
    let evaluation = place
        .host("eval run --attack pgd.so,steps=5,step_size=1 --save-examples --json")
        .ended_with(0)
        .json();
    assert_eq!(evaluation["outline"]["threat"]["norm"], "l1", "{evaluation}");
    let clean = evaluation["clean"].as_f64().expect("a share");
    let robust = evaluation["attacks"][0]["robust"].as_f64().expect("a share");
    assert!(robust < clean, "the attack finds something: {evaluation}");
    place.host("report run").ended_with(0);
    place.host("data check --data digits --norm l1 --epsilon 2").ended_with(0);
}

#[test]
fn what_does_not_know_l1_is_refused_with_both_norms() {
    let place = Place::with_digits(8, 60);
    let threat = "--norm l1 --epsilon 3";
    for attack in ["apgd.so", "fab.so", "square.so"] {
        let probe = format!("--sampler none --probe {attack} --validation-points 20");
        place.refuses(&format!("{TRAIN} {threat} {probe} --out run"), &["expected norm linf or l2, got l1"]);
    }
    place.refuses(&format!("{TRAIN} {threat} --sampler metropolis.so --out run"), &["l1"]);
    place.refuses(
        &format!("{TRAIN} {threat} --sampler langevin.so --store u8 --out run"),
        &["train.store: expected f32 or f16 in norm l1, got u8"],
    );
    place.refuses(
        &format!("{TRAIN} --norm l1 --sampler pgd.so --out run"),
        &["l1 needs an epsilon of its own"],
    );
}

#[test]
fn plugins_of_the_first_contract_are_not_given_l1() {
    crate::harness::build_beside_host(&repository().join("tests/first-contract"), []);
    assert!(built("libfirst_contract.so").is_file());
    let place = Place::with_digits(8, 60);
    place.refuses(
        &format!("{TRAIN} --norm l1 --epsilon 3 --sampler first_contract.so,plugin=old-sampler --out run"),
        &["built for contract 1.0, it does not support the norm l1, which contract 1.2 added"],
    );
}
