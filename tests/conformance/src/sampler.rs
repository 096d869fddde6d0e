//! Checks for samplers.

use crate::toy::{Batch, LinearVictim, THREAT};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::abi::SamplerInstance;
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Next, Projection, Random, Step};

macro_rules! check {
    ($name:literal, $run:ident, $sentence:literal) => {
        Check { name: $name, sentence: $sentence, kinds: &["sampler"], run: $run }
    };
}

pub const CHECKS: [Check; 4] = [
    check!(
        "sampler-state",
        state,
        "a step returns as many state tensors as are declared, shaped like the particles"
    ),
    check!("sampler-zero-gradient", zero_gradient, "a step at zero gradient is finite"),
    check!("sampler-ascent", ascent, "many steps raise a convex loss"),
    check!("sampler-projection", projection, "a sampler that projects by itself stays in ball and domain"),
];

fn made(plugin: &Plugin) -> Result<SamplerInstance, Outcome> {
    let Plugin::Sampler(sampler) = plugin else { return Err(Outcome::Skipped("not a sampler".to_owned())) };
    sampler.create("{}").map_err(|_| Outcome::blocked_by("options-defaults"))
}

/// A chain on a linear classifier's loss, whose particles the host projects if it is to.
struct Chain {
    batch: Batch,
    particles: Tensor,
    state: Vec<Tensor>,
}

impl Chain {
    fn new(sampler: &SamplerInstance, seed: u64) -> Self {
        let batch = Batch::new(0..8, 10, Kind::Double, seed);
        let state = (0..sampler.declaration().state_tensors).map(|_| batch.images.zeros_like()).collect();
        Self { particles: batch.images.copy(), state, batch }
    }

    fn step(&mut self, sampler: &SamplerInstance, loss: &Tensor, gradient: &Tensor) -> Result<Next, Outcome> {
        let _guard = tch::no_grad_guard();
        let step = Step {
            natural: &self.batch.images,
            labels: &self.batch.labels,
            particles: &self.particles,
            loss,
            gradient,
            state: &self.state,
            points: &self.batch.points,
            particles_per_point: 1,
            number: 0,
            of: 1,
            threat: THREAT,
            random: Random::new(&self.batch.random),
        };
        sampler.step(&step, &self.batch.random).map_err(|_| Outcome::blocked_by("tensors-result"))
    }

    /// Steps up the loss; the mean loss after each.
    fn climb(&mut self, sampler: &SamplerInstance, steps: usize) -> Result<Vec<f64>, Outcome> {
        let victim = LinearVictim::new(10, Kind::Double);
        let mut losses = Vec::new();
        for _ in 0..=steps {
            let (loss, gradient) = victim
                .loss_and_gradient(&self.particles, &self.batch.labels)
                .map_err(|_| Outcome::blocked_by("tensors-shape"))?;
            losses.push(loss.mean(Kind::Double).double_value(&[]));
            let next = self.step(sampler, &loss, &gradient)?;
            if next.particles.size() != self.batch.images.size() {
                return Err(Outcome::blocked_by("tensors-shape"));
            }
            if next.state.len() != self.state.len() {
                return Err(Outcome::blocked_by("sampler-state"));
            }
            self.particles = match sampler.declaration().projection {
                Projection::Host => THREAT.project(&next.particles, &self.batch.images),
                Projection::Sampler => next.particles,
            };
            self.state = next.state;
        }
        Ok(losses)
    }
}

fn state(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    let mut chain = Chain::new(&sampler, seed);
    let loss = chain.batch.labels.to_kind(Kind::Double);
    let gradient = chain.batch.images.shallow_clone();
    let next = chain.step(&sampler, &loss, &gradient)?;
    let shapes: Vec<_> = next.state.iter().map(Tensor::size).collect();
    let expected = vec![chain.batch.images.size(); sampler.declaration().state_tensors];
    Ok(Outcome::demand(shapes == expected, format!("state of shapes {expected:?}"), format!("{shapes:?}")))
}

fn zero_gradient(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    let mut chain = Chain::new(&sampler, seed);
    let (loss, gradient) = (chain.batch.labels.to_kind(Kind::Double), chain.batch.images.zeros_like());
    let next = chain.step(&sampler, &loss, &gradient)?;
    let finite = next.particles.isfinite().all().int64_value(&[]) == 1;
    Ok(Outcome::demand(finite, "finite particles at zero gradient", "NaN or infinite ones"))
}

fn ascent(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    let losses = Chain::new(&sampler, seed).climb(&sampler, 50)?;
    let (before, after) = (
        losses[0],
        losses[losses.len() / 2..].iter().sum::<f64>() / (losses.len() - losses.len() / 2) as f64,
    );
    if after > before {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Warning(format!(
        "the mean loss went from {before:.4} to {after:.4} over 50 steps of a convex problem"
    )))
}

fn projection(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    if sampler.declaration().projection == Projection::Host {
        return Ok(Outcome::Skipped("the host projects for this sampler".to_owned()));
    }
    let mut chain = Chain::new(&sampler, seed);
    for step in 0..20 {
        chain.climb(&sampler, 0)?;
        let outside = THREAT.contains(&chain.particles, &chain.batch.images).logical_not().sum(Kind::Int64);
        if outside.int64_value(&[]) > 0 {
            return Ok(Outcome::failed(
                "particles inside ball and domain",
                format!("some outside at step {step}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}
