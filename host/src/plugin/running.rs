//! Which plugin is running. A plugin that ends the process, crashes or fails in a way that only the
//! whole program can notice is then named.

use std::io::{Write, stderr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// The calls of plugins.
struct Calls {
    /// Those under way: a call of an attack contains calls of a model.
    under_way: Vec<String>,
    /// The last one that has ended.
    last: String,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { under_way: Vec::new(), last: String::new() });

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs code of a plugin; `what` names the plugin and what is run.
pub(super) fn run<T>(what: String, code: impl FnOnce() -> T) -> T {
    struct UnderWay;
    impl Drop for UnderWay {
        fn drop(&mut self) {
            let mut calls = calls();
            if let Some(ended) = calls.under_way.pop() {
                calls.last = ended;
            }
        }
    }
    calls().under_way.push(what);
    let _under_way = UnderWay;
    code()
}

/// The plugin that is running, and what it does.
pub fn running() -> Option<String> {
    // A panic may have occurred, or the process may be ending, while another thread changes the
    // calls.
    match CALLS.try_lock() {
        Ok(calls) => calls.under_way.last().cloned(),
        Err(TryLockError::Poisoned(calls)) => calls.into_inner().under_way.last().cloned(),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The process in which the end of the process is an error; 0 for none.
static WATCHED: AtomicU32 = AtomicU32::new(0);

/// From now on, an `exit` is an error, whatever its code, until [`may_exit`] is called: the process
/// ends with exit code 1 and a message that names the plugin. (`_exit` cannot be noticed.)
pub fn must_not_exit() {
    WATCHED.store(std::process::id(), Ordering::SeqCst);
    // SAFETY: `atexit` only keeps the pointer to a function that lives as long as the program.
    // Without memory for it, an `exit` is not noticed.
    unsafe { libc::atexit(at_exit) };
}

/// The process may end.
pub fn may_exit() {
    WATCHED.store(0, Ordering::SeqCst);
}

extern "C" fn at_exit() {
    // A child process that a plugin made may end as it likes.
    if WATCHED.load(Ordering::SeqCst) != std::process::id() {
        return;
    }
    let what = match (running(), CALLS.try_lock()) {
        (Some(what), _) => format!("{what}: the plugin ended the process"),
        (None, Ok(calls)) if !calls.last.is_empty() => {
            format!("a plugin ended the process, after the call {}", calls.last)
        }
        (None, _) => "the process was ended by a library".to_owned(),
    };
    // Standard error may be closed.
    let _ = writeln!(stderr(), "error: {what}\n  fix      return an error instead of calling exit");
    // SAFETY: `_exit` ends the process at once.
    unsafe { libc::_exit(1) };
}
