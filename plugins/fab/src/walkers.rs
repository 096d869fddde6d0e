//! The points of a walk, the linear pictures of their boundaries, and what they tend to do.

use crate::{row_lengths, row_sums, rows_where};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Evaluation, Norm, Result, Target};

/// Added to the lengths of gradients before dividing by them, as in the reference.
const GRADIENT_FLOOR: f64 = 1e-12;

/// Points on their way to a boundary: M rows in each tensor, D pixels.
pub struct Walkers {
    /// Which of the call's examples they are, `[M]`.
    pub rows: Tensor,
    /// Their natural examples, `[M, D]`.
    pub natural: Tensor,
    /// `[M]`.
    pub labels: Tensor,
    /// Where they are, `[M, D]`.
    pub current: Tensor,
    /// Whether they tend to stay where they are judged.
    pub habits: Habits,
    /// The class each walks to, `[M]`; without, to that of the nearest boundary.
    goals: Option<Tensor>,
    classes: i64,
}

impl Walkers {
    /// All N examples of the call, at the images `start`, on their way to `goals` (`[N]`).
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

    /// Those in these rows, in that order.
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

    /// To these iterates; from there, where they are misclassified (`fooled`, `[M]`, bool), back
    /// towards the natural example to the share `beta` of the distance.
    pub fn advance(&mut self, iterates: Tensor, fooled: &Tensor, beta: f64) {
        self.habits.note(fooled);
        self.current = iterates;
        let back = rows_where(fooled);
        let natural = self.natural.index_select(0, &back);
        let moved = (self.current.index_select(0, &back) - &natural) * beta + natural;
        let _ = self.current.index_copy_(0, &back, &moved);
    }

    /// The tangents of the boundaries between label and goal at the images evaluated; without a
    /// goal, of the boundary that is nearest by its tangent.
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

/// Linear pictures of the boundaries of M points: `value + <normal, z - point>`, zero on the
/// boundary.
pub struct Tangents {
    /// The goal's logit less the label's, `[M]`.
    pub values: Tensor,
    /// Its gradient, `[M, D]`.
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

    /// Distance of each point from its boundary in this norm, domain aside: `[M]`.
    fn distances(&self, norm: Norm) -> Tensor {
        // The gradient's length in the dual norm.
        let lengths = match norm {
            Norm::Linf => row_sums(&self.normals.abs()),
            Norm::L2 => row_lengths(&self.normals, norm),
        };
        self.values.abs() / (lengths.squeeze_dim(1) + GRADIENT_FLOOR)
    }

    /// Takes these rows from `other`.
    fn replace(&mut self, rows: &Tensor, other: &Self) {
        self.values = self.values.index_copy(0, rows, &other.values.index_select(0, rows));
        self.normals = self.normals.index_copy(0, rows, &other.normals.index_select(0, rows));
    }

    /// Those in these rows, in that order.
    pub fn select(&self, rows: &Tensor) -> Self {
        Self { values: self.values.index_select(0, rows), normals: self.normals.index_select(0, rows) }
    }

    /// One after the other.
    pub fn cat(parts: &[Self]) -> Self {
        let of = |field: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(field).collect::<Vec<_>>(), 0);
        Self { values: of(|part| &part.values), normals: of(|part| &part.normals) }
    }
}

/// Whether points tend to stay where they are judged.
///
/// An iterate that is classified correctly stays, and is linearised there next: if its judging
/// pass keeps the graph, that pass serves twice. One that is misclassified moves back, and a kept
/// graph is a loss, because a batch's graph can only be differentiated as a whole. Most points
/// stay and move in a pattern of their own. So graphs are kept for those that would have gained
/// by it so far, each time that the same two outcomes came before. Only passes depend on this:
/// which are saved, never what they compute.
pub struct Habits {
    /// The last two outcomes, `[M]`: 2 if the one before the last was to move, plus 1 if the
    /// last was.
    recent: Tensor,
    /// Passes that would have been saved after each of the four, `[M, 4]`.
    saved: Tensor,
    /// Backward passes of a linearisation. A forward pass costs about as much as one.
    backward_passes: i64,
}

impl Habits {
    /// Nothing known of points with these `labels` (`[N]`).
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

    /// Those for which keeping the graph is likely to pay, `[M]`, bool.
    pub fn expected_to_stay(&self) -> Tensor {
        self.saved.gather(1, &self.recent.unsqueeze(1), false).squeeze_dim(1).gt(0)
    }

    /// Which points moved back this time (`[M]`, bool).
    fn note(&mut self, moved: &Tensor) {
        let moved = moved.to_kind(Kind::Int64);
        let gains = &moved * -(self.backward_passes + 1) + 1;
        let _ = self.saved.scatter_add_(1, &self.recent.unsqueeze(1), &gains.unsqueeze(1));
        self.recent = (&self.recent * 2 + moved).remainder(4);
    }
}
