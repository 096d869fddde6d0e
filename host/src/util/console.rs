//! Output of the host: a progress bar on a terminal, plain lines elsewhere, JSON lines for
//! programs.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

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
    let is_hidden = style == Style::Json || !stderr().is_terminal() || is_quiet();
    let target = if is_hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
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

/// Standard output as the process was given it, for a child that prints in its place.
///
/// # Errors
/// If the system has no more descriptors.
pub fn output() -> std::io::Result<File> {
    let copy = || stdout().as_fd().try_clone_to_owned().map(File::from);
    OUTPUT.get().map_or_else(copy, File::try_clone)
}

fn output_is_terminal() -> bool {
    OUTPUT.get().map_or_else(|| stdout().is_terminal(), IsTerminal::is_terminal)
}

/// Whether the lines of this process are left out, since another process prints the same ones.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, this process prints nothing: another one prints for both.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// This process prints again.
pub fn be_heard() {
    QUIET.store(false, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Why standard output could not be written to, since the first time.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Prints a line on standard output. An error does not stop the work: [`check_output`] reports it
/// at the end.
pub fn say(text: impl Display) {
    if is_quiet() {
        return;
    }
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
    note_line();
}

/// A word or a path as it is pasted into a shell.
pub fn quoted(word: impl Display) -> String {
    let word = word.to_string();
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+~@:,=".contains(letter);
    let is_plain = !word.is_empty() && word.chars().all(plain);
    if is_plain { word } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// Prints a warning on standard error. Errors are ignored.
pub fn warn(text: impl Display) {
    if !is_quiet() {
        let _ = writeln!(stderr(), "warning: {}", harmless(&text.to_string()));
    }
}

/// Prints an error on standard error. Errors are ignored.
pub fn report(error: impl Display) {
    if !is_quiet() {
        let _ = writeln!(stderr(), "error: {}", harmless(&error.to_string()));
    }
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

/// The longest time between two lines of progress. A step may take a while before the next line can
/// be printed: this is below the 30 seconds that are promised.
const BETWEEN_LINES: Duration = Duration::from_secs(20);

/// The variable of the environment that changes that time: a number of seconds.
const SECONDS: &str = "DRO_PROGRESS_SECONDS";

/// What the process is doing, for the line that says so when it has been silent for long.
struct Doing {
    /// The style of its output; none if it does not speak.
    style: Option<Style>,
    /// What it does.
    what: String,
    /// Since when, as far as is known.
    since: Option<Instant>,
}

static DOING: Mutex<Doing> = Mutex::new(Doing { style: None, what: String::new(), since: None });

/// How often the process looks whether it has been silent for long.
const LOOK_EVERY: Duration = Duration::from_millis(250);

fn with_doing<T>(with: impl FnOnce(&mut Doing) -> T) -> T {
    with(&mut DOING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A command begins, and speaks in this style from now on.
pub fn begin(style: Style) {
    with_doing(|doing| doing.style = Some(style));
    note("opening the data, the model and the plugins".to_owned());
}

/// What the process does, for people; none before a command has begun.
pub fn doing() -> Option<String> {
    with_doing(|doing| doing.style.map(|_| doing.what.clone())).filter(|what| !what.is_empty())
}

/// The process now does this.
fn note(what: String) {
    with_doing(|doing| (doing.what, doing.since) = (what, Some(Instant::now())));
}

/// The process now does this, which is written only if it may be said.
fn note_if_heard(what: impl FnOnce() -> String) {
    if with_doing(|doing| doing.style.is_some()) {
        note(what());
    }
}

/// A part of the work that has no steps of its own; until it is dropped.
#[must_use]
pub struct Part(String);

/// The process does this until the answer is dropped.
pub fn part(what: impl Into<String>) -> Part {
    let before = with_doing(|doing| doing.what.clone());
    note(what.into());
    Part(before)
}

impl Drop for Part {
    fn drop(&mut self) {
        note(std::mem::take(&mut self.0));
    }
}

/// The time of silence after which a line says what the process does: longer than the time between
/// two lines of work that speaks at every step, and below the 30 seconds that are promised.
fn longest_silence() -> Duration {
    let between = between_lines();
    if between.is_zero() { BETWEEN_LINES } else { between + between / 4 }
}

/// From now on a line says what the process does whenever nothing else has been said for long, where
/// the output is no terminal: also while data are read, inside long steps and in plugins.
pub fn speak_in_silence() {
    std::thread::spawn(|| {
        let longest = longest_silence();
        loop {
            std::thread::sleep(LOOK_EVERY);
            if since_last_line() >= longest {
                speak();
            }
        }
    });
}

fn speak() {
    let (style, line) = with_doing(|doing| {
        let seconds = doing.since.map_or(0, |since| since.elapsed().as_secs());
        (doing.style, format!("{}: {seconds} s so far", doing.what))
    });
    if let Some(style) = style.filter(|style| !is_seen_on_a_terminal(*style)) {
        print_progress(style, &line);
    }
}

/// Whether the output in this style is on a terminal, which has a bar and where lines would disturb.
fn is_seen_on_a_terminal(style: Style) -> bool {
    stderr().is_terminal() && (style == Style::Json || output_is_terminal())
}

/// Prints a line of progress: on standard output, or on standard error if that is for JSON.
fn print_progress(style: Style, line: &str) {
    note_line();
    match style {
        Style::Human => say(line),
        Style::Json if is_quiet() => {}
        Style::Json => drop(writeln!(stderr(), "progress: {}", harmless(line))),
    }
}

/// Prints a line of progress in the style of the command that began.
pub fn progress(line: &str) {
    print_progress(with_doing(|doing| doing.style).unwrap_or(Style::Json), line);
}

/// The time between two lines of progress.
pub fn between_lines() -> Duration {
    let given = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    given.map_or(BETWEEN_LINES, Duration::from_secs)
}

/// When the last line was printed, or first asked for.
static LAST_LINE: Mutex<Option<Instant>> = Mutex::new(None);

fn note_line() {
    if let Ok(mut last) = LAST_LINE.lock() {
        *last = Some(Instant::now());
    }
}

fn since_last_line() -> Duration {
    LAST_LINE.lock().map_or(Duration::ZERO, |mut last| last.get_or_insert_with(Instant::now).elapsed())
}

/// Where long work is: a progress bar if standard error is a terminal, and lines where standard
/// output is none. In JSON style, there is no bar, and lines go to standard error.
pub struct Indicator {
    style: Style,
    bar: ProgressBar,
    prints_lines: bool,
    between: Duration,
    /// What is counted: "points".
    unit: &'static str,
}

impl Indicator {
    /// The status of work on so many items.
    pub fn new(style: Style, length: u64, unit: &'static str, template: &str) -> Self {
        Self { bar: bar(style, length, template), ..Self::of_part(style, length, unit) }
    }

    /// The status of a part of such work: lines alone, since the whole may have a bar.
    pub fn of_part(style: Style, length: u64, unit: &'static str) -> Self {
        Self {
            style,
            bar: ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden()),
            prints_lines: !is_seen_on_a_terminal(style) && !is_quiet(),
            between: between_lines(),
            unit,
        }
    }

    /// Changes the number of items.
    pub fn set_length(&self, length: u64) {
        self.bar.set_length(length);
    }

    /// Counts the items before this position as past ones, for the time that is left.
    pub fn begin_at(&self, position: u64) {
        self.move_to(position);
        self.bar.reset_eta();
    }

    /// Where the work is.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Moves the bar alone.
    pub fn move_to(&self, position: u64) {
        self.bar.set_position(position);
        note_if_heard(|| self.at(position));
    }

    /// A position, for people.
    fn at(&self, position: u64) -> String {
        format!("{position} of {} {}", self.bar.length().unwrap_or_default(), self.unit)
    }

    /// Whether it is time for a line.
    pub fn is_due(&self) -> bool {
        self.prints_lines && since_last_line() >= self.between
    }

    /// The work is at this position. The message is made only if it is shown.
    pub fn show(&self, position: u64, message: impl FnOnce() -> String) {
        self.bar.set_position(position);
        let is_due = self.is_due();
        if self.bar.is_hidden() && !is_due {
            return note_if_heard(|| format!("{}, {}", message(), self.at(position)));
        }
        let message = harmless(&message()).into_owned();
        if is_due {
            let line = format!("{message}, {}", self.at(position));
            self.bar.suspend(|| print_progress(self.style, &line));
            note(line);
        }
        self.bar.set_message(message);
    }

    /// Prints something while the bar is out of the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_once_the_time_between_lines_is_over_where_output_is_no_terminal() {
        assert!(BETWEEN_LINES < Duration::from_secs(30));
        let status = |prints_lines, between| Indicator {
            prints_lines,
            between,
            ..Indicator::of_part(Style::Human, 9, "points")
        };
        assert!(status(true, Duration::ZERO).is_due());
        assert!(!status(true, Duration::MAX).is_due());
        assert!(!status(false, Duration::ZERO).is_due());
    }

    #[test]
    fn texts_are_printed_without_characters_that_a_terminal_obeys() {
        assert_eq!(harmless("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(harmless("\u{1b}]0;title\u{7}\r\u{9b}2J\u{202e}"), "�]0;title���2J�");
    }

    #[test]
    fn words_are_quoted_for_a_shell_where_they_must_be() {
        assert_eq!(quoted("runs/a,b=1"), "runs/a,b=1");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's [x"), r"'it'\''s [x'");
        assert_eq!(quoted(""), "''");
    }
}
