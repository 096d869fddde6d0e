use super::arguments::{TrainArguments, style};
use super::eval::print_caveats;
use super::signals::stop_on_signals;
use crate::config::{DEFAULT_RECIPE, Experiment, recipe, recipes};
use crate::ranks::Ranks;
use crate::run::RunFolder;
use crate::run::progress::best_epoch;
use crate::training::reporter::Reporter;
use crate::training::{self, Ending};
use crate::util::console::{begin, quoted, say, warn};
use crate::{INTERRUPTED, Result};
use serde_json::{Value, json};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

/// `host train`
pub fn run(arguments: &TrainArguments) -> Result<u8> {
    if arguments.recipe.as_deref() == Some("list") {
        recipes().for_each(|(name, about)| say(format_args!("{name:16} {about}")));
        return Ok(0);
    }
    let stop = stop_on_signals(&arguments.stop)?;
    begin(style(arguments.json));
    let ranks = arguments.ranks.join("train")?;
    ranks.end(train(arguments, &ranks, &stop))
}

fn train(arguments: &TrainArguments, ranks: &Rc<Ranks>, stop: &AtomicBool) -> Result<u8> {
    let mut reporter = Reporter::new(style(arguments.json));
    let (mut training, folder) = match &arguments.resume {
        Some(path) => {
            let (training, folder, _) = training::resume(path, &arguments.resume_options()?, ranks)?;
            (training, folder)
        }
        None => {
            let experiment = arguments.experiment()?;
            let named = || Ok(arguments.out.clone().unwrap_or_else(RunFolder::named_after_now));
            training::begin(experiment, &ranks.from_first(named)?, ranks)?
        }
    };
    let outline = training.outline(&against_recipe(training.experiment())?);
    let (path, update) = (folder.name().display().to_string(), training.progress().update);
    reporter.note(&format!("{outline}\nrun folder    {path}"));
    if arguments.resume.is_some() {
        reporter.note(&match update {
            0 => "no checkpoint yet: starting from the beginning".to_owned(),
            _ => format!("going on from update {update}"),
        });
    }
    let mut event = json!(outline);
    event["event"] = "run".into();
    event["run"] = path.clone().into();
    event["update"] = update.into();
    event["updates"] = training.updates().into();
    reporter.event(&event);
    print_caveats(training.caveat().as_slice());
    let ending = training.run(&folder, &mut reporter, stop).map_err(|error| {
        if folder.refuse_if_moved().is_err() {
            return error.on_the_way();
        }
        error.on_the_way().note("run", format!("{path} keeps its last checkpoint, if it had one"))
    });
    reporter.finish();
    let ending = ending?;
    let (update, seconds) = (training.progress().update, training.progress().seconds);
    let passes = training.passes_per_sample(update);
    let name = if ending == Ending::Finished { "finished" } else { "interrupted" };
    let epochs = &training.progress().epochs;
    let best = best_epoch(epochs).filter(|best| best.validation_accuracy.is_some());
    let stopped_early = training.progress().stopped_early();
    reporter.event(&json!({
        "event": name, "run": path, "update": update, "passes_per_sample": passes, "seconds": seconds,
        "epochs": epochs.len(), "best_epoch": best.map(|best| best.epoch), "stopped_early": stopped_early
    }));
    match ending {
        Ending::Finished => {
            if let Some(best) = best.filter(|_| stopped_early) {
                reporter.note(&format!(
                    "stopped early after epoch {}: none has scored better since epoch {} with {:.2} %",
                    epochs.len(),
                    best.epoch,
                    100.0 * best.score()
                ));
            }
            reporter.note(&format!(
                "trained: {passes} passes per sample in {seconds:.1} s; evaluate with `host eval {}`",
                quoted(&path)
            ));
            Ok(0)
        }
        Ending::Interrupted => {
            warn(format_args!(
                "stopped at update {update}, after {passes:.2} passes per sample; go on with `host train --resume {}`",
                quoted(&path)
            ));
            Ok(INTERRUPTED)
        }
    }
}

/// In which options an experiment differs from the default recipe: "recipe demo with
/// train.epochs=3".
fn against_recipe(experiment: &Experiment) -> Result<String> {
    // A run makes its folder of data absolute and fills in its number of threads.
    let of_the_machine = |key: &str| ["data.folder", "train.threads"].contains(&key);
    let mut differences = experiment.differences(&recipe(DEFAULT_RECIPE)?);
    differences.retain(|(key, _)| !of_the_machine(key));
    let written = |(key, value): &(String, Value)| match value {
        Value::Null => format!("{key} unset"),
        Value::String(text) => format!("{key}={text}"),
        value => format!("{key}={value}"),
    };
    let differences: Vec<_> = differences.iter().map(written).collect();
    Ok(if differences.is_empty() {
        format!("recipe {DEFAULT_RECIPE}")
    } else {
        format!("recipe {DEFAULT_RECIPE} with {}", differences.join(", "))
    })
}
