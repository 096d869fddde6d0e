//! Whether this process moves: what other processes that wait for it look at. Passes of the network
//! count, and so does work on files, part by part: what takes long is not taken for what hangs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static STEPS: AtomicU64 = AtomicU64::new(0);

/// Whether this process waits for another one.
pub static WAITS: AtomicBool = AtomicBool::new(false);

/// This process has done a piece of its work.
pub fn beat() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// The number of pieces of work so far, and whether this process waits for another one.
pub fn read() -> (u64, bool) {
    (STEPS.load(Ordering::Relaxed), WAITS.load(Ordering::Relaxed))
}

/// Waits for another process.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    struct Waiting;
    impl Drop for Waiting {
        fn drop(&mut self) {
            WAITS.store(false, Ordering::Relaxed);
            beat();
        }
    }
    WAITS.store(true, Ordering::Relaxed);
    let _waiting = Waiting;
    wait()
}
