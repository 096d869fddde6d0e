//! Common functions for files and output.

pub(crate) mod console;
pub(crate) mod files;
