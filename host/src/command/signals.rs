//! The signals that stop a command.

use crate::util::interrupt;
use crate::{Error, INTERRUPTED, Result};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a command that may work for long is stopped.
#[derive(Debug, Default, Clone, Args)]
pub struct StopFlags {
    /// Stop at this signal, too, with which a scheduler announces the end of a job, such as XCPU;
    /// INT, TERM, HUP, USR1 and USR2 always stop
    #[arg(long = "stop-signal", value_name = "SIGNAL", value_parser = parse_signal)]
    pub signal: Option<i32>,
}

/// The signals that may be chosen: those that neither the kernel nor this program uses otherwise.
const CHOICES: [(&str, i32); 16] = [
    ("ALRM", libc::SIGALRM),
    ("CONT", libc::SIGCONT),
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("TERM", libc::SIGTERM),
    ("TSTP", libc::SIGTSTP),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
];

/// The number of a signal: its name with or without `SIG`, or its number.
fn parse_signal(text: &str) -> std::result::Result<i32, String> {
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let is_meant = |(choice, number): &&(&str, i32)| *choice == name || number.to_string() == name;
    CHOICES.iter().find(is_meant).map(|(_, number)| *number).ok_or_else(|| {
        let names = CHOICES.map(|(choice, _)| choice).join(", ");
        format!("expected one of {names}, with or without SIG, or its number; got `{text}`")
    })
}

/// A second signal within this time counts as the first one: a shell or a job manager signals every
/// process, and a parent process sends its child the signal that it received.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// A flag that is set by Ctrl-C, by SIGTERM, by the end of the terminal (SIGHUP), by the signals
/// with which job managers announce the end of a job (SIGUSR1, SIGUSR2), and by the one of the flags.
/// Until the work heeds it, such a signal ends the process at once. A later Ctrl-C or SIGTERM
/// ends the process at once in any case; a message on the terminal explains this.
///
/// # Errors
/// If the process cannot listen.
pub fn stop_on_signals(flags: &StopFlags) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let heard = [SIGINT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().chain(hangup).chain(flags.signal);
    let mut signals =
        Signals::new(heard).map_err(|why| Error::new(format!("cannot listen for signals: {why}")))?;
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            stopping.store(true, Ordering::Relaxed);
            if !interrupt::is_heeded() {
                interrupt::end("stopped before anything was kept; there is no result");
            }
            if ![SIGINT, SIGTERM].contains(&signal) {
                continue;
            }
            match first {
                Some(first) if first.elapsed() > SAME_REQUEST => exit(INTERRUPTED.into()),
                Some(_) => {}
                None => {
                    first = Some(Instant::now());
                    if stderr().is_terminal() {
                        let message =
                            "stopping after the step under way; Ctrl-C again ends at once, without saving it";
                        // Signals are handled even if the terminal is gone.
                        let _ = writeln!(stderr(), "\n{message}");
                    }
                }
            }
        }
    });
    Ok(stop)
}

/// Whether the process was started with this signal ignored, as `nohup` does with SIGHUP.
fn is_ignored(signal: i32) -> bool {
    // SAFETY: zeros are a valid `sigaction`, and without a new action the call only writes the
    // present one to it.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action);
        action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_its_name_or_its_number() {
        for text in ["XCPU", "SIGXCPU", "sigxcpu", &libc::SIGXCPU.to_string()] {
            assert_eq!(parse_signal(text), Ok(libc::SIGXCPU), "{text}");
        }
        // A process cannot catch KILL; SEGV is a crash; 0 is no signal.
        for text in ["KILL", "9", "SEGV", "0", "", "SIG", "XCPUS"] {
            let refused = parse_signal(text).expect_err(text);
            assert!(refused.starts_with("expected one of ALRM, ") && refused.contains(text), "{refused}");
        }
    }
}
