//! Losses per example, shared by attacks and the host.

use tch::{Kind, Tensor};

/// Cross-entropy of each row: `logits` `[N, classes]` (floats), `labels` `[N]` (i64) give `[N]`.
///
/// # Panics
/// If the shapes do not fit or a label is outside 0..classes.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::None, -100, 0.0)
}

/// How far each row is from being misclassified: the label's logit less the largest other
/// one, `[N]`; zero or below means fooled. Two classes or more.
///
/// # Panics
/// If the shapes do not fit or a label is outside 0..classes.
pub fn margin(logits: &Tensor, labels: &Tensor) -> Tensor {
    let column = labels.unsqueeze(1);
    let others = logits.scatter_value(1, &column, f64::NEG_INFINITY);
    logits.gather(1, &column, false).squeeze_dim(1) - others.amax([1], false)
}

/// Which rows are classified as labelled: `[N]`, bool. A row with a NaN is not.
///
/// # Panics
/// If the shapes do not fit.
pub fn correct(logits: &Tensor, labels: &Tensor) -> Tensor {
    let finite = logits.isfinite().all_dim(1, false);
    logits.argmax(1, false).eq_tensor(labels).logical_and(&finite.to_kind(Kind::Bool))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Tensor, Tensor) {
        let logits = Tensor::from_slice(&[1.0f64, 3.0, 2.0, 0.0, 0.0, 0.0]).reshape([2, 3]);
        (logits, Tensor::from_slice(&[1i64, 2]))
    }

    #[test]
    fn cross_entropy_is_log_sum_exp_less_the_label() {
        let (logits, labels) = example();
        let loss: Vec<f64> = Vec::try_from(cross_entropy(&logits, &labels)).expect("f64");
        let by_hand = (1f64.exp() + 3f64.exp() + 2f64.exp()).ln() - 3.0;
        assert!((loss[0] - by_hand).abs() < 1e-12);
        assert!((loss[1] - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn margin_is_the_lead_over_the_best_other_class() {
        let (logits, labels) = example();
        let margin: Vec<f64> = Vec::try_from(margin(&logits, &labels)).expect("f64");
        assert_eq!(margin, [1.0, 0.0]);
    }

    #[test]
    fn a_row_with_nan_is_never_correct() {
        let logits = Tensor::from_slice(&[0.0f32, f32::NAN, 0.0, 1.0]).reshape([2, 2]);
        let labels = Tensor::from_slice(&[1i64, 1]);
        let correct: Vec<bool> = Vec::try_from(correct(&logits, &labels)).expect("bools");
        assert_eq!(correct, [false, true]);
    }
}
