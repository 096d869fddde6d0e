//! What a classifier withstands.

use crate::data::examples::Examples;
use crate::evaluation::caveat;
use crate::evaluation::journal::{AdversarialExamples, Journal};
use crate::evaluation::verdict::*;
use crate::plugin::{Attack, CountedVictim, Model};
use crate::torch::random::{Draws, Purpose, permutation, seed_for, step_of_name};
use crate::util::console::{Style, bar, say};
use crate::{Error, Result};
use indicatif::ProgressBar;
use plugin_api::ThreatModel;
use plugin_api::losses::{correct, cross_entropy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// Between two lines about an attack under way, where no bar can be seen.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// What to evaluate on, and how hard.
pub struct Evaluator<'a> {
    /// The classifier.
    pub model: &'a Model,
    /// The classifier that attacks see: another one where examples are transferred.
    pub source: &'a Model,
    /// What to evaluate on: the test set, or held-out training points.
    pub examples: &'a Examples,
    /// What the random numbers are for: an attack or a probe.
    pub purpose: Purpose,
    /// What adversaries may do.
    pub threat: ThreatModel,
    /// Which points an attack is given.
    pub order: Order,
    /// Times each attack runs with new random numbers; the worst case counts.
    pub restarts: u16,
    /// Examples per forward pass.
    pub batch: usize,
    /// Seed of the attacks.
    pub seed: u64,
    /// Where the model is.
    pub device: Device,
    /// How to show progress.
    pub style: Style,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
}

impl Evaluator<'_> {
    /// Indices of `wanted` points drawn at random (all if not given), rising. They are the same
    /// whatever the seed, so that evaluations can be compared, and fewer are among more.
    ///
    /// # Errors
    /// If more are asked for than there are.
    pub fn choose_points(&self, wanted: Option<usize>) -> Result<Vec<i64>> {
        let all = self.examples.len();
        let wanted = check_points(wanted, all)?;
        let mut chosen = permutation(0, Purpose::Subset, 0, all);
        chosen.truncate(wanted);
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// The examples that fooled nobody: none, of the shape that others have, on the CPU.
    pub fn no_examples(&self) -> AdversarialExamples {
        let points = self.on_device(&[]);
        let (images, labels) = self.examples.batch(&points);
        let [images, labels, points] = [images, labels, points].map(|tensor| tensor.to_device(Device::Cpu));
        AdversarialExamples { attacks: points.copy(), images, labels, points }
    }

    /// Clean accuracy at the points given, then the attacks in turn; the worst case over all.
    /// Goes on from `found`, if anything, and keeps `journal` up to date. An attack that fails
    /// ends the evaluation: its error comes with what was found before.
    ///
    /// # Errors
    /// If the model fails on natural examples.
    pub fn run(
        &self,
        attacks: &[Attack],
        indices: Vec<i64>,
        found: Option<Findings>,
        journal: Option<&Journal>,
    ) -> Result<(Evaluation, Option<Error>)> {
        let mut findings = found.map_or_else(|| self.without_attack(indices, journal), Ok)?;
        let left = attacks.iter().skip(findings.results.len());
        let failure = left.into_iter().find_map(|attack| self.attack(attack, &mut findings, journal).err());
        let Findings { verdicts, results, .. } = findings;
        let evaluation = Evaluation {
            points: verdicts.indices.len(),
            order: self.order,
            clean: share(&verdicts.clean),
            worst_case: share(&verdicts.worst_case()),
            // What attacks do with another model's gradients says nothing of this one's.
            doubts: match std::ptr::eq(self.model, self.source) {
                true => caveat::of_results(self.order, &verdicts, &results),
                false => Vec::new(),
            },
            attacks: results,
            verdicts,
        };
        Ok((evaluation, failure))
    }

    /// An error that is an interruption once the user has asked for one.
    fn refuse_if_stopped(&self, journal: Option<&Journal>) -> Result<()> {
        if !self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let what = match journal {
            Some(_) => "interrupted; the same command goes on from here",
            None => "interrupted",
        };
        Err(Error::new(what).interrupted())
    }

    fn without_attack(&self, indices: Vec<i64>, journal: Option<&Journal>) -> Result<Findings> {
        let mut findings = Findings::default();
        for chunk in indices.chunks(self.batch) {
            self.refuse_if_stopped(journal)?;
            self.seed_model("", 0, chunk);
            let (images, labels) = self.examples.batch(&self.on_device(chunk));
            let logits = self.model.logits(&images)?;
            findings.verdicts.clean.extend(bools(&correct(&logits, &labels))?);
            findings.natural_losses.extend(losses(&logits, &labels)?);
        }
        findings.verdicts.indices = indices;
        Ok(findings)
    }

    /// Runs one attack to its end.
    fn attack(&self, attack: &Attack, findings: &mut Findings, journal: Option<&Journal>) -> Result<()> {
        let verdicts = &findings.verdicts;
        let start = match self.order {
            Order::Separate => &verdicts.clean,
            Order::Cascade => verdicts.attacks.last().unwrap_or(&verdicts.clean),
        };
        let mut sweep = findings.sweep.take().unwrap_or_else(|| AttackProgress::over(start.clone()));
        let progress = bar(self.style, 0, "{msg} [{bar:30}] {pos}/{len} points {eta} left");
        let is_told = journal.is_some() && self.style == Style::Human && progress.is_hidden();
        let mut told = Instant::now();
        while let Some(batch) = sweep.next(self.batch, self.restarts) {
            self.show(&progress, attack, &sweep);
            if is_told && told.elapsed() > BETWEEN_LINES {
                let (standing, done, all) =
                    (standing_words(attack, &sweep), sweep.done, sweep.standing.len());
                say(format_args!("{standing}, {done} of {all} points"));
                told = Instant::now();
            }
            self.refuse_if_stopped(journal)?;
            let examples = self.attack_batch(attack, findings, &mut sweep, &batch)?;
            if let Some(journal) = journal {
                let part = [findings.results.len(), sweep.restart.into(), sweep.done];
                journal.keep(part, || examples.fooled(findings.results.len()))?;
                sweep.done += batch.len();
                findings.sweep = Some(sweep.clone());
                journal.save(findings)?;
            } else {
                sweep.done += batch.len();
            }
        }
        progress.finish_and_clear();
        self.refuse_if_stopped(journal)?;
        findings.sweep = None;
        let (rise, attacked) = sweep.loss_rise;
        findings.results.push(AttackResult {
            attack: attack.record.spec.clone(),
            robust: share(&sweep.robust),
            cost: sweep.cost,
            loss_rise: (attacked > 0).then(|| rise / attacked as f64),
        });
        findings.verdicts.attacks.push(sweep.robust);
        journal.map_or(Ok(()), |journal| journal.save(findings))
    }

    /// Attacks a batch of points and judges the candidates.
    fn attack_batch(
        &self,
        attack: &Attack,
        findings: &Findings,
        sweep: &mut AttackProgress,
        batch: &[usize],
    ) -> Result<Judged> {
        let started = Instant::now();
        let points: Vec<i64> = batch.iter().map(|point| findings.verdicts.indices[*point]).collect();
        let indices = self.on_device(&points);
        let (natural, labels) = self.examples.batch(&indices);
        let draws = Draws::new(self.seed, self.purpose, step_of_name(attack.key()), &points, 1);
        let draws = draws.restart(sweep.restart);
        let victim = CountedVictim::new(self.source);
        self.seed_model(attack.key(), sweep.restart, &points);
        let candidates = attack.run(&victim, (&natural, &labels), &points, self.threat, &draws)?;
        let logits = self.model.logits(&candidates)?;
        let stands = correct(&logits, &labels);
        for (point, stands) in batch.iter().zip(bools(&stands)?) {
            sweep.robust[*point] = stands;
        }
        // The natural image in another batch has another loss in the last bits, which is no rise.
        let unchanged = bools(&candidates.eq_tensor(&natural).flatten(1, -1).all_dim(1, false))?;
        for ((point, loss), unchanged) in batch.iter().zip(losses(&logits, &labels)?).zip(unchanged) {
            sweep.loss_rise.0 += if unchanged { 0.0 } else { loss - findings.natural_losses[*point] };
            sweep.loss_rise.1 += 1;
        }
        sweep.cost.forward_passes += victim.forward_passes.get() + batch.len() as u64;
        sweep.cost.backward_passes += victim.backward_passes.get();
        sweep.cost.seconds += started.elapsed().as_secs_f64();
        Ok(Judged { candidates, labels, indices, stands })
    }

    /// What a random model draws itself is the same whenever this batch is evaluated.
    fn seed_model(&self, attack: &str, restart: u16, points: &[i64]) {
        let batch = format!("{attack}, restart {restart}, from point {:?} on", points.first());
        tch::manual_seed(seed_for(self.seed, self.purpose, step_of_name(&batch)));
    }

    fn show(&self, progress: &ProgressBar, attack: &Attack, sweep: &AttackProgress) {
        progress.set_length(sweep.standing.len() as u64);
        progress.set_position(sweep.done as u64);
        progress.set_message(standing_words(attack, sweep));
    }

    fn on_device(&self, indices: &[i64]) -> Tensor {
        Tensor::from_slice(indices).to_device(self.device)
    }
}

fn standing_words(attack: &Attack, sweep: &AttackProgress) -> String {
    format!("{}: {:.1} % standing", attack.record.spec, 100.0 * share(&sweep.robust))
}

/// A batch's candidates and the verdicts on them.
struct Judged {
    candidates: Tensor,
    labels: Tensor,
    indices: Tensor,
    stands: Tensor,
}

impl Judged {
    /// Those that fooled the model.
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

/// How many of `all` points are wanted; all if no number is given.
///
/// # Errors
/// If there are not as many.
pub fn check_points(wanted: Option<usize>, all: usize) -> Result<usize> {
    match wanted.unwrap_or(all) {
        wanted if (1..=all).contains(&wanted) => Ok(wanted),
        wanted => {
            Err(Error::new(format!("--points: expected 1 to {all}, as many as there are; got {wanted}")))
        }
    }
}

/// Cross-entropy of each row; huge where it is not finite, which JSON cannot say.
fn losses(logits: &Tensor, labels: &Tensor) -> Result<Vec<f64>> {
    const HUGE: f64 = 1e30;
    let losses = cross_entropy(logits, labels).to_kind(Kind::Double).nan_to_num(HUGE, HUGE, HUGE);
    Ok(Vec::try_from(losses)?)
}

fn bools(tensor: &Tensor) -> Result<Vec<bool>> {
    Ok(Vec::try_from(tensor)?)
}
