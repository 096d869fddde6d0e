//! What an evaluation finds: verdicts on points, their shares, and why they may not be trusted.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Which points an attack is given. Points that the model misclassifies anyway count as fooled
/// and are never attacked; neither are points that an earlier restart fooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All others: each attack has a verdict of its own, as in the tables of papers.
    Separate,
    /// Those that stand after the attacks before it: a suite, whose worst case alone counts.
    Cascade,
}

/// An evaluation's result, as printed by `--json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of points.
    pub points: usize,
    /// Which points each attack was given.
    pub order: Order,
    /// Share classified correctly without an attack.
    pub clean: f64,
    /// Each attack's result.
    pub attacks: Vec<AttackResult>,
    /// Share of points that withstood all attacks.
    pub worst_case: f64,
    /// Why the verdict may not be trusted.
    #[serde(default)]
    pub doubts: Vec<Caveat>,
    /// The verdict on every point; saved, not printed.
    #[serde(skip)]
    pub verdicts: Verdicts,
}

/// One attack's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttackResult {
    /// As written.
    pub attack: String,
    /// Share of points still classified correctly: after this attack alone, or after it and
    /// those before it (see [`Order`]).
    pub robust: f64,
    /// What it took.
    #[serde(flatten)]
    pub cost: Cost,
    /// Mean rise of the cross-entropy from the natural example to the candidate, over the
    /// attacked points; none if no point was attacked.
    pub loss_rise: Option<f64>,
}

/// What an attack took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Forward passes of single examples, verdicts included.
    pub forward_passes: u64,
    /// Backward passes of single examples.
    pub backward_passes: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Cost {
    /// Passes: half a forward and half a backward each.
    pub fn passes(&self) -> f64 {
        (self.forward_passes + self.backward_passes) as f64 / 2.0
    }
}

/// The verdict on every point, in the order of `indices`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// Index of each point among those that may be chosen: the test set, or the held-out points.
    pub indices: Vec<i64>,
    /// Classified correctly without an attack.
    pub clean: Vec<bool>,
    /// For each attack, classified correctly all the same.
    pub attacks: Vec<Vec<bool>>,
}

/// What an evaluation has found so far: all that it needs to go on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Findings {
    pub verdicts: Verdicts,
    /// Cross-entropy of each natural example.
    pub natural_losses: Vec<f64>,
    /// The attacks that are done.
    pub results: Vec<AttackResult>,
    /// The one that is under way.
    pub sweep: Option<AttackProgress>,
}

/// An attack under way: each restart goes batch by batch over the points that stood when it
/// began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttackProgress {
    pub restart: u16,
    /// Positions of the restart's points.
    pub standing: Vec<usize>,
    /// How many of them are done.
    pub done: usize,
    /// The verdict on every point so far.
    pub robust: Vec<bool>,
    pub cost: Cost,
    /// Sum of the rises of the loss, and over how many candidates.
    pub loss_rise: (f64, u64),
}

impl Verdicts {
    /// Whether each point withstood everything.
    pub fn worst_case(&self) -> Vec<bool> {
        let withstood = |point: usize| self.clean[point] && self.attacks.iter().all(|robust| robust[point]);
        (0..self.indices.len()).map(withstood).collect()
    }

    /// How many points each attack broke of those that it was given.
    pub fn fallen(&self, order: Order) -> Vec<usize> {
        let given = |attack: usize| match order {
            Order::Cascade if attack > 0 => &self.attacks[attack - 1],
            _ => &self.clean,
        };
        let fell = |(given, robust): &(&bool, &bool)| **given && !**robust;
        let of = |(attack, robust)| given(attack).iter().zip(robust).filter(fell).count();
        self.attacks.iter().enumerate().map(of).collect()
    }

    /// The number of the first attack that broke each point; none where none did, and where
    /// the model was wrong anyway.
    pub fn broken_by(&self) -> Vec<Option<usize>> {
        let first = |point: usize| self.attacks.iter().position(|robust| !robust[point]);
        (0..self.indices.len()).map(|point| first(point).filter(|_| self.clean[point])).collect()
    }
}

impl Findings {
    /// Whether its parts fit one another, and an evaluation of `attacks` attacks at these points.
    pub fn is_consistent(&self, attacks: usize, indices: &[i64]) -> bool {
        let points = indices.len();
        let whole = |list: &Vec<bool>| list.len() == points;
        self.verdicts.indices == indices
            && whole(&self.verdicts.clean)
            && self.natural_losses.len() == points
            && self.verdicts.attacks.iter().all(whole)
            && self.results.len() == self.verdicts.attacks.len()
            && self.results.len() + usize::from(self.sweep.is_some()) <= attacks
            && self.sweep.as_ref().is_none_or(|sweep| {
                whole(&sweep.robust)
                    && sweep.done <= sweep.standing.len()
                    && sweep.standing.iter().all(|point| *point < points)
            })
    }
}

impl AttackProgress {
    pub fn over(robust: Vec<bool>) -> Self {
        let (cost, loss_rise) = (Cost::default(), (0.0, 0));
        Self { restart: 0, standing: standing(&robust), done: 0, robust, cost, loss_rise }
    }

    /// The next batch's positions; begins another restart where this one is through.
    pub fn next(&mut self, batch: usize, restarts: u16) -> Option<Vec<usize>> {
        while self.done == self.standing.len() {
            self.restart += 1;
            self.standing = standing(&self.robust);
            self.done = 0;
            if self.restart >= restarts || self.standing.is_empty() {
                return None;
            }
        }
        let end = (self.done + batch).min(self.standing.len());
        Some(self.standing[self.done..end].to_vec())
    }
}

pub fn standing(robust: &[bool]) -> Vec<usize> {
    (0..robust.len()).filter(|point| robust[*point]).collect()
}

pub fn share(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|verdict| **verdict).count() as f64 / verdicts.len().max(1) as f64
}

/// The 95 % interval of a share measured on `points` points (Wilson's, for a binomial), within
/// 0 to 1; all of it if there are no points.
pub fn confidence_interval(share: f64, points: usize) -> (f64, f64) {
    if points == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (points as f64, 1.959_963_984_540_054_f64);
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // The ends are within 0 and 1, but for rounding.
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

/// One reason for doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caveat {
    /// Its name: a section of `docs/evaluation.md`.
    pub name: Cow<'static, str>,
    /// What was found.
    pub finding: String,
}

impl Caveat {
    /// A doubt of this name.
    pub fn new(name: &'static str, finding: impl ToString) -> Self {
        Self { name: Cow::Borrowed(name), finding: finding.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Wilson's interval for 92 of 100, worked out by hand from its formula:
        // (0.92 + 0.019207) / 1.038415 -+ 1.95996 * sqrt(0.000736 + 0.000096) / 1.038415.
        let (low, high) = confidence_interval(0.92, 100);
        assert!((low - 0.85).abs() < 1e-3 && (high - 0.959).abs() < 1e-3, "{low} {high}");
        let (low, high) = confidence_interval(1.0, 10);
        assert!(low < 0.73 && low > 0.72 && (high - 1.0).abs() < 1e-12);
        for points in 1..1000 {
            assert!(confidence_interval(1.0, points).1 <= 1.0 && confidence_interval(0.0, points).0 >= 0.0);
        }
        assert_eq!(confidence_interval(0.0, 0), (0.0, 1.0));
    }
}
