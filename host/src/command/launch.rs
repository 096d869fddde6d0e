use super::arguments::{Arguments, Command, LaunchArguments};
use super::in_a_line;
use super::signals::stop_on_signals;
use crate::util::child::stops_with_parent;
use crate::util::console::output;
use crate::util::interrupt;
use crate::{Error, INTERRUPTED, Result};
use clap::Parser;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two looks at the processes.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The longest time in which the other processes end by themselves once one has failed.
const FAREWELL: Duration = Duration::from_secs(20);

/// The machine on which the processes meet: this one.
const HERE: &str = "127.0.0.1";

/// `host launch`
pub fn run(arguments: &LaunchArguments) -> Result<u8> {
    check(&arguments.command)?;
    let stop = stop_on_signals(&arguments.stop)?;
    // The processes decide what they keep.
    interrupt::heed();
    let port = free_port()?;
    let mut processes = Processes(Vec::new());
    for rank in 0..arguments.processes {
        processes.0.push(Process { child: start(arguments, rank, port)?, ended: None });
    }
    processes.wait(&stop)
}

/// Refuses a command that several processes cannot carry.
fn check(command: &[String]) -> Result<()> {
    let words = std::iter::once("host").chain(command.iter().map(String::as_str));
    let parsed = Arguments::try_parse_from(words).map_err(|why| {
        Error::new(format!("the command after `--`: {}", in_a_line(&why)))
            .fix("write `host launch -n 2 -- train ...` or eval; look at `host train --help`")
    })?;
    match parsed.command {
        Command::Train(_) => Ok(()),
        Command::Eval(arguments) if !arguments.transfer => Ok(()),
        _ => Err(Error::new(format!(
            "the command after `--`: expected train or eval (without --transfer), got {}",
            command.first().map_or("nothing", String::as_str)
        ))
        .fix("write `host launch -n 2 -- train ...`; other commands run in one process")),
    }
}

/// A port of this machine that nothing uses at the moment.
fn free_port() -> Result<u16> {
    let port = TcpListener::bind((HERE, 0)).and_then(|listener| listener.local_addr());
    Ok(port.map_err(|why| Error::new(format!("cannot find a free port of this machine: {why}")))?.port())
}

fn start(arguments: &LaunchArguments, rank: usize, port: u16) -> Result<Child> {
    // The program's file may have been replaced in the meantime.
    let mut command = process::Command::new("/proc/self/exe");
    command.arg0(std::env::args_os().next().unwrap_or_default()).args(&arguments.command);
    let [rank_text, size, port] = [rank, arguments.processes, port.into()].map(|number| number.to_string());
    for (name, value) in [
        ("RANK", rank_text.as_str()),
        ("LOCAL_RANK", &rank_text),
        ("WORLD_SIZE", &size),
        ("LOCAL_WORLD_SIZE", &size),
        ("MASTER_ADDR", HERE),
        ("MASTER_PORT", &port),
    ] {
        command.env(name, value);
    }
    command.env_remove("TORCHELASTIC_USE_AGENT_STORE").stdin(Stdio::null());
    stops_with_parent(&mut command);
    // Process 0 prints for all.
    let output = if rank == 0 { output().map(Stdio::from) } else { Ok(Stdio::null()) };
    output
        .and_then(|output| command.stdout(output).spawn())
        .map_err(|why| Error::new(format!("cannot start process {rank}: {why}")).on_the_way())
}

struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

/// The processes by their ranks. None outlives this value.
struct Processes(Vec<Process>);

impl Drop for Processes {
    fn drop(&mut self) {
        for process in self.0.iter_mut().filter(|process| process.ended.is_none()) {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

impl Processes {
    /// Waits until all have ended. The exit code is that of the first one that failed.
    fn wait(mut self, stop: &AtomicBool) -> Result<u8> {
        let (mut told, mut failed) = (false, None);
        loop {
            if stop.load(Ordering::Relaxed) && !told {
                told = true;
                self.tell_to_stop();
            }
            for (rank, process) in
                self.0.iter_mut().enumerate().filter(|(_, process)| process.ended.is_none())
            {
                let ended = process.child.try_wait();
                process.ended = ended.map_err(|why| {
                    Error::new(format!("cannot wait for process {rank}: {why}")).on_the_way()
                })?;
                let Some(status) = process.ended else { continue };
                // One that does not listen to signals yet was stopped all the same.
                let is_stopped = told && status.signal() == Some(libc::SIGTERM);
                if let Some(signal) = status.signal().filter(|_| !is_stopped) {
                    return Err(killed(rank, process.child.id(), signal));
                }
                let code = if is_stopped { INTERRUPTED } else { status.code().unwrap_or(1) as u8 };
                if code != 0 && failed.is_none() {
                    failed = Some((rank, code, Instant::now()));
                }
            }
            if self.0.iter().all(|process| process.ended.is_some()) {
                return Ok(failed.map_or(0, |(_, code, _)| code));
            }
            match failed {
                Some((rank, code, when)) if code != INTERRUPTED && when.elapsed() > FAREWELL => {
                    let left: Vec<_> =
                        (0..self.0.len()).filter(|rank| self.0[*rank].ended.is_none()).collect();
                    return Err(Error::new(format!(
                        "process {rank} ended with exit code {code}, and processes {left:?} went on for {} s: they \
                         were killed",
                        FAREWELL.as_secs()
                    ))
                    .on_the_way());
                }
                _ => thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn tell_to_stop(&self) {
        for process in self.0.iter().filter(|process| process.ended.is_none()) {
            // SAFETY: the call sends a signal to a child that has not been waited for.
            unsafe { libc::kill(process.child.id() as libc::pid_t, libc::SIGTERM) };
        }
    }
}

fn killed(rank: usize, pid: u32, signal: i32) -> Error {
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("of no name");
    let memory = if signal == libc::SIGKILL { "; was the machine short of memory?" } else { "" };
    Error::new(format!(
        "process {rank} (pid {pid}) was killed by signal {signal} ({name}); the others were ended"
    ))
    .note("kept", "a run keeps its last checkpoint, if it had one")
    .fix(format!("go on with `host launch` and `train --resume RUN`, or the same evaluation{memory}"))
    .on_the_way()
}
