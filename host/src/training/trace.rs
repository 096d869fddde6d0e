//! Accuracy against a cheap attack while training goes on, as a function of what it has cost.

use crate::config::Experiment;
use crate::data::Dataset;
use crate::data::examples::Examples;
use crate::plugin::Attack;
use crate::{Error, Result};
use tch::Device;

/// Test points of a trace if no number is given, where there are as many.
const DEFAULT_POINTS: usize = 1000;

/// What is traced, and when.
pub struct Trace {
    /// The attack.
    pub attack: Attack,
    /// The test set.
    pub examples: Examples,
    /// How many of its points: the same as those of `host eval --points`.
    pub points: usize,
    /// After which updates.
    pub updates: Vec<u64>,
}

impl Trace {
    /// The trace that an experiment asks for, if any; not planned yet.
    ///
    /// # Errors
    /// If the attack cannot run here, or there are fewer test points than wanted.
    pub fn make(experiment: &Experiment, dataset: &Dataset, device: Device) -> Result<Option<Self>> {
        let Some(spec) = &experiment.train.trace else { return Ok(None) };
        let attack = Attack::make(spec)?;
        attack.supports(&experiment.threat, &dataset.task())?;
        let all = dataset.test.count() as usize;
        let points = experiment.train.trace_points.unwrap_or(DEFAULT_POINTS.min(all));
        if points > all {
            return Err(Error::new(format!(
                "train.trace_points: expected at most {all}, as many as there are test points; got {points}"
            )));
        }
        let examples = Examples::new(&dataset.test, 0, all, device)?;
        Ok(Some(Self { attack, examples, points, updates: Vec::new() }))
    }

    /// Plans the trace of a run of so many updates: after the first update at which each of the
    /// numbers `at` of passes per sample is reached, those beyond the run left out; if not
    /// given, 1, 2, 5 times the powers of ten, and the end of the run. `passes` says how many
    /// are done after an update, counted from 1.
    ///
    /// # Errors
    /// If the run ends before the first of them.
    pub fn plan(&mut self, at: Option<&[f64]>, updates: u64, passes: impl Fn(u64) -> f64) -> Result<()> {
        let end = passes(updates);
        let at = at.map_or_else(|| series(passes(1), end), <[f64]>::to_vec);
        self.updates = first_updates(&at, updates, passes);
        if self.updates.is_empty() {
            Err(Error::new(format!(
                "train.trace_at: the run ends after {end} passes per sample, before the first of them"
            )))
        } else {
            Ok(())
        }
    }
}

/// 1, 2, 5 times the powers of ten from `first` to `last`, and `last`.
fn series(first: f64, last: f64) -> Vec<f64> {
    let powers = first.log10().floor() as i32..=last.log10().ceil() as i32;
    let numbers = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    numbers.filter(|number| (first..last).contains(number)).chain([last]).collect()
}

/// The first of so many updates, counted from 1, by which each of the passes `at` is reached.
fn first_updates(at: &[f64], updates: u64, passes: impl Fn(u64) -> f64) -> Vec<u64> {
    // A sum of passes may be a rounding error short of the number written.
    let reached = |update: u64, wanted: f64| passes(update) >= wanted * (1.0 - 1e-12);
    let first = |wanted: f64| {
        let (mut below, mut above) = (0, updates);
        while above - below > 1 {
            let middle = below.midpoint(above);
            if reached(middle, wanted) { above = middle } else { below = middle }
        }
        above
    };
    let mut first: Vec<_> =
        at.iter().copied().filter(|wanted| reached(updates, *wanted)).map(first).collect();
    first.dedup();
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_goes_from_one_update_to_the_end() {
        let expected = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0];
        let got = series(2.0 * 100.0 / 60000.0, 4.0);
        assert_eq!(got.len(), expected.len(), "{got:?}");
        assert!(got.iter().zip(expected).all(|(got, expected)| (got / expected - 1.0).abs() < 1e-12));
        assert_eq!(series(2.0, 2.0), [2.0]);
        assert_eq!(series(1.0, 10.0), [1.0, 2.0, 5.0, 10.0]);
    }

    #[test]
    fn a_number_of_passes_is_reached_at_the_first_update_that_has_as_many() {
        // 0.7 passes an update, 7 in all; three times 0.7 is 2.0999999999999996.
        let first = |at: &[f64]| first_updates(at, 10, |update| 0.7 * update as f64);
        assert_eq!(first(&[0.1, 0.7, 0.8, 2.1, 7.0, 7.1]), [1, 2, 3, 10]);
        assert!(first(&[8.0]).is_empty());
    }
}
