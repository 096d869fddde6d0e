//! The rules that every plugin must keep, as a list of checks.
//!
//! A check calls one plugin through its exported table, as the host does. The plugin may crash or
//! hang, so checks run in a process of their own. `docs/conformance.md` explains each check: what
//! it protects, and how to repair a plugin that fails it.

mod attack;
mod cargo_test;
mod determinism;
mod errors;
mod hygiene;
mod law;
mod lifecycle;
mod load;
mod model;
mod objective;
mod options;
mod sampler;
mod tensors;
mod toy;

pub use load::Library;

#[doc(hidden)]
pub use cargo_test::check_linked;

use plugin_api::abi::{AttackPlugin, ModelPlugin, ObjectivePlugin, SamplerPlugin};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A plugin to be checked.
pub struct Plugin {
    /// Its exported table.
    pub table: Table,
    /// The options (a JSON object) that the user gave; the others have their defaults.
    given: String,
    /// The options of the instances that are checked: those given, and those that the plugin asks
    /// to be checked with.
    options: String,
}

impl Plugin {
    /// A plugin with the options (a JSON object) that the user gave. The plugin may ask to be
    /// checked with others than its defaults, which the JSON Schema of its options then names as
    /// `x-conform`: a large network asks for a small size.
    pub fn new(table: Table, given: &str) -> Self {
        let mut plugin = Self { table, given: given.to_owned(), options: given.to_owned() };
        if let Some(asked) =
            options::schema(&plugin).ok().and_then(|schema| schema["x-conform"].as_object().cloned())
        {
            plugin.options = options::with(asked, given);
        }
        plugin
    }
}

/// A plugin of one kind.
pub enum Table {
    /// A model.
    Model(ModelPlugin),
    /// A sampler.
    Sampler(SamplerPlugin),
    /// An attack.
    Attack(AttackPlugin),
    /// An objective.
    Objective(ObjectivePlugin),
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The plugin keeps the rule.
    Passed,
    /// The plugin breaks the contract.
    Failed {
        /// The behaviour that the contract requires.
        expected: String,
        /// The behaviour of the plugin.
        got: String,
    },
    /// The process of the check ended, with its status.
    Crashed(String),
    /// The check did not end within the time limit, with the limit.
    TimedOut(String),
    /// The behaviour is allowed, but probably not intended.
    Warning(String),
    /// The check did not run, with the reason.
    Skipped(String),
    /// The check did not run because the named check did not pass.
    Blocked(String),
}

impl Outcome {
    fn failed(expected: impl ToString, got: impl ToString) -> Self {
        Self::Failed { expected: expected.to_string(), got: got.to_string() }
    }

    /// Passed if `good`, otherwise failed with the expected and the actual behaviour.
    fn demand(good: bool, expected: impl ToString, got: impl ToString) -> Self {
        if good { Self::Passed } else { Self::failed(expected, got) }
    }

    /// Whether the plugin broke the contract in this check.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Crashed(_) | Self::TimedOut(_))
    }
}

/// The result of a check's function. An error, which is a failure or a skip, ends the check early.
type Verdict = Result<Outcome, Outcome>;

/// A check of one rule for plugins of some kinds.
pub struct Check {
    /// Its name, in kebab case, group first.
    pub name: &'static str,
    /// The rule, in one sentence.
    pub sentence: &'static str,
    kinds: &'static [&'static str],
    /// The checks that must pass before this one can run.
    needs: &'static [&'static str],
    run: Run,
}

/// The function of a check.
enum Run {
    /// A check of the plugin, which may be linked into the program.
    Plugin(fn(&Plugin, u64) -> Verdict),
    /// A check of the library's file and of loading it.
    Library(fn(&dyn Library, u64) -> Verdict),
}

impl Check {
    /// A check of plugins of every kind, which needs results of the right shape.
    const fn new(name: &'static str, sentence: &'static str, run: fn(&Plugin, u64) -> Verdict) -> Self {
        Self {
            name,
            sentence,
            kinds: &["model", "sampler", "attack", "objective"],
            needs: &["tensors-shape"],
            run: Run::Plugin(run),
        }
    }

    /// A check that needs a program that loads the library.
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

    /// Whether it is a check of plugins of this kind ("model", "sampler", "attack" or "objective").
    pub fn applies_to(&self, kind: &str) -> bool {
        self.kinds.contains(&kind)
    }

    /// Runs the check on a plugin of a library; `seed` decides every random choice.
    pub fn run(&self, library: &dyn Library, seed: u64) -> Outcome {
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

/// All checks, in the order in which they run.
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
        .chain(&law::CHECKS)
        .chain(&attack::CHECKS)
        .chain(&objective::CHECKS)
        .chain(&model::CHECKS)
}

/// The outcomes of one plugin's checks. Each check runs once, after those that it needs.
pub struct Outcomes<RunCheck> {
    run_check: RunCheck,
    known: BTreeMap<&'static str, Outcome>,
}

impl<RunCheck, Error> Outcomes<RunCheck>
where
    RunCheck: FnMut(&'static Check) -> Result<Outcome, Error>,
{
    /// No outcomes yet; `run_check` runs a check.
    pub fn new(run_check: RunCheck) -> Self {
        Self { run_check, known: BTreeMap::new() }
    }

    /// The outcome of a check.
    ///
    /// # Errors
    /// If the check cannot run.
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
            None => (self.run_check)(check)?,
        };
        self.known.insert(check.name, outcome.clone());
        Ok(outcome)
    }

    /// The outcome of a check that already ran.
    pub fn known(&self, check: &Check) -> Option<&Outcome> {
        self.known.get(check.name)
    }
}

type Listener = Box<dyn Fn(&str)>;

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// Sets the listener of this thread. It is called with the next action of a check, where this helps
/// to explain a crash.
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

/// Makes a test program that checks the plugins of the author's own crate through their exported
/// tables. The file `tests/conformance.rs` has the single line
/// `conformance::conformance_tests!(my_idea);`, and `Cargo.toml` has
/// `[[test]] name = "conformance"` and `harness = false`. A plugin that needs options is checked with
/// them: `conformance::conformance_tests!(my_idea, r#"{"file": "weights.bin"}"#);`. A large model
/// asks to be checked in a small size, with `#[schemars(extend("x-conform" = {"width": 4}))]` on its
/// options.
#[macro_export]
macro_rules! conformance_tests {
    ($plugin_crate:ident) => {
        $crate::conformance_tests!($plugin_crate, "{}");
    };
    ($plugin_crate:ident, $options:expr) => {
        // Links the crate and its exported plugins.
        use $plugin_crate as _;

        fn main() {
            $crate::check_linked($options)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_in_kebab_case_and_explained_in_the_docs() {
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
    fn a_needed_check_applies_to_all_kinds_of_the_check_that_needs_it() {
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
    fn a_failed_check_blocks_all_checks_that_need_it() {
        let check = |name: &str| all().find(|check| check.name == name).expect("a check");
        let mut ran = Vec::new();
        let mut outcomes = Outcomes::new(|check: &'static Check| {
            ran.push(check.name);
            Ok::<_, ()>(match check.name {
                "load-libtorch" => Outcome::failed("one", "another"),
                _ => Outcome::Passed,
            })
        });
        assert_eq!(outcomes.of(check("tensors-strides")), Ok(Outcome::Blocked("load-libtorch".to_owned())));
        assert_eq!(outcomes.of(check("load-cold")), Ok(Outcome::Blocked("load-libtorch".to_owned())));
        assert_eq!(outcomes.known(check("load-contract")), Some(&Outcome::Passed));
        assert_eq!(ran, ["load-manifest", "load-contract", "load-libtorch"]);
    }
}
