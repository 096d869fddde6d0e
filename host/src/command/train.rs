use super::{set_threads, stop_on_signals};
use crate::cli::{TrainArguments, style};
use crate::console::{Reporter, warn};
use crate::data::{self, Dataset};
use crate::experiment::{Experiment, Mode, Train};
use crate::plugin::{Attack, Model, PluginSpec, Sampler};
use crate::progress::best_epoch;
use crate::random::{Purpose, seed_for};
use crate::run::{self, DataRecord, Plugins, RunFolder, RunRecord, Versions};
use crate::trace::Trace;
use crate::training::{Ending, Training, split};
use crate::{Error, INTERRUPTED, Result, device, store};
use plugin_api::Start;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// `host train`
pub fn run(arguments: &TrainArguments) -> Result<u8> {
    let mut reporter = Reporter::new(style(arguments.json));
    let (mut training, folder) = match &arguments.resume {
        Some(path) => resume(path, arguments, &reporter)?,
        None => begin(arguments)?,
    };
    let path = folder.path().display().to_string();
    reporter.note(&format!("run folder {path}"));
    reporter.note(&training.method());
    reporter.event(&json!({"event": "run", "run": path, "update": training.progress().update, "updates": training.updates()}));
    let ending = training.run(&folder, &mut reporter, &*stop_on_signals()?).map_err(|error| {
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
                "trained: {passes} passes per sample in {seconds:.1} s; evaluate with `host eval {path}`"
            ));
            Ok(0)
        }
        Ending::Interrupted => {
            warn(format_args!(
                "stopped at update {update}, after {passes:.2} passes per sample; go on with `host train --resume {path}`"
            ));
            Ok(INTERRUPTED)
        }
    }
}

/// A new run: everything that can be known to be wrong is refused before anything is written.
fn begin(arguments: &TrainArguments) -> Result<(Training, RunFolder)> {
    let mut experiment = arguments.experiment()?;
    let mut folder =
        RunFolder::for_new_run(&arguments.out.clone().unwrap_or_else(RunFolder::named_after_now))?;
    experiment.train.threads = Some(set_threads(experiment.train.threads)?);
    experiment.make_paths_absolute();
    if let Some(file) =
        experiment.train.store_file.iter().flat_map(|file| store::files(file)).find(|file| file.exists())
    {
        return Err(Error::new(format!("{} exists already", file.display()))
            .fix("give --store-file a name that is free, or remove the file"));
    }
    let store_file = experiment.train.store_file.clone();
    let out = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    if let Some(file) = store_file.as_ref().filter(|file| file.starts_with(&out)) {
        return Err(Error::new(format!(
            "train.store_file: expected a file outside the run's folder, got {}",
            file.display()
        ))
        .fix("give --store-file another folder: the run's is not made before its particles have room"));
    }
    let training = begin_in(&mut folder, experiment).inspect_err(|_| {
        // They were free above: whatever is there now was made for this run.
        for file in store_file.iter().flat_map(|file| store::files(file)) {
            let _ = fs::remove_file(file);
        }
    })?;
    Ok((training, folder))
}

/// Makes everything of a new run, its folder last.
fn begin_in(folder: &mut RunFolder, experiment: Experiment) -> Result<Training> {
    let dataset = data::load(&experiment.data.name, &experiment.data.folder)?;
    let (train_points, validation_points) = split(&experiment, &dataset)?;
    let test_points = Some(dataset.test.count() as usize);
    let (training, plugins) = assemble(&experiment, &dataset)?;
    folder.create(&RunRecord {
        command: std::env::args().collect(),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        plugins,
        data: DataRecord {
            name: dataset.name,
            checksums: dataset.checksums,
            class_names: dataset.class_names,
            test_points,
            train_points,
            validation_points,
        },
        versions: Versions::current(),
        experiment,
    })?;
    Ok(training)
}

/// A run that was stopped: the same experiment, plugins and data, from its last checkpoint.
fn resume(path: &Path, arguments: &TrainArguments, reporter: &Reporter) -> Result<(Training, RunFolder)> {
    let mut on_change = run::unless(arguments.allow_changed);
    let (mut folder, record) = RunFolder::open(path)?;
    folder.lock()?;
    let mut experiment = record.experiment;
    if let Some(data_folder) = &arguments.data_folder {
        experiment.data.folder.clone_from(data_folder);
    }
    set_threads(experiment.train.threads)?;
    experiment.model = run::recorded_plugin(&experiment.model, &record.plugins.model, &mut on_change)?;
    for (spec, recorded) in [
        (&mut experiment.train.probe, &record.plugins.probe),
        (&mut experiment.train.trace, &record.plugins.trace),
    ] {
        if let (Some(spec), Some(recorded)) = (spec, recorded) {
            *spec = run::recorded_plugin(spec, recorded, &mut on_change)?;
        }
    }
    if let (Some(spec), Some(recorded)) = (&mut experiment.sampler.0, &record.plugins.sampler) {
        *spec = run::recorded_plugin(spec, recorded, &mut on_change)?;
    }
    let dataset = data::load(&experiment.data.name, &experiment.data.folder)?;
    run::check_data(&dataset, &record.data, &mut on_change)?;
    let (mut training, _) = assemble(&experiment, &dataset)?;
    let (update, damaged) = training.resume(&folder)?;
    for what in damaged {
        warn(format_args!("{what}; going back to the checkpoint before it"));
    }
    reporter.note(&match update {
        0 => "no checkpoint yet: starting from the beginning".to_owned(),
        _ => format!("going on from update {update}"),
    });
    Ok((training, folder))
}

fn assemble(experiment: &Experiment, dataset: &Dataset) -> Result<(Training, Plugins)> {
    let device = device::open(device::parse(&experiment.train.device).map_err(Error::new)?)?;
    let seed = seed_for(experiment.train.seed, Purpose::Initialisation, 0);
    let model = Model::build(&experiment.model, dataset.task(), device, seed)?;
    let sampler =
        experiment.sampler.0.as_ref().map(|spec| make_sampler(spec, &experiment.train)).transpose()?;
    let probe = experiment.train.probe.as_ref().map(Attack::make).transpose()?;
    if let Some(probe) = &probe {
        probe.supports(&experiment.threat, &dataset.task())?;
    }
    let trace = Trace::make(experiment, dataset, device)?;
    let plugins = Plugins {
        model: model.record.clone(),
        sampler: sampler.as_ref().map(|sampler| sampler.record.clone()),
        probe: probe.as_ref().map(|probe| probe.record.clone()),
        trace: trace.as_ref().map(|trace| trace.attack.record.clone()),
    };
    Ok((Training::new(experiment.clone(), model, sampler, probe, trace, dataset, device)?, plugins))
}

/// A sampler that suits the training mode.
pub(super) fn make_sampler(spec: &PluginSpec, train: &Train) -> Result<Sampler> {
    let mut sampler = Sampler::make(spec)?;
    if train.mode == Mode::Fused {
        if spec.steps().is_some() {
            return Err(spec
                .error("option `steps`: in mode fused a visit has as many steps as train.replay says")
                .fix("set train.replay (--replay) instead"));
        }
        if sampler.judges_last_proposal() {
            return Err(spec
                .error("this sampler judges its last proposal by the loss there, which mode fused never computes")
                .fix("use --mode faithful"));
        }
        if train.replay == 1 && train.start.of(sampler.declaration().start) != Start::Store {
            return Err(spec
                .error(
                    "train.replay: expected 2 or more, since no chain goes on from the visit before; got 1, with \
                     which weights would descend where chains begin, never where one has moved",
                )
                .fix("set train.replay (--replay), or let chains go on from a store (--start store)"));
        }
        sampler.steps = train.replay;
    }
    Ok(sampler)
}
