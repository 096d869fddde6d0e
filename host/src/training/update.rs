//! One update: particles of a minibatch are taken out of the store, particles and weights move, and
//! the particles go back. Nothing here can reach a file.

use super::Plan;
use super::augmentation::Transformation;
use super::average::Average;
use super::carried::Carried;
use super::objective::{Losses, Prepared, seed_forward};
use super::optimizer::{Optimizer, clipped};
use super::perturbation::Perturbation;
use super::shards::{Selection, Stores};
use super::store::Stored;
use super::tally::Tally;
use crate::Result;
use crate::config::{Mode, ModelMode, Train};
use crate::data::examples::repeat_rows;
use crate::plugin::{LoadedModel, Pixels, Sampler, SeenModel, Visit, fresh_start};
use crate::torch::c10d::Reducer;
use crate::torch::finite::FiniteCheck;
use crate::torch::precision::Precision;
use crate::torch::random::{Draws, Forward, Purpose};
use plugin_api::Outer;
use plugin_api::losses::correct;
use plugin_api::walk::Due;
use tch::{Tensor, no_grad};

/// What moves: the weights, which solve the outer problem, and the particles, which solve the inner
/// one.
pub(super) struct Players {
    pub model: LoadedModel,
    pub optimizer: Optimizer,
    /// The average of the weights that is evaluated in their place.
    pub average: Option<Average>,
    /// What both of them move on.
    pub losses: Losses,
    /// None for ordinary training.
    pub sampler: Option<Sampler>,
    /// None where chains begin anew at every visit.
    pub store: Option<Stores>,
    /// What goes on from minibatch to minibatch; none unless chains begin there.
    pub carried: Option<Carried>,
    /// Sums the gradients of the weights over all processes; none if this one is alone.
    pub reducer: Option<Reducer>,
}

/// What updates leave on the device, to be read now and then.
pub(super) struct Sums {
    /// The sums of the present epoch.
    pub tally: Tally,
    pub finite: FiniteCheck,
}

/// The points that this process has in an update, K rows each: N in all.
pub(super) struct Minibatch {
    /// The point of each row, length N.
    pub points: Vec<i64>,
    /// The number of rows that all processes have.
    everywhere: usize,
    /// Images as they lie in the data, `[N, C, H, W]`, in the coordinates of plugins.
    natural: Tensor,
    /// Labels, `[N]`.
    labels: Tensor,
    /// How the images are augmented. Chains move in the augmented frame; the store keeps particles
    /// in the frame of the data.
    transformation: Transformation,
    /// The augmented images.
    augmented: Tensor,
    /// What the model sees of them and of particles around them.
    pixels: Pixels,
    /// The chains of these points as they lie in the store, if there is one.
    stored: Option<Stored>,
    /// What the rows of the minibatch before left to these, if chains begin there: perturbations, not
    /// particles.
    carried: Option<Stored>,
}

impl Minibatch {
    /// A model that is given these images, or particles around them.
    pub fn seen_by<'a>(&'a self, model: &'a LoadedModel) -> SeenModel<'a> {
        SeenModel { model, pixels: &self.pixels }
    }
}

impl Players {
    /// Update number `update`, counted from 0, at these points.
    ///
    /// # Errors
    /// If a plugin fails; that of `refuse_if_stopped`, which is asked before every step as long as
    /// nothing of the run has changed. An update that has begun to change it is finished.
    pub fn update(
        &mut self,
        plan: &Plan,
        update: u64,
        selection: &Selection,
        sums: &mut Sums,
        refuse_if_stopped: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let Train { seed, particles: copies, mode, .. } = plan.experiment.train;
        let _tf32 = plan.experiment.train.precision.of_updates()?;
        plan.ahead.iter().for_each(|ahead| ahead.begin_update(update));
        // Users count updates from 1, as checkpoints do.
        sums.finite.at(update + 1);
        if selection.points.is_empty() {
            self.follow(plan, update, &mut sums.tally)?;
            return self.share_buffers(plan);
        }
        let minibatch = self.minibatch(plan, update, selection)?;
        let draws = Draws::new(seed, Purpose::Training, update, &minibatch.points, copies);
        let draws = draws.drawn_ahead(plan.ahead.as_ref());
        let mut visit = self.begin_visit(plan, update, &minibatch, &draws)?;
        match mode {
            Mode::Faithful => {
                let rest = (sums, refuse_if_stopped);
                self.faithful(plan, update, &mut visit, &minibatch, &draws, rest)?;
            }
            Mode::Fused => self.fused(plan, update, &mut visit, &minibatch, &draws, sums)?,
        }
        if let (Some(store), Some(stored)) = (&mut self.store, &minibatch.stored) {
            let Minibatch { natural, transformation, .. } = &minibatch;
            let ball = self
                .sampler
                .as_ref()
                .map_or(visit.threat, |sampler| sampler.declaration().ball(&visit.threat));
            store.save(selection, natural, &transformation.carry_back(&visit, stored, natural, &ball))?;
        }
        if let Some(carried) = &mut self.carried {
            carried.save(selection, &visit)?;
        }
        self.share_buffers(plan)
    }

    /// Gives all processes the buffers of the first one, such as running statistics, which each updates
    /// from its own rows.
    fn share_buffers(&self, plan: &Plan) -> Result<()> {
        if plan.ranks.is_alone() || !self.model.train_differs {
            return Ok(());
        }
        let is_buffer = |tensor: &&Tensor| !tensor.requires_grad() && tensor.is_floating_point();
        let buffers: Vec<_> = self.model.state().iter().map(|(_, tensor)| tensor).filter(is_buffer).collect();
        no_grad(|| plan.ranks.copy_from_first(&buffers))
    }

    /// These points, K rows each, and their chains as they lie in the store.
    pub fn minibatch(&self, plan: &Plan, update: u64, selection: &Selection) -> Result<Minibatch> {
        let copies = plan.experiment.train.particles;
        let (images, labels) = plan.examples.batch_of(&selection.points, &selection.indices)?;
        let points = plan.rows(&selection.points);
        let (images, labels) = (repeat_rows(&images, copies), repeat_rows(&labels, copies));
        let transformation = Transformation::draw(&plan.experiment.train, update, &points, &images)?;
        let (threat, seen) = (plan.experiment.training_threat(), transformation.apply(&images));
        let (natural, augmented) = (threat.natural(&images), threat.natural(&seen));
        Ok(Minibatch {
            pixels: threat.pixels(&seen, &augmented, copies),
            augmented,
            stored: self.store.as_ref().map(|store| store.load(selection, &natural)),
            carried: self.carried.as_ref().map(|carried| carried.load(selection, copies)).transpose()?,
            everywhere: selection.everywhere * copies,
            points,
            natural,
            labels,
            transformation,
        })
    }

    /// Where the chains of this minibatch continue or begin, and in which ball they move.
    pub fn begin_visit<'a>(
        &self,
        plan: &Plan,
        update: u64,
        minibatch: &'a Minibatch,
        draws: &Draws,
    ) -> Result<Visit<'a>> {
        let Minibatch { points, labels, augmented: natural, transformation, stored, carried, .. } = minibatch;
        let mut threat = plan.experiment.training_threat().ball();
        let ramp = plan.epsilon_ramp(update);
        threat.epsilon *= ramp;
        let Some(declaration) = self.sampler.as_ref().map(Sampler::declaration) else {
            let (particles, state) = (natural.shallow_clone(), Vec::new());
            let particles_per_point = plan.experiment.train.particles;
            return Ok(Visit { natural, labels, points, particles_per_point, threat, particles, state });
        };
        let ball = declaration.ball(&threat);
        let (particles, state) = match (stored, carried) {
            (Some(stored), _) => {
                let Stored { particles, state } = transformation.carry(stored, natural);
                // Draws from the whole ball may lie outside one that still grows.
                let particles = if ramp < 1.0 { ball.project(&particles, natural) } else { particles };
                let state = declaration.begin_visit(state, &particles);
                (particles, state)
            }
            (None, Some(Stored { particles: perturbations, state })) => {
                let particles = ball.project(&(natural + perturbations), natural);
                let state = state.iter().map(Tensor::shallow_clone).collect();
                let state = declaration.begin_visit(state, &particles);
                (particles, state)
            }
            (None, None) => {
                (fresh_start(plan.start, natural, &threat, draws)?, declaration.fresh_state(natural))
            }
        };
        let particles_per_point = plan.experiment.train.particles;
        Ok(Visit { natural, labels, points, particles_per_point, threat, particles, state })
    }

    /// Algorithm 1: the particles take T steps up their loss, and the weights descend at the new
    /// particles.
    fn faithful(
        &mut self,
        plan: &Plan,
        update: u64,
        visit: &mut Visit,
        minibatch: &Minibatch,
        draws: &Draws,
        (sums, refuse_if_stopped): (&mut Sums, &dyn Fn() -> Result<()>),
    ) -> Result<()> {
        let train = &plan.experiment.train;
        let precision = train.precision;
        let train_mode = train.sampler_gradient() == ModelMode::Train;
        let may_be_left = self.may_be_left(plan);
        let start = self.begin(visit, draws, sums)?;
        let (model, losses) = (minibatch.seen_by(&self.model), &self.losses);
        let prepared = losses.prepare(plan, update, model, visit, (&start, true))?;
        if let Some(sampler) = &self.sampler {
            let walked = sampler.walk().steps(
                visit,
                |due, visit| {
                    if may_be_left {
                        refuse_if_stopped()?;
                    }
                    // The last proposal is judged by the function that was climbed, before the
                    // weights descend: they descend at the accepted particle.
                    // Both sides of a judgement see the model with the same draws of its own.
                    let forward = Forward::Step(if sampler.judges_last_proposal() { 0 } else { due.number });
                    seed_forward(plan, update, forward);
                    inner_losses(model, (precision, train_mode), due, visit, |particles, logits| {
                        losses.inner(plan, (update, due.number), model, visit, (&prepared, particles, logits))
                    })
                },
                |call| sampler.perform(call, draws, &mut sums.finite),
            );
            if may_be_left {
                plan.ranks.leave_together(walked)?
            } else {
                walked?
            }
            sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
        }
        let mut descent = self.outer_gradients(plan, update, visit, minibatch, &prepared)?;
        if let Some(gamma) = train.awp {
            let moved = Perturbation::begin(self.optimizer.parameters(), &descent.gradients, gamma);
            // Logits at natural examples belong to the weights.
            let again = self
                .losses
                .prepare(plan, update, minibatch.seen_by(&self.model), visit, (&start, false))
                .and_then(|prepared| self.outer_gradients(plan, update, visit, minibatch, &prepared));
            moved.end();
            descent.gradients = again?.gradients;
        }
        self.descend(plan, update, descent, visit.labels, sums);
        Ok(())
    }

    /// Lets the sampler begin a visit, if it decides where, and returns where the chains begin.
    fn begin(&self, visit: &mut Visit, draws: &Draws, sums: &mut Sums) -> Result<Tensor> {
        if let Some(sampler) = &self.sampler {
            sampler.begin(visit, draws, &mut sums.finite)?;
        }
        Ok(visit.particles.shallow_clone())
    }

    /// The outer loss at the particles, and its gradients with respect to the weights.
    fn outer_gradients(
        &self,
        plan: &Plan,
        update: u64,
        visit: &Visit,
        minibatch: &Minibatch,
        prepared: &Prepared,
    ) -> Result<Descent> {
        seed_forward(plan, update, Forward::Weights);
        let (model, particles) = (minibatch.seen_by(&self.model), &visit.particles);
        let logits = model.forward_in(plan.experiment.train.precision, particles, true)?;
        let at = (prepared, particles, &logits);
        let Outer { loss, state } = self.losses.outer(plan, (update, 0), model, visit, at)?;
        let mean = loss.mean(loss.kind());
        let (gradients, _) = self.gradients(plan, &mean, None, visit, minibatch.everywhere)?;
        Ok(Descent { gradients, loss: loss.detach(), logits: logits.detach(), state })
    }

    /// One backward for both problems: the weights descend at the particles, and the particles move
    /// along the gradient that was taken there; again for every replay. This is free adversarial
    /// training (Shafahi et al., 2019) with a particle per sample and a sampler's noise.
    ///
    /// For a sampler that judges its last proposal, each replay is a visit of one step. The proposal
    /// is evaluated before the weights descend, so that both sides of the judgement belong to the
    /// same weights; they descend at the particle that was accepted before.
    fn fused(
        &mut self,
        plan: &Plan,
        update: u64,
        visit: &mut Visit,
        minibatch: &Minibatch,
        draws: &Draws,
        sums: &mut Sums,
    ) -> Result<()> {
        let (train, everywhere) = (&plan.experiment.train, minibatch.everywhere);
        let start = self.begin(visit, draws, sums)?;
        for number in 0..train.replay {
            let (model, losses) = (minibatch.seen_by(&self.model), &self.losses);
            let leaf = visit.particles.detach().set_requires_grad(true);
            seed_forward(plan, update, Forward::Step(number));
            let logits = model.forward_in(train.precision, &leaf, true)?;
            let prepared = losses.prepare(plan, update, model, visit, (&start, true))?;
            let at = (&prepared, &leaf, &logits);
            let Outer { loss, state } = losses.outer(plan, (update, number), model, visit, at)?;
            let mean = loss.mean(loss.kind());
            let (gradients, gradient) = self.gradients(plan, &mean, Some(&leaf), visit, everywhere)?;
            // The sampler is given the gradient of each particle's own loss, not of the mean.
            let gradient = gradient * everywhere as f64;
            let loss = loss.detach();
            match &self.sampler {
                Some(sampler) if sampler.judges_last_proposal() => {
                    visit.state =
                        sampler.declaration().begin_visit(std::mem::take(&mut visit.state), &visit.particles);
                    sampler.walk_of_one_step().run(
                        visit,
                        |due, visit| match due.number {
                            0 => Ok((loss.shallow_clone(), Some(gradient.shallow_clone()))),
                            _ => {
                                // The same draws of the model itself as at the particle.
                                seed_forward(plan, update, Forward::Step(number));
                                inner_losses(
                                    model,
                                    (train.precision, true),
                                    due,
                                    visit,
                                    |particles, logits| {
                                        let at = (&prepared, particles, logits);
                                        losses.inner(plan, (update, number), model, visit, at)
                                    },
                                )
                            }
                        },
                        |call| sampler.perform(call, &draws.visit(number), &mut sums.finite),
                    )?;
                    sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
                }
                Some(sampler) => {
                    sampler.step(visit, number, (&loss, &gradient), draws, &mut sums.finite)?;
                }
                None => {}
            }
            let descent = Descent { gradients, loss, logits: logits.detach(), state };
            self.descend(plan, update, descent, visit.labels, sums);
        }
        if let Some(sampler) = self.sampler.as_ref().filter(|sampler| !sampler.judges_last_proposal()) {
            sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
        }
        Ok(())
    }

    /// The gradients of the mean loss over the rows of all processes, of which there are
    /// `everywhere`: with respect to the weights, and with respect to the images `leaf` of this
    /// process (zeros of no rows without it). `mean` is the mean over the rows of this process.
    fn gradients(
        &self,
        plan: &Plan,
        mean: &Tensor,
        leaf: Option<&Tensor>,
        visit: &Visit,
        everywhere: usize,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        let (model, parameters, rows) = (&self.model, self.optimizer.parameters(), visit.points.len());
        match (&self.reducer, leaf) {
            (None, None) => Ok((model.parameter_gradients(mean, parameters, rows as i64)?, Tensor::new())),
            (None, Some(leaf)) => model.both_gradients(mean, parameters, leaf),
            (Some(reducer), leaf) => {
                let share = mean * (rows as f64 / everywhere as f64);
                let summed = model.summed_gradients(&share, reducer, leaf, rows as i64);
                summed.map_err(|error| plan.ranks.explained(error))
            }
        }
    }

    /// Whether an update may be left in the steps of its particles, since they change nothing of the run.
    /// Several processes must say to each other whether they have: they do so in long updates alone.
    fn may_be_left(&self, plan: &Plan) -> bool {
        let train = &plan.experiment.train;
        // Passes in training mode change the buffers of the model.
        let changes_nothing =
            train.sampler_gradient() != ModelMode::Train && !self.losses.objective.declaration().uses_natural;
        let is_long = self.sampler.as_ref().is_some_and(|sampler| sampler.steps > 1);
        train.mode == Mode::Faithful && changes_nothing && (is_long || plan.ranks.is_alone())
    }

    /// An update in which this process has no points: its weights follow those of the others.
    fn follow(&mut self, plan: &Plan, update: u64, tally: &mut Tally) -> Result<()> {
        if self.may_be_left(plan) {
            plan.ranks.leave_together(Ok(()))?;
        }
        let Train { replay, awp, .. } = plan.experiment.train;
        // Only mode fused replays a minibatch.
        for _ in 0..replay {
            let Some(reducer) = &self.reducer else { return Ok(()) };
            let sum = || reducer.gradients(None, None).map_err(|error| plan.ranks.explained(error));
            let mut summed = sum()?;
            if awp.is_some() {
                // The others have moved their weights along those gradients, and sum new ones there.
                summed = sum()?;
            }
            self.step(plan, update, &summed.0, tally);
        }
        Ok(())
    }

    /// The weights take a step down the outer loss of rows with these labels (`[N]`).
    fn descend(&mut self, plan: &Plan, update: u64, descent: Descent, labels: &Tensor, sums: &mut Sums) {
        let Descent { gradients, loss, logits, state } = descent;
        sums.finite.loss(&loss.mean(loss.kind()));
        self.step(plan, update, &gradients, &mut sums.tally);
        self.losses.advance(state);
        // One number for the whole minibatch counts for each of its rows.
        sums.tally.add(&loss.expand_as(labels), &correct(&logits, labels));
    }

    /// The weights take a step down these gradients, and their average follows.
    fn step(&mut self, plan: &Plan, update: u64, gradients: &[Tensor], tally: &mut Tally) {
        let clipped = plan.experiment.train.clip_gradient.map(|most| {
            let (clipped, length) = clipped(gradients, most);
            tally.add_gradient(&length, most);
            clipped
        });
        self.optimizer.step(clipped.as_deref().unwrap_or(gradients), plan.schedule.learning_rate(update));
        if let Some(average) = &mut self.average {
            average.update(&self.model);
        }
    }
}

/// What an update of the weights is made of.
struct Descent {
    /// The gradients of the weights.
    gradients: Vec<Tensor>,
    /// The outer loss, `[N]` or `[]`, without a graph.
    loss: Tensor,
    /// The logits at the particles, `[N, C]`, without a graph.
    logits: Tensor,
    /// The next state of the objective.
    state: Vec<Tensor>,
}

/// The losses (`[N]`) at the particles of a visit, which `losses_of` forms from the particles and
/// their logits, and their gradient if it is due.
fn inner_losses(
    seen: SeenModel,
    (precision, train_mode): (Precision, bool),
    due: Due,
    visit: &Visit,
    losses_of: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Option<Tensor>)> {
    if !due.gradient {
        let logits = no_grad(|| seen.forward_in(precision, &visit.particles, train_mode))?;
        return Ok((losses_of(&visit.particles, &logits)?.detach(), None));
    }
    let leaf = visit.particles.detach().set_requires_grad(true);
    let losses = losses_of(&leaf, &seen.forward_in(precision, &leaf, train_mode)?)?;
    let gradient = seen.model.input_gradient(&losses.sum(losses.kind()), &leaf)?;
    Ok((losses.detach(), Some(gradient)))
}

#[cfg(test)]
mod tests {
    use super::super::Training;
    use super::*;
    use crate::config::{Experiment, SamplerChoice};
    use crate::plugin::{Objective, Threat};
    use crate::training::fixtures::dataset;
    use tch::{Device, Kind};

    /// A run of one epoch in this mode with this sampler, or of ordinary training, at its end.
    fn trained(mode: Mode, sampler: Option<&str>) -> Training {
        let dataset = dataset();
        let replay = if mode == Mode::Fused { 3 } else { 1 };
        let train = Train { batch: 4, mode, replay, ..Default::default() };
        let experiment = Experiment { train, sampler: SamplerChoice(None), ..Default::default() };
        let model = LoadedModel::linked("without-dropout", dataset.task());
        let sampler = sampler
            .map(|name| Sampler::linked(&format!("linked,plugin={name},steps=2").parse().expect("a spec")));
        let parts = (None, None);
        let players = (model, Objective::linked("cross_entropy"), sampler);
        let mut training = Training::new(experiment, players, parts, &dataset, Device::Cpu).expect("a run");
        for selection in training.plan.minibatches(0).expect("minibatches") {
            training.update(&selection).expect("an update");
        }
        training
    }

    fn weights(mode: Mode, sampler: Option<&str>) -> Vec<Tensor> {
        let training = trained(mode, sampler);
        training.players.model.state().iter().map(|(_, tensor)| tensor.copy()).collect()
    }

    #[test]
    fn weights_descend_at_the_accepted_particle() {
        for mode in [Mode::Faithful, Mode::Fused] {
            assert_eq!(weights(mode, Some("rejecting")), weights(mode, None), "every proposal is rejected");
            assert_ne!(weights(mode, Some("judging")), weights(mode, None), "every proposal is accepted");
        }
    }

    /// Of the first minibatch, two particles a point, with these radii of the two channels: the images
    /// and the particles after a visit of three steps, as a model sees them.
    fn seen(channel_scale: Option<Vec<f64>>) -> [Tensor; 2] {
        let mut dataset = dataset();
        dataset.train.images = Tensor::arange(80, (Kind::Uint8, Device::Cpu)).reshape([10, 2, 2, 2]);
        let train = Train { batch: 4, particles: 2, crop: 1, flip: true, ..Default::default() };
        let threat = Threat { channel_scale, ..Threat::default() };
        let experiment = Experiment { train, threat, sampler: SamplerChoice(None), ..Default::default() };
        let task = plugin_api::Task { channels: 2, ..dataset.task() };
        let sampler = Sampler::linked(&"linked,plugin=drifting,steps=3".parse().expect("a spec"));
        let model = LoadedModel::linked("without-dropout", task);
        let players = (model, Objective::linked("cross_entropy"), Some(sampler));
        let training =
            Training::new(experiment, players, (None, None), &dataset, Device::Cpu).expect("a run");
        let (plan, players) = (&training.plan, &training.players);
        let selection = plan.minibatches(0).expect("minibatches").into_iter().next().expect("a minibatch");
        let minibatch = players.minibatch(plan, 0, &selection).expect("a minibatch");
        let draws = Draws::new(0, Purpose::Training, 0, &minibatch.points, 2);
        let mut visit = players.begin_visit(plan, 0, &minibatch, &draws).expect("a visit");
        let (sampler, mut watch) =
            (players.sampler.as_ref().expect("a sampler"), FiniteCheck::new("step", Device::Cpu));
        sampler.begin(&mut visit, &draws, &mut watch).expect("begun");
        let (loss, gradient) = (Tensor::zeros([8], (Kind::Float, Device::Cpu)), visit.natural.zeros_like());
        for number in 0..3 {
            sampler.step(&mut visit, number, (&loss, &gradient), &draws, &mut watch).expect("a step");
        }
        let pixels = minibatch.seen_by(&players.model).pixels;
        [visit.natural, &visit.particles].map(|images| pixels.of(images).expect("pixels"))
    }

    #[test]
    fn with_a_radius_for_each_channel_the_model_sees_pixels() {
        let ([natural, moved], [same, scaled]) = (seen(None), seen(Some(vec![1.0, 0.5])));
        assert_eq!(natural, same, "cropped, mirrored and repeated alike");
        // All pixels rise by 0.032, those of the second channel by half of it. All images are dark, and no
        // pixel meets the end of its ball or of the domain.
        let rise = |images: &Tensor, channel: i64| (images - &natural).select(1, channel);
        for (images, channel, expected) in
            [(&moved, 0, 0.032), (&moved, 1, 0.032), (&scaled, 0, 0.032), (&scaled, 1, 0.016)]
        {
            let error = (rise(images, channel) - expected).abs().max().double_value(&[]);
            assert!(error < 1e-6, "channel {channel}: {error}");
        }
    }

    #[test]
    fn rows_go_on_from_the_minibatch_before() {
        // Two steps a visit; three replays a visit. Of minibatches of 4, 4 and 2 points, the first two
        // rows are in all, the others in two.
        for (mode, steps) in [(Mode::Faithful, 2.0), (Mode::Fused, 3.0)] {
            let training = trained(mode, Some("drifting"));
            assert!(training.players.store.is_none());
            let carried = training.players.carried.as_ref().expect("rows");
            let tensors = carried.state().next().expect("a shard");
            let rows = |number: usize| {
                let (_, tensor) = &tensors[number];
                Vec::<f64>::try_from(tensor.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Double))
                    .expect("f64")
            };
            for (row, (perturbation, counted)) in rows(0).into_iter().zip(rows(1)).enumerate() {
                let visits = if row < 2 { 3.0 } else { 2.0 };
                assert_eq!(counted, visits * steps, "{mode:?}, row {row}");
                let expected = visits * (0.002 + 0.01 * steps);
                assert!((perturbation - expected).abs() < 1e-6, "{mode:?}, row {row}: {perturbation}");
            }
        }
    }

    #[test]
    fn numbers_stay_with_the_particle_and_figures_are_averaged_over_visits() {
        // Two steps a visit; three replays a visit.
        for (mode, steps) in [(Mode::Faithful, 2.0), (Mode::Fused, 3.0)] {
            let training = trained(mode, Some("counting"));
            let (sums, visited) = training.sums.tally.read_figures();
            assert_eq!((sums, visited), (vec![10.0 * steps], 10.0), "{mode:?}");
            let store =
                training.players.store.as_ref().and_then(|stores| stores.iter().next()).expect("a store");
            let (name, numbers) = &store.state(None).expect("in memory")[1];
            assert_eq!((name.as_str(), numbers.size()), ("state.1", vec![10, 1, 2]));
            assert_eq!(numbers, &numbers.full_like(steps));
        }
    }
}
