//! A trial of an objective before a run: whether it does what it declares, on two points and a linear
//! network.

use super::objective::Losses;
use crate::torch::random::{Draws, Purpose};
use crate::{Error, Result};
use plugin_api::abi::Minibatch;
use plugin_api::{Climbs, NetworkCalls, Setting, Task, losses};
use tch::{Device, Kind, Tensor};

/// The largest relative difference between a point's loss alone and beside another one.
const ROUNDING: f64 = 1e-4;

/// Refuses an objective whose losses are not finite, have another shape or no graph, take other passes
/// than declared, or couple points although it declares that they do not.
///
/// # Errors
/// What, and what was expected.
pub(super) fn check(losses: &Losses, setting: &Setting, task: Task) -> Result<()> {
    let together = Trial::of(losses, setting, task, &[0, 1])?;
    if losses.objective.declaration().couples_points {
        return Ok(());
    }
    let alone = Trial::of(losses, setting, task, &[0])?;
    for (what, together, alone) in
        [("outer", &together.outer, &alone.outer), ("inner", &together.inner, &alone.inner)]
    {
        let beside = together.narrow(0, 0, setting.particles_per_point as i64);
        let difference = (&beside - alone).abs().max().double_value(&[]);
        if difference > ROUNDING * (1.0 + alone.abs().max().double_value(&[])) {
            return Err(Error::new(format!(
                "{}: {what} gives a point another loss beside other points than alone: a difference of {difference:.3e}",
                losses.objective.name()
            ))
            .note("expected", "a loss that depends on its own row only, as the plugin declares")
            .fix("declare `couples_points`, or compute each row's loss from this row"));
        }
    }
    Ok(())
}

/// What a network that gives every class the same probability says of an objective.
pub(super) struct AtChance {
    /// The outer loss. None if it depends on the points (state, particles' places), so that a run has
    /// no such level, or is not above 0.
    pub loss: Option<f64>,
    /// Whether the loss depends on where the particles are, whatever the network says of them.
    pub depends_on_places: bool,
}

/// See [`AtChance`].
pub(super) fn at_chance(losses: &Losses, setting: &Setting, task: Task) -> AtChance {
    let outer = |shift| {
        let round = Round::new(losses, setting, Linear::new(task, 0.0), &[0, 1], shift);
        let draws = Draws::new(0, Purpose::Objective, 0, &round.rows, setting.particles_per_point);
        let minibatch = round.minibatch(losses, setting);
        let loss = losses.objective.outer([], &minibatch, &round.network, &draws).ok()?.loss;
        Some(loss.mean(Kind::Double).double_value(&[]))
    };
    let (still, moved) = (outer(0.0), outer(1.0));
    let differs = |(still, moved): (f64, f64)| (still - moved).abs() > ROUNDING * (1.0 + still.abs());
    let depends_on_places = still.zip(moved).is_some_and(differs);
    let loss = still.filter(|loss| loss.is_finite() && *loss > 0.0);
    AtChance { loss: loss.filter(|_| losses.state.is_empty() && !depends_on_places), depends_on_places }
}

/// The losses of some points, `[N]` each.
struct Trial {
    outer: Tensor,
    inner: Tensor,
}

impl Trial {
    fn of(losses: &Losses, setting: &Setting, task: Task, points: &[i64]) -> Result<Self> {
        let objective = &losses.objective;
        let round = Round::new(losses, setting, Linear::new(task, 1.0), points, 1.0);
        let Round { rows, network, logits, .. } = &round;
        let minibatch = round.minibatch(losses, setting);
        let draws = Draws::new(0, Purpose::Objective, 0, rows, setting.particles_per_point);
        let outer = objective.outer([], &minibatch, network, &draws)?;
        let inner = match objective.declaration().climbs {
            Climbs::Outer => outer.loss.shallow_clone(),
            _ => objective.inner(&minibatch, network, &draws.visit(1))?,
        };
        for (what, loss) in [("outer", &outer.loss), ("inner", &inner)] {
            if loss.isfinite().all().int64_value(&[]) != 1 {
                return Err(Error::new(format!(
                    "{}: {what} returned NaN or infinite for logits between -1 and 1; expected finite losses",
                    objective.name()
                )));
            }
        }
        for (what, loss) in [("outer", &outer.loss), ("inner", &inner)] {
            let mean = tch::with_grad(|| loss.mean(loss.kind()));
            let gradient = losses::gradient(&mean, logits, true)
                .map_err(|why| Error::new(format!("{}: {what}: {why}", objective.name())))?;
            if gradient.isfinite().all().int64_value(&[]) != 1 {
                return Err(Error::new(format!(
                    "{}: {what} has a gradient that is NaN or infinite for logits between -1 and 1; expected a \
                     finite one",
                    objective.name()
                )));
            }
        }
        Ok(Self { outer: outer.loss.detach(), inner: inner.detach() })
    }
}

/// What an objective is given in a trial.
struct Round {
    network: Linear,
    /// The point of each row, length N.
    rows: Vec<i64>,
    natural: Tensor,
    particles: Tensor,
    labels: Tensor,
    logits: Tensor,
    natural_logits: Tensor,
    state: Vec<Tensor>,
}

impl Round {
    /// Some points of the setting. Their particles lie on the way to other images, which differ from
    /// the natural ones by `shift` (in radians of a wave of pixels).
    fn new(losses: &Losses, setting: &Setting, network: Linear, points: &[i64], shift: f64) -> Self {
        let (copies, task) = (setting.particles_per_point, network.task);
        // A run may have one point only; the number of a point decides its random numbers, too.
        let known = setting.training_points.max(1) as i64;
        let rows = points.iter().flat_map(|point| std::iter::repeat_n(point % known, copies)).collect();
        let (low, high) = setting.threat.domain;
        let image = |shift: f64| {
            let at = |point: f64| (&network.pixels + point + shift).cos() * 0.5 + 0.5;
            let points = points.iter().flat_map(|point| std::iter::repeat_n(*point as f64, copies));
            let images: Vec<_> = points.map(at).collect();
            let images = (Tensor::stack(&images, 0) * (high - low) + low).to_kind(Kind::Float);
            images.reshape([-1, task.channels, task.height, task.width])
        };
        let natural = image(0.0);
        let particles = setting.threat.project(&image(shift), &natural).set_requires_grad(true);
        let labels = Tensor::from_slice(points).remainder(task.classes);
        let labels = labels.repeat_interleave_self_int(copies as i64, 0, None);
        let (logits, natural_logits) = (network.of(&particles), network.of(&natural));
        let state = losses.state.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
        Self { network, rows, natural, particles, labels, logits, natural_logits, state }
    }

    fn minibatch<'a>(&'a self, losses: &'a Losses, setting: &Setting) -> Minibatch<'a> {
        Minibatch {
            logits: &self.logits,
            natural_logits: losses.objective.declaration().uses_natural.then_some(&self.natural_logits),
            natural: &self.natural,
            particles: &self.particles,
            start: &self.natural,
            labels: &self.labels,
            points: &self.rows,
            particles_per_point: setting.particles_per_point,
            classes: setting.classes,
            threat: setting.threat,
            state: &self.state,
        }
    }
}

/// The pixels of an image that the network looks at, at most: weights for all pixels of large images
/// and many classes would take gigabytes.
const SEEN: i64 = 64;

/// A linear network with fixed weights.
struct Linear {
    /// The numbers of the pixels, f64.
    pixels: Tensor,
    /// `[seen, classes]` for the pixels that it looks at, with a gradient.
    weights: Tensor,
    task: Task,
}

impl Linear {
    /// A network whose logits lie between `-scale` and `scale`.
    fn new(task: Task, scale: f64) -> Self {
        let count = task.channels * task.height * task.width;
        let pixels = Tensor::arange(count, (Kind::Double, Device::Cpu));
        let seen = count.min(SEEN);
        let numbers = Tensor::arange(seen * task.classes, (Kind::Double, Device::Cpu));
        let weights =
            (numbers.sin() * scale / seen as f64).to_kind(Kind::Float).reshape([seen, task.classes]);
        Self { pixels, weights: weights.set_requires_grad(true), task }
    }

    fn of(&self, images: &Tensor) -> Tensor {
        let seen = self.weights.size()[0];
        tch::with_grad(|| images.flatten(1, -1).narrow(1, 0, seen).matmul(&self.weights))
    }
}

impl NetworkCalls for Linear {
    fn logits(&self, images: &Tensor, _: bool) -> plugin_api::Result<Tensor> {
        let seen = self.weights.size()[0];
        Ok(images.f_flatten(1, -1)?.f_narrow(1, 0, seen)?.f_matmul(&self.weights)?)
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> plugin_api::Result<Tensor> {
        losses::differentiable_gradient(&loss.f_sum(loss.kind())?, images)
    }
}
