//! Sets an evaluation of a run up and carries it out.

use crate::config::{Experiment, suite};
use crate::data::{Dataset, examples::Examples};
use crate::evaluation::caveat;
use crate::evaluation::evaluator::Evaluator;
use crate::evaluation::finished::{AtRadius, EvaluatedRun, FinishedEvaluation, Portion, add_new};
use crate::evaluation::journal::{Journal, Settings};
use crate::evaluation::options::EvaluationOptions;
use crate::evaluation::outline::ExpectedCost;
use crate::evaluation::shard::{Shard, Shards, of_shard};
use crate::evaluation::verdict::{Caveat, CurvePoint, Evaluation, Order, PartialEvaluation, Verdicts};
use crate::plugin::{Attack, LoadedModel, PluginSpec, Threat};
use crate::ranks::Ranks;
use crate::run::outline::{Outline, Points};
use crate::run::{self, RunFolder, RunRecord, Versions, WeightsFound};
use crate::torch::arithmetic::Arithmetic;
use crate::torch::device;
use crate::torch::random::Purpose;
use crate::util::console::{Style, part, say};
use crate::util::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use tch::{Device, Tensor};

/// Number of natural examples on which a model is checked before it is attacked.
const CHECKED: usize = 100;

/// Number of natural examples on which a model is compared with itself on images of other scales.
const CHECKED_FOR_SCALE: usize = 300;

/// What all runs in an evaluation have in common: options, data and device.
pub struct EvaluationSetup<'a> {
    pub(crate) options: &'a EvaluationOptions,
    pub(crate) style: Style,
    pub(crate) dataset: Dataset,
    /// What is odd about the data.
    pub(crate) caveats: Vec<Caveat>,
    examples: Examples,
    pub(crate) device: Device,
    arithmetic: Arithmetic,
    /// Whether other processes evaluate other points at the same time.
    is_shared: bool,
}

/// Passes of single images that the checks of a model took, beside those of the attacks.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Passes {
    forward_passes: u64,
    backward_passes: u64,
}

impl<'a> EvaluationSetup<'a> {
    /// The data, device and threads of the run in this folder, unless the options give others. Sets
    /// the threads of this process.
    ///
    /// # Errors
    /// If there is no such run, data or device.
    pub fn open(path: &Path, options: &'a EvaluationOptions) -> Result<Self> {
        Self::open_in(path, options, &Ranks::alone())
    }

    /// The same, in one of several processes that share the points: it has its own GPU and its share of
    /// the threads.
    ///
    /// # Errors
    /// As for [`EvaluationSetup::open`], or if another process is gone.
    pub fn open_in(path: &Path, options: &'a EvaluationOptions, ranks: &Ranks) -> Result<Self> {
        let (_, RunRecord { experiment, data: recorded, .. }) = RunFolder::open(path)?;
        device::set_threads(ranks.threads(options.threads).or(experiment.train.threads))?;
        let name = options.device.as_ref().unwrap_or(&experiment.train.device);
        let device = device::open(ranks.device(device::parse(name).map_err(Error::new)?)?)?;
        let dataset = run::recorded_data(&experiment.data, options.moved.data_folder.as_deref())?;
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
            let first = (train.count() as usize).saturating_sub(held_out);
            ranks.examples(train, (first, held_out), device)?
        } else {
            ranks.examples(test, (0, test.count() as usize), device)?
        };
        let arithmetic = Arithmetic::current(device)?;
        let (style, is_shared) = (Style::Json, !ranks.is_alone());
        Ok(Self { options, style, dataset, caveats, examples, device, arithmetic, is_shared })
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
            if !self.options.moved.allow_changed {
                return Err(change.note("run", path.display()));
            }
            caveats.push(Caveat::new("changed", change.first_line()));
            Ok(())
        };
        run::check_data(&self.dataset, &record.data.checksums, &mut on_change)?;
        let (held_out, attacked) = (record.data.validation_points, self.examples.len());
        if self.options.validation && held_out < attacked {
            return Err(Error::new(format!(
                "--validation: expected a run that held out all {attacked} points, got {}, which held out {held_out} and saw the others",
                path.display()
            )));
        }
        let spec = &record.experiment.model;
        let plugins = self.options.moved.plugins.as_deref();
        let spec = run::recorded_plugin(spec, &record.plugins.model, plugins, &mut on_change)?;
        let model = LoadedModel::build(&spec, self.dataset.task(), self.device, 0)?;
        let WeightsFound { progress, damaged, unfinished } = run::load_weights(&folder, &record, &model)?;
        let of_weights = record.init.iter().flat_map(|init| &init.findings);
        caveats.extend(of_weights.map(|what| Caveat::new("weights", what)));
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
        self.evaluate_portion(path, Portion::Whole, stop)
    }

    /// Evaluates the run in this folder at the points of a shard. Its findings are kept in the run's
    /// folder until all shards are merged; other processes may evaluate other shards at the same time.
    ///
    /// # Errors
    /// As for [`EvaluationSetup::evaluate`], or if there are more shards than points.
    pub fn evaluate_shard(&self, path: &Path, shard: Shard, stop: &AtomicBool) -> Result<FinishedEvaluation> {
        self.evaluate_portion(path, Portion::Shard(shard), stop)
    }

    /// The evaluation of the run in this folder whose shards have all been evaluated, as one process
    /// would have made it. No attack runs. The shards are removed once it is saved.
    ///
    /// # Errors
    /// If a shard is missing, unfinished, in use or of other settings: which one, and what to do.
    pub fn merge(&self, path: &Path, stop: &AtomicBool) -> Result<FinishedEvaluation> {
        self.evaluate_portion(path, Portion::Merged(Vec::new()), stop)
    }

    fn evaluate_portion(
        &self,
        path: &Path,
        mut portion: Portion,
        stop: &AtomicBool,
    ) -> Result<FinishedEvaluation> {
        let target = self.open_run(path)?;
        let source = self.options.source.as_ref().map(|path| self.open_run(path)).transpose()?;
        // A file that is damaged, or cannot be written to, is reported before any work.
        target.folder.evaluations()?;
        target.folder.check_lock_of_evaluations()?;

        let source = source.as_ref().unwrap_or(&target);
        let experiment = &target.record.experiment;
        let threats = self.options.threats(&experiment.threat)?;
        let evaluators: Vec<_> = threats
            .iter()
            .map(|threat| self.evaluator(experiment, (&target, source), threat.clone(), stop))
            .collect();
        let [evaluator, ..] = evaluators.as_slice() else {
            return Err(Error::new("--epsilon: expected a radius"));
        };
        let (attacks, left_out) = self.attacks(&target.record, &threats)?;
        let mut caveats = self.caveats.clone();
        caveats.extend(target.caveats.clone());
        add_new(&mut caveats, source.caveats.clone());
        caveats.extend(left_out);
        let all = self.choose_points(evaluator, experiment)?;
        let mut settings = self.settings(evaluator, &attacks, &threats, &all)?;
        settings.insert(TRANSFER.to_owned(), Value::Null);
        let mut shards = None;
        let everywhere = all.len();
        let points = match &portion {
            Portion::Whole => all,
            Portion::Shard(shard) => {
                attacks.iter().try_for_each(Attack::runs_in_shards)?;
                settings = of_shard(settings, *shard);
                shard.points(&all)?
            }
            Portion::Merged(_) => {
                let size = (attacks.len(), threats.len());
                let found = Shards::open(&target.folder, &settings, size, &all)?;
                settings.extend(found.process_settings());
                shards = Some(found);
                all
            }
        };
        let outlined = if self.is_shared { everywhere } else { points.len() };
        let outline = self.outline(evaluator, &attacks, (path, 1), &threats, outlined);
        if self.options.once
            && let Some(radii) = self.earlier(evaluator, &target, &attacks, &threats, &points)?
        {
            drop(evaluators);
            let journal = None;
            return Ok(FinishedEvaluation { outline, radii, failure: None, run: target, journal, portion });
        }
        let before = evaluator.model.passes();
        let is_foreign = target.record.init.is_some();
        caveats.extend(caveats_before_attacks(evaluator, &points, is_foreign)?);
        let after = evaluator.model.passes();
        let checks = Passes { forward_passes: after.0 - before.0, backward_passes: after.1 - before.1 };

        // Processes that share the points said it before they began.
        if self.style == Style::Human && !(self.is_shared && shards.is_some()) {
            say(&outline);
        }
        let (mut journal, mut partial) = self.open_journal(&target, &portion, settings, &attacks, &points)?;
        if let Some(Shards { journals, found }) = shards {
            journal.take_over(&journals)?;
            (portion, partial) = (Portion::Merged(journals), Some(found));
        } else if partial.is_some() && self.style == Style::Human {
            say("going on with this evaluation, which was interrupted");
        }
        caveats.extend(caveat::of_arithmetic(journal.arithmetic_used()));
        let mut failure = None;
        let done = partial.as_ref().map_or(0, |partial| partial.smaller.len());
        for (number, evaluator) in evaluators.iter().enumerate().skip(done) {
            if let Some(partial) = partial.as_mut().filter(|_| number > done) {
                partial.widen();
            }
            let found = evaluator.advance(&attacks, points.clone(), partial.take(), Some(&journal));
            let (found, why) = match found {
                Ok(found) => found,
                Err(why) => return Err(journal.abandon(why, false)),
            };
            (partial, failure) = (Some(found), why);
            if failure.is_some() {
                break;
            }
        }
        let PartialEvaluation { verdicts, results, smaller, .. } = partial.unwrap_or_default();
        let mut found: Vec<_> = smaller.into_iter().map(|found| (found.verdicts, found.results)).collect();
        // A suite without one of its attacks has no result. Separate attacks each have their own.
        let is_whole = results.len() == attacks.len();
        if is_whole || (evaluator.order == Order::Separate && !results.is_empty()) {
            found.push((verdicts, results));
        }
        match failure {
            Some(error)
                if error.is_interrupted() || evaluator.order == Order::Cascade || found.is_empty() =>
            {
                Err(journal.abandon(error, false))
            }
            failure => {
                let evaluations: Vec<_> = evaluators
                    .iter()
                    .zip(found)
                    .map(|(evaluator, (verdicts, results))| {
                        let mut evaluation = evaluator.evaluation(verdicts, results);
                        let of_radius = caveat::of_threat(&evaluator.threat, self.values());
                        let of_results = std::mem::take(&mut evaluation.caveats);
                        evaluation.caveats = caveats.clone();
                        evaluation.caveats.extend(of_radius.into_iter().chain(of_results));
                        (evaluator, evaluation)
                    })
                    .collect();
                let mut radii = self.at_radii(&evaluations, &target, &attacks, &journal, checks);
                if let Portion::Merged(journals) = &portion {
                    for AtRadius { entry, .. } in &mut radii {
                        entry[SHARDS] = journals.len().into();
                        entry[BATCH] = entry["settings"][BATCH].clone();
                    }
                }
                drop(evaluations);
                drop(evaluators);
                let journal = Some(journal);
                Ok(FinishedEvaluation { outline, radii, failure, run: target, journal, portion })
            }
        }
    }

    /// Number of values of an image.
    fn values(&self) -> i64 {
        self.examples.images.size()[1..].iter().product()
    }

    /// What an evaluation of the run at `path` is about to do. `fields` is the number of evaluations:
    /// one, or as many as a transfer matrix has fields.
    pub(crate) fn outline(
        &self,
        evaluator: &Evaluator,
        attacks: &[Attack],
        (path, fields): (&Path, usize),
        threats: &[Threat],
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
        let is_alone = attacks.iter().any(|attack| attack.takes_points_alone(&evaluator.threat));
        let alone = if is_alone { "; attack plugins take one point at a time" } else { "" };
        let radii: Vec<_> = threats.iter().map(|threat| threat.epsilon.to_string()).collect();
        let widened = match threats.len() {
            1 => String::new(),
            _ => format!("; at epsilon {}, each on the points that stand so far", radii.join(", ")),
        };
        Outline {
            data: Points {
                name: self.dataset.name.clone(),
                points,
                kind: self.options.points_name(),
                classes: self.dataset.classes,
                shape: self.examples.images.size()[1..].to_vec(),
            },
            model: format!("{} ({})", evaluator.model.record.spec, path.display()),
            threat: threats.last().unwrap_or(&evaluator.threat).clone(),
            method: format!("{order}{}{repeated}{widened}{alone}", names.join(", ")),
            cost: ExpectedCost::new(attacks, points, u64::from(restarts) * (fields * threats.len()) as u64),
        }
    }

    /// The newest results of an evaluation with the same settings, if all of its attacks ended well
    /// at every radius.
    fn earlier(
        &self,
        evaluator: &Evaluator,
        target: &EvaluatedRun,
        attacks: &[Attack],
        threats: &[Threat],
        points: &[i64],
    ) -> Result<Option<Vec<AtRadius>>> {
        let settings = self.settings(evaluator, attacks, threats, points)?;
        let evaluations: Vec<Value> = target.folder.evaluations()?.read(&target.folder)?;
        let is_same = |entry: &&Value| {
            let same = |key: &str| entry["settings"].get(key) == settings.get(key);
            settings.keys().all(|key| same(key)) && same(RADII)
        };
        let same: Vec<_> = evaluations.iter().rev().filter(is_same).collect();
        let at = |threat: &Threat| {
            let of_radius = same.iter().filter(|entry| entry["threat"] == json!(threat));
            let results = of_radius.map(|entry| Evaluation::deserialize(&entry["result"]));
            let mut whole = results.flatten().filter(|result| result.attacks.len() == attacks.len());
            let evaluation = whole.next()?;
            Some(AtRadius { threat: threat.clone(), evaluation, entry: Value::Null, examples: None })
        };
        Ok(threats.iter().map(at).collect())
    }

    /// The results at all radii, with their entries of `eval.json`.
    fn at_radii(
        &self,
        evaluations: &[(&Evaluator, Evaluation)],
        target: &EvaluatedRun,
        attacks: &[Attack],
        journal: &Journal,
        checks: Passes,
    ) -> Vec<AtRadius> {
        let curve: Vec<_> = evaluations
            .iter()
            .map(|(evaluator, evaluation)| CurvePoint::new(evaluator.threat.epsilon, evaluation))
            .collect();
        let mut smaller: Option<&Verdicts> = None;
        let mut broken_by = vec![None; evaluations.first().map_or(0, |(_, evaluation)| evaluation.count)];
        let mut radii = Vec::new();
        for (number, (evaluator, evaluation)) in evaluations.iter().enumerate() {
            let verdicts = &evaluation.verdicts;
            let newly = verdicts.broken_by();
            broken_by = broken_by.into_iter().zip(newly).map(|(before, newly)| before.or(newly)).collect();
            let plugins: Vec<_> =
                attacks[..evaluation.attacks.len()].iter().map(|attack| &attack.record).collect();
            let mut entry = json!({
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
                "verdicts": verdicts,
                "broken_by": broken_by,
                "checks": checks,
                "examples": null,
            });
            if curve.len() > 1 {
                entry["curve"] = json!(curve[..=number]);
            }
            let counts = || verdicts.broken_counts(evaluator.order, smaller);
            radii.push(AtRadius {
                threat: evaluator.threat.clone(),
                evaluation: evaluation.clone(),
                entry,
                examples: self.options.save_examples.then(|| (evaluator.no_examples(), counts())),
            });
            smaller = Some(verdicts);
        }
        radii
    }

    /// The attacks of the options, or else those of the run's experiment. Attacks of a suite or an
    /// experiment that cannot run here are left out, with a caveat.
    pub(crate) fn attacks(
        &self,
        record: &RunRecord,
        threats: &[Threat],
    ) -> Result<(Vec<Attack>, Vec<Caveat>)> {
        let are_given = !self.options.attacks.is_empty();
        let specs: Vec<PluginSpec> = match &self.options.suite {
            Some(suite) => suite::attacks(suite)?,
            None if are_given => self.options.attacks.clone(),
            None => {
                let mut specs = record.experiment.eval.attacks.clone();
                for spec in &mut specs {
                    if let Some(path) =
                        run::plugin_in(self.options.moved.plugins.as_deref(), spec.file.as_ref())
                    {
                        spec.file = path.display().to_string();
                    }
                }
                specs
            }
        };
        let task = self.dataset.task();
        threats.iter().try_for_each(|threat| threat.check_task(&task))?;
        let (mut attacks, mut left_out) = (Vec::new(), Vec::new());
        for spec in &specs {
            let attack = Attack::make(spec)?;
            match threats.iter().try_for_each(|threat| attack.supports(threat, &task)) {
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

    /// The evaluator of `target` against examples made on `source` in this threat model, with the settings of the
    /// experiment unless the options give others.
    pub(crate) fn evaluator<'b>(
        &'b self,
        experiment: &Experiment,
        (target, source): (&'b EvaluatedRun, &'b EvaluatedRun),
        threat: Threat,
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
            threat,
            order,
            restarts: self.options.restarts.unwrap_or(restarts),
            batch: self.options.batch.unwrap_or_else(|| experiment.eval.batch_on(self.device)),
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

    /// The journal of a field of a transfer matrix, and its state if it was interrupted: `target`
    /// against examples made on `source`.
    pub(crate) fn journal(
        &self,
        evaluator: &Evaluator,
        (target, source): (&EvaluatedRun, &EvaluatedRun),
        attacks: &[Attack],
        threats: &[Threat],
        points: &[i64],
    ) -> Result<(Journal, Option<PartialEvaluation>)> {
        let mut settings = self.settings(evaluator, attacks, threats, points)?;
        // A matrix keeps the journals of its fields until it is complete. The source keeps them
        // apart from each other, even if two models have equal weights, and from evaluations of a
        // single run.
        let path = source.folder.path();
        let source = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        settings.insert(TRANSFER.to_owned(), json!(source));
        self.open_journal(target, &Portion::Whole, settings, attacks, points)
    }

    fn open_journal(
        &self,
        target: &EvaluatedRun,
        portion: &Portion,
        settings: Settings,
        attacks: &[Attack],
        points: &[i64],
    ) -> Result<(Journal, Option<PartialEvaluation>)> {
        let shard = match portion {
            Portion::Shard(Shard { number, count }) => Some((*number, *count)),
            Portion::Whole | Portion::Merged(_) => None,
        };
        let (arithmetic, keeps_examples) = (self.arithmetic.clone(), self.options.save_examples);
        let place = (&target.folder, shard);
        Journal::open(place, settings, arithmetic, attacks.len(), points, keeps_examples)
    }

    /// The settings that decide the verdicts. An interrupted evaluation is recognised by them.
    /// Device, threads and versions are among them, since they are chosen; the processor is not.
    fn settings(
        &self,
        evaluator: &Evaluator,
        attacks: &[Attack],
        threats: &[Threat],
        points: &[i64],
    ) -> Result<Settings> {
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
            (BATCH, evaluator.batch.into()),
            ("seed", evaluator.seed.into()),
            // Which of several GPUs it is does not matter.
            ("device", if evaluator.device.is_cuda() { "Cuda" } else { "Cpu" }.into()),
            ("threads", tch::get_num_threads().into()),
            ("save examples", self.options.save_examples.into()),
            ("versions", json!(Versions::current())),
        ];
        let radii: Vec<_> = threats.iter().map(|threat| threat.epsilon).collect();
        let radii = (radii.len() > 1).then(|| (RADII, json!(radii)));
        Ok(settings.into_iter().chain(radii).map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// The setting that several radii of an evaluation are listed under.
const RADII: &str = "radii";

/// The setting that names the other run in a field of a transfer matrix.
const TRANSFER: &str = "transfer from";

/// The setting that has the number of examples of a batch.
const BATCH: &str = "batch";

/// The number of shards that an entry of `eval.json` was merged from.
const SHARDS: &str = "shards";

/// The caveats that are known before any attack: of the evaluated model, and of the model that
/// examples are made on. The scale of the images is checked for weights from elsewhere (`is_foreign`):
/// a network that was trained here saw the images as they are.
pub(crate) fn caveats_before_attacks(
    evaluator: &Evaluator,
    points: &[i64],
    is_foreign: bool,
) -> Result<Vec<Caveat>> {
    let _part = part("checking the model on natural examples");
    let batch =
        |points: &[i64]| evaluator.examples.batch(&Tensor::from_slice(points).to_device(evaluator.device));
    let (images, labels) = batch(&points[..points.len().min(CHECKED)])?;
    let mut caveats = caveat::of_model(evaluator.source, &images, &labels)?;
    if !std::ptr::eq(evaluator.source, evaluator.model) {
        let of_target = caveat::of_model(evaluator.model, &images, &labels)?;
        // Attacks take no gradients of the evaluated model.
        add_new(&mut caveats, of_target.into_iter().filter(|caveat| caveat.name != "vanishing-gradients"));
    }
    if !is_foreign {
        return Ok(caveats);
    }
    // The same points however few are attacked: a few tell nothing about the scale.
    let some = evaluator.choose_points(Some(CHECKED_FOR_SCALE.min(evaluator.examples.len())))?;
    let (images, labels) = batch(&some)?;
    caveats.extend(caveat::of_scale(evaluator.model, &images, &labels)?);
    Ok(caveats)
}
