//! Gradient alignment (Andriushchenko and Flammarion 2020): the cross-entropy at the particle, and
//! `weight` times one minus the cosine between the input gradients at the natural example and at a
//! uniform draw from the ball. It keeps one-step attacks from failing (catastrophic overfitting).
//!
//! ```text
//! outer = CE(f(x~), y) + weight (1 - cos(grad CE(f(x), y), grad CE(f(x + u), y)))
//! ```
//!
//! A row where a gradient is zero has no cosine, and no such term. The sampler climbs the cross-entropy.

use plugin_api::losses::cross_entropy;
use plugin_api::tch::Tensor;
use plugin_api::{Batch, Objective, Outer, Passes, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("grad_align", GradAlign);

/// The cross-entropy and the alignment.
pub struct GradAlign {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Weight of the alignment; lambda in the paper.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub weight: f64,
}

impl Default for Options {
    /// The authors' value for CIFAR-10 and 8/255.
    fn default() -> Self {
        Self { weight: 0.2 }
    }
}

impl GradAlign {
    /// The input gradients of the loss at these images (`[N, C, H, W]`), as rows `[N, pixels]`.
    fn gradients(batch: &Batch, images: &Tensor) -> Result<Tensor> {
        let leaf = images.detach().set_requires_grad(true);
        let loss = cross_entropy(&batch.network.logits(&leaf, true)?, batch.labels);
        Ok(batch.network.input_gradient(&loss, &leaf)?.f_flatten(1, -1)?)
    }
}

impl GradAlign {
    /// Rows of Euclidean length 1 along these ones, and whether a row has a direction (`[N]`). A row
    /// of zeros has none, and stays as it is. Rows are scaled by their largest entry first: gradients
    /// of confident predictions are so small that their squares are zero in f32.
    fn directions(rows: &Tensor) -> Result<(Tensor, Tensor)> {
        let largest = rows.detach().abs().f_amax([1i64].as_slice(), true)?;
        let has_direction = largest.gt(0.0);
        let scaled = rows / largest.f_where_scalarother(&has_direction, 1.0)?;
        let squares = scaled.square().f_sum_dim_intlist([1i64].as_slice(), true, rows.kind())?;
        // The square root has no finite derivative at zero.
        let lengths = squares.f_where_scalarother(&has_direction, 1.0)?.sqrt();
        Ok((scaled / lengths, has_direction.f_squeeze_dim(1)?))
    }
}

impl Objective for GradAlign {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn passes(&self) -> Passes {
        // Two forwards and two gradients that are differentiated again.
        Passes { per_point: 0, per_particle: 4 }
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let here = Self::gradients(batch, batch.natural)?;
        let aside = Self::gradients(batch, &batch.threat.random_start(batch.natural, &batch.random)?)?;
        let (here, has_here) = Self::directions(&here)?;
        let (aside, has_aside) = Self::directions(&aside)?;
        let cosine = (here * aside).f_sum_dim_intlist([1i64].as_slice(), false, batch.logits.kind())?;
        let alignment: Tensor = 1.0 - cosine;
        let term = alignment.f_where_scalarother(&has_here.logical_and(&has_aside), 0.0)?;
        Ok((cross_entropy(batch.logits, batch.labels) + term * self.options.weight).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::{FixedNumbers, Round, assert_close};
    use plugin_api::{Norm, ThreatModel};

    /// Two classes and two pixels. The loss of class 0 is log(1 + exp(z1 - z0)); with z0 = 0 and
    /// z1 = s(x), its input gradient is along that of s.
    fn loss(s: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        let network = |images: &Tensor| {
            let rise = s(&images.flatten(1, -1));
            Tensor::stack(&[rise.zeros_like(), rise], 1)
        };
        let natural = Tensor::from_slice(&[0.5f64, 0.5]).reshape([1, 1, 1, 2]);
        let round = Round {
            particles: natural.shallow_clone(),
            natural,
            threat: ThreatModel { norm: Norm::Linf, epsilon: 0.5, domain: (0.0, 1.0) },
            network: &network,
            // The draw is the corner (1, 0.5) of the ball.
            numbers: FixedNumbers(vec![1.0, 0.5]),
            ..Round::new(Tensor::zeros([1, 2], plugin_api::tch::kind::DOUBLE_CPU), &[0])
        };
        let objective = GradAlign { options: Options { weight: 3.0 } };
        objective.outer(&round.batch()).expect("a loss").loss.detach()
    }

    #[test]
    fn the_cosine_of_both_gradients_is_paid_for() {
        // s = a + b has the same gradient everywhere; s = a b has (b, a): (0.5, 0.5) at the natural
        // example and (0.5, 1) aside, with the cosine 0.75 / sqrt(0.5 * 1.25).
        let pixel = |x: &Tensor, index| x.select(1, index);
        assert_close(&loss(&|x| pixel(x, 0) + pixel(x, 1)), &[2f64.ln()]);
        let cosine = 0.75 / (0.5f64 * 1.25).sqrt();
        assert_close(&loss(&|x| pixel(x, 0) * pixel(x, 1)), &[2f64.ln() + 3.0 * (1.0 - cosine)]);
        // A gradient of zero has no direction.
        assert_close(&loss(&|x| pixel(x, 0) * 0.0), &[2f64.ln()]);
        // Its length does not matter, however small.
        assert_close(&loss(&|x| pixel(x, 0) * pixel(x, 1) * 1e-200), &[2f64.ln() + 3.0 * (1.0 - cosine)]);
    }
}
