//! The fast gradient sign method (Goodfellow et al. 2015): one step to the edge of the ball;
//! from a uniform start, the fast adversarial training of Wong et al. 2020.

use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("fgsm", Fgsm);

/// The FGSM sampler.
pub struct Fgsm {
    options: Options,
}

/// What can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of the step in the threat model's norm, in units of the domain; epsilon if
    /// not given.
    #[schemars(range(min = 0.0))]
    pub step_size: Option<f64>,
    /// Where the step begins.
    pub start: From,
}

/// Where the step begins.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// At the natural example.
    #[default]
    Natural,
    /// At a uniform draw from the ball.
    Uniform,
}

impl Sampler for Fgsm {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        match self.options.start {
            From::Natural => Start::Natural,
            From::Uniform => Start::Uniform,
        }
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let step_size = self.options.step_size.unwrap_or(step.threat.epsilon);
        Ok((step.particles + step.threat.steepest_ascent(step.gradient) * step_size).into())
    }
}
