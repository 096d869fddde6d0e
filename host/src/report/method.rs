//! Labels of training methods. Two runs of a report have the same label only if they were trained
//! alike.

use super::collect::Run;
use super::tables::setting_text;
use crate::config::{Experiment, MILESTONES, Mode, PEAK_AT, STEP_FACTOR, Shape, Train};
use crate::plugin::Threat;
use crate::sweep::short;
use crate::torch::precision::Precision;
use crate::util::number::{counted, listed};
use plugin_api::Norm;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Keys of an experiment, or the tables of such keys, that no label has.
const NOT_IN_LABELS: [&str; 13] = [
    // The table of results has columns for these.
    "model",
    "data.name",
    "threat.norm",
    "threat.epsilon",
    "threat.channel_scale",
    "train.seed",
    // Evaluation is not training. The columns of accuracies name the attacks, restarts and points.
    "eval",
    // Locations of files.
    "data.folder",
    "train.store_file",
    // The hardware of training, and extra files that it saves.
    "train.device",
    "train.threads",
    "train.tensorboard",
    "train.checkpoint_every",
];

/// The label of the method of each run.
pub(super) fn labels(runs: &[Run]) -> Vec<String> {
    let experiments: Vec<_> = runs.iter().map(|run| resolved(&run.record.experiment)).collect();
    let varied = varied(&experiments);
    let label = |(run, experiment): (&Run, &Experiment)| {
        let done = run.epochs.last().map_or(0, |epoch| epoch.epoch);
        label(experiment, done, &varied)
    };
    runs.iter().zip(&experiments).map(label).collect()
}

/// An experiment with the defaults that depend on its other keys filled in.
fn resolved(experiment: &Experiment) -> Experiment {
    let mut experiment = experiment.clone();
    experiment.data.validation_points = Some(experiment.validation_points());
    let train = &mut experiment.train;
    let by_default = Train { sampler_gradient: None, ..train.clone() }.sampler_gradient();
    if train.sampler_gradient == Some(by_default) {
        train.sampler_gradient = None;
    }
    match train.schedule {
        Shape::Step => {
            train.milestones.get_or_insert_with(|| MILESTONES.into());
            train.step_factor.get_or_insert(STEP_FACTOR);
        }
        Shape::OneCycle => {
            train.peak_at.get_or_insert(PEAK_AT);
        }
        Shape::Constant | Shape::Cosine => {}
    }
    experiment
}

/// The keys in which any two of these experiments differ, as far as labels have them.
fn varied(experiments: &[Experiment]) -> BTreeSet<String> {
    let [first, others @ ..] = experiments else { return BTreeSet::new() };
    // Of two experiments that differ in a key, one differs in it from the first.
    let keys = others.iter().flat_map(|other| other.differences(first)).map(|(key, _)| key);
    let is_in_table = |key: &str, table: &str| {
        key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    keys.filter(|key| !NOT_IN_LABELS.iter().any(|table| is_in_table(key, table))).collect()
}

/// The label of a method: its base (see [`base`]), then all other varied keys with their values.
/// Keys without a value are left out.
fn label(experiment: &Experiment, done: usize, varied: &BTreeSet<String>) -> String {
    let (mut label, shown) = base(experiment, done);
    let values = json!(experiment);
    for key in varied.iter().filter(|key| !shown.contains(&key.as_str())) {
        let value = key.split('.').fold(&values, |value, key| &value[key]);
        if *value != Value::Null {
            let _ = write!(label, "; {}={}", short(key), setting_text(value));
        }
    }
    label
}

/// The part of a label that does not depend on other runs, and the keys whose values it shows. It
/// has the sampler, the mode, the epochs (and how many of them are done), and some options if they
/// are not the default.
fn base(experiment: &Experiment, done: usize) -> (String, Vec<&'static str>) {
    let train = &experiment.train;
    let mut shown = vec![
        "sampler",
        "train.replay",
        "train.particles",
        "train.objective",
        "train.epochs",
        "train.precision",
        "data.train_points",
    ];
    if train.epochs == 0 {
        let init = train.init.iter().map(|init| init.display().to_string()).collect::<String>();
        shown.extend(["sampler", "train.init", "train.mode"]);
        return (format!("not trained: {init}"), shown);
    }
    let mut label = match &experiment.sampler.0 {
        None => "ordinary training".to_owned(),
        Some(sampler) => {
            shown.push("train.mode");
            match train.mode {
                Mode::Fused => format!("{sampler}; fused"),
                Mode::Faithful => format!("{sampler}; faithful"),
            }
        }
    };
    let is_adversarial = experiment.sampler.0.is_some();
    if train.replay > 1 {
        let name = if is_adversarial { " (free adversarial training)" } else { "" };
        let _ = write!(label, ", {} replays{name}", train.replay);
    }
    if is_adversarial {
        shown.extend(["train.epsilon_scale", "train.domain_only"]);
    }
    if train.domain_only {
        label += "; in the domain only";
    }
    if train.epsilon_scale != 1.0 && is_adversarial {
        let _ = write!(label, "; in {} epsilon", train.epsilon_scale);
    }
    if train.particles > 1 {
        let _ = write!(label, "; {} particles", train.particles);
    }
    if !train.is_cross_entropy() {
        let _ = write!(label, "; {}", train.objective);
    }
    if train.average > 0.0 || train.swa_from.is_some() {
        label += "; averaged weights";
    }
    let all = train.epochs;
    let of_all = if done == all { String::new() } else { format!("{done} of ") };
    let _ = write!(label, "; {of_all}{}", counted(all, "epoch"));
    if let Some(points) = experiment.data.train_points {
        let _ = write!(label, " of {points} points");
    }
    match train.precision {
        Precision::F32 => {}
        Precision::Bf16 => label += "; bf16",
        Precision::Tf32 => label += "; TF32",
    }
    (label, shown)
}

/// A ball in the usual notation: `linf 0.3`, `linf 8/255`.
pub(super) fn ball_of(threat: &Threat) -> String {
    ball(threat.norm, threat.epsilon, threat.channel_scale.as_deref())
}

/// As [`ball_of`], of its parts.
pub(super) fn ball(norm: Norm, epsilon: f64, channel_scale: Option<&[f64]>) -> String {
    let scaled = channel_scale.map_or(String::new(), |scale| format!(" x ({})", listed(scale)));
    const SHORT: usize = 6;
    let levels = 255.0 * epsilon;
    match epsilon.to_string() {
        short if short.len() <= SHORT => format!("{norm} {short}{scaled}"),
        _ if (levels - levels.round()).abs() < 1e-6 => format!("{norm} {levels:.0}/255{scaled}"),
        long => format!("{norm} {long}{scaled}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of two experiments in a report of both.
    fn labels_of(experiments: [&Experiment; 2]) -> [String; 2] {
        let resolved = experiments.map(resolved);
        let varied = varied(&resolved);
        resolved.map(|experiment| label(&experiment, experiment.train.epochs, &varied))
    }

    /// The default experiment with other values of some keys.
    fn with(keys: Value) -> Experiment {
        Experiment::default().with(&keys).expect("an experiment")
    }

    #[test]
    fn methods_that_differ_in_one_key_have_different_labels() {
        for (key, value) in [
            ("learning_rate", json!(0.1)),
            ("start", json!("natural")),
            ("weight_decay", json!(0.0005)),
            ("warmup_epsilon", json!(2.0)),
            ("momentum", json!(0.0)),
        ] {
            let [usual, other] = labels_of([&Experiment::default(), &with(json!({"train": {key: value}}))]);
            assert_ne!(usual, other);
            assert!(other.ends_with(&format!("; {key}={}", setting_text(&value))), "{other}");
            assert!(usual.starts_with("langevin.so; faithful; 5 epochs; "), "{usual}");
        }
        // Keys in which no runs differ are left out.
        let other = with(json!({"train": {"learning_rate": 0.1, "epochs": 7}}));
        let longer = with(json!({"train": {"learning_rate": 0.1}}));
        assert_eq!(
            labels_of([&other, &longer]),
            ["langevin.so; faithful; 7 epochs", "langevin.so; faithful; 5 epochs"]
        );
    }

    /// Another value that a key may have.
    fn other_value(key: &str, value: &Value) -> Value {
        match (key, value) {
            ("mode", _) => json!("fused"),
            ("objective", _) => json!("trades.so"),
            ("start", _) => json!("natural"),
            ("sampler_gradient", _) => json!("train"),
            ("precision", _) => json!("bf16"),
            ("store", _) => json!("u8"),
            ("optimizer", _) => json!("adam"),
            ("schedule", _) => json!("constant"),
            ("select", _) => json!("best"),
            ("milestones" | "trace_at", _) => json!([0.25]),
            ("scale", _) => json!([0.25, 0.5]),
            ("probe" | "trace" | "store_file" | "init", _) => json!("fgsm.so"),
            ("device", _) => json!("cuda"),
            ("clip_gradient" | "awp" | "step_factor" | "peak_at" | "swa_from", _) => json!(0.75),
            (_, Value::Null) => json!(3),
            (_, Value::Bool(value)) => json!(!value),
            (_, Value::Number(number)) if number.is_f64() => json!(0.75),
            (_, Value::Number(_)) => json!(17),
            (key, value) => panic!("train.{key} = {value}: another value is needed here"),
        }
    }

    #[test]
    fn every_key_of_training_makes_a_label_unless_it_is_excluded() {
        let values = json!(Experiment::default());
        let train = values["train"].as_object().expect("a table");
        assert!(train.len() > 30);
        for (key, value) in train {
            for sampler in ["langevin.so", "none"] {
                let [usual, other] = [value.clone(), other_value(key, value)].map(|value| {
                    Experiment::default().with(&json!({"sampler": sampler})).expect("an experiment").with(
                        &json!({"train": serde_json::Map::from_iter(
                            Some((key.clone(), value)).filter(|(_, value)| *value != Value::Null)
                        )}),
                    )
                });
                let (usual, other) = (usual.expect("an experiment"), other.expect("an experiment"));
                let [one, another] = labels_of([&usual, &other]);
                let is_excluded = NOT_IN_LABELS.contains(&format!("train.{key}").as_str());
                assert_eq!(one == another, is_excluded, "train.{key}: {one}, {another}");
            }
        }
    }

    #[test]
    fn every_excluded_key_exists() {
        let mut experiment = Experiment::default();
        experiment.threat.channel_scale = Some(vec![1.0, 0.5]);
        let values = json!(experiment);
        for key in NOT_IN_LABELS {
            let found = key.split('.').try_fold(&values, |value, key| value.get(key));
            assert!(found.is_some(), "{key}");
        }
    }

    #[test]
    fn a_default_and_its_value_are_the_same_method() {
        for keys in [
            json!({"train": {"sampler_gradient": "eval"}}),
            json!({"train": {"schedule": "step", "milestones": [0.5, 0.75], "step_factor": 0.1}}),
            json!({"train": {"schedule": "one-cycle", "peak_at": 0.4}}),
            json!({"data": {"validation_points": 0}}),
        ] {
            let explicit = with(keys.clone());
            let mut implicit = explicit.clone();
            implicit.train.sampler_gradient = None;
            implicit.train.milestones = None;
            implicit.train.step_factor = None;
            implicit.train.peak_at = None;
            implicit.data.validation_points = None;
            assert!(!explicit.differences(&implicit).is_empty());
            let [one, other] = labels_of([&explicit, &implicit]);
            assert_eq!(one, other, "{keys}");
        }
    }

    #[test]
    fn balls_have_the_usual_notation() {
        assert_eq!(ball(Norm::Linf, 0.3, None), "linf 0.3");
        assert_eq!(ball(Norm::Linf, 8.0 / 255.0, Some(&[1.0, 0.5, 0.0])), "linf 8/255 x (1,0.5,0)");
        assert_eq!(ball(Norm::L2, 0.123_456_789, None), "l2 0.123456789");
    }
}
