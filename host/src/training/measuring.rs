//! What a run measures on the way, without disturbing what comes after.

use super::{Training, named_clones};
use crate::average::Average;
use crate::checkpoint;
use crate::console::{Reporter, Style};
use crate::evaluation::{Evaluation, Evaluator, Order};
use crate::experiment::{Select, Train};
use crate::plugin::Attack;
use crate::progress::{EpochMetrics, Progress, TracePoint, best_epoch};
use crate::random::{Draws, Forward, Purpose, permutation, seed_for};
use crate::run::RunFolder;
use crate::store::Examples;
use crate::tensorboard::EventFile;
use crate::trace::Trace;
use crate::{Error, Result};
use std::sync::atomic::AtomicBool;
use tch::{Tensor, no_grad};

/// Minibatches from which averaged weights take the statistics of batch normalisation. With the
/// usual momentum of 0.1, all but 0.003 % of a running statistic comes from them.
const STATISTICS_BATCHES: usize = 100;

impl Training {
    /// The averaged weights, if there are any yet: they are evaluated in the weights' place.
    pub(super) fn averaged(&self) -> Option<&Average> {
        self.average.as_ref().filter(|average| average.has_begun())
    }

    /// Gives averaged weights the statistics of batch normalisation that are theirs, where these
    /// are not averaged too: of some minibatches of training particles, where visits begin.
    /// They depend on the state of training alone, not on when they were last renewed.
    pub(super) fn renew_statistics(&mut self) -> Result<()> {
        let Some(mut average) = self.average.take_if(|average| average.has_stale_buffers(&self.model)) else {
            return Ok(());
        };
        let renewed = average.renew_buffers(&self.model, || self.show_particles());
        self.average = Some(average);
        renewed
    }

    fn show_particles(&self) -> Result<()> {
        let Train { seed, batch, particles, precision, .. } = self.experiment.train;
        let update = self.progress.update;
        let order = permutation(seed, Purpose::Statistics, update, self.examples.len());
        for (number, points) in order.chunks(batch).cycle().take(STATISTICS_BATCHES).enumerate() {
            let indices = Tensor::from_slice(points).to_device(self.device);
            let minibatch = self.minibatch(points, &indices)?;
            let draws = Draws::new(seed, Purpose::Statistics, update, &minibatch.points, particles);
            let visit = self.begin_visit(&minibatch, &draws)?;
            let forward = Forward::Step(number).of_update(update);
            tch::manual_seed(seed_for(seed, Purpose::Statistics, forward));
            drop(no_grad(|| self.model.forward_in(precision, &visit.particles, true))?);
        }
        Ok(())
    }

    /// Passes that renewing the statistics takes, all points together: forwards alone, half a
    /// pass each. None if there is nothing to renew.
    pub(super) fn statistics_passes(&self) -> Option<f64> {
        let Train { batch, particles, .. } = self.experiment.train;
        let (points, minibatches) = (self.examples.len(), self.examples.len().div_ceil(batch));
        let rest = (STATISTICS_BATCHES % minibatches * batch).min(points);
        let forwards = (STATISTICS_BATCHES / minibatches * points + rest) * particles;
        let stale = self.average.as_ref().is_some_and(|average| average.has_stale_buffers(&self.model));
        stale.then_some(forwards as f64 / 2.0)
    }

    /// What the weights that are evaluated (averaged ones if there are any) make of examples; an
    /// error that is an interruption once `stop` is set.
    fn evaluate(
        &self,
        attacks: &[Attack],
        (examples, points): (&Examples, Option<usize>),
        purpose: Purpose,
        stop: &AtomicBool,
    ) -> Result<Evaluation> {
        let evaluator = Evaluator {
            model: &self.model,
            source: &self.model,
            order: Order::Separate,
            stop,
            examples,
            purpose,
            threat: self.experiment.threat,
            restarts: 1,
            batch: self.experiment.eval.batch,
            seed: self.experiment.train.seed,
            device: self.device,
            style: Style::Json,
        };
        let work = || evaluator.run(attacks, evaluator.choose_points(points)?, None, None);
        let (evaluation, failure) = match self.averaged() {
            Some(average) => average.in_place_of(&self.model, work)?,
            None => work()?,
        };
        failure.map_or(Ok(evaluation), Err)
    }

    /// Takes over what is to be traced, and sees after which updates.
    pub(super) fn plan_trace(&mut self, trace: Option<Trace>) -> Result<()> {
        let Some(mut trace) = trace else { return Ok(()) };
        let at = self.experiment.train.trace_at.as_deref();
        trace.plan(at, self.schedule.updates, |updates| self.passes_per_sample(updates))?;
        self.trace = Some(trace);
        Ok(())
    }

    /// Adds the present weights to the trace, if they are to be traced and are not yet: after the
    /// updates that were planned, and at the end of a run that patience has ended before its time.
    /// The random numbers are those of `host eval`; the clock stands still meanwhile. Says whether
    /// there was anything to add.
    pub(super) fn trace_if_due(
        &mut self,
        folder: &RunFolder,
        reporter: &Reporter,
        stop: &AtomicBool,
    ) -> Result<bool> {
        let update = self.progress.update;
        let traced = self.progress.trace.last().is_some_and(|point| point.updates == update);
        let is_due = |trace: &Trace| {
            !traced && (self.progress.stopped_early() || trace.updates.binary_search(&update).is_ok())
        };
        if !self.trace.as_ref().is_some_and(is_due) {
            return Ok(false);
        }
        // What is still to come from the device belongs to training's time.
        self.watch.read()?;
        self.stop_clock();
        self.renew_statistics()?;
        let Some(Trace { attack, examples, points, .. }) = &self.trace else { return Ok(false) };
        let spec = attack.record.spec.clone();
        let found =
            self.evaluate(std::slice::from_ref(attack), (examples, Some(*points)), Purpose::Attack, stop);
        if found.as_ref().is_err_and(Error::is_interrupted) && self.saved != Some(update) {
            self.checkpoint(folder)?;
        }
        let found = found?;
        let point = TracePoint {
            updates: self.progress.update,
            optimizer_steps: self.optimizer.steps(),
            passes_per_sample: self.passes_per_sample(self.progress.update),
            seconds: self.progress.seconds,
            clean_accuracy: found.clean,
            attack_accuracy: found.worst_case,
            attack: spec,
            points: found.points,
        };
        reporter.trace(&point);
        self.events.as_mut().map_or(Ok(()), |events| events.trace(&point))?;
        self.progress.trace.push(point);
        self.write_trace(folder)?;
        if self.saved == Some(update) {
            checkpoint::save_progress(&folder.checkpoints(), update, &self.progress)?;
        }
        Ok(true)
    }

    /// Rewrites `trace.jsonl`: a resumed run may go back behind points that were written.
    pub(super) fn write_trace(&self, folder: &RunFolder) -> Result<()> {
        match self.trace {
            Some(_) => folder.write_trace(&self.progress.trace),
            None => Ok(()),
        }
    }

    /// Scores the last epoch on the validation points, if it is not yet, keeps its weights if
    /// they are to be selected, and ends the run if no epoch has scored better for as long as
    /// patience lasts. Its checkpoint is told the score.
    pub(super) fn validate_epoch(&mut self, folder: &RunFolder, stop: &AtomicBool) -> Result<()> {
        let unscored = |epoch: &&EpochMetrics| epoch.validation_accuracy.is_none();
        let (Some(held_out), Some(_)) = (&self.validation, self.progress.epochs.last().filter(unscored))
        else {
            return Ok(());
        };
        let validation = self.evaluate(self.probe.as_slice(), (held_out, None), Purpose::Probe, stop)?;
        let Some((last, before)) = self.progress.epochs.split_last_mut() else { return Ok(()) };
        last.validation_accuracy = Some(validation.clean);
        let probe = validation.attacks.first();
        last.probe_accuracy = probe.map(|probe| probe.robust);
        let of_probe = probe.map_or(0.0, |probe| probe.cost.passes());
        last.validation_passes = Some(validation.points as f64 / 2.0 + of_probe);
        let Train { epochs, patience, select, .. } = self.experiment.train;
        let best_before = before.iter().map(EpochMetrics::score).fold(f64::NEG_INFINITY, f64::max);
        if select == Select::Best && last.score() > best_before {
            let weights = self.averaged().map_or_else(|| named_clones(self.model.state()), Average::state);
            let weights = [("weights".to_owned(), weights)].into();
            checkpoint::save(&folder.best(), self.progress.update, &weights, &self.progress)?;
        }
        let best = best_epoch(&self.progress.epochs).map_or(0, |best| best.epoch);
        if let Some(last) = self.progress.epochs.last_mut() {
            // What is averaged from some epoch on has not been scored before that.
            let steps_of_an_epoch = (self.optimizer.steps() / last.epoch as u64).max(1);
            let scored = self
                .average
                .as_ref()
                .map_or(last.epoch, |average| average.steps_in_it().div_ceil(steps_of_an_epoch) as usize);
            let without_a_better = (last.epoch - best).min(scored);
            last.stopped_early =
                last.epoch < epochs && patience.is_some_and(|patience| without_a_better >= patience);
        }
        checkpoint::save_progress(&folder.checkpoints(), self.progress.update, &self.progress)
    }

    /// Begins an event file for TensorBoard, if one is wanted, with what was measured at this
    /// update: the sitting before may not have got to write it.
    pub(super) fn begin_events(&mut self, folder: &RunFolder) -> Result<()> {
        if !self.experiment.train.tensorboard {
            return Ok(());
        }
        let Progress { update, ref epochs, ref trace, .. } = self.progress;
        let mut events = EventFile::new(folder.path(), update);
        if let Some(point) = trace.last().filter(|point| point.updates == update) {
            events.trace(point)?;
        }
        if let Some(metrics) = epochs.last().filter(|epoch| epoch.updates == update) {
            events.epoch(metrics)?;
        }
        self.events = Some(events);
        Ok(())
    }
}
