//! The folder of a run: its record, its measurements and its checkpoints.

pub(crate) mod checkpoint;
pub(crate) mod init;
pub(crate) mod moved;
pub(crate) mod outline;
pub(crate) mod progress;
pub(crate) mod tensorboard;

use crate::config::{self, Experiment, Role, Select};
use crate::data::{self, DataSpec, Dataset};
use crate::error::{absolute, shown};
use crate::plugin::{LoadedModel, PluginSpec, Record, library, trust};
use crate::run::init::InitialWeights;
use crate::run::progress::{Progress, is_trained};
use crate::torch::arithmetic::Arithmetic;
use crate::util::console::{quoted, warn};
use crate::util::files;
use crate::{Error, Result};
use plugin_api::LIBTORCH;
use plugin_api::manifest::CONTRACT;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tch::Tensor;

/// Everything needed to repeat a run: the contents of `run.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRecord {
    /// The command that started it.
    pub command: Vec<String>,
    /// When it was started (UTC).
    pub started: String,
    /// All options and the seed.
    #[serde(deserialize_with = "config::of_a_record")]
    pub experiment: Experiment,
    /// The plugins it used.
    pub plugins: Plugins,
    /// The data it used.
    pub data: DataRecord,
    /// The software it used.
    pub versions: Versions,
    /// The weights it began with; none if they were drawn from its seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitialWeights>,
    /// The arithmetic it began with; unknown in the record of an older version.
    #[serde(default)]
    pub arithmetic: Option<Arithmetic>,
    /// Whether the file that it was read from has a digest. One without was written by an older
    /// version, or edited.
    #[serde(skip)]
    pub is_sealed: bool,
    /// The arithmetic it went on with, each time that it was resumed with another one than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_arithmetic: Vec<LaterArithmetic>,
    /// Each time that it was given more epochs. `experiment` has the latest number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<Extension>,
}

/// More epochs for a run that was begun with fewer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Extension {
    /// The update of the checkpoint that it went on from.
    pub update: u64,
    /// The number of epochs before.
    pub from: usize,
    /// The number of epochs since.
    pub to: usize,
    /// The command that extended it.
    pub command: Vec<String>,
}

/// Another arithmetic that a run went on with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaterArithmetic {
    /// The update of the checkpoint that it went on from.
    pub update: u64,
    /// The arithmetic of the updates after it.
    pub arithmetic: Arithmetic,
}

/// The words of the command that this process is.
pub(crate) fn command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

impl RunRecord {
    /// The latest arithmetic that the run is known to have used.
    pub(crate) fn latest_arithmetic(&self) -> Option<&Arithmetic> {
        self.later_arithmetic.last().map(|later| &later.arithmetic).or(self.arithmetic.as_ref())
    }
}

/// The plugins of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plugins {
    /// The classifier.
    pub model: Record,
    /// The adversary; none for ordinary training.
    pub sampler: Option<Record>,
    /// The objective; unknown in the record of an older version, where it was part of the host.
    #[serde(default)]
    pub objective: Option<Record>,
    /// The attack on the validation points, if there is one.
    pub probe: Option<Record>,
    /// The attack of the trace on test points, if there is one.
    #[serde(default)]
    pub trace: Option<Record>,
}

impl Plugins {
    /// The plugins by their roles.
    pub fn iter(&self) -> impl Iterator<Item = (Role, &Record)> {
        Role::ALL.into_iter().filter_map(|role| Some((role, self.of(role)?)))
    }

    /// The plugin of this role; none if the run had none. Attacks belong to evaluations, not to
    /// runs.
    pub fn of(&self, role: Role) -> Option<&Record> {
        match role {
            Role::Model => Some(&self.model),
            Role::Sampler => self.sampler.as_ref(),
            Role::Objective => self.objective.as_ref(),
            Role::Probe => self.probe.as_ref(),
            Role::Trace => self.trace.as_ref(),
            Role::Attack => None,
        }
    }
}

/// The data of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DataRecord {
    /// Its name.
    pub name: String,
    /// MD5 of each file, of each array, or of each split of a tree of images or of a data set in
    /// Python.
    pub checksums: BTreeMap<String, String>,
    /// Whether these are the published files of a known data set; unknown in the record of an older
    /// version.
    #[serde(default)]
    pub published: Option<bool>,
    /// What a reader of the run's results should know about its data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// The names of the classes, in the order of their labels, if they are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub class_names: Vec<String>,
    /// Points of the test split; unknown in the record of an older version.
    #[serde(default)]
    pub test_points: Option<usize>,
    /// Points trained on.
    pub train_points: usize,
    /// Points held out of training.
    pub validation_points: usize,
}

impl DataRecord {
    /// Whether the run may be compared with others on the known data set of its name.
    pub(crate) fn is_published(&self) -> bool {
        self.published.unwrap_or_else(|| data::has_published_checksums(&self.name, &self.checksums))
    }
}

/// The software of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Versions {
    /// This program.
    pub host: String,
    /// The contract with plugins.
    pub contract: u32,
    /// Version and build of libtorch.
    pub libtorch: String,
}

impl Versions {
    /// Those of this program.
    pub fn current() -> Self {
        Self { host: env!("CARGO_PKG_VERSION").to_owned(), contract: CONTRACT, libtorch: LIBTORCH.to_owned() }
    }
}

/// The contents of `eval.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Evaluations {
    evaluations: Vec<Value>,
}

impl Evaluations {
    /// Each of them, oldest first.
    pub(crate) fn read<Evaluation: DeserializeOwned>(self, folder: &RunFolder) -> Result<Vec<Evaluation>> {
        let each = self.evaluations.into_iter().map(serde_json::from_value);
        each.collect::<std::result::Result<_, _>>()
            .map_err(|why| Error::file("understand", &folder.path.join(EVALUATIONS), why))
    }
}

const LOCK: &str = ".lock";

const EVAL_LOCK: &str = ".eval.lock";

pub(crate) const RECORD: &str = "run.json";

/// The file of a run's evaluations.
pub(crate) const EVALUATIONS: &str = "eval.json";

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder {
    /// Its path as it was given, for messages.
    name: PathBuf,
    /// Its absolute path: a plugin may change the working directory.
    path: PathBuf,
    /// Held while this process trains in the folder.
    lock: Option<File>,
    /// What this process trains in.
    held: Option<Held>,
}

/// A folder that a process trains in.
#[derive(Debug)]
struct Held {
    /// The folder itself, wherever it is moved.
    folder: File,
    /// The contents of `run.json`.
    record: Vec<u8>,
}

impl RunFolder {
    /// The folder at this path, with any contents.
    pub(crate) fn at(path: &Path) -> Self {
        Self { name: path.to_owned(), path: absolute(path), lock: None, held: None }
    }

    /// A folder for a new run; nothing is written yet.
    ///
    /// # Errors
    /// If it already holds something.
    pub(crate) fn for_new_run(path: &Path) -> Result<Self> {
        let run = Self::at(path);
        if run.record_path().exists() {
            return Err(Error::new(format!("{} already holds a run", path.display())).fix(format!(
                "choose another folder with --out, or go on with --resume {}",
                quoted(path.display())
            )));
        }
        let mut entries = fs::read_dir(path).into_iter().flatten().flatten();
        // A process that was killed before it wrote the record may have left these.
        let is_left = |name: &OsStr| name == LOCK || files::is_leftover(name);
        if path.is_file() || entries.any(|entry| !is_left(&entry.file_name())) {
            return Err(Error::new(format!("{} already exists and is not empty", path.display()))
                .fix("choose another folder with --out"));
        }
        Ok(run)
    }

    /// A folder named after the time, under `runs`, that does not exist yet.
    pub(crate) fn named_after_now() -> PathBuf {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let name = now.trim_end_matches('Z').replace(':', "-");
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let mut names =
            std::iter::once(name.clone()).chain(numbered).map(|name| Path::new("runs").join(name));
        names.find(|path| !path.exists()).unwrap_or_else(|| Path::new("runs").join(&name))
    }

    /// The folder of a run that exists, and its record.
    ///
    /// # Errors
    /// If it holds no run, or one that cannot be understood or is not valid.
    pub fn open(path: &Path) -> Result<(Self, RunRecord)> {
        let record_path = absolute(path).join(RECORD);
        if !record_path.is_file() {
            return Err(Error::new(format!(
                "{} holds no run: {} is missing",
                path.display(),
                shown(&record_path)
            ))
            .fix("give the folder that `host train` wrote (its --out)"));
        }
        let (mut record, is_sealed): (RunRecord, _) =
            files::read_and_check(&record_path).map_err(|error| {
                error
                    .note("because", "every result of a run rests on its record")
                    .fix("restore the file from a copy, or train anew into another folder")
            })?;
        record.experiment.validate().map_err(|error| error.note("in", shown(&record_path)))?;
        record.is_sealed = is_sealed;
        for (_, spec) in record.experiment.plugins_mut() {
            spec.is_recorded = true;
        }
        Ok((Self::at(path), record))
    }

    /// Creates the folder and writes the run's record.
    ///
    /// # Errors
    /// If the disk refuses, or another run began there in the meantime; nothing of this one is
    /// left behind.
    pub(crate) fn create(&mut self, record: &RunRecord) -> Result<()> {
        let existed = self.path.exists();
        files::create_folders(&self.path).map_err(|why| Error::file("create", &self.name, why))?;
        let written = self.lock().and_then(|()| {
            Self::for_new_run(&self.name)?;
            write_json(&self.record_path(), record)
        });
        if written.is_err() && self.lock.is_some() && !self.record_path().exists() {
            let _ = files::remove_file(&self.path.join(LOCK));
        }
        if written.is_err() && !existed {
            // Fails if another run began there.
            let _ = files::remove_empty_folder(&self.path);
        }
        written?;
        self.hold()
    }

    /// Refuses a folder of a run that began in another process if this one does not see it.
    ///
    /// # Errors
    /// If there is no run in it.
    pub(crate) fn must_be_seen(&self) -> Result<()> {
        if self.record_path().is_file() {
            return Ok(());
        }
        Err(Error::new(format!("{} holds no run here, but it does for process 0", shown(&self.path)))
            .fix("give a folder with --out that all processes share"))
    }

    /// Keeps other processes from training in this folder for as long as this one lives.
    ///
    /// # Errors
    /// If another one does already.
    pub(crate) fn lock(&mut self) -> Result<()> {
        self.lock = files::lock(&self.path.join(LOCK))?;
        // Evaluations write here, too.
        let eval_lock = self.path.join(EVAL_LOCK);
        if self.lock.is_some() && (!eval_lock.exists() || files::lock(&eval_lock)?.is_some()) {
            files::remove_leftovers(&self.path);
        }
        if self.lock.is_none() {
            return Err(Error::new(format!("another process is training in {}", self.name.display()))
                .fix("wait for it or stop it, or choose another folder with --out"));
        }
        Ok(())
    }

    /// Notes which folder this process trains in. From here on, nothing is written into another one
    /// at its path.
    ///
    /// # Errors
    /// If the folder or its record is gone.
    pub(crate) fn hold(&mut self) -> Result<()> {
        let folder = File::open(&self.path).map_err(|why| Error::file("open", &self.path, why))?;
        self.held = Some(Held { folder, record: files::read(&self.record_path())? });
        Ok(())
    }

    /// An error if the folder that this process trains in is no longer at its path.
    ///
    /// # Errors
    /// If it was moved, replaced or removed.
    pub(crate) fn refuse_if_moved(&self) -> Result<()> {
        if self.held.as_ref().is_none_or(|held| files::is_at(&held.folder, &self.path)) {
            return Ok(());
        }
        let name = self.name.display();
        Err(Error::new(format!("the folder {name} was moved, replaced or removed while its run was trained"))
            .on_the_way())
    }

    /// A folder in which the state of a run can be saved whose own is no longer at its path: where it
    /// is now, or a new one beside it if it was removed.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn rescue(&self) -> Result<Self> {
        let Some(Held { folder, record }) = &self.held else { return Ok(Self::at(&self.path)) };
        let now = fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        if let Some(now) = now.ok().filter(|now| files::is_at(folder, now)) {
            return Ok(Self::at(&now));
        }
        let numbered = (1..).map(|number| {
            let mut path = self.path.clone().into_os_string();
            path.push(format!("-rescued-{number}"));
            PathBuf::from(path)
        });
        let rescued = numbered.into_iter().find(|path| !path.exists()).map(|path| Self::at(&path));
        let rescued = rescued.unwrap_or_else(|| Self::at(&self.path));
        files::create_folders(&rescued.path).map_err(|why| Error::file("create", &rescued.path, why))?;
        files::write_whole(&rescued.record_path(), record)?;
        Ok(rescued)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path as it was given, for messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The folder of its checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The folder of the weights with the best score on the validation points, if these are
    /// selected.
    pub(crate) fn best(&self) -> PathBuf {
        self.path.join("best")
    }

    fn record_path(&self) -> PathBuf {
        self.path.join(RECORD)
    }

    /// Rewrites `metrics.jsonl`: one line per epoch.
    pub(crate) fn write_metrics<Metrics: Serialize>(&self, epochs: &[Metrics]) -> Result<()> {
        self.write_lines(&self.metrics_path(), epochs)
    }

    /// Rewrites `trace.jsonl`: one line per point of the trace.
    pub(crate) fn write_trace<Point: Serialize>(&self, points: &[Point]) -> Result<()> {
        self.write_lines(&self.path.join("trace.jsonl"), points)
    }

    /// Writes a file of one JSON object a line.
    fn write_lines<Line: Serialize>(&self, path: &Path, objects: &[Line]) -> Result<()> {
        self.refuse_if_moved()?;
        files::write_sealed(path, objects.iter().map(serde_json::to_string))
    }

    /// The lines of `metrics.jsonl`; none if there is no such file.
    pub(crate) fn metrics<Metrics: DeserializeOwned>(&self) -> Result<Vec<Metrics>> {
        lines(&self.metrics_path())
    }

    /// The lines of `trace.jsonl`; none if there is no such file.
    pub(crate) fn trace<Point: DeserializeOwned>(&self) -> Result<Vec<Point>> {
        lines(&self.path.join("trace.jsonl"))
    }

    fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The evaluations in `eval.json`; none if there is no such file.
    pub(crate) fn evaluations(&self) -> Result<Evaluations> {
        let path = self.path.join(EVALUATIONS);
        if !path.exists() {
            return Ok(Evaluations::default());
        }
        files::read_sealed(&path).map_err(|error| {
            let verdicts = "the verdicts of all evaluations of the run are in it";
            error.note("because", verdicts).fix("restore the file from a copy, or move it away")
        })
    }

    /// Fails if there is a lock of `eval.json` that cannot be taken at the end of an evaluation.
    ///
    /// # Errors
    /// If it is a symbolic link or a folder, or the disk refuses.
    pub(crate) fn check_lock_of_evaluations(&self) -> Result<()> {
        let path = self.path.join(EVAL_LOCK);
        match path.symlink_metadata() {
            Ok(_) => files::wait_for_lock(&path).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Adds an evaluation to `eval.json`, after those already there. If it was killed after it was
    /// added, it is there already. Returns the file's path.
    pub(crate) fn add_evaluation(&self, new: Value) -> Result<PathBuf> {
        // Several evaluations may run at the same time: each adds to the file as it is at its own
        // end.
        let _lock = files::wait_for_lock(&self.path.join(EVAL_LOCK))?;
        // What an evaluation left that was killed while it added to the file; training writes here, too.
        if files::has_leftovers(&self.path) && files::lock(&self.path.join(LOCK))?.is_some() {
            files::remove_leftovers(&self.path);
        }
        let mut evaluations = self.evaluations()?;
        let path = self.path.join(EVALUATIONS);
        let is_same =
            |there: &Value| ["begun", "settings", "threat"].iter().all(|key| there[key] == new[key]);
        if new["begun"].is_null() || !evaluations.evaluations.iter().any(is_same) {
            evaluations.evaluations.push(new);
            write_json(&path, &evaluations)?;
        }
        Ok(self.name.join(EVALUATIONS))
    }

    /// Adds to `run.json` that the run went on from a checkpoint with another arithmetic. All other
    /// contents stay, fields of other versions among them.
    pub(crate) fn add_arithmetic(&self, later: &LaterArithmetic) -> Result<()> {
        self.change_record(|record| push(&mut record["later_arithmetic"], later))
    }

    /// Records in `run.json` that the run has more epochs. All other contents stay.
    pub(crate) fn extend(&self, extension: &Extension) -> Result<()> {
        self.change_record(|record| {
            record["experiment"]["train"]["epochs"] = extension.to.into();
            push(&mut record["extensions"], extension);
        })
    }

    fn change_record(&self, change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let path = self.record_path();
        let mut record: Value = files::read_sealed(&path)?;
        change(&mut record);
        write_json(&path, &record)
    }
}

/// Adds an item to a list, which begins empty.
fn push(list: &mut Value, item: impl Serialize) {
    if list.is_null() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.push(json!(item));
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    files::write_sealed(path, [serde_json::to_string_pretty(value)])
}

/// The JSON lines of a file, none if it does not exist.
fn lines<Line: DeserializeOwned>(path: &Path) -> Result<Vec<Line>> {
    if path.exists() { files::read_sealed_lines(path) } else { Ok(Vec::new()) }
}

/// What was found when weights were loaded for evaluation.
pub(crate) struct WeightsFound {
    /// The progress at their checkpoint.
    pub progress: Progress,
    /// Newer checkpoints that were passed over as damaged, with the reason.
    pub damaged: Vec<String>,
    /// How far training is, if it is not finished.
    pub unfinished: Option<String>,
}

/// Which of a run's weights. By default those that are evaluated.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Choice {
    /// Of the last checkpoint, or of the best one; none for what the run's own option says.
    pub select: Option<Select>,
    /// The weights themselves, even if the run averages them.
    pub not_averaged: bool,
}

/// Weights of a run.
pub(crate) struct ChosenWeights {
    /// Parameters and buffers by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Whether they are the average of the weights along training.
    pub is_average: bool,
    /// What was found with them.
    pub found: WeightsFound,
}

/// The weights for evaluation, unless the choice is another one: those of the run's last or best
/// checkpoint, averaged if the run averages them.
///
/// # Errors
/// If no checkpoint is whole, or the run does not keep such weights.
pub(crate) fn chosen_weights(
    folder: &RunFolder,
    record: &RunRecord,
    choice: Choice,
) -> Result<ChosenWeights> {
    let train = &record.experiment.train;
    let select = choice.select.unwrap_or(train.select);
    if select == Select::Best && train.select != Select::Best {
        let path = folder.name().display();
        return Err(Error::new(format!(
            "{path} does not keep its best weights; expected a run of train --select best"
        ))
        .fix("take its last weights with --select last"));
    }
    let averages = train.average > 0.0 || train.swa_from.is_some();
    let best_average = select == Select::Best && averages;
    if best_average && choice.not_averaged {
        return Err(Error::new(format!(
            "the best weights of {} are an average: the run scored averages",
            folder.name().display()
        ))
        .fix("take its last weights with --select last, or leave out --no-average"));
    }
    let checkpoints = if select == Select::Best { folder.best() } else { folder.checkpoints() };
    let groups: &[&str] = if choice.not_averaged { &["weights"] } else { &["weights", checkpoint::AVERAGE] };
    let mut saved = checkpoint::load::<Progress>(&checkpoints, groups)?.ok_or_else(|| {
        let path = folder.name().display();
        Error::new(format!("{path} has no checkpoint yet"))
            .fix(format!("train it with `host train --resume {}`", quoted(path)))
    })?;
    let average = saved.groups.remove(checkpoint::AVERAGE);
    let is_average = average.is_some() || best_average;
    let tensors = average.or_else(|| saved.groups.remove("weights")).unwrap_or_default();
    let latest = match select {
        Select::Best => checkpoint::load::<Progress>(&folder.checkpoints(), &[]).ok().flatten(),
        Select::Last => None,
    };
    let epochs = latest.as_ref().map_or(&saved.progress.epochs, |latest| &latest.progress.epochs);
    let (done, all) = (epochs.len(), train.epochs);
    let unfinished = (!is_trained(epochs, all))
        .then(|| format!("training is not finished: {done} of {all} epochs are done"));
    let found = WeightsFound { progress: saved.progress, damaged: saved.damaged, unfinished };
    Ok(ChosenWeights { tensors, is_average, found })
}

/// Loads the weights for evaluation into a model.
///
/// # Errors
/// If no checkpoint is whole, or its weights are not of this model.
pub(crate) fn load_weights(
    folder: &RunFolder,
    record: &RunRecord,
    model: &LoadedModel,
) -> Result<WeightsFound> {
    let chosen = chosen_weights(folder, record, Choice::default())?;
    model.load(&chosen.tensors)?;
    Ok(chosen.found)
}

/// Handles a difference from a run's record: a warning if differences are allowed, else an error.
pub(crate) fn unless(allowed: bool) -> impl FnMut(Error) -> Result<()> {
    move |change| {
        if !allowed {
            return Err(change);
        }
        warn(change.first_line());
        Ok(())
    }
}

/// The spec of a recorded plugin, with the path of its file: in `folder`, in the place that it was
/// loaded from, or found by the spec.
///
/// # Errors
/// If there is no such file, or it is not the recorded one and `on_change` returns an error.
pub(crate) fn recorded_plugin(
    given: &PluginSpec,
    record: &Record,
    folder: Option<&Path>,
    on_change: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<PluginSpec> {
    let where_it_was = || record.path.is_file().then(|| record.path.clone());
    let path = plugin_in(folder, &record.path).or_else(where_it_was);
    let path = path.map_or_else(|| library::find(&given.file), Ok).map_err(|_| {
        let name = record.path.file_name().unwrap_or_default().display();
        Error::new(format!("the run's plugin {} is missing", record.path.display()))
            .fix(format!("give the folder that has {name} now with --plugins FOLDER"))
    })?;
    let mut spec = given.clone();
    (spec.file, spec.is_recorded) = (path.display().to_string(), true);
    let found = library::inspect(&spec.file)?;
    let mut compare = |path: &Path, recorded: &str, found: &str| {
        if recorded == found {
            return Ok(());
        }
        let what = format!("{} has changed since the run began", path.display());
        on_change(change(what, &format!("SHA-256 {recorded}"), &format!("SHA-256 {found}")))
    };
    compare(&found.path, &record.sha256, &found.sha256)?;
    for (option, file) in &record.files {
        let name = Path::new(file.path.file_name().unwrap_or_default());
        let moved = folder.map(|folder| folder.join(name)).filter(|path| path.is_file());
        let path = moved.unwrap_or_else(|| file.path.clone());
        if !path.is_file() {
            let (path, name) = (file.path.display(), name.display());
            return Err(Error::new(format!("the file {path}, which the run's plugin reads, is missing"))
                .fix(format!("give the folder that has {name} now with --plugins FOLDER")));
        }
        compare(&path, &file.sha256, &files::size_and_sha256(&path)?.1)?;
        spec = spec.with(option, path.to_string_lossy().into());
    }
    Ok(spec)
}

/// The data of a run. Named data lie in `folder`, or where they were recorded. The user's own data
/// lie in the folder of their name in `folder`, where they were recorded, or in `folder` itself.
///
/// # Errors
/// If they are in none of these places, or cannot be read.
pub(crate) fn recorded_data(recorded: &config::Data, folder: Option<&Path>) -> Result<Dataset> {
    let spec = DataSpec::recorded(&recorded.name);
    if spec.known().is_some() {
        return data::load(&recorded.name, folder.unwrap_or(&recorded.folder));
    }
    let (path, name) = (spec.path(), spec.name());
    let below = folder.map(|folder| folder.join(&name));
    let mut places = below.into_iter().chain([path.to_owned()]).chain(folder.map(Path::to_owned));
    let is_there = |place: &PathBuf| if spec.is_file() { place.is_file() } else { place.is_dir() };
    let found = places.find(is_there).ok_or_else(|| {
        let around = if spec.is_file() {
            format!("the folder around {name}")
        } else {
            format!("{name} itself, or the folder around it")
        };
        Error::new(format!("the recorded data {} are missing", path.display()))
            .fix(format!("give the folder that has them now with --data-folder FOLDER: {around}"))
    })?;
    if spec.is_python() {
        trust::check(&found, &files::size_and_sha256(&found)?.1)?;
    }
    // A relative path may look like the name of a known data set.
    data::load(&spec.at(&found).absolute().to_string(), &recorded.folder)
}

/// The plugin library in `folder` with the name of this one, if there is one.
pub(crate) fn plugin_in(folder: Option<&Path>, library: &Path) -> Option<PathBuf> {
    library::find(&folder?.join(library.file_name()?).to_string_lossy()).ok()
}

/// Compares a data set's files with the recorded ones.
///
/// # Errors
/// If a file differs and `on_change` returns an error.
pub(crate) fn check_data(
    dataset: &Dataset,
    checksums: &BTreeMap<String, String>,
    on_change: &mut dyn FnMut(Error) -> Result<()>,
) -> Result<()> {
    for (file, recorded) in checksums {
        let found = dataset.checksums.get(file).map_or("absent", String::as_str);
        if recorded != found {
            let what = format!("data file {file} is not the recorded one");
            on_change(change(what, &format!("MD5 {recorded}"), &format!("MD5 {found}")))?;
        }
    }
    Ok(())
}

fn change(what: String, recorded: &str, found: &str) -> Error {
    Error::new(what)
        .note("recorded", recorded)
        .note("found", found)
        .fix("restore the recorded file, or pass --allow-changed to use the new one")
}

#[cfg(test)]
mod fuzz {
    use super::progress::{EpochMetrics, TracePoint};
    use super::*;
    use crate::util::fuzz::{USUAL, corpus, for_cases, withstands};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn folder() -> (tempfile::TempDir, RunFolder) {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        (folder, run)
    }

    #[test]
    fn records_may_be_damaged() {
        let (_folder, run) = folder();
        withstands(&[corpus("run.json")], &run.record_path(), USUAL, |path| {
            RunFolder::open(path.parent().expect("a folder"))
        });
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let (_folder, run) = folder();
        fs::write(run.record_path(), corpus("run.json")).expect("written");
        let (run, record) = RunFolder::open(run.path()).expect("valid");
        write_json(&run.record_path(), &record).expect("written");
        let (_, again) = RunFolder::open(run.path()).expect("valid");
        assert_eq!(json!(again), json!(record));
        // What this version writes has all that an older one wrote.
        let written: Value = serde_json::from_slice(&corpus("run.json")).expect("JSON");
        assert_eq!(json!(record)["plugins"], written["plugins"]);
        assert_eq!(json!(record)["experiment"], written["experiment"]);
    }

    #[test]
    fn measurements_may_be_damaged() {
        let (_folder, run) = folder();
        withstands(&[corpus("metrics.jsonl")], &run.metrics_path(), USUAL, |_| run.metrics::<EpochMetrics>());
        let trace = run.path().join("trace.jsonl");
        withstands(&[corpus("trace.jsonl")], &trace, USUAL, |_| run.trace::<TracePoint>());
    }

    #[test]
    fn measurements_come_back_as_they_were_written() {
        let (_folder, run) = folder();
        let number = || prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO;
        let epoch = (number(), number(), proptest::option::of(number()), any::<u64>(), any::<Vec<String>>());
        for_cases(&proptest::collection::vec(epoch, 0..4), |epochs| {
            let metrics = |(number, (loss, seconds, accuracy, updates, alarms)): (usize, _)| EpochMetrics {
                sampler: BTreeMap::new(),
                law: None,
                gradient: None,
                epoch: number,
                updates,
                learning_rate: seconds,
                train_loss: loss,
                train_accuracy: loss,
                validation_accuracy: accuracy,
                probe_accuracy: None,
                validation_passes: accuracy,
                statistics_passes: None,
                alarms,
                stopped_early: number == 2,
                passes_per_sample: updates,
                seconds,
                communication_seconds: None,
                peak_memory: None,
            };
            let epochs: Vec<_> = epochs.into_iter().enumerate().map(metrics).collect();
            run.write_metrics(&epochs).expect("written");
            let read = run.metrics::<EpochMetrics>().expect("valid");
            prop_assert_eq!(json!(read), json!(epochs));
            let bits = |epochs: &[EpochMetrics]| {
                epochs.iter().map(|epoch| epoch.seconds.to_bits()).collect::<Vec<_>>()
            };
            prop_assert_eq!(bits(&read), bits(&epochs));
            Ok(())
        });
    }

    #[test]
    fn checkpoints_may_be_damaged() {
        let (_folder, run) = folder();
        let checkpoint = run.checkpoints().join("000000004");
        fs::create_dir_all(&checkpoint).expect("a folder");
        fs::write(checkpoint.join("weights.safetensors"), corpus("weights.safetensors")).expect("written");
        let load = |_: &Path| match checkpoint::load::<Progress>(&run.checkpoints(), &["weights"]) {
            Ok(found) => found.ok_or_else(|| Error::new("no checkpoint")),
            // The damage may be in the digest of the file.
            Err(why) if why.to_string().contains("weights.safetensors is damaged") => {
                Err(why.note("digest", "progress.json"))
            }
            Err(why) => Err(why),
        };
        withstands(&[corpus("progress.json")], &checkpoint.join("progress.json"), USUAL, load);
        fs::write(checkpoint.join("progress.json"), corpus("progress.json")).expect("written");
        withstands(&[corpus("weights.safetensors")], &checkpoint.join("weights.safetensors"), USUAL, load);
    }
}
