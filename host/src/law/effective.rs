//! The effective lambda: the law that is as adversarial as a chain.

use super::Rung;
use crate::util::number::short_number;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a lambda lies on a ladder of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Below the smallest lambda above 0 that was measured.
    Below(f64),
    /// At this lambda.
    At(f64),
    /// Above the largest lambda that was measured.
    Above(f64),
}

/// The lambda whose law has a given mean loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Effective {
    /// The estimate.
    pub lambda: Place,
    /// The lower end of the interval.
    pub from: Place,
    /// The upper end of the interval.
    pub to: Place,
}

/// The lambda whose law has the mean loss of a chain, `loss` with the standard error `error`.
///
/// The mean loss of the law is interpolated in log lambda between the rungs above 0, and never
/// extrapolated. It cannot fall, so the lower end at one lambda also holds at larger ones, and the
/// upper end at smaller ones: chains that stop mixing at a large lambda do not bend the curve. The
/// interval reaches from where the upper end of the curve meets `loss` less two standard errors to
/// where the lower end meets `loss` plus as much; the curve's own errors are in it.
///
/// None without two rungs above 0, or if a number is not finite.
pub fn effective(ladder: &[Rung], loss: f64, error: f64) -> Option<Effective> {
    const STANDARD_ERRORS: f64 = super::dual::STANDARD_ERRORS;
    let rungs: Vec<Rung> = ladder.iter().filter(|rung| rung.lambda > 0.0).copied().collect();
    let is_finite =
        |rung: &Rung| [rung.lambda, rung.lower, rung.upper, rung.error].iter().all(|n| n.is_finite());
    let rises = rungs.windows(2).all(|pair| pair[0].lambda < pair[1].lambda);
    if rungs.len() < 2 || !rises || !rungs.iter().all(is_finite) || !(loss + error).is_finite() {
        return None;
    }
    let curve = |width: f64| -> (Vec<f64>, Vec<f64>) {
        let mut lower: Vec<f64> = rungs.iter().map(|rung| rung.ends().0 - width * rung.error).collect();
        let mut upper: Vec<f64> = rungs.iter().map(|rung| rung.ends().1 + width * rung.error).collect();
        for place in 1..rungs.len() {
            lower[place] = lower[place].max(lower[place - 1]);
        }
        for place in (1..rungs.len()).rev() {
            upper[place - 1] = upper[place - 1].min(upper[place]);
        }
        (lower, upper)
    };
    let (lower, upper) = curve(0.0);
    let middle: Vec<f64> = lower.iter().zip(&upper).map(|(lower, upper)| (lower + upper) / 2.0).collect();
    let (lowest, highest) = curve(STANDARD_ERRORS);
    let crossing = |values: &[f64], loss: f64| crossing(&rungs, values, loss);
    let lambda = crossing(&middle, loss);
    // Where both ends contradict each other by more than their errors, the interval holds all three.
    let mut places = [
        lambda,
        crossing(&highest, loss - STANDARD_ERRORS * error),
        crossing(&lowest, loss + STANDARD_ERRORS * error),
    ];
    places.sort_by(|a, b| a.order().total_cmp(&b.order()));
    Some(Effective { lambda, from: places[0], to: places[2] })
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, lambda) = match self {
            Self::Below(lambda) => ("below ", lambda),
            Self::At(lambda) => ("", lambda),
            Self::Above(lambda) => ("above ", lambda),
        };
        write!(formatter, "{word}{}", short_number(*lambda))
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({} to {})", self.lambda, self.from, self.to)
    }
}

impl Place {
    fn order(self) -> f64 {
        match self {
            Self::Below(_) => f64::NEG_INFINITY,
            Self::At(lambda) => lambda,
            Self::Above(_) => f64::INFINITY,
        }
    }
}

/// Where a curve that does not fall meets a value.
fn crossing(rungs: &[Rung], values: &[f64], value: f64) -> Place {
    let [smallest, largest] = [rungs[0].lambda, rungs[rungs.len() - 1].lambda];
    match values.partition_point(|other| *other < value) {
        0 if value < values[0] => Place::Below(smallest),
        0 => Place::At(smallest),
        place if place == values.len() => Place::Above(largest),
        place => {
            let share = (value - values[place - 1]) / (values[place] - values[place - 1]);
            let [from, to] = [rungs[place - 1].lambda.ln(), rungs[place].lambda.ln()];
            Place::At((from + share * (to - from)).exp())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(lambda: f64, lower: f64, upper: f64, error: f64) -> Rung {
        Rung { lambda, lower, upper, error, error_of_mean: error, variance: 0.0 }
    }

    /// Lambda 1, 10, 100 with mean losses 1, 2, 4, known exactly.
    fn exact() -> Vec<Rung> {
        let at = |lambda, loss| rung(lambda, loss, loss, 0.0);
        vec![at(0.0, 0.5), at(1.0, 1.0), at(10.0, 2.0), at(100.0, 4.0)]
    }

    #[track_caller]
    fn assert_at(place: Place, expected: f64) {
        match place {
            Place::At(lambda) => assert!((lambda / expected - 1.0).abs() < 1e-12, "{lambda} for {expected}"),
            _ => panic!("{place:?} for {expected}"),
        }
    }

    #[test]
    fn lambda_is_interpolated_in_its_logarithm() {
        // By hand: 1.5 is halfway from 1 to 2, so lambda is the root of 1 * 10; 3.5 is three quarters
        // of the way from 2 to 4, so it is 10 to the power of 1.75.
        for (loss, expected) in
            [(1.0, 1.0), (1.5, 10f64.sqrt()), (2.0, 10.0), (3.5, 10f64.powf(1.75)), (4.0, 100.0)]
        {
            let found = effective(&exact(), loss, 0.0).expect("a place");
            [found.lambda, found.from, found.to].iter().for_each(|place| assert_at(*place, expected));
        }
        // The error of the chain widens the interval: 1.5 -+ 2 * 0.125 is a quarter, three quarters.
        let found = effective(&exact(), 1.5, 0.125).expect("a place");
        assert_at(found.lambda, 10f64.sqrt());
        assert_at(found.from, 10f64.powf(0.25));
        assert_at(found.to, 10f64.powf(0.75));
    }

    #[test]
    fn nothing_is_extrapolated() {
        for (loss, expected) in [
            (0.75, Place::Below(1.0)),
            // Less than the uniform law's.
            (0.25, Place::Below(1.0)),
            (4.5, Place::Above(100.0)),
        ] {
            let found = effective(&exact(), loss, 0.0).expect("a place");
            assert_eq!(found, Effective { lambda: expected, from: expected, to: expected });
        }
        let near_the_end = effective(&exact(), 3.9, 0.25).expect("a place");
        assert_at(near_the_end.lambda, 10f64.powf(1.95));
        assert_at(near_the_end.from, 10f64.powf(1.7));
        assert_eq!(near_the_end.to, Place::Above(100.0));
    }

    #[test]
    fn the_interval_holds_what_both_ends_of_the_chains_allow() {
        // At 10, chains that begin at uniform draws are at 1.5, those from the maximum at 2.5.
        let mut ladder = exact();
        ladder[2] = rung(10.0, 1.5, 2.5, 0.0);
        let found = effective(&ladder, 1.75, 0.0).expect("a place");
        // The middle at 10 is 2: three quarters of the way from 1. The upper end meets 1.75 halfway
        // from 1 to 2.5, the lower one a tenth of the way from 1.5 to 4.
        assert_at(found.lambda, 10f64.powf(0.75));
        assert_at(found.from, 10f64.powf(0.5));
        assert_at(found.to, 10f64.powf(1.1));
        // Errors of the curve widen it: the upper end is at 1.25 and 2.75 then, the lower at 1.25, 3.75.
        ladder.iter_mut().for_each(|rung| rung.error = 0.125);
        let found = effective(&ladder, 1.75, 0.0).expect("a place");
        assert_at(found.lambda, 10f64.powf(0.75));
        assert_at(found.from, 10f64.powf(1.0 / 3.0));
        assert_at(found.to, 10f64.powf(1.2));
    }

    #[test]
    fn chains_that_stop_mixing_do_not_bend_the_curve() {
        // At 100 and 1000, chains that begin at uniform draws fall to 1.2; the law's mean cannot.
        let ladder = [
            rung(1.0, 1.0, 1.0, 0.0),
            rung(10.0, 2.0, 2.0, 0.0),
            rung(100.0, 1.2, 4.0, 0.0),
            rung(1000.0, 1.2, 4.0, 0.0),
        ];
        let found = effective(&ladder, 3.0, 0.0).expect("a place");
        // The lower end stays at 2, the middle rises to 3 at 100, the upper end is at 3 halfway.
        assert_at(found.lambda, 100.0);
        assert_at(found.from, 10f64.powf(1.5));
        assert_eq!(found.to, Place::Above(1000.0));
        // Chains from the maximum that have not come down at a small lambda, likewise.
        let ladder = [rung(1.0, 1.0, 9.0, 0.0), rung(10.0, 2.0, 3.0, 0.0)];
        assert_eq!(effective(&ladder, 2.5, 0.0).expect("a place").from, Place::Below(1.0));
    }

    #[test]
    fn contradicting_ends_widen_the_interval() {
        let ladder = [rung(1.0, 3.0, 3.0, 0.0), rung(10.0, 1.0, 1.0, 0.0), rung(100.0, 4.0, 4.0, 0.0)];
        let found = effective(&ladder, 2.5, 0.0).expect("a place");
        let order = |place: Place| place.order();
        assert!(
            order(found.from) <= order(found.lambda) && order(found.lambda) <= order(found.to),
            "{found:?}"
        );
        assert!(order(found.from) < order(found.to), "{found:?}");
    }

    #[test]
    fn a_curve_needs_two_rungs() {
        assert_eq!(effective(&exact()[..2], 1.0, 0.0), None);
        assert_eq!(effective(&exact(), f64::NAN, 0.0), None);
        assert_eq!(effective(&[exact()[2], exact()[1]], 1.5, 0.0), None);
    }

    #[test]
    fn places_are_shown_in_few_digits() {
        let shown =
            Effective { lambda: Place::At(12.3456), from: Place::Below(1.0), to: Place::Above(1000.0) };
        assert_eq!(shown.to_string(), "12.35 (below 1 to above 1000)");
        assert_eq!(Place::At(0.0123456).to_string(), "0.01235");
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for (place, text) in [
            (Place::Below(1.0), r#"{"below":1.0}"#),
            (Place::At(2.5), r#"{"at":2.5}"#),
            (Place::Above(100.0), r#"{"above":100.0}"#),
        ] {
            assert_eq!(serde_json::to_string(&place).expect("JSON"), text);
            assert_eq!(serde_json::from_str::<Place>(text).expect("a place"), place);
        }
    }
}
