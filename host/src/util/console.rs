//! Output of the host: a progress bar on a terminal, plain lines elsewhere, JSON lines for
//! programs.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};

/// The style of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Text: a progress bar if standard error is a terminal, and plain lines.
    Human,
    /// JSON: one object per line on standard output.
    Json,
}

/// A progress bar; hidden in JSON style or if standard error is not a terminal.
pub fn bar(style: Style, length: u64, template: &str) -> ProgressBar {
    if style == Style::Json || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Prints a line on standard output. Errors are ignored, so that a closed pipe does not stop the
/// work.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a warning on standard error. Errors are ignored.
pub fn warn(text: impl Display) {
    let _ = writeln!(stderr(), "warning: {text}");
}
