//! The checks as tests of the plugin author's `cargo test`.

use crate::{Check, Library, Outcome, Outcomes, Plugin, Run, Table, all};
use libtest_mimic::{Arguments, Trial};
use plugin_api::{abi, tch};
use std::sync::{Arc, Mutex, PoisonError};

/// A plugin that is linked into this program, so there is no library to load.
struct Linked(Plugin);

impl Library for Linked {
    fn plugin(&self) -> Result<&Plugin, String> {
        Ok(&self.0)
    }
}

/// Runs every check, as a test of its own, on every plugin that is linked into this program, with
/// these options. [`conformance_tests!`](crate::conformance_tests) calls it.
pub fn check_linked(options: &str) -> ! {
    let mut arguments = Arguments::from_args();
    // Checks measure the whole process: its memory, threads and open files.
    arguments.test_threads = Some(1);
    tch::set_num_threads(1);
    let abi::Plugins { models, samplers, attacks, objectives } = abi::linked();
    let models = models.into_iter().map(|model| ("model", model.name.clone(), Table::Model(model)));
    let samplers =
        samplers.into_iter().map(|sampler| ("sampler", sampler.name.clone(), Table::Sampler(sampler)));
    let attacks = attacks.into_iter().map(|attack| ("attack", attack.name.clone(), Table::Attack(attack)));
    let objectives = objectives
        .into_iter()
        .map(|objective| ("objective", objective.name.clone(), Table::Objective(objective)));
    let trials = models
        .chain(samplers)
        .chain(attacks)
        .chain(objectives)
        .flat_map(|(kind, name, table)| trials(kind, &name, Plugin::new(table, options)));
    libtest_mimic::run(&arguments, trials.collect()).exit()
}

fn trials(kind: &str, name: &str, plugin: Plugin) -> Vec<Trial> {
    let linked = Linked(plugin);
    // Checks that need a process without the plugin run only in `host conform`.
    let run_check = move |check: &'static Check| match check.run {
        Run::Plugin(_) => Ok::<_, String>(check.run(&linked, 1)),
        Run::Library(_) => Ok(Outcome::Skipped("only `host conform` loads libraries".to_owned())),
    };
    let outcomes = Arc::new(Mutex::new(Outcomes::new(run_check)));
    let trial = |check: &'static Check| {
        let outcomes = Arc::clone(&outcomes);
        let trial = Trial::test(format!("{name} {}", check.name), move || {
            match outcomes.lock().unwrap_or_else(PoisonError::into_inner).of(check)? {
                Outcome::Failed { expected, got } => {
                    Err(format!("{}\nexpected  {expected}\ngot       {got}", check.sentence).into())
                }
                Outcome::Blocked(by) => Err(format!("did not run: blocked by {by}").into()),
                _ => Ok(()),
            }
        });
        match check.run {
            Run::Plugin(_) => trial,
            Run::Library(_) => trial.with_kind("only `host conform` loads").with_ignored_flag(true),
        }
    };
    all().filter(|check| check.applies_to(kind)).map(trial).collect()
}
