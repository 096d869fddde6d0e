//! The check of a sweep before any of its runs begins.

use super::{Setting, Sweep};
use crate::config::{Experiment, suite};
use crate::data::{self, Dataset};
use crate::evaluation::evaluator::check_count;
use crate::plugin::{Attack, LoadedModel};
use crate::ranks::Ranks;
use crate::training::Trace;
use crate::training::setup::{check as check_training, check_objective, make_sampler, split};
use crate::util::console::warn;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tch::Device;

/// Refuses a sweep with a run that its plugins or its data make impossible.
///
/// # Errors
/// Names the first such run and its mistake.
pub(crate) fn check(sweep: &Sweep) -> Result<()> {
    let mut checker = Checker::default();
    for Setting { name, experiment, .. } in &sweep.settings {
        checker.check(experiment, &sweep.evaluations).map_err(|error| error.note("run", name))?;
    }
    Ok(())
}

/// The name of a data set and the folder of named data sets.
type DataKey = (String, PathBuf);

/// What several runs have in common is read or built once.
#[derive(Default)]
struct Checker {
    datasets: BTreeMap<DataKey, Dataset>,
    /// The models that were built, by their data and spec.
    models: Vec<(DataKey, String)>,
}

impl Checker {
    fn check(&mut self, experiment: &Experiment, evaluations: &[Option<String>]) -> Result<()> {
        let key = (experiment.data.name.clone(), experiment.data.folder.clone());
        if !self.datasets.contains_key(&key) {
            let dataset = data::load(&key.0, &key.1)?;
            dataset.findings()?.iter().for_each(warn);
            self.datasets.insert(key.clone(), dataset);
        }
        let dataset = &self.datasets[&key];
        let model = (key, experiment.model.to_string());
        if !self.models.contains(&model) {
            // On the CPU: the process that trains refuses a missing GPU.
            LoadedModel::build(&experiment.model, dataset.task(), Device::Cpu, 0)?;
            self.models.push(model);
        }
        let sampler = experiment.sampler.0.as_ref();
        let sampler = sampler.map(|spec| make_sampler(spec, &experiment.train)).transpose()?;
        check_training(experiment, dataset, sampler.as_ref())?;
        let (points, _) = split(experiment, dataset)?;
        check_objective(experiment, dataset, points, sampler.is_some())?;
        if let Some(probe) = &experiment.train.probe {
            Attack::make(probe)?.supports(&experiment.threat, &dataset.task())?;
        }
        Trace::make(experiment, dataset, Device::Cpu, &Ranks::alone())?;
        for evaluation in evaluations {
            check_count(experiment.eval.points, dataset.test.count() as usize)?;
            let specs = match evaluation {
                Some(suite) => &suite::attacks(suite)?,
                None => &experiment.eval.attacks,
            };
            let attacks: Vec<_> = specs.iter().map(Attack::make).collect::<Result<_>>()?;
            let runs = |attack: &Attack| attack.supports(&experiment.threat, &dataset.task()).is_ok();
            if !attacks.iter().any(runs) {
                return Err(Error::new("none of the attacks to evaluate with can run here"));
            }
        }
        Ok(())
    }
}
