//! `host train --resume`: a stopped and resumed run is the same, bit for bit, as one that was not
//! stopped.

use crate::data::{self, TEST_POINTS, write_image_tree};
use crate::harness::{Place, Run, built, edit, sha256, write_sealed};
use libc::{SIGINT, SIGKILL};
use std::fs;
use std::process::Command;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epsilon 0.1 --epochs 3";
/// 400 points in batches of 10.
const UPDATES_PER_EPOCH: u64 = 40;

/// Whether an update is inside an epoch after the first one, and not near its end, since the host
/// continues until the signal arrives.
fn inside_epoch(update: u64) -> bool {
    (UPDATES_PER_EPOCH..5 * UPDATES_PER_EPOCH / 2).contains(&update)
        && (1..30).contains(&(update % UPDATES_PER_EPOCH))
}

fn place(side: usize) -> Place {
    Place::with_digits(side, 10 * UPDATES_PER_EPOCH as usize)
}

/// The same training without a stop. So short a training may warn that it stays at chance level.
fn uninterrupted(place: &Place, flags: &str) -> Run {
    place.host(&format!("{TRAIN} {flags} --out whole")).ended_with(0);
    place.run("whole")
}

/// Starts the training and stops it in the middle of an epoch.
fn stop(place: &Place, flags: &str, signal: i32) -> Run {
    let outcome = place.interrupt(
        &format!("{TRAIN} {flags} --checkpoint-every 3 --out run"),
        "run",
        signal,
        inside_epoch,
    );
    match signal {
        SIGKILL => outcome.was_killed(signal),
        _ => _ = outcome.was_interrupted(&["at update", "host train --resume run"]),
    }
    let run = place.run("run");
    let update = run.newest_update().expect("a checkpoint");
    assert_ne!(update % UPDATES_PER_EPOCH, 0, "stopped in the middle of an epoch");
    assert!(update < 3 * UPDATES_PER_EPOCH, "stopped before the end");
    run
}

pub fn goes_on_after_a_kill(side: usize, flags: &str) {
    let place = place(side);
    let whole = uninterrupted(&place, flags);
    let run = stop(&place, flags, SIGKILL);
    let update = run.newest_update().expect("a checkpoint");
    let words = place.host("train --resume run").ended_with(0).words();
    assert!(words.contains(&format!("going on from update {update}")), "{words}");
    run.assert_same_as(&whole);
}

#[test]
fn resumes_after_a_kill_with_dropout_and_momentum() {
    goes_on_after_a_kill(9, "--model cnn.so,arch=A --sampler langevin.so --momentum 0.9");
}

#[test]
fn resumes_after_a_kill_with_adam() {
    goes_on_after_a_kill(
        8,
        "--model cnn.so,arch=B --sampler langevin.so --optimizer adam --learning-rate 0.001",
    );
}

#[test]
fn resumes_after_a_kill_with_two_particles_with_state() {
    goes_on_after_a_kill(
        8,
        "--model cnn.so,arch=B --particles 2 --sampler bad_plugins.so,plugin=momentum,steps=2",
    );
}

#[test]
fn resumes_after_a_kill_with_perturbations_that_go_on_from_minibatch_to_minibatch() {
    goes_on_after_a_kill(
        9,
        "--model cnn.so,arch=A --sampler fast.so,plugin=free --mode fused --replay 3 --crop 1 --flip",
    );
}

#[test]
fn resumes_after_a_kill_with_starts_of_the_samplers_own() {
    goes_on_after_a_kill(8, "--model cnn.so,arch=B --sampler fast.so,plugin=fgsm_pgi,reset=2");
}

#[test]
fn resumes_after_a_kill_in_mode_fused_with_replays_an_average_and_an_epsilon_ramp() {
    goes_on_after_a_kill(
        9,
        "--model cnn.so,arch=A --sampler langevin.so --mode fused --replay 3 --start uniform-store --average 0.9 --warmup-epsilon 2.5 \
         --store u8",
    );
}

#[test]
fn resumes_after_a_kill_with_crops_flips_and_particles_with_state() {
    goes_on_after_a_kill(
        9,
        "--model cnn.so,arch=A --particles 2 --crop 2 --flip --sampler bad_plugins.so,plugin=momentum,steps=2",
    );
}

#[test]
fn resumes_after_a_kill_with_trades_and_dropout() {
    goes_on_after_a_kill(
        9,
        "--model cnn.so,arch=A --particles 2 --objective trades.so --sampler pgd.so,steps=2 --start uniform-store",
    );
}

#[test]
fn resumes_after_a_kill_with_equally_averaged_weights_and_running_statistics() {
    goes_on_after_a_kill(
        8,
        "--model bad_plugins.so,plugin=normalised --sampler langevin.so --mode fused --replay 2 --swa-from 0.35 \
         --schedule step --validation-points 50 --trace pgd.so,steps=2 --trace-points 30 --trace-at 0.5,1,1.5,3,5 \
         --tensorboard",
    );
}

#[test]
fn resumes_after_a_kill_with_a_sampler_that_rejects_proposals() {
    goes_on_after_a_kill(
        8,
        "--model cnn.so,arch=B --particles 2 --sampler bad_plugins.so,plugin=metropolis,steps=2",
    );
}

#[test]
fn resumes_after_a_kill_with_dropout_particles_with_state_and_adam() {
    goes_on_after_a_kill(
        9,
        "--model cnn.so,arch=A --particles 2 --sampler bad_plugins.so,plugin=momentum --optimizer adam",
    );
}

#[test]
fn resumes_after_a_kill_with_batch_normalisation_dropout_and_an_average() {
    goes_on_after_a_kill(
        8,
        "--model wide_resnet.so,depth=10,width=1,dropout=0.3 --sampler langevin.so --average 0.9",
    );
}

#[test]
fn resumes_after_a_kill_with_batch_normalisation_in_the_samplers_gradient() {
    goes_on_after_a_kill(8, "--model resnet.so,width=2 --sampler langevin.so --sampler-gradient train");
}

#[test]
fn resumes_after_ctrl_c() {
    let place = place(9);
    let flags = "--model cnn.so,arch=A --sampler langevin.so";
    let whole = uninterrupted(&place, flags);
    let run = stop(&place, flags, SIGINT);
    place.host("train --resume run").ended_with(0);
    run.assert_same_as(&whole);
}

#[test]
fn resumes_after_a_probe_that_was_interrupted() {
    let place = place(8);
    let flags = "--sampler langevin.so --probe pgd.so,steps=1000 --validation-points 10";
    let whole = uninterrupted(&place, flags);
    // The checkpoint before the end of an epoch: the signal arrives while the probe scores the
    // epoch.
    let last_update = |update| update == UPDATES_PER_EPOCH - 1;
    let command = format!("{TRAIN} {flags} --out run");
    place
        .interrupt(&command, "run", SIGINT, last_update)
        .was_interrupted(&["at update 39", "train --resume run"]);
    let run = place.run("run");
    assert_eq!(run.metrics(), [] as [serde_json::Value; 0], "not scored");
    place.host("train --resume run").ended_with(0);
    run.assert_same_as(&whole);
}

#[test]
fn resumes_after_a_last_trace_that_was_killed_or_interrupted() {
    let place = place(8);
    // The end of the only epoch is scored and traced; the trace is the slow part.
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epsilon 0.1 --epochs 1 --sampler langevin.so \
                 --validation-points 10 --probe fgsm.so --trace pgd.so,steps=400 --trace-at 2 --tensorboard";
    place.host(&format!("{train} --out whole")).ended_with(0);
    let whole = place.run("whole");
    assert_eq!((whole.metrics().len(), whole.trace().map(|points| points.len())), (1, Some(1)));
    for (signal, out) in [(SIGKILL, "killed"), (SIGINT, "left")] {
        let run = place.run(out);
        let scored = || {
            let newest = run.checkpoints().pop_last().map(|(_, folder)| folder.join("progress.json"));
            newest
                .and_then(|path| fs::read_to_string(path).ok())
                .is_some_and(|text| text.contains("probe_accuracy"))
        };
        let outcome = place.signal_when(&format!("{train} --out {out}"), signal, scored);
        match signal {
            SIGKILL => outcome.was_killed(signal),
            _ => _ = outcome.was_interrupted(&["at update 39", "host train --resume left"]),
        }
        assert!(run.metrics().is_empty() && run.trace().is_none_or(|points| points.is_empty()), "{out}");
        let events = place.host(&format!("train --resume {out} --json")).ended_with(0).json_lines();
        assert!(events.iter().any(|event| event["epoch"] == 1 && event["probe_accuracy"].is_number()));
        // The seconds of training do not include the probe and the trace.
        let traced = &run.trace().expect("a trace")[0]["seconds"];
        assert_eq!(traced, &run.metrics()[0]["seconds"], "{out}");
        run.assert_same_as(&whole);
    }
}

#[test]
fn resumes_from_the_checkpoint_before_a_truncated_one() {
    let place = place(8);
    let flags = "--sampler langevin.so";
    let whole = uninterrupted(&place, flags);
    let run = stop(&place, flags, SIGKILL);
    let weights = run.newest("weights.safetensors");
    let size = fs::metadata(&weights).expect("a file").len();
    edit(&weights, |contents| contents.truncate(1000));
    let file = weights.strip_prefix(place.path("")).expect("in the folder").display().to_string();
    let both = format!("expected {size} bytes, got 1000");
    place.host("train --resume run").succeeds_with_warning(&[&file, &both]);
    run.assert_same_as(&whole);
}

#[test]
fn does_not_resume_if_every_checkpoint_is_damaged() {
    let place = place(8);
    let run = stop(&place, "--sampler langevin.so", SIGKILL);
    for folder in run.checkpoints().into_values() {
        edit(&folder.join("particles.safetensors"), |contents| contents[500] ^= 1);
    }
    place
        .refuses("train --resume run", &["no checkpoint in run/checkpoints is whole"])
        .explains(&["SHA-256"]);
}

#[test]
fn signals_of_terminals_and_job_managers_save_a_checkpoint() {
    let place = place(8);
    // The tests themselves may have been started with `nohup`.
    // SAFETY: the default action of a signal is set, before the host is started.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        let out = format!("run-{signal}");
        let endless = TRAIN.replace("--epochs 3", "--epochs 100000");
        let command = format!("{endless} --sampler none --out {out}");
        let is_begun = || place.path(&out).join("metrics.jsonl").exists();
        place
            .signal_when(&command, signal, is_begun)
            .ended_with(130)
            .explains(&["warning: stopped at update", &format!("host train --resume {out}")]);
        assert!(place.run(&out).newest_update().is_some(), "signal {signal}");
    }
}

#[test]
fn a_run_that_was_started_with_nohup_ignores_the_end_of_its_terminal() {
    let place = place(8);
    let train = format!("{} --sampler none --out run", TRAIN.replace("--epochs 3", "--epochs 20"));
    let script = "trap '' HUP; \"$0\" \"$@\" & while [ ! -e run/metrics.jsonl ]; do sleep 0.01; done; kill -HUP $!; wait $!";
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command.arg(built("host")).args(train.split_whitespace()).current_dir(place.path(""));
    place.outcome(&mut command).ended_with(0);
    assert_eq!(place.run("run").metrics().len(), 20);
}

/// A short run with one checkpoint and with copies of the plugins in the folder.
fn finished(place: &Place) -> Run {
    place.copy_built("liblangevin.so");
    place.copy_built("libbad_plugins.so");
    let plugins = "--model ./bad_plugins.so,plugin=linear --sampler ./langevin.so";
    place
        .host(&format!("train --recipe algorithm-1 --data digits --threads 1 {plugins} --epochs 1 --out run"))
        .succeeds();
    place.run("run")
}

#[test]
fn event_files_mark_the_update_from_which_a_run_was_resumed() {
    let place = place(8);
    let flags = "--model bad_plugins.so,plugin=linear --sampler none --tensorboard";
    let whole = uninterrupted(&place, flags);
    let run = stop(&place, flags, SIGKILL);
    let update = run.newest_update().expect("a checkpoint");
    place.host("train --resume run").ended_with(0);
    run.assert_same_as(&whole);
    let [before, after] = run.event_files().try_into().expect("a file each");
    // A session start (field 7, status 1) at the update from which the run continued.
    let start = |update: u64| [0x10, update as u8, 0x3a, 2, 8, 1];
    assert!(
        before[1].ends_with(&[0x3a, 2, 8, 1]) && after[1].ends_with(&start(update)),
        "{update}: {after:?}"
    );
    let curve: Vec<_> =
        [&before, &after].into_iter().flatten().filter(|event| shows(event, "train_loss")).collect();
    assert_eq!(curve.len(), 3, "one event per epoch");
    let [again] = whole.event_files().try_into().expect("one file");
    let losses: Vec<_> = again.iter().filter(|event| shows(event, "train_loss")).collect();
    for ((event, again), epoch) in curve.into_iter().zip(losses).zip(run.metrics()) {
        let loss = (epoch["train_loss"].as_f64().expect("a number") as f32).to_le_bytes();
        // The value follows the tag: field 2, four bytes.
        let written = [b"train_loss\x15", loss.as_slice()].concat();
        for event in [event, again] {
            assert!(event.windows(written.len()).any(|window| window == written), "{loss:?} in {event:?}");
        }
    }
}

fn shows(event: &[u8], tag: &str) -> bool {
    event.windows(tag.len()).any(|window| window == tag.as_bytes())
}

#[test]
fn resuming_with_other_arithmetic_gives_a_warning_and_is_recorded() {
    let place = place(8);
    let run = stop(&place, "--sampler langevin.so", SIGKILL);
    let mut before = run.record();
    before["arithmetic"]["processor"] = "other".into();
    // A file of a later version.
    before["unknown"] = serde_json::json!({"of": 0.1});
    write_sealed(&place.path("run/run.json"), &before.to_string());
    let update = run.newest_update().expect("a checkpoint");
    let warning = ["goes on with other arithmetic: processor `other`, then `"];
    place.host("train --resume run").succeeds_with_warning(&warning);
    let mut after = run.record();
    let later = after.as_object_mut().expect("an object").remove("later_arithmetic").expect("a list");
    assert_eq!(after, before, "nothing else has changed");
    let [later] = later.as_array().expect("a list").as_slice() else { panic!("{later}") };
    assert_eq!(later["update"], update);
    assert!(later["arithmetic"]["processor"].as_str().is_some_and(|name| name != "other"), "{later}");
    // The run is finished, so there is no warning.
    place.host("train --resume run").ended_with(0);
    assert_eq!(run.record()["later_arithmetic"].as_array().map(Vec::len), Some(1));
}

// ---------------------------------------------------------------------------------- extending

/// Trains two epochs, then extends the run to five: it is the run of five epochs.
#[track_caller]
fn extends(flags: &str) {
    let place = place(9);
    let train = format!("{TRAIN} {flags}");
    place.host(&format!("{train} --epochs 5 --out whole").replace("--epochs 3", "")).ended_with(0);
    place.host(&format!("{train} --epochs 2 --out run").replace("--epochs 3", "")).ended_with(0);
    let (before, update) = (place.run("run").record(), place.run("run").newest_update());
    place.host("train --resume run --epochs 5").ended_with(0);
    place.run("run").assert_same_as(&place.run("whole"));
    let mut after = place.run("run").record();
    let extensions = after.as_object_mut().expect("an object").remove("extensions").expect("a list");
    let [extension] = extensions.as_array().expect("a list").as_slice() else { panic!("{extensions}") };
    let numbers = ["update", "from", "to"].map(|key| extension[key].as_u64());
    assert_eq!(numbers, [update, Some(2), Some(5)]);
    assert!(extension["command"].as_array().expect("words").contains(&"--resume".into()), "{extension}");
    assert_eq!(after["experiment"]["train"]["epochs"], 5);
    after["experiment"]["train"]["epochs"] = 2.into();
    assert_eq!(after, before, "nothing else has changed");
    // The extended run goes on by itself.
    place.host("train --resume run").ended_with(0);
}

#[test]
fn a_run_with_a_constant_learning_rate_is_extended() {
    extends(
        "--model cnn.so,arch=A --sampler langevin.so --mode fused --replay 3 --start uniform-store \
         --schedule constant --warmup-epochs 1 --warmup-epsilon 1.5 --average 0.9 --validation-points 50 \
         --probe fgsm.so --select best --patience 5",
    );
}

#[test]
fn a_run_is_extended_before_the_first_milestone() {
    // Of two epochs, the milestone is the last update; of five, update 197.
    extends("--model bad_plugins.so,plugin=linear --sampler langevin.so --schedule step --milestones 0.99");
}

#[test]
fn an_extension_that_would_change_the_updates_done_is_refused() {
    let place = place(8);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epochs 2 \
                 --model bad_plugins.so,plugin=linear --sampler none";
    let refusals = [
        ("cosine", "--schedule cosine", "the schedule cosine depends on the length of the run: update 2 had"),
        (
            "step",
            "--schedule step --milestones 0.5",
            "the schedule step depends on the length of the run: update 41",
        ),
        (
            "one-cycle",
            "--schedule one-cycle",
            "the schedule one-cycle depends on the length of the run: update 1 had",
        ),
        ("swa", "--schedule constant --swa-from 0.5", "train.swa_from is a share of the run"),
        (
            "patience",
            "--schedule constant --learning-rate 1e-12 --validation-points 50 --select best --patience 1",
            "patience (train.patience) ends the run after epoch 2",
        ),
    ];
    for (out, flags, why) in refusals {
        place.host(&format!("{train} {flags} --out {out}")).ended_with(0);
        place.refuses(&format!("train --resume {out} --epochs 4"), &["--epochs: ", why]);
    }
    place.refuses("train --resume swa --epochs 1", &["--epochs: expected at least 2", "got 1"]);
    // The average begins at the last update of two epochs.
    place.host(&format!("{train} --schedule constant --swa-from 0.995 --out late")).ended_with(0);
    place.refuses("train --resume late --epochs 4", &["train.swa_from"]);
}

#[test]
fn a_resumed_run_may_have_other_threads_which_are_recorded() {
    let place = place(8);
    let run = stop(&place, "--model cnn.so,arch=B --sampler langevin.so", SIGKILL);
    let update = run.newest_update().expect("a checkpoint");
    let before = run.record();
    place
        .host("train --resume run --threads 2 --device cpu")
        .ended_with(0)
        .explains(&["the run goes on with other arithmetic", "threads 1, then 2"]);
    let after = run.record();
    assert_eq!(after["experiment"], before["experiment"]);
    assert_eq!(after["later_arithmetic"][0]["update"], update);
    assert_eq!(after["later_arithmetic"][0]["arithmetic"]["threads"], 2);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let place = Place::with_digits(8, 60);
    finished(&place);
    let before = place.contents();
    place.host("train --resume run").ended_with(0);
    assert!(place.contents() == before);
}

#[test]
fn resumes_from_another_working_directory() {
    let place = Place::with_digits(8, 60);
    finished(&place);
    fs::create_dir(place.path("elsewhere")).expect("a folder");
    for command in ["train --resume ../run", "eval ../run --attack fgsm.so"] {
        place.outcome(place.command(command).current_dir(place.path("elsewhere"))).succeeds();
    }
}

#[test]
fn own_data_and_plugins_that_were_moved_are_found() {
    let place = Place::empty();
    write_image_tree(&place.path("pictures"), 8, 60);
    fs::create_dir(place.path("mine")).expect("a folder");
    for library in ["liblangevin.so", "libcnn.so", "libfgsm.so"] {
        fs::copy(built(library), place.path("mine").join(library)).expect("copied");
    }
    let train = "train --recipe algorithm-1 --data pictures --model mine/cnn.so,arch=B --sampler mine/langevin.so \
                 --threads 1 --batch 20 --epochs 1 --out run";
    place.host(train).succeeds();
    place.host("eval run --attack fgsm.so --points 20 --save-examples").ended_with(0);
    let commands = ["train --resume run", "eval run --attack fgsm.so --points 20", "report run --force"];
    let renamed = |from: &str, to: &str| fs::rename(place.path(from), place.path(to)).expect("renamed");

    fs::create_dir(place.path("store")).expect("a folder");
    renamed("pictures", "store/pictures");
    for command in &commands[..2] {
        place
            .refuses(command, &["the recorded data", "/pictures are missing"])
            .explains(&["--data-folder FOLDER: pictures itself, or the folder around it"]);
    }
    place.host(commands[2]).succeeds();
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("/pictures are missing") && page.contains("--data-folder FOLDER"));
    for folder in ["store", "store/pictures"] {
        for command in commands {
            place.host(&format!("{command} --data-folder {folder}")).ended_with(0);
        }
        let page = fs::read_to_string(place.path("report.html")).expect("a page");
        assert!(!page.contains("are missing"));
    }
    // Other data are not taken for them.
    write_image_tree(&place.path("other"), 8, 40);
    place.refuses(&format!("{} --data-folder other", commands[1]), &["is not the recorded one"]);
    renamed("store/pictures", "pictures");

    renamed("mine", "theirs");
    for command in &commands[..2] {
        place
            .refuses(command, &["the run's plugin", "/mine/libcnn.so is missing"])
            .explains(&["give the folder that has libcnn.so now with --plugins FOLDER"]);
    }
    for command in commands {
        place.host(&format!("{command} --plugins theirs")).ended_with(0);
    }
    edit(&place.path("theirs/libcnn.so"), |contents| contents.extend(b"changed"));
    place.refuses(
        &format!("{} --plugins theirs", commands[0]),
        &["libcnn.so has changed since the run began"],
    );
}

#[test]
fn a_run_below_a_folder_with_a_comma_can_be_resumed() {
    let place = Place::empty();
    let folder = place.path("a,b=c");
    data::write_digits(&folder.join("digits"), 8, 60);
    fs::copy(built("libcnn.so"), folder.join("libmine.so")).expect("copied");
    let train = "train --recipe algorithm-1 --data digits --model ./mine.so,arch=B --sampler none --threads 1 --epochs 1 --out run";
    for command in [train, "train --resume run", "eval run --attack fgsm.so"] {
        place.outcome(place.command(command).current_dir(&folder)).succeeds();
    }
}

#[test]
fn a_changed_plugin_is_refused_unless_allowed() {
    let place = Place::with_digits(8, 60);
    finished(&place);
    for (library, commands) in [
        ("liblangevin.so", ["train --resume run"].as_slice()),
        ("libbad_plugins.so", &["train --resume run", "eval run --attack fgsm.so"]),
    ] {
        let path = place.path(library);
        let recorded = sha256(&path);
        edit(&path, |contents| contents.extend(b"changed"));
        for command in commands {
            place.refuses(command, &[library, "has changed since the run began"]).explains(&[
                &recorded,
                &sha256(&path),
                "--allow-changed",
            ]);
            place.host(&format!("trust ./{library}")).succeeds();
            place
                .host(&format!("{command} --allow-changed"))
                .succeeds_with_warning(&[library, "has changed since the run began"]);
        }
        edit(&path, |contents| contents.truncate(contents.len() - b"changed".len()));
    }
}

#[test]
fn changed_data_are_refused_unless_allowed() {
    let place = Place::with_digits(8, 60);
    let run = finished(&place);
    let file = "t10k-images-idx3-ubyte";
    edit(&place.path("digits").join(file), |contents| contents[16] ^= 1);
    let recorded = run.record()["data"]["checksums"][file].as_str().expect("a checksum").to_owned();
    for command in ["train --resume run", "eval run --attack fgsm.so"] {
        place.refuses(command, &[file, "is not the recorded one"]).explains(&[
            &recorded,
            "found",
            "--allow-changed",
        ]);
        place.host(&format!("{command} --allow-changed")).succeeds_with_warning(&[file]);
    }
    let evaluation = &run.evaluations()[0];
    assert_eq!(evaluation["result"]["caveats"][0]["name"], "changed");
    assert_ne!(
        evaluation["settings"]["data"][file],
        serde_json::Value::from(recorded),
        "the record has the checksum of the data that were used"
    );
    assert_eq!(run.evaluations()[0]["verdicts"]["clean"].as_array().map(Vec::len), Some(TEST_POINTS));
}
