//! What each subcommand does.

mod conform;
mod data;
mod eval;
mod inspect;
mod new;
mod plugins;
mod train;
mod transfer;

use crate::cli::Command;
use crate::{Error, INTERRUPTED, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Runs a subcommand; the result is the process's exit code.
///
/// # Errors
/// What the user is to be told.
pub fn run(command: &Command) -> Result<u8> {
    match command {
        Command::Train(arguments) => train::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Conform(arguments) => conform::run(arguments),
        Command::Plugins(arguments) => plugins::run(arguments),
        Command::New(arguments) => new::run(arguments),
        Command::Data(command) => data::run(command),
    }
}

const MOST_THREADS: usize = 1024;

/// Sets libtorch's threads; all cores unless a number is given.
fn set_threads(threads: Option<usize>) -> Result<usize> {
    let threads = match threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, |cores| cores.get()),
    };
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(Error::new(format!(
            "threads: expected at least 1 and at most {MOST_THREADS}, got {threads}"
        )));
    }
    tch::set_num_threads(threads as i32);
    Ok(threads)
}

/// Set by the first Ctrl-C or SIGTERM; the second ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .map_err(|why| Error::new(format!("cannot listen for signals: {why}")))?;
    }
    Ok(stop)
}
