//! The min-max loop.

mod measuring;

use crate::alarm;
use crate::augmentation::Transformation;
use crate::average::{Average, Averaging};
use crate::checkpoint::{self, Groups};
use crate::console::Reporter;
use crate::data::Dataset;
use crate::device::upload;
use crate::experiment::{Experiment, Mode, ModelMode, Start as StartChoice, Train};
use crate::objective::{Losses, Objective};
use crate::optimizer::Optimizer;
use crate::plugin::{Attack, Model, Sampler, Visit, fresh_start};
use crate::progress::{EpochMetrics, Progress, Tally};
use crate::random::{Draws, Forward, Purpose, permutation, seed_for};
use crate::run::RunFolder;
use crate::schedule::Schedule;
use crate::store::{Examples, ParticleStore, Stored, repeat_rows};
use crate::tensorboard::EventFile;
use crate::trace::Trace;
use crate::watch::Watch;
use crate::{Error, Result};
use plugin_api::Start;
use plugin_api::losses::{self, correct, cross_entropy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor, no_grad};

/// Updates between two looks at what the device has noted (losses, trouble).
const UPDATES_PER_LOOK: u64 = 50;

/// A run in memory.
pub struct Training {
    experiment: Experiment,
    model: Model,
    sampler: Option<Sampler>,
    examples: Examples,
    validation: Option<Examples>,
    probe: Option<Attack>,
    trace: Option<Trace>,
    events: Option<EventFile>,
    start: Start,
    store: Option<ParticleStore>,
    optimizer: Optimizer,
    average: Option<Average>,
    schedule: Schedule,
    device: Device,
    tally: Tally,
    watch: Watch,
    progress: Progress,
    /// How many epochs have their line in `metrics.jsonl`.
    settled: usize,
    /// The update of the checkpoint that this run wrote or read last.
    saved: Option<u64>,
    /// Since when it trains, while it does.
    clock: Option<Instant>,
}

/// The points of an update or of a look at the particles, K rows each: N in all.
struct Minibatch {
    /// Length N.
    points: Vec<i64>,
    /// As they lie in the data: `[N, C, H, W]`.
    natural: Tensor,
    /// `[N]`.
    labels: Tensor,
    /// How the network sees them; chains move in that frame, and the store knows the data's own.
    transformation: Transformation,
    /// The natural examples as the network sees them.
    seen: Tensor,
    /// Their chains as they lie in the store, if there is one.
    stored: Option<Stored>,
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
    /// A run that has done nothing yet. `sampler` is none for ordinary training; `probe` is
    /// tried on the validation points, `trace` on the test set.
    ///
    /// # Errors
    /// If there are no training points left, the run is over before the trace begins, or the
    /// device has no room.
    pub fn new(
        experiment: Experiment,
        model: Model,
        sampler: Option<Sampler>,
        probe: Option<Attack>,
        trace: Option<Trace>,
        dataset: &Dataset,
        device: Device,
    ) -> Result<Self> {
        let (count, held_out) = split(&experiment, dataset)?;
        let all = dataset.train.count() as usize;
        check(&experiment, dataset, sampler.as_ref())?;
        let examples = Examples::new(&dataset.train, 0, count, device)?;
        let validation = (held_out > 0)
            .then(|| Examples::new(&dataset.train, all - held_out, held_out, device))
            .transpose()?;
        let declared = sampler.as_ref().map(Sampler::declaration);
        let start = start_of_chains(&experiment, sampler.as_ref());
        let mut store = declared
            .filter(|_| start == Start::Store)
            .map(|sampler| {
                let Train { particles, store, ref store_file, .. } = experiment.train;
                ParticleStore::new(
                    &examples,
                    particles,
                    sampler.state_tensors,
                    experiment.training_threat(),
                    store,
                    store_file.as_deref(),
                )
            })
            .transpose()?;
        if let (Some(store), StartChoice::UniformStore) = (&mut store, experiment.train.start) {
            store.begin_at_uniform_draws(&examples, &experiment.training_threat(), experiment.train.seed)?;
        }
        let schedule = experiment.schedule(count.div_ceil(experiment.train.batch));
        let mut training = Self {
            optimizer: Optimizer::new(experiment.optimizer(), &model.trainable()),
            average: averaging(&experiment.train, schedule.updates).map(|kind| Average::new(kind, &model)),
            start,
            tally: Tally::new((0.0, 0.0, 0.0), device),
            watch: Watch::new("update", device),
            progress: Progress::default(),
            settled: 0,
            saved: None,
            clock: None,
            experiment,
            model,
            sampler,
            examples,
            validation,
            probe,
            trace: None,
            events: None,
            store,
            schedule,
            device,
        };
        training.plan_trace(trace)?;
        Ok(training)
    }

    /// Trains until the last epoch is done, patience is at its end or `stop` is set, and keeps
    /// the run's folder up to date.
    ///
    /// # Errors
    /// If a plugin fails, the loss is not finite any more, or the disk refuses. The last
    /// checkpoint stays.
    pub fn run(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<Ending> {
        match self.train(folder, reporter, stop) {
            // A probe or a trace was left. What it was to measure lies in a checkpoint.
            Err(error) if error.is_interrupted() => Ok(Ending::Interrupted),
            ending => ending,
        }
    }

    fn train(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<Ending> {
        let Train { batch, seed, checkpoint_every, .. } = self.experiment.train;
        let updates_per_epoch = self.updates_per_epoch();
        reporter.start(&self.progress, self.schedule.updates, updates_per_epoch, self.examples.len());
        // A resumed run may go back behind lines that were written, and may have been stopped before
        // its last epoch was settled.
        folder.write_metrics(&self.progress.epochs[..self.settled])?;
        self.write_trace(folder)?;
        if self.settle(folder, reporter, stop)? || !self.is_over() {
            self.begin_events(folder)?;
        }
        while !self.is_over() {
            self.clock.get_or_insert_with(Instant::now);
            let epoch = self.progress.update / updates_per_epoch;
            let order = permutation(seed, Purpose::Shuffle, epoch, self.examples.len());
            let order_on_device = upload(&Tensor::from_slice(&order), self.device)?;
            let minibatches = order.chunks(batch).zip(order_on_device.split(batch as i64, 0));
            let done = self.progress.update % updates_per_epoch;
            for (points, indices) in minibatches.skip(done as usize) {
                self.clock.get_or_insert_with(Instant::now);
                self.update(points, &indices)?;
                self.progress.update += 1;
                let stopping = stop.load(Ordering::Relaxed);
                if self.progress.update.is_multiple_of(UPDATES_PER_LOOK) {
                    self.watch.read()?;
                    reporter.update(self.progress.update, self.tally.read());
                }
                let ends_epoch = self.progress.update.is_multiple_of(updates_per_epoch);
                if ends_epoch {
                    self.end_epoch(epoch);
                }
                let is_due = |every| self.progress.update.is_multiple_of(every);
                if ends_epoch || stopping || checkpoint_every.is_some_and(is_due) {
                    self.checkpoint(folder)?;
                }
                self.settle(folder, reporter, stop)?;
                if stopping && !self.is_over() {
                    return Ok(Ending::Interrupted);
                }
            }
        }
        Ok(Ending::Finished)
    }

    fn is_over(&self) -> bool {
        self.progress.update == self.schedule.updates || self.progress.stopped_early()
    }

    /// One update: the particles of a minibatch are taken out of the store, particles and
    /// weights move, and the particles go back.
    ///
    /// `points` and `indices` (on the device) name the same B points.
    ///
    /// # Errors
    /// If a plugin fails.
    pub fn update(&mut self, points: &[i64], indices: &Tensor) -> Result<()> {
        let Train { seed, particles: copies, mode, .. } = self.experiment.train;
        let update = self.progress.update;
        // People count from 1, as checkpoints do: the first update is number 1.
        self.watch.at(update + 1);
        let minibatch = self.minibatch(points, indices)?;
        let draws = Draws::new(seed, Purpose::Training, update, &minibatch.points, copies);
        let mut visit = self.begin_visit(&minibatch, &draws)?;
        match mode {
            Mode::Faithful => self.faithful(&mut visit, &draws)?,
            Mode::Fused => self.fused(&mut visit, &draws)?,
        }
        if let (Some(store), Some(stored)) = (&mut self.store, &minibatch.stored) {
            let Minibatch { natural, transformation, .. } = &minibatch;
            store.save(indices, natural, &transformation.carry_back(&visit, stored, natural));
        }
        Ok(())
    }

    /// These points, K rows each, and their chains as they lie in the store.
    fn minibatch(&self, points: &[i64], indices: &Tensor) -> Result<Minibatch> {
        let copies = self.experiment.train.particles;
        let points: Vec<_> = points.iter().flat_map(|point| std::iter::repeat_n(*point, copies)).collect();
        let (natural, labels) = self.examples.batch(indices);
        let (natural, labels) = (repeat_rows(&natural, copies), repeat_rows(&labels, copies));
        let update = self.progress.update;
        let transformation = Transformation::draw(&self.experiment.train, update, &points, &natural)?;
        Ok(Minibatch {
            seen: transformation.apply(&natural),
            stored: self.store.as_ref().map(|store| store.load(indices, &natural)),
            points,
            natural,
            labels,
            transformation,
        })
    }

    /// Algorithm 1: the particles take T steps up their loss, and the weights descend at the new
    /// particles. T + 1 passes, and those of the natural examples that the objective needs.
    fn faithful(&mut self, visit: &mut Visit, draws: &Draws) -> Result<()> {
        let precision = self.experiment.train.precision;
        let train = self.experiment.train.sampler_gradient() == ModelMode::Train;
        let objective = self.losses(visit)?;
        if let Some(sampler) = &self.sampler {
            for number in 0..sampler.steps {
                let leaf = visit.particles.detach().set_requires_grad(true);
                self.seed_forward(Forward::Step(number));
                let losses = objective.inner(&self.model.forward_in(precision, &leaf, train)?, visit.labels);
                let gradient = losses::gradient(&losses.sum(losses.kind()), &leaf, false)
                    .map_err(|why| self.without_gradient("images", why))?;
                let at = (&losses.detach(), &gradient);
                sampler.step(visit, number, at, &draws.step(number + 1), &mut self.watch)?;
            }
        }
        // A last proposal is judged by the function that was climbed: before the weights, and the
        // moments of batch normalisation, move.
        let apart = match self.last_proposal_is_apart() {
            true => Some(no_grad(|| self.model.forward_in(precision, &visit.particles, false))?),
            false => None,
        };
        self.seed_forward(Forward::Weights);
        let logits = self.model.forward_in(precision, &visit.particles, true)?;
        let losses = objective.outer(&logits, visit.labels);
        let gradients = losses::gradients(&losses.mean(losses.kind()), self.optimizer.parameters(), false)
            .map_err(|why| self.without_gradient("parameters", why))?;
        self.descend(&gradients, &losses.detach(), &logits.detach(), visit.labels);
        if let Some(sampler) = self.sampler.as_ref().filter(|sampler| sampler.judges_last_proposal()) {
            let losses = objective.inner(&apart.unwrap_or_else(|| logits.detach()), visit.labels);
            sampler.finish(visit, &losses, &draws.step(sampler.steps + 1), &mut self.watch)?;
        }
        Ok(())
    }

    /// Both players' losses in this minibatch. TRADES needs the logits at the natural examples:
    /// they are computed once for all particles of a point, and for both players unless the
    /// sampler's gradient is of another mode of the model.
    fn losses(&self, visit: &Visit) -> Result<Losses> {
        let Train { precision, objective, particles: copies, .. } = self.experiment.train;
        if objective == Objective::CrossEntropy {
            return Ok(Losses::CrossEntropy);
        }
        self.seed_forward(Forward::Natural);
        let points = visit.natural.slice(0, None, None, copies as i64);
        let natural = repeat_rows(&self.model.forward_in(precision, &points, true)?, copies);
        let target = match self.inner_target_is_apart() {
            true => repeat_rows(&no_grad(|| self.model.forward_in(precision, &points, false))?, copies),
            false => natural.detach(),
        };
        Ok(Losses::Trades { beta: self.experiment.train.trades_beta(), natural, target })
    }

    /// Whether the sampler climbs another function of the images than the weights descend on.
    fn sampler_sees_another_model(&self) -> bool {
        self.experiment.train.sampler_gradient() == ModelMode::Eval && self.model.train_differs
    }

    /// Whether the prediction from which the sampler diverges is not the one that is trained.
    fn inner_target_is_apart(&self) -> bool {
        self.experiment.train.objective.has_its_own_inner_loss() && self.sampler_sees_another_model()
    }

    /// Whether the loss at a sampler's last proposal takes a forward of its own.
    fn last_proposal_is_apart(&self) -> bool {
        self.sampler.as_ref().is_some_and(Sampler::judges_last_proposal) && self.sampler_sees_another_model()
    }

    /// One backward for both players: the weights descend at the particles, and the particles
    /// move along the gradient that was taken there; again for every replay. One pass each.
    fn fused(&mut self, visit: &mut Visit, draws: &Draws) -> Result<()> {
        let Train { precision, replay, .. } = self.experiment.train;
        for number in 0..replay {
            let leaf = visit.particles.detach().set_requires_grad(true);
            self.seed_forward(Forward::Step(number));
            let logits = self.model.forward_in(precision, &leaf, true)?;
            let losses = cross_entropy(&logits, visit.labels);
            let mut inputs: Vec<_> = self.optimizer.parameters().iter().map(Tensor::shallow_clone).collect();
            inputs.push(leaf);
            let mut gradients = losses::gradients(&losses.mean(losses.kind()), &inputs, false)
                .map_err(|why| self.without_gradient("images and parameters", why))?;
            let gradient = gradients
                .pop()
                .filter(Tensor::defined)
                .ok_or_else(|| self.without_gradient("images", "the logits do not depend on them"))?;
            // The sampler is given the gradient of each particle's own loss, not of the mean.
            let gradient = gradient * visit.points.len() as f64;
            self.descend(&gradients, &losses.detach(), &logits.detach(), visit.labels);
            if let Some(sampler) = &self.sampler {
                let at = (&losses.detach(), &gradient);
                sampler.step(visit, number, at, &draws.step(number + 1), &mut self.watch)?;
            }
        }
        Ok(())
    }

    /// The weights take a step down these gradients of the mean of `losses` (`[N]`).
    fn descend(&mut self, gradients: &[Tensor], losses: &Tensor, logits: &Tensor, labels: &Tensor) {
        self.watch.loss(&losses.mean(losses.kind()));
        self.optimizer.step(gradients, self.schedule.learning_rate(self.progress.update));
        if let Some(average) = &mut self.average {
            average.update(&self.model);
        }
        self.tally.add(losses, &correct(logits, labels));
    }

    fn without_gradient(&self, inputs: &str, why: impl std::fmt::Display) -> Error {
        let model = &self.model.record.manifest.name;
        Error::new(format!("model {model} has no gradient towards its {inputs}: {why}"))
    }

    /// What the model draws itself depends on the update and on which forward of it this is.
    fn seed_forward(&self, forward: Forward) {
        let number = forward.of_update(self.progress.update);
        tch::manual_seed(seed_for(self.experiment.train.seed, Purpose::Forward, number));
    }

    /// Where this minibatch's chains go on or begin, and within which ball they move.
    fn begin_visit<'a>(&self, minibatch: &'a Minibatch, draws: &Draws) -> Result<Visit<'a>> {
        let Minibatch { points, labels, seen: natural, transformation, stored, .. } = minibatch;
        let stored = stored.as_ref().map(|stored| transformation.carry(stored));
        let mut threat = self.experiment.training_threat();
        let risen = self.risen(self.progress.update);
        threat.epsilon *= risen;
        let (particles, state) = match (&self.sampler, stored) {
            // Draws from the whole ball may lie outside one that is still growing.
            (_, Some(Stored { particles, state })) if risen < 1.0 => {
                (threat.project(&particles, natural), state)
            }
            (_, Some(Stored { particles, state })) => (particles, state),
            (Some(sampler), None) => {
                (fresh_start(self.start, natural, &threat, draws)?, sampler.fresh_state(natural))
            }
            (None, None) => (natural.shallow_clone(), Vec::new()),
        };
        let particles_per_point = self.experiment.train.particles;
        Ok(Visit { natural, labels, points, particles_per_point, threat, particles, state })
    }

    /// The share of its epsilon to which the ball has grown at an update, counted from 0.
    fn risen(&self, update: u64) -> f64 {
        let warmup = self.experiment.train.warmup_epsilon * self.updates_per_epoch() as f64;
        ((update + 1) as f64 / (warmup + 1.0)).min(1.0)
    }

    /// Adds up an epoch.
    fn end_epoch(&mut self, epoch: u64) {
        let (loss, correct, particles) = self.tally.read();
        self.stop_clock();
        self.tally = Tally::new((0.0, 0.0, 0.0), self.device);
        let metrics = EpochMetrics {
            epoch: epoch as usize + 1,
            updates: self.progress.update,
            learning_rate: self.schedule.learning_rate(self.progress.update - 1),
            train_loss: loss / particles,
            train_accuracy: correct / particles,
            validation_accuracy: None,
            probe_accuracy: None,
            validation_passes: None,
            statistics_passes: self.statistics_passes(),
            alarms: Vec::new(),
            stopped_early: false,
            passes_per_sample: (epoch + 1) * self.passes_per_epoch(),
            seconds: self.progress.seconds,
        };
        self.progress.epochs.push(metrics);
    }

    /// Measures what is due after this update and not measured yet: the score of an epoch, a point
    /// of the trace. A checkpoint came first, since that may be long, or fail, or be left by the user; and the
    /// epoch's line in `metrics.jsonl` comes last, and says that all of it is done. Says whether
    /// there was anything to do.
    fn settle(&mut self, folder: &RunFolder, reporter: &mut Reporter, stop: &AtomicBool) -> Result<bool> {
        self.validate_epoch(folder, stop)?;
        let traced = self.trace_if_due(folder, reporter, stop)?;
        if self.settled == self.progress.epochs.len() {
            return Ok(traced);
        }
        self.raise_alarms(folder)?;
        self.report_epoch(reporter)?;
        folder.write_metrics(&self.progress.epochs)?;
        self.settled = self.progress.epochs.len();
        Ok(true)
    }

    /// Adds to the last epoch what is wrong with it, if anything, and tells its checkpoint.
    fn raise_alarms(&mut self, folder: &RunFolder) -> Result<()> {
        let Some(last) = self.progress.epochs.last() else { return Ok(()) };
        // Whoever has not seen the probe's whole ball need not stand up to it yet.
        let first_update = (last.epoch as u64 - 1) * self.updates_per_epoch();
        let is_whole = self.risen(first_update) == 1.0 && self.experiment.train.epsilon_scale >= 1.0;
        let adversary = self.sampler.as_ref().map(|_| is_whole);
        let classes = self.model.classes();
        let alarms = alarm::look_at(&self.progress.epochs, self.is_over(), classes, adversary);
        if let Some(last) = self.progress.epochs.last_mut().filter(|last| last.alarms != alarms) {
            last.alarms = alarms;
            checkpoint::save_progress(&folder.checkpoints(), self.progress.update, &self.progress)?;
        }
        Ok(())
    }

    fn report_epoch(&mut self, reporter: &mut Reporter) -> Result<()> {
        let Some(metrics) = self.progress.epochs.last() else { return Ok(()) };
        reporter.epoch(metrics);
        metrics.alarms.iter().for_each(|finding| reporter.alarm(finding));
        self.events.as_mut().map_or(Ok(()), |events| events.epoch(metrics))
    }

    fn updates_per_epoch(&self) -> u64 {
        self.schedule.updates / self.experiment.train.epochs as u64
    }

    /// Passes of each training point in an epoch, for each of its K particles: in mode
    /// faithful T for the particles' steps and 1 for the weights, in mode fused 1 a replay. And
    /// those of the natural examples that the objective needs, once for all K (a forward alone
    /// counts as a whole one).
    fn passes_per_epoch(&self) -> u64 {
        let Train { mode, replay, particles, objective, .. } = self.experiment.train;
        let steps = self.sampler.as_ref().map_or(0, |sampler| sampler.steps);
        let judging = usize::from(self.last_proposal_is_apart());
        let passes = if mode == Mode::Fused { replay } else { steps + 1 + judging };
        let natural = objective.natural_passes() + usize::from(self.inner_target_is_apart());
        (passes * particles + natural) as u64
    }

    /// Passes of each training point (for each of its K particles) after so many updates.
    pub fn passes_per_sample(&self, updates: u64) -> f64 {
        let (epochs, within) = (updates / self.updates_per_epoch(), updates % self.updates_per_epoch());
        let share = within as f64 * self.experiment.train.batch as f64 / self.examples.len() as f64;
        (epochs as f64 + share) * self.passes_per_epoch() as f64
    }

    fn stop_clock(&mut self) {
        self.progress.seconds += self.clock.take().map_or(0.0, |started| started.elapsed().as_secs_f64());
    }

    /// Nothing is saved that could not be trained on: neither weights or moments that the last
    /// update broke, nor weights that give no finite logits.
    fn refuse_trouble(&self) -> Result<()> {
        let broken = |what: &str| {
            let update = self.progress.update;
            Err(Error::new(format!("{what} became NaN or infinite at update {update}"))
                .fix("lower train.learning_rate")
                .on_the_way())
        };
        let finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        for (name, tensor) in self.model.state().iter().chain(&self.optimizer.state()) {
            if !finite(tensor) {
                return broken(&format!("`{name}`"));
            }
        }
        let some = self.experiment.train.batch.min(self.examples.len()) as i64;
        let (images, _) = self.examples.batch(&Tensor::arange(some, (Kind::Int64, self.device)));
        match finite(&self.model.logits(&images)?) {
            true => Ok(()),
            false => broken("the model's logits"),
        }
    }

    fn checkpoint(&mut self, folder: &RunFolder) -> Result<()> {
        // What is still to come from the device belongs to training's time.
        self.watch.read()?;
        self.stop_clock();
        self.refuse_trouble()?;
        self.renew_statistics()?;
        self.progress.tally = self.tally.read();
        self.progress.optimizer_steps = self.optimizer.steps();
        let mut groups: Groups = [
            ("weights".to_owned(), named_clones(self.model.state())),
            ("optimizer".to_owned(), self.optimizer.state()),
        ]
        .into();
        if let Some(store) = &self.store {
            groups.insert("particles".to_owned(), store.state());
        }
        if let Some(average) = self.averaged() {
            groups.insert(checkpoint::AVERAGE.to_owned(), average.state());
        }
        checkpoint::save(&folder.checkpoints(), self.progress.update, &groups, &self.progress)?;
        self.saved = Some(self.progress.update);
        Ok(())
    }

    /// Goes on from the newest checkpoint that is whole. Returns the update it goes on from,
    /// and what was damaged.
    ///
    /// # Errors
    /// If every checkpoint is damaged, or it does not fit this run.
    pub fn resume(&mut self, folder: &RunFolder) -> Result<(u64, Vec<String>)> {
        let groups = ["weights", "optimizer", "particles", checkpoint::AVERAGE];
        let Some(mut saved) = checkpoint::load::<Progress>(&folder.checkpoints(), &groups)? else {
            return Ok((0, Vec::new()));
        };
        let mut group = |name: &str| saved.groups.remove(name).unwrap_or_default();
        self.model.load(&group("weights"))?;
        self.optimizer.load(&group("optimizer"), saved.progress.optimizer_steps)?;
        if let Some(store) = &mut self.store {
            store.load_state(&group("particles"))?;
        }
        if let Some(average) = &mut self.average {
            average.load(&group(checkpoint::AVERAGE), saved.progress.optimizer_steps)?;
        }
        self.tally = Tally::new(saved.progress.tally, self.device);
        self.progress = saved.progress;
        self.saved = Some(self.progress.update);
        // What cannot be read is written anew.
        let written: Vec<EpochMetrics> = folder.metrics().unwrap_or_default();
        self.settled = written.len().min(self.progress.epochs.len());
        Ok((self.progress.update, saved.damaged))
    }

    /// What is done, for people: "mode fused, 10 replays; 1 epoch, 10 passes per sample".
    pub fn method(&self) -> String {
        let Train { mode, replay, epochs, .. } = self.experiment.train;
        let mode = match (mode, &self.sampler) {
            (_, None) => "ordinary training".to_owned(),
            (Mode::Faithful, Some(sampler)) => format!("mode faithful, steps {}", sampler.steps),
            (Mode::Fused, Some(_)) => format!("mode fused, replay {replay}"),
        };
        let passes = epochs as u64 * self.passes_per_epoch();
        format!("{mode}; epochs {epochs}, {passes} passes per sample")
    }

    /// Updates of the whole run.
    pub fn updates(&self) -> u64 {
        self.schedule.updates
    }

    /// What the run has got to.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

/// How the weights of a run of so many updates are averaged, if at all.
fn averaging(train: &Train, updates: u64) -> Option<Averaging> {
    let Train { average, swa_from, replay, .. } = *train;
    let first = |share: f64| ((share * updates as f64).round() as u64).min(updates - 1);
    let equal = swa_from.map(|share| Averaging::EqualFrom(first(share) * replay as u64));
    equal.or((average > 0.0).then_some(Averaging::Exponential(average)))
}

/// Refuses what this data set or this sampler make impossible.
///
/// # Errors
/// What, and which values would do.
pub fn check(experiment: &Experiment, dataset: &Dataset, sampler: Option<&Sampler>) -> Result<()> {
    let smallest_side = dataset.task().height.min(dataset.task().width);
    if experiment.train.crop as u64 >= smallest_side as u64 {
        return Err(Error::new(format!(
            "train.crop: expected 0 to {} (windows that show something of these images), got {}",
            smallest_side - 1,
            experiment.train.crop
        )));
    }
    match &experiment.train.store_file {
        Some(file) if start_of_chains(experiment, sampler) != Start::Store => {
            Err(Error::new(format!("train.store_file: nothing would be kept in {}", file.display()))
                .note("because", "no chain begins in the particle store (sampler, train.start)"))
        }
        _ => Ok(()),
    }
}

/// Where this sampler's chains begin; at natural examples if there is none.
fn start_of_chains(experiment: &Experiment, sampler: Option<&Sampler>) -> Start {
    sampler.map_or(Start::Natural, |sampler| experiment.train.start.of(sampler.declaration().start))
}

/// How many points are trained on, and how many of the last are held out.
///
/// # Errors
/// If too few are left.
pub fn split(experiment: &Experiment, dataset: &Dataset) -> Result<(usize, usize)> {
    let all = dataset.train.count() as usize;
    let held_out = experiment.validation_points();
    if held_out >= all {
        return Err(Error::new(format!(
            "data.validation_points: expected fewer than the {all} training points, got {held_out}"
        )));
    }
    let left = all - held_out;
    let wanted = experiment.data.train_points.unwrap_or(left);
    if wanted == 0 || wanted > left {
        return Err(Error::new(format!(
            "data.train_points: expected 1 to {left} ({all} training points less {held_out} for validation), got {wanted}"
        )));
    }
    Ok((wanted, held_out))
}

fn named_clones(tensors: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
