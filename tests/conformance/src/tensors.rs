//! Checks of inputs and results.

use crate::lifecycle::{state, write_state};
use crate::toy::{Batch, Instance, Problem};
use crate::{Check, Library, Outcome, Plugin, Table, Verdict};
use plugin_api::tch::{Device, Kind, Tensor};

pub const CHECKS: [Check; 12] = [
    Check::new("tensors-result", "a call with valid inputs gives a result", result)
        .after(&["options-defaults"]),
    Check::new("tensors-shape", "results have the right shape, dtype and device", shape)
        .after(&["tensors-result"]),
    Check::new("tensors-finite", "results are finite", finite),
    Check::new("tensors-inputs", "inputs do not change", inputs),
    Check::new("tensors-memory", "results share no memory with inputs", memory),
    Check::new("tensors-kept", "a result stays as it is when the plugin is called again", kept),
    Check::new("tensors-strides", "inputs with another memory layout give the same results", strides)
        .after(&["determinism-repeats"]),
    Check::new(
        "tensors-channels-last",
        "colour images laid out channels-last give the same results",
        channels_last,
    )
    .after(&["determinism-repeats"]),
    Check::new("tensors-one", "a batch of one works", one),
    // The host asks no objective for the loss of nothing.
    Check::new("tensors-none", "an empty batch works", none).of(&["model", "sampler", "attack"]),
    Check::new("tensors-double", "f64 works as well as f32", double),
    Check::of_library("tensors-cuda", "results on a GPU agree with those on the CPU", cuda)
        .after(&["determinism-repeats"]),
];

fn batch(seed: u64) -> Batch {
    Problem::new(seed).batch(0..4)
}

/// Results of a new instance on a batch.
pub fn results(plugin: &Plugin, batch: &Batch) -> Result<Vec<Tensor>, Outcome> {
    act(&Instance::new(plugin, batch)?, batch)
}

/// Results of an instance on a batch.
pub fn act(instance: &Instance, batch: &Batch) -> Result<Vec<Tensor>, Outcome> {
    instance.act(batch).map_err(no_result)
}

/// The failure of a check if a call with valid inputs returns an error.
pub fn no_result(error: plugin_api::Error) -> Outcome {
    Outcome::failed("a result", error)
}

/// The largest difference between two lists of results: relative for values above 1, else absolute.
fn difference(one: &[Tensor], other: &[Tensor]) -> f64 {
    if one.len() != other.len() {
        return f64::INFINITY;
    }
    let differences = one.iter().zip(other).map(|(one, other)| {
        if one.size() != other.size() {
            f64::INFINITY
        } else if one.numel() == 0 {
            0.0
        } else {
            let relative = (one - other).abs() / one.abs().clamp_min(1.0);
            relative.max().to_kind(Kind::Double).double_value(&[])
        }
    });
    // NaN counts as a difference.
    differences.fold(0.0, |largest, value| if value <= largest { largest } else { value })
}

/// Passes if the results are the same up to a tolerance.
pub fn demand_same(one: &[Tensor], other: &[Tensor], tolerance: f64, expected: &str) -> Verdict {
    let difference = difference(one, other);
    Ok(Outcome::demand(difference <= tolerance, expected, format!("results that differ by {difference:.3e}")))
}

fn result(plugin: &Plugin, seed: u64) -> Verdict {
    results(plugin, &batch(seed)).map(|_| Outcome::Passed)
}

fn shape(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    for (result, shape) in act(&instance, &batch)?.into_iter().zip(instance.shapes(&batch)) {
        let expected = (shape, Kind::Float, Device::Cpu);
        if !result.defined() {
            return Ok(Outcome::failed(format!("{expected:?}"), "an undefined tensor"));
        }
        let got = (result.size(), result.kind(), result.device());
        if got != expected {
            return Ok(Outcome::failed(format!("{expected:?}"), format!("{got:?}")));
        }
    }
    Ok(Outcome::Passed)
}

fn finite(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    for call in 1..=5 {
        let finite = |result: &Tensor| result.isfinite().all().int64_value(&[]) == 1;
        if !act(&instance, &batch)?.iter().all(finite) {
            return Ok(Outcome::failed("finite results", format!("NaN or infinite results in call {call}")));
        }
    }
    Ok(Outcome::Passed)
}

fn inputs(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    let inputs = batch.inputs(&instance).map_err(no_result)?;
    let before: Vec<_> = inputs.named().iter().map(|(_, tensor)| tensor.copy()).collect();
    instance.act_on(&batch, &inputs).map_err(no_result)?;
    for ((name, after), before) in inputs.named().into_iter().zip(&before) {
        if after != before {
            return Ok(Outcome::failed("unchanged inputs", format!("`{name}` was written to")));
        }
    }
    Ok(Outcome::Passed)
}

fn memory(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    let inputs = batch.inputs(&instance).map_err(no_result)?;
    let results = instance.act_on(&batch, &inputs).map_err(no_result)?;
    let before = results.iter().map(Tensor::copy).collect::<Vec<_>>();
    for (name, input) in inputs.named() {
        let _ = input.shallow_clone().fill_(7.0);
        if difference(&results, &before) != 0.0 {
            return Ok(Outcome::failed(
                "results that do not change when an input is overwritten later",
                format!("a result that changes with `{name}`"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn kept(plugin: &Plugin, seed: u64) -> Verdict {
    let (first, second) = (batch(seed), Problem::new(seed).batch(4..8));
    let instance = Instance::new(plugin, &first)?;
    let results = act(&instance, &first)?;
    let before = results.iter().map(Tensor::copy).collect::<Vec<_>>();
    act(&instance, &second)?;
    Ok(Outcome::demand(
        difference(&results, &before) == 0.0,
        "a result that belongs to the host",
        "a result that another call overwrites",
    ))
}

/// The tolerance for f32 if sums are computed in another order.
const ROUNDING: f64 = 1e-4;

fn strides(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    let turned = |images: &Tensor| images.transpose(2, 3).contiguous().transpose(2, 3);
    let inputs = batch.inputs(&instance).map_err(no_result)?.with_images(turned);
    let other = instance.act_on(&batch, &inputs).map_err(no_result)?;
    demand_same(&results(plugin, &self::batch(seed))?, &other, ROUNDING, "the same results for other strides")
}

fn channels_last(plugin: &Plugin, seed: u64) -> Verdict {
    let coloured = || Problem { channels: 3, ..Problem::new(seed) }.batch(0..4);
    let usual = Instance::with_options(plugin, &plugin.options, &coloured())
        .and_then(|instance| instance.act(&coloured()));
    let usual = usual.map_err(|error| Outcome::Skipped(format!("it takes no colour images: {error}")))?;
    let batch = coloured();
    let instance = Instance::new(plugin, &batch)?;
    let last = |images: &Tensor| images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let inputs = batch.inputs(&instance).map_err(no_result)?.with_images(last);
    let other = instance.act_on(&batch, &inputs).map_err(no_result)?;
    demand_same(&usual, &other, ROUNDING, "the same results for images laid out channels-last")
}

fn one(plugin: &Plugin, seed: u64) -> Verdict {
    sized(plugin, 1, seed)
}

fn none(plugin: &Plugin, seed: u64) -> Verdict {
    sized(plugin, 0, seed)
}

fn sized(plugin: &Plugin, rows: i64, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..rows);
    let instance = Instance::new(plugin, &batch)?;
    let expected = instance.shapes(&batch).swap_remove(0);
    // The call comes after one with a whole batch, like the last batch of an epoch.
    act(&instance, &self::batch(seed))?;
    match instance.act(&batch) {
        Err(error) => Ok(Outcome::failed(format!("a result of shape {expected:?}"), error)),
        Ok(results) => {
            let got = results.first().map(Tensor::size).unwrap_or_default();
            Ok(Outcome::demand(got == expected, format!("{expected:?}"), format!("{got:?}")))
        }
    }
}

fn double(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem { kind: Kind::Double, ..Problem::new(seed) }.batch(0..4);
    let kinds: Vec<_> = results(plugin, &batch)?.iter().map(Tensor::kind).collect();
    Ok(Outcome::demand(
        kinds.iter().all(|kind| *kind == Kind::Double),
        "results in f64",
        format!("{kinds:?}"),
    ))
}

/// The tolerance for GPUs, which add in other orders.
const GPU_ROUNDING: f64 = 1e-3;

fn cuda(library: &dyn Library, seed: u64) -> Verdict {
    library.load_cuda().map_err(Outcome::Skipped)?;
    let plugin = library.plugin().map_err(|why| Outcome::failed("a library that can be opened", why))?;
    let gpu = Device::Cuda(0);
    let (batch, batch_there) = (batch(seed), self::batch(seed).on(gpu));
    let (here, there) = (Instance::new(plugin, &batch)?, Instance::new(plugin, &batch_there)?);
    if let (Instance::Model(here), Instance::Model(there)) = (&here, &there) {
        // The two instances have drawn different initial weights, each on its own device.
        write_state(there, &state(here)?)?;
    }
    let (results, results_there) = (act(&here, &batch)?, act(&there, &batch_there)?);
    if let Some(elsewhere) = results_there.iter().find(|result| result.device() != gpu) {
        return Ok(Outcome::failed(format!("results on {gpu:?}"), format!("{:?}", elsewhere.device())));
    }
    // Over the iterations of an attack, a difference in rounding may grow, so attacks are not
    // compared.
    if let Table::Attack(_) = plugin.table {
        return Ok(Outcome::Passed);
    }
    let back: Vec<_> = results_there.iter().map(|result| result.to_device(Device::Cpu)).collect();
    demand_same(&results, &back, GPU_ROUNDING, "the results on the CPU")
}
