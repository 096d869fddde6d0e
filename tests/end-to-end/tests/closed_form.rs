//! Linear models, for which robustness has a closed form: training on a min-max problem whose
//! optimum is known, and AutoAttack on classifiers whose robust points are known.
//!
//! For a linear model of two classes, the inner problem over an linf ball has a closed form. Let w
//! and b be the differences of the two classes' weights and biases, and y = 1 or -1 the class. Then
//!
//!     max over |d| <= epsilon of log(1 + exp(-y (w (x + d) + b)))
//!         = log(1 + exp(-(y (w x + b) - epsilon |w|_1))),
//!
//! and its mean over the points is a convex function of w and b.

use crate::data::{Noise, Samples, write, write_colours};
use crate::harness::{Place, Run};
use crate::suites::assert_examples_are_allowed;

const POINTS: usize = 400;
const EPSILON: f64 = 0.1;
/// Images of 2 x 2 pixels.
const PIXELS: usize = 4;
/// The difference of each pixel from 0.5, whose sign is that of the class, and the noise of the
/// pixel. Every pixel separates the classes. The first two mostly do so even after a change of
/// epsilon; an adversary can cancel the small difference of the others. No linear model separates
/// all balls, so the optimum is finite. The balls lie inside the domain.
const SIGNAL: [f64; PIXELS] = [0.15, 0.13, 0.02, 0.02];
const NOISE: [f64; PIXELS] = [0.10, 0.10, 0.005, 0.005];

/// A point: pixels minus 0.5, and the sign of its class.
type Point = ([f64; PIXELS], f64);

/// A linear model of pixels minus 0.5: weights, and the bias last.
type Line = [f64; PIXELS + 1];

fn samples(seed: u64) -> Samples {
    let mut noise = Noise(seed);
    let labels: Vec<u8> = (0..POINTS).map(|point| (point % 2) as u8).collect();
    let pixels = labels.iter().flat_map(|label| {
        let sign = 2.0 * f64::from(*label) - 1.0;
        let values = SIGNAL
            .iter()
            .zip(NOISE)
            .map(|(signal, spread)| (255.0 * (0.5 + sign * signal + spread * noise.uniform())).round() as u8);
        values.collect::<Vec<_>>()
    });
    Samples { pixels: pixels.collect(), labels }
}

fn points(samples: &Samples) -> Vec<Point> {
    let images = samples.pixels.chunks(PIXELS).zip(&samples.labels);
    images
        .map(|(pixels, label)| {
            let pixel = |index: usize| f64::from(pixels[index]) / 255.0 - 0.5;
            (std::array::from_fn(pixel), 2.0 * f64::from(*label) - 1.0)
        })
        .collect()
}

/// The worst-case margin of a point.
fn worst_margin(line: &Line, (pixels, sign): &Point) -> f64 {
    let (bias, weights) = line.split_last().expect("a bias");
    let score: f64 = weights.iter().zip(pixels).map(|(weight, pixel)| weight * pixel).sum();
    let cost: f64 = weights.iter().map(|weight| weight.abs()).sum();
    sign * (score + bias) - EPSILON * cost
}

fn worst_case_loss(line: &Line, points: &[Point]) -> f64 {
    let loss = |point| (-worst_margin(line, point)).exp().ln_1p();
    points.iter().map(loss).sum::<f64>() / points.len() as f64
}

/// A subgradient of the worst-case loss.
fn subgradient(line: &Line, points: &[Point]) -> Line {
    let mut gradient = [0.0; PIXELS + 1];
    for point @ (pixels, sign) in points {
        let slope = -1.0 / (1.0 + worst_margin(line, point).exp()) / points.len() as f64;
        for index in 0..PIXELS {
            let cost = EPSILON * line[index].signum();
            gradient[index] += slope * (sign * pixels[index] - cost);
        }
        gradient[PIXELS] += slope * sign;
    }
    gradient
}

/// The smallest worst-case loss of a linear model, by subgradient descent with decreasing steps.
fn optimum(points: &[Point]) -> f64 {
    let mut line = [0.0; PIXELS + 1];
    let mut least = f64::INFINITY;
    for step in 0..20_000 {
        least = least.min(worst_case_loss(&line, points));
        let rate = 30.0 / (1.0 + f64::from(step) / 100.0);
        let gradient = subgradient(&line, points);
        line.iter_mut().zip(gradient).for_each(|(value, slope)| *value -= rate * slope);
    }
    least
}

/// The linear model of a run.
fn learnt(run: &Run) -> Line {
    let weights = run.weights();
    let (matrix, biases) = (&weights["linear.weight"].1, &weights["linear.bias"].1);
    let difference = |index: usize| f64::from(matrix[PIXELS + index]) - f64::from(matrix[index]);
    let mut line: Line = std::array::from_fn(|index| if index < PIXELS { difference(index) } else { 0.0 });
    // The inputs of the run's model are pixels from 0 to 1.
    line[PIXELS] = f64::from(biases[1]) - f64::from(biases[0]) + 0.5 * line.iter().sum::<f64>();
    line
}

#[test]
fn training_with_a_sampler_finds_the_smallest_worst_case_loss() {
    let place = Place::empty();
    let train = samples(1);
    write(&place.path("digits"), 2, &train, &samples(2));
    let points = points(&train);
    let widest = |point: &&Point| point.0.iter().any(|value| value.abs() > 0.3);
    assert_eq!(points.iter().find(widest), None, "every ball lies inside the domain");
    let least = optimum(&points);

    let trained = |sampler: &str, out: &str| {
        let flags = "--model bad_plugins.so,plugin=linear --threads 1 --batch 100 --epochs 100";
        let steps = "--learning-rate 3 --momentum 0.9 --schedule cosine --weight-decay 0";
        let command = format!("train --recipe algorithm-1 --data digits {flags} {steps} --epsilon {EPSILON}");
        place.host(&format!("{command} --sampler {sampler} --out {out}")).succeeds();
        worst_case_loss(&learnt(&place.run(out)), &points)
    };
    // For a linear model, one step of the sign reaches the worst corner. So do four steps of 0.06
    // from any point of a ball of width 0.2.
    for (sampler, out) in [("fgsm.so", "fgsm"), ("pgd.so,steps=4,step_size=0.06", "pgd")] {
        let loss = trained(sampler, out);
        assert!((least - 1e-4..least + 2e-3).contains(&loss), "{sampler}: {loss}, optimum {least}");
    }
    let loss = trained("none", "none");
    assert!(loss > least + 0.1, "without a sampler: {loss}, optimum {least}");
}

// ------------------------------------------------------------------ robust accuracy of the judge

/// Images of 8 x 8 pixels.
const SIDE: usize = 8;

/// Grey levels from 68 to 188: each class has a pattern of two levels, each pixel has noise.
fn classes(count: usize, points: usize, seed: u64) -> Samples {
    let mut noise = Noise(seed);
    let labels: Vec<u8> = (0..points).map(|point| (point % count) as u8).collect();
    let pixels = labels.iter().flat_map(|label| {
        let mut pattern = Noise(1000 + u64::from(*label));
        let pixel = |_| 128.0 + 30.0 * pattern.uniform().signum() + 30.0 * noise.uniform();
        (0..SIDE * SIDE).map(pixel).map(|value| value as u8).collect::<Vec<_>>()
    });
    Samples { pixels: pixels.collect(), labels }
}

/// A linear classifier: for each class, the weights of the pixels, and a bias.
struct Linear {
    rows: Vec<(Vec<f64>, f64)>,
}

impl Linear {
    fn of(run: &Run) -> Self {
        let weights = run.weights();
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let (matrix, biases) = (wide(&weights["linear.weight"].1), wide(&weights["linear.bias"].1));
        Self { rows: matrix.chunks(SIDE * SIDE).map(<[f64]>::to_vec).zip(biases).collect() }
    }

    /// The distance of a point from the nearest other class; negative if the point is misclassified.
    ///
    /// The margin over class j falls by at most epsilon times the dual norm of w_y - w_j in a ball
    /// of radius epsilon: the l1 norm for linf, the l2 norm for l2. In linf, the change is epsilon in
    /// every pixel; in l2 it is along w_y - w_j. `largest` is raised to the largest change of a
    /// pixel at that distance: as long as it stays inside the domain, the domain does not matter.
    fn distance(&self, norm: &str, pixels: &[f64], label: usize, largest: &mut f64) -> f64 {
        let (own, own_bias) = &self.rows[label];
        let others = self.rows.iter().enumerate().filter(|(class, _)| *class != label);
        let distances = others.map(|(_, (weights, bias))| {
            let difference: Vec<f64> = own.iter().zip(weights).map(|(own, other)| own - other).collect();
            let score: f64 = difference.iter().zip(pixels).map(|(weight, pixel)| weight * pixel).sum();
            let dual = match norm {
                "linf" => difference.iter().map(|weight| weight.abs()).sum::<f64>(),
                _ => difference.iter().map(|weight| weight * weight).sum::<f64>().sqrt(),
            };
            let distance = (score + own_bias - bias) / dual;
            let steepest = difference.iter().fold(0.0, |most: f64, weight| most.max(weight.abs()));
            let change = if norm == "linf" { distance } else { distance * steepest / dual };
            (distance, change)
        });
        let (distance, change) =
            distances.min_by(|(one, _), (other, _)| one.total_cmp(other)).expect("another class");
        *largest = largest.max(change);
        distance
    }
}

/// The middle of the widest gap between neighbours in the middle half of these distances, and the
/// share of it that the gap is.
fn undisputed_radius(mut distances: Vec<f64>) -> (f64, f64) {
    distances.retain(|distance| *distance > 0.0);
    distances.sort_by(f64::total_cmp);
    let count = distances.len();
    let gaps = distances[count / 4..3 * count / 4].windows(2);
    let widest = gaps.max_by(|one, other| (one[1] - one[0]).total_cmp(&(other[1] - other[0])));
    let [below, above] = widest.expect("points")[..] else { unreachable!("windows of two") };
    ((below + above) / 2.0, (above - below) / (above + below))
}

#[test]
fn autoattack_comes_to_the_robust_accuracy_of_linear_classifiers_on_every_point() {
    for count in [2, 4, 10, 100] {
        let place = Place::empty();
        let test = classes(count, 100, 2);
        write(&place.path("classes"), SIDE, &classes(count, 20 * count.max(20), 1), &test);
        let train = |norm: &str, epsilon: f64, out: &str| {
            let flags =
                "--model bad_plugins.so,plugin=linear --sampler none --threads 1 --batch 40 --epochs 10";
            let steps = "--optimizer adam --learning-rate 0.01";
            let command = format!("train --recipe algorithm-1 --data classes {flags} {steps}");
            place.host(&format!("{command} --norm {norm} --epsilon {epsilon} --out {out}")).ended_with(0);
            Linear::of(&place.run(out))
        };
        let model = train("linf", 0.1, "first");
        for norm in ["linf", "l2"] {
            let mut largest = 0.0;
            let images = test.pixels.chunks(SIDE * SIDE).zip(&test.labels);
            let distances: Vec<f64> = images
                .map(|(pixels, label)| {
                    let pixels: Vec<f64> = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0).collect();
                    model.distance(norm, &pixels, usize::from(*label), &mut largest)
                })
                .collect();
            let (epsilon, gap) = undisputed_radius(distances.clone());
            assert!(gap > 0.002, "{count} classes, {norm}: a point lies on the sphere ({gap})");
            assert!(largest < 67.0 / 255.0, "{count} classes, {norm}: the domain matters ({largest})");
            let out = format!("run-{norm}");
            train(norm, epsilon, &out);
            let eval = format!("eval {out} --suite autoattack --threads 1 --json");
            place.host(&eval).ended_with(0);
            let evaluation = place.run(&out).evaluations().remove(0);
            let last = evaluation["verdicts"]["attacks"].as_array().and_then(|attacks| attacks.last());
            let found: Vec<bool> = last
                .and_then(|verdicts| verdicts.as_array())
                .expect("verdicts")
                .iter()
                .map(|stands| stands.as_bool().expect("a verdict"))
                .collect();
            let expected: Vec<bool> = distances.iter().map(|distance| *distance > epsilon).collect();
            let differing: Vec<_> =
                (0..expected.len()).filter(|point| found[*point] != expected[*point]).collect();
            let robust = expected.iter().filter(|stands| **stands).count();
            assert!((15..85).contains(&robust), "{count} classes, {norm}: {robust} of 100 are robust");
            assert!(differing.is_empty(), "{count} classes, {norm}: points {differing:?} differ");
        }
    }
}

// ------------------------------------------------------------------ a radius for each channel

/// Pixels of a channel of an image of CIFAR-10's layout.
const CHANNEL: usize = 32 * 32;
const SCALE: [f64; 3] = [1.0, 0.5, 0.0];

/// Colour images of ten classes; many pixels are at the ends of the domain, or near them.
fn colours(points: usize, seed: u64) -> Samples {
    let mut noise = Noise(seed);
    let labels: Vec<u8> = (0..points).map(|point| (point % 10) as u8).collect();
    let pixels = labels.iter().flat_map(|label| {
        let mut pattern = Noise(1000 + u64::from(*label));
        let pixel = |_| 128.0 + 40.0 * pattern.uniform().signum() + 120.0 * noise.uniform();
        (0..3 * CHANNEL).map(pixel).map(|value| value as u8).collect::<Vec<_>>()
    });
    Samples { pixels: pixels.collect(), labels }
}

/// The linear classifier of a run on such images.
fn of_colours(run: &Run) -> Vec<(Vec<f64>, f64)> {
    let weights = run.weights();
    let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
    let (matrix, biases) = (wide(&weights["linear.weight"].1), wide(&weights["linear.bias"].1));
    matrix.chunks(3 * CHANNEL).map(<[f64]>::to_vec).zip(biases).collect()
}

fn logits(rows: &[(Vec<f64>, f64)], pixels: &[f64]) -> Vec<f64> {
    let logit = |(weights, bias): &(Vec<f64>, f64)| {
        weights.iter().zip(pixels).map(|(weight, pixel)| weight * pixel).sum::<f64>() + bias
    };
    rows.iter().map(logit).collect()
}

fn scale_of(pixel: usize) -> f64 {
    SCALE[pixel / CHANNEL]
}

/// The largest change of a pixel, as a multiple of the scale of its channel. One that may not change
/// may differ in the last bits: the saved image is f32.
fn in_units_of_each_channel(change: &[f64]) -> f64 {
    let units = change.iter().enumerate().map(|(pixel, change)| match scale_of(pixel) {
        0.0 if change.abs() < 1e-7 => 0.0,
        scale => change.abs() / scale,
    });
    units.fold(0.0, f64::max)
}

/// One step of FGSM up the cross-entropy moves a pixel by epsilon times the scale of its channel, within
/// the domain. At a learning rate that changes nothing, the loss of an epoch is the mean loss there.
#[test]
fn training_with_a_radius_for_each_channel_moves_each_by_its_own() {
    let place = Place::empty();
    let train = colours(40, 1);
    write_colours(&place.path("pictures"), &train, &colours(10, 2));
    let flags =
        "--model bad_plugins.so,plugin=linear --threads 1 --batch 20 --epochs 1 --learning-rate 1e-12";
    let command =
        format!("train --recipe algorithm-1 --data pictures {flags} --warmup-epsilon 0 --sampler fgsm.so");
    place.host(&format!("{command} --epsilon 0.1 --channel-scale 1,1/2,0 --out run")).succeeds();
    let run = place.run("run");
    let rows = of_colours(&run);
    let loss = |(pixels, label): (&[u8], &u8)| {
        let pixels: Vec<f64> = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0).collect();
        let label = usize::from(*label);
        let exponentials: Vec<f64> = logits(&rows, &pixels).into_iter().map(f64::exp).collect();
        let total: f64 = exponentials.iter().sum();
        let moved: Vec<f64> = (0..pixels.len())
            .map(|pixel| {
                let of_classes = rows.iter().zip(&exponentials);
                let mean: f64 = of_classes.map(|((weights, _), share)| share / total * weights[pixel]).sum();
                (pixels[pixel] + 0.1 * scale_of(pixel) * (mean - rows[label].0[pixel]).signum())
                    .clamp(0.0, 1.0)
            })
            .collect();
        let logits = logits(&rows, &moved);
        logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[label]
    };
    let expected = train.pixels.chunks(3 * CHANNEL).zip(&train.labels).map(loss).sum::<f64>() / 40.0;
    let found = run.metrics()[0]["train_loss"].as_f64().expect("a loss");
    assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
    assert_eq!(run.record()["experiment"]["threat"]["channel_scale"], serde_json::json!([1.0, 0.5, 0.0]));

    // The diagnosis of a law knows balls of one radius.
    place.refuses("diagnose run", &["one radius for all channels", "threat.channel_scale"]);
    let langevin = command.replace("fgsm.so", "langevin.so");
    place.refuses(
        &format!("{langevin} --epsilon 0.1 --channel-scale 1,1/2,0 --diagnose-every 1 --out other"),
        &["train.diagnose_every", "one radius for all channels"],
    );
    // Nor is it known to which point an image belongs that an objective hands to the network.
    let command = command.replace("fgsm.so", "fgsm.so --objective grad_align.so");
    place.refuses(
        &format!("{command} --epsilon 0.1 --channel-scale 1,1/2,0 --out other"),
        &["train.objective", "no images to the network", "grad_align"],
    );
}

/// The margin over another class falls by at most the sum over the pixels of the weight's size, times
/// epsilon times the scale of the channel, or times the way to the end of the domain if that is less.
#[test]
fn attacks_come_to_the_robust_accuracy_with_a_radius_for_each_channel() {
    let place = Place::empty();
    let test = colours(40, 2);
    write_colours(&place.path("pictures"), &colours(200, 1), &test);
    let flags = "--model bad_plugins.so,plugin=linear --sampler none --threads 1 --batch 40 --epochs 10";
    let command = format!("train --recipe algorithm-1 --data pictures {flags} --optimizer adam");
    place.host(&format!("{command} --learning-rate 0.001 --epsilon 0.1 --out run")).ended_with(0);
    let rows = of_colours(&place.run("run"));
    let stands = |epsilon: f64, pixels: &[f64], own: usize| {
        let logits = logits(&rows, pixels);
        (0..rows.len()).filter(|class| *class != own).all(|other| {
            let falls = pixels.iter().enumerate().map(|(place, pixel)| {
                let weight = rows[own].0[place] - rows[other].0[place];
                let room = if weight > 0.0 { *pixel } else { 1.0 - pixel };
                weight.abs() * room.min(epsilon * scale_of(place))
            });
            logits[own] - logits[other] > falls.sum()
        })
    };
    let distance = |(pixels, label): (&[u8], &u8)| {
        let pixels: Vec<f64> = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0).collect();
        let (mut below, mut above) = (0.0, 0.5);
        for _ in 0..40 {
            let middle = (below + above) / 2.0;
            if stands(middle, &pixels, usize::from(*label)) { below = middle } else { above = middle }
        }
        below
    };
    let distances: Vec<f64> = test.pixels.chunks(3 * CHANNEL).zip(&test.labels).map(distance).collect();
    let (epsilon, gap) = undisputed_radius(distances.clone());
    assert!(gap > 0.001, "a point lies on the sphere ({gap})");
    assert!(epsilon < 0.5, "{epsilon}");
    let expected: Vec<bool> = distances.iter().map(|distance| *distance > epsilon).collect();
    let robust = expected.iter().filter(|stands| **stands).count();
    assert!((8..32).contains(&robust), "{robust} of 40 are robust");

    for attack in ["apgd.so,loss=dlr-targeted,steps=20", "fab.so,steps=20"] {
        let eval = format!(
            "eval run --epsilon {epsilon} --channel-scale 1,0.5,0 --threads 1 --json --save-examples"
        );
        place.host(&format!("{eval} --attack {attack}")).ended_with(0);
        let evaluation = place.run("run").evaluations().pop().expect("an evaluation");
        assert_eq!(evaluation["threat"]["channel_scale"], serde_json::json!([1.0, 0.5, 0.0]));
        let found: Vec<bool> = evaluation["verdicts"]["attacks"][0]
            .as_array()
            .expect("verdicts")
            .iter()
            .map(|stands| stands.as_bool().expect("a verdict"))
            .collect();
        assert_eq!(found, expected, "{attack}");
        assert_examples_are_allowed(&place, "run", epsilon, in_units_of_each_channel);
    }
    // In one radius for all channels, fewer points stand.
    let flags = "--attack fab.so,steps=20 --threads 1 --json";
    let wide = place.host(&format!("eval run --epsilon {epsilon} {flags}")).ended_with(0).json();
    assert!(wide["worst_case"].as_f64().expect("a share") < robust as f64 / 40.0);
    // An evaluation is known by its scale; 1 alone is one radius.
    let counts = |scale: &str| {
        let command = format!("eval run --epsilon {epsilon} --channel-scale {scale} {flags} --once");
        let before = place.run("run").evaluations().len();
        let found = place.host(&command).ended_with(0).json()["worst_case"].clone();
        (found, place.run("run").evaluations().len() - before)
    };
    assert_eq!(counts("1"), (wide["worst_case"].clone(), 0));
    let scaled = serde_json::json!(robust as f64 / 40.0);
    // Those above saved their examples, too.
    assert_eq!([(); 2].map(|()| counts("1,0.5,0")), [(scaled.clone(), 1), (scaled, 0)]);
    assert_eq!(counts("1,0,0").1, 1);
}
