//! Checks for plugins of every kind.

use crate::toy::{Batch, Instance};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::tch::{self, Device, Kind, Tensor};
use serde_json::{Value, json};
use std::fs;

macro_rules! check {
    ($name:literal, $run:ident, $sentence:literal) => {
        Check { name: $name, sentence: $sentence, kinds: &["model", "sampler", "attack"], run: $run }
    };
}

pub const CHECKS: [Check; 24] = [
    check!("options-defaults", options_defaults, "an instance can be made without any option"),
    check!("options-documented", options_documented, "every option has a type and a help text"),
    check!("options-unknown", options_unknown, "an unknown option is refused by name"),
    check!("options-fuzz", options_fuzz, "whatever value an option is given, it works or is refused"),
    check!("tensors-result", tensors_result, "a call with valid inputs gives a result"),
    check!("tensors-shape", tensors_shape, "results have the right shape, dtype and device"),
    check!("tensors-finite", tensors_finite, "results are finite"),
    check!("tensors-inputs", tensors_inputs, "inputs are left as they were"),
    check!("tensors-memory", tensors_memory, "results share no memory with inputs"),
    check!("tensors-strides", tensors_strides, "inputs that lie otherwise in memory give the same results"),
    check!("tensors-one", tensors_one, "a batch of one works"),
    check!("tensors-none", tensors_none, "an empty batch works"),
    check!("tensors-double", tensors_double, "f64 works as well as f32"),
    check!("determinism-repeats", determinism_repeats, "the same seed gives the same results"),
    check!("determinism-instances", determinism_instances, "instances do not disturb one another"),
    check!("determinism-generator", determinism_generator, "libtorch's generator is left alone"),
    check!("determinism-neighbours", determinism_neighbours, "a row does not depend on its neighbours"),
    check!("hygiene-grad-mode", hygiene_grad_mode, "gradient tracking is as it was"),
    check!("hygiene-threads", hygiene_threads, "libtorch's thread count is as it was"),
    check!("hygiene-leftovers", hygiene_leftovers, "no open file and no thread is left behind"),
    check!("hygiene-memory", hygiene_memory, "memory stays flat over many calls"),
    check!("errors-shape", errors_shape, "inputs of a wrong shape give an error, and the next call works"),
    check!("lifecycle-threads", lifecycle_threads, "made on one thread, it works on another"),
    check!("lifecycle-many", lifecycle_many, "a thousand instances come and go"),
];

fn batch(seed: u64) -> Batch {
    Batch::new(0..4, 10, Kind::Float, seed)
}

/// Results of a fresh instance on a batch.
fn results(plugin: &Plugin, batch: &Batch) -> Result<Vec<Tensor>, Outcome> {
    act(&Instance::new(plugin, batch)?, batch)
}

fn act(instance: &Instance, batch: &Batch) -> Result<Vec<Tensor>, Outcome> {
    instance.act(batch).map_err(|_| Outcome::blocked_by("tensors-result"))
}

/// The largest difference between two lists of results.
fn difference(one: &[Tensor], other: &[Tensor]) -> f64 {
    let pairs = one.iter().zip(other).filter(|(one, _)| one.numel() > 0);
    let differences = pairs.map(|(one, other)| match one.size() == other.size() {
        true => (one - other).abs().max().to_kind(Kind::Double).double_value(&[]),
        false => f64::INFINITY,
    });
    // NaN counts as a difference.
    differences.fold(0.0, |largest, value| if value <= largest { largest } else { value })
}

fn demand_same(one: &[Tensor], other: &[Tensor], tolerance: f64, expected: &str) -> Verdict {
    let difference = difference(one, other);
    Ok(Outcome::demand(difference <= tolerance, expected, format!("results that differ by {difference:.3e}")))
}

fn schema(plugin: &Plugin) -> Result<Value, Outcome> {
    let description = match plugin {
        Plugin::Model(plugin) => plugin.describe(),
        Plugin::Sampler(plugin) => plugin.describe(),
        Plugin::Attack(plugin) => plugin.describe(),
    };
    description
        .map(|description| description.options)
        .map_err(|error| Outcome::failed("a description", error))
}

fn option_names(schema: &Value) -> Vec<String> {
    schema["properties"].as_object().map(|options| options.keys().cloned().collect()).unwrap_or_default()
}

fn options_defaults(plugin: &Plugin, seed: u64) -> Verdict {
    match Instance::with_options(plugin, "{}", &batch(seed)) {
        Ok(_) => Ok(Outcome::Passed),
        Err(error) => Ok(Outcome::failed("an instance with default options", error)),
    }
}

fn options_documented(plugin: &Plugin, _: u64) -> Verdict {
    let schema = schema(plugin)?;
    for name in option_names(&schema) {
        let option = &schema["properties"][&name];
        let described = option["description"].as_str().is_some_and(|help| !help.trim().is_empty());
        let typed = ["type", "$ref", "anyOf", "oneOf", "enum"].iter().any(|key| !option[*key].is_null());
        if !described || !typed {
            let missing = if described { "type" } else { "documentation comment" };
            return Ok(Outcome::failed(
                "a type and a help text for every option",
                format!("`{name}` has no {missing}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn options_unknown(plugin: &Plugin, seed: u64) -> Verdict {
    match Instance::with_options(plugin, r#"{"no-such-option": 1}"#, &batch(seed)) {
        Err(error) if error.to_string().contains("no-such-option") => Ok(Outcome::Passed),
        Err(error) => Ok(Outcome::failed("a refusal that names `no-such-option`", error)),
        Ok(_) => Ok(Outcome::failed("a refusal of the option `no-such-option`", "an instance")),
    }
}

/// Every declared option with values of every kind. The values are the same for every seed:
/// there are few enough to try them all.
fn options_fuzz(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Batch::new(0..1, 10, Kind::Float, seed);
    let small = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e-300),
        json!(""),
        json!("nan"),
        json!([]),
        json!({}),
    ];
    let huge = [json!(-1e308), json!(1e308), json!(i64::MIN)];
    let schema = schema(plugin)?;
    for name in option_names(&schema) {
        // A whole number may ask for memory or time in proportion: that huge ones are taken
        // is the user's own business.
        let whole = schema["properties"][&name]["type"] == "integer";
        for value in small.iter().chain(if whole { &[][..] } else { &huge[..] }) {
            let options = json!({ name.clone(): value }).to_string();
            if let Ok(instance) = Instance::with_options(plugin, &options, &batch) {
                // Working or refusing are both fine; a crash is not, and is seen from outside.
                let _ = instance.act(&batch);
            }
        }
    }
    Ok(Outcome::Passed)
}

fn tensors_result(plugin: &Plugin, seed: u64) -> Verdict {
    match Instance::new(plugin, &batch(seed))?.act(&batch(seed)) {
        Ok(_) => Ok(Outcome::Passed),
        Err(error) => Ok(Outcome::failed("a result", error)),
    }
}

fn tensors_shape(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    let expected = (instance.shape(&batch), Kind::Float, Device::Cpu);
    for result in act(&instance, &batch)? {
        let got = (result.size(), result.kind(), result.device());
        if got != expected {
            return Ok(Outcome::failed(format!("{expected:?}"), format!("{got:?}")));
        }
    }
    Ok(Outcome::Passed)
}

fn tensors_finite(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    for call in 1..=5 {
        let finite = |result: &Tensor| result.isfinite().all().int64_value(&[]) == 1;
        if !act(&instance, &batch)?.iter().all(finite) {
            return Ok(Outcome::failed("finite results", format!("NaN or infinite ones at call {call}")));
        }
    }
    Ok(Outcome::Passed)
}

fn tensors_inputs(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let (images, labels) = (batch.images.copy(), batch.labels.copy());
    results(plugin, &batch)?;
    let same = images == batch.images && labels == batch.labels;
    Ok(Outcome::demand(same, "inputs as they were", "inputs that were written to"))
}

fn tensors_memory(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let results = results(plugin, &batch)?;
    let before = results.iter().map(Tensor::copy).collect::<Vec<_>>();
    let _ = batch.images.shallow_clone().fill_(0.123);
    demand_same(&results, &before, 0.0, "results that stay when an input is overwritten later")
}

fn tensors_strides(plugin: &Plugin, seed: u64) -> Verdict {
    let one = results(plugin, &batch(seed))?;
    let other = results(plugin, &batch(seed).with_strides())?;
    demand_same(&one, &other, 1e-4, "the same results for other strides")
}

fn tensors_one(plugin: &Plugin, seed: u64) -> Verdict {
    sized(plugin, 1, seed)
}

fn tensors_none(plugin: &Plugin, seed: u64) -> Verdict {
    sized(plugin, 0, seed)
}

fn sized(plugin: &Plugin, rows: i64, seed: u64) -> Verdict {
    let batch = Batch::new(0..rows, 10, Kind::Float, seed);
    let instance = Instance::new(plugin, &batch)?;
    let expected = instance.shape(&batch);
    let whole = Batch::new(0..4, 10, Kind::Float, seed);
    if act(&instance, &whole)?.first().map(Tensor::size) != Some(instance.shape(&whole)) {
        return Err(Outcome::blocked_by("tensors-shape"));
    }
    match instance.act(&batch) {
        Err(error) => Ok(Outcome::failed(format!("a result of shape {expected:?}"), error)),
        Ok(results) => {
            let got = results.first().map(Tensor::size).unwrap_or_default();
            Ok(Outcome::demand(got == expected, format!("{expected:?}"), format!("{got:?}")))
        }
    }
}

fn tensors_double(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Batch::new(0..4, 10, Kind::Double, seed);
    let kinds: Vec<_> = results(plugin, &batch)?.iter().map(Tensor::kind).collect();
    Ok(Outcome::demand(
        kinds.iter().all(|kind| *kind == Kind::Double),
        "results in f64",
        format!("{kinds:?}"),
    ))
}

fn determinism_repeats(plugin: &Plugin, seed: u64) -> Verdict {
    let (one, other) = (results(plugin, &batch(seed))?, results(plugin, &batch(seed))?);
    demand_same(&one, &other, 0.0, "the same results for the same seed")
}

fn determinism_instances(plugin: &Plugin, seed: u64) -> Verdict {
    let alone = results(plugin, &batch(seed))?;
    let one = Instance::new(plugin, &batch(seed))?;
    let other = Instance::new(plugin, &batch(seed + 1))?;
    act(&other, &batch(seed + 1))?;
    demand_same(&act(&one, &batch(seed))?, &alone, 0.0, "the same results beside another instance")
}

fn determinism_generator(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = batch(seed);
    let instance = Instance::new(plugin, &batch)?;
    let draw = || Tensor::rand([8], (Kind::Double, Device::Cpu));
    tch::manual_seed(seed as i64);
    let expected = draw();
    tch::manual_seed(seed as i64);
    act(&instance, &batch)?;
    Ok(Outcome::demand(
        draw() == expected,
        "randomness from the host alone",
        "libtorch's generator was used or seeded",
    ))
}

fn determinism_neighbours(plugin: &Plugin, seed: u64) -> Verdict {
    let together = Batch::new(0..4, 10, Kind::Double, seed);
    let alone = Batch::new(2..4, 10, Kind::Double, seed);
    let together: Vec<_> = results(plugin, &together)?.iter().map(|result| result.narrow(0, 2, 2)).collect();
    demand_same(&together, &results(plugin, &alone)?, 1e-6, "the same rows in another batch")
}

/// Whether gradients are tracked now.
fn tracking() -> bool {
    (Tensor::from(1.0).set_requires_grad(true) * 2.0).requires_grad()
}

fn hygiene_grad_mode(plugin: &Plugin, seed: u64) -> Verdict {
    let instance = Instance::new(plugin, &batch(seed))?;
    let _guard = tch::no_grad_guard();
    let _ = instance.act_unguarded(&batch(seed));
    let after_success = tracking();
    let _ = instance.act_unguarded(&misshapen(seed));
    Ok(Outcome::demand(
        !after_success && !tracking(),
        "no gradient tracking after a call without it, nor after an error",
        "gradient tracking switched on",
    ))
}

fn hygiene_threads(plugin: &Plugin, seed: u64) -> Verdict {
    let instance = Instance::new(plugin, &batch(seed))?;
    let before = tch::get_num_threads();
    let _ = instance.act(&batch(seed));
    let _ = instance.act(&misshapen(seed));
    let after = tch::get_num_threads();
    tch::set_num_threads(before);
    Ok(Outcome::demand(after == before, format!("{before} threads"), format!("{after} threads")))
}

fn hygiene_leftovers(plugin: &Plugin, seed: u64) -> Verdict {
    let count = |folder: &str| fs::read_dir(folder).map(Iterator::count).unwrap_or_default();
    let now = || (count("/proc/self/fd"), count("/proc/self/task"));
    let batch = batch(seed);
    // The first call may start libtorch's own threads.
    results(plugin, &batch)?;
    let before = now();
    results(plugin, &batch)?;
    let after = now();
    Ok(Outcome::demand(
        after == before,
        format!("{} open files and {} threads", before.0, before.1),
        format!("{} and {}", after.0, after.1),
    ))
}

/// A leak of one result a call is several times this, and more than freed memory can hide.
const MEMORY_SLACK: u64 = 8 << 20;

fn hygiene_memory(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Batch::new(0..64, 10, Kind::Float, seed);
    let instance = Instance::new(plugin, &batch)?;
    // An attack's call is many passes.
    let calls = if matches!(plugin, Plugin::Attack(_)) { 40 } else { 1000 };
    for _ in 0..calls / 4 {
        act(&instance, &batch)?;
    }
    let before = resident_bytes();
    for _ in 0..calls {
        act(&instance, &batch)?;
    }
    let grown = resident_bytes().saturating_sub(before);
    Ok(Outcome::demand(
        grown < MEMORY_SLACK,
        format!("less than {MEMORY_SLACK} bytes more after {calls} calls"),
        format!("{grown} bytes more"),
    ))
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default()
        * 1024
}

/// Images of which no model or linear victim can make sense.
fn misshapen(seed: u64) -> Batch {
    let mut batch = batch(seed);
    batch.images = batch.images.narrow(3, 0, 3).contiguous();
    batch
}

fn errors_shape(plugin: &Plugin, seed: u64) -> Verdict {
    let instance = Instance::new(plugin, &batch(seed))?;
    if let (Plugin::Model(_), Ok(_)) = (plugin, instance.act(&misshapen(seed))) {
        return Ok(Outcome::failed("an error for images of 12x3 instead of 12x12", "logits"));
    }
    let fresh = Instance::new(plugin, &batch(seed))?;
    act(&fresh, &batch(seed)).map(|_| Outcome::Passed)
}

fn lifecycle_threads(plugin: &Plugin, seed: u64) -> Verdict {
    let instance = Instance::new(plugin, &batch(seed))?;
    results(plugin, &batch(seed))?;
    let other = std::thread::spawn(move || instance.act(&batch(seed)).map(drop));
    match other.join() {
        Ok(Ok(())) => Ok(Outcome::Passed),
        Ok(Err(error)) => Ok(Outcome::failed("a result on another thread", error)),
        Err(_) => Ok(Outcome::failed("a result on another thread", "a panic")),
    }
}

fn lifecycle_many(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Batch::new(0..1, 10, Kind::Float, seed);
    drop(Instance::new(plugin, &batch)?);
    for number in 1..=1000 {
        if let Err(error) = Instance::with_options(plugin, "{}", &batch) {
            return Ok(Outcome::failed(
                "1000 instances, one after the other",
                format!("number {number}: {error}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}
