//! The engine behind the `host` program.
//!
//! [`training`] holds the min-max loop, [`evaluation`] the verdicts; [`plugin`] is how both
//! talk to plugins. [`command`] ties them to the command line.

pub mod alarm;
pub mod augmentation;
mod average;
pub mod checkpoint;
pub mod cli;
pub mod command;
pub mod console;
mod convolution;
pub mod data;
pub mod device;
pub mod doubt;
mod error;
pub mod evaluation;
pub mod experiment;
pub mod files;
pub mod journal;
pub mod objective;
pub mod optimizer;
pub mod plugin;
pub mod precision;
pub mod progress;
pub mod random;
pub mod report;
pub mod run;
pub mod schedule;
pub mod store;
pub mod suite;
pub mod sweep;
pub mod tensorboard;
pub mod tensors;
pub mod trace;
pub mod training;
pub mod watch;

pub use error::{Error, INTERRUPTED, Result};
