//! One update: particles of a minibatch are taken out of the store, particles and weights move, and
//! the particles go back. Nothing here can reach a file.

use super::Plan;
use super::augmentation::Transformation;
use super::average::Average;
use super::objective::Losses;
use super::optimizer::Optimizer;
use super::store::{ParticleStore, Stored};
use super::tally::Tally;
use crate::Result;
use crate::config::{Mode, ModelMode, Objective, Train};
use crate::data::examples::repeat_rows;
use crate::plugin::{LoadedModel, Sampler, Visit, fresh_start};
use crate::torch::finite::FiniteCheck;
use crate::torch::random::{Draws, Forward, Purpose, seed_for};
use plugin_api::losses::correct;
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
    pub store: Option<ParticleStore>,
}

/// What updates leave on the device, to be read now and then.
pub(super) struct Sums {
    /// The sums of the present epoch.
    pub tally: Tally,
    pub finite: FiniteCheck,
}

/// The points of an update, K rows each: N in all.
pub(super) struct Minibatch {
    /// The point of each row, length N.
    pub points: Vec<i64>,
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
}

impl Players {
    /// Update number `update`, counted from 0. `points` and `indices` (`[B]`, i64, on the device)
    /// name the same B points.
    ///
    /// # Errors
    /// If a plugin fails.
    pub fn update(
        &mut self,
        plan: &Plan,
        update: u64,
        points: &[i64],
        indices: &Tensor,
        sums: &mut Sums,
    ) -> Result<()> {
        let Train { seed, particles: copies, mode, .. } = plan.experiment.train;
        // Users count updates from 1, as checkpoints do.
        sums.finite.at(update + 1);
        let minibatch = self.minibatch(plan, update, points, indices)?;
        let draws = Draws::new(seed, Purpose::Training, update, &minibatch.points, copies);
        let mut visit = self.begin_visit(plan, update, &minibatch, &draws)?;
        match mode {
            Mode::Faithful => self.faithful(plan, update, &mut visit, &draws, sums)?,
            Mode::Fused => self.fused(plan, update, &mut visit, &draws, sums)?,
        }
        if let (Some(store), Some(stored)) = (&mut self.store, &minibatch.stored) {
            let Minibatch { natural, transformation, .. } = &minibatch;
            store.save(indices, natural, &transformation.carry_back(&visit, stored, natural));
        }
        Ok(())
    }

    /// These points, K rows each, and their chains as they lie in the store.
    pub fn minibatch(&self, plan: &Plan, update: u64, points: &[i64], indices: &Tensor) -> Result<Minibatch> {
        let copies = plan.experiment.train.particles;
        let points: Vec<_> = points.iter().flat_map(|point| std::iter::repeat_n(*point, copies)).collect();
        let (natural, labels) = plan.examples.batch(indices);
        let (natural, labels) = (repeat_rows(&natural, copies), repeat_rows(&labels, copies));
        let transformation = Transformation::draw(&plan.experiment.train, update, &points, &natural)?;
        Ok(Minibatch {
            augmented: transformation.apply(&natural),
            stored: self.store.as_ref().map(|store| store.load(indices, &natural)),
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
        let Minibatch { points, labels, augmented: natural, transformation, stored, .. } = minibatch;
        let mut threat = plan.experiment.training_threat();
        let ramp = plan.epsilon_ramp(update);
        threat.epsilon *= ramp;
        let (particles, state) = match (&self.sampler, stored) {
            (_, Some(stored)) => {
                let Stored { particles, state } = transformation.carry(stored);
                // Draws from the whole ball may lie outside one that still grows.
                (if ramp < 1.0 { threat.project(&particles, natural) } else { particles }, state)
            }
            (Some(sampler), None) => {
                (fresh_start(plan.start, natural, &threat, draws)?, sampler.fresh_state(natural))
            }
            (None, None) => (natural.shallow_clone(), Vec::new()),
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
        draws: &Draws,
        sums: &mut Sums,
    ) -> Result<()> {
        let train = &plan.experiment.train;
        let precision = train.precision;
        let train_mode = train.sampler_gradient() == ModelMode::Train;
        let objective = self.losses(train, update, visit)?;
        let model = &self.model;
        if let Some(sampler) = &self.sampler {
            sampler.walk().run(
                visit,
                |number, visit| {
                    let leaf = visit.particles.detach().set_requires_grad(true);
                    seed_forward(train, update, Forward::Step(number));
                    let logits = model.forward_in(precision, &leaf, train_mode)?;
                    let losses = objective.inner(&logits, visit.labels);
                    let gradient = model.input_gradient(&losses.sum(losses.kind()), &leaf)?;
                    Ok((losses.detach(), gradient))
                },
                |visit| {
                    // The last proposal is judged by the function that was climbed, before the
                    // weights descend: they descend at the accepted particle.
                    seed_forward(train, update, Forward::Weights);
                    let logits = no_grad(|| model.forward_in(precision, &visit.particles, train_mode))?;
                    Ok(objective.inner(&logits, visit.labels))
                },
                |call| sampler.perform(call, draws, &mut sums.finite),
            )?;
        }
        seed_forward(train, update, Forward::Weights);
        let logits = model.forward_in(precision, &visit.particles, true)?;
        let losses = objective.outer(&logits, visit.labels);
        let mean = losses.mean(losses.kind());
        let gradients = model.parameter_gradients(&mean, self.optimizer.parameters(), logits.size()[0])?;
        self.descend(plan, update, &gradients, (&losses.detach(), &logits.detach(), visit.labels), sums);
        Ok(())
    }

    /// One backward for both problems: the weights descend at the particles, and the particles move
    /// along the gradient that was taken there; again for every replay. This is free adversarial
    /// training (Shafahi et al., 2019) with a particle per sample and a sampler's noise.
    fn fused(
        &mut self,
        plan: &Plan,
        update: u64,
        visit: &mut Visit,
        draws: &Draws,
        sums: &mut Sums,
    ) -> Result<()> {
        let train = &plan.experiment.train;
        for number in 0..train.replay {
            let leaf = visit.particles.detach().set_requires_grad(true);
            seed_forward(train, update, Forward::Step(number));
            let logits = self.model.forward_in(train.precision, &leaf, true)?;
            let losses = Losses::shared(train.objective, &logits, visit.labels)?;
            let mean = losses.mean(losses.kind());
            let (gradients, gradient) =
                self.model.both_gradients(&mean, self.optimizer.parameters(), &leaf)?;
            // The sampler is given the gradient of each particle's own loss, not of the mean.
            let gradient = gradient * visit.points.len() as f64;
            let losses = losses.detach();
            self.descend(plan, update, &gradients, (&losses, &logits.detach(), visit.labels), sums);
            if let Some(sampler) = &self.sampler {
                let at = (&losses, &gradient);
                sampler.step(visit, number, at, draws, &mut sums.finite)?;
            }
        }
        Ok(())
    }

    /// The losses of both problems in this minibatch. TRADES needs the logits at the natural
    /// examples: they are computed once for all particles of a point, and for both problems unless
    /// the sampler's gradient is taken in another mode of the model.
    fn losses(&self, train: &Train, update: u64, visit: &Visit) -> Result<Losses> {
        match train.objective {
            Objective::CrossEntropy => Ok(Losses::CrossEntropy),
            Objective::Trades => {
                let copies = train.particles;
                seed_forward(train, update, Forward::Natural);
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
        self.optimizer.step(gradients, plan.schedule.learning_rate(update));
        if let Some(average) = &mut self.average {
            average.update(&self.model);
        }
        sums.tally.add(losses, &correct(logits, labels));
    }
}

/// Random numbers that the model itself draws depend on the update and on which forward it is.
fn seed_forward(train: &Train, update: u64, forward: Forward) {
    tch::manual_seed(seed_for(train.seed, Purpose::Forward, forward.of_update(update)));
}

#[cfg(test)]
mod tests {
    use super::super::Training;
    use super::*;
    use crate::config::{Experiment, SamplerChoice};
    use crate::training::fixtures::dataset;
    use tch::Device;

    /// The weights after an epoch of Algorithm 1 with this sampler, or of ordinary training.
    fn weights(sampler: Option<&str>) -> Vec<Tensor> {
        let dataset = dataset();
        let train = Train { batch: 4, ..Default::default() };
        let experiment = Experiment { train, sampler: SamplerChoice(None), ..Default::default() };
        let model = LoadedModel::linked("without-dropout", dataset.task());
        let sampler = sampler
            .map(|name| Sampler::linked(&format!("linked,plugin={name},steps=2").parse().expect("a spec")));
        let parts = (None, None);
        let mut training =
            Training::new(experiment, model, sampler, parts, &dataset, Device::Cpu).expect("a run");
        for (points, indices) in training.plan.minibatches(0).expect("minibatches") {
            training.update(&points, &indices).expect("an update");
        }
        training.players.model.state().iter().map(|(_, tensor)| tensor.copy()).collect()
    }

    #[test]
    fn weights_descend_at_the_accepted_particle() {
        assert_eq!(weights(Some("rejecting")), weights(None), "every proposal is rejected");
        assert_ne!(weights(Some("judging")), weights(None), "every proposal is accepted");
    }
}
