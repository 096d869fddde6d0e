//! An experiment: its keys and their defaults.

use super::options::*;
use super::{Algorithm, Format, Mode, ModelMode, Select, Shape, Start};
use crate::data::DataSpec;
use crate::plugin::{PluginSpec, Threat};
use crate::torch::precision::Precision;
use crate::torch::random::MOST_STEPS;
use crate::util::number::{Real, Reals};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use plugin_api::Norm;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tch::Device;

/// Everything that determines the result of a run, except the files of plugins and data.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// The classifier: a model plugin.
    pub model: PluginSpec,
    /// The training adversary: a sampler plugin, or `none` for ordinary training.
    pub sampler: SamplerChoice,
    /// The data set.
    pub data: Data,
    /// The threat model of the adversary.
    pub threat: Threat,
    /// The training loop.
    pub train: Train,
    /// The defaults of `host eval`.
    pub eval: Eval,
}

/// A sampler, or none.
#[derive(Debug, Clone)]
pub struct SamplerChoice(pub Option<PluginSpec>);

/// The data set and its split.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// A name from `host data list`, a folder, an archive of NumPy arrays (`.npz`) or a Python file
    /// (`.py:NAME`), with options (`,option=value`).
    pub name: String,
    /// The folder with a subfolder for each named data set. Default: the environment variable
    /// DRO_DATA if set, otherwise `data`.
    pub folder: PathBuf,
    /// Train on the first N points only. Default: all points that are not held out.
    pub train_points: Option<usize>,
    /// Hold out the last N training points for validation. Default: 5,000 if validation points are
    /// scored (`train.probe`, `train.select`), otherwise none.
    pub validation_points: Option<usize>,
}

/// The plugin of the default objective.
const CROSS_ENTROPY: &str = "cross_entropy.so";

/// The value of `train.store_file` that stands for a file in the run's folder.
pub(crate) const IN_RUN: &str = "run";

/// The value of `train.init` that stands for the weights that the model plugin brings.
pub(crate) const OF_MODEL: &str = "model";

/// Default shares of the run at which the step schedule lowers the learning rate.
pub const MILESTONES: [f64; 2] = [0.5, 0.75];

/// Default factor by which the step schedule multiplies the learning rate at each milestone.
pub const STEP_FACTOR: f64 = 0.1;

/// Default share of the run at which the one-cycle schedule has its peak: the value of Wong et al.
/// (2020) on MNIST.
pub const PEAK_AT: f64 = 0.4;

const MOST_EPOCHS: usize = 1_000_000;

/// The largest integer in TOML.
const LARGEST_SEED: u64 = i64::MAX as u64;

/// Default number of validation points if they are scored.
const DEFAULT_VALIDATION_POINTS: usize = 5000;

options! {
    /// The training loop.
    "train": Train, TrainFlags {
        /// How updates of the weights and of the particles share passes
        mode: Mode = Mode::Faithful;
        /// Number of times that each minibatch is used in a row (mode fused)
        replay (value_name = "N"): usize = 1, |n| (1..=MOST_STEPS).contains(n) => "1 to 65534";
        /// Objective plugin: the losses that the weights minimise and the sampler maximises
        objective (value_name = "PLUGIN"): PluginSpec = default_plugin(CROSS_ENTROPY);
        /// Where chains begin
        start: Start = Start::Sampler;
        /// Mode of the model while the sampler's gradient is taken [default: eval in mode faithful;
        /// mode fused always uses train]
        sampler_gradient: Option<ModelMode> = None;
        /// Precision of the network's computation in training; evaluation and probes always use f32
        precision: Precision = Precision::F32;
        /// Number of times that training goes through the training points; 0, with --init, makes a
        /// run of the given weights
        epochs (value_name = "N"): usize = 5, |n| *n <= MOST_EPOCHS => "at most 1000000";
        /// Begin with these weights: those for evaluation of a run, or those of a file (safetensors or
        /// a PyTorch state dict); `model`: those that the model plugin brings [default: drawn from the
        /// seed]
        init (value_name = "RUN|FILE"): Option<PathBuf> = None;
        /// Pad every image by N pixels of zeros and cut a window of its own size at a random place,
        /// at every visit
        crop (value_name = "N"): usize = 0;
        /// Cut a window with a share of the area from LOW to HIGH and an aspect ratio from 3/4 to 4/3
        /// at a random place and resize it to the size of the image, at every visit
        scale (value_name = "LOW,HIGH"): Option<Vec<f64>> = None,
            |shares| matches!(shares[..], [low, high] if 0.0 < low && low <= high && high <= 1.0) =>
            "two shares of the area, LOW,HIGH: above 0, at most 1, the lower first";
        /// Mirror each image left to right with probability 1/2, at every visit
        flip (value_name = "true|false", num_args = 0..=1, default_missing_value = "true"): bool = false;
        /// Points per update
        batch (value_name = "N"): usize = 100,
            |n| (1..=i32::MAX as usize).contains(n) => "at least 1 and at most 2147483647";
        /// Deal the training points out to N shards: each has an order of its own, and every minibatch
        /// takes the same share of each. Up to N processes can then train together, and the network
        /// does not depend on their number
        shards (value_name = "N"): usize = 1, |n| *n >= 1 => "at least 1";
        /// Particles per point (K)
        particles (value_name = "N"): usize = 1,
            |n| (1..=usize::from(u16::MAX)).contains(n) => "1 to 65535";
        /// How particles are stored
        store: Format = Format::F32;
        /// Store particles in this file, mapped into memory (CPU only); without a value, or `run`: in
        /// the run's folder
        store_file (value_name = "FILE", num_args = 0..=1, default_missing_value = "run"):
            Option<PathBuf> = None;
        /// Optimiser of the weights
        optimizer: Algorithm = Algorithm::Sgd;
        /// Its learning rate
        learning_rate (value_name = "RATE"): f64 = 0.02, above_0 => "a finite number above 0";
        /// Its momentum (`sgd` and `sign-sgd`)
        momentum (value_name = "SHARE"): f64 = 0.9, from_0_to_below_1 => "a number from 0 to below 1";
        /// Its weight decay
        weight_decay (value_name = "RATE"): f64 = 0.0, at_least_0 => "a number of at least 0";
        /// Shorten the gradient of the weights to at most this length (Euclidean, of all weights
        /// together)
        clip_gradient (value_name = "LENGTH"): Option<f64> = None,
            above_0 => "a finite number above 0";
        /// Adversarial weight perturbation (Wu et al. 2020): descend at the weights that are worst
        /// within this share of the length of each layer's weights (mode faithful; twice the passes of
        /// the weights)
        awp (value_name = "SHARE"): Option<f64> = None,
            |share| *share > 0.0 && *share <= 1.0 => "a number above 0 and at most 1";
        /// How the learning rate changes
        schedule: Shape = Shape::Cosine;
        /// Shares of the run at which the step schedule falls [default: 0.5,0.75]
        milestones (value_name = "SHARE,..."): Option<Vec<f64>> = None,
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
        /// Radius of the ball in training, as a multiple of the epsilon of the threat model
        epsilon_scale (value_name = "FACTOR"): f64 = 1.0, above_0 => "a finite number above 0";
        /// Epochs over which that radius rises from 0 (epsilon ramp); may be a fraction
        warmup_epsilon (value_name = "N"): f64 = 0.0;
        /// Train without a ball: particles may be anywhere in the domain, and the objective has to keep
        /// them near (wrm.so)
        domain_only (value_name = "true|false", num_args = 0..=1, default_missing_value = "true"):
            bool = false;
        /// Evaluate an exponential moving average of the weights, of which every step keeps this
        /// share; 0 evaluates the weights themselves
        average (value_name = "SHARE"): f64 = 0.0, from_0_to_below_1 => "a share from 0 to below 1";
        /// Evaluate the equal mean of the weights from this share of the run on (stochastic weight
        /// averaging)
        swa_from (value_name = "SHARE"): Option<f64> = None,
            from_0_to_below_1 => "a share of the run from 0 to below 1";
        /// Attack or sampler plugin to run on the validation points after every epoch
        probe (value_name = "PLUGIN"): Option<PluginSpec> = None;
        /// Attack or sampler plugin to run on test points during training
        trace (value_name = "PLUGIN"): Option<PluginSpec> = None;
        /// Number of those test points, the same as those of `host eval --points` [default: 1000]
        trace_points (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
        /// Passes per sample after which the trace is measured [default: 1, 2, 5 times the powers
        /// of ten from one update on, and the end]
        trace_at (value_name = "PASSES,..."): Option<Vec<f64>> = None,
            |at| rising(at) => "passes per sample above 0, each above the one before it";
        /// Which weights are evaluated in the end: those of the last epoch, or those that scored
        /// best on the validation points
        select: Select = Select::Last;
        /// End the run once N epochs in a row have not scored better on the validation points
        patience (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
        /// Compare the stored particles with natural examples and uniform draws every N epochs, in
        /// metrics.jsonl (in linf, of a sampler with a store); `host diagnose` measures more
        diagnose_every (value_name = "N"): Option<usize> = None, |n| *n >= 1 => "at least 1";
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
    /// Data set: a name (see `host data list`), a folder in one of the formats of docs/training.md, a
    /// file of NumPy arrays (.npz), or a Python file with data sets of PyTorch (FILE.py:NAME); with
    /// options: NAME[,option=value]…
    #[arg(id = "data", long = "data", value_name = "NAME|PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Train on the first N points only
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    train_points: Option<usize>,
    /// Hold out the last N training points for validation [default: 5000 with --probe or --select
    /// best, else none]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_points: Option<usize>,
}

/// The parser of the flags that take a norm.
pub(crate) fn norm_parser() -> impl TypedValueParser<Value = Norm> {
    PossibleValuesParser::new(Norm::ALL.map(Norm::name)).try_map(|name| name.parse::<Norm>())
}

/// Flags that override the threat model.
#[derive(Debug, Default, Args, Serialize)]
pub struct ThreatFlags {
    /// Norm of the threat model
    #[arg(long, value_parser = norm_parser())]
    #[serde(skip_serializing_if = "Option::is_none")]
    norm: Option<Norm>,
    /// Radius of the threat model, in units of the range of pixels; may be a fraction: 8/255
    #[arg(long, value_name = "RADIUS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<Real>,
    /// Radius of each channel, as a multiple of epsilon: 0 to 1, the largest 1 [default: 1 for all]
    #[arg(long, value_name = "SCALE,...")]
    #[serde(skip_serializing_if = "Option::is_none")]
    channel_scale: Option<Reals>,
}

/// What `host eval` does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Eval {
    /// The attacks: attack or sampler plugins. Each is evaluated separately, on all points.
    pub attacks: Vec<PluginSpec>,
    /// Number of points of a random subset of the test set. Default: the whole set.
    pub points: Option<usize>,
    /// Number of runs of each attack with new random numbers; the worst case counts.
    pub restarts: u16,
    /// Examples per forward pass. Default: 32 on a CPU, 250 on a GPU.
    pub batch: Option<usize>,
}

impl Default for Experiment {
    fn default() -> Self {
        Self {
            model: default_plugin("cnn.so,arch=B"),
            sampler: SamplerChoice(Some(default_plugin("langevin.so"))),
            data: Data::default(),
            threat: Threat::default(),
            train: Train::default(),
            eval: Eval::default(),
        }
    }
}

fn default_plugin(spec: &str) -> PluginSpec {
    spec.parse().unwrap_or_else(|error| unreachable!("the spec of a default plugin is valid: {error}"))
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
        Self { attacks: attacks.map(default_plugin).into(), points: None, restarts: 1, batch: None }
    }
}

/// Default number of examples per forward pass on a CPU: the fewest that are as fast as many. A stop
/// loses the batch that is under way.
const BATCH_ON_CPU: usize = 32;

/// The same on a GPU, which needs many to be busy.
const BATCH_ON_GPU: usize = 250;

impl Eval {
    /// Examples per forward pass on this device.
    pub fn batch_on(&self, device: Device) -> usize {
        self.batch.unwrap_or(if device == Device::Cpu { BATCH_ON_CPU } else { BATCH_ON_GPU })
    }
}

impl Train {
    /// Whether the objective is the plain cross-entropy at the particles, for both problems.
    pub fn is_cross_entropy(&self) -> bool {
        let Self { objective, .. } = self;
        objective.is_called("cross_entropy") && objective.has_no_options()
    }

    /// The mode of the model while the sampler's gradient is taken.
    pub fn sampler_gradient(&self) -> ModelMode {
        match self.mode {
            Mode::Faithful => self.sampler_gradient.unwrap_or(ModelMode::Eval),
            Mode::Fused => ModelMode::Train,
        }
    }
}

impl Experiment {
    /// The threat model of the training particles. Its radius is scaled by `train.epsilon_scale`. With
    /// `train.domain_only` it is the whole domain, which is a ball in linf.
    pub fn training_threat(&self) -> Threat {
        let Threat { epsilon, domain: (low, high), .. } = self.threat;
        if self.train.domain_only {
            return Threat { norm: Norm::Linf, epsilon: high - low, ..self.threat.clone() };
        }
        Threat { epsilon: epsilon * self.train.epsilon_scale, ..self.threat.clone() }
    }

    /// Makes paths independent of the working directory, so that a run can be resumed and
    /// evaluated from anywhere.
    pub fn make_paths_absolute(&mut self) {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        self.data.folder = absolute(&self.data.folder);
        let in_run = Path::new(IN_RUN);
        self.train.store_file =
            self.train.store_file.take().map(|file| if file == in_run { file } else { absolute(&file) });
        let is_path = |init: &Path| init != Path::new(OF_MODEL);
        self.train.init =
            self.train.init.take().map(|init| if is_path(&init) { absolute(&init) } else { init });
        // What cannot be read is refused when the data are loaded.
        if let Ok(spec) = DataSpec::parse(&self.data.name) {
            self.data.name = spec.absolute().to_string();
        }
        self.plugins_mut().into_iter().for_each(|(_, spec)| spec.make_absolute());
    }

    /// Number of training points that are held out for validation.
    pub fn validation_points(&self) -> usize {
        self.data.validation_points.unwrap_or(if self.is_scored() { DEFAULT_VALIDATION_POINTS } else { 0 })
    }

    /// Whether validation points are scored.
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
