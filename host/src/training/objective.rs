//! What the two players play for: the loss that the weights descend on, and the one that the
//! sampler climbs.

use crate::config::Objective;
use crate::{Error, Result};
use plugin_api::losses::{cross_entropy, kl_divergence};
use tch::Tensor;

/// Both players' losses in one minibatch of N particles with C classes.
#[derive(Debug)]
pub enum Losses {
    /// Of [`Objective::CrossEntropy`].
    CrossEntropy,
    /// Of [`Objective::Trades`].
    Trades {
        /// Weight of the divergence.
        beta: f64,
        /// Logits at each particle's natural example, with their graph: `[N, C]`.
        natural: Tensor,
        /// What the particles diverge from, a constant: the same logits, in the mode of the model
        /// that the sampler's gradient is taken in, `[N, C]`.
        target: Tensor,
    },
}

impl Losses {
    /// The one loss that both problems share, of logits (`[N, classes]`) and labels (`[N]`): `[N]`.
    ///
    /// # Errors
    /// If the objective has two.
    pub fn shared(objective: Objective, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        match objective {
            Objective::CrossEntropy => Ok(cross_entropy(logits, labels)),
            Objective::Trades => Err(Error::new("objective trades has an inner loss of its own")),
        }
    }

    /// What the sampler climbs, given the logits at the particles (`[N, C]`) and the labels
    /// (`[N]`): `[N]`.
    pub fn inner(&self, logits: &Tensor, labels: &Tensor) -> Tensor {
        match self {
            Self::CrossEntropy => cross_entropy(logits, labels),
            Self::Trades { target, .. } => kl_divergence(target, logits),
        }
    }

    /// Of each particle, what the weights descend on the mean of: `[N]`.
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
    fn the_sampler_climbs_the_divergence_of_two_classes_by_hand() {
        // Logits (w x, 0) have the prediction s(w x) = 1 / (1 + exp(-w x)) for the first class. The
        // gradient of KL towards the particle is (s(w a) - s(w x)) w, for w = log 3: x = 0 is 1/2,
        // a = 1 is 3/4.
        let w = 3f64.ln();
        let logits = |images: &Tensor| Tensor::cat(&[images * w, images.zeros_like()], 1);
        let labels = Tensor::from_slice(&[1i64]);
        let losses = trades(2.0, logits(&Tensor::from_slice(&[0f64]).reshape([1, 1])));
        let particle = Tensor::from_slice(&[1f64]).reshape([1, 1]).set_requires_grad(true);
        let inner = losses.inner(&logits(&particle), &labels);
        // KL((1/2, 1/2) || (3/4, 1/4)) = log 2 - log(3) / 2.
        close(&inner, &[2f64.ln() - w / 2.0]);
        close(&gradient(&inner, &particle), &[0.25 * w]);
        // The weights: log 2 at the natural example, and twice the divergence.
        close(&losses.outer(&logits(&particle), &labels), &[3.0 * 2f64.ln() - w]);
        // At the natural example there is nothing to climb.
        let there = Tensor::from_slice(&[0f64]).reshape([1, 1]).set_requires_grad(true);
        close(&gradient(&losses.inner(&logits(&there), &labels), &there), &[0.0]);
    }

    #[test]
    fn trades_has_the_values_and_gradients_of_plain_pytorch() {
        // Recorded with PyTorch 2.13 (double precision): logits are images times the transposed
        // weights; F.cross_entropy at the natural images, and 6 / 2 times
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
