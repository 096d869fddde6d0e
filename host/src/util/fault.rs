//! Faults on purpose, for tests: at some operation on files, the process ends or the disk is full.
//!
//! `DRO_FAULT=kill:COMMAND:N` kills `host COMMAND` before its N-th operation, and
//! `DRO_FAULT=full:COMMAND:N` lets the disk be full from its N-th operation on. With
//! `DRO_FAULT=room:COMMAND:N` a disk seems to have N free bytes, and with `DRO_FAULT=slow:COMMAND:N`
//! each operation takes N milliseconds longer. Only builds with debug assertions read the variable.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Full,
    Room,
    Slow,
}

/// What the variable asks of this process, and its number.
static WANTED: LazyLock<Option<(Fault, u64)>> = LazyLock::new(|| {
    let wanted = std::env::var("DRO_FAULT").ok()?;
    let [fault, command, number] = wanted.split(':').collect::<Vec<_>>().try_into().ok()?;
    let is_here = std::env::args_os().nth(1).is_some_and(|mine| mine.to_str() == Some(command));
    let fault = match fault {
        "kill" => Fault::Kill,
        "room" => Fault::Room,
        "slow" => Fault::Slow,
        _ => Fault::Full,
    };
    Some((fault, number.parse().ok()?)).filter(|_| is_here)
});

/// The free bytes that a disk is to seem to have.
pub(super) fn room() -> Option<u64> {
    let wanted = if cfg!(debug_assertions) { *WANTED } else { None };
    wanted.filter(|(fault, _)| *fault == Fault::Room).map(|(_, bytes)| bytes)
}

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
    let Some((fault, first)) = *WANTED else { return false };
    if fault == Fault::Slow {
        std::thread::sleep(Duration::from_millis(first));
        return false;
    }
    let is_killed = fault == Fault::Kill;
    let number = DONE.fetch_add(1, Ordering::Relaxed) + 1;
    if is_killed && number == first {
        // SAFETY: this sends a signal to the calling process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    fault == Fault::Full && number >= first
}
