//! What a classifier withstands.

use crate::console::{Style, bar, say};
use crate::doubt::{self, Doubt};
use crate::journal::{AdversarialExamples, Journal};
use crate::plugin::{Attack, CountedVictim, Model};
use crate::random::{Draws, Purpose, permutation, seed_for, step_of_name};
use crate::store::Examples;
use crate::{Error, Result};
use indicatif::ProgressBar;
use plugin_api::ThreatModel;
use plugin_api::losses::{correct, cross_entropy};
use serde::{Deserialize, Serialize};
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

/// Which points an attack is given. Points that the model misclassifies anyway count as fooled
/// and are never attacked; neither are points that an earlier restart fooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All others: each attack has a verdict of its own, as in the tables of papers.
    Separate,
    /// Those that stand after the attacks before it: a suite, whose worst case alone counts.
    Cascade,
}

/// An evaluation's result, as printed by `--json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of points.
    pub points: usize,
    /// Which points each attack was given.
    pub order: Order,
    /// Share classified correctly without an attack.
    pub clean: f64,
    /// Each attack's result.
    pub attacks: Vec<AttackResult>,
    /// Share of points that withstood all attacks.
    pub worst_case: f64,
    /// Why the verdict may not be trusted.
    #[serde(default)]
    pub doubts: Vec<Doubt>,
    /// The verdict on every point; saved, not printed.
    #[serde(skip)]
    pub verdicts: Verdicts,
}

/// One attack's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttackResult {
    /// As written.
    pub attack: String,
    /// Share of points still classified correctly: after this attack alone, or after it and
    /// those before it (see [`Order`]).
    pub robust: f64,
    /// What it took.
    #[serde(flatten)]
    pub cost: Cost,
    /// Mean rise of the cross-entropy from the natural example to the candidate, over the
    /// attacked points; none if no point was attacked.
    pub loss_rise: Option<f64>,
}

/// What an attack took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Forward passes of single examples, verdicts included.
    pub forward_passes: u64,
    /// Backward passes of single examples.
    pub backward_passes: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

impl Cost {
    /// Passes: half a forward and half a backward each.
    pub fn passes(&self) -> f64 {
        (self.forward_passes + self.backward_passes) as f64 / 2.0
    }
}

/// The verdict on every point, in the order of `indices`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// Index of each point among those that may be chosen: the test set, or the held-out points.
    pub indices: Vec<i64>,
    /// Classified correctly without an attack.
    pub clean: Vec<bool>,
    /// For each attack, classified correctly all the same.
    pub attacks: Vec<Vec<bool>>,
}

/// What an evaluation has found so far: all that it needs to go on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Findings {
    verdicts: Verdicts,
    /// Cross-entropy of each natural example.
    natural_losses: Vec<f64>,
    /// The attacks that are done.
    results: Vec<AttackResult>,
    /// The one that is under way.
    sweep: Option<Sweep>,
}

/// An attack under way: each restart goes batch by batch over the points that stood when it
/// began.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Sweep {
    restart: u16,
    /// Positions of the restart's points.
    standing: Vec<usize>,
    /// How many of them are done.
    done: usize,
    /// The verdict on every point so far.
    robust: Vec<bool>,
    cost: Cost,
    /// Sum of the rises of the loss, and over how many candidates.
    loss_rise: (f64, u64),
}

impl Verdicts {
    /// Whether each point withstood everything.
    pub fn worst_case(&self) -> Vec<bool> {
        let withstood = |point: usize| self.clean[point] && self.attacks.iter().all(|robust| robust[point]);
        (0..self.indices.len()).map(withstood).collect()
    }

    /// How many points each attack broke of those that it was given.
    pub fn fallen(&self, order: Order) -> Vec<usize> {
        let given = |attack: usize| match order {
            Order::Cascade if attack > 0 => &self.attacks[attack - 1],
            _ => &self.clean,
        };
        let fell = |(given, robust): &(&bool, &bool)| **given && !**robust;
        let of = |(attack, robust)| given(attack).iter().zip(robust).filter(fell).count();
        self.attacks.iter().enumerate().map(of).collect()
    }

    /// The number of the first attack that broke each point; none where none did, and where
    /// the model was wrong anyway.
    pub fn broken_by(&self) -> Vec<Option<usize>> {
        let first = |point: usize| self.attacks.iter().position(|robust| !robust[point]);
        (0..self.indices.len()).map(|point| first(point).filter(|_| self.clean[point])).collect()
    }
}

impl Findings {
    /// Whether its parts fit one another, and an evaluation of `attacks` attacks at these points.
    pub fn is_consistent(&self, attacks: usize, indices: &[i64]) -> bool {
        let points = indices.len();
        let whole = |list: &Vec<bool>| list.len() == points;
        self.verdicts.indices == indices
            && whole(&self.verdicts.clean)
            && self.natural_losses.len() == points
            && self.verdicts.attacks.iter().all(whole)
            && self.results.len() == self.verdicts.attacks.len()
            && self.results.len() + usize::from(self.sweep.is_some()) <= attacks
            && self.sweep.as_ref().is_none_or(|sweep| {
                whole(&sweep.robust)
                    && sweep.done <= sweep.standing.len()
                    && sweep.standing.iter().all(|point| *point < points)
            })
    }
}

impl Sweep {
    fn over(robust: Vec<bool>) -> Self {
        let (cost, loss_rise) = (Cost::default(), (0.0, 0));
        Self { restart: 0, standing: standing(&robust), done: 0, robust, cost, loss_rise }
    }

    /// The next batch's positions; begins another restart where this one is through.
    fn next(&mut self, batch: usize, restarts: u16) -> Option<Vec<usize>> {
        while self.done == self.standing.len() {
            self.restart += 1;
            self.standing = standing(&self.robust);
            self.done = 0;
            if self.restart >= restarts || self.standing.is_empty() {
                return None;
            }
        }
        let end = (self.done + batch).min(self.standing.len());
        Some(self.standing[self.done..end].to_vec())
    }
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
                true => doubt::of_results(self.order, &verdicts, &results),
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
        let mut sweep = findings.sweep.take().unwrap_or_else(|| Sweep::over(start.clone()));
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
        sweep: &mut Sweep,
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

    fn show(&self, progress: &ProgressBar, attack: &Attack, sweep: &Sweep) {
        progress.set_length(sweep.standing.len() as u64);
        progress.set_position(sweep.done as u64);
        progress.set_message(standing_words(attack, sweep));
    }

    fn on_device(&self, indices: &[i64]) -> Tensor {
        Tensor::from_slice(indices).to_device(self.device)
    }
}

fn standing_words(attack: &Attack, sweep: &Sweep) -> String {
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

fn standing(robust: &[bool]) -> Vec<usize> {
    (0..robust.len()).filter(|point| robust[*point]).collect()
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

fn share(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|verdict| **verdict).count() as f64 / verdicts.len().max(1) as f64
}

/// The 95 % interval of a share measured on `points` points (Wilson's, for a binomial), within
/// 0 to 1; all of it if there are no points.
pub fn confidence_interval(share: f64, points: usize) -> (f64, f64) {
    if points == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (points as f64, 1.959_963_984_540_054_f64);
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // The ends are within 0 and 1, but for rounding.
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Wilson's interval for 92 of 100, worked out by hand from its formula:
        // (0.92 + 0.019207) / 1.038415 -+ 1.95996 * sqrt(0.000736 + 0.000096) / 1.038415.
        let (low, high) = confidence_interval(0.92, 100);
        assert!((low - 0.85).abs() < 1e-3 && (high - 0.959).abs() < 1e-3, "{low} {high}");
        let (low, high) = confidence_interval(1.0, 10);
        assert!(low < 0.73 && low > 0.72 && (high - 1.0).abs() < 1e-12);
        for points in 1..1000 {
            assert!(confidence_interval(1.0, points).1 <= 1.0 && confidence_interval(0.0, points).0 >= 0.0);
        }
        assert_eq!(confidence_interval(0.0, 0), (0.0, 1.0));
    }
}
