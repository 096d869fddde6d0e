//! A whole experiment: what a TOML file says, and what flags override.

use crate::objective::Objective;
use crate::optimizer::{self, Algorithm};
use crate::plugin::PluginSpec;
use crate::precision::Precision;
use crate::random::MOST_STEPS;
use crate::schedule::{self, Schedule, Shape};
use crate::store::Format;
use crate::{Error, Result, data, device};
use clap::ValueEnum;
use plugin_api::ThreatModel;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Everything that decides a run's result, but for the files that plugins and data live in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// The classifier: a model plugin.
    pub model: PluginSpec,
    /// The adversary while training: a sampler plugin, or `none` for ordinary training.
    pub sampler: SamplerChoice,
    /// Which images.
    pub data: Data,
    /// What the adversary may do.
    pub threat: ThreatModel,
    /// The training loop.
    pub train: Train,
    /// What `host eval` does unless told otherwise.
    pub eval: Eval,
}

/// A sampler, or none.
#[derive(Debug, Clone)]
pub struct SamplerChoice(pub Option<PluginSpec>);

/// Which images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// A name that `host data list` knows, or a folder.
    pub name: String,
    /// Where named data sets lie, one folder each: DRO_DATA if set, else `data`.
    pub folder: PathBuf,
    /// Train on the first N points only; all if not given.
    pub train_points: Option<usize>,
    /// Hold out the last N training points for validation; if not given, 5,000 where a score
    /// on them is asked for (`train.probe`, `train.select`), else none.
    pub validation_points: Option<usize>,
}

/// How theta's and the particles' updates share passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Algorithm 1: the sampler's gradient is taken at the old particle, the weights descend at
    /// the new one; T + 1 passes.
    Faithful,
    /// One backward gives both gradients: the weights descend at the particle, and the particle
    /// moves along the gradient that was taken there; as many passes as replays.
    Fused,
}

/// Which mode a model is in during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModelMode {
    /// As it is evaluated: batch normalisation by its running moments, no dropout.
    Eval,
    /// As it is trained: batch normalisation by the minibatch's moments, dropout.
    Train,
}

/// Where chains begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the sampler declares.
    Sampler,
    /// In the particle store, which begins at the natural examples.
    Store,
    /// In the particle store, which begins at uniform draws from the ball.
    UniformStore,
    /// At the natural example, at every visit.
    Natural,
    /// At a uniform draw from the ball, at every visit.
    Uniform,
}

impl Start {
    /// What that is for a sampler that declares this start.
    pub fn of(self, declared: plugin_api::Start) -> plugin_api::Start {
        match self {
            Self::Sampler => declared,
            Self::Store | Self::UniformStore => plugin_api::Start::Store,
            Self::Natural => plugin_api::Start::Natural,
            Self::Uniform => plugin_api::Start::Uniform,
        }
    }
}

/// Which weights a run leaves for evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Those of the last epoch.
    Last,
    /// Those of the epoch that scored best on the validation points: accuracy against the
    /// probe if there is one, clean accuracy otherwise.
    Best,
}

/// What the authors of TRADES take.
const DEFAULT_TRADES_BETA: f64 = 6.0;

const MOST_EPOCHS: usize = 1_000_000;

/// Validation points held out where a score is asked for and no number is given.
const DEFAULT_VALIDATION_POINTS: usize = 5000;

/// The training loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// How theta's and the particles' updates share passes.
    pub mode: Mode,
    /// Times that a minibatch is used in a row before its particles go back, at least 1; above
    /// 1 in mode fused only.
    pub replay: usize,
    /// What the weights descend on, and with it what the sampler climbs.
    pub objective: Objective,
    /// In objective trades, the weight of the divergence, at least 0; 6 if not given.
    pub trades_beta: Option<f64>,
    /// Where chains begin.
    pub start: Start,
    /// Which mode the model is in while the sampler's gradient is taken; if not given, eval in
    /// mode faithful. In mode fused it is train.
    pub sampler_gradient: Option<ModelMode>,
    /// In which precision the network computes; evaluation and probes are f32 in any.
    pub precision: Precision,
    /// Passes over the training points, at least 1.
    pub epochs: usize,
    /// Cut a window of the image's own size at a random place out of the image padded by N
    /// zeros on every side, at every visit; 0 cuts nothing.
    pub crop: usize,
    /// Mirror every second image left to right, at random, at every visit.
    pub flip: bool,
    /// Points per update, at least 1.
    pub batch: usize,
    /// Particles per point (K), at least 1.
    pub particles: usize,
    /// How particles are stored.
    pub store: Format,
    /// Keep particles in this file, mapped into memory, instead of in memory (CPU only).
    pub store_file: Option<PathBuf>,
    /// The optimiser of the weights.
    pub optimizer: Algorithm,
    /// Its learning rate, above 0.
    pub learning_rate: f64,
    /// Its momentum, from 0 to below 1.
    pub momentum: f64,
    /// Its weight decay, at least 0.
    pub weight_decay: f64,
    /// How the learning rate changes.
    pub schedule: Shape,
    /// Shares of the run at which the step schedule falls, rising, between 0 and 1; one half and
    /// three quarters if not given.
    pub milestones: Option<Vec<f64>>,
    /// What the step schedule multiplies the learning rate by there, between 0 and 1; 0.1 if
    /// not given.
    pub step_factor: Option<f64>,
    /// Share of the run at which the one-cycle schedule is at its peak, between 0 and 1; 0.4 if
    /// not given.
    pub peak_at: Option<f64>,
    /// Epochs over which the learning rate rises from 0; may be a fraction. The one-cycle
    /// schedule rises by itself.
    pub warmup_epochs: f64,
    /// Radius of the ball that is trained in, in epsilons of the threat model, above 0. A
    /// classifier is judged (`probe`, `trace`, `host eval`) within the threat model itself.
    pub epsilon_scale: f64,
    /// Epochs over which that radius rises from 0; may be a fraction.
    pub warmup_epsilon: f64,
    /// Evaluate an exponential moving average of the weights, of which every step keeps this
    /// share; 0 evaluates the weights themselves.
    pub average: f64,
    /// Evaluate the equal mean of the weights after every step from this share of the run on,
    /// from 0 to below 1 (stochastic weight averaging); not together with `average`.
    pub swa_from: Option<f64>,
    /// An attack or sampler plugin to try on the validation points after every epoch.
    pub probe: Option<PluginSpec>,
    /// An attack or sampler plugin to try on test points while training goes on.
    pub trace: Option<PluginSpec>,
    /// How many test points: the same as those of `eval.points`; 1,000 if not given, or all if
    /// there are fewer.
    pub trace_points: Option<usize>,
    /// After how many passes per sample, rising, above 0; 1, 2, 5 times the powers of ten and
    /// the end of the run if not given.
    pub trace_at: Option<Vec<f64>>,
    /// Which weights are evaluated in the end.
    pub select: Select,
    /// End the run once so many epochs in a row have not scored better on the validation points;
    /// needs a score (`probe`, or `select` of the best).
    pub patience: Option<usize>,
    /// Seed of all randomness.
    pub seed: u64,
    /// Write event files for TensorBoard into the run's folder.
    pub tensorboard: bool,
    /// Save a checkpoint every N updates too, not only after each epoch.
    pub checkpoint_every: Option<u64>,
    /// cpu, cuda or cuda:N.
    pub device: String,
    /// Threads of libtorch on the CPU; all cores if not given.
    pub threads: Option<usize>,
}

/// What `host eval` does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// Attacks, each on its own: attack or sampler plugins.
    pub attacks: Vec<PluginSpec>,
    /// A random subset of the test set; the whole set if not given.
    pub points: Option<usize>,
    /// Times each attack runs with new random numbers; the worst case counts.
    pub restarts: u16,
    /// Examples per forward pass.
    pub batch: usize,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            model: known("cnn.so,arch=B"),
            sampler: SamplerChoice(Some(known("langevin.so"))),
            data: Data::default(),
            threat: ThreatModel::default(),
            train: Train::default(),
            eval: Eval::default(),
        }
    }
}

impl Experiment {
    /// What `host train` does unless told otherwise: the robust accuracy of MNIST classifiers
    /// against AutoAttack that ten passes per sample buy (docs/study.md).
    pub fn recipe() -> Self {
        let mut recipe = Self::default();
        let Train { mode, replay, epochs, epsilon_scale, warmup_epsilon, .. } = &mut recipe.train;
        (*mode, *replay, *epochs, *epsilon_scale, *warmup_epsilon) = (Mode::Fused, 5, 2, 1.2, 0.8);
        recipe
    }
}

fn known(spec: &str) -> PluginSpec {
    spec.parse().unwrap_or_else(|error| unreachable!("a default plugin is well written: {error}"))
}

impl Default for Data {
    fn default() -> Self {
        let folder = std::env::var_os("DRO_DATA").unwrap_or_else(|| "data".into());
        Self { name: "mnist".to_owned(), folder: folder.into(), train_points: None, validation_points: None }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            mode: Mode::Faithful,
            replay: 1,
            objective: Objective::CrossEntropy,
            trades_beta: None,
            start: Start::Sampler,
            sampler_gradient: None,
            precision: Precision::F32,
            epochs: 5,
            crop: 0,
            flip: false,
            batch: 100,
            particles: 1,
            store: Format::F32,
            store_file: None,
            optimizer: Algorithm::Sgd,
            learning_rate: 0.02,
            momentum: 0.9,
            weight_decay: 0.0,
            schedule: Shape::Cosine,
            milestones: None,
            step_factor: None,
            peak_at: None,
            warmup_epochs: 0.0,
            epsilon_scale: 1.0,
            warmup_epsilon: 0.0,
            average: 0.0,
            swa_from: None,
            probe: None,
            trace: None,
            trace_points: None,
            trace_at: None,
            select: Select::Last,
            patience: None,
            seed: 0,
            tensorboard: false,
            checkpoint_every: None,
            device: "cpu".to_owned(),
            threads: None,
        }
    }
}

impl Default for Eval {
    fn default() -> Self {
        let attacks = ["fgsm.so", "pgd.so,steps=40", "pgd.so,steps=100", "apgd.so"];
        Self { attacks: attacks.map(known).into(), points: None, restarts: 1, batch: 250 }
    }
}

impl Train {
    /// In objective trades, the weight of the divergence.
    pub fn trades_beta(&self) -> f64 {
        self.trades_beta.unwrap_or(DEFAULT_TRADES_BETA)
    }

    /// Which mode the model is in while the sampler's gradient is taken.
    pub fn sampler_gradient(&self) -> ModelMode {
        match self.mode {
            Mode::Faithful => self.sampler_gradient.unwrap_or(ModelMode::Eval),
            Mode::Fused => ModelMode::Train,
        }
    }
}

impl Experiment {
    /// The ball that particles live in while training.
    pub fn training_threat(&self) -> ThreatModel {
        ThreatModel { epsilon: self.threat.epsilon * self.train.epsilon_scale, ..self.threat }
    }

    /// Reads an experiment file.
    ///
    /// # Errors
    /// If it cannot be read, or has an unknown key or a value of the wrong type (naming the line).
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|why| Error::file("read", path, why))?;
        let name = path.display().to_string();
        let table = parse_toml(&text, &name)?;
        if table.get_ref().contains_key("sweep") {
            return Err(Error::new(format!(
                "{name}: expected one experiment, got a sweep: it has a [sweep]"
            ))
            .fix(format!("train and evaluate its runs with `host sweep {name}`, or remove [sweep]")));
        }
        Self::from_table(table, &text, &name)
    }

    /// The experiment that a table says, out of the text of a TOML file of this name.
    ///
    /// # Errors
    /// If it has an unknown key or a value of the wrong type (naming the line).
    pub(crate) fn from_table(table: toml::Spanned<DeTable>, text: &str, name: &str) -> Result<Self> {
        let mut experiment: Self = from_table(table.clone(), text, name)?;
        let places: Places = from_table(table, text, name)?;
        let origin = |place: &toml::Spanned<toml::Value>| Some(origin(text, name, place.span().start));
        experiment.model.origin = places.model.as_ref().and_then(origin);
        if let (Some(sampler), Some(place)) = (&mut experiment.sampler.0, &places.sampler) {
            sampler.origin = origin(place);
        }
        let Train { probe, trace, .. } = &mut experiment.train;
        for (spec, place) in [(probe, &places.train.probe), (trace, &places.train.trace)] {
            if let (Some(spec), Some(place)) = (spec, place) {
                spec.origin = origin(place);
            }
        }
        for (attack, place) in experiment.eval.attacks.iter_mut().zip(&places.eval.attacks) {
            attack.origin = origin(place);
        }
        Ok(experiment)
    }

    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// Names the key, what was expected and what was got.
    pub fn validate(&self) -> Result<()> {
        let Train { learning_rate, momentum, weight_decay, warmup_epochs, warmup_epsilon, average, .. } =
            self.train;
        let ThreatModel { epsilon, domain: (low, high), .. } = self.threat;
        let (train, eval) = (&self.train, &self.eval);
        let checks: [(bool, &str, &str, String); 24] = [
            (
                epsilon >= 0.0 && epsilon.is_finite(),
                "threat.epsilon",
                "a number of at least 0",
                epsilon.to_string(),
            ),
            (
                low <= 0.0 && high >= 1.0 && low.is_finite() && high.is_finite(),
                "threat.domain",
                "bounds that hold all images, which lie in [0, 1]",
                format!("[{low}, {high}]"),
            ),
            (
                (1..=MOST_EPOCHS).contains(&train.epochs),
                "train.epochs",
                "at least 1 and at most 1000000",
                train.epochs.to_string(),
            ),
            (
                (1..=i32::MAX as usize).contains(&train.batch),
                "train.batch",
                "at least 1 and at most 2147483647",
                train.batch.to_string(),
            ),
            (
                (1..=usize::from(u16::MAX)).contains(&train.particles),
                "train.particles",
                "1 to 65535",
                train.particles.to_string(),
            ),
            (
                learning_rate > 0.0 && learning_rate.is_finite(),
                "train.learning_rate",
                "a number above 0",
                learning_rate.to_string(),
            ),
            (
                (0.0..1.0).contains(&momentum),
                "train.momentum",
                "a number from 0 to below 1",
                momentum.to_string(),
            ),
            (
                weight_decay >= 0.0 && weight_decay.is_finite(),
                "train.weight_decay",
                "a number of at least 0",
                weight_decay.to_string(),
            ),
            (
                (0.0..=train.epochs as f64).contains(&warmup_epochs),
                "train.warmup_epochs",
                "a number from 0 to train.epochs",
                warmup_epochs.to_string(),
            ),
            (
                train.epsilon_scale > 0.0 && train.epsilon_scale.is_finite(),
                "train.epsilon_scale",
                "a number above 0",
                train.epsilon_scale.to_string(),
            ),
            (
                (0.0..=train.epochs as f64).contains(&warmup_epsilon),
                "train.warmup_epsilon",
                "a number from 0 to train.epochs",
                warmup_epsilon.to_string(),
            ),
            (
                (0.0..1.0).contains(&average),
                "train.average",
                "a share from 0 to below 1",
                average.to_string(),
            ),
            match train.mode {
                Mode::Fused => (
                    (1..=MOST_STEPS).contains(&train.replay),
                    "train.replay",
                    "1 to 65534",
                    train.replay.to_string(),
                ),
                Mode::Faithful => (
                    train.replay == 1,
                    "train.replay",
                    "1 (mode fused alone uses a minibatch several times in a row)",
                    train.replay.to_string(),
                ),
            },
            (
                train.mode == Mode::Faithful || train.sampler_gradient != Some(ModelMode::Eval),
                "train.sampler_gradient",
                "train (in mode fused the pass that gives the sampler's gradient trains the weights too)",
                "eval".to_owned(),
            ),
            (
                train.mode != Mode::Fused || !train.objective.has_its_own_inner_loss(),
                "train.objective",
                "cross-entropy (mode fused takes both gradients from one backward of one loss, and trades \
                 has an inner loss of its own)",
                "trades".to_owned(),
            ),
            (
                self.sampler.0.is_some() || train.objective == Objective::CrossEntropy,
                "train.objective",
                "cross-entropy (without a sampler no prediction diverges from the natural one)",
                "trades".to_owned(),
            ),
            (
                train.trades_beta.is_none_or(|beta| beta >= 0.0 && beta.is_finite()),
                "train.trades_beta",
                "a number of at least 0",
                train.trades_beta().to_string(),
            ),
            (
                train.trades_beta.is_none() || train.objective == Objective::Trades,
                "train.trades_beta",
                "nothing (only objective trades has a divergence to weigh)",
                train.trades_beta().to_string(),
            ),
            (
                self.sampler.0.is_some() || train.particles == 1,
                "train.particles",
                "1 (without a sampler a point has one particle, its natural example)",
                train.particles.to_string(),
            ),
            (
                self.validation_points() > 0 || !self.is_scored(),
                "data.validation_points",
                "at least 1, since a score on them is asked for (train.probe, train.select)",
                "0".to_owned(),
            ),
            (train.checkpoint_every != Some(0), "train.checkpoint_every", "at least 1", "0".to_owned()),
            (train.threads != Some(0), "train.threads", "at least 1", "0".to_owned()),
            (eval.batch >= 1, "eval.batch", "at least 1", eval.batch.to_string()),
            (eval.restarts >= 1, "eval.restarts", "at least 1", eval.restarts.to_string()),
        ];
        if let Some((_, key, expected, got)) = checks.into_iter().find(|(good, ..)| !good) {
            return Err(Error::new(format!("{key}: expected {expected}, got {got}")));
        }
        self.validate_schedule()?;
        self.validate_trace()?;
        match train.swa_from {
            Some(share) if !(0.0..1.0).contains(&share) => {
                return Err(Error::new(format!(
                    "train.swa_from: expected a share of the run from 0 to below 1, got {share}"
                )));
            }
            Some(_) if average > 0.0 => {
                return Err(Error::new(
                    "train.swa_from and train.average: weights are averaged equally or exponentially, not both",
                )
                .fix("leave one of the two away"));
            }
            _ => {}
        }
        match train.patience {
            Some(0) => {
                return Err(Error::new("train.patience: expected at least 1, got 0"));
            }
            Some(_) if !self.is_scored() => {
                return Err(Error::new("train.patience: there is no score to wait for")
                    .fix("set train.probe, an attack to score every epoch by, or train.select = \"best\""));
            }
            _ => {}
        }
        let device =
            device::parse(&train.device).map_err(|why| Error::new(format!("train.device: {why}")))?;
        if train.store_file.is_some() && device != tch::Device::Cpu {
            return Err(Error::new(format!(
                "train.store_file: particles in a file are for the CPU; train.device is {}",
                train.device
            )));
        }
        Ok(())
    }

    /// Refuses settings of the learning rate's schedule that cannot work, or that another
    /// schedule would use.
    fn validate_schedule(&self) -> Result<()> {
        let Train { schedule, ref milestones, step_factor, peak_at, warmup_epochs, .. } = self.train;
        let within = |share: f64| share > 0.0 && share < 1.0;
        let milestones = milestones.as_deref();
        let rising = |shares: &[f64]| {
            !shares.is_empty()
                && shares.iter().copied().all(within)
                && shares.is_sorted_by(|one, next| one < next)
        };
        let unused = |key: &str, shape: &str| {
            Err(Error::new(format!("train.{key}: only the {shape} schedule uses it"))
                .fix(format!("set train.schedule = \"{shape}\", or leave train.{key} away")))
        };
        if schedule != Shape::Step && milestones.is_some() {
            return unused("milestones", "step");
        }
        if schedule != Shape::Step && step_factor.is_some() {
            return unused("step_factor", "step");
        }
        if schedule != Shape::OneCycle && peak_at.is_some() {
            return unused("peak_at", "one-cycle");
        }
        if schedule == Shape::OneCycle && warmup_epochs > 0.0 {
            return Err(Error::new("train.warmup_epochs: the one-cycle schedule rises from 0 by itself")
                .fix("set train.peak_at, the share of the run over which it rises, instead"));
        }
        let expected = |key: &str, expected: &str, got: String| {
            Err(Error::new(format!("train.{key}: expected {expected}, got {got}")))
        };
        if let Some(shares) = milestones.filter(|shares| !rising(shares)) {
            let shares_of_the_run = "shares of the run above 0 and below 1, each above the one before it";
            return expected("milestones", shares_of_the_run, format!("{shares:?}"));
        }
        if let Some(factor) = step_factor.filter(|factor| !within(*factor)) {
            return expected("step_factor", "a number above 0 and below 1", factor.to_string());
        }
        if let Some(share) = peak_at.filter(|share| !within(*share)) {
            return expected("peak_at", "a share of the run above 0 and below 1", share.to_string());
        }
        Ok(())
    }

    fn validate_trace(&self) -> Result<()> {
        let Train { ref trace, trace_points, ref trace_at, .. } = self.train;
        let set = [("trace_points", trace_points.is_some()), ("trace_at", trace_at.is_some())];
        if let Some((key, _)) = set.into_iter().find(|(_, set)| *set && trace.is_none()) {
            return Err(Error::new(format!("train.{key}: there is nothing to trace"))
                .fix(format!("set train.trace, the attack to try, or leave train.{key} away")));
        }
        if trace_points == Some(0) {
            return Err(Error::new("train.trace_points: expected at least 1, got 0"));
        }
        let rising = |at: &[f64]| {
            at.first().is_some_and(|first| *first > 0.0)
                && at.is_sorted_by(|one, next| one < next)
                && at.iter().all(|passes| passes.is_finite())
        };
        match trace_at {
            Some(at) if !rising(at) => Err(Error::new(format!(
                "train.trace_at: expected passes per sample above 0, each above the one before it, got {at:?}"
            ))),
            _ => Ok(()),
        }
    }

    /// The learning rate at every update of a run of so many an epoch.
    pub fn schedule(&self, updates_per_epoch: usize) -> Schedule {
        let Train {
            epochs,
            learning_rate,
            schedule,
            ref milestones,
            step_factor,
            peak_at,
            warmup_epochs,
            ..
        } = self.train;
        Schedule {
            shape: schedule,
            peak: learning_rate,
            milestones: milestones.clone().unwrap_or_else(|| schedule::MILESTONES.into()),
            step_factor: step_factor.unwrap_or(schedule::STEP_FACTOR),
            peak_at: peak_at.unwrap_or(schedule::PEAK_AT),
            warmup_updates: (warmup_epochs * updates_per_epoch as f64).round() as u64,
            updates: (epochs * updates_per_epoch) as u64,
        }
    }

    /// Makes paths independent of the working directory, so that a run can be resumed and
    /// evaluated from anywhere.
    pub fn make_paths_absolute(&mut self) {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.data.folder = absolute(&self.data.folder);
        self.train.store_file = self.train.store_file.as_deref().map(absolute);
        if !data::NAMES.contains(&self.data.name.as_str()) {
            self.data.name = absolute(Path::new(&self.data.name)).display().to_string();
        }
        let Train { probe, trace, .. } = &mut self.train;
        let plugins = self.sampler.0.iter_mut().chain(probe).chain(trace).chain(&mut self.eval.attacks);
        plugins.chain(std::iter::once(&mut self.model)).for_each(PluginSpec::make_absolute);
    }

    /// How many of the last training points are held out.
    pub fn validation_points(&self) -> usize {
        self.data.validation_points.unwrap_or(if self.is_scored() { DEFAULT_VALIDATION_POINTS } else { 0 })
    }

    /// Whether a score on validation points is asked for.
    fn is_scored(&self) -> bool {
        self.train.probe.is_some() || self.train.select == Select::Best
    }

    /// The optimiser's settings.
    pub fn optimizer(&self) -> optimizer::Settings {
        let Train { optimizer: algorithm, momentum, weight_decay, .. } = self.train;
        optimizer::Settings { algorithm, momentum, weight_decay }
    }
}

/// Where plugins are named in the file.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Places {
    model: Option<toml::Spanned<toml::Value>>,
    sampler: Option<toml::Spanned<toml::Value>>,
    train: TrainPlaces,
    eval: EvalPlaces,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TrainPlaces {
    probe: Option<toml::Spanned<toml::Value>>,
    trace: Option<toml::Spanned<toml::Value>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EvalPlaces {
    attacks: Vec<toml::Spanned<toml::Value>>,
}

/// A value out of the text of a TOML file of this name.
///
/// # Errors
/// If it has an unknown key or a value of the wrong type (naming the line).
pub(crate) fn from_toml<T: DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    from_table(parse_toml(text, name)?, text, name)
}

/// The table that the text of a TOML file of this name is.
///
/// # Errors
/// If the text is no TOML (naming the line).
pub(crate) fn parse_toml<'a>(text: &'a str, name: &str) -> Result<toml::Spanned<DeTable<'a>>> {
    DeTable::parse(text).map_err(|error| refused(&error, text, name))
}

/// A value out of a table in the text of a TOML file of this name.
///
/// # Errors
/// If it has an unknown key or a value of the wrong type (naming the line).
pub(crate) fn from_table<T: DeserializeOwned>(
    table: toml::Spanned<DeTable>,
    text: &str,
    name: &str,
) -> Result<T> {
    T::deserialize(toml::Deserializer::from(table)).map_err(|error| refused(&error, text, name))
}

fn refused(error: &toml::de::Error, text: &str, name: &str) -> Error {
    let start = error.span().map(|span| span.start);
    let place = start.map_or(name.to_owned(), |start| origin(text, name, start));
    Error::new(format!("{place}: {}", error.message().replace('\n', "; ")))
        .note("line", start.map(|start| line_at(text, start)).unwrap_or_default())
}

/// A place in a file, for people: "demo.toml, line 3".
pub(crate) fn origin(text: &str, name: &str, offset: usize) -> String {
    format!("{name}, line {}", line_of(text, offset))
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

fn line_at(text: &str, offset: usize) -> String {
    text.lines().nth(line_of(text, offset) - 1).unwrap_or_default().trim().to_owned()
}

impl std::str::FromStr for SamplerChoice {
    type Err = String;

    fn from_str(written: &str) -> std::result::Result<Self, String> {
        match written {
            "none" => Ok(Self(None)),
            _ => written.parse().map(|spec| Self(Some(spec))),
        }
    }
}

impl Serialize for SamplerChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match &self.0 {
            Some(spec) => spec.serialize(serializer),
            None => serializer.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for SamplerChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Experiment> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("e.toml");
        std::fs::write(&path, text).expect("written");
        Experiment::read(&path)
    }

    fn first_line(text: &str) -> String {
        let error = read(text).expect_err("refused").to_string();
        let line = error.lines().next().unwrap_or_default();
        line.rsplit('/').next().unwrap_or_default().to_owned()
    }

    #[test]
    fn mistakes_are_refused_with_their_line() {
        assert!(
            first_line("[train]\nepochs = 3\nepoch = 3\n")
                .starts_with("e.toml, line 3: unknown field `epoch`")
        );
        assert!(
            first_line("[train]\nepochs = \"3\"\n").starts_with("e.toml, line 2: invalid type: string \"3\"")
        );
        assert!(
            first_line("\n\nsampler = \"a.so,x\"\n").starts_with("e.toml, line 3: expected option=value")
        );
        assert!(first_line("modell = \"cnn.so\"\n").starts_with("e.toml, line 1: unknown field `modell`"));
        assert!(first_line("[train\n").starts_with("e.toml, line 1: "));
        assert_eq!(first_line("[sweep]\n"), "e.toml: expected one experiment, got a sweep: it has a [sweep]");
    }

    #[test]
    fn plugins_remember_where_they_were_named() {
        let text = "sampler = \"a.so\"\n[eval]\nattacks = [\n\"b.so\",\n\"c.so\"]\n";
        let experiment = read(text).expect("valid");
        let line =
            |spec: &PluginSpec| spec.origin.clone().expect("an origin").rsplit(' ').next().map(str::to_owned);
        assert_eq!(experiment.sampler.0.as_ref().and_then(line).as_deref(), Some("1"));
        assert_eq!(line(&experiment.eval.attacks[1]).as_deref(), Some("5"));
    }

    #[test]
    fn every_experiment_file_is_valid_and_the_demo_is_the_recipe() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let files = std::fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path());
        let files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
        assert!(files.len() >= 2);
        for file in files {
            Experiment::read(&file).and_then(|experiment| experiment.validate()).expect("valid");
        }
        let demo = Experiment::read(&folder.join("mnist-demo.toml")).expect("valid");
        let (mut demo, mut recipe) = (serde_json::json!(demo), serde_json::json!(Experiment::recipe()));
        for experiment in [&mut demo, &mut recipe] {
            // The demo evaluates fewer points, and spells the sampler's defaults out.
            experiment["eval"]["points"] = serde_json::Value::Null;
            experiment["sampler"] = serde_json::Value::Null;
        }
        assert_eq!(demo, recipe);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let refusal = |change: &dyn Fn(&mut Experiment)| {
            let mut experiment = Experiment::default();
            change(&mut experiment);
            experiment.validate().expect_err("refused").to_string()
        };
        assert_eq!(
            refusal(&|e| e.threat.epsilon = -0.1),
            "threat.epsilon: expected a number of at least 0, got -0.1"
        );
        assert_eq!(
            refusal(&|e| e.train.momentum = 1.0),
            "train.momentum: expected a number from 0 to below 1, got 1"
        );
        assert_eq!(
            refusal(&|e| e.train.learning_rate = f64::NAN),
            "train.learning_rate: expected a number above 0, got NaN"
        );
        assert!(
            refusal(&|e| e.train.device = "gpu".into()).contains("expected cpu, cuda or cuda:N, got `gpu`")
        );
        assert!(Experiment::default().validate().is_ok());
    }

    #[test]
    fn the_samplers_gradient_is_taken_in_the_mode_that_the_passes_allow() {
        let mut train = Train::default();
        assert_eq!(train.sampler_gradient(), ModelMode::Eval);
        train.sampler_gradient = Some(ModelMode::Train);
        assert_eq!(train.sampler_gradient(), ModelMode::Train);
        train = Train { mode: Mode::Fused, ..Train::default() };
        assert_eq!(train.sampler_gradient(), ModelMode::Train);
        train.sampler_gradient = Some(ModelMode::Eval);
        let refused = Experiment { train, ..Experiment::default() }.validate().expect_err("refused");
        assert!(refused.to_string().starts_with("train.sampler_gradient: expected train (in mode fused"));
        assert!(read("[train]\nsampler_gradient = \"eval\"\n").is_ok());
    }

    #[test]
    fn what_another_schedule_would_use_is_refused() {
        let refusal = |written: &str| {
            let experiment = read(&format!("[train]\n{written}\n")).expect("TOML");
            experiment
                .validate()
                .expect_err("refused")
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let rising =
            "train.milestones: expected shares of the run above 0 and below 1, each above the one before it";
        for (written, expected) in [
            ("milestones = [0.5]", "train.milestones: only the step schedule uses it".to_owned()),
            (
                "schedule = \"one-cycle\"\nstep_factor = 0.5",
                "train.step_factor: only the step schedule uses it".to_owned(),
            ),
            (
                "schedule = \"step\"\npeak_at = 0.5",
                "train.peak_at: only the one-cycle schedule uses it".to_owned(),
            ),
            (
                "schedule = \"one-cycle\"\nwarmup_epochs = 1",
                "train.warmup_epochs: the one-cycle schedule rises from 0 by itself".to_owned(),
            ),
            (
                "schedule = \"one-cycle\"\npeak_at = 1.0",
                "train.peak_at: expected a share of the run above 0 and below 1, got 1".to_owned(),
            ),
            (
                "schedule = \"step\"\nstep_factor = nan",
                "train.step_factor: expected a number above 0 and below 1, got NaN".to_owned(),
            ),
            ("schedule = \"step\"\nmilestones = []", format!("{rising}, got []")),
            ("schedule = \"step\"\nmilestones = [0.0, 0.5]", format!("{rising}, got [0.0, 0.5]")),
            ("schedule = \"step\"\nmilestones = [0.5, 0.5]", format!("{rising}, got [0.5, 0.5]")),
            ("schedule = \"step\"\nmilestones = [0.8, 0.5]", format!("{rising}, got [0.8, 0.5]")),
        ] {
            assert_eq!(refusal(written), expected);
        }
    }
}
