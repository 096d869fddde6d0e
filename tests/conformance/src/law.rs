//! Checks of the law that a sampler declares.
//!
//! Many independent chains begin at exact draws of the law. If the sampler leaves the law invariant,
//! their ends are exact draws, too, however many steps they make. The ends are compared with exact
//! means and variances, and with other exact draws.

use crate::options::{schema, with};
use crate::sampler::perform;
use crate::tensors::no_result;
use crate::toy::{Numbers, mix};
use crate::{Check, Outcome, Plugin, Table, Verdict};
use plugin_api::abi::SamplerInstance;
use plugin_api::law::{Law, LinearLaw, SoftmaxLaw};
use plugin_api::losses::{cross_entropy, gradient};
use plugin_api::tch::{self, Device, Kind, Tensor};
use plugin_api::walk::{Visit, Walk};
use plugin_api::{Norm, Random, ThreatModel};
use serde_json::{Map, json};

pub const CHECKS: [Check; 3] = [
    Check::new("law-small", "chains have the declared law in one and two dimensions", small)
        .of(&["sampler"])
        .after(NEEDED),
    Check::new("law-linear", "chains of a linear loss have the declared law", linear)
        .of(&["sampler"])
        .after(NEEDED),
    Check::new("law-softmax", "chains of softmax regression have the declared law", softmax)
        .of(&["sampler"])
        .after(NEEDED),
];

const NEEDED: &[&str] = &["sampler-projection", "sampler-shuffled"];

/// The probability that an exact sampler fails in a problem, over the seeds of `host conform`.
const LEVEL: f64 = 1e-3;

/// Number of chains, and of the exact draws that they are compared with.
const CHAINS: i64 = 512;

/// Number of visits of a chain, after which it is judged if it has forgotten where it began.
const VISITS: u64 = 20;

/// The largest number of visits of a chain that has not.
const MOST_VISITS: u64 = 6 * VISITS;

/// The correlation between starts and ends of chains up to which they are said to have forgotten.
const FORGOTTEN: f64 = 0.5;

/// Steps of a visit.
const STEPS: usize = 10;

/// In this ball, and with natural pixels in the whole domain, the domain cuts many boxes.
const THREAT: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

/// A loss on the box of one natural example, with exact draws of its law. Points are rows `[n, d]`.
struct Known {
    name: String,
    /// `[1, 1, height, width]`, d pixels.
    natural: Tensor,
    loss: Box<dyn Fn(&Tensor) -> Tensor>,
    /// As many exact draws as chains.
    draws: Box<dyn Fn(u64) -> Tensor>,
}

/// The factor of the loss in a law: zero for the uniform one.
fn factor(law: Law) -> Result<f64, Outcome> {
    match law {
        Law::Undeclared => Err(Outcome::Skipped("it declares no law".to_owned())),
        Law::Uniform => Ok(0.0),
        Law::Gibbs { lambda } => Ok(lambda),
    }
}

/// What a loss is divided by, so that a law with this factor has a fixed shape.
fn scale(factor: f64) -> f64 {
    if factor > 0.0 { factor } else { 1.0 }
}

fn made(plugin: &Plugin, others: Map<String, serde_json::Value>) -> Result<SamplerInstance, Outcome> {
    let Table::Sampler(sampler) = &plugin.table else {
        return Err(Outcome::Skipped("not a sampler".to_owned()));
    };
    let options = serde_json::from_str(&plugin.options).unwrap_or_default();
    let options = with(options, &serde_json::Value::Object(others).to_string());
    let sampler = sampler.create(&options).map_err(|error| Outcome::failed("an instance", error))?;
    factor(sampler.declaration().law)?;
    sampler.supports(&THREAT).map_err(|error| Outcome::Skipped(format!("norm linf: {error}")))?;
    Ok(sampler)
}

fn small(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin, Map::new())?;
    let factor = factor(sampler.declaration().law)?;
    first_bad([1, 2].into_iter().map(|pixels| Known::small(pixels, factor).judge(&sampler, seed)))
}

fn linear(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin, Map::new())?;
    Known::linear(factor(sampler.declaration().law)?)?.judge(&sampler, seed)
}

/// The factors of the law for which a sampler with the option `lambda` is made.
const LAMBDAS: [f64; 2] = [3.0, 10.0];

fn softmax(plugin: &Plugin, seed: u64) -> Verdict {
    let has_option = !schema(plugin)?["properties"]["lambda"].is_null();
    let options = LAMBDAS.map(|lambda| Map::from_iter([("lambda".to_owned(), json!(lambda))]));
    let options = if has_option { options.to_vec() } else { vec![Map::new()] };
    first_bad(options.into_iter().map(|others| {
        let sampler = made(plugin, others)?;
        Known::softmax(factor(sampler.declaration().law)?)?.judge(&sampler, seed)
    }))
}

/// The first outcome that is not passed.
fn first_bad(mut verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    verdicts.find(|verdict| *verdict != Ok(Outcome::Passed)).unwrap_or(Ok(Outcome::Passed))
}

/// Numbers for each of these many rows, from a seed of their own.
fn numbers(seed: u64, rows: i64) -> Numbers {
    Numbers::new(mix(seed), &(0..rows).collect::<Vec<_>>())
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}

/// The same normal numbers for every sampler and seed.
fn weights(part: u64, rows: i64, columns: i64) -> Tensor {
    let numbers = numbers(part, rows);
    Random::new(&numbers).normal(&zeros(&[rows, columns])).expect("one row for each stream")
}

/// An image of these many pixels, uniform in the domain.
fn natural(height: i64, width: i64) -> Tensor {
    let numbers = numbers(0, height);
    let pixels = Random::new(&numbers).uniform(&zeros(&[height, width])).expect("a row for each stream");
    pixels.reshape([1, 1, height, width])
}

/// The ends of the box of an image's pixels.
fn faces(natural: &Tensor) -> (Tensor, Tensor) {
    let pixels = natural.flatten(0, -1);
    let (low, high) = THREAT.domain;
    ((&pixels - THREAT.epsilon).clamp_min(low), (&pixels + THREAT.epsilon).clamp_max(high))
}

/// Uniform numbers for exact draws, with one column for a choice and one for each coordinate.
fn uniforms(seed: u64, coordinates: i64) -> (Tensor, Tensor) {
    let numbers = numbers(seed, CHAINS);
    let all = Random::new(&numbers).uniform(&zeros(&[CHAINS, coordinates + 1]));
    let all = all.expect("one row for each chain");
    (all.select(1, 0).contiguous(), all.narrow(1, 1, coordinates))
}

impl Known {
    /// One or two pixels and a network with a hidden layer of tanh, whose law is computed on a fine
    /// grid. The densities of the law differ by a factor of up to exp(4).
    fn small(pixels: i64, factor: f64) -> Self {
        let natural = natural(1, pixels);
        let (lo, hi) = faces(&natural);
        let (hidden, output) = (weights(1, pixels, 8) * 10.0, weights(2, 8, 3));
        let center = natural.flatten(0, -1);
        let raw = move |points: &Tensor| {
            let logits = (points - &center).matmul(&hidden).tanh().matmul(&output);
            cross_entropy(&logits, &Tensor::zeros([points.size()[0]], (Kind::Int64, Device::Cpu)))
        };
        // The middles of the cells of the grid.
        let side: i64 = if pixels == 1 { 4096 } else { 512 };
        let middles = (Tensor::arange(side, (Kind::Double, Device::Cpu)) + 0.5) / side as f64;
        let axes: Vec<_> = (0..pixels).map(|_| middles.shallow_clone()).collect();
        let grid = Tensor::stack(&Tensor::meshgrid_indexing(&axes, "ij"), -1).reshape([-1, pixels]);
        let width = &hi - &lo;
        let points = &lo + &grid * &width;
        let heights = raw(&points);
        let range = (heights.max() - heights.min()).double_value(&[]);
        let unit = 4.0 / range / scale(factor);
        let shares = (&heights * (unit * factor)).softmax(0, Kind::Double);
        let draws = move |seed| {
            let (choices, within) = uniforms(seed, pixels);
            let ends = shares.cumsum(0, Kind::Double);
            let cells = choices.bucketize(&ends, false, true).clamp_max(ends.numel() as i64 - 1);
            points.index_select(0, &cells) + (within - 0.5) * &width / side as f64
        };
        Self {
            name: format!("a network of {pixels} pixel{}", if pixels == 1 { "" } else { "s" }),
            natural,
            loss: Box::new(move |points| raw(points) * unit),
            draws: Box::new(draws),
        }
    }

    /// A linear loss of 20 pixels, some of which hardly matter.
    fn linear(factor: f64) -> Result<Self, Outcome> {
        let natural = natural(4, 5);
        let (lo, hi) = faces(&natural);
        let slope = weights(3, 1, 20).flatten(0, -1) * 6.0 / scale(factor);
        let law = LinearLaw::new(0.5, &slope, &lo, &hi, factor).map_err(skipped)?;
        Ok(Self {
            name: "a linear loss of 20 pixels".to_owned(),
            natural,
            loss: Box::new(move |points| points.matmul(&slope) + 0.5),
            draws: Box::new(move |seed| law.draws(&uniforms(seed, 20).1)),
        })
    }

    /// Softmax regression of 100 pixels and three classes.
    fn softmax(factor: f64) -> Result<Self, Outcome> {
        let natural = natural(10, 10);
        let (lo, hi) = faces(&natural);
        let weights = weights(4, 3, 100) * 0.2;
        // The image lies on the boundary between the classes.
        let bias = -natural.flatten(0, -1).unsqueeze(0).matmul(&weights.tr()).flatten(0, -1);
        let law = SoftmaxLaw::new(&weights, &bias, 0, &lo, &hi, factor).map_err(skipped)?;
        Ok(Self {
            name: format!("softmax regression of 100 pixels at lambda {factor}"),
            natural,
            loss: Box::new(move |points| {
                let labels = Tensor::zeros([points.size()[0]], (Kind::Int64, Device::Cpu));
                cross_entropy(&(points.matmul(&weights.tr()) + &bias), &labels)
            }),
            draws: Box::new(move |seed| {
                let (choices, uniforms) = uniforms(seed, 100);
                law.draws(&choices, &uniforms)
            }),
        })
    }

    /// The ends `[n, d]` of chains that begin at these points, and their number of visits.
    fn ends(&self, sampler: &SamplerInstance, starts: &Tensor, seed: u64) -> Result<(Tensor, u64), Outcome> {
        let rows = starts.size()[0];
        let [_, channels, height, width] = self.natural.size()[..] else {
            return Err(Outcome::failed("an image", "another shape"));
        };
        let natural = self.natural.expand([rows, channels, height, width], false).contiguous();
        let labels = Tensor::zeros([rows], (Kind::Int64, Device::Cpu));
        let points: Vec<i64> = (0..rows).collect();
        let declaration = sampler.declaration();
        let mut particles = starts.reshape(natural.size());
        let mut stored = declaration.fresh_state(&natural);
        for visit in 0..MOST_VISITS {
            let mut chains = Visit {
                natural: &natural,
                labels: &labels,
                points: &points,
                particles_per_point: 1,
                threat: THREAT,
                state: declaration.begin_visit(stored, &particles),
                particles,
            };
            Walk { sampler, steps: STEPS }.run(
                &mut chains,
                |due, chains| self.evaluate(&chains.particles, due.gradient),
                |call| {
                    let seed = mix(mix(seed) ^ (visit << 16 | call.number as u64));
                    perform(sampler, call, &Numbers::new(seed, &points))
                },
            )?;
            (particles, stored) = (chains.particles, chains.state);
            let (ends, visits) = (particles.flatten(1, -1), visit + 1);
            if visits % VISITS == 0 && correlation(starts, &ends) <= FORGOTTEN {
                return Ok((ends, visits));
            }
        }
        Ok((particles.flatten(1, -1), MOST_VISITS))
    }

    /// The loss at particles and, if it is due, its gradient.
    fn evaluate(&self, particles: &Tensor, due: bool) -> Result<(Tensor, Option<Tensor>), Outcome> {
        if !due {
            return Ok(((self.loss)(&particles.flatten(1, -1)), None));
        }
        let leaf = particles.detach().set_requires_grad(true);
        let loss = tch::with_grad(|| (self.loss)(&leaf.flatten(1, -1)));
        let total = tch::with_grad(|| loss.sum(Kind::Double));
        Ok((loss.detach(), Some(gradient(&total, &leaf, false).map_err(no_result)?)))
    }

    /// What shows, at this level, that points `[n, d]` are no draws of the law: the expected and the
    /// actual behaviour.
    ///
    /// Points are compared with n exact draws by permutation tests, whose level is exact: if the
    /// points are draws, then each of them could be exchanged for its exact draw. Half of the level
    /// goes to the largest difference between moments, half to the energy distance (Szekely and Rizzo
    /// 2013). The seed is that of the exact draws and of the exchanges.
    fn difference(&self, points: &Tensor, seed: u64, level: f64) -> Option<(String, String)> {
        let draws = (self.draws)(mix(seed ^ 1));
        let exchanges = exchanges(points.size()[0], seed, level);
        let center = (points + &draws).mean_dim([0i64].as_slice(), true, Kind::Double) / 2.0;
        let [of_points, of_draws] = [points, &draws].map(|points| self.features(points, &center));
        let differences = &of_points - &of_draws;
        let scales = total(&differences.square(), 0).sqrt().clamp_min(f64::MIN_POSITIVE);
        let deviations = |exchanges: &Tensor| (exchanges.matmul(&differences) / &scales).abs();
        let one = exchanges.get(0).ones_like().unsqueeze(0);
        let observed = deviations(&one).get(0);
        let worst = observed.argmax(0, false);
        let share = share_as_large(&observed.max(), &deviations(&exchanges).amax([1], false));
        if share < level / 2.0 {
            let at = |tensor: &Tensor| tensor.index_select(0, &worst.reshape([1])).double_value(&[0]);
            let mean = |features: &Tensor| at(&features.mean_dim([0i64].as_slice(), false, Kind::Double));
            let what = feature_name(worst.int64_value(&[]), points.size()[1]);
            let got = format!("{:.4}, {:.1} standard errors away", mean(&of_points), at(&observed));
            return Some((format!("{what} to be about {:.4}", mean(&of_draws)), got));
        }
        let energy = energies(points, &draws, &Tensor::cat(&[one, exchanges], 0));
        let share = share_as_large(&energy.get(0), &energy.narrow(0, 1, energy.numel() as i64 - 1));
        (share < level / 2.0).then(|| {
            let got = format!("an energy distance that a share of {share:.1e} of exchanges reaches");
            ("the ends of chains to lie like exact draws".to_owned(), got)
        })
    }

    /// What is averaged over points, as columns: coordinates, their squares from the center, and the
    /// loss.
    fn features(&self, points: &Tensor, center: &Tensor) -> Tensor {
        let columns = [points.shallow_clone(), (points - center).square(), (self.loss)(points).unsqueeze(1)];
        Tensor::cat(&columns, 1)
    }

    /// The share of coordinates that lie exactly on a face of the box.
    fn share_on_faces(&self, points: &Tensor) -> f64 {
        let (lo, hi) = faces(&self.natural);
        let on_face = points.eq_tensor(&lo).logical_or(&points.eq_tensor(&hi));
        on_face.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
    }

    /// Runs chains and judges their ends.
    fn judge(&self, sampler: &SamplerInstance, seed: u64) -> Verdict {
        let starts = (self.draws)(mix(seed ^ 2));
        let (ends, visits) = self.ends(sampler, &starts, mix(seed ^ 3))?;
        let (name, steps) = (&self.name, visits * STEPS as u64);
        if let Some((expected, got)) = self.difference(&ends, seed, LEVEL) {
            let on_faces = 100.0 * self.share_on_faces(&ends);
            return Ok(Outcome::failed(
                format!("{expected}, for {name}"),
                format!(
                    "{got}, after {steps} steps of {CHAINS} chains that began at exact draws; {on_faces:.1} % of \
                     all coordinates lie on a face (level {LEVEL}, seed {seed})"
                ),
            ));
        }
        let correlation = correlation(&starts, &ends);
        if correlation > FORGOTTEN {
            return Ok(Outcome::Warning(format!(
                "chains move too slowly to be judged: after {steps} steps, their ends correlate by \
                 {correlation:.2} with their starts, for {name}"
            )));
        }
        Ok(Outcome::Passed)
    }
}

/// The name of a column of [`Known::features`].
fn feature_name(column: i64, coordinates: i64) -> String {
    match (column / coordinates, column % coordinates) {
        (0, pixel) => format!("the mean of pixel {pixel}"),
        (1, pixel) => format!("the variance of pixel {pixel}"),
        _ => "the mean loss".to_owned(),
    }
}

/// The correlation between the coordinates of two sets of points.
fn correlation(one: &Tensor, other: &Tensor) -> f64 {
    let centered = |points: &Tensor| points - points.mean_dim([0i64].as_slice(), true, Kind::Double);
    let (one, other) = (centered(one), centered(other));
    let sum = |products: Tensor| products.sum(Kind::Double).double_value(&[]);
    sum(&one * &other) / (sum(one.square()) * sum(other.square())).sqrt()
}

/// Random exchanges of n points and as many draws, one for each row: 1 for a pair that stays, -1 for
/// one that is exchanged. There are enough of them for a test at half this level.
fn exchanges(rows: i64, seed: u64, level: f64) -> Tensor {
    let count = (4.0 / level) as i64;
    let uniforms = Random::new(&numbers(seed ^ 4, count)).uniform(&zeros(&[count, rows]));
    uniforms.expect("one row for each exchange").lt(0.5).to_kind(Kind::Double) * 2.0 - 1.0
}

/// The energy distance between points and draws after each exchange, times a constant.
fn energies(points: &Tensor, draws: &Tensor, exchanges: &Tensor) -> Tensor {
    let distances = |one: &Tensor, other: &Tensor| Tensor::cdist(one, other, 2.0, 1);
    // With signs s of points and -s of draws, it is -s . (distances within - distances between) s.
    let between = distances(points, draws);
    let within = distances(points, points) + distances(draws, draws);
    let excess = (&between + between.tr() - within).to_kind(Kind::Float);
    let exchanges = exchanges.to_kind(Kind::Float);
    total(&(exchanges.matmul(&excess) * exchanges), 1)
}

/// The share of statistics after exchanges that are at least as large as the observed one, which
/// counts as one of them.
fn share_as_large(observed: &Tensor, exchanged: &Tensor) -> f64 {
    let larger = exchanged.ge_tensor(observed).sum(Kind::Double).double_value(&[]);
    (1.0 + larger) / (1.0 + exchanged.numel() as f64)
}

fn total(tensor: &Tensor, dimension: i64) -> Tensor {
    tensor.sum_dim_intlist([dimension].as_slice(), false, Kind::Double)
}

fn skipped(why: plugin_api::Error) -> Outcome {
    Outcome::Skipped(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(factor: f64) -> Vec<Known> {
        let mut all = vec![Known::small(1, factor), Known::small(2, factor)];
        all.push(Known::linear(factor).expect("known"));
        if factor > 0.0 {
            all.push(Known::softmax(factor).expect("known"));
        }
        all
    }

    #[test]
    fn exact_draws_differ_at_the_level_that_is_stated() {
        // At level 0.05, a hundred comparisons of exact draws with exact draws find 5 differences or
        // fewer on average; more than 12 would have a probability of 0.15 %.
        tch::set_num_threads(1);
        let mut found = 0;
        for known in all(3.0) {
            let differs = |seed: &u64| {
                let points = (known.draws)(mix(*seed) ^ 5);
                known.difference(&points, *seed, 0.05).is_some()
            };
            let differences = (1..=100).filter(differs).count();
            assert!(differences <= 12, "{}: {differences}", known.name);
            found += differences;
        }
        assert!(found > 0, "the level is used");
    }

    #[test]
    fn the_energy_distance_sees_what_means_and_variances_do_not() {
        // Two points with the mean and the variance of the uniform distribution.
        let known = Known::small(1, 0.0);
        let [draws, others] = [1, 2].map(|seed| (known.draws)(seed));
        let (lo, hi) = faces(&known.natural);
        let (middle, width) = ((&lo + &hi) / 2.0, hi - lo);
        let points = &middle + (&draws - &middle).sign() * width / 12f64.sqrt();
        let share = |points: &Tensor| {
            let all = Tensor::cat(
                &[Tensor::ones([1, CHAINS], (Kind::Double, Device::Cpu)), exchanges(CHAINS, 3, LEVEL)],
                0,
            );
            let energies = energies(points, &others, &all);
            share_as_large(&energies.get(0), &energies.narrow(0, 1, energies.numel() as i64 - 1))
        };
        assert!(share(&draws) > 0.01);
        assert!(share(&points) < LEVEL / 2.0);
    }

    #[test]
    fn the_energy_distance_is_the_one_of_its_definition() {
        // Points 0 and 1, draws 3 and 7: twice the mean distance between, (3 + 7 + 2 + 6) / 4, minus
        // the mean distances within, 1/2 and 4/2, times n^2 = 4. With the second pair exchanged,
        // points 0 and 7, draws 3 and 1.
        let column = |values: &[f64]| Tensor::from_slice(values).reshape([-1, 1]);
        let exchanges = Tensor::from_slice(&[1.0, 1.0, 1.0, -1.0]).reshape([2, 2]);
        let got = energies(&column(&[0.0, 1.0]), &column(&[3.0, 7.0]), &exchanges);
        let expected = [4.0 * (9.0 - 0.5 - 2.0), 4.0 * ((3.0 + 1.0 + 4.0 + 6.0) / 2.0 - 3.5 - 1.0)];
        assert!((got - Tensor::from_slice(&expected)).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn the_first_difference_is_named_with_its_size() {
        let known = Known::linear(10.0).expect("known");
        let (_, hi) = faces(&known.natural);
        let points = (known.draws)(1);
        assert_eq!(known.share_on_faces(&points), 0.0);
        let _ = points.select(1, 3).fill_(hi.double_value(&[3]));
        assert_eq!(known.share_on_faces(&points), 1.0 / 20.0);
        let (expected, got) = known.difference(&points, 1, LEVEL).expect("a difference");
        assert!(expected.starts_with("the ") && expected.contains("of pixel 3 to be about"), "{expected}");
        assert!(got.contains("standard errors away"), "{got}");
    }
}
