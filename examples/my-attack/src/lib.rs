//! Random search among the corners of the ball, without gradients: a very simple black-box attack.

use plugin_api::losses::margin;
use plugin_api::tch::Tensor;
use plugin_api::{Attack, Result, Target, export_attack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_attack!("my-attack", MyAttack);

/// The attack, which holds its options and nothing else.
pub struct MyAttack {
    options: Options,
}

/// The options.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Number of corners to try.
    #[schemars(range(min = 1))]
    pub queries: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { queries: 20 }
    }
}

impl Attack for MyAttack {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        let mut best = target.natural.shallow_clone();
        let mut best_margin = margin(&target.victim.logits(&best)?, target.labels);
        for _ in 0..self.options.queries {
            let direction = target.threat.steepest_ascent(&(target.random.uniform(target.natural)? - 0.5));
            let corner = target.natural + direction * target.threat.epsilon;
            let candidate = target.threat.project(&corner, target.natural);
            let margin = margin(&target.victim.logits(&candidate)?, target.labels);
            let better = margin.less_tensor(&best_margin);
            best = candidate.where_self(&better.reshape([-1, 1, 1, 1]), &best);
            best_margin = margin.minimum(&best_margin);
        }
        Ok(best)
    }
}
