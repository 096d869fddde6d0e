//! FAB, the Fast Adaptive Boundary attack (Croce and Hein 2020, "Minimally distorted adversarial
//! examples with a fast adaptive boundary attack"), targeted and untargeted, in linf and l2, as
//! AutoAttack runs it.
//!
//! It searches for the nearest adversarial point. Each iteration linearises the boundary between
//! the label and another class at the iterate. It projects the iterate and the natural example onto
//! this boundary inside the domain, overshoots a little, and takes a weighted mean of the two. A
//! misclassified iterate then moves back towards the natural example. AutoAttack checks afterwards
//! whether the nearest adversarial point lies within epsilon. (Its version has no final line
//! search.)
//!
//! There are two differences from the authors' implementation; neither changes an iterate or a
//! verdict. First, the distance of the nearest adversarial point can only fall, so a point leaves
//! the batch as soon as it is misclassified within epsilon. Second, an iterate that does not move
//! back needs no second forward pass to be linearised: see `Habits`.

mod projection;
mod walkers;

use plugin_api::losses::{correct, margin};
use plugin_api::tch::Tensor;
use plugin_api::{Attack, Error, Evaluation, Norm, Result, Target, Task, ThreatModel, export_attack};
use projection::changes_to_hyperplanes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use walkers::{Tangents, Walkers};

export_attack!("fab", Fab);

/// The norms that it has arithmetic for.
const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

/// The FAB attack.
pub struct Fab {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Walk to the boundary of one class after the other, rather than to the nearest boundary.
    pub targeted: bool,
    /// Number of target classes: those with the largest logits except the label's; at most all
    /// others.
    #[schemars(range(min = 1))]
    pub target_classes: usize,
    /// Number of iterations of each walk.
    #[schemars(range(min = 1))]
    pub steps: usize,
    /// Number of walks (to each class). The first starts at the natural example; later ones start
    /// at a random point at half of epsilon from it.
    #[schemars(range(min = 1))]
    pub restarts: usize,
    /// Largest weight of the natural example's projection in an iterate.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub alpha_max: f64,
    /// Factor by which projections overshoot the boundary; 1 means no overshoot.
    #[schemars(range(min = 1.0))]
    pub eta: f64,
    /// Share of its distance from the natural example that a misclassified iterate keeps when it
    /// moves back.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub beta: f64,
}

impl Default for Options {
    /// The settings of AutoAttack.
    fn default() -> Self {
        Self {
            targeted: true,
            target_classes: 9,
            steps: 100,
            restarts: 1,
            alpha_max: 0.1,
            eta: 1.05,
            beta: 0.9,
        }
    }
}

/// Shorter changes count as this long, as in the reference.
const SHORTEST_CHANGE: f64 = 1e-8;

impl Attack for Fab {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        threat.norm.expect_one_of(&NORMS)
    }

    fn supports_task(&self, task: &Task) -> Result<()> {
        if task.classes < 2 {
            return Err(Error::new(format!(
                "a boundary needs two classes or more; the task has {}",
                task.classes
            )));
        }
        Ok(())
    }

    /// One pass of the natural example, then at most two passes per iteration: one to classify the
    /// iterate, and one to linearise (at the start, or at the point that a misclassified iterate
    /// moved back to).
    fn query_budget(&self) -> Option<u64> {
        let Options { targeted, target_classes, steps, restarts, .. } = self.options;
        let walks = if targeted { restarts.saturating_mul(target_classes) } else { restarts };
        Some((walks as u64).saturating_mul(steps as u64).saturating_mul(2).saturating_add(1))
    }

    /// For each point, the first iterate that is misclassified within epsilon. If there is none, it
    /// is the point of smallest margin among the iterates within epsilon and the natural example.
    fn run(&self, target: &Target) -> Result<Tensor> {
        let logits = target.victim.logits(target.natural)?;
        let mut best = Best::new(target, &logits);
        let mut standing = rows_where(&correct(&logits, target.labels));
        for goal in self.goals(target, &logits) {
            for restart in 0..self.options.restarts {
                if standing.numel() == 0 {
                    break;
                }
                let start = if restart == 0 { target.natural.shallow_clone() } else { random_start(target)? };
                let walkers = Walkers::new(target, &start, goal.as_ref()).select(&standing);
                standing = self.walk(target, walkers, &mut best)?;
            }
        }
        Ok(best.images.reshape(target.natural.size()))
    }
}

impl Fab {
    /// The goals, one after the other: for targeted walks, the class of each rank of each row
    /// (`[N]`, i64); for untargeted ones, the nearest boundary (none).
    fn goals(&self, target: &Target, logits: &Tensor) -> Vec<Option<Tensor>> {
        if !self.options.targeted {
            return vec![None];
        }
        let others = logits.scatter_value(1, &target.labels.unsqueeze(1), f64::NEG_INFINITY);
        let ranking = others.argsort_stable(true, 1, true);
        let ranks = (self.options.target_classes as i64).min(target.classes - 1);
        (0..ranks).map(|rank| Some(ranking.select(1, rank))).collect()
    }

    /// One walk of these points. Returns the rows of the points that are not fooled, `[M]`.
    fn walk(&self, target: &Target, mut walkers: Walkers, best: &mut Best) -> Result<Tensor> {
        let Target { victim, threat, .. } = target;
        let linearise = |walkers: &Walkers| {
            walkers.tangents(&victim.forward(&images(target, &walkers.current))?, threat.norm)
        };
        let mut tangents = linearise(&walkers)?;
        for step in 1..=self.options.steps {
            let iterates = self.iterates(&walkers, &tangents, threat)?;

            let expected = walkers.habits.expected_to_stay();
            let last = step == self.options.steps;
            let graph_kept = if last { expected.zeros_like() } else { expected };
            let (logits, graph) = classify(target, &iterates, &graph_kept)?;
            let fooled = correct(&logits, &walkers.labels).logical_not();
            let inside = threat.distance(&iterates, &walkers.natural).le(threat.epsilon);
            best.offer(&walkers, &iterates, &logits, &fooled, &inside);
            // The distance of the nearest adversarial point can only fall: these points are done.
            let found = fooled.logical_and(&inside);
            if last {
                return Ok(walkers.rows.index_select(0, &rows_where(&found.logical_not())));
            }
            walkers.advance(iterates, &fooled, self.options.beta);

            let stayed = graph_kept.logical_and(&fooled.logical_not());
            let (old, new) = (rows_where(&stayed), rows_where(&stayed.logical_or(&found).logical_not()));
            let mut parts = Vec::new();
            if let Some(graph) = graph.filter(|_| old.numel() > 0) {
                let rows = rows_where(&graph_kept);
                let all = walkers.select(&rows).tangents(&graph, threat.norm)?;
                parts.push(all.select(&rows_where(&stayed.index_select(0, &rows))));
            }
            if new.numel() > 0 {
                parts.push(linearise(&walkers.select(&new))?);
            }
            walkers = walkers.select(&Tensor::cat(&[old, new], 0));
            if parts.is_empty() {
                break;
            }
            tangents = Tangents::cat(&parts);
        }
        Ok(walkers.rows)
    }

    /// The next iterates, `[M, D]`: the weighted mean of the projections of iterate and natural
    /// example onto the tangents, both with overshoot. The nearer projection has the larger weight
    /// (Algorithm 1 of the paper).
    fn iterates(&self, walkers: &Walkers, tangents: &Tangents, threat: &ThreatModel) -> Result<Tensor> {
        let Options { alpha_max, eta, .. } = self.options;
        let Walkers { natural, current, .. } = walkers;
        let Tangents { values, normals } = tangents;
        let values = values.unsqueeze(1);
        let at_natural = &values + row_sums(&((natural - current) * normals));
        let changes = changes_to_hyperplanes(
            &Tensor::stack(&[current, natural], 0),
            &Tensor::stack(&[values, at_natural], 0),
            normals,
            threat,
        )?;
        let lengths = row_lengths(&changes, threat.norm).clamp_min_(SHORTEST_CHANGE);
        let (of_current, of_natural) = (lengths.get(0), lengths.get(1));
        let alpha = (&of_current / (&of_current + of_natural)).clamp_max_(alpha_max);
        let (to_current, to_natural) = (changes.get(0) * eta, changes.get(1) * eta);
        let next = (current + to_current) * (alpha.neg() + 1.0) + (natural + to_natural) * alpha;
        Ok(next.clamp(threat.domain.0, threat.domain.1))
    }
}

/// The best candidate for each of the N points.
struct Best {
    /// `[N, D]`.
    images: Tensor,
    /// Their margins, `[N]`.
    margins: Tensor,
}

impl Best {
    /// The natural examples, with these logits.
    fn new(target: &Target, logits: &Tensor) -> Self {
        Self { images: target.natural.flatten(1, -1).copy(), margins: margin(logits, target.labels) }
    }

    /// Replaces candidates by iterates inside the ball that are misclassified or have a smaller
    /// margin.
    fn offer(
        &mut self,
        walkers: &Walkers,
        iterates: &Tensor,
        logits: &Tensor,
        fooled: &Tensor,
        inside: &Tensor,
    ) {
        let margins = margin(logits, &walkers.labels);
        let smaller = margins.less_tensor(&self.margins.index_select(0, &walkers.rows));
        let better = rows_where(&smaller.logical_or(fooled).logical_and(inside));
        let rows = walkers.rows.index_select(0, &better);
        let _ = self.images.index_copy_(0, &rows, &iterates.index_select(0, &better));
        let _ = self.margins.index_copy_(0, &rows, &margins.index_select(0, &better));
    }
}

/// Logits `[M, classes]` of iterates `[M, D]`, and a differentiable evaluation of the rows
/// `graph_kept` (`[M]`, bool), if there are any.
fn classify<'a>(
    target: &Target<'a>,
    iterates: &Tensor,
    graph_kept: &Tensor,
) -> Result<(Tensor, Option<Evaluation<'a>>)> {
    let images_of = |rows: &Tensor| images(target, &iterates.index_select(0, rows));
    let (with_graph, without) = (rows_where(graph_kept), rows_where(&graph_kept.logical_not()));
    let shape = [iterates.size()[0], target.classes];
    let mut logits = Tensor::zeros(shape, (iterates.kind(), iterates.device()));
    if without.numel() > 0 {
        let _ = logits.index_copy_(0, &without, &target.victim.logits(&images_of(&without))?);
    }
    if with_graph.numel() == 0 {
        return Ok((logits, None));
    }
    let graph = target.victim.forward(&images_of(&with_graph))?;
    let _ = logits.index_copy_(0, &with_graph, &graph.logits());
    Ok((logits, Some(graph)))
}

/// Rows of pixels `[M, D]` in the shape of the target's images, `[M, C, H, W]`.
fn images(target: &Target, pixels: &Tensor) -> Tensor {
    let mut shape = target.natural.size();
    shape[0] = pixels.size()[0];
    pixels.reshape(shape)
}

/// Random points at half of epsilon from the natural examples, inside the domain. The direction is
/// a uniform draw in linf and a normal draw in l2, scaled to that length.
fn random_start(target: &Target) -> Result<Tensor> {
    let Target { natural, threat, random, .. } = target;
    let direction = match threat.norm {
        Norm::Linf => random.uniform(natural)? * 2.0 - 1.0,
        Norm::L2 => random.normal(natural)?,
        Norm::L1 => return Err(Norm::L1.unexpected(&NORMS)),
    };
    let lengths = row_lengths(&direction.flatten(1, -1), threat.norm).reshape([-1, 1, 1, 1]);
    let start = *natural + direction / lengths * (threat.epsilon / 2.0);
    Ok(start.clamp(threat.domain.0, threat.domain.1))
}

/// The rows of a mask (`[M]`, bool) that are true: `[any]`, i64.
fn rows_where(mask: &Tensor) -> Tensor {
    mask.nonzero().squeeze_dim(1)
}

/// The sum of each row of `[..., D]`: `[..., 1]`.
fn row_sums(rows: &Tensor) -> Tensor {
    rows.sum_dim_intlist([-1i64].as_slice(), true, rows.kind())
}

/// The length in this norm of each row of `[..., D]`: `[..., 1]`.
fn row_lengths(rows: &Tensor, norm: Norm) -> Tensor {
    match norm {
        // `norm` with an infinite order is slow on a CPU.
        Norm::Linf => rows.abs().amax([-1i64].as_slice(), true),
        Norm::L2 => rows.norm_scalaropt_dim(2, [-1i64].as_slice(), true),
        Norm::L1 => row_sums(&rows.abs()),
    }
}
