//! MART (Wang et al. 2020, misclassification-aware adversarial training): a boosted cross-entropy at the
//! particle, and the divergence from the natural prediction, weighted by how wrong that one is. The
//! sampler climbs the cross-entropy.
//!
//! With p = softmax of the natural logits and q = softmax of the particle's:
//! outer = -log q_y - log(1 - max over j != y of q_j) + beta KL(p || q) (1 - p_y).

use plugin_api::losses::{cross_entropy, kl_divergence};
use plugin_api::tch::Tensor;
use plugin_api::{Batch, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("mart", Mart);

/// The losses of MART.
pub struct Mart {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Weight of the divergence; lambda in the paper.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub beta: f64,
}

impl Default for Options {
    /// The paper's value.
    fn default() -> Self {
        Self { beta: 5.0 }
    }
}

impl Objective for Mart {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn uses_natural(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let natural = batch.natural_logits()?;
        let (kind, column) = (batch.logits.kind(), batch.labels.unsqueeze(1));
        // log(1 - q_j) is the log of the sum of the other probabilities: finite for sure predictions,
        // where the authors' code adds constants (1.0001, 1e-12).
        let log_q = batch.logits.f_log_softmax(1, kind)?;
        let rival = log_q.f_scatter_value(1, &column, f64::NEG_INFINITY)?.f_argmax(1, true)?;
        let without_rival = log_q.f_scatter_value(1, &rival, f64::NEG_INFINITY)?;
        let boost = -without_rival.f_logsumexp([1i64].as_slice(), false)?;
        let wrongness: Tensor = 1.0 - natural.f_softmax(1, kind)?.f_gather(1, &column, false)?.squeeze_dim(1);
        let divergence = kl_divergence(natural, batch.logits) * wrongness;
        Ok((cross_entropy(batch.logits, batch.labels) + boost + divergence * self.options.beta).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::{Round, assert_close};

    #[test]
    fn the_loss_equals_that_computed_by_hand() {
        // q = (1/2, 1/3, 1/6), p = (1/4, 1/2, 1/4), label 0: the rival is class 1.
        let logs = |p: [f64; 3]| Tensor::from_slice(&p.map(f64::ln)).reshape([1, 3]);
        let natural_logits = Some(logs([0.25, 0.5, 0.25]));
        let round = Round { natural_logits, ..Round::new(logs([0.5, 1.0 / 3.0, 1.0 / 6.0]), &[0]) };
        let divergence = 0.25 * 0.5f64.ln() + 0.5 * 1.5f64.ln() + 0.25 * 1.5f64.ln();
        let expected = 2f64.ln() - (2.0 / 3.0f64).ln() + 5.0 * divergence * 0.75;
        let mart = Mart { options: Options::default() };
        assert_close(&mart.outer(&round.batch()).expect("a loss").loss, &[expected]);
    }

    #[test]
    fn a_prediction_that_is_sure_and_wrong_has_a_finite_loss() {
        let natural_logits = Some(Tensor::from_slice(&[-200.0f64, 200.0, 0.0]).reshape([1, 3]));
        let logits = Tensor::from_slice(&[-300.0f64, 300.0, 0.0]).reshape([1, 3]);
        let round = Round { natural_logits, ..Round::new(logits, &[0]) };
        let loss = Mart { options: Options::default() }.outer(&round.batch()).expect("a loss").loss;
        // 600 by the cross-entropy, 300 by the rival, nothing by the divergence.
        assert_close(&loss, &[900.0]);
    }
}
