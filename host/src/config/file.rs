//! Experiment files in TOML. Errors name the line.

use super::Experiment;
use super::overlay::{norm_alone, one_line};
use crate::plugin::Threat;
use crate::util::files;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

impl Experiment {
    /// Reads an experiment file.
    ///
    /// # Errors
    /// If it cannot be read, or has an unknown key or a value of the wrong type. The error names
    /// the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses the text of an experiment file; `name` is for error messages.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self> {
        let table = parse_toml(text, name)?;
        if table.get_ref().contains_key("sweep") {
            return Err(Error::new(format!(
                "{name}: expected one experiment, got a sweep: it has a [sweep]"
            ))
            .fix(format!("train and evaluate its runs with `host sweep {name}`, or remove [sweep]")));
        }
        Self::from_table(table, text, name)
    }

    /// The experiment in a TOML table. `text` and `name` are the text and the name of the file of
    /// the table, for error messages. Each plugin spec gets its line as origin.
    pub(crate) fn from_table(table: Spanned<DeTable>, text: &str, name: &str) -> Result<Self> {
        let mut experiment: Self = from_table(table.clone(), text, name)?;
        let (norm, default) = (experiment.threat.norm, Threat::default());
        if let Some(written) = value_at(table.get_ref(), "threat.norm")
            && norm != default.norm
            && value_at(table.get_ref(), "threat.epsilon").is_none()
        {
            let place = origin(text, name, written.span().start);
            return Err(norm_alone(&default, norm.name()).note("in", place));
        }
        let mut attack = 0;
        for (role, spec) in experiment.plugins_mut() {
            let value = value_at(table.get_ref(), role.key());
            let value = if role.is_single() {
                value
            } else {
                attack += 1;
                value.and_then(|list| list.get_ref().as_array()?.get(attack - 1))
            };
            spec.origin = value.map(|value| origin(text, name, value.span().start));
        }
        Ok(experiment)
    }
}

/// Reads a text file that a person wrote.
///
/// # Errors
/// If it cannot be read, or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = files::read(path)?;
    let is_utf_16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let what = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => return Ok(text),
        _ if is_utf_16 => "is UTF-16".to_owned(),
        Ok(_) => "has zero bytes, as UTF-16 or a binary file".to_owned(),
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("has a byte in line {line} that is not UTF-8")
        }
    };
    Err(Error::new(format!("{} {what}: expected a text in UTF-8", path.display()))
        .fix("save it as UTF-8, in the editor or with `iconv -f UTF-16 -t UTF-8`"))
}

/// The value of a dotted key.
fn value_at<'t, 'a>(table: &'t DeTable<'a>, key: &str) -> Option<&'t Spanned<DeValue<'a>>> {
    match key.split_once('.') {
        None => table.get(key),
        Some((first, rest)) => value_at(table.get(first)?.get_ref().as_table()?, rest),
    }
}

/// Parses the text of a TOML file; `name` is for error messages.
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    from_table(parse_toml(text, name)?, text, name)
}

/// Parses the text of a TOML file into a table; `name` is for error messages.
pub(crate) fn parse_toml<'a>(text: &'a str, name: &str) -> Result<Spanned<DeTable<'a>>> {
    DeTable::parse(text).map_err(|error| refused(&error, text, name))
}

/// Deserialises a TOML table. `text` and `name` are the text and the name of its file, for error
/// messages.
pub(crate) fn from_table<T: DeserializeOwned>(table: Spanned<DeTable>, text: &str, name: &str) -> Result<T> {
    T::deserialize(toml::Deserializer::from(table)).map_err(|error| refused(&error, text, name))
}

fn refused(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let start = error.span().map(|span| span.start);
    let place = start.map_or(name.to_owned(), |start| origin(text, name, start));
    Error::new(format!("{place}: {}", one_line(error)))
        .note("line", start.map(|start| line_at(text, start)).unwrap_or_default())
}

/// A place in a file as text: "demo.toml, line 3".
pub(crate) fn origin(text: &str, name: &str, offset: usize) -> String {
    format!("{name}, line {}", line_of(text, offset))
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

fn line_at(text: &str, offset: usize) -> String {
    text.lines().nth(line_of(text, offset) - 1).unwrap_or_default().trim().to_owned()
}
