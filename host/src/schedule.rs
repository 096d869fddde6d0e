//! The learning rate over a run.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Not at all.
    Constant,
    /// By a factor of 10 after one half and after three quarters of the run.
    Step,
    /// Along half a cosine, to zero at the end of the run.
    Cosine,
}

/// The learning rate at every update.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// How it falls.
    pub shape: Shape,
    /// The learning rate after warm-up and before it falls.
    pub peak: f64,
    /// Updates over which it rises linearly from 0.
    pub warmup_updates: u64,
    /// Updates of the whole run.
    pub updates: u64,
}

impl Schedule {
    /// The learning rate of update number `update`, counted from 0.
    pub fn learning_rate(&self, update: u64) -> f64 {
        let done = update as f64 / self.updates.max(1) as f64;
        let factor = match self.shape {
            Shape::Constant => 1.0,
            Shape::Step => match done {
                done if done >= 0.75 => 0.01,
                done if done >= 0.5 => 0.1,
                _ => 1.0,
            },
            Shape::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        };
        let warmup = ((update + 1) as f64 / (self.warmup_updates + 1) as f64).min(1.0);
        self.peak * factor * warmup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup_updates: u64) -> Vec<f64> {
        let schedule = Schedule { shape, peak: 2.0, warmup_updates, updates: 4 };
        (0..4).map(|update| schedule.learning_rate(update)).collect()
    }

    #[test]
    fn shapes_fall_as_described() {
        assert_eq!(rates(Shape::Constant, 0), [2.0; 4]);
        assert_eq!(rates(Shape::Step, 0), [2.0, 2.0, 0.2, 0.02]);
        let cosine = rates(Shape::Cosine, 0);
        let half = 0.5f64.sqrt();
        for (got, expected) in cosine.iter().zip([2.0, 1.0 + half, 1.0, 1.0 - half]) {
            assert!((got - expected).abs() < 1e-12, "got {got}, expected {expected}");
        }
    }

    #[test]
    fn warm_up_rises_linearly() {
        assert_eq!(rates(Shape::Constant, 3), [0.5, 1.0, 1.5, 2.0]);
    }
}
