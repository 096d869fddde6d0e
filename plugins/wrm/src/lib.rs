//! WRM (Sinha, Namkoong and Duchi 2018): the Lagrangian of distributionally robust optimisation over a
//! Wasserstein ball of order 2. Both players have the loss less a penalty on the transport:
//!
//! ```text
//! CE(f(x~), y) - gamma |x~ - x|^2
//! ```
//!
//! The penalty stands in the place of a ball: particles may be anywhere in the domain
//! (`--domain-only`). The sampler should follow the gradient itself. A larger gamma keeps particles
//! nearer.

use plugin_api::losses::cross_entropy;
use plugin_api::{
    Batch, Climbs, Error, Norm, Objective, Outer, Result, Setting, ThreatModel, export_objective,
};
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

    fn supports(&self, setting: &Setting) -> Result<()> {
        let ThreatModel { norm, epsilon, domain: (low, high) } = setting.threat;
        if norm == Norm::Linf && epsilon >= high - low {
            return Ok(());
        }
        Err(Error::new(format!(
            "expected particles that only the domain and the penalty hold, got a ball of radius {epsilon} in \
             {norm}; train with a sampler and --domain-only (train.domain_only = true)"
        )))
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
    fn a_ball_that_may_bind_is_refused() {
        let supports = |norm, epsilon, domain| {
            let threat = ThreatModel { norm, epsilon, domain };
            let setting = Setting { threat, particles_per_point: 1, classes: 10, training_points: 2 };
            Wrm { options: Options::default() }.supports(&setting)
        };
        assert_eq!(supports(Norm::Linf, 1.0, (0.0, 1.0)), Ok(()));
        assert_eq!(supports(Norm::Linf, 2.0, (-1.0, 1.0)), Ok(()));
        let error = supports(Norm::Linf, 0.3, (0.0, 1.0)).expect_err("refused").to_string();
        assert!(
            error.contains("got a ball of radius 0.3 in linf; train with a sampler and --domain-only"),
            "{error}"
        );
        for (norm, epsilon, domain) in [(Norm::Linf, 1.0, (-1.0, 1.0)), (Norm::L2, 5.0, (0.0, 1.0))] {
            assert!(supports(norm, epsilon, domain).is_err(), "{norm} {epsilon} {domain:?}");
        }
    }

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
