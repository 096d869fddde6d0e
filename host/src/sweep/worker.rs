//! Training and evaluation of the runs of a sweep, each in processes of its own.

use super::folder::{Failure, SweepFolder, attacks};
use super::summary::{Row, Status, SweepEvaluation};
use super::{Setting, Sweep};
use crate::error::{absolute, shown};
use crate::ranks::Place;
use crate::run::{RunFolder, checkpoint};
use crate::training::store;
use crate::util::child::stops_with_parent;
use crate::util::console::{self, Indicator};
use crate::util::files;
use crate::{Error, Result};
use serde_json::Value;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The time between two checks of a child process.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The number of those checks after which the indicator is shown again: after a second.
const LOOKS_PER_LINE: u32 = 20;

/// The number of bytes of a log among which its last line is looked for.
const LONGEST_LINE: u64 = 4096;

/// The number of lines shown of a failed command's output.
const LAST_LINES: usize = 10;

/// The runs that a worker did not finish.
#[derive(Default)]
pub(crate) struct Outcome {
    /// The number of failed runs.
    pub failed: usize,
    /// The number of runs with an unreadable file.
    pub damaged: usize,
    /// The names of the runs that another process has locked.
    pub busy: Vec<String>,
    /// Whether the user stopped the sweep.
    pub interrupted: bool,
}

/// How the work on a run ended.
enum Ending {
    Finished,
    Failed,
    /// One of its files is unreadable.
    Damaged,
    /// Another process has locked it.
    Busy,
    /// The user stopped the sweep.
    Interrupted,
}

/// How a command ended.
enum Ended {
    /// Successfully, with this output if `--json` was given.
    Well(String),
    Interrupted,
    Badly(Failure),
}

/// Trains and evaluates runs one after the other.
pub(crate) struct Worker<'a> {
    pub sweep: &'a Sweep,
    pub folder: &'a SweepFolder,
    /// Retry runs that failed before.
    pub retry_failed: bool,
    /// Set when the user stops the sweep.
    pub stop: &'a AtomicBool,
    /// The signal that the user chose for that: a scheduler sends it to all processes of a job.
    pub stop_signal: Option<i32>,
    /// Where the sweep is.
    pub indicator: Indicator,
}

impl Worker<'_> {
    /// Finishes these runs, given with their numbers, as far as possible.
    ///
    /// # Errors
    /// If a file of the sweep cannot be written, or a process cannot be started.
    pub(crate) fn finish_all(&self, runs: &[(usize, &Setting)]) -> Result<Outcome> {
        let (mut outcome, mut busy) = (Outcome::default(), Vec::new());
        // A second attempt at the busy runs: the other process may have been stopped in the
        // meantime.
        for is_second in [false, true] {
            let runs = if is_second { std::mem::take(&mut busy) } else { runs.to_vec() };
            for (number, setting) in runs {
                match self.finish(number, setting)? {
                    Ending::Finished => {}
                    Ending::Failed => outcome.failed += 1,
                    Ending::Damaged => outcome.damaged += 1,
                    Ending::Busy => {
                        busy.push((number, setting));
                        continue;
                    }
                    Ending::Interrupted => return Ok(Outcome { interrupted: true, ..outcome }),
                }
                self.indicator.move_to(self.indicator.position() + 1);
            }
        }
        outcome.busy = busy.into_iter().map(|(_, setting)| setting.name.clone()).collect();
        Ok(outcome)
    }

    /// Finishes a run, unless it is finished, another process has locked it, or it failed before
    /// and is not to be retried.
    fn finish(&self, number: usize, setting: &Setting) -> Result<Ending> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Ending::Interrupted);
        }
        let Some(lock) = files::lock(&self.folder.lock_path(&setting.name))? else {
            return Ok(Ending::Busy);
        };
        let Setting { name, .. } = setting;
        match self.folder.readable_row(self.sweep, setting) {
            Ok(Row { status: Status::Finished, .. }) => return Ok(Ending::Finished),
            Ok(Row { status: Status::Failed, reason, .. }) if !self.retry_failed => {
                self.warn(format_args!("{name} failed before: {}", reason.unwrap_or_default()));
                return Ok(Ending::Failed);
            }
            Ok(_) => {}
            Err(why) => {
                self.warn(format_args!(
                    "{name} is left unchanged: {}; move that file away to repeat that part of the run",
                    why.first_line()
                ));
                return Ok(Ending::Damaged);
            }
        }
        self.say(format_args!("[{number}/{}] {name}", self.sweep.settings.len()));
        let ended = self.train_and_evaluate(setting, &lock)?;
        if let Ended::Badly(failure) = &ended {
            self.folder.write_failure(setting, failure)?;
            let lines: String = failure.lines.iter().map(|line| format!("\n  | {line}")).collect();
            let log = self.folder.log(setting);
            self.warn(format_args!(
                "{name} failed: {} ended with {}; the last lines of its output in {}:{lines}",
                failure.command,
                failure.ended,
                shown(&log)
            ));
        }
        drop(lock);
        self.say(format_args!("  {}", self.folder.row(self.sweep, setting).line()));
        self.folder.summarise(self.sweep)?;
        Ok(match ended {
            Ended::Well(_) => Ending::Finished,
            Ended::Badly(_) => Ending::Failed,
            Ended::Interrupted => Ending::Interrupted,
        })
    }

    fn say(&self, text: impl Display) {
        self.indicator.suspend(|| console::say(text));
    }

    fn warn(&self, text: impl Display) {
        self.indicator.suspend(|| console::warn(text));
    }

    /// Trains and evaluates a run, as far as it is not done yet.
    fn train_and_evaluate(&self, setting: &Setting, lock: &File) -> Result<Ended> {
        let (config, run) = (self.folder.config(setting), self.folder.run(setting));
        let failed_before = files::remove_file(&self.folder.failure_path(setting)).is_ok();
        let text = toml::to_string(&setting.experiment).map_err(|why| Error::file("write", &config, why))?;
        files::write_whole(&config, text.as_bytes())?;
        let [config, run_text] = [&config, &run].map(|path| shown(path).to_string());
        if !self.folder.is_trained(setting) {
            if failed_before || RunFolder::open(&run).is_err() {
                forget_unless_saved(&run)?;
            }
            let command: &[&str] = if run.exists() {
                &["train", "--resume", &run_text]
            } else {
                &["train", "--config", &config, "--out", &run_text]
            };
            let ended = self.host(setting, lock, command)?;
            let Ended::Well(_) = ended else { return Ok(ended) };
            // A library may end the process with exit code 0.
            if !self.folder.is_trained(setting) {
                return Ok(Ended::Badly(unfinished("host train", "the run is not trained")));
            }
        }
        // The sweep may have been killed after an evaluation had ended: it is not repeated.
        for suite in self.folder.missing(self.sweep, setting)? {
            let attacks = attacks(suite, setting)?;
            let mut command = vec!["eval", &run_text, "--json", "--once"];
            command.extend(suite.iter().flat_map(|suite| ["--suite", suite]));
            let answer = match self.host(setting, lock, &command)? {
                Ended::Well(answer) => answer,
                ended => return Ok(ended),
            };
            let Ok(result) = serde_json::from_str(&answer) else {
                return Ok(Ended::Badly(unfinished("host eval", "it printed no evaluation")));
            };
            self.folder.add_evaluation(setting, SweepEvaluation { suite: suite.clone(), attacks, result })?;
        }
        Ok(Ended::Well(String::new()))
    }

    /// Runs this program with other arguments until it ends. Its output goes to the run's log, its
    /// warnings also to the user. With `--json`, its standard output is returned instead.
    fn host(&self, setting: &Setting, lock: &File, arguments: &[&str]) -> Result<Ended> {
        let log = self.folder.log(setting);
        let run = || -> io::Result<Ended> {
            let mut log = files::open(File::options().create(true).append(true).read(true), &log)?;
            writeln!(log, "$ host {}", arguments.join(" "))?;
            let start = log.stream_position()?;
            let mut answer = tempfile::tempfile()?;
            let output = if arguments.contains(&"--json") { &answer } else { &log };
            // The child gets the lock as its standard input: it is held as long as either process
            // lives.
            let streams = [lock, output, &log].map(File::try_clone);
            let signal = self.stop_signal.map(|signal| format!("--stop-signal={signal}"));
            let words = arguments.iter().copied().chain(signal.as_deref()).collect::<Vec<_>>();
            let status = self.wait_for(spawn(&words, streams)?, setting)?;
            if !status.success() && self.stop.load(Ordering::Relaxed) {
                return Ok(Ended::Interrupted);
            }
            let printed = read_from(&mut log, start)?;
            for warning in printed.lines().filter_map(|line| line.strip_prefix("warning: ")) {
                self.warn(format_args!("{}: {warning}", setting.name));
            }
            if status.success() {
                return Ok(Ended::Well(read_from(&mut answer, 0)?));
            }
            let lines: Vec<_> = printed.lines().map(str::to_owned).collect();
            Ok(Ended::Badly(Failure {
                command: format!("host {}", arguments[0]),
                ended: status.code().map_or(status.to_string(), |code| format!("exit code {code}")),
                lines: lines[lines.len().saturating_sub(LAST_LINES)..].to_vec(),
            }))
        };
        let command = format!("`host {}`", arguments.join(" "));
        run().map_err(|why| Error::new(format!("cannot run {command}: {why}")).on_the_way())
    }

    /// Waits for a process, and shows the last line of its log meanwhile. If the user stops the
    /// sweep, the process is interrupted.
    fn wait_for(&self, mut child: Child, setting: &Setting) -> io::Result<ExitStatus> {
        let (mut interrupted, mut looks, log) = (false, 0, self.folder.log(setting));
        loop {
            if looks % LOOKS_PER_LINE == 0 {
                let message = || format!("{}: {}", setting.name, last_line(&log).unwrap_or_default());
                self.indicator.show(self.indicator.position(), message);
            }
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) && !interrupted {
                // SAFETY: this sends a signal to a child that has not been waited for yet.
                unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
                interrupted = true;
            }
            std::thread::sleep(LOOK_EVERY);
            looks += 1;
        }
    }
}

/// The failure of a command that ended with exit code 0 without its result.
fn unfinished(command: &str, missing: &str) -> Failure {
    let ended = format!("exit code 0, but {missing}");
    Failure { command: command.to_owned(), ended, lines: Vec::new() }
}

/// The last line of a file.
fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let text = read_from(&mut file, length.saturating_sub(LONGEST_LINE))?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Starts this program with other arguments, and these files as its standard input, output and
/// error. The kernel sends it SIGTERM when its parent ends, so that it saves a checkpoint and ends
/// too.
fn spawn(arguments: &[&str], streams: [io::Result<File>; 3]) -> io::Result<Child> {
    let [input, output, errors] = streams;
    // The program's file may have been replaced in the meantime.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_default()).args(arguments);
    command.stdin(input?).stdout(output?).stderr(errors?).current_dir(absolute(Path::new("")));
    stops_with_parent(&mut command);
    // Each child works alone, whatever the sweep was started by.
    Place::VARIABLES.iter().for_each(|name| _ = command.env_remove(name));
    command.spawn()
}

/// The text of a file from this offset on.
fn read_from(file: &mut File, start: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Removes the folder and the particle file of a run without a checkpoint. Such a run begins anew,
/// so that its record has the plugins of now, which may have been repaired since.
fn forget_unless_saved(run: &Path) -> Result<()> {
    let saved = checkpoint::load::<Value>(&RunFolder::at(run).checkpoints(), &[]);
    if !run.exists() || !matches!(saved, Ok(None)) {
        return Ok(());
    }
    // A run makes its record only if no particle file of its name existed: these files are its own.
    let recorded = RunFolder::open(run).ok().map(|(_, record)| record.experiment.train);
    let files = recorded.iter().flat_map(|train| {
        let of_shards = (0..train.shards).filter_map(|shard| store::place(train, run, shard));
        of_shards.flat_map(|file| store::files(&file).collect::<Vec<_>>())
    });
    for file in files.filter(|file| file.exists()) {
        files::remove_file(&file).map_err(|why| Error::file("remove", &file, why))?;
    }
    files::remove_folder(run).map_err(|why| Error::file("remove", run, why))
}
