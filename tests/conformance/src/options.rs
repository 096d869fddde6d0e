//! Checks of the options.

use crate::toy::{Instance, Problem, mix};
use crate::{Check, Outcome, Plugin, Table, Verdict, about_to};
use serde_json::{Map, Value, json};

pub const CHECKS: [Check; 4] = [
    Check::new(
        "options-defaults",
        "an instance can be made without any option but those given, and a file if it needs one",
        defaults,
    )
    .after(&["load-cold"]),
    Check::new("options-documented", "every option has a type and a help text", documented)
        .after(&["load-cold"]),
    Check::new("options-unknown", "an unknown option is refused by name", unknown).after(&["load-cold"]),
    Check::new("options-fuzz", "every value of an option works or is refused", fuzz)
        .after(&["tensors-result"]),
];

/// The JSON Schema of a plugin's options.
pub fn schema(plugin: &Plugin) -> Result<Value, Outcome> {
    let description = match &plugin.table {
        Table::Model(plugin) => plugin.describe(),
        Table::Sampler(plugin) => plugin.describe(),
        Table::Attack(plugin) => plugin.describe(),
        Table::Objective(plugin) => plugin.describe(),
    };
    description
        .map(|description| description.options)
        .map_err(|error| Outcome::failed("a description", error))
}

fn declared(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

/// Some options with others (a JSON object) laid over them, as a JSON object.
pub fn with(mut options: Map<String, Value>, others: &str) -> String {
    options.extend(serde_json::from_str::<Map<String, Value>>(others).unwrap_or_default());
    Value::Object(options).to_string()
}

fn defaults(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..4);
    let Err(error) = Instance::with_options(plugin, &plugin.given, &batch) else {
        return Ok(Outcome::Passed);
    };
    // There is no default of a file of the user's.
    let schema = schema(plugin)?;
    let mut files = declared(&schema).filter(|(_, option)| !option["x-file"].is_null());
    if !files.any(|(name, _)| error.to_string().contains(&format!("`{name}`"))) {
        return Ok(Outcome::failed("an instance with default options", error));
    }
    match Instance::with_options(plugin, &plugin.options, &batch) {
        Ok(_) => Ok(Outcome::Passed),
        Err(error) => Ok(Outcome::failed("an instance with the options of `x-conform`", error)),
    }
}

fn documented(plugin: &Plugin, _: u64) -> Verdict {
    for (name, option) in declared(&schema(plugin)?) {
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

fn unknown(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..4);
    let options = with(Map::from_iter([("no-such-option".to_owned(), json!(1))]), &plugin.options);
    match Instance::with_options(plugin, &options, &batch) {
        Err(error) if error.to_string().contains("no-such-option") => Ok(Outcome::Passed),
        Err(error) => Ok(Outcome::failed("a refusal that names `no-such-option`", error)),
        Ok(_) => Ok(Outcome::failed("a refusal of the option `no-such-option`", "an instance")),
    }
}

/// Number of random values for each option alone, besides the fixed ones.
const RANDOM_VALUES: u64 = 12;

/// Number of sets of random values for all options at once.
const RANDOM_SETS: u64 = 12;

fn fuzz(plugin: &Plugin, seed: u64) -> Verdict {
    let schema = schema(plugin)?;
    let batch = Problem::new(seed).batch(0..1);
    let base: Map<String, Value> = serde_json::from_str(&plugin.options).unwrap_or_default();
    let attempt = |tried: Map<String, Value>| {
        let options = with(base.clone(), &Value::Object(tried).to_string());
        about_to(&format!("use the options {:.200}", options));
        if let Ok(instance) = Instance::with_options(plugin, &options, &batch) {
            // A result and an error are both allowed. The parent process detects a crash.
            let _ = instance.act(&batch);
        }
    };
    for (number, (name, _)) in declared(&schema).enumerate() {
        let random = (0..RANDOM_VALUES).map(|value| random_value(mix(seed ^ mix(number as u64)) ^ value));
        for value in fixed_values().into_iter().chain(random) {
            attempt(Map::from_iter([(name.clone(), value)]));
        }
    }
    for set in 0..RANDOM_SETS {
        let values = declared(&schema)
            .enumerate()
            .map(|(number, (name, _))| (name.clone(), random_value(mix(seed ^ mix(!set)) ^ number as u64)));
        attempt(values.collect());
    }
    Ok(Outcome::Passed)
}

/// Values that often cause errors.
fn fixed_values() -> [Value; 13] {
    [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e-300),
        json!(1e308),
        json!(-1e308),
        json!(i64::MIN),
        json!(""),
        json!("nan"),
        json!("inf"),
        json!([]),
        json!({}),
    ]
}

/// A value of any type. Whole numbers are small or negative: a large one may legitimately need
/// memory or time in proportion.
fn random_value(seed: u64) -> Value {
    let [choice, number, other] = [1, 2, 3].map(|salt| mix(seed ^ mix(salt)));
    let fraction = number as f64 / u64::MAX as f64;
    match choice % 10 {
        0 => json!(fraction),
        1 => json!(-fraction),
        2 => json!((fraction + 0.5) * 10f64.powi(other as i32 % 300)),
        3 => json!(-(fraction + 0.5) * 10f64.powi(other as i32 % 300)),
        4 => json!(number % 4),
        5 => json!(-((number >> 1) as i64)),
        6 => json!(fraction.to_string()),
        7 => json!("\0\u{1f600}".repeat(number as usize % 5000)),
        8 => json!([fraction, null, { "a": [] }]),
        _ => json!({ "a": fraction, "b": { "c": [true] } }),
    }
}
