//! Experiments as older versions recorded them.

use super::Experiment;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

/// Reads the experiment of a record. Objectives were names before they were plugins, and the weight of
/// TRADES was an option of its own.
///
/// # Errors
/// If it is no experiment.
pub(crate) fn of_a_record<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Experiment, D::Error> {
    let mut written = Value::deserialize(deserializer)?;
    if let Some(train) = written.get_mut("train").and_then(Value::as_object_mut) {
        let beta = train.remove("trades_beta").and_then(|beta| beta.as_f64());
        let plugin = match train.get("objective").and_then(Value::as_str) {
            Some("cross-entropy") => Some("cross_entropy.so".to_owned()),
            Some("trades") => Some(format!("trades.so,beta={}", beta.unwrap_or(6.0))),
            _ => None,
        };
        if let Some(plugin) = plugin {
            train.insert("objective".to_owned(), plugin.into());
        }
    }
    serde_json::from_value(written).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objectives_of_older_records_are_the_plugins_that_they_became() {
        for (written, expected) in [
            (json!({"objective": "cross-entropy", "trades_beta": null}), "cross_entropy.so"),
            (json!({"objective": "trades", "trades_beta": null}), "trades.so,beta=6"),
            (json!({"objective": "trades", "trades_beta": 2.5}), "trades.so,beta=2.5"),
            (json!({"objective": "mart.so,beta=5"}), "mart.so,beta=5"),
        ] {
            let read = of_a_record(json!({"train": written})).expect("an experiment");
            assert_eq!(read.train.objective.to_string(), expected);
        }
        assert!(of_a_record(json!({"train": {"objectives": "a"}})).is_err(), "an unknown key");
    }
}
