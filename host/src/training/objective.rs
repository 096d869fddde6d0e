//! The objective within an update: what the host computes for its losses.

use super::trial::AtChance;
use super::{Plan, trial};
use crate::config::{Experiment, Mode, ModelMode, Train};
use crate::data::examples::repeat_rows;
use crate::plugin::{LoadedModel, Objective, SeenModel, Visit};
use crate::ranks::Ranks;
use crate::torch::random::{Draws, Forward, Purpose, seed_for};
use crate::{Error, Result};
use plugin_api::abi::Minibatch;
use plugin_api::{Climbs, NetworkCalls, Outer, Passes, Setting, Task, ThreatModel, losses};
use std::cell::Cell;
use std::collections::BTreeMap;
use tch::{Device, Tensor, no_grad};

/// The objective and its state.
pub(super) struct Losses {
    pub objective: Objective,
    /// Named tensors, in the objective's order.
    pub state: Vec<(String, Tensor)>,
    /// What it says of a network that knows nothing.
    pub at_chance: AtChance,
}

/// What both losses of a minibatch have in common.
pub(super) struct Prepared {
    /// Logits at the natural example of each particle, with a graph, `[N, C]`.
    natural: Option<Tensor>,
    /// The same for the inner loss, without a graph. They are computed in the model mode of the
    /// sampler's gradient (`train.sampler_gradient`).
    target: Option<Tensor>,
    /// Where the chains of the visit began, `[N, C, H, W]`.
    start: Tensor,
    /// The state of the objective at the beginning of the update.
    state: Vec<Tensor>,
}

impl Losses {
    /// The losses of a run that has done nothing yet. `training_points`: their number;
    /// `is_adversarial`: whether there is a sampler.
    ///
    /// # Errors
    /// If the objective does not suit the experiment, or does not do what it declares.
    pub fn of(
        objective: Objective,
        experiment: &Experiment,
        task: Task,
        (training_points, is_adversarial): (usize, bool),
        ranks: &Ranks,
    ) -> Result<Self> {
        let train = &experiment.train;
        let (declaration, spec) = (*objective.declaration(), &train.objective);
        let setting = Setting {
            threat: experiment.training_threat().ball(),
            particles_per_point: train.particles,
            classes: task.classes,
            training_points,
        };
        // A mistake in the options, not one on the way.
        objective.supports(&setting).map_err(Error::new)?;
        // On the way to its full radius, the ball has every smaller one: half of it stands for them.
        if train.warmup_epsilon > 0.0 {
            let threat = ThreatModel { epsilon: setting.threat.epsilon / 2.0, ..setting.threat };
            let growing = objective.supports(&Setting { threat, ..setting });
            growing.map_err(|why| Error::new(why).note("because", "train.warmup_epsilon: the ball grows"))?;
        }
        if train.mode == Mode::Fused && declaration.climbs != Climbs::Outer {
            let climbs = match declaration.climbs {
                Climbs::CrossEntropy => "the cross-entropy is climbed",
                _ => "a loss of its own is climbed",
            };
            return Err(spec
                .error(format!(
                    "train.objective: expected one loss for both problems (mode fused takes both gradients from \
                     one backward), got {}, in which {climbs}",
                    objective.name()
                ))
                .fix("use Algorithm 1 (--recipe algorithm-1, train.mode = \"faithful\")"));
        }
        if declaration.uses_natural && !is_adversarial {
            return Err(spec
                .error(format!(
                    "train.objective: expected one that does not compare particles with natural examples (without \
                     a sampler, they are the same), got {}",
                    objective.name()
                ))
                .fix("give a sampler (--sampler)"));
        }
        if !experiment.threat.is_one_radius() && declaration.passes != Passes::default() {
            return Err(spec
                .error(format!(
                    "train.objective: expected one that hands no images to the network (channels have radii of \
                     their own), got {}",
                    objective.name()
                ))
                .note("because", "the host cannot know which points these images belong to"));
        }
        let state = objective.first_state(&setting).map_err(Error::new)?;
        if !ranks.is_alone() && (declaration.couples_points || !state.is_empty()) {
            let why = if declaration.couples_points {
                "its loss of a point depends on others of the minibatch, which another process has"
            } else {
                "its state depends on all points of the minibatch, of which a process has a part"
            };
            return Err(spec
                .error(format!(
                    "train.objective: expected one that can be divided among processes, got {}",
                    objective.name()
                ))
                .note("because", why)
                .fix("train in one process"));
        }
        let at_chance = AtChance { loss: None, depends_on_places: false };
        let losses = Self { objective, state, at_chance };
        trial::check(&losses, &setting, task).map_err(Error::new)?;
        let at_chance = trial::at_chance(&losses, &setting, task);
        Ok(Self { at_chance, ..losses })
    }

    /// Brings the state to a device.
    pub fn on(self, device: Device) -> Self {
        let state = self.state.into_iter().map(|(name, tensor)| (name, tensor.to_device(device)));
        Self { state: state.collect(), ..self }
    }

    /// Loads the state that a checkpoint has.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, state) in &mut self.state {
            match saved.get(name) {
                Some(saved) if saved.size() == state.size() => *state = saved.to_device(state.device()),
                _ => {
                    return Err(Error::new(format!(
                        "the state of objective {} in the checkpoint does not match: `{name}` is missing or has \
                         another shape",
                        self.objective.name()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether the inner loss compares with a prediction of the model in another mode than the one
    /// that is trained.
    pub fn inner_target_is_apart(&self, train: &Train, model: &LoadedModel) -> bool {
        let declaration = self.objective.declaration();
        declaration.uses_natural
            && declaration.climbs == Climbs::Inner
            && train.sampler_gradient() == ModelMode::Eval
            && model.train_differs
    }

    /// Passes that the outer loss takes besides those at the particles: of each point, and of each
    /// particle.
    pub fn passes(&self) -> (usize, usize) {
        let declaration = self.objective.declaration();
        let natural = usize::from(declaration.uses_natural);
        (natural + declaration.passes.per_point, declaration.passes.per_particle)
    }

    /// What the losses of a minibatch need: the logits at its natural examples, computed once
    /// for all particles of a point, and for both problems unless the sampler's gradient is taken in
    /// another mode of the model. `start`: where the chains of the visit began; `for_inner`: whether
    /// the inner loss is computed, too.
    pub fn prepare(
        &self,
        plan: &Plan,
        update: u64,
        seen: SeenModel,
        visit: &Visit,
        (start, for_inner): (&Tensor, bool),
    ) -> Result<Prepared> {
        let train = &plan.experiment.train;
        let start = start.shallow_clone();
        let state = self.state.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        if !self.objective.declaration().uses_natural {
            return Ok(Prepared { natural: None, target: None, start, state });
        }
        let copies = train.particles;
        seed_forward(plan, update, Forward::Natural);
        let points = visit.natural.slice(0, None, None, copies as i64);
        let logits = |train_mode| seen.forward_in(train.precision, &points, train_mode);
        let natural = repeat_rows(&logits(true)?, copies);
        let target = if !for_inner {
            None
        } else if self.inner_target_is_apart(train, seen.model) {
            Some(repeat_rows(&no_grad(|| logits(false))?, copies))
        } else {
            Some(natural.detach())
        };
        Ok(Prepared { natural: Some(natural), target, start, state })
    }

    /// The loss of each row that the sampler climbs, `[N]`, from the logits at `particles`.
    pub fn inner(
        &self,
        plan: &Plan,
        (update, number): (u64, usize),
        seen: SeenModel,
        visit: &Visit,
        (prepared, particles, logits): (&Prepared, &Tensor, &Tensor),
    ) -> Result<Tensor> {
        let minibatch = prepared.minibatch(prepared.target.as_ref(), seen, visit, particles, logits);
        let draws = draws(plan, update, visit).visit(1).step(number);
        self.objective.inner(&minibatch, &Network::new(plan, update, seen), &draws)
    }

    /// The loss that the weights descend on, `[N]` or `[]`, and the next state of the objective, from
    /// the logits at `particles`, with their graph.
    pub fn outer(
        &self,
        plan: &Plan,
        (update, number): (u64, usize),
        seen: SeenModel,
        visit: &Visit,
        (prepared, particles, logits): (&Prepared, &Tensor, &Tensor),
    ) -> Result<Outer> {
        let minibatch = prepared.minibatch(prepared.natural.as_ref(), seen, visit, particles, logits);
        let draws = draws(plan, update, visit).step(number);
        self.objective.outer(seen.model.lent(true), &minibatch, &Network::new(plan, update, seen), &draws)
    }

    /// Sets the next state.
    pub fn advance(&mut self, next: Vec<Tensor>) {
        for ((_, state), next) in self.state.iter_mut().zip(next) {
            *state = next;
        }
    }
}

impl Prepared {
    fn minibatch<'a>(
        &'a self,
        natural_logits: Option<&'a Tensor>,
        seen: SeenModel,
        visit: &'a Visit,
        particles: &'a Tensor,
        logits: &'a Tensor,
    ) -> Minibatch<'a> {
        Minibatch {
            logits,
            natural_logits,
            natural: visit.natural,
            particles,
            start: &self.start,
            labels: visit.labels,
            points: visit.points,
            particles_per_point: visit.particles_per_point,
            classes: seen.model.classes(),
            threat: visit.threat,
            state: &self.state,
        }
    }
}

/// The random numbers of the losses of an update.
fn draws<'a>(plan: &Plan, update: u64, visit: &'a Visit) -> Draws<'a> {
    let seed = plan.experiment.train.seed;
    Draws::new(seed, Purpose::Objective, update, visit.points, visit.particles_per_point)
}

/// The network, as an objective may call it.
struct Network<'a> {
    plan: &'a Plan,
    update: u64,
    seen: SeenModel<'a>,
    /// Number of calls so far.
    calls: Cell<u64>,
}

impl<'a> Network<'a> {
    fn new(plan: &'a Plan, update: u64, seen: SeenModel<'a>) -> Self {
        Self { plan, update, seen, calls: Cell::new(0) }
    }
}

impl NetworkCalls for Network<'_> {
    fn logits(&self, images: &Tensor, train: bool) -> plugin_api::Result<Tensor> {
        let call = self.calls.replace(self.calls.get() + 1);
        seed_model(self.plan, Purpose::Objective, self.update << 16 | call);
        let precision = self.plan.experiment.train.precision;
        if !self.seen.pixels.are_same() {
            return Err(plugin_api::Error::new(
                "expected no images for the network where channels have radii of their own",
            ));
        }
        self.seen.model.forward_in(precision, images, train).map_err(plugin_api::Error::new)
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> plugin_api::Result<Tensor> {
        let total = loss.f_sum(loss.kind())?;
        self.seen.model.count_backward(images.size()[0]);
        losses::differentiable_gradient(&total, images)
    }
}

/// Random numbers that the model itself draws depend on the update, on which forward it is, and on
/// the process: each has rows of its own.
pub(super) fn seed_forward(plan: &Plan, update: u64, forward: Forward) {
    seed_model(plan, Purpose::Forward, forward.of_update(update));
}

fn seed_model(plan: &Plan, purpose: Purpose, step: u64) {
    let seed = seed_for(plan.experiment.train.seed, purpose, step);
    tch::manual_seed(seed.wrapping_add(plan.ranks.rank() as i64));
}
