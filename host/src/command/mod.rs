//! What each subcommand does.

mod conform;
mod data;
mod eval;
mod inspect;
mod new;
mod plugins;
mod train;

use crate::cli::Command;
use crate::{Error, Result};

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
