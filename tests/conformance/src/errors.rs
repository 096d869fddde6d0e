//! Checks that wrong inputs and errors of the host give an error with a message.

use crate::hygiene::{demand_nothing_left, settled};
use crate::tensors::{act, no_result};
use crate::toy::{Batch, Inputs, Instance, Problem};
use crate::{Check, Outcome, Plugin, Table, Verdict, about_to};
use plugin_api::tch::{Kind, Tensor};

pub const CHECKS: [Check; 5] = [
    Check::new("errors-shape", "inputs of a wrong shape give an error, and the next call works", shape)
        .after(&["determinism-repeats"]),
    Check::new("errors-rank", "inputs of a wrong rank give an error, and the next call works", rank)
        .after(&["determinism-repeats"]),
    Check::new("errors-dtype", "inputs of a wrong dtype do not crash, and the next call works", dtype)
        .after(&["determinism-repeats"]),
    Check::new("errors-passed-on", "an error of the host is returned as an error", passed_on)
        .of(&["sampler", "attack"]),
    Check::new("errors-drop", "an instance that failed can be used and dropped", dropped)
        .after(&["hygiene-leftovers"]),
];

/// A mistake in the inputs: its name, and the function that makes it.
type Mistake = (&'static str, fn(Inputs) -> Inputs);

/// Images that a model of grey images and a linear victim must refuse.
fn coloured(inputs: Inputs) -> Inputs {
    inputs.with_images(|images| Tensor::cat(&[images, images], 1))
}

fn other_gradient(inputs: Inputs) -> Inputs {
    Inputs { gradient: inputs.gradient.narrow(3, 0, 3).contiguous(), ..inputs }
}

/// Inputs that make the call of every plugin fail.
pub fn unusable(inputs: Inputs) -> Inputs {
    other_gradient(coloured(inputs))
}

const SHAPES: [Mistake; 5] = [
    ("images of 2 channels instead of 1", coloured),
    ("images of 12x3 instead of 12x12", |inputs| {
        inputs.with_images(|images| images.narrow(3, 0, 3).contiguous())
    }),
    ("images without pixels", |inputs| inputs.with_images(|images| images.narrow(3, 0, 0))),
    ("a gradient of other images", other_gradient),
    ("too few labels", |inputs| Inputs { labels: inputs.labels.narrow(0, 0, 2), ..inputs }),
];

const RANKS: [Mistake; 3] = [
    ("images in one row", |inputs| inputs.with_images(|images| images.flatten(0, -1))),
    ("a single number for images", |inputs| inputs.with_images(|images| images.mean(images.kind()))),
    ("labels in two dimensions", |inputs| Inputs { labels: inputs.labels.unsqueeze(1), ..inputs }),
];

const DTYPES: [Mistake; 4] = [
    ("images of whole numbers", |inputs| inputs.with_images(|images| images.to_kind(Kind::Int64))),
    ("labels of fractions", |inputs| Inputs { labels: inputs.labels.to_kind(Kind::Float) + 0.5, ..inputs }),
    ("labels of no class", |inputs| Inputs { labels: inputs.labels + 1000, ..inputs }),
    ("undefined images", |inputs| inputs.with_images(|_| Tensor::new())),
];

fn batch(seed: u64) -> Batch {
    Problem::new(seed).batch(0..4)
}

/// Makes each mistake with a new instance. Another instance must give the same results after it as
/// before. A model must return an error for the mistake `refused`.
fn after_mistakes(plugin: &Plugin, seed: u64, mistakes: &[Mistake], refused: &str) -> Verdict {
    let good = || act(&Instance::new(plugin, &batch(seed))?, &batch(seed));
    let before = good()?;
    for (mistake, make) in mistakes {
        let batch = batch(seed);
        let instance = Instance::new(plugin, &batch)?;
        let inputs = batch.inputs(&instance).map_err(no_result)?;
        about_to(&format!("call it with {mistake}"));
        let outcome = instance.act_on(&batch, &make(inputs));
        if let (Table::Model(_), Ok(_), true) = (&plugin.table, outcome, *mistake == refused) {
            return Ok(Outcome::failed(format!("an error for {mistake}"), "logits"));
        }
        if good()? != before {
            return Ok(Outcome::failed(format!("the same results after {mistake}"), "other results"));
        }
    }
    Ok(Outcome::Passed)
}

fn shape(plugin: &Plugin, seed: u64) -> Verdict {
    // A model that pools over whole images may accept other sizes.
    after_mistakes(plugin, seed, &SHAPES, "images of 2 channels instead of 1")
}

fn rank(plugin: &Plugin, seed: u64) -> Verdict {
    after_mistakes(plugin, seed, &RANKS, "images in one row")
}

fn dtype(plugin: &Plugin, seed: u64) -> Verdict {
    // A model may convert whole numbers.
    after_mistakes(plugin, seed, &DTYPES, "undefined images")
}

fn passed_on(plugin: &Plugin, seed: u64) -> Verdict {
    let working = batch(seed);
    let instance = Instance::new(plugin, &working)?;
    let inputs = working.inputs(&instance).map_err(no_result)?;
    let mut failing = batch(seed);
    (failing.random.refuses, failing.victim.refuses) = (true, true);
    let outcome = instance.act_on(&failing, &inputs);
    if failing.random.draws() + failing.victim.calls() == 0 {
        return Err(Outcome::Skipped("it does not call the host".to_owned()));
    }
    Ok(Outcome::demand(outcome.is_err(), "an error if the host's random numbers or victim fail", "a result"))
}

/// Number of instances that fail and are dropped.
const FAILURES: usize = 20;

fn dropped(plugin: &Plugin, seed: u64) -> Verdict {
    let fail = || {
        let batch = batch(seed);
        let instance = Instance::new(plugin, &batch)?;
        for (mistake, make) in SHAPES.iter().chain(&RANKS) {
            about_to(&format!("drop an instance that was called with {mistake}"));
            let inputs = batch.inputs(&instance).map_err(no_result)?;
            let _ = instance.act_on(&batch, &make(inputs));
        }
        Ok(())
    };
    fail()?;
    let before = settled();
    for _ in 0..FAILURES {
        fail()?;
    }
    Ok(demand_nothing_left(before, &format!(" after {FAILURES} failures")))
}
