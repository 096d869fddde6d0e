//! The entropic dual of adversarial training (Theorem 3.1 of "A Distributional Robustness Perspective on
//! Adversarial Training with the inf-Wasserstein Distance"), descended directly:
//!
//! ```text
//! g(theta) = 1/lambda log E exp(lambda CE(f(x~), y)),  x~ uniform on the ball
//! ```
//!
//! estimated for each point by the mean over its K particles. Draw them uniformly: a sampler that does
//! not climb, such as `pgd.so,step_size=0,steps=1 --start uniform`. The estimate lies below g, by much
//! if lambda times the spread of the losses is large against log K.

use plugin_api::losses::cross_entropy;
use plugin_api::{Batch, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("dual", Dual);

/// The log mean exp of the losses at a point's particles.
pub struct Dual {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Inverse temperature.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub lambda: f64,
}

impl Default for Options {
    /// The paper's value.
    fn default() -> Self {
        Self { lambda: 10.0 }
    }
}

impl Objective for Dual {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let (lambda, particles) = (self.options.lambda, batch.particles_per_point as i64);
        let losses = cross_entropy(batch.logits, batch.labels).f_reshape([-1, particles])?;
        let sums = (losses * lambda).f_logsumexp([1i64].as_slice(), true)?;
        // Every particle of a point counts the point's value, so that the mean over rows is that over
        // points.
        let values = (sums - (particles as f64).ln()) / lambda;
        Ok(values.f_expand([-1, particles], false)?.f_flatten(0, -1)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{Round, assert_close};

    #[test]
    fn each_point_has_the_log_mean_exp_of_its_particles() {
        // Losses log 2 and log 4 at the first point, log 2 twice at the second; lambda = 1.
        let row = |p: f64| [p.ln(), (1.0 - p).ln()];
        let logits = Tensor::from_slice(&[row(0.5), row(0.25), row(0.5), row(0.5)].concat()).reshape([4, 2]);
        let round =
            Round { points: vec![7, 7, 8, 8], particles_per_point: 2, ..Round::new(logits, &[0, 0, 0, 0]) };
        let loss = Dual { options: Options { lambda: 1.0 } }.outer(&round.batch()).expect("a loss").loss;
        assert_close(&loss, &[3f64.ln(), 3f64.ln(), 2f64.ln(), 2f64.ln()]);
    }
}
