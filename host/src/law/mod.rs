//! Estimators of how far particles are from the law of a temperature.
//!
//! At fixed weights, the law of `lambda` at a natural example has the density
//! `q(x) ∝ exp(lambda * loss(x))` on the ball around the example, cut to the domain; `lambda = 0` is
//! the uniform law. `sampling` runs chains at fixed weights; all else takes numbers or tensors, and runs
//! no model.

pub mod chain;
pub mod dual;
pub mod effective;
pub mod faces;
pub mod sampling;
pub mod transport;

use serde::{Deserialize, Serialize};

/// What chains at fixed weights say about the law of one lambda.
///
/// Chains that begin at uniform draws approach the mean loss from below, chains that begin at the
/// maximum from above. Where the chains mix, both agree within their errors; elsewhere the mean lies
/// between them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// The inverse temperature, at least 0.
    pub lambda: f64,
    /// The mean loss of the chains that approach it from below.
    pub lower: f64,
    /// The mean loss of the chains that approach it from above.
    pub upper: f64,
    /// The standard error of either end.
    pub error: f64,
    /// The standard error of their middle: smaller, where both ends are estimates of their own.
    pub error_of_mean: f64,
    /// The variance of the loss under the law: the derivative of the mean loss by lambda.
    pub variance: f64,
}

impl Rung {
    /// The mean loss: the middle between both ends.
    pub fn mean(&self) -> f64 {
        (self.lower + self.upper) / 2.0
    }

    /// Both ends in order: noise may exchange them.
    fn ends(&self) -> (f64, f64) {
        (self.lower.min(self.upper), self.lower.max(self.upper))
    }
}
