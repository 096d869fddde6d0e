//! The command line.

use crate::config::{DEFAULT_RECIPE, DataFlags, Experiment, PluginFlags, ThreatFlags, TrainFlags, recipe};
use crate::evaluation::setup::EvaluationOptions;
use crate::sweep::Task;
use crate::training::ResumeOptions;
use crate::util::at_least_one;
use crate::util::console::Style;
use crate::{Error, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use plugin_api::LIBTORCH;
use plugin_api::manifest::CONTRACT;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::LazyLock;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (contract {CONTRACT}, libtorch {LIBTORCH})", env!("CARGO_PKG_VERSION")));

const ABOUT: &str = "Distributionally robust training with plugins";

const LONG_ABOUT: &str = "\
Trains classifiers against adversarial distributions, and evaluates their robustness.

Models, samplers and attacks are plugins: shared libraries that are loaded at run time. A plugin
is written FILE[,option=value]… everywhere, for example

    host train --model cnn.so,arch=B --sampler langevin.so,step_size=0.2,noise=0.2
    host eval runs/demo --attack pgd.so,steps=40 --attack apgd.so
    host inspect langevin.so

The `lib` in front of a FILE may be left out. A FILE without a folder is searched next to this
program, in the folders of DRO_PLUGIN_PATH, and last in the working directory. Every sampler has an
option `steps`, and can be used as an attack. If a library holds several plugins of a kind,
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
    /// Measure the robust accuracy of a trained classifier
    Eval(EvalArguments),
    /// Train and evaluate many experiments from one file
    Sweep(SweepArguments),
    /// Write a page, tables and figures about runs and sweeps
    Report(ReportArguments),
    /// Show the plugins of a library, their options, defaults and help
    Inspect(InspectArguments),
    /// Run the conformance checks, which every plugin must pass, on the plugins of a library
    Conform(ConformArguments),
    /// List the plugins in the folders that are searched, and whether this host can load them
    Plugins(PluginsArguments),
    /// Trust libraries, so that the runs of other people may name them
    Trust(TrustArguments),
    /// Write the crate of a new plugin, ready to build
    New(NewArguments),
    /// Fetch data sets, or list the known ones
    #[command(
        subcommand,
        after_help = "Besides these, --data takes a folder of your own data: IDX files with MNIST's names, the binary
version of CIFAR-10, or PNG and JPEG files of one size in train/CLASS and test/CLASS (or val/CLASS)."
    )]
    Data(DataCommand),
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
had never been stopped. SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 do the same."
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
    /// With --resume: folder of the run's plugins if they were moved [default: as recorded]
    #[arg(long, value_name = "FOLDER", requires = "resume")]
    pub plugins: Option<PathBuf>,
    /// With --resume: continue even if a plugin or the data differ from those recorded
    #[arg(long, requires = "resume")]
    pub allow_changed: bool,
    /// The values that the run overrides
    #[command(flatten)]
    pub experiment: ExperimentFlags,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    pub json: bool,
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

The same command continues an evaluation that was interrupted. docs/evaluation.md explains the
warnings."
)]
pub struct EvalArguments {
    /// Folder of the run; several with --transfer
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The options of the evaluation
    #[command(flatten)]
    pub options: EvaluationOptions,
    /// Attack every run with examples made on every run, and print the matrix
    #[arg(long, conflicts_with_all = ["source", "save_examples"])]
    pub transfer: bool,
    /// End with exit code 1 if there is any caveat
    #[arg(long)]
    pub strict: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
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
    /// Folders of runs and of sweeps
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

/// `host trust`
#[derive(Debug, Args)]
#[command(
    after_help = "A library is native code and runs with your rights. `host eval`, `host report` and `host train
--resume` open a library that only the folder of a run names if it is next to this program, in a
folder of DRO_PLUGIN_PATH, was named by you in `host train`, or was given here. It is recognised by
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
        let values: [(&str, &str, serde_json::Value); 44] = [
            ("model", "a.so", "a.so".into()),
            ("sampler", "none", "none".into()),
            ("data.name", "fashion-mnist", "fashion-mnist".into()),
            ("data.train_points", "7", 7.into()),
            ("data.validation_points", "7", 7.into()),
            ("threat.norm", "l2", "l2".into()),
            ("threat.epsilon", "0.5", 0.5.into()),
            ("train.mode", "faithful", "faithful".into()),
            ("train.replay", "7", 7.into()),
            ("train.objective", "trades", "trades".into()),
            ("train.trades_beta", "0.5", 0.5.into()),
            ("train.start", "uniform-store", "uniform-store".into()),
            ("train.sampler_gradient", "eval", "eval".into()),
            ("train.precision", "bf16", "bf16".into()),
            ("train.epochs", "7", 7.into()),
            ("train.crop", "2", 2.into()),
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
            ("train.average", "0.5", 0.5.into()),
            ("train.swa_from", "0.5", 0.5.into()),
            ("train.probe", "a.so", "a.so".into()),
            ("train.trace", "a.so", "a.so".into()),
            ("train.trace_points", "7", 7.into()),
            ("train.trace_at", "1,2.5", vec![1.0, 2.5].into()),
            ("train.select", "best", "best".into()),
            ("train.patience", "7", 7.into()),
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
        let own =
            ["config", "recipe", "out", "resume", "data-folder", "plugins", "allow-changed", "json", "help"];
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
