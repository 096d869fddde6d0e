//! One update: particles of a minibatch are taken out of the store, particles and weights move, and
//! the particles go back. Nothing here can reach a file.

use super::Plan;
use super::augmentation::Transformation;
use super::average::Average;
use super::carried::Carried;
use super::objective::Losses;
use super::optimizer::Optimizer;
use super::shards::{Selection, Stores};
use super::store::Stored;
use super::tally::Tally;
use crate::Result;
use crate::config::{Mode, ModelMode, Objective, Train};
use crate::data::examples::repeat_rows;
use crate::plugin::{LoadedModel, Sampler, Visit, fresh_start};
use crate::torch::c10d::Reducer;
use crate::torch::finite::FiniteCheck;
use crate::torch::precision::Precision;
use crate::torch::random::{Draws, Forward, Purpose, seed_for};
use plugin_api::losses::{correct, cross_entropy};
use plugin_api::walk::Due;
use tch::{Tensor, no_grad};

/// What moves: the weights, which solve the outer problem, and the particles, which solve the inner
/// one.
pub(super) struct Players {
    pub model: LoadedModel,
    pub optimizer: Optimizer,
    /// The average of the weights that is evaluated in their place.
    pub average: Option<Average>,
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
    /// Images as they lie in the data, `[N, C, H, W]`.
    natural: Tensor,
    /// Labels, `[N]`.
    labels: Tensor,
    /// How the images are augmented. Chains move in the augmented frame; the store keeps particles
    /// in the frame of the data.
    transformation: Transformation,
    /// The augmented images.
    augmented: Tensor,
    /// The chains of these points as they lie in the store, if there is one.
    stored: Option<Stored>,
    /// What the rows of the minibatch before left to these, if chains begin there: perturbations, not
    /// particles.
    carried: Option<Stored>,
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
            self.follow(plan, update)?;
            return self.share_buffers(plan);
        }
        let minibatch = self.minibatch(plan, update, selection)?;
        let draws = Draws::new(seed, Purpose::Training, update, &minibatch.points, copies);
        let draws = draws.drawn_ahead(plan.ahead.as_ref());
        let mut visit = self.begin_visit(plan, update, &minibatch, &draws)?;
        match mode {
            Mode::Faithful => {
                let rest = (sums, refuse_if_stopped);
                self.faithful(plan, update, &mut visit, minibatch.everywhere, &draws, rest)?;
            }
            Mode::Fused => self.fused(plan, update, &mut visit, minibatch.everywhere, &draws, sums)?,
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
        let (natural, labels) = plan.examples.batch_of(&selection.points, &selection.indices)?;
        let points = plan.rows(&selection.points);
        let (natural, labels) = (repeat_rows(&natural, copies), repeat_rows(&labels, copies));
        let transformation = Transformation::draw(&plan.experiment.train, update, &points, &natural)?;
        Ok(Minibatch {
            augmented: transformation.apply(&natural),
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
        let mut threat = plan.experiment.training_threat();
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
                let Stored { particles, state } = transformation.carry(stored);
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
        everywhere: usize,
        draws: &Draws,
        (sums, refuse_if_stopped): (&mut Sums, &dyn Fn() -> Result<()>),
    ) -> Result<()> {
        let train = &plan.experiment.train;
        let precision = train.precision;
        let train_mode = train.sampler_gradient() == ModelMode::Train;
        // Passes in training mode change the buffers of the model.
        let changes_nothing = !train_mode && !train.objective.has_its_own_inner_loss();
        let objective = self.losses(plan, update, visit)?;
        let model = &self.model;
        if let Some(sampler) = &self.sampler {
            sampler.walk().run(
                visit,
                |due, visit| {
                    if changes_nothing {
                        refuse_if_stopped()?;
                    }
                    // The last proposal is judged by the function that was climbed, before the
                    // weights descend: they descend at the accepted particle.
                    // Both sides of a judgement see the model with the same draws of its own.
                    let forward = Forward::Step(if sampler.judges_last_proposal() { 0 } else { due.number });
                    seed_forward(plan, update, forward);
                    inner_losses(model, (precision, train_mode), due, visit, |logits| {
                        objective.inner(logits, visit.labels)
                    })
                },
                |call| sampler.perform(call, draws, &mut sums.finite),
            )?;
            sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
        }
        seed_forward(plan, update, Forward::Weights);
        let logits = model.forward_in(precision, &visit.particles, true)?;
        let losses = objective.outer(&logits, visit.labels);
        let (gradients, _) = self.gradients(plan, &losses.mean(losses.kind()), None, visit, everywhere)?;
        self.descend(plan, update, &gradients, (&losses.detach(), &logits.detach(), visit.labels), sums);
        Ok(())
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
        everywhere: usize,
        draws: &Draws,
        sums: &mut Sums,
    ) -> Result<()> {
        let train = &plan.experiment.train;
        if let Some(sampler) = &self.sampler {
            sampler.begin(visit, draws, &mut sums.finite)?;
        }
        for number in 0..train.replay {
            let leaf = visit.particles.detach().set_requires_grad(true);
            seed_forward(plan, update, Forward::Step(number));
            let logits = self.model.forward_in(train.precision, &leaf, true)?;
            let losses = Losses::shared(train.objective, &logits, visit.labels)?;
            let mean = losses.mean(losses.kind());
            let (gradients, gradient) = self.gradients(plan, &mean, Some(&leaf), visit, everywhere)?;
            // The sampler is given the gradient of each particle's own loss, not of the mean.
            let gradient = gradient * everywhere as f64;
            let losses = losses.detach();
            match &self.sampler {
                Some(sampler) if sampler.judges_last_proposal() => {
                    visit.state =
                        sampler.declaration().begin_visit(std::mem::take(&mut visit.state), &visit.particles);
                    sampler.walk_of_one_step().run(
                        visit,
                        |due, visit| match due.number {
                            0 => Ok((losses.shallow_clone(), Some(gradient.shallow_clone()))),
                            _ => {
                                // The same draws of the model itself as at the particle.
                                seed_forward(plan, update, Forward::Step(number));
                                inner_losses(&self.model, (train.precision, true), due, visit, |logits| {
                                    cross_entropy(logits, visit.labels)
                                })
                            }
                        },
                        |call| sampler.perform(call, &draws.visit(number), &mut sums.finite),
                    )?;
                    sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
                }
                Some(sampler) => {
                    sampler.step(visit, number, (&losses, &gradient), draws, &mut sums.finite)?;
                }
                None => {}
            }
            self.descend(plan, update, &gradients, (&losses, &logits.detach(), visit.labels), sums);
        }
        if let Some(sampler) = self.sampler.as_ref().filter(|sampler| !sampler.judges_last_proposal()) {
            sums.tally.add_figures(sampler.declaration().figures_of(&visit.state).as_ref());
        }
        Ok(())
    }

    /// The losses of both problems in this minibatch. TRADES needs the logits at the natural
    /// examples: they are computed once for all particles of a point, and for both problems unless
    /// the sampler's gradient is taken in another mode of the model.
    fn losses(&self, plan: &Plan, update: u64, visit: &Visit) -> Result<Losses> {
        let train = &plan.experiment.train;
        match train.objective {
            Objective::CrossEntropy => Ok(Losses::CrossEntropy),
            Objective::Trades => {
                let copies = train.particles;
                seed_forward(plan, update, Forward::Natural);
                let points = visit.natural.slice(0, None, None, copies as i64);
                let logits = |train_mode| self.model.forward_in(train.precision, &points, train_mode);
                let natural = repeat_rows(&logits(true)?, copies);
                let target = if self.inner_target_is_apart(train) {
                    repeat_rows(&no_grad(|| logits(false))?, copies)
                } else {
                    natural.detach()
                };
                Ok(Losses::Trades { beta: train.trades_beta(), natural, target })
            }
        }
    }

    /// Whether the inner loss compares with a prediction of the model in another mode than the one
    /// that is trained.
    pub fn inner_target_is_apart(&self, train: &Train) -> bool {
        train.objective.has_its_own_inner_loss()
            && train.sampler_gradient() == ModelMode::Eval
            && self.model.train_differs
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

    /// An update in which this process has no points: its weights follow those of the others.
    fn follow(&mut self, plan: &Plan, update: u64) -> Result<()> {
        // Only mode fused replays a minibatch.
        for _ in 0..plan.experiment.train.replay {
            let Some(reducer) = &self.reducer else { return Ok(()) };
            let summed = reducer.gradients(None, None).map_err(|error| plan.ranks.explained(error))?;
            self.step(plan, update, &summed.0);
        }
        Ok(())
    }

    /// The weights take a step down these gradients of the mean of the losses (`[N]`), which were
    /// formed from the logits (`[N, classes]`) and labels (`[N]`).
    fn descend(
        &mut self,
        plan: &Plan,
        update: u64,
        gradients: &[Tensor],
        (losses, logits, labels): (&Tensor, &Tensor, &Tensor),
        sums: &mut Sums,
    ) {
        sums.finite.loss(&losses.mean(losses.kind()));
        self.step(plan, update, gradients);
        sums.tally.add(losses, &correct(logits, labels));
    }

    /// The weights take a step down these gradients, and their average follows.
    fn step(&mut self, plan: &Plan, update: u64, gradients: &[Tensor]) {
        self.optimizer.step(gradients, plan.schedule.learning_rate(update));
        if let Some(average) = &mut self.average {
            average.update(&self.model);
        }
    }
}

/// The losses (`[N]`) at the particles of a visit, formed from their logits, and their gradient if
/// it is due.
fn inner_losses(
    model: &LoadedModel,
    (precision, train_mode): (Precision, bool),
    due: Due,
    visit: &Visit,
    losses_of: impl FnOnce(&Tensor) -> Tensor,
) -> Result<(Tensor, Option<Tensor>)> {
    if !due.gradient {
        let logits = no_grad(|| model.forward_in(precision, &visit.particles, train_mode))?;
        return Ok((losses_of(&logits).detach(), None));
    }
    let leaf = visit.particles.detach().set_requires_grad(true);
    let losses = losses_of(&model.forward_in(precision, &leaf, train_mode)?);
    let gradient = model.input_gradient(&losses.sum(losses.kind()), &leaf)?;
    Ok((losses.detach(), Some(gradient)))
}

/// Random numbers that the model itself draws depend on the update, on which forward it is, and on
/// the process: each has rows of its own.
fn seed_forward(plan: &Plan, update: u64, forward: Forward) {
    let seed = seed_for(plan.experiment.train.seed, Purpose::Forward, forward.of_update(update));
    tch::manual_seed(seed.wrapping_add(plan.ranks.rank() as i64));
}

#[cfg(test)]
mod tests {
    use super::super::Training;
    use super::*;
    use crate::config::{Experiment, SamplerChoice};
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
        let mut training =
            Training::new(experiment, model, sampler, parts, &dataset, Device::Cpu).expect("a run");
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
