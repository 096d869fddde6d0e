//! What every plugin must do, as a list of checks.
//!
//! A check judges one plugin through its exported table, as the host would use it. It may
//! crash or hang with the plugin: whoever runs checks does so in a process that can be lost.
//! `docs/conformance.md` says of each what it protects and how to mend what it finds.

mod attack;
mod common;
mod model;
mod sampler;
mod toy;

use plugin_api::abi::{AttackPlugin, ModelPlugin, SamplerPlugin};
use serde::{Deserialize, Serialize};

/// A plugin to be judged.
pub enum Plugin {
    /// A model.
    Model(ModelPlugin),
    /// A sampler.
    Sampler(SamplerPlugin),
    /// An attack.
    Attack(AttackPlugin),
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing to complain of.
    Passed,
    /// The contract is broken.
    Failed {
        /// What the contract asks for.
        expected: String,
        /// What the plugin did.
        got: String,
    },
    /// Allowed, but hardly meant.
    Warning(String),
    /// Not judged, and why.
    Skipped(String),
}

impl Outcome {
    fn failed(expected: impl ToString, got: impl ToString) -> Self {
        Self::Failed { expected: expected.to_string(), got: got.to_string() }
    }

    /// Passed, or failed with what was got.
    fn demand(good: bool, expected: impl ToString, got: impl ToString) -> Self {
        if good { Self::Passed } else { Self::failed(expected, got) }
    }
}

/// Inside a check, what ends it early: a failure or a skip.
type Verdict = Result<Outcome, Outcome>;

/// One thing that every plugin of some kinds must do.
pub struct Check {
    /// Its name, in kebab case, group first.
    pub name: &'static str,
    /// What it asks for, in one sentence.
    pub sentence: &'static str,
    /// The kinds of plugin that are asked: "model", "sampler", "attack".
    kinds: &'static [&'static str],
    run: fn(&Plugin, u64) -> Verdict,
}

impl Check {
    /// Whether plugins of this kind ("model", "sampler" or "attack") are asked.
    pub fn applies_to(&self, kind: &str) -> bool {
        self.kinds.contains(&kind)
    }

    /// Judges a plugin; `seed` decides every random choice of the check.
    pub fn judge(&self, plugin: &Plugin, seed: u64) -> Outcome {
        (self.run)(plugin, seed).unwrap_or_else(|early| early)
    }
}

/// Every check there is, in the order in which they are run.
pub fn all() -> impl Iterator<Item = &'static Check> {
    common::CHECKS.iter().chain(&sampler::CHECKS).chain(&attack::CHECKS).chain(&model::CHECKS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_in_kebab_case_and_explained() {
        let pages = include_str!("../../../docs/conformance.md");
        let mut names: Vec<_> = super::all().map(|check| check.name).collect();
        for name in &names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
            assert!(pages.contains(&format!("### {name}\n")), "docs/conformance.md has no section {name}");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
