//! Attacks: two bad ones, and a good one that supports one norm only.

use plugin_api::tch::Tensor;
use plugin_api::{Attack, Error, NoOptions, Norm, Result, Target, ThreatModel, export_attack};

export_attack!("outside", Outside);

/// Returns points outside the ball.
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

export_attack!("linf-only", LinfOnly);

/// Good: supports linf only, and returns the natural examples.
struct LinfOnly;

impl Attack for LinfOnly {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        match threat.norm {
            Norm::Linf => Ok(()),
            Norm::L2 => Err(Error::new("this attack supports linf only; the threat model is l2")),
        }
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        Ok(target.natural.copy())
    }
}
