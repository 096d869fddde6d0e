//! WRM (Sinha, Namkoong and Duchi 2018): the Lagrangian of distributionally robust optimisation over a
//! Wasserstein ball of order 2. Both players have the loss less a penalty on the transport:
//!
//! ```text
//! CE(f(x~), y) - gamma |x~ - x|^2
//! ```
//!
//! There is no ball: choose one that never binds (`--epsilon 1` for images in [0, 1] in linf), and a
//! sampler that follows the gradient itself. A larger gamma keeps particles nearer.

use plugin_api::losses::cross_entropy;
use plugin_api::{Batch, Climbs, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("wrm", Wrm);

/// The penalised loss.
pub struct Wrm {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Price of a unit of squared Euclidean distance.
    #[schemars(range(min = 0.0, max = 1e9))]
    pub gamma: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { gamma: 1.0 }
    }
}

impl Objective for Wrm {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn climbs(&self) -> Climbs {
        Climbs::Outer
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let moved = (batch.particles - batch.natural).flatten(1, -1).square();
        let distance = moved.f_sum_dim_intlist([1i64].as_slice(), false, moved.kind())?;
        Ok((cross_entropy(batch.logits, batch.labels) - distance * self.options.gamma).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{Round, assert_close};

    #[test]
    fn distance_is_paid_for_and_pulls_back() {
        // log 2 for two equal logits; the particle is (0.3, 0.4) away: 0.25 squared.
        let particles = Tensor::from_slice(&[0.3f64, 0.4]).reshape([1, 1, 1, 2]).set_requires_grad(true);
        let logits = particles.flatten(1, -1) * 0.0;
        let natural = Tensor::from_slice(&[0.0f64, 0.0]).reshape([1, 1, 1, 2]);
        let round = Round { natural, particles: particles.shallow_clone(), ..Round::new(logits, &[0]) };
        let loss = Wrm { options: Options { gamma: 2.0 } }.outer(&round.batch()).expect("a loss").loss;
        assert_close(&loss.detach(), &[2f64.ln() - 0.5]);
        let pull = Tensor::run_backward(&[&loss], &[&particles], false, false).remove(0);
        assert_close(&pull, &[-1.2, -1.6]);
    }
}
