//! What happens between updates: a run is measured, reported and saved, without disturbing what
//! comes after.

use super::average::Average;
use super::carried::Carried;
use super::cost::statistics_passes;
use super::reporter::Reporter;
use super::shards::{self, CARRIED, PARTICLES, Stores};
use super::store::{self, ParticleStore};
use super::tally::{self, Tally};
use super::trace::Trace;
use super::{Training, alarm};
use crate::config::{Select, Train};
use crate::data::examples::Examples;
use crate::error::shown;
use crate::evaluation::evaluator::Evaluator;
use crate::evaluation::verdict::{Evaluation, Order};
use crate::law::faces;
use crate::law::sampling::Subject;
use crate::plugin::Attack;
use crate::run::RunFolder;
use crate::run::checkpoint::{self, Groups, ReadGroups, Wanted};
use crate::run::progress::{EpochMetrics, LawMetrics, Progress, TracePoint, best_epoch};
use crate::run::tensorboard::EventFile;
use crate::torch::c10d::Reducer;
use crate::torch::finite::FiniteCheck;
use crate::torch::random::{Draws, Forward, Purpose, permutation, seed_for};
use crate::util::console::{Style, part, quoted};
use crate::util::memory;
use crate::{Error, Result};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor, no_grad};

/// The group of the objective's state in a checkpoint.
const OBJECTIVE: &str = "objective";

/// Number of updates between two reads of what the device has noted (losses, NaN).
const UPDATES_PER_READ: u64 = 50;

/// Minibatches from which averaged weights take the running statistics of batch normalisation. With
/// the usual momentum of 0.1, all but 0.003 % of a running statistic comes from them.
const STATISTICS_BATCHES: usize = 100;

/// How often, and with which pause, a failed run looks whether its folder is being removed.
const REMOVAL_LOOKS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// Training points that are compared with the law between epochs.
const DIAGNOSED_POINTS: usize = 500;

impl Training {
    /// Prepares the run's folder. A resumed run may go back behind lines that were written, and may
    /// have been stopped before its last epoch was recorded.
    pub(super) fn begin(
        &mut self,
        folder: &RunFolder,
        reporter: &mut Reporter,
        stop: &AtomicBool,
    ) -> Result<()> {
        let plan = &self.plan;
        let (updates, points) = (plan.schedule.updates, plan.examples.len());
        reporter.start(&self.records.progress, updates, plan.updates_per_epoch(), points);
        let is_first = plan.ranks.is_first();
        if is_first {
            folder.write_metrics(&self.records.progress.epochs[..self.records.recorded_epochs])?;
            self.write_trace(folder)?;
        }
        // From here on, the run does not need the place that its weights came from.
        if self.plan.experiment.train.init.is_some() && self.records.saved.is_none() {
            self.save_checkpoint(folder)?;
        }
        if (self.measure(folder, reporter, stop)? || !self.is_over()) && is_first {
            self.begin_events(folder)?;
        }
        Ok(())
    }

    /// What is due after an update: the device's notes are read, an epoch is summed up, a
    /// checkpoint is saved, and what is to be measured is measured.
    pub(super) fn after_update(
        &mut self,
        folder: &RunFolder,
        reporter: &mut Reporter,
        stop: &AtomicBool,
        stopping: bool,
    ) -> Result<()> {
        let update = self.records.progress.update;
        reporter.advance(update);
        if update.is_multiple_of(UPDATES_PER_READ) || reporter.is_line_due() {
            self.sums.finite.read()?;
            reporter.update(update, self.sums.tally.read());
        }
        let ends_epoch = update.is_multiple_of(self.plan.updates_per_epoch());
        if ends_epoch {
            self.end_epoch()?;
        }
        let checkpoint_every = self.plan.experiment.train.checkpoint_every;
        if ends_epoch || stopping || checkpoint_every.is_some_and(|every| update.is_multiple_of(every)) {
            self.save_checkpoint(folder)?;
        }
        let traces = self.records.trace.as_ref();
        if ends_epoch || traces.is_some_and(|trace| trace.updates.binary_search(&update).is_ok()) {
            self.measure(folder, reporter, stop)?;
        }
        Ok(())
    }

    /// Measures what is due after this update and not measured yet, in the first process, and tells
    /// the others how the run stands. Returns whether there was anything to do.
    fn measure(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<bool> {
        let ranks = Rc::clone(&self.plan.ranks);
        let (mut anything, mut interruption) = (false, None);
        let (progress, is_interrupted) = ranks.from_first(|| {
            match self.measure_here(folder, reporter, stop) {
                Ok(did) => anything = did,
                Err(error) if error.is_interrupted() => interruption = Some(error),
                Err(error) => return Err(error),
            }
            Ok((self.records.progress.clone(), interruption.is_some()))
        })?;
        if !ranks.is_first() {
            self.records.recorded_epochs = progress.epochs.len();
            self.records.progress = progress;
        }
        if is_interrupted {
            // What was to be measured is measured when the run goes on.
            self.keep(folder)?;
            let elsewhere = || Error::new("stopped while the network was measured").interrupted();
            return Err(interruption.unwrap_or_else(elsewhere));
        }
        Ok(anything)
    }

    /// Measures what is due after this update and not measured yet: the score of an epoch, a point
    /// of the trace. The checkpoint comes first, since a measurement may take long, fail or be
    /// interrupted. The epoch's line in `metrics.jsonl` comes last, and means that all of it is
    /// done. Returns whether there was anything to do.
    fn measure_here(
        &mut self,
        folder: &RunFolder,
        reporter: &mut Reporter,
        stop: &AtomicBool,
    ) -> Result<bool> {
        self.diagnose_epoch(folder)?;
        self.validate_epoch(folder, (reporter.style(), stop))?;
        let traced = self.trace_if_due(folder, reporter, stop)?;
        if self.records.recorded_epochs == self.records.progress.epochs.len() {
            return Ok(traced);
        }
        self.raise_alarms(folder)?;
        self.report_epoch(reporter)?;
        folder.write_metrics(&self.records.progress.epochs)?;
        self.records.recorded_epochs = self.records.progress.epochs.len();
        Ok(true)
    }

    /// Sums up the epoch that has just ended.
    fn end_epoch(&mut self) -> Result<()> {
        let ((loss, correct, particles), (sums, visited)) = self.tally_everywhere()?;
        // All processes step along the same gradients.
        let gradient = self.sums.tally.read_gradients().metrics();
        let names = self.players.sampler.iter().flat_map(|sampler| &sampler.declaration().figures);
        let sampler = names.cloned().zip(sums.into_iter().map(|sum| sum / visited)).collect();
        self.stop_clock();
        self.sums.tally = Tally::new((0.0, 0.0, 0.0), self.plan.device);
        let Progress { update, seconds, communication_seconds, .. } = self.records.progress;
        let epoch = update / self.plan.updates_per_epoch();
        let metrics = EpochMetrics {
            epoch: epoch as usize,
            updates: update,
            learning_rate: self.plan.schedule.learning_rate(update - 1),
            train_loss: loss / particles,
            train_accuracy: correct / particles,
            sampler,
            gradient,
            law: None,
            validation_accuracy: None,
            probe_accuracy: None,
            validation_passes: None,
            statistics_passes: self.statistics_passes(),
            alarms: Vec::new(),
            stopped_early: false,
            passes_per_sample: epoch * self.plan.passes_per_epoch,
            seconds,
            communication_seconds: (communication_seconds > 0.0).then_some(communication_seconds),
            // None is below every number.
            peak_memory: memory::peak()
                .max(self.records.progress.epochs.last().and_then(|last| last.peak_memory)),
        };
        self.records.progress.epochs.push(metrics);
        Ok(())
    }

    /// The sums of the present epoch over all processes.
    fn tally_everywhere(&self) -> Result<(tally::Sums, tally::Figures)> {
        let (loss, correct, particles) = self.sums.tally.read();
        let (mut figures, visited) = self.sums.tally.read_figures();
        if self.plan.ranks.is_alone() {
            return Ok(((loss, correct, particles), (figures, visited)));
        }
        let declared = self.players.sampler.iter().map(|sampler| sampler.declaration().figures.len()).sum();
        figures.resize(declared, 0.0);
        figures.extend([loss, correct, particles, visited]);
        let mut sums = self.plan.ranks.sum(&figures)?;
        let of_updates = sums.split_off(declared);
        Ok(((of_updates[0], of_updates[1], of_updates[2]), (sums, of_updates[3])))
    }

    /// Adds to the last epoch what is wrong with it, if anything, in its checkpoint too.
    pub(super) fn raise_alarms(&mut self, folder: &RunFolder) -> Result<()> {
        let over = self.is_over();
        let progress = &mut self.records.progress;
        let Some(last) = progress.epochs.last() else { return Ok(()) };
        // A network that was not trained in the probe's whole ball need not withstand the probe
        // yet.
        let first_update = (last.epoch as u64 - 1) * self.plan.updates_per_epoch();
        let Train { epsilon_scale, domain_only, clip_gradient, .. } = self.plan.experiment.train;
        let is_whole = self.plan.epsilon_ramp(first_update) == 1.0 && epsilon_scale >= 1.0 && !domain_only;
        let adversary = self.players.sampler.as_ref().map(|_| is_whole);
        let chance = alarm::Chance {
            accuracy: 1.0 / self.players.model.classes() as f64,
            loss: self.players.losses.at_chance.loss,
        };
        let further = match adversary {
            None => "or change the learning rate",
            Some(_) if domain_only => {
                "or change the learning rate, the options of the objective (train.objective) or the seed"
            }
            Some(_) => {
                "use a longer epsilon ramp (train.warmup_epsilon), or change train.epsilon_scale, the \
                 learning rate or the seed"
            }
        };
        let remedy = match clip_gradient {
            None => format!("limit the gradients (train.clip_gradient), {further}"),
            Some(length) => {
                format!("limit the gradients to less than {length} (train.clip_gradient), {further}")
            }
        };
        let alarms = alarm::alarms_of(&progress.epochs, over, (chance, &remedy), adversary);
        if let Some(last) = progress.epochs.last_mut().filter(|last| last.alarms != alarms) {
            last.alarms = alarms;
            save_progress(folder, progress)?;
        }
        Ok(())
    }

    fn report_epoch(&mut self, reporter: &mut Reporter) -> Result<()> {
        let Some((metrics, before)) = self.records.progress.epochs.split_last() else { return Ok(()) };
        reporter.epoch(metrics);
        // What was said after the epoch before is not said again.
        let name = |alarm: &String| alarm.split(':').next().map(str::to_owned);
        let said = before.last().map(|epoch| epoch.alarms.iter().map(name).collect::<Vec<_>>());
        let is_new = |alarm: &&String| said.as_ref().is_none_or(|said| !said.contains(&name(alarm)));
        metrics.alarms.iter().filter(is_new).for_each(|finding| reporter.alarm(finding));
        self.records.events.as_mut().map_or(Ok(()), |events| events.epoch(metrics))
    }

    /// Compares the stored particles of some points with natural examples and uniform draws, if that
    /// is due after this epoch and not done yet.
    fn diagnose_epoch(&mut self, folder: &RunFolder) -> Result<()> {
        let (plan, players) = (&self.plan, &self.players);
        let Train { diagnose_every, particles: copies, seed, store: format, .. } = plan.experiment.train;
        let is_due = |epoch: &&EpochMetrics| {
            epoch.law.is_none() && diagnose_every.is_some_and(|every| epoch.epoch.is_multiple_of(every))
        };
        let last = self.records.progress.epochs.last().filter(is_due);
        let (Some(store), Some(_)) = (&players.store, last) else { return Ok(()) };
        let _part = part("comparing the stored particles with natural examples");
        let mut points = permutation(0, Purpose::Subset, 0, plan.examples.len());
        // Of several processes, the first one has some of the particles.
        points.retain(|point| plan.shards.has(*point));
        points.truncate(DIAGNOSED_POINTS);
        let selection = plan.shards.select(&points, plan.device)?;
        let points = selection.points.clone();
        let (natural, labels) = plan.examples.batch(&selection.indices)?;
        let mut threat = plan.experiment.training_threat().ball();
        threat.epsilon *= plan.epsilon_ramp(self.records.progress.update.saturating_sub(1));
        let subject = Subject { model: &players.model, threat, natural, labels, points, seed };
        let repeated = subject.repeated(copies);
        let particles = store.load(&selection, &repeated).particles;
        let mut places = faces::Tally::new(threat, store::rounding(format, &threat));
        places.add(&particles, &repeated)?;
        let Some(places) = places.places()? else { return Ok(()) };
        let mean = |particles: &Tensor, copies: usize| -> Result<f64> {
            Ok(subject.losses(particles, copies)?.0.mean(Kind::Double).double_value(&[]))
        };
        let law = LawMetrics {
            points: subject.points.len(),
            epsilon: threat.epsilon,
            natural: mean(&subject.natural, 1)?,
            uniform: mean(&subject.uniform("uniform", 1)?, 1)?,
            stored: mean(&particles, copies)?,
            distance: places.mean,
            on_faces: places.coordinates.map_or(0.0, |coordinates| coordinates.on_faces),
        };
        let progress = &mut self.records.progress;
        if let Some(last) = progress.epochs.last_mut() {
            last.law = Some(law);
        }
        save_progress(folder, progress)
    }

    pub(super) fn start_clock(&mut self) {
        self.records.clock.get_or_insert_with(Instant::now);
    }

    fn stop_clock(&mut self) {
        let seconds = self.records.clock.take().map_or(0.0, |started| started.elapsed().as_secs_f64());
        self.records.progress.seconds += seconds;
        let waited = self.players.reducer.as_ref().map_or(0.0, Reducer::take_waited);
        self.records.progress.communication_seconds += waited;
    }

    /// Refuses to save a state from which training could not go on: weights or moments that the
    /// last update broke, or weights that give no finite logits.
    fn refuse_broken_state(&self) -> Result<()> {
        let broken = |what: &str| {
            Err(match self.records.progress.update {
                0 => Error::new(format!("{what} are NaN or infinite before training begins"))
                    .fix("look whether the weights are of this model and these options"),
                update => Error::new(format!("{what} became NaN or infinite at update {update}"))
                    .fix("lower train.learning_rate"),
            }
            .on_the_way())
        };
        let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        let (model, optimizer) = (&self.players.model, &self.players.optimizer);
        for (name, tensor) in model.state().iter().chain(&optimizer.state()) {
            if !finite(tensor) {
                return broken(&format!("`{name}`"));
            }
        }
        let some = self.plan.experiment.train.batch.min(self.plan.examples.len()) as i64;
        let (images, _) = self.plan.examples.batch(&Tensor::arange(some, (Kind::Int64, self.plan.device)))?;
        if finite(&model.logits(&images)?) { Ok(()) } else { broken("the model's logits") }
    }

    /// Saves the present state, if it is not saved yet.
    pub(super) fn keep(&mut self, folder: &RunFolder) -> Result<()> {
        if self.records.saved == Some(self.records.progress.update) {
            return Ok(());
        }
        self.save_checkpoint(folder)
    }

    fn save_checkpoint(&mut self, folder: &RunFolder) -> Result<()> {
        folder.refuse_if_moved()?;
        self.save_checkpoint_in(folder)
    }

    /// What follows from an error between two updates. If the run's folder is no longer at its path,
    /// that is the error, and the state is saved where it can be.
    pub(super) fn rescue_if_moved(&mut self, folder: &RunFolder, error: Error) -> Error {
        // Several processes save their state together, or not at all.
        if !self.plan.ranks.is_alone() {
            return error;
        }
        // A folder that is being removed disappears after everything in it.
        let looks = (0..REMOVAL_LOOKS).map(|look| {
            thread::sleep(REMOVAL_PAUSE * look.min(1));
            folder.refuse_if_moved()
        });
        let Some(moved) = looks.filter_map(Result::err).next() else { return error };
        let update = self.records.progress.update;
        let rescued = folder.rescue().and_then(|place| {
            self.save_checkpoint_in(&place)?;
            Ok(place)
        });
        match rescued {
            Ok(place) => {
                let place = shown(place.path());
                moved
                    .note("kept", format!("the state of update {update}, in {place}"))
                    .fix(format!("go on with `host train --resume {}`", quoted(&place)))
            }
            Err(why) => moved.note("lost", format!("the state of update {update}: {}", why.first_line())),
        }
    }

    fn save_checkpoint_in(&mut self, folder: &RunFolder) -> Result<()> {
        let _part = part(format!("saving the checkpoint of update {}", self.records.progress.update));
        // Work that the device still has to do belongs to the time of training.
        self.sums.finite.read()?;
        self.stop_clock();
        let ranks = Rc::clone(&self.plan.ranks);
        let (tally, figures) = self.tally_everywhere()?;
        let progress = &mut self.records.progress;
        (progress.tally, progress.figures) = (tally, figures);
        progress.gradients = self.sums.tally.read_gradients();
        progress.optimizer_steps = self.players.optimizer.steps();
        let update = progress.update;
        let mut groups = self.particles(folder)?;
        if ranks.is_first() {
            self.refuse_broken_state()?;
            self.renew_statistics()?;
            let players = &self.players;
            groups.insert("weights".to_owned(), named_clones(players.model.state()));
            groups.insert("optimizer".to_owned(), players.optimizer.state());
            if !players.losses.state.is_empty() {
                groups.insert(OBJECTIVE.to_owned(), named_clones(&players.losses.state));
            }
            if let Some(average) = averaged(&players.average) {
                groups.insert(checkpoint::AVERAGE.to_owned(), average.state());
            }
            let progress = &self.records.progress;
            // The folder may have been replaced while the state was copied and checked.
            folder.refuse_if_moved()?;
            checkpoint::save_with(&folder.checkpoints(), update, &groups, progress, |partial| {
                ranks.from_first(|| Ok(partial.to_owned()))?;
                ranks.to_first(checkpoint::Digests::new())
            })?;
        } else {
            let partial: PathBuf = ranks.from_first(|| Ok(PathBuf::new()))?;
            ranks.to_first(checkpoint::write_groups(&partial, &groups)?)?;
        }
        // The checkpoint is whole only now.
        ranks.from_first(|| Ok(()))?;
        self.players.store.iter_mut().flat_map(Stores::iter_mut).for_each(ParticleStore::saved);
        self.records.saved = Some(update);
        Ok(())
    }

    /// The particles of this process, by the names of their groups in a checkpoint.
    fn particles(&self, folder: &RunFolder) -> Result<Groups> {
        let shards = &self.plan.shards;
        let stores = self.players.store.iter().flat_map(Stores::iter);
        let parts = shards.own().iter().zip(stores).map(|(shard, store)| {
            let place = store::place(&self.plan.experiment.train, folder.path(), *shard);
            Ok((shards.group(PARTICLES, *shard), store.state(place.as_deref())?))
        });
        let carried = self.players.carried.iter().flat_map(Carried::state);
        let named = |(shard, rows): (&usize, _)| Ok((shards.group(CARRIED, *shard), rows));
        let carried = shards.own().iter().zip(carried).map(named);
        parts.chain(carried).collect()
    }

    /// Continues from the newest checkpoint that is whole. Returns its update, and which
    /// checkpoints were damaged.
    ///
    /// # Errors
    /// If every checkpoint is damaged, or it does not fit this run.
    pub(super) fn load_checkpoint(&mut self, folder: &RunFolder) -> Result<(u64, Vec<String>)> {
        let (names, carried_names) = (self.own_groups(PARTICLES), self.own_groups(CARRIED));
        let mut groups = vec!["weights", "optimizer", OBJECTIVE, checkpoint::AVERAGE];
        groups.extend(names.iter().chain(&carried_names).map(String::as_str));
        let Some(mut saved) = self.newest_checkpoint(folder, &groups)? else { return Ok((0, Vec::new())) };
        let epochs = self.plan.experiment.train.epochs;
        saved.progress.fits(saved.update, epochs, self.plan.updates_per_epoch())?;
        let mut group = |name: &str| saved.groups.remove(name).unwrap_or_default();
        let players = &mut self.players;
        players.model.load(&group("weights"))?;
        players.optimizer.load(&group("optimizer"), saved.progress.optimizer_steps)?;
        players.losses.load(&group(OBJECTIVE))?;
        let stores = players.store.iter_mut().flat_map(Stores::iter_mut);
        for ((name, shard), store) in names.iter().zip(self.plan.shards.own()).zip(stores) {
            let place = store::place(&self.plan.experiment.train, folder.path(), *shard);
            store.load_state(&group(name), place.as_deref())?;
        }
        if let Some(carried) = &mut players.carried {
            for (shard, name) in carried_names.iter().enumerate() {
                carried.load_state(shard, &group(name))?;
            }
        }
        if let Some(average) = &mut players.average {
            average.load(&group(checkpoint::AVERAGE), saved.progress.optimizer_steps)?;
        }
        // Of several processes, the first one goes on with the sums of all.
        self.sums.tally = if self.plan.ranks.is_first() {
            Tally::new(saved.progress.tally, self.plan.device)
                .with_figures(&saved.progress.figures)
                .with_gradients(&saved.progress.gradients)
        } else {
            Tally::new((0.0, 0.0, 0.0), self.plan.device)
        };
        self.records.progress = saved.progress;
        self.records.saved = Some(self.records.progress.update);
        // Metrics that cannot be read are written anew.
        let written: Vec<EpochMetrics> = folder.metrics().unwrap_or_default();
        self.records.recorded_epochs = written.len().min(self.records.progress.epochs.len());
        Ok((self.records.progress.update, saved.damaged))
    }

    /// The groups of this kind of this process's shards in a checkpoint.
    fn own_groups(&self, kind: &str) -> Vec<String> {
        let shards = &self.plan.shards;
        shards.own().iter().map(|shard| shards.group(kind, *shard)).collect()
    }

    /// The newest checkpoint that is whole in all processes: the first one proposes one after the
    /// other, and each process says whether its part is whole.
    fn newest_checkpoint(
        &self,
        folder: &RunFolder,
        groups: &[&str],
    ) -> Result<Option<checkpoint::Loaded<Progress>>> {
        let ranks = &self.plan.ranks;
        let names = [PARTICLES, CARRIED].map(|kind| shards::groups(kind, &self.plan.experiment.train));
        let others: Vec<_> = names.iter().flatten().map(String::as_str).collect();
        let own = self.own_groups(PARTICLES);
        let check = |groups: &ReadGroups| {
            let stores = self.players.store.iter().flat_map(Stores::iter);
            let parts = own.iter().zip(stores).filter_map(|(name, store)| Some((groups.get(name)?, store)));
            parts.into_iter().try_for_each(|(particles, store)| store.check(particles))
        };
        let load = |is_wanted: &dyn Fn(u64) -> bool| {
            let wanted = Wanted { others: &others, is_wanted, check: &check };
            checkpoint::load_checked::<Progress>(&folder.checkpoints(), groups, &wanted)
        };
        let (mut below, mut damaged) = (u64::MAX, Vec::new());
        loop {
            let mut loaded = None;
            let proposed = ranks.from_first(|| {
                loaded = load(&|update| update < below)?;
                Ok(loaded.as_ref().map(|loaded| loaded.update))
            })?;
            let Some(update) = proposed else { return Ok(None) };
            let missing = || Error::new(format!("the checkpoint of update {update} is not seen here"));
            let here = if ranks.is_first() {
                Ok(loaded)
            } else {
                load(&|found| found == update).and_then(|found| found.ok_or_else(missing).map(Some))
            };
            let faults = ranks.to_first(here.as_ref().err().map(ToString::to_string))?;
            let is_whole = ranks.from_first(|| Ok(faults.iter().all(Option::is_none)))?;
            if is_whole {
                let before = |mut loaded: checkpoint::Loaded<Progress>| {
                    loaded.damaged.splice(0..0, damaged);
                    loaded
                };
                return Ok(here?.map(before));
            }
            damaged.extend(faults.into_iter().flatten());
            below = update;
        }
    }

    /// Gives averaged weights running statistics of batch normalisation of their own, where these
    /// are not averaged too: from some minibatches of particles, where visits begin. They depend on
    /// the state of training alone, not on when they were last renewed.
    fn renew_statistics(&mut self) -> Result<()> {
        let model = &self.players.model;
        let Some(mut average) = self.players.average.take_if(|average| average.has_stale_buffers(model))
        else {
            return Ok(());
        };
        let _part = part("renewing the statistics of the averaged weights");
        let renewed = average.renew_buffers(&self.players.model, || self.forward_particles());
        self.players.average = Some(average);
        renewed
    }

    fn forward_particles(&self) -> Result<()> {
        let (plan, update) = (&self.plan, self.records.progress.update);
        let Train { seed, batch, particles, precision, .. } = plan.experiment.train;
        let mut order = permutation(seed, Purpose::Statistics, update, plan.examples.len());
        // Of several processes, the first one has some of the particles.
        order.retain(|point| plan.shards.has(*point));
        for (number, points) in order.chunks(batch).cycle().take(STATISTICS_BATCHES).enumerate() {
            let selection = plan.shards.select(points, plan.device)?;
            let minibatch = self.players.minibatch(plan, update, &selection)?;
            let draws = Draws::new(seed, Purpose::Statistics, update, &minibatch.points, particles);
            let mut visit = self.players.begin_visit(plan, update, &minibatch, &draws)?;
            if let Some(sampler) = &self.players.sampler {
                let mut watch = FiniteCheck::new("update", plan.device);
                sampler.begin(&mut visit, &draws, &mut watch)?;
                watch.read()?;
            }
            let forward = Forward::Step(number).of_update(update);
            tch::manual_seed(seed_for(seed, Purpose::Statistics, forward));
            let model = minibatch.seen_by(&self.players.model);
            drop(no_grad(|| model.forward_in(precision, &visit.particles, true))?);
        }
        Ok(())
    }

    /// Passes that renewing the running statistics takes; none if they are not renewed.
    fn statistics_passes(&self) -> Option<f64> {
        let (plan, players) = (&self.plan, &self.players);
        let stale = players.average.as_ref().is_some_and(|average| average.has_stale_buffers(&players.model));
        stale.then(|| statistics_passes(&plan.experiment.train, plan.examples.len(), STATISTICS_BATCHES))
    }

    /// Evaluates the weights that are evaluated in the end (averaged ones if there are any); an
    /// error that is an interruption once `stop` is set.
    fn evaluate(
        &self,
        attacks: &[Attack],
        (examples, points): (&Examples, Option<usize>),
        purpose: Purpose,
        (style, stop): (Style, &AtomicBool),
    ) -> Result<Evaluation> {
        let (experiment, model) = (&self.plan.experiment, &self.players.model);
        let evaluator = Evaluator {
            model,
            source: model,
            order: Order::Separate,
            stop,
            examples,
            purpose,
            threat: experiment.threat.clone(),
            restarts: 1,
            batch: experiment.eval.batch_on(self.plan.device),
            seed: experiment.train.seed,
            device: self.plan.device,
            style,
        };
        let work = || evaluator.run(attacks, evaluator.choose_points(points)?);
        let (evaluation, failure) = match averaged(&self.players.average) {
            Some(average) => average.in_place_of(model, work)?,
            None => work()?,
        };
        failure.map_or(Ok(evaluation), Err)
    }

    /// Adds the present weights to the trace, if they are to be traced and are not yet: after the
    /// updates that were planned, and at the end of a run that patience has ended. The random
    /// numbers are those of `host eval`; the clock of training stands still meanwhile. Returns
    /// whether there was anything to add.
    fn trace_if_due(&mut self, folder: &RunFolder, reporter: &Reporter, stop: &AtomicBool) -> Result<bool> {
        let Progress { update, ref trace, .. } = self.records.progress;
        let traced = trace.last().is_some_and(|point| point.updates == update);
        let ended = self.records.progress.stopped_early();
        let is_due = |trace: &Trace| !traced && (ended || trace.updates.binary_search(&update).is_ok());
        if !self.records.trace.as_ref().is_some_and(is_due) {
            return Ok(false);
        }
        // Work that the device still has to do belongs to the time of training.
        self.sums.finite.read()?;
        self.stop_clock();
        self.renew_statistics()?;
        let Some(Trace { attack, examples, points, .. }) = &self.records.trace else { return Ok(false) };
        let spec = attack.record.spec.clone();
        let attack = std::slice::from_ref(attack);
        let output = (reporter.style(), stop);
        let found = self.evaluate(attack, (examples, Some(*points)), Purpose::Attack, output);
        let found = found?;
        let point = TracePoint {
            updates: update,
            optimizer_steps: self.players.optimizer.steps(),
            passes_per_sample: self.plan.passes_per_sample(update),
            seconds: self.records.progress.seconds,
            clean_accuracy: found.clean,
            attack_accuracy: found.worst_case,
            attack: spec,
            points: found.count,
        };
        reporter.trace(&point);
        self.records.events.as_mut().map_or(Ok(()), |events| events.trace(&point))?;
        self.records.progress.trace.push(point);
        self.write_trace(folder)?;
        if self.records.saved == Some(update) {
            save_progress(folder, &self.records.progress)?;
        }
        Ok(true)
    }

    /// Rewrites `trace.jsonl`: a resumed run may go back behind points that were written.
    fn write_trace(&self, folder: &RunFolder) -> Result<()> {
        match self.records.trace {
            Some(_) => folder.write_trace(&self.records.progress.trace),
            None => Ok(()),
        }
    }

    /// Scores the last epoch on the validation points, if it is not scored yet, keeps its weights
    /// if they are to be selected, and ends the run if no epoch has scored better for as long as
    /// patience lasts. The score is added to its checkpoint.
    fn validate_epoch(&mut self, folder: &RunFolder, output: (Style, &AtomicBool)) -> Result<()> {
        let unscored = |epoch: &&EpochMetrics| epoch.validation_accuracy.is_none();
        let last = self.records.progress.epochs.last().filter(unscored);
        let (Some(held_out), Some(_)) = (&self.records.validation, last) else { return Ok(()) };
        let probe = self.records.probe.as_slice();
        let validation = self.evaluate(probe, (held_out, None), Purpose::Probe, output)?;
        let progress = &mut self.records.progress;
        let Some((last, before)) = progress.epochs.split_last_mut() else { return Ok(()) };
        last.validation_accuracy = Some(validation.clean);
        let probe = validation.attacks.first();
        last.probe_accuracy = probe.map(|probe| probe.robust);
        let of_probe = probe.map_or(0.0, |probe| probe.cost.passes());
        last.validation_passes = Some(validation.count as f64 / 2.0 + of_probe);
        let Train { epochs, select, .. } = self.plan.experiment.train;
        let best_before = before.iter().map(EpochMetrics::score).fold(f64::NEG_INFINITY, f64::max);
        let players = &self.players;
        if select == Select::Best && last.score() > best_before {
            let own = || named_clones(players.model.state());
            let weights = averaged(&players.average).map_or_else(own, Average::state);
            let weights = [("weights".to_owned(), weights)].into();
            folder.refuse_if_moved()?;
            checkpoint::save(&folder.best(), progress.update, &weights, progress)?;
        }
        let is_out_of_patience = self.is_out_of_patience();
        let progress = &mut self.records.progress;
        if let Some(last) = progress.epochs.last_mut() {
            last.stopped_early = last.epoch < epochs && is_out_of_patience;
        }
        save_progress(folder, progress)
    }

    /// Whether no epoch has scored better for as long as patience lasts.
    pub(super) fn is_out_of_patience(&self) -> bool {
        let (players, epochs) = (&self.players, &self.records.progress.epochs);
        let (Some(best), Some(last)) = (best_epoch(epochs), epochs.last()) else { return false };
        // An average that begins at some epoch has not been scored before that epoch.
        let steps_of_an_epoch = (players.optimizer.steps() / last.epoch as u64).max(1);
        let scored = players
            .average
            .as_ref()
            .map_or(last.epoch, |average| average.steps_in_it().div_ceil(steps_of_an_epoch) as usize);
        let without_a_better = (last.epoch - best.epoch).min(scored);
        self.plan.experiment.train.patience.is_some_and(|patience| without_a_better >= patience)
    }

    /// Begins an event file for TensorBoard, if one is wanted, with what was measured at this
    /// update: the session before may have been stopped before it could write that.
    fn begin_events(&mut self, folder: &RunFolder) -> Result<()> {
        if !self.plan.experiment.train.tensorboard {
            return Ok(());
        }
        let Progress { update, ref epochs, ref trace, .. } = self.records.progress;
        let mut events = EventFile::new(folder.path(), update);
        if let Some(point) = trace.last().filter(|point| point.updates == update) {
            events.trace(point)?;
        }
        if let Some(metrics) = epochs.last().filter(|epoch| epoch.updates == update) {
            events.epoch(metrics)?;
        }
        self.records.events = Some(events);
        Ok(())
    }
}

/// The averaged weights, if any step is in them yet: they are evaluated in the weights' place.
fn averaged(average: &Option<Average>) -> Option<&Average> {
    average.as_ref().filter(|average| average.has_begun())
}

/// Adds to what the run's last checkpoint says of its progress.
fn save_progress(folder: &RunFolder, progress: &Progress) -> Result<()> {
    folder.refuse_if_moved()?;
    checkpoint::save_progress(&folder.checkpoints(), progress.update, progress)
}

fn named_clones(tensors: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
