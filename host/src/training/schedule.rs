//! The schedule of the learning rate.

use crate::config::{MILESTONES, PEAK_AT, STEP_FACTOR, Shape, Train};

/// The learning rate at every update.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The shape of the schedule.
    pub shape: Shape,
    /// The highest learning rate.
    pub peak: f64,
    /// Shares of the run, increasing, at which [`Shape::Step`] falls.
    pub milestones: Vec<f64>,
    /// Factor by which [`Shape::Step`] multiplies the learning rate at each milestone.
    pub step_factor: f64,
    /// Share of the run, above 0 and below 1, at which [`Shape::OneCycle`] has its peak.
    pub peak_at: f64,
    /// Number of warm-up updates, over which the learning rate rises linearly from 0. 0 with
    /// [`Shape::OneCycle`].
    pub warmup_updates: u64,
    /// Number of updates of the whole run.
    pub updates: u64,
}

impl Schedule {
    /// The schedule of a run with this number of updates per epoch.
    pub fn of(train: &Train, updates_per_epoch: usize) -> Self {
        Self {
            shape: train.schedule,
            peak: train.learning_rate,
            milestones: train.milestones.clone().unwrap_or_else(|| MILESTONES.into()),
            step_factor: train.step_factor.unwrap_or(STEP_FACTOR),
            peak_at: train.peak_at.unwrap_or(PEAK_AT),
            warmup_updates: (train.warmup_epochs * updates_per_epoch as f64).round() as u64,
            updates: (train.epochs * updates_per_epoch) as u64,
        }
    }

    /// The learning rate of update number `update`, counted from 0.
    pub fn learning_rate(&self, update: u64) -> f64 {
        let done = update as f64 / self.updates.max(1) as f64;
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Step => {
                let passed = self.milestones.iter().filter(|milestone| done >= **milestone).count();
                self.step_factor.powi(passed as i32)
            }
            Shape::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
            // The learning rate is zero one update before the first and one after the last, so that
            // no update is wasted.
            Shape::OneCycle => {
                let share = (update + 1) as f64 / (self.updates + 1) as f64;
                (share / self.peak_at).min((1.0 - share) / (1.0 - self.peak_at))
            }
        };
        let warmup = ((update + 1) as f64 / (self.warmup_updates + 1) as f64).min(1.0);
        self.peak * factor * warmup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(shape: Shape, updates: u64) -> Schedule {
        Schedule {
            shape,
            peak: 2.0,
            milestones: MILESTONES.into(),
            step_factor: STEP_FACTOR,
            peak_at: PEAK_AT,
            warmup_updates: 0,
            updates,
        }
    }

    #[track_caller]
    fn assert_rates(schedule: &Schedule, expected: &[f64]) {
        let got: Vec<_> = (0..schedule.updates).map(|update| schedule.learning_rate(update)).collect();
        assert_eq!(got.len(), expected.len());
        let near = |(got, expected): (&f64, &f64)| (got - expected).abs() < 1e-12;
        assert!(got.iter().zip(expected).all(near), "got {got:?}, expected {expected:?}");
    }

    #[test]
    fn every_shape_has_the_learning_rates_computed_by_hand() {
        assert_rates(&schedule(Shape::Constant, 4), &[2.0; 4]);
        assert_rates(&schedule(Shape::Step, 4), &[2.0, 2.0, 0.2, 0.02]);
        let half = 0.5f64.sqrt();
        assert_rates(&schedule(Shape::Cosine, 4), &[2.0, 1.0 + half, 1.0, 1.0 - half]);
        // Shares of the run: 0.2, 0.4 (the peak), 0.6 and 0.8.
        assert_rates(&schedule(Shape::OneCycle, 4), &[1.0, 2.0, 4.0 / 3.0, 2.0 / 3.0]);
    }

    #[test]
    fn milestones_and_peak_can_be_chosen() {
        let milestones = vec![0.1, 0.8];
        let step = Schedule { milestones, step_factor: 0.5, ..schedule(Shape::Step, 10) };
        assert_rates(&step, &[2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]);
        let late = Schedule { peak_at: 0.75, ..schedule(Shape::OneCycle, 3) };
        assert_rates(&late, &[2.0 / 3.0, 4.0 / 3.0, 2.0]);
    }

    #[test]
    fn warm_up_rises_linearly() {
        let warm = Schedule { warmup_updates: 3, ..schedule(Shape::Constant, 4) };
        assert_rates(&warm, &[0.5, 1.0, 1.5, 2.0]);
    }
}
