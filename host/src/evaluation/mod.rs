//! What a classifier withstands: verdicts of attacks on every point, and reasons not to trust them.

pub(crate) mod caveat;
pub(crate) mod evaluator;
pub(crate) mod journal;
pub(crate) mod verdict;
