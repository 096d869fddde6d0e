//! What all code of the process shares, and a plugin must leave as it finds it.

use crate::torch::device::refusal;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{OsString, c_char};
use std::fmt::Write;
use std::sync::OnceLock;

/// Settings of libtorch and of the processor, in the order of `host_settings` in libtorch.cpp.
const SETTINGS: [&str; 20] = [
    "oneDNN",
    "NNPACK",
    "cuDNN",
    "deterministic algorithms",
    "warnings instead of errors for algorithms that are not deterministic",
    "filling of uninitialised memory",
    "deterministic algorithms of cuDNN",
    "benchmarks of cuDNN",
    "deterministic algorithms of oneDNN",
    "the precision of matrix products in f32",
    "TF32 in cuDNN",
    "TF32 in cuBLAS",
    "TF32 in oneDNN",
    "sums in f16 on the CPU",
    "the default dtype",
    "autocast on the CPU",
    "autocast on CUDA",
    "inference mode",
    "the flushing of small numbers to zero",
    "the rounding mode of the processor",
];

/// Signals whose handling decides how the process ends, and what is saved then.
const SIGNALS: [(i32, &str); 15] = [
    (libc::SIGINT, "SIGINT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGQUIT, "SIGQUIT"),
];

const STREAMS: [(i32, &str); 3] = [(0, "standard input"), (1, "standard output"), (2, "standard error")];

/// libtorch's CUDA half sets this one when it is first used.
const SET_BY_LIBTORCH: &str = "CUDA_MODULE_LOADING";

/// Device and inode of a file; none if there is none.
type FileIdentity = Option<(libc::dev_t, libc::ino_t)>;

/// The settings of the process at a moment. It takes microseconds to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessState {
    settings: [i64; SETTINGS.len()],
    signals: [usize; SIGNALS.len()],
    blocked: [bool; SIGNALS.len()],
    streams: [FileIdentity; STREAMS.len()],
    working_folder: FileIdentity,
    /// The addresses of the environment's strings: a change of a variable changes an address.
    environment: Vec<usize>,
}

unsafe extern "C" {
    fn host_settings(values: *mut i64, count: usize) -> *const c_char;
    static environ: *const *const c_char;
}

impl ProcessState {
    /// The present state.
    ///
    /// # Errors
    /// If libtorch does not answer.
    pub fn current() -> Result<Self> {
        started_with();
        let mut settings = [0; SETTINGS.len()];
        // SAFETY: there is room for as many values as the function is told.
        if let Some(why) = refusal(unsafe { host_settings(settings.as_mut_ptr(), settings.len()) }) {
            return Err(Error::new(format!("libtorch cannot tell its settings: {why}")).on_the_way());
        }
        Ok(Self {
            settings,
            signals: SIGNALS.map(|(signal, _)| handler(signal)),
            blocked: blocked(),
            streams: STREAMS.map(|(descriptor, _)| stream(descriptor)),
            working_folder: working_folder(),
            environment: addresses_of_environment(),
        })
    }

    /// What differs in `later`, for people: "oneDNN (1, then 0)". None if nothing does.
    pub fn difference(&self, later: &Self) -> Option<String> {
        if self == later {
            return None;
        }
        let mut found = Vec::new();
        let settings = SETTINGS.iter().zip(self.settings.iter().zip(&later.settings));
        let differing = settings.filter(|(_, (before, after))| before != after);
        found.extend(differing.map(|(name, (before, after))| format!("{name} ({before}, then {after})")));
        let signals = SIGNALS.iter().zip(self.signals.iter().zip(&later.signals));
        let differing = signals.filter(|(_, (before, after))| before != after);
        found.extend(differing.map(|((_, name), _)| format!("the handler of {name}")));
        let blocked = SIGNALS.iter().zip(self.blocked.iter().zip(&later.blocked));
        let differing = blocked.filter(|(_, (before, after))| before != after);
        found.extend(differing.map(|((_, name), _)| format!("whether {name} is blocked")));
        let streams = STREAMS.iter().zip(self.streams.iter().zip(&later.streams));
        let differing = streams.filter(|(_, (before, after))| before != after);
        found.extend(differing.map(|((_, name), _)| format!("where {name} leads")));
        if self.working_folder != later.working_folder {
            let now = std::env::current_dir();
            let now = now.map_or("none".to_owned(), |now| now.display().to_string());
            found.push(format!("the working directory (now {now})"));
        }
        if self.environment != later.environment {
            found.extend(changed_variables());
        }
        (!found.is_empty()).then(|| found.join(", "))
    }
}

fn handler(signal: i32) -> usize {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call only writes the present one.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the value was zeroed, which is valid for each of its fields, and may have been written.
    let action = unsafe { action.assume_init() };
    if asked == 0 { action.sa_sigaction } else { usize::MAX }
}

/// Which signals this thread does not receive.
fn blocked() -> [bool; SIGNALS.len()] {
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: without a new mask, the call only writes the present one.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) };
    // SAFETY: zeros are a valid mask, and the call may have written another one.
    SIGNALS.map(|(signal, _)| unsafe { libc::sigismember(mask.as_ptr(), signal) } == 1)
}

fn stream(descriptor: i32) -> FileIdentity {
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `status` has room for the answer.
    let asked = unsafe { libc::fstat(descriptor, status.as_mut_ptr()) };
    // SAFETY: as above, zeros are valid.
    let status = unsafe { status.assume_init() };
    (asked == 0).then_some((status.st_dev, status.st_ino))
}

fn working_folder() -> FileIdentity {
    let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the path is a string, and `status` has room for the answer.
    let asked = unsafe { libc::stat(c".".as_ptr(), status.as_mut_ptr()) };
    // SAFETY: as above, zeros are valid.
    let status = unsafe { status.assume_init() };
    (asked == 0).then_some((status.st_dev, status.st_ino))
}

fn addresses_of_environment() -> Vec<usize> {
    let mut addresses = Vec::new();
    // SAFETY: `environ` is null or a list of pointers that ends with null. The host changes the
    // environment nowhere, and calls of plugins are not made while this reads.
    unsafe {
        let mut variable = environ;
        while !variable.is_null() && !(*variable).is_null() {
            addresses.push((*variable).addr());
            variable = variable.add(1);
        }
    }
    addresses
}

/// The environment when the state was first asked for.
fn started_with() -> &'static BTreeMap<OsString, OsString> {
    static VARIABLES: OnceLock<BTreeMap<OsString, OsString>> = OnceLock::new();
    VARIABLES.get_or_init(|| std::env::vars_os().collect())
}

/// The variables that are not as they were, in one text; none if all are, or libtorch set them.
fn changed_variables() -> Option<String> {
    let (before, now) = (started_with(), std::env::vars_os().collect::<BTreeMap<_, _>>());
    let names = before.keys().chain(now.keys().filter(|name| !before.contains_key(*name)));
    let changed = names.filter(|name| *name != SET_BY_LIBTORCH && before.get(*name) != now.get(*name));
    let mut text = String::new();
    for name in changed {
        let separator = if text.is_empty() { "the environment: " } else { ", " };
        let _ = write!(text, "{separator}{}", name.display());
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_differs_where_nothing_changed() {
        let state = ProcessState::current().expect("a state");
        assert_eq!(state.difference(&state.clone()), None);
    }

    #[test]
    fn every_part_is_named() {
        let before = ProcessState::current().expect("a state");
        let named = |change: &dyn Fn(&mut ProcessState)| {
            let mut after = before.clone();
            change(&mut after);
            before.difference(&after).expect("a difference")
        };
        assert_eq!(named(&|after| after.settings[0] = 7 - after.settings[0]), "oneDNN (1, then 6)");
        assert_eq!(named(&|after| after.signals[1] = 7), "the handler of SIGTERM");
        assert_eq!(named(&|after| after.blocked[1] = true), "whether SIGTERM is blocked");
        assert_eq!(named(&|after| after.streams[1] = None), "where standard output leads");
        assert!(named(&|after| after.working_folder = None).starts_with("the working directory (now /"));
    }
}
