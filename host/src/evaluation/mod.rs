//! Evaluations: the verdicts of attacks on every point, and caveats about them.
//!
//! `verdict` has the results and `caveat` the checks; `journal` keeps the state of an evaluation
//! on disk; `evaluator` runs attacks; `outline` has their expected cost. `setup` evaluates a run,
//! `transfer` several against each other's examples. Each of these modules uses only those before it.

pub(crate) mod caveat;
pub(crate) mod evaluator;
pub(crate) mod journal;
mod outline;
pub mod setup;
pub mod transfer;
pub mod verdict;
