//! Assembles a run from an experiment, or from the folder of one that was stopped.

use super::average::{Average, Averaging};
use super::cost::{ExpectedCost, passes_per_epoch};
use super::extension::check_epochs;
use super::optimizer::{Optimizer, Settings};
use super::schedule::Schedule;
use super::store::{self, ParticleStore};
use super::tally::Tally;
use super::trace::Trace;
use super::update::{Players, Sums};
use super::{Plan, Records, Training};
use crate::config::{Experiment, Mode, Start as StartChoice, Train};
use crate::data::examples::Examples;
use crate::data::{self, Dataset, Origin};
use crate::plugin::{Attack, LoadedModel, PluginSpec, Sampler, trust};
use crate::run::outline::{Outline, Points};
use crate::run::progress::Progress;
use crate::run::{self, DataRecord, Extension, LaterArithmetic, Plugins, RunFolder, RunRecord, Versions};
use crate::torch::arithmetic::Arithmetic;
use crate::torch::device;
use crate::torch::finite::FiniteCheck;
use crate::torch::random::{Purpose, seed_for};
use crate::util::console::warn;
use crate::{Error, Result};
use plugin_api::Start;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tch::Device;

/// How a run is resumed.
#[derive(Debug, Default)]
pub struct ResumeOptions {
    /// Where the data lie now, if not where the run recorded.
    pub data_folder: Option<PathBuf>,
    /// Where the plugins lie now, if not where the run recorded.
    pub plugins: Option<PathBuf>,
    /// Whether plugins and data may differ from those recorded.
    pub allow_changed: bool,
    /// Keys of the experiment with other values than recorded: epochs, threads or device.
    pub changes: toml::Table,
}

/// Begins a run in a folder: everything that can be known to be wrong is refused before anything is
/// written.
///
/// # Errors
/// If the folder is not free, or the experiment cannot be run here.
pub fn begin(mut experiment: Experiment, out: &Path) -> Result<(Training, RunFolder)> {
    let mut folder = RunFolder::for_new_run(out)?;
    experiment.train.threads = Some(device::set_threads(experiment.train.threads)?);
    experiment.make_paths_absolute();
    if let Some(file) =
        experiment.train.store_file.iter().flat_map(|file| store::files(file)).find(|file| file.exists())
    {
        return Err(Error::new(format!("{} exists already", file.display()))
            .fix("give --store-file a name that is free, or remove the file"));
    }
    let store_file = experiment.train.store_file.clone();
    if let Some(file) = store_file.as_ref().filter(|file| file.starts_with(folder.path())) {
        return Err(Error::new(format!(
            "train.store_file: expected a file outside the run's folder, got {}",
            file.display()
        ))
        .fix("give --store-file another folder: the run's folder is made after its particles have room"));
    }
    let forget = || store_file.iter().for_each(|file| store::remove_unused(&store::begun(file)));
    forget();
    let training = begin_in(&mut folder, experiment).inspect_err(|_| forget())?;
    store_file.as_deref().map_or(Ok(()), store::name_files)?;
    Ok((training, folder))
}

/// Makes everything of a new run, its folder last.
fn begin_in(folder: &mut RunFolder, experiment: Experiment) -> Result<Training> {
    let dataset = data::load(&experiment.data.name, &experiment.data.folder)?;
    let (train_points, validation_points) = split(&experiment, &dataset)?;
    let test_points = Some(dataset.test.count() as usize);
    let mut findings = dataset.findings()?;
    findings.extend(dataset.findings_of_parts(train_points, validation_points)?);
    findings.iter().for_each(warn);
    // Other names until there is a record: a process that is killed before leaves these names free.
    let mut beginning = experiment.clone();
    beginning.train.store_file = experiment.train.store_file.as_deref().map(store::begun);
    let (mut training, plugins) = assemble(&beginning, &dataset)?;
    training.plan.experiment = experiment.clone();
    let arithmetic = Some(Arithmetic::current(training.plan.device)?);
    for (_, spec) in experiment.plugins() {
        trust::add_named(&spec.file).unwrap_or_else(|why| {
            let why = why.first_line();
            warn(format_args!("{} cannot be listed as trusted, as a resumed run needs it: {why}", spec.file));
        });
    }
    folder.create(&RunRecord {
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        plugins,
        data: DataRecord {
            name: dataset.name,
            checksums: dataset.checksums,
            published: Some(dataset.origin == Origin::Published),
            findings,
            class_names: dataset.class_names,
            test_points,
            train_points,
            validation_points,
        },
        versions: Versions::current(),
        arithmetic,
        is_sealed: true,
        later_arithmetic: Vec::new(),
        extensions: Vec::new(),
        experiment,
    })?;
    Ok(training)
}

/// Continues a run that was stopped: the same experiment, plugins and data, from its last
/// checkpoint, or extends it to more epochs. Also returns the update of that checkpoint, 0 if there is none.
///
/// # Errors
/// If the folder holds no run, another process trains in it, plugins or data differ from those
/// recorded, or the run cannot be extended.
pub fn resume(path: &Path, options: &ResumeOptions) -> Result<(Training, RunFolder, u64)> {
    let mut on_change = run::unless(options.allow_changed);
    let (mut folder, record) = RunFolder::open(path)?;
    folder.lock()?;
    let mut experiment = record.experiment.with(&options.changes)?;
    experiment.validate()?;
    let before = record.experiment.train.epochs;
    check_epochs(before, experiment.train.epochs)?;
    device::set_threads(experiment.train.threads)?;
    for (role, spec) in experiment.plugins_mut() {
        if let Some(recorded) = record.plugins.of(role) {
            *spec = run::recorded_plugin(spec, recorded, options.plugins.as_deref(), &mut on_change)?;
        }
    }
    experiment.train.store_file.as_deref().map_or(Ok(()), store::name_files)?;
    let dataset = run::recorded_data(&experiment.data, options.data_folder.as_deref())?;
    run::check_data(&dataset, &record.data, &mut on_change)?;
    dataset.findings()?.iter().for_each(warn);
    let (mut training, _) = assemble(&experiment, &dataset)?;
    let (update, damaged) = training.load_checkpoint(&folder)?;
    for what in damaged {
        warn(format_args!("{what}; going back to the checkpoint before it"));
    }
    if training.experiment().train.epochs != before {
        training.check_extension(before)?;
        folder.extend(&Extension {
            update,
            from: before,
            to: training.experiment().train.epochs,
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        })?;
        training.end_is_later(&folder)?;
    }
    if !training.is_over() {
        note_arithmetic(&folder, &record, update, training.plan.device)?;
    }
    folder.hold()?;
    Ok((training, folder, update))
}

/// Warns if a run goes on with another arithmetic than before, and records it. Its weights are then
/// not bit for bit those of a run that was never stopped.
fn note_arithmetic(folder: &RunFolder, record: &RunRecord, update: u64, device: Device) -> Result<()> {
    let arithmetic = Arithmetic::current(device)?;
    match record.latest_arithmetic().map(|before| before.differences(&arithmetic)) {
        Some(differences) if differences.is_empty() => return Ok(()),
        Some(differences) => {
            warn(format_args!("the run goes on with other arithmetic: {}", differences.join("; ")));
        }
        None => warn(
            "the arithmetic that the run began with is unknown (an older version): the resumed run may differ",
        ),
    }
    folder.add_arithmetic(&LaterArithmetic { update, arithmetic })
}

fn assemble(experiment: &Experiment, dataset: &Dataset) -> Result<(Training, Plugins)> {
    let device = device::open(device::parse(&experiment.train.device).map_err(Error::new)?)?;
    let seed = seed_for(experiment.train.seed, Purpose::Initialisation, 0);
    let model = LoadedModel::build(&experiment.model, dataset.task(), device, seed)?;
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
    Ok((Training::new(experiment.clone(), model, sampler, (probe, trace), dataset, device)?, plugins))
}

impl Training {
    /// A run that has done nothing yet. `sampler` is none for ordinary training; the probe attacks
    /// validation points, the trace test points.
    ///
    /// # Errors
    /// If there are no training points left, the run is over before the trace begins, or the
    /// device has no room.
    pub fn new(
        experiment: Experiment,
        model: LoadedModel,
        sampler: Option<Sampler>,
        (probe, trace): (Option<Attack>, Option<Trace>),
        dataset: &Dataset,
        device: Device,
    ) -> Result<Self> {
        let (count, held_out) = split(&experiment, dataset)?;
        let all = dataset.train.count() as usize;
        check(&experiment, dataset, sampler.as_ref())?;
        let examples = Examples::new(&dataset.train, 0, count, device)?;
        let validation = (held_out > 0)
            .then(|| Examples::new(&dataset.train, all - held_out, held_out, device))
            .transpose()?;
        let start = start_of_chains(&experiment, sampler.as_ref());
        let store = match &sampler {
            Some(sampler) if start == Start::Store => Some(make_store(&experiment, sampler, &examples)?),
            _ => None,
        };
        let train = &experiment.train;
        let schedule = Schedule::of(train, count.div_ceil(train.batch));
        let players = Players {
            optimizer: Optimizer::new(Settings::of(train), &model.trainable()),
            average: averaging(train, schedule.updates).map(|kind| Average::new(kind, &model)),
            model,
            sampler,
            store,
        };
        let passes_per_epoch = passes_per_epoch(train, &players);
        let plan = Plan { experiment, examples, start, schedule, passes_per_epoch, device };
        let trace = trace.map(|trace| planned(trace, &plan)).transpose()?;
        Ok(Self {
            players,
            sums: Sums {
                tally: Tally::new((0.0, 0.0, 0.0), device),
                finite: FiniteCheck::new("update", device),
            },
            records: Records {
                progress: Progress::default(),
                validation,
                probe,
                trace,
                events: None,
                recorded_epochs: 0,
                saved: None,
                clock: None,
            },
            plan,
        })
    }

    /// What is about to be done. `origin` says where its options are from, for people.
    pub fn outline(&self, origin: &str) -> Outline<ExpectedCost> {
        let (plan, model) = (&self.plan, &self.players.model);
        let Experiment { data, threat, .. } = &plan.experiment;
        Outline {
            data: Points {
                name: data.name.clone(),
                points: plan.examples.len(),
                kind: "training points",
                classes: model.classes(),
                shape: plan.examples.images.size()[1..].to_vec(),
            },
            model: model.record.spec.clone(),
            threat: *threat,
            method: format!("{}; {origin}", self.method()),
            cost: self.expected_cost(),
        }
    }

    /// What is done, for people: "mode fused, replay 5; epochs 2".
    fn method(&self) -> String {
        let train = &self.plan.experiment.train;
        let steps = self.players.sampler.as_ref().map(|sampler| sampler.steps);
        let mode = match (train.mode, steps) {
            (_, None) if train.replay > 1 => format!("ordinary training, replay {}", train.replay),
            (_, None) => "ordinary training".to_owned(),
            (Mode::Faithful, Some(steps)) => format!("mode faithful, steps {steps}"),
            (Mode::Fused, Some(_)) => format!("mode fused, replay {}", train.replay),
        };
        format!("{mode}; epochs {}", train.epochs)
    }
}

fn make_store(experiment: &Experiment, sampler: &Sampler, examples: &Examples) -> Result<ParticleStore> {
    let Train { particles, store, ref store_file, start, seed, .. } = experiment.train;
    let (threat, state_tensors) = (experiment.training_threat(), sampler.declaration().state_tensors);
    let mut made =
        ParticleStore::new(examples, particles, state_tensors, threat, store, store_file.as_deref())?;
    if start == StartChoice::UniformStore {
        made.begin_at_uniform_draws(examples, &threat, seed)?;
    }
    Ok(made)
}

/// A trace with the updates after which it is due.
fn planned(mut trace: Trace, plan: &Plan) -> Result<Trace> {
    let at = plan.experiment.train.trace_at.as_deref();
    trace.plan(at, plan.schedule.updates, |updates| plan.passes_per_sample(updates))?;
    Ok(trace)
}

/// How the weights of a run of so many updates are averaged, if at all.
pub(super) fn averaging(train: &Train, updates: u64) -> Option<Averaging> {
    let Train { average, swa_from, replay, .. } = *train;
    let first = |share: f64| ((share * updates as f64).round() as u64).min(updates - 1);
    let equal = swa_from.map(|share| Averaging::EqualFrom(first(share) * replay as u64));
    equal.or((average > 0.0).then_some(Averaging::Exponential(average)))
}

/// A sampler that suits the training mode.
///
/// # Errors
/// If it cannot be made, or mode fused cannot use it.
pub(crate) fn make_sampler(spec: &PluginSpec, train: &Train) -> Result<Sampler> {
    let mut sampler = Sampler::make(spec)?;
    if train.mode == Mode::Fused {
        if spec.steps().is_some() {
            return Err(spec
                .error("option `steps`: in mode fused a visit has as many steps as train.replay says")
                .fix("set train.replay (--replay) instead, or take Algorithm 1 (--recipe algorithm-1)"));
        }
        if sampler.judges_last_proposal() {
            return Err(spec
                .error("this sampler judges its last proposal by the loss there, which mode fused never computes")
                .fix("use Algorithm 1 (--recipe algorithm-1, train.mode = \"faithful\")"));
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
        sampler.record.set_steps(train.replay);
    }
    Ok(sampler)
}

/// Refuses what this data set or this sampler make impossible.
///
/// # Errors
/// What, and which values would do.
pub(crate) fn check(experiment: &Experiment, dataset: &Dataset, sampler: Option<&Sampler>) -> Result<()> {
    let smallest_side = dataset.task().height.min(dataset.task().width);
    if experiment.train.crop as u64 >= smallest_side as u64 {
        return Err(Error::new(format!(
            "train.crop: expected 0 to {} (windows that show something of these images), got {}",
            smallest_side - 1,
            experiment.train.crop
        )));
    }
    match &experiment.train.store_file {
        Some(file) if start_of_chains(experiment, sampler) != Start::Store => {
            Err(Error::new(format!("train.store_file: nothing would be kept in {}", file.display()))
                .note("because", "no chain begins in the particle store (sampler, train.start)"))
        }
        _ => sampler.map_or(Ok(()), |sampler| sampler.supports(&experiment.threat)),
    }
}

/// Where the chains of this sampler begin; at natural examples if there is none.
fn start_of_chains(experiment: &Experiment, sampler: Option<&Sampler>) -> Start {
    sampler.map_or(Start::Natural, |sampler| experiment.train.start.of(sampler.declaration().start))
}

/// How many points are trained on, and how many of the last are held out.
///
/// # Errors
/// If too few are left.
pub(crate) fn split(experiment: &Experiment, dataset: &Dataset) -> Result<(usize, usize)> {
    let all = dataset.train.count() as usize;
    let held_out = experiment.validation_points();
    if held_out >= all {
        return Err(Error::new(format!(
            "data.validation_points: expected fewer than the {all} training points, got {held_out}"
        )));
    }
    let left = all - held_out;
    let wanted = experiment.data.train_points.unwrap_or(left);
    if wanted == 0 || wanted > left {
        return Err(Error::new(format!(
            "data.train_points: expected 1 to {left} ({all} training points less {held_out} for validation), got {wanted}"
        )));
    }
    Ok((wanted, held_out))
}
