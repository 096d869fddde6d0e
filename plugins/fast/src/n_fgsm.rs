//! N-FGSM (de Jorge et al. 2022, Algorithm 1): one step of FGSM from a noisy image, without clipping.
//!
//! With eta uniform in the ball of radius k * epsilon and x' = x + eta, the particle is
//! x' + alpha * sign(gradient of the loss at x'), alpha = epsilon. It is clipped to the domain only,
//! and may be (k + 1) * epsilon away from x.

use plugin_api::{Next, Result, Sampler, Start, Step, ThreatModel, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("n_fgsm", NFgsm);

/// The N-FGSM sampler.
pub struct NFgsm {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Radius of the noise, as a multiple of epsilon (k).
    #[schemars(range(min = 0.0))]
    pub noise_scale: f64,
    /// Length of the step, as a multiple of epsilon.
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
}

impl Default for Options {
    /// The paper's setting for CIFAR-10.
    fn default() -> Self {
        Self { noise_scale: 2.0, step_scale: 1.0 }
    }
}

impl Sampler for NFgsm {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Natural
    }

    fn reach(&self) -> f64 {
        (self.options.noise_scale + self.options.step_scale).max(1.0)
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        let noise = ThreatModel { epsilon: start.threat.epsilon * self.options.noise_scale, ..start.threat };
        Ok(noise.random_start(start.natural, &start.random)?.into())
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let length = self.options.step_scale * step.threat.epsilon;
        Ok((step.particles + step.threat.steepest_ascent(step.gradient) * length).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{image, visit};
    use plugin_api::testing::assert_close;

    #[test]
    fn the_step_begins_at_noise_beyond_the_ball() {
        let sampler = NFgsm { options: Options::default() };
        // Uniform numbers 0.75, 0.25, 0.5 are noise of 0.5 * 0.5, -0.5 * 0.5 and 0; epsilon is 0.25.
        let next = visit(&sampler, &image(&[0.25, 0.5, 0.5]), &[3.0, 1.0, -2.0], 1, &[0.75, 0.25, 0.5]);
        assert_close(&next.particles, &[0.25 + 0.25 + 0.25, 0.5 - 0.25 + 0.25, 0.25]);
        assert_eq!(sampler.reach(), 3.0);
        let small = Options { noise_scale: 0.5, step_scale: 0.25 };
        assert_eq!(NFgsm { options: small }.reach(), 1.0);
    }
}
