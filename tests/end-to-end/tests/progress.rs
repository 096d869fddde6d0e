//! What a command says before it begins, and while it works.

use crate::harness::{Outcome, Place};
use serde_json::json;
use std::fs;

const TRAIN: &str = "train --recipe algorithm-1 --data digits --threads 1 --batch 20 --epochs 2 --epsilon 1/8 \
                     --model bad_plugins.so,plugin=linear --sampler pgd.so,step_size=1/16,steps=3";

/// Runs the host with a line of progress at every step.
fn with_every_line<'a>(place: &'a Place, arguments: &str) -> Outcome<'a> {
    place.outcome(place.command(arguments).env("DRO_PROGRESS_SECONDS", "0")).ended_with(0)
}

/// The lines of a text that have all these parts.
fn lines_with<'a>(text: &'a str, parts: &[&str]) -> Vec<&'a str> {
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
}

#[test]
fn training_begins_with_its_data_model_threat_model_method_and_cost() {
    let place = Place::with_digits(8, 60);
    let words = place.host(&format!("{TRAIN} --out run")).ended_with(0).words();
    let block: Vec<_> = words.lines().take(6).collect();
    let expected = [
        ("data          ", "digits: 60 training points, 10 classes, 1 x 8 x 8"),
        ("model         ", "bad_plugins.so,plugin=linear"),
        ("threat model  ", "linf, epsilon 0.125, domain [0, 1]"),
        ("method        ", "mode faithful, steps 3; epochs 2; recipe demo with"),
        ("cost          ", "8 passes per sample x 60 points = 480 passes, in 6 updates"),
        ("run folder    ", "run"),
    ];
    for (line, (label, text)) in block.iter().zip(expected) {
        assert!(line.starts_with(label) && line.contains(text), "{words}");
    }
    assert!(words.contains("trained: 8 passes per sample"), "the cost is as expected: {words}");

    let events = place.host(&format!("{TRAIN} --out other --json")).ended_with(0).json_lines();
    let (first, finished) = (&events[0], events.last().expect("events"));
    assert_eq!(first["event"], "run");
    assert_eq!((&first["data"]["points"], &first["data"]["classes"]), (&json!(60), &json!(10)));
    assert_eq!(first["data"]["shape"], json!([1, 8, 8]));
    assert_eq!(first["threat"], json!({"norm": "linf", "epsilon": 0.125, "domain": [0.0, 1.0]}));
    assert_eq!(first["cost"]["passes"], 480);
    assert_eq!(first["cost"]["passes_per_sample"].as_f64(), finished["passes_per_sample"].as_f64());
    assert_eq!(first["cost"]["updates"], finished["update"]);
}

#[test]
fn an_evaluation_begins_with_what_it_will_cost_at_most() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} --out run")).ended_with(0);
    let attacks = "--attack pgd.so,steps=3 --attack square.so,queries=5 --points 30";
    let words = place.host(&format!("eval run {attacks}")).ended_with(0).words();
    let cost = |line: &str| line.starts_with("cost          30 points, 2 attacks: at most ");
    assert!(words.lines().nth(4).is_some_and(cost), "{words}");
    assert!(words.starts_with("data          digits: 30 test points, 10 classes, 1 x 8 x 8\n"), "{words}");

    let printed = place.host(&format!("eval run {attacks} --json")).ended_with(0).json();
    let [pgd, square] = [0, 1].map(|attack| {
        let [expected, measured] =
            [&printed["outline"]["cost"]["attacks"][attack], &printed["attacks"][attack]];
        assert_eq!(expected["attack"], measured["attack"]);
        let passes = |key: &str| (expected[key].as_u64(), measured[key].as_u64().expect("a count"));
        ["forward_passes", "backward_passes"].map(passes)
    });
    // Three steps, and the forward pass of the verdict, of the points that are not misclassified.
    let clean = (printed["clean"].as_f64().expect("a share") * 30.0).round() as u64;
    assert_eq!(pgd, [(Some(30 * 4), clean * 4), (Some(30 * 3), clean * 3)]);
    assert!(square[0].0.is_some_and(|most| most >= square[0].1), "{square:?}");
    assert_eq!(square[1], (None, 0), "no plugin declares its backward passes");
}

/// An epsilon of 0 to 255 instead of 0 to 1, for example.
#[test]
fn a_ball_in_which_all_images_can_be_made_equal_is_a_warning_and_a_caveat() {
    let place = Place::with_digits(8, 60);
    let finding = ["epsilon 8 is at least 0.5, half of the width of the domain", "section large-epsilon"];
    place.host(&format!("{TRAIN} --out run").replace("1/8", "8")).ended_with(0).explains(&finding);
    let outcome = place.host("eval run --attack fgsm.so --json").ended_with(0).explains(&finding);
    assert_eq!(outcome.json()["caveats"][0]["name"], "large-epsilon");
    // Half of the diagonal of 64 values is 4.
    let l2 = format!("{TRAIN} --norm l2 --out l2").replace("1/8", "3.9");
    let quiet = place.host(&l2).ended_with(0).errors();
    assert!(!quiet.contains("large-epsilon"), "{quiet}");
}

#[test]
fn piped_output_says_where_training_and_its_probe_are() {
    let place = Place::with_digits(8, 80);
    let train = format!("{TRAIN} --validation-points 20 --probe pgd.so,steps=2 --out run");
    let words = with_every_line(&place, &train).words();
    // Updates inside an epoch, too.
    for update in 1..=6 {
        assert!(
            !lines_with(&words, &["epoch ", " loss ", &format!(", {update} of 6 updates")]).is_empty(),
            "{words}"
        );
    }
    assert!(
        !lines_with(&words, &["pgd.so,steps=2", " forward passes of a batch", " points"]).is_empty(),
        "{words}"
    );
    // Without the variable, so short a run says nothing of the kind.
    let quiet = place.host(&train.replace("--out run", "--out quiet")).ended_with(0).words();
    assert!(lines_with(&quiet, &[" of 6 updates"]).is_empty(), "{quiet}");
}

#[test]
fn piped_output_says_where_an_attack_is_inside_a_batch() {
    let place = Place::with_digits(8, 60);
    place.host(&format!("{TRAIN} --out run")).ended_with(0);
    let evaluate = "eval run --attack pgd.so,steps=10 --points 30 --batch 30";
    let words = with_every_line(&place, evaluate).words();
    let inside = lines_with(&words, &["pgd.so,steps=10: ", " forward passes of a batch, "]);
    assert_eq!(inside.len(), 10, "a line for each step: {words}");
    let position = |line: &&str| -> u64 {
        let (_, position) = line.rsplit_once(" batch, ").expect("a position");
        position.split(' ').next().expect("a word").parse().expect("a number")
    };
    let positions: Vec<_> = inside.iter().map(position).collect();
    assert!(positions.is_sorted() && positions[0] < positions[9], "{positions:?}");
    // In JSON style, standard output is for the result alone.
    let outcome = with_every_line(&place, &format!("{evaluate} --json"));
    outcome.json();
    outcome.explains(&["progress: pgd.so,steps=10: "]);
}

#[test]
fn piped_output_says_where_a_sweep_is() {
    let place = Place::with_digits(8, 60);
    let sweep = "model = \"bad_plugins.so,plugin=linear\"\nsampler = \"none\"\n[data]\nname = \"digits\"\n\
                 [train]\nepochs = 1\nthreads = 1\n[sweep]\nseeds = [0, 1]\n";
    fs::write(place.path("two.toml"), sweep).expect("written");
    let words = with_every_line(&place, "sweep two.toml").words();
    assert!(!lines_with(&words, &["seed=0: ", ", 0 of 2 runs"]).is_empty(), "{words}");
    assert!(!lines_with(&words, &["seed=1: ", ", 1 of 2 runs"]).is_empty(), "{words}");
}
