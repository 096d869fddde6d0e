//! DALE (Robey et al. 2021, Algorithm 1): steps along the sign of a noisy gradient, which sample
//! from the perturbations of high loss.
//!
//! delta' = the ball's nearest to delta + eta * sign(gradient of log(loss) + sqrt(2 eta T) * xi),
//! where xi is noise of the Laplace distribution with scale 1. The gradient of log(loss) is that of
//! the loss over the loss.
//!
//! The authors' code gives sqrt(2 eta T) as one number, as `noise` does here. Its loss is the
//! probability of an error, averaged over a batch, so that noise weighs more there; here it is the
//! loss that the particles climb, of each alone.

use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("dale", Dale);

/// The DALE sampler.
pub struct Dale {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step, as a multiple of epsilon (eta).
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
    /// Factor of the noise, sqrt(2 eta T) for the temperature T.
    #[schemars(range(min = 0.0))]
    pub noise: f64,
}

impl Default for Options {
    /// The setting of the authors' code for MNIST: eta = 0.1 at an epsilon of 0.3.
    fn default() -> Self {
        Self { step_scale: 1.0 / 3.0, noise: 0.001 }
    }
}

impl Sampler for Dale {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Natural
    }

    fn default_steps(&self) -> usize {
        7
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let Options { step_scale, noise } = self.options;
        let loss = step.loss.clamp_min(f64::from(f32::MIN_POSITIVE)).reshape([-1, 1, 1, 1]);
        let mut direction = step.gradient / loss;
        if noise > 0.0 {
            direction += step.random.laplace(step.particles)? * noise;
        }
        Ok((step.particles + step.threat.steepest_ascent(&direction) * (step_scale * step.threat.epsilon))
            .into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_particles, one_visit};
    use plugin_api::{Norm, ThreatModel};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };

    /// A step of 0.125 from 0.5 in three pixels, at this loss and the gradient (0.3, -0.2, 0). The
    /// uniform numbers 0.25, 0.75, 0.75 are the noise (-ln 2, ln 2, ln 2) times the factor.
    #[track_caller]
    fn assert_step(noise: f64, loss: f64, expected: [f64; 3]) {
        let sampler = Dale { options: Options { step_scale: 0.5, noise } };
        let natural = Tensor::from_slice(&[0.5, 0.5, 0.5]).reshape([1, 1, 1, 3]);
        let gradient = Tensor::from_slice(&[0.3, -0.2, 0.0]).reshape([1, 1, 1, 3]);
        let evaluate = |_: &Tensor| (Tensor::from_slice(&[loss]), gradient.shallow_clone());
        let numbers = FixedNumbers(vec![0.25, 0.75, 0.75]);
        assert_particles(one_visit(&sampler, &natural, evaluate, 1, LINF, &numbers), &expected);
    }

    #[test]
    fn the_step_is_the_sign_of_the_gradient_of_the_log_loss_plus_noise() {
        // Without noise. Then noise of 0.5 ln 2 = 0.347 outweighs (0.3, -0.2) at a loss of 1, and does
        // not outweigh (0.6, -0.4) at a loss of 0.5.
        assert_step(0.0, 1.0, [0.625, 0.375, 0.5]);
        assert_step(0.5, 1.0, [0.375, 0.625, 0.625]);
        assert_step(0.5, 0.5, [0.625, 0.375, 0.625]);
        assert_step(0.5, 0.0, [0.625, 0.375, 0.625]);
    }
}
