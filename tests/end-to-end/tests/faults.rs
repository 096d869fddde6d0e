//! A process that is killed, or finds the disk full, at any operation on files loses nothing: the
//! same command goes on, and ends with what an undisturbed process would have made.

use crate::harness::{Outcome, Place, json_file, sha256};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Runs the host with a fault at one of its operations on files, counted from 1. Commands that it
/// starts itself are disturbed in its place if `command` names them.
fn disturbed<'a>(place: &'a Place, arguments: &str, fault: &str, command: &str, at: usize) -> Outcome<'a> {
    let wanted = format!("{fault}:{command}:{at}");
    place.outcome(place.command(arguments).env("DRO_FAULT", wanted))
}

/// Calls `attempt` with a fault at every `step`-th operation, until it returns that the process
/// ended before that operation. Returns how many operations were disturbed.
fn at_operations(step: usize, mut attempt: impl FnMut(usize) -> bool) -> usize {
    const MOST: usize = 2000;
    let last = (1..MOST).step_by(step).find(|at| attempt(*at)).expect("an end");
    (last - 1) / step
}

/// Whether the process ended as if there were no fault. Otherwise it must have been killed, or have
/// ended with an error.
#[track_caller]
fn is_undisturbed(outcome: Outcome, fault: &str) -> bool {
    match (outcome.code(), fault) {
        (Some(0), _) => true,
        (None, "kill") => false,
        (Some(1 | 2), "full") => outcome.explains(&["error: "]).code() == Some(0),
        _ => panic!("neither undisturbed nor disturbed\n{}", outcome.report()),
    }
}

const FAULTS: [&str; 2] = ["kill", "full"];

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epochs 2 --epsilon 0.1 \
                     --model bad_plugins.so,plugin=linear --sampler langevin.so --checkpoint-every 3 \
                     --validation-points 10 --probe fgsm.so --select best --trace fgsm.so --trace-points 10 \
                     --trace-at 2,4 --tensorboard";

/// The names of all files of a run. Each session has an event file of its own.
fn names(run: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path.clone());
            }
            names.insert(path.strip_prefix(run).expect("inside").display().to_string());
        }
    }
    names.retain(|name| !name.contains("events.out"));
    names
}

fn train(step: usize) {
    let place = Place::with_digits(8, 50);
    place.host(&format!("{TRAIN} --store-file --out whole")).ended_with(0);
    let (run, whole) = (place.run("run"), place.run("whole"));
    for fault in FAULTS {
        let disturbed = at_operations(step, |at| {
            let _ = fs::remove_dir_all(place.path("run"));
            let command = format!("{TRAIN} --store-file --out run");
            let ended = is_undisturbed(disturbed(&place, &command, fault, "train", at), fault);
            if place.path("run/run.json").exists() {
                place.host("train --resume run").ended_with(0);
            } else {
                place.host(&command).ended_with(0);
            }
            run.assert_same_as(&whole);
            // A checkpoint that was to be removed may be left: the next one that is saved removes it.
            for (_, outdated) in run.checkpoints().into_iter().rev().skip(2) {
                fs::remove_dir_all(outdated).expect("removed");
            }
            for entry in fs::read_dir(place.path("run/checkpoints")).expect("a folder").flatten() {
                if entry.path().extension().is_some_and(|ending| ending == "outdated") {
                    fs::remove_dir_all(entry.path()).expect("removed");
                }
            }
            assert_eq!(names(&place.path("run")), names(&place.path("whole")), "{fault} at {at}");
            let best = "best/000000008/weights.safetensors";
            let best_exists = ["run", "whole"].map(|run| place.path(run).join(best).exists());
            assert_eq!(best_exists[0], best_exists[1]);
            let events: Vec<_> = run.event_files().concat();
            assert!(events.len() >= whole.event_files().concat().len(), "{fault} at {at}");
            assert!(!place.path("run.particles.begun").exists(), "{fault} at {at}");
            ended
        });
        assert!(disturbed * step > 50, "{disturbed} operations were disturbed");
    }
}

/// An evaluation without its times.
fn timeless(mut evaluation: Value) -> Value {
    evaluation["begun"] = Value::Null;
    for attack in evaluation["result"]["attacks"].as_array_mut().into_iter().flatten() {
        attack["seconds"] = Value::Null;
    }
    evaluation
}

fn evaluate(step: usize) {
    let place = Place::with_digits(8, 50);
    place.host(&format!("{TRAIN} --out run")).ended_with(0);
    let command = "eval run --attack fgsm.so --attack pgd.so,steps=2 --batch 20 --points 40 --save-examples";
    place.host(command).ended_with(0);
    let (run, trained) = (place.run("run"), names(&place.path("run")));
    let [expected] = run.evaluations().try_into().expect("one");
    let examples = place.path("run").join(expected["examples"].as_str().expect("a name"));
    let digest = sha256(&examples);
    assert_eq!(expected["examples_sha256"], *digest);
    for fault in FAULTS {
        let disturbed = at_operations(step, |at| {
            for file in ["eval.json", ".eval.lock"].map(|name| place.path("run").join(name)) {
                fs::remove_file(file).expect("removed");
            }
            fs::remove_file(&examples).expect("removed");
            let ended = is_undisturbed(disturbed(&place, command, fault, "eval", at), fault);
            // The end of an evaluation is when the folder of its state is gone.
            let was_saved = place.path("run/eval.json").exists();
            let state = fs::read_dir(place.path("run/unfinished")).into_iter().flatten().flatten();
            let is_over = was_saved && !state.into_iter().any(|entry| entry.path().extension().is_none());
            if !is_over {
                place.host(command).ended_with(0);
            }
            let [found] = run.evaluations().try_into().expect("one evaluation");
            assert_eq!(timeless(found), timeless(expected.clone()), "{fault} at {at}");
            assert_eq!(sha256(&examples), digest, "{fault} at {at}");
            if !is_over {
                assert_eq!(names(&place.path("run")), trained, "{fault} at {at}");
            }
            let _ = fs::remove_dir_all(place.path("run/unfinished"));
            ended
        });
        assert!(disturbed * step > 30, "{disturbed} operations were disturbed");
    }
}

/// The rows of a sweep's summary without their times.
fn rows(place: &Place, sweep: &str) -> Value {
    let mut summary = json_file(&place.path(sweep).join("summary.json"));
    for run in summary["runs"].as_array_mut().expect("a list") {
        ["seconds", "peak_memory"].iter().for_each(|key| run["figures"][*key] = Value::Null);
    }
    summary["groups"] = Value::Null;
    summary
}

fn sweep(step: usize) {
    let place = Place::with_digits(8, 50);
    let text = "model = \"bad_plugins.so,plugin=linear\"\nsampler = \"langevin.so\"\n[data]\nname = \"digits\"\n\
                [threat]\nepsilon = 0.1\n[train]\nepochs = 1\nbatch = 25\nthreads = 1\n[eval]\n\
                attacks = [\"fgsm.so\"]\npoints = 30\n[sweep]\nseeds = [0, 1]\neval = true\n";
    fs::write(place.path("small.toml"), text).expect("written");
    place.host("sweep small.toml --out whole").ended_with(0);
    let expected = rows(&place, "whole");
    for (fault, command) in
        FAULTS.into_iter().flat_map(|fault| ["sweep", "train", "eval"].map(|of| (fault, of)))
    {
        at_operations(step, |at| {
            let _ = fs::remove_dir_all(place.path("small"));
            let sweep = "sweep small.toml --out small";
            let ended = disturbed(&place, sweep, fault, command, at).code() == Some(0);
            if !ended {
                place.host(&format!("{sweep} --retry-failed")).ended_with(0);
            }
            assert_eq!(rows(&place, "small"), expected, "{fault} {command} at {at}");
            for run in ["seed=0", "seed=1"] {
                let ours = place.run(&format!("small/{run}"));
                ours.assert_same_as(&place.run(&format!("whole/{run}")));
                assert_eq!(ours.evaluations().len(), 1, "{run}, {fault} {command} at {at}");
            }
            ended
        });
    }
}

/// The contents of a report's files.
fn contents(place: &Place) -> BTreeMap<String, Vec<u8>> {
    let files =
        fs::read_dir(place.path("report")).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files = files.chain([place.path("report.html")]);
    files.map(|path| (path.display().to_string(), fs::read(path).expect("readable"))).collect()
}

fn report(step: usize) {
    let place = Place::with_digits(8, 50);
    place.host(&format!("{TRAIN} --out run")).ended_with(0);
    place.host("eval run --attack fgsm.so --points 30").ended_with(0);
    let command = "report run --force";
    place.host(command).ended_with(0);
    let whole = contents(&place);
    for fault in FAULTS {
        let disturbed = at_operations(step, |at| {
            fs::remove_dir_all(place.path("report")).expect("removed");
            fs::remove_file(place.path("report.html")).expect("removed");
            let ended = is_undisturbed(disturbed(&place, command, fault, "report", at), fault);
            place.host(command).ended_with(0);
            assert!(contents(&place) == whole, "{fault} at {at}");
            ended
        });
        assert!(disturbed * step > 20, "{disturbed} operations were disturbed");
    }
}

#[test]
fn training_loses_nothing_at_some_operations() {
    train(41);
}

#[test]
fn an_evaluation_loses_nothing_at_some_operations() {
    evaluate(17);
}

#[test]
fn a_sweep_loses_nothing_at_some_operations() {
    sweep(47);
}

#[test]
fn a_report_loses_nothing_at_some_operations() {
    report(23);
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn training_loses_nothing_at_any_operation() {
    train(1);
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn an_evaluation_loses_nothing_at_any_operation() {
    evaluate(1);
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn a_sweep_loses_nothing_at_any_operation() {
    sweep(1);
}

#[test]
#[ignore = "takes minutes: `make faults`"]
fn a_report_loses_nothing_at_any_operation() {
    report(1);
}
