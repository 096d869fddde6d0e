//! A mixture of the losses at the natural example and at its particle.

use plugin_api::losses::cross_entropy;
use plugin_api::{Batch, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("my-objective", MyObjective);

/// The objective, which holds its options and nothing else.
pub struct MyObjective {
    options: Options,
}

/// The options.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Share of the loss at the natural example.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub natural: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { natural: 0.5 }
    }
}

impl Objective for MyObjective {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn uses_natural(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let natural = batch.natural_logits()?;
        let share = self.options.natural;
        let losses = |logits| cross_entropy(logits, batch.labels);
        Ok((losses(natural) * share + losses(batch.logits) * (1.0 - share)).into())
    }
}
