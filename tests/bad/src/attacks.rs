//! Attacks, both bad.

use plugin_api::tch::Tensor;
use plugin_api::{Attack, NoOptions, Result, Target, export_attack};

export_attack!("outside", Outside);

/// Answers with points outside the ball.
struct Outside;

impl Attack for Outside {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        Ok(target.natural + 2.0 * target.threat.epsilon)
    }
}

export_attack!("attack-panics", AttackPanics);

struct AttackPanics;

impl Attack for AttackPanics {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        panic!("cannot attack {} points", target.points.len())
    }
}
