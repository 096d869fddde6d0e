//! The measurements of a run: its epochs, its trace and its evaluations.

use super::{Distances, Gap, Part, Strip};
use crate::diagnosis::record::Diagnosis;
use crate::evaluation::verdict::{Caveat, Evaluation, Verdicts, share};
use crate::plugin::{Record, Threat};
use crate::run::progress::{EpochMetrics, Progress, TracePoint, is_trained};
use crate::run::{RunFolder, RunRecord, Versions, checkpoint};
use crate::{Error, Result};
use plugin_api::Norm;
use serde::Deserialize;
use std::path::PathBuf;

/// A run, and its gaps.
pub(crate) struct Run {
    /// The last part of its path, or as many parts as no other run of the report has.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// Its record.
    pub record: RunRecord,
    /// The finished epochs.
    pub epochs: Vec<EpochMetrics>,
    /// The points of its trace.
    pub trace: Vec<TracePoint>,
    /// The evaluations on test points, oldest first.
    pub evaluations: Vec<SavedEvaluation>,
    /// Adversarial examples.
    pub examples: Option<Strip>,
    /// The distances of its particles from their natural examples.
    pub distances: Option<Distances>,
    /// How far its particles are from the law of its inner problem.
    pub diagnosis: Option<Diagnosis>,
    /// The missing parts.
    pub gaps: Vec<Gap>,
}

/// An entry of `eval.json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SavedEvaluation {
    /// The accuracies.
    pub result: Evaluation,
    /// The suite; none for attacks that were evaluated separately.
    pub suite: Option<String>,
    /// Whether it used held-out training points.
    #[serde(default)]
    validation: bool,
    /// The run whose model the attacks were made on, if another.
    pub source: Option<PathBuf>,
    /// The seed of the attacks.
    pub seed: u64,
    /// The number of times that each attack ran.
    pub restarts: u16,
    /// The update of the evaluated weights.
    pub update: u64,
    /// The threat model that it was judged in; unknown in a file of an older version, where it is the
    /// run's.
    #[serde(default)]
    threat: Option<Threat>,
    /// The plugins of the attacks.
    pub plugins: Vec<Record>,
    /// The software.
    pub versions: Versions,
    /// The file of saved examples.
    pub examples: Option<PathBuf>,
    /// The verdict on every point; an older version did not save them.
    verdicts: Option<Verdicts>,
    /// Its SHA-256; unknown if an older version saved it.
    #[serde(default)]
    pub examples_sha256: Option<String>,
}

impl SavedEvaluation {
    /// Whether its accuracies are those of the verdicts beside them.
    fn agrees_with_its_verdicts(&self) -> bool {
        let Some(verdicts) = &self.verdicts else { return true };
        let Evaluation { count, clean, worst_case, ref attacks, .. } = self.result;
        let whole = |list: &Vec<bool>| list.len() == count;
        if !whole(&verdicts.clean) || !verdicts.attacks.iter().all(whole) || verdicts.indices.len() != count {
            return false;
        }
        // Numbers that were written and read may differ in the last bit.
        let same = |one: f64, other: f64| (one - other).abs() < 1e-9;
        attacks.len() == verdicts.attacks.len()
            && same(clean, share(&verdicts.clean))
            && same(worst_case, share(&verdicts.worst_case()))
            && attacks
                .iter()
                .zip(&verdicts.attacks)
                .all(|(attack, robust)| same(attack.robust, share(robust)))
    }

    /// The threat model that it was judged in, in a run with this one.
    pub(in crate::report) fn threat(&self, of_run: &Threat) -> Threat {
        self.threat.clone().unwrap_or_else(|| of_run.clone())
    }

    /// The number of its points.
    pub(in crate::report) fn points(&self) -> usize {
        self.result.count
    }

    /// The reasons not to trust the evaluation.
    pub(in crate::report) fn caveats(&self) -> &[Caveat] {
        &self.result.caveats
    }
}

/// Refuses a trace that lacks points of the newest checkpoint: digests do not find lines that were
/// removed from the end of the file.
fn whole_trace(folder: &RunFolder, trace: Vec<TracePoint>) -> Result<Vec<TracePoint>> {
    let newest = checkpoint::load::<Progress>(&folder.checkpoints(), &[]).ok().flatten();
    let expected = newest.map_or(0, |newest| newest.progress.trace.len());
    if !trace.is_empty() && trace.len() < expected {
        return Err(Error::new(format!("trace.jsonl: expected {expected} points, got {}", trace.len())));
    }
    Ok(trace)
}

impl Run {
    /// Reads the metrics, the trace and the evaluations of a run. Damaged files are gaps.
    pub(super) fn read(folder: &RunFolder, record: RunRecord, name: String) -> Self {
        let mut run = Self {
            name,
            path: folder.name().to_owned(),
            record,
            epochs: Vec::new(),
            trace: Vec::new(),
            evaluations: Vec::new(),
            examples: None,
            distances: None,
            diagnosis: None,
            gaps: Vec::new(),
        };
        run.read_epochs(folder);
        run.read_trace(folder);
        run.read_evaluations(folder);
        run
    }

    fn read_epochs(&mut self, folder: &RunFolder) {
        let (what, fix) = match folder.metrics() {
            Ok(epochs) => {
                self.epochs = epochs;
                let (done, all) = (self.epochs.len(), self.record.experiment.train.epochs);
                if is_trained(&self.epochs, all) {
                    return;
                }
                let what = format!("training is not finished: {done} of {all} epochs are done");
                (what, self.resume_command())
            }
            Err(why) => (
                format!("the training curves cannot be shown: {}", why.first_line()),
                format!("{} (training rewrites the file)", self.resume_command()),
            ),
        };
        self.gaps.push(Gap { part: Part::Curves, what, fix });
    }

    fn read_trace(&mut self, folder: &RunFolder) {
        match folder.trace().and_then(|trace| whole_trace(folder, trace)) {
            Ok(trace) => self.trace = trace,
            Err(why) => self.gaps.push(Gap {
                part: Part::Trace,
                what: format!("the error against passes cannot be shown: {}", why.first_line()),
                fix: "move the file away".to_owned(),
            }),
        }
    }

    fn read_evaluations(&mut self, folder: &RunFolder) {
        let read = folder.evaluations().and_then(|found| found.read::<SavedEvaluation>(folder));
        let consistent =
            read.and_then(|found| match found.iter().position(|one| !one.agrees_with_its_verdicts()) {
                None => Ok(found),
                Some(number) => Err(Error::new(format!(
                    "the accuracies of entry {} of eval.json are not those of its verdicts",
                    number + 1
                ))),
            });
        let (what, fix) = match consistent {
            Ok(evaluations) => {
                self.evaluations = evaluations;
                // Validation points select runs. An accuracy on them is not a result.
                self.evaluations.retain(|evaluation| !evaluation.validation);
                if !self.evaluations.is_empty() {
                    return;
                }
                ("there is no evaluation".to_owned(), self.eval_command())
            }
            Err(why) => (
                format!("the evaluations cannot be shown: {}", why.first_line()),
                format!("move the file away, then {}", self.eval_command()),
            ),
        };
        self.gaps.push(Gap { part: Part::Evaluations, what, fix });
    }

    /// Reads the diagnosis. One is missing where there could be one: in a run that keeps particles
    /// which climb the cross-entropy in an linf ball of one radius. The distances of such particles have been read before.
    pub(super) fn read_diagnosis(&mut self, folder: &RunFolder) {
        let threat = &self.record.experiment.threat;
        let is_box = threat.norm == Norm::Linf && threat.is_one_radius();
        let climbs = self.record.experiment.train.is_cross_entropy();
        let command = self.diagnose_command();
        let (what, fix) = match crate::diagnosis::read(folder.path()) {
            Ok(Some(found)) => {
                self.diagnosis = Some(found);
                return;
            }
            Ok(None) if self.distances.is_some() && climbs && is_box => {
                ("there is no diagnosis".to_owned(), command)
            }
            Ok(None) => return,
            Err(why) => (
                format!("the diagnosis cannot be shown: {}", why.first_line()),
                format!("move the file away, then {command}"),
            ),
        };
        self.gaps.push(Gap { part: Part::Diagnosis, what, fix });
    }

    /// The gaps of one part.
    pub(in crate::report) fn gaps_of(&self, part: Part) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(move |gap| gap.part == part)
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::util::fuzz::{USUAL, corpus, withstands};

    #[test]
    fn evaluations_may_be_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        withstands(&[corpus("eval.json")], &folder.path().join("eval.json"), USUAL, |_| {
            run.evaluations().and_then(|found| found.read::<SavedEvaluation>(&run))
        });
    }

    #[test]
    fn diagnoses_may_be_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        withstands(&[corpus("diagnosis.json")], &folder.path().join("diagnosis.json"), USUAL, |_| {
            crate::diagnosis::read(folder.path())
        });
    }
}
