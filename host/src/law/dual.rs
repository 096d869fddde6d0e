//! The dual value `g` by thermodynamic integration, with bounds.
//!
//! `g(lambda) = (1 / lambda) log E exp(lambda * loss)` with the uniform expectation over the ball cut
//! to the domain. With `E_s` the mean loss under the law of `s`, `lambda g(lambda)` is the integral
//! of `E_s` over `s` from 0 to `lambda`, and the derivative of `E_s` is the variance of the loss under
//! the law of `s`. So `E_s` rises, and its values at some rungs bound the integral from both sides.

use super::Rung;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Bounds and comparisons allow for this many standard errors.
pub const STANDARD_ERRORS: f64 = 2.0;

/// The dual value at one lambda.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Dual {
    /// The inverse temperature.
    pub lambda: f64,
    /// The estimate of `g(lambda)`: at 0, the mean loss of the uniform law.
    pub g: f64,
    /// The standard error of the estimate from the errors of the rungs' means. It holds neither the
    /// error of the integration rule nor what chains that do not mix hide; the bounds hold both.
    pub error: f64,
    /// The lower bound: each interval with the lower end of its first rung, less
    /// [`STANDARD_ERRORS`].
    pub lower: f64,
    /// The upper bound: each interval with the upper end of its last rung, plus
    /// [`STANDARD_ERRORS`].
    pub upper: f64,
}

/// The dual value at every rung of a ladder that begins at lambda 0.
///
/// The integral is that of the trapezoid rule, corrected by the derivatives at both ends of an
/// interval (the integral of the cubic through both values and both derivatives). Where an interval
/// is too long for it, the correction is cut so that the mean over the interval lies between its
/// values at both ends, as that of a rising function does.
///
/// # Errors
/// If the ladder is empty, does not begin at 0, does not rise, or holds a number that is not finite.
pub fn integrate(ladder: &[Rung]) -> Result<Vec<Dual>> {
    check(ladder)?;
    let bound = |rung: &Rung| {
        let (lower, upper) = rung.ends();
        (lower - STANDARD_ERRORS * rung.error, upper + STANDARD_ERRORS * rung.error)
    };
    let first = ladder[0];
    let (lower, upper) = bound(&first);
    let mut values = vec![Dual { lambda: 0.0, g: first.mean(), error: first.error_of_mean, lower, upper }];
    // The integrals, the weight of the last rung in the estimate, and the variance of the rest.
    let (mut integral, mut below, mut above) = (0.0, Bound::default(), Bound::default());
    let (mut last_weight, mut variance_of_rest) = (0.0, 0.0);
    for pair in ladder.windows(2) {
        let [from, to] = [pair[0], pair[1]];
        let width = to.lambda - from.lambda;
        let (start, end) = (from.mean(), to.mean());
        let corrected = (start + end) / 2.0 - width / 12.0 * (to.variance - from.variance);
        integral += width * corrected.clamp(start.min(end), start.max(end));
        variance_of_rest += ((last_weight + width / 2.0) * from.error_of_mean).powi(2);
        last_weight = width / 2.0;
        below.add(width, from.ends().0, from.error);
        above.add(width, to.ends().1, to.error);
        let error = (variance_of_rest + (last_weight * to.error_of_mean).powi(2)).sqrt();
        values.push(Dual {
            lambda: to.lambda,
            g: integral / to.lambda,
            error: error / to.lambda,
            lower: (below.sum - below.error()) / to.lambda,
            upper: (above.sum + above.error()) / to.lambda,
        });
    }
    Ok(values)
}

/// A Riemann sum over independent means, with its variance.
#[derive(Default)]
struct Bound {
    sum: f64,
    variance: f64,
}

impl Bound {
    fn add(&mut self, width: f64, mean: f64, error: f64) {
        self.sum += width * mean;
        self.variance += (width * error).powi(2);
    }

    fn error(&self) -> f64 {
        STANDARD_ERRORS * self.variance.sqrt()
    }
}

fn check(ladder: &[Rung]) -> Result<()> {
    let refused = |what: String| Err(Error::new(format!("the ladder of lambda {what}")));
    match ladder.first() {
        None => return refused("is empty".to_owned()),
        Some(first) if first.lambda != 0.0 => {
            return refused(format!("must begin at 0, the uniform law; got {}", first.lambda));
        }
        Some(_) => {}
    }
    if let Some(pair) = ladder.windows(2).find(|pair| pair[0].lambda >= pair[1].lambda) {
        return refused(format!("must rise; got {} after {}", pair[1].lambda, pair[0].lambda));
    }
    let is_finite = |rung: &&Rung| {
        [rung.lambda, rung.lower, rung.upper, rung.error, rung.error_of_mean, rung.variance]
            .iter()
            .all(|n| n.is_finite())
    };
    match ladder.iter().find(|rung| !is_finite(rung)) {
        Some(rung) => refused(format!("has a number that is not finite at {}", rung.lambda)),
        None => Ok(()),
    }
}

/// Whether one number is at most another, within the errors of both.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The number that the theory says is not larger.
    pub smaller: f64,
    /// The other.
    pub larger: f64,
    /// How far the first may exceed the second by errors of estimation.
    pub tolerance: f64,
    /// Whether it does not exceed it by more.
    pub holds: bool,
}

impl Comparison {
    fn new(smaller: f64, larger: f64, tolerance: f64) -> Self {
        Self { smaller, larger, tolerance, holds: smaller <= larger + tolerance }
    }
}

/// The order that holds at every lambda: the mean loss of the uniform law, `g`, the mean loss of the
/// law, the largest loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The inverse temperature.
    pub lambda: f64,
    /// The mean loss of the uniform law is at most `g`.
    pub uniform_and_g: Comparison,
    /// `g` is at most the mean loss of the law.
    pub g_and_mean: Comparison,
    /// The mean loss of the law is at most the largest loss.
    pub mean_and_largest: Comparison,
}

impl Order {
    /// Whether all of it holds.
    pub fn holds(&self) -> bool {
        [self.uniform_and_g, self.g_and_mean, self.mean_and_largest].iter().all(|pair| pair.holds)
    }
}

/// The order at every rung of a ladder. `largest` is the largest loss, or a strong attack's.
///
/// The upper end of the mean loss is compared with the largest loss, so that chains that find more
/// than the attack are seen. The tolerance is [`STANDARD_ERRORS`] of the difference.
///
/// # Errors
/// As [`integrate`].
pub fn order(ladder: &[Rung], largest: f64) -> Result<Vec<Order>> {
    let values = integrate(ladder)?;
    let uniform = ladder[0];
    let of_rung = |(rung, dual): (&Rung, Dual)| {
        let tolerance = |a: f64, b: f64| STANDARD_ERRORS * a.hypot(b);
        let upper = rung.ends().1;
        Order {
            lambda: rung.lambda,
            uniform_and_g: Comparison::new(
                uniform.mean(),
                dual.g,
                tolerance(uniform.error_of_mean, dual.error),
            ),
            g_and_mean: Comparison::new(dual.g, upper, tolerance(dual.error, rung.error)),
            mean_and_largest: Comparison::new(upper, largest, tolerance(rung.error, 0.0)),
        }
    };
    Ok(ladder.iter().zip(values).map(of_rung).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The linear loss `c + sum a_i d_i` on the box `|d_i| <= e`, whose law is known in closed form.
    struct Linear {
        c: f64,
        e: f64,
        a: [f64; 3],
    }

    const LINEAR: Linear = Linear { c: 0.4, e: 0.3, a: [2.0, -0.5, 1.0] };

    impl Linear {
        /// E_s: the mean of each d_i is `e (coth u - 1 / u)` with `u = s a_i e`.
        fn mean(&self, s: f64) -> f64 {
            let of_coordinate = |a: &f64| {
                let u = s * a * self.e;
                let mean = if u == 0.0 { 0.0 } else { 1.0 / u.tanh() - 1.0 / u };
                a * self.e * mean
            };
            self.c + self.a.iter().map(of_coordinate).sum::<f64>()
        }

        /// The variance of each d_i is `e^2 (1 / u^2 - 1 / sinh^2 u)`.
        fn variance(&self, s: f64) -> f64 {
            let of_coordinate = |a: &f64| {
                let u = s * a * self.e;
                let variance = if u == 0.0 { 1.0 / 3.0 } else { u.powi(-2) - u.sinh().powi(-2) };
                (a * self.e).powi(2) * variance
            };
            self.a.iter().map(of_coordinate).sum()
        }

        fn g(&self, lambda: f64) -> f64 {
            let of_coordinate = |a: &f64| {
                let u = lambda * a * self.e;
                (u.sinh() / u).ln()
            };
            self.c + self.a.iter().map(of_coordinate).sum::<f64>() / lambda
        }

        fn largest(&self) -> f64 {
            self.c + self.a.iter().map(|a| a.abs() * self.e).sum::<f64>()
        }

        fn rung(&self, lambda: f64) -> Rung {
            let mean = self.mean(lambda);
            Rung {
                lambda,
                lower: mean,
                upper: mean,
                error: 0.0,
                error_of_mean: 0.0,
                variance: self.variance(lambda),
            }
        }

        fn ladder(&self, rungs: &[f64]) -> Vec<Rung> {
            rungs.iter().map(|lambda| self.rung(*lambda)).collect()
        }
    }

    #[test]
    fn a_fine_ladder_gives_the_closed_form() {
        let rungs: Vec<f64> = (0..=200).map(|step| f64::from(step) * 0.25).collect();
        let values = integrate(&LINEAR.ladder(&rungs)).expect("values");
        assert_eq!((values[0].g, values[0].lambda), (LINEAR.c, 0.0));
        for value in &values[1..] {
            let exact = LINEAR.g(value.lambda);
            assert!((value.g - exact).abs() < 1e-7, "{value:?}, expected {exact}");
            assert!(value.lower <= exact && exact <= value.upper, "{value:?}, expected {exact}");
            assert!(value.upper - value.lower < 0.05, "{value:?}");
        }
    }

    #[test]
    fn bounds_of_coarse_ladders_hold_the_truth() {
        for rungs in
            [vec![0.0, 1000.0], vec![0.0, 10.0], vec![0.0, 1.0, 10.0, 100.0, 1000.0], vec![0.0, 3.0, 400.0]]
        {
            for value in &integrate(&LINEAR.ladder(&rungs)).expect("values")[1..] {
                let exact = LINEAR.g(value.lambda);
                assert!(value.lower <= exact && exact <= value.upper, "{value:?}, expected {exact}");
                assert!(value.lower <= value.g && value.g <= value.upper, "{value:?}");
            }
        }
        // By hand: one interval from 0 to 10, mean losses 1 and 3, no errors. The trapezoid rule
        // gives 2; the correction is 10 / 12 * 0.6 = 0.5, or beyond the ends and cut.
        for (variance, g) in [(0.6, 2.5), (60.0, 3.0)] {
            let rung = |lambda, loss, variance| Rung {
                lambda,
                lower: loss,
                upper: loss,
                error: 0.0,
                error_of_mean: 0.0,
                variance,
            };
            let values = integrate(&[rung(0.0, 1.0, variance), rung(10.0, 3.0, 0.0)]).expect("values");
            assert!((values[1].g - g).abs() < 1e-12, "{values:?}");
            assert_eq!((values[1].lower, values[1].upper), (1.0, 3.0));
        }
    }

    #[test]
    fn errors_of_the_rungs_become_those_of_the_integral() {
        let rung = |lambda, error| Rung {
            lambda,
            lower: 1.0,
            upper: 1.0,
            error,
            error_of_mean: error,
            variance: 0.0,
        };
        // By hand: widths 2 and 4; the weights of the three means are 1, 3 and 2.
        let values = integrate(&[rung(0.0, 0.3), rung(2.0, 0.2), rung(6.0, 0.1)]).expect("values");
        assert_eq!(values[0].error, 0.3);
        assert!((values[1].error - 0.3f64.hypot(0.2) / 2.0).abs() < 1e-12, "{values:?}");
        let all = (0.3f64.powi(2) + 0.6f64.powi(2) + 0.2f64.powi(2)).sqrt();
        assert!((values[2].error - all / 6.0).abs() < 1e-12, "{values:?}");
        // The lower sum takes the first and second mean with weights 2 and 4, the upper one the
        // second and third.
        assert!((values[2].lower - (1.0 - 2.0 * 0.6f64.hypot(0.8) / 6.0)).abs() < 1e-12, "{values:?}");
        assert!((values[2].upper - (1.0 + 2.0 * 0.4f64.hypot(0.4) / 6.0)).abs() < 1e-12, "{values:?}");
        assert!((values[0].lower - 0.4).abs() < 1e-12 && (values[0].upper - 1.6).abs() < 1e-12);
    }

    #[test]
    fn chains_that_do_not_mix_widen_the_bounds() {
        let mut ladder = LINEAR.ladder(&[0.0, 1.0, 10.0]);
        let mixed = integrate(&ladder).expect("values")[2];
        ladder[1].lower -= 0.1;
        ladder[2].upper += 0.1;
        let apart = integrate(&ladder).expect("values")[2];
        assert!((mixed.lower - apart.lower - 0.1 * 9.0 / 10.0).abs() < 1e-12, "{mixed:?} {apart:?}");
        assert!((apart.upper - mixed.upper - 0.1 * 9.0 / 10.0).abs() < 1e-12, "{mixed:?} {apart:?}");
        // Noise may exchange both ends.
        let mut exchanged = ladder.clone();
        exchanged.iter_mut().for_each(|rung| std::mem::swap(&mut rung.lower, &mut rung.upper));
        assert_eq!(integrate(&exchanged).expect("values")[2], apart);
    }

    #[test]
    fn the_order_of_the_theory_is_checked() {
        let ladder = LINEAR.ladder(&[0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        let orders = order(&ladder, LINEAR.largest()).expect("orders");
        assert_eq!(orders.len(), ladder.len());
        assert!(orders.iter().all(Order::holds), "{orders:?}");
        // A chain above the largest loss, or a mean that falls below g, is a finding.
        let small = order(&ladder, LINEAR.mean(50.0)).expect("orders");
        let above: Vec<_> = small.iter().filter(|order| !order.holds()).map(|order| order.lambda).collect();
        assert_eq!(above, [100.0]);
        let mut falls = ladder.clone();
        falls[8] = Rung { lambda: 100.0, ..ladder[2] };
        let found = order(&falls, LINEAR.largest()).expect("orders");
        assert!(!found[8].g_and_mean.holds && found[8].uniform_and_g.holds, "{:?}", found[8]);
        // Within the errors, it is none.
        falls[8].error = 1.0;
        assert!(order(&falls, LINEAR.largest()).expect("orders")[8].holds());
    }

    #[test]
    fn a_ladder_that_is_none_is_refused() {
        for (rungs, expected) in [
            (vec![], "is empty"),
            (vec![1.0, 2.0], "must begin at 0, the uniform law; got 1"),
            (vec![0.0, 2.0, 2.0], "must rise; got 2 after 2"),
            (vec![0.0, f64::INFINITY], "not finite at inf"),
        ] {
            let refused = integrate(&LINEAR.ladder(&rungs)).expect_err("refused").to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let mut ladder = LINEAR.ladder(&[0.0, 1.0]);
        ladder[1].upper = f64::NAN;
        assert!(integrate(&ladder).is_err());
    }
}
