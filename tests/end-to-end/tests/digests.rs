//! Files that were changed after they were written are found; so are folders that were moved while a
//! run is trained.

use crate::harness::{Place, Run, edit, json_file, write_sealed};
use libc::SIGINT;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 10 --epsilon 0.1 \
                     --model bad_plugins.so,plugin=linear --sampler langevin.so --checkpoint-every 3";

/// A run that was stopped before its end, with at least two checkpoints: also a stop at the update of
/// the first one would leave that one alone.
fn stopped(place: &Place) -> Run {
    place
        .interrupt(&format!("{TRAIN} --epochs 200 --out run"), "run", SIGINT, |update| update > 3)
        .was_interrupted(&["run"]);
    place.run("run")
}

fn replace(path: &Path, old: &str, new: &str) {
    edit(path, |bytes| {
        let text = String::from_utf8(bytes.clone()).expect("text");
        assert!(text.contains(old), "{text}");
        *bytes = text.replacen(old, new, 1).into_bytes();
    });
}

#[test]
fn changed_progress_falls_back_to_the_checkpoint_before_it() {
    let place = Place::with_digits(8, 50);
    let run = stopped(&place);
    let (progress, update) = (run.newest("progress.json"), run.newest_update().expect("a checkpoint"));
    replace(&progress, &format!("\"update\": {update}"), &format!("\"update\": {}", update + 1));
    let warning = ["progress.json is damaged", "going back to the checkpoint before it"];
    place.host("train --resume run").succeeds_with_warning(&warning);
    place.host(&format!("{TRAIN} --epochs 200 --out whole")).ended_with(0);
    run.assert_same_as(&place.run("whole"));
}

#[test]
fn progress_that_does_not_fit_the_run_is_refused() {
    let place = Place::with_digits(8, 50);
    let run = stopped(&place);
    let path = run.newest("progress.json");
    let progress = json_file(&path);
    for (key, value) in [("update", 1_000_000.into()), ("epochs", serde_json::json!([]))] {
        let mut changed = progress.clone();
        changed["progress"][key] = value;
        if changed == progress {
            continue;
        }
        write_sealed(&path, &changed.to_string());
        place.refuses("train --resume run", &["the checkpoint of update", "is not of this run"]);
    }
}

#[test]
fn a_changed_record_is_refused_and_an_edited_one_is_validated() {
    let place = Place::with_digits(8, 50);
    let run = stopped(&place);
    let path = place.path("run/run.json");
    let (record, whole) = (run.record(), fs::read(&path).expect("readable"));
    replace(&path, "\"batch\": 10", "\"batch\": 20");
    for command in ["train --resume run", "eval run --attack fgsm.so"] {
        place.refuses(command, &["run/run.json is damaged", "SHA-256"]).explains(&["every result", "fix"]);
    }
    let mut edited = record.clone();
    edited["experiment"]["train"]["batch"] = 0.into();
    write_sealed(&path, &edited.to_string());
    place.refuses("train --resume run", &["train.batch: expected", "got 0"]).explains(&["run/run.json"]);
    // Whoever reads it validates it: the plugins are not to blame.
    edited = record.clone();
    edited["experiment"]["threat"]["epsilon"] = (-1).into();
    write_sealed(&path, &edited.to_string());
    place
        .refuses("eval run --attack fgsm.so", &["threat.epsilon: expected", "got -1"])
        .explains(&["run.json"]);
    // A flag is not blamed on the record.
    write_sealed(&path, &record.to_string());
    let refused =
        place.refuses("train --resume run --threads 0", &["train.threads: expected at least 1, got 0"]);
    assert!(!refused.errors().contains("run.json"), "{}", refused.errors());
    // Older versions wrote no digests. Nobody can tell such a file from an edited one.
    fs::write(&path, record.to_string()).expect("written");
    let printed = place.host("eval run --attack fgsm.so --strict --json").ended_with(1).json();
    assert_eq!(printed["caveats"][0]["name"], "changed", "{printed}");
    place.host("train --resume run").succeeds_with_warning(&["run/run.json has no digest"]);
    fs::write(&path, whole).expect("written");
    place.host("train --resume run").ended_with(0);
}

#[test]
fn changed_measurements_and_verdicts_are_found() {
    let place = Place::with_digits(8, 50);
    place
        .host(&format!("{TRAIN} --epochs 2 --out run --trace fgsm.so --trace-points 10 --trace-at 1,2"))
        .ended_with(0);
    place.host("eval run --attack pgd.so,steps=5,step_size=0.1 --points 40 --save-examples").ended_with(0);
    let run = place.run("run");
    let metrics = fs::read(place.path("run/metrics.jsonl")).expect("readable");
    replace(&place.path("run/metrics.jsonl"), "\"epoch\":2", "\"epoch\":3");
    replace(&place.path("run/trace.jsonl"), "\"points\":10", "\"points\":11");
    let examples = place.path("run").join(run.evaluations()[0]["examples"].as_str().expect("a name"));
    edit(&examples, |bytes| *bytes.last_mut().expect("a byte") ^= 1);
    let page = |place: &Place| {
        place.host("report run --force").ended_with(0);
        fs::read_to_string(place.path("report.html")).expect("a page")
    };
    let found = page(&place);
    let name = examples.file_name().expect("a name").to_string_lossy();
    for file in ["metrics.jsonl", "trace.jsonl", &name] {
        assert!(found.contains(&format!("run/{file} is damaged")), "{file}: {found}");
    }
    replace(&place.path("run/eval.json"), "\"clean\": ", "\"clean\": 0");
    place.refuses("eval run --attack fgsm.so", &["run/eval.json is damaged"]).explains(&["verdicts"]);
    assert!(page(&place).contains("run/eval.json is damaged"));
    // Training rewrites its measurements.
    place.host("train --resume run").ended_with(0);
    assert!(fs::read(place.path("run/metrics.jsonl")).expect("readable") == metrics);
}

#[test]
fn locks_follow_no_links() {
    let place = Place::with_digits(8, 50);
    place.host(&format!("{TRAIN} --epochs 2 --out run")).ended_with(0);
    fs::write(place.path("thesis"), "years of work").expect("written");
    for (lock, command) in [(".lock", "train --resume run"), (".eval.lock", "eval run --attack fgsm.so")] {
        let lock = place.path("run").join(lock);
        let _ = fs::remove_file(&lock);
        symlink(place.path("thesis"), &lock).expect("linked");
        let outcome = place.host(command);
        assert!(outcome.first_line().contains("it is a symbolic link"), "{}", outcome.report());
        assert_ne!(outcome.code(), Some(0));
        fs::remove_file(&lock).expect("removed");
        assert_eq!(fs::read_to_string(place.path("thesis")).expect("text"), "years of work");
    }
}

#[test]
fn a_run_whose_folder_is_moved_replaced_or_removed_ends_and_keeps_its_state() {
    for change in ["moved", "replaced", "removed"] {
        let place = Place::with_digits(8, 50);
        place.host(&format!("{TRAIN} --epochs 100 --out whole")).ended_with(0);
        let run = place.run("run");
        let command = format!("{TRAIN} --epochs 100 --out run");
        let outcome = place.meanwhile(
            &command,
            || run.newest_update().is_some(),
            || match change {
                "moved" => fs::rename(place.path("run"), place.path("elsewhere")).expect("renamed"),
                "replaced" => {
                    fs::rename(place.path("run"), place.path("elsewhere")).expect("renamed");
                    fs::create_dir_all(place.path("run/checkpoints")).expect("a folder");
                }
                _ => while fs::remove_dir_all(place.path("run")).is_err() {},
            },
        );
        let outcome = outcome.fails(1, &["run was moved, replaced or removed"]);
        let kept = if change == "removed" { "run-rescued-1" } else { "elsewhere" };
        let outcome = outcome.explains(&["kept", kept, "--resume"]);
        let there: Vec<_> =
            place.contents().into_keys().filter(|path| path.starts_with(place.path("run"))).collect();
        assert_eq!(there.len(), if change == "replaced" { 2 } else { 0 }, "{}", outcome.report());
        place.host(&format!("train --resume {kept}")).ended_with(0);
        place.run(kept).assert_same_as(&place.run("whole"));
    }
}

#[test]
fn runs_in_folders_with_commas_and_brackets_are_resumed_and_evaluated() {
    let place = Place::with_digits(8, 50);
    let folder = place.path("seed=1,rate=[0.1 \"x");
    fs::create_dir(&folder).expect("a folder");
    for library in ["libbad_plugins.so", "liblangevin.so", "libpgd.so"] {
        fs::rename(place.copy_built(library), folder.join(library)).expect("moved");
    }
    let host = |arguments: &str| place.outcome(place.command(arguments).current_dir(&folder));
    let train =
        TRAIN.replace(" bad_plugins", " ./bad_plugins").replace(" langevin.so", " ./langevin.so,noise=0.02");
    let data = format!("--data {}", place.path("digits").display());
    let train = train.replace("--data digits", &data);
    host(&format!("{train} --epochs 2 --probe ./pgd.so,steps=2 --validation-points 10 --out run"))
        .ended_with(0);
    let name = "seed=1,rate=[0.1 \"x/run";
    let before = place.run(name).record();
    host("train --resume run").ended_with(0);
    host("eval run --attack ./pgd.so,steps=2 --points 20").ended_with(0);
    let record = place.run(name).record();
    assert_eq!(record, before);
    assert_eq!(record["plugins"]["sampler"]["options"]["noise"], 0.02);
    // The record can be read without the recorded paths.
    let elsewhere = place.path("elsewhere");
    fs::rename(&folder, &elsewhere).expect("renamed");
    let moved = place.outcome(place.command("train --resume run --plugins .").current_dir(&elsewhere));
    moved.ended_with(0);
}

#[test]
fn accuracies_that_are_not_those_of_the_verdicts_are_not_reported() {
    let place = Place::with_digits(8, 50);
    place.host(&format!("{TRAIN} --epochs 1 --out run")).ended_with(0);
    place.host("eval run --attack fgsm.so --points 20").ended_with(0);
    let path = place.path("run/eval.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    file["evaluations"][0]["result"]["attacks"][0]["robust"] = 0.987.into();
    write_sealed(&path, &file.to_string());
    place.host("report run").ended_with(0);
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("the accuracies of entry 1 of eval.json are not those of its verdicts"));
    assert!(!page.contains("98.7"));
}

#[test]
fn a_folder_may_have_any_name_that_the_system_allows() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::with_digits(8, 50);
    let name = OsStr::from_bytes(b"not-\xff-utf-8");
    let train = format!("{TRAIN} --epochs 1 --out");
    let mut command = place.command(&train);
    place.outcome(command.arg(name)).ended_with(0);
    assert!(place.path("").join(name).join("run.json").is_file());
}
