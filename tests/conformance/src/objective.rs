//! Checks for objectives.

use crate::tensors::{demand_same, no_result};
use crate::toy::{Batch, LinearVictim, Numbers, Problem, THREATS, guarded};
use crate::{Check, Outcome, Plugin, Table, Verdict};
use plugin_api::abi::{Minibatch, ObjectiveInstance};
use plugin_api::losses::{cross_entropy, differentiable_gradient, gradients};
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Climbs, Error, NetworkCalls, Norm, Passes, Result, Setting, ThreatModel};
use std::cell::Cell;

pub const CHECKS: [Check; 7] = [
    Check::new(
        "objective-gradient",
        "the losses have a finite gradient with respect to logits and particles, also for sure predictions",
        gradient,
    )
    .of(&["objective"])
    .after(&["tensors-finite"]),
    Check::new("objective-permutation", "the order of points in a minibatch does not matter", permutation)
        .of(&["objective"])
        .after(&["determinism-repeats"]),
    Check::new(
        "objective-split",
        "with several particles, the losses of a point do not depend on other points, unless it declares so",
        split,
    )
    .of(&["objective"])
    .after(&["determinism-neighbours"]),
    Check::new("objective-grouping", "the outer loss of a point depends on its own particles only", grouping)
        .of(&["objective"])
        .after(&["determinism-repeats"]),
    Check::new(
        "objective-state",
        "the state keeps its shapes and is all that an objective learns: another instance goes on from it",
        state,
    )
    .of(&["objective"])
    .after(&["determinism-repeats"]),
    Check::new("objective-passes", "the passes of the network are those declared", passes).of(&["objective"]),
    Check::new("objective-parameters", "the network's weights and their gradients do not change", parameters)
        .of(&["objective"]),
];

/// Number of training points of the setting.
const TRAINING_POINTS: usize = 1000;

fn made(plugin: &Plugin) -> std::result::Result<ObjectiveInstance, Outcome> {
    let Table::Objective(objective) = &plugin.table else {
        return Err(Outcome::Skipped("not an objective".to_owned()));
    };
    objective.create(&plugin.options).map_err(|error| Outcome::failed("an instance", error))
}

/// The losses of a minibatch, without graphs.
pub struct Losses {
    /// `[N]`; one number for the whole minibatch is repeated.
    pub outer: Tensor,
    /// `[N]`
    pub inner: Tensor,
    /// The next state.
    state: Vec<Tensor>,
    /// The gradient of the mean outer loss with respect to the logits at the particles, `[N, classes]`;
    /// undefined if there is none.
    of_logits: Tensor,
    /// The gradient of the inner losses with respect to the particles.
    of_particles: Tensor,
    /// Passes of the network that were taken.
    passes: usize,
}

/// A minibatch of an objective: `particles_per_point` rows for each point, with their images.
pub struct Rows<'a> {
    pub natural: &'a Tensor,
    pub particles: &'a Tensor,
    pub labels: &'a Tensor,
    pub points: &'a [i64],
    pub particles_per_point: usize,
    pub problem: Problem,
    /// A factor on the logits.
    pub sureness: f64,
}

/// The setting of these rows, if the objective supports it; else the one in which particles may be
/// anywhere in the domain, for those whose penalty stands in the place of a ball.
fn setting(objective: &ObjectiveInstance, rows: &Rows) -> Result<Setting> {
    let threat = rows.problem.threat;
    let setting = Setting {
        threat,
        particles_per_point: rows.particles_per_point,
        classes: rows.problem.classes,
        training_points: TRAINING_POINTS,
    };
    let domain = ThreatModel { norm: Norm::Linf, epsilon: threat.domain.1 - threat.domain.0, ..threat };
    let without_ball = Setting { threat: domain, ..setting };
    objective
        .supports(&setting)
        .map(|()| setting)
        .or_else(|error| objective.supports(&without_ball).map(|()| without_ball).map_err(|_| error))
}

/// The first values of the state in the setting of these rows.
pub fn first_state(objective: &ObjectiveInstance, rows: &Rows) -> Result<Vec<Tensor>> {
    guarded(|| {
        let state = objective.state(&setting(objective, rows)?)?;
        Ok(state.into_iter().map(|(_, tensor)| tensor).collect())
    })
}

/// The losses at these rows.
pub fn losses(
    objective: &ObjectiveInstance,
    rows: &Rows,
    state: &[Tensor],
    (victim, random): (&LinearVictim, &Numbers),
) -> Result<Losses> {
    let leaf = rows.particles.f_detach()?.f_set_requires_grad(true)?;
    let network = Network { victim, rows: Cell::new(0) };
    let forward = |images: &Tensor| {
        tch::with_grad(|| victim.tracked_logits(images).map(|logits| logits * rows.sureness))
    };
    let (logits, natural_logits) = (forward(&leaf)?, forward(rows.natural)?);
    let declaration = objective.declaration();
    let detached = natural_logits.detach();
    let threat = setting(objective, rows)?.threat;
    let minibatch = |natural_logits| Minibatch {
        logits: &logits,
        natural_logits: Some(natural_logits).filter(|_| declaration.uses_natural),
        natural: rows.natural,
        particles: &leaf,
        start: rows.natural,
        labels: rows.labels,
        points: rows.points,
        particles_per_point: rows.particles_per_point,
        classes: rows.problem.classes,
        threat,
        state,
    };
    let count = rows.points.len() as i64;
    let outer = tch::with_grad(|| objective.outer(&minibatch(&natural_logits), &network, random))?;
    let per_row = |loss: &Tensor| -> Result<Tensor> {
        let is_one_number = loss.dim() == 0 && declaration.couples_points;
        let loss = if is_one_number {
            tch::with_grad(|| loss.f_expand([count], false))?
        } else {
            loss.shallow_clone()
        };
        if loss.size() != [count] {
            return Err(Error::new(format!("a loss of shape {:?}; expected [{count}]", loss.size())));
        }
        Ok(loss)
    };
    let outer_loss = per_row(&outer.loss)?;
    let inner_loss = match declaration.climbs {
        Climbs::CrossEntropy => tch::with_grad(|| cross_entropy(&logits, rows.labels)),
        Climbs::Outer => outer_loss.shallow_clone(),
        Climbs::Inner => tch::with_grad(|| objective.inner(&minibatch(&detached), random))?,
    };
    let inner_loss = per_row(&inner_loss)?;
    let passes = network.rows.get();
    let mean = tch::with_grad(|| outer_loss.mean(outer_loss.kind()));
    let of_logits = gradients(&mean, std::slice::from_ref(&logits), true)?.remove(0);
    let sum = tch::with_grad(|| inner_loss.sum(inner_loss.kind()));
    let of_particles = gradients(&sum, std::slice::from_ref(&leaf), true)?.remove(0);
    Ok(Losses {
        outer: outer_loss.detach(),
        inner: inner_loss.detach(),
        state: outer.state.iter().map(Tensor::detach).collect(),
        of_logits,
        of_particles,
        passes,
    })
}

/// The network, with the passes that an objective takes.
struct Network<'a> {
    victim: &'a LinearVictim,
    rows: Cell<usize>,
}

impl Network<'_> {
    fn count(&self, images: &Tensor) {
        self.rows.set(self.rows.get() + images.size().first().map_or(0, |rows| *rows as usize));
    }
}

impl NetworkCalls for Network<'_> {
    fn logits(&self, images: &Tensor, _: bool) -> Result<Tensor> {
        self.count(images);
        self.victim.tracked_logits(images)
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> Result<Tensor> {
        self.count(images);
        differentiable_gradient(&loss.f_sum(loss.kind())?, images)
    }
}

/// A minibatch with so many particles of each point.
struct Sample {
    batch: Batch,
    rows: Vec<i64>,
    copies: usize,
}

impl Sample {
    fn new(seed: u64, kind: Kind, points: &[i64], copies: usize) -> Self {
        let problem = Problem { kind, ..Problem::new(seed) };
        let rows: Vec<i64> = points.iter().flat_map(|point| std::iter::repeat_n(*point, copies)).collect();
        let mut batch = problem.batch(rows.iter().copied());
        // Particles of a point differ.
        let shift = Tensor::arange(rows.len() as i64, (kind, batch.images.device())).remainder(copies as i64);
        let shift = shift.reshape([-1, 1, 1, 1]) * (problem.threat.epsilon / 4.0);
        batch.particles = problem.threat.project(&(&batch.particles - shift), &batch.images);
        Self { batch, rows, copies }
    }

    fn losses(
        &self,
        objective: &ObjectiveInstance,
        state: Option<&[Tensor]>,
        sureness: f64,
    ) -> Result<Losses> {
        let Batch { images, particles, labels, victim, random, problem, .. } = &self.batch;
        let rows = Rows {
            natural: images,
            particles,
            labels,
            points: &self.rows,
            particles_per_point: self.copies,
            problem: *problem,
            sureness,
        };
        let first = first_state(objective, &rows)?;
        guarded(|| losses(objective, &rows, state.unwrap_or(&first), (victim, random)))
    }
}

const POINTS: [i64; 4] = [0, 1, 2, 3];

fn gradient(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    for threat in THREATS {
        let mut sample = Sample::new(seed, Kind::Float, &POINTS, 2);
        if threat.domain == sample.batch.problem.threat.domain {
            sample.batch.problem.threat = threat;
        }
        // Predictions that are far from sure, and some that are.
        for sureness in [1.0, 30.0] {
            let losses = sample.losses(&objective, None, sureness).map_err(no_result)?;
            for (what, gradient) in [
                ("outer loss and logits", &losses.of_logits),
                ("inner loss and particles", &losses.of_particles),
            ] {
                if !gradient.defined() {
                    return Ok(Outcome::failed(format!("a gradient of {what}"), "none: the graph lacks it"));
                }
                if gradient.isfinite().all().int64_value(&[]) != 1 {
                    return Ok(Outcome::failed(
                        format!("a finite gradient of {what}"),
                        format!("NaN or infinite for logits times {sureness}"),
                    ));
                }
            }
            let is_zero = losses.of_logits.abs().max().double_value(&[]) == 0.0;
            if is_zero && sureness == 1.0 {
                return Ok(Outcome::failed("a gradient that reaches the logits", "zero everywhere"));
            }
        }
    }
    Ok(Outcome::Passed)
}

/// The tolerance for sums in another order, in f64.
const ROUNDING: f64 = 1e-9;

fn permutation(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    let order = [2i64, 0, 3, 1];
    let run = |points: &[i64]| Sample::new(seed, Kind::Double, points, 1).losses(&objective, None, 1.0);
    let (usual, other) = (run(&POINTS).map_err(no_result)?, run(&order).map_err(no_result)?);
    let order = Tensor::from_slice(&order);
    let permuted = [usual.outer.index_select(0, &order), usual.inner.index_select(0, &order)];
    demand_same(&permuted, &[other.outer, other.inner], ROUNDING, "the same losses in another order")
}

fn split(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    let run = |points: &[i64]| Sample::new(seed, Kind::Double, points, 3).losses(&objective, None, 1.0);
    let (together, alone) = (run(&POINTS).map_err(no_result)?, run(&POINTS[2..]).map_err(no_result)?);
    let last = |tensor: &Tensor| tensor.narrow(0, 6, 6);
    if objective.declaration().couples_points {
        let expected = "the same inner losses in another minibatch";
        return demand_same(&[last(&together.inner)], &[alone.inner], ROUNDING, expected);
    }
    demand_same(
        &[last(&together.outer), last(&together.inner)],
        &[alone.outer, alone.inner],
        ROUNDING,
        "the same losses in another minibatch",
    )
}

fn grouping(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    if objective.declaration().couples_points {
        return Err(Outcome::Skipped("it declares that it couples points".to_owned()));
    }
    // Twelve rows as four points of three particles, or as two points of six with other labels and
    // images: what is compared are the first three rows, which are one point in both.
    let few = Sample::new(seed, Kind::Double, &POINTS, 3);
    let mut other = Sample::new(seed, Kind::Double, &POINTS, 3);
    let rest = Tensor::arange(12, (Kind::Int64, other.batch.images.device())).ge(3).reshape([-1, 1, 1, 1]);
    other.batch.particles = other.batch.images.where_self(&rest, &other.batch.particles);
    let run = |sample: &Sample| sample.losses(&objective, None, 1.0).map_err(no_result);
    let first = |losses: Losses| [losses.outer.narrow(0, 0, 3), losses.inner.narrow(0, 0, 3)];
    demand_same(
        &first(run(&few)?),
        &first(run(&other)?),
        ROUNDING,
        "the same losses of a point when the particles of other points move",
    )
}

fn state(plugin: &Plugin, seed: u64) -> Verdict {
    let sample = |shift: i64| Sample::new(seed, Kind::Float, &POINTS.map(|point| point + shift), 1);
    let objective = made(plugin)?;
    let first = sample(0).losses(&objective, None, 1.0).map_err(no_result)?;
    let rows = sample(0);
    let Batch { images, particles, labels, problem, .. } = &rows.batch;
    let declared = first_state(
        &objective,
        &Rows {
            natural: images,
            particles,
            labels,
            points: &rows.rows,
            particles_per_point: 1,
            problem: *problem,
            sureness: 1.0,
        },
    )
    .map_err(no_result)?;
    if declared.is_empty() && first.state.is_empty() {
        return Err(Outcome::Skipped("it has no state".to_owned()));
    }
    let form = |state: &[Tensor]| state.iter().map(|state| (state.size(), state.kind())).collect::<Vec<_>>();
    if form(&declared) != form(&first.state) {
        return Ok(Outcome::failed(
            format!("state of {:?}", form(&declared)),
            format!("{:?} after an update", form(&first.state)),
        ));
    }
    if !first.state.iter().all(|state| state.isfinite().all().int64_value(&[]) == 1) {
        return Ok(Outcome::failed("finite state", "NaN or infinite after an update"));
    }
    // Going on with the same instance, and with another one that has only the state.
    let saved: Vec<_> = first.state.iter().map(Tensor::copy).collect();
    let on = sample(4).losses(&objective, Some(&first.state), 1.0).map_err(no_result)?;
    let resumed = sample(4).losses(&made(plugin)?, Some(&saved), 1.0).map_err(no_result)?;
    let all = |losses: Losses| {
        let Losses { outer, inner, state, .. } = losses;
        [outer, inner].into_iter().chain(state).collect::<Vec<_>>()
    };
    demand_same(&all(on), &all(resumed), 0.0, "the same losses from the state alone")
}

fn passes(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    let Passes { per_point, per_particle } = objective.declaration().passes;
    for copies in [1, 3] {
        let losses = Sample::new(seed, Kind::Float, &POINTS, copies).losses(&objective, None, 1.0);
        let declared = POINTS.len() * (per_point + copies * per_particle);
        let taken = losses.map_err(no_result)?.passes;
        if taken != declared {
            return Ok(Outcome::failed(
                format!(
                    "{declared} passes for {} points with {copies} particles each, as declared",
                    POINTS.len()
                ),
                taken,
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn parameters(plugin: &Plugin, seed: u64) -> Verdict {
    let objective = made(plugin)?;
    let sample = Sample::new(seed, Kind::Float, &POINTS, 1);
    let weights = &sample.batch.victim.weights;
    let before = weights.detach().copy();
    let _ = sample.losses(&objective, None, 1.0).map_err(no_result)?;
    if weights.detach() != before {
        return Ok(Outcome::failed("unchanged weights of the network", "changed weights"));
    }
    Ok(Outcome::demand(
        !weights.grad().defined(),
        "no gradient of the network's weights",
        "a gradient: use the network's `input_gradient`, not `backward`",
    ))
}
