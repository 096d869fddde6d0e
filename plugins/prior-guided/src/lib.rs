//! The outer loss of FGSM-PGI (Jia et al. 2022, prior-guided adversarial initialisation): the
//! cross-entropy at the particle, and the distance of its logits from those where its chain began,
//! which keeps the loss smooth between the two. The sampler climbs the cross-entropy.
//!
//! With the start s of a visit and C classes:
//! outer = CE(f(x~), y) + weight / C |f(x~) - f(s)|^2.
//!
//! As in the authors' code, both logits are differentiated. Their forward at s also yields the
//! gradient of the sampler's step; here it is taken again, with the weights in training mode: one pass
//! more.

use plugin_api::losses::smoothed_cross_entropy;
use plugin_api::{Batch, Objective, Outer, Passes, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("prior_guided", PriorGuided);

/// The regularised loss.
pub struct PriorGuided {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Weight of the mean squared difference of the logits; lambda in the paper.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub weight: f64,
    /// Share of the label's weight that all classes share equally, in the cross-entropy.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_smoothing: f64,
}

impl Default for Options {
    /// Public code of this family of methods has 10 to 12 for CIFAR-10.
    fn default() -> Self {
        Self { weight: 10.0, label_smoothing: 0.0 }
    }
}

impl Objective for PriorGuided {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn passes(&self) -> Passes {
        Passes { per_point: 0, per_particle: 1 }
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let difference = batch.logits - batch.network.logits(batch.start, true)?;
        let squares = difference.f_square()?.f_mean_dim([1i64].as_slice(), false, difference.kind())?;
        let loss = smoothed_cross_entropy(batch.logits, batch.labels, self.options.label_smoothing);
        Ok((loss + squares * self.options.weight).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{Round, assert_close};

    #[test]
    fn the_logits_are_compared_with_those_where_the_chain_began() {
        // Logits (log 3, 0) at the particle: probabilities 3/4 and 1/4, with smoothing 0.2 the loss
        // 0.9 log 4/3 + 0.1 log 4. The start has the logits (log 3 + 2, -4), the natural example others:
        // 0.5 (4 + 16) / 2 = 5.
        let network = |images: &Tensor| images.flatten(1, -1) * 2.0;
        let image = |values: [f64; 2]| Tensor::from_slice(&values).reshape([1, 1, 1, 2]);
        let round = Round {
            natural: image([9.0, 9.0]),
            particles: image([3f64.ln() / 2.0, 0.0]),
            start: image([3f64.ln() / 2.0 + 1.0, -2.0]),
            network: &network,
            ..Round::new(Tensor::from_slice(&[3f64.ln(), 0.0]).reshape([1, 2]), &[0])
        };
        let (sure, unsure) = (-(0.75f64.ln()), -(0.25f64.ln()));
        for (label_smoothing, entropy) in [(0.0, sure), (0.2, 0.9 * sure + 0.1 * unsure)] {
            let objective = PriorGuided { options: Options { weight: 0.5, label_smoothing } };
            let loss = objective.outer(&round.batch()).expect("a loss").loss;
            assert_close(&loss, &[entropy + 5.0]);
        }
    }
}
