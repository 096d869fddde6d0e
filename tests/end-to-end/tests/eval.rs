//! `host eval`: its measurements, counts and files.

use crate::data::TEST_POINTS;
use crate::harness::{Place, edit};
use serde_json::Value;
use std::fs;

/// A place with a run `run`, trained without a sampler, that classifies natural images correctly.
pub fn trained(epsilon: f64) -> Place {
    trained_with(&format!("--epsilon {epsilon}"))
}

pub fn trained_with(flags: &str) -> Place {
    let place = Place::with_digits(8, 400);
    let train =
        "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 4 --batch 20 --out run";
    place.host(&format!("{train} --optimizer adam --learning-rate 0.002 {flags}")).succeeds();
    place
}

pub fn numbers(list: &Value) -> Vec<i64> {
    let number = |value: &Value| value.as_i64().expect("a whole number");
    list.as_array().expect("a list").iter().map(number).collect()
}

pub fn verdicts(list: &Value) -> Vec<bool> {
    let verdict = |value: &Value| value.as_bool().expect("a verdict");
    list.as_array().expect("a list").iter().map(verdict).collect()
}

pub fn share(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|stands| **stands).count() as f64 / verdicts.len() as f64
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

pub fn passes(attack: &Value) -> [u64; 2] {
    ["forward_passes", "backward_passes"].map(|key| attack[key].as_u64().expect("a count"))
}

/// The verdicts of the only attack of the latest evaluation.
fn latest_verdicts(place: &Place) -> Vec<bool> {
    let evaluation = place.run("run").evaluations().pop().expect("an evaluation");
    verdicts(&evaluation["verdicts"]["attacks"][0])
}

/// The last bits of an image's loss depend on its batch, so a loss could rise without any attack.
#[test]
fn an_attack_that_returns_the_natural_examples_raises_the_loss_by_exactly_zero() {
    let place = trained(0.06);
    for points in [7, 20, 37] {
        let still = "--attack langevin.so,step_size=0,noise=0,steps=2";
        let printed = place.host(&format!("eval run --json --points {points} {still}")).ended_with(0).json();
        assert_eq!(printed["attacks"][0]["loss_rise"], 0.0, "{points} points");
        assert_eq!(printed["caveats"][0]["name"], "loss-not-raised", "{points} points");
    }
}

#[test]
fn json_is_one_object_with_the_documented_keys() {
    let place = trained(0.06);
    let attacks = ["fgsm.so", "pgd.so,steps=5,step_size=0.05", "apgd.so,steps=5"];
    let flags = attacks.map(|attack| format!("--attack {attack}")).join(" ");
    let printed = place.host(&format!("eval run --json {flags}")).succeeds().json();

    assert_eq!(
        keys(&printed),
        ["attacks", "caveats", "clean", "order", "outline", "points", "source", "worst_case"]
    );
    assert_eq!(printed["points"], TEST_POINTS);
    let saved = &place.run("run").evaluations()[0];
    let clean = verdicts(&saved["verdicts"]["clean"]);
    assert_eq!(printed["clean"], share(&clean));
    let mut all_stand = clean.clone();
    for (number, attack) in attacks.into_iter().enumerate() {
        let result = &printed["attacks"][number];
        let mut expected =
            vec!["attack", "backward_passes", "forward_passes", "loss_rise", "moved", "robust", "seconds"];
        if attack.starts_with("apgd") {
            expected.retain(|key| *key != "moved");
        } else {
            assert!(result["moved"].as_f64().is_some_and(|share| (0.5..2.001).contains(&share)), "{result}");
        }
        assert_eq!(keys(result), expected);
        assert!(result["loss_rise"].as_f64().is_some_and(|rise| rise > 0.0), "{result}");
        assert_eq!(result["attack"], attack);
        assert!(result["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
        let stands = verdicts(&saved["verdicts"]["attacks"][number]);
        assert_eq!(result["robust"], share(&stands));
        assert!(stands.iter().zip(&clean).all(|(robust, clean)| *clean || !robust), "fooled already");
        all_stand.iter_mut().zip(stands).for_each(|(all, this)| *all &= this);
    }
    assert_eq!(printed["attacks"].as_array().map(Vec::len), Some(3));
    assert_eq!(printed["worst_case"], share(&all_stand));
    let robust = printed["attacks"][1]["robust"].as_f64().expect("a share");
    assert!(0.0 < robust && robust < share(&clean), "the attack fools some points: {robust}");
}

#[test]
fn steps_that_are_too_short_for_the_ball_are_a_caveat() {
    let place = trained(0.06);
    let caveats = |flags: &str| -> Vec<String> {
        let printed =
            place.host(&format!("eval run --norm l2 --epsilon 1 --json {flags}")).ended_with(0).json();
        let caveats = printed["caveats"].as_array().expect("a list").iter();
        caveats.map(|caveat| caveat["name"].as_str().expect("a name").to_owned()).collect()
    };
    // It begins at uniform draws, which lie near the surface of the ball: far from the natural examples.
    let short = "--attack pgd.so,steps=4,step_size=0.01";
    assert!(caveats(short).contains(&"short-steps".to_owned()), "{:?}", caveats(short));
    let long = "--attack pgd.so,steps=4,step_size=0.5 --attack fab.so,steps=5 --attack apgd.so,steps=5";
    assert!(!caveats(long).contains(&"short-steps".to_owned()), "{:?}", caveats(long));
}

#[test]
fn runs_and_evaluations_record_the_arithmetic() {
    let place = trained(0.06);
    place.host("eval run --attack fgsm.so --threads 2").succeeds();
    let run = place.run("run");
    let (record, evaluation) = (run.record(), &run.evaluations()[0]);
    for (arithmetic, threads) in [(&record["arithmetic"], 1), (&evaluation["settings"]["arithmetic"], 2)] {
        for field in ["processor", "instruction_set", "openmp", "float32_matmul_precision"] {
            assert!(arithmetic[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {arithmetic}");
        }
        assert_eq!((&arithmetic["threads"], &arithmetic["device"]), (&threads.into(), &"cpu".into()));
        assert_eq!(arithmetic["deterministic_algorithms"], false);
    }
    assert!(record.get("later_arithmetic").is_none(), "{record}");
}

#[test]
fn records_of_plugins_hold_every_option() {
    let place = Place::with_digits(8, 60);
    let train = "train --data digits --threads 1 --epochs 1 --model cnn.so";
    let options = |record: &Value| record["options"].clone();
    let sampler = |flags: &str, out: &str| {
        place.host(&format!("{train} {flags} --out {out}")).ended_with(0);
        let record = place.run(out).record();
        assert_eq!(options(&record["plugins"]["model"])["arch"], "B", "{record}");
        options(&record["plugins"]["sampler"])
    };
    // The defaults are those of the plugin's own description.
    let inspected = place.host("inspect langevin.so --json").succeeds().json();
    let properties = inspected["plugins"][0]["options"]["properties"].as_object().expect("a map").clone();
    let mut defaults: Value =
        properties.iter().map(|(name, option)| (name.clone(), option["default"].clone())).collect();
    assert!(defaults["step_size"].is_number() && defaults["noise"].is_number(), "{defaults}");

    let recipe = "--recipe algorithm-1 --sampler langevin.so";
    defaults["steps"] = 1.into();
    assert_eq!(sampler(recipe, "defaults"), defaults);
    let mut given = defaults.clone();
    (given["steps"], given["noise"]) = (3.into(), 0.125.into());
    assert_eq!(sampler(&format!("{recipe},steps=3,noise=0.125"), "given"), given);
    // In mode fused a visit has one step per replay.
    let mut fused = defaults.clone();
    fused["steps"] = 7.into();
    assert_eq!(sampler("--mode fused --replay 7 --sampler langevin.so", "fused"), fused);

    place.host("eval defaults --attack apgd.so,loss=ce --attack pgd.so,step_size=0.5").ended_with(0);
    let evaluation = &place.run("defaults").evaluations()[0];
    let [apgd, pgd] = [0, 1].map(|attack| options(&evaluation["plugins"][attack]));
    assert_eq!(apgd["loss"], "ce");
    assert!(apgd["steps"].is_u64() && apgd["restarts"].is_u64(), "{apgd}");
    assert_eq!(pgd["step_size"], 0.5);
    assert!(pgd["steps"].is_u64(), "a sampler as an attack has steps: {pgd}");
}

#[test]
fn passes_are_those_computed_by_hand() {
    // In a ball this small no point is fooled, so every attack runs to its end on all points.
    let place = trained(1e-6);
    let points = TEST_POINTS as u64;
    // A step of a sampler takes a forward and a backward pass, the classification of the candidate
    // takes a forward pass. Metropolis needs the loss at its last proposal, too. APGD takes passes
    // at its start and at every iterate, the last one without a gradient.
    for (attack, restarts, forward, backward) in [
        ("fgsm.so", 1, 2, 1),
        ("pgd.so,steps=3", 1, 4, 3),
        ("pgd.so,steps=3", 4, 16, 12),
        ("bad_plugins.so,plugin=metropolis,steps=3", 1, 5, 3),
        ("apgd.so,steps=5", 1, 7, 5),
    ] {
        let command = format!("eval run --json --restarts {restarts} --attack {attack}");
        // A random walk in a ball this small may not raise the loss, which is a caveat.
        let printed = place.host(&command).ended_with(0).json();
        assert_eq!((&printed["clean"], &printed["worst_case"]), (&1.0.into(), &1.0.into()), "all stand");
        assert_eq!(passes(&printed["attacks"][0]), [points * forward, points * backward], "{command}");
    }
}

#[test]
fn fooled_points_are_not_attacked_again() {
    let place = trained(0.06);
    let printed = |restarts: u32| {
        let attack = "--attack pgd.so,steps=3,step_size=0.02";
        place.host(&format!("eval run --json --restarts {restarts} {attack}")).succeeds().json()
    };
    let counts = [printed(1), printed(2), printed(5)].map(|printed| passes(&printed["attacks"][0])[1]);
    let saved = place.run("run").evaluations();
    let clean = verdicts(&saved[0]["verdicts"]["clean"]);
    let standing = [0, 1, 2].map(|number| verdicts(&saved[number]["verdicts"]["attacks"][0]));
    let count = |verdicts: &[bool]| verdicts.iter().filter(|stands| **stands).count() as u64;
    assert_eq!(counts[0], 3 * count(&clean));
    assert_eq!(counts[1], 3 * (count(&clean) + count(&standing[0])), "the second attacks only the others");
    for (more, fewer) in [(1, 0), (2, 1)] {
        let pairs = standing[more].iter().zip(&standing[fewer]);
        assert!(pairs.clone().all(|(more, fewer)| *fewer || !more), "more restarts fool no fewer points");
    }
    assert!(count(&standing[2]) < count(&standing[0]), "restarts fool further points");
}

#[test]
fn verdicts_depend_on_the_seed_and_not_on_the_batch() {
    let place = trained(0.06);
    let evaluate = |flags: &str| {
        let attack = "--attack pgd.so,steps=3,step_size=0.02";
        place.host(&format!("eval run {attack} {flags}")).succeeds();
        latest_verdicts(&place)
    };
    let first = evaluate("--seed 5 --batch 100");
    assert_eq!(evaluate("--seed 5 --batch 7"), first);
    assert_eq!(evaluate("--seed 5 --batch 100"), first);
    assert_ne!(evaluate("--seed 6 --batch 100"), first);
    assert_eq!(place.run("run").evaluations().len(), 4, "each evaluation is added to the others");
}

#[test]
fn a_subset_has_the_verdicts_of_the_whole_set() {
    let place = trained(0.06);
    let attack = "--attack pgd.so,steps=3,step_size=0.02";
    let table = place.host(&format!("eval run {attack} --points 30")).succeeds().words();
    for words in ["clean", "pgd.so,steps=3,step_size=0.02", "95 % interval", "30 test points"] {
        assert!(table.contains(words), "{table}");
    }
    let some = latest_verdicts(&place);
    place.host(&format!("eval run {attack}")).succeeds();
    let all = latest_verdicts(&place);

    let chosen = numbers(&place.run("run").evaluations()[0]["verdicts"]["indices"]);
    assert_eq!(chosen.len(), 30);
    assert!(chosen.is_sorted_by(|one, other| one < other), "each at most once: {chosen:?}");
    assert_ne!(chosen, Vec::from_iter(0..30), "drawn from the whole set");
    let of_the_whole: Vec<_> = chosen.iter().map(|point| all[*point as usize]).collect();
    assert_eq!(some, of_the_whole);
}

#[test]
fn held_out_training_points_can_be_evaluated() {
    let place = trained_with("--validation-points 40 --probe pgd.so,steps=3,step_size=0.02 --epsilon 0.06");
    let epoch = place.run("run").metrics().pop().expect("an epoch");
    let attack = "--attack pgd.so,steps=3,step_size=0.02";
    let table = place.host(&format!("eval run --validation {attack}")).succeeds().words();
    assert!(table.contains("40 held-out training points"), "{table}");
    let saved = place.run("run").evaluations().pop().expect("an evaluation");
    assert_eq!(saved["validation"], true);
    // The probe in training attacks the same points with other random numbers.
    assert_eq!(saved["result"]["clean"], epoch["validation_accuracy"]);
    let [robust, probe] = [&saved["result"]["worst_case"], &epoch["probe_accuracy"]]
        .map(|share| share.as_f64().expect("a share"));
    assert!((robust - probe).abs() <= 0.1, "{robust} {probe}");
    place.host("report run").succeeds();
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("there is no evaluation"), "an evaluation on held-out points is not reported");

    let train = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 1 --batch 100";
    place.host(&format!("{train} --out saw-all")).succeeds();
    place.host(&format!("{train} --validation-points 20 --out saw-some")).succeeds();
    place.refuses(
        &format!("eval saw-all --validation {attack}"),
        &["--validation: expected a run that held out points", "--validation-points N", "got saw-all"],
    );
    place.refuses(
        &format!("eval run --source saw-some --validation {attack}"),
        &["expected a run that held out all 40 points, got saw-some, which held out 20"],
    );
    place.refuses(&format!("eval run --validation --points 41 {attack}"), &["1 to 40", "got 41"]);
}

#[test]
fn more_points_than_the_test_set_has_are_refused() {
    let place = trained(0.06);
    let refused = |points: &str, parts: &[&str]| {
        place.refuses(&format!("eval run --attack fgsm.so --points {points}"), parts);
    };
    refused("101", &["--points", "1 to 100", "got 101"]);
    refused("0", &["--points", "1 to 100", "got 0"]);
    refused("x", &["--points", "'x'"]);
}

#[test]
fn attacks_that_support_l2_run_in_an_l2_ball() {
    let place = trained_with("--norm l2 --epsilon 0.4");
    let printed = place.host("eval run --json --attack pgd.so,steps=10,step_size=0.2").succeeds().json();
    let robust = printed["worst_case"].as_f64().expect("a share");
    assert!(0.0 < robust && robust < printed["clean"].as_f64().expect("a share"), "{printed}");

    let linf_only = "bad_plugins.so,plugin=linf-only";
    place.refuses(&format!("eval run --attack fgsm.so --attack {linf_only}"), &["linf-only", "linf", "l2"]);
    // A suite leaves out attacks that do not support the norm, with a warning.
    std::fs::write(place.path("mine.toml"), format!("attacks = [\"fgsm.so\", \"{linf_only}\"]"))
        .expect("written");
    let suite = place.host("eval run --json --points 10 --suite mine.toml");
    let suite = suite.succeeds_with_warning(&["plugin=linf-only is left out", "section left-out"]).json();
    assert_eq!(suite["attacks"].as_array().map(Vec::len), Some(1), "{suite}");
}

#[test]
fn an_error_of_an_attack_names_it_and_leaves_all_files_unchanged() {
    let place = trained(0.06);
    place.host("eval run --attack fgsm.so").succeeds();
    let before = place.contents();
    for (attack, parts) in [
        (
            "bad_plugins.so,plugin=outside",
            ["outside: run", "100 of 100 candidates outside the threat model"].as_slice(),
        ),
        (
            "bad_plugins.so,plugin=attack-panics",
            &["attack-panics: run", "panicked at", "attacks.rs:", "cannot attack 100 points"],
        ),
        (
            "nonconforming.so,plugin=detaches-logits",
            &[
                "detaches-logits: run",
                "the gradient with respect to the images cannot be computed",
                "no graph",
            ],
        ),
    ] {
        let command = format!("eval run --attack {attack} --batch 100");
        place.host(&command).fails(1, parts);
        assert!(place.contents() == before, "{command}");
    }
}

#[test]
fn samplers_with_state_can_be_used_as_attacks() {
    let place = trained(0.06);
    let attack = "bad_plugins.so,plugin=momentum,steps=5";
    let printed = place.host(&format!("eval run --json --attack {attack}")).succeeds().json();
    assert!(printed["worst_case"].as_f64() < printed["clean"].as_f64(), "{printed}");
}

#[test]
fn a_damaged_file_of_verdicts_is_refused_before_any_work() {
    let place = trained(0.06);
    std::fs::write(place.path("run/eval.json"), "{").expect("written");
    place.refuses("eval run --attack fgsm.so", &["run/eval.json"]);
}

#[test]
fn weights_that_are_not_those_of_the_end_of_training_are_a_caveat() {
    let place = trained(0.06);
    let eval = "eval run --json --strict --attack fgsm.so --points 20";
    let names = |code: i32| -> Vec<String> {
        let printed = place.host(eval).ended_with(code).json();
        let caveats = printed["caveats"].as_array().expect("a list");
        caveats.iter().map(|caveat| caveat["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert!(names(0).is_empty());
    edit(&place.run("run").newest("weights.safetensors"), |bytes| *bytes.last_mut().expect("bytes") ^= 1);
    assert_eq!(names(1), ["damaged", "unfinished"]);
    fs::remove_dir_all(place.run("run").newest("")).expect("removed");
    assert_eq!(names(1), ["unfinished"]);
}
