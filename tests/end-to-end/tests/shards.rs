//! `host eval --shard` and `--merge`: the points of an evaluation are dealt out to several processes.

use crate::eval::{passes, trained};
use crate::harness::{Place, json_file};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

const SEPARATE: &str = "--attack fgsm.so --attack pgd.so,steps=5,step_size=0.02 --attack apgd.so,steps=5 --points 50 \
                        --epsilon 0.03,0.06 --restarts 2 --save-examples --threads 1";

fn entries(place: &Place) -> Vec<Value> {
    place.run("run").evaluations()
}

fn shard(place: &Place, options: &str, shard: &str) -> Value {
    place.host(&format!("eval run {options} --shard {shard} --json")).ended_with(0).json()
}

/// What must not depend on the number of processes: everything but times, the last bits of means, the
/// names of files, and the number of shards itself.
fn comparable(mut entry: Value) -> Value {
    for key in ["begun", "shards", "examples", "examples_sha256"] {
        entry.as_object_mut().expect("an object").remove(key);
    }
    for attack in entry["result"]["attacks"].as_array_mut().expect("a list") {
        let rise = attack["loss_rise"].as_f64();
        attack["loss_rise"] = json!(rise.map(|rise| (rise * 1e4).round()));
        attack["seconds"] = Value::Null;
    }
    entry
}

#[test]
fn merged_shards_are_the_evaluation_of_one_process() {
    let place = trained(0.06);
    place.host(&format!("eval run {SEPARATE}")).ended_with(0);
    let whole = entries(&place);
    assert_eq!(whole.len(), 2, "two radii");
    for count in [2, 3] {
        fs::rename(place.path("run/eval.json"), place.path("before.json")).expect("renamed");
        // In any order.
        for number in (1..=count).rev() {
            let printed = shard(&place, SEPARATE, &format!("{number}/{count}"));
            assert_eq!(printed["shard"], json!({"number": number, "count": count}));
            assert!(!place.path("run/eval.json").exists(), "a shard alone is no result");
        }
        let printed = place.host(&format!("eval run {SEPARATE} --merge --json")).ended_with(0).json();
        assert_eq!(printed["shards"], count);
        let merged = entries(&place);
        for (merged, whole) in merged.iter().zip(&whole) {
            assert_eq!((&merged["shards"], &whole["shards"]), (&json!(count), &Value::Null));
            assert_eq!(comparable(merged.clone()), comparable(whole.clone()));
            let saved = |entry: &Value| {
                let name = entry["examples"].as_str().expect("a file").to_owned();
                fs::metadata(place.path("run").join(name)).expect("examples").len()
            };
            assert_eq!(saved(merged), saved(whole), "as many examples");
        }
        assert_eq!(merged.len(), whole.len());
        for folder in ["run/shards", "run/unfinished"] {
            assert!(!place.path(folder).exists(), "{folder} is left");
        }
    }
}

#[test]
fn shards_run_at_the_same_time_and_their_costs_add_up() {
    let place = trained(0.06);
    fs::write(place.path("mine.toml"), "attacks = [\"fgsm.so\", \"pgd.so,steps=5,step_size=0.02\"]")
        .expect("written");
    let options = "--suite mine.toml --threads 1";
    let whole = place.host(&format!("eval run {options} --json")).ended_with(0).json();
    let started = [1, 2, 3].map(|number| {
        let mut host = place.command(&format!("eval run {options} --shard {number}/3 --json"));
        host.stdout(std::process::Stdio::piped()).spawn().expect("the host starts")
    });
    let printed: Vec<Value> = started
        .into_iter()
        .map(|host| {
            let output = host.wait_with_output().expect("the host ends");
            assert!(output.status.success());
            serde_json::from_slice(&output.stdout).expect("JSON")
        })
        .collect();
    let merged = place.host(&format!("eval run {options} --merge --json")).ended_with(0).json();
    for attack in 0..2 {
        let of_shards = printed.iter().map(|shard| passes(&shard["attacks"][attack]));
        let sum = of_shards.fold([0, 0], |sum, passes| [sum[0] + passes[0], sum[1] + passes[1]]);
        assert_eq!(passes(&merged["attacks"][attack]), sum);
        assert_eq!(sum, passes(&whole["attacks"][attack]), "as one process");
        let seconds = |value: &Value| value["attacks"][attack]["seconds"].as_f64().expect("seconds");
        assert!((seconds(&merged) - printed.iter().map(seconds).sum::<f64>()).abs() < 1e-9);
        assert_eq!(merged["attacks"][attack]["robust"], whole["attacks"][attack]["robust"]);
    }
    let [one, other] = &entries(&place)[..] else { panic!("two evaluations") };
    assert_eq!(one["verdicts"], other["verdicts"]);
    let words = place.host(&format!("eval run {options} --shard 1/3")).ended_with(0).words();
    assert!(words.contains("shard 1/3 is kept in run/shards/1-of-3-"), "{words}");
}

/// The findings of the shards of `run`.
fn findings(place: &Place) -> Vec<PathBuf> {
    let folders = fs::read_dir(place.path("run/shards")).into_iter().flatten().flatten();
    folders.map(|folder| folder.path().join("findings.json")).filter(|path| path.exists()).collect()
}

#[test]
fn a_killed_shard_goes_on_and_is_not_merged_before_its_end() {
    let place = trained(0.06);
    let options = "--attack fgsm.so --attack pgd.so,steps=400,step_size=0.002 --batch 4 --threads 1";
    place.host(&format!("eval run {options}")).ended_with(0);
    let command = format!("eval run {options} --shard 2/2");
    let in_second_attack = || {
        findings(&place).iter().any(|path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let found: Value = serde_json::from_str(&text).unwrap_or_default();
            let found = &found["findings"];
            found["results"].as_array().is_some_and(|results| results.len() == 1)
                && found["attack_progress"]["done"].as_u64() >= Some(8)
        })
    };
    place.signal_when(&command, libc::SIGKILL, in_second_attack).was_killed(libc::SIGKILL);
    shard(&place, options, "1/2");
    let merge = format!("eval run {options} --merge");
    place
        .refuses(&merge, &["shard 2/2 is not finished", "expected 2 attacks, got 1"])
        .explains(&["--shard 2/2"]);
    let before: Vec<Value> = findings(&place).iter().map(|path| json_file(path)["begun"].clone()).collect();
    let words = place.host(&command).ended_with(0).words();
    assert!(words.contains("going on with this evaluation"), "{words}");
    let after: Vec<Value> = findings(&place).iter().map(|path| json_file(path)["begun"].clone()).collect();
    assert_eq!(before, after, "no shard began anew");
    // A finished shard is not repeated.
    let printed = shard(&place, options, "1/2");
    assert_eq!(printed["shard"]["number"], 1);
    place.host(&merge).ended_with(0);
    let [whole, merged] = &entries(&place)[..] else { panic!("two evaluations") };
    assert_eq!(comparable(whole.clone()), comparable(merged.clone()));
}

#[test]
fn shards_that_do_not_fit_are_named() {
    let place = trained(0.06);
    let options = "--attack fgsm.so --points 20 --threads 1";
    let merge = format!("eval run {options} --merge");
    place.refuses(&merge, &["--merge: run has no shards"]).explains(&["--shard 1/N"]);
    for (wrong, part) in [("4/3", "I from 1 to N"), ("0/3", "I from 1 to N"), ("a/3", "I/N"), ("3", "I/N")] {
        place.host(&format!("eval run {options} --shard {wrong}")).ended_with(2).explains(&["--shard", part]);
    }
    place.refuses(&format!("eval run {options} --shard 1/21"), &["as there are points, 20; got 21"]);
    place.host(&format!("{merge} --shard 1/2")).ended_with(2).explains(&["cannot be used with"]);

    shard(&place, options, "1/2");
    place.refuses(&merge, &["shard 2/2 is missing"]).explains(&["--shard 2/2 instead of --merge"]);
    // Made with another seed.
    shard(&place, &format!("{options} --seed 7"), "2/2");
    place.refuses(&merge, &["shard 2/2 differs from the others", "`seed` is 7; expected 0"]);
    let other = format!("eval run {options} --seed 8 --merge");
    place.refuses(&other, &["is of another evaluation", "`seed` is 0; expected 8"]);
    // With other threads, the last bits may differ.
    shard(&place, &options.replace("--threads 1", "--threads 2"), "2/2");
    place.refuses(&merge, &["differs from the others", "`threads` is "]);
    // The one that fits. The process that merges may have other threads and another batch.
    shard(&place, options, "2/2");
    place.host(&format!("{merge} --batch 7").replace("--threads 1", "--threads 2")).ended_with(0);
    let merged = &entries(&place)[0];
    assert_eq!((&merged["shards"], &merged["settings"]["threads"]), (&json!(2), &json!(1)));
    assert_eq!((&merged["batch"], &merged["settings"]["batch"]), (&json!(32), &json!(32)));
}
