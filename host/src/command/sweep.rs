use super::stop_on_signals;
use crate::command::arguments::SweepArguments;
use crate::config::suite;
use crate::config::{Experiment, Select};
use crate::data;
use crate::data::Dataset;
use crate::evaluation::evaluator::check_count;
use crate::plugin::{Attack, Model};
use crate::run::RunFolder;
use crate::run::checkpoint;
use crate::run::progress::{EpochMetrics, is_trained};
use crate::sweep::axis::text;
use crate::sweep::summary::{Evaluated, Row, Status, Summary};
use crate::sweep::{Setting, Sweep, short};
use crate::training::Trace;
use crate::training::setup::{check as check_run, make_sampler, split};
use crate::training::store;
use crate::util::console::{say, warn};
use crate::util::files;
use crate::{Error, INTERRUPTED, Result};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tch::Device;

/// Between two looks at a child process.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Lines of a failed command's output that are shown.
const LAST_LINES: usize = 10;

/// `host sweep`
pub fn run(arguments: &SweepArguments) -> Result<u8> {
    let sweep = Sweep::read(&arguments.file)?;
    let folder = SweepFolder::of(arguments)?;
    folder.agrees_with(&sweep)?;
    check(&sweep)?;
    let mine = |number: &usize| arguments.task.is_none_or(|task| task.has(*number));
    let mine: Vec<_> = (1..).zip(&sweep.settings).filter(|(number, _)| mine(number)).collect();
    if arguments.dry_run {
        return list(&sweep, &folder, &mine);
    }
    folder.create(&arguments.file)?;
    say(format_args!(
        "sweep folder {}: {} runs{}",
        folder.path.display(),
        sweep.settings.len(),
        arguments.task.map_or(String::new(), |_| format!(", {} of them in this task", mine.len()))
    ));
    let worker = Worker {
        sweep: &sweep,
        folder: &folder,
        retry_failed: arguments.retry_failed,
        stop: &*stop_on_signals()?,
    };
    let (mut busy, mut failed, mut damaged) = (Vec::new(), 0, 0);
    // Runs that another process is at are looked at once more: it may have been stopped.
    for second_look in [false, true] {
        let runs = if second_look { std::mem::take(&mut busy) } else { mine.clone() };
        for (number, setting) in runs {
            match worker.attend_to(number, setting)? {
                Ending::Finished => {}
                Ending::Failed => failed += 1,
                Ending::Damaged => damaged += 1,
                Ending::Busy => busy.push((number, setting)),
                Ending::Interrupted => {
                    folder.summarise(&sweep)?;
                    warn("stopped; the same command goes on from here");
                    return Ok(INTERRUPTED);
                }
            }
        }
    }
    for (_, setting) in &busy {
        say(format_args!("{}: another process is at it", setting.name));
    }
    let summary = folder.summarise(&sweep)?;
    say(summary.tables());
    say(format_args!("summary: {}", folder.file("summary.csv").display()));
    if failed > 0 {
        warn(format_args!("{failed} of {} runs failed; --retry-failed tries them again", mine.len()));
    }
    if damaged > 0 {
        warn(format_args!(
            "{damaged} of {} runs were left as they are: their files cannot be read",
            mine.len()
        ));
    }
    Ok(u8::from(failed + damaged > 0))
}

/// Refuses what the plugins or the data make impossible, before anything is begun.
fn check(sweep: &Sweep) -> Result<()> {
    let mut datasets: BTreeMap<_, Dataset> = BTreeMap::new();
    let mut models = Vec::new();
    for Setting { name, experiment, .. } in &sweep.settings {
        let mut check_setting = || {
            let key = (experiment.data.name.clone(), experiment.data.folder.clone());
            if !datasets.contains_key(&key) {
                datasets.insert(key.clone(), data::load(&key.0, &key.1)?);
            }
            let dataset = &datasets[&key];
            split(experiment, dataset)?;
            // To build a large model takes a while.
            let model = (key, experiment.model.to_string());
            if !models.contains(&model) {
                // Whether there is a GPU is for the process that trains to find out.
                Model::build(&experiment.model, dataset.task(), Device::Cpu, 0)?;
                models.push(model);
            }
            let sampler = experiment.sampler.0.as_ref();
            let sampler = sampler.map(|spec| make_sampler(spec, &experiment.train)).transpose()?;
            check_run(experiment, dataset, sampler.as_ref())?;
            if let Some(probe) = &experiment.train.probe {
                Attack::make(probe)?.supports(&experiment.threat, &dataset.task())?;
            }
            Trace::make(experiment, dataset, Device::Cpu)?;
            for evaluation in &sweep.evaluations {
                check_count(experiment.eval.points, dataset.test.count() as usize)?;
                let specs = match evaluation {
                    Some(suite) => &suite::attacks(suite)?,
                    None => &experiment.eval.attacks,
                };
                let attacks: Vec<_> = specs.iter().map(Attack::make).collect::<Result<_>>()?;
                let runs = |attack: &Attack| attack.supports(&experiment.threat, &dataset.task()).is_ok();
                if !attacks.iter().any(runs) {
                    return Err(Error::new("none of the attacks to evaluate with can run here"));
                }
            }
            Ok(())
        };
        check_setting().map_err(|error| error.note("run", name))?;
    }
    Ok(())
}

/// `--dry-run`
fn list(sweep: &Sweep, folder: &SweepFolder, mine: &[(usize, &Setting)]) -> Result<u8> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let axes = sweep.axes.iter().map(|key| short(key).to_owned());
    table.set_header(
        ["run".to_owned()].into_iter().chain(axes).chain(["status", "folder"].map(str::to_owned)),
    );
    for (number, setting) in mine {
        let status = folder.row(sweep, setting).status.name().to_owned();
        let values = setting.values.iter().map(text);
        table.add_row([number.to_string()].into_iter().chain(values).chain([status, setting.name.clone()]));
    }
    say(table);
    say(format_args!("{} runs, in {}", mine.len(), folder.path.display()));
    Ok(0)
}

/// Where a sweep is. For every run there are, beside its folder NAME: NAME.toml (its
/// experiment), NAME.log (what was printed) and NAME.failed. NAME/sweep.json has what
/// evaluations found.
struct SweepFolder {
    path: PathBuf,
}

/// The contents of NAME.failed.
#[derive(Serialize, Deserialize)]
struct Failure {
    /// What was run.
    command: String,
    /// How it ended.
    ended: String,
    /// The last that it printed.
    lines: Vec<String>,
}

impl Failure {
    fn reason(&self) -> &str {
        let error = self.lines.iter().find_map(|line| line.strip_prefix("error: "));
        error.unwrap_or(&self.ended)
    }
}

const COPY: &str = "sweep.toml";
const LOCKS: &str = ".locks";

impl SweepFolder {
    /// The sweep's folder; nothing is written yet.
    fn of(arguments: &SweepArguments) -> Result<Self> {
        let path = arguments.out.clone().unwrap_or_else(|| {
            Path::new("sweeps").join(arguments.file.file_stem().unwrap_or(arguments.file.as_os_str()))
        });
        let folder = Self { path };
        // Another process may be about to write the copy: until then all it has made is hidden.
        let visible = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        let taken = fs::read_dir(&folder.path).is_ok_and(|entries| entries.flatten().any(visible));
        if folder.path.is_file() || (taken && !folder.file(COPY).is_file()) {
            return Err(Error::new(format!("{} already exists and holds no sweep", folder.path.display()))
                .fix("choose another folder with --out"));
        }
        Ok(folder)
    }

    /// Refuses a folder in which a run of the same name has other settings. Where the data lie
    /// is none: the run's own record knows their checksums.
    fn agrees_with(&self, sweep: &Sweep) -> Result<()> {
        for setting in &sweep.settings {
            let path = self.config(setting);
            if !path.is_file() {
                continue;
            }
            let mut there = Experiment::read(&path)?;
            there.data.folder.clone_from(&setting.experiment.data.folder);
            if let Some((key, there, here)) = difference(&json!(there), &json!(setting.experiment)) {
                return Err(Error::new(format!(
                    "{} has {key} = {there}; the sweep's file now says {here}",
                    path.display()
                ))
                .fix("choose another folder with --out, or remove that file and the run beside it"));
            }
        }
        Ok(())
    }

    fn create(&self, sweep_file: &Path) -> Result<()> {
        let locks = self.file(LOCKS);
        fs::create_dir_all(&locks).map_err(|why| Error::file("create", &locks, why))?;
        files::write_whole(&self.file(COPY), &files::read(sweep_file)?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn run(&self, setting: &Setting) -> PathBuf {
        self.file(&setting.name)
    }

    fn config(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.toml", setting.name))
    }

    fn log(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.log", setting.name))
    }

    fn evaluations_path(&self, setting: &Setting) -> PathBuf {
        self.run(setting).join("sweep.json")
    }

    fn failure_path(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.failed", setting.name))
    }

    /// Opens a file to be locked.
    fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.file(LOCKS).join(name);
        File::create(&path).map_err(|why| Error::file("create", &path, why))
    }

    fn failure(&self, setting: &Setting) -> Result<Option<Failure>> {
        read_json(&self.failure_path(setting))
    }

    fn evaluations(&self, setting: &Setting) -> Result<Vec<Evaluated>> {
        Ok(read_json(&self.evaluations_path(setting))?.unwrap_or_default())
    }

    fn epochs(&self, setting: &Setting) -> Result<Vec<EpochMetrics>> {
        // What cannot be read is written anew when the run is gone on with.
        Ok(RunFolder::at(&self.run(setting)).metrics().unwrap_or_default())
    }

    fn is_trained(&self, setting: &Setting) -> Result<bool> {
        Ok(is_trained(&self.epochs(setting)?, setting.experiment.train.epochs))
    }

    /// The evaluations that a run does not have yet, with their attacks.
    fn missing<'a>(
        &self,
        sweep: &'a Sweep,
        setting: &Setting,
    ) -> Result<Vec<(&'a Option<String>, Vec<String>)>> {
        let done = self.evaluations(setting)?;
        let mut missing = Vec::new();
        for wanted in &sweep.evaluations {
            let attacks = match wanted {
                None => setting.experiment.eval.attacks.clone(),
                Some(suite) => suite::attacks(suite)?,
            };
            let attacks: Vec<_> = attacks.iter().map(ToString::to_string).collect();
            if !done.iter().any(|done| done.suite == *wanted && done.attacks == attacks) {
                missing.push((wanted, attacks));
            }
        }
        Ok(missing)
    }

    fn status(&self, sweep: &Sweep, setting: &Setting) -> Result<Status> {
        Ok(if self.failure_path(setting).is_file() {
            Status::Failed
        } else if self.is_trained(setting)? {
            if self.missing(sweep, setting)?.is_empty() { Status::Finished } else { Status::Trained }
        } else if self.run(setting).exists() {
            Status::Unfinished
        } else {
            Status::Waiting
        })
    }

    /// A run in whose folder something cannot be read has failed.
    fn row(&self, sweep: &Sweep, setting: &Setting) -> Row {
        let unreadable = |why: Error| Row::new(Status::Failed, Some(why.to_string()), &[], false, &[]);
        self.readable_row(sweep, setting).unwrap_or_else(unreadable)
    }

    fn readable_row(&self, sweep: &Sweep, setting: &Setting) -> Result<Row> {
        let best_epoch = setting.experiment.train.select == Select::Best;
        let asked_for = |done: &Evaluated| sweep.evaluations.contains(&done.suite);
        let evaluations: Vec<_> = self.evaluations(setting)?.into_iter().filter(asked_for).collect();
        let status = self.status(sweep, setting)?;
        let reason = self.failure(setting)?.map(|failure| failure.reason().to_owned());
        Ok(Row::new(status, reason, &self.epochs(setting)?, best_epoch, &evaluations))
    }

    /// Looks at all runs and writes the summary's files. Of several processes, the last to
    /// look is the last to write.
    fn summarise<'a>(&self, sweep: &'a Sweep) -> Result<Summary<'a>> {
        let lock = self.lock_file("summary")?;
        lock.lock().map_err(|why| Error::file("lock", &self.file(LOCKS), why))?;
        let rows = sweep.settings.iter().map(|setting| self.row(sweep, setting)).collect();
        let summary = Summary::new(sweep, rows);
        let json = format!("{:#}\n", summary.json());
        files::write_whole(&self.file("summary.json"), json.as_bytes())?;
        files::write_whole(&self.file("summary.csv"), summary.runs_csv().as_bytes())?;
        let of_seeds = self.file("summary-seeds.csv");
        match summary.groups_csv() {
            Some(groups) => files::write_whole(&of_seeds, groups.as_bytes())?,
            // The file may have asked for several seeds before.
            None if of_seeds.exists() => {
                fs::remove_file(&of_seeds).map_err(|why| Error::file("remove", &of_seeds, why))?;
            }
            None => {}
        }
        Ok(summary)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match path.is_file() {
        false => Ok(None),
        true => serde_json::from_slice(&files::read(path)?)
            .map(Some)
            .map_err(|why| Error::file("understand", path, why)),
    }
}

/// The first key, dotted, in which two JSON values differ, with both sides.
fn difference(one: &Value, other: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(ones), Value::Object(others)) = (one, other) else {
        return (one != other).then(|| (String::new(), one.clone(), other.clone()));
    };
    ones.keys().chain(others.keys()).find_map(|key| {
        let (below, one, other) = difference(&one[key], &other[key])?;
        Some((if below.is_empty() { key.clone() } else { format!("{key}.{below}") }, one, other))
    })
}

/// What became of a run.
enum Ending {
    Finished,
    Failed,
    /// Its files cannot be read.
    Damaged,
    /// Another process is at it.
    Busy,
    /// The user stopped the sweep.
    Interrupted,
}

/// How a command ended.
enum Ended {
    /// With the answer that it was asked for, if any.
    Well(String),
    Interrupted,
    Badly(Failure),
}

/// Does runs, one after the other.
struct Worker<'a> {
    sweep: &'a Sweep,
    folder: &'a SweepFolder,
    retry_failed: bool,
    stop: &'a AtomicBool,
}

impl Worker<'_> {
    /// Brings a run to its end, unless it is there, another process is at it, or it failed
    /// before and is not to be tried again.
    fn attend_to(&self, number: usize, setting: &Setting) -> Result<Ending> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Ending::Interrupted);
        }
        let lock = self.folder.lock_file(&setting.name)?;
        if !files::try_lock(&lock, &self.folder.file(LOCKS))? {
            return Ok(Ending::Busy);
        }
        let Setting { name, .. } = setting;
        match self.folder.readable_row(self.sweep, setting) {
            Ok(Row { status: Status::Finished, .. }) => return Ok(Ending::Finished),
            Ok(Row { status: Status::Failed, reason, .. }) if !self.retry_failed => {
                warn(format_args!("{name} failed before: {}", reason.unwrap_or_default()));
                return Ok(Ending::Failed);
            }
            Ok(_) => {}
            Err(why) => {
                warn(format_args!(
                    "{name} is left as it is: {why}; move that file away, and what it tells is done again"
                ));
                return Ok(Ending::Damaged);
            }
        }
        say(format_args!("[{number}/{}] {name}", self.sweep.settings.len()));
        let ended = self.work(setting, &lock)?;
        if let Ended::Badly(failure) = &ended {
            let path = self.folder.failure_path(setting);
            files::write_whole(&path, json!(failure).to_string().as_bytes())?;
            let lines: String = failure.lines.iter().map(|line| format!("\n  | {line}")).collect();
            let log = self.folder.log(setting);
            warn(format_args!(
                "{name} failed: {} ended with {}; its last words in {}:{lines}",
                failure.command,
                failure.ended,
                log.display()
            ));
        }
        drop(lock);
        say(format_args!("  {}", self.folder.row(self.sweep, setting).line()));
        self.folder.summarise(self.sweep)?;
        Ok(match ended {
            Ended::Well(_) => Ending::Finished,
            Ended::Badly(_) => Ending::Failed,
            Ended::Interrupted => Ending::Interrupted,
        })
    }

    /// Trains and evaluates, as far as that is not done.
    fn work(&self, setting: &Setting, lock: &File) -> Result<Ended> {
        let (config, run) = (self.folder.config(setting), self.folder.run(setting));
        let failed_before = fs::remove_file(self.folder.failure_path(setting)).is_ok();
        let text = toml::to_string(&setting.experiment).map_err(|why| Error::file("write", &config, why))?;
        files::write_whole(&config, text.as_bytes())?;
        let [config, run_text] = [&config, &run].map(|path| path.display().to_string());
        if !self.folder.is_trained(setting)? {
            if failed_before || RunFolder::open(&run).is_err() {
                forget_unless_saved(&run)?;
            }
            let ended = match run.exists() {
                true => self.host(setting, lock, &["train", "--resume", &run_text])?,
                false => self.host(setting, lock, &["train", "--config", &config, "--out", &run_text])?,
            };
            let Ended::Well(_) = ended else { return Ok(ended) };
        }
        for (suite, attacks) in self.folder.missing(self.sweep, setting)? {
            let mut command = vec!["eval", &run_text, "--json"];
            command.extend(suite.iter().flat_map(|suite| ["--suite", suite]));
            let answer = match self.host(setting, lock, &command)? {
                Ended::Well(answer) => answer,
                ended => return Ok(ended),
            };
            let result = serde_json::from_str(&answer).map_err(|why| {
                Error::new(format!("cannot understand what host eval printed: {why}")).on_the_way()
            })?;
            let mut evaluations = self.folder.evaluations(setting)?;
            evaluations.retain(|done| done.suite != *suite);
            evaluations.push(Evaluated { suite: suite.clone(), attacks, result });
            let text = format!("{:#}\n", json!(evaluations));
            files::write_whole(&self.folder.evaluations_path(setting), text.as_bytes())?;
        }
        Ok(Ended::Well(String::new()))
    }

    /// Runs this program with other arguments until it ends. What it prints goes to the run's
    /// log, its warnings to the user too; its answer, with `--json`, comes back.
    fn host(&self, setting: &Setting, lock: &File, arguments: &[&str]) -> Result<Ended> {
        let log = self.folder.log(setting);
        let run = || -> io::Result<Ended> {
            let mut log = File::options().create(true).append(true).read(true).open(&log)?;
            writeln!(log, "$ host {}", arguments.join(" "))?;
            let start = log.stream_position()?;
            let mut answer = tempfile::tempfile()?;
            let output = if arguments.contains(&"--json") { &answer } else { &log };
            // The lock is held for as long as either process lives.
            let streams = [lock, output, &log].map(File::try_clone);
            let status = self.wait_for(spawn(arguments, streams)?)?;
            if !status.success() && self.stop.load(Ordering::Relaxed) {
                return Ok(Ended::Interrupted);
            }
            let printed = read_from(&mut log, start)?;
            for warning in printed.lines().filter_map(|line| line.strip_prefix("warning: ")) {
                warn(format_args!("{}: {warning}", setting.name));
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

    /// Waits for a process, and passes the user's wish to stop on to it.
    fn wait_for(&self, mut child: Child) -> io::Result<ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) && !told {
                // SAFETY: this sends a signal to a child that has not been waited for yet.
                unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
                told = true;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// This program with other arguments, its standard input, output and error these files. It
/// ends in good order if the process that started it is gone.
fn spawn(arguments: &[&str], streams: [io::Result<File>; 3]) -> io::Result<Child> {
    let [input, output, errors] = streams;
    // Whatever has become of the program's file in the meantime.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_default()).args(arguments);
    command.stdin(input?).stdout(output?).stderr(errors?);
    let stop_with_parent = || {
        // SAFETY: prctl is a system call and may be made between fork and exec; it reads
        // nothing but its arguments.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only the system call above is made.
    unsafe { command.pre_exec(stop_with_parent) };
    command.spawn()
}

fn read_from(file: &mut File, start: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes a run's folder and its file of particles away if it holds no checkpoint: there is nothing
/// to go on from, and beginning anew does not depend on plugins that may have been mended since.
fn forget_unless_saved(run: &Path) -> Result<()> {
    let saved = checkpoint::load::<Value>(&RunFolder::at(run).checkpoints(), &[]);
    if !run.exists() || !matches!(saved, Ok(None)) {
        return Ok(());
    }
    // A run that has a record found these names free.
    let recorded = RunFolder::open(run).ok().and_then(|(_, record)| record.experiment.train.store_file);
    for file in recorded.iter().flat_map(|file| store::files(file)).filter(|file| file.exists()) {
        fs::remove_file(&file).map_err(|why| Error::file("remove", &file, why))?;
    }
    fs::remove_dir_all(run).map_err(|why| Error::file("remove", run, why))
}
