//! The subcommands.

pub(crate) mod arguments;
mod conform;
mod data;
mod eval;
mod inspect;
mod new;
mod plugins;
mod report;
mod sweep;
mod train;
mod transfer;
mod trust;

pub use crate::util::console::report;
use crate::util::console::{check_output, keep_output};
use crate::{Error, INTERRUPTED, Result};
pub use arguments::Arguments;
use arguments::Command;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use signal_hook::low_level::exit;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs a subcommand; the result is the process's exit code.
///
/// # Errors
/// The error of the subcommand, or that its output could not be written.
pub fn run(command: &Command) -> Result<u8> {
    keep_output();
    let code = match command {
        Command::Train(arguments) => train::run(arguments),
        Command::Eval(arguments) if arguments.transfer => transfer::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Sweep(arguments) => sweep::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Conform(arguments) => conform::run(arguments),
        Command::Plugins(arguments) => plugins::run(arguments),
        Command::Trust(arguments) => trust::run(arguments),
        Command::New(arguments) => new::run(arguments),
        Command::Data(command) => data::run(command),
    }?;
    check_output()?;
    Ok(code)
}

/// A second signal within this time counts as the first one: a shell or a job manager signals every
/// process, and a parent process sends its child the signal that it received.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// A flag that is set by Ctrl-C, by SIGTERM, by the end of the terminal (SIGHUP) and by the signals
/// with which job managers announce the end of a job (SIGUSR1, SIGUSR2). A later Ctrl-C or SIGTERM
/// ends the process at once. A message on the terminal explains this, as the step under way may
/// take a while.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().chain(hangup))
        .map_err(|why| Error::new(format!("cannot listen for signals: {why}")))?;
    let stopping = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            stopping.store(true, Ordering::Relaxed);
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
