//! The iteration: momentum steps of steepest ascent, on the points that are not fooled yet.

use crate::Options;
use crate::ball::{Ball, random_start};
use crate::checkpoints::Checkpoints;
use crate::loss::Objective;
use plugin_api::losses::correct;
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Result, Target, Victim};
use std::mem::replace;

/// Weight of the new step against the momentum, from the second iteration on.
const MOMENTUM_WEIGHT: f64 = 0.75;

/// The state of the attack on the N points of a call.
pub struct Search {
    /// The misclassified iterate if there is one, else the iterate of highest loss so far; the
    /// natural example at first. `[N, C, H, W]`.
    pub candidates: Tensor,
    /// Rows of the points without a misclassified iterate so far, `[M]`, i64.
    pub standing: Tensor,
    /// Highest loss of the iterates of each point, `[N]`.
    losses: Tensor,
}

impl Search {
    /// The state before the first pass.
    pub fn new(natural: &Tensor) -> Self {
        let points = natural.size()[0];
        Self {
            candidates: natural.copy(),
            standing: Tensor::arange(points, (Kind::Int64, natural.device())),
            losses: Tensor::full([points], f64::NEG_INFINITY, (natural.kind(), natural.device())),
        }
    }

    /// Makes these iterates candidates if their losses are the highest so far.
    fn keep_hardest(&mut self, rows: &Tensor, images: &Tensor, losses: &Tensor) {
        let losses_so_far = self.losses.index_select(0, rows);
        let harder = losses.greater_tensor(&losses_so_far);
        let images = choose(&harder, images, &self.candidates.index_select(0, rows));
        let _ = self.candidates.index_copy_(0, rows, &images);
        let _ = self.losses.index_copy_(0, rows, &losses.maximum(&losses_so_far));
    }
}

/// One run of APGD from a random start, on the points that are not fooled yet.
pub fn climb(options: &Options, target: &Target, objective: &Objective, search: &mut Search) -> Result<()> {
    let mut points = Points::at_start(options, target, objective, &search.standing)?;
    points.evaluate(&target.victim, options.gradient_averages, search)?;
    for iteration in 0..options.steps {
        if points.rows.numel() == 0 {
            break;
        }
        points.step(if iteration == 0 { 1.0 } else { MOMENTUM_WEIGHT });
        if iteration + 1 < options.steps {
            points.evaluate(&target.victim, options.gradient_averages, search)?;
            points.adapt_step_size();
        } else {
            points.evaluate_last(&target.victim, search)?;
        }
    }
    if matches!(points.when_fooled, Fooled::Continue) {
        points.keep_standing();
    }
    search.keep_hardest(&points.rows, &points.best, &points.best_loss);
    search.standing = points.rows;
    Ok(())
}

/// The treatment of a point that is misclassified at an iterate: it is fooled.
enum Fooled {
    /// It leaves the run. This suffices for a deterministic model.
    Leave,
    /// It continues, and its latest misclassified iterate becomes the candidate. A random model may
    /// classify the first such iterate correctly in another pass; at a higher loss this is less
    /// likely.
    Continue,
    /// It continues, and its iterate of highest loss becomes the candidate.
    Ignore,
}

/// The points of a run: M rows in every tensor. The tensors are repacked when a point leaves.
struct Points {
    /// Their rows in the call.
    rows: Tensor,
    /// Whether an iterate was misclassified, `[M]`.
    has_been_fooled: Tensor,
    labels: Tensor,
    objective: Objective,
    ball: Ball,
    current: Tensor,
    previous: Tensor,
    /// Loss at the current iterate, and the direction in which it rises fastest.
    loss: Tensor,
    direction: Tensor,
    /// The iterate of highest loss, that loss, and the direction there.
    best: Tensor,
    best_loss: Tensor,
    best_direction: Tensor,
    /// `[M, 1, 1, 1]`.
    step_size: Tensor,
    checkpoints: Checkpoints,
    when_fooled: Fooled,
}

impl Points {
    /// The points at random starts, before the first pass.
    fn at_start(options: &Options, target: &Target, objective: &Objective, rows: &Tensor) -> Result<Self> {
        let start = random_start(&target.threat, target.natural, rows, &target.random)?;
        let loss = Tensor::full([rows.numel() as i64], f64::NEG_INFINITY, (start.kind(), start.device()));
        Ok(Self {
            rows: rows.shallow_clone(),
            labels: target.labels.index_select(0, rows),
            objective: objective.select(rows),
            ball: Ball::around(target.natural.index_select(0, rows), &target.threat)?,
            direction: start.zeros_like(),
            best_direction: start.zeros_like(),
            step_size: loss.full_like(2.0 * target.threat.epsilon).reshape([-1, 1, 1, 1]),
            checkpoints: Checkpoints::new(options.steps, options.rho, &loss),
            when_fooled: match (options.keep_climbing, options.gradient_averages) {
                (true, _) => Fooled::Ignore,
                (false, 1) => Fooled::Leave,
                (false, _) => Fooled::Continue,
            },
            has_been_fooled: rows.zeros_like().to_kind(Kind::Bool),
            best_loss: loss.shallow_clone(),
            loss,
            best: start.shallow_clone(),
            previous: start.shallow_clone(),
            current: start,
        })
    }

    /// z = P(x_k + step_size * direction), then x_{k+1} = P(x_k + weight * (z - x_k) + (1 - weight)
    /// * (x_k - x_{k-1})).
    fn step(&mut self, weight: f64) {
        let mut next = self.ball.project(self.current.addcmul(&self.direction, &self.step_size));
        // With this order of operations, a point in a corner of the ball stays there exactly, and
        // its loss does not rise by rounding.
        next -= &self.current;
        next *= weight;
        next += &self.current;
        let mut momentum = &self.current - &self.previous;
        momentum *= 1.0 - weight;
        next += momentum;
        self.previous = replace(&mut self.current, self.ball.project(next));
    }

    /// Computes loss and direction at the current iterates, and notes the points that are
    /// misclassified there.
    fn evaluate(&mut self, victim: &Victim, gradient_averages: usize, search: &mut Search) -> Result<()> {
        let (mut logits, mut gradient) = self.pass(victim)?;
        for _ in 1..gradient_averages {
            // As in the reference, loss and classification are those of the last pass. The sum of
            // the gradients has the direction of their mean.
            let (last_logits, last_gradient) = self.pass(victim)?;
            (logits, gradient) = (last_logits, gradient + last_gradient);
        }
        self.direction = self.ball.steepest_ascent(&gradient);
        self.note_fooled(&logits, search);
        self.keep_best();
        Ok(())
    }

    /// As `evaluate`, at the end of a run, where no direction is needed.
    fn evaluate_last(&mut self, victim: &Victim, search: &mut Search) -> Result<()> {
        let logits = victim.logits(&self.current)?;
        self.loss = self.objective.loss(&logits, &self.labels);
        self.note_fooled(&logits, search);
        self.keep_best();
        Ok(())
    }

    /// One pass: sets the loss, and returns logits and gradient.
    fn pass(&mut self, victim: &Victim) -> Result<(Tensor, Tensor)> {
        let evaluation = victim.forward(&self.current)?;
        let (loss, gradient) = evaluation.gradient(|logits| self.objective.loss(logits, &self.labels))?;
        self.loss = loss;
        Ok((evaluation.logits(), gradient))
    }

    /// Makes misclassified iterates candidates. Counting them is the only operation of an iteration
    /// that waits for a GPU.
    fn note_fooled(&mut self, logits: &Tensor, search: &mut Search) {
        if matches!(self.when_fooled, Fooled::Ignore) {
            return;
        }
        let correct = correct(logits, &self.labels);
        let fooled = correct.logical_not().nonzero().squeeze_dim(1);
        if fooled.numel() == 0 {
            return;
        }
        let (rows, images) = (self.rows.index_select(0, &fooled), self.current.index_select(0, &fooled));
        let _ = search.candidates.index_copy_(0, &rows, &images);
        let _ = self.has_been_fooled.index_fill_(0, &fooled, 1);
        if matches!(self.when_fooled, Fooled::Leave) {
            self.keep_standing();
        }
    }

    /// Removes the fooled points.
    fn keep_standing(&mut self) {
        self.keep(&self.has_been_fooled.logical_not().nonzero().squeeze_dim(1));
    }

    /// Repacks every tensor to the rows `standing`.
    fn keep(&mut self, standing: &Tensor) {
        self.objective = self.objective.select(standing);
        let tensors = [
            &mut self.rows,
            &mut self.has_been_fooled,
            &mut self.labels,
            &mut self.current,
            &mut self.previous,
            &mut self.loss,
            &mut self.direction,
            &mut self.best,
            &mut self.best_loss,
            &mut self.best_direction,
            &mut self.step_size,
        ];
        for tensor in tensors.into_iter().chain(self.ball.tensors()).chain(self.checkpoints.tensors()) {
            *tensor = tensor.index_select(0, standing);
        }
    }

    fn keep_best(&mut self) {
        let better = self.loss.greater_tensor(&self.best_loss);
        self.best = choose(&better, &self.current, &self.best);
        self.best_direction = choose(&better, &self.direction, &self.best_direction);
        self.best_loss = self.loss.maximum(&self.best_loss);
    }

    /// At a checkpoint, points without progress continue from their best iterate with half the step
    /// size. The momentum still uses their previous iterate.
    fn adapt_step_size(&mut self) {
        let Some(halve) = self.checkpoints.after_iteration(&self.loss, &self.best_loss) else { return };
        let halved = &self.step_size * 0.5;
        self.step_size = choose(&halve, &halved, &self.step_size);
        self.current = choose(&halve, &self.best, &self.current);
        self.direction = choose(&halve, &self.best_direction, &self.direction);
    }
}

/// `new` in the rows chosen (`[M]`, bool), `old` in the others.
fn choose(rows: &Tensor, new: &Tensor, old: &Tensor) -> Tensor {
    new.where_self(&rows.reshape([-1, 1, 1, 1]), old)
}
