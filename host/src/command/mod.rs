//! The subcommands.

pub(crate) mod arguments;
mod conform;
mod data;
mod diagnose;
mod doctor;
mod eval;
mod export;
mod inspect;
mod installing;
mod launch;
mod new;
mod plugins;
mod predict;
mod report;
mod signals;
mod sweep;
mod train;
mod transfer;
mod trust;

use crate::error::{absolute, shown};
use crate::ranks::Ranks;
pub use crate::util::console::report;
use crate::util::console::{check_output, keep_output, speak_in_silence};
use crate::{Error, Result};
pub use arguments::Arguments;
use arguments::Command;
use std::path::Path;

/// Runs a subcommand; the result is the process's exit code.
///
/// # Errors
/// The error of the subcommand, or that its output could not be written.
pub fn run(command: &Command) -> Result<u8> {
    keep_output();
    speak_in_silence();
    let code = match command {
        Command::Train(arguments) => train::run(arguments),
        Command::Launch(arguments) => launch::run(arguments),
        Command::Eval(arguments) if arguments.transfer => transfer::run(arguments),
        Command::Eval(arguments) => eval::run(arguments),
        Command::Predict(arguments) => predict::run(arguments),
        Command::Sweep(arguments) => sweep::run(arguments),
        Command::Diagnose(arguments) => diagnose::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Conform(arguments) => conform::run(arguments),
        Command::Plugins(arguments) => plugins::run(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Trust(arguments) => trust::run(arguments),
        Command::New(arguments) => new::run(arguments),
        Command::Data(command) => data::run(command),
        Command::Completions { shell } => installing::completions(*shell),
        Command::Libraries => installing::libraries(),
        Command::Man { out } => installing::pages(out),
    }?;
    check_output()?;
    Ok(code)
}

/// Tells the processes that wait for this one that its arguments are wrong, if the command is one that
/// several processes carry.
pub fn turn_down(why: &clap::Error, code: u8) {
    let command = std::env::args_os().nth(1);
    if command.is_some_and(|command| ["train", "eval"].iter().any(|name| command == *name)) {
        Ranks::turn_down(&in_a_line(why), code);
    }
}

/// What is wrong with arguments, in a line.
fn in_a_line(why: &clap::Error) -> String {
    let text = why.to_string();
    let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Refuses a place for a new file that has something, or no folder around it. `fix` is what to do
/// about a file that is there.
fn refuse_taken(out: &Path, fix: &str) -> Result<()> {
    let absolute = absolute(out);
    let folder = absolute.parent().unwrap_or(&absolute);
    if absolute.is_dir() {
        return Err(Error::new(format!("--out: expected a file, got the folder {}", shown(&absolute)))
            .fix("give the name of a file in it"));
    }
    if absolute.symlink_metadata().is_ok() {
        return Err(Error::new(format!("{} already exists", shown(&absolute))).fix(fix));
    }
    if !folder.is_dir() {
        return Err(Error::new(format!("--out: there is no folder {}", shown(folder))).fix("create it"));
    }
    Ok(())
}
