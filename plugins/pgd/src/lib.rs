//! Projected gradient descent (Madry et al. 2018): many small steps of steepest ascent from
//! a uniform start in the ball.

use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("pgd", Pgd);

/// The PGD sampler.
pub struct Pgd {
    options: Options,
}

/// What can be set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step in the threat model's norm, in units of the domain.
    #[schemars(range(min = 0.0))]
    pub step_size: f64,
}

impl Default for Options {
    /// The paper's setting for MNIST.
    fn default() -> Self {
        Self { step_size: 0.01 }
    }
}

impl Sampler for Pgd {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Uniform
    }

    fn default_steps(&self) -> usize {
        40
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let ascent = step.threat.steepest_ascent(step.gradient);
        Ok((step.particles + ascent * self.options.step_size).into())
    }
}
