//! The losses of the outer problem (minimised by the weights) and of the inner problem (maximised
//! by the sampler).

use crate::config::Objective;
use crate::{Error, Result};
use plugin_api::losses::{cross_entropy, kl_divergence};
use tch::Tensor;

/// The losses of both problems in a minibatch of N particles with C classes.
#[derive(Debug)]
pub enum Losses {
    /// The losses of [`Objective::CrossEntropy`].
    CrossEntropy,
    /// The losses of [`Objective::Trades`].
    Trades {
        /// Weight of the KL divergence in the outer loss.
        beta: f64,
        /// Logits at the natural example of each particle, with a graph, `[N, C]`.
        natural: Tensor,
        /// Logits at the natural examples for the inner loss, without a graph, `[N, C]`. They are
        /// computed in the model mode of the sampler's gradient (`train.sampler_gradient`).
        target: Tensor,
    },
}

impl Losses {
    /// The loss `[N]` that both problems share, from logits (`[N, C]`) and labels (`[N]`).
    ///
    /// # Errors
    /// If the objective has a separate inner loss.
    pub fn shared(objective: Objective, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        match objective {
            Objective::CrossEntropy => Ok(cross_entropy(logits, labels)),
            Objective::Trades => Err(Error::new("objective trades has a separate inner loss")),
        }
    }

    /// The inner loss `[N]`, from the logits at the particles (`[N, C]`) and the labels (`[N]`).
    pub fn inner(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        match self {
            Self::CrossEntropy => cross_entropy(logits, labels),
            Self::Trades { target, .. } => kl_divergence(target, logits),
        }
    }

    /// The outer loss `[N]`, from the logits at the particles (`[N, C]`) and the labels (`[N]`).
    /// The weights minimise its mean.
    pub fn outer(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        match self {
            Self::CrossEntropy => cross_entropy(logits, labels),
            Self::Trades { beta, natural, .. } => {
                cross_entropy(natural, labels) + kl_divergence(natural, logits) * *beta
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn close(got: &Tensor, expected: &[f64]) {
        let got: Vec<f64> = Vec::try_from(got.flatten(0, -1)).expect("f64");
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-12, "got {got}, expected {expected}");
        }
    }

    fn trades(beta: f64, natural: Tensor) -> Losses {
        Losses::Trades { beta, target: natural.detach(), natural }
    }

    fn gradient(loss: &Tensor, input: &Tensor) -> Tensor {
        Tensor::run_backward(&[loss], &[input], false, false).remove(0)
    }

    #[test]
    fn losses_of_trades_equal_those_computed_by_hand_for_two_classes() {
        // Logits (w x, 0) give the first class the probability s(w x) = 1 / (1 + exp(-w x)). The
        // gradient of KL with respect to the particle a is (s(w a) - s(w x)) w. With w = log 3, the
        // probability is 1/2 at x = 0 and 3/4 at a = 1.
        let w = 3f64.ln();
        let logits = |images: &Tensor| Tensor::cat(&[images * w, images.zeros_like()], 1);
        let labels = Tensor::from_slice(&[1i64]);
        let losses = trades(2.0, logits(&Tensor::from_slice(&[0f64]).reshape([1, 1])));
        let particle = Tensor::from_slice(&[1f64]).reshape([1, 1]).set_requires_grad(true);
        let inner = losses.inner(&logits(&particle), &labels);
        // KL((1/2, 1/2) || (3/4, 1/4)) = log 2 - log(3) / 2.
        close(&inner, &[2f64.ln() - w / 2.0]);
        close(&gradient(&inner, &particle), &[0.25 * w]);
        // Outer loss: log 2 at the natural example, plus twice the divergence.
        close(&losses.outer(&logits(&particle), &labels), &[3.0 * 2f64.ln() - w]);
        // At the natural example the inner gradient is zero.
        let there = Tensor::from_slice(&[0f64]).reshape([1, 1]).set_requires_grad(true);
        close(&gradient(&losses.inner(&logits(&there), &labels), &there), &[0.0]);
    }

    #[test]
    fn losses_and_gradients_of_trades_equal_those_of_pytorch() {
        // Recorded with PyTorch 2.13 in double precision. Logits are images times the transposed
        // weights; the loss is F.cross_entropy at the natural images, and 6 / 2 times
        // F.kl_div(log_softmax(particles), softmax(natural), reduction="sum").
        let weights = Tensor::from_slice(&[1.0, -0.5, 0.25, 0.75, -1.5, 0.5]).reshape([3, 2]);
        let weights = weights.set_requires_grad(true);
        let natural = Tensor::from_slice(&[0.5, 1.0, -1.0, 0.25]).reshape([2, 2]);
        let particles = Tensor::from_slice(&[0.75, 0.5, -0.5, 0.0]).reshape([2, 2]).set_requires_grad(true);
        let labels = Tensor::from_slice(&[0i64, 2]);
        let logits = |images: &Tensor| images.matmul(&weights.tr());
        let losses = trades(6.0, logits(&natural));
        let inner = losses.inner(&logits(&particles), &labels);
        close(&inner, &[0.08693229466362878, 0.11321284206560592]);
        let climb = [0.27941752361688227, -0.2208756249159834, 0.46160475293129594, -0.09285868665190199];
        close(&gradient(&inner.sum(Kind::Double), &particles), &climb);
        let outer = losses.outer(&logits(&particles), &labels).mean(Kind::Double);
        close(&outer, &[1.4264482645764298]);
        let descent = [
            [-0.0016482315465076725, -0.6213225811384022],
            [0.0569358991950521, 0.29965939671450215],
            [-0.05528766764854498, 0.3216631844238995],
        ];
        close(&gradient(&outer, &weights), &descent.concat());
    }
}
