//! TRADES (Zhang et al. 2019): the cross-entropy at the natural example, and `beta` times the divergence
//! of the prediction at the particle from that at the natural example. The sampler climbs the divergence.
//!
//! Outer: CE(f(x), y) + beta KL(f(x) || f(x~)); inner: KL(f(x) || f(x~)), with f(x) as a constant.

use plugin_api::losses::{kl_divergence, smoothed_cross_entropy};
use plugin_api::tch::Tensor;
use plugin_api::{Batch, Climbs, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("trades", Trades);

/// The losses of TRADES.
pub struct Trades {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Weight of the divergence; 1/lambda in the paper.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub beta: f64,
    /// Share of the label's weight that all classes share equally, in the cross-entropy.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_smoothing: f64,
}

impl Default for Options {
    /// The authors' value.
    fn default() -> Self {
        Self { beta: 6.0, label_smoothing: 0.0 }
    }
}

impl Objective for Trades {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn climbs(&self) -> Climbs {
        Climbs::Inner
    }

    fn uses_natural(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let natural = batch.natural_logits()?;
        let loss = smoothed_cross_entropy(natural, batch.labels, self.options.label_smoothing);
        Ok((loss + kl_divergence(natural, batch.logits) * self.options.beta).into())
    }

    fn inner(&self, batch: &Batch) -> Result<Tensor> {
        Ok(kl_divergence(batch.natural_logits()?, batch.logits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Kind;
    use plugin_api::testing::{Round, assert_close};

    fn gradient(loss: &Tensor, input: &Tensor) -> Tensor {
        Tensor::run_backward(&[loss], &[input], false, false).remove(0)
    }

    #[test]
    fn losses_equal_those_computed_by_hand_for_two_classes() {
        // Logits (w x, 0) give the first class the probability s(w x) = 1 / (1 + exp(-w x)). The
        // gradient of KL with respect to the particle a is (s(w a) - s(w x)) w. With w = log 3, the
        // probability is 1/2 at x = 0 and 3/4 at a = 1.
        let w = 3f64.ln();
        let logits = |images: &Tensor| Tensor::cat(&[images * w, images.zeros_like()], 1);
        let trades = Trades { options: Options { beta: 2.0, ..Options::default() } };
        let at = |particle: f64| {
            let particle = Tensor::from_slice(&[particle]).reshape([1, 1]).set_requires_grad(true);
            let natural = logits(&Tensor::from_slice(&[0f64]).reshape([1, 1]));
            let round = Round { natural_logits: Some(natural), ..Round::new(logits(&particle), &[1]) };
            (particle, round)
        };
        let (particle, round) = at(1.0);
        let inner = trades.inner(&round.batch()).expect("a loss");
        // KL((1/2, 1/2) || (3/4, 1/4)) = log 2 - log(3) / 2.
        assert_close(&inner.detach(), &[2f64.ln() - w / 2.0]);
        // Outer loss: log 2 at the natural example, plus twice the divergence.
        let outer = trades.outer(&round.batch()).expect("a loss").loss;
        assert_close(&outer.detach(), &[3.0 * 2f64.ln() - w]);
        assert_close(&gradient(&inner, &particle), &[0.25 * w]);
        // At the natural example the inner gradient is zero.
        let (particle, round) = at(0.0);
        assert_close(&gradient(&trades.inner(&round.batch()).expect("a loss"), &particle), &[0.0]);
    }

    #[test]
    fn labels_are_smoothed_in_the_cross_entropy_alone() {
        // Logits (log 3, 0) at the natural example: probabilities 3/4 and 1/4. (0, 0) at the particle:
        // the divergence is 3/4 log 3/2 + 1/4 log 1/2.
        let trades = Trades { options: Options { beta: 2.0, label_smoothing: 0.2 } };
        let natural_logits = Some(Tensor::from_slice(&[3f64.ln(), 0.0]).reshape([1, 2]));
        let logits = Tensor::from_slice(&[0f64, 0.0]).reshape([1, 2]);
        let round = Round { natural_logits, ..Round::new(logits, &[0]) };
        let divergence = 0.75 * 1.5f64.ln() - 0.25 * 2f64.ln();
        assert_close(&trades.inner(&round.batch()).expect("a loss"), &[divergence]);
        let smoothed = -0.9 * 0.75f64.ln() - 0.1 * 0.25f64.ln();
        let outer = trades.outer(&round.batch()).expect("a loss").loss;
        assert_close(&outer, &[smoothed + 2.0 * divergence]);
    }

    #[test]
    fn losses_and_gradients_equal_those_of_pytorch() {
        // Recorded with PyTorch 2.13 in double precision. Logits are images times the transposed
        // weights; the loss is F.cross_entropy at the natural images, and 6 / 2 times
        // F.kl_div(log_softmax(particles), softmax(natural), reduction="sum").
        let weights = Tensor::from_slice(&[1.0, -0.5, 0.25, 0.75, -1.5, 0.5]).reshape([3, 2]);
        let weights = weights.set_requires_grad(true);
        let natural = Tensor::from_slice(&[0.5, 1.0, -1.0, 0.25]).reshape([2, 2]);
        let particles = Tensor::from_slice(&[0.75, 0.5, -0.5, 0.0]).reshape([2, 2]).set_requires_grad(true);
        let logits = |images: &Tensor| images.matmul(&weights.tr());
        let trades = Trades { options: Options::default() };
        let natural_logits = Some(logits(&natural));
        let mut round = Round { natural_logits, ..Round::new(logits(&particles), &[0, 2]) };
        let outer = trades.outer(&round.batch()).expect("a loss").loss.mean(Kind::Double);
        assert_close(&outer.detach(), &[1.4264482645764298]);
        let descent = [
            [-0.0016482315465076725, -0.6213225811384022],
            [0.0569358991950521, 0.29965939671450215],
            [-0.05528766764854498, 0.3216631844238995],
        ];
        let keep = Tensor::run_backward(&[&outer], &[&weights], true, false).remove(0);
        assert_close(&keep, &descent.concat());
        round.natural_logits = round.natural_logits.map(|logits| logits.detach());
        let inner = trades.inner(&round.batch()).expect("a loss");
        assert_close(&inner.detach(), &[0.08693229466362878, 0.11321284206560592]);
        let climb = [0.27941752361688227, -0.2208756249159834, 0.46160475293129594, -0.09285868665190199];
        assert_close(&gradient(&inner.sum(Kind::Double), &particles), &climb);
    }
}
