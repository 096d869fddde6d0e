//! A user's wish to stop.
//!
//! Signals belong to the process, so what is done about them does, too. Before the work has begun, and
//! in commands that keep nothing of unfinished work, a stop ends the process at once. From [`heed`] on
//! it sets a flag, at which the work looks at least every two seconds.

use crate::util::console::warn;
use crate::{Error, INTERRUPTED, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static HEEDED: AtomicBool = AtomicBool::new(false);

/// A flag that is never set: of work that nothing stops.
pub(crate) static NEVER: AtomicBool = AtomicBool::new(false);

/// From now on the work looks at the flag and keeps what it has.
pub(crate) fn heed() {
    HEEDED.store(true, Ordering::Relaxed);
}

/// Whether the work looks at the flag.
pub(crate) fn is_heeded() -> bool {
    HEEDED.load(Ordering::Relaxed)
}

/// An error that is an interruption if the user wants to stop.
///
/// # Errors
/// If so.
pub(crate) fn refuse_if_stopped(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
}

/// The error of an interruption of work that can be continued.
pub(crate) fn interrupted() -> Error {
    Error::new("interrupted; the same command goes on from here").interrupted()
}

/// Ends the process at once as one that was stopped, with a warning.
pub(crate) fn end(why: &str) -> ! {
    warn(why);
    // SAFETY: `_exit` ends the process without running anything else of it.
    unsafe { libc::_exit(INTERRUPTED.into()) }
}
