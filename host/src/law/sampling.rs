//! Chains at fixed weights: samplers run on some points until they forget where they began.

use crate::Result;
use crate::data::examples::repeat_rows;
use crate::plugin::{LoadedModel, Sampler, Visit, fresh_start, uniform_in_box};
use crate::torch::finite::FiniteCheck;
use crate::torch::random::{Draws, Purpose, step_of_name};
use crate::util::interrupt::refuse_if_stopped;
use plugin_api::losses::{correct, cross_entropy};
use plugin_api::{Start, ThreatModel};
use std::sync::atomic::AtomicBool;
use tch::{Kind, Tensor};

/// Rows per thread whose activations stay in the cache of a CPU.
const ROWS_PER_THREAD: i64 = 32;

/// A classifier with fixed weights, in evaluation mode, and the points at whose balls chains run.
pub struct Subject<'a> {
    /// The classifier.
    pub model: &'a LoadedModel,
    /// The ball of the chains.
    pub threat: ThreatModel,
    /// Natural examples, `[P, C, H, W]`.
    pub natural: Tensor,
    /// Their labels, `[P]`, i64.
    pub labels: Tensor,
    /// Their indices in the training split, length P.
    pub points: Vec<i64>,
    /// Seed of all draws.
    pub seed: u64,
}

/// K chains at each of P points: row i * K + k is chain k of the i-th point.
#[derive(Debug)]
pub struct Chains {
    /// Where they are, `[P * K, C, H, W]`.
    pub particles: Tensor,
    /// The sampler's stored state, `[P * K, ...]` each.
    pub state: Vec<Tensor>,
}

impl Chains {
    /// Chains that begin at these particles (`[P * K, C, H, W]`), without a history.
    pub fn begin(sampler: &Sampler, particles: Tensor) -> Self {
        let state = sampler.declaration().fresh_state(&particles);
        Self { particles, state }
    }
}

/// How chains are run.
pub struct Visits<'a> {
    /// The name of the chains: it decides their random numbers.
    pub name: &'a str,
    /// Visits, each of as many steps as the sampler makes.
    pub count: usize,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
    /// Called after each visit of some chains with the number of passes that it took.
    pub advance: &'a dyn Fn(u64),
}

/// What chains passed through.
pub struct Trace {
    /// The loss of each chain after each visit, `[visits, P * K]`, f64.
    pub losses: Tensor,
    /// The sampler's figures after each visit, `[visits, P * K, figures]`; none if it has none.
    pub figures: Option<Tensor>,
}

impl Subject<'_> {
    /// Rows that are computed at a time, a multiple of `copies`.
    fn rows_at_a_time(&self, copies: i64) -> i64 {
        let wanted = ROWS_PER_THREAD * i64::from(tch::get_num_threads());
        (wanted / copies).max(1) * copies
    }

    /// The loss of each of `copies` particles per point (`[P * copies, C, H, W]`), in f64, and the
    /// share of them that is classified correctly.
    ///
    /// # Errors
    /// If the model fails.
    pub fn losses(&self, particles: &Tensor, copies: usize) -> Result<(Tensor, f64)> {
        let labels = repeat_rows(&self.labels, copies);
        let logits = self.model.logits(particles)?;
        let accuracy = correct(&logits, &labels).to_kind(Kind::Double).mean(Kind::Double);
        Ok((cross_entropy(&logits, &labels).to_kind(Kind::Double), accuracy.double_value(&[])))
    }

    /// Draws from the uniform law on the box of each point, `copies` each: `[P * copies, C, H, W]`.
    ///
    /// # Errors
    /// If they cannot be drawn.
    pub fn uniform(&self, name: &str, copies: usize) -> Result<Tensor> {
        let points = self.rows_of_points(copies);
        let draws = Draws::new(self.seed, Purpose::Diagnosis, step_of_name(name), &points, copies);
        uniform_in_box(&self.repeated(copies), &self.threat, &draws)
    }

    /// The natural examples, `copies` rows each.
    pub fn repeated(&self, copies: usize) -> Tensor {
        repeat_rows(&self.natural, copies)
    }

    fn rows_of_points(&self, copies: usize) -> Vec<i64> {
        self.points.iter().flat_map(|point| std::iter::repeat_n(*point, copies)).collect()
    }

    /// Runs chains, `copies` at each point, for some visits. A sampler whose chains do not continue
    /// from a store begins anew at each visit.
    ///
    /// # Errors
    /// If a plugin fails, or the user stops; the chains are then as before.
    pub fn run(
        &self,
        sampler: &Sampler,
        start: Start,
        chains: &mut Chains,
        copies: usize,
        visits: &Visits,
    ) -> Result<Trace> {
        let natural = self.repeated(copies);
        let labels = repeat_rows(&self.labels, copies);
        let points = self.rows_of_points(copies);
        let rows = natural.size()[0];
        let at_a_time = self.rows_at_a_time(copies as i64);
        let (mut ends, mut losses, mut figures) = (Vec::new(), Vec::new(), Vec::new());
        for first in (0..rows).step_by(at_a_time as usize) {
            let count = at_a_time.min(rows - first);
            let part = |tensor: &Tensor| tensor.narrow(0, first, count);
            let (natural, labels) = (part(&natural), part(&labels));
            let mut visit = Visit {
                natural: &natural,
                labels: &labels,
                points: &points[first as usize..(first + count) as usize],
                particles_per_point: copies,
                threat: self.threat,
                particles: part(&chains.particles),
                state: chains.state.iter().map(part).collect(),
            };
            let mut of_part = (Vec::new(), Vec::new());
            let mut watch = FiniteCheck::new("visit", natural.device());
            for number in 0..visits.count {
                refuse_if_stopped(visits.stop)?;
                watch.at(number as u64 + 1);
                let step = step_of_name(visits.name).wrapping_add(number as u64);
                let draws = Draws::new(self.seed, Purpose::Diagnosis, step, visit.points, copies);
                self.visit(sampler, start, &mut visit, &draws, &mut watch)?;
                let loss = cross_entropy(&self.model.logits(&visit.particles)?, visit.labels);
                of_part.0.push(loss.to_kind(Kind::Double));
                of_part.1.extend(sampler.declaration().figures_of(&visit.state));
                (visits.advance)((sampler.evaluations(sampler.steps) + 1) as u64 * count as u64);
            }
            watch.read()?;
            losses.push(Tensor::stack(&of_part.0, 0));
            if !of_part.1.is_empty() {
                figures.push(Tensor::stack(&of_part.1, 0));
            }
            ends.push((visit.particles, visit.state));
        }
        chains.particles = Tensor::cat(&ends.iter().map(|(particles, _)| particles).collect::<Vec<_>>(), 0);
        for (number, state) in chains.state.iter_mut().enumerate() {
            *state = Tensor::cat(&ends.iter().map(|(_, states)| &states[number]).collect::<Vec<_>>(), 0);
        }
        Ok(Trace {
            losses: Tensor::cat(&losses, 1),
            figures: (!figures.is_empty()).then(|| Tensor::cat(&figures, 1)),
        })
    }

    /// Runs chains twice as [`Subject::run`] does: what they pass through the second time. The first
    /// time is forgotten, and may adapt the sampler.
    ///
    /// # Errors
    /// As for [`Subject::run`].
    pub fn second_half(
        &self,
        sampler: &Sampler,
        start: Start,
        chains: &mut Chains,
        copies: usize,
        half: &Visits,
    ) -> Result<Trace> {
        let mut run = |which: &str| {
            let name = format!("{} {which} half", half.name);
            self.run(sampler, start, chains, copies, &Visits { name: &name, ..*half })
        };
        run("first")?;
        run("second")
    }

    fn visit(
        &self,
        sampler: &Sampler,
        start: Start,
        visit: &mut Visit,
        draws: &Draws,
        watch: &mut FiniteCheck,
    ) -> Result<()> {
        if start != Start::Store {
            visit.particles = fresh_start(start, visit.natural, &visit.threat, draws)?;
        }
        visit.state = sampler.declaration().begin_visit(std::mem::take(&mut visit.state), &visit.particles);
        sampler.walk().run(
            visit,
            |due, visit| {
                if !due.gradient {
                    return Ok((cross_entropy(&self.model.logits(&visit.particles)?, visit.labels), None));
                }
                let leaf = visit.particles.detach().set_requires_grad(true);
                let losses = tch::with_grad(|| -> Result<_> {
                    Ok(cross_entropy(&self.model.forward(&leaf, false)?, visit.labels))
                })?;
                let gradient = self.model.input_gradient(&losses.sum(losses.kind()), &leaf)?;
                Ok((losses.detach(), Some(gradient)))
            },
            |call| sampler.perform(call, draws, watch),
        )
    }
}
