//! The engine behind the `host` program.
//!
//! Each folder knows only those above it in this list. [`training`] holds the min-max loop,
//! [`evaluation`] the verdicts; [`command`] ties both to the command line.

pub mod command;
pub mod config;
pub mod data;
mod error;
pub mod evaluation;
pub mod plugin;
pub(crate) mod report;
pub mod run;
pub(crate) mod sweep;
pub mod torch;
pub mod training;
pub(crate) mod util;

pub use error::{Error, INTERRUPTED, Result};
