//! The trace: accuracy against an attack during training, as a function of the training cost.

use crate::config::Experiment;
use crate::data::Dataset;
use crate::data::examples::Examples;
use crate::plugin::Attack;
use crate::ranks::Ranks;
use crate::{Error, Result};
use tch::Device;

/// Default number of test points of a trace, if the test set is large enough.
const DEFAULT_POINTS: usize = 1000;

/// The attack of a trace, its test points, and when they are attacked.
pub struct Trace {
    /// The attack.
    pub attack: Attack,
    /// The test set.
    pub examples: Examples,
    /// Number of test points; they are the same points as those of `host eval --points`.
    pub points: usize,
    /// The updates after which the attack runs, counted from 1.
    pub updates: Vec<u64>,
}

impl Trace {
    /// The trace of an experiment, or none. Its updates are set by [`Trace::plan`].
    ///
    /// # Errors
    /// If the attack does not support the threat model or the data, or there are too few test
    /// points.
    pub fn make(
        experiment: &Experiment,
        dataset: &Dataset,
        device: Device,
        ranks: &Ranks,
    ) -> Result<Option<Self>> {
        let Some(spec) = &experiment.train.trace else { return Ok(None) };
        let attack = Attack::make(spec)?;
        attack.supports(&experiment.threat, &dataset.task())?;
        let all = dataset.test.count() as usize;
        let points = experiment.train.trace_points.unwrap_or(DEFAULT_POINTS.min(all));
        if points > all {
            return Err(Error::new(format!(
                "train.trace_points: expected at most {all} (the number of test points), got {points}"
            )));
        }
        let examples = ranks.examples(&dataset.test, (0, all), device)?;
        Ok(Some(Self { attack, examples, points, updates: Vec::new() }))
    }

    /// Sets the updates of the trace. `at` is a list of passes per sample. For each entry, the
    /// trace has the first update that reaches it. Entries after the end of the run are ignored. By
    /// default the entries are 1, 2 and 5 times the powers of ten, and the end of the run.
    /// `updates` is the number of updates of the run. `passes` gives the passes per sample after an
    /// update, counted from 1.
    ///
    /// # Errors
    /// If the run ends before the first entry.
    pub fn plan(&mut self, at: Option<&[f64]>, updates: u64, passes: impl Fn(u64) -> f64) -> Result<()> {
        let end = passes(updates);
        let at = at.map_or_else(|| series(passes(1), end), <[f64]>::to_vec);
        self.updates = first_updates(&at, updates, passes);
        if self.updates.is_empty() {
            Err(Error::new(format!(
                "train.trace_at: the run ends after {end} passes per sample, before the first entry"
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

/// For each number of passes in `at`, the first of `updates` updates (counted from 1) that reaches
/// it.
fn first_updates(at: &[f64], updates: u64, passes: impl Fn(u64) -> f64) -> Vec<u64> {
    // A sum of passes may be smaller than the given number by a rounding error.
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
    fn the_default_series_goes_from_the_first_update_to_the_end() {
        let expected = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0];
        let got = series(2.0 * 100.0 / 60000.0, 4.0);
        assert_eq!(got.len(), expected.len(), "{got:?}");
        assert!(got.iter().zip(expected).all(|(got, expected)| (got / expected - 1.0).abs() < 1e-12));
        assert_eq!(series(2.0, 2.0), [2.0]);
        assert_eq!(series(1.0, 10.0), [1.0, 2.0, 5.0, 10.0]);
    }

    #[test]
    fn a_number_of_passes_gives_the_first_update_that_reaches_it() {
        // 0.7 passes per update, 7 in total; three times 0.7 is 2.0999999999999996.
        let first = |at: &[f64]| first_updates(at, 10, |update| 0.7 * update as f64);
        assert_eq!(first(&[0.1, 0.7, 0.8, 2.1, 7.0, 7.1]), [1, 2, 3, 10]);
        assert!(first(&[8.0]).is_empty());
    }
}
