//! Runs attacks on a classifier and judges the candidates.

use crate::data::examples::Examples;
use crate::evaluation::caveat;
use crate::evaluation::journal::{AdversarialExamples, Journal};
use crate::evaluation::verdict::*;
use crate::plugin::{Attack, Candidates, CountedVictim, LoadedModel, Threat};
use crate::torch::random::{Draws, Purpose, permutation, seed_for, step_of_name};
use crate::util::console::{Indicator, Style};
use crate::util::interrupt;
use crate::{Error, Result};
use plugin_api::losses::{correct, cross_entropy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// A classifier, the points and the settings of its evaluation.
pub(crate) struct Evaluator<'a> {
    /// The classifier.
    pub(crate) model: &'a LoadedModel,
    /// The classifier that attacks see: another one where examples are transferred.
    pub(crate) source: &'a LoadedModel,
    /// The test set, or held-out training points.
    pub(crate) examples: &'a Examples,
    /// The purpose of the random numbers: an attack or a probe.
    pub(crate) purpose: Purpose,
    /// The threat model.
    pub(crate) threat: Threat,
    /// Which points an attack is given.
    pub(crate) order: Order,
    /// Number of times that each attack runs with new random numbers; the worst case counts.
    pub(crate) restarts: u16,
    /// Examples per forward pass.
    pub(crate) batch: usize,
    /// Seed of the attacks.
    pub(crate) seed: u64,
    /// The model's device.
    pub(crate) device: Device,
    /// How to show progress.
    pub(crate) style: Style,
    /// Set when the user wants to stop.
    pub(crate) stop: &'a AtomicBool,
}

impl Evaluator<'_> {
    /// The points of an evaluation; see [`chosen`].
    ///
    /// # Errors
    /// If there are fewer points.
    pub(crate) fn choose_points(&self, count: Option<usize>) -> Result<Vec<i64>> {
        chosen(count, self.examples.len())
    }

    /// An empty set of adversarial examples with the shapes of the data, on the CPU.
    pub(crate) fn no_examples(&self) -> AdversarialExamples {
        let mut shape = self.examples.images.size();
        shape[0] = 0;
        let none = || Tensor::from_slice::<i64>(&[]);
        let images = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        AdversarialExamples { images, labels: none(), points: none(), attacks: none() }
    }

    /// Clean accuracy at the points given, then the attacks in order, then the worst case over all.
    /// An attack that fails ends the evaluation: its error is returned with the results before it.
    ///
    /// # Errors
    /// If the model fails on natural examples, or its weights are others after the attacks.
    pub(crate) fn run(&self, attacks: &[Attack], points: Vec<i64>) -> Result<(Evaluation, Option<Error>)> {
        let (partial, failure) = self.advance(attacks, points, None, None)?;
        Ok((self.evaluation(partial.verdicts, partial.results), failure))
    }

    /// All that an evaluation finds at this radius. Continues from `partial`, if given, and keeps
    /// `journal` up to date. The error of an attack that failed comes with what was found before it.
    ///
    /// # Errors
    /// If the model fails on natural examples, or its weights are others after the attacks. The
    /// journal is then empty.
    pub(crate) fn advance(
        &self,
        attacks: &[Attack],
        points: Vec<i64>,
        partial: Option<PartialEvaluation>,
        journal: Option<&Journal>,
    ) -> Result<(PartialEvaluation, Option<Error>)> {
        let weights = self.model.digest()?;
        let mut partial = partial.map_or_else(|| self.without_attack(points, journal), Ok)?;
        let left = attacks.iter().enumerate().skip(partial.results.len());
        let first = partial.smaller.len() * attacks.len();
        let failure = left
            .into_iter()
            .find_map(|(number, attack)| self.attack(attack, first + number, &mut partial, journal).err());
        if self.model.digest()? != weights {
            journal.map_or(Ok(()), Journal::forget)?;
            let name = &self.model.record.manifest.name;
            return Err(Error::new(format!("the weights of {name} changed while it was evaluated"))
                .note("because", "its forward in evaluation mode, or an attack, wrote to them")
                .fix("see which by `host conform`, checks model-modes and attack-victim")
                .on_the_way());
        }
        Ok((partial, failure))
    }

    /// The result of an evaluation that found this.
    pub(crate) fn evaluation(&self, verdicts: Verdicts, results: Vec<AttackResult>) -> Evaluation {
        // The results of examples made on another model say nothing about this model's gradients.
        let caveats = if std::ptr::eq(self.model, self.source) {
            caveat::of_results(self.order, &verdicts, &results)
        } else {
            Vec::new()
        };
        Evaluation {
            count: verdicts.indices.len(),
            order: self.order,
            clean: share(&verdicts.clean),
            worst_case: share(&verdicts.worst_case()),
            caveats,
            attacks: results,
            verdicts,
        }
    }

    /// Returns the error of an interruption if the user has asked for one.
    fn refuse_if_stopped(&self, journal: Option<&Journal>) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(interruption(journal)) } else { Ok(()) }
    }

    fn without_attack(&self, points: Vec<i64>, journal: Option<&Journal>) -> Result<PartialEvaluation> {
        let mut partial = PartialEvaluation::default();
        let status = self.status(points.len(), journal);
        let batches = points.chunks(self.batch).map(<[i64]>::to_vec).collect::<Vec<_>>();
        self.examples.announce(batches.into_iter())?;
        for batch in points.chunks(self.batch) {
            status.show(partial.verdicts.clean.len() as u64, || "clean accuracy".to_owned());
            self.refuse_if_stopped(journal)?;
            self.seed_model("", 0, batch);
            let (images, labels) = self.examples.batch_of(batch, &self.on_device(batch))?;
            let logits = self.model.logits(&images)?;
            partial.verdicts.clean.extend(bools(&correct(&logits, &labels))?);
            partial.natural_losses.extend(losses(&logits, &labels)?);
        }
        status.finish();
        partial.verdicts.indices = points;
        Ok(partial)
    }

    /// Runs one attack to its end. `number` counts the attacks at all radii.
    fn attack(
        &self,
        attack: &Attack,
        number: usize,
        partial: &mut PartialEvaluation,
        journal: Option<&Journal>,
    ) -> Result<()> {
        let mut progress = partial.attack_progress.take().unwrap_or_else(|| {
            let given = partial.verdicts.given(partial.results.len(), self.order, partial.at_smaller());
            AttackProgress::new(given.clone())
        });
        let status = self.status(progress.standing.len(), journal);
        status.begin_at(progress.done as u64);
        while let Some(batch) = progress.next_batch(self.batch, self.restarts) {
            status.set_length(progress.standing.len() as u64);
            self.refuse_if_stopped(journal)?;
            let judged = self.attack_batch(attack, partial, &mut progress, &batch, &status);
            let examples = judged.map_err(|why| match why.is_interrupted() {
                true => interruption(journal),
                false => why,
            })?;
            if let Some(journal) = journal {
                let of_radius = partial.results.len();
                let numbers = [number, progress.restart.into(), progress.done];
                journal.keep(numbers, || examples.fooled(of_radius))?;
                progress.done += batch.len();
                partial.attack_progress = Some(progress.clone());
                journal.save(partial)?;
            } else {
                progress.done += batch.len();
            }
        }
        status.finish();
        self.refuse_if_stopped(journal)?;
        partial.attack_progress = None;
        let (rise, attacked) = progress.loss_rise;
        partial.results.push(AttackResult {
            attack: attack.record.spec.clone(),
            robust: share(&progress.robust),
            cost: progress.cost,
            loss_rise: (attacked > 0).then(|| rise / attacked as f64),
            moved: progress.moved,
        });
        partial.candidates.push(attacked);
        partial.verdicts.attacks.push(progress.robust);
        journal.map_or(Ok(()), |journal| journal.save(partial))
    }

    /// Attacks a batch of points and judges the candidates.
    fn attack_batch(
        &self,
        attack: &Attack,
        partial: &PartialEvaluation,
        progress: &mut AttackProgress,
        batch: &[usize],
        status: &Indicator,
    ) -> Result<Judged> {
        let started = Instant::now();
        let points: Vec<i64> = batch.iter().map(|position| partial.verdicts.indices[*position]).collect();
        let indices = self.on_device(&points);
        let (natural, labels) = self.examples.batch_of(&points, &indices)?;
        let draws = Draws::new(self.seed, self.purpose, step_of_name(attack.key()), &points, 1);
        let draws = draws.restart(progress.restart);
        let (done, points_of_batch) = (progress.done as u64, batch.len() as u64);
        let summary = summary(attack, progress);
        status.show(done, || summary.clone());
        let most = attack.most_passes().0.map(|most| most * points_of_batch);
        let observe = |passes: u64| {
            // The batch is part of the way as far as its passes are of the most that it may take.
            let within = most.map_or(0, |most| (passes * points_of_batch / most.max(1)).min(points_of_batch));
            status.show(done + within, || format!("{summary}, {passes} forward passes of a batch"));
        };
        let victim = CountedVictim::observed(self.source, &observe, self.stop);
        self.seed_model(attack.key(), progress.restart, &points);
        let Candidates { images: candidates, moved } =
            attack.run(&victim, (&natural, &labels), &points, &self.threat, &draws)?;
        let logits = self.model.logits(&candidates)?;
        let stands = correct(&logits, &labels);
        for (position, stands) in batch.iter().zip(bools(&stands)?) {
            progress.robust[*position] = stands;
        }
        // A natural image's loss depends on its batch in the last bits, which is no increase.
        let unchanged = bools(&candidates.eq_tensor(&natural).flatten(1, -1).all_dim(1, false))?;
        for ((position, loss), unchanged) in batch.iter().zip(losses(&logits, &labels)?).zip(unchanged) {
            progress.loss_rise.0 += if unchanged { 0.0 } else { loss - partial.natural_losses[*position] };
            progress.loss_rise.1 += 1;
        }
        if let Some(moved) = moved {
            let moved = moved.masked_select(&stands);
            if moved.size()[0] > 0 {
                let moved = moved.max().double_value(&[]);
                progress.moved = Some(progress.moved.map_or(moved, |before| before.max(moved)));
            }
        }
        progress.cost.forward_passes += victim.forward_passes.get() + batch.len() as u64;
        progress.cost.backward_passes += victim.backward_passes.get();
        progress.cost.seconds += started.elapsed().as_secs_f64();
        Ok(Judged { candidates, labels, indices, stands })
    }

    /// Makes the numbers that a random model draws equal whenever this batch is evaluated.
    fn seed_model(&self, attack: &str, restart: u16, points: &[i64]) {
        let batch = format!("{attack}, restart {restart}, from point {:?} on", points.first());
        tch::manual_seed(seed_for(self.seed, self.purpose, step_of_name(&batch)));
    }

    /// Where work on so many points is. What keeps no journal is part of a training run, which has a
    /// bar of its own.
    fn status(&self, points: usize, journal: Option<&Journal>) -> Indicator {
        let (points, unit) = (points as u64, "points");
        match journal {
            Some(_) => {
                Indicator::new(self.style, points, unit, "{msg} [{bar:30}] {pos}/{len} points {eta} left")
            }
            None => Indicator::of_part(self.style, points, unit),
        }
    }

    fn on_device(&self, indices: &[i64]) -> Tensor {
        Tensor::from_slice(indices).to_device(self.device)
    }
}

/// The error of an interruption; without a journal nothing goes on from here.
fn interruption(journal: Option<&Journal>) -> Error {
    match journal {
        Some(_) => interrupt::interrupted(),
        None => Error::new("interrupted").interrupted(),
    }
}

fn summary(attack: &Attack, progress: &AttackProgress) -> String {
    format!("{}: {:.1} % robust", attack.record.spec, 100.0 * share(&progress.robust))
}

/// A batch's candidates and the verdicts on them.
struct Judged {
    candidates: Tensor,
    labels: Tensor,
    indices: Tensor,
    stands: Tensor,
}

impl Judged {
    /// The candidates that fooled the model.
    fn fooled(&self, attack: usize) -> Result<AdversarialExamples> {
        let rows = self.stands.logical_not().nonzero().squeeze_dim(1);
        let select = |tensor: &Tensor| tensor.f_index_select(0, &rows);
        Ok(AdversarialExamples {
            images: select(&self.candidates)?,
            labels: select(&self.labels)?,
            points: select(&self.indices)?,
            attacks: Tensor::f_full([rows.size()[0]], attack as i64, (Kind::Int64, rows.device()))?,
        })
    }
}

/// The indices of `count` of `all` points drawn at random, in rising order; all points if no count
/// is given. They do not depend on the seed, so that evaluations can be compared, and a smaller
/// subset is part of every larger one.
///
/// # Errors
/// If there are fewer points.
pub(crate) fn chosen(count: Option<usize>, all: usize) -> Result<Vec<i64>> {
    let count = check_count(count, all)?;
    let mut chosen = permutation(0, Purpose::Subset, 0, all);
    chosen.truncate(count);
    chosen.sort_unstable();
    Ok(chosen)
}

/// The number of points of an evaluation: `count`, or all points if it is not given.
///
/// # Errors
/// If there are fewer points.
pub(crate) fn check_count(count: Option<usize>, all: usize) -> Result<usize> {
    let count = count.unwrap_or(all);
    if !(1..=all).contains(&count) {
        return Err(Error::new(format!("--points: expected 1 to {all}, as many as there are; got {count}")));
    }
    Ok(count)
}

/// Cross-entropy of each row; a huge number where it is not finite, since JSON has no infinity.
fn losses(logits: &Tensor, labels: &Tensor) -> Result<Vec<f64>> {
    const HUGE: f64 = 1e30;
    let losses = cross_entropy(logits, labels).to_kind(Kind::Double).nan_to_num(HUGE, HUGE, HUGE);
    Ok(Vec::try_from(losses)?)
}

fn bools(tensor: &Tensor) -> Result<Vec<bool>> {
    Ok(Vec::try_from(tensor)?)
}
