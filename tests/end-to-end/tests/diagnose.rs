//! `host diagnose`: how far the particles of a run are from the law of its inner problem.

use crate::data::{Samples, write};
use crate::harness::{Place, edit, json_file};
use libc::SIGINT;
use serde_json::Value;
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 2 \
                     --model linear.so --out run";

/// A diagnosis of few points and short chains.
const DIAGNOSE: &str = "diagnose run --points 6 --lambda 1,2 --steps 200 --anew-epochs 1";

/// The same with everything that can be added.
const WITH_ALL: &str = "diagnose run --points 6 --lambda 1,2 --steps 200 --anew-epochs 1 --exact --transfer run \
                        --beside ula.so,lambda=2,gamma=0.1 --beside langevin.so";

fn trained(flags: &str) -> Place {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} {flags}")).succeeds();
    place
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, got {value}"))
}

#[test]
fn chains_agree_with_the_exact_law_of_softmax_regression() {
    let place = trained("--particles 2 --diagnose-every 2");
    let found = place.host(&format!("{WITH_ALL} --json")).succeeds().json();
    assert_eq!(json_file(&place.path("run/diagnosis.json"))["begun"], found["begun"]);
    let [uniform, one, two] = [0, 1, 2].map(|place| found["laws"][place].clone());
    assert_eq!([&uniform, &one, &two].map(|law| number(&law["lambda"])), [0.0, 1.0, 2.0]);
    assert!(uniform["exact"].is_null() && uniform["from_maximum"].is_null());
    for law in [&one, &two] {
        let exact = &law["exact"];
        assert_eq!(exact["per_point"].as_array().expect("a list").len(), 6);
        // Within three standard errors of the difference.
        assert!(exact["agreeing_means"][1].as_u64() >= Some(5), "{exact}");
        assert!(exact["agreeing_duals"][1].as_u64() >= Some(5), "{exact}");
        for end in ["from_uniform", "from_maximum"] {
            let acceptance = number(&law[end]["figures"]["acceptance"]);
            assert!((0.3..1.0).contains(&acceptance), "{acceptance}");
        }
        assert!(number(&law["mixing"]["r_hat"]) < 1.2, "{law}");
    }
    let order = found["order"].as_array().expect("a list");
    assert_eq!(order.len(), 3);

    // 60 points with two particles each, which the paper's chain projects onto the faces.
    let places = &found["particles"]["places"];
    assert_eq!(places["particles"], 120);
    assert!(number(&places["coordinates"]["on_faces"]) > 0.5);
    assert!(number(&found["particles"]["uniform"]["coordinates"]["on_faces"]) < 0.01);
    assert!((number(&found["particles"]["w_infinity"]) - 0.3).abs() < 1e-6, "the particles are in corners");
    let loss = |of: &str| number(&found["losses"][of]["mean"]);
    assert!(loss("natural") < loss("stored") && loss("uniform") < loss("stored"));
    assert!(loss("stored") <= loss("maximum") + 1e-3);
    assert!(found["effective_of_stored"]["lambda"]["above"].is_number(), "{}", found["effective_of_stored"]);

    let game = &found["game"];
    let gain = number(&game["loss_of_run"]) - number(&game["loss_of_anew"]);
    assert!((number(&game["classifier_gains"]) - gain).abs() < 1e-12);
    let adversary = loss("maximum").max(number(&found["chain"]["mean"])) - loss("stored");
    assert!((number(&game["adversary_gains"]) - adversary).abs() < 1e-12);
    // The run itself, as another run.
    let transfer = &found["transfer"][0];
    assert_eq!(number(&transfer["particles"]["mean"]), loss("stored"));

    // The run's sampler from natural examples, and an unadjusted chain: both project, and are above
    // the law that they are named after.
    let [ula, langevin] = [0, 1].map(|place| found["beside"][place].clone());
    assert_eq!(langevin["sampler"], "langevin.so");
    assert!((number(&langevin["chain"]["mean"]) - number(&found["chain"]["mean"])).abs() < 0.05);
    assert!(number(&ula["chain"]["mean"]) > number(&two["exact"]["mean"]), "{}", ula["chain"]["mean"]);
    assert!(number(&ula["places"]["coordinates"]["on_faces"]) > 0.3);

    // Training compared 60 of its points after the second of two epochs.
    let metrics = place.run("run").metrics();
    assert!(metrics[0]["law"].is_null());
    let law = &metrics[1]["law"];
    assert_eq!(law["points"], 60);
    assert!((number(&law["on_faces"]) - number(&places["coordinates"]["on_faces"])).abs() < 1e-6);
    assert!((number(&law["distance"]) - number(&places["mean"])).abs() < 1e-6);

    // Finished: shown again. In words, too.
    let again = place.host(&format!("{WITH_ALL} --json")).succeeds().json();
    assert_eq!(again["begun"], found["begun"]);
    let words = place.host(WITH_ALL).ended_with(0).words();
    for part in
        ["on a face of the box", "effective lambda of the stored particles: above 2", "exploitability"]
    {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    place.refuses(&format!("{DIAGNOSE} --seed 7"), &["other settings", "beside, seed, transfer"]);
    let replaced = place.host(&format!("{DIAGNOSE} --seed 7 --replace --json")).succeeds().json();
    assert_eq!(replaced["settings"]["seed"], 7);
    // The report shows it.
    place.host("report run").succeeds();
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("How far the particles are from the law"));
}

#[test]
fn an_interrupted_diagnosis_goes_on_to_the_same_figures() {
    let place = trained("");
    let command = format!("{DIAGNOSE} --json");
    let whole = place.host(&command).succeeds().json();
    fs::remove_file(place.path("run/diagnosis.json")).expect("removed");
    let unfinished = place.path("run/unfinished-diagnosis");
    let parts = || fs::read_dir(&unfinished).map_or(0, |entries| entries.count());
    place
        .signal_when(&command, SIGINT, || parts() > 1)
        .fails(130, &["interrupted; the same command goes on"]);
    assert!(parts() > 0 && !place.path("run/diagnosis.json").exists());
    place.refuses(&format!("{command} --seed 7"), &["unfinished-diagnosis", "other settings", "seed"]);
    let resumed = place.host(&command).succeeds().json();
    for part in ["particles", "losses", "chain", "laws", "dual", "order", "game", "effective_of_chain"] {
        assert_eq!(resumed[part], whole[part], "{part}");
    }
    assert!(!unfinished.exists());
}

#[test]
fn what_cannot_be_diagnosed_is_refused_before_any_work() {
    let place = trained("");
    let refuses = |flags: &str, parts: &[&str]| drop(place.refuses(&format!("diagnose run {flags}"), parts));
    for lambda in ["0", "-1", "nan", "inf"] {
        refuses(&format!("--lambda {lambda}"), &["--lambda: expected finite numbers above 0, got"]);
    }
    refuses("--chains 1", &["--chains: expected at least 2, got 1"]);
    refuses("--steps 99", &["--steps: expected at least 100, got 99"]);
    refuses("--points 61", &["--points: expected at most 60", "got 61"]);
    refuses("--exact --lambda 1,2.5", &["--exact: `lambda`: expected a whole number", "got 2.5"]);
    refuses("--exact --lambda 1000", &["--exact: `lambda`: 1000 with", "expected at most"]);
    refuses(
        "--law-sampler ula.so",
        &["--law-sampler: expected a sampler of the law", "one that declares no law"],
    );
    refuses("--law-sampler mala.so,boundary=nowhere", &["mala", "boundary"]);
    refuses("--transfer nowhere", &["nowhere holds no run"]);
    place.refuses("diagnose nowhere", &["nowhere holds no run"]);

    let other = |flags: &str, parts: &[&str]| {
        let out = place.path("other");
        let _ = fs::remove_dir_all(&out);
        place.host(&format!("{TRAIN} {flags}").replace("--out run", "--out other")).ended_with(0);
        place.refuses("diagnose other", parts);
    };
    other("--sampler none", &["other keeps no particles that could be diagnosed"]);
    other("--sampler pgd.so,steps=2", &["other keeps no particles that could be diagnosed"]);
    other("--objective trades.so", &["expected a run whose particles climb the cross-entropy", "trades"]);
    // It climbs the cross-entropy, whatever the weights descend on.
    place.host(&format!("{TRAIN} --objective mart.so").replace("--out run", "--out mart")).ended_with(0);
    place.host(&DIAGNOSE.replace("run", "mart")).ended_with(0);
    other("--norm l2 --epsilon 1", &["other: expected a run in linf, got l2"]);
    place.refuses(
        "train --recipe algorithm-1 --data digits --sampler none --diagnose-every 1 --out another",
        &["train.diagnose_every: expected a sampler whose particles stay in the ball and in a store"],
    );

    let long =
        TRAIN.replace("--epochs 2", "--epochs 200 --warmup-epsilon 200").replace("--out run", "--out begun");
    place.interrupt(&long, "begun", SIGINT, |_| true).ended_with(130);
    place.refuses(
        "diagnose begun",
        &["begun: expected a run whose ball has its full radius, after 200 epochs (train.warmup_epsilon); got"],
    );
    let network = TRAIN.replace("linear.so", "cnn.so,arch=B").replace("--out run", "--out network");
    place.host(&network).ended_with(0);
    place.refuses("diagnose network --exact", &["--exact: no exact law is known for network"]);
    // A damaged file is named, and stays.
    place.host(DIAGNOSE).ended_with(0);
    edit(&place.path("run/diagnosis.json"), |bytes| bytes[100] ^= 1);
    place.refuses(DIAGNOSE, &["diagnosis.json is damaged"]).explains(&["move", "away"]);
}

#[test]
fn chains_with_a_law_need_an_exact_store_and_a_start_inside_the_box() {
    let place = Place::with_digits(8, 60);
    for store in ["u8", "f16"] {
        place.refuses(
            &format!("{TRAIN} --sampler mala.so --store {store}"),
            &["train.store: expected f32 for mala", store],
        );
    }
    // Images with black pixels, at the smallest value of the domain.
    let image = |point: usize| {
        (0..64).map(move |pixel| if pixel % 2 == 0 { 0 } else { (37 * point + 5 * pixel) as u8 })
    };
    let labels: Vec<u8> = (0..60).map(|point| point % 10).collect();
    let samples = Samples { pixels: (0..60).flat_map(image).collect(), labels };
    write(&place.path("black"), 8, &samples, &samples);
    let acceptance = |out: &str| number(&place.run(out).metrics()[1]["sampler"]["acceptance"]);
    let reject = TRAIN
        .replace("digits", "black")
        .replace("--out run", "--sampler mala.so,boundary=reject,step=0.001 --out");
    // Black pixels begin on a face of the domain: half of their proposals lie outside.
    place
        .host(&format!("{reject} at-the-face"))
        .ended_with(0)
        .explains(&["particles do not move", "uniform-store"]);
    assert!(acceptance("at-the-face") < 0.01);
    place.host(&format!("{reject} inside --start uniform-store")).ended_with(0);
    assert!(acceptance("inside") > 0.3, "{}", acceptance("inside"));
}
