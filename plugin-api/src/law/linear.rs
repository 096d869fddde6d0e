//! The law of a linear loss: every coordinate is an exponential cut to its interval.

use super::exponential::{check_lambda, interval, numbers, TruncatedExponential};
use crate::{Error, Result};
use tch::{Kind, Tensor};

/// q ∝ exp(lambda * (constant + slope . x)) on a box.
///
/// With m_i the middle of interval i, h_i half its width and u_i = lambda * slope_i * h_i:
/// g = constant + slope . m + (1 / lambda) * sum of log(sinh(u_i) / u_i); coordinate i has mean
/// m_i + h_i * (coth(u_i) - 1/u_i) and variance h_i^2 * (1/u_i^2 - 1/sinh(u_i)^2).
#[derive(Debug)]
pub struct LinearLaw {
    constant: f64,
    slope: Tensor,
    lo: Tensor,
    hi: Tensor,
    lambda: f64,
}

impl LinearLaw {
    /// The law of the loss constant + slope . x on the box `[lo, hi]`; the three tensors are `[d]`.
    /// At lambda 0 it is the uniform distribution.
    ///
    /// # Errors
    /// If shapes differ, numbers are not finite, lambda is negative or the box is empty.
    pub fn new(constant: f64, slope: &Tensor, lo: &Tensor, hi: &Tensor, lambda: f64) -> Result<Self> {
        check_lambda(lambda)?;
        if !constant.is_finite() {
            return Err(Error::new(format!("`constant`: expected a finite number, got {constant}")));
        }
        let coordinates = slope.numel() as i64;
        let slope = numbers("slope", slope, &[coordinates])?;
        let (lo, hi) = interval(lo, hi, coordinates)?;
        Ok(Self { constant, slope, lo, hi, lambda })
    }

    fn coordinates(&self) -> TruncatedExponential<'_> {
        TruncatedExponential { lo: &self.lo, hi: &self.hi, rate: &self.slope * self.lambda }
    }

    /// lambda * g, the log of the mean of exp(lambda * loss) over the box.
    pub fn lambda_g(&self) -> f64 {
        self.lambda * self.constant + sum(&self.coordinates().log_mean_exp())
    }

    /// g, whose limit at lambda 0 is the mean loss of the uniform distribution.
    pub fn g(&self) -> f64 {
        if self.lambda == 0.0 {
            return self.uniform_loss();
        }
        self.lambda_g() / self.lambda
    }

    /// The mean of each coordinate, `[d]`.
    pub fn mean(&self) -> Tensor {
        self.coordinates().mean()
    }

    /// The variance of each coordinate, `[d]`.
    pub fn variance(&self) -> Tensor {
        self.coordinates().variance()
    }

    /// The mean of the loss.
    pub fn mean_loss(&self) -> f64 {
        self.loss_at(&self.mean())
    }

    /// The variance of the loss.
    pub fn loss_variance(&self) -> f64 {
        sum(&(self.variance() * self.slope.square()))
    }

    /// The mean of the loss under the uniform distribution.
    pub fn uniform_loss(&self) -> f64 {
        self.loss_at(&((&self.lo + &self.hi) * 0.5))
    }

    /// The largest loss on the box.
    pub fn max_loss(&self) -> f64 {
        self.loss_at(&self.hi.where_self(&self.slope.gt(0.0), &self.lo))
    }

    fn loss_at(&self, point: &Tensor) -> f64 {
        self.constant + sum(&(&self.slope * point))
    }

    /// Independent draws `[n, d]`, from numbers uniform on [0, 1) in this shape.
    pub fn draws(&self, uniforms: &Tensor) -> Tensor {
        self.coordinates().draws(&uniforms.to_kind(Kind::Double))
    }
}

fn sum(tensor: &Tensor) -> f64 {
    tensor.sum(Kind::Double).double_value(&[])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_moments, assert_near, uniforms};
    use super::*;

    /// A loss of three coordinates on a box without symmetry.
    fn law(lambda: f64) -> LinearLaw {
        let slope = Tensor::from_slice(&[2.0, -0.5, 0.0]);
        let (lo, hi) = (Tensor::from_slice(&[-0.25, 0.0, 0.5]), Tensor::from_slice(&[0.5, 0.3, 1.0]));
        LinearLaw::new(0.75, &slope, &lo, &hi, lambda).expect("a law")
    }

    #[test]
    fn the_symmetric_box_has_the_hyperbolic_functions() {
        // One coordinate on [-1/2, 1/2] with slope 2 ln 3: u = ln 3, sinh u = 4/3, coth u = 5/4.
        let slope = Tensor::from_slice(&[2.0 * 3f64.ln()]);
        let half = Tensor::from_slice(&[0.5]);
        let law = LinearLaw::new(1.0, &slope, &-&half, &half, 1.0).expect("a law");
        let u = 3f64.ln();
        assert_near(law.g(), 1.0 + (4.0 / (3.0 * u)).ln(), 1e-14);
        assert_near(law.mean().double_value(&[0]), 0.5 * (1.25 - 1.0 / u), 1e-14);
        assert_near(law.variance().double_value(&[0]), 0.25 * (1.0 / (u * u) - 9.0 / 16.0), 1e-14);
        assert_near(law.mean_loss(), 1.0 + u * (1.25 - 1.0 / u), 1e-14);
        assert_near(law.max_loss(), 1.0 + u, 1e-14);
    }

    #[test]
    fn g_lies_between_the_uniform_mean_and_the_mean_of_the_law() {
        // The middles are 0.125, 0.15 and 0.75; the maximum is at (0.5, 0).
        assert_near(law(1.0).uniform_loss(), 0.75 + 0.25 - 0.075, 1e-15);
        assert_near(law(1.0).max_loss(), 1.75, 1e-15);
        assert_eq!(law(0.0).g(), law(0.0).uniform_loss());
        for lambda in [1e-9, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6] {
            let law = law(lambda);
            let values = [law.uniform_loss(), law.g(), law.mean_loss(), law.max_loss()];
            // At lambda 1e-9, rounding decides.
            let slack = if lambda < 1e-6 { 1e-12 } else { 0.0 };
            assert!(values.windows(2).all(|pair| pair[0] <= pair[1] + slack), "{lambda}: {values:?}");
        }
    }

    #[test]
    fn g_approaches_the_maximum_as_log_lambda_over_lambda() {
        // max - g = (1 / lambda) * sum of log(2 |u_i|) - log(1 - exp(-2 |u_i|)); |u_i| are lambda
        // times 0.75 and 0.075. The coordinate of slope 0 contributes nothing.
        for lambda in [1.0f64, 30.0, 1e3, 1e6] {
            let rest = |u: f64| (2.0 * u).ln() - (-(-2.0 * u).exp()).ln_1p();
            let expected = (rest(0.75 * lambda) + rest(0.075 * lambda)) / lambda;
            let law = law(lambda);
            assert_near(law.max_loss() - law.g(), expected, 1e-13);
        }
    }

    #[test]
    fn lambda_g_is_the_integral_of_the_mean_loss() {
        // The trapezoid rule over lambda from 0 to 10.
        let steps = 2000;
        let at = |node: i32| law(10.0 * f64::from(node) / f64::from(steps)).mean_loss();
        let inner: f64 = (1..steps).map(at).sum();
        let integral = (inner + (at(0) + at(steps)) / 2.0) * 10.0 / f64::from(steps);
        assert_near(law(10.0).lambda_g(), integral, 1e-5);
    }

    #[test]
    fn the_variance_of_the_loss_is_the_slope_of_its_mean() {
        let difference = (law(5.001).mean_loss() - law(4.999).mean_loss()) / 0.002;
        assert_near(law(5.0).loss_variance(), difference, 1e-7);
    }

    #[test]
    fn draws_have_the_exact_moments() {
        for lambda in [0.0, 2.0, 60.0] {
            let law = law(lambda);
            let draws = law.draws(&uniforms(11, &[50_000, 3]));
            assert_moments(&draws, &law.mean(), &law.variance());
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let two = Tensor::from_slice(&[0.0, 1.0]);
        let three = Tensor::from_slice(&[1.0, 1.0, 1.0]);
        let refusal = |hi: &Tensor, lambda: f64| {
            LinearLaw::new(0.0, &two, &two, hi, lambda).expect_err("refused").to_string()
        };
        assert_eq!(refusal(&two, -1.0), "`lambda`: expected a finite number of at least 0, got -1");
        assert_eq!(refusal(&three, 1.0), "`hi`: expected the shape [2], got [3]");
        assert_eq!(refusal(&(&two - 1.0), 1.0), "`hi`: expected no upper end below its lower end");
        assert_eq!(refusal(&(&two * f64::NAN), 1.0), "`hi`: expected finite numbers");
    }
}
