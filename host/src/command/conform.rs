use crate::command::arguments::{ConformArguments, style};
use crate::plugin::library::{self, File, Kind, Manifest};
use crate::plugin::{PluginSpec, check_memory, parse, running};
use crate::torch::device;
use crate::torch::process::ProcessState;
use crate::util::console::{bar, quoted, say};
use crate::{Error, Result};
use conformance::{Check, Library, Outcome, Outcomes, Plugin, Table, all};
use glob_match::glob_match;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::OnceCell;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// `host conform`
pub fn run(arguments: &ConformArguments) -> Result<u8> {
    if let Some(plugin) = &arguments.judge {
        return serve(arguments, plugin);
    }
    let patterns = arguments.include.iter().map(|pattern| ("--include", pattern));
    for (flag, pattern) in patterns.chain(arguments.exclude.iter().map(|pattern| ("--exclude", pattern))) {
        if !all().any(|check| glob_match(pattern, check.name)) {
            return Err(Error::new(format!("{flag} {pattern}: no check has such a name"))
                .note("checks", all().map(|check| check.name).collect::<Vec<_>>().join(", ")));
        }
    }
    let spec = parse(&arguments.file)?;
    let (file, plugins) = chosen(&spec)?;
    let selected = |manifest: &Manifest| {
        all().filter(|check| check.applies_to(manifest.kind.name()) && is_selected(arguments, check)).count()
    };
    let bar =
        bar(style(arguments.json), plugins.iter().map(selected).sum::<usize>() as u64, "{pos}/{len} {msg}");
    let waiting = Mutex::new(plugins.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let total = Mutex::new(Ok(Count::default()));
    let show = |manifest: &Manifest, check: &Check, outcome: &Outcome| {
        if let Ok(total) = total.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            total.add(outcome);
            bar.suspend(|| show(arguments, &spec, manifest, check, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.min(plugins.len()) {
            scope.spawn(|| {
                while let Some(manifest) = next() {
                    if let Err(error) = check_plugin(arguments, &spec, &file, manifest, &bar, show) {
                        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                        if total.is_ok() {
                            *total = Err(error);
                        }
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    if total == Count::default() {
        return Err(
            Error::new("no check was selected").fix("see `host conform --help`, --include and --exclude")
        );
    }
    if !arguments.json {
        let Count { passed, warnings, skipped, bad } = total;
        say(format_args!("{passed} passed, {bad} failed, {skipped} skipped, {warnings} with a warning"));
    }
    Ok(u8::from(total.bad > 0))
}

/// The library of a spec `FILE[,plugin=NAME][,option=value]…`, and its plugins to check.
fn chosen(spec: &PluginSpec) -> Result<(File, Vec<Manifest>)> {
    let file = library::inspect(&spec.file)?;
    let known: Vec<_> =
        file.manifests.iter().filter(|manifest| manifest.kind != Kind::Unknown).cloned().collect();
    if known.is_empty() {
        return Err(Error::new(format!("{} has no plugin of a kind that this host supports", spec.file))
            .fix("check it with the host that it was built for"));
    }
    let is_chosen = |manifest: &Manifest| spec.name.as_ref().is_none_or(|name| *name == manifest.name);
    let plugins: Vec<_> = known.iter().filter(|manifest| is_chosen(manifest)).cloned().collect();
    if plugins.is_empty() {
        let names: Vec<_> = known.iter().map(|manifest| manifest.name.as_str()).collect();
        return Err(spec
            .error(format!("{} has no such plugin", spec.file))
            .fix(format!("choose one with `,plugin=NAME` among: {}", names.join(", "))));
    }
    if spec.steps().is_some() && plugins.iter().any(|manifest| manifest.kind != Kind::Attack) {
        return Err(spec
            .error("a sampler has no option `steps` here, since every check sets its own number of steps"));
    }
    Ok((file, plugins))
}

/// Number of checks by result.
#[derive(Default, PartialEq)]
struct Count {
    passed: usize,
    warnings: usize,
    skipped: usize,
    bad: usize,
}

impl Count {
    fn add(&mut self, outcome: &Outcome) {
        *match outcome {
            Outcome::Passed => &mut self.passed,
            Outcome::Warning(_) => &mut self.warnings,
            Outcome::Skipped(_) | Outcome::Blocked(_) => &mut self.skipped,
            Outcome::Failed { .. } | Outcome::Crashed(_) | Outcome::TimedOut(_) => &mut self.bad,
        } += 1;
    }
}

fn is_selected(arguments: &ConformArguments, check: &Check) -> bool {
    let matches = |patterns: &[String]| patterns.iter().any(|pattern| glob_match(pattern, check.name));
    (arguments.include.is_empty() || matches(&arguments.include)) && !matches(&arguments.exclude)
}

/// Runs the selected checks of one plugin, and the checks that they need. Shows each result as soon
/// as it and those of the checks before it are known. A check that was not selected is shown only
/// if it is bad, since it then blocks selected checks.
fn check_plugin(
    arguments: &ConformArguments,
    spec: &PluginSpec,
    file: &File,
    manifest: &Manifest,
    bar: &ProgressBar,
    show: impl Fn(&Manifest, &Check, &Outcome),
) -> Result<()> {
    let mut process = None;
    let mut outcomes = Outcomes::new(|check: &'static Check| {
        bar.set_message(format!("{} {}", manifest.name, check.name));
        let mut running = match process.take() {
            Some(running) => running,
            None => Process::start(arguments, spec, file, manifest)?,
        };
        let outcome = running.run(check, Duration::from_secs(arguments.timeout));
        // The effects of a bad check must not reach the next one.
        process = (!outcome.is_bad()).then_some(running);
        Ok::<_, Error>(outcome)
    });
    let checks: Vec<_> = all().filter(|check| check.applies_to(manifest.kind.name())).collect();
    let mut shown = 0;
    for (place, check) in checks.iter().enumerate().filter(|(_, check)| is_selected(arguments, check)) {
        outcomes.of(check)?;
        bar.inc(1);
        // A selected check may need one after it.
        let is_last = !checks[place + 1..].iter().any(|check| is_selected(arguments, check));
        let end = if is_last { checks.len() } else { place + 1 };
        for check in &checks[shown..end] {
            if let Some(outcome) = outcomes.known(check)
                && (is_selected(arguments, check) || outcome.is_bad())
            {
                show(manifest, check, outcome);
            }
        }
        shown = end;
    }
    Ok(())
}

/// A line from a checking process.
#[derive(Serialize, Deserialize)]
enum Line {
    /// The next action of the check.
    AboutTo(String),
    /// The result of the check.
    Outcome(Outcome),
}

/// A checking process: it runs single checks of one plugin on request, and may crash. It is the
/// leader of its own process group. Requests and results use a socket that is the standard input of
/// the process, so that the output of a plugin cannot mix with them.
struct Process {
    child: Child,
    channel: BufReader<UnixStream>,
}

impl Process {
    fn start(
        arguments: &ConformArguments,
        spec: &PluginSpec,
        file: &File,
        manifest: &Manifest,
    ) -> Result<Self> {
        let cannot = |why: io::Error| Error::new(format!("cannot start a process for the checks: {why}"));
        let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
        let child = Command::new(std::env::current_exe().map_err(cannot)?)
            .arg("conform")
            .arg(&file.path)
            .args(["--seed", &arguments.seed.to_string()])
            .args(["--judge", &format!("{}/{}", manifest.kind.name(), manifest.name)])
            .args(["--judge-options", &spec.attack_options()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        Ok(Self { child, channel: BufReader::new(ours) })
    }

    /// Runs one check in the process.
    fn run(&mut self, check: &Check, timeout: Duration) -> Outcome {
        let deadline = Instant::now() + timeout;
        let mut doing = String::new();
        let request = writeln!(self.channel.get_ref(), "{}", check.name);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut line = String::new();
            let answer = match request {
                Ok(()) if left.is_zero() => Err(ErrorKind::TimedOut.into()),
                Ok(()) => {
                    let read = self.channel.get_ref().set_read_timeout(Some(left));
                    read.and_then(|()| self.channel.read_line(&mut line))
                }
                Err(_) => Ok(0),
            };
            match answer {
                Ok(0) => return Outcome::Crashed(how_it_ended(self.wait()) + &doing),
                Ok(_) => match serde_json::from_str(&line) {
                    Ok(Line::AboutTo(what)) => doing = format!(", about to {what}"),
                    Ok(Line::Outcome(outcome)) => return outcome,
                    Err(why) => {
                        return Outcome::Crashed(format!("the process sent an invalid result: {why}"));
                    }
                },
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Outcome::TimedOut(format!("did not end within {} s{doing}", timeout.as_secs()));
                }
                Err(why) => return Outcome::Crashed(format!("lost the connection to the process: {why}")),
            }
        }
    }

    /// The exit status of a process that has stopped responding; none if it is still running.
    fn wait(&mut self) -> Option<ExitStatus> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Process {
    /// Kills the process group.
    fn drop(&mut self) {
        // SAFETY: kill only sends a signal. The group belongs to the child (`process_group(0)`) and
        // exists as long as the child or one of its own children.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        let _ = self.child.wait();
    }
}

fn how_it_ended(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "the process does not respond".to_owned(), |status| status.to_string())
}

fn show(
    arguments: &ConformArguments,
    spec: &PluginSpec,
    manifest: &Manifest,
    check: &Check,
    outcome: &Outcome,
) {
    let seed = arguments.seed;
    let mut plugin = spec.to_string();
    if spec.name.is_none() {
        plugin = plugin.replacen(&spec.file, &format!("{},plugin={}", spec.file, manifest.name), 1);
    }
    let mut reproduce = format!("host conform {} --include {} --seed {seed}", quoted(&plugin), check.name);
    if let Outcome::TimedOut(_) = outcome {
        reproduce += &format!(" --timeout {}", arguments.timeout);
    }
    let ends = "that the check ends";
    let (status, expected, got, reason) = match outcome {
        Outcome::Passed => ("passed", None, None, None),
        Outcome::Failed { expected, got } => ("failed", Some(expected.as_str()), Some(got), None),
        Outcome::Crashed(how) => ("crashed", Some(ends), Some(how), None),
        Outcome::TimedOut(when) => ("timed out", Some(ends), Some(when), None),
        Outcome::Warning(what) => ("warning", None, None, Some(what.clone())),
        Outcome::Skipped(why) => ("skipped", None, None, Some(why.clone())),
        Outcome::Blocked(by) => ("skipped", None, None, Some(format!("blocked by {by}"))),
    };
    if arguments.json {
        return say(json!({
            "plugin": manifest.name, "kind": manifest.kind, "check": check.name, "sentence": check.sentence,
            "status": status, "expected": expected, "got": got, "reason": reason, "seed": seed,
            "reproduce": reproduce,
        }));
    }
    let status = if outcome.is_bad() { status.to_uppercase() } else { status.to_owned() };
    let details = match (outcome.is_bad(), reason) {
        (true, _) => format!(": {}", check.sentence),
        (false, Some(reason)) => format!(": {reason}"),
        (false, None) => String::new(),
    };
    say(format_args!("{:10} {:26} {status}{details}", manifest.name, check.name));
    if let (Some(expected), Some(got)) = (expected, got) {
        say(format_args!("    expected  {expected}\n    got       {got}"));
    }
    if outcome.is_bad() || matches!(outcome, Outcome::Warning(_)) {
        say(format_args!(
            "    seed      {seed}\n    reproduce {reproduce}\n    see       docs/conformance.md, section {}",
            check.name
        ));
    }
}

// --------------------------------------------------------------- inside a checking process

/// The checking process: reads names of checks from standard input (a socket) and answers each with
/// the result.
fn serve(arguments: &ConformArguments, plugin: &str) -> Result<u8> {
    let refused = |why: &dyn std::fmt::Display| Error::new(format!("--judge: {why}"));
    // SAFETY: the call only sets a signal: the kernel ends this process when its parent ends.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let standard_input = io::stdin().as_fd().try_clone_to_owned().map_err(|why| refused(&why))?;
    redirect(&fs::File::open("/dev/null").map_err(|why| refused(&why))?, &[0])
        .map_err(|why| refused(&why))?;
    let channel = UnixStream::from(standard_input);
    let mut answers = channel.try_clone().map_err(|why| refused(&why))?;
    let file = library::inspect(&arguments.file)?;
    let named = |manifest: &&Manifest| format!("{}/{}", manifest.kind.name(), manifest.name) == plugin;
    let manifest =
        file.manifests.iter().find(named).ok_or_else(|| refused(&format!("no plugin {plugin}")))?;
    let options = arguments.judge_options.clone();
    // The parent process reports how this one ends.
    running::may_exit();
    // CUDA must be loaded before the first check. A check that needs it reports an error.
    let _ = device::load_cuda();
    // Checks are small, and several processes may run at the same time.
    tch::set_num_threads(1);
    let process = ProcessState::current()?;
    let library = Checked { file: &file, manifest, options, process, opened: OnceCell::new() };
    let actions = channel.try_clone().map_err(|why| refused(&why))?;
    conformance::listen(move |what| {
        let _ = writeln!(&actions, "{}", json!(Line::AboutTo(what.to_owned())));
    });
    for name in BufReader::new(channel).lines() {
        let name = name.map_err(|why| refused(&why))?;
        let check =
            all().find(|check| check.name == name).ok_or_else(|| refused(&format!("no check `{name}`")))?;
        let outcome = check.run(&library, arguments.seed);
        writeln!(answers, "{}", json!(Line::Outcome(outcome))).map_err(|why| refused(&why))?;
    }
    Ok(0)
}

/// The library that is checked in this process.
struct Checked<'a> {
    file: &'a File,
    manifest: &'a Manifest,
    /// The options of the plugin, as a JSON object.
    options: String,
    /// The process before the first check.
    process: ProcessState,
    /// The plugin, and the output while it was opened.
    opened: OnceCell<(std::result::Result<Plugin, String>, String)>,
}

impl Checked<'_> {
    fn opened(&self) -> &(std::result::Result<Plugin, String>, String) {
        self.opened.get_or_init(|| {
            let path = self.file.path.display().to_string();
            match capture_output(|| self.open(&path)) {
                Ok(opened) => opened,
                Err(why) => (Err(format!("cannot capture the output: {why}")), String::new()),
            }
        })
    }

    fn open(&self, path: &str) -> std::result::Result<Plugin, String> {
        let opened = parse(&format!("{path},plugin={}", self.manifest.name)).and_then(|spec| {
            Ok(match self.manifest.kind {
                Kind::Model => Table::Model(library::open_model(&spec)?.plugin),
                Kind::Sampler => Table::Sampler(library::open_sampler(&spec)?.plugin),
                Kind::Attack => Table::Attack(library::open_attack(&spec)?.plugin),
                Kind::Objective => Table::Objective(library::open_objective(&spec)?.plugin),
                Kind::Unknown => return Err(Error::new("this host does not support plugins of this kind")),
            })
        });
        opened.map(|table| Plugin::new(table, &self.options)).map_err(|error| error.first_line().to_owned())
    }
}

impl Library for Checked<'_> {
    fn plugin(&self) -> std::result::Result<&Plugin, String> {
        self.opened().0.as_ref().map_err(String::clone)
    }

    fn printed(&self) -> String {
        self.opened().1.clone()
    }

    fn name(&self) -> (String, usize) {
        let Manifest { kind, name, .. } = self.manifest;
        let namesakes = self.file.manifests.iter().filter(|other| (&other.kind, &other.name) == (kind, name));
        (name.clone(), namesakes.count())
    }

    fn built_for(&self) -> (u32, String) {
        (self.manifest.contract, self.manifest.libtorch.clone())
    }

    fn open_again(&self) -> std::result::Result<Plugin, String> {
        self.open(&self.file.path.display().to_string())
    }

    fn open_copy(&self) -> std::result::Result<Plugin, String> {
        let copy = || -> io::Result<fs::File> {
            // SAFETY: the call makes a file in memory and returns its descriptor, which nothing
            // else owns.
            let descriptor = unsafe { libc::memfd_create(c"copy.so".as_ptr(), libc::MFD_CLOEXEC) };
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: as above.
            let mut copy = unsafe { fs::File::from_raw_fd(descriptor) };
            io::copy(&mut fs::File::open(&self.file.path)?, &mut copy)?;
            Ok(copy)
        };
        let copy = copy().map_err(|why| format!("cannot copy {}: {why}", self.file.path.display()))?;
        // An open library does not need its file.
        self.open(&format!("/proc/self/fd/{}", copy.as_raw_fd()))
    }

    fn changes_of_process(&self) -> Option<String> {
        match ProcessState::current() {
            Ok(now) => self.process.difference(&now),
            Err(why) => Some(why.to_string()),
        }
    }

    fn accepts(&self, state: &[(String, Tensor)]) -> std::result::Result<(), String> {
        check_memory(state).map_err(|error| error.first_line().to_owned())
    }

    fn load_cuda(&self) -> std::result::Result<(), String> {
        device::open(Device::Cuda(0)).map(drop).map_err(|error| error.first_line().to_owned())
    }
}

/// Redirects these file descriptors to a file.
fn redirect(file: &impl AsRawFd, descriptors: &[i32]) -> io::Result<()> {
    for descriptor in descriptors {
        // SAFETY: dup2 replaces descriptors of the standard streams, which no object in this
        // process owns.
        if unsafe { libc::dup2(file.as_raw_fd(), *descriptor) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Number of bytes that are kept of captured output.
const CAPTURED_BYTES: u64 = 200;

/// Calls a function and returns its result and the beginning of the output meanwhile, including
/// that of C code.
fn capture_output<T>(run: impl FnOnce() -> T) -> io::Result<(T, String)> {
    let (mut ours, theirs) = io::pipe()?;
    redirect(&theirs, &[1, 2])?;
    drop(theirs);
    let reader = std::thread::spawn(move || {
        let mut captured = Vec::new();
        let kept = (&mut ours).take(CAPTURED_BYTES).read_to_end(&mut captured);
        // The rest is read too, so that a writer is not blocked by a full pipe.
        kept.and_then(|_| io::copy(&mut ours, &mut io::sink())).map(|_| captured)
    });
    let result = run();
    // SAFETY: fflush of a null pointer flushes all streams of C, which are buffered in a pipe.
    unsafe { libc::fflush(std::ptr::null_mut()) };
    redirect(&fs::OpenOptions::new().write(true).open("/dev/null")?, &[1, 2])?;
    let captured = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
    Ok((result, String::from_utf8_lossy(&captured).into_owned()))
}
