//! What a user sees while the host works: bars on a terminal, plain lines otherwise, JSON
//! lines for machines.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};

/// How to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people: a bar if standard error is a terminal, lines otherwise.
    Human,
    /// For machines: one JSON object a line on standard output.
    Json,
}

/// A progress bar where it can be seen.
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

/// Prints a line on standard output. That nobody reads it any more is no reason to stop.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Warns about something that the software recovers from by itself.
pub fn warn(text: impl Display) {
    let _ = writeln!(stderr(), "warning: {text}");
}
