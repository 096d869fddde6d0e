//! `host sweep`: many runs from one file; interruptions, failures, shares and summaries.

use crate::harness::{Outcome, Place, built, edit, repository, send, sha256};
use libc::{SIGINT, SIGKILL, SIGTERM, SIGXCPU};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const LINEAR: &str = "model = \"bad_plugins.so,plugin=linear\"\n";

/// A sweep over two learning rates and two seeds, one epoch each.
fn small_sweep(place: &Place, more: &str) {
    let text = format!(
        "{LINEAR}sampler = \"langevin.so\"\n[data]\nname = \"digits\"\n[threat]\nepsilon = 0.05\n\
         [train]\nepochs = 1\nbatch = 20\nthreads = 1\n[eval]\nattacks = [\"fgsm.so\", \"pgd.so,steps=3\"]\n\
         points = 30\n[sweep]\nseeds = [0, 1]\n{more}[sweep.axes]\ntrain.learning_rate = [0.01, 0.05]\n"
    );
    fs::write(place.path("small.toml"), text).expect("written");
}

const SMALL_RUNS: [&str; 4] = [
    "learning_rate=0.01,seed=0",
    "learning_rate=0.01,seed=1",
    "learning_rate=0.05,seed=0",
    "learning_rate=0.05,seed=1",
];

/// A sweep over four seeds whose runs are long enough to be stopped.
fn long_sweep(place: &Place) {
    let text = "sampler = \"langevin.so\"\n[data]\nname = \"digits\"\n[threat]\nepsilon = 0.05\n\
                [train]\nepochs = 3\nbatch = 10\nthreads = 1\ncheckpoint_every = 3\n\
                optimizer = \"adam\"\nlearning_rate = 0.002\n\
                [sweep]\nseeds = { from = 0, to = 3, step = 1 }\n";
    fs::write(place.path("long.toml"), text).expect("written");
}

fn read(place: &Place, file: &str) -> String {
    fs::read_to_string(place.path(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// The commands in a run's log.
fn commands(place: &Place, run: &str) -> Vec<String> {
    let log = read(place, &format!("{run}.log"));
    log.lines().filter_map(|line| line.strip_prefix("$ host ")).map(str::to_owned).collect()
}

/// The number of commands in a run's log that begin with `start`.
fn count(place: &Place, run: &str, start: &str) -> usize {
    commands(place, run).iter().filter(|command| command.starts_with(start)).count()
}

fn summary(place: &Place, sweep: &str) -> Value {
    serde_json::from_str(&read(place, &format!("sweeps/{sweep}/summary.json"))).expect("JSON")
}

fn statuses(place: &Place, sweep: &str) -> Vec<String> {
    let runs = summary(place, sweep)["runs"].as_array().expect("a list").clone();
    runs.iter().map(|run| run["status"].as_str().expect("a status").to_owned()).collect()
}

#[test]
fn every_run_is_an_ordinary_run_and_finished_ones_do_not_run_again() {
    let place = Place::with_digits(8, 100);
    small_sweep(&place, "eval = true\n");
    let words = place.host("sweep small.toml").succeeds().words();
    assert!(words.contains("[4/4] learning_rate=0.05,seed=1"), "{words}");
    assert!(words.contains("median (worst) over the seeds"), "{words}");

    for (number, name) in SMALL_RUNS.into_iter().enumerate() {
        let (folder, config) = (format!("sweeps/small/{name}"), format!("sweeps/small/{name}.toml"));
        place.host(&format!("train --config {config} --out by-hand-{number}")).succeeds();
        let run = place.run(&folder);
        run.assert_same_as(&place.run(&format!("by-hand-{number}")));

        let row = &summary(&place, "small")["runs"][number];
        assert_eq!(row["run"], name);
        assert_eq!(row["status"], "finished");
        let train = &run.record()["experiment"]["train"];
        assert_eq!(row["settings"]["train.learning_rate"], train["learning_rate"]);
        assert_eq!(row["settings"]["train.seed"], train["seed"]);
        let metrics = &run.metrics()[0];
        let result = &run.evaluations()[0]["result"];
        assert_eq!(result["points"], 30);
        let figures = json!({
            "epoch": 1.0,
            "passes_per_sample": 2.0,
            "seconds": metrics["seconds"],
            "peak_memory": metrics["peak_memory"].as_f64(),
            "train_accuracy": metrics["train_accuracy"],
            "clean": result["clean"],
            "fgsm.so": result["attacks"][0]["robust"],
            "pgd.so,steps=3": result["attacks"][1]["robust"],
            "worst_case": result["worst_case"],
        });
        assert_eq!(row["figures"], figures);
    }
    let csv = read(&place, "sweeps/small/summary.csv");
    assert!(
        csv.starts_with(
            "run,train.learning_rate,train.seed,status,epoch,passes_per_sample,seconds,peak_memory,train_accuracy,\
             clean,fgsm.so,\"pgd.so,steps=3\",worst_case\n\"learning_rate=0.01,seed=0\",0.01,0,finished,1,2,"
        ),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 5);
    let groups = summary(&place, "small")["groups"].clone();
    assert_eq!(groups.as_array().map(Vec::len), Some(2));
    let accuracy = |run: usize| summary(&place, "small")["runs"][run]["figures"]["clean"].as_f64();
    let (one, other) = (accuracy(2).expect("a share"), accuracy(3).expect("a share"));
    assert_eq!(groups[1]["settings"], json!({"train.learning_rate": 0.05}));
    assert_eq!(
        groups[1]["figures"]["clean"],
        json!({"median": (one + other) / 2.0, "worst": one.min(other)})
    );

    let before = place.contents();
    place.host("sweep small.toml").succeeds();
    assert!(place.contents() == before, "a finished sweep changes nothing");

    // Without several seeds there is no table over seeds.
    let several = read(&place, "small.toml");
    assert!(place.path("sweeps/small/summary-seeds.csv").exists());
    fs::write(place.path("small.toml"), several.replace("seeds = [0, 1]", "seeds = [0]")).expect("written");
    place.host("sweep small.toml").succeeds();
    assert!(!place.path("sweeps/small/summary-seeds.csv").exists());
    fs::write(place.path("small.toml"), several).expect("written");

    // A run whose folder is removed is trained and evaluated again.
    let removed = format!("sweeps/small/{}", SMALL_RUNS[1]);
    fs::remove_dir_all(place.path(&removed)).expect("removed");
    place.host("sweep small.toml").succeeds();
    assert_eq!((count(&place, &removed, "train"), count(&place, &removed, "eval")), (2, 2));
    assert_eq!(place.run(&removed).evaluations().len(), 1);
    assert_eq!(statuses(&place, "small"), ["finished"; 4]);
}

#[test]
fn a_dry_run_lists_the_runs_and_writes_nothing() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "");
    let before = place.contents();
    let words = place.host("sweep small.toml --dry-run").succeeds().words();
    assert!(place.contents() == before);
    for name in SMALL_RUNS {
        assert!(words.contains(name), "{words}");
    }
    assert_eq!(words.matches("waiting").count(), 4, "{words}");
    let words = place.host("sweep small.toml --dry-run --task 2/3").succeeds().words();
    assert!(words.contains(SMALL_RUNS[1]) && !words.contains(SMALL_RUNS[0]), "{words}");
}

#[test]
fn a_sweep_can_grow_and_be_evaluated_later() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "");
    place.host("sweep small.toml").succeeds();
    let metrics = place.run(&format!("sweeps/small/{}", SMALL_RUNS[0])).metrics();
    fs::write(place.path("mine.toml"), "attacks = [\"fgsm.so\", \"pgd.so,steps=2\"]\n").expect("written");
    small_sweep(&place, "suite = \"mine.toml\"\n");
    edit(&place.path("small.toml"), |text| {
        *text = String::from_utf8_lossy(text).replace("[0.01, 0.05]", "[0.01, 0.05, 0.1]").into();
    });
    place.host("sweep small.toml").succeeds();
    for name in SMALL_RUNS {
        let run = format!("sweeps/small/{name}");
        assert_eq!(commands(&place, &run).len(), 2, "trained once, evaluated once");
        assert_eq!(commands(&place, &run)[1], format!("eval {run} --json --once --suite mine.toml"));
    }
    assert_eq!(place.run(&format!("sweeps/small/{}", SMALL_RUNS[0])).metrics(), metrics);
    assert_eq!(statuses(&place, "small"), ["finished"; 6]);
    let figures = &summary(&place, "small")["runs"][5]["figures"];
    let result = &place.run("sweeps/small/learning_rate=0.1,seed=1").evaluations()[0]["result"];
    assert_eq!(figures["mine.toml"], result["worst_case"]);
    assert_eq!(figures["mine.toml: pgd.so,steps=2"], result["attacks"][1]["robust"]);
    assert_eq!(figures["clean"], result["clean"]);
}

// --------------------------------------------------------------------------- stopped and resumed

/// Starts the long sweep and sends a signal in the middle of the second run: to the sweep's process
/// only, or, like a terminal, also to the processes that it started.
fn stop(place: &Place, signal: i32, to_all: bool) -> std::process::Output {
    let mut command = place.command("sweep long.toml --stop-signal XCPU");
    // Files are slow, so that the second run is not over before the signal arrives.
    command.env("DRO_FAULT", "slow:train:2");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut sweep = command.spawn().expect("the host starts");
    let second = place.run("sweeps/long/seed=1");
    let started = Instant::now();
    // An epoch has forty updates.
    while second.newest_update().is_none_or(|update| update < 40) {
        assert!(started.elapsed() < Duration::from_secs(120), "the second run has no checkpoint");
        assert!(sweep.try_wait().expect("a child").is_none(), "the sweep has ended");
        sleep(Duration::from_millis(1));
    }
    let process = sweep.id() as i32;
    // SAFETY: this sends a signal to a child process that was not waited for yet, or to its group.
    unsafe { libc::kill(if to_all { -process } else { process }, signal) };
    sweep.wait_with_output().expect("the host ends")
}

fn goes_on(place: &Place) {
    let update = place.run("sweeps/long/seed=1").newest_update().expect("a checkpoint");
    assert!(update < 120, "stopped before the end");
    place.host("sweep long.toml").succeeds();
    assert_eq!(statuses(place, "long"), ["finished"; 4]);
    assert_eq!(commands(place, "sweeps/long/seed=0").len(), 1, "a finished run does not run again");
    assert_eq!(count(place, "sweeps/long/seed=1", "train --resume"), 1);
    place.host("train --config sweeps/long/seed=1.toml --out whole").succeeds();
    place.run("sweeps/long/seed=1").assert_same_as(&place.run("whole"));
}

#[test]
fn a_killed_sweep_continues() {
    let place = Place::with_digits(8, 400);
    long_sweep(&place);
    assert_eq!(stop(&place, SIGKILL, false).status.code(), None);
    goes_on(&place);
}

#[test]
fn a_sweep_that_was_stopped_by_a_signal_continues() {
    for (signal, to_all) in [(SIGINT, false), (SIGINT, true), (SIGXCPU, true)] {
        let place = Place::with_digits(8, 400);
        long_sweep(&place);
        let output = stop(&place, signal, to_all);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(130), "{errors}");
        assert!(errors.starts_with("warning: stopped; the same command goes on from here"), "{errors}");
        assert_eq!(statuses(&place, "long"), ["finished", "unfinished", "waiting", "waiting"]);
        // The interrupted run stopped with a checkpoint.
        let log = read(&place, "sweeps/long/seed=1.log");
        assert!(log.contains("warning: stopped at update"), "{log}");
        goes_on(&place);
    }
}

#[test]
fn a_command_that_ends_with_exit_code_0_too_early_is_a_failed_run() {
    let place = Place::with_digits(8, 60);
    let sampler = |how: &str| format!("bad_plugins.so,plugin=misbehaves,how={how}");
    let text = format!(
        "{LINEAR}[data]\nname = \"digits\"\n[train]\nepochs = 1\nthreads = 1\n[eval]\nattacks = [\"{}\"]\n\
         [sweep]\neval = true\n[sweep.axes]\nsampler = [\"{}\", \"none\"]\n",
        sampler("step-vanishes"),
        sampler("step-vanishes"),
    );
    fs::write(place.path("early.toml"), text).expect("written");
    place.host("sweep early.toml").ended_with(1).explains(&[
        "failed: host train ended with exit code 0, but the run is not trained",
        "failed: host eval ended with exit code 0, but it printed no evaluation",
        "2 of 2 runs failed",
    ]);
    assert_eq!(statuses(&place, "early"), ["failed"; 2]);
}

#[test]
fn two_signals_at_the_same_time_count_as_one() {
    // This happens if a job manager signals the sweep and its child, and the sweep signals the
    // child, too.
    let place = Place::with_digits(8, 400);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --checkpoint-every 3 --epochs 20 --out run";
    let mut command = place.command(train);
    let mut host = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts");
    while place.run("run").newest_update().is_none() {
        assert!(host.try_wait().expect("a child").is_none(), "the training has ended");
        sleep(Duration::from_millis(1));
    }
    for signal in [SIGINT, SIGTERM] {
        send(&host, signal);
    }
    let output = host.wait_with_output().expect("the host ends");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.starts_with("warning: stopped at update"), "{errors}");
}

// ---------------------------------------------------------------------------------------- failed

/// A sweep over two models, one of which fails at its 14th call, in the second epoch of ten
/// updates.
fn failing_sweep(place: &Place) {
    let text = "sampler = \"none\"\n[data]\nname = \"digits\"\n[train]\nepochs = 2\nbatch = 6\nthreads = 1\n\
                [sweep.axes]\nmodel = [\"bad_plugins.so,plugin=explodes\", \"bad_plugins.so,plugin=linear\"]\n";
    fs::write(place.path("failing.toml"), text).expect("written");
}

#[test]
fn a_failed_run_is_reported_and_retried_on_request() {
    let place = Place::with_digits(8, 60);
    failing_sweep(&place);
    let failed = "sweeps/failing/model=bad_plugins.so,plugin=explodes";
    let reason = "the loss became NaN or infinite at update 14";
    let report = |outcome: Outcome| {
        let line = outcome.first_line();
        assert!(line.starts_with("warning: model=bad_plugins.so,plugin=explodes failed"), "{line}");
        outcome.ended_with(1).explains(&[reason, "1 of 2 runs failed; --retry-failed"]);
    };
    report(place.host("sweep failing.toml"));
    assert_eq!(statuses(&place, "failing"), ["failed", "finished"], "the other run is finished");
    assert_eq!(summary(&place, "failing")["runs"][0]["reason"], reason);
    assert!(read(&place, &format!("{failed}.log")).contains(&format!("error: {reason}")));

    report(place.host("sweep failing.toml"));
    assert_eq!(commands(&place, failed).len(), 1, "a failed run does not run again by default");
    // The retry starts from the checkpoint after the first epoch, so the second has fewer than 14
    // calls.
    place.host("sweep failing.toml --retry-failed").succeeds();
    assert_eq!(commands(&place, failed)[1], format!("train --resume {failed}"));
    assert_eq!(statuses(&place, "failing"), ["finished", "finished"]);
    assert_eq!(summary(&place, "failing")["runs"][0]["reason"], Value::Null);
    place.host("sweep failing.toml").succeeds();
}

#[test]
fn a_run_with_a_damaged_file_fails_and_the_others_continue() {
    let place = Place::with_digits(8, 100);
    small_sweep(&place, "");
    place.host("sweep small.toml").succeeds();
    // The runs must now be evaluated, too. One of them has a file of the evaluation, which is
    // damaged.
    small_sweep(&place, "eval = true\n");
    let damaged = place.path(&format!("sweeps/small/{}/sweep.json", SMALL_RUNS[1]));
    fs::write(&damaged, "garbage").expect("written");
    place.host("sweep small.toml --dry-run").succeeds();
    let outcome = place.host("sweep small.toml");
    let line = outcome.first_line();
    assert!(line.contains(SMALL_RUNS[1]) && line.contains("sweep.json") && line.contains("move"), "{line}");
    outcome.ended_with(1);
    assert_eq!(statuses(&place, "small"), ["finished", "failed", "finished", "finished"]);
    assert_eq!(fs::read_to_string(&damaged).expect("a file"), "garbage");
    fs::remove_file(&damaged).expect("removed");
    place.host("sweep small.toml").succeeds();
    assert_eq!(statuses(&place, "small"), ["finished"; 4]);
}

#[test]
fn a_run_that_failed_without_a_checkpoint_starts_again_with_the_repaired_plugin() {
    let place = Place::with_digits(8, 60);
    let library = place.copy_built("libbad_plugins.so");
    let text = format!(
        "{LINEAR}[data]\nname = \"digits\"\n[train]\nepochs = 1\nthreads = 1\nstore_file = \"kept\"\n\
         [sweep.axes]\nsampler = [\"./bad_plugins.so,plugin=panics\"]\n"
    );
    fs::write(place.path("anew.toml"), text).expect("written");
    let name = "sweeps/anew/sampler=._bad_plugins.so,plugin=panics";
    let run = || {
        let entries = fs::read_dir(place.path("sweeps/anew")).expect("a folder").flatten();
        let names = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
        let name = names.filter_map(|name| name.into_string().ok()).find(|name| name.starts_with("sampler="));
        format!("sweeps/anew/{}", name.expect("a run"))
    };
    for (attempt, flag) in [(1, ""), (2, " --retry-failed")] {
        place.host(&format!("sweep anew.toml{flag}")).ended_with(1).explains(&["cannot move 60 particles"]);
        assert!(run().starts_with(name), "{}", run());
        assert_eq!(count(&place, &run(), "train --config"), attempt);
        assert_eq!(count(&place, &run(), "train"), attempt, "without a checkpoint to continue from");
        assert_eq!(place.run(&run()).record()["plugins"]["sampler"]["sha256"], sha256(&library));
        edit(&library, |contents| contents.extend(b"mended"));
    }
}

// ------------------------------------------------------------------------------------ shared out

#[test]
fn tasks_do_every_run_exactly_once() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "");
    for (task, done) in [("1/3", vec![0, 3]), ("2/3", vec![0, 1, 3]), ("3/3", vec![0, 1, 2, 3])] {
        place.host(&format!("sweep small.toml --task {task}")).succeeds();
        let finished: Vec<_> = (0..4).filter(|run| statuses(&place, "small")[*run] == "finished").collect();
        assert_eq!(finished, done, "after task {task}");
    }
    for name in SMALL_RUNS {
        assert_eq!(commands(&place, &format!("sweeps/small/{name}")).len(), 1, "{name}");
    }
}

#[test]
fn processes_in_one_folder_take_different_runs() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "eval = true\n");
    let start = || {
        let mut command = place.command("sweep small.toml");
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts")
    };
    let processes = [start(), start(), start()];
    for process in processes {
        let output = process.wait_with_output().expect("the host ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(
        statuses(&place, "small"),
        ["finished"; 4],
        "the process that ended last has the results of all"
    );
    for name in SMALL_RUNS {
        let run = format!("sweeps/small/{name}");
        assert_eq!((count(&place, &run, "train"), count(&place, &run, "eval")), (1, 1), "{name}");
    }
}

#[test]
fn the_job_script_does_every_run_exactly_once() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "");
    // A replacement of SLURM's `srun`, which runs a command.
    fs::create_dir(place.path("bin")).expect("a folder");
    fs::write(place.path("bin/srun"), "#!/bin/sh\nexec \"$@\"\n").expect("written");
    fs::set_permissions(place.path("bin/srun"), fs::Permissions::from_mode(0o755)).expect("changed");
    let programs = built("host").parent().expect("a folder").to_owned();
    let path = format!("{}:{}:/usr/bin:/bin", place.path("bin").display(), programs.display());
    for task in 1..=6 {
        let mut job = Command::new("bash");
        job.arg(repository().join("examples/sweep.slurm")).arg("small.toml").current_dir(place.path(""));
        job.env("PATH", &path).env("SLURM_ARRAY_TASK_ID", task.to_string());
        place.outcome(&mut job).succeeds();
    }
    assert_eq!(statuses(&place, "small"), ["finished"; 4]);
    for name in SMALL_RUNS {
        assert_eq!(commands(&place, &format!("sweeps/small/{name}")).len(), 1, "{name}");
    }
}

// ------------------------------------------------------------------------------------- bad input

#[test]
fn mistakes_are_refused_before_anything_is_written() {
    let place = Place::with_digits(8, 60);
    let base = format!("{LINEAR}[data]\nname = \"digits\"\n[sweep]\n");
    for (more, parts, explanations) in [
        ("", ["the sweep varies nothing"].as_slice(), ["[sweep.axes]"].as_slice()),
        (
            "[sweep.axes]\ntrain.epoch = [1, 2]\n",
            &["bad.toml, line 6: train.epoch: unknown field `epoch`"],
            &[],
        ),
        ("[sweep.axes]\ntrain.epochs = []\n", &["bad.toml, line 6: train.epochs: the list is empty"], &[]),
        ("search = \"random\"\nruns = 0\nseeds = [1]\n", &["sweep.runs: expected 1 to 10000", "got 0"], &[]),
        (
            "[sweep.axes]\ntrain.epochs = { from = 1, to = 5, step = 0 }\n",
            &["bad.toml, line 6: train.epochs:", "never ends"],
            &[],
        ),
        (
            "[sweep.axes]\ntrain.epochs = [1, \"two\"]\n",
            &["bad.toml, line 6: train.epochs: invalid type"],
            &[],
        ),
        (
            "[sweep.axes]\ntrain.momentum = [0, 1]\n",
            &["train.momentum: expected a number from 0 to below 1, got 1"],
            &["bad.toml, line 6", "momentum=1"],
        ),
        (
            "[sweep.axes]\nsampler.nose = [0.1, 0.2]\n",
            &["langevin", "unknown option `nose`"],
            &["bad.toml, line 6", "sampler.nose=0.1"],
        ),
        (
            "[sweep.axes]\nsampler.noise = [0.1, -0.2]\n",
            &["langevin", "`noise`", "at least 0", "got -0.2"],
            &["bad.toml, line 6"],
        ),
        (
            "[sweep.axes]\ndata.train_points = [60, 61]\n",
            &["data.train_points", "1 to 60", "got 61"],
            &["=61"],
        ),
        ("[sweep.axes]\ndata.name = [\"digits\", \"nowhere\"]\n", &["nowhere"], &["data.name=nowhere"]),
        ("seeds = [1]\nsuite = \"autoatack\"\n", &["there is no suite `autoatack`"], &[]),
    ] {
        fs::write(place.path("bad.toml"), format!("{base}{more}")).expect("written");
        place.refuses("sweep bad.toml", parts).explains(explanations);
    }
    fs::write(place.path("bad.toml"), LINEAR).expect("written");
    place.refuses("sweep bad.toml", &["bad.toml has no table [sweep]"]).explains(&["host train --config"]);
    place.refuses("sweep absent.toml", &["cannot read absent.toml"]);
    small_sweep(&place, "");
    place.refuses("sweep small.toml --out digits", &["digits already exists and holds no sweep"]);
    place.refuses("sweep small.toml --task 4/3", &["--task", "4/3"]);
    // The file of a sweep is not an experiment file.
    place
        .refuses("train --config small.toml --out run", &["small.toml: expected one experiment, got a sweep"])
        .explains(&["host sweep small.toml"]);
}

#[test]
fn a_folder_with_other_settings_is_refused() {
    let place = Place::with_digits(8, 60);
    small_sweep(&place, "");
    place.host("sweep small.toml --task 1/4").succeeds();
    edit(&place.path("small.toml"), |text| {
        *text = String::from_utf8_lossy(text).replace("epochs = 1", "epochs = 2").into();
    });
    let file = format!("sweeps/small/{}.toml", SMALL_RUNS[0]);
    place
        .refuses("sweep small.toml", &[&file, "train.epochs = 1", "the sweep's file now says 2"])
        .explains(&["--out"]);
    place.host("sweep small.toml --out other --task 1/4").succeeds();
    assert_eq!(place.run(&format!("other/{}", SMALL_RUNS[0])).metrics().len(), 2);
}

#[test]
fn a_run_that_was_extended_is_left_unchanged_and_its_results_are_not_those_of_its_setting() {
    let place = Place::with_digits(8, 60);
    let text = format!(
        "{LINEAR}sampler = \"none\"\n[data]\nname = \"digits\"\n[train]\nepochs = 1\nthreads = 1\n\
         schedule = \"constant\"\n[sweep]\nseeds = [0]\n"
    );
    fs::write(place.path("one.toml"), text).expect("written");
    place.host("sweep one.toml").ended_with(0);
    place.host("train --resume sweeps/one/seed=0 --epochs 2").ended_with(0);
    let why = "seed=0 has 2 epochs, the sweep asks for 1: it was extended";
    place.host("sweep one.toml").ended_with(1).explains(&["seed=0 is left unchanged", why]);
    let run = &summary(&place, "one")["runs"][0];
    assert_eq!(run["status"], "failed");
    assert!(run["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{run}");
}
