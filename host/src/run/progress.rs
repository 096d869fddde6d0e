//! What a run had got to, and what it measured on the way.

use serde::{Deserialize, Serialize};

/// What a run had got to at a checkpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Updates done.
    pub update: u64,
    /// Steps the optimiser took.
    pub optimizer_steps: u64,
    /// Seconds of training, over all sittings.
    pub seconds: f64,
    /// What the unfinished epoch has added up: loss, correct particles, particles.
    pub tally: (f64, f64, f64),
    /// The finished epochs.
    pub epochs: Vec<EpochMetrics>,
    /// What was traced.
    #[serde(default)]
    pub trace: Vec<TracePoint>,
}

/// One line of `trace.jsonl`: what the weights were worth in the middle of training, and what
/// they had cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TracePoint {
    /// Updates since the run began: minibatches, however often each is replayed.
    pub updates: u64,
    /// Steps the optimiser took: backward passes of a minibatch through the weights.
    pub optimizer_steps: u64,
    /// Passes (one forward and backward of one sample) per training point; training's alone.
    pub passes_per_sample: f64,
    /// Seconds of training; the trace's own are not counted.
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
    /// Whether the run has ended before its last epoch, for want of a better score.
    pub fn stopped_early(&self) -> bool {
        self.epochs.last().is_some_and(|epoch| epoch.stopped_early)
    }
}

/// Whether a run that was to have so many epochs is at its end with these.
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
    /// Accuracy on the natural validation points; none were held out if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_accuracy: Option<f64>,
    /// Accuracy on the validation points against the probe; there is none if absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe_accuracy: Option<f64>,
    /// Passes that scoring this epoch took, all validation points together: a forward of each, half
    /// a pass, and the probe's. Not part of training's cost. Absent if there are no such points.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation_passes: Option<f64>,
    /// Passes that the epoch's last look of the averaged weights at training particles took, for
    /// their batch normalisation's statistics; not part of training's cost. Absent if none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statistics_passes: Option<f64>,
    /// What training looks like, if it looks wrong. Absent otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub alarms: Vec<String>,
    /// The run ends here, before its last epoch: no epoch scored better for as long as
    /// `train.patience` says. Absent otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopped_early: bool,
    /// Passes (one forward and backward of one sample) per training point since the run began.
    pub passes_per_sample: u64,
    /// Seconds of training since the run began.
    pub seconds: f64,
}

impl EpochMetrics {
    /// What weights are selected by: accuracy against the probe, or else clean accuracy, on
    /// the validation points.
    pub fn score(&self) -> f64 {
        self.probe_accuracy.or(self.validation_accuracy).unwrap_or(0.0)
    }
}
