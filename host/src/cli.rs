//! The command line.

use crate::console::Style;
use crate::experiment::{Experiment, Mode, ModelMode, SamplerChoice, Select, Start};
use crate::objective::Objective;
use crate::optimizer::Algorithm;
use crate::plugin::PluginSpec;
use crate::precision::Precision;
use crate::store::Format;
use crate::sweep::Task;
use crate::{Result, schedule};
use clap::{Args, Parser, Subcommand, ValueEnum};
use plugin_api::LIBTORCH;
use plugin_api::manifest::CONTRACT;
use std::path::PathBuf;
use std::sync::LazyLock;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (contract {CONTRACT}, libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")));

const ABOUT: &str = "Distributionally robust training with plugins";

const LONG_ABOUT: &str = "\
Trains classifiers against adversarial distributions, and tells what they withstand.

Models, samplers and attacks are plugins: shared libraries, loaded at run time. A plugin is
written FILE[,option=value]… everywhere, for example

    host train --model cnn.so,arch=B --sampler langevin.so,step_size=0.2,noise=0.2
    host eval runs/demo --attack pgd.so,steps=40 --attack apgd.so
    host inspect langevin.so

FILE may leave out `lib` in front. It is looked for in the working directory, next to this
program, and in the folders of DRO_PLUGIN_PATH; a FILE with a folder in it is taken as it is.
Every sampler has an option `steps`, and serves as an attack too. If a library holds several
plugins of a kind, `plugin=NAME` chooses one.

A plugin is native code and runs with your rights: load only what you trust.";

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(name = "host", version = VERSION.as_str(), about = ABOUT, long_about = LONG_ABOUT)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a classifier against a sampler's adversarial distribution
    #[command(allow_negative_numbers = true)]
    Train(Box<TrainArguments>),
    /// Measure what a trained classifier withstands
    Eval(EvalArguments),
    /// Train and evaluate many experiments from one file
    Sweep(SweepArguments),
    /// Make a page, tables and figures of runs and sweeps
    Report(ReportArguments),
    /// Show what a plugin library holds: its plugins, their options, defaults and help
    Inspect(InspectArguments),
    /// Judge every plugin of a library by the checks that all plugins must pass
    Conform(ConformArguments),
    /// List the plugins that are found without a folder, and whether they fit this host
    Plugins(PluginsArguments),
    /// Write the crate of a new plugin, ready to build
    New(NewArguments),
    /// Fetch data sets, or list those that are known
    #[command(
        subcommand,
        after_help = "Besides these, --data takes a folder of one's own: IDX files named as MNIST's, the binary version
of CIFAR-10, or PNG and JPEG files of one size in train/CLASS and test/CLASS (or val/CLASS)."
    )]
    Data(DataCommand),
}

/// `host train`
#[derive(Debug, Args)]
#[command(
    after_help = "By itself, host train does what examples/mnist-demo.toml says: MNIST, architecture B, linf 0.3,
mode fused with 5 replays and Langevin in a ball of 1.2 epsilon, two epochs. With --sampler, --mode, --objective or
--sampler-gradient, what is not said is that of Algorithm 1 in five epochs
(examples/mnist-algorithm-1.toml); so it is in a config file. Stopped with Ctrl-C, a run saves a
checkpoint and goes on later with --resume, bit for bit as if it had never been stopped."
)]
pub struct TrainArguments {
    /// Experiment file (TOML); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for the run [default: runs/ and the time]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder, from its last checkpoint
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "out", "ExperimentFlags"])]
    pub resume: Option<PathBuf>,
    /// Where named data sets lie [default: DRO_DATA if set, else data; with --resume, as recorded]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// With --resume: go on even if a plugin or the data are not those recorded
    #[arg(long, requires = "resume")]
    pub allow_changed: bool,
    /// What the run is to be
    #[command(flatten)]
    pub experiment: ExperimentFlags,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags that override an experiment file.
#[derive(Debug, Args)]
#[group(id = "ExperimentFlags", multiple = true)]
pub struct ExperimentFlags {
    /// Model plugin
    #[arg(long, value_name = "PLUGIN")]
    model: Option<PluginSpec>,
    /// Sampler plugin, or `none` for ordinary training
    #[arg(long, value_name = "PLUGIN")]
    sampler: Option<SamplerChoice>,
    /// Data set: a name (see `host data list`), or a folder of IDX files, CIFAR-10's binary
    /// version or images in train/CLASS and test/CLASS
    #[arg(long, value_name = "NAME|FOLDER")]
    data: Option<String>,
    /// Train on the first N points only
    #[arg(long, value_name = "N")]
    train_points: Option<usize>,
    /// Hold out the last N training points for validation [default: 5000 with --probe or
    /// --select best, else none]
    #[arg(long, value_name = "N")]
    validation_points: Option<usize>,
    /// Norm of the threat model
    #[arg(long, value_parser = ["linf", "l2"])]
    norm: Option<String>,
    /// Radius of the threat model, in units of the pixels' range
    #[arg(long, value_name = "RADIUS")]
    epsilon: Option<f64>,
    /// How theta's and the particles' updates share passes
    #[arg(long)]
    mode: Option<Mode>,
    /// Times that a minibatch is used in a row before its particles go back (mode fused)
    #[arg(long, value_name = "N")]
    replay: Option<usize>,
    /// What the weights descend on, and with it what the sampler climbs
    #[arg(long)]
    objective: Option<Objective>,
    /// Weight of the divergence in objective trades
    #[arg(long, value_name = "WEIGHT")]
    trades_beta: Option<f64>,
    /// Where chains begin
    #[arg(long)]
    start: Option<Start>,
    /// Mode of the model while the sampler's gradient is taken [default: eval in mode faithful,
    /// train in mode fused, which knows no other]
    #[arg(long)]
    sampler_gradient: Option<ModelMode>,
    /// In which precision the network computes while training
    #[arg(long)]
    precision: Option<Precision>,
    /// Passes over the training points
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Crop every image at random after padding it by N pixels of zeros
    #[arg(long, value_name = "N")]
    crop: Option<usize>,
    /// Mirror every second image left to right, at random
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    flip: Option<bool>,
    /// Points per update
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Particles per point (K)
    #[arg(long, value_name = "N")]
    particles: Option<usize>,
    /// How particles are stored
    #[arg(long)]
    store: Option<Format>,
    /// Keep particles in this file, mapped into memory
    #[arg(long, value_name = "FILE")]
    store_file: Option<PathBuf>,
    /// Optimiser of the weights
    #[arg(long)]
    optimizer: Option<Algorithm>,
    /// Its learning rate
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Its momentum (`sgd` and `sign-sgd`)
    #[arg(long, value_name = "SHARE")]
    momentum: Option<f64>,
    /// Its weight decay
    #[arg(long, value_name = "RATE")]
    weight_decay: Option<f64>,
    /// How the learning rate changes
    #[arg(long)]
    schedule: Option<schedule::Shape>,
    /// Shares of the run at which the step schedule falls [default: 0.5,0.75]
    #[arg(long, value_name = "SHARE,...", value_delimiter = ',')]
    milestones: Option<Vec<f64>>,
    /// What the step schedule multiplies the learning rate by there [default: 0.1]
    #[arg(long, value_name = "FACTOR")]
    step_factor: Option<f64>,
    /// Share of the run at which the one-cycle schedule is at its peak [default: 0.4]
    #[arg(long, value_name = "SHARE")]
    peak_at: Option<f64>,
    /// Epochs over which the learning rate rises from 0
    #[arg(long, value_name = "N")]
    warmup_epochs: Option<f64>,
    /// Radius of the ball that is trained in, in epsilons of the threat model
    #[arg(long, value_name = "FACTOR")]
    epsilon_scale: Option<f64>,
    /// Epochs over which that radius rises from 0
    #[arg(long, value_name = "N")]
    warmup_epsilon: Option<f64>,
    /// Evaluate an exponential moving average of the weights, of which every step keeps this
    /// share
    #[arg(long, value_name = "SHARE")]
    average: Option<f64>,
    /// Evaluate the equal mean of the weights from this share of the run on (stochastic weight
    /// averaging)
    #[arg(long, value_name = "SHARE")]
    swa_from: Option<f64>,
    /// Attack or sampler plugin to try on the validation points after every epoch
    #[arg(long, value_name = "PLUGIN")]
    probe: Option<PluginSpec>,
    /// Attack or sampler plugin to try on test points while training goes on
    #[arg(long, value_name = "PLUGIN")]
    trace: Option<PluginSpec>,
    /// How many test points, those of `host eval --points` [default: 1000]
    #[arg(long, value_name = "N")]
    trace_points: Option<usize>,
    /// After how many passes per sample [default: 1, 2, 5 times the powers of ten from one update's on, and the end]
    #[arg(long, value_name = "PASSES,...", value_delimiter = ',')]
    trace_at: Option<Vec<f64>>,
    /// Which weights are evaluated in the end: the last epoch's, or those that scored best
    /// on the validation points
    #[arg(long)]
    select: Option<Select>,
    /// End the run once N epochs in a row have not scored better on the validation points
    #[arg(long, value_name = "N")]
    patience: Option<usize>,
    /// Seed of all randomness
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write event files for TensorBoard into the run's folder
    #[arg(long)]
    tensorboard: bool,
    /// Save a checkpoint every N updates too
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u64>,
    /// cpu, cuda or cuda:N
    #[arg(long)]
    device: Option<String>,
    /// Threads of libtorch [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl ExperimentFlags {
    /// Whether they choose a method: then it is not the recipe that they change, but Algorithm 1.
    fn choose_a_method(&self) -> bool {
        self.sampler.is_some()
            || self.mode.is_some()
            || self.objective.is_some()
            || self.sampler_gradient.is_some()
    }
}

impl TrainArguments {
    /// The experiment: the config file; without one Algorithm 1 if a flag chooses a method, or
    /// else the recipe. Flags override it.
    ///
    /// # Errors
    /// If the file or a value is not valid.
    pub fn experiment(&self) -> Result<Experiment> {
        let flags = &self.experiment;
        let mut experiment = match &self.config {
            Some(file) => Experiment::read(file)?,
            None if flags.choose_a_method() => Experiment::default(),
            None => Experiment::recipe(),
        };
        let Experiment { model, sampler, data, threat, train, .. } = &mut experiment;
        set(model, &flags.model);
        set(sampler, &flags.sampler);
        set(&mut data.name, &flags.data);
        set(&mut data.folder, &self.data_folder);
        data.validation_points = flags.validation_points.or(data.validation_points);
        set(&mut threat.epsilon, &flags.epsilon);
        if let Some(norm) = &flags.norm {
            threat.norm = if norm == "l2" { plugin_api::Norm::L2 } else { plugin_api::Norm::Linf };
        }
        set(&mut train.mode, &flags.mode);
        set(&mut train.replay, &flags.replay);
        set(&mut train.objective, &flags.objective);
        train.trades_beta = flags.trades_beta.or(train.trades_beta);
        set(&mut train.start, &flags.start);
        train.sampler_gradient = flags.sampler_gradient.or(train.sampler_gradient);
        set(&mut train.precision, &flags.precision);
        set(&mut train.epochs, &flags.epochs);
        set(&mut train.crop, &flags.crop);
        set(&mut train.flip, &flags.flip);
        set(&mut train.batch, &flags.batch);
        set(&mut train.particles, &flags.particles);
        set(&mut train.store, &flags.store);
        train.store_file = flags.store_file.clone().or(train.store_file.take());
        set(&mut train.optimizer, &flags.optimizer);
        set(&mut train.learning_rate, &flags.learning_rate);
        set(&mut train.momentum, &flags.momentum);
        set(&mut train.weight_decay, &flags.weight_decay);
        set(&mut train.schedule, &flags.schedule);
        train.milestones = flags.milestones.clone().or(train.milestones.take());
        train.step_factor = flags.step_factor.or(train.step_factor);
        train.peak_at = flags.peak_at.or(train.peak_at);
        set(&mut train.warmup_epochs, &flags.warmup_epochs);
        set(&mut train.epsilon_scale, &flags.epsilon_scale);
        set(&mut train.warmup_epsilon, &flags.warmup_epsilon);
        set(&mut train.average, &flags.average);
        train.swa_from = flags.swa_from.or(train.swa_from);
        train.probe = flags.probe.clone().or(train.probe.take());
        train.trace = flags.trace.clone().or(train.trace.take());
        train.trace_points = flags.trace_points.or(train.trace_points);
        train.trace_at = flags.trace_at.clone().or(train.trace_at.take());
        set(&mut train.select, &flags.select);
        train.patience = flags.patience.or(train.patience);
        set(&mut train.seed, &flags.seed);
        set(&mut train.device, &flags.device);
        data.train_points = flags.train_points.or(data.train_points);
        train.tensorboard |= flags.tensorboard;
        train.checkpoint_every = flags.checkpoint_every.or(train.checkpoint_every);
        train.threads = flags.threads.or(train.threads);
        experiment.validate()?;
        Ok(experiment)
    }
}

fn set<T: Clone>(value: &mut T, flag: &Option<T>) {
    if let Some(flag) = flag {
        *value = flag.clone();
    }
}

/// `host eval`
#[derive(Debug, Args)]
#[command(
    after_help = "With --attack, each attack is judged on its own. With --suite, attacks run in order on the points
that still stand. A point that the model misclassifies anyway counts as fooled and is not
attacked, nor is a point that an earlier restart fooled. A sampler's verdict is that of its final
iterate. Verdicts of every point are added to RUN/eval.json.

An evaluation that was interrupted goes on where it was when the same command is given again.
docs/evaluation.md explains the warnings."
)]
pub struct EvalArguments {
    /// Folder of the run; several with --transfer
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// Attack or sampler plugin; may be repeated [default: those of the run's config]
    #[arg(long = "attack", value_name = "PLUGIN")]
    pub attacks: Vec<PluginSpec>,
    /// autoattack, autoattack-plus, autoattack-rand, or a TOML file with a list `attacks`
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "attacks")]
    pub suite: Option<String>,
    /// Make the examples on this other run's model (with attacks that do not stop once they fooled it:
    /// samplers, or apgd.so,keep_climbing=true)
    #[arg(long, value_name = "RUN", conflicts_with = "transfer")]
    pub source: Option<PathBuf>,
    /// Attack every run with examples made on every run, and print the matrix
    #[arg(long)]
    pub transfer: bool,
    /// A random subset of the points, the same for every run and seed [default: as many as the run's
    /// config says, else all; with --validation all]
    #[arg(long, value_name = "N")]
    pub points: Option<usize>,
    /// Evaluate on the training points that the run held out, to choose among runs without a look at
    /// the test set
    #[arg(long)]
    pub validation: bool,
    /// Times each attack runs with new random numbers; the worst case counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub restarts: Option<u16>,
    /// Examples per forward pass
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Seed of the attacks [default: the run's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the adversarial examples that fooled the model into the run's folder, as safetensors
    #[arg(long, conflicts_with = "transfer")]
    pub save_examples: bool,
    /// End with exit code 1 if there is reason to doubt the verdict
    #[arg(long)]
    pub strict: bool,
    /// Where named data sets lie [default: as in the run]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// cpu, cuda or cuda:N [default: as in the run]
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch [default: as in the run]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Go on even if a plugin or the data are not those recorded
    #[arg(long)]
    pub allow_changed: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `host sweep`
#[derive(Debug, Args)]
#[command(
    after_help = "The file is an experiment file with a table [sweep] that says what varies. Every run has a
folder of its own, made by `host train` and `host eval` in a process of their own, one run at a
time. The same command skips what is finished and goes on with the rest, from checkpoints; it may
run several times at once in the same folder. summary.csv and summary.json, in the sweep's folder,
tell what is known so far. docs/sweeps.md describes the file and job arrays.

Exit code 0: all runs are finished, or other processes are at them; 1: some failed; 2: a mistake,
known before anything was begun; 130: stopped by Ctrl-C, with a checkpoint."
)]
pub struct SweepArguments {
    /// The sweep's file (TOML)
    pub file: PathBuf,
    /// Folder for the sweep [default: sweeps/ and the file's name]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Do the I-th of N equal shares; I counts from 1 to N or from 0 to N - 1
    #[arg(long, value_name = "I/N")]
    pub task: Option<Task>,
    /// Try runs again that have failed, from their last checkpoint
    #[arg(long)]
    pub retry_failed: bool,
    /// List the runs and how far they are, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `host report`
#[derive(Debug, Args)]
#[command(
    after_help = "The page needs no other file: robust accuracies beside the paper's, training curves, error against
passes, sweeps, adversarial examples, distances of the particles, and how every run was made. In
a folder beside it that is called the same lie the tables as CSV and Markdown and the figures as
SVG and PNG. What is missing is marked, with the command that fills the gap: adversarial examples
need `host eval --save-examples`. docs/report.md has the details."
)]
pub struct ReportArguments {
    /// Folders of runs and of sweeps
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page to write; its folder is called the same without .html
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub out: PathBuf,
    /// Replace an earlier report of this name
    #[arg(long)]
    pub force: bool,
    /// Where named data sets lie [default: as in each run]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// Use plugins and data even if they are not those recorded
    #[arg(long)]
    pub allow_changed: bool,
}

/// `host inspect`
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// The library's file
    pub file: String,
    /// Print JSON, with a JSON Schema of each plugin's options
    #[arg(long)]
    pub json: bool,
}

/// `host conform`
#[derive(Debug, Args)]
#[command(
    after_help = "Checks run in processes of their own: a crash, an endless loop or a flood of output is that
check's result and nothing else's. What a check needs is judged before it, selected or not.
docs/conformance.md says what each check protects and how to mend what it finds. Exit code 0:
all passed; 1: something failed; 2: could not run."
)]
pub struct ConformArguments {
    /// The library's file, for all its plugins; or FILE,plugin=NAME; options are set as elsewhere,
    /// to judge a large model in a small size: FILE,width=4
    pub file: String,
    /// Only checks whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// No checks whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Seconds that a check may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Plugins judged at the same time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub jobs: usize,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Judge this plugin in this process, by the checks that standard input asks for (used by
    /// the program itself)
    #[arg(long, hide = true, value_name = "KIND/NAME")]
    pub judge: Option<String>,
    /// The options of the plugin that `--judge` names
    #[arg(long, hide = true, value_name = "JSON", default_value = "{}")]
    pub judge_options: String,
}

/// `host plugins`
#[derive(Debug, Args)]
pub struct PluginsArguments {
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `host new`
#[derive(Debug, Args)]
#[command(
    after_help = "The crate begins as langevin, cnn or the example my-attack under your name. It lies wherever
you like; what it writes says where plugin-api and libtorch come from."
)]
pub struct NewArguments {
    /// What it is to be
    pub kind: NewKind,
    /// Its name: lower-case letters, digits and `-`
    pub name: String,
    /// Folder to write the crate's folder into
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub path: PathBuf,
}

/// What `host new` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// A differentiable classifier
    Model,
    /// A transition kernel
    Sampler,
    /// A whole procedure
    Attack,
}

/// `host data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Fetch a data set and verify its checksums
    Fetch {
        /// Its name
        name: String,
        /// Where named data sets lie
        #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
        data_folder: PathBuf,
    },
    /// List the known data sets, and whether they are here
    List {
        /// Where named data sets lie
        #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
        data_folder: PathBuf,
    },
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= 1)
        .ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// How to report, given `--json`.
pub fn style(json: bool) -> Style {
    if json { Style::Json } else { Style::Human }
}
