//! The min-max loop of distributionally robust training.
//!
//! The inner problem moves particles up the loss, the outer problem moves the weights down the loss
//! at the particles. `setup` assembles a run, `update` is one update of both, `cost` counts its
//! passes, and `bookkeeping` is what happens between updates.

mod alarm;
mod augmentation;
mod average;
mod bookkeeping;
mod carried;
mod cost;
mod extension;
#[cfg(test)]
mod fixtures;
mod objective;
pub mod optimizer;
mod perturbation;
pub(crate) mod reporter;
mod resampling;
mod schedule;
pub(crate) mod setup;
pub(crate) mod shards;
mod slots;
pub mod store;
mod tally;
mod trace;
mod trial;
mod update;

pub use setup::{ResumeOptions, adopt, begin, resume};
pub(crate) use trace::Trace;

use crate::Result;
use crate::config::Experiment;
use crate::data::examples::Examples;
use crate::evaluation::caveat;
use crate::evaluation::verdict::Caveat;
use crate::plugin::{Attack, LoadedModel};
use crate::ranks::Ranks;
use crate::run::RunFolder;
use crate::run::progress::Progress;
use crate::run::tensorboard::EventFile;
use crate::torch::ahead::Ahead;
use crate::util::interrupt;
use plugin_api::Start;
use reporter::Reporter;
use schedule::Schedule;
use shards::{Selection, Shards};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::Device;
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
    /// The processes that carry the run.
    ranks: Rc<Ranks>,
    /// The training points.
    examples: Examples,
    /// How they are dealt out.
    shards: Shards,
    /// Where chains begin.
    start: Start,
    schedule: Schedule,
    /// Passes of each training point in an epoch; see [`cost`].
    passes_per_epoch: u64,
    device: Device,
    /// The random numbers of the next update, where they are drawn while this one is computed.
    ahead: Option<Ahead>,
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
        interrupt::heed();
        // Whoever sees a file of training may stop any of the processes: all of them heed stops by then.
        self.plan.ranks.meet()?;
        let ending = match self.train(folder, reporter, stop) {
            // A probe or a trace was interrupted. The state it was to measure lies in a checkpoint.
            Err(error) if error.is_interrupted() => Ending::Interrupted,
            ending => ending?,
        };
        self.plan.ranks.count_votes()?;
        Ok(ending)
    }

    fn train(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<Ending> {
        self.begin(folder, reporter, stop).map_err(|error| self.rescue_if_moved(folder, error))?;
        while !self.is_over() {
            let (epoch, done) = self.plan.epoch_of(self.records.progress.update);
            let ranks = Rc::clone(&self.plan.ranks);
            let refuse = || ranks.refuse_if_stopped(stop);
            let minibatches = self.plan.minibatches(epoch)?.into_iter().skip(done as usize);
            let minibatches: Vec<_> = minibatches.collect();
            let points: Vec<_> = minibatches.iter().map(|selection| selection.points.clone()).collect();
            self.plan.examples.announce(points.into_iter())?;
            let mut left = minibatches.into_iter().peekable();
            while let Some(selection) = left.next() {
                self.start_clock();
                let update = self.records.progress.update;
                self.plan.expect(left.peek().map(|selection| &selection.points));
                match self.players.update(&self.plan, update, &selection, &mut self.sums, &refuse) {
                    // Nothing of the run has changed yet.
                    Err(error) if error.is_interrupted() => {
                        self.keep(folder).map_err(|error| self.rescue_if_moved(folder, error))?;
                        return Ok(Ending::Interrupted);
                    }
                    outcome => outcome?,
                }
                self.records.progress.update += 1;
                let stopping = self.plan.ranks.vote_to_stop(stop.load(Ordering::Relaxed))?;
                self.after_update(folder, reporter, stop, stopping)
                    .map_err(|error| self.rescue_if_moved(folder, error))?;
                if stopping && !self.is_over() {
                    return Ok(Ending::Interrupted);
                }
            }
        }
        Ok(Ending::Finished)
    }

    /// Trains until the last epoch is done, without a folder, and returns the classifier.
    /// `after_update` is given the number of points of each update, and may end the run.
    ///
    /// # Errors
    /// If a plugin fails, a loss is not finite, or `after_update` says so.
    pub fn train_in_memory(mut self, mut after_update: impl FnMut(u64) -> Result<()>) -> Result<LoadedModel> {
        for epoch in 0..self.plan.experiment.train.epochs as u64 {
            for selection in self.plan.minibatches(epoch)? {
                self.update(&selection)?;
                self.records.progress.update += 1;
                after_update(selection.points.len() as u64)?;
            }
            self.sums.finite.read()?;
        }
        Ok(self.players.model)
    }

    fn is_over(&self) -> bool {
        let progress = &self.records.progress;
        progress.update == self.plan.schedule.updates || progress.stopped_early()
    }

    /// One update on these points.
    ///
    /// # Errors
    /// If a plugin fails.
    pub fn update_on(&mut self, points: &[i64]) -> Result<()> {
        self.update(&self.plan.shards.select(points, self.plan.device)?)
    }

    fn update(&mut self, selection: &Selection) -> Result<()> {
        let update = self.records.progress.update;
        self.players.update(&self.plan, update, selection, &mut self.sums, &|| Ok(()))
    }

    /// The number of updates of the whole run.
    pub fn updates(&self) -> u64 {
        self.plan.schedule.updates
    }

    /// The experiment.
    pub fn experiment(&self) -> &Experiment {
        &self.plan.experiment
    }

    /// The caveat of its threat model, which every evaluation of the run will have; or that of a ball
    /// in training that holds all images, without an objective that keeps particles near.
    pub fn caveat(&self) -> Option<Caveat> {
        let Experiment { threat, train, .. } = &self.plan.experiment;
        let trained = self.plan.experiment.training_threat();
        let is_held = !train.domain_only || self.players.losses.at_chance.depends_on_places;
        let values = self.plan.examples.images.size()[1..].iter().product();
        caveat::of_threat(if is_held { threat } else { &trained }, values)
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
        self.examples.len().div_ceil(self.experiment.train.batch) as u64
    }

    /// The epoch of an update, counted from 0, and how many updates of that epoch come before it.
    fn epoch_of(&self, update: u64) -> (u64, u64) {
        (update / self.updates_per_epoch(), update % self.updates_per_epoch())
    }

    /// The minibatches of an epoch: the points that this process has of each.
    fn minibatches(&self, epoch: u64) -> Result<Vec<Selection>> {
        let train = &self.experiment.train;
        self.shards.minibatches((train.seed, epoch), train.batch, self.device)
    }

    /// The update that begins next is followed by one of these points.
    fn expect(&self, points: Option<&Vec<i64>>) {
        if let Some(ahead) = &self.ahead {
            ahead.expect(points.map(|points| self.rows(points)));
        }
    }

    /// The point of each row of a minibatch of these points: K rows each.
    fn rows(&self, points: &[i64]) -> Vec<i64> {
        let copies = self.experiment.train.particles;
        points.iter().flat_map(|point| std::iter::repeat_n(*point, copies)).collect()
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
