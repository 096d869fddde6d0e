use std::fmt;
use std::path::{self, Path, PathBuf};
use std::sync::LazyLock;

/// An error for the user: one line with what happened, then labelled details and a fix.
#[derive(Debug)]
pub struct Error(Box<Contents>);

#[derive(Debug)]
struct Contents {
    message: String,
    notes: Vec<(&'static str, String)>,
    exit_code: u8,
}

/// The working directory at the beginning: a plugin may change it.
static WORKING_FOLDER: LazyLock<PathBuf> = LazyLock::new(|| std::env::current_dir().unwrap_or_default());

/// A path from the working directory at the beginning, as an absolute one.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    let path = WORKING_FOLDER.join(path);
    path::absolute(&path).unwrap_or(path)
}

/// A path as it is shown to people: as one from the working directory, if it is inside.
pub(crate) fn shown(path: &Path) -> path::Display<'_> {
    let inside = path.strip_prefix(&*WORKING_FOLDER).ok().filter(|inside| !inside.as_os_str().is_empty());
    inside.unwrap_or(path).display()
}

/// The label of the fix.
const FIX: &str = "fix";

/// Exit code of a process that was stopped by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// The result type of the host.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that is found before work starts (exit code 2).
    pub fn new(message: impl fmt::Display) -> Self {
        Self(Box::new(Contents { message: message.to_string(), notes: Vec::new(), exit_code: 2 }))
    }

    /// An error about a file: `cannot VERB PATH: why`.
    pub fn file(verb: &str, path: &Path, why: impl fmt::Display) -> Self {
        Self::new(format!("cannot {verb} {}: {why}", shown(path)))
    }

    /// Adds a labelled detail.
    pub fn note(mut self, label: &'static str, text: impl fmt::Display) -> Self {
        self.0.notes.push((label, text.to_string()));
        self
    }

    /// Adds a fix: what the user can do.
    pub fn fix(self, text: impl fmt::Display) -> Self {
        self.note(FIX, text)
    }

    /// Marks an error that occurred after work has started (exit code 1).
    pub fn on_the_way(mut self) -> Self {
        self.0.exit_code = 1;
        self
    }

    /// Marks an interruption by the user (exit code 130).
    pub fn interrupted(mut self) -> Self {
        self.0.exit_code = INTERRUPTED;
        self
    }

    /// Whether the error is an interruption by the user.
    pub fn is_interrupted(&self) -> bool {
        self.0.exit_code == INTERRUPTED
    }

    /// What happened, in one line.
    pub fn first_line(&self) -> &str {
        self.0.message.lines().next().unwrap_or_default()
    }

    /// The fix, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.0.notes.iter().find_map(|(label, text)| (*label == FIX).then_some(text.as_str()))
    }

    /// The exit code of the process: 2 if work has not started, 1 if it has, 130 after an
    /// interruption by the user.
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.message)?;
        for (label, text) in &self.0.notes {
            write!(formatter, "\n  {label:<8} {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::new(plugin_api::first_line(&error.to_string())).on_the_way()
    }
}
