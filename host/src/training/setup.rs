//! Assembles a run from an experiment, or from the folder of one that was stopped.

use super::average::{Average, Averaging};
use super::carried::Carried;
use super::cost::{ExpectedCost, passes_per_epoch};
use super::extension::check_epochs;
use super::objective::Losses;
use super::optimizer::{Optimizer, Settings};
use super::reporter::Reporter;
use super::schedule::Schedule;
use super::shards::{self, Shards, Stores};
use super::store::{self, ParticleStore, Place};
use super::tally::Tally;
use super::trace::Trace;
use super::update::{Players, Sums};
use super::{Plan, Records, Training};
use crate::config::{Experiment, Format, Mode, Start as StartChoice, Train, name_of};
use crate::data::examples::Part;
use crate::data::{self, DataSpec, Dataset, Origin};
use crate::plugin::{Attack, LoadedModel, Objective, PluginSpec, Sampler, trust};
use crate::ranks::Ranks;
use crate::run::init::InitialWeights;
use crate::run::outline::{Outline, Points};
use crate::run::progress::Progress;
use crate::run::{
    self, DataRecord, Extension, LaterArithmetic, Plugins, RunFolder, RunRecord, Versions, checkpoint,
};
use crate::torch::ahead::Ahead;
use crate::torch::arithmetic::{self, Arithmetic};
use crate::torch::device;
use crate::torch::finite::FiniteCheck;
use crate::torch::precision::Precision;
use crate::torch::random::{Purpose, seed_for};
use crate::util::console::{Style, warn};
use crate::util::files;
use crate::{Error, Result};
use plugin_api::{Norm, Start};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;
use tch::{Device, Kind, Tensor};

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

/// Begins a run in a folder, in all processes that carry it: everything that can be known to be
/// wrong is refused before anything is written.
///
/// # Errors
/// If the folder is not free, the experiment cannot be run here, or the processes differ.
pub fn begin(experiment: Experiment, out: &Path, ranks: &Rc<Ranks>) -> Result<(Training, RunFolder)> {
    begin_saying(experiment, out, ranks, &|finding| warn(finding))
}

/// Makes a run out of given weights, without training them: what there is to evaluate, in a folder.
/// If the folder holds that run already, it stays as it is.
///
/// # Errors
/// If the folder holds something else, or the weights are not of the model.
pub fn adopt(experiment: Experiment, out: &Path, stop: &AtomicBool) -> Result<()> {
    let mut reporter = Reporter::new(Style::Json);
    let record = out.join(run::RECORD).exists().then(|| RunFolder::open(out)).transpose()?;
    let (mut training, folder) = match record {
        None => begin_saying(experiment, out, &Ranks::alone(), &|_| {})?,
        Some((folder, record)) => {
            refuse_another_network(experiment, out, &record)?;
            if checkpoint::load::<Progress>(&folder.checkpoints(), &[])?.is_some() {
                return Ok(());
            }
            let (training, folder, _) = resume(out, &ResumeOptions::default(), &Ranks::alone())?;
            (training, folder)
        }
    };
    training.run(&folder, &mut reporter, stop).map(drop)
}

/// Refuses a folder whose run has another network than this experiment would have.
fn refuse_another_network(mut experiment: Experiment, out: &Path, record: &RunRecord) -> Result<()> {
    experiment.make_paths_absolute();
    let recorded = &record.experiment;
    let mut names = [(&recorded.model, &experiment.model)]
        .map(|(recorded, given)| ("model", recorded.to_string(), given.to_string()))
        .to_vec();
    names.push(("data", recorded.data.name.clone(), experiment.data.name.clone()));
    let digest = |path: Option<&Path>| -> Result<String> {
        let file = path.filter(|path| path.is_file());
        file.map_or(Ok("none".to_owned()), |path| Ok(files::size_and_sha256(path)?.1))
    };
    let weights = record.init.as_ref().and_then(|init| init.sha256.clone());
    names.push(("weights", weights.unwrap_or("none".to_owned()), digest(experiment.train.init.as_deref())?));
    match names.into_iter().find(|(_, recorded, given)| recorded != given) {
        Some((what, recorded, given)) => Err(Error::new(format!(
            "{} holds another network: its {what} is {recorded}, not {given}",
            out.display()
        ))
        .fix("choose another folder with --out, or evaluate what is there with `host eval` and its path")),
        None => Ok(()),
    }
}

/// As [`begin`]; `say` is given what is odd about the data and the initial weights.
fn begin_saying(
    mut experiment: Experiment,
    out: &Path,
    ranks: &Rc<Ranks>,
    say: &dyn Fn(&str),
) -> Result<(Training, RunFolder)> {
    let mut folder = if ranks.is_first() { RunFolder::for_new_run(out)? } else { RunFolder::at(out) };
    experiment.train.threads = Some(device::set_threads(ranks.threads(experiment.train.threads))?);
    experiment.make_paths_absolute();
    let train = experiment.train.clone();
    let shards = || shards::own(train.shards, ranks);
    let files = shards().filter_map(|shard| store::place(&train, folder.path(), shard));
    if let Some(file) =
        files.flat_map(|file| store::files(&file).collect::<Vec<_>>()).find(|file| file.exists())
    {
        return Err(Error::new(format!("{} exists already", file.display()))
            .fix("give --store-file a name that is free, or remove the file"));
    }
    if let Some(file) = train.store_file.as_ref().filter(|file| file.starts_with(folder.path())) {
        return Err(Error::new(format!(
            "train.store_file: expected a file outside the run's folder, got {}",
            file.display()
        ))
        .fix("give --store-file without a name: the file is then in the run's folder"));
    }
    let begun: Vec<_> = shards().filter_map(|shard| store::begun(&train, folder.path(), shard)).collect();
    let forget = || begun.iter().for_each(|file| store::remove_unused(file));
    forget();
    let training = begin_in(&mut folder, experiment, ranks, say).inspect_err(|_| forget())?;
    shards().try_for_each(|shard| store::name_files(&train, folder.path(), shard))?;
    Ok((training, folder))
}

/// Makes everything of a new run, its folder last.
fn begin_in(
    folder: &mut RunFolder,
    experiment: Experiment,
    ranks: &Rc<Ranks>,
    say: &dyn Fn(&str),
) -> Result<Training> {
    let dataset = data::load(&experiment.data.name, &experiment.data.folder)?;
    let (train_points, validation_points) = split(&experiment, &dataset)?;
    let test_points = Some(dataset.test.count() as usize);
    let mut findings = dataset.findings()?;
    findings.extend(dataset.findings_of_parts(train_points, validation_points)?);
    findings.iter().for_each(|finding| say(finding));
    // Other names until there is a record: a process that is killed before leaves these names free.
    let begun = |shard| store::begun(&experiment.train, folder.path(), shard);
    let places = Places {
        files: shards::own(experiment.train.shards, ranks).filter_map(begun).collect(),
        kept: false,
    };
    let (training, plugins, init) = assemble(&experiment, &dataset, true, ranks, &places)?;
    if let Some(init) = &init {
        init.notes.iter().for_each(warn);
        init.findings.iter().for_each(|finding| say(finding));
    }
    ranks.agree(&training.facts(&plugins, &dataset)?)?;
    if !ranks.is_first() {
        ranks.meet()?;
        folder.must_be_seen()?;
        return Ok(training);
    }
    if let Some(why) = training.slow_precision() {
        say(&format!("{why} (--precision f32)"));
    }
    let arithmetic = Arithmetic::current(training.plan.device)?;
    let arithmetic = Some(arithmetic.of_updates(experiment.train.precision));
    let listed = |what: &dyn Display, listed: Result<()>| {
        listed.unwrap_or_else(|why| {
            let why = why.first_line();
            warn(format_args!("{what} cannot be listed as trusted, as a resumed run needs it: {why}"));
        });
    };
    for (role, spec) in experiment.plugins() {
        listed(&spec.file, trust::add_named(&spec.file, plugins.of(role)));
    }
    let data = DataSpec::recorded(&experiment.data.name);
    if data.is_python() {
        let sha256 = files::size_and_sha256(data.path())?.1;
        listed(&data.path().display(), trust::add(data.path(), &sha256));
    }
    folder.create(&RunRecord {
        command: run::command(),
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
        init,
        arithmetic,
        is_sealed: true,
        later_arithmetic: Vec::new(),
        extensions: Vec::new(),
        experiment,
    })?;
    ranks.meet()?;
    Ok(training)
}

/// Continues a run that was stopped, in all processes that carry it from now on: the same
/// experiment, plugins and data, from its last checkpoint, or extends it to more epochs. Also
/// returns the update of that checkpoint, 0 if there is none.
///
/// # Errors
/// If the folder holds no run, another process trains in it, plugins or data differ from those
/// recorded, or the run cannot be extended.
pub fn resume(path: &Path, options: &ResumeOptions, ranks: &Rc<Ranks>) -> Result<(Training, RunFolder, u64)> {
    let mut on_change = run::unless(options.allow_changed);
    let (mut folder, record) = RunFolder::open(path)?;
    if ranks.is_first() {
        folder.lock()?;
    }
    // Others touch nothing before the folder is known to be free.
    ranks.meet()?;
    let mut experiment = record.experiment.with(&options.changes)?;
    experiment.validate()?;
    let before = record.experiment.train.epochs;
    check_epochs(before, experiment.train.epochs)?;
    device::set_threads(ranks.threads(experiment.train.threads))?;
    for (role, spec) in experiment.plugins_mut() {
        if let Some(recorded) = record.plugins.of(role) {
            *spec = run::recorded_plugin(spec, recorded, options.plugins.as_deref(), &mut on_change)?;
        }
    }
    let shards = || shards::own(experiment.train.shards, ranks);
    shards().try_for_each(|shard| store::name_files(&experiment.train, folder.path(), shard))?;
    let dataset = run::recorded_data(&experiment.data, options.data_folder.as_deref())?;
    run::check_data(&dataset, &record.data.checksums, &mut on_change)?;
    dataset.findings()?.iter().for_each(warn);
    // One look for all: a shared disk may show others an older state.
    let has_checkpoint =
        ranks.from_first(|| Ok(checkpoint::load::<Progress>(&folder.checkpoints(), &[])?.is_some()))?;
    let file = |shard| store::place(&experiment.train, folder.path(), shard);
    let places = Places { files: shards().filter_map(file).collect(), kept: has_checkpoint };
    let (mut training, plugins, init) = assemble(&experiment, &dataset, !has_checkpoint, ranks, &places)?;
    if let (Some(found), Some(recorded)) = (&init, &record.init)
        && found.weights_sha256 != recorded.weights_sha256
    {
        return Err(Error::new(format!("{} have changed since the run began", recorded.origin()))
            .note("recorded", format!("SHA-256 {} of all tensors", recorded.weights_sha256))
            .note("found", format!("SHA-256 {}", found.weights_sha256))
            .fix("restore them, or begin a new run: this one has no checkpoint yet"));
    }
    let (update, damaged) = training.load_checkpoint(&folder)?;
    for what in damaged {
        warn(format_args!("{what}; going back to the checkpoint before it"));
    }
    ranks.agree(&training.facts(&plugins, &dataset)?)?;
    if !ranks.is_first() {
        return Ok((training, folder, update));
    }
    if training.experiment().train.epochs != before {
        training.check_extension(before)?;
        folder.extend(&Extension {
            update,
            from: before,
            to: training.experiment().train.epochs,
            command: run::command(),
        })?;
        training.end_is_later(&folder)?;
    }
    if !training.is_over() {
        let arithmetic = Arithmetic::current(training.plan.device)?;
        let precision = training.plan.experiment.train.precision;
        note_arithmetic(&folder, &record, update, arithmetic.of_updates(precision))?;
        training.slow_precision().iter().for_each(warn);
    }
    folder.hold()?;
    Ok((training, folder, update))
}

/// Warns if a run goes on with another arithmetic than before, and records it. Its weights are then
/// not bit for bit those of a run that was never stopped.
fn note_arithmetic(
    folder: &RunFolder,
    record: &RunRecord,
    update: u64,
    arithmetic: Arithmetic,
) -> Result<()> {
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

/// Makes the parts of a run. Its initial weights, if any are given, are loaded only if
/// `from_the_beginning`: later ones are in its checkpoints.
fn assemble(
    experiment: &Experiment,
    dataset: &Dataset,
    from_the_beginning: bool,
    ranks: &Rc<Ranks>,
    places: &Places,
) -> Result<(Training, Plugins, Option<InitialWeights>)> {
    let device = device::open(ranks.device(device::parse(&experiment.train.device).map_err(Error::new)?)?)?;
    let seed = seed_for(experiment.train.seed, Purpose::Initialisation, 0);
    let build = |seed| LoadedModel::build(&experiment.model, dataset.task(), device, seed);
    let model = build(seed)?;
    if experiment.train.epochs > 0 {
        model.check_trainable(dataset.task())?;
    }
    let given = experiment.train.init.as_deref().filter(|_| from_the_beginning);
    let init =
        given.map(|init| InitialWeights::load(init, &model, || build(seed.wrapping_add(1)))).transpose()?;
    let sampler =
        experiment.sampler.0.as_ref().map(|spec| make_sampler(spec, &experiment.train)).transpose()?;
    let objective = Objective::make(&experiment.train.objective)?;
    let probe = experiment.train.probe.as_ref().map(Attack::make).transpose()?;
    if let Some(probe) = &probe {
        probe.supports(&experiment.threat, &dataset.task())?;
    }
    let trace = Trace::make(experiment, dataset, device, ranks)?;
    let plugins = Plugins {
        model: model.record.clone(),
        sampler: sampler.as_ref().map(|sampler| sampler.record.clone()),
        objective: Some(objective.record.clone()),
        probe: probe.as_ref().map(|probe| probe.record.clone()),
        trace: trace.as_ref().map(|trace| trace.attack.record.clone()),
    };
    let attacks = (probe, trace);
    let there = (ranks, device, places);
    let players = (model, objective, sampler);
    let training = Training::there(there, experiment.clone(), players, attacks, dataset)?;
    Ok((training, plugins, init))
}

/// Where the particles of this process are: in a file for each of its shards, or in memory if there
/// are none.
#[derive(Default)]
struct Places {
    files: Vec<PathBuf>,
    /// Whether they belong to a run that goes on.
    kept: bool,
}

impl Places {
    /// The place of the particles of this process's shard of this number.
    fn of(&self, number: usize) -> Place<'_> {
        match self.files.get(number) {
            None => Place::Memory,
            Some(file) if self.kept => Place::Kept(file),
            Some(file) => Place::New(file),
        }
    }
}

impl Training {
    /// A run that has done nothing yet. There is no sampler in ordinary training; the probe attacks
    /// validation points, the trace test points.
    ///
    /// # Errors
    /// If there are no training points left, the run is over before the trace begins, or the
    /// device has no room.
    pub fn new(
        experiment: Experiment,
        players: (LoadedModel, Objective, Option<Sampler>),
        attacks: (Option<Attack>, Option<Trace>),
        dataset: &Dataset,
        device: Device,
    ) -> Result<Self> {
        let there = (&Ranks::alone(), device, &Places::default());
        Self::there(there, experiment, players, attacks, dataset)
    }

    /// As [`Training::new`], in one of several processes and with particles at these places.
    fn there(
        (ranks, device, places): (&Rc<Ranks>, Device, &Places),
        experiment: Experiment,
        (model, objective, sampler): (LoadedModel, Objective, Option<Sampler>),
        (probe, trace): (Option<Attack>, Option<Trace>),
        dataset: &Dataset,
    ) -> Result<Self> {
        let (count, held_out) = split(&experiment, dataset)?;
        let all = dataset.train.count() as usize;
        check(&experiment, dataset, sampler.as_ref())?;
        let losses = Losses::of(objective, &experiment, dataset.task(), (count, sampler.is_some()), ranks)?;
        let examples = ranks.examples(&dataset.train, (0, count), device)?;
        let validation = (held_out > 0)
            .then(|| ranks.examples(&dataset.train, (all - held_out, held_out), device))
            .transpose()?;
        let start = start_of_chains(&experiment, sampler.as_ref());
        let train = &experiment.train;
        let shards = Shards::new(train.shards, count, train.batch, ranks)?;
        let store = match &sampler {
            Some(sampler) if start == Start::Store => {
                let stores = shards.own().iter().enumerate().map(|(number, shard)| {
                    make_store(&experiment, sampler, &examples.part(*shard, train.shards), places.of(number))
                });
                Some(Stores::new(stores.collect::<Result<_>>()?))
            }
            _ => None,
        };
        let carried = match &sampler {
            Some(sampler) if start == Start::Carried => {
                let points = (train.batch / train.shards).min(count.div_ceil(train.shards));
                let (none, _) = examples.batch(&Tensor::f_zeros([0i64], (Kind::Int64, device))?)?;
                let state = sampler.declaration().stored_state();
                Some(Carried::new(shards.own().len(), points * train.particles, &none, &state)?)
            }
            _ => None,
        };
        refuse_interaction_of_processes(sampler.as_ref(), ranks)?;
        let schedule = Schedule::of(train, count.div_ceil(train.batch));
        let optimizer = Optimizer::new(Settings::of(train), &model.trainable());
        let players = Players {
            reducer: ranks.reducer(optimizer.parameters())?,
            optimizer,
            average: averaging(train, schedule.updates).map(|kind| Average::new(kind, &model)),
            model,
            losses: losses.on(device),
            sampler,
            store,
            carried,
        };
        let passes_per_epoch = passes_per_epoch(train, &players);
        let (ranks, ahead) = (Rc::clone(ranks), Ahead::for_device(device));
        let plan =
            Plan { experiment, ranks, examples, shards, start, schedule, passes_per_epoch, device, ahead };
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
            threat: threat.clone(),
            method: format!("{}; {origin}", self.method()),
            cost: self.expected_cost(),
        }
    }

    /// Why the precision makes updates slow here, if it does.
    fn slow_precision(&self) -> Option<String> {
        let Plan { experiment, device, .. } = &self.plan;
        let is_bf16 = experiment.train.precision == Precision::Bf16 && *device == Device::Cpu;
        (is_bf16 && arithmetic::lacks_bf16()).then(|| {
            format!(
                "train.precision bf16: this processor has none of the instructions {}, so that bf16 takes many \
                 times as long as f32",
                arithmetic::BF16.join(", ")
            )
        })
    }

    /// What must be the same in all processes that carry the run, by name.
    fn facts(&self, plugins: &Plugins, dataset: &Dataset) -> Result<BTreeMap<String, String>> {
        let mut experiment = self.plan.experiment.clone();
        // These belong to the machine.
        experiment.data.folder = PathBuf::new();
        (experiment.train.threads, experiment.train.store_file) = (None, None);
        let mut facts: BTreeMap<_, _> = [
            ("version of the host", env!("CARGO_PKG_VERSION").to_owned()),
            ("libtorch", plugin_api::LIBTORCH.to_owned()),
            ("state of the network", self.players.model.digest()?),
            ("last checkpoint", format!("update {}", self.records.progress.update)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        facts.extend(plugins.iter().map(|(role, plugin)| {
            (format!("plugin of the {}", format!("{role:?}").to_lowercase()), plugin.sha256.clone())
        }));
        facts.extend(
            dataset.checksums.iter().map(|(name, sum)| (format!("file of data {name}"), sum.clone())),
        );
        let options = serde_json::to_value(&experiment).map_err(|why| Error::new(why).on_the_way())?;
        for (section, options) in options.as_object().into_iter().flatten() {
            let Some(options) = options.as_object() else {
                facts.insert(section.clone(), options.to_string());
                continue;
            };
            facts.extend(options.iter().map(|(key, value)| (format!("{section}.{key}"), value.to_string())));
        }
        Ok(facts)
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
        let init = train.init.as_ref().map(|init| format!("; begins at the weights of {}", init.display()));
        match train.epochs {
            0 => format!("no training{}", init.unwrap_or_default()),
            epochs => format!("{mode}; epochs {epochs}{}", init.unwrap_or_default()),
        }
    }
}

/// The particles of a shard.
fn make_store(
    experiment: &Experiment,
    sampler: &Sampler,
    part: &Part,
    place: Place,
) -> Result<ParticleStore> {
    let Train { particles, store, start, seed, .. } = experiment.train;
    let (threat, state) = (experiment.training_threat(), sampler.declaration().stored_state());
    let mut made = ParticleStore::new(part, particles, &state, threat, store, place)?;
    if start == StartChoice::UniformStore && !matches!(place, Place::Kept(_)) {
        made.begin_at_uniform_draws(part, seed, sampler.has_law())?;
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
    let first = |share: f64| ((share * updates as f64).round() as u64).min(updates.saturating_sub(1));
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
        let start = train.start.of(sampler.declaration().start);
        if train.replay == 1 && !matches!(start, Start::Store | Start::Carried) {
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
    experiment.threat.check_task(&dataset.task())?;
    let smallest_side = dataset.task().height.min(dataset.task().width);
    if experiment.train.crop as u64 >= smallest_side as u64 {
        return Err(Error::new(format!(
            "train.crop: expected 0 to {} (windows that show something of these images), got {}",
            smallest_side - 1,
            experiment.train.crop
        )));
    }
    if experiment.train.scale.is_some() && start_of_chains(experiment, sampler) == Start::Store {
        return Err(Error::new(
            "train.scale: a resized window has no inverse, so that no particle goes back to the store from it",
        )
        .note("because", "chains begin in the particle store (sampler, train.start)")
        .fix("let chains begin anew (--start natural or uniform), or augment by moving pixels: --crop N --flip"));
    }
    if experiment.train.diagnose_every.is_some() {
        let (threat, train) = (experiment.training_threat(), &experiment.train);
        let keeps_to_ball = sampler.is_some_and(|sampler| sampler.keeps_to_ball().is_ok());
        let is_stored = keeps_to_ball && start_of_chains(experiment, sampler) == Start::Store;
        let is_box = threat.norm == Norm::Linf && threat.is_one_radius();
        if !is_stored || !is_box || !train.is_cross_entropy() {
            return Err(Error::new(
                "train.diagnose_every: expected a sampler whose particles stay in the ball and in a store, norm linf, \
                 one radius for all channels and the objective cross-entropy",
            )
            .fix("leave it out, or train with langevin.so"));
        }
    }
    let store = experiment.train.store;
    if store == Format::U8
        && experiment.training_threat().norm == Norm::L1
        && start_of_chains(experiment, sampler) == Start::Store
    {
        return Err(Error::new("train.store: expected f32 or f16 in norm l1, got u8")
            .note(
                "because",
                "rounding a pixel to epsilon / 127 is small, but in l1 the roundings of all pixels add up",
            )
            .fix("use --store f16, or --store f32 with --store-file if memory is short"));
    }
    if let Some(sampler) = sampler.filter(|sampler| store != Format::F32 && sampler.keeps_to_ball().is_err())
    {
        return Err(Error::new(format!(
            "train.store: expected f32 for {}, whose particles may leave the ball of epsilon; got {}",
            sampler.name(),
            name_of(store)
        ))
        .note("because", "the smaller formats hold changes of at most epsilon"));
    }
    if let Some(sampler) = sampler.filter(|sampler| sampler.has_law() && store != Format::F32) {
        return Err(Error::new(format!(
            "train.store: expected f32 for {}, whose chain has a law that rounding changes; got {}",
            sampler.name(),
            name_of(store)
        ))
        .fix("use --store f32, with --store-file if memory is short"));
    }
    match &experiment.train.store_file {
        Some(file) if start_of_chains(experiment, sampler) != Start::Store => {
            Err(Error::new(format!("train.store_file: nothing would be kept in {}", file.display()))
                .note("because", "no chain begins in the particle store (sampler, train.start)"))
        }
        // A mistake in the options, not one on the way.
        _ => sampler.map_or(Ok(()), |sampler| {
            sampler.supports(&experiment.training_threat().ball()).map_err(Error::new)
        }),
    }
}

/// Refuses a sampler whose chains act on one another, in several processes: each has only some of a
/// minibatch's chains, so that the result would depend on the number of processes.
fn refuse_interaction_of_processes(sampler: Option<&Sampler>, ranks: &Ranks) -> Result<()> {
    match sampler.filter(|sampler| sampler.declaration().interacts && ranks.size() > 1) {
        None => Ok(()),
        Some(sampler) => {
            Err(Error::new(format!("{}: expected one process, got {}", sampler.name(), ranks.size()))
                .note(
                    "because",
                    "its chains act on one another, and each process has only some of a minibatch",
                )
                .fix("train in one process, or with another sampler"))
        }
    }
}

/// Refuses an objective that cannot be used with so many training points.
///
/// # Errors
/// Why not.
pub(crate) fn check_objective(
    experiment: &Experiment,
    dataset: &Dataset,
    points: usize,
    is_adversarial: bool,
) -> Result<()> {
    let objective = Objective::make(&experiment.train.objective)?;
    let setting = (points, is_adversarial);
    Losses::of(objective, experiment, dataset.task(), setting, &Ranks::alone()).map(drop)
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
    if all == 0 {
        return Err(Error::new(format!(
            "{} has no training images: there is only a test split",
            dataset.name
        ))
        .fix("train on data that have both splits; `host eval` needs the test split only"));
    }
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
