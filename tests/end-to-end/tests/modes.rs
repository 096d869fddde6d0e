//! Training: passes of weights and particles in each mode, starts of chains, augmentation,
//! averaging and warnings.

use crate::data::write_digits;
use crate::harness::{Place, Tensors, json_file, read_tensors, write_sealed};
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epsilon 0.1";

fn largest_difference(one: &Tensors, other: &Tensors, name: &str) -> f32 {
    let pairs = one[name].1.iter().zip(&other[name].1);
    pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

#[test]
fn fused_takes_one_pass_per_replay() {
    let place = Place::with_digits(8, 60);
    for (replay, particles) in [(1, 1), (4, 1), (3, 2)] {
        let out = format!("run{replay}{particles}");
        let flags = format!("--mode fused --replay {replay} --particles {particles} --epochs 2 --out {out}");
        place.host(&format!("{TRAIN} {flags}")).succeeds();
        let metrics = place.run(&out).metrics();
        assert_eq!(metrics[1]["passes_per_sample"], 2 * replay * particles);
        assert_eq!(metrics[1]["updates"], 6, "an update is a minibatch with all its replays");
    }
}

#[test]
fn the_first_gradient_of_fused_is_that_of_faithful() {
    let place = Place::empty();
    // In one update of one minibatch, both modes compute the first gradient at the natural examples
    // and the initial weights. It is in the sampler's state.
    write_digits(&place.path("digits"), 8, 20);
    let [faithful, fused] = ["faithful", "fused"].map(|mode| {
        let sampler = "--sampler bad_plugins.so,plugin=momentum";
        place.host(&format!("{TRAIN} {sampler} --epochs 1 --mode {mode} --out {mode}")).succeeds();
        place.run(mode).tensors("particles.safetensors")
    });
    let scale = fused["state.1"].1.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(scale > 1e-4, "a gradient: {scale}");
    assert!(largest_difference(&faithful, &fused, "state.1") < 1e-5 * scale);
    assert!(largest_difference(&faithful, &fused, "particles") < 1e-6);
    // The weights are updated at the new particles in mode faithful, at the old ones in mode fused.
    assert!(place.run("faithful").weights() != place.run("fused").weights());
}

/// softmax(W x + b) of the linear model.
fn prediction(weights: &[f32], bias: &[f32], image: &[f64]) -> Vec<f64> {
    let scores = weights.chunks(image.len()).zip(bias).map(|(row, bias)| {
        let products = row.iter().zip(image).map(|(weight, pixel)| f64::from(*weight) * pixel);
        (products.sum::<f64>() + f64::from(*bias)).exp()
    });
    let scores: Vec<f64> = scores.collect();
    let sum: f64 = scores.iter().sum();
    scores.into_iter().map(|score| score / sum).collect()
}

#[test]
fn the_gradient_of_trades_is_that_computed_by_hand() {
    const BETA: f64 = 3.0;
    const K: usize = 2;
    let place = Place::empty();
    write_digits(&place.path("digits"), 8, 20);
    // One update with all points. A run with a learning rate of almost zero has the weights before
    // it.
    let [before, after] = [("1e-30", "before"), ("1", "after")].map(|(rate, out)| {
        let model = "--model bad_plugins.so,plugin=linear";
        let descent = format!("--learning-rate {rate} --momentum 0 --schedule constant");
        let trades = format!("--objective trades.so,beta={BETA} --particles {K}");
        place.host(&format!("{TRAIN} {model} {descent} {trades} --epochs 1 --out {out}")).ended_with(0);
        place.run(out)
    });
    let particles = &before.tensors("particles.safetensors")["particles"].1;
    assert_eq!(particles, &after.tensors("particles.safetensors")["particles"].1);
    let images = fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    let images: Vec<f64> = images[16..].iter().map(|pixel| f64::from(*pixel) / 255.0).collect();
    let labels = fs::read(place.path("digits/train-labels-idx1-ubyte")).expect("readable");
    let (weights, bias) = (&before.weights()["linear.weight"].1, &before.weights()["linear.bias"].1);
    let mut expected = vec![0.0; 10 * 64];
    let mut loss = 0.0;
    for (number, particle) in particles.chunks(64).enumerate() {
        let (point, share) = (number / K, 1.0 / (20 * K) as f64);
        let natural = &images[64 * point..][..64];
        let particle: Vec<f64> = particle.iter().map(|value| f64::from(*value)).collect();
        let label = usize::from(labels[8 + point]);
        let p = prediction(weights, bias, natural);
        let q = prediction(weights, bias, &particle);
        let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        loss += share * (BETA * divergence - p[label].ln());
        for class in 0..10 {
            // The gradients of cross-entropy and KL divergence with respect to the logits at the
            // natural example and at the particle, each times its image.
            let hit = if class == label { 1.0 } else { 0.0 };
            let at_natural = p[class] - hit + BETA * p[class] * ((p[class] / q[class]).ln() - divergence);
            let at_particle = BETA * (q[class] - p[class]);
            for pixel in 0..64 {
                expected[64 * class + pixel] +=
                    share * (at_natural * natural[pixel] + at_particle * particle[pixel]);
            }
        }
    }
    for ((before, after), expected) in weights.iter().zip(&after.weights()["linear.weight"].1).zip(expected) {
        let gradient = f64::from(before - after);
        assert!((gradient - expected).abs() < 2e-6, "got {gradient}, by hand {expected}");
    }
    let metrics = &before.metrics()[0];
    let printed = metrics["train_loss"].as_f64().expect("a number");
    assert!((printed - loss).abs() < 1e-5, "got {printed}, by hand {loss}");
    assert_eq!(
        metrics["passes_per_sample"], 5,
        "a step and a descent of both particles, the natural example"
    );
}

#[test]
fn trades_takes_a_further_pass_at_the_natural_examples() {
    let place = Place::with_digits(8, 60);
    let train = |flags: &str, out: &str| {
        place.host(&format!("{TRAIN} --objective trades.so --epochs 2 {flags} --out {out}")).ended_with(0);
        place.run(out).metrics()[1]["passes_per_sample"].as_u64().expect("a number")
    };
    // Two epochs. Each has three steps and an update of the weights for two particles, and one pass
    // of the natural example.
    assert_eq!(train("--particles 2 --sampler langevin.so,steps=3", "two"), 2 * (4 * 2 + 1));
    assert_eq!(train("--sampler pgd.so,steps=2 --start uniform", "pgd"), 2 * (2 + 1 + 1));
    train("--sampler langevin.so,noise=0 --start uniform-store", "moved");
    assert!(distances(&place, "moved").iter().any(|distance| *distance > 0.09));
}

#[test]
fn without_a_sampler_fused_is_ordinary_training() {
    let place = Place::with_digits(8, 60);
    for mode in ["faithful", "fused"] {
        place.host(&format!("{TRAIN} --sampler none --epochs 2 --mode {mode} --out {mode}")).succeeds();
    }
    assert!(place.run("faithful").weights() == place.run("fused").weights());
}

#[test]
fn chains_begin_at_the_chosen_start() {
    let place = Place::with_digits(8, 20);
    let distances = |start: &str, flags: &str| -> Vec<f32> {
        let sampler = "--mode faithful --sampler langevin.so,step_size=0,noise=0";
        let out = format!("{start}{}", flags.len());
        place.host(&format!("{TRAIN} {sampler} --epochs 1 --start {start} {flags} --out {out}")).succeeds();
        distances(&place, &out)
    };
    assert!(distances("store", "").into_iter().all(|distance| distance < 1e-6));
    let uniform = distances("uniform-store", "");
    assert!(uniform.iter().all(|distance| *distance <= 0.1 + 1e-6));
    let mean = uniform.iter().sum::<f32>() / uniform.len() as f32;
    // The mean of a uniform draw from a ball of 0.1, hardly cut by the domain, is 0.05. The
    // tolerance is five standard errors of 1280 numbers.
    assert!((mean - 0.05).abs() < 0.004, "{mean}");
    // During the epsilon ramp the ball is smaller: the one update of a ramp of one epoch has half
    // of epsilon.
    let growing = distances("uniform-store", "--warmup-epsilon 1");
    assert!(growing.iter().all(|distance| *distance <= 0.05 + 1e-6));
    assert!(growing.iter().any(|distance| *distance > 0.049));
    // Training is in twice the ball, evaluation in the ball of the threat model.
    let scale = "--epsilon-scale 2";
    let scaled = distances("uniform-store", scale);
    assert!(scaled.iter().all(|distance| *distance <= 0.2 + 1e-6));
    assert!(scaled.iter().any(|distance| *distance > 0.19));
    let run = format!("uniform-store{}", scale.len());
    place.host(&format!("eval {run} --attack fgsm.so --points 20")).succeeds();
    assert_eq!(place.run(&run).evaluations()[0]["threat"]["epsilon"], 0.1);

    for start in ["natural", "uniform"] {
        place.host(&format!("{TRAIN} --epochs 1 --start {start} --out {start}")).succeeds();
        assert!(!place.run(start).newest("particles.safetensors").exists(), "nothing is kept");
    }
    assert!(place.run("natural").weights() != place.run("uniform").weights());
}

/// Each particle's distance from its natural example, pixel by pixel.
fn distances(place: &Place, run: &str) -> Vec<f32> {
    let images = fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    let particles = place.run(run).tensors("particles.safetensors");
    let pixels = images[16..].iter().map(|pixel| f32::from(*pixel) / 255.0);
    pixels.zip(&particles["particles"].1).map(|(pixel, value)| (pixel - value).abs()).collect()
}

#[test]
fn particles_stay_with_their_images_under_crops_and_flips() {
    let place = Place::with_digits(8, 60);
    let train_in = |ball: &str, flags: &str, out: &str| {
        let train = TRAIN.replace("--epsilon 0.1", ball);
        place.host(&format!("{train} --epochs 4 --crop 3 --flip {flags} --out {out}")).ended_with(0);
        distances(&place, out)
    };
    let train = |flags: &str, out: &str| train_in("--epsilon 0.1", flags, out);
    // Crops and flips are undone exactly: particles without steps stay at the natural examples.
    let still = train("--sampler langevin.so,step_size=0,noise=0", "still");
    assert!(still.iter().all(|distance| *distance < 1e-7));
    for (flags, out) in [
        ("--mode faithful", "plain"),
        ("--mode fused --replay 2", "fused"),
        ("--mode faithful --start uniform-store --warmup-epsilon 2", "growing"),
    ] {
        let moved = train(flags, out);
        assert!(moved.iter().all(|distance| *distance <= 0.1 + 1e-6), "{flags}");
        assert!(moved.iter().filter(|distance| **distance > 0.05).count() > moved.len() / 2, "{flags}");
    }
    let moved =
        train_in("--norm l2 --epsilon 1", "--sampler pgd.so,step_size=0.5,steps=4 --start store", "l2");
    let lengths = moved.chunks(64).map(|row| row.iter().map(|d| d * d).sum::<f32>().sqrt());
    let longest = lengths.fold(0.0, f32::max);
    assert!((0.9..=1.0 + 1e-5).contains(&longest), "{longest}");
}

#[test]
fn crops_and_flips_change_the_weights_and_are_off_by_default() {
    let place = Place::with_digits(8, 60);
    let weights = |flags: &str, out: &str| {
        place.host(&format!("{TRAIN} --epochs 1 {flags} --out {out}")).succeeds();
        place.run(out).weights()
    };
    let plain = weights("--mode faithful", "plain");
    assert!(weights("--mode faithful --crop 0 --flip false", "off") == plain);
    for (flags, out) in [
        ("--mode faithful --crop 1", "crop"),
        ("--mode faithful --flip", "flip"),
        ("--flip true --sampler none", "clean"),
    ] {
        assert!(weights(flags, out) != plain, "{flags}");
    }
    place.refuses(
        &format!("{TRAIN} --crop 8"),
        &["train.crop: expected 0 to 7 (windows that show something of these images), got 8"],
    );
}

#[test]
fn an_average_of_the_weights_is_evaluated_instead_of_the_weights() {
    let place = Place::with_digits(8, 100);
    let flags = "--sampler none --model bad_plugins.so,plugin=linear --epochs 1";
    place.host(&format!("{TRAIN} {flags} --average 0.5 --checkpoint-every 1 --out averaged")).succeeds();
    let run = place.run("averaged");
    let (average, weights) = (run.tensors("average.safetensors"), run.weights());
    // After step t = 0, 1, ..., the average keeps min(0.5, (1 + t) / (10 + t)) of itself. The last
    // step is computed by hand from the last two checkpoints.
    let before = read_tensors(&run.checkpoints()[&4].join("average.safetensors"));
    let keep = 5.0 / 14.0;
    for (name, (_, values)) in &average {
        for ((got, before), weight) in values.iter().zip(&before[name].1).zip(&weights[name].1) {
            let expected = keep * before + (1.0 - keep) * weight;
            assert!((got - expected).abs() < 1e-6, "{name}: {got}, by hand {expected}");
        }
    }
    // The averages are evaluated: other averages give other verdicts.
    let loss_rise = |place: &Place| {
        let printed = place.host("eval averaged --json --attack fgsm.so").ended_with(0).json();
        printed["attacks"][0]["loss_rise"].as_f64().expect("a number")
    };
    let expected = loss_rise(&place);
    let progress = run.newest("progress.json");
    let mut saved = json_file(&progress);
    saved["files"].as_object_mut().expect("files").remove("average.safetensors");
    write_sealed(&progress, &saved.to_string());
    assert_ne!(loss_rise(&place), expected);
}

#[test]
fn weights_are_averaged_equally_from_a_share_of_the_run_on() {
    let place = Place::with_digits(8, 100);
    let flags = "--sampler none --model bad_plugins.so,plugin=linear --epochs 1 --checkpoint-every 1";
    // There are five updates, and checkpoints of the last two.
    for (share, first) in [("0.6", 3), ("0.99", 4)] {
        place.host(&format!("{TRAIN} {flags} --swa-from {share} --out run{first}")).succeeds();
        let run = place.run(&format!("run{first}"));
        let weights =
            [4, 5].map(|update| read_tensors(&run.checkpoints()[&update].join("weights.safetensors")));
        assert_eq!(run.checkpoints()[&4].join("average.safetensors").exists(), first == 3);
        for (name, (_, values)) in run.tensors("average.safetensors") {
            for (position, got) in values.iter().enumerate() {
                let [fourth, fifth] = [0, 1].map(|number: usize| weights[number][&name].1[position]);
                let expected = if first == 3 { (fourth + fifth) / 2.0 } else { fifth };
                assert!((got - expected).abs() < 1e-7, "{name}: {got}, by hand {expected}");
            }
        }
        assert!(run.metrics()[0].get("statistics_passes").is_none(), "there are no statistics");
    }
}

#[test]
fn equally_averaged_weights_have_their_own_running_statistics() {
    let place = Place::with_digits(8, 60);
    // Every epoch has one update with all points, so the statistics can be computed by hand.
    let flags = "--sampler none --model bad_plugins.so,plugin=normalised --epochs 3 --learning-rate 0.5";
    let command = format!("{TRAIN} {flags} --swa-from 0 --out run").replace("--batch 20", "--batch 60");
    place.host(&command).succeeds();
    let run = place.run("run");
    assert_eq!(run.metrics()[2]["statistics_passes"], 3000.0, "a hundred forwards of 60 points");
    let (average, weights) = (run.tensors("average.safetensors"), run.weights());
    let images = fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    let mut mean = [0.0; 64];
    for (position, pixel) in images[16..].iter().enumerate() {
        mean[position % 64] += f64::from(*pixel) / 255.0 / 60.0;
    }
    for class in 0..10 {
        let row = &average["linear.weight"].1[64 * class..64 * (class + 1)];
        let product: f64 = row.iter().zip(mean).map(|(weight, pixel)| f64::from(*weight) * pixel).sum();
        let seen = product + f64::from(average["linear.bias"].1[class]);
        let [got, own] =
            [&average, &weights].map(|tensors| f64::from(tensors["normalisation.running_mean"].1[class]));
        // A hundred updates with momentum 0.1, from the statistics of the weights.
        let rest = 0.9f64.powi(100);
        let expected = rest * own + (1.0 - rest) * seen;
        assert!((got - expected).abs() < 1e-5, "class {class}: {got}, by hand {expected}");
        assert!((got - own).abs() > 1e-4, "class {class}: not the weights' own");
    }
}

#[test]
fn settings_that_fused_does_not_support_are_refused_with_the_reason() {
    let place = Place::with_digits(8, 60);
    let fused = format!("{TRAIN} --epochs 1 --mode fused");
    place.refuses(&format!("{fused} --sampler pgd.so,steps=3"), &["`steps`", "train.replay"]);
    // A replay of a sampler that judges its last proposal takes a pass at the particle and one at the
    // proposal.
    let judged = format!("{fused} --sampler bad_plugins.so,plugin=metropolis --replay 3 --out judged");
    place.host(&judged).ended_with(0);
    assert_eq!(place.run("judged").metrics()[0]["passes_per_sample"], 6);
    place.refuses(
        &format!("{fused} --objective trades.so"),
        &["train.objective: expected one loss for both problems (mode fused", "got trades", "is climbed"],
    );
    place.refuses(
        &format!("{TRAIN} --objective trades.so --sampler none"),
        &["train.objective: expected one that does not compare", "without a sampler", "got trades"],
    );
    place.refuses(&format!("{TRAIN} --objective trades.so,beta=-1"), &["option `beta`", "-1"]);
    place.refuses(&format!("{fused} --replay 0"), &["train.replay: expected 1 to 65534, got 0"]);
    for anew in ["--sampler langevin.so --start natural", "--sampler fgsm.so", "--start uniform"] {
        place
            .refuses(&format!("{fused} --replay 1 {anew}"), &["train.replay: expected 2 or more", "got 1"])
            .explains(&["--start store"]);
        place.host(&format!("{fused} --replay 2 {anew} --out run")).ended_with(0);
        fs::remove_dir_all(place.path("run")).expect("removed");
    }
    place.refuses(
        &format!("{TRAIN} --mode faithful --replay 2"),
        &["train.replay: expected 1 (only mode fused", "got 2"],
    );
    place.refuses(
        &format!("{TRAIN} --average 1"),
        &["train.average: expected a share from 0 to below 1, got 1"],
    );
    place.refuses(
        &format!("{TRAIN} --swa-from 1"),
        &["train.swa_from: expected a share of the run from 0 to below 1, got 1"],
    );
    place.refuses(&format!("{TRAIN} --swa-from 0.5 --average 0.9"), &["train.swa_from and train.average"]);
    place.refuses(
        &format!("{TRAIN} --warmup-epsilon 9"),
        &["train.warmup_epsilon: expected a number from 0 to train.epochs, got 9"],
    );
    place.refuses(
        &format!("{TRAIN} --epsilon-scale -1"),
        &["train.epsilon_scale: expected a finite number above 0, got -1"],
    );
}

#[test]
fn training_at_chance_level_or_with_catastrophic_overfitting_has_a_warning() {
    let place = Place::with_digits(8, 420);
    // With a learning rate of almost zero the loss stays at chance level.
    let stuck =
        format!("{TRAIN} --sampler none --train-points 60 --epochs 3 --learning-rate 1e-9 --out stuck");
    let advice = "limit the gradients (train.clip_gradient), or change the learning rate";
    let outcome = place.host(&stuck).succeeds_with_warning(&["stuck at chance", "for 3 epochs", advice]);
    assert!(outcome.words().contains("epoch 3"));
    let alarms: Vec<_> = place
        .run("stuck")
        .metrics()
        .iter()
        .map(|epoch| epoch["alarms"].as_array().map_or(0, Vec::len))
        .collect();
    assert_eq!(alarms, [0, 0, 1]);
    let lines = place.host(&format!("{} --json", stuck.replace("--out stuck", "--out again"))).succeeds();
    let alarms = lines.json_lines().into_iter().filter(|line| line["event"] == "alarm").count();
    assert_eq!(alarms, 1);
    // What is limited already may be limited further.
    let limited = stuck.replace("--out stuck", "--out limited --clip-gradient 0.5");
    place.host(&limited).succeeds_with_warning(&["limit the gradients to less than 0.5"]);
    // With a sampler that does not move, the model is accurate in training and fails against the
    // probe.
    let probe = "--validation-points 20 --probe pgd.so,steps=10,step_size=0.05";
    let still = "--sampler langevin.so,step_size=0,noise=0";
    let naive = format!("{TRAIN} {still} --epochs 4 --optimizer adam --learning-rate 0.002 {probe}");
    place.host(&format!("{naive} --out naive")).succeeds_with_warning(&["catastrophic overfitting"]);
    // If the training ball is smaller than the probe's, failing against the probe is expected.
    for (smaller, out) in [("--epsilon-scale 0.5", "small"), ("--warmup-epsilon 4", "growing")] {
        place.host(&format!("{naive} {smaller} --out {out}")).succeeds();
    }
}

#[test]
fn bf16_reaches_about_the_loss_of_f32() {
    let place = Place::with_digits(8, 400);
    let flags = "--sampler none --epochs 4 --optimizer adam --learning-rate 0.002";
    let loss = |precision: &str| {
        // A warning says where the processor has no instructions for bf16.
        place.host(&format!("{TRAIN} {flags} --precision {precision} --out {precision}")).ended_with(0);
        place.run(precision).metrics()[3]["train_loss"].as_f64().expect("a number")
    };
    let (single, half) = (loss("f32"), loss("bf16"));
    assert!(single < 0.1 && half < 0.1, "both have learnt: f32 {single}, bf16 {half}");
    assert!((single - half).abs() < 0.01, "f32 {single}, bf16 {half}");
    assert!(place.run("f32").weights() != place.run("bf16").weights(), "the arithmetic differs");
    assert!(place.run("bf16").weights()["conv1.weight"].1.len() > 1, "weights are f32");
}

#[test]
fn training_works_with_particles_as_bytes_or_in_a_file() {
    let place = Place::with_digits(8, 60);
    let train = |flags: &str, out: &str| {
        let langevin = "--sampler langevin.so,step_size=0.02,noise=0.01 --epochs 3";
        place.host(&format!("{TRAIN} {langevin} {flags} --out {out}")).ended_with(0);
        place.run(out)
    };
    let whole = train("", "whole");
    let filed = train("--store-file particles", "filed");
    filed.assert_same_as(&whole);
    // Three slots: two for the last two checkpoints.
    assert_eq!(fs::metadata(place.path("particles")).expect("a file").len(), 3 * 60 * 64 * 4);
    let inside = train("--store-file", "inside");
    inside.assert_same_as(&whole);
    assert_eq!(fs::metadata(place.path("inside/particles")).expect("a file").len(), 3 * 60 * 64 * 4);
    let [whole, bytes] = [whole, train("--store u8 --store-file one-byte", "bytes")].map(|run| {
        let line = run.metrics().pop().expect("three epochs");
        line["train_loss"].as_f64().expect("a number")
    });
    assert_eq!(fs::metadata(place.path("one-byte")).expect("a file").len(), 3 * 60 * 64);
    assert!((whole - bytes).abs() < 0.02 * whole, "f32 {whole}, u8 {bytes}");
    place.refuses(&format!("{TRAIN} --store-file particles"), &["particles exists already"]);
    place.refuses(
        &format!("{TRAIN} --sampler langevin.so --store-file in/particles --out in"),
        &["train.store_file: expected a file outside the run's folder", "in/particles"],
    );
    // A file that was put in its place later is kept.
    fs::write(place.path("particles"), "years of work").expect("written");
    place.refuses("train --resume filed", &["particles", "got 13 bytes"]);
    assert_eq!(fs::read_to_string(place.path("particles")).expect("text"), "years of work");
    // A run that cannot begin leaves no file: its folder is made last.
    place.refuses(
        &format!("{TRAIN} --sampler langevin.so --store-file left --out particles/run"),
        &["cannot create"],
    );
    assert!(!place.path("left").exists());
    place.refuses(
        &format!("{TRAIN} --store-file other --device cuda"),
        &["train.store_file: particles in a file need train.device = \"cpu\", got cuda"],
    );
}
