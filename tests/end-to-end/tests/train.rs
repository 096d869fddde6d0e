//! `host train`: the files and the output of a run.

use crate::data::{Noise, write_image_tree};
use crate::harness::{Place, built, edit, hexadecimal, repository, sha256};
use md5::{Digest, Md5};
use serde_json::json;
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20";

#[test]
fn a_run_records_its_options_versions_and_command() {
    let place = Place::with_digits(8, 60);
    let flags =
        "--model cnn.so,arch=B --sampler pgd.so,steps=2,step_size=0.05 --epsilon 0.1 --epochs 1 --seed 7";
    place.host(&format!("{TRAIN} {flags} --out run")).succeeds();

    let record = place.run("run").record();
    for (kind, spec, file) in
        [("model", "cnn.so,arch=B", "libcnn.so"), ("sampler", "pgd.so,steps=2,step_size=0.05", "libpgd.so")]
    {
        let plugin = &record["plugins"][kind];
        assert_eq!(plugin["spec"], spec);
        assert_eq!(plugin["sha256"], sha256(&built(file)));
        assert_eq!(plugin["manifest"]["version"], env!("CARGO_PKG_VERSION"));
    }
    for name in ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"] {
        let contents = fs::read(place.path("digits").join(name)).expect("readable");
        assert_eq!(record["data"]["checksums"][name], hexadecimal(&Md5::digest(contents)));
    }
    assert_eq!(record["data"]["train_points"], 60);
    assert_eq!(record["experiment"]["train"]["seed"], 7);
    assert_eq!(record["experiment"]["threat"]["epsilon"], 0.1);
    let version = place.host("--version").succeeds().words();
    let libtorch = record["versions"]["libtorch"].as_str().expect("a version");
    assert!(version.contains(libtorch), "{version}");
    let command = record["command"].as_array().expect("a list");
    assert!(command.contains(&json!("--sampler")), "{command:?}");
}

#[test]
fn a_run_has_metrics_of_every_epoch_and_saves_its_weights() {
    let place = Place::with_digits(8, 60);
    let flags = "--sampler langevin.so,steps=3 --particles 2 --epsilon 0.1 --epochs 3 --learning-rate 0.05";
    // So short a run may warn that it stays at chance level.
    place.host(&format!("{TRAIN} {flags} --out run")).ended_with(0);

    let run = place.run("run");
    let metrics = run.metrics();
    assert_eq!(metrics.len(), 3);
    for (epoch, line) in (1..).zip(&metrics) {
        assert_eq!(line["epoch"], epoch);
        assert_eq!(line["updates"], 3 * epoch);
        // Each of the two particles per point has three steps and one update of the weights.
        assert_eq!(line["passes_per_sample"], 8 * epoch);
        for number in ["learning_rate", "train_loss", "train_accuracy", "seconds"] {
            assert!(line[number].as_f64().is_some_and(|value| value >= 0.0), "{number} in {line}");
        }
    }
    let loss = |line: usize| metrics[line]["train_loss"].as_f64().expect("a number");
    assert!(loss(2) < loss(0), "the loss falls: {metrics:?}");

    assert_eq!(run.newest_update(), Some(9));
    let weights = run.weights();
    assert_eq!(weights["conv1.weight"].0, [32, 1, 3, 3]);
    assert_eq!(weights["output.bias"].0, [10]);
    let moments = run.tensors("optimizer.safetensors");
    assert_eq!(moments.len(), weights.len(), "one momentum for each parameter");
    let particles = run.tensors("particles.safetensors");
    let (shape, values) = &particles["particles"];
    assert_eq!(*shape, [60, 2, 1, 8, 8]);
    assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
    // The pixels follow the header of an IDX file; the particles stay within epsilon of them.
    let images = fs::read(place.path("digits/train-images-idx3-ubyte")).expect("readable");
    for (image, copies) in images[16..].chunks(64).zip(values.chunks(128)) {
        let near = |(pixel, value): (&u8, &f32)| (f32::from(*pixel) / 255.0 - value).abs() < 0.1 + 1e-5;
        assert!(copies.chunks(64).all(|copy| image.iter().zip(copy).all(near)));
        assert_ne!(copies[..64], copies[64..], "each particle has noise of its own");
    }
}

#[test]
fn samplers_with_an_acceptance_step_train_and_record_their_figures() {
    let place = Place::with_digits(8, 60);
    let flags = "--model linear.so --particles 2 --epsilon 0.1 --epochs 4";
    for sampler in ["mala", "metropolis"] {
        let options = "lambda=100,steps=5,burn_in=10";
        place
            .host(&format!("{TRAIN} {flags} --sampler {sampler}.so,{options} --out {sampler}"))
            .ended_with(0);
        let metrics = place.run(sampler).metrics();
        let figure = |line: usize, name: &str| metrics[line]["sampler"][name].as_f64().expect("a figure");
        for line in 0..4 {
            let (acceptance, step_size) = (figure(line, "acceptance"), figure(line, "step_size"));
            assert!(acceptance > 0.0 && acceptance < 1.0, "{sampler}: {metrics:?}");
            assert!(step_size > 0.0 && step_size <= 0.2, "{sampler}: {metrics:?}");
        }
        // Ten proposals are two visits. Then the step size of every particle is kept.
        assert_ne!(figure(0, "step_size"), figure(1, "step_size"));
        assert!((figure(2, "step_size") - figure(1, "step_size")).abs() < 1e-6, "{metrics:?}");
        // Five steps, the judgement of the last proposal and the update, for two particles.
        assert_eq!(metrics[0]["passes_per_sample"], 14);
    }
    let l2 = format!("{TRAIN} {flags} --norm l2 --sampler mala.so --out l2");
    place.refuses(&l2, &["mala", "option `boundary`: `reflect` needs the faces of a box", "got norm l2"]);
    let rejecting = l2.replace("mala.so", "mala.so,boundary=reject");
    place.host(&rejecting).ended_with(0);
    place.host("eval mala --attack mala.so,steps=5 --attack ula.so,steps=5 --points 20").ended_with(0);
}

#[test]
fn the_seed_decides_the_weights() {
    let place = Place::with_digits(10, 60);
    // Architecture A has dropout, which draws from libtorch's generator.
    let train = |seed: u64, out: &str| {
        let flags = "--model cnn.so,arch=A --sampler langevin.so --epsilon 0.1 --epochs 1";
        place.host(&format!("{TRAIN} {flags} --seed {seed} --out {out}")).succeeds();
        place.run(out)
    };
    let first = train(3, "first");
    train(3, "again").assert_same_as(&first);
    assert!(train(4, "other").weights() != first.weights());
}

#[test]
fn json_output_is_one_object_for_each_epoch_between_two_events() {
    let place = Place::with_digits(8, 60);
    let flags = "--model bad_plugins.so,plugin=linear --sampler none --epochs 2 --out run --json";
    let lines = place.host(&format!("{TRAIN} {flags}")).succeeds().json_lines();
    let [run, epochs @ .., finished] = lines.as_slice() else { panic!("got {lines:?}") };
    assert_eq!((&run["event"], &run["run"]), (&"run".into(), &"run".into()));
    assert_eq!((&finished["event"], &finished["run"]), (&"finished".into(), &"run".into()));
    assert_eq!(epochs, place.run("run").metrics());
    assert_eq!(epochs.len(), 2);
    assert_eq!(epochs[1]["passes_per_sample"], 2, "without a sampler an epoch is one pass");
}

#[test]
fn a_config_file_has_the_effect_of_flags_and_flags_override_it() {
    let place = Place::with_digits(8, 60);
    let config = r#"
        model = "bad_plugins.so,plugin=linear"
        sampler = "fgsm.so"
        [data]
        name = "digits"
        [threat]
        norm = "linf"
        epsilon = 0.05
        domain = [0.0, 1.0]
        [train]
        epochs = 5
        batch = 20
        threads = 1
    "#;
    fs::write(place.path("experiment.toml"), config).expect("written");
    place.host("train --config experiment.toml --epochs 2 --out from-file").succeeds();
    let flags = "--model bad_plugins.so,plugin=linear --sampler fgsm.so --epsilon 0.05 --epochs 2";
    place.host(&format!("{TRAIN} {flags} --out from-flags")).succeeds();
    place.run("from-file").assert_same_as(&place.run("from-flags"));
}

#[test]
fn train_points_limits_training_to_the_first_points() {
    let place = Place::with_digits(8, 60);
    let flags = "--model bad_plugins.so,plugin=linear --sampler langevin.so --epochs 2";
    place.host(&format!("{TRAIN} {flags} --train-points 40 --out few")).succeeds();
    assert_eq!(place.run("few").tensors("particles.safetensors")["particles"].0[0], 40);

    // Other points have no effect.
    edit(&place.path("digits/train-images-idx3-ubyte"), |contents| {
        let mut noise = Noise(9);
        contents[16 + 40 * 64..].fill_with(|| (100.0 + 99.0 * noise.uniform()) as u8);
    });
    place.host(&format!("{TRAIN} {flags} --train-points 40 --out again")).succeeds();
    place.run("again").assert_same_as(&place.run("few"));
}

#[test]
fn accepting_or_rejecting_the_last_proposal_takes_a_further_pass() {
    let place = Place::with_digits(8, 60);
    let flags = "--model bad_plugins.so,plugin=linear --epsilon 0.1 --particles 2 --epochs 1";
    let sampler = "bad_plugins.so,plugin=metropolis,steps=3";
    place.host(&format!("{TRAIN} {flags} --sampler {sampler} --out run")).succeeds();
    assert_eq!(place.run("run").metrics()[0]["passes_per_sample"], 10);
    let particles = place.run("run").tensors("particles.safetensors");
    let shapes: Vec<_> = particles.values().map(|(shape, _)| shape.as_slice()).collect();
    assert_eq!(shapes, [[60, 2, 1, 8, 8]; 3], "the particles and their two state tensors");
    // Two particles for each point: three steps, the acceptance, and the weights at the accepted
    // particle, whichever mode of the network the gradients of the sampler use.
    let normalised = flags.replace("linear", "normalised");
    for mode in ["eval", "train"] {
        let command =
            format!("{TRAIN} {normalised} --sampler {sampler} --sampler-gradient {mode} --out {mode}");
        place.host(&command).succeeds();
        assert_eq!(place.run(mode).metrics()[0]["passes_per_sample"], 10, "{mode}");
    }
}

#[test]
fn plugins_cannot_change_the_hosts_settings() {
    let place = Place::with_digits(8, 60);
    let train = |sampler: &str, out: &str| {
        let flags = "--model bad_plugins.so,plugin=linear --epochs 2";
        place.host(&format!("{TRAIN} {flags} --sampler {sampler} --out {out}")).succeeds();
        place.run(out)
    };
    // These samplers do not move particles. They return an error if the last change was not undone.
    let still = train("langevin.so,step_size=0,noise=0,steps=2", "still");
    train("bad_plugins.so,plugin=changes-threads,steps=2", "threads").assert_same_as(&still);
    train("bad_plugins.so,plugin=changes-grad-mode,steps=2", "grad-mode").assert_same_as(&still);
}

#[test]
fn plugins_are_found_in_the_listed_folders_and_with_or_without_lib() {
    let place = Place::with_digits(8, 60);
    for folder in ["some", "other"] {
        fs::create_dir(place.path(folder)).expect("a folder");
    }
    fs::copy(built("libpgd.so"), place.path("other/libmine.so")).expect("copied");
    let mut command = place.command(&format!(
        "{TRAIN} --model libbad_plugins.so,plugin=linear --sampler mine.so,steps=1 --epochs 1 --out run"
    ));
    place.outcome(command.env("DRO_PLUGIN_PATH", "some:other")).succeeds();
    let path = place.run("run").record()["plugins"]["sampler"]["path"].clone();
    assert!(path.as_str().is_some_and(|path| path.ends_with("/other/libmine.so")), "{path}");
}

#[test]
fn flags_override_the_default_recipe_and_a_run_names_the_differences() {
    let place = Place::with_digits(8, 60);
    let linear = "--data digits --threads 1 --model libbad_plugins.so,plugin=linear --epochs 1 --epsilon 0.1";
    let words = place.host(&format!("train {linear} --warmup-epsilon 0.5 --out run")).ended_with(0).words();
    for part in
        ["mode fused, replay 5", "recipe demo with data.name=", "model=libbad_plugins.so", "train.epochs=1"]
    {
        assert!(words.contains(part), "without {part}: {words}");
    }
    assert!(!words.contains("train.replay="), "it has the value of the recipe: {words}");
    let record = place.run("run").record();
    assert_eq!(record["experiment"]["train"]["mode"], "fused");
    assert_eq!(record["experiment"]["train"]["epsilon_scale"], 1.2);
    // The flag --mode does not change other options.
    place
        .refuses(&format!("train {linear} --mode faithful --out b"), &["train.replay", "got 5"])
        .explains(&["--replay 1", "--recipe algorithm-1"]);
    place.host(&format!("train --recipe algorithm-1 {linear} --out algorithm")).ended_with(0);
    assert_eq!(place.run("algorithm").record()["experiment"]["train"]["epsilon_scale"], 1.0);
    let list = place.host("train --recipe list").succeeds().words();
    for name in ["demo", "algorithm-1", "pgd", "cifar-10-resnet", "cifar-10-pgd"] {
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {list}");
    }
    place.refuses("train --recipe dmeo --out c", &["there is no recipe `dmeo`"]);
}

#[test]
fn what_is_odd_about_the_data_is_said_and_recorded() {
    let place = Place::with_digits(8, 60);
    let train = format!("{TRAIN} --model cnn.so,arch=B --sampler none --epochs 1");
    place.host(&format!("{train} --out usual")).succeeds();
    assert_eq!(place.run("usual").record()["data"]["findings"], json!(null));

    // Labels from 1 to 10, and no test image of class 7.
    edit(&place.path("digits/train-labels-idx1-ubyte"), |file| {
        file[8..].iter_mut().for_each(|label| *label += 1)
    });
    edit(&place.path("digits/t10k-labels-idx1-ubyte"), |file| {
        file[8..].iter_mut().for_each(|label| *label = 1 + *label % 6);
    });
    let first = ["no image of class 0: the model has outputs that it never needs"];
    let second = "no test image of classes 7, 8, 9, 10, of which there are training images";
    place
        .host(&format!("{train} --train-points 5 --out odd"))
        .succeeds_with_warning(&first)
        .explains(&[second, "none of the 5 training points is of classes 6, 7, 8, 9, 10"]);
    let findings = place.run("odd").record()["data"]["findings"].clone();
    assert_eq!(findings[0], first[0]);
    assert!(findings[1].as_str().is_some_and(|found| found.contains("relabel=true")), "{findings}");
    assert_eq!(findings[2], second);
    assert_eq!(findings.as_array().map(Vec::len), Some(4), "{findings}");
    place.host("eval odd --attack fgsm.so").succeeds_with_warning(&first).explains(&[second]);
    place.host("train --resume odd").succeeds_with_warning(&first);
}

#[test]
fn all_options_except_the_sampler_have_defaults() {
    let data = repository().join("data");
    assert!(data.join("mnist").is_dir(), "get MNIST first: cargo run -p host -- data fetch mnist");
    let place = Place::empty();
    std::os::unix::fs::symlink(data, place.path("data")).expect("a link");
    place.host("train --sampler langevin.so --train-points 500 --epochs 1").succeeds();

    let runs: Vec<_> = fs::read_dir(place.path("runs")).expect("runs").flatten().collect();
    assert_eq!(runs.len(), 1);
    let name = runs[0].file_name().into_string().expect("UTF-8");
    // 2026-01-31T12-34-56
    let shape: String = name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00-00-00");
    let run = place.run(&format!("runs/{name}"));
    assert_eq!(run.metrics().len(), 1);
    assert_eq!(run.weights()["hidden.weight"].0, [100, 64 * 7 * 7], "architecture B on MNIST");
    assert_eq!(run.record()["experiment"]["threat"]["epsilon"], 0.3);
}

#[test]
fn a_probe_scores_held_out_points_and_selects_the_best_epoch() {
    let place = Place::with_digits(8, 100);
    let flags = "--model bad_plugins.so,plugin=linear --sampler none --epochs 3 --out run";
    let selection = "--validation-points 40 --probe pgd.so,steps=3 --epsilon 0.05 --select best";
    place.host(&format!("{TRAIN} {flags} {selection}")).succeeds();
    let run = place.run("run");
    assert_eq!(run.record()["data"]["train_points"], 60);
    let scores: Vec<f64> =
        run.metrics().iter().map(|epoch| epoch["probe_accuracy"].as_f64().expect("a score")).collect();
    assert_eq!(scores.len(), 3);
    for epoch in run.metrics() {
        // A forward pass of all 40 points. Points that are correct without the probe have three
        // steps and a further forward pass.
        let right = 40.0 * epoch["validation_accuracy"].as_f64().expect("a share");
        let passes = epoch["validation_passes"].as_f64().expect("a number");
        assert!((passes - (20.0 + 3.5 * right)).abs() < 1e-9, "{epoch}");
    }
    let best = scores.iter().fold(f64::MIN, |best, score| best.max(*score));
    let first_best = scores.iter().position(|score| *score == best).expect("one of them") + 1;
    // Resuming a finished run keeps the scores.
    let metrics = run.metrics();
    place.host("train --resume run").succeeds();
    assert_eq!(run.metrics(), metrics);
    // The table names the epoch whose weights are evaluated.
    let table = place.host("eval run --attack fgsm.so").succeeds().words();
    assert!(table.contains(&format!("trained for {first_best} epoch")), "{scores:?} {table}");
}

#[test]
fn a_folder_of_images_is_a_data_set() {
    let place = Place::empty();
    write_image_tree(&place.path("pictures"), 8, 400);
    let train = "train --recipe algorithm-1 --data pictures --threads 1 --batch 20 --sampler none --epochs 4 --optimizer adam \
                 --learning-rate 0.002 --validation-points 50 --out run";
    place.host(train).succeeds();
    let run = place.run("run");
    // The held-out points are from all classes, and are classified as well as the others.
    let last = run.metrics().pop().expect("four epochs");
    assert!(last["validation_accuracy"].as_f64().is_some_and(|accuracy| accuracy > 0.9), "{last}");
    let data = &run.record()["data"];
    let names: Vec<_> = (0..10).map(|label| format!("digit-{label}")).collect();
    assert_eq!(data["class_names"], serde_json::json!(names));
    assert_eq!(data["checksums"].as_object().map(|sums| sums.len()), Some(2));
    let evaluation = place.host("eval run --json --attack fgsm.so").ended_with(0).json();
    assert!(evaluation["clean"].as_f64().is_some_and(|clean| clean > 0.9), "{evaluation}");
    // If a file is removed or renamed, the data set is a different one.
    fs::rename(place.path("pictures/test/digit-1/1.png"), place.path("pictures/test/digit-2/1.png"))
        .expect("renamed");
    place.refuses("eval run --attack fgsm.so", &["data file test is not the recorded one"]);
}

#[test]
fn a_trace_has_the_accuracies_of_an_evaluation_and_does_not_change_the_run() {
    let place = Place::with_digits(9, 60);
    let trace = "--trace pgd.so,steps=2 --trace-points 50 --trace-at 0.5,2,3,4,9 --json";
    for (number, model) in
        ["cnn.so,arch=A --average 0.5", "bad_plugins.so,plugin=normalised --swa-from 0.3"].iter().enumerate()
    {
        let train = |more: &str, out: &str| {
            let flags = format!(
                "--mode faithful --model {model} --sampler langevin.so --epsilon 0.1 --epochs 2 {more}"
            );
            let lines = place.host(&format!("{TRAIN} {flags} --out {out}")).succeeds();
            (place.run(out), lines)
        };
        let (plain, _) = train("", &format!("plain{number}"));
        assert!(plain.trace().is_none());
        let out = format!("traced{number}");
        let (traced, outcome) = train(trace, &out);
        let events = outcome.json_lines().into_iter().filter(|line| line["event"] == "trace").count();
        let points = traced.trace().expect("a trace");
        assert_eq!((points.len(), events), (4, 4));
        // An epoch has three updates of two passes each.
        for (point, updates) in points.iter().zip([1.0, 3.0, 5.0, 6.0]) {
            assert_eq!(
                (&point["updates"], &point["optimizer_steps"]),
                (&json!(updates as u64), &json!(updates as u64))
            );
            let passes = point["passes_per_sample"].as_f64().expect("a number");
            assert!((passes - updates * 2.0 / 3.0).abs() < 1e-12, "{point}");
            assert_eq!((&point["attack"], &point["points"]), (&json!("pgd.so,steps=2"), &json!(50)));
        }
        let evaluation = place
            .host(&format!("eval {out} --attack pgd.so,steps=2 --points 50 --json"))
            .ended_with(0)
            .json();
        assert_eq!(points[3]["clean_accuracy"], evaluation["clean"]);
        assert_eq!(points[3]["attack_accuracy"], evaluation["attacks"][0]["robust"]);

        fs::remove_file(place.path(&format!("{out}/trace.jsonl"))).expect("removed");
        traced.assert_same_as(&plain);
    }
}

#[test]
fn a_trace_goes_from_the_first_update_to_the_end_by_default() {
    let place = Place::with_digits(8, 60);
    let flags = "--model bad_plugins.so,plugin=linear --epsilon 0.1 --epochs 2 --mode fused --replay 3";
    place.host(&format!("{TRAIN} {flags} --trace fgsm.so --out run")).succeeds();
    let points = place.run("run").trace().expect("a trace");
    // An update takes one pass: the trace is after 1, 2, 5 and all passes. There are only 100 test
    // points, so it uses all of them instead of 1,000.
    let numbers: Vec<_> = points
        .iter()
        .map(|point| ["updates", "optimizer_steps", "points"].map(|name| point[name].as_u64()))
        .map(|numbers| numbers.map(Option::unwrap_or_default))
        .collect();
    assert_eq!(numbers, [[1, 3, 100], [2, 6, 100], [5, 15, 100], [6, 18, 100]]);
}

#[test]
fn a_run_ends_early_when_no_epoch_scores_better() {
    let place = Place::with_digits(8, 100);
    // With a learning rate of almost zero, the first epoch stays the best.
    let flags = "--model bad_plugins.so,plugin=linear --sampler none --epochs 9 --learning-rate 1e-9";
    let selection = "--validation-points 40 --probe fgsm.so --epsilon 0.05 --select best --patience 2";
    let command = format!("{TRAIN} {flags} {selection}");
    let lines = place.host(&format!("{command} --out run --json")).succeeds().json_lines();
    let finished = lines.last().expect("lines");
    assert_eq!(finished["event"], "finished");
    assert_eq!(finished["stopped_early"], true);
    assert_eq!((&finished["epochs"], &finished["best_epoch"]), (&json!(3), &json!(1)));
    let run = place.run("run");
    let metrics = run.metrics();
    assert_eq!(metrics.len(), 3);
    assert!(metrics[1].get("stopped_early").is_none() && metrics[2]["stopped_early"] == true);

    let before = place.contents();
    let words = place.host("train --resume run").succeeds().words();
    assert!(words.contains("stopped early after epoch 3: none has scored better since epoch 1"), "{words}");
    assert!(place.contents() == before, "a finished run does not change");
    let table = place.host("eval run --attack fgsm.so").succeeds().words();
    assert!(table.contains("trained for 1 epoch,"), "{table}");

    // The weights of the last epoch are evaluated without a warning about an unfinished run. A run
    // whose patience and epochs end together did not stop early.
    let command = command.replace("--select best", "");
    place.host(&format!("{command} --out last")).ended_with(0);
    let table = place.host("eval last --attack fgsm.so").succeeds().words();
    assert!(table.contains("trained for 3 epochs"), "{table}");
    let whole = command.replace("--epochs 9", "--epochs 3");
    place.host(&format!("{whole} --out whole")).ended_with(0);
    assert!(place.run("whole").metrics()[2].get("stopped_early").is_none());

    // An average over the second half of eight epochs is scored twice before patience ends.
    let averaged = command.replace("--epochs 9", "--epochs 8 --swa-from 0.5");
    place.host(&format!("{averaged} --out averaged")).ended_with(0);
    assert_eq!(place.run("averaged").metrics().len(), 6);
}

#[test]
fn the_learning_rate_follows_its_schedule() {
    let place = Place::with_digits(8, 60);
    // Four epochs of three updates; the metrics have the rate of each epoch's last update.
    for (schedule, expected) in [
        ("step", [0.4, 0.4, 0.04, 0.004]),
        ("step --milestones 0.25,0.5 --step-factor 0.5", [0.4, 0.2, 0.1, 0.1]),
        // At 3, 6, 9 and 12 of 13 of the run: the rate rises to the peak at 0.5 and then falls.
        (
            "one-cycle --peak-at 0.5",
            [0.4 * 6.0 / 13.0, 0.4 * 12.0 / 13.0, 0.4 * 8.0 / 13.0, 0.4 * 2.0 / 13.0],
        ),
    ] {
        let out = format!("run{}", schedule.len());
        let flags = "--model bad_plugins.so,plugin=linear --sampler none --epochs 4 --learning-rate 0.4";
        place.host(&format!("{TRAIN} {flags} --schedule {schedule} --out {out}")).succeeds();
        let metrics = place.run(&out).metrics();
        for (line, expected) in metrics.iter().zip(expected) {
            let got = line["learning_rate"].as_f64().expect("a number");
            assert!((got - expected).abs() < 1e-12, "{schedule}: got {got}, expected {expected}");
        }
    }
}

/// Numbers are drawn ahead on a GPU; the variable does it here.
#[test]
fn numbers_that_are_drawn_ahead_train_the_same_network() {
    let place = Place::with_digits(8, 130);
    for (name, flags) in [
        ("faithful", "--sampler langevin.so,steps=2 --particles 2 --start uniform"),
        ("fused", "--sampler langevin.so --mode fused --replay 3 --crop 1 --flip"),
    ] {
        let runs = ["0", "1"].map(|ahead| {
            let out = format!("{name}-{ahead}");
            let train = format!("{TRAIN} {flags} --epochs 2 --epsilon 0.1 --out {out}");
            place.outcome(place.command(&train).env("DRO_DRAW_AHEAD", ahead)).ended_with(0);
            place.run(&out)
        });
        runs[0].assert_same_as(&runs[1]);
    }
}

#[test]
fn tf32_is_for_gpus() {
    let place = Place::with_digits(8, 60);
    let train = format!("{TRAIN} --precision tf32");
    place.refuses(&train, &["train.precision: expected f32 or bf16", "--device cuda", "got tf32"]);
}
