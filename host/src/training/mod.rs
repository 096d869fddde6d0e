//! The min-max loop of distributionally robust training.
//!
//! The inner problem moves particles up the loss, the outer problem moves the weights down the loss
//! at the particles. `setup` assembles a run, `update` is one update of both, `cost` counts its
//! passes, and `bookkeeping` is what happens between updates.

mod alarm;
mod augmentation;
mod average;
mod bookkeeping;
mod cost;
mod extension;
#[cfg(test)]
mod fixtures;
mod objective;
pub mod optimizer;
pub(crate) mod reporter;
mod schedule;
pub(crate) mod setup;
pub mod store;
mod tally;
mod trace;
mod update;

pub use setup::{ResumeOptions, begin, resume};
pub(crate) use trace::Trace;

use crate::Result;
use crate::config::Experiment;
use crate::data::examples::Examples;
use crate::evaluation::caveat;
use crate::evaluation::verdict::Caveat;
use crate::plugin::Attack;
use crate::run::RunFolder;
use crate::run::progress::Progress;
use crate::run::tensorboard::EventFile;
use crate::torch::device::upload;
use crate::torch::random::{Purpose, permutation};
use plugin_api::Start;
use reporter::Reporter;
use schedule::Schedule;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Tensor};
use update::{Players, Sums};

/// A run in memory.
pub struct Training {
    plan: Plan,
    players: Players,
    sums: Sums,
    records: Records,
}

/// What is fixed for the whole run.
struct Plan {
    experiment: Experiment,
    /// The training points.
    examples: Examples,
    /// Where chains begin.
    start: Start,
    schedule: Schedule,
    /// Passes of each training point in an epoch; see [`cost`].
    passes_per_epoch: u64,
    device: Device,
}

/// What is measured and saved between updates.
struct Records {
    progress: Progress,
    /// Training points that were held out.
    validation: Option<Examples>,
    /// The attack on the validation points.
    probe: Option<Attack>,
    /// The attack on test points.
    trace: Option<Trace>,
    /// Event files for TensorBoard.
    events: Option<EventFile>,
    /// Number of epochs that have their line in `metrics.jsonl`.
    recorded_epochs: usize,
    /// The update of the checkpoint that this run wrote or read last.
    saved: Option<u64>,
    /// When the clock of training was started; none while it stands.
    clock: Option<Instant>,
}

/// How training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs are done, or as many as patience allows.
    Finished,
    /// The user asked to stop; a checkpoint is written.
    Interrupted,
}

impl Training {
    /// Trains until the last epoch is done, patience has run out or `stop` is set, and keeps the
    /// run's folder up to date.
    ///
    /// # Errors
    /// If a plugin fails, the loss is NaN or infinite, or a file cannot be written. The last
    /// checkpoint stays.
    pub fn run(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<Ending> {
        match self.train(folder, reporter, stop) {
            // A probe or a trace was interrupted. The state it was to measure lies in a checkpoint.
            Err(error) if error.is_interrupted() => Ok(Ending::Interrupted),
            ending => ending,
        }
    }

    fn train(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<Ending> {
        self.begin(folder, reporter, stop).map_err(|error| self.rescue_if_moved(folder, error))?;
        while !self.is_over() {
            let (epoch, done) = self.plan.epoch_of(self.records.progress.update);
            for (points, indices) in self.plan.minibatches(epoch)?.into_iter().skip(done as usize) {
                self.start_clock();
                let update = self.records.progress.update;
                self.players.update(&self.plan, update, &points, &indices, &mut self.sums)?;
                self.records.progress.update += 1;
                let stopping = stop.load(Ordering::Relaxed);
                self.after_update(folder, reporter, stop, stopping)
                    .map_err(|error| self.rescue_if_moved(folder, error))?;
                if stopping && !self.is_over() {
                    return Ok(Ending::Interrupted);
                }
            }
        }
        Ok(Ending::Finished)
    }

    fn is_over(&self) -> bool {
        let progress = &self.records.progress;
        progress.update == self.plan.schedule.updates || progress.stopped_early()
    }

    /// One update on the points `points`, whose indices on the device are `indices` (`[B]`, i64).
    ///
    /// # Errors
    /// If a plugin fails.
    pub fn update(&mut self, points: &[i64], indices: &Tensor) -> Result<()> {
        let update = self.records.progress.update;
        self.players.update(&self.plan, update, points, indices, &mut self.sums)
    }

    /// The number of updates of the whole run.
    pub fn updates(&self) -> u64 {
        self.plan.schedule.updates
    }

    /// The experiment.
    pub fn experiment(&self) -> &Experiment {
        &self.plan.experiment
    }

    /// The caveat of its threat model, which every evaluation of the run will have.
    pub fn caveat(&self) -> Option<Caveat> {
        caveat::of_threat(
            &self.plan.experiment.threat,
            self.plan.examples.images.size()[1..].iter().product(),
        )
    }

    /// How far the run is.
    pub fn progress(&self) -> &Progress {
        &self.records.progress
    }

    /// Passes of each training point after so many updates, for each of its K particles.
    pub fn passes_per_sample(&self, updates: u64) -> f64 {
        self.plan.passes_per_sample(updates)
    }
}

impl Plan {
    fn updates_per_epoch(&self) -> u64 {
        self.schedule.updates / self.experiment.train.epochs as u64
    }

    /// The epoch of an update, counted from 0, and how many updates of that epoch come before it.
    fn epoch_of(&self, update: u64) -> (u64, u64) {
        (update / self.updates_per_epoch(), update % self.updates_per_epoch())
    }

    /// The minibatches of an epoch: each one's points, and their indices on the device.
    fn minibatches(&self, epoch: u64) -> Result<Vec<(Vec<i64>, Tensor)>> {
        let batch = self.experiment.train.batch;
        let order = permutation(self.experiment.train.seed, Purpose::Shuffle, epoch, self.examples.len());
        let on_device = upload(&Tensor::from_slice(&order), self.device)?.split(batch as i64, 0);
        Ok(order.chunks(batch).map(<[i64]>::to_vec).zip(on_device).collect())
    }

    /// The share of its final radius that the ball has at an update, counted from 0 (the epsilon
    /// ramp).
    fn epsilon_ramp(&self, update: u64) -> f64 {
        let ramp = self.experiment.train.warmup_epsilon * self.updates_per_epoch() as f64;
        ((update + 1) as f64 / (ramp + 1.0)).min(1.0)
    }

    fn passes_per_sample(&self, updates: u64) -> f64 {
        let (epochs, within) = self.epoch_of(updates);
        let share = within as f64 * self.experiment.train.batch as f64 / self.examples.len() as f64;
        (epochs as f64 + share) * self.passes_per_epoch as f64
    }
}
