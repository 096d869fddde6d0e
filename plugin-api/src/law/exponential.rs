//! Exponentials cut to intervals.

use crate::{Error, Result};
use tch::{Kind, Tensor};

/// Below this argument, series replace formulas whose terms cancel.
const SMALL: f64 = 0.1;

/// Independent coordinates with densities proportional to exp(rate * x) on intervals `[lo, hi]`.
///
/// The three tensors are f64 and broadcast: a matrix of rates with one interval for each column
/// describes one product distribution for each row. Rates of any size and sign are accurate, zero
/// (the uniform distribution) included.
pub struct TruncatedExponential<'a> {
    /// The lower ends.
    pub lo: &'a Tensor,
    /// The upper ends, none below its lower end.
    pub hi: &'a Tensor,
    /// The rates.
    pub rate: Tensor,
}

impl TruncatedExponential<'_> {
    fn middle(&self) -> Tensor {
        (self.lo + self.hi) * 0.5
    }

    fn half_width(&self) -> Tensor {
        (self.hi - self.lo) * 0.5
    }

    /// log of the mean of exp(rate * x) over the interval: rate * middle + log(sinh(u) / u), where
    /// u = rate * half the width.
    pub fn log_mean_exp(&self) -> Tensor {
        &self.rate * self.middle() + log_sinh_over(&(&self.rate * self.half_width()))
    }

    /// The mean of x: middle + half the width * (coth(u) - 1/u).
    pub fn mean(&self) -> Tensor {
        let half = self.half_width();
        self.middle() + langevin_function(&(&self.rate * &half)) * half
    }

    /// The variance of x: (half the width)^2 * (1/u^2 - 1/sinh(u)^2).
    pub fn variance(&self) -> Tensor {
        let half = self.half_width();
        langevin_slope(&(&self.rate * &half)) * half.square()
    }

    /// Draws by the inverse of the distribution function, from numbers uniform on [0, 1).
    pub fn draws(&self, uniforms: &Tensor) -> Tensor {
        let width = self.hi - self.lo;
        // 1e-30 gives the limit at rate 0.
        let decay = (&self.rate * &width).abs().clamp_min(1e-30);
        let rising = self.rate.ge(0.0);
        // The distance from the likelier end is exponential with rate `decay`, cut at 1.
        let share = uniforms.rsub_scalar(1.0).where_self(&rising, uniforms);
        let distance = ((share * (-&decay).expm1()).log1p() / -decay).clamp(0.0, 1.0) * width;
        (self.hi - &distance).where_self(&rising, &(self.lo + &distance))
    }
}

/// log(sinh(u) / u).
fn log_sinh_over(u: &Tensor) -> Tensor {
    let u = u.abs();
    let square = u.square();
    let series = polynomial(&square, &[0.0, 1.0 / 6.0, -1.0 / 180.0, 1.0 / 2835.0, -1.0 / 37800.0]);
    let formula = &u + (-(&u * -2.0).exp()).log1p() - (&u * 2.0).log();
    series.where_self(&u.lt(SMALL), &formula)
}

/// coth(u) - 1/u, the derivative of log(sinh(u) / u).
fn langevin_function(u: &Tensor) -> Tensor {
    let coefficients = [1.0 / 3.0, -1.0 / 45.0, 2.0 / 945.0, -1.0 / 4725.0, 2.0 / 93555.0];
    let series = u * polynomial(&u.square(), &coefficients);
    let formula = 1.0 / u.tanh() - 1.0 / u;
    series.where_self(&u.abs().lt(SMALL), &formula)
}

/// 1/u^2 - 1/sinh(u)^2, the second derivative of log(sinh(u) / u).
fn langevin_slope(u: &Tensor) -> Tensor {
    let coefficients = [1.0 / 3.0, -1.0 / 15.0, 2.0 / 189.0, -1.0 / 675.0, 2.0 / 10395.0];
    let series = polynomial(&u.square(), &coefficients);
    let decay = (u.abs() * -2.0).exp();
    let formula = 1.0 / u.square() - &decay * 4.0 / (&decay - 1.0).square();
    series.where_self(&u.abs().lt(SMALL), &formula)
}

/// The polynomial with these coefficients, lowest order first.
fn polynomial(x: &Tensor, coefficients: &[f64]) -> Tensor {
    coefficients.iter().rev().fold(x.zeros_like(), |sum, coefficient| sum * x + *coefficient)
}

/// A tensor in f64 without gradient, of this shape.
///
/// # Errors
/// If the shape differs, or a number is not finite.
pub(super) fn numbers(name: &str, tensor: &Tensor, shape: &[i64]) -> Result<Tensor> {
    if tensor.size() != shape {
        return Err(Error::new(format!("`{name}`: expected the shape {shape:?}, got {:?}", tensor.size())));
    }
    let tensor = tensor.detach().to_kind(Kind::Double);
    if tensor.isfinite().all().int64_value(&[]) != 1 {
        return Err(Error::new(format!("`{name}`: expected finite numbers")));
    }
    Ok(tensor)
}

/// The box of this many coordinates, in f64.
///
/// # Errors
/// If it has another number of coordinates, or an upper end lies below its lower end.
pub(super) fn interval(lo: &Tensor, hi: &Tensor, coordinates: i64) -> Result<(Tensor, Tensor)> {
    let (lo, hi) = (numbers("lo", lo, &[coordinates])?, numbers("hi", hi, &[coordinates])?);
    if lo.gt_tensor(&hi).any().int64_value(&[]) != 0 {
        return Err(Error::new("`hi`: expected no upper end below its lower end"));
    }
    Ok((lo, hi))
}

/// Refuses a factor of the loss that is negative or not finite.
pub(super) fn check_lambda(lambda: f64) -> Result<()> {
    if lambda.is_finite() && lambda >= 0.0 {
        Ok(())
    } else {
        Err(Error::new(format!("`lambda`: expected a finite number of at least 0, got {lambda}")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_moments, assert_near, numbers, uniforms};
    use super::*;

    fn one(value: f64) -> Tensor {
        Tensor::from_slice(&[value])
    }

    /// log of the mean of exp(rate * x) on [0, 1], mean and variance: by the trapezoid rule.
    fn by_quadrature(rate: f64) -> [f64; 3] {
        let steps = 400_000;
        let nodes = (0..=steps).map(|node| {
            let x = f64::from(node) / f64::from(steps);
            let end = if node == 0 || node == steps { 0.5 } else { 1.0 };
            (x, end * (rate * x - rate.max(0.0)).exp())
        });
        let total = |of: &dyn Fn(f64) -> f64| nodes.clone().map(|(x, weight)| of(x) * weight).sum::<f64>();
        let mass = total(&|_| 1.0);
        let mean = total(&|x| x) / mass;
        let variance = total(&|x| (x - mean).powi(2)) / mass;
        [(mass / f64::from(steps)).ln() + rate.max(0.0), mean, variance]
    }

    #[test]
    fn every_rate_agrees_with_quadrature() {
        // 0.19 and 0.21 lie on the two sides of the change from series to formulas.
        for rate in [-700.0, -30.0, -3.0, -0.21, -0.19, -1e-9, 0.0, 1e-4, 0.19, 0.21, 2.0, 50.0, 700.0] {
            let (lo, hi) = (one(0.0), one(1.0));
            let coordinate = TruncatedExponential { lo: &lo, hi: &hi, rate: one(rate) };
            let got = [coordinate.log_mean_exp(), coordinate.mean(), coordinate.variance()];
            for (got, expected) in got.iter().zip(by_quadrature(rate)) {
                assert_near(got.double_value(&[0]), expected, 1e-6 * expected.abs().max(1e-6));
            }
        }
    }

    #[test]
    fn moments_and_quantiles_are_those_of_scipy() {
        // scipy 1.17.1: stats.truncexpon(b=|rate|*(hi-lo), scale=1/|rate|), mirrored where the rate
        // is positive; the first number from integrate.quad.
        type Record = ([f64; 3], [f64; 3], [f64; 3]);
        let records: [Record; 3] = [
            (
                [3.0, -0.5, 1.0],
                [1.484751440955429, 0.6835173557203951, 0.08555113180893316],
                [0.2642359285366229, 0.7726335214295494, 0.9652910187094136],
            ),
            (
                [-40.0, 0.2, 0.7],
                [-10.995732275615143, 0.2249999989694232, 0.0006249994847115925],
                [0.20263401288572025, 0.2173286794624698, 0.2575646268610916],
            ),
            (
                [0.05, 0.0, 1.0],
                [0.025104164496613877, 0.5041664930659056, 0.08332291769963382],
                [0.10228021529623033, 0.5062493490668196, 0.902220215896893],
            ),
        ];
        for ([rate, lo, hi], expected, quantiles) in records {
            let (lo, hi) = (one(lo), one(hi));
            let coordinate = TruncatedExponential { lo: &lo, hi: &hi, rate: one(rate) };
            let got = [coordinate.log_mean_exp(), coordinate.mean(), coordinate.variance()];
            for (got, expected) in got.iter().zip(expected) {
                assert_near(got.double_value(&[0]), expected, 1e-11);
            }
            let draws = coordinate.draws(&Tensor::from_slice(&[0.1, 0.5, 0.9]));
            for (got, expected) in numbers(&draws).into_iter().zip(quantiles) {
                assert_near(got, expected, 1e-13);
            }
        }
    }

    #[test]
    fn draws_have_the_exact_moments_and_stay_inside() {
        let rates = Tensor::from_slice(&[-1e6, -20.0, -0.5, 0.0, 1e-12, 3.0, 400.0, 0.0]);
        let lo = Tensor::from_slice(&[-1.0, 0.0, 0.25, -0.3, 0.0, 0.0, 0.5, 0.125]);
        let hi = Tensor::from_slice(&[1.0, 0.5, 1.0, 0.3, 1.0, 0.6, 1.0, 0.125]);
        let coordinates = TruncatedExponential { lo: &lo, hi: &hi, rate: rates };
        let draws = coordinates.draws(&uniforms(5, &[100_000, 8]));
        assert!(draws.ge_tensor(&lo).logical_and(&draws.le_tensor(&hi)).all().int64_value(&[]) == 1);
        // The last interval is a single point.
        assert_eq!(draws.select(1, 7), lo.get(7).expand([100_000], false));
        let (mean, variance) = (coordinates.mean(), coordinates.variance());
        let wide = |tensor: &Tensor| tensor.narrow(-1, 0, 7);
        assert_moments(&wide(&draws), &wide(&mean), &wide(&variance));
    }

    #[test]
    fn the_extreme_uniform_numbers_give_finite_draws() {
        let (lo, hi) = (one(0.0), one(1.0));
        for rate in [-1e300, -800.0, 0.0, 1e-300, 800.0, 1e300] {
            let coordinate = TruncatedExponential { lo: &lo, hi: &hi, rate: one(rate) };
            let draws = coordinate.draws(&Tensor::from_slice(&[0.0, f64::EPSILON, 1.0 - f64::EPSILON]));
            assert!(numbers(&draws).iter().all(|draw| (0.0..=1.0).contains(draw)), "{rate}: {draws:?}");
        }
    }
}
