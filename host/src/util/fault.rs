//! Faults on purpose, for tests: at some operation on files, the process ends or the disk is full.
//!
//! `DRO_FAULT=kill:COMMAND:N` kills `host COMMAND` before its N-th operation, and
//! `DRO_FAULT=full:COMMAND:N` lets the disk be full from its N-th operation on. Only builds with
//! debug assertions read the variable.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the variable asks of this process: whether it is killed, and at which operation.
static WANTED: LazyLock<Option<(bool, u64)>> = LazyLock::new(|| {
    let wanted = std::env::var("DRO_FAULT").ok()?;
    let [fault, command, number] = wanted.split(':').collect::<Vec<_>>().try_into().ok()?;
    let is_here = std::env::args_os().nth(1).is_some_and(|mine| mine.to_str() == Some(command));
    Some((fault == "kill", number.parse().ok()?)).filter(|_| is_here)
});

/// Called before an operation that a full disk refuses.
pub(super) fn before_writing() -> io::Result<()> {
    if is_due() { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
}

/// Called before an operation that a full disk allows.
pub(super) fn before_removing() {
    is_due();
}

/// Counts an operation. Returns whether the disk is to be full, or does not return.
fn is_due() -> bool {
    static DONE: AtomicU64 = AtomicU64::new(0);
    if !cfg!(debug_assertions) {
        return false;
    }
    let Some((is_killed, first)) = *WANTED else { return false };
    let number = DONE.fetch_add(1, Ordering::Relaxed) + 1;
    if is_killed && number == first {
        // SAFETY: this sends a signal to the calling process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    !is_killed && number >= first
}
