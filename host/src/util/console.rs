//! Output of the host: a progress bar on a terminal, plain lines elsewhere, JSON lines for
//! programs.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::fs::File;
use std::io::{IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::sync::OnceLock;

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

/// Standard output as the process was given it.
static OUTPUT: OnceLock<File> = OnceLock::new();

/// Keeps standard output for the host's own lines. What a plugin or a library prints from now on
/// goes to standard error, so that it cannot mix with JSON.
pub fn keep_output() {
    let Ok(output) = std::io::stdout().as_fd().try_clone_to_owned() else { return };
    // SAFETY: dup2 replaces a standard stream, which no object in this process owns.
    if unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) } >= 0 {
        let _ = OUTPUT.set(File::from(output));
    }
}

/// Prints a line on standard output. Errors are ignored, so that a closed pipe does not stop the
/// work.
pub fn say(text: impl Display) {
    let line = format!("{text}\n");
    let _ = match OUTPUT.get() {
        Some(mut output) => output.write_all(line.as_bytes()),
        None => std::io::stdout().write_all(line.as_bytes()),
    };
}

/// Prints a warning on standard error. Errors are ignored.
pub fn warn(text: impl Display) {
    let _ = writeln!(stderr(), "warning: {text}");
}
