//! What everything else stands on: files, and what a user sees on a terminal.

pub(crate) mod console;
pub(crate) mod files;
