//! More epochs for a run that was begun with fewer.

use super::Training;
use super::average::Averaging;
use super::schedule::Schedule;
use super::setup::averaging;
use crate::config::{Train, name_of};
use crate::run::RunFolder;
use crate::{Error, Result};

impl Training {
    /// Refuses more epochs than the `before` that the run had so far, unless a run of so many
    /// epochs from the start would have made the same updates up to here.
    ///
    /// # Errors
    /// Why it would not.
    pub(super) fn check_extension(&self, before: usize) -> Result<()> {
        let (train, plan, progress) = (&self.plan.experiment.train, &self.plan, &self.records.progress);
        let Train { epochs, schedule, .. } = *train;
        // The warm-up of the learning rate and the epsilon ramp are given in epochs: they do not
        // depend on the end of the run.
        let shorter = Train { epochs: before, ..train.clone() };
        let planned = Schedule::of(&shorter, plan.updates_per_epoch() as usize);
        let rates = |update| (planned.learning_rate(update), plan.schedule.learning_rate(update));
        let differs = |(_, (one, other)): &(u64, (f64, f64))| one != other;
        let changed = (0..progress.update).map(|update| (update, rates(update))).find(differs);
        if let Some((update, (rate, instead))) = changed {
            return Err(refused(format_args!(
                "the schedule {} depends on the length of the run: update {} had the learning rate {rate}, with {epochs} epochs it has {instead}",
                name_of(schedule),
                update + 1
            )));
        }
        let steps = progress.optimizer_steps;
        let begins = |train: &Train, updates| match averaging(train, updates) {
            Some(Averaging::EqualFrom(first)) => first.min(steps),
            _ => steps,
        };
        if begins(&shorter, planned.updates) != begins(train, plan.schedule.updates) {
            return Err(refused("train.swa_from is a share of the run: the average would begin elsewhere"));
        }
        let is_final = progress.epochs.len() == before && self.is_out_of_patience();
        if progress.stopped_early() || is_final {
            return Err(refused(format_args!(
                "patience (train.patience) ends the run after epoch {}, however many it has",
                progress.epochs.len()
            )));
        }
        Ok(())
    }

    /// Takes back what the last epoch says as the last one of the run.
    pub(super) fn end_is_later(&mut self, folder: &RunFolder) -> Result<()> {
        let records = &self.records;
        if records.recorded_epochs == records.progress.epochs.len() {
            self.raise_alarms(folder)
        } else {
            Ok(())
        }
    }
}

/// Refuses fewer epochs than a run has so far.
///
/// # Errors
/// Both numbers.
pub(super) fn check_epochs(before: usize, epochs: usize) -> Result<()> {
    if epochs < before {
        return Err(refused(format_args!("expected at least {before}, the epochs of the run, got {epochs}")));
    }
    Ok(())
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(format!("--epochs: {why}"))
        .note("because", "an extended run equals one that has its epochs from the start")
        .fix("begin a new run with --epochs and --out")
}
