use std::fmt;

/// The reason why a plugin's method failed: one message for the user.
///
/// The message states the problem, the expected value and the actual value; the host adds the
/// plugin's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// The result of plugin methods.
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

/// The readable part of a libtorch message, without the kilobytes of C++ stack frames after it.
pub fn first_line(message: &str) -> &str {
    // A panic of tch quotes the error, line feeds escaped: `… value: Torch("message\nframes…")`.
    let message = message.split_once("Torch(\"").map_or(message, |(_, quoted)| quoted).trim_start();
    let message = message.strip_prefix("Internal torch error: ").unwrap_or(message);
    let line = message.lines().next().unwrap_or_default();
    line.split("\\n").next().unwrap_or_default()
}

/// The largest number of characters of a message from the other side of the boundary.
const MOST_CHARACTERS: usize = 1000;

/// A message of the other side in one line: its first line, without control characters, which a
/// terminal might obey, and cut if it is very long.
pub(crate) fn in_one_line(message: &str) -> String {
    let shown = |letter: char| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter };
    let line = first_line(message).trim_end();
    let cut = if line.chars().nth(MOST_CHARACTERS).is_some() { " […]" } else { "" };
    line.chars().take(MOST_CHARACTERS).map(shown).collect::<String>() + cut
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn a_message_of_the_other_side_is_one_line_of_limited_length_without_control_characters() {
        assert_eq!(in_one_line("expected 3, got 4\nand more"), "expected 3, got 4");
        assert_eq!(in_one_line("\u{1b}[31mred\u{9b}0m\u{7}"), "\u{fffd}[31mred\u{fffd}0m\u{fffd}");
        let long = in_one_line(&"é".repeat(1_000_000));
        assert_eq!(long, "é".repeat(MOST_CHARACTERS) + " […]");
    }

    #[test]
    fn errors_and_panics_of_libtorch_are_shown_without_stack_frames() {
        let (two, three) = (Tensor::from_slice(&[1.0, 2.0]), Tensor::from_slice(&[1.0, 2.0, 3.0]));
        let message = Error::from(two.f_add(&three).expect_err("refused")).to_string();
        assert!(message.starts_with("The size of tensor a (2) must match"), "{message}");
        let panic = std::panic::catch_unwind(|| &two + &three).expect_err("panics");
        let quoted = panic.downcast_ref::<String>().expect("a message");
        assert!(quoted.len() > 2 * message.len(), "frames follow: {quoted}");
        assert_eq!(first_line(quoted), message);
    }
}
