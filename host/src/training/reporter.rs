//! What a user sees while a run trains.

use crate::run::progress::{EpochMetrics, Progress, TracePoint};
use crate::util::console::{Style, bar, say, warn};
use indicatif::ProgressBar;
use std::time::Instant;

/// Tells the user how training goes.
pub struct Reporter {
    style: Style,
    bar: ProgressBar,
    started: Instant,
    first_update: u64,
    first_seconds: f64,
    updates_per_epoch: u64,
    points: usize,
}

impl Reporter {
    /// A reporter that has nothing to say yet.
    pub fn new(style: Style) -> Self {
        Self {
            style,
            bar: ProgressBar::hidden(),
            started: Instant::now(),
            first_update: 0,
            first_seconds: 0.0,
            updates_per_epoch: 1,
            points: 0,
        }
    }

    /// Training begins, or goes on.
    pub fn start(&mut self, progress: &Progress, updates: u64, updates_per_epoch: u64, points: usize) {
        self.started = Instant::now();
        self.first_update = progress.update;
        self.first_seconds = progress.seconds;
        self.updates_per_epoch = updates_per_epoch;
        self.points = points;
        self.bar = bar(self.style, updates, "{msg} [{bar:30}] {percent}% {eta} left");
        self.bar.set_position(progress.update);
        self.bar.reset_eta();
    }

    /// An update is done; `(loss, correct, particles)` are the epoch's sums so far.
    pub fn update(&mut self, update: u64, (loss, correct, particles): (f64, f64, f64)) {
        let epoch = (update - 1) / self.updates_per_epoch + 1;
        self.bar.set_position(update);
        self.bar.set_message(format!(
            "epoch {epoch} loss {:.3} accuracy {:.1} % {:.0} images/s",
            loss / particles,
            100.0 * correct / particles,
            self.images(update) / self.started.elapsed().as_secs_f64()
        ));
    }

    /// Training points that this sitting has gone through, one in every epoch.
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
        // An epoch may be settled by a sitting that trained none of it.
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
        self.bar.suspend(|| say(&line));
    }

    /// A point of the trace.
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
                self.bar.suspend(|| say(&line));
            }
        }
    }

    /// Training looks wrong.
    pub fn alarm(&self, finding: &str) {
        match self.style {
            Style::Json => say(serde_json::json!({"event": "alarm", "finding": finding})),
            Style::Human => self.bar.suspend(|| warn(finding)),
        }
    }

    /// Says something to machines alone.
    pub fn event(&self, event: &serde_json::Value) {
        if self.style == Style::Json {
            say(event);
        }
    }

    /// Says something to people alone.
    pub fn note(&self, text: &str) {
        if self.style == Style::Human {
            self.bar.suspend(|| say(text));
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
