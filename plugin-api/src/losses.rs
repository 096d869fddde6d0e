//! Losses per example, shared by attacks and the host.

use crate::{Error, Result};
use tch::{Kind, Tensor};

/// The gradient of a scalar `loss` towards `input`, of the input's shape. With `keep_graph` more
/// can be taken of the same graph.
///
/// # Errors
/// If the loss does not depend on it.
pub fn gradient(loss: &Tensor, input: &Tensor, keep_graph: bool) -> Result<Tensor> {
    let gradient = gradients(loss, std::slice::from_ref(input), keep_graph)?.remove(0);
    match gradient.defined() {
        true => Ok(gradient),
        false => Err(Error::new("the loss has a graph that does not lead there")),
    }
}

/// The same towards several inputs; an undefined tensor towards those on which it does not depend.
///
/// # Errors
/// If the loss does not depend on anything.
pub fn gradients(loss: &Tensor, inputs: &[Tensor], keep_graph: bool) -> Result<Vec<Tensor>> {
    // libtorch takes a graph for granted here, and ends the process where there is none.
    if !loss.requires_grad() {
        return Err(Error::new("the loss has no graph: it, or what it is formed from, was detached or computed without gradients"));
    }
    Ok(Tensor::f_run_backward(&[loss], inputs, keep_graph, false)?)
}

/// Cross-entropy of each row: `logits` `[N, classes]` (floats), `labels` `[N]` (i64) give `[N]`.
///
/// # Panics
/// If the shapes do not fit or a label is outside 0..classes.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::None, -100, 0.0)
}

/// Kullback-Leibler divergence of the second prediction of each row from the first: with
/// p = softmax(`reference`) and q = softmax(`logits`), both `[N, classes]` (floats), the sum over
/// classes of p (log p - log q), `[N]`. Zero where both are the same. It is what TRADES (Zhang et
/// al., 2019) climbs, with the prediction at the natural example as the reference. Gradients
/// flow to both; detach what is to be a constant.
///
/// # Panics
/// If the shapes do not fit.
pub fn kl_divergence(reference: &Tensor, logits: &Tensor) -> Tensor {
    let kind = logits.kind();
    let (log_p, log_q) = (reference.log_softmax(1, kind), logits.log_softmax(1, kind));
    (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1, false, kind)
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

/// Which rows are classified as labelled: `[N]`, bool. A row with a NaN or an infinite
/// logit is not.
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
    fn a_loss_that_does_not_depend_on_the_input_has_no_gradient() {
        let input = Tensor::from(2.0f64).set_requires_grad(true);
        let square = &input * &input;
        assert_eq!(gradient(&square, &input, true).expect("a gradient").double_value(&[]), 4.0);
        assert!(gradient(&square.detach(), &input, true).is_err());
        let other = Tensor::from(2.0f64).set_requires_grad(true);
        assert!(gradient(&square, &other, true).is_err());
        assert!(!gradients(&square, &[other], true).expect("a graph")[0].defined());
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
    fn kl_divergence_by_hand() {
        // p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2, and towards the logits of q,
        // whose gradient is q - p; the other way round 1/2 log 2/3 + 1/2 log 2.
        let p = Tensor::from_slice(&[3f64.ln(), 0.0, 0.0, 0.0]).reshape([2, 2]);
        let q = Tensor::from_slice(&[5.0f64, 5.0, 3f64.ln(), 0.0]).reshape([2, 2]).set_requires_grad(true);
        let divergence = kl_divergence(&p, &q);
        let gradient = Tensor::run_backward(&[divergence.sum(Kind::Double)], &[&q], false, false).remove(0);
        let by_hand = [0.75 * 1.5f64.ln() - 0.25 * 2f64.ln(), 0.5 * (2f64 / 3.0).ln() + 0.5 * 2f64.ln()];
        let values: Vec<f64> = Vec::try_from(&divergence.detach()).expect("f64");
        let slopes: Vec<f64> = Vec::try_from(gradient.flatten(0, -1)).expect("f64");
        let expected = by_hand.into_iter().chain([-0.25, 0.25, 0.25, -0.25]);
        for (got, expected) in values.into_iter().chain(slopes).zip(expected) {
            assert!((got - expected).abs() < 1e-12, "got {got}, by hand {expected}");
        }
        // However sure both are, the divergence stays a number.
        let sure = Tensor::from_slice(&[1000.0f64, -1000.0]).reshape([1, 2]);
        assert_eq!(kl_divergence(&sure, &sure).double_value(&[0]), 0.0);
        assert_eq!(kl_divergence(&sure, &-&sure).double_value(&[0]), 2000.0);
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
