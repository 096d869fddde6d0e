//! Langevin Monte Carlo on persistent particles: the sampler of Algorithm 1.
//!
//! The inner problem has entropy regularisation. For fixed weights, its solution for a training
//! point is the distribution on the ball around the point with density proportional to
//! exp(lambda * loss). This chain samples from it: a step that raises the loss, then Gaussian
//! noise, with lambda = 2 * step_size / noise^2.

use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("langevin", Langevin);

/// The Langevin sampler.
pub struct Langevin {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of the step that raises the loss (eta of Algorithm 1), in units of the domain.
    #[schemars(range(min = 0.0))]
    pub step_size: f64,
    /// Standard deviation of the noise (sigma of Algorithm 1), in units of the domain.
    #[schemars(range(min = 0.0))]
    pub noise: f64,
    /// Step along the direction of steepest ascent (in linf the gradient's sign, as in Algorithm 1)
    /// instead of along the gradient.
    pub sign: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { step_size: 0.2, noise: 0.2, sign: true }
    }
}

impl Sampler for Langevin {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Store
    }

    /// The host projects the result onto the ball, then onto the domain.
    fn step(&self, step: &Step) -> Result<Next> {
        let Options { step_size, noise, sign } = self.options;
        let ascent =
            if sign { step.threat.steepest_ascent(step.gradient) } else { step.gradient.shallow_clone() };
        let mut particles = step.particles + ascent * step_size;
        if noise > 0.0 {
            particles += step.random.normal(step.particles)? * noise;
        }
        Ok(particles.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_particles, one_step};
    use plugin_api::{Norm, ThreatModel};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

    /// A step from (0.5, 0.25, 0.9) with gradient (2, -3, 0) and noise numbers (1, 0.5, -1).
    fn assert_step(options: Options, expected: [f64; 3]) {
        let natural = Tensor::from_slice(&[0.5, 0.25, 0.9]).reshape([1, 1, 1, 3]);
        let gradient = Tensor::from_slice(&[2.0, -3.0, 0.0]).reshape([1, 1, 1, 3]);
        let numbers = FixedNumbers(vec![1.0, 0.5, -1.0]);
        let next = one_step(&Langevin { options }, &natural, &gradient, &[], LINF, &numbers);
        assert_particles(next, &expected);
    }

    #[test]
    fn a_step_is_the_sign_times_eta_plus_sigma_times_noise() {
        // 0.5 + 0.2 + 0.1; 0.25 - 0.2 + 0.05; 0.9 + 0 - 0.1.
        assert_step(Options { step_size: 0.2, noise: 0.1, sign: true }, [0.8, 0.1, 0.8]);
    }

    #[test]
    fn without_the_sign_a_step_is_eta_times_the_gradient() {
        // 0.5 + 0.01 * 2; 0.25 - 0.01 * 3; 0.9.
        assert_step(Options { step_size: 0.01, noise: 0.0, sign: false }, [0.52, 0.22, 0.9]);
    }
}
