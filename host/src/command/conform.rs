use crate::cli::ConformArguments;
use crate::plugin::library::{self, File, Kind, Manifest};
use crate::plugin::parse;
use crate::report::say;
use crate::{Error, Result};
use conformance::{Check, Outcome, Plugin, all};
use glob_match::glob_match;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// What became of a check: what it found, or what became of its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    /// The check ran to its end.
    Judged(Outcome),
    /// Its process ended by itself, with this status.
    Crashed(String),
    /// It took longer than it may, in seconds.
    TimedOut(u64),
}

/// One line that a judging process sends back.
#[derive(Serialize, Deserialize)]
struct Line {
    check: String,
    outcome: Outcome,
}

/// `host conform`
pub fn run(arguments: &ConformArguments) -> Result<u8> {
    if let Some(judge) = &arguments.judge {
        return judge_here(arguments, judge);
    }
    for pattern in &arguments.include {
        if !all().any(|check| glob_match(pattern, check.name)) {
            return Err(Error::new(format!("--include {pattern}: no check has such a name"))
                .note("checks", all().map(|check| check.name).collect::<Vec<_>>().join(", ")));
        }
    }
    let file = library::inspect(&arguments.file)?;
    for manifest in &file.manifests {
        manifest
            .fits()
            .map_err(|(what, fix)| Error::new(format!("{} was {what}", arguments.file)).fix(fix))?;
    }
    let verdicts = Mutex::new(Vec::new());
    let waiting = Mutex::new(file.manifests.iter());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.min(file.manifests.len()) {
            scope.spawn(|| {
                while let Some(manifest) = next(&waiting) {
                    let judged = judge_apart(arguments, &file, manifest);
                    if let Ok(mut verdicts) = verdicts.lock() {
                        verdicts.push((manifest, judged));
                    }
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().map_err(|_| Error::new("a judging thread panicked"))?;
    let mut failed = 0;
    let mut judged = 0;
    for (manifest, statuses) in verdicts {
        for (check, status) in statuses? {
            judged += 1;
            failed += usize::from(!good(&status));
            show(arguments, manifest, check, &status);
        }
    }
    if judged == 0 {
        return Err(
            Error::new("no check was selected").fix("see `host conform --help`, --include and --exclude")
        );
    }
    if !arguments.json {
        say(format_args!("{} passed, {failed} failed", judged - failed));
    }
    Ok(u8::from(failed > 0))
}

fn next<'a>(waiting: &Mutex<std::slice::Iter<'a, Manifest>>) -> Option<&'a Manifest> {
    waiting.lock().ok()?.next()
}

fn good(status: &Status) -> bool {
    matches!(status, Status::Judged(Outcome::Passed | Outcome::Warning(_) | Outcome::Skipped(_)))
}

/// Judges one plugin in processes that may be lost: after a crash or at a deadline, a new one
/// goes on with the next check.
fn judge_apart(
    arguments: &ConformArguments,
    file: &File,
    manifest: &Manifest,
) -> Result<Vec<(&'static Check, Status)>> {
    let selected = |check: &&Check| {
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| glob_match(pattern, check.name));
        (arguments.include.is_empty() || matches(&arguments.include)) && !matches(&arguments.exclude)
    };
    let mut left: Vec<_> =
        all().filter(|check| check.applies_to(manifest.kind.name())).filter(selected).collect();
    let (mut statuses, mut blocked) = (Vec::new(), Vec::new());
    while !left.is_empty() {
        let (mut child, channel) = start(arguments, file, manifest, &left)?;
        let done = collect(arguments, &mut child, channel, &left, &mut statuses)?;
        left.drain(..done);
        left.retain(|check| {
            let lost = |(judged, status): &&(&Check, Status)| {
                Some(judged.name) == check.needs() && !matches!(status, Status::Judged(_))
            };
            let blocker = statuses.iter().find(lost).map(|(judged, _)| judged.name);
            blocked.extend(blocker.map(|name| (*check, Status::Judged(Outcome::blocked_by(name)))));
            blocker.is_none()
        });
    }
    statuses.append(&mut blocked);
    Ok(statuses)
}

/// A process, leader of its own group, that judges by the checks given. Its results come over
/// a socket that is its standard input: nothing it prints can get in between.
fn start(
    arguments: &ConformArguments,
    file: &File,
    manifest: &Manifest,
    checks: &[&Check],
) -> Result<(Child, UnixStream)> {
    let cannot = |why: std::io::Error| Error::new(format!("cannot start a judging process: {why}"));
    let names: Vec<_> = checks.iter().map(|check| check.name).collect();
    let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
    let child = Command::new(std::env::current_exe().map_err(cannot)?)
        .arg("conform")
        .arg(&file.path)
        .args(["--seed", &arguments.seed.to_string()])
        .args(["--judge", &format!("{}={}", manifest.name, names.join(","))])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(cannot)?;
    Ok((child, ours))
}

/// Reads results until the process ends, is lost or takes too long; says how many checks have
/// their result.
fn collect(
    arguments: &ConformArguments,
    child: &mut Child,
    channel: UnixStream,
    checks: &[&'static Check],
    statuses: &mut Vec<(&'static Check, Status)>,
) -> Result<usize> {
    let cannot = |why: std::io::Error| Error::new(format!("cannot hear a judging process: {why}"));
    channel.set_read_timeout(Some(Duration::from_secs(arguments.timeout))).map_err(cannot)?;
    let mut lines = BufReader::new(channel).lines();
    for (done, check) in checks.iter().enumerate() {
        let status = match lines.next() {
            Some(Ok(line)) => match serde_json::from_str::<Line>(&line) {
                Ok(line) if line.check == check.name => Status::Judged(line.outcome),
                _ => Status::Crashed("it sent something else than this check's result".to_owned()),
            },
            Some(Err(why)) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Status::TimedOut(arguments.timeout)
            }
            _ => {
                let status = child.wait().map_err(cannot)?;
                Status::Crashed(status.to_string())
            }
        };
        let lost = !matches!(status, Status::Judged(_));
        statuses.push((check, status));
        if lost {
            end(child);
            return Ok(done + 1);
        }
    }
    end(child);
    Ok(checks.len())
}

/// Ends a process and everything it started.
fn end(child: &mut Child) {
    // SAFETY: kill only sends a signal; the group is the child's own (`process_group(0)`), and
    // the child has not been waited for before it is signalled or is already gone.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    let _ = child.wait();
}

/// The judging process: runs the checks named, and sends each result over standard input.
fn judge_here(arguments: &ConformArguments, judge: &str) -> Result<u8> {
    let refused = |why: &dyn std::fmt::Display| Error::new(format!("--judge: {why}"));
    let (name, checks) = judge.split_once('=').ok_or_else(|| refused(&"expected PLUGIN=CHECKS"))?;
    let standard_input = std::io::stdin().as_fd().try_clone_to_owned().map_err(|why| refused(&why))?;
    let mut channel = UnixStream::from(standard_input);
    let spec = parse(&format!("{},plugin={name}", arguments.file))?;
    let (_, manifest) = library::choose(&spec, &[Kind::Model, Kind::Sampler, Kind::Attack])?;
    let plugin = match manifest.kind {
        Kind::Model => Plugin::Model(library::open_model(&spec)?.plugin),
        Kind::Sampler => Plugin::Sampler(library::open_sampler(&spec)?.plugin),
        _ => Plugin::Attack(library::open_attack(&spec)?.plugin),
    };
    // Judging is small work, and several processes may be at it.
    tch::set_num_threads(1);
    for name in checks.split(',') {
        let check =
            all().find(|check| check.name == name).ok_or_else(|| refused(&format!("no check `{name}`")))?;
        let line = Line { check: name.to_owned(), outcome: check.judge(&plugin, arguments.seed) };
        writeln!(channel, "{}", json!(line)).map_err(|why| refused(&why))?;
    }
    Ok(0)
}

fn show(arguments: &ConformArguments, manifest: &Manifest, check: &Check, status: &Status) {
    let again = format!("host conform {} --include {} --seed {}", arguments.file, check.name, arguments.seed);
    if arguments.json {
        return say(json!({
            "plugin": manifest.name, "check": check.name, "sentence": check.sentence, "status": status,
            "seed": arguments.seed, "reproduce": again,
        }));
    }
    let (word, details) = match status {
        Status::Judged(Outcome::Passed) => ("passed", String::new()),
        Status::Judged(Outcome::Skipped(why)) => ("skipped", format!(": {why}")),
        Status::Judged(Outcome::Warning(what)) => ("warning", format!(": {what}")),
        Status::Judged(Outcome::Failed { expected, got }) => {
            ("FAILED", format!(": {}\n    expected  {expected}\n    got       {got}", check.sentence))
        }
        Status::Crashed(how) => ("CRASHED", format!(": {}\n    got       {how}", check.sentence)),
        Status::TimedOut(seconds) => {
            ("TIMED OUT", format!(": {}\n    got       no end within {seconds} s", check.sentence))
        }
    };
    say(format_args!("{:10} {:26} {word}{details}", manifest.name, check.name));
    if !good(status) {
        say(format_args!("    again     {again}\n    more      docs/conformance.md, section {}", check.name));
    }
}
