//! The points of a walk, the tangents of their decision boundaries, and statistics of their
//! movement.

use crate::{row_lengths, row_sums, rows_where};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Evaluation, Norm, Result, Target};

/// Added to the lengths of gradients before dividing by them, as in the reference.
const GRADIENT_FLOOR: f64 = 1e-12;

/// Points on their way to a boundary: M rows in each tensor, D pixels.
pub struct Walkers {
    /// Their rows among the call's examples, `[M]`.
    pub rows: Tensor,
    /// Their natural examples, `[M, D]`.
    pub natural: Tensor,
    /// Their labels, `[M]`.
    pub labels: Tensor,
    /// Their current iterates, `[M, D]`.
    pub current: Tensor,
    /// Statistics of how often they move back.
    pub habits: Habits,
    /// The target class of each, `[M]`; none for untargeted walks, which go to the nearest
    /// boundary.
    goals: Option<Tensor>,
    classes: i64,
}

impl Walkers {
    /// All N examples of the call, at the images `start`, with the target classes `goals` (`[N]`).
    pub fn new(target: &Target, start: &Tensor, goals: Option<&Tensor>) -> Self {
        let points = target.labels.size()[0];
        let backward_passes = if goals.is_some() { 1 } else { target.classes - 1 };
        Self {
            rows: Tensor::arange(points, (Kind::Int64, target.labels.device())),
            natural: target.natural.flatten(1, -1),
            labels: target.labels.shallow_clone(),
            current: start.flatten(1, -1),
            habits: Habits::new(target.labels, backward_passes),
            goals: goals.map(Tensor::shallow_clone),
            classes: target.classes,
        }
    }

    /// The points in these rows, in this order.
    pub fn select(&self, rows: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.index_select(0, rows);
        Self {
            rows: of(&self.rows),
            natural: of(&self.natural),
            labels: of(&self.labels),
            current: of(&self.current),
            habits: self.habits.select(rows),
            goals: self.goals.as_ref().map(of),
            classes: self.classes,
        }
    }

    /// Moves the points to these iterates. Misclassified ones (`fooled`, `[M]`, bool) then move
    /// back towards the natural example and keep the share `beta` of the distance.
    pub fn advance(&mut self, iterates: Tensor, fooled: &Tensor, beta: f64) {
        self.habits.note(fooled);
        self.current = iterates;
        let back = rows_where(fooled);
        let natural = self.natural.index_select(0, &back);
        let moved = (self.current.index_select(0, &back) - &natural) * beta + natural;
        let _ = self.current.index_copy_(0, &back, &moved);
    }

    /// The tangents of the boundaries between label and goal at the evaluated images. Without a
    /// goal, the tangent of the boundary whose tangent is nearest.
    ///
    /// # Errors
    /// If the victim cannot be differentiated.
    pub fn tangents(&self, evaluation: &Evaluation, norm: Norm) -> Result<Tangents> {
        if let Some(goals) = &self.goals {
            return Tangents::towards(goals, &self.labels, evaluation);
        }
        // The classes other than the label, in order.
        let other = |number: i64| self.labels.le(number).to_kind(Kind::Int64) + number;
        let mut nearest = Tangents::towards(&other(0), &self.labels, evaluation)?;
        let mut distances = nearest.distances(norm);
        for number in 1..self.classes - 1 {
            let tangents = Tangents::towards(&other(number), &self.labels, evaluation)?;
            let these = tangents.distances(norm);
            let nearer = rows_where(&these.less_tensor(&distances));
            nearest.replace(&nearer, &tangents);
            distances = distances.minimum(&these);
        }
        Ok(nearest)
    }
}

/// Tangents of the decision boundaries of M points: `value + <normal, z - point>` is zero on the
/// tangent.
pub struct Tangents {
    /// The goal's logit minus the label's, `[M]`.
    pub values: Tensor,
    /// The gradients of the values, `[M, D]`.
    pub normals: Tensor,
}

impl Tangents {
    fn towards(goals: &Tensor, labels: &Tensor, evaluation: &Evaluation) -> Result<Self> {
        let (values, normals) = evaluation.gradient(|logits| {
            let logit = |classes: &Tensor| logits.gather(1, &classes.unsqueeze(1), false).squeeze_dim(1);
            logit(goals) - logit(labels)
        })?;
        Ok(Self { values, normals: normals.flatten(1, -1) })
    }

    /// Distance of each point from its tangent in this norm, without regard to the domain: `[M]`.
    fn distances(&self, norm: Norm) -> Tensor {
        // The gradient's length in the dual norm.
        let lengths = match norm {
            Norm::Linf => row_sums(&self.normals.abs()),
            Norm::L2 => row_lengths(&self.normals, norm),
            Norm::L1 => row_lengths(&self.normals, Norm::Linf),
        };
        self.values.abs() / (lengths.squeeze_dim(1) + GRADIENT_FLOOR)
    }

    /// Takes these rows from `other`.
    fn replace(&mut self, rows: &Tensor, other: &Self) {
        self.values = self.values.index_copy(0, rows, &other.values.index_select(0, rows));
        self.normals = self.normals.index_copy(0, rows, &other.normals.index_select(0, rows));
    }

    /// The tangents in these rows, in this order.
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { values: self.values.index_select(0, rows), normals: self.normals.index_select(0, rows) }
    }

    /// The rows of all parts, one part after the other.
    pub fn cat(parts: &[Self]) -> Self {
        let of = |field: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(field).collect::<Vec<_>>(), 0);
        Self { values: of(|part| &part.values), normals: of(|part| &part.normals) }
    }
}

/// Statistics of how often points move back, by which passes are saved.
///
/// An iterate that is classified correctly stays and is linearised next. If the pass that
/// classified it keeps the graph, no second forward pass is needed. A misclassified iterate moves
/// back, and its graph is wasted: a batch's graph can only be differentiated as a whole. Most
/// points move back in a pattern. So a point's graph is kept if this would have saved passes so
/// far, counted over the iterations with the same two previous outcomes. This affects the number of
/// passes only, never their results.
pub struct Habits {
    /// The last two outcomes, `[M]`: 2 if the point moved back at the one before the last, plus 1
    /// if it moved back at the last.
    recent: Tensor,
    /// Passes that a kept graph would have saved after each of the four pairs of outcomes,
    /// `[M, 4]`.
    saved: Tensor,
    /// Number of backward passes of a linearisation. A forward pass costs about as much as one of
    /// them.
    backward_passes: i64,
}

impl Habits {
    /// Empty statistics of points with these `labels` (`[N]`).
    fn new(labels: &Tensor, backward_passes: i64) -> Self {
        let recent = labels.zeros_like();
        let saved = recent.new_zeros([recent.size()[0], 4], (Kind::Int64, recent.device()));
        Self { recent, saved, backward_passes }
    }

    fn select(&self, rows: &Tensor) -> Self {
        Self {
            recent: self.recent.index_select(0, rows),
            saved: self.saved.index_select(0, rows),
            backward_passes: self.backward_passes,
        }
    }

    /// Whether keeping the graph of each point is likely to save passes, `[M]`, bool.
    pub fn expected_to_stay(&self) -> Tensor {
        self.saved.gather(1, &self.recent.unsqueeze(1), false).squeeze_dim(1).gt(0)
    }

    /// Counts an outcome: whether each point moved back (`[M]`, bool).
    fn note(&mut self, moved: &Tensor) {
        let moved = moved.to_kind(Kind::Int64);
        let gains = &moved * -(self.backward_passes + 1) + 1;
        let _ = self.saved.scatter_add_(1, &self.recent.unsqueeze(1), &gains.unsqueeze(1));
        self.recent = (&self.recent * 2 + moved).remainder(4);
    }
}
