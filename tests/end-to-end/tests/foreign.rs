//! Networks from elsewhere: judged, made runs of, trained on; and radii other than those of training.

use crate::eval::{numbers, passes, trained, verdicts};
use crate::harness::{Place, Tensors, json_file, sha256};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::fs;
use std::path::Path;

const ATTACK: &str = "--attack pgd.so,steps=3,step_size=0.02";

/// Writes tensors of f32.
fn write_weights(path: &Path, tensors: &Tensors) {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view"))
    });
    fs::write(path, safetensors::serialize(views, None).expect("serialised")).expect("written");
}

/// A place with a run `run` and its weights in `weights.safetensors`.
fn with_weights() -> Place {
    let place = trained(0.06);
    fs::copy(place.run("run").newest("weights.safetensors"), place.path("weights.safetensors"))
        .expect("copied");
    place
}

fn foreign(model: &str, weights: &str, flags: &str) -> String {
    format!("eval --model {model} --data digits --weights {weights} --threads 1 {flags}")
}

fn names(caveats: &Value) -> Vec<&str> {
    let caveats = caveats.as_array().expect("a list");
    caveats.iter().map(|caveat| caveat["name"].as_str().expect("a name")).collect()
}

#[test]
fn a_network_from_elsewhere_has_the_verdicts_of_the_run_it_came_from() {
    let place = with_weights();
    place.host(&format!("eval run {ATTACK} --json")).succeeds();
    let command =
        foreign("cnn.so,arch=B", "weights.safetensors", &format!("--epsilon 0.06 --out there {ATTACK}"));
    let shown = place.host(&command).succeeds().words();
    assert!(shown.contains("the weights of weights.safetensors, not trained here"), "{shown}");
    let [own, judged] = ["run", "there"].map(|run| place.run(run).evaluations().remove(0));
    assert_eq!(own["verdicts"], judged["verdicts"]);
    let record = place.run("there").record();
    assert_eq!(record["init"]["sha256"], sha256(&place.path("weights.safetensors")));
    assert_eq!(place.run("there").weights(), place.run("run").weights());

    // From here on it is a run like any other, and does not need the file.
    fs::remove_file(place.path("weights.safetensors")).expect("removed");
    place.host(&format!("eval there {ATTACK} --seed 2")).succeeds();
    place.host(&format!("eval run there --transfer {ATTACK}")).succeeds();
    place.host("report there").succeeds();
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("This network was not trained here"), "{page}");
    place.host("predict there --out there.safetensors").succeeds();
}

#[test]
fn the_folder_of_a_network_takes_further_evaluations_of_it_and_of_no_other() {
    let place = with_weights();
    let there = |weights: &str| foreign("cnn.so", weights, &format!("--epsilon 0.06 --out there {ATTACK}"));
    place.host(&there("weights.safetensors")).succeeds();
    place.host(&there("weights.safetensors")).succeeds();
    assert_eq!(place.run("there").evaluations().len(), 2);
    let mut other = place.run("run").weights();
    other.values_mut().for_each(|(_, values)| values[0] += 1.0);
    write_weights(&place.path("other.safetensors"), &other);
    place.refuses(&there("other.safetensors"), &["there holds another network", "its weights"]);
    place.refuses(
        &foreign("cnn.so,arch=A", "weights.safetensors", "--epsilon 0.06 --out there"),
        &["there holds another network", "its model is cnn.so"],
    );
    place.refuses(
        &foreign("cnn.so", "weights.safetensors", "--epsilon 0.06 --out digits"),
        &["digits already exists and is not empty"],
    );
}

#[test]
fn weights_that_do_not_match_are_counted_and_the_first_are_shown() {
    let place = with_weights();
    let mut weights = place.run("run").weights();
    weights.remove("hidden.bias");
    weights.insert("mine".to_owned(), (vec![1], vec![0.0]));
    let output = weights.get_mut("output.bias").expect("a tensor");
    *output = (vec![3], vec![0.0; 3]);
    write_weights(&place.path("odd.safetensors"), &weights);
    let out = "--epsilon 0.06 --out there";
    let refused = place.refuses(
        &foreign("cnn.so", "odd.safetensors", out),
        &["the weights do not match model cnn", "1 missing, 1 unexpected, 1 of another shape"],
    );
    for part in
        ["`hidden.bias`", "`mine`", "`output.bias`: expected Float [", "got Float [3]", "odd.safetensors"]
    {
        assert!(refused.errors().contains(part), "{part}: {}", refused.errors());
    }
    // Everything is another name: the first ten are shown.
    let many = (0..14).map(|number| (format!("layer{number:02}"), (vec![1], vec![0.0]))).collect();
    write_weights(&place.path("many.safetensors"), &many);
    let refused = place.refuses(&foreign("cnn.so", "many.safetensors", out), &["12 missing, 14 unexpected"]);
    assert!(refused.errors().contains("`layer09`; and 4 more"), "{}", refused.errors());
    assert!(!refused.errors().contains("layer10"), "{}", refused.errors());

    let mut broken = place.run("run").weights();
    broken.get_mut("output.bias").expect("a tensor").1[0] = f32::NAN;
    write_weights(&place.path("broken.safetensors"), &broken);
    place.refuses(
        &foreign("cnn.so", "broken.safetensors", out),
        &["broken.safetensors", "`output.bias` has NaN"],
    );
    // Names of DataParallel.
    let wrapped =
        place.run("run").weights().into_iter().map(|(name, tensor)| (format!("module.{name}"), tensor));
    write_weights(&place.path("wrapped.safetensors"), &wrapped.collect());
    place.host(&foreign("cnn.so", "wrapped.safetensors", &format!("{out} {ATTACK}"))).ended_with(0);
    assert_eq!(place.run("there").weights(), place.run("run").weights());
}

#[test]
fn flags_of_networks_from_elsewhere_are_refused_where_they_mean_nothing() {
    let place = with_weights();
    let weights = "--weights weights.safetensors";
    for (command, parts) in [
        (format!("eval run {weights}"), vec!["--weights: a run has weights of its own"]),
        ("eval run --data digits".to_owned(), vec!["--data: a run has data of its own"]),
        ("eval run --out there".to_owned(), vec!["--out: the verdicts of a run"]),
        (
            format!("eval run --model cnn.so --data digits {weights}"),
            vec!["--model: expected no run beside it"],
        ),
        ("eval --model cnn.so".to_owned(), vec!["--model: expected --data too"]),
        (format!("eval --model cnn.so --data digits {weights} --epsilon 0.1"), vec!["expected --out too"]),
        (
            format!("eval --model cnn.so --data digits {weights} --out there"),
            vec!["--epsilon: expected a radius"],
        ),
        (
            "eval --model cnn.so --data digits --epsilon 0.1 --out there".to_owned(),
            vec!["model cnn brings no weights"],
        ),
        (foreign("cnn.so", "missing.safetensors", "--epsilon 0.1 --out there"), vec!["missing.safetensors"]),
        (format!("predict run {weights} --out p"), vec!["--weights: a run has weights of its own"]),
    ] {
        place.refuses(&command, &parts);
    }
    let other = Place::with_digits(12, 40);
    fs::copy(place.path("weights.safetensors"), other.path("weights.safetensors")).expect("copied");
    other.refuses(
        &foreign("cnn.so", "weights.safetensors", "--epsilon 0.1 --out there"),
        &["the weights do not match model cnn", "of another shape"],
    );
}

#[test]
fn points_that_fell_at_a_smaller_radius_are_not_attacked_at_a_larger_one() {
    let place = trained(0.06);
    let attacks = "--attack fgsm.so --attack pgd.so,steps=3";
    let printed =
        place.host(&format!("eval run --json --epsilon 0.03,0.06,0.12 {attacks}")).ended_with(0).json();
    let saved = place.run("run").evaluations();
    assert_eq!(saved.len(), 3, "an entry for each radius");
    let standing = |entry: &Value, attack: usize| verdicts(&entry["verdicts"]["attacks"][attack]);
    for (number, (entry, epsilon)) in saved.iter().zip([0.03, 0.06, 0.12]).enumerate() {
        assert_eq!(entry["threat"]["epsilon"], epsilon);
        assert_eq!(entry["curve"].as_array().map(Vec::len), Some(number + 1));
        assert_eq!(entry["curve"][number]["worst_case"], entry["result"]["worst_case"]);
        assert_eq!(printed["radii"][number]["worst_case"], entry["result"]["worst_case"]);
        for (attack, steps) in [(0, 1), (1, 3)] {
            let before = match number {
                0 => verdicts(&entry["verdicts"]["clean"]),
                _ => standing(&saved[number - 1], attack),
            };
            let after = standing(entry, attack);
            assert!(
                before.iter().zip(&after).all(|(before, after)| *before || !after),
                "fallen points stay fallen"
            );
            let attacked = before.iter().filter(|stands| **stands).count() as u64;
            assert_eq!(passes(&entry["result"]["attacks"][attack])[1], steps * attacked, "attack {attack}");
        }
    }
    assert_eq!(printed["curve"], saved[2]["curve"]);
    let shares: Vec<_> =
        saved.iter().map(|entry| entry["result"]["worst_case"].as_f64().expect("a share")).collect();
    assert!(shares.is_sorted_by(|one, next| one >= next) && shares[2] < shares[0], "{shares:?}");
    // The smallest radius is that of an evaluation of its own.
    place.host(&format!("eval run --epsilon 0.03 {attacks}")).ended_with(0);
    assert_eq!(place.run("run").evaluations()[3]["verdicts"], saved[0]["verdicts"]);

    let table =
        place.host(&format!("eval run --epsilon 8/255,32/255 --points 20 {attacks}")).ended_with(0).words();
    for words in ["0 (clean)", "0.03137", "0.1255", "worst case %", "20 test points"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    place.host("report run").ended_with(0);
    for file in ["run-run-radii.svg", "run-run-radii.csv"] {
        assert!(place.path("report").join(file).is_file(), "{file}");
    }
    let radii = fs::read_to_string(place.path("report/run-run-radii.csv")).expect("a table");
    assert!(radii.contains("linf 0.12") && radii.contains("linf 0.03"), "{radii}");
}

#[test]
fn a_suite_gives_each_radius_the_points_that_stand_at_the_one_before() {
    let place = trained(0.06);
    fs::write(place.path("suite.toml"), "attacks = [\"fgsm.so\", \"pgd.so,steps=3\"]").expect("written");
    let suite = "eval run --suite suite.toml --epsilon 0.03,0.12 --save-examples --json";
    place.host(suite).ended_with(0);
    let [small, large] = place.run("run").evaluations().try_into().expect("two radii");
    let last = verdicts(&small["verdicts"]["attacks"][1]);
    let attacked = last.iter().filter(|stands| **stands).count() as u64;
    assert_eq!(passes(&large["result"]["attacks"][0])[1], attacked);
    // A point is said to have been broken by what broke it first.
    let broken: Vec<_> = [&small, &large].map(|entry| entry["broken_by"].clone()).into();
    for (before, after) in
        broken[0].as_array().expect("a list").iter().zip(broken[1].as_array().expect("a list"))
    {
        assert!(before.is_null() || before == after, "{before} {after}");
    }
    let newly = last
        .iter()
        .zip(verdicts(&large["verdicts"]["attacks"][1]))
        .filter(|(before, after)| **before && !after);
    let file = place.path("run").join(large["examples"].as_str().expect("a file"));
    let bytes = fs::read(file).expect("examples");
    let examples = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(examples.tensor("labels").expect("labels").shape(), [newly.count()], "those of this radius");
}

#[test]
fn radii_must_rise_and_another_norm_needs_some() {
    let place = trained(0.06);
    for (flags, parts) in [
        ("--epsilon 0.2,0.1", vec!["--epsilon: expected radii of at least 0, each above", "[0.2, 0.1]"]),
        ("--epsilon 0.1,0.1", vec!["each above the one before it", "[0.1, 0.1]"]),
        ("--epsilon -0.1", vec!["radii of at least 0", "[-0.1]"]),
        ("--epsilon inf", vec!["radii of at least 0", "[inf]"]),
        ("--epsilon 8:255", vec!["8:255"]),
        ("--norm l2", vec!["l2 needs an epsilon of its own"]),
        ("--norm l7 --epsilon 1", vec!["l7"]),
    ] {
        place.refuses(&format!("eval run {ATTACK} {flags}"), &parts);
    }
    place.refuses(
        &format!("eval run run --transfer {ATTACK} --epsilon 0.1"),
        &["--transfer: expected different runs"],
    );
    place.host("eval run --norm l2 --epsilon 1/2 --attack pgd.so,steps=3 --points 20").ended_with(0);
    let saved = place.run("run").evaluations().remove(0);
    assert_eq!((&saved["threat"]["norm"], &saved["threat"]["epsilon"]), (&"l2".into(), &0.5.into()));
    place.host("report run").ended_with(0);
    let page = fs::read_to_string(place.path("report.html")).expect("a page");
    assert!(page.contains("l2 0.5"), "the ball is named");
}

#[test]
fn an_interrupted_evaluation_of_several_radii_goes_on_where_it_was() {
    let place = trained(0.06);
    let command = "eval run --epsilon 0.01,0.02,0.03 --attack pgd.so,steps=300,step_size=0.001 --batch 4";
    place.host(command).ended_with(0);
    let unfinished = place.path("run/unfinished");
    let radii_done = || {
        let folder = fs::read_dir(&unfinished).ok()?.flatten().next()?.path().join("findings.json");
        let text = fs::read_to_string(folder).ok()?;
        Some(text.matches("\"results\"").count())
    };
    // In the midst of the second radius.
    let interrupted =
        place.signal_when(command, libc::SIGINT, || radii_done().is_some_and(|radii| radii > 1));
    let _ = interrupted.fails(130, &["interrupted", "the same command goes on from here"]);
    assert_eq!(place.run("run").evaluations().len(), 3, "nothing is saved before the end");
    let went_on = place.host(command).ended_with(0).words();
    assert!(went_on.contains("going on with this evaluation"), "{went_on}");
    let saved = place.run("run").evaluations();
    assert_eq!(saved.len(), 6);
    for number in 0..3 {
        for key in ["verdicts", "curve", "broken_by", "threat"] {
            assert_eq!(saved[number][key], saved[number + 3][key], "{key} at radius {number}");
        }
    }
    assert!(!unfinished.exists(), "the state is removed");
    let shown = place.host(&format!("{command} --once --json")).ended_with(0).json();
    assert_eq!(shown["curve"], saved[5]["curve"]);
    assert_eq!(place.run("run").evaluations().len(), 6);
}

#[test]
fn predictions_are_those_that_evaluations_judge() {
    let place = with_weights();
    let printed = place.host(&format!("eval run {ATTACK} --save-examples --json")).succeeds().json();
    let predicted = place.host("predict run --out p.safetensors --json").succeeds().json();
    assert_eq!(predicted["accuracy"], printed["clean"]);
    place.host("predict --model cnn.so --data digits --weights weights.safetensors --threads 1 --out q.safetensors").succeeds();
    let read = |name: &str| fs::read(place.path(name)).expect("a file");
    assert_eq!(read("p.safetensors"), read("q.safetensors"));
    let bytes = read("p.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let count = predicted["points"].as_u64().expect("a count") as usize;
    for (name, shape, dtype) in [
        ("logits", vec![count, 10], Dtype::F32),
        ("predictions", vec![count], Dtype::I64),
        ("labels", vec![count], Dtype::I64),
        ("points", vec![count], Dtype::I64),
    ] {
        let tensor = tensors.tensor(name).expect("a tensor");
        assert_eq!((tensor.shape(), tensor.dtype()), (shape.as_slice(), dtype), "{name}");
    }
    // Saved examples fool the model: none is classified correctly.
    let entry = place.run("run").evaluations().remove(0);
    let examples = format!("run/{}", entry["examples"].as_str().expect("a file"));
    let fooled = place
        .host(&format!("predict run --examples {examples} --out f.safetensors --json"))
        .succeeds()
        .json();
    assert_eq!(fooled["accuracy"], 0.0);
    let some =
        place.host("predict run --points 7 --split train --out s.safetensors --json").succeeds().json();
    assert_eq!(some["points"], 7);
    let points = numbers(&entry["verdicts"]["indices"]);
    assert_eq!(points.len(), count);

    place.refuses("predict run --out p.safetensors", &["p.safetensors already exists"]);
    place.refuses("predict run --out nowhere/p.safetensors", &["--out: there is no folder"]);
    place.refuses("predict run --split validation --out n.safetensors", &["a run that held out points"]);
    place.refuses(
        "predict run --examples weights.safetensors --out n.safetensors",
        &["it has no tensor `images`"],
    );
}

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20";

#[test]
fn training_begins_with_given_weights_and_does_not_need_their_file_again() {
    let place = with_weights();
    let start = place.run("run").weights();
    let train =
        |out: &str, init: &str| format!("{TRAIN} --sampler none --epochs 6 --init {init} --out {out}");
    place.host(&train("whole", "weights.safetensors")).ended_with(0);
    let first = place.run("whole").metrics().remove(0);
    assert!(first["train_loss"].as_f64().expect("a loss") < 0.5, "it begins with trained weights: {first}");
    let record = place.run("whole").record();
    assert_eq!(record["init"]["sha256"], sha256(&place.path("weights.safetensors")));
    place.host(&train("from-run", "run")).ended_with(0);
    place.run("from-run").assert_same_as(&place.run("whole"));
    assert!(place.run("from-run").record()["init"]["update"].as_u64().is_some_and(|update| update > 0));

    let in_parts = format!("{} --checkpoint-every 1", train("parts", "weights.safetensors"));
    place.interrupt(&in_parts, "parts", libc::SIGINT, |_| true).ended_with(130);
    fs::remove_file(place.path("weights.safetensors")).expect("removed");
    place.host("train --resume parts").ended_with(0);
    place.run("parts").assert_same_as(&place.run("whole"));

    // No training at all: a run of the weights.
    write_weights(&place.path("weights.safetensors"), &start);
    place.host(&format!("{TRAIN} --epochs 0 --init weights.safetensors --out still")).ended_with(0);
    assert_eq!(place.run("still").weights(), start);
    place.host(&format!("eval still {ATTACK} --epsilon 0.06")).succeeds();
    place.host(&format!("eval run still --transfer {ATTACK} --epsilon 0.06")).succeeds();
    place.host("report still").succeeds();
    // It may be trained later.
    place.host("train --resume still --epochs 1").ended_with(0);
    assert_eq!(place.run("still").metrics().len(), 1);
}

#[test]
fn initial_weights_of_another_network_are_refused_before_anything_is_written() {
    let place = with_weights();
    for init in ["weights.safetensors", "run"] {
        place.refuses(
            &format!("{TRAIN} --model linear.so --init {init} --out other"),
            &["the weights do not match model linear"],
        );
    }
    place.refuses(&format!("{TRAIN} --init nothing --out other"), &["nothing"]);
    place.refuses(&format!("{TRAIN} --init digits --out other"), &["digits holds no run"]);
    place.refuses(&format!("{TRAIN} --init model --out other"), &["model cnn brings no weights"]);
    place.refuses(&format!("{TRAIN} --epochs 0 --out other"), &["train.epochs: expected at least 1"]);
    place.refuses(&format!("{TRAIN} --epochs 0 --init run --trace fgsm.so --out other"), &["train.trace"]);
    place.refuses("train --resume run --init weights.safetensors", &["cannot be used with --init"]);
    let record = json_file(&place.path("run/run.json"));
    assert!(record["init"].is_null() && record["experiment"]["train"]["init"].is_null(), "{record}");
}

#[test]
fn a_network_that_is_fed_another_scale_has_a_caveat_and_one_that_is_not_has_none() {
    let place = Place::with_digits(8, 400);
    let train = |options: &str, out: &str| {
        let model = format!("cnn.so{options}");
        let flags = "--sampler none --epochs 4 --optimizer adam --learning-rate 0.002 --epsilon 0.06";
        place.host(&format!("{TRAIN} {flags} --model {model} --out {out}")).ended_with(0);
        fs::copy(place.run(out).newest("weights.safetensors"), place.path(&format!("{out}.safetensors")))
            .expect("copied");
    };
    for (name, options) in [
        ("shifted", ",mean=[0.5],std=[0.1]"),
        ("bytes", ",mean=[0],std=[0.00392156862745098]"),
        ("plain", ""),
    ] {
        train(options, name);
        for (judged_as, fires) in [(options, false), ("", !options.is_empty())] {
            let out = format!("{name}-{fires}");
            let command = format!(
                "eval --model cnn.so{judged_as} --data digits --weights {name}.safetensors --threads 1 --epsilon 0.01 \
                 --out {out} --attack pgd.so,steps=2 --json"
            );
            if place.path(&out).exists() {
                continue;
            }
            let printed = place.host(&command).ended_with(0).json();
            assert_eq!(
                names(&printed["caveats"]).contains(&"scale"),
                fires,
                "{name} as {judged_as}: {printed}"
            );
        }
    }
}
