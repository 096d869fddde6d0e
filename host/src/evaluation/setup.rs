//! Sets an evaluation of a run up, carries it out and saves it.

use crate::config::{Experiment, suite};
use crate::data::{Dataset, examples::Examples};
use crate::evaluation::caveat;
use crate::evaluation::evaluator::Evaluator;
use crate::evaluation::journal::{AdversarialExamples, Journal};
use crate::evaluation::outline::ExpectedCost;
use crate::evaluation::verdict::{Caveat, Evaluation, Order, PartialEvaluation};
use crate::plugin::{Attack, LoadedModel, PluginSpec};
use crate::run::outline::{Outline, Points};
use crate::run::progress::Progress;
use crate::run::{self, EVALUATIONS, RunFolder, RunRecord, Versions, WeightsFound};
use crate::torch::arithmetic::Arithmetic;
use crate::torch::device;
use crate::torch::random::Purpose;
use crate::util::console::{Style, say};
use crate::util::files;
use crate::{Error, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tch::{Device, Tensor};

/// Number of natural examples on which a model is checked before it is attacked.
const CHECKED: usize = 100;

/// The options of an evaluation.
#[derive(Debug, Clone, Default, Args)]
pub struct EvaluationOptions {
    /// Attack or sampler plugin; may be repeated [default: those of the run's config]
    #[arg(long = "attack", value_name = "PLUGIN")]
    pub attacks: Vec<PluginSpec>,
    /// autoattack, autoattack-plus, autoattack-rand, or a TOML file with a list `attacks`
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "attacks")]
    pub suite: Option<String>,
    /// Make the examples on this other run's model, with attacks that continue after they fooled
    /// it: samplers, or apgd.so,keep_climbing=true
    #[arg(long, value_name = "RUN")]
    pub source: Option<PathBuf>,
    /// Number of points: a random subset, the same for every run and seed [default: as in the run's
    /// config, else all; with --validation all]
    #[arg(id = "points", long = "points", value_name = "N")]
    pub count: Option<usize>,
    /// Evaluate on the training points that the run held out, to choose among runs without the test
    /// set
    #[arg(long)]
    pub validation: bool,
    /// Times each attack runs with new random numbers; the worst case counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub restarts: Option<u16>,
    /// Examples per forward pass
    #[arg(long, value_name = "N", value_parser = crate::util::at_least_one)]
    pub batch: Option<usize>,
    /// Seed of the attacks [default: the run's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the adversarial examples that fooled the model into the run's folder, as safetensors
    #[arg(long)]
    pub save_examples: bool,
    /// Show the result of this very evaluation if the run has it already, instead of repeating it
    #[arg(long, conflicts_with = "save_examples")]
    pub once: bool,
    /// Folder of the named data sets, or that has the run's own data if they were moved [default: as
    /// in the run]
    #[arg(long, value_name = "FOLDER")]
    pub data_folder: Option<PathBuf>,
    /// Folder of the run's plugins if they were moved [default: as in the run]
    #[arg(long, value_name = "FOLDER")]
    pub plugins: Option<PathBuf>,
    /// cpu, cuda or cuda:N [default: as in the run]
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch [default: as in the run]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Continue even if a plugin or the data differ from those recorded
    #[arg(long)]
    pub allow_changed: bool,
}

impl EvaluationOptions {
    /// The name of the points, for people.
    pub fn points_name(&self) -> &'static str {
        if self.validation { "held-out training points" } else { "test points" }
    }

    /// The number of points, if one is given. A run's config gives a number of test points.
    fn count(&self, experiment: &Experiment) -> Option<usize> {
        self.count.or(experiment.eval.points.filter(|_| !self.validation))
    }
}

/// What all runs in an evaluation have in common: options, data and device.
pub struct EvaluationSetup<'a> {
    pub(crate) options: &'a EvaluationOptions,
    pub(crate) style: Style,
    dataset: Dataset,
    /// What is odd about the data.
    pub(crate) caveats: Vec<Caveat>,
    examples: Examples,
    device: Device,
    arithmetic: Arithmetic,
}

/// A run with its model.
pub struct EvaluatedRun {
    folder: RunFolder,
    /// The run's record.
    pub record: RunRecord,
    /// Its classifier, with the weights for evaluation.
    pub model: LoadedModel,
    /// The differences from the record that `allow_changed` let pass, and what is wrong with its
    /// checkpoints.
    pub caveats: Vec<Caveat>,
    /// The progress of training at the checkpoint of the weights.
    pub progress: Progress,
}

/// A finished evaluation of one run, not saved yet.
pub struct FinishedEvaluation {
    /// What was about to be done.
    pub outline: Outline<ExpectedCost>,
    /// The result.
    pub evaluation: Evaluation,
    /// The error of the attack that ended the evaluation, if one failed.
    pub failure: Option<Error>,
    /// The run.
    pub run: EvaluatedRun,
    /// The entry of `eval.json`.
    entry: Value,
    /// An empty set of adversarial examples, if they are to be saved.
    no_examples: Option<AdversarialExamples>,
    /// None if the result was there already.
    journal: Option<Journal>,
}

/// The files of a saved evaluation.
pub struct SavedEvaluation {
    /// `eval.json`.
    pub verdicts: PathBuf,
    /// The adversarial examples, if they were asked for.
    pub examples: Option<PathBuf>,
}

impl<'a> EvaluationSetup<'a> {
    /// The data, device and threads of the run in this folder, unless the options give others. Sets
    /// the threads of this process.
    ///
    /// # Errors
    /// If there is no such run, data or device.
    pub fn open(path: &Path, options: &'a EvaluationOptions) -> Result<Self> {
        let (_, RunRecord { experiment, data: recorded, .. }) = RunFolder::open(path)?;
        device::set_threads(options.threads.or(experiment.train.threads))?;
        let name = options.device.as_ref().unwrap_or(&experiment.train.device);
        let device = device::open(device::parse(name).map_err(Error::new)?)?;
        let dataset = run::recorded_data(&experiment.data, options.data_folder.as_deref())?;
        let caveats = dataset.findings()?.into_iter().map(|found| Caveat::new("data", found)).collect();
        let held_out = recorded.validation_points;
        if options.validation && held_out == 0 {
            return Err(Error::new(format!(
                "--validation: expected a run that held out points (train --validation-points N), got {}",
                path.display()
            )));
        }
        let (train, test) = (&dataset.train, &dataset.test);
        let examples = if options.validation {
            Examples::new(train, (train.count() as usize).saturating_sub(held_out), held_out, device)?
        } else {
            Examples::new(test, 0, test.count() as usize, device)?
        };
        let arithmetic = Arithmetic::current(device)?;
        Ok(Self { options, style: Style::Json, dataset, caveats, examples, device, arithmetic })
    }

    /// Shows progress in this style. By default nothing is printed.
    pub(crate) fn with_style(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    /// How this process computes.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }

    /// The run in this folder, which must have the same data.
    ///
    /// # Errors
    /// If there is no such run, or its plugin or data have changed and `allow_changed` is not set.
    pub fn open_run(&self, path: &Path) -> Result<EvaluatedRun> {
        let (folder, record) = RunFolder::open(path)?;
        let mut caveats = Vec::new();
        if !record.is_sealed {
            let what = format!(
                "run.json of {} has no digest: an older version wrote it, or it was edited",
                path.display()
            );
            caveats.push(Caveat::new("changed", what));
        }
        let mut on_change = |change: Error| {
            if !self.options.allow_changed {
                return Err(change.note("run", path.display()));
            }
            caveats.push(Caveat::new("changed", change.first_line()));
            Ok(())
        };
        run::check_data(&self.dataset, &record.data, &mut on_change)?;
        let (held_out, attacked) = (record.data.validation_points, self.examples.len());
        if self.options.validation && held_out < attacked {
            return Err(Error::new(format!(
                "--validation: expected a run that held out all {attacked} points, got {}, which held out {held_out} and saw the others",
                path.display()
            )));
        }
        let spec = &record.experiment.model;
        let plugins = self.options.plugins.as_deref();
        let spec = run::recorded_plugin(spec, &record.plugins.model, plugins, &mut on_change)?;
        let model = LoadedModel::build(&spec, self.dataset.task(), self.device, 0)?;
        let WeightsFound { progress, damaged, unfinished } = run::load_weights(&folder, &record, &model)?;
        let passed_over =
            |what| Caveat::new("damaged", format!("{what}; the checkpoint before it is evaluated"));
        caveats.extend(damaged.into_iter().map(passed_over));
        caveats.extend(unfinished.map(|what| Caveat::new("unfinished", what)));
        Ok(EvaluatedRun { folder, record, model, caveats, progress })
    }

    /// Evaluates the run in this folder. An interrupted evaluation of the same settings is
    /// continued.
    ///
    /// # Errors
    /// If the evaluation cannot begin, is interrupted, or has no result: a suite of which an attack
    /// failed has none. The state is then kept.
    pub fn evaluate(&self, path: &Path, stop: &AtomicBool) -> Result<FinishedEvaluation> {
        let target = self.open_run(path)?;
        let source = self.options.source.as_ref().map(|path| self.open_run(path)).transpose()?;
        // A file that is damaged, or cannot be written to, is reported before any work.
        target.folder.evaluations()?;
        target.folder.check_lock_of_evaluations()?;

        let (attacks, left_out) = self.attacks(&target.record)?;
        let mut caveats = self.caveats.clone();
        caveats.extend(target.caveats.clone());
        add_new(&mut caveats, source.iter().flat_map(|source| source.caveats.clone()));
        caveats.extend(left_out);
        let source = source.as_ref().unwrap_or(&target);
        let experiment = &target.record.experiment;
        let evaluator = self.evaluator(experiment, &target, source, stop);
        let points = self.choose_points(&evaluator, experiment)?;
        let outline = self.outline(&evaluator, &attacks, (path, 1), points.len());
        if self.options.once
            && let Some(evaluation) = self.earlier(&evaluator, &target, &attacks, &points)?
        {
            let (entry, no_examples, journal) = (Value::Null, None, None);
            return Ok(FinishedEvaluation {
                outline,
                evaluation,
                failure: None,
                run: target,
                entry,
                no_examples,
                journal,
            });
        }
        caveats.extend(caveats_before_attacks(&evaluator, &points)?);

        if self.style == Style::Human {
            say(&outline);
        }
        let (journal, partial) = self.journal(&evaluator, &target, None, &attacks, &points)?;
        if partial.is_some() && self.style == Style::Human {
            say("going on with this evaluation, which was interrupted");
        }
        caveats.extend(caveat::of_arithmetic(journal.arithmetic_used()));
        let (mut evaluation, failure) = match evaluator.run(&attacks, points, partial, Some(&journal)) {
            Ok(found) => found,
            Err(why) => return Err(journal.abandon(why, false)),
        };
        caveats.append(&mut evaluation.caveats);
        evaluation.caveats = caveats;
        // A suite without one of its attacks has no result. Separate attacks each have their own.
        let has_result = evaluator.order == Order::Separate && !evaluation.attacks.is_empty();
        match failure {
            Some(error) if error.is_interrupted() || !has_result => Err(journal.abandon(error, false)),
            failure => {
                let no_examples = self.options.save_examples.then(|| evaluator.no_examples());
                let entry = self.entry(&evaluator, &evaluation, &target, &attacks, &journal);
                let journal = Some(journal);
                Ok(FinishedEvaluation {
                    outline,
                    evaluation,
                    failure,
                    run: target,
                    entry,
                    no_examples,
                    journal,
                })
            }
        }
    }

    /// What an evaluation of the run at `path` is about to do. `fields` is the number of evaluations:
    /// one, or as many as a transfer matrix has fields.
    pub(crate) fn outline(
        &self,
        evaluator: &Evaluator,
        attacks: &[Attack],
        (path, fields): (&Path, usize),
        points: usize,
    ) -> Outline<ExpectedCost> {
        let order = match (fields, &self.options.suite) {
            (1, Some(suite)) => format!("suite {suite}, each attack on the points robust so far: "),
            (1, None) => String::new(),
            _ => format!("transfer matrix of {fields} evaluations: "),
        };
        let names: Vec<_> = attacks.iter().map(|attack| attack.record.spec.as_str()).collect();
        let restarts = evaluator.restarts;
        let repeated = if restarts > 1 { format!("; {restarts} restarts") } else { String::new() };
        Outline {
            data: Points {
                name: self.dataset.name.clone(),
                points,
                kind: self.options.points_name(),
                classes: self.dataset.classes,
                shape: self.examples.images.size()[1..].to_vec(),
            },
            model: format!("{} ({})", evaluator.model.record.spec, path.display()),
            threat: evaluator.threat,
            method: format!("{order}{}{repeated}", names.join(", ")),
            cost: ExpectedCost::new(attacks, points, u64::from(restarts) * fields as u64),
        }
    }

    /// The newest result of an evaluation with the same settings, if all of its attacks ended well.
    fn earlier(
        &self,
        evaluator: &Evaluator,
        target: &EvaluatedRun,
        attacks: &[Attack],
        points: &[i64],
    ) -> Result<Option<Evaluation>> {
        let settings = self.settings(evaluator, attacks, points)?;
        let evaluations: Vec<Value> = target.folder.evaluations()?.read(&target.folder)?;
        let is_same =
            |entry: &&Value| settings.iter().all(|(key, value)| entry["settings"].get(key) == Some(value));
        let results =
            evaluations.iter().rev().filter(is_same).map(|entry| Evaluation::deserialize(&entry["result"]));
        let mut whole = results.flatten().filter(|result| result.attacks.len() == attacks.len());
        Ok(whole.next())
    }

    /// The entry of `eval.json`.
    fn entry(
        &self,
        evaluator: &Evaluator,
        evaluation: &Evaluation,
        target: &EvaluatedRun,
        attacks: &[Attack],
        journal: &Journal,
    ) -> Value {
        let finished = &attacks[..evaluation.attacks.len()];
        let plugins: Vec<_> = finished.iter().map(|attack| &attack.record).collect();
        json!({
            "result": evaluation,
            "begun": journal.begun(),
            "settings": journal.recorded_settings(),
            "suite": self.options.suite,
            "validation": self.options.validation,
            "source": self.options.source,
            "seed": evaluator.seed,
            "restarts": evaluator.restarts,
            "batch": evaluator.batch,
            "threat": evaluator.threat,
            "update": target.progress.update,
            "plugins": plugins,
            "versions": Versions::current(),
            "verdicts": evaluation.verdicts,
            "broken_by": evaluation.verdicts.broken_by(),
            "examples": null,
        })
    }

    /// The attacks of the options, or else those of the run's experiment. Attacks of a suite or an
    /// experiment that cannot run here are left out, with a caveat.
    pub(crate) fn attacks(&self, record: &RunRecord) -> Result<(Vec<Attack>, Vec<Caveat>)> {
        let are_given = !self.options.attacks.is_empty();
        let specs: Vec<PluginSpec> = match &self.options.suite {
            Some(suite) => suite::attacks(suite)?,
            None if are_given => self.options.attacks.clone(),
            None => {
                let mut specs = record.experiment.eval.attacks.clone();
                for spec in &mut specs {
                    if let Some(path) = run::plugin_in(self.options.plugins.as_deref(), spec.file.as_ref()) {
                        spec.file = path.display().to_string();
                    }
                }
                specs
            }
        };
        let (mut attacks, mut left_out) = (Vec::new(), Vec::new());
        for spec in &specs {
            let attack = Attack::make(spec)?;
            match attack.supports(&record.experiment.threat, &self.dataset.task()) {
                Ok(()) => attacks.push(attack),
                Err(why) if are_given => return Err(why),
                Err(why) => {
                    let finding = format!("{spec} is left out: {}", why.first_line());
                    left_out.push(Caveat::new("left-out", finding));
                }
            }
        }
        if attacks.is_empty() {
            let reasons: Vec<_> = left_out.iter().map(|caveat| &*caveat.finding).collect();
            return Err(Error::new("no attack is left that can run here")
                .note("because", reasons.join("; "))
                .fix("choose attacks with --attack"));
        }
        Ok((attacks, left_out))
    }

    /// The evaluator of `target` against examples made on `source`, with the settings of the
    /// experiment unless the options give others.
    pub(crate) fn evaluator<'b>(
        &'b self,
        experiment: &Experiment,
        target: &'b EvaluatedRun,
        source: &'b EvaluatedRun,
        stop: &'b AtomicBool,
    ) -> Evaluator<'b> {
        let order = if self.options.suite.is_some() { Order::Cascade } else { Order::Separate };
        // A suite lists an attack several times instead.
        let restarts = if order == Order::Cascade { 1 } else { experiment.eval.restarts };
        Evaluator {
            model: &target.model,
            source: &source.model,
            examples: &self.examples,
            purpose: Purpose::Attack,
            threat: experiment.threat,
            order,
            restarts: self.options.restarts.unwrap_or(restarts),
            batch: self.options.batch.unwrap_or(experiment.eval.batch),
            seed: self.options.seed.unwrap_or(experiment.train.seed),
            device: self.device,
            style: self.style,
            stop,
        }
    }

    /// The points of an evaluation.
    pub(crate) fn choose_points(&self, evaluator: &Evaluator, experiment: &Experiment) -> Result<Vec<i64>> {
        evaluator.choose_points(self.options.count(experiment))
    }

    /// The journal of an evaluation of `target`, and its state if it was interrupted. In a transfer
    /// matrix, `source` is the run that the examples are made on.
    pub(crate) fn journal(
        &self,
        evaluator: &Evaluator,
        target: &EvaluatedRun,
        source: Option<&EvaluatedRun>,
        attacks: &[Attack],
        points: &[i64],
    ) -> Result<(Journal, Option<PartialEvaluation>)> {
        let mut settings = self.settings(evaluator, attacks, points)?;
        // A matrix keeps the journals of its fields until it is complete. The source keeps them
        // apart from each other, even if two models have equal weights, and from evaluations of a
        // single run.
        let source = source.map(|source| {
            let path = source.folder.path();
            path.canonicalize().unwrap_or_else(|_| path.to_owned())
        });
        settings.insert("transfer from".to_owned(), json!(source));
        let (arithmetic, keeps_examples) = (self.arithmetic.clone(), self.options.save_examples);
        Journal::open(&target.folder, settings, arithmetic, attacks.len(), points, keeps_examples)
    }

    /// The settings that decide the verdicts. An interrupted evaluation is recognised by them.
    /// Device, threads and versions are among them, since they are chosen; the processor is not.
    fn settings(
        &self,
        evaluator: &Evaluator,
        attacks: &[Attack],
        points: &[i64],
    ) -> Result<BTreeMap<String, Value>> {
        let weights = |model: &LoadedModel| -> Result<Value> {
            Ok(json!([model.record.sha256, model.record.spec, model.digest()?]))
        };
        let attacks: Vec<_> =
            attacks.iter().map(|attack| json!([attack.key(), attack.record.sha256])).collect();
        let settings = [
            ("model", weights(evaluator.model)?),
            ("source", weights(evaluator.source)?),
            ("data", json!(self.dataset.checksums)),
            ("validation", self.options.validation.into()),
            ("attacks", attacks.into()),
            ("points", json!([points.len(), files::sha256(json!(points).to_string().as_bytes())])),
            ("threat", json!(evaluator.threat)),
            ("order", json!(evaluator.order)),
            ("restarts", evaluator.restarts.into()),
            ("batch", evaluator.batch.into()),
            ("seed", evaluator.seed.into()),
            ("device", format!("{:?}", evaluator.device).into()),
            ("threads", tch::get_num_threads().into()),
            ("save examples", self.options.save_examples.into()),
            ("versions", json!(Versions::current())),
        ];
        Ok(settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

impl FinishedEvaluation {
    /// Saves the result and the examples in the run's folder, and ends the journal.
    ///
    /// # Errors
    /// If kept examples are missing, or the disk refuses.
    pub fn save(mut self) -> Result<SavedEvaluation> {
        let folder = &self.run.folder;
        let mut examples = None;
        let Some(journal) = self.journal else {
            return Ok(SavedEvaluation { verdicts: folder.name().join(EVALUATIONS), examples });
        };
        if let Some(none) = self.no_examples {
            let counts = self.evaluation.verdicts.broken_counts(self.evaluation.order);
            let (file, digest) = journal.collect(folder, none, &counts)?;
            examples = Some(folder.name().join(&file));
            self.entry["examples"] = file.into();
            self.entry["examples_sha256"] = digest.into();
        }
        let verdicts = folder.add_evaluation(self.entry)?;
        journal.discard()?;
        Ok(SavedEvaluation { verdicts, examples })
    }
}

/// The caveats that are known before any attack: of the threat model, of the evaluated model, and of
/// the model that examples are made on.
pub(crate) fn caveats_before_attacks(evaluator: &Evaluator, points: &[i64]) -> Result<Vec<Caveat>> {
    let checked = Tensor::from_slice(&points[..points.len().min(CHECKED)]).to_device(evaluator.device);
    let (images, labels) = evaluator.examples.batch(&checked);
    let values = images.size()[1..].iter().product();
    let mut caveats: Vec<_> = caveat::of_threat(&evaluator.threat, values).into_iter().collect();
    caveats.extend(caveat::of_model(evaluator.source, &images, &labels)?);
    if !std::ptr::eq(evaluator.source, evaluator.model) {
        let of_target = caveat::of_model(evaluator.model, &images, &labels)?;
        // Attacks take no gradients of the evaluated model.
        add_new(&mut caveats, of_target.into_iter().filter(|caveat| caveat.name != "vanishing-gradients"));
    }
    Ok(caveats)
}

/// Adds the caveats that are not in the list yet.
fn add_new(caveats: &mut Vec<Caveat>, others: impl IntoIterator<Item = Caveat>) {
    for caveat in others {
        if !caveats.contains(&caveat) {
            caveats.push(caveat);
        }
    }
}
