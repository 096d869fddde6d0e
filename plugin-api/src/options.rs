use crate::{Error, Result};
use schemars::JsonSchema;
use serde::{de::DeserializeOwned, Serialize};
use serde_json::{Map, Value};

/// The options of a plugin: a struct with serde's and schemars' derives and a `Default`.
/// Documentation comments become the help; `#[schemars(range(min = 0.0))]` is both documented and
/// enforced. A plugin without options uses [`NoOptions`].
///
/// * `#[schemars(extend("x-file" = "data"))]` marks an option that names a file. The host refuses
///   one that does not exist, passes its absolute path, and records its SHA-256 with the run.
///   `"code"` instead of `"data"` marks a file whose code the plugin runs: one that only the record
///   of a run names must be trusted.
/// * A field `#[serde(flatten)]` of type `Map<String, Value>` takes every option that has no field.
pub trait PluginOptions: Serialize + DeserializeOwned + JsonSchema + Default {}

impl<T: Serialize + DeserializeOwned + JsonSchema + Default> PluginOptions for T {}

/// The options of a plugin that has none.
#[derive(Debug, Clone, Copy, Default, Serialize, serde::Deserialize, JsonSchema)]
pub struct NoOptions {}

/// The JSON Schema of a plugin's options: names, types, ranges, help and defaults.
pub fn schema<T: PluginOptions>() -> Value {
    let mut schema = schemars::schema_for!(T).to_value();
    let defaults = defaults::<T>();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            if let (Some(property), Some(default)) = (property.as_object_mut(), defaults.get(name)) {
                property.insert("default".to_owned(), default.clone());
            }
        }
    }
    schema
}

/// The user's options; options that are not given have their defaults.
///
/// # Errors
/// If an option is unknown, of the wrong type or out of range. The message names it and the
/// expected values.
pub fn parse<T: PluginOptions>(given: &str) -> Result<T> {
    let given: Map<String, Value> = serde_json::from_str(given)
        .map_err(|error| Error::new(format!("options are not a JSON object: {error}")))?;
    let mut options = defaults::<T>();
    let schema = schema::<T>();
    for (name, value) in given {
        let takes_any = schema["additionalProperties"] == Value::Bool(true);
        if !options.contains_key(&name) && !takes_any {
            let known: Vec<_> = options.keys().map(String::as_str).collect();
            let expected = if known.is_empty() {
                "it takes none".to_owned()
            } else {
                format!("expected one of: {}", known.join(", "))
            };
            return Err(Error::new(format!("unknown option `{name}`; {expected}")));
        }
        check_range(&name, &value, schema["properties"].get(&name).unwrap_or(&Value::Null))?;
        options.insert(name, value);
    }
    serde_path_to_error::deserialize(Value::Object(options))
        .map_err(|error| Error::new(format!("option `{}`: {}", error.path(), error.inner())))
}

fn defaults<T: PluginOptions>() -> Map<String, Value> {
    match serde_json::to_value(T::default()) {
        Ok(Value::Object(defaults)) => defaults,
        _ => Map::new(),
    }
}

fn check_range(name: &str, value: &Value, schema: &Value) -> Result<()> {
    let Some(number) = value.as_f64() else {
        return Ok(());
    };
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let refused = |rule: &str, bound: f64| {
        Err(Error::new(format!("option `{name}`: expected a number {rule} {bound}, got {value}")))
    };
    match (bound("minimum"), bound("maximum"), bound("exclusiveMinimum")) {
        (Some(least), _, _) if number < least => refused("of at least", least),
        (_, Some(most), _) if number > most => refused("of at most", most),
        (_, _, Some(above)) if number <= above => refused("above", above),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// Options with a number in a range, a boolean and an optional number.
    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Example {
        /// Length of a step.
        #[schemars(range(min = 0.0, max = 2.0))]
        step_size: f64,
        sign: bool,
        epsilon: Option<f64>,
    }

    impl Default for Example {
        fn default() -> Self {
            Self { step_size: 0.25, sign: true, epsilon: None }
        }
    }

    fn refusal(given: &str) -> String {
        parse::<Example>(given).expect_err("refused").to_string()
    }

    #[test]
    fn an_option_that_is_not_given_has_its_default() {
        let parsed: Example = parse(r#"{"step_size": 1, "epsilon": 0.5}"#).expect("valid");
        assert_eq!(parsed, Example { step_size: 1.0, sign: true, epsilon: Some(0.5) });
    }

    #[test]
    fn refusals_name_the_option_the_expected_and_the_actual_value() {
        assert_eq!(
            refusal(r#"{"stepsize": 1}"#),
            "unknown option `stepsize`; expected one of: epsilon, sign, step_size"
        );
        assert_eq!(
            refusal(r#"{"step_size": -1}"#),
            "option `step_size`: expected a number of at least 0, got -1"
        );
        assert_eq!(
            refusal(r#"{"step_size": 3.5}"#),
            "option `step_size`: expected a number of at most 2, got 3.5"
        );
        assert_eq!(
            refusal(r#"{"step_size": "x"}"#),
            "option `step_size`: invalid type: string \"x\", expected f64"
        );
        assert_eq!(refusal(r#"{"sign": 1}"#), "option `sign`: invalid type: integer `1`, expected a boolean");
        assert_eq!(
            parse::<NoOptions>(r#"{"a": 1}"#).expect_err("refused").to_string(),
            "unknown option `a`; it takes none"
        );
    }

    /// Options with one that names a file, and any others.
    #[derive(Debug, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
    struct Open {
        /// A file.
        #[schemars(extend("x-file" = "data"))]
        file: String,
        #[serde(flatten)]
        others: Map<String, Value>,
    }

    #[test]
    fn any_option_is_taken_where_the_struct_has_a_place_for_it() {
        let parsed: Open = parse(r#"{"file": "a", "width": 3}"#).expect("valid");
        let others = Map::from_iter([("width".to_owned(), Value::from(3))]);
        assert_eq!(parsed, Open { file: "a".to_owned(), others });
        assert_eq!(schema::<Open>()["properties"]["file"]["x-file"], "data");
    }

    #[test]
    fn the_schema_documents_help_range_and_default() {
        let schema = schema::<Example>();
        let step_size = &schema["properties"]["step_size"];
        assert_eq!(step_size["description"], "Length of a step.");
        assert_eq!(step_size["default"], 0.25);
        assert_eq!(step_size["maximum"], 2.0);
    }
}
