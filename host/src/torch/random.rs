//! Random numbers that depend only on their key.
//!
//! The key of a counter-based generator (ChaCha with 8 rounds) is the run's seed, a purpose, a
//! step, the point and the particle. There is no state: a draw is the same in every batch, after a
//! resume, and on every device. Numbers are drawn on the CPU in f32.

use crate::torch::ahead::Ahead;
use crate::torch::device;
use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use plugin_api::{Distribution, Error, RandomSource, Result};
use rand_distr::{Distribution as _, StandardNormal};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::cell::Cell;
use tch::Tensor;

/// The purpose of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The order of the training points in an epoch.
    Shuffle = 1,
    /// Initial weights.
    Initialisation = 2,
    /// The model's own numbers while training (dropout).
    Forward = 3,
    /// A sampler's chains while training.
    Training = 4,
    /// An attack.
    Attack = 5,
    /// The choice of test points.
    Subset = 6,
    /// A probe on validation points.
    Probe = 7,
    /// The particle store's initial particles.
    Start = 8,
    /// The settings of a sweep.
    Sweep = 9,
    /// The crop and the flip of an image at a visit.
    Augmentation = 10,
    /// The training points for the batch statistics of averaged weights.
    Statistics = 11,
    /// Chains at fixed weights.
    Diagnosis = 12,
    /// An objective, and the model's own numbers where the objective calls it.
    Objective = 13,
}

/// The seed of a generator with its own state, for one purpose and step.
pub(crate) fn seed_for(seed: u64, purpose: Purpose, step: u64) -> i64 {
    generator(seed, purpose, step, 0, 0, 0).next_u64() as i64
}

pub(crate) use plugin_api::abi::MOST_STEPS;

const _: () = assert!(MOST_STEPS + 1 < 1 << 16, "the forward passes of a visit are numbered in 16 bits");

/// The forward passes of an update in which a model draws random numbers of its own.
pub(crate) enum Forward {
    /// At a step or a replay, counted from 0.
    Step(usize),
    /// At the natural examples.
    Natural,
    /// At the particles that the weights descend on.
    Weights,
}

impl Forward {
    /// Its number among all forward passes of a run's updates.
    pub(crate) fn of_update(self, update: u64) -> u64 {
        let number = match self {
            Self::Step(number) => number,
            Self::Natural => MOST_STEPS,
            Self::Weights => MOST_STEPS + 1,
        };
        update << 16 | number as u64
    }
}

/// A number uniform in [0, 1).
pub(crate) fn uniform(seed: u64, purpose: Purpose, step: u64, draw: u32) -> f64 {
    // 53 bits fill the significand of an f64: every value below 1 is exact.
    (generator(seed, purpose, step, 0, 0, draw).next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A random order of 0..count.
pub(crate) fn permutation(seed: u64, purpose: Purpose, step: u64, count: usize) -> Vec<i64> {
    let mut generator = generator(seed, purpose, step, 0, 0, 0);
    let mut order: Vec<i64> = (0..count as i64).collect();
    // Fisher-Yates; the bias of the multiplication is below 2^-32 for any data set in memory.
    for last in (1..count).rev() {
        let chosen = ((generator.next_u64() as u128 * (last as u128 + 1)) >> 64) as usize;
        order.swap(last, chosen);
    }
    order
}

/// A step number that depends only on a name, such as an attack's.
pub(crate) fn step_of_name(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn generator(seed: u64, purpose: Purpose, step: u64, point: i64, particle: u16, draw: u32) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&step.to_le_bytes());
    key[16..24].copy_from_slice(&point.to_le_bytes());
    key[24..26].copy_from_slice(&particle.to_le_bytes());
    key[26..28].copy_from_slice(&(purpose as u16).to_le_bytes());
    key[28..].copy_from_slice(&draw.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// The least number of random numbers (some 10 ns each) for which it pays to start other threads.
const WORTH_SHARING: usize = 10_000;

/// What decides the numbers of a draw, besides the points of its rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    seed: u64,
    purpose: Purpose,
    step: u64,
    first_particle: u16,
    particles_per_point: usize,
    stream: u64,
    draw: u32,
    distribution: Distribution,
    /// Numbers of a row.
    width: usize,
}

impl Key {
    /// The same draw at another step.
    pub(super) fn at_step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// The numbers of the rows of these points, row after row.
    pub(super) fn draw(&self, points: &[i64]) -> Vec<f32> {
        let Self { seed, purpose, step, first_particle, particles_per_point, stream, draw, width, .. } =
            *self;
        let draw_row = |(row, numbers): (usize, &mut [f32])| {
            let particle = first_particle + (row % particles_per_point) as u16;
            let mut generator = generator(seed, purpose, step, points[row], particle, draw);
            generator.set_stream(stream);
            match self.distribution {
                Distribution::Normal => numbers.fill_with(|| StandardNormal.sample(&mut generator)),
                // 24 bits fill the significand of an f32: every value below 1 is exact.
                Distribution::Uniform => {
                    numbers.fill_with(|| (generator.next_u32() >> 8) as f32 / (1u32 << 24) as f32);
                }
            }
        };
        let mut numbers = vec![0f32; width * points.len()];
        if numbers.len() >= WORTH_SHARING && rayon::current_num_threads() > 1 {
            numbers.par_chunks_mut(width).enumerate().for_each(draw_row);
        } else {
            numbers.chunks_mut(width.max(1)).enumerate().for_each(draw_row);
        }
        numbers
    }
}

/// The random numbers of one call to a plugin. Each row belongs to a particle of a point.
pub struct Draws<'a> {
    seed: u64,
    purpose: Purpose,
    step: u64,
    points: &'a [i64],
    first_particle: u16,
    particles_per_point: usize,
    /// The stream of step 0.
    first_stream: u64,
    stream: u64,
    draws: Cell<u32>,
    ahead: Option<&'a Ahead>,
}

impl<'a> Draws<'a> {
    /// Draws for rows with `particles_per_point` consecutive particles of each point. `points` has
    /// the point of every row.
    pub fn new(
        seed: u64,
        purpose: Purpose,
        step: u64,
        points: &'a [i64],
        particles_per_point: usize,
    ) -> Self {
        Self {
            seed,
            purpose,
            step,
            points,
            first_particle: 0,
            particles_per_point,
            first_stream: 0,
            stream: 0,
            draws: Cell::new(0),
            ahead: None,
        }
    }

    /// The same draws, taken from those that were drawn ahead where there are any.
    pub(crate) fn drawn_ahead(self, ahead: Option<&'a Ahead>) -> Self {
        Self { ahead, ..self }
    }

    /// The same rows at step `number` of a visit.
    pub fn step(&self, number: usize) -> Self {
        Self { stream: self.first_stream + number as u64, draws: Cell::new(0), ..*self }
    }

    /// The same rows at visit `number` among those of one update. Visit 0 has the numbers of no visit.
    pub fn visit(&self, number: usize) -> Self {
        Self { first_stream: (number as u64) << 32, draws: Cell::new(0), ..*self }
    }

    /// Row number `row` alone, of rows with one particle of each point.
    pub fn row(&self, row: usize) -> Self {
        Self { points: &self.points[row..=row], draws: Cell::new(0), ahead: None, ..*self }
    }

    /// The same rows with particles numbered from `first`: another restart.
    pub fn restart(&self, first: u16) -> Self {
        Self { first_particle: first, draws: Cell::new(0), ..*self }
    }
}

impl RandomSource for Draws<'_> {
    fn draw(&self, distribution: Distribution, like: &Tensor) -> Result<Tensor> {
        let shape = like.size();
        if shape.first() != Some(&(self.points.len() as i64)) {
            return Err(Error::new(format!(
                "random numbers come in one row for each of the call's {} examples; got shape {shape:?}",
                self.points.len()
            )));
        }
        let Self { seed, purpose, step, points, first_particle, particles_per_point, stream, .. } = *self;
        let draw = self.draws.replace(self.draws.get() + 1);
        let width = like.numel() / points.len().max(1);
        let key = Key {
            seed,
            purpose,
            step,
            first_particle,
            particles_per_point,
            stream,
            draw,
            distribution,
            width,
        };
        let found = self.ahead.and_then(|ahead| ahead.take(&key, points));
        let numbers = found.unwrap_or_else(|| key.draw(points));
        let numbers = Tensor::f_from_slice(&numbers)?.f_reshape(shape)?;
        Ok(device::upload(&numbers, like.device())?.f_to_kind(like.kind())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn like(rows: i64) -> Tensor {
        Tensor::zeros([rows, 1, 50, 40], (Kind::Float, Device::Cpu))
    }

    fn normal(draws: &Draws, rows: i64) -> Tensor {
        draws.draw(Distribution::Normal, &like(rows)).expect("numbers")
    }

    #[test]
    fn a_draw_does_not_depend_on_its_neighbours() {
        let together = normal(&Draws::new(1, Purpose::Training, 7, &[4, 9], 1), 2);
        let alone = normal(&Draws::new(1, Purpose::Training, 7, &[9], 1), 1);
        assert_eq!(together.get(1), alone.get(0));
        assert_ne!(together.get(0), alone.get(0));
    }

    #[test]
    fn a_row_has_its_draws_alone() {
        let points = [4i64, 9, 4];
        let draws = Draws::new(1, Purpose::Attack, 7, &points, 1).restart(3).step(2);
        let together = normal(&draws, 3);
        for row in 0..3 {
            let alone = normal(&draws.row(row), 1);
            // Row 2 is the same point as row 0, in another place of the batch.
            assert_eq!(alone.get(0), together.get(row as i64), "row {row}");
        }
        assert_ne!(together.get(0), together.get(1));
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let points = [3i64, 3];
        let base = Draws::new(1, Purpose::Training, 7, &points, 2);
        let first = normal(&base, 2);
        assert_ne!(first.get(0), first.get(1), "particles of one point differ");
        let others = [
            normal(&base, 2), // the second draw of the same call
            normal(&base.step(1), 2),
            normal(&base.restart(2), 2),
            normal(&Draws::new(2, Purpose::Training, 7, &points, 2), 2),
            normal(&Draws::new(1, Purpose::Attack, 7, &points, 2), 2),
            normal(&Draws::new(1, Purpose::Training, 8, &points, 2), 2),
        ];
        for (number, other) in others.iter().enumerate() {
            assert_ne!(first, *other, "key part {number}");
        }
        assert_eq!(first, normal(&Draws::new(1, Purpose::Training, 7, &points, 2), 2));
    }

    #[test]
    fn a_draw_does_not_depend_on_how_it_is_shared() {
        let points: Vec<i64> = (0..20).collect();
        let draws = Draws::new(1, Purpose::Training, 7, &points, 2);
        let shared = normal(&draws, 20);
        assert!(shared.numel() >= WORTH_SHARING);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        let alone = pool.install(|| normal(&Draws::new(1, Purpose::Training, 7, &points, 2), 20));
        assert_eq!(shared, alone);
    }

    #[test]
    fn distributions_have_their_moments() {
        let points = [0i64; 50];
        let draws = Draws::new(3, Purpose::Training, 0, &points, 50);
        // 100,000 numbers: the standard errors are 0.003 and 0.0009; five of each are allowed.
        let normal = draws.draw(Distribution::Normal, &like(50)).expect("numbers");
        assert!(normal.mean(Kind::Double).double_value(&[]).abs() < 0.016);
        assert!((normal.std(true).double_value(&[]) - 1.0).abs() < 0.012);
        let uniform = draws.draw(Distribution::Uniform, &like(50)).expect("numbers");
        assert!((uniform.mean(Kind::Double).double_value(&[]) - 0.5).abs() < 0.005);
        assert!(uniform.min().double_value(&[]) >= 0.0 && uniform.max().double_value(&[]) < 1.0);
    }

    #[test]
    fn another_number_of_rows_is_refused() {
        let draws = Draws::new(1, Purpose::Training, 0, &[1, 2], 1);
        assert!(draws.draw(Distribution::Normal, &like(3)).is_err());
    }

    #[test]
    fn a_permutation_holds_every_number_once() {
        let mut order = permutation(5, Purpose::Shuffle, 0, 1000);
        assert_ne!(order, permutation(5, Purpose::Shuffle, 1, 1000));
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }
}
