//! A stop is heard inside the batch of an attack, whatever the attack makes of it, and a command that
//! has long said nothing says what it does.

use crate::eval::trained;
use crate::harness::{Outcome, PATIENCE, Place, json_file, send};
use libc::{SIGINT, SIGTERM, SIGXCPU};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// An attack that would ask its victim for ten minutes in one batch.
fn slow(how: &str) -> String {
    format!("bad_plugins.so,plugin=slow,how={how}")
}

/// Runs a command with that attack, and stops it once the attack has asked.
fn stopped<'a>(place: &'a Place, command: &str, signal: i32) -> Outcome<'a> {
    let asking = place.path("asking");
    let _ = fs::remove_file(&asking);
    place.signal_when(command, signal, || asking.exists())
}

/// The files of findings of the unfinished evaluations of `run`.
fn findings(place: &Place) -> Vec<PathBuf> {
    let folders = fs::read_dir(place.path("run/unfinished")).into_iter().flatten().flatten();
    folders.map(|folder| folder.path().join("findings.json")).filter(|path| path.exists()).collect()
}

const GOES_ON: &str = "interrupted; the same command goes on from here";

#[test]
fn a_stop_is_heard_at_the_next_call_of_an_attack_to_its_victim() {
    let place = trained(0.06);
    for how in ["asks", "swallows"] {
        let command = format!("eval run --attack fgsm.so --attack {} --batch 100", slow(how));
        stopped(&place, &command, SIGTERM).fails(130, &[GOES_ON]);
        let [path] = &findings(&place)[..] else { panic!("one unfinished evaluation") };
        let found = &json_file(path)["findings"];
        assert_eq!(found["results"].as_array().map(Vec::len), Some(1), "{how}: the first attack is kept");
        assert_eq!(found["verdicts"]["attacks"].as_array().map(Vec::len), Some(1), "{how}");
        fs::remove_dir_all(place.path("run/unfinished")).expect("removed");
    }
}

#[test]
fn an_attack_that_goes_on_asking_after_a_stop_does_not_hold_the_process() {
    let place = trained(0.06);
    let command = format!("eval run --attack fgsm.so --attack {}", slow("asks-again"));
    stopped(&place, &command, SIGINT).was_interrupted(&["slow: run went on asking the model"]);
    assert_eq!(findings(&place).len(), 1, "what was found before is kept");
}

#[test]
fn a_stop_is_heard_within_the_chain_of_a_sampler() {
    let place = trained(0.06);
    let begun = || findings(&place).len() == 1;
    // 60,000 steps of 100 points, in one batch, take a minute or more; they are not waited for.
    let command = "eval run --attack fgsm.so --attack pgd.so,steps=60000 --batch 100";
    place.signal_when(command, SIGTERM, begun).fails(130, &[GOES_ON]);
}

#[test]
fn a_stop_is_heard_within_a_probe_a_trace_and_a_transfer_matrix() {
    let place = trained(0.06);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 3 --batch 20";
    let probe = format!("{train} --validation-points 20 --probe {} --out probed", slow("asks"));
    stopped(&place, &probe, SIGTERM).was_interrupted(&["stopped at update 19"]);
    let trace = format!("{train} --trace {} --trace-points 20 --out traced", slow("swallows"));
    stopped(&place, &trace, SIGTERM).was_interrupted(&["stopped at update 1,"]);
    for run in ["probed", "traced"] {
        assert!(place.run(run).newest_update().is_some(), "{run}: the state is kept");
    }
    let matrix = format!("eval run traced --transfer --epsilon 0.1 --attack {}", slow("asks"));
    stopped(&place, &matrix, SIGTERM).fails(130, &[GOES_ON]);
}

#[test]
fn a_stop_is_heard_within_an_update_of_many_steps() {
    let place = Place::with_digits(8, 400);
    // The first update would take a minute or more.
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 100 --epochs 2 --epsilon 0.1 \
                 --sampler pgd.so,steps=60000 --out run";
    let begun = || place.path("run/metrics.jsonl").exists();
    place.signal_when(train, SIGTERM, begun).was_interrupted(&["stopped at update 0,"]);
    assert_eq!(place.run("run").newest_update(), Some(0), "the state before the update is kept");
}

/// The processes that a process has started.
fn children(pid: u32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread =
        |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let text = threads.map(of_thread).collect::<Vec<_>>().concat();
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

#[test]
fn a_stop_of_a_download_ends_what_it_has_started() {
    let place = Place::empty();
    // The sites of MNIST cannot be reached, and the program that is asked next takes its time.
    let programs = place.path("programs");
    fs::create_dir(&programs).expect("made");
    fs::write(programs.join("python3"), "#!/bin/sh\nexec sleep 600\n").expect("written");
    fs::set_permissions(programs.join("python3"), fs::Permissions::from_mode(0o755)).expect("changed");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut fetch = place.command("data fetch mnist --data-folder data");
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        fetch.env(name, "http://127.0.0.1:9");
    }
    let mut host = fetch.env("PATH", path).stdout(Stdio::null()).spawn().expect("the host starts");
    let begun = Instant::now();
    let until = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(10));
        }
    };
    let read = |pid: i32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let sleeping = || children(host.id()).into_iter().find(|pid| read(*pid, "cmdline").contains("sleep"));
    until("no program is asked", &|| sleeping().is_some());
    let started = sleeping().expect("a process");
    send(&host, SIGINT);
    assert!(!host.wait().expect("a child").success());
    // It is nobody's child now, and may be seen until the system has removed it.
    until("what it has started goes on", &|| {
        let status = read(started, "status");
        status.is_empty() || status.contains("State:\tZ")
    });
}

/// A file that is read for ever.
fn endless_file(place: &Place, name: &str) {
    let path = CString::new(place.path(name).as_os_str().as_bytes()).expect("a path");
    // SAFETY: the path is a C string; the call makes a named pipe there.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

#[test]
fn a_stop_before_the_work_has_begun_ends_the_command_at_once() {
    let place = trained(0.06);
    endless_file(&place, "pipe.toml");
    let folder = place.path(".").canonicalize().expect("a folder");
    for command in ["train --config pipe.toml", "eval run --suite pipe.toml", "sweep pipe.toml"] {
        let before = place.contents();
        place
            .signal_when(command, SIGTERM, || crate::pairs::handles_interrupts(&folder))
            .was_interrupted(&["before anything was kept; there is no result"]);
        assert!(place.contents() == before, "{command} changed files");
    }
}

#[test]
fn a_scheduler_may_choose_the_signal() {
    let place = Place::with_digits(8, 400);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --checkpoint-every 3 --epochs 200 \
                 --out run --stop-signal SIGXCPU";
    place.interrupt(train, "run", SIGXCPU, |_| true).was_interrupted(&["stopped at update"]);
    let resume = "train --resume run --stop-signal";
    place.host(&format!("{resume} KILL")).ended_with(2).explains(&["--stop-signal", "XCPU", "got `KILL`"]);
    place.host("eval run --stop-signal 0").ended_with(2).explains(&["got `0`"]);
}

#[test]
fn a_command_that_has_long_said_nothing_says_what_it_does() {
    let place = trained(0.06);
    let command = format!("eval run --points 10 --attack {}", slow("thinks"));
    let run =
        |command: &str| place.outcome(place.command(command).env("DRO_PROGRESS_SECONDS", "1")).ended_with(0);
    let is_news = |line: &str| line.contains("how=thinks: ") && line.ends_with(" s so far");
    let words = run(&command).words();
    assert!(words.lines().any(is_news), "{words}");
    // In JSON style, standard output is for the result alone.
    let outcome = run(&format!("{command} --json"));
    outcome.json();
    outcome.explains(&["progress: bad_plugins.so,plugin=slow,how=thinks: ", " of 10 points: ", " s so far"]);
}
