//! Suites: lists of attacks that run in order, each on the points that are still robust.

use crate::config::{from_toml, origin, read_text};
use crate::plugin::PluginSpec;
use crate::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// The suites that are known by name, and the texts of their files.
pub const KNOWN: [(&str, &str); 3] = [
    ("autoattack", include_str!("../../suites/autoattack.toml")),
    ("autoattack-plus", include_str!("../../suites/autoattack-plus.toml")),
    ("autoattack-rand", include_str!("../../suites/autoattack-rand.toml")),
];

/// The file of a suite.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Attack or sampler plugins, in the order in which they run.
    attacks: Vec<toml::Spanned<PluginSpec>>,
}

/// The attacks of a suite, given its name or file.
///
/// # Errors
/// If there is no such suite or file, or the file has an unknown key, an invalid plugin spec or no
/// attack.
pub fn attacks(suite: &str) -> Result<Vec<PluginSpec>> {
    let text = match KNOWN.iter().find(|(name, _)| *name == suite) {
        Some((_, text)) => (*text).to_owned(),
        None if Path::new(suite).is_file() => read_text(Path::new(suite))?,
        None => {
            let known: Vec<_> = KNOWN.iter().map(|(name, _)| *name).collect();
            return Err(Error::new(format!("there is no suite `{suite}`, nor a file of that name"))
                .note("suites", known.join(", "))
                .fix("choose one of these, or a TOML file with a list `attacks`"));
        }
    };
    let Suite { attacks } = from_toml(&text, suite)?;
    if attacks.is_empty() {
        return Err(Error::new(format!("{suite}: `attacks` is empty: expected at least one attack")));
    }
    let with_origin = |spec: toml::Spanned<PluginSpec>| {
        let place = origin(&text, suite, spec.span().start);
        let mut spec = spec.into_inner();
        spec.origin = Some(place);
        spec
    };
    Ok(attacks.into_iter().map(with_origin).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_suite_can_be_read() {
        for (name, _) in KNOWN {
            assert!(attacks(name).expect("valid").len() >= 2, "{name}");
        }
    }

    #[test]
    fn a_suite_is_read_from_a_file_and_errors_name_the_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            attacks(&path.display().to_string())
        };
        let specs = read("attacks = [\"pgd.so,steps=3\",\n\"square.so\"]").expect("valid");
        assert_eq!(specs[0].to_string(), "pgd.so,steps=3");
        assert!(specs[1].origin.as_deref().is_some_and(|place| place.ends_with("mine.toml, line 2")));
        for (text, expected) in [
            ("attacks = []", "`attacks` is empty"),
            ("attacks = [\"pgd.so\"]\nrestarts = 3", "mine.toml, line 2: unknown field `restarts`"),
            ("attacks = [\"pgd.so,x\"]", "mine.toml, line 1: expected option=value"),
        ] {
            let error = read(text).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(attacks("autoatack").expect_err("refused").to_string().contains("no suite `autoatack`"));
    }
}
