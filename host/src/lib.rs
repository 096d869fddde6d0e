//! The engine behind the `host` program.

pub mod data;
mod error;
mod files;

pub use error::{Error, Result};
