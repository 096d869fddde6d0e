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

/// The options.
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

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_particles, one_step};
    use plugin_api::{Norm, ThreatModel};

    /// A step from (0.5, 0.5) with gradient (3, -4), epsilon 0.25.
    fn assert_step(sampler: &Pgd, norm: Norm, expected: [f64; 2]) {
        let natural = Tensor::from_slice(&[0.5, 0.5]).reshape([1, 1, 1, 2]);
        let gradient = Tensor::from_slice(&[3.0, -4.0]).reshape([1, 1, 1, 2]);
        let threat = ThreatModel { norm, epsilon: 0.25, domain: (0.0, 1.0) };
        let numbers = FixedNumbers(vec![0.0]);
        assert_particles(one_step(sampler, &natural, &gradient, &[], threat, &numbers), &expected);
    }

    #[test]
    fn a_step_goes_along_the_steepest_ascent() {
        let pgd = Pgd { options: Options { step_size: 0.1 } };
        // The sign; then the gradient over its length 5.
        assert_step(&pgd, Norm::Linf, [0.6, 0.4]);
        assert_step(&pgd, Norm::L2, [0.56, 0.42]);
    }
}
