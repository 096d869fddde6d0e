//! Output of the host: a progress bar on a terminal, plain lines elsewhere, JSON lines for
//! programs.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
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
    let Ok(output) = stdout().as_fd().try_clone_to_owned() else { return };
    // SAFETY: dup2 replaces a standard stream, which no object in this process owns.
    if unsafe { libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) } >= 0 {
        let _ = OUTPUT.set(File::from(output));
    }
}

/// Why standard output could not be written to, since the first time.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Prints a line on standard output. An error does not stop the work: [`check_output`] reports it
/// at the end.
pub fn say(text: impl Display) {
    let line = format!("{}\n", harmless(&text.to_string()));
    let written = match OUTPUT.get() {
        Some(mut output) => output.write_all(line.as_bytes()),
        None => stdout().write_all(line.as_bytes()),
    };
    if let Err(why) = written {
        // The reader of a closed pipe wants no more.
        if why.kind() != ErrorKind::BrokenPipe {
            FAILURE.get_or_init(|| why.to_string());
        }
    }
}

/// Prints a warning on standard error. Errors are ignored.
pub fn warn(text: impl Display) {
    let _ = writeln!(stderr(), "warning: {}", harmless(&text.to_string()));
}

/// Prints an error on standard error. Errors are ignored.
pub fn report(error: impl Display) {
    let _ = writeln!(stderr(), "error: {}", harmless(&error.to_string()));
}

/// # Errors
/// If a line of standard output was lost.
pub fn check_output() -> Result<()> {
    match FAILURE.get() {
        None => Ok(()),
        Some(why) => {
            Err(Error::new(format!("cannot write to standard output: {why}; lines of it are lost"))
                .on_the_way())
        }
    }
}

/// A text without characters that a terminal obeys. Texts of plugins and of files of other people
/// may contain them.
fn harmless(text: &str) -> Cow<'_, str> {
    // Besides control characters, those that reverse the direction of a text.
    let obeyed = |letter: char| {
        (letter.is_control() && letter != '\n' && letter != '\t')
            || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(obeyed) { text.replace(obeyed, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_printed_without_characters_that_a_terminal_obeys() {
        assert_eq!(harmless("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(harmless("\u{1b}]0;title\u{7}\r\u{9b}2J\u{202e}"), "�]0;title���2J�");
    }
}
