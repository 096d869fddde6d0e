use super::set_threads;
use crate::cli::{EvalArguments, style};
use crate::evaluation::{Evaluation, Evaluator, confidence_interval};
use crate::experiment::{Experiment, Select};
use crate::plugin::{Attack, Model};
use crate::progress::Progress;
use crate::random::Purpose;
use crate::report::say;
use crate::report::{Style, warn};
use crate::run::{self, RunFolder, Versions};
use crate::store::Examples;
use crate::{Error, Result, checkpoint, data, device};
use comfy_table::{CellAlignment, Table, presets};
use plugin_api::Task;
use serde_json::json;

/// `host eval`
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    let (folder, record) = RunFolder::open(&arguments.run)?;
    let experiment = &record.experiment;
    set_threads(arguments.threads.or(experiment.train.threads))?;
    let device =
        device::parse(arguments.device.as_ref().unwrap_or(&experiment.train.device)).map_err(Error::new)?;
    let device = device::open(device)?;
    let model_spec = run::recorded_plugin(&experiment.model, &record.plugins.model, arguments.allow_changed)?;
    let dataset =
        data::load(&experiment.data.name, arguments.data_folder.as_ref().unwrap_or(&experiment.data.folder))?;
    run::check_data(&dataset, &record.data, arguments.allow_changed)?;
    let model = Model::build(&model_spec, dataset.task(), device, 0)?;
    let progress = load_weights(&folder, experiment, &model)?;

    let attacks = make_attacks(arguments, experiment, &dataset.task())?;
    let evaluations = folder.evaluations()?;
    let examples = Examples::new(&dataset.test, 0, dataset.test.count() as usize, device)?;
    let evaluator = Evaluator {
        model: &model,
        examples: &examples,
        purpose: Purpose::Attack,
        threat: experiment.threat,
        restarts: arguments.restarts.unwrap_or(experiment.eval.restarts),
        batch: arguments.batch.unwrap_or(experiment.eval.batch),
        seed: arguments.seed.unwrap_or(experiment.train.seed),
        device,
        style: style(arguments.json),
    };
    let points = evaluator.choose_points(arguments.points.or(experiment.eval.points))?;
    let (evaluation, failure) = match evaluator.run(&attacks, points)? {
        (evaluation, Some(failure)) if evaluation.attacks.is_empty() => return Err(failure),
        outcome => outcome,
    };
    match evaluator.style {
        Style::Json => say(json!(evaluation)),
        Style::Human => say(table(&evaluation, &progress)),
    }
    let plugins: Vec<_> = attacks.iter().map(|attack| &attack.record).collect();
    let saved = folder.add_evaluation(
        evaluations,
        json!({
            "result": evaluation,
            "seed": evaluator.seed,
            "restarts": evaluator.restarts,
            "threat": evaluator.threat,
            "update": progress.update,
            "plugins": plugins,
            "versions": Versions::current(),
            "verdicts": evaluation.verdicts,
        }),
    )?;
    if evaluator.style == Style::Human {
        say(format_args!("verdicts of every point: {}", saved.display()));
    }
    failure.map_or(Ok(0), Err)
}

/// The attacks asked for by flags, or else those of the run's experiment that know its threat
/// model.
fn make_attacks(arguments: &EvalArguments, experiment: &Experiment, task: &Task) -> Result<Vec<Attack>> {
    let asked_for = !arguments.attacks.is_empty();
    let mut attacks = Vec::new();
    for spec in if asked_for { &arguments.attacks } else { &experiment.eval.attacks } {
        let attack = Attack::make(spec)?;
        match attack.supports(&experiment.threat, task) {
            Ok(()) => attacks.push(attack),
            Err(why) if asked_for => return Err(why),
            Err(why) => {
                let why = why.to_string();
                warn(format_args!("{spec} is left out: {}", why.lines().next().unwrap_or_default()));
            }
        }
    }
    Ok(attacks)
}

fn load_weights(folder: &RunFolder, experiment: &Experiment, model: &Model) -> Result<Progress> {
    let checkpoints =
        if experiment.train.select == Select::Best { folder.best() } else { folder.checkpoints() };
    let saved = checkpoint::load::<Progress>(&checkpoints, &["weights"])?.ok_or_else(|| {
        let path = folder.path().display();
        Error::new(format!("{path} has no checkpoint yet"))
            .fix(format!("train it with `host train --resume {path}`"))
    })?;
    for what in &saved.damaged {
        warn(format_args!("{what}; evaluating the checkpoint before it"));
    }
    let (done, all) = (saved.progress.epochs.len(), experiment.train.epochs);
    if experiment.train.select == Select::Last && done < all {
        warn(format_args!("training is not finished: {done} of {all} epochs are done"));
    }
    model.load(saved.groups.get("weights").unwrap_or(&Default::default()))?;
    Ok(saved.progress)
}

/// The table that people read.
fn table(evaluation: &Evaluation, progress: &Progress) -> String {
    let Evaluation { points, clean, attacks, worst_case, .. } = evaluation;
    let percent = |share: f64| {
        let (low, high) = confidence_interval(share, *points);
        [format!("{:.2}", 100.0 * share), format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)]
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["attack", "accuracy %", "95 % interval", "passes per point", "seconds"]);
    let row = |name: &str, share: f64, cost: [String; 2]| {
        let [accuracy, interval] = percent(share);
        let [passes, seconds] = cost;
        [name.to_owned(), accuracy, interval, passes, seconds]
    };
    let nothing = || [String::new(), String::new()];
    table.add_row(row("clean", *clean, nothing()));
    for attack in attacks {
        let passes = (attack.forward_passes + attack.backward_passes) as f64 / 2.0 / *points as f64;
        table.add_row(row(
            &attack.attack,
            attack.robust,
            [format!("{passes:.1}"), format!("{:.1}", attack.seconds)],
        ));
    }
    if attacks.len() > 1 {
        table.add_row(row("worst case", *worst_case, nothing()));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let trained = progress.epochs.last().map_or("less than an epoch".to_owned(), |last| {
        format!(
            "{} epochs, {} passes per sample in {:.1} s",
            last.epoch, last.passes_per_sample, last.seconds
        )
    });
    format!("{table}\n{points} test points; trained for {trained}")
}
