//! The distribution that a chain samples, and two for which everything is known in closed form.
//!
//! At fixed weights, the inner problem with entropy regularisation is solved by
//! q ∝ exp(lambda * loss) on the box of allowed images, with the uniform distribution as reference.
//! Its value is g = (1 / lambda) * log of the mean of exp(lambda * loss) over the box.
//! [`LinearLaw`] and [`SoftmaxLaw`] compute g, moments and independent draws exactly, in f64.

mod exponential;
mod linear;
mod softmax;

pub use exponential::TruncatedExponential;
pub use linear::LinearLaw;
pub use softmax::SoftmaxLaw;

use serde::{Deserialize, Serialize};

/// The distribution that a chain leaves invariant at fixed weights. Its support is the ball of the
/// threat model, cut to the domain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Law {
    /// None is declared: the chain's law is not known, or only approximately.
    #[default]
    Undeclared,
    /// Uniform on the support.
    Uniform,
    /// Density proportional to exp(lambda * loss) with respect to the uniform law: the solution of
    /// the inner problem with entropic regularisation.
    Gibbs {
        /// The inverse temperature; positive and finite.
        lambda: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    /// Numbers uniform on [0, 1), by the generator splitmix64.
    pub(super) fn uniforms(seed: u64, shape: &[i64]) -> Tensor {
        let count = shape.iter().product::<i64>() as u64;
        let numbers = (1..=count).map(|index| {
            let value = (seed + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((value ^ (value >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        });
        Tensor::from_slice(&numbers.collect::<Vec<_>>()).reshape(shape)
    }

    #[track_caller]
    pub(super) fn assert_near(got: f64, expected: f64, tolerance: f64) {
        assert!((got - expected).abs() <= tolerance, "got {got}, expected {expected} +- {tolerance}");
    }

    pub(super) fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f64")
    }

    /// Asserts that the means and variances of draws `[n, d]` differ from these by at most five
    /// standard errors.
    #[track_caller]
    pub(super) fn assert_moments(draws: &Tensor, mean: &Tensor, variance: &Tensor) {
        let count = draws.size()[0] as f64;
        let squares = (draws - mean).square();
        for (samples, expected) in [(draws, mean), (&squares, variance)] {
            let got = samples.mean_dim([0i64].as_slice(), false, Kind::Double);
            let error = samples.std_dim([0i64].as_slice(), true, false) / count.sqrt();
            let largest = ((got - expected) / error).abs().max().double_value(&[]);
            assert!(largest < 5.0, "{largest} standard errors");
        }
    }

    #[test]
    fn the_uniform_numbers_have_the_moments_of_uniform_numbers() {
        let numbers = uniforms(1, &[100_000, 2]);
        let constant = |value: f64| Tensor::from_slice(&[value, value]);
        assert_moments(&numbers, &constant(0.5), &constant(1.0 / 12.0));
    }

    #[test]
    fn a_law_is_written_in_lower_case() {
        let spelling = |law: Law| serde_json::to_string(&law).expect("JSON");
        assert_eq!(spelling(Law::default()), r#""undeclared""#);
        assert_eq!(spelling(Law::Uniform), r#""uniform""#);
        assert_eq!(spelling(Law::Gibbs { lambda: 10.0 }), r#"{"gibbs":{"lambda":10.0}}"#);
    }
}
