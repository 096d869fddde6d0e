//! What comes out of an evaluation, before and after it is saved.

use crate::evaluation::journal::{AdversarialExamples, Journal};
use crate::evaluation::outline::ExpectedCost;
use crate::evaluation::shard::Shard;
use crate::evaluation::verdict::{Caveat, CurvePoint, Evaluation};
use crate::plugin::{LoadedModel, Threat};
use crate::run::outline::Outline;
use crate::run::progress::Progress;
use crate::run::{EVALUATIONS, RunFolder, RunRecord};
use crate::{Error, Result};
use serde_json::Value;
use std::path::PathBuf;

/// A run with its model.
pub struct EvaluatedRun {
    pub(super) folder: RunFolder,
    /// The run's record.
    pub record: RunRecord,
    /// Its classifier, with the weights for evaluation.
    pub model: LoadedModel,
    /// The differences from the record that `allow_changed` let pass, and what is wrong with its
    /// checkpoints.
    pub caveats: Vec<Caveat>,
    /// The progress of training at the checkpoint of the weights.
    pub progress: Progress,
}

/// A finished evaluation of one run, not saved yet.
pub struct FinishedEvaluation {
    /// What was about to be done.
    pub outline: Outline<ExpectedCost>,
    /// The result at each radius, from the smallest on; one at least.
    pub radii: Vec<AtRadius>,
    /// The error of the attack that ended the evaluation, if one failed.
    pub failure: Option<Error>,
    /// The run.
    pub run: EvaluatedRun,
    /// None if the result was there already.
    pub(super) journal: Option<Journal>,
    /// Which points it is of.
    pub(super) portion: Portion,
}

/// Which points of an evaluation a process judges.
pub(super) enum Portion {
    /// All of them.
    Whole,
    /// Those of one shard.
    Shard(Shard),
    /// None: other processes have judged them.
    Merged(Vec<Journal>),
}

/// The result of an evaluation at one radius.
pub struct AtRadius {
    /// The threat model.
    pub threat: Threat,
    /// The result.
    pub evaluation: Evaluation,
    /// The entry of `eval.json`.
    pub(super) entry: Value,
    /// An empty set of adversarial examples and the number of each attack's, if they are to be
    /// saved.
    pub(super) examples: Option<(AdversarialExamples, Vec<usize>)>,
}

/// The files of a saved evaluation.
pub struct SavedEvaluation {
    /// `eval.json`.
    pub verdicts: PathBuf,
    /// The adversarial examples of each radius, if they were asked for.
    pub examples: Vec<PathBuf>,
}

impl FinishedEvaluation {
    /// Saves the result and the examples in the run's folder, and ends the journal.
    ///
    /// # Errors
    /// If kept examples are missing, or the disk refuses.
    pub fn save(self) -> Result<SavedEvaluation> {
        if let (Portion::Shard(_), Some(journal)) = (&self.portion, &self.journal) {
            // Its journal is what will be merged.
            return Ok(SavedEvaluation { verdicts: journal.findings(), examples: Vec::new() });
        }
        let folder = &self.run.folder;
        let mut saved = SavedEvaluation { verdicts: folder.name().join(EVALUATIONS), examples: Vec::new() };
        let Some(journal) = self.journal else { return Ok(saved) };
        let mut first = 0;
        for AtRadius { mut entry, examples, evaluation, .. } in self.radii {
            if let Some((none, counts)) = examples {
                let (file, digest) = journal.collect(folder, none, first, &counts)?;
                saved.examples.push(folder.name().join(&file));
                entry["examples"] = file.into();
                entry["examples_sha256"] = digest.into();
            }
            first += evaluation.attacks.len();
            saved.verdicts = folder.add_evaluation(entry)?;
        }
        journal.discard()?;
        if let Portion::Merged(journals) = self.portion {
            journals.into_iter().try_for_each(Journal::discard)?;
        }
        Ok(saved)
    }

    /// The shard that it is of, if it is of one.
    pub fn shard(&self) -> Option<Shard> {
        match self.portion {
            Portion::Shard(shard) => Some(shard),
            Portion::Whole | Portion::Merged(_) => None,
        }
    }

    /// The number of shards that it was merged from, if it was.
    pub fn merged_from(&self) -> Option<usize> {
        match &self.portion {
            Portion::Merged(journals) => Some(journals.len()),
            Portion::Whole | Portion::Shard(_) => None,
        }
    }

    /// The curve over all radii, from the smallest on.
    pub fn curve(&self) -> Vec<CurvePoint> {
        let point = |at: &AtRadius| CurvePoint::new(at.threat.epsilon, &at.evaluation);
        self.radii.iter().map(point).collect()
    }

    /// The caveats at all radii. One that concerns a single radius of several names it.
    pub fn caveats(&self) -> Vec<Caveat> {
        let everywhere = |caveat: &Caveat| self.radii.iter().all(|at| at.evaluation.caveats.contains(caveat));
        let mut caveats = Vec::new();
        for at in &self.radii {
            let named = at.evaluation.caveats.iter().map(|caveat| {
                if everywhere(caveat) {
                    return caveat.clone();
                }
                let finding = format!("at epsilon {}: {}", at.threat.epsilon, caveat.finding);
                Caveat { name: caveat.name.clone(), finding }
            });
            add_new(&mut caveats, named);
        }
        caveats
    }
}

/// Adds the caveats that are not in the list yet.
pub(super) fn add_new(caveats: &mut Vec<Caveat>, others: impl IntoIterator<Item = Caveat>) {
    for caveat in others {
        if !caveats.contains(&caveat) {
            caveats.push(caveat);
        }
    }
}
