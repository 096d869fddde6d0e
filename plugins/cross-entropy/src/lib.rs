//! The cross-entropy at the particles, for both problems, with or without label smoothing (Szegedy et
//! al. 2016).
//!
//! With smoothing s and C classes, the loss of a row is (1 - s) CE(z, y) + s/C * sum over j of
//! CE(z, j). The sampler climbs the same loss, so that one backward can serve both (mode fused).

use plugin_api::losses::smoothed_cross_entropy;
use plugin_api::{Batch, Climbs, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("cross_entropy", CrossEntropy);

/// The cross-entropy.
pub struct CrossEntropy {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Share of the label's weight that all classes share equally.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_smoothing: f64,
}

impl Objective for CrossEntropy {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn climbs(&self) -> Climbs {
        Climbs::Outer
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        Ok(smoothed_cross_entropy(batch.logits, batch.labels, self.options.label_smoothing).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{Round, assert_close};

    #[test]
    fn smoothing_gives_every_class_a_share() {
        // Logits (log 3, 0): the classes have probabilities 3/4 and 1/4.
        let logits = || Tensor::from_slice(&[3f64.ln(), 0.0]).reshape([1, 2]);
        let (sure, unsure) = (-(0.75f64.ln()), -(0.25f64.ln()));
        for (label_smoothing, expected) in [(0.0, sure), (0.2, 0.9 * sure + 0.1 * unsure)] {
            let objective = CrossEntropy { options: Options { label_smoothing } };
            let round = Round::new(logits(), &[0]);
            assert_close(&objective.outer(&round.batch()).expect("a loss").loss, &[expected]);
        }
    }
}
