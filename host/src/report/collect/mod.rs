//! The contents of runs and sweeps, read for a report.

mod commands;
mod distances;
mod examples;
mod pairs;
mod run;
mod sweep;

pub(super) use commands::shell_words;
pub(super) use distances::Distances;
pub(super) use examples::{Example, Strip};
pub(super) use pairs::{CollectedCheck, PicturedPair};
pub(super) use run::{Run, SavedEvaluation};
pub(super) use sweep::CollectedSweep;

use crate::config::Data;
use crate::data::Dataset;
use crate::run::{self as run_folder, RunFolder, RunRecord};
use crate::sweep::folder::SweepFolder;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The contents of a report.
pub(crate) struct Collection {
    /// The runs in the order given; a sweep's in the order of its summary.
    pub runs: Vec<Run>,
    /// The sweeps.
    pub sweeps: Vec<CollectedSweep>,
    /// The results of `host data check`.
    pub checks: Vec<CollectedCheck>,
}

impl Collection {
    /// The number of gaps in the report.
    pub(crate) fn gaps(&self) -> usize {
        let of_runs = self.runs.iter().flat_map(|run| &run.gaps);
        let of_sweeps = self.sweeps.iter().flat_map(|sweep| &sweep.gaps);
        of_runs.chain(of_sweeps).chain(self.checks.iter().flat_map(|check| &check.gaps)).count()
    }
}

/// A part of a report that is missing.
#[derive(Debug, Clone)]
pub(crate) struct Gap {
    /// The part of the report.
    pub part: Part,
    /// The missing part, and the reason.
    pub what: String,
    /// A command that fills the gap, or other advice.
    pub fix: String,
}

/// The parts of a report that a run fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The training curves.
    Curves,
    /// The error against passes.
    Trace,
    /// The robust accuracies.
    Evaluations,
    /// The image strip.
    Examples,
    /// The histogram of distances.
    Distances,
    /// How far the particles are from the law.
    Diagnosis,
    /// The images of a data check.
    Pairs,
}

/// The record of a run. Every run's folder begins with it.
const RUN_FILE: &str = "run.json";

/// Reads runs and sweeps.
pub(crate) struct Collector<'a> {
    /// Where data lie now; none for the place that each run recorded.
    data_folder: Option<&'a Path>,
    /// Where plugins lie now; none for the place that each run recorded.
    plugins: Option<&'a Path>,
    /// Whether plugins and data that have changed since the run are loaded.
    allow_changed: bool,
    datasets: BTreeMap<(String, PathBuf), Rc<Dataset>>,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(data_folder: Option<&'a Path>, plugins: Option<&'a Path>, allow_changed: bool) -> Self {
        Self { data_folder, plugins, allow_changed, datasets: BTreeMap::new() }
    }

    /// Reads the folders of runs and sweeps, each run once, and the files of data checks.
    ///
    /// # Errors
    /// If a folder is neither a run's nor a sweep's, or a file or a run's record is damaged.
    pub(crate) fn collect(&mut self, paths: &[PathBuf]) -> Result<Collection> {
        let (mut sweeps, mut found, mut checks) = (Vec::new(), Vec::new(), Vec::new());
        for path in paths {
            let folder = SweepFolder::at(path);
            if path.is_file() {
                checks.push((path, pairs::read(path)?));
            } else if folder.is_sweep() {
                let (sweep, runs) = sweep::read(&folder)?;
                sweeps.push(sweep);
                found.extend(runs);
            } else if path.join(RUN_FILE).is_file() {
                found.push(path.clone());
            } else {
                let file = folder.copy();
                return Err(Error::new(format!(
                    "{} holds neither a run nor a sweep: both {RUN_FILE} and {} are missing",
                    path.display(),
                    file.file_name().unwrap_or_default().display()
                ))
                .fix("give the folders that `host train` or `host sweep` wrote (their --out), or the file of `host data check --out`"));
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
        // All records are read first, so that a damaged one is refused before any long work.
        let opened: Vec<_> = found.iter().map(|path| RunFolder::open(path)).collect::<Result<_>>()?;
        let names = names(&found);
        let runs =
            opened.into_iter().zip(names).map(|((folder, record), name)| self.run(folder, record, name));
        let runs = runs.collect();
        let checks = checks.into_iter().map(|(path, check)| self.check(path, check)).collect();
        Ok(Collection { runs, sweeps, checks })
    }

    fn run(&mut self, folder: RunFolder, record: RunRecord, name: String) -> Run {
        let mut run = Run::read(&folder, record, name);
        match self.examples(&folder, &run) {
            Ok(examples) => run.examples = Some(examples),
            Err(gap) => run.gaps.push(gap),
        }
        match self.distances(&folder, &run) {
            Ok(distances) => run.distances = distances,
            Err(gap) => run.gaps.push(gap),
        }
        run.read_diagnosis(&folder);
        run
    }

    /// Data that were recorded with these checksums. Data sets of several runs are read once.
    fn dataset(&mut self, data: &Data, checksums: &BTreeMap<String, String>) -> Result<Rc<Dataset>> {
        let key = (data.name.clone(), data.folder.clone());
        let dataset = match self.datasets.get(&key) {
            Some(dataset) => Rc::clone(dataset),
            None => Rc::new(run_folder::recorded_data(data, self.data_folder)?),
        };
        self.datasets.insert(key, Rc::clone(&dataset));
        run_folder::check_data(&dataset, checksums, &mut run_folder::unless(self.allow_changed))?;
        Ok(dataset)
    }
}

/// The last part of a path.
fn last_part(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    absolute.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Names of paths: of each as few of its last parts as no other path has.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let whole: Vec<_> =
        paths.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    let last = |path: &Path, parts: usize| -> PathBuf {
        let all: Vec<_> = path.components().collect();
        all[all.len().saturating_sub(parts)..].iter().collect()
    };
    let name = |path: &PathBuf| {
        let mut lengths = 1..=path.components().count();
        let parts = lengths.find(|parts| {
            whole.iter().filter(|other| last(other, *parts) == last(path, *parts)).count() == 1
        });
        last(path, parts.unwrap_or(1)).display().to_string()
    };
    whole.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_as_few_parts_of_a_path_as_differ() {
        let paths = ["a/x/demo", "b/x/demo", "b/x/other"].map(PathBuf::from);
        assert_eq!(names(&paths), ["a/x/demo", "b/x/demo", "other"]);
        assert_eq!(names(&paths[1..]), ["demo", "other"]);
    }
}
