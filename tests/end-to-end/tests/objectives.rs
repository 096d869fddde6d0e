//! Objectives: the losses that the weights descend on and the sampler climbs.

use crate::harness::Place;
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --data-folder . --batch 20 --threads 1";

/// A run of one epoch on 60 points, and the passes of each point.
fn passes(place: &Place, flags: &str, out: &str) -> u64 {
    place.host(&format!("{TRAIN} --epochs 1 {flags} --out {out}")).ended_with(0);
    place.run(out).metrics()[0]["passes_per_sample"].as_u64().expect("a number")
}

#[test]
fn every_shipped_objective_trains_at_its_cost() {
    let place = Place::with_digits(8, 60);
    // Two passes with langevin.so: a step and a descent.
    for (number, (objective, expected)) in [
        ("cross_entropy.so,label_smoothing=0.1", 2),
        ("trades.so", 3),
        ("mart.so", 3),
        ("dual.so --particles 2", 4),
        ("grad_align.so", 6),
        ("prior_guided.so --sampler fast.so,plugin=fgsm_pgi", 3),
        ("wrm.so,gamma=0.1 --domain-only --norm l2 --epsilon 1", 2),
        ("dro.so,plugin=cvar,alpha=0.3", 2),
        ("dro.so,plugin=kl_dro", 2),
        ("dro.so,plugin=chi2_dro", 2),
        ("dro.so,plugin=group_dro", 2),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("run-{number}");
        assert_eq!(passes(&place, &format!("--objective {objective}"), &out), expected, "{objective}");
        let record = &place.run(&out).record()["plugins"]["objective"];
        assert_eq!(record["manifest"]["kind"], "objective", "{objective}");
    }
}

#[test]
fn a_loss_that_both_problems_share_trains_in_mode_fused() {
    let place = Place::with_digits(8, 60);
    for (out, objective) in
        [("smooth", "cross_entropy.so,label_smoothing=0.1"), ("wrm", "wrm.so --domain-only")]
    {
        let flags = format!("--mode fused --replay 2 --objective {objective}");
        assert_eq!(passes(&place, &flags, out), 2);
    }
    let weights = |out: &str| place.run(out).weights();
    assert_ne!(weights("smooth"), weights("wrm"));
}

#[test]
fn a_ball_that_holds_all_images_is_a_caveat_unless_the_objective_keeps_particles_near() {
    let place = Place::with_digits(8, 60);
    let warned = |flags: &str, out: &str| {
        let outcome =
            place.host(&format!("{TRAIN} --epochs 1 --domain-only {flags} --out {out}")).ended_with(0);
        outcome.errors().contains("the adversary can make all images equal")
    };
    assert!(warned("", "plain"));
    assert!(!warned("--objective wrm.so", "penalised"));
}

#[test]
fn the_default_is_the_plain_cross_entropy() {
    let place = Place::with_digits(8, 60);
    for (out, flags) in [("default", ""), ("named", "--objective cross_entropy.so,label_smoothing=0")] {
        passes(&place, flags, out);
    }
    assert_eq!(place.run("default").weights(), place.run("named").weights());
}

#[test]
fn the_state_of_an_objective_is_resumed_bit_for_bit() {
    let place = Place::with_digits(8, 60);
    fs::write(
        place.path("groups.csv"),
        (0..60).map(|point| format!("{point},{}\n", point % 3)).collect::<String>(),
    )
    .expect("written");
    let flags = "--objective dro.so,plugin=group_dro,step=0.5,groups=groups.csv --schedule constant";
    place.host(&format!("{TRAIN} {flags} --epochs 2 --out whole")).ended_with(0);
    place.host(&format!("{TRAIN} --epochs 1 {flags} --out part")).ended_with(0);
    place.host("train --resume part --epochs 2").ended_with(0);
    let [whole, part] = ["whole", "part"].map(|out| place.run(out));
    assert_eq!(whole.weights(), part.weights());
    let state = |out: &str| place.run(out).tensors("objective.safetensors")["weights"].1.clone();
    let weights = state("whole");
    assert_eq!(weights, state("part"));
    assert!(weights.len() == 3 && (weights.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{weights:?}");
    assert!(weights.iter().any(|weight| (weight - 1.0 / 3.0).abs() > 1e-3), "they have learned: {weights:?}");
}

#[test]
fn weight_perturbation_doubles_the_passes_of_the_weights_and_changes_them() {
    let place = Place::with_digits(8, 60);
    assert_eq!(passes(&place, "", "without"), 2);
    assert_eq!(passes(&place, "--awp 0.01", "with"), 3);
    assert_eq!(passes(&place, "--awp 0.01 --objective trades.so", "trades"), 5);
    // Weights that do not move far enough to matter are put back bit for bit.
    assert_eq!(passes(&place, "--awp 1e-30", "hardly"), 3);
    let weights = |out: &str| place.run(out).weights();
    assert_eq!(weights("hardly"), weights("without"));
    assert_ne!(weights("with"), weights("without"));
    place.refuses(
        &format!("{TRAIN} --mode fused --replay 2 --awp 0.01"),
        &["train.awp: expected no value (in mode fused", "got 0.01"],
    );
}

#[test]
fn adamw_and_clipped_gradients_are_other_optimisers() {
    let place = Place::with_digits(8, 60);
    for (out, flags) in [
        ("adam", "--optimizer adam --weight-decay 0.1 --learning-rate 0.01"),
        ("adamw", "--optimizer adamw --weight-decay 0.1 --learning-rate 0.01"),
        ("clipped", "--clip-gradient 0.001"),
        ("long", "--clip-gradient 1e9"),
        ("usual", ""),
    ] {
        passes(&place, flags, out);
    }
    let weights = |out: &str| place.run(out).weights();
    assert_ne!(weights("adam"), weights("adamw"));
    assert_ne!(weights("clipped"), weights("usual"));
    let gradient = |out: &str| place.run(out).metrics()[0]["gradient"].clone();
    assert!(gradient("usual").is_null());
    for (out, shortened) in [("clipped", 1.0), ("long", 0.0)] {
        let gradient = gradient(out);
        assert_eq!(gradient["shortened"], shortened, "{out}: {gradient}");
        let [mean, longest] = ["mean", "longest"].map(|key| gradient[key].as_f64().expect("a number"));
        assert!(0.001 < mean && mean <= longest && longest < 1e3, "{out}: {gradient}");
    }
    assert_eq!(weights("long"), weights("usual"), "short gradients are left alone");
}

#[test]
fn objectives_that_do_not_fit_are_refused_before_any_work() {
    let place = Place::with_digits(8, 60);
    fs::write(place.path("few.csv"), "0,0\n1,1\n").expect("written");
    fs::write(place.path("twice.csv"), "0,0\n0,1\n").expect("written");
    for (flags, parts) in [
        ("mart.so,beta=-1", vec!["option `beta`", "-1"]),
        ("dro.so,plugin=cvar,alpha=0", vec!["option `alpha`", "0"]),
        ("wrm.so,gamma=x", vec!["gamma"]),
        ("wrm.so", vec!["a ball of radius 0.3 in linf", "--domain-only"]),
        ("wrm.so --domain-only --sampler none", vec!["train.domain_only: expected false"]),
        ("wrm.so --domain-only --epsilon-scale 2", vec!["expected no ball", "got train.epsilon_scale 2"]),
        ("wrm.so --domain-only --warmup-epsilon 1", vec!["expected no ball", "train.warmup_epsilon 1"]),
        ("wrm.so --epsilon 1 --warmup-epsilon 1", vec!["a ball of radius 0.5 in linf"]),
        ("prior_guided.so,weight=-1", vec!["option `weight`", "-1"]),
        ("trades.so,label_smoothing=2", vec!["option `label_smoothing`", "2"]),
        ("dro.so", vec!["dro.so has 4 plugins that are an objective"]),
        ("langevin.so", vec!["langevin.so is a sampler; expected an objective"]),
        ("dro.so,plugin=group_dro,groups=none.csv", vec!["option `groups`: there is no file none.csv"]),
        ("dro.so,plugin=group_dro,groups=few.csv", vec!["expected the 60 training points, got 2 points"]),
        ("dro.so,plugin=group_dro,groups=twice.csv", vec!["line 2: point 0 has a group already"]),
        (
            "dro.so,plugin=cvar --mode fused --replay 2",
            vec!["expected one loss for both problems", "got cvar"],
        ),
        ("nonconforming.so,plugin=has-no-graph", vec!["has-no-graph: outer returned a loss without a graph"]),
        (
            "nonconforming.so,plugin=infinite-gradient",
            vec!["infinite-gradient: outer has a gradient that is NaN or infinite"],
        ),
        ("nonconforming.so,plugin=couples-in-secret", vec!["another loss beside other points than alone"]),
        ("nonconforming.so,plugin=declares-no-passes", vec!["took 4 passes", "declares 2"]),
        ("trades", vec!["there is no objective `trades`; objectives are plugins"]),
        ("trades.so,steps=3", vec!["option `steps`"]),
    ] {
        place.refuses(&format!("{TRAIN} --objective {flags} --out refused"), &parts);
        assert!(!place.path("refused").exists(), "{flags}");
    }
}
