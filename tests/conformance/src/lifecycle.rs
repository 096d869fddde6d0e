//! Checks of making, moving and dropping instances, and of a model's saved state.

use crate::tensors::{act, no_result, results};
use crate::toy::{Instance, Problem};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::abi::ModelInstance;
use plugin_api::tch::{self, Tensor};

pub const CHECKS: [Check; 3] = [
    Check::new("lifecycle-threads", "an instance made on one thread works on another", threads),
    Check::new("lifecycle-many", "a thousand instances can be made and dropped", many)
        .after(&["options-defaults"]),
    Check::new(
        "lifecycle-state",
        "parameters and buffers are the whole state of a model: written back, they give the same logits",
        whole_state,
    )
    .of(&["model"])
    .after(&["determinism-repeats"]),
];

fn threads(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = move || Problem::new(seed).batch(0..4);
    let instance = Instance::new(plugin, &batch())?;
    results(plugin, &batch())?;
    let other = std::thread::spawn(move || instance.act(&batch()).map(drop));
    match other.join() {
        Ok(Ok(())) => Ok(Outcome::Passed),
        Ok(Err(error)) => Ok(Outcome::failed("a result on another thread", error)),
        Err(_) => Ok(Outcome::failed("a result on another thread", "a panic")),
    }
}

fn many(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..1);
    for number in 1..=1000 {
        if let Err(error) = Instance::with_options(plugin, &plugin.options, &batch) {
            return Ok(Outcome::failed(
                "1000 instances, one after the other",
                format!("number {number}: {error}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

/// A model's parameters and buffers by name; the tensors are not copies.
pub fn named(model: &ModelInstance) -> Result<Vec<(String, Tensor)>, Outcome> {
    model.parameters().map_err(|error| Outcome::failed("parameters and buffers", error))
}

/// Copies of a model's parameters and buffers by name.
pub fn state(model: &ModelInstance) -> Result<Vec<(String, Tensor)>, Outcome> {
    Ok(named(model)?.into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect())
}

/// Overwrites a model's parameters and buffers, as the host does when it loads weights.
pub fn write_state(model: &ModelInstance, saved: &[(String, Tensor)]) -> Result<(), Outcome> {
    let _guard = tch::no_grad_guard();
    for ((name, tensor), (saved_name, saved)) in named(model)?.into_iter().zip(saved) {
        if name != *saved_name {
            return Err(Outcome::failed(format!("the parameter `{saved_name}`"), format!("`{name}`")));
        }
        tensor.shallow_clone().copy_(saved);
    }
    Ok(())
}

fn whole_state(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..4);
    let instance = Instance::new(plugin, &batch)?;
    let Instance::Model(model) = &instance else { return Err(Outcome::Skipped("not a model".to_owned())) };
    let (logits, saved) = (act(&instance, &batch)?, state(model)?);
    let other = |tensor: &Tensor| if tensor.is_floating_point() { 0.5 - tensor } else { tensor.copy() };
    let perturbed: Vec<_> = saved.iter().map(|(name, tensor)| (name.clone(), other(tensor))).collect();
    write_state(model, &perturbed)?;
    act(&instance, &batch)?;
    write_state(model, &saved)?;
    if state(model)? != saved {
        return Ok(Outcome::failed("the parameters that were written", "other parameters"));
    }
    if act(&instance, &batch)? != logits {
        return Ok(Outcome::failed(
            "the same logits, to the bit, after the parameters are written back",
            "other logits",
        ));
    }
    // As in a resumed run, the state is written to another instance with other initial weights.
    let fresh = Instance::drawn(plugin, &plugin.options, &batch, 2).map_err(no_result)?;
    if let Instance::Model(fresh) = &fresh {
        write_state(fresh, &saved)?;
    }
    Ok(Outcome::demand(
        act(&fresh, &batch)? == logits,
        "the same logits, to the bit, from another instance with the same parameters",
        "other logits: a random value is neither a parameter nor a buffer",
    ))
}
