//! What runs and sweeps left behind, read for a report.

use crate::config::Select;
use crate::data;
use crate::data::Dataset;
use crate::data::examples::{Examples, repeat_rows};
use crate::evaluation::verdict::Caveat;
use crate::evaluation::verdict::Evaluation;
use crate::plugin::{Model, Record};
use crate::run;
use crate::run::checkpoint;
use crate::run::progress::{EpochMetrics, Progress, TracePoint, is_trained};
use crate::run::{RunFolder, RunRecord, Versions};
use crate::sweep::summary::{self, Row, Status};
use crate::torch::tensors;
use crate::training::setup::split;
use crate::training::store::ParticleStore;
use crate::util::files;
use crate::{Error, Result, sweep};
use plugin_api::{Norm, ThreatModel};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Examples shown of a run.
const MOST_EXAMPLES: usize = 8;

/// Bars of a histogram over distances from 0 to epsilon.
pub const BARS: usize = 20;

/// Everything that a report tells.
pub struct Collection {
    /// The runs, in the order given; a sweep's in the order of its summary.
    pub runs: Vec<Run>,
    /// The sweeps.
    pub sweeps: Vec<Sweep>,
}

/// A run, and what is missing of it.
pub struct Run {
    /// The last part of its path, or as many as tell it from the others.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What it was made with.
    pub record: RunRecord,
    /// The finished epochs.
    pub epochs: Vec<EpochMetrics>,
    /// What was measured on the way.
    pub trace: Vec<TracePoint>,
    /// The evaluations on test points, oldest first.
    pub evaluations: Vec<Evaluated>,
    /// Examples that fooled it.
    pub examples: Option<Strip>,
    /// How far its particles are from their natural examples.
    pub distances: Option<Distances>,
    /// What could not be shown.
    pub gaps: Vec<Gap>,
}

/// Something that a report would show, and does not.
#[derive(Debug, Clone)]
pub struct Gap {
    /// Which part of the report.
    pub part: Part,
    /// What is missing, and why.
    pub what: String,
    /// What fills the gap: a command, or advice.
    pub fix: String,
}

/// The parts of a report that a run fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The training curves.
    Curves,
    /// The error against passes.
    Trace,
    /// The robust accuracies.
    Evaluations,
    /// The image strip.
    Examples,
    /// The histogram of distances.
    Distances,
}

/// An entry of `eval.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Evaluated {
    /// What was measured.
    pub result: Evaluation,
    /// The suite, none for attacks that were judged each on its own.
    pub suite: Option<String>,
    /// Whether it was made on held-out training points.
    #[serde(default)]
    pub validation: bool,
    /// The run whose model saw the attacks, if another.
    pub source: Option<PathBuf>,
    /// Seed of the attacks.
    pub seed: u64,
    /// Times each attack ran.
    pub restarts: u16,
    /// The update whose weights were judged.
    pub update: u64,
    /// The attacks' plugins.
    pub plugins: Vec<Record>,
    /// The software.
    pub versions: Versions,
    /// The file of saved examples.
    pub examples: Option<PathBuf>,
}

/// Examples that fooled a model.
pub struct Strip {
    /// The examples.
    pub examples: Vec<Example>,
    /// The file that they are from.
    pub file: PathBuf,
}

/// An example that fooled a model: images `[C, H, W]`, f32, 0 to 1.
pub struct Example {
    /// As in the data.
    pub natural: Tensor,
    /// As the attack left it.
    pub adversarial: Tensor,
    /// Its class.
    pub label: i64,
    /// What the model says to the natural one, and its probability.
    pub natural_guess: (i64, f64),
    /// What the model says to the adversarial one, and its probability.
    pub adversarial_guess: (i64, f64),
    /// The attack.
    pub attack: String,
}

/// How far particles are from their natural examples.
pub struct Distances {
    /// Number of particles.
    pub particles: usize,
    /// In the threat model's norm, and in the other one.
    pub measured: Vec<Measured>,
}

/// Distances of particles in one norm, as shares of the largest distance in the ball.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Which distance in which unit.
    pub name: String,
    /// Share of the particles in each of [`BARS`] equal steps from 0 to 1; what is at 1 is in the
    /// last.
    pub shares: Vec<f64>,
    /// Mean.
    pub mean: f64,
}

/// A sweep's folder.
pub struct Sweep {
    /// The last part of its path.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// The contents of `summary.json`; none if that cannot be read.
    pub summary: Option<Summary>,
    /// What cannot be shown of it, or not as its summary says.
    pub gaps: Vec<Gap>,
}

/// The contents of a sweep's `summary.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    /// Every run.
    pub runs: Vec<SummaryRow>,
    /// Every setting over its seeds, if seeds vary.
    pub groups: Option<Vec<SummaryGroup>>,
}

/// A run of a sweep.
#[derive(Debug, Clone, Deserialize)]
pub struct SummaryRow {
    /// Its folder's name.
    pub run: String,
    /// Its value on every axis.
    pub settings: Map<String, Value>,
    /// How far it is.
    pub status: Status,
    /// Why it failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why its evaluations may not be trusted.
    #[serde(default)]
    pub doubts: Vec<Caveat>,
    /// What its training looked like in the end, if it looked wrong.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// What it measured; accuracies are shares.
    pub figures: BTreeMap<String, f64>,
}

/// A setting of a sweep over its seeds.
#[derive(Debug, Clone, Deserialize)]
pub struct SummaryGroup {
    /// Its value on every axis but the seed's.
    pub settings: Map<String, Value>,
    /// All its runs.
    pub runs: usize,
    /// Runs that are finished.
    pub finished: usize,
    /// What they measured.
    pub figures: BTreeMap<String, OverSeeds>,
}

/// A figure over several seeds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct OverSeeds {
    /// The median.
    pub median: f64,
    /// The worst.
    pub worst: f64,
}

/// How to read runs.
pub struct Collector<'a> {
    /// Where named data sets lie; none for where each run says.
    pub data_folder: Option<&'a Path>,
    /// Load plugins and data that have changed since the run.
    pub allow_changed: bool,
    datasets: BTreeMap<(String, PathBuf), Rc<Dataset>>,
}

impl<'a> Collector<'a> {
    /// One that has read nothing yet.
    pub fn new(data_folder: Option<&'a Path>, allow_changed: bool) -> Self {
        Self { data_folder, allow_changed, datasets: BTreeMap::new() }
    }

    /// Reads the folders of runs and sweeps; a run that is named twice is told of once.
    ///
    /// # Errors
    /// If a folder is neither a run's nor a sweep's, or a run's record cannot be understood.
    pub fn collect(&mut self, paths: &[PathBuf]) -> Result<Collection> {
        let (mut sweeps, mut found) = (Vec::new(), Vec::new());
        for path in paths {
            if path.join(SWEEP_FILE).is_file() {
                let (sweep, runs) = read_sweep(path)?;
                sweeps.push(sweep);
                found.extend(runs);
            } else if path.join(RUN_FILE).is_file() {
                found.push(path.clone());
            } else {
                let path = path.display();
                return Err(Error::new(format!(
                    "{path} holds neither a run nor a sweep: both {RUN_FILE} and {SWEEP_FILE} are missing"
                ))
                .fix("give the folders that `host train` or `host sweep` wrote (their --out)"));
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
        // Every record is understood before any work is done.
        let opened: Vec<_> = found.iter().map(|path| RunFolder::open(path)).collect::<Result<_>>()?;
        let names = names(&found);
        let runs =
            opened.into_iter().zip(names).map(|((folder, record), name)| self.run(folder, record, name));
        Ok(Collection { runs: runs.collect(), sweeps })
    }

    fn run(&mut self, folder: RunFolder, record: RunRecord, name: String) -> Run {
        let path = folder.path().to_owned();
        let mut run = Run {
            name,
            path,
            record,
            epochs: Vec::new(),
            trace: Vec::new(),
            evaluations: Vec::new(),
            examples: None,
            distances: None,
            gaps: Vec::new(),
        };
        run.read_measurements(&folder);
        if let Err(gap) = self.examples(&folder, &run).map(|examples| run.examples = Some(examples)) {
            run.gaps.push(gap);
        }
        match self.distances(&folder, &run) {
            Ok(distances) => run.distances = distances,
            Err(gap) => run.gaps.push(gap),
        }
        run
    }

    fn dataset(&mut self, record: &RunRecord) -> Result<Rc<Dataset>> {
        let data = &record.experiment.data;
        let folder = self.data_folder.unwrap_or(&data.folder).to_owned();
        let key = (data.name.clone(), folder);
        let dataset = match self.datasets.get(&key) {
            Some(dataset) => Rc::clone(dataset),
            None => Rc::new(data::load(&key.0, &key.1)?),
        };
        self.datasets.insert(key, Rc::clone(&dataset));
        run::check_data(&dataset, &record.data, &mut run::unless(self.allow_changed))?;
        Ok(dataset)
    }

    /// Examples of the newest evaluation that saved some, at most one of each class first.
    fn examples(&mut self, folder: &RunFolder, run: &Run) -> std::result::Result<Strip, Gap> {
        let evaluation = run.evaluations.iter().rev().find(|evaluation| evaluation.examples.is_some());
        let Some(evaluation) = evaluation else {
            return Err(Gap {
                part: Part::Examples,
                what: "no adversarial examples were saved".to_owned(),
                fix: run.save_examples_command(),
            });
        };
        self.read_examples(folder, run, evaluation).map_err(|why| Gap {
            part: Part::Examples,
            what: format!("the adversarial examples cannot be shown: {}", why.first_line()),
            fix: why.advice().map_or_else(|| run.save_examples_command(), str::to_owned),
        })
    }

    fn read_examples(&mut self, folder: &RunFolder, run: &Run, evaluation: &Evaluated) -> Result<Strip> {
        let recorded = evaluation.examples.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
        // The folder may have moved since.
        let file = run.path.join(recorded);
        let saved = tensors::read(&file)?;
        let damaged = |what: &str| Error::file("understand", &file, what);
        let tensor =
            |name: &str| saved.get(name).ok_or_else(|| damaged(&format!("it has no tensor `{name}`")));
        let images = tensor("images")?.to_kind(Kind::Float);
        let numbers = |name: &str| -> Result<Vec<i64>> {
            let numbers = tensor(name)?.to_kind(Kind::Int64);
            match numbers.dim() == 1 && images.dim() == 4 && numbers.size()[0] == images.size()[0] {
                true => Ok(Vec::try_from(numbers)?),
                false => Err(damaged(&format!("`{name}` does not fit `images`"))),
            }
        };
        if images.dim() == 4 && images.size()[0] == 0 {
            return Err(
                Error::new("none fooled the model").fix("nothing is wrong; stronger attacks may find some")
            );
        }
        let (labels, points, attacks) = (numbers("labels")?, numbers("points")?, numbers("attacks")?);
        let dataset = self.dataset(&run.record)?;
        let test = Examples::new(&dataset.test, 0, dataset.test.count() as usize, Device::Cpu)?;
        if points.iter().any(|point| !(0..test.len() as i64).contains(point))
            || images.size()[1..] != dataset.test.images.size()[1..]
        {
            return Err(damaged("it is not of the run's data"));
        }
        let spec = &run.record.experiment.model;
        let spec =
            run::recorded_plugin(spec, &run.record.plugins.model, &mut run::unless(self.allow_changed))?;
        let model = Model::build(&spec, dataset.task(), Device::Cpu, 0)?;
        let progress = run::load_weights(folder, &run.record, &model)?;
        if progress.update != evaluation.update {
            return Err(Error::new(format!(
                "they were made on the weights of update {}, and the run has those of update {}",
                evaluation.update, progress.update
            )));
        }
        let chosen = one_of_each_class_first(&labels, &points, MOST_EXAMPLES);
        let rows = Tensor::from_slice(&chosen);
        let adversarial = images.index_select(0, &rows);
        let at: Vec<i64> = chosen.iter().map(|row| points[*row as usize]).collect();
        let (natural, _) = test.batch(&Tensor::from_slice(&at));
        let (before, after) = (guesses(&model, &natural)?, guesses(&model, &adversarial)?);
        let examples = chosen.iter().zip(0..).map(|(row, place)| {
            let row = *row as usize;
            let attack = evaluation.result.attacks.get(attacks[row].max(0) as usize);
            Example {
                natural: natural.get(place),
                adversarial: adversarial.get(place),
                label: labels[row],
                natural_guess: before[place as usize],
                adversarial_guess: after[place as usize],
                attack: attack.map_or(String::new(), |attack| attack.attack.clone()),
            }
        });
        Ok(Strip { examples: examples.collect(), file })
    }

    /// None if the run keeps no particles.
    fn distances(&mut self, folder: &RunFolder, run: &Run) -> std::result::Result<Option<Distances>, Gap> {
        if run.record.experiment.sampler.0.is_none() {
            return Ok(None);
        }
        self.read_distances(folder, run).map_err(|why| Gap {
            part: Part::Distances,
            what: format!("the particles' distances cannot be shown: {}", why.first_line()),
            fix: why.advice().map_or_else(|| run.resume_command(), str::to_owned),
        })
    }

    fn read_distances(&mut self, folder: &RunFolder, run: &Run) -> Result<Option<Distances>> {
        let experiment = &run.record.experiment;
        let Some(mut saved) = checkpoint::load::<Progress>(&folder.checkpoints(), &["particles"])? else {
            return Err(Error::new("there is no checkpoint yet"));
        };
        // Chains that begin anew at every visit leave none.
        let Some(saved) = saved.groups.remove("particles") else { return Ok(None) };
        let dataset = self.dataset(&run.record)?;
        let (points, _) = split(experiment, &dataset)?;
        let examples = Examples::new(&dataset.train, 0, points, Device::Cpu)?;
        let (format, threat) = (experiment.train.store, experiment.training_threat());
        let mut store = ParticleStore::new(&examples, experiment.train.particles, 0, threat, format, None)?;
        store.load_state(&saved)?;
        distances(&store, &examples, experiment.train.particles, threat).map(Some)
    }
}

/// A run's record, which it begins with.
const RUN_FILE: &str = "run.json";

/// A sweep's copy of its file, which it begins with.
const SWEEP_FILE: &str = "sweep.toml";

/// A sweep, and the folders of those of its runs that were begun.
fn read_sweep(path: &Path) -> Result<(Sweep, Vec<PathBuf>)> {
    let summary_path = path.join("summary.json");
    let read = || -> Result<Summary> {
        serde_json::from_slice(&files::read(&summary_path)?)
            .map_err(|why| Error::file("understand", &summary_path, why))
    };
    let mut gaps = Vec::new();
    let mut gap = |what| gaps.push(Gap { part: Part::Evaluations, what, fix: sweep_command(path) });
    let known = read();
    let nothing = Summary { runs: Vec::new(), groups: None };
    let newer = newer_than(known.as_ref().unwrap_or(&nothing), path);
    let summary = match (known, newer) {
        (Ok(known), Ok(None)) => Some(known),
        (Ok(_), Ok(Some((newer, stale)))) => {
            gap(format!(
                "the sweep's summary.json is old: shown is what the runs' folders say of {}",
                stale.join("; ")
            ));
            Some(newer)
        }
        (Ok(known), Err(why)) => {
            gap(format!(
                "the sweep's summary.json may be old, and cannot be compared with its runs: {}",
                why.first_line()
            ));
            Some(known)
        }
        // Killed before its first summary, or damaged: the runs' folders say all of it.
        (Err(why), Ok(Some((rebuilt, _)))) => {
            gap(format!("{}: shown is what the runs' folders say of the sweep", why.first_line()));
            Some(rebuilt)
        }
        (Err(why), Ok(None)) | (Err(_), Err(why)) => {
            gap(format!("the sweep's summary cannot be shown: {}", why.first_line()));
            None
        }
    };
    for row in summary.iter().flat_map(|summary| &summary.runs) {
        if row.status != Status::Waiting
            && row.status != Status::Failed
            && !path.join(&row.run).join(RUN_FILE).is_file()
        {
            gap(format!(
                "{} is {} by the sweep's summary.json, but its folder is gone: there is no more to show of it",
                row.run,
                row.status.name()
            ));
        }
    }
    let runs: Vec<_> = match &summary {
        Some(summary) => summary.runs.iter().map(|row| path.join(&row.run)).collect(),
        None => {
            let entries = std::fs::read_dir(path).map_err(|why| Error::file("read", path, why))?;
            let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            folders.sort();
            folders
        }
    };
    let begun = runs.into_iter().filter(|run| run.join(RUN_FILE).is_file()).collect();
    Ok((Sweep { name: last_part(path), path: path.to_owned(), summary, gaps }, begun))
}

/// What goes on with a sweep, and rewrites its summary.
fn sweep_command(folder: &Path) -> String {
    let file = folder.join(SWEEP_FILE);
    shell_words(["host", "sweep", &file.to_string_lossy(), "--out", &folder.to_string_lossy()])
}

/// What the runs' folders say, if that is not what the summary says, and of which runs it is not.
/// (A sweep that was killed, or whose runs were gone on with by hand, has an old summary.) Runs
/// without a folder keep what the summary says of them.
fn newer_than(summary: &Summary, folder: &Path) -> Result<Option<(Summary, Vec<String>)>> {
    let is_begun = |row: &SummaryRow| folder.join(&row.run).join(RUN_FILE).is_file();
    if !summary.runs.is_empty() && !summary.runs.iter().any(is_begun) {
        return Ok(None);
    }
    let sweep = sweep::Sweep::read(&folder.join(SWEEP_FILE))?;
    let (mut stale, mut rows) = (Vec::new(), Vec::new());
    for setting in &sweep.settings {
        let known = summary.runs.iter().find(|row| row.run == setting.name);
        let row = match folder.join(&setting.name).join(RUN_FILE).is_file() {
            true => row_of_folder(folder, &setting.name, &sweep.evaluations)?,
            false => known.map_or_else(SummaryRow::waiting, SummaryRow::row),
        };
        if !known.is_some_and(|known| known.says(&row)) {
            stale.push(setting.name.clone());
        }
        rows.push(row);
    }
    if stale.is_empty() {
        return Ok(None);
    }
    let newer = serde_json::from_value(summary::Summary::new(&sweep, rows).json());
    Ok(Some((newer.map_err(Error::new)?, stale)))
}

/// A run of a sweep that has these evaluations follow training, by what its folder says.
fn row_of_folder(sweep: &Path, name: &str, evaluations: &[Option<String>]) -> Result<Row> {
    let (folder, record) = RunFolder::open(&sweep.join(name))?;
    let train = &record.experiment.train;
    let epochs: Vec<EpochMetrics> = folder.metrics()?;
    let file = folder.path().join("sweep.json");
    let mut done: Vec<summary::Evaluated> = match file.is_file() {
        true => serde_json::from_slice(&files::read(&file)?)
            .map_err(|why| Error::file("understand", &file, why))?,
        false => Vec::new(),
    };
    done.retain(|one| evaluations.contains(&one.suite));
    let is_evaluated = evaluations.iter().all(|wanted| done.iter().any(|one| one.suite == *wanted));
    let failure = sweep.join(format!("{name}.failed"));
    let status = match (failure.is_file(), is_trained(&epochs, train.epochs), is_evaluated) {
        (true, ..) => Status::Failed,
        (_, false, _) => Status::Unfinished,
        (_, true, false) => Status::Trained,
        (_, true, true) => Status::Finished,
    };
    let reason = failure.is_file().then(|| format!("see {}", failure.display()));
    Ok(Row::new(status, reason, &epochs, train.select == Select::Best, &done))
}

impl SummaryRow {
    fn waiting() -> Row {
        Row::new(Status::Waiting, None, &[], false, &[])
    }

    fn row(&self) -> Row {
        Row {
            status: self.status,
            reason: self.reason.clone(),
            figures: self.figures.clone().into_iter().collect(),
            doubts: self.doubts.iter().map(|doubt| serde_json::json!(doubt)).collect(),
            alarms: self.alarms.clone(),
        }
    }

    /// Whether it says the same; numbers that were read from text may differ in their last digit.
    fn says(&self, row: &Row) -> bool {
        let is_same = |(name, value): &(String, f64)| {
            self.figures.get(name).is_some_and(|known| (known - value).abs() <= 1e-12 * value.abs())
        };
        self.status == row.status
            && self.figures.len() == row.figures.len()
            && row.figures.iter().all(is_same)
    }
}

fn last_part(path: &Path) -> String {
    let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    absolute.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// As few of the last parts of each path as tell it from all others.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let whole: Vec<_> =
        paths.iter().map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).collect();
    let last = |path: &Path, parts: usize| -> PathBuf {
        let all: Vec<_> = path.components().collect();
        all[all.len().saturating_sub(parts)..].iter().collect()
    };
    let name = |path: &PathBuf| {
        let mut lengths = 1..=path.components().count();
        let parts = lengths.find(|parts| {
            whole.iter().filter(|other| last(other, *parts) == last(path, *parts)).count() == 1
        });
        last(path, parts.unwrap_or(1)).display().to_string()
    };
    whole.iter().map(name).collect()
}

impl Run {
    /// Reads the metrics, the trace and the evaluations.
    fn read_measurements(&mut self, folder: &RunFolder) {
        let resume = self.resume_command();
        let mut gaps = Vec::new();
        let mut gap = |part, what: String, fix: String| gaps.push(Gap { part, what, fix });
        match folder.metrics() {
            Ok(epochs) => self.epochs = epochs,
            Err(why) => gap(
                Part::Curves,
                format!("the training curves cannot be shown: {}", why.first_line()),
                format!("{resume} (training rewrites the file)"),
            ),
        }
        let all = self.record.experiment.train.epochs;
        if !is_trained(&self.epochs, all) && gaps.is_empty() {
            let what = format!("training is not finished: {} of {all} epochs are done", self.epochs.len());
            gaps.push(Gap { part: Part::Curves, what, fix: resume.clone() });
        }
        let mut gap = |part, what: String, fix: String| gaps.push(Gap { part, what, fix });
        match folder.trace() {
            Ok(trace) => self.trace = trace,
            Err(why) => gap(
                Part::Trace,
                format!("the error against passes cannot be shown: {}", why.first_line()),
                "move the file away".to_owned(),
            ),
        }
        match folder.evaluations().and_then(|found| found.read::<Evaluated>(folder)) {
            // What runs were chosen by is no result.
            Ok(mut evaluations) => {
                evaluations.retain(|evaluation| !evaluation.validation);
                if evaluations.is_empty() {
                    gap(Part::Evaluations, "there is no evaluation".to_owned(), self.eval_command());
                }
                self.evaluations = evaluations;
            }
            Err(why) => gap(
                Part::Evaluations,
                format!("the evaluations cannot be shown: {}", why.first_line()),
                format!("move the file away, then {}", self.eval_command()),
            ),
        }
        self.gaps = gaps;
    }

    /// Goes on with training; in a sweep, with whatever the run still lacks.
    fn resume_command(&self) -> String {
        match self.path.parent().filter(|folder| folder.join(SWEEP_FILE).is_file()) {
            Some(sweep) => sweep_command(sweep),
            None => shell_words(["host", "train", "--resume", &self.path.to_string_lossy()]),
        }
    }

    /// Evaluates the run, or first of all gets it weights to evaluate.
    fn eval_command(&self) -> String {
        match self.has_weights() {
            true => shell_words(["host", "eval", &self.path.to_string_lossy()]),
            false => self.resume_command(),
        }
    }

    fn save_examples_command(&self) -> String {
        match self.has_weights() {
            true => format!("{} --save-examples", self.eval_command()),
            false => self.resume_command(),
        }
    }

    fn has_weights(&self) -> bool {
        let folder = RunFolder::at(&self.path);
        let best = self.record.experiment.train.select == Select::Best;
        let checkpoints = if best { folder.best() } else { folder.checkpoints() };
        std::fs::read_dir(checkpoints).is_ok_and(|entries| entries.count() > 0)
    }

    /// Gaps of one part.
    pub fn gaps_of(&self, part: Part) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(move |gap| gap.part == part)
    }
}

/// A command as it is typed into a shell.
pub fn shell_words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let is_plain = |word: &str| {
        !word.is_empty()
            && word.chars().all(|letter| letter.is_alphanumeric() || "-_./,=:+@%".contains(letter))
    };
    let quoted = words.into_iter().map(|word| match is_plain(word) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Which rows to show: the first of each label, then the next ones; of each point the first.
fn one_of_each_class_first(labels: &[i64], points: &[i64], most: usize) -> Vec<i64> {
    let (mut seen, mut shown) = (BTreeSet::new(), BTreeSet::new());
    let (first, others): (Vec<_>, Vec<_>) =
        (0..labels.len()).filter(|row| shown.insert(points[*row])).partition(|row| seen.insert(labels[*row]));
    let mut chosen: Vec<_> = first.into_iter().chain(others).take(most).map(|row| row as i64).collect();
    chosen.sort_by_key(|row| labels[*row as usize]);
    chosen
}

/// The most likely class of each image, and its probability.
fn guesses(model: &Model, images: &Tensor) -> Result<Vec<(i64, f64)>> {
    let (probabilities, classes) = model.logits(images)?.softmax(-1, Kind::Double).max_dim(1, false);
    let probabilities: Vec<f64> = Vec::try_from(probabilities)?;
    let classes: Vec<i64> = Vec::try_from(classes)?;
    Ok(classes.into_iter().zip(probabilities).collect())
}

/// Distances in both norms. The largest in an linf ball are epsilon and, in l2, epsilon times the
/// root of the number of pixels; in an l2 ball both are epsilon.
fn distances(
    store: &ParticleStore,
    examples: &Examples,
    particles_per_point: usize,
    threat: ThreatModel,
) -> Result<Distances> {
    const POINTS_AT_A_TIME: i64 = 1000;
    let epsilon = threat.epsilon.max(f64::MIN_POSITIVE);
    let mut tallies = [(); 2].map(|()| (Tensor::zeros([BARS as i64], (Kind::Double, Device::Cpu)), 0.0));
    let (mut particles, mut pixels) = (0, 0);
    for points in Tensor::arange(examples.len() as i64, (Kind::Int64, Device::Cpu)).split(POINTS_AT_A_TIME, 0)
    {
        let natural = repeat_rows(&examples.batch(&points).0, particles_per_point);
        let difference =
            (store.load(&points, &natural).particles - natural).flatten(1, -1).to_kind(Kind::Double);
        (particles, pixels) = (particles + difference.size()[0] as usize, difference.size()[1]);
        let linf = difference.abs().amax([1i64].as_slice(), false) / epsilon;
        let l2 = difference.norm_scalaropt_dim(2.0, [1i64].as_slice(), false) / epsilon;
        let l2 = if threat.norm == Norm::Linf { l2 / (pixels as f64).sqrt() } else { l2 };
        for ((counts, sum), shares) in tallies.iter_mut().zip([linf, l2]) {
            let bar = (&shares * BARS as f64).floor().clamp(0.0, BARS as f64 - 1.0).to_kind(Kind::Int64);
            *counts += bar.bincount::<&Tensor>(None, BARS as i64).to_kind(Kind::Double);
            *sum += shares.sum(Kind::Double).double_value(&[]);
        }
    }
    let names = match threat.norm {
        Norm::Linf => {
            ["linf distance / epsilon".to_owned(), format!("l2 distance / (epsilon x root of {pixels})")]
        }
        Norm::L2 => ["linf distance / epsilon", "l2 distance / epsilon"].map(str::to_owned),
    };
    let measured = names.into_iter().zip(tallies).map(|(name, (counts, sum))| {
        let shares = Vec::try_from(counts / particles as f64)?;
        Ok(Measured { name, shares, mean: sum / particles as f64 })
    });
    let mut measured = measured.collect::<Result<Vec<_>>>()?;
    if threat.norm == Norm::L2 {
        measured.reverse();
    }
    Ok(Distances { particles, measured })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::data::Split;
    use crate::training::store::Stored;

    #[test]
    fn each_class_is_shown_before_any_is_shown_twice() {
        assert_eq!(one_of_each_class_first(&[7, 7, 3, 7, 1], &[0, 1, 2, 3, 4], 3), [4, 2, 0]);
        assert_eq!(one_of_each_class_first(&[7, 7, 3], &[0, 1, 2], 3), [2, 0, 1]);
        assert_eq!(one_of_each_class_first(&[7, 7, 3, 3], &[5, 5, 2, 5], 3), [2, 0], "a point once");
        assert_eq!(one_of_each_class_first(&[], &[], 3), [0i64; 0]);
    }

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        assert_eq!(shell_words(["host", "eval", "runs/a b"]), "host eval 'runs/a b'");
        assert_eq!(shell_words(["it's", "", "pgd.so,steps=40"]), "'it'\\''s' '' pgd.so,steps=40");
    }

    #[test]
    fn paths_are_told_apart_by_as_little_as_can_be() {
        let paths = ["a/x/demo", "b/x/demo", "b/x/other"].map(PathBuf::from);
        assert_eq!(names(&paths), ["a/x/demo", "b/x/demo", "other"]);
        assert_eq!(names(&paths[1..]), ["demo", "other"]);
    }

    #[test]
    fn distances_are_in_units_of_epsilon_in_every_format() {
        // Two pixels at 102 / 255 = 0.4, four points; epsilon 0.2.
        let images = Tensor::full([4, 1, 1, 2], 102, (Kind::Uint8, Device::Cpu));
        let split = Split { images, labels: Tensor::zeros([4], (Kind::Int64, Device::Cpu)) };
        let examples = Examples::new(&split, 0, 4, Device::Cpu).expect("room");
        let points = Tensor::arange(4, (Kind::Int64, Device::Cpu));
        let (natural, _) = examples.batch(&points);
        // One pixel moves, or both as far: by 0, 0.27, 0.52 and 0.94 of epsilon.
        let moves = [[0.0f32, 0.0], [0.054, 0.0], [-0.104, 0.104], [0.188, 0.0]].concat();
        let half = 0.5f64.sqrt();
        let (linf, linf_mean) = ([0, 5, 10, 18], (0.27 + 0.52 + 0.94) / 4.0);
        for (norm, bars, means) in [
            // The largest l2 distance in the linf ball is epsilon times the root of 2: the shares
            // are 0.27, 0.94 of the root of a half (0.19, 0.66), and 0.52.
            (Norm::Linf, [linf, [0, 3, 10, 13]], [linf_mean, (0.27 * half + 0.52 + 0.94 * half) / 4.0]),
            // In the l2 ball it is epsilon: 0.27, 0.52 times the root of 2 (0.735), 0.94.
            (Norm::L2, [[0, 5, 14, 18], linf], [(0.27 + 0.52 / half + 0.94) / 4.0, linf_mean]),
        ] {
            let threat = ThreatModel { norm, epsilon: 0.2, domain: (0.0, 1.0) };
            let moved = &natural + Tensor::from_slice(&moves).reshape([4, 1, 1, 2]);
            for format in [Format::F32, Format::F16, Format::U8] {
                let mut store = ParticleStore::new(&examples, 1, 0, threat, format, None).expect("room");
                let stored = Stored { particles: moved.shallow_clone(), state: Vec::new() };
                store.save(&points, &natural, &stored);
                let found = distances(&store, &examples, 1, threat).expect("distances");
                for ((measured, bars), mean) in found.measured.iter().zip(bars).zip(means) {
                    let mut expected = [0.0; BARS];
                    bars.iter().for_each(|bar| expected[*bar] += 0.25);
                    assert_eq!(measured.shares, expected, "{norm:?} {format:?} {}", measured.name);
                    assert!((measured.mean - mean).abs() < 0.005, "{format:?}: {} for {mean}", measured.mean);
                }
                assert_eq!(found.particles, 4);
            }
        }
    }
}
