use std::fmt;

/// Why a plugin could not do what it was asked: one message for the user.
///
/// Say what happened, what was expected and what was got; the host adds the plugin's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// What plugin methods return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this message.
    pub fn new(message: impl fmt::Display) -> Self {
        Self(message.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self(first_line(&error.to_string()).to_owned())
    }
}

/// The part of a libtorch message that is meant for people: kilobytes of C++ frames follow it.
pub fn first_line(message: &str) -> &str {
    let message = message.trim_start();
    let message = message.strip_prefix("Internal torch error: ").unwrap_or(message);
    message.lines().next().unwrap_or_default()
}
