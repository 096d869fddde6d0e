//! Langevin Monte Carlo with momentum: each particle keeps a velocity.

use plugin_api::{Next, Result, Sampler, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("my-sampler", MySampler);

/// The sampler, which consists of its options and nothing else.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct MySampler {
    /// Length of each step, in units of the domain.
    #[schemars(range(min = 0.0))]
    pub step_size: f64,
    /// Standard deviation of the noise, in units of the domain.
    #[schemars(range(min = 0.0))]
    pub noise: f64,
    /// Share of the velocity that a step keeps.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub momentum: f64,
}

impl Default for MySampler {
    fn default() -> Self {
        Self { step_size: 0.2, noise: 0.1, momentum: 0.5 }
    }
}

impl Sampler for MySampler {
    type Options = Self;

    fn new(options: Self) -> Result<Self> {
        Ok(options)
    }

    /// One tensor per particle, kept and saved by the host: the velocity.
    fn state_tensors(&self) -> usize {
        1
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let velocity = &step.state[0] * self.momentum + step.threat.steepest_ascent(step.gradient);
        let noise = step.random.normal(step.particles)? * self.noise;
        let particles = step.particles + step.threat.steepest_ascent(&velocity) * self.step_size + noise;
        Ok(Next { particles, state: vec![velocity] })
    }
}
