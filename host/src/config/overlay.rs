//! Keys laid over an experiment: flags over a file's, a sweep's axes over its base.

use super::Experiment;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use toml::{Table, Value};

impl Experiment {
    /// This experiment as a table, every default spelled out.
    ///
    /// # Errors
    /// If a number is larger than TOML's largest.
    pub(crate) fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(Error::new)
    }

    /// This experiment with the keys that `keys` sets (a table like an experiment's, in part).
    ///
    /// # Errors
    /// If a key is not known or has a value of another type.
    pub fn with(&self, keys: &impl Serialize) -> Result<Self> {
        let mut table = self.table()?;
        let keys = Table::try_from(keys).map_err(Error::new)?;
        merge(&mut table, &keys);
        let mut changed = Self::deserialize(table).map_err(|why| Error::new(one_line(&why)))?;
        for (role, spec) in changed.plugins_mut() {
            spec.origin = self.origin_of(role, spec);
        }
        Ok(changed)
    }

    /// The keys, dotted, in which this experiment differs from another, with its own value (null where
    /// it has none).
    pub fn differences(&self, other: &Self) -> Vec<(String, Json)> {
        let mut found = Vec::new();
        differences("", &serde_json::json!(self), &serde_json::json!(other), &mut found);
        found
    }
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

/// A message of TOML's in one line.
pub(crate) fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', "; ")
}

/// Sets every key of `keys` in `table`; tables are merged into those that are there.
pub(crate) fn merge(table: &mut Table, keys: &Table) {
    keys.iter().for_each(|(key, value)| place(table, key, value));
}

/// Sets the value at a dotted key; a table is merged into the one that is there.
pub(crate) fn place(table: &mut Table, key: &str, value: &Value) {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let slot = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    match (rest, slot, value) {
        (Some(rest), Value::Table(inner), _) => place(inner, rest, value),
        (None, Value::Table(inner), Value::Table(new)) => merge(inner, new),
        (None, slot, _) => *slot = value.clone(),
        // A key below something that is no table: the experiment refuses it by its type.
        (Some(rest), slot, _) => {
            let mut inner = Table::new();
            place(&mut inner, rest, value);
            *slot = Value::Table(inner);
        }
    }
}
