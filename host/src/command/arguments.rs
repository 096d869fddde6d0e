//! The command line.

use super::signals::StopFlags;
use crate::config::{
    DEFAULT_RECIPE, DataFlags, Experiment, OF_MODEL, PluginFlags, Select, ThreatFlags, TrainFlags,
    norm_parser, recipe,
};
use crate::data::{DataSpec, RESIZE};
use crate::diagnosis::DiagnosisOptions;
use crate::error::absolute;
use crate::evaluation::options::EvaluationOptions;
use crate::evaluation::prediction::PredictionOptions;
use crate::evaluation::shard::Shard;
use crate::plugin::PluginSpec;
use crate::ranks::Ranks;
use crate::run::moved::Moved;
use crate::sweep::Task;
use crate::training::ResumeOptions;
use crate::util::at_least_one;
use crate::util::console::Style;
use crate::util::number::Real;
use crate::{Error, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use plugin_api::manifest::CONTRACT;
use plugin_api::{LIBTORCH, Norm};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (contract {CONTRACT}, libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")));

const ABOUT: &str = "Distributionally robust training with plugins";

const LONG_ABOUT: &str = "\
Trains classifiers against adversarial distributions, and evaluates their robustness.

Models, samplers, attacks and objectives are plugins: shared libraries that are loaded at run time.
A plugin is written FILE[,option=value]… everywhere, for example

    host train --model cnn.so,arch=B --sampler langevin.so,step_size=0.2,noise=0.2
    host eval runs/demo --attack pgd.so,steps=40 --attack apgd.so
    host inspect langevin.so

The `lib` in front of a FILE may be left out. A FILE without a folder is searched next to this
program, in ../lib/host/plugins beside it (where `make install` puts plugins), in the folders of
DRO_PLUGIN_PATH, and last in the working directory. Every sampler has an option `steps`, and can be
used as an attack. If a library holds several plugins of a kind,
`plugin=NAME` chooses one.

A plugin is native code and runs with your rights: load only what you trust.";

/// The program's arguments.
#[derive(Debug, Parser)]
#[command(name = "host", version = VERSION.as_str(), about = ABOUT, long_about = LONG_ABOUT)]
pub struct Arguments {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a classifier against a sampler's adversarial distribution
    #[command(allow_negative_numbers = true)]
    Train(Box<TrainArguments>),
    /// Train or evaluate in several processes of this machine
    Launch(LaunchArguments),
    /// Measure the robust accuracy of a classifier, trained here or elsewhere
    #[command(allow_negative_numbers = true)]
    Eval(Box<EvalArguments>),
    /// Write the logits of a classifier at natural or saved examples
    Predict(Box<PredictArguments>),
    /// Train and evaluate many experiments from one file
    Sweep(SweepArguments),
    /// Measure how far the particles of a run are from the law of its inner problem
    #[command(allow_negative_numbers = true)]
    Diagnose(Box<DiagnoseArguments>),
    /// Write a page, tables and figures about runs, sweeps and data checks
    Report(ReportArguments),
    /// Write the weights of a run, or its network, into a file for PyTorch
    Export(ExportArguments),
    /// Show the plugins of a library, their options, defaults and help
    Inspect(InspectArguments),
    /// Run the conformance checks, which every plugin must pass, on the plugins of a library
    Conform(ConformArguments),
    /// List the plugins in the folders that are searched, and whether this host can load them
    Plugins(PluginsArguments),
    /// Show versions, devices, plugins and data, and what is wrong with each
    #[command(
        after_help = "The exit code is 1 if something is wrong. A data set that is not there, a machine without a GPU
and a Python without torch are no mistakes."
    )]
    Doctor(DoctorArguments),
    /// Trust libraries, so that the runs of other people may name them
    Trust(TrustArguments),
    /// Write the crate of a new plugin, ready to build
    New(NewArguments),
    /// Fetch, list and pack data sets, or check the distances between training points
    #[command(
        subcommand,
        after_help = "Besides these, --data takes data of your own: a folder of IDX files with MNIST's names, of CIFAR-10's
or CIFAR-100's files (binary or Python version), of SVHN's, of NumPy arrays (x_train.npy, ...), or of
PNG and JPEG files in train/CLASS and test/CLASS (or val/CLASS), or of `host data pack`; a file of
NumPy arrays (.npz); or a Python file with data sets of PyTorch (FILE.py:NAME). docs/training.md has their options."
    )]
    Data(DataCommand),
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the shared libraries that the program runs with
    #[command(hide = true)]
    Libraries,
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Folder for the pages, which must exist
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

/// `host train`
#[derive(Debug, Args)]
#[command(
    after_help = "Without --config and --recipe, host train runs the recipe `demo` (examples/mnist-demo.toml):
MNIST, architecture B, linf 0.3, free adversarial training (mode fused) with 5 replays of each
minibatch and a Langevin particle per sample, in a ball of 1.2 epsilon, two epochs. Flags override
the recipe or the file, and nothing else. Algorithm 1 of the paper is `--recipe algorithm-1`. A
key that a file leaves out has the default of docs/training.md.

Stopped with Ctrl-C, a run saves a checkpoint. --resume continues it later, bit for bit as if it
had never been stopped. SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and --stop-signal do the same."
)]
pub struct TrainArguments {
    /// Experiment file (TOML); flags override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Built-in experiment, by its name; `list` shows them
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub recipe: Option<String>,
    /// Folder for the run [default: runs/ and the time]
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Continue the run in this folder from its last checkpoint; with --epochs extend it, with
    /// --threads and --device change where it runs
    #[arg(long, value_name = "RUN")]
    pub resume: Option<PathBuf>,
    /// Folder of the named data sets; with --resume also of the run's own data if they were moved
    /// [default: DRO_DATA if set, else data; with --resume, as recorded]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// Resize the images of a folder to N x N pixels as they are read: the shorter side, then the
    /// middle; the same as the option `resize=N` of --data
    #[arg(long, value_name = "N")]
    pub resize: Option<usize>,
    /// With --resume: folder of the run's plugins if they were moved [default: as recorded]
    #[arg(long, value_name = "FOLDER", requires = "resume")]
    pub plugins: Option<PathBuf>,
    /// With --resume: continue even if a plugin or the data differ from those recorded
    #[arg(long, requires = "resume")]
    pub allow_changed: bool,
    /// How long processes wait for one another
    #[command(flatten)]
    pub ranks: RankFlags,
    /// The values that the run overrides
    #[command(flatten)]
    pub experiment: ExperimentFlags,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// How long processes that work together wait for one another.
#[derive(Debug, Clone, Copy, Args)]
pub struct RankFlags {
    /// Seconds after which processes that work together give up on one that has not arrived, or does
    /// not move
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    rank_timeout: u64,
}

impl RankFlags {
    /// Joins the other processes, if the environment says that there are any.
    ///
    /// # Errors
    /// If they cannot be joined.
    pub fn join(self, task: &str) -> Result<Rc<Ranks>> {
        Ranks::join(task, Duration::from_secs(self.rank_timeout))
    }
}

/// `host launch`
#[derive(Debug, Args)]
#[command(
    after_help = "The processes find each other through the variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT, as under torchrun. On several machines, let torchrun or SLURM's srun start `host train`
once for each process: it finds its place by itself. --shards says how many processes can train."
)]
pub struct LaunchArguments {
    /// Number of processes
    #[arg(short = 'n', long = "processes", value_name = "N", value_parser = at_least_one)]
    pub processes: usize,
    /// What stops them
    #[command(flatten)]
    pub stop: StopFlags,
    /// The command: train or eval, and its arguments, after `--`
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Flags that override the recipe or the experiment file.
#[derive(Debug, Default, Args, Serialize)]
pub struct ExperimentFlags {
    #[command(flatten)]
    #[serde(flatten)]
    plugins: PluginFlags,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    threat: ThreatFlags,
    #[command(flatten)]
    train: TrainFlags,
}

/// The options of training that a resumed run may change.
const CHANGED_BY_RESUME: [&str; 3] = ["train.epochs", "train.threads", "train.device"];

/// The flag of a key of the experiment.
fn flag_of(key: &str) -> String {
    let name = if key == "data.name" { "data" } else { key.rsplit('.').next().unwrap_or(key) };
    format!("--{}", name.replace('_', "-"))
}

impl TrainArguments {
    /// The options of `--resume`.
    ///
    /// # Errors
    /// If a flag is given that a resumed run cannot take.
    pub fn resume_options(&self) -> Result<ResumeOptions> {
        let changes = toml::Table::try_from(&self.experiment).map_err(Error::new)?;
        let keys = changes.iter().flat_map(|(key, value)| match value {
            toml::Value::Table(inner) => inner.keys().map(|inner| format!("{key}.{inner}")).collect(),
            _ => vec![key.clone()],
        });
        let refused = keys.filter(|key| !CHANGED_BY_RESUME.contains(&key.as_str())).map(|key| flag_of(&key));
        let own = [
            ("--config", self.config.is_some()),
            ("--recipe", self.recipe.is_some()),
            ("--out", self.out.is_some()),
            ("--resize", self.resize.is_some()),
        ];
        let own = own.into_iter().filter(|(_, is_given)| *is_given).map(|(flag, _)| flag.to_owned());
        let refused: Vec<_> = own.chain(refused).collect();
        if !refused.is_empty() {
            let taken = CHANGED_BY_RESUME.map(flag_of).join(", ");
            return Err(Error::new(format!(
                "--resume goes on with the recorded experiment: it cannot be used with {}",
                refused.join(", ")
            ))
            .note("takes", format!("{taken}, --data-folder, --plugins, --allow-changed, --json"))
            .fix("leave it out, or begin a new run without --resume"));
        }
        Ok(ResumeOptions {
            data_folder: self.data_folder.clone(),
            plugins: self.plugins.clone(),
            allow_changed: self.allow_changed,
            changes,
        })
    }

    /// The experiment of the file or recipe, with the values of the flags.
    ///
    /// # Errors
    /// If the file, the recipe or a value is not valid.
    pub fn experiment(&self) -> Result<Experiment> {
        let base = match &self.config {
            Some(file) => Experiment::read(file)?,
            None => recipe(self.recipe.as_deref().unwrap_or(DEFAULT_RECIPE))?,
        };
        let mut experiment = base.with(&self.experiment)?;
        if let Some(folder) = &self.data_folder {
            experiment.data.folder.clone_from(folder);
        }
        if let Some(side) = self.resize {
            experiment.data.name = DataSpec::parse(&experiment.data.name)?.with(RESIZE, side).to_string();
        }
        experiment.validate()?;
        Ok(experiment)
    }
}

/// `host eval`
#[derive(Debug, Args)]
#[command(
    after_help = "With --attack, each attack has its own robust accuracy. With --suite, attacks run in order, each on
the points that are robust so far. A point that the model misclassifies without an attack counts as
fooled and is not attacked. A point that one restart fooled is not attacked by later restarts. A
sampler's candidate is its final iterate. The verdicts on every point are added to RUN/eval.json.

A network from elsewhere is evaluated with --model, --data and --epsilon, and in most cases
--weights. --out FOLDER then becomes a run of 0 epochs, for which all other commands work.

The same command continues an evaluation that was interrupted. docs/evaluation.md explains the
warnings."
)]
pub struct EvalArguments {
    /// Folder of the run; several with --transfer
    #[arg(required_unless_present = "model", value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// A network from elsewhere
    #[command(flatten)]
    pub foreign: ForeignFlags,
    /// With --model: folder for the network, its verdicts and examples
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// The options of the evaluation
    #[command(flatten)]
    pub options: EvaluationOptions,
    /// Attack every run with examples made on every run, and print the matrix
    #[arg(long, conflicts_with_all = ["source", "save_examples"])]
    pub transfer: bool,
    /// Judge only the points of the I-th of N shards, I from 1 to N: a job array evaluates all of them
    /// at once, in any order and on any machines
    #[arg(long, value_name = "I/N", conflicts_with_all = ["transfer", "once"])]
    pub shard: Option<Shard>,
    /// Make one evaluation of the N shards that were evaluated with the same options
    #[arg(long, conflicts_with_all = ["transfer", "shard", "once"])]
    pub merge: bool,
    /// How long processes wait for one another
    #[command(flatten)]
    pub ranks: RankFlags,
    /// End with exit code 1 if there is any caveat
    #[arg(long)]
    pub strict: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// Flags that choose a network from elsewhere, in place of a run.
#[derive(Debug, Default, Args)]
pub struct ForeignFlags {
    /// Model plugin of a network from elsewhere, in place of a run
    #[arg(long, value_name = "PLUGIN")]
    pub model: Option<PluginSpec>,
    /// With --model: data set, a name (see `host data list`) or a folder
    #[arg(long, value_name = "NAME|FOLDER")]
    pub data: Option<String>,
    /// With --model: weights of the network, a file as for `host train --init` [default: those that
    /// the plugin brings]
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
}

/// The network of a command.
#[derive(Debug)]
pub enum Network<'a> {
    /// That of a run.
    Run(&'a Path),
    /// One from elsewhere.
    Foreign {
        /// Its model plugin.
        model: &'a PluginSpec,
        /// Its data.
        data: &'a str,
        /// Where its weights are from, as in `train.init`.
        init: PathBuf,
    },
}

impl ForeignFlags {
    /// The network that these flags or the path of a run choose.
    ///
    /// # Errors
    /// If both or neither do, or a flag is given without its companion.
    pub fn network<'a>(&'a self, runs: &'a [PathBuf]) -> Result<Network<'a>> {
        let Self { model, data, weights } = self;
        let alone = |flag: &str, of_run: &str| {
            Error::new(format!("{flag}: a run has {of_run} of its own"))
                .fix("give --model, --data and --weights for a network from elsewhere, without a run")
        };
        match (runs, model, data) {
            (_, None, _) if weights.is_some() => Err(alone("--weights", "weights")),
            (_, None, Some(_)) => Err(alone("--data", "data")),
            ([path], None, None) => Ok(Network::Run(path)),
            (_, None, None) => Err(Error::new(format!("expected one run, got {}", runs.len()))
                .fix("evaluate them one by one, or give --transfer to attack each with examples of each")),
            ([run, ..], Some(_), _) => {
                Err(Error::new(format!("--model: expected no run beside it, got {}", run.display()))
                    .fix("leave out the run, or --model: a run has its own model"))
            }
            ([], Some(_), None) => {
                Err(Error::new("--model: expected --data too, the data set that the network is judged on"))
            }
            ([], Some(model), Some(data)) => {
                let init = weights.as_ref().map_or_else(|| PathBuf::from(OF_MODEL), |file| absolute(file));
                Ok(Network::Foreign { model, data, init })
            }
        }
    }
}

/// `host predict`
#[derive(Debug, Args)]
#[command(
    after_help = "The file has the tensors logits ([N, classes], f32), predictions, labels and points ([N], i64: the
class of the largest logit, the true class, and the index of each example in its split). The
weights are those that `host eval` evaluates."
)]
pub struct PredictArguments {
    /// Folder of the run
    #[arg(required_unless_present = "model", value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// A network from elsewhere
    #[command(flatten)]
    pub foreign: ForeignFlags,
    /// The options of the prediction
    #[command(flatten)]
    pub options: PredictionOptions,
    /// The file to write, as safetensors
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// `host sweep`
#[derive(Debug, Args)]
#[command(
    after_help = "The file is an experiment file with a table [sweep], which lists the options that vary. Every run
has its own folder. `host train` and `host eval` run in processes of their own, one run at a time.
The same command skips finished runs and continues the others from their checkpoints. Several such
commands may work in one folder at the same time. The results so far are in summary.csv and
summary.json, in the sweep's folder. docs/sweeps.md describes the file and job arrays.

Exit code 0: all runs are finished, or other processes work on them; 1: some failed; 2: a mistake
in the input, found before any work began; 130: stopped by Ctrl-C, with a checkpoint."
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
    /// Run failed runs again, from their last checkpoint
    #[arg(long)]
    pub retry_failed: bool,
    /// List the runs and their progress, without running them
    #[arg(long)]
    pub dry_run: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// `host diagnose`
#[derive(Debug, Args)]
#[command(
    after_help = "For fixed weights, the inner problem with entropic regularisation is solved by the law
exp(lambda * loss) on the ball around each training point. This command compares the stored
particles and the run's own chain with that law, at the weights of the newest checkpoint: where the
particles are, how large the loss is, for which lambda the law has the same loss (the effective
lambda), the dual value g of each lambda with bounds, how chains mix, and what either player could
gain. Chains of the law start from both ends, uniform draws and the maximum; where they do not
meet, the truth lies between them.

The figures are in RUN/diagnosis.json, and in the page of `host report`. The same command goes on
with a diagnosis that was interrupted, and shows one that is finished. docs/distribution.md explains
every figure."
)]
pub struct DiagnoseArguments {
    /// Folder of the run
    pub run: PathBuf,
    /// The options of the diagnosis
    #[command(flatten)]
    pub options: DiagnosisOptions,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// `host report`
#[derive(Debug, Args)]
#[command(
    after_help = "The page needs no other file. It shows robust accuracies beside those of the paper, training curves,
error against passes, sweeps, adversarial examples, distances of the particles, and how every run
was made. A folder of the same name beside the page holds the tables as CSV and Markdown and the
figures as SVG and PNG. Missing parts are marked, with the command that makes them: adversarial
examples need `host eval --save-examples`. docs/report.md has the details."
)]
pub struct ReportArguments {
    /// Folders of runs and of sweeps, and files of `host data check --out`
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The page to write; its folder has the same name without .html
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    pub out: PathBuf,
    /// Replace an earlier report of this name
    #[arg(long)]
    pub force: bool,
    /// Folder of the named data sets, or that has the runs' own data if they were moved [default: as
    /// in each run]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// Folder of the runs' plugins if they were moved [default: as in each run]
    #[arg(long, value_name = "FOLDER")]
    pub plugins: Option<PathBuf>,
    /// Use plugins and data even if they differ from those recorded
    #[arg(long)]
    pub allow_changed: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// `host export`
#[derive(Debug, Args)]
#[command(
    after_help = "Without --select and --no-average, the weights are those that `host eval` evaluates. A state
dictionary needs neither the run's plugin nor its data. TorchScript is the network itself in
evaluation mode: its plugin is opened, and the file is compared with it on batches of several sizes.
docs/pytorch.md shows what Python does with each format."
)]
pub struct ExportArguments {
    /// Folder of the run
    pub run: PathBuf,
    /// What the file is
    #[arg(long, value_name = "FORMAT")]
    pub format: ExportFormat,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace a file of this name
    #[arg(long)]
    pub force: bool,
    /// Which weights: those of the last epoch, or the best ones of a run of train --select best
    /// [default: as in the run]
    #[arg(long, value_name = "WEIGHTS")]
    pub select: Option<Select>,
    /// The weights themselves, even if the run averages them (train --average)
    #[arg(long)]
    pub no_average: bool,
    /// Where the data and the plugins of the run are now
    #[command(flatten)]
    pub moved: Moved,
}

/// The formats of `host export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// An OrderedDict of tensors, for torch.load(FILE, weights_only=True)
    StateDict,
    /// The network with its weights, for torch.jit.load(FILE)
    Torchscript,
    /// The tensors, for safetensors.torch.load_file(FILE)
    Safetensors,
}

/// `host inspect`
#[derive(Debug, Args)]
pub struct InspectArguments {
    /// File of the library, to show all its plugins, or FILE,plugin=NAME
    pub file: String,
    /// Print JSON, with a JSON Schema of each plugin's options
    #[arg(long)]
    pub json: bool,
}

/// `host conform`
#[derive(Debug, Args)]
#[command(
    after_help = "Checks run in processes of their own, so that a crash, an endless loop or a flood of output affects
the result of one check only. A check that others depend on runs before them, selected or not.
docs/conformance.md explains every check and how to repair a plugin that fails it. Exit code 0:
all passed; 1: some failed; 2: the checks could not run."
)]
pub struct ConformArguments {
    /// File of the library, to check all its plugins, or FILE,plugin=NAME; with options, for
    /// example of a plugin that needs a file: FILE,file=weights.bin
    pub file: String,
    /// Run only the checks whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out the checks whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Seed of every random choice
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Time limit of a check, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Number of plugins that are checked at the same time
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub jobs: usize,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Check this plugin in this process, by the checks named on standard input (used by the
    /// program itself)
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

/// `host doctor`
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Folder of the named data sets
    #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
    pub data_folder: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// `host trust`
#[derive(Debug, Args)]
#[command(
    after_help = "A library is native code and runs with your rights. `host eval`, `host report` and `host train
--resume` open a library that only the folder of a run names if it is next to this program, was
installed with it, is in a folder of DRO_PLUGIN_PATH, was named by you in `host train`, or was given here. It is recognised by
its SHA-256. The list is $XDG_DATA_HOME/host/trusted, or ~/.local/share/host/trusted."
)]
pub struct TrustArguments {
    /// Files of the libraries
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
}

/// `host new`
#[derive(Debug, Args)]
#[command(
    after_help = "The crate begins as a copy of langevin, cnn or the example my-attack under the new name. It may be in
any folder: its files contain the paths of plugin-api and libtorch."
)]
pub struct NewArguments {
    /// Kind of the plugin
    pub kind: NewKind,
    /// Its name: lower-case letters, digits and `-`
    pub name: String,
    /// Folder to write the crate's folder into
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub path: PathBuf,
}

/// The kinds of plugin that `host new` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NewKind {
    /// A differentiable classifier
    Model,
    /// A transition kernel
    Sampler,
    /// A whole procedure
    Attack,
    /// The losses of the outer and the inner problem
    Objective,
}

/// `host data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Fetch a data set and verify its checksums
    Fetch {
        /// Its name
        name: String,
        /// Folder of the named data sets
        #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
        data_folder: PathBuf,
    },
    /// List the known data sets, and whether they are in the folder
    List {
        /// Folder of the named data sets
        #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
        data_folder: PathBuf,
    },
    /// Write any data set into a folder that training and evaluation need not read into memory
    Pack(PackArguments),
    /// Count the pairs of training points within 2 epsilon of each other (Assumption 3.1)
    #[command(allow_negative_numbers = true)]
    Check(CheckArguments),
}

/// `host data pack`
#[derive(Debug, Args)]
#[command(
    after_help = "The folder then is a data set like any other: --data FOLDER. Files of images are decoded on all cores,
and neither the source nor the pack need fit into memory; other formats are read as a whole. Stopped
or killed, the same command goes on after the last whole block. docs/training.md describes the files."
)]
pub struct PackArguments {
    /// Data set: a name (see `host data list`) or a path with options, as for `host train --data`
    #[arg(value_name = "NAME|PATH")]
    pub source: String,
    /// Folder to be made
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Resize all images to N x N pixels: the shorter side, then the middle, as `--resize` of `host
    /// train` does
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
    /// Leave out images that cannot be decoded; the record names them
    #[arg(long)]
    pub skip_bad: bool,
    /// Folder of the named data sets
    #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
    pub data_folder: PathBuf,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `host data check`
#[derive(Debug, Args)]
#[command(
    after_help = "Compares all pairs of training points, and counts those within 2 epsilon of each other, whose balls of
radius epsilon touch or overlap. Assumption 3.1 of the paper holds if there are none. Pairs of different
labels make errors at epsilon unavoidable: a bound that holds for every classifier is printed.
docs/distribution.md explains every number. The exit code is 0 whether the assumption holds or not."
)]
pub struct CheckArguments {
    /// Data set: a name (see `host data list`) or a path, as for `host train`
    #[arg(long, value_name = "NAME|PATH")]
    pub data: String,
    /// Resize the images of a folder to N x N pixels as they are read
    #[arg(long, value_name = "N")]
    pub resize: Option<usize>,
    /// Radius of the balls, in units of the range of pixels; may be a fraction: 8/255
    #[arg(long, value_name = "RADIUS")]
    pub epsilon: Real,
    /// Norm of the distances
    #[arg(long, default_value = Norm::Linf.name(), value_parser = norm_parser())]
    pub norm: Norm,
    /// Compare the first N training points only
    #[arg(long, value_name = "N")]
    pub train_points: Option<usize>,
    /// Folder of the named data sets
    #[arg(long, value_name = "FOLDER", env = "DRO_DATA", default_value = "data")]
    pub data_folder: PathBuf,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Write the result to this file, which `host report` shows
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an earlier result in that file
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// How it is stopped
    #[command(flatten)]
    pub stop: StopFlags,
}

/// The style of the output, given `--json`.
pub fn style(json: bool) -> Style {
    if json { Style::Json } else { Style::Human }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::collections::BTreeMap;

    fn train(arguments: &[&str]) -> Box<TrainArguments> {
        let words = ["host", "train"].iter().chain(arguments);
        match Arguments::try_parse_from(words).expect("arguments").command {
            Command::Train(arguments) => arguments,
            other => panic!("{other:?}"),
        }
    }

    /// A value of each flag that differs from the recipe's, and the resulting value of the option.
    fn values() -> BTreeMap<&'static str, (&'static str, serde_json::Value)> {
        let values: [(&str, &str, serde_json::Value); 51] = [
            ("model", "a.so", "a.so".into()),
            ("sampler", "none", "none".into()),
            ("data.name", "fashion-mnist", "fashion-mnist".into()),
            ("data.train_points", "7", 7.into()),
            ("data.validation_points", "7", 7.into()),
            ("threat.norm", "l2", "l2".into()),
            ("threat.epsilon", "0.5", 0.5.into()),
            ("threat.channel_scale", "0.5,1", vec![0.5, 1.0].into()),
            ("train.mode", "faithful", "faithful".into()),
            ("train.replay", "7", 7.into()),
            ("train.objective", "trades.so", "trades.so".into()),
            ("train.clip_gradient", "0.5", 0.5.into()),
            ("train.awp", "0.5", 0.5.into()),
            ("train.start", "uniform-store", "uniform-store".into()),
            ("train.sampler_gradient", "eval", "eval".into()),
            ("train.precision", "bf16", "bf16".into()),
            ("train.epochs", "7", 7.into()),
            ("train.init", "p", "p".into()),
            ("train.crop", "2", 2.into()),
            ("train.scale", "0.25,0.5", vec![0.25, 0.5].into()),
            ("train.shards", "7", 7.into()),
            ("train.flip", "true", true.into()),
            ("train.batch", "7", 7.into()),
            ("train.particles", "7", 7.into()),
            ("train.store", "u8", "u8".into()),
            ("train.store_file", "p", "p".into()),
            ("train.optimizer", "adam", "adam".into()),
            ("train.learning_rate", "0.5", 0.5.into()),
            ("train.momentum", "0.5", 0.5.into()),
            ("train.weight_decay", "0.5", 0.5.into()),
            ("train.schedule", "one-cycle", "one-cycle".into()),
            ("train.milestones", "0.25,0.5", vec![0.25, 0.5].into()),
            ("train.step_factor", "0.5", 0.5.into()),
            ("train.peak_at", "0.5", 0.5.into()),
            ("train.warmup_epochs", "0.5", 0.5.into()),
            ("train.epsilon_scale", "0.5", 0.5.into()),
            ("train.warmup_epsilon", "0.5", 0.5.into()),
            ("train.domain_only", "true", true.into()),
            ("train.average", "0.5", 0.5.into()),
            ("train.swa_from", "0.5", 0.5.into()),
            ("train.probe", "a.so", "a.so".into()),
            ("train.trace", "a.so", "a.so".into()),
            ("train.trace_points", "7", 7.into()),
            ("train.trace_at", "1,2.5", vec![1.0, 2.5].into()),
            ("train.select", "best", "best".into()),
            ("train.patience", "7", 7.into()),
            ("train.diagnose_every", "7", 7.into()),
            ("train.seed", "9223372036854775807", i64::MAX.into()),
            ("train.tensorboard", "true", true.into()),
            ("train.checkpoint_every", "7", 7.into()),
            ("train.device", "cuda:1", "cuda:1".into()),
        ];
        let threads = ("train.threads", "7", 7.into());
        values.into_iter().chain([threads]).map(|(key, flag, value)| (key, (flag, value))).collect()
    }

    #[test]
    fn every_flag_sets_its_key_and_no_other() {
        let base = recipe(DEFAULT_RECIPE).expect("a recipe");
        for (key, (flag, value)) in values() {
            // Another norm needs a radius of its own.
            let radius: &[_] = if key == "threat.norm" { &["--epsilon", "0.3"] } else { &[] };
            let arguments = train(&[&[&*flag_of(key), flag], radius].concat());
            let changed = base.with(&arguments.experiment).expect("valid");
            assert_eq!(changed.differences(&base), [(key.to_owned(), value)], "{key}");
        }
    }

    #[test]
    fn every_real_number_may_be_a_fraction() {
        let base = recipe(DEFAULT_RECIPE).expect("a recipe");
        let mut tried = 0;
        for (key, (_, value)) in values() {
            // A real number, or a list of them.
            let number = value.get(0).unwrap_or(&value);
            if !number.is_f64() {
                continue;
            }
            let half = if value.is_array() { serde_json::json!([0.5]) } else { 0.5.into() };
            let arguments = train(&[&flag_of(key), "4/8"]);
            let changed = base.with(&arguments.experiment).expect("valid");
            assert_eq!(changed.differences(&base), [(key.to_owned(), half.clone())], "{key}");
            let written = if value.is_array() { "[\"4/8\"]" } else { "\"4/8\"" };
            let (table, name) = key.split_once('.').expect("a dotted key");
            let file: toml::Table = toml::from_str(&format!("{table}.{name} = {written}")).expect("TOML");
            let changed = base.with(&file).expect("valid");
            assert_eq!(changed.differences(&base), [(key.to_owned(), half)], "{key}");
            tried += 1;
        }
        assert!(tried >= 12, "{tried}");
    }

    #[test]
    fn another_norm_needs_a_radius_of_its_own() {
        let refused = train(&["--norm", "l2"]).experiment().expect_err("refused").to_string();
        assert!(
            refused.starts_with("threat.norm: l2 needs an epsilon of its own: 0.3 is a radius in linf"),
            "{refused}"
        );
        let l2 = train(&["--norm", "l2", "--epsilon", "3/2"]).experiment().expect("valid");
        assert_eq!(l2.threat.epsilon, 1.5);
        assert!(train(&["--norm", "linf"]).experiment().is_ok(), "the norm of the recipe");
    }

    #[test]
    fn resume_takes_epochs_threads_and_device_and_names_each_flag_that_it_refuses() {
        for (key, (flag, value)) in values() {
            let options = train(&["--resume", "run", &flag_of(key), flag]).resume_options();
            if CHANGED_BY_RESUME.contains(&key) {
                let changed = Experiment::default().with(&options.expect("taken").changes).expect("valid");
                assert!(
                    changed.differences(&Experiment::default()).contains(&(key.to_owned(), value)),
                    "{key}"
                );
            } else {
                let message = options.expect_err("refused").to_string();
                let expected = format!("it cannot be used with {}\n", flag_of(key));
                assert!(message.contains(&expected), "{key}: {message}");
            }
        }
        let words = ["--resume", "run", "--seed", "1", "--out", "other", "--data", "digits", "--epochs", "3"];
        let message = train(&words).resume_options().expect_err("refused").to_string();
        assert!(message.contains("it cannot be used with --out, --data, --seed\n"), "{message}");
    }

    #[test]
    fn every_option_of_training_has_a_flag() {
        let options = serde_json::json!(Experiment::default());
        let options = options["train"].as_object().expect("a table").keys().map(|key| format!("train.{key}"));
        let options: Vec<_> = options.collect();
        let known = values();
        for key in &options {
            assert!(known.contains_key(key.as_str()), "{key} has no flag in this test");
        }
        // Every flag of `host train` belongs to the experiment or to the command.
        let command = Arguments::command();
        let train = command.find_subcommand("train").expect("a command");
        let own = [
            "config",
            "recipe",
            "out",
            "resume",
            "data-folder",
            "resize",
            "plugins",
            "allow-changed",
            "json",
            "rank-timeout",
            "stop-signal",
            "help",
        ];
        for flag in train.get_arguments().filter_map(|argument| argument.get_long()) {
            let of_experiment = known.keys().any(|key| flag_of(key) == format!("--{flag}"));
            assert!(of_experiment || own.contains(&flag), "--{flag}");
        }
    }

    #[test]
    fn flags_override_the_recipe_and_nothing_else() {
        let by_default = train(&[]).experiment().expect("valid");
        let named = train(&["--mode", "fused", "--sampler", "langevin.so"]).experiment().expect("valid");
        let differences = named.differences(&by_default);
        // The demo's file gives the options of its sampler.
        assert_eq!(differences, [("sampler".to_owned(), "langevin.so".into())]);
        let algorithm = train(&["--recipe", "algorithm-1", "--epochs", "7"]).experiment().expect("valid");
        let file = recipe("algorithm-1").expect("a recipe");
        assert_eq!(algorithm.differences(&file), [("train.epochs".to_owned(), 7.into())]);
        let refused = train(&["--mode", "faithful"]).experiment().expect_err("refused").to_string();
        assert!(refused.starts_with("train.replay: expected 1 (only mode fused"), "{refused}");
    }
}
