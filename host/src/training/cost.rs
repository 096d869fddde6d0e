//! The cost of training in passes. A pass is one forward and one backward of one sample; a forward
//! alone counts as a whole pass, so that no method looks cheaper than it is.

use super::Training;
use super::update::Players;
use crate::config::{Mode, Train};
use indicatif::HumanCount;
use serde::Serialize;
use std::fmt;

/// Passes of each training point in an epoch. For each of its K particles: in mode faithful T for
/// the steps of the particle, one for the weights and one if the sampler judges its last proposal;
/// in mode fused one for each replay, and another if the sampler judges its proposals. And those that
/// the objective needs besides, for each particle, or once for all K particles of a point. Adversarial
/// weight perturbation doubles what the weights and the objective take.
pub(super) fn passes_per_epoch(train: &Train, players: &Players) -> u64 {
    let of_particles = match train.mode {
        Mode::Faithful => {
            players.sampler.as_ref().map_or(0, |sampler| sampler.evaluations(sampler.steps)) + 1
        }
        Mode::Fused => train.replay * players.sampler.as_ref().map_or(1, |sampler| sampler.evaluations(1)),
    };
    let (of_point, of_particle) = players.losses.passes();
    let apart = usize::from(players.losses.inner_target_is_apart(train, &players.model));
    let once = (of_particles + of_particle) * train.particles + of_point + apart;
    let again = train.awp.map_or(0, |_| (1 + of_particle) * train.particles + of_point);
    (once + again) as u64
}

/// Passes of all points together that renewing the running statistics of averaged weights takes,
/// with `batches` minibatches out of `points` points. They are forwards without a graph, which
/// count half a pass each: they are measurement, and reported beside the cost of training.
pub(super) fn statistics_passes(train: &Train, points: usize, batches: usize) -> f64 {
    let minibatches = points.div_ceil(train.batch);
    let rest = (batches % minibatches * train.batch).min(points);
    let forwards = (batches / minibatches * points + rest) * train.particles;
    forwards as f64 / 2.0
}

/// What a run is expected to cost, if patience does not end it. Probes and traces are not counted.
#[derive(Debug, Clone, Serialize)]
pub struct ExpectedCost {
    /// Passes of each training point.
    pub passes_per_sample: u64,
    /// Passes of all training points.
    pub passes: u64,
    /// Minibatches, however often each is replayed.
    pub updates: u64,
    points: u64,
}

impl fmt::Display for ExpectedCost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passes_per_sample, passes, updates, points } = *self;
        let [each, points, passes, updates] = [passes_per_sample, points, passes, updates].map(HumanCount);
        write!(
            formatter,
            "{each} passes per sample x {points} points = {passes} passes, in {updates} updates"
        )
    }
}

impl Training {
    /// What the whole run is expected to cost.
    pub(super) fn expected_cost(&self) -> ExpectedCost {
        let passes_per_sample = self.plan.experiment.train.epochs as u64 * self.plan.passes_per_epoch;
        let points = self.plan.examples.len() as u64;
        let (passes, updates) = (passes_per_sample * points, self.updates());
        ExpectedCost { passes_per_sample, passes, updates, points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Experiment, ModelMode, SamplerChoice};
    use crate::plugin::{LoadedModel, Objective, Sampler};
    use crate::training::fixtures::dataset;
    use tch::Device;

    /// Forwards and backwards at the model in an epoch of an experiment, and the passes by the
    /// formula; each for one point. None where the experiment is refused.
    fn counted(
        train: Train,
        (model, objective): (&str, &str),
        sampler: Option<(&str, usize)>,
    ) -> Option<(f64, f64, u64)> {
        let dataset = dataset();
        let spec = |(name, steps): (&str, usize)| format!("linked,plugin={name},steps={steps}").parse();
        let sampler = sampler.map(|sampler| spec(sampler).expect("a spec"));
        let experiment = Experiment { sampler: SamplerChoice(sampler.clone()), train, ..Default::default() };
        experiment.validate().ok()?;
        let model = LoadedModel::linked(model, dataset.task());
        let sampler = sampler.map(|spec| {
            let mut sampler = Sampler::linked(&spec);
            if experiment.train.mode == Mode::Fused {
                sampler.steps = experiment.train.replay;
            }
            sampler
        });
        let players = (model, Objective::linked(objective), sampler);
        let mut training = Training::new(experiment, players, (None, None), &dataset, Device::Cpu).ok()?;
        let before = training.players.model.passes();
        for selection in training.plan.minibatches(0).expect("minibatches") {
            training.update(&selection).expect("an update");
        }
        let after = training.players.model.passes();
        let each = |after: u64, before: u64| (after - before) as f64 / 10.0;
        Some((each(after.0, before.0), each(after.1, before.1), training.plan.passes_per_epoch))
    }

    #[test]
    fn passes_are_the_forwards_and_backwards_at_the_model_in_every_mode() {
        let mut tried = 0;
        for mode in [Mode::Faithful, Mode::Fused] {
            for objective in ["cross_entropy", "divergence"] {
                for gradient in [ModelMode::Eval, ModelMode::Train] {
                    for model in ["with-dropout", "without-dropout"] {
                        for sampler in [
                            None,
                            Some(("ascending", 1)),
                            Some(("ascending", 3)),
                            Some(("judging", 2)),
                            Some(("judging-by-gradient", 2)),
                            Some(("gradient-free", 2)),
                        ] {
                            for particles in [1, 3] {
                                let replay = if mode == Mode::Fused { 4 } else { 1 };
                                // In mode fused only `train` can be asked for.
                                let train = Train {
                                    mode,
                                    sampler_gradient: Some(gradient),
                                    particles,
                                    replay,
                                    batch: 4,
                                    ..Default::default()
                                };
                                let case = format!("{train:?} {model} {objective} {sampler:?}");
                                let Some((forwards, backwards, passes)) =
                                    counted(train, (model, objective), sampler)
                                else {
                                    continue;
                                };
                                tried += 1;
                                assert_eq!(forwards, passes as f64, "{case}");
                                // The forwards that have no backward of their own: the judgement of
                                // a last proposal, and the natural examples, whose backward is that
                                // of the weights.
                                let visits = if mode == Mode::Fused { replay } else { 1 };
                                let without_gradient = match sampler {
                                    Some(("judging", _)) => visits,
                                    // In mode fused the gradient comes with that of the weights.
                                    Some(("gradient-free", steps)) if mode == Mode::Faithful => steps + 1,
                                    Some(("gradient-free", _)) => visits,
                                    _ => 0,
                                };
                                let natural = match objective {
                                    "cross_entropy" => 0,
                                    _ => {
                                        let apart = gradient == ModelMode::Eval && model == "with-dropout";
                                        1 + usize::from(apart)
                                    }
                                };
                                let alone = (without_gradient * particles + natural) as f64;
                                assert_eq!(backwards, passes as f64 - alone, "{case}");
                            }
                        }
                    }
                }
            }
        }
        assert!(tried > 30, "{tried} experiments were valid");
    }
}
