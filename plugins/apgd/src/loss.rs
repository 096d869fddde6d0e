//! The losses that APGD maximises: one number per point, computed from logits.

use plugin_api::losses::cross_entropy;
use plugin_api::tch::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kinds of loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Cross-entropy.
    Ce,
    /// Difference of logits ratio: unlike the cross-entropy, invariant under shift and scale of the
    /// logits. Needs 3 classes.
    Dlr,
    /// Targeted difference of logits ratio, for one target class at a time. Needs 4 classes.
    DlrTargeted,
}

impl Loss {
    /// Its name as an option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::Dlr => "dlr",
            Self::DlrTargeted => "dlr-targeted",
        }
    }

    /// The smallest number of classes that it needs.
    pub fn least_classes(self) -> i64 {
        match self {
            Self::Ce => 2,
            Self::Dlr => 3,
            Self::DlrTargeted => 4,
        }
    }
}

/// A loss to maximise; the targeted one has the target class of each row (`[M]`, i64).
#[derive(Debug)]
pub enum Objective {
    CrossEntropy,
    Dlr,
    TargetedDlr(Tensor),
}

impl Objective {
    /// The same for these rows (`[K]`, i64).
    pub fn select(&self, rows: &Tensor) -> Self {
        match self {
            Self::CrossEntropy => Self::CrossEntropy,
            Self::Dlr => Self::Dlr,
            Self::TargetedDlr(targets) => Self::TargetedDlr(targets.index_select(0, rows)),
        }
    }

    /// The loss of each row: logits `[M, classes]` and labels `[M]` give `[M]`.
    pub fn loss(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        match self {
            Self::CrossEntropy => cross_entropy(logits, labels),
            Self::Dlr => dlr(logits, labels),
            Self::TargetedDlr(targets) => targeted_dlr(logits, labels, targets),
        }
    }
}

/// Keeps ratios finite if the compared logits are equal.
const SMALLEST_SPREAD: f64 = 1e-12;

/// Difference of logits ratio (section 4): -(z_y - max z_i, i != y) / (z_p1 - z_p3), where p sorts
/// the logits in descending order. At ties, the gradient depends on the choice of the class. As in
/// the reference, it is the class that is last in the sorted order.
fn dlr(logits: &Tensor, labels: &Tensor) -> Tensor {
    let (ascending, classes) = logits.sort(1, false);
    let largest = |rank: i64| ascending.select(1, -rank);
    let leads = classes.select(1, -1).eq_tensor(labels);
    let other = largest(2).where_self(&leads, &largest(1));
    let spread = largest(1) - largest(3) + SMALLEST_SPREAD;
    (other - column(logits, labels)) / spread
}

/// Targeted difference of logits ratio (section 4): -(z_y - z_t) / (z_p1 - (z_p3 + z_p4) / 2).
fn targeted_dlr(logits: &Tensor, labels: &Tensor, targets: &Tensor) -> Tensor {
    let (ascending, _) = logits.sort(1, false);
    let largest = |rank: i64| ascending.select(1, -rank);
    let spread = largest(1) - (largest(3) + largest(4)) * 0.5 + SMALLEST_SPREAD;
    (column(logits, targets) - column(logits, labels)) / spread
}

/// The logit of one class in each row.
fn column(logits: &Tensor, classes: &Tensor) -> Tensor {
    logits.gather(1, &classes.unsqueeze(1), false).squeeze_dim(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::assert_close;

    fn rows<const N: usize>(rows: [[f64; N]; 3]) -> Tensor {
        Tensor::from_slice(rows.as_flattened()).reshape([-1, N as i64])
    }

    /// The loss and its gradient with respect to the logits.
    fn differentiate(objective: &Objective, logits: &Tensor, labels: &[i64]) -> (Tensor, Tensor) {
        let leaf = logits.detach().set_requires_grad(true);
        let loss = objective.loss(&leaf, &Tensor::from_slice(labels));
        loss.sum(loss.kind()).backward();
        (loss.detach(), leaf.grad())
    }

    #[test]
    fn dlr_and_its_gradient_are_those_computed_by_hand() {
        // y is first: -(5 - 3) / (5 - 2). y is second: -(3 - 5) / (5 - 2). y is last: -(1 - 5) / 3.
        let logits = rows([[5.0, 3.0, 2.0, 1.0]; 3]);
        let (loss, gradient) = differentiate(&Objective::Dlr, &logits, &[0, 1, 3]);
        assert_close(&loss, &[-2.0 / 3.0, 2.0 / 3.0, 4.0 / 3.0]);
        // Row 1, quotient rule with u = z_b - z_y and s = z_1 - z_3: du/s - u ds/s^2; by hand
        // z_0: -1/3 + 2/9, z_1: 1/3, z_2: -2/9.
        assert_close(&gradient.get(0), &[-1.0 / 9.0, 1.0 / 3.0, -2.0 / 9.0, 0.0]);
    }

    #[test]
    fn dlr_is_finite_at_ties() {
        // Row 1: y ties with the largest other logit. Row 2: the other logits tie. Row 3: all
        // logits tie, and 0 / 1e-12 is 0.
        let logits = rows([[4.0, 4.0, 1.0], [4.0, 1.0, 1.0], [2.0, 2.0, 2.0]]);
        let (loss, gradient) = differentiate(&Objective::Dlr, &logits, &[0, 0, 0]);
        assert_close(&loss, &[0.0, -1.0, 0.0]);
        // In row 1 the gradient is that of (z_1 - z_0) / 3 for either order of the tie, since the
        // numerator is 0.
        assert_close(&gradient.get(0), &[-1.0 / 3.0, 1.0 / 3.0, 0.0]);
        assert!(bool::try_from(gradient.isfinite().all()).expect("a bool"));
    }

    #[test]
    fn targeted_dlr_and_its_gradient_are_those_computed_by_hand() {
        // The spread is 6 - (3 + 1) / 2 = 4 in every row: -(6 - 4) / 4; -(6 - 1) / 4; and -(3 - 6)
        // / 4, where the model predicts the target.
        let logits = rows([[6.0, 4.0, 3.0, 1.0, 0.0]; 3]);
        let targets = Tensor::from_slice(&[1i64, 3, 0]);
        let (loss, gradient) = differentiate(&Objective::TargetedDlr(targets), &logits, &[0, 0, 2]);
        assert_close(&loss, &[-0.5, -1.25, 0.75]);
        // Row 1: u = -2, s = 4. z_0: -1/4 + 2/16; z_1: 1/4; z_2 and z_3: -2/16 * 1/2 each.
        assert_close(&gradient.get(0), &[-0.125, 0.25, -0.0625, -0.0625, 0.0]);
    }

    #[test]
    fn shift_and_scale_do_not_change_dlr() {
        let logits = rows([[5.0, 3.0, 2.5, 1.0], [3.0, -2.0, 1.0, 2.5], [1.0, 2.0, 3.0, 4.0]]);
        let labels = Tensor::from_slice(&[0i64, 1, 2]);
        let targeted = Objective::TargetedDlr(Tensor::from_slice(&[1i64, 0, 3]));
        for objective in [Objective::Dlr, targeted] {
            let moved = objective.loss(&(&logits * 8.0 + 3.0), &labels);
            let expected: Vec<f64> = Vec::try_from(objective.loss(&logits, &labels)).expect("f64");
            assert_close(&moved, &expected);
        }
    }

    #[test]
    fn selected_rows_keep_their_targets() {
        let logits = rows([[6.0, 4.0, 3.0, 1.0, 0.0]; 3]);
        let labels = Tensor::from_slice(&[0i64, 0]);
        let objective = Objective::TargetedDlr(Tensor::from_slice(&[1i64, 2, 3]));
        let kept = objective.select(&Tensor::from_slice(&[2i64, 0]));
        assert_close(&kept.loss(&logits.narrow(0, 0, 2), &labels), &[-1.25, -0.5]);
    }
}
