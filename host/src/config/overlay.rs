//! Overriding keys of an experiment: by flags, or by the axes of a sweep.

use super::Experiment;
use crate::plugin::Threat;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml::{Table, Value};

impl Experiment {
    /// This experiment as a table with all keys, including defaults.
    ///
    /// # Errors
    /// If a number is too large for TOML.
    pub(crate) fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(Error::new)
    }

    /// This experiment with the values of `keys`, a table with some of the keys of an experiment.
    ///
    /// # Errors
    /// If a key is unknown or has a value of the wrong type.
    pub fn with(&self, keys: &impl Serialize) -> Result<Self> {
        let mut table = self.table()?;
        let keys = Table::try_from(keys).map_err(Error::new)?;
        check_norm(&self.threat, &keys)?;
        merge(&mut table, &keys);
        let mut changed = Self::deserialize(table).map_err(|why| Error::new(one_line(&why)))?;
        for (role, spec) in changed.plugins_mut() {
            spec.origin = self.origin_of(role, spec);
        }
        Ok(changed)
    }

    /// The dotted keys in which this experiment differs from another, with the values of this
    /// experiment (null if unset).
    pub fn differences(&self, other: &Self) -> Vec<(String, Json)> {
        let mut found = Vec::new();
        differences("", &serde_json::json!(self), &serde_json::json!(other), &mut found);
        found
    }
}

/// Refuses keys that change the norm of a threat model and keep its radius.
///
/// # Errors
/// If `keys`, which are laid over an experiment with the threat model `base`, do so.
pub(crate) fn check_norm(base: &Threat, keys: &Table) -> Result<()> {
    let threat = keys.get("threat").and_then(Value::as_table);
    let key = |name: &str| threat.and_then(|threat| threat.get(name));
    match key("norm").and_then(Value::as_str) {
        Some(norm) if norm != base.norm.name() && key("epsilon").is_none() => Err(norm_alone(base, norm)),
        _ => Ok(()),
    }
}

/// The error of a norm that is given without a radius, where `base` has one for another norm.
pub(crate) fn norm_alone(base: &Threat, norm: &str) -> Error {
    let Threat { norm: other, epsilon, .. } = base;
    Error::new(format!("threat.norm: {norm} needs an epsilon of its own: {epsilon} is a radius in {other}"))
        .fix("give threat.epsilon (--epsilon) too")
}

fn differences(prefix: &str, one: &Json, other: &Json, found: &mut Vec<(String, Json)>) {
    if let (Json::Object(ones), Json::Object(others)) = (one, other) {
        let mut keys: Vec<_> = ones.keys().chain(others.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            differences(&format!("{prefix}.{key}"), &one[key], &other[key], found);
        }
    } else if one != other {
        found.push((prefix.trim_start_matches('.').to_owned(), one.clone()));
    }
}

/// The message of a TOML error on one line.
pub(crate) fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', "; ")
}

/// Sets every key of `keys` in `table`. Tables are merged into existing tables.
pub(crate) fn merge(table: &mut Table, keys: &Table) {
    keys.iter().for_each(|(key, value)| place(table, key, value));
}

/// Sets the value of a dotted key. A table is merged into an existing table.
pub(crate) fn place(table: &mut Table, key: &str, value: &Value) {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let slot = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    match (rest, slot, value) {
        (Some(rest), Value::Table(inner), _) => place(inner, rest, value),
        (None, Value::Table(inner), Value::Table(new)) => merge(inner, new),
        (None, slot, _) => *slot = value.clone(),
        // A key below a value that is not a table. The experiment later refuses it by its type.
        (Some(rest), slot, _) => {
            let mut inner = Table::new();
            place(&mut inner, rest, value);
            *slot = Value::Table(inner);
        }
    }
}
