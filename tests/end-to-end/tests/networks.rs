//! Training and evaluation of networks with batch normalisation.

use crate::harness::{Place, Run};
use std::fs;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epsilon 0.1 --epochs 1";
const RESNET: &str = "--model resnet.so,width=2";
const LANGEVIN: &str = "--sampler langevin.so,step_size=0.05,noise=0.02";
const SIDE: usize = 8;
const POINTS: usize = 20;

/// The mean of each output channel of a 3x3 convolution with padding 1, over grey images and their
/// pixels.
fn mean_after_convolution(weights: &[f32], images: &[f32]) -> Vec<f32> {
    let pixel = |image: &[f32], row: isize, column: isize| {
        let inside = |place: isize| (0..SIDE as isize).contains(&place);
        if inside(row) && inside(column) {
            f64::from(image[row as usize * SIDE + column as usize])
        } else {
            0.0
        }
    };
    let mean = |kernel: &[f32]| {
        let mut sum = 0.0;
        for image in images.chunks(SIDE * SIDE) {
            for place in 0..(SIDE * SIDE) as isize {
                for (number, weight) in (0..).zip(kernel) {
                    let (row, column) =
                        (place / SIDE as isize + number / 3, place % SIDE as isize + number % 3);
                    sum += f64::from(*weight) * pixel(image, row - 1, column - 1);
                }
            }
        }
        (sum / images.len() as f64) as f32
    };
    weights.chunks(9).map(mean).collect()
}

#[track_caller]
fn assert_close(got: &[f32], expected: impl Iterator<Item = f32>) {
    let expected: Vec<_> = expected.collect();
    let close = got.iter().zip(&expected).all(|(got, expected)| (got - expected).abs() < 1e-6);
    assert!(close && got.len() == expected.len(), "got {got:?}, by hand {expected:?}");
}

/// One update with one minibatch, which hardly changes the weights. Returns the run, and the mean
/// of the first normalisation's input for the natural images and for the particles of the update.
fn one_update(place: &Place, flags: &str, out: &str) -> (Run, Vec<f32>, Vec<f32>) {
    place.host(&format!("{TRAIN} {RESNET} --learning-rate 1e-9 {flags} --out {out}")).succeeds();
    let images = fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    let images: Vec<_> = images[16..].iter().map(|pixel| f32::from(*pixel) / 255.0).collect();
    let run = place.run(out);
    let kernels = run.weights()["conv1.weight"].1.clone();
    let particles = run.tensors("particles.safetensors")["particles"].1.clone();
    let [natural, adversarial] = [images, particles].map(|images| mean_after_convolution(&kernels, &images));
    (run, natural, adversarial)
}

#[test]
fn only_passes_in_training_mode_change_the_running_statistics() {
    let place = Place::with_digits(SIDE, POINTS);
    let running = |run: &Run| run.weights()["bn1.running_mean"].1.clone();
    // A tenth of the statistics at the update's particles; the sampler's passes have no effect.
    for (flags, out) in [("", "default"), ("--sampler-gradient eval", "eval")] {
        let (run, natural, adversarial) = one_update(&place, &format!("{LANGEVIN} {flags}"), out);
        assert!(natural.iter().zip(&adversarial).any(|(natural, moved)| (natural - moved).abs() > 1e-4));
        assert_close(&running(&run), adversarial.iter().map(|mean| 0.1 * mean));
    }
    // The sampler's pass at the natural images came first; the later pass reduced its share by a
    // tenth.
    let (run, natural, adversarial) =
        one_update(&place, &format!("{LANGEVIN} --sampler-gradient train"), "train");
    assert_close(
        &running(&run),
        natural.iter().zip(&adversarial).map(|(natural, moved)| 0.09 * natural + 0.1 * moved),
    );
    // Mode fused has one pass, at the natural images.
    let (run, natural, _) = one_update(&place, &format!("{LANGEVIN} --mode fused"), "fused");
    assert_close(&running(&run), natural.iter().map(|mean| 0.1 * mean));
}

#[test]
fn fused_has_no_separate_pass_of_the_sampler() {
    let place = Place::with_digits(SIDE, POINTS);
    place.refuses(
        &format!("{TRAIN} --mode fused --sampler-gradient eval"),
        &["train.sampler_gradient: expected train", "also trains the weights", "got eval"],
    );
    for flag in ["", "--sampler-gradient train"] {
        let out = format!("run{}", flag.len());
        place.host(&format!("{TRAIN} {RESNET} {LANGEVIN} --mode fused {flag} --out {out}")).ended_with(0);
    }
    place.run("run0").assert_same_as(&place.run("run24"));
}

#[test]
fn the_mode_of_the_samplers_gradient_changes_the_particles() {
    let place = Place::with_digits(SIDE, POINTS);
    let particles = |mode: &str| {
        let flags = format!("{RESNET} {LANGEVIN} --sampler-gradient {mode}");
        place.host(&format!("{TRAIN} {flags} --out {mode}")).ended_with(0);
        place.run(mode).tensors("particles.safetensors")
    };
    assert!(particles("eval") != particles("train"));
}

#[test]
fn evaluation_uses_the_running_statistics_for_any_batch_size() {
    let place = Place::with_digits(SIDE, 200);
    let flags = "--model wide_resnet.so,depth=10,width=1,dropout=0.3,mean=[0.5],std=[0.25] --average 0.9";
    place.host(&format!("{TRAIN} {flags} {LANGEVIN} --precision bf16 --out run")).ended_with(0);
    let verdicts = |batch: usize| {
        place.host(&format!("eval run --attack fgsm.so --batch {batch}")).ended_with(0);
        place.run("run").evaluations().pop().expect("an evaluation")["verdicts"].clone()
    };
    assert_eq!(verdicts(7), verdicts(100));
}

#[test]
fn invalid_options_of_networks_are_refused() {
    let place = Place::with_digits(SIDE, POINTS);
    for (model, parts) in [
        ("resnet.so,depth=20", ["option `depth`", "expected 18, 34 or 50, got 20"]),
        ("wide_resnet.so,depth=18", ["option `depth`", "expected 6 n + 4"]),
        ("wide_resnet.so,depth=1000000", ["option `depth`", "of at most 1000"]),
        ("resnet.so,width=1000000", ["option `width`", "of at most 1000"]),
        ("resnet.so,mean=[0.5,0.5,0.5]", ["option `mean`", "expected 1 numbers, one for each channel"]),
        ("resnet.so,std=[0]", ["option `std`", "expected finite numbers above 0, got 0"]),
        ("resnet.so,std=0.5", ["option `std`", "expected a sequence"]),
    ] {
        place.refuses(&format!("{TRAIN} --model {model}"), &parts);
    }
}

#[test]
fn a_batch_of_one_image_with_features_of_one_pixel_is_refused() {
    // The last stage has one pixel for 8x8 images; 21 points in batches of 20 leave a batch of one.
    let place = Place::with_digits(SIDE, POINTS + 1);
    place
        .host(&format!("{TRAIN} {RESNET} --sampler none --out run"))
        .fails(1, &["batch normalisation in training needs two numbers per channel", "batch size"]);
}
