//! Several processes that train one network.

use crate::harness::{Outcome, PATIENCE, Place, Run, Tensors, send};
use libc::{SIGKILL, SIGTERM};
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The arguments of a training of 200 points in batches of 8, 25 updates an epoch: two epochs in
/// four shards, unless the flags say otherwise.
fn training(flags: &str) -> String {
    let usual = |flag: &str, value: &str| {
        if flags.contains(flag) { String::new() } else { format!(" {flag} {value}") }
    };
    format!(
        "train --recipe algorithm-1 --data digits --threads 1 --batch 8 --epsilon 0.1 {flags}{}{}{}",
        usual("--model", "cnn.so,arch=B"),
        usual("--epochs", "2"),
        usual("--shards", "4")
    )
}

/// A folder with data; none if this host was built without Gloo's headers, which `make setup` says.
fn place() -> Option<Place> {
    let place = Place::with_digits(9, 200);
    has_gloo(&place).then_some(place)
}

/// Whether several processes can work together.
pub fn has_gloo(place: &Place) -> bool {
    let has_gloo = !place.host("doctor --json").words().contains("without Gloo");
    if !has_gloo {
        eprintln!("skipped: this host was built without Gloo (libgloo-dev)");
    }
    has_gloo
}

/// Trains in so many processes, or in one without a launcher. So short a training may warn that it
/// stays at chance level.
fn train(place: &Place, processes: usize, flags: &str, run: &str) -> Run {
    let launch = if processes > 1 { format!("launch -n {processes} -- ") } else { String::new() };
    place.host(&format!("{launch}{} --out {run}", training(flags))).ended_with(0);
    place.run(run)
}

/// The largest difference of two weights.
#[track_caller]
fn difference(one: &Run, other: &Run) -> f32 {
    let (one, other) = (one.weights(), other.weights());
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    let all =
        |run: &Tensors| -> Vec<f32> { run.values().flat_map(|(_, numbers)| numbers).copied().collect() };
    let (one, other) = (all(&one), all(&other));
    assert!(one.len() > 500 && one.len() == other.len());
    one.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

/// Summation order alone differs after 50 updates.
const CLOSE: f32 = 1e-6;

/// So many processes must train the network of one.
#[track_caller]
fn assert_the_network_of_one(place: &Place, flags: &str, processes: usize) {
    let [one, many] = [1, processes].map(|count| train(place, count, flags, &format!("run-{count}")));
    let off = difference(&one, &many);
    assert!(off <= CLOSE, "{off}");
}

#[test]
fn the_network_does_not_depend_on_the_number_of_processes() {
    let Some(place) = place() else { return };
    // A state of each particle, two particles a point, and an average of the weights.
    let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1 --particles 2 --average 0.9";
    let alone = train(&place, 1, flags, "one");
    for processes in [2, 4] {
        let run = train(&place, processes, flags, &format!("run-{processes}"));
        let off = difference(&alone, &run);
        assert!(off <= CLOSE, "{processes} processes: {off}");
        for (one, other) in alone.metrics().iter().zip(run.metrics()) {
            for key in ["train_loss", "train_accuracy"] {
                let [one, other] = [one, &other].map(|metrics| metrics[key].as_f64().expect("a number"));
                assert!((one - other).abs() <= 1e-4, "{key}: {one} and {other}");
            }
            assert_eq!(one["passes_per_sample"], other["passes_per_sample"]);
            assert!(one.get("communication_seconds").is_none() && other["communication_seconds"].is_number());
        }
    }
    // The same processes give the same bits.
    train(&place, 2, flags, "again").assert_same_as(&place.run("run-2"));
    // Another number of shards gives another order of points.
    let unsharded = train(&place, 1, &format!("{flags} --shards 1"), "unsharded");
    assert!(difference(&alone, &unsharded) > 1e-3);
    // Evaluations do not ask how a run was trained.
    place.host("eval run-2 --attack fgsm.so --points 20").ended_with(0);
}

#[test]
fn fused_training_does_not_depend_on_it_either() {
    let Some(place) = place() else { return };
    let flags = "--mode fused --replay 2 --sampler bad_plugins.so,plugin=momentum --store u8 --start uniform-store \
                 --crop 1 --flip";
    assert_the_network_of_one(&place, flags, 2);
}

#[test]
fn nor_does_what_goes_on_from_minibatch_to_minibatch() {
    let Some(_) = place() else { return };
    // The last minibatch leaves some shards without points.
    let place = Place::with_digits(9, 201);
    // Without signs of gradients, which rounding may turn.
    let flags =
        "--mode fused --replay 2 --sampler bad_plugins.so,plugin=momentum --start carried --particles 2";
    assert_the_network_of_one(&place, flags, 4);
}

#[test]
fn minibatches_that_leave_a_process_without_points_are_summed_all_the_same() {
    let Some(_) = place() else { return };
    let place = Place::with_digits(9, 201);
    let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1";
    assert_the_network_of_one(&place, flags, 4);
    // Each update has two sums of gradients. The weights move away and back, so that rounding would
    // now and then turn a ReLU: on some processors 50 updates differ by 1e-3.
    fs::remove_dir_all(place.path("run-1")).expect("removed");
    fs::remove_dir_all(place.path("run-4")).expect("removed");
    assert_the_network_of_one(&place, &format!("{flags} --model linear.so --awp 0.005"), 4);
}

#[test]
fn probes_traces_and_the_best_epoch_are_those_of_one_process() {
    let Some(place) = place() else { return };
    let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1 --validation-points 40 --probe fgsm.so \
                 --trace fgsm.so --trace-points 20 --select best --checkpoint-every 7 --diagnose-every 1";
    let runs = [1, 2].map(|processes| train(&place, processes, flags, &format!("run-{processes}")));
    let [one, two] = runs.each_ref().map(Run::metrics);
    for (one, two) in one.iter().zip(&two) {
        for key in ["validation_accuracy", "probe_accuracy", "validation_passes"] {
            assert_eq!(one[key], two[key], "{key}");
        }
        assert!(
            two["law"]["points"].as_u64().expect("points")
                == one["law"]["points"].as_u64().expect("points") / 2
        );
    }
    let updates = |run: &Run| -> Vec<_> {
        run.trace().expect("a trace").iter().map(|point| point["updates"].clone()).collect()
    };
    assert_eq!(updates(&runs[0]), updates(&runs[1]));
    assert!(place.path("run-2/best").is_dir());
}

/// A process that a launcher started for a test, which ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts process `rank` of `size` as torchrun would.
fn start(place: &Place, arguments: &str, (rank, size): (usize, usize), port: u16) -> Process {
    let mut command = place.command(arguments);
    in_place(&mut command, (rank, size), port);
    Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the host starts"))
}

fn in_place(command: &mut Command, (rank, size): (usize, usize), port: u16) {
    let values = [("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank), ("MASTER_PORT", port.into())];
    command.envs(values.map(|(name, value)| (name, value.to_string()))).env("MASTER_ADDR", "127.0.0.1");
}

/// The exit code and standard error of a process, once it has ended.
fn ended(mut process: Process) -> (Option<i32>, String) {
    let started = Instant::now();
    let status = loop {
        if let Some(status) = process.0.try_wait().expect("a child") {
            break status;
        }
        assert!(started.elapsed() < PATIENCE, "the process goes on");
        thread::sleep(Duration::from_millis(20));
    };
    let mut errors = String::new();
    let mut pipe = process.0.stderr.take().expect("a pipe");
    std::io::Read::read_to_string(&mut pipe, &mut errors).expect("text");
    (status.code(), errors)
}

/// A port that no other test is given, below those that the system gives to connections.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 64) as u16 * 128;
    let ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.take(128).find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok()).expect("a port")
}

/// The pid of process `rank` of a launcher.
fn process_of(launcher: u32, rank: usize) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).ok()?;
    children.split_whitespace().find_map(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let wanted = format!("RANK={rank}");
        environment
            .split(|byte| *byte == 0)
            .any(|word| word == wanted.as_bytes())
            .then(|| pid.parse().ok())?
    })
}

/// Starts a launcher, and sends a signal to one of its processes once the run has a checkpoint
/// inside an epoch. Returns the launcher's exit code and standard error.
fn kill_one(place: &Place, rank: Option<usize>, signal: i32) -> (Option<i32>, String) {
    let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1 --checkpoint-every 3 --out run";
    let mut command = place.command(&format!("launch -n 2 -- {}", training(flags)));
    // Files are slow, so that training is not over before the signal arrives.
    command.env("DRO_FAULT", "slow:train:4");
    let launcher =
        Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the host starts"));
    let (run, started) = (place.run("run"), Instant::now());
    while run.newest_update().is_none_or(|update| update < 9) {
        assert!(started.elapsed() < PATIENCE, "no checkpoint");
        thread::sleep(Duration::from_millis(2));
    }
    let pid = match rank {
        Some(rank) => process_of(launcher.0.id(), rank).expect("a process of this rank"),
        None => launcher.0.id() as i32,
    };
    // SAFETY: this sends a signal to a process that was started for this test and not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    ended(launcher)
}

#[test]
fn a_process_that_is_killed_ends_all_and_the_run_goes_on_in_any_number_of_them() {
    let Some(place) = place() else { return };
    for rank in [0, 1] {
        let (code, errors) = kill_one(&place, Some(rank), SIGKILL);
        assert_eq!(code, Some(1), "{errors}");
        let first = errors.lines().next().unwrap_or_default();
        assert!(
            first.starts_with(&format!("error: process {rank} (pid "))
                && first.ends_with("was killed by signal 9 (SIGKILL); the others were ended"),
            "{errors}"
        );
        assert_eq!(errors.matches("error: ").count(), 1, "one message: {errors}");
        if rank == 0 {
            fs::rename(place.path("run"), place.path("first")).expect("renamed");
        }
    }
    for name in ["two", "three"] {
        let copied = Command::new("cp").arg("-r").arg(place.path("run")).arg(place.path(name)).status();
        assert!(copied.expect("cp starts").success());
    }
    // One, two and three processes go on from there to the same network.
    for (run, launch) in [("run", ""), ("two", "launch -n 2 -- "), ("three", "launch -n 3 -- ")] {
        place.host(&format!("{launch}train --resume {run}")).ended_with(0);
    }
    for run in ["two", "three"] {
        let off = difference(&place.run("run"), &place.run(run));
        assert!(off <= CLOSE, "{run}: {off}");
    }
}

#[test]
fn a_stop_ends_all_processes_at_one_update_and_the_run_goes_on_bit_for_bit() {
    let Some(place) = place() else { return };
    let (code, errors) = kill_one(&place, None, SIGTERM);
    assert_eq!(code, Some(130), "{errors}");
    assert_eq!(errors.matches("warning: stopped at update").count(), 1, "{errors}");
    let update = place.run("run").newest_update().expect("a checkpoint");
    assert_ne!(update % 25, 0, "inside an epoch");
    place.host("launch -n 2 -- train --resume run").ended_with(0);
    let whole = train(&place, 2, "--sampler bad_plugins.so,plugin=momentum,steps=1", "whole");
    place.run("run").assert_same_as(&whole);
}

#[test]
fn a_stop_is_heard_within_an_update_of_many_steps_in_all_processes() {
    let Some(place) = place() else { return };
    // The first update would take a minute or more. One of the processes alone is told to stop.
    let (arguments, port) = (training("--sampler pgd.so,steps=60000 --out run"), free_port());
    let processes = [0, 1].map(|rank| start(&place, &arguments, (rank, 2), port));
    let begun = Instant::now();
    while !place.path("run/metrics.jsonl").exists() {
        assert!(begun.elapsed() < PATIENCE, "training does not begin");
        thread::sleep(Duration::from_millis(20));
    }
    send(&processes[1].0, SIGTERM);
    for process in processes {
        assert_eq!(ended(process).0, Some(130));
    }
    assert_eq!(place.run("run").newest_update(), Some(0), "the state before the update is kept");
}

#[test]
fn a_process_that_fails_ends_all_with_its_message() {
    let Some(place) = place() else { return };
    // Point 6 is in shard 2, which the first of two processes has; point 7 in shard 3 of the second.
    for (point, start) in [(6, "misbehaves: step: point 6"), (7, "process 1 (pid ")] {
        let flags =
            format!("--sampler bad_plugins.so,plugin=misbehaves,how=fails-at-{point} --out run-{point}");
        let outcome = place.host(&format!("launch -n 2 -- {}", training(&flags)));
        let outcome = outcome.fails(1, &[start, &format!("point {point} is one too many")]);
        assert_eq!(outcome.errors().matches("error: ").count(), 1, "{}", outcome.report());
        assert!(place.path(&format!("run-{point}/run.json")).is_file());
    }
}

#[test]
fn a_process_that_hangs_ends_all_and_is_named_with_its_plugin() {
    let Some(place) = place() else { return };
    let flags = "--rank-timeout 10 --sampler bad_plugins.so,plugin=misbehaves,how=waits-at-7 --out run";
    let outcome = place.host(&format!("launch -n 2 -- {}", training(flags)));
    let outcome = outcome.fails(1, &["process 1 (pid ", "has not moved for 10 s, in misbehaves: step"]);
    outcome.explains(&["--rank-timeout"]);
}

#[test]
fn work_on_files_may_take_longer_than_the_patience_and_a_hang_in_it_is_found() {
    let Some(place) = place() else { return };
    let flags = "--rank-timeout 6 --sampler langevin.so --epochs 1 --shards 2";
    // A checkpoint has at least ten operations on files in each process: longer than 6 s.
    let slow = |out: &str, milliseconds: u32| {
        let mut command =
            place.command(&format!("launch -n 2 -- {}", training(&format!("{flags} --out {out}"))));
        place.outcome(command.env("DRO_FAULT", format!("slow:train:{milliseconds}")))
    };
    slow("run", 800).ended_with(0);
    assert_eq!(place.run("run").newest_update(), Some(25));
    let outcome = slow("hangs", 600_000);
    outcome.fails(1, &[" (pid ", "has not moved for 6 s, which was at: "]);
}

#[test]
fn a_process_that_is_stopped_without_a_launcher_is_noticed_by_the_others() {
    let (Some(place), port) = (place(), free_port()) else { return };
    let arguments = training("--sampler langevin.so --epochs 2000 --checkpoint-every 3 --out run");
    let [first, second] = [0, 1].map(|rank| start(&place, &arguments, (rank, 2), port));
    let (run, started) = (place.run("run"), Instant::now());
    while run.newest_update().is_none() {
        assert!(started.elapsed() < PATIENCE, "no checkpoint");
        thread::sleep(Duration::from_millis(5));
    }
    drop(second);
    let (code, errors) = ended(first);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.starts_with("error: process 1 (pid "), "{errors}");
    assert!(errors.contains("has given no sign for 10 s"), "{errors}");
}

#[test]
fn processes_that_differ_are_refused_with_both_values() {
    let (Some(place), port) = (place(), free_port()) else { return };
    let arguments = |rate: &str| training(&format!("--sampler langevin.so --learning-rate {rate} --out run"));
    let second = start(&place, &arguments("0.5"), (1, 2), port);
    let mut command = place.command(&arguments("0.25"));
    in_place(&mut command, (0, 2), port);
    place
        .outcome(&mut command)
        .fails(2, &["process 1 (pid ", "has another train.learning_rate than process 0"])
        .explains(&["0.25", "0.5"]);
    assert_eq!(ended(second), (Some(2), String::new()));
    assert!(!place.path("run").exists());
}

#[test]
fn a_process_whose_arguments_are_wrong_ends_those_that_wait_for_it() {
    let Some(place) = place() else { return };
    let arguments = |flags: &str| training(&format!("--sampler langevin.so --out run {flags}"));
    for wrong in [1, 0] {
        let port = free_port();
        let right = start(&place, &arguments(""), (1 - wrong, 2), port);
        let (code, errors) = ended(start(&place, &arguments("--learning-rat 3"), (wrong, 2), port));
        let what = "unexpected argument '--learning-rat'";
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains(what), "{errors}");
        let (code, errors) = ended(right);
        assert_eq!(code, Some(2), "{errors}");
        match wrong {
            0 => assert_eq!(errors, "", "process 0 says it"),
            _ => assert!(errors.starts_with("error: process 1 (pid ") && errors.contains(what), "{errors}"),
        }
    }
    assert!(!place.path("run").exists());
}

#[test]
fn a_process_that_waits_says_for_whom() {
    let Some(place) = place() else { return };
    let of_rank_0 = "waiting for ranks 1, 2 of 3 (";
    let of_rank_1 = "waiting for process 0 at 127.0.0.1, port ";
    for (at, awaited) in [((0, 3), of_rank_0), ((1, 3), of_rank_1)] {
        let mut command = place.command(&training("--sampler langevin.so --out run --rank-timeout 8"));
        in_place(&mut command, at, free_port());
        // The first process of its machine.
        command.env("LOCAL_RANK", "0").env("DRO_PROGRESS_SECONDS", "1");
        let words = place.outcome(&mut command).ended_with(2).words();
        assert!(words.contains(awaited) && words.contains(" s of 8)"), "{words}");
    }
}

/// Starts both processes of a training of one epoch with these variables, and waits for their end.
fn both(place: &Place, out: &str, port: u16, variables: &[(&str, &str)]) -> [(Option<i32>, String); 2] {
    let arguments = training(&format!("--sampler langevin.so --epochs 1 --out {out}"));
    let processes = [0, 1].map(|rank| {
        let mut command = place.command(&arguments);
        in_place(&mut command, (rank, 2), port);
        command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        Process(command.spawn().expect("the host starts"))
    });
    processes.map(ended)
}

#[test]
fn a_launcher_may_serve_the_store_itself() {
    let (Some(place), port) = (place(), free_port()) else { return };
    // A process that waits for another one serves a store. It is of another attempt, whose keys are
    // others.
    let server = start(&place, &training("--sampler langevin.so --out other"), (0, 2), port);
    let of_torchrun = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "1")];
    for (code, errors) in both(&place, "run", port, &of_torchrun) {
        assert_eq!(code, Some(0), "{errors}");
    }
    assert_eq!(place.run("run").metrics().len(), 1);
    drop(server);
}

#[test]
fn processes_meet_at_an_address_of_the_network_or_at_a_named_interface() {
    let Some(place) = place() else { return };
    // The machine's own address; without a network there is the loopback alone.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    let own = own.map_or("127.0.0.1".to_owned(), |address| address.ip().to_string());
    for (run, variable) in [("one", ("MASTER_ADDR", own.as_str())), ("two", ("GLOO_SOCKET_IFNAME", "lo"))] {
        for (code, errors) in both(&place, run, free_port(), &[variable]) {
            assert_eq!(code, Some(0), "{errors}");
        }
    }
    for (code, errors) in both(&place, "three", free_port(), &[("GLOO_SOCKET_IFNAME", "none7")]) {
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.is_empty() || errors.contains("GLOO_SOCKET_IFNAME"), "{errors}");
    }
}

#[test]
fn a_place_that_cannot_be_taken_is_refused_before_any_work() {
    let Some(place) = place() else { return };
    let before = place.contents();
    let with = |variables: &[(&str, &str)], flags: &str| -> Outcome<'_> {
        let mut command = place.command(&training(&format!("--sampler langevin.so --out run {flags}")));
        command.envs(variables.iter().copied());
        place.outcome(&mut command)
    };
    with(&[("WORLD_SIZE", "2"), ("RANK", "0")], "")
        .fails(2, &["WORLD_SIZE is 2, but MASTER_ADDR is not set"])
        .explains(&["host launch"]);
    // A port that another program uses.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("a port").port();
    let mut command = place.command(&training("--sampler langevin.so --out run --rank-timeout 2"));
    in_place(&mut command, (0, 2), port);
    place
        .outcome(&mut command)
        .fails(2, &["cannot serve port", "ddress already in use"])
        .explains(&["choose a free port with MASTER_PORT"]);
    // A process that never arrives.
    let mut command = place.command(&training("--sampler langevin.so --out run --rank-timeout 2"));
    in_place(&mut command, (0, 3), free_port());
    place.outcome(&mut command).fails(2, &["2 of 3 processes did not arrive within 2 s: ranks 1, 2"]);
    assert_eq!(place.contents(), before);

    place.refuses(
        &format!("launch -n 5 -- {}", training("--sampler langevin.so --out run")),
        &["train.shards: expected at least 5, a shard for each of 5 processes, got 4"],
    );
    place.refuses(
        &training("--shards 3 --out run"),
        &["train.shards: expected a divisor of train.batch, 8", "got 3"],
    );
    place.refuses("launch -n 2 -- plugins", &["expected train or eval (without --transfer), got plugins"]);
    place.refuses(
        "launch -n 2 -- train --epoch 3",
        &["the command after `--`: unexpected argument '--epoch'"],
    );
    place.refuses("launch -n 0 -- train", &["invalid value '0'"]);
}

#[test]
fn slurm_says_where_a_process_stands() {
    let Some(place) = place() else { return };
    let port = free_port().to_string();
    let start = |rank: &str| {
        let mut command = place.command(&training("--sampler langevin.so --epochs 1 --out run"));
        let variables = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_PROCID", rank),
            ("SLURM_LOCALID", rank),
            ("SLURM_STEP_NODELIST", "127.0.0.1"),
            ("MASTER_PORT", &port),
        ];
        command.envs(variables).stdout(Stdio::null()).stderr(Stdio::piped());
        Process(command.spawn().expect("the host starts"))
    };
    let processes = ["1", "0"].map(start);
    for process in processes {
        let (code, errors) = ended(process);
        assert_eq!(code, Some(0), "{errors}");
    }
    assert_eq!(place.run("run").metrics().len(), 1);
}

#[test]
fn particles_in_files_are_resumed_by_another_number_of_processes() {
    let Some(place) = place() else { return };
    let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1 --store-file particles";
    let whole = train(&place, 1, &format!("{flags}-whole"), "whole");
    let outcome = place.interrupt(
        &format!("launch -n 2 -- {}", training(&format!("{flags} --checkpoint-every 3 --out run"))),
        "run",
        SIGTERM,
        |update| (3..20).contains(&update),
    );
    outcome.was_interrupted(&["at update"]);
    for shard in 1..=4 {
        assert!(place.path(&format!("particles-{shard}-of-4")).is_file(), "shard {shard}");
    }
    place.host("launch -n 4 -- train --resume run").ended_with(0);
    let off = difference(&whole, &place.run("run"));
    assert!(off <= CLOSE, "{off}");
}

#[test]
fn an_evaluation_in_several_processes_has_the_verdicts_of_one() {
    let Some(place) = place() else { return };
    train(&place, 1, "--sampler langevin.so", "run");
    let evaluate = "eval run --attack fgsm.so --attack pgd.so,steps=3 --points 41 --threads 1 --json";
    let alone = place.host(evaluate).ended_with(0).json();
    let together = place.host(&format!("launch -n 2 -- {evaluate}")).ended_with(0).json();
    for key in ["clean", "worst_case", "points", "caveats", "attacks"] {
        let timeless = |mut value: serde_json::Value| {
            value.as_array_mut().into_iter().flatten().for_each(|attack| attack["seconds"] = 0.into());
            value
        };
        let [alone, together] = [&alone, &together].map(|answer| timeless(answer[key].clone()));
        assert_eq!(alone, together, "{key}");
        assert!(!alone.is_null(), "{key}");
    }
    assert_eq!(together["shards"], 2);
    assert!(
        !place.path("run/shards").exists()
            || fs::read_dir(place.path("run/shards")).expect("a folder").count() == 0
    );
    // One outline, of all points.
    let words =
        place.host(&format!("launch -n 2 -- {}", evaluate.replace(" --json", ""))).ended_with(0).words();
    assert_eq!(words.matches("threat model").count(), 1, "{words}");
    assert!(words.contains("digits: 41 test points"), "{words}");
    place
        .host(&format!("launch -n 2 -- {evaluate} --shard 1/2"))
        .fails(2, &["--shard", "2 processes share the points by themselves"]);
}

#[test]
fn a_network_from_elsewhere_is_evaluated_in_several_processes() {
    let Some(place) = place() else { return };
    train(&place, 1, "--sampler langevin.so --epochs 1", "run");
    let weights = place.run("run").newest("weights.safetensors");
    fs::copy(weights, place.path("weights.safetensors")).expect("copied");
    let evaluate = |out: &str| {
        format!(
            "eval --model cnn.so,arch=B --weights weights.safetensors --data digits --out {out} --attack fgsm.so \
             --epsilon 0.1 --points 41 --threads 1 --json"
        )
    };
    let alone = place.host(&evaluate("alone")).ended_with(0).json();
    let together = format!("launch -n 2 -- {}", evaluate("together"));
    // The second time, the folder is there.
    for _ in 0..2 {
        let answer = place.host(&together).ended_with(0).json();
        for key in ["clean", "worst_case", "points"] {
            assert_eq!(answer[key], alone[key], "{key}");
        }
        assert_eq!(answer["shards"], 2);
    }
}

#[test]
fn a_network_with_batch_normalisation_is_resumed_bit_for_bit_by_as_many_processes() {
    let Some(place) = place() else { return };
    let flags = |out: &str, epochs: u32| {
        let flags = "--sampler bad_plugins.so,plugin=momentum,steps=1 --schedule constant --shards 2";
        training(&format!("{flags} --epochs {epochs} --out {out}"))
            .replace("cnn.so,arch=B", "bad_plugins.so,plugin=normalised")
    };
    place.host(&format!("launch -n 2 -- {}", flags("whole", 2))).ended_with(0);
    place.host(&format!("launch -n 2 -- {}", flags("run", 1))).ended_with(0);
    place.host("launch -n 2 -- train --resume run --epochs 2").ended_with(0);
    assert_eq!(place.run("run").weights(), place.run("whole").weights());
    assert_eq!(place.run("run").metrics()[1]["train_loss"], place.run("whole").metrics()[1]["train_loss"]);
}

#[test]
fn a_job_that_is_suspended_and_continued_goes_on() {
    let Some(place) = place() else { return };
    let flags = "--sampler langevin.so --epochs 2 --checkpoint-every 3 --out run";
    let [first, second] = [0, 1].map(|rank| (rank, 2)).map(|at| {
        static PORT: std::sync::LazyLock<u16> = std::sync::LazyLock::new(free_port);
        start(&place, &training(flags), at, *PORT)
    });
    let (run, started) = (place.run("run"), Instant::now());
    while run.newest_update().is_none() {
        assert!(started.elapsed() < PATIENCE, "no checkpoint");
        thread::sleep(Duration::from_millis(2));
    }
    let tell = |signal: i32| {
        for process in [&first, &second] {
            send(&process.0, signal);
        }
    };
    tell(libc::SIGSTOP);
    // Longer than a silence that means that a process is gone.
    thread::sleep(Duration::from_secs(14));
    tell(libc::SIGCONT);
    for process in [first, second] {
        let (code, errors) = ended(process);
        assert_eq!(code, Some(0), "{errors}");
    }
    assert_eq!(run.metrics().len(), 2);
}

#[test]
fn processes_that_do_other_work_are_refused_when_they_meet() {
    let (Some(place), port) = (place(), free_port()) else { return };
    train(&place, 1, "--sampler langevin.so --epochs 1", "run");
    let second = start(&place, "eval run --attack fgsm.so", (1, 2), port);
    let mut command = place.command(&training("--sampler langevin.so --out other"));
    in_place(&mut command, (0, 2), port);
    place
        .outcome(&mut command)
        .fails(2, &["process 1 (pid ", "does other work than process 0"])
        .explains(&["host train, version", "host eval, version"]);
    assert!(!place.path("other").exists());
    assert_eq!(ended(second), (Some(2), String::new()));
}

#[test]
fn an_interrupted_evaluation_in_several_processes_goes_on() {
    let Some(place) = place() else { return };
    train(&place, 1, "--sampler langevin.so", "run");
    let evaluate = "launch -n 2 -- eval run --attack fgsm.so --attack square.so,queries=3000 --points 60 --batch 1 \
                    --threads 1 --json";
    let found = || fs::read_dir(place.path("run/shards")).is_ok_and(|shards| shards.count() == 2);
    let outcome = place.signal_when(evaluate, SIGTERM, found).ended_with(130);
    assert!(outcome.errors().matches("interrupted").count() <= 1, "{}", outcome.report());
    let short = evaluate.replace("queries=3000", "queries=20");
    place.host(&short).ended_with(0);
    place
        .host("launch -n 3 -- eval run --attack fgsm.so --points 2")
        .fails(2, &["as many shards as there are points, 2"]);
}
