use super::stop_on_signals;
use crate::command::arguments::{EvalArguments, style};
use crate::config::Experiment;
use crate::config::suite;
use crate::data::Dataset;
use crate::data::examples::Examples;
use crate::evaluation::caveat;
use crate::evaluation::evaluator::Evaluator;
use crate::evaluation::journal::Journal;
use crate::evaluation::verdict::Caveat;
use crate::evaluation::verdict::{Evaluation, Findings, Order, confidence_interval};
use crate::plugin::{Attack, Model, PluginSpec};
use crate::run;
use crate::run::progress::Progress;
use crate::run::{RunFolder, RunRecord, Versions};
use crate::torch::device::set_threads;
use crate::torch::random::Purpose;
use crate::torch::{device, tensors};
use crate::util::console::{Style, say, warn};
use crate::util::files;
use crate::{Error, Result, data};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tch::{Device, Tensor};

/// Natural examples on which a model is looked at before it is attacked.
const LOOKED_AT: usize = 100;

/// `host eval`
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    if arguments.transfer {
        return super::transfer::run(arguments);
    }
    let [path] = arguments.runs.as_slice() else {
        return Err(Error::new(format!("expected one run, got {}", arguments.runs.len()))
            .fix("evaluate them one by one, or give --transfer to attack each with examples of each"));
    };
    let stop = stop_on_signals()?;
    let bench = Bench::open(path, arguments)?;
    let target = bench.subject(path, arguments)?;
    let source = arguments.source.as_ref().map(|path| bench.subject(path, arguments)).transpose()?;
    target.folder.evaluations()?;

    let (attacks, left_out) = bench.attacks(arguments, &target.record)?;
    let mut doubts = target.changes.clone();
    add_new(&mut doubts, source.iter().flat_map(|source| source.changes.clone()));
    doubts.extend(left_out);
    let source = source.as_ref().unwrap_or(&target);
    let experiment = &target.record.experiment;
    let evaluator = bench.evaluator(arguments, experiment, &target, source, &stop);
    let points = evaluator.choose_points(wanted_points(arguments, experiment))?;
    doubts.extend(look_at_models(&evaluator, &points)?);

    let (journal, found) = bench.journal(arguments, &evaluator, &target, None, &attacks, &points)?;
    if found.is_some() && evaluator.style == Style::Human {
        say("going on with this evaluation, which was interrupted");
    }
    let (mut evaluation, failure) = match evaluator.run(&attacks, points, found, Some(&journal)) {
        Ok(found) => found,
        Err(why) => return Err(journal.abandon(why, false)),
    };
    doubts.append(&mut evaluation.doubts);
    evaluation.doubts = doubts;
    // Half a suite has no verdict; attacks judged on their own have each their own.
    let has_verdict = evaluator.order == Order::Separate && !evaluation.attacks.is_empty();
    match failure {
        Some(error) if error.is_interrupted() || !has_verdict => return Err(journal.abandon(error, false)),
        _ => {}
    }
    show(arguments, &evaluation, &target.progress, evaluator.style);
    save(arguments, &target, &evaluator, &evaluation, &attacks, journal)?;
    if let Some(error) = failure {
        return Err(error);
    }
    Ok(u8::from(arguments.strict && !evaluation.doubts.is_empty()))
}

/// What all runs of a command are evaluated with.
pub struct Bench {
    dataset: Dataset,
    examples: Examples,
    device: Device,
}

/// A run under evaluation.
pub struct Subject {
    folder: RunFolder,
    /// What it was made with.
    pub record: RunRecord,
    /// Its classifier.
    pub model: Model,
    /// What is not as it was recorded, which was allowed.
    pub changes: Vec<Caveat>,
    progress: Progress,
}

impl Bench {
    /// Data, device and threads of the run in this folder, unless the arguments say otherwise.
    pub fn open(path: &Path, arguments: &EvalArguments) -> Result<Self> {
        let (_, RunRecord { experiment, data: recorded, .. }) = RunFolder::open(path)?;
        set_threads(arguments.threads.or(experiment.train.threads))?;
        let name = arguments.device.as_ref().unwrap_or(&experiment.train.device);
        let device = device::open(device::parse(name).map_err(Error::new)?)?;
        let folder = arguments.data_folder.as_ref().unwrap_or(&experiment.data.folder);
        let dataset = data::load(&experiment.data.name, folder)?;
        let held_out = recorded.validation_points;
        if arguments.validation && held_out == 0 {
            return Err(Error::new(format!(
                "--validation: expected a run that held out points (train --validation-points N), got {}",
                path.display()
            )));
        }
        let (train, test) = (&dataset.train, &dataset.test);
        let examples = match arguments.validation {
            true => {
                Examples::new(train, (train.count() as usize).saturating_sub(held_out), held_out, device)?
            }
            false => Examples::new(test, 0, test.count() as usize, device)?,
        };
        Ok(Self { dataset, examples, device })
    }

    /// The run in this folder, which must be of the same data.
    pub fn subject(&self, path: &Path, arguments: &EvalArguments) -> Result<Subject> {
        let (folder, record) = RunFolder::open(path)?;
        let mut changes = Vec::new();
        let mut on_change = |change: Error| match arguments.allow_changed {
            true => {
                changes.push(Caveat::new("changed", change.first_line()));
                Ok(())
            }
            false => Err(change.note("run", path.display())),
        };
        run::check_data(&self.dataset, &record.data, &mut on_change)?;
        let (held_out, attacked) = (record.data.validation_points, self.examples.len());
        if arguments.validation && held_out < attacked {
            return Err(Error::new(format!(
                "--validation: expected a run that held out all {attacked} points, got {}, which held out {held_out} and saw the others",
                path.display()
            )));
        }
        let spec = &record.experiment.model;
        let spec = run::recorded_plugin(spec, &record.plugins.model, &mut on_change)?;
        let model = Model::build(&spec, self.dataset.task(), self.device, 0)?;
        let progress = run::load_weights(&folder, &record, &model)?;
        Ok(Subject { folder, record, model, changes, progress })
    }

    /// The attacks asked for by flags, or else those of the run's experiment. Those of a suite
    /// or an experiment that cannot run here are left out, with the reason.
    pub fn attacks(
        &self,
        arguments: &EvalArguments,
        record: &RunRecord,
    ) -> Result<(Vec<Attack>, Vec<Caveat>)> {
        let asked_for = !arguments.attacks.is_empty();
        let specs: Vec<PluginSpec> = match &arguments.suite {
            Some(suite) => suite::attacks(suite)?,
            None if asked_for => arguments.attacks.clone(),
            None => record.experiment.eval.attacks.clone(),
        };
        let (mut attacks, mut left_out) = (Vec::new(), Vec::new());
        for spec in &specs {
            let attack = Attack::make(spec)?;
            match attack.supports(&record.experiment.threat, &self.dataset.task()) {
                Ok(()) => attacks.push(attack),
                Err(why) if asked_for => return Err(why),
                Err(why) => {
                    let why = why.to_string();
                    let why = why.lines().next().unwrap_or_default();
                    left_out.push(Caveat::new("left-out", format!("{spec} is left out: {why}")));
                }
            }
        }
        match attacks.is_empty() {
            true => Err(Error::new("no attack is left that can run here")
                .note("because", left_out.iter().map(|doubt| &*doubt.finding).collect::<Vec<_>>().join("; "))
                .fix("choose attacks with --attack")),
            false => Ok((attacks, left_out)),
        }
    }

    /// An evaluator of one run against examples made on another, set up as the experiment says
    /// unless the arguments say otherwise.
    pub fn evaluator<'a>(
        &'a self,
        arguments: &EvalArguments,
        experiment: &Experiment,
        target: &'a Subject,
        source: &'a Subject,
        stop: &'a AtomicBool,
    ) -> Evaluator<'a> {
        let order = if arguments.suite.is_some() { Order::Cascade } else { Order::Separate };
        // A suite says itself how often each of its attacks is to run.
        let restarts = if order == Order::Cascade { 1 } else { experiment.eval.restarts };
        Evaluator {
            model: &target.model,
            source: &source.model,
            examples: &self.examples,
            purpose: Purpose::Attack,
            threat: experiment.threat,
            order,
            restarts: arguments.restarts.unwrap_or(restarts),
            batch: arguments.batch.unwrap_or(experiment.eval.batch),
            seed: arguments.seed.unwrap_or(experiment.train.seed),
            device: self.device,
            style: style(arguments.json),
            stop,
        }
    }

    /// The journal of an evaluation of `target`, and what was found before an interruption. A
    /// field of a matrix has one for each run `row` that examples are made on.
    pub fn journal(
        &self,
        arguments: &EvalArguments,
        evaluator: &Evaluator,
        target: &Subject,
        row: Option<&Subject>,
        attacks: &[Attack],
        points: &[i64],
    ) -> Result<(Journal, Option<Findings>)> {
        let mut settings = settings(arguments, evaluator, &self.dataset, attacks, points)?;
        // A matrix keeps its fields until it is whole: another's findings are not its own to take,
        // nor are another field's, even if both fields' models have the same weights.
        let row = row.map(|source| {
            let path = source.folder.path();
            path.canonicalize().unwrap_or_else(|_| path.to_owned())
        });
        settings.insert("transfer from".to_owned(), json!(row));
        Journal::open(&target.folder, settings, attacks.len(), points, arguments.save_examples)
    }
}

/// Looks at the model that is judged, and at the one that examples are made on.
pub fn look_at_models(evaluator: &Evaluator, points: &[i64]) -> Result<Vec<Caveat>> {
    let some = Tensor::from_slice(&points[..points.len().min(LOOKED_AT)]).to_device(evaluator.device);
    let (images, labels) = evaluator.examples.batch(&some);
    let mut doubts = caveat::of_model(evaluator.source, &images, &labels)?;
    if !std::ptr::eq(evaluator.source, evaluator.model) {
        let of_judged = caveat::of_model(evaluator.model, &images, &labels)?;
        // Only examples need gradients.
        add_new(&mut doubts, of_judged.into_iter().filter(|doubt| doubt.name != "vanishing-gradients"));
    }
    Ok(doubts)
}

/// Adds those of another model that are not the same as this one's.
fn add_new(doubts: &mut Vec<Caveat>, others: impl IntoIterator<Item = Caveat>) {
    for doubt in others {
        if !doubts.contains(&doubt) {
            doubts.push(doubt);
        }
    }
}

/// Everything that decides the verdicts: what an interrupted evaluation is recognised by.
fn settings(
    arguments: &EvalArguments,
    evaluator: &Evaluator,
    dataset: &Dataset,
    attacks: &[Attack],
    points: &[i64],
) -> Result<BTreeMap<String, Value>> {
    let weights = |model: &Model| -> Result<Value> {
        let bytes: Result<Vec<_>> = model.state().iter().map(|(_, tensor)| tensors::bytes(tensor)).collect();
        Ok(json!([model.record.sha256, model.record.spec, files::sha256(&bytes?.concat())]))
    };
    let attacks: Vec<_> = attacks.iter().map(|attack| json!([attack.key(), attack.record.sha256])).collect();
    let settings = [
        ("model", weights(evaluator.model)?),
        ("source", weights(evaluator.source)?),
        ("data", json!(dataset.checksums)),
        ("validation", arguments.validation.into()),
        ("attacks", attacks.into()),
        ("points", json!([points.len(), files::sha256(json!(points).to_string().as_bytes())])),
        ("threat", json!(evaluator.threat)),
        ("order", json!(evaluator.order)),
        ("restarts", evaluator.restarts.into()),
        ("batch", evaluator.batch.into()),
        ("seed", evaluator.seed.into()),
        ("device", format!("{:?}", evaluator.device).into()),
        ("threads", tch::get_num_threads().into()),
        ("save examples", arguments.save_examples.into()),
        ("versions", json!(Versions::current())),
    ];
    Ok(settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Warns of every doubt, and of where to read on.
pub fn tell(doubts: &[Caveat]) {
    for Caveat { name, finding } in doubts {
        warn(format_args!("{finding} (docs/evaluation.md, section {name})"));
    }
}

/// How many points are asked for: those of the run's config are test points.
pub fn wanted_points(arguments: &EvalArguments, experiment: &Experiment) -> Option<usize> {
    arguments.points.or(experiment.eval.points.filter(|_| !arguments.validation))
}

/// What the points of an evaluation are called.
pub fn points_name(arguments: &EvalArguments) -> &'static str {
    if arguments.validation { "held-out training points" } else { "test points" }
}

fn show(arguments: &EvalArguments, evaluation: &Evaluation, progress: &Progress, style: Style) {
    let source = arguments.source.as_ref();
    match style {
        Style::Json => {
            let mut answer = json!(evaluation);
            answer["source"] = json!(source);
            say(answer);
        }
        Style::Human => {
            let table = table(evaluation, points_name(arguments), progress);
            let made_on = source.map(|source| format!("; examples made on {}", source.display()));
            say(format_args!("{table}{}", made_on.unwrap_or_default()));
        }
    }
    tell(&evaluation.doubts);
}

fn save(
    arguments: &EvalArguments,
    target: &Subject,
    evaluator: &Evaluator,
    evaluation: &Evaluation,
    attacks: &[Attack],
    journal: Journal,
) -> Result<()> {
    let done = evaluation.attacks.len();
    let plugins: Vec<_> = attacks[..done].iter().map(|attack| &attack.record).collect();
    let examples = arguments.save_examples.then(|| format!("examples-{}.safetensors", journal.id()));
    if let Some(examples) = &examples {
        let fallen = evaluation.verdicts.fallen(evaluation.order);
        journal.collect(&target.folder.path().join(examples), evaluator.no_examples(), &fallen)?;
    }
    let saved = target.folder.add_evaluation(json!({
        "result": evaluation,
        "settings": journal.settings(),
        "suite": arguments.suite,
        "validation": arguments.validation,
        "source": arguments.source,
        "seed": evaluator.seed,
        "restarts": evaluator.restarts,
        "batch": evaluator.batch,
        "threat": evaluator.threat,
        "update": target.progress.update,
        "plugins": plugins,
        "versions": Versions::current(),
        "verdicts": evaluation.verdicts,
        "broken_by": evaluation.verdicts.broken_by(),
        "examples": examples,
    }))?;
    journal.discard()?;
    if evaluator.style == Style::Human {
        say(format_args!("verdicts of every point: {}", saved.display()));
        if let Some(examples) = examples {
            say(format_args!("adversarial examples: {}", target.folder.path().join(examples).display()));
        }
    }
    Ok(())
}

/// The table that people read.
fn table(evaluation: &Evaluation, points_name: &str, progress: &Progress) -> String {
    let Evaluation { points, order, clean, attacks, worst_case, .. } = evaluation;
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
    let cost =
        |passes: f64, seconds: f64| [format!("{:.1}", passes / *points as f64), format!("{seconds:.1}")];
    table.add_row(row("clean", *clean, [String::new(), String::new()]));
    for attack in attacks {
        let name = match order {
            Order::Separate => attack.attack.clone(),
            Order::Cascade => format!("then {}", attack.attack),
        };
        table.add_row(row(&name, attack.robust, cost(attack.cost.passes(), attack.cost.seconds)));
    }
    if attacks.len() > 1 {
        let passes = attacks.iter().map(|attack| attack.cost.passes()).sum();
        let seconds = attacks.iter().map(|attack| attack.cost.seconds).sum();
        table.add_row(row("worst case", *worst_case, cost(passes, seconds)));
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
    format!("{table}\n{points} {points_name}; trained for {trained}")
}
