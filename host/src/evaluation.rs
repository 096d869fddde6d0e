//! What a classifier withstands.

use crate::plugin::{Attack, CountedVictim, Model};
use crate::random::{Draws, Purpose, permutation, step_of_name};
use crate::report::{Style, bar};
use crate::store::Examples;
use crate::{Error, Result};
use plugin_api::ThreatModel;
use plugin_api::losses::correct;
use serde::Serialize;
use std::time::Instant;
use tch::{Device, Tensor};

/// What to evaluate on, and how hard.
pub struct Evaluator<'a> {
    /// The classifier.
    pub model: &'a Model,
    /// What to evaluate on: the test set, or held-out training points.
    pub examples: &'a Examples,
    /// What the random numbers are for: an attack or a probe.
    pub purpose: Purpose,
    /// What adversaries may do.
    pub threat: ThreatModel,
    /// Times each attack runs with new random numbers; the worst case counts.
    pub restarts: u16,
    /// Examples per forward pass.
    pub batch: usize,
    /// Seed of the choice of points and of the attacks.
    pub seed: u64,
    /// Where the model is.
    pub device: Device,
    /// How to show progress.
    pub style: Style,
}

/// An evaluation's result, as printed by `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Number of points.
    pub points: usize,
    /// Share classified correctly without an attack.
    pub clean: f64,
    /// Each attack on its own.
    pub attacks: Vec<AttackResult>,
    /// Share of points that withstood all attacks.
    pub worst_case: f64,
    /// The verdict on every point; saved, not printed.
    #[serde(skip)]
    pub verdicts: Verdicts,
}

/// One attack's result. Points that the model misclassifies anyway count as fooled and are
/// not attacked; neither are points that an earlier restart fooled.
#[derive(Debug, Clone, Serialize)]
pub struct AttackResult {
    /// As written.
    pub attack: String,
    /// Share of points still classified correctly.
    pub robust: f64,
    /// Forward passes of single examples, verdicts included.
    pub forward_passes: u64,
    /// Backward passes of single examples.
    pub backward_passes: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// The verdict on every point, in the order of `indices`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdicts {
    /// Index of each point in the data.
    pub indices: Vec<i64>,
    /// Classified correctly without an attack.
    pub clean: Vec<bool>,
    /// For each attack, classified correctly all the same.
    pub attacks: Vec<Vec<bool>>,
}

impl Evaluator<'_> {
    /// Indices of `wanted` points drawn at random (all if not given), rising.
    ///
    /// # Errors
    /// If more are asked for than there are.
    pub fn choose_points(&self, wanted: Option<usize>) -> Result<Vec<i64>> {
        let all = self.examples.len();
        let wanted = wanted.unwrap_or(all);
        if wanted == 0 || wanted > all {
            return Err(Error::new(format!(
                "--points: expected 1 to {all}, as many as there are; got {wanted}"
            )));
        }
        let mut chosen = permutation(self.seed, Purpose::Subset, 0, all);
        chosen.truncate(wanted);
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// Clean accuracy at the points given, then each attack on its own; the worst case over
    /// all. An attack that fails ends the evaluation: its error comes with what was found
    /// before.
    ///
    /// # Errors
    /// If the model fails on natural examples.
    pub fn run(&self, attacks: &[Attack], indices: Vec<i64>) -> Result<(Evaluation, Option<Error>)> {
        let clean = self.clean(&indices)?;
        let mut verdicts = Verdicts { indices, clean, attacks: Vec::new() };
        let mut results = Vec::new();
        let mut failure = None;
        for attack in attacks {
            let started = Instant::now();
            let victim = CountedVictim::new(self.model);
            match self.attack(attack, &victim, &verdicts) {
                Ok(robust) => {
                    results.push(AttackResult {
                        attack: attack.record.spec.clone(),
                        robust: share(&robust),
                        forward_passes: victim.forward_passes.get(),
                        backward_passes: victim.backward_passes.get(),
                        seconds: started.elapsed().as_secs_f64(),
                    });
                    verdicts.attacks.push(robust);
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        let withstood =
            |point: usize| verdicts.clean[point] && verdicts.attacks.iter().all(|robust| robust[point]);
        let worst_case: Vec<_> = (0..verdicts.indices.len()).map(withstood).collect();
        let evaluation = Evaluation {
            points: verdicts.indices.len(),
            clean: share(&verdicts.clean),
            attacks: results,
            worst_case: share(&worst_case),
            verdicts,
        };
        Ok((evaluation, failure))
    }

    fn clean(&self, indices: &[i64]) -> Result<Vec<bool>> {
        let mut verdicts = Vec::with_capacity(indices.len());
        for chunk in indices.chunks(self.batch) {
            let (images, labels) = self.examples.batch(&self.on_device(chunk));
            verdicts.extend(bools(&correct(&self.model.logits(&images)?, &labels))?);
        }
        Ok(verdicts)
    }

    /// Which points withstand all restarts of one attack.
    fn attack(&self, attack: &Attack, victim: &CountedVictim, so_far: &Verdicts) -> Result<Vec<bool>> {
        let mut robust = so_far.clean.clone();
        let name = &attack.record.spec;
        let key = step_of_name(attack.key());
        let progress = bar(self.style, 0, "{msg} [{bar:30}] {pos}/{len} points {eta} left");
        for restart in 0..self.restarts {
            let standing: Vec<usize> = (0..robust.len()).filter(|point| robust[*point]).collect();
            progress.set_position(0);
            progress.set_length(standing.len() as u64);
            for chunk in standing.chunks(self.batch) {
                progress.set_message(format!("{name}: {:.1} % standing", 100.0 * share(&robust)));
                let points: Vec<i64> = chunk.iter().map(|point| so_far.indices[*point]).collect();
                let (natural, labels) = self.examples.batch(&self.on_device(&points));
                let draws = Draws::new(self.seed, self.purpose, key, &points, 1).restart(restart);
                let candidates = attack.run(victim, (&natural, &labels), &points, self.threat, &draws)?;
                let verdict = bools(&correct(&victim.verdict(&candidates)?, &labels))?;
                for (point, stands) in chunk.iter().zip(verdict) {
                    robust[*point] = stands;
                }
                progress.inc(chunk.len() as u64);
            }
        }
        progress.finish_and_clear();
        Ok(robust)
    }

    fn on_device(&self, indices: &[i64]) -> Tensor {
        Tensor::from_slice(indices).to_device(self.device)
    }
}

fn bools(tensor: &Tensor) -> Result<Vec<bool>> {
    Ok(Vec::try_from(tensor)?)
}

fn share(verdicts: &[bool]) -> f64 {
    verdicts.iter().filter(|verdict| **verdict).count() as f64 / verdicts.len().max(1) as f64
}

/// The 95 % interval of a share measured on `points` points (Wilson's, for a binomial).
pub fn confidence_interval(share: f64, points: usize) -> (f64, f64) {
    let (n, z) = (points as f64, 1.959_963_984_540_054_f64);
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    ((centre - spread) / scale, (centre + spread) / scale)
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
    }
}
