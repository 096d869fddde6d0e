//! A whole experiment: its keys and their defaults.

use super::options::*;
use super::{Algorithm, Format, Mode, ModelMode, Objective, Select, Shape, Start};
use crate::data;
use crate::plugin::PluginSpec;
use crate::torch::precision::Precision;
use crate::torch::random::MOST_STEPS;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use plugin_api::{Norm, ThreatModel};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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

/// What the authors of TRADES take.
const DEFAULT_TRADES_BETA: f64 = 6.0;

/// Shares of the run after which the step schedule lowers the learning rate, unless told
/// otherwise.
pub const MILESTONES: [f64; 2] = [0.5, 0.75];

/// What the step schedule multiplies the learning rate by at each milestone, unless told
/// otherwise.
pub const STEP_FACTOR: f64 = 0.1;

/// Share of the run at which the one-cycle schedule is at its peak, unless told otherwise: that
/// of Wong et al. (2020) on MNIST.
pub const PEAK_AT: f64 = 0.4;

const MOST_EPOCHS: usize = 1_000_000;

/// TOML has no larger whole number.
const LARGEST_SEED: u64 = i64::MAX as u64;

/// Validation points held out where a score is asked for and no number is given.
const DEFAULT_VALIDATION_POINTS: usize = 5000;

options! {
    /// The training loop.
    "train": Train, TrainFlags {
        /// How updates of the weights and of the particles share passes
        mode: Mode = Mode::Faithful;
        /// Times that a minibatch is used in a row before its particles go back (mode fused)
        replay (value_name = "N"): usize = 1, |n| (1..=MOST_STEPS).contains(n) => "1 to 65534";
        /// What the weights descend on and the sampler climbs
        objective: Objective = Objective::CrossEntropy;
        /// Weight of the divergence in objective trades [default: 6]
        trades_beta (value_name = "WEIGHT"): Option<f64> = None, at_least_0 => "a number of at least 0";
        /// Where chains begin
        start: Start = Start::Sampler;
        /// Mode of the model while the sampler's gradient is taken [default: eval in mode faithful;
        /// mode fused knows train only]
        sampler_gradient: Option<ModelMode> = None;
        /// Precision in which the network computes while training; evaluation and probes are f32 in any
        precision: Precision = Precision::F32;
        /// Number of times that training goes through the training points
        epochs (value_name = "N"): usize = 5,
            |n| (1..=MOST_EPOCHS).contains(n) => "at least 1 and at most 1000000";
        /// Pad every image by N pixels of zeros and cut a window of its own size at a random place, at
        /// every visit
        crop (value_name = "N"): usize = 0;
        /// Mirror every second image left to right, at random, at every visit
        flip (value_name = "true|false", num_args = 0..=1, default_missing_value = "true"): bool = false;
        /// Points per update
        batch (value_name = "N"): usize = 100,
            |n| (1..=i32::MAX as usize).contains(n) => "at least 1 and at most 2147483647";
        /// Particles per point (K)
        particles (value_name = "N"): usize = 1,
            |n| (1..=usize::from(u16::MAX)).contains(n) => "1 to 65535";
        /// How particles are stored
        store: Format = Format::F32;
        /// Keep particles in this file, mapped into memory (CPU only)
        store_file (value_name = "FILE"): Option<PathBuf> = None;
        /// Optimiser of the weights
        optimizer: Algorithm = Algorithm::Sgd;
        /// Its learning rate
        learning_rate (value_name = "RATE"): f64 = 0.02, above_0 => "a number above 0";
        /// Its momentum (`sgd` and `sign-sgd`)
        momentum (value_name = "SHARE"): f64 = 0.9, from_0_to_below_1 => "a number from 0 to below 1";
        /// Its weight decay
        weight_decay (value_name = "RATE"): f64 = 0.0, at_least_0 => "a number of at least 0";
        /// How the learning rate changes
        schedule: Shape = Shape::Cosine;
        /// Shares of the run at which the step schedule falls [default: 0.5,0.75]
        milestones (value_name = "SHARE,...", value_parser = numbers): Option<Vec<f64>> = None,
            |shares| rising(shares) && shares.iter().all(between_0_and_1) =>
            "shares of the run above 0 and below 1, each above the one before it";
        /// Factor by which the step schedule multiplies the learning rate there [default: 0.1]
        step_factor (value_name = "FACTOR"): Option<f64> = None,
            between_0_and_1 => "a number above 0 and below 1";
        /// Share of the run at which the one-cycle schedule is at its peak [default: 0.4]
        peak_at (value_name = "SHARE"): Option<f64> = None,
            between_0_and_1 => "a share of the run above 0 and below 1";
        /// Epochs over which the learning rate rises from 0; may be a fraction
        warmup_epochs (value_name = "N"): f64 = 0.0;
        /// Radius of the ball that is trained in, in epsilons of the threat model
        epsilon_scale (value_name = "FACTOR"): f64 = 1.0, above_0 => "a number above 0";
        /// Epochs over which that radius rises from 0 (epsilon ramp); may be a fraction
        warmup_epsilon (value_name = "N"): f64 = 0.0;
        /// Evaluate an exponential moving average of the weights, of which every step keeps this share;
        /// 0 evaluates the weights themselves
        average (value_name = "SHARE"): f64 = 0.0, from_0_to_below_1 => "a share from 0 to below 1";
        /// Evaluate the equal mean of the weights from this share of the run on (stochastic weight
        /// averaging)
        swa_from (value_name = "SHARE"): Option<f64> = None,
            from_0_to_below_1 => "a share of the run from 0 to below 1";
        /// Attack or sampler plugin to try on the validation points after every epoch
        probe (value_name = "PLUGIN"): Option<PluginSpec> = None;
        /// Attack or sampler plugin to try on test points during training
        trace (value_name = "PLUGIN"): Option<PluginSpec> = None;
        /// Number of those test points, the same as those of `host eval --points` [default: 1000]
        trace_points (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
        /// Passes per sample after which the trace is measured [default: 1, 2, 5 times the powers of ten
        /// from one update on, and the end]
        trace_at (value_name = "PASSES,...", value_parser = numbers): Option<Vec<f64>> = None,
            |at| rising(at) => "passes per sample above 0, each above the one before it";
        /// Which weights are evaluated in the end: those of the last epoch, or those that scored best on
        /// the validation points
        select: Select = Select::Last;
        /// End the run once N epochs in a row have not scored better on the validation points
        patience (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
        /// Seed of all randomness
        seed (value_name = "N", value_parser = clap::value_parser!(u64).range(..=LARGEST_SEED)): u64 = 0;
        /// Write event files for TensorBoard into the run's folder
        tensorboard (value_name = "true|false", num_args = 0..=1, default_missing_value = "true"):
            bool = false;
        /// Save a checkpoint every N updates, besides the one after each epoch
        checkpoint_every (value_name = "N"): Option<u64> = None, |n| *n >= 1 => "at least 1";
        /// Device: cpu, cuda or cuda:N
        device (value_name = "DEVICE"): String = "cpu".to_owned();
        /// Threads of libtorch on the CPU [default: all cores]
        threads (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
    }
}

/// Flags that choose the model and the sampler.
#[derive(Debug, Default, Args, Serialize)]
pub struct PluginFlags {
    /// Model plugin
    #[arg(long, value_name = "PLUGIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<PluginSpec>,
    /// Sampler plugin, or `none` for ordinary training
    #[arg(long, value_name = "PLUGIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sampler: Option<SamplerChoice>,
}

/// Flags that override the options of `data`.
#[derive(Debug, Default, Args, Serialize)]
pub struct DataFlags {
    /// Data set: a name (see `host data list`), or a folder of IDX files, CIFAR-10's binary version or
    /// images in train/CLASS and test/CLASS
    #[arg(id = "data", long = "data", value_name = "NAME|FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Train on the first N points only
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    train_points: Option<usize>,
    /// Hold out the last N training points for validation [default: 5000 with --probe or --select best,
    /// else none]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_points: Option<usize>,
}

/// Flags that override the threat model.
#[derive(Debug, Default, Args, Serialize)]
pub struct ThreatFlags {
    /// Norm of the threat model
    #[arg(long, value_parser = PossibleValuesParser::new(Norm::ALL.map(Norm::name)).try_map(|name| name.parse::<Norm>()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    norm: Option<Norm>,
    /// Radius of the threat model, in units of the range of pixels
    #[arg(long, value_name = "RADIUS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f64>,
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

fn known(spec: &str) -> PluginSpec {
    spec.parse().unwrap_or_else(|error| unreachable!("a default plugin is well written: {error}"))
}

impl Default for Data {
    fn default() -> Self {
        let folder = std::env::var_os("DRO_DATA").unwrap_or_else(|| "data".into());
        Self { name: "mnist".to_owned(), folder: folder.into(), train_points: None, validation_points: None }
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

    /// Makes paths independent of the working directory, so that a run can be resumed and
    /// evaluated from anywhere.
    pub fn make_paths_absolute(&mut self) {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.data.folder = absolute(&self.data.folder);
        self.train.store_file = self.train.store_file.as_deref().map(absolute);
        if !data::NAMES.contains(&self.data.name.as_str()) {
            self.data.name = absolute(Path::new(&self.data.name)).display().to_string();
        }
        self.plugins_mut().into_iter().for_each(|(_, spec)| spec.make_absolute());
    }

    /// How many of the last training points are held out.
    pub fn validation_points(&self) -> usize {
        self.data.validation_points.unwrap_or(if self.is_scored() { DEFAULT_VALIDATION_POINTS } else { 0 })
    }

    /// Whether a score on validation points is asked for.
    pub(super) fn is_scored(&self) -> bool {
        self.train.probe.is_some() || self.train.select == Select::Best
    }
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
