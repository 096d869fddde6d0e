//! Which plugin is running. A plugin that ends the process, crashes or fails in a way that only the
//! whole program can notice is then named.

use std::ffi::{CString, c_char};
use std::io::{Write, stderr};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// The calls of plugins.
struct Calls {
    /// Those under way: a call of an attack contains calls of a model.
    under_way: Vec<CString>,
    /// The last one that has ended.
    last: Option<CString>,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { under_way: Vec::new(), last: None });

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of the call that is under way, for a handler of signals; null for none. The text lives
/// as long as the call.
static RUNNING: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

fn top(under_way: &[CString]) -> *mut c_char {
    under_way.last().map_or(std::ptr::null_mut(), |call| call.as_ptr().cast_mut())
}

/// Runs code of a plugin; `what` names the plugin and what is run.
pub(super) fn run<T>(what: String, code: impl FnOnce() -> T) -> T {
    struct UnderWay;
    impl Drop for UnderWay {
        fn drop(&mut self) {
            let mut calls = calls();
            let ended = calls.under_way.pop();
            RUNNING.store(top(&calls.under_way), Ordering::SeqCst);
            calls.last = ended.or_else(|| calls.last.take());
        }
    }
    {
        let mut calls = calls();
        calls.under_way.push(CString::new(what).unwrap_or_default());
        RUNNING.store(top(&calls.under_way), Ordering::SeqCst);
    }
    let _under_way = UnderWay;
    code()
}

/// The plugin that is running, and what it does.
pub fn running() -> Option<String> {
    // A panic may have occurred, or the process may be ending, while another thread changes the
    // calls.
    let calls = match CALLS.try_lock() {
        Ok(calls) => calls,
        Err(TryLockError::Poisoned(calls)) => calls.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    calls.under_way.last().map(|call| call.to_string_lossy().into_owned())
}

/// From now on, a crash of the process while a plugin is running names the plugin on standard error.
/// The process still ends by the signal.
pub fn name_crashes() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
        // SAFETY: zeros are valid for each field. The handler calls only functions that a handler
        // may call, on the stack for signals. After it, the default handling is back, and the
        // signal comes again: `abort` raises it, and the instruction that crashed is repeated.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32) = at_crash;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn at_crash(signal: i32) {
    let running = RUNNING.load(Ordering::SeqCst);
    if running.is_null() {
        return;
    }
    let how: &[u8] = match signal {
        libc::SIGABRT => b": the plugin aborted the process (SIGABRT)\n",
        libc::SIGFPE => b": the plugin crashed the process (SIGFPE)\n",
        libc::SIGILL => b": the plugin crashed the process (SIGILL)\n",
        libc::SIGBUS => b": the plugin crashed the process (SIGBUS)\n",
        _ => b": the plugin crashed the process (SIGSEGV)\n",
    };
    // SAFETY: the text lives as long as the call that is under way. `strlen` and `write` may be
    // called in a handler.
    unsafe {
        let name = std::slice::from_raw_parts(running.cast::<u8>(), libc::strlen(running));
        for part in [b"error: ".as_slice(), name, how] {
            libc::write(2, part.as_ptr().cast(), part.len());
        }
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
    let last = || CALLS.try_lock().ok().and_then(|calls| calls.last.clone());
    let what = match (running(), last()) {
        (Some(what), _) => format!("{what}: the plugin ended the process"),
        (None, Some(last)) => {
            format!("a plugin ended the process, after the call {}", last.to_string_lossy())
        }
        (None, None) => "the process was ended by a library".to_owned(),
    };
    // Standard error may be closed.
    let _ = writeln!(stderr(), "error: {what}\n  fix      return an error instead of calling exit");
    // SAFETY: `_exit` ends the process at once.
    unsafe { libc::_exit(1) };
}
