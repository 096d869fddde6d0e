//! Losses per example, shared by attacks and the host.

use crate::{Error, Result};
use tch::{Kind, Tensor};

/// The gradient of a scalar `loss` with respect to `input`, in the input's shape. With
/// `keep_graph`, further gradients can be computed from the same graph.
///
/// # Errors
/// If the loss does not depend on the input.
pub fn gradient(loss: &Tensor, input: &Tensor, keep_graph: bool) -> Result<Tensor> {
    let gradient = gradients(loss, std::slice::from_ref(input), keep_graph)?.remove(0);
    if gradient.defined() {
        Ok(gradient)
    } else {
        Err(Error::new("the loss has a graph that does not contain the input"))
    }
}

/// The gradient of a scalar `loss` with respect to `input`, in the input's shape, with a graph: it can
/// be differentiated again, and so can the loss.
///
/// # Errors
/// If the loss does not depend on the input.
pub fn differentiable_gradient(loss: &Tensor, input: &Tensor) -> Result<Tensor> {
    check_graph(loss)?;
    let gradient = Tensor::f_run_backward(&[loss], std::slice::from_ref(input), true, true)?.remove(0);
    if gradient.defined() {
        Ok(gradient)
    } else {
        Err(Error::new("the loss has a graph that does not contain the input"))
    }
}

/// Refuses a loss without a graph, with which libtorch would end the process.
fn check_graph(loss: &Tensor) -> Result<()> {
    if loss.requires_grad() {
        return Ok(());
    }
    Err(Error::new(
        "the loss has no graph: it, or a tensor it depends on, was detached or computed without gradients",
    ))
}

/// The gradients with respect to several inputs; undefined for an input on which the loss does not
/// depend. Sparse gradients (of embeddings) are made dense.
///
/// # Errors
/// If the loss has no graph.
pub fn gradients(loss: &Tensor, inputs: &[Tensor], keep_graph: bool) -> Result<Vec<Tensor>> {
    check_graph(loss)?;
    let gradients = Tensor::f_run_backward(&[loss], inputs, keep_graph, false)?;
    let dense = |gradient: Tensor| {
        if gradient.defined() && gradient.is_sparse() {
            gradient.f_to_dense(None, false)
        } else {
            Ok(gradient)
        }
    };
    Ok(gradients.into_iter().map(dense).collect::<std::result::Result<_, _>>()?)
}

/// Cross-entropy of each row: `logits` `[N, classes]` (floats), `labels` `[N]` (i64) give `[N]`.
///
/// # Panics
/// If the shapes do not fit or a label is outside 0..classes.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    smoothed_cross_entropy(logits, labels, 0.0)
}

/// Cross-entropy of each row with label smoothing (Szegedy et al. 2016), `[N]`: with C classes, of
/// `smoothing` (0 to 1) of the label's weight every class gets the same share. The loss of a row is
/// (1 - smoothing) CE(z, y) + smoothing / C * sum over j of CE(z, j). `logits` `[N, C]` (floats),
/// `labels` `[N]` (i64).
///
/// # Panics
/// If the shapes do not fit, a label is outside 0..C or `smoothing` outside 0 to 1.
pub fn smoothed_cross_entropy(logits: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::None, -100, smoothing)
}

/// Kullback-Leibler divergence of each row's prediction q from its reference p: the sum over
/// classes of p (log p - log q), `[N]`. p = softmax(`reference`) and q = softmax(`logits`), both
/// `[N, classes]` (floats). It is zero where p = q. It is the inner objective of TRADES (Zhang et
/// al., 2019), with the prediction at the natural example as the reference. Both arguments get
/// gradients; detach an argument that is a constant.
///
/// # Panics
/// If the shapes do not fit.
pub fn kl_divergence(reference: &Tensor, logits: &Tensor) -> Tensor {
    let kind = logits.kind();
    let (log_p, log_q) = (reference.log_softmax(1, kind), logits.log_softmax(1, kind));
    (log_p.exp() * (log_p - log_q)).sum_dim_intlist(1, false, kind)
}

/// The margin of each row: the label's logit minus the largest other logit, `[N]`. A row with a
/// margin of zero or below is fooled. Needs two classes or more.
///
/// # Panics
/// If the shapes do not fit or a label is outside 0..classes.
pub fn margin(logits: &Tensor, labels: &Tensor) -> Tensor {
    let column = labels.unsqueeze(1);
    let others = logits.scatter_value(1, &column, f64::NEG_INFINITY);
    logits.gather(1, &column, false).squeeze_dim(1) - others.amax([1], false)
}

/// Whether each row is classified as its label: `[N]`, bool. False for a row with a NaN or infinite
/// logit.
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
    fn a_sparse_gradient_is_made_dense() {
        let table = Tensor::ones([3, 2], tch::kind::DOUBLE_CPU).set_requires_grad(true);
        let rows = Tensor::embedding(&table, &Tensor::from_slice(&[2i64, 2]), -1, false, true);
        let gradient = gradient(&rows.sum(Kind::Double), &table, false).expect("a gradient");
        let expected = Tensor::from_slice(&[0.0f64, 0.0, 0.0, 0.0, 2.0, 2.0]).reshape([3, 2]);
        assert_eq!(gradient, expected);
    }

    #[test]
    fn cross_entropy_is_log_sum_exp_minus_the_labels_logit() {
        let (logits, labels) = example();
        let loss: Vec<f64> = Vec::try_from(cross_entropy(&logits, &labels)).expect("f64");
        let by_hand = (1f64.exp() + 3f64.exp() + 2f64.exp()).ln() - 3.0;
        assert!((loss[0] - by_hand).abs() < 1e-12);
        assert!((loss[1] - 3f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn label_smoothing_gives_every_class_a_share() {
        // Logits (log 3, 0): the classes have probabilities 3/4 and 1/4.
        let logits = Tensor::from_slice(&[3f64.ln(), 0.0]).reshape([1, 2]);
        let loss = |smoothing| smoothed_cross_entropy(&logits, &Tensor::from_slice(&[0i64]), smoothing);
        let by_hand = |label: f64, other: f64| -label * 0.75f64.ln() - other * 0.25f64.ln();
        for (smoothing, expected) in [(0.0, by_hand(1.0, 0.0)), (0.2, by_hand(0.9, 0.1))] {
            assert!((loss(smoothing).double_value(&[0]) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn kl_divergence_and_its_gradient_are_those_computed_by_hand() {
        // Row 1: p = (3/4, 1/4), q = (1/2, 1/2), so the divergence is 3/4 log 3/2 + 1/4 log 1/2.
        // Row 2 exchanges p and q: 1/2 log 2/3 + 1/2 log 2. The gradient with respect to the logits
        // of q is q - p.
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
        // The divergence stays finite for very large logits.
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
