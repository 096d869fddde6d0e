//! The results of an evaluation: verdicts on points, their shares, and caveats.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Which points an attack is given. A point that the model misclassifies without an attack counts
/// as fooled and is never attacked. A point that one restart fooled is not attacked by later
/// restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All others: each attack has its own robust accuracy, as in the tables of papers.
    Separate,
    /// Those that all earlier attacks failed on: a suite, of which only the worst case counts.
    Cascade,
}

/// An evaluation's result, as printed by `--json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of points.
    #[serde(rename = "points")]
    pub count: usize,
    /// Which points each attack was given.
    pub order: Order,
    /// Share classified correctly without an attack.
    pub clean: f64,
    /// Each attack's result.
    pub attacks: Vec<AttackResult>,
    /// Share of points still classified correctly after all attacks.
    pub worst_case: f64,
    /// Reasons not to trust the result (`doubts` in files of older versions).
    #[serde(default, alias = "doubts")]
    pub caveats: Vec<Caveat>,
    /// The verdict on every point; saved in an entry of its own.
    #[serde(skip)]
    pub verdicts: Verdicts,
}

/// A radius of a robustness curve: an evaluation of several radii has one entry of this kind for
/// each, from the smallest on. A point that fell at a smaller radius counts as fallen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The radius.
    pub epsilon: f64,
    /// Robust accuracy after each attack, in the order of the attacks.
    pub robust: Vec<f64>,
    /// Share of points still classified correctly after all attacks.
    pub worst_case: f64,
}

impl CurvePoint {
    /// The point of an evaluation at this radius.
    pub(crate) fn new(epsilon: f64, evaluation: &Evaluation) -> Self {
        let robust = evaluation.attacks.iter().map(|attack| attack.robust).collect();
        Self { epsilon, robust, worst_case: evaluation.worst_case }
    }
}

/// One attack's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttackResult {
    /// The attack, as written.
    pub attack: String,
    /// Robust accuracy: the share of points still classified correctly after this attack alone, or
    /// after it and those before it (see [`Order`]).
    pub robust: f64,
    /// Its cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// Mean increase of the cross-entropy from the natural example to the candidate, over the
    /// attacked points; none if no point was attacked.
    pub loss_rise: Option<f64>,
    /// The largest distance, in units of epsilon, by which a sampler moved a particle that does not
    /// fool the model from where its chain began. None for attack plugins, if every point is fooled,
    /// if epsilon is 0, and in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<f64>,
}

/// The cost of an attack.
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
    /// Passes: a forward pass and a backward pass are half of one each.
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
    /// For each attack, classified correctly after it.
    pub attacks: Vec<Vec<bool>>,
}

/// The state of an evaluation under way, sufficient to continue it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PartialEvaluation {
    pub(crate) verdicts: Verdicts,
    /// Cross-entropy of each natural example.
    pub(crate) natural_losses: Vec<f64>,
    /// Results of the finished attacks.
    pub(crate) results: Vec<AttackResult>,
    /// The number of candidates in the mean `loss_rise` of each of these results; fewer in files of
    /// older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) candidates: Vec<u64>,
    /// The attack under way (`sweep` in files of older versions).
    #[serde(alias = "sweep")]
    pub(crate) attack_progress: Option<AttackProgress>,
    /// What was found at smaller radii, from the smallest on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) smaller: Vec<FoundAtRadius>,
}

/// What all attacks found at a radius.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FoundAtRadius {
    pub(crate) verdicts: Verdicts,
    pub(crate) results: Vec<AttackResult>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) candidates: Vec<u64>,
}

/// The state of an attack under way. Each restart processes, in batches, the points that were
/// robust when the restart began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AttackProgress {
    pub(crate) restart: u16,
    /// The restart's points, as positions in the lists of verdicts.
    pub(crate) standing: Vec<usize>,
    /// Number of them that have been processed.
    pub(crate) done: usize,
    /// The verdict on every point so far.
    pub(crate) robust: Vec<bool>,
    pub(crate) cost: Cost,
    /// Sum of the increases of the loss, and the number of candidates in it.
    pub(crate) loss_rise: (f64, u64),
    /// The same as [`AttackResult::moved`] so far.
    #[serde(default)]
    pub(crate) moved: Option<f64>,
}

impl Verdicts {
    /// Whether each point is classified correctly after all attacks.
    pub fn worst_case(&self) -> Vec<bool> {
        let withstood =
            |position: usize| self.clean[position] && self.attacks.iter().all(|robust| robust[position]);
        (0..self.indices.len()).map(withstood).collect()
    }

    /// The points that an attack of this number is given. `smaller` has the verdicts at the next
    /// smaller radius, if there is one: points that fell there count as fallen.
    pub(crate) fn given<'a>(
        &'a self,
        attack: usize,
        order: Order,
        smaller: Option<&'a Self>,
    ) -> &'a Vec<bool> {
        let at_smaller =
            |number: Option<usize>| smaller.zip(number).and_then(|(found, number)| found.attacks.get(number));
        match (order, attack) {
            (Order::Cascade, 0) => at_smaller(smaller.and_then(|found| found.attacks.len().checked_sub(1)))
                .unwrap_or(&self.clean),
            (Order::Cascade, _) => &self.attacks[attack - 1],
            (Order::Separate, _) => at_smaller(Some(attack)).unwrap_or(&self.clean),
        }
    }

    /// For each attack, the number of points that it was given and broke.
    pub(crate) fn broken_counts(&self, order: Order, smaller: Option<&Self>) -> Vec<usize> {
        let is_broken = |(given, robust): &(&bool, &bool)| **given && !**robust;
        let count = |(attack, robust): (usize, &Vec<bool>)| {
            self.given(attack, order, smaller).iter().zip(robust).filter(is_broken).count()
        };
        self.attacks.iter().enumerate().map(count).collect()
    }

    /// For each point, the number of the first attack that broke it; none if no attack did, or if
    /// the model misclassifies it without an attack.
    pub fn broken_by(&self) -> Vec<Option<usize>> {
        let first = |position: usize| self.attacks.iter().position(|robust| !robust[position]);
        let positions = 0..self.indices.len();
        positions.map(|position| first(position).filter(|_| self.clean[position])).collect()
    }
}

impl PartialEvaluation {
    /// Whether all lists have the right lengths for an evaluation of so many attacks at these
    /// points.
    pub(crate) fn is_consistent(&self, attack_count: usize, points: &[i64]) -> bool {
        let count = points.len();
        let whole = |list: &Vec<bool>| list.len() == count;
        let is_finished = |found: &FoundAtRadius| {
            found.verdicts.indices == points
                && whole(&found.verdicts.clean)
                && found.verdicts.attacks.iter().all(whole)
                && found.verdicts.attacks.len() == attack_count
                && found.results.len() == attack_count
        };
        self.verdicts.indices == points
            && whole(&self.verdicts.clean)
            && self.natural_losses.len() == count
            && self.verdicts.attacks.iter().all(whole)
            && self.results.len() == self.verdicts.attacks.len()
            && self.results.len() + usize::from(self.attack_progress.is_some()) <= attack_count
            && self.smaller.iter().all(is_finished)
            && self.attack_progress.as_ref().is_none_or(|progress| {
                whole(&progress.robust)
                    && progress.done <= progress.standing.len()
                    && progress.standing.iter().all(|position| *position < count)
            })
    }
}

impl PartialEvaluation {
    /// The verdicts at the next smaller radius, if there is one.
    pub(crate) fn at_smaller(&self) -> Option<&Verdicts> {
        self.smaller.last().map(|found| &found.verdicts)
    }

    /// Whether every attack has ended at each of so many radii.
    pub(crate) fn is_finished(&self, attack_count: usize, radii: usize) -> bool {
        self.smaller.len() + 1 == radii
            && self.results.len() == attack_count
            && self.attack_progress.is_none()
    }

    /// Goes on to the next larger radius, after all attacks at this one.
    pub(crate) fn widen(&mut self) {
        let Verdicts { indices, clean, .. } = &self.verdicts;
        let verdicts = Verdicts { indices: indices.clone(), clean: clean.clone(), attacks: Vec::new() };
        self.smaller.push(FoundAtRadius {
            verdicts: std::mem::replace(&mut self.verdicts, verdicts),
            results: std::mem::take(&mut self.results),
            candidates: std::mem::take(&mut self.candidates),
        });
    }
}

impl AttackProgress {
    /// The start of an attack on the points that are `robust` so far.
    pub(crate) fn new(robust: Vec<bool>) -> Self {
        let (cost, loss_rise) = (Cost::default(), (0.0, 0));
        let standing = robust_positions(&robust);
        Self { restart: 0, standing, done: 0, robust, cost, loss_rise, moved: None }
    }

    /// The positions of the next batch; begins the next restart when this one has processed all
    /// points.
    pub(crate) fn next_batch(&mut self, batch: usize, restarts: u16) -> Option<Vec<usize>> {
        while self.done == self.standing.len() {
            self.restart += 1;
            self.standing = robust_positions(&self.robust);
            self.done = 0;
            if self.restart >= restarts || self.standing.is_empty() {
                return None;
            }
        }
        let end = (self.done + batch).min(self.standing.len());
        Some(self.standing[self.done..end].to_vec())
    }
}

fn robust_positions(robust: &[bool]) -> Vec<usize> {
    (0..robust.len()).filter(|position| robust[*position]).collect()
}

/// The share of true verdicts; 0 if there are none.
pub(crate) fn share(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|verdict| **verdict).count() as f64 / verdicts.len().max(1) as f64
}

/// The 95 % confidence interval (Wilson's, for a binomial) of a share measured on `count` points,
/// within 0 to 1; 0 to 1 without any point.
pub fn confidence_interval(share: f64, count: usize) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (count as f64, 1.959_963_984_540_054_f64);
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // Rounding may move an end out of 0 to 1.
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

/// A reason not to trust a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caveat {
    /// Its name: a section of `docs/evaluation.md`.
    pub name: Cow<'static, str>,
    /// The observation, in one line.
    pub finding: String,
}

impl Caveat {
    /// A caveat of this name.
    pub(crate) fn new(name: &'static str, finding: impl ToString) -> Self {
        Self { name: Cow::Borrowed(name), finding: finding.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Wilson's interval for 92 of 100, computed by hand from its formula:
        // (0.92 + 0.019207) / 1.038415 -+ 1.95996 * sqrt(0.000736 + 0.000096) / 1.038415.
        let (low, high) = confidence_interval(0.92, 100);
        assert!((low - 0.85).abs() < 1e-3 && (high - 0.959).abs() < 1e-3, "{low} {high}");
        let (low, high) = confidence_interval(1.0, 10);
        assert!(low < 0.73 && low > 0.72 && (high - 1.0).abs() < 1e-12);
        for count in 1..1000 {
            assert!(confidence_interval(1.0, count).1 <= 1.0 && confidence_interval(0.0, count).0 >= 0.0);
        }
        assert_eq!(confidence_interval(0.0, 0), (0.0, 1.0));
    }

    #[test]
    fn results_of_older_versions_are_read() {
        let older = r#"{"points": 2, "order": "separate", "clean": 1.0, "attacks": [], "worst_case": 0.5,
            "doubts": [{"name": "changed", "finding": "a library"}]}"#;
        let evaluation: Evaluation = serde_json::from_str(older).expect("understood");
        assert_eq!((evaluation.count, &*evaluation.caveats[0].name), (2, "changed"));
        let written = serde_json::json!(evaluation);
        assert_eq!((&written["points"], &written["caveats"][0]["name"]), (&2.into(), &"changed".into()));
        assert!(written.get("doubts").is_none());

        let progress = AttackProgress::new(vec![true, false]);
        let older = serde_json::json!({
            "verdicts": Verdicts::default(), "natural_losses": [], "results": [], "sweep": progress
        });
        let partial: PartialEvaluation = serde_json::from_value(older).expect("understood");
        assert_eq!(partial.attack_progress.map(|progress| progress.standing), Some(vec![0]));
    }
    #[test]
    fn points_that_fell_at_a_smaller_radius_are_not_given_to_an_attack_again() {
        let verdicts = |attacks: &[&[bool]]| Verdicts {
            indices: (0..4).collect(),
            clean: vec![true, true, true, false],
            attacks: attacks.iter().map(|robust| robust.to_vec()).collect(),
        };
        // The first attack broke point 0, the second one point 1.
        let separate = verdicts(&[&[false, true, true, false], &[true, false, true, false]]);
        let cascade = verdicts(&[&[false, true, true, false], &[false, false, true, false]]);
        let larger = verdicts(&[&[false, false, true, false]]);
        let given = |found: &Verdicts, attack, order, smaller| found.given(attack, order, smaller).clone();
        let (apart, together) = (Order::Separate, Order::Cascade);
        assert_eq!(given(&larger, 0, apart, None), [true, true, true, false]);
        assert_eq!(given(&larger, 0, apart, Some(&separate)), [false, true, true, false]);
        assert_eq!(given(&larger, 1, apart, Some(&separate)), [true, false, true, false]);
        assert_eq!(given(&larger, 0, together, Some(&cascade)), [false, false, true, false]);
        assert_eq!(given(&larger, 1, together, Some(&cascade)), [false, false, true, false]);
        assert_eq!(larger.broken_counts(apart, None), [2]);
        assert_eq!(larger.broken_counts(apart, Some(&separate)), [1]);
        assert_eq!(larger.broken_counts(together, Some(&cascade)), [0]);

        let mut partial = PartialEvaluation { verdicts: separate.clone(), ..Default::default() };
        partial.widen();
        assert!(partial.verdicts.attacks.is_empty() && partial.results.is_empty());
        assert_eq!(partial.verdicts.clean, separate.clean);
        assert_eq!(partial.at_smaller().map(|found| &found.attacks), Some(&separate.attacks));
    }
}
