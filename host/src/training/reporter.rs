//! The progress output of a training run.

use crate::run::progress::{EpochMetrics, Progress, TracePoint};
use crate::util::console::{Indicator, Style, say, warn};
use std::time::Instant;

/// What a progress bar counts.
const UNIT: &str = "updates";

/// Prints the progress of a training run.
pub struct Reporter {
    style: Style,
    status: Indicator,
    started: Instant,
    first_update: u64,
    first_seconds: f64,
    updates_per_epoch: u64,
    points: usize,
}

impl Reporter {
    /// A reporter before training begins; its progress bar is hidden.
    pub fn new(style: Style) -> Self {
        Self {
            style,
            status: Indicator::of_part(style, 0, UNIT),
            started: Instant::now(),
            first_update: 0,
            first_seconds: 0.0,
            updates_per_epoch: 1,
            points: 0,
        }
    }

    /// Training begins or is resumed.
    pub fn start(&mut self, progress: &Progress, updates: u64, updates_per_epoch: u64, points: usize) {
        self.started = Instant::now();
        self.first_update = progress.update;
        self.first_seconds = progress.seconds;
        self.updates_per_epoch = updates_per_epoch;
        self.points = points;
        self.status = Indicator::new(self.style, updates, UNIT, "{msg} [{bar:30}] {percent}% {eta} left");
        self.status.begin_at(progress.update);
    }

    /// An update is done.
    pub fn advance(&self, update: u64) {
        self.status.move_to(update);
    }

    /// Whether it is time to say where the run is, where there is no bar.
    pub fn is_line_due(&self) -> bool {
        self.status.is_due()
    }

    /// The style of the output.
    pub fn style(&self) -> Style {
        self.style
    }

    /// An update is done; `(loss, correct, particles)` are the sums of the epoch so far.
    pub fn update(&self, update: u64, (loss, correct, particles): (f64, f64, f64)) {
        let epoch = (update - 1) / self.updates_per_epoch + 1;
        self.status.show(update, || {
            format!(
                "epoch {epoch} loss {:.3} accuracy {:.1} % {:.0} images/s",
                loss / particles,
                100.0 * correct / particles,
                self.images(update) / self.started.elapsed().as_secs_f64()
            )
        });
    }

    /// Number of training images used in this session; each epoch uses every image once.
    fn images(&self, update: u64) -> f64 {
        (update - self.first_update) as f64 / self.updates_per_epoch as f64 * self.points as f64
    }

    /// An epoch is done.
    pub fn epoch(&mut self, metrics: &EpochMetrics) {
        if self.style == Style::Json {
            say(serde_json::json!(metrics));
            return;
        }
        let validation = metrics
            .validation_accuracy
            .map(|accuracy| format!("  validation {:.2} %", 100.0 * accuracy))
            .unwrap_or_default();
        let probe = metrics
            .probe_accuracy
            .map(|accuracy| format!("  probe {:.2} %", 100.0 * accuracy))
            .unwrap_or_default();
        // A resumed session may complete the metrics of an epoch that an earlier session trained.
        let speed = if metrics.updates > self.first_update {
            format!("  {:.0} images/s", self.images(metrics.updates) / (metrics.seconds - self.first_seconds))
        } else {
            String::new()
        };
        let line = format!(
            "epoch {}  loss {:.4}  accuracy on the particles {:.2} %{validation}{probe}  {} passes per sample{speed}  {:.1} s",
            metrics.epoch,
            metrics.train_loss,
            100.0 * metrics.train_accuracy,
            metrics.passes_per_sample,
            metrics.seconds,
        );
        self.status.suspend(|| say(&line));
    }

    /// Prints a point of the trace.
    pub fn trace(&self, point: &TracePoint) {
        match self.style {
            Style::Json => {
                let mut event = serde_json::json!(point);
                event["event"] = "trace".into();
                say(event);
            }
            Style::Human => {
                let line = format!(
                    "{:.4} passes per sample  clean {:.2} %  {} {:.2} %  {:.1} s",
                    point.passes_per_sample,
                    100.0 * point.clean_accuracy,
                    point.attack,
                    100.0 * point.attack_accuracy,
                    point.seconds
                );
                self.status.suspend(|| say(&line));
            }
        }
    }

    /// Prints an alarm.
    pub fn alarm(&self, finding: &str) {
        match self.style {
            Style::Json => say(serde_json::json!({"event": "alarm", "finding": finding})),
            Style::Human => self.status.suspend(|| warn(finding)),
        }
    }

    /// Prints an event in JSON style only.
    pub fn event(&self, event: &serde_json::Value) {
        if self.style == Style::Json {
            say(event);
        }
    }

    /// Prints a note in human style only.
    pub fn note(&self, text: &str) {
        if self.style == Style::Human {
            self.status.suspend(|| say(text));
        }
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.status.finish();
    }
}
