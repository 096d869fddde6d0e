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

use plugin_api::abi::{self, AttackPlugin, ModelPlugin, SamplerPlugin};
use plugin_api::tch;
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

    /// Not judged, because another check that failed comes first.
    pub fn blocked_by(check: &str) -> Self {
        Self::Skipped(format!("blocked by {check}"))
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

    /// The check without which this one cannot be judged: nothing can be said of results where
    /// a call gives none.
    pub fn needs(&self) -> Option<&'static str> {
        let independent =
            self.name.starts_with("options-") || ["tensors-result", "lifecycle-many"].contains(&self.name);
        (!independent).then_some("tensors-result")
    }

    /// Judges a plugin; `seed` decides every random choice of the check.
    pub fn judge(&self, plugin: &Plugin, seed: u64) -> Outcome {
        let threads = tch::get_num_threads();
        let outcome = (self.run)(plugin, seed).unwrap_or_else(|early| early);
        if tch::get_num_threads() != threads {
            tch::set_num_threads(threads);
        }
        outcome
    }
}

/// Every check there is, in the order in which they are run.
pub fn all() -> impl Iterator<Item = &'static Check> {
    common::CHECKS.iter().chain(&sampler::CHECKS).chain(&attack::CHECKS).chain(&model::CHECKS)
}

/// Judges every plugin that is linked into this program, each check as a test of its own.
/// Called by [`conformance_tests!`].
#[doc(hidden)]
pub fn run_linked() -> ! {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // Checks look at the whole process: its memory, threads and open files.
    arguments.test_threads = Some(1);
    let abi::Plugins { models, samplers, attacks } = abi::linked();
    let named = |kind, name: &str, plugin| (kind, name.to_owned(), plugin);
    let plugins = models.into_iter().map(|model| named("model", &model.name.clone(), Plugin::Model(model)));
    let plugins = plugins
        .chain(
            samplers
                .into_iter()
                .map(|sampler| named("sampler", &sampler.name.clone(), Plugin::Sampler(sampler))),
        )
        .chain(
            attacks.into_iter().map(|attack| named("attack", &attack.name.clone(), Plugin::Attack(attack))),
        );
    let mut trials = Vec::new();
    for (kind, name, plugin) in plugins {
        let plugin = std::sync::Arc::new(plugin);
        for check in all().filter(|check| check.applies_to(kind)) {
            let plugin = std::sync::Arc::clone(&plugin);
            trials.push(libtest_mimic::Trial::test(format!("{name} {}", check.name), move || {
                match check.judge(&plugin, 1) {
                    Outcome::Failed { expected, got } => {
                        Err(format!("{}\nexpected  {expected}\ngot       {got}", check.sentence).into())
                    }
                    _ => Ok(()),
                }
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit()
}

/// Makes a test program that judges the plugins of the author's own crate through their
/// exported tables: `conformance::conformance_tests!(my_idea);`, the whole of
/// `tests/conformance.rs`, with `[[test]] name = "conformance"` and `harness = false` in
/// `Cargo.toml`.
#[macro_export]
macro_rules! conformance_tests {
    ($plugin_crate:ident) => {
        // Links the crate, and with it what it exports.
        use $plugin_crate as _;

        fn main() {
            $crate::run_linked()
        }
    };
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
