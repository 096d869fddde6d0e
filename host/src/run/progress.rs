//! The progress of a run, and its measurements.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The progress of a run at a checkpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub update: u64,
    /// Steps the optimiser took.
    pub optimizer_steps: u64,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
    /// Seconds of these in which the first process waited for sums of gradients over all processes.
    #[serde(default)]
    pub communication_seconds: f64,
    /// Sums of the unfinished epoch: loss, correct particles, particles.
    pub tally: (f64, f64, f64),
    /// Sums of the sampler's figures in the unfinished epoch, and the particles they were added up
    /// over.
    #[serde(default)]
    pub figures: (Vec<f64>, f64),
    /// Sums of the unfinished epoch, if gradients are shortened.
    #[serde(default)]
    pub gradients: GradientSums,
    /// The finished epochs.
    pub epochs: Vec<EpochMetrics>,
    /// The points of the trace.
    #[serde(default)]
    pub trace: Vec<TracePoint>,
}

/// Sums over steps of the weights whose gradients may be shortened (`train.clip_gradient`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GradientSums {
    /// The number of steps.
    pub steps: f64,
    /// The lengths of their gradients before that, all weights together.
    pub lengths: f64,
    /// The longest of them.
    pub longest: f64,
    /// The number of steps whose gradient was shortened.
    pub shortened: f64,
}

impl GradientSums {
    /// The figures of an epoch; none without steps.
    pub(crate) fn metrics(&self) -> Option<GradientMetrics> {
        let Self { steps, lengths, longest, shortened } = *self;
        (steps > 0.0).then(|| GradientMetrics {
            mean: lengths / steps,
            longest,
            shortened: shortened / steps,
        })
    }
}

/// One line of `trace.jsonl`: accuracies of the weights during training, and the cost so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TracePoint {
    /// Updates since the run began: minibatches, however often each is replayed.
    pub updates: u64,
    /// Steps the optimiser took: backward passes of a minibatch through the weights.
    pub optimizer_steps: u64,
    /// Passes (one forward and backward of one sample) of training per training point.
    pub passes_per_sample: f64,
    /// Seconds of training, without those of the trace.
    pub seconds: f64,
    /// Accuracy on the natural test points.
    pub clean_accuracy: f64,
    /// Accuracy on the test points against the attack.
    pub attack_accuracy: f64,
    /// The attack, as written.
    pub attack: String,
    /// Number of test points.
    pub points: usize,
}

impl Progress {
    /// Refuses progress that a run of so many epochs, each of so many updates, cannot have made at
    /// this update.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn fits(&self, at: u64, epochs: usize, updates_per_epoch: u64) -> Result<()> {
        let refused = |what: &str, expected: u64, got: u64| {
            Err(Error::new(format!(
                "the checkpoint of update {at} is not of this run: {what}: expected {expected}, got {got}"
            ))
            .fix("restore the run's folder from a copy, or train anew into another folder"))
        };
        let all = epochs as u64 * updates_per_epoch;
        if self.update != at {
            return refused("its number of updates", at, self.update);
        }
        if at > all {
            return refused("its number of updates, at most", all, at);
        }
        if self.epochs.len() as u64 != at / updates_per_epoch {
            return refused("its number of epochs", at / updates_per_epoch, self.epochs.len() as u64);
        }
        for (epoch, number) in self.epochs.iter().zip(1u64..) {
            if epoch.updates != number * updates_per_epoch {
                return refused(
                    &format!("updates of epoch {number}"),
                    number * updates_per_epoch,
                    epoch.updates,
                );
            }
        }
        match self.trace.iter().find(|point| point.updates > at) {
            Some(point) => refused("updates of a point of its trace, at most", at, point.updates),
            None => Ok(()),
        }
    }

    /// Whether patience ended the run before its last epoch.
    pub fn stopped_early(&self) -> bool {
        self.epochs.last().is_some_and(|epoch| epoch.stopped_early)
    }
}

/// Whether a run of `all` epochs is finished with these.
pub fn is_trained(epochs: &[EpochMetrics], all: usize) -> bool {
    epochs.len() == all || epochs.last().is_some_and(|epoch| epoch.stopped_early)
}

/// The epoch that scored best; the first of equals.
pub fn best_epoch(epochs: &[EpochMetrics]) -> Option<&EpochMetrics> {
    epochs.iter().reduce(|best, epoch| if epoch.score() > best.score() { epoch } else { best })
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// Counted from 1.
    pub epoch: usize,
    /// Updates since the run began.
    pub updates: u64,
    /// Learning rate of the epoch's last update.
    pub learning_rate: f64,
    /// Mean over the particles of what the weights descended on (`train.objective`).
    pub train_loss: f64,
    /// Share of those particles classified correctly: accuracy against the training adversary.
    pub train_accuracy: f64,
    /// The sampler's figures, such as the share of accepted proposals: means over particles and
    /// visits. Absent if it has none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub sampler: BTreeMap<String, f64>,
    /// The gradients of the weights before they are shortened. Absent without `train.clip_gradient`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gradient: Option<GradientMetrics>,
    /// Where the stored particles are between natural examples and the law, if that is measured in
    /// this epoch (`train.diagnose_every`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub law: Option<LawMetrics>,
    /// Accuracy on the natural validation points; none were held out if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_accuracy: Option<f64>,
    /// Accuracy on the validation points against the probe; there is none if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe_accuracy: Option<f64>,
    /// Passes of all validation points that the score of this epoch took: half a pass for the
    /// forward of each, and those of the probe. Not part of the cost of training. Absent without
    /// such points.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_passes: Option<f64>,
    /// Passes that renewing the running statistics of averaged weights took at the end of the
    /// epoch. Not part of the cost of training. Absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statistics_passes: Option<f64>,
    /// Signs that training has failed. Absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub alarms: Vec<String>,
    /// Whether patience (`train.patience`) ends the run here, before its last epoch. Absent if not.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopped_early: bool,
    /// Passes (one forward and backward of one sample) per training point since the run began.
    pub passes_per_sample: u64,
    /// Seconds of training since the run began.
    pub seconds: f64,
    /// Seconds of these in which the first process waited for sums of gradients over all processes.
    /// Absent if one process trained alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub communication_seconds: Option<f64>,
    /// The most memory that the first process has had resident so far, of all its sessions, in MiB;
    /// without that of a GPU. Absent where the system does not say (`/proc/self/status`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_memory: Option<u64>,
}

/// Lengths of the gradients of the weights in an epoch: Euclidean, of all weights together, before
/// they are shortened.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GradientMetrics {
    /// The mean.
    pub mean: f64,
    /// The longest.
    pub longest: f64,
    /// The share of the steps whose gradient was shortened.
    pub shortened: f64,
}

/// Mean losses of some training points at the present weights in evaluation mode, and where their
/// particles are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LawMetrics {
    /// Number of points.
    pub points: usize,
    /// Radius of the ball at the end of the epoch: it grows in a warm-up.
    pub epsilon: f64,
    /// Mean loss at the natural examples.
    pub natural: f64,
    /// Mean loss at uniform draws from the box, one for each point.
    pub uniform: f64,
    /// Mean loss at the stored particles.
    pub stored: f64,
    /// Mean distance of the particles.
    pub distance: f64,
    /// Share of their coordinates that is exactly on a face of the box; an exact draw from a law has
    /// none.
    pub on_faces: f64,
}

impl EpochMetrics {
    /// The score by which weights are selected: accuracy on the validation points, against the
    /// probe if there is one, clean accuracy otherwise.
    pub fn score(&self) -> f64 {
        self.probe_accuracy.or(self.validation_accuracy).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Progress after two epochs of three updates and one update more.
    fn progress(change: impl FnOnce(&mut Value)) -> Progress {
        let epoch = |epoch: u64| {
            json!({
                "epoch": epoch, "updates": 3 * epoch, "learning_rate": 0.1, "train_loss": 1.0,
                "train_accuracy": 0.5, "passes_per_sample": 2, "seconds": 3.0,
            })
        };
        let mut progress = json!({
            "update": 7, "optimizer_steps": 7, "seconds": 1.0, "tally": [0.0, 0.0, 0.0],
            "epochs": [epoch(1), epoch(2)],
        });
        change(&mut progress);
        serde_json::from_value(progress).expect("progress")
    }

    #[test]
    fn progress_that_a_run_cannot_have_made_is_refused() {
        progress(|_| {}).fits(7, 3, 3).expect("fits");
        let refusal = |progress: Progress, at: u64, epochs: usize, updates_per_epoch: u64| {
            progress.fits(at, epochs, updates_per_epoch).expect_err("refused").to_string()
        };
        let whole = || progress(|_| {});
        assert!(refusal(whole(), 6, 3, 3).contains("number of updates: expected 6, got 7"));
        assert!(refusal(whole(), 7, 2, 3).contains("number of updates, at most: expected 6, got 7"));
        assert!(refusal(whole(), 7, 3, 4).contains("number of epochs: expected 1, got 2"));
        let one_epoch = progress(|progress| _ = progress["epochs"].as_array_mut().expect("a list").pop());
        assert!(refusal(one_epoch, 7, 3, 3).contains("number of epochs: expected 2, got 1"));
        let moved = progress(|progress| progress["epochs"][1]["updates"] = 5.into());
        assert!(refusal(moved, 7, 3, 3).contains("updates of epoch 2: expected 6, got 5"));
    }
}
