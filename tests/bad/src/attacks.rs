//! Attacks: bad ones, slow ones, and a good one that supports one norm only.

use plugin_api::tch::Tensor;
use plugin_api::{Attack, Error, NoOptions, Norm, Result, Target, ThreatModel, export_attack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

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
        threat.norm.expect_one_of(&[Norm::Linf])
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        Ok(target.natural.copy())
    }
}

export_attack!("slow", Slow);

/// Slow in the way of its option; good without it: returns the natural examples.
struct Slow {
    how: String,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct SlowOptions {
    /// `asks`: asks the victim for ten minutes; `swallows`: the same, and makes a result of whatever
    /// happened once an answer is refused; `asks-again`: goes on asking after that; `thinks`: computes
    /// for three seconds without a call to the victim
    how: String,
}

impl Attack for Slow {
    type Options = SlowOptions;

    fn new(options: SlowOptions) -> Result<Self> {
        Ok(Self { how: options.how })
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        let ask = || target.victim.logits(target.natural).map(drop);
        match self.how.as_str() {
            "asks" => ask_for_long(ask)?,
            "swallows" => drop(ask_for_long(ask)),
            "asks-again" => ask_for_long(|| {
                let _ = ask();
                Ok(())
            })?,
            "thinks" => std::thread::sleep(Duration::from_secs(3)),
            _ => {}
        }
        Ok(target.natural.copy())
    }
}

/// Asks for ten minutes, all in one batch. It makes the file `asking` in the working directory once it
/// has begun.
fn ask_for_long(ask: impl Fn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(600) {
        ask()?;
        std::fs::write("asking", "").map_err(|why| Error::new(format!("asking: {why}")))?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
