//! Evaluates every model against the examples made on every model.

use crate::evaluation::caveat;
use crate::evaluation::finished::EvaluatedRun;
use crate::evaluation::journal::Journal;
use crate::evaluation::options::EvaluationOptions;
use crate::evaluation::outline::ExpectedCost;
use crate::evaluation::setup::{EvaluationSetup, caveats_before_attacks};
use crate::evaluation::verdict::{Caveat, Evaluation};
use crate::plugin::Threat;
use crate::run::outline::Outline;
use crate::torch::arithmetic::Arithmetic;
use crate::util::console::{Style, say};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// The evaluations of every run with examples made on every run.
pub struct TransferMatrix {
    /// What was about to be done.
    pub outline: Outline<ExpectedCost>,
    /// For each run that examples are made on, the evaluations of all runs.
    pub evaluations: Vec<Vec<Evaluation>>,
    /// Reasons not to trust the results; each names its run.
    pub caveats: Vec<Caveat>,
    /// Number of attacks.
    pub attack_count: usize,
    /// The threat model.
    pub threat: Threat,
    /// Seed of the attacks.
    pub seed: u64,
    /// Examples per forward pass.
    pub batch: usize,
    /// The arithmetic of this process.
    pub arithmetic: Arithmetic,
    /// Those of all evaluations; they are kept until the matrix has been shown.
    journals: Vec<Journal>,
}

impl TransferMatrix {
    /// Number of points of each evaluation.
    pub fn count(&self) -> usize {
        self.evaluations[0][0].count
    }

    /// The clean accuracy of each run.
    pub fn clean(&self) -> Vec<f64> {
        self.evaluations[0].iter().map(|evaluation| evaluation.clean).collect()
    }

    /// The worst case over the attacks, in the order of `evaluations`.
    pub fn worst_case(&self) -> Vec<Vec<f64>> {
        let row = |row: &Vec<Evaluation>| row.iter().map(|evaluation| evaluation.worst_case).collect();
        self.evaluations.iter().map(row).collect()
    }

    /// Removes the journals.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn discard_journals(self) -> Result<()> {
        self.journals.into_iter().try_for_each(Journal::discard)
    }
}

/// Evaluates the runs in these folders, two or more, with the settings of the first one. An
/// interrupted matrix of the same settings is continued.
///
/// # Errors
/// If the runs cannot be compared, an attack fails or the user interrupts. Results so far are kept.
pub fn transfer(paths: &[PathBuf], options: &EvaluationOptions, stop: &AtomicBool) -> Result<TransferMatrix> {
    transfer_with_style(paths, options, Style::Json, stop)
}

/// The same, with progress shown in this style.
pub(crate) fn transfer_with_style(
    paths: &[PathBuf],
    options: &EvaluationOptions,
    style: Style,
    stop: &AtomicBool,
) -> Result<TransferMatrix> {
    let [first_path, _, ..] = paths else {
        return Err(Error::new(format!("--transfer: expected two runs or more, got {}", paths.len())));
    };
    refuse_repetition(paths)?;
    let setup = EvaluationSetup::open(first_path, options)?.with_style(style);
    let runs: Vec<EvaluatedRun> = paths.iter().map(|path| setup.open_run(path)).collect::<Result<_>>()?;
    let experiment = &runs[0].record.experiment;
    let threat_of = |run: &EvaluatedRun| -> Result<Threat> {
        match options.threats(&run.record.experiment.threat)?.as_slice() {
            [only] => Ok(only.clone()),
            several => Err(Error::new(format!("--transfer: expected one radius, got {}", several.len()))
                .fix("make one matrix for each radius")),
        }
    };
    let expected = threat_of(&runs[0])?;
    for (path, run) in paths.iter().zip(&runs) {
        let got = threat_of(run)?;
        if got != expected {
            return Err(Error::new(format!(
                "{} has another threat model: expected {expected} as in {}, got {got}",
                path.display(),
                first_path.display()
            ))
            .fix("judge all in one threat model with --epsilon, --norm and --channel-scale"));
        }
    }
    let threats = [expected.clone()];
    let (attacks, left_out) = setup.attacks(&runs[0].record, &threats)?;
    let caveats = setup.caveats.iter().cloned().chain(left_out).collect();
    let settings = setup.evaluator(experiment, (&runs[0], &runs[0]), expected.clone(), stop);
    let count = setup.choose_points(&settings, experiment)?.len();
    let outline = setup.outline(&settings, &attacks, (first_path, runs.len() * runs.len()), &threats, count);
    if style == Style::Human {
        say(&outline);
    }
    let mut matrix = TransferMatrix {
        outline,
        evaluations: Vec::new(),
        caveats,
        attack_count: attacks.len(),
        threat: settings.threat,
        seed: settings.seed,
        batch: settings.batch,
        arithmetic: setup.arithmetic().clone(),
        journals: Vec::new(),
    };
    let mut is_continued = false;
    for source in &runs {
        let mut row = Vec::new();
        for (path, target) in paths.iter().zip(&runs) {
            let evaluator = setup.evaluator(experiment, (target, source), expected.clone(), stop);
            let points = setup.choose_points(&evaluator, experiment)?;
            let mut caveats = Vec::new();
            if std::ptr::eq(source, target) {
                caveats.extend(target.caveats.iter().cloned());
                let values = evaluator.examples.images.size()[1..].iter().product();
                caveats.extend(caveat::of_threat(&threats[0], values));
                let is_foreign = target.record.init.is_some();
                caveats.extend(caveats_before_attacks(&evaluator, &points, is_foreign)?);
            }
            let (journal, partial) =
                setup.journal(&evaluator, (target, source), &attacks, &threats, &points)?;
            if partial.is_some() && !is_continued && style == Style::Human {
                say("going on with this matrix, which was interrupted");
            }
            is_continued |= partial.is_some();
            caveats.extend(caveat::of_arithmetic(journal.arithmetic_used()));
            let evaluation = match evaluator.advance(&attacks, points, partial, Some(&journal)) {
                Ok((found, None)) => evaluator.evaluation(found.verdicts, found.results),
                Ok((_, Some(failure))) | Err(failure) => {
                    return Err(journal.abandon(failure, !matrix.journals.is_empty()));
                }
            };
            matrix.journals.push(journal);
            for Caveat { name, finding } in caveats.into_iter().chain(evaluation.caveats.clone()) {
                let caveat = Caveat { name, finding: format!("{}: {finding}", path.display()) };
                if !matrix.caveats.contains(&caveat) {
                    matrix.caveats.push(caveat);
                }
            }
            row.push(evaluation);
        }
        matrix.evaluations.push(row);
    }
    Ok(matrix)
}

/// A run that is named twice would have the same journal twice.
fn refuse_repetition(paths: &[PathBuf]) -> Result<()> {
    let folders: Vec<_> = paths.iter().map(|path| path.canonicalize().unwrap_or(path.clone())).collect();
    if let Some(run) = (1..paths.len()).find(|run| folders[..*run].contains(&folders[*run])) {
        let path = paths[run].display();
        return Err(Error::new(format!("--transfer: expected different runs, got {path} twice")));
    }
    Ok(())
}
