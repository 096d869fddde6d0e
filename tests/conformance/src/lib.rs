//! What every plugin must do, as a list of checks.
//!
//! A check judges one plugin through its exported table, as the host would use it. It may
//! crash or hang with the plugin: whoever runs checks does so in a process that can be lost.
//! `docs/conformance.md` says of each what it protects and how to mend what it finds.

mod attack;
mod cargo_test;
mod determinism;
mod errors;
mod hygiene;
mod lifecycle;
mod load;
mod model;
mod options;
mod sampler;
mod tensors;
mod toy;

pub use load::Library;

#[doc(hidden)]
pub use cargo_test::judge_linked;

use plugin_api::abi::{AttackPlugin, ModelPlugin, SamplerPlugin};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A plugin to be judged.
pub struct Plugin {
    /// What it can do.
    pub table: Table,
    /// The options, a JSON object, that it is judged with wherever a check does not try others:
    /// `{}` for the defaults.
    pub options: String,
}

/// A plugin of one kind.
pub enum Table {
    /// A model.
    Model(ModelPlugin),
    /// A sampler.
    Sampler(SamplerPlugin),
    /// An attack.
    Attack(AttackPlugin),
}

/// What became of a check.
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
    /// The judging process ended, and how.
    Crashed(String),
    /// The check took longer than it may, and how long that is.
    TimedOut(String),
    /// Allowed, but hardly meant.
    Warning(String),
    /// Not judged, and why.
    Skipped(String),
    /// Not judged because the check named was not passed.
    Blocked(String),
}

impl Outcome {
    fn failed(expected: impl ToString, got: impl ToString) -> Self {
        Self::Failed { expected: expected.to_string(), got: got.to_string() }
    }

    /// Passed, or failed with what was got.
    fn demand(good: bool, expected: impl ToString, got: impl ToString) -> Self {
        if good { Self::Passed } else { Self::failed(expected, got) }
    }

    /// Whether the plugin broke the contract in this check.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Crashed(_) | Self::TimedOut(_))
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
    kinds: &'static [&'static str],
    /// The checks without which this one says nothing.
    needs: &'static [&'static str],
    run: Run,
}

/// What a check looks at.
enum Run {
    /// The plugin: also where it is linked into the judging program.
    Plugin(fn(&Plugin, u64) -> Verdict),
    /// The library, and how it is loaded.
    Library(fn(&dyn Library, u64) -> Verdict),
}

impl Check {
    /// A check that calls plugins of every kind, and whose results count once they have the
    /// right shape.
    const fn new(name: &'static str, sentence: &'static str, run: fn(&Plugin, u64) -> Verdict) -> Self {
        Self {
            name,
            sentence,
            kinds: &["model", "sampler", "attack"],
            needs: &["tensors-shape"],
            run: Run::Plugin(run),
        }
    }

    /// A check that only a program can make that loads the library itself.
    const fn of_library(
        name: &'static str,
        sentence: &'static str,
        run: fn(&dyn Library, u64) -> Verdict,
    ) -> Self {
        Self { run: Run::Library(run), ..Self::new(name, sentence, |_, _| Ok(Outcome::Passed)) }
    }

    const fn of(self, kinds: &'static [&'static str]) -> Self {
        Self { kinds, ..self }
    }

    const fn after(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }

    /// Whether plugins of this kind ("model", "sampler" or "attack") are asked.
    pub fn applies_to(&self, kind: &str) -> bool {
        self.kinds.contains(&kind)
    }

    /// Judges a plugin of a library; `seed` decides every random choice of the check.
    pub fn judge(&self, library: &dyn Library, seed: u64) -> Outcome {
        hygiene::before_all_calls();
        let verdict = match self.run {
            Run::Library(run) => run(library, seed),
            Run::Plugin(run) => match library.plugin() {
                Ok(plugin) => run(plugin, seed),
                Err(why) => Err(Outcome::failed("a library that can be opened", why)),
            },
        };
        verdict.unwrap_or_else(|early| early)
    }
}

/// Every check there is, in the order in which they are run.
pub fn all() -> impl Iterator<Item = &'static Check> {
    load::CHECKS
        .iter()
        .chain(&options::CHECKS)
        .chain(&tensors::CHECKS)
        .chain(&determinism::CHECKS)
        .chain(&hygiene::CHECKS)
        .chain(&errors::CHECKS)
        .chain(&lifecycle::CHECKS)
        .chain(&sampler::CHECKS)
        .chain(&attack::CHECKS)
        .chain(&model::CHECKS)
}

/// The outcomes of one plugin's checks: each is judged once, after those that it needs.
pub struct Outcomes<Judge> {
    judge: Judge,
    known: BTreeMap<&'static str, Outcome>,
}

impl<Judge, Error> Outcomes<Judge>
where
    Judge: FnMut(&'static Check) -> Result<Outcome, Error>,
{
    /// None yet; `judge` is how they are found.
    pub fn new(judge: Judge) -> Self {
        Self { judge, known: BTreeMap::new() }
    }

    /// The outcome of a check.
    ///
    /// # Errors
    /// If it cannot be judged at all.
    pub fn of(&mut self, check: &'static Check) -> Result<Outcome, Error> {
        if let Some(known) = self.known(check) {
            return Ok(known.clone());
        }
        let mut blocker = None;
        for needed in all().filter(|other| check.needs.contains(&other.name)) {
            match self.of(needed)? {
                Outcome::Blocked(by) => blocker = Some(by),
                bad if bad.is_bad() => blocker = Some(needed.name.to_owned()),
                _ => {}
            }
            if blocker.is_some() {
                break;
            }
        }
        let outcome = match blocker {
            Some(by) => Outcome::Blocked(by),
            None => (self.judge)(check)?,
        };
        self.known.insert(check.name, outcome.clone());
        Ok(outcome)
    }

    /// The outcome of a check that was judged.
    pub fn known(&self, check: &Check) -> Option<&Outcome> {
        self.known.get(check.name)
    }
}

type Listener = Box<dyn Fn(&str)>;

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// Has `listener` told, on this thread, what a check is about to do wherever that is worth
/// knowing after a crash.
pub fn listen(listener: impl Fn(&str) + 'static) {
    LISTENER.set(Some(Box::new(listener)));
}

fn about_to(what: &str) {
    LISTENER.with_borrow(|listener| {
        if let Some(listener) = listener {
            listener(what);
        }
    });
}

/// Makes a test program that judges the plugins of the author's own crate through their
/// exported tables: `conformance::conformance_tests!(my_idea);`, the whole of
/// `tests/conformance.rs`, with `[[test]] name = "conformance"` and `harness = false` in
/// `Cargo.toml`. A plugin that is large under its default options is judged sooner under others:
/// `conformance::conformance_tests!(my_idea, r#"{"width": 4}"#);`.
#[macro_export]
macro_rules! conformance_tests {
    ($plugin_crate:ident) => {
        $crate::conformance_tests!($plugin_crate, "{}");
    };
    ($plugin_crate:ident, $options:expr) => {
        // Links the crate, and with it what it exports.
        use $plugin_crate as _;

        fn main() {
            $crate::judge_linked($options)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_kebab_case_and_explained() {
        let pages = include_str!("../../../docs/conformance.md");
        let mut names: Vec<_> = all().map(|check| check.name).collect();
        for name in &names {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
            assert!(pages.contains(&format!("### {name}\n")), "docs/conformance.md has no section {name}");
        }
        let sections = pages.lines().filter_map(|line| line.strip_prefix("### "));
        for section in sections {
            assert!(names.contains(&section), "docs/conformance.md explains {section}, which is no check");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn what_a_check_needs_is_a_check_of_every_plugin_it_applies_to() {
        for check in all() {
            for name in check.needs {
                let needed = all().find(|other| other.name == *name);
                let needed =
                    needed.unwrap_or_else(|| panic!("{} needs {name}, which is no check", check.name));
                assert!(check.kinds.iter().all(|kind| needed.applies_to(kind)), "{} {name}", check.name);
            }
        }
    }

    #[test]
    fn a_bad_outcome_blocks_whatever_needs_it_and_names_itself() {
        let check = |name: &str| all().find(|check| check.name == name).expect("a check");
        let mut judged = Vec::new();
        let mut outcomes = Outcomes::new(|check: &'static Check| {
            judged.push(check.name);
            Ok::<_, ()>(match check.name {
                "load-libtorch" => Outcome::failed("one", "another"),
                _ => Outcome::Passed,
            })
        });
        assert_eq!(outcomes.of(check("tensors-strides")), Ok(Outcome::Blocked("load-libtorch".to_owned())));
        assert_eq!(outcomes.of(check("load-cold")), Ok(Outcome::Blocked("load-libtorch".to_owned())));
        assert_eq!(outcomes.known(check("load-contract")), Some(&Outcome::Passed));
        assert_eq!(judged, ["load-manifest", "load-contract", "load-libtorch"]);
    }
}
