//! Evaluations: the verdicts of attacks on every point, and caveats about them.
//!
//! `verdict` has the results and `caveat` the checks; `journal` keeps the state of an evaluation
//! on disk; `evaluator` runs attacks; `outline` has their expected cost; `shard` deals points out to
//! several processes and merges what they found; `options` and `finished` are what goes in and what
//! comes out. `setup` evaluates a run, `prediction` computes its logits, `transfer` evaluates several
//! against each other's examples. Each of these modules uses only those before it.

pub(crate) mod caveat;
pub(crate) mod evaluator;
pub mod finished;
pub(crate) mod journal;
pub mod options;
mod outline;
pub mod prediction;
pub mod setup;
pub mod shard;
pub mod transfer;
pub mod verdict;
