//! The law at each lambda of a ladder: chains from both ends, with lambda rising and falling.

use super::chains::{mixing_of, summary};
use super::record::{Chain, Diagnosis, LawAt};
use crate::Result;
use crate::law::Rung;
use crate::law::sampling::{Chains, Subject, Trace, Visits};
use crate::plugin::{PluginSpec, Sampler};
use plugin_api::Start;
use plugin_api::law::Law;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use tch::Tensor;

/// Steps of the law's sampler between two draws.
pub const STEPS_PER_DRAW: usize = 5;

/// The largest factor between two lambdas of a ladder: the integral over lambda needs those between.
const FACTOR: f64 = 2.0;

/// The smallest lambda above 0 is this, unless a smaller one is asked for.
const FIRST: f64 = 1.0;

/// The lambdas of a ladder above 0: those asked for, and as many between as the integral needs.
pub fn rungs(asked: &[f64]) -> Vec<f64> {
    let mut rungs = Vec::new();
    let mut last = asked.first().map_or(FIRST, |first| first.min(FIRST));
    rungs.push(last);
    for lambda in asked.iter().copied().filter(|lambda| *lambda > last).collect::<Vec<_>>() {
        let between = ((lambda / last).ln() / FACTOR.ln() - 1e-9).ceil().max(1.0);
        let ratio = (lambda / last).powf(1.0 / between);
        rungs.extend((1..between as i32).map(|step| last * ratio.powi(step)));
        rungs.push(lambda);
        last = lambda;
    }
    rungs
}

/// Visits in half of so many steps.
fn visits_of_half(steps: usize) -> usize {
    steps / 2 / STEPS_PER_DRAW
}

/// The end that chains begin at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Uniform draws; lambda rises.
    Uniform,
    /// Where the maximiser ends; lambda falls.
    Maximum,
}

impl LawAt {
    fn of(&mut self, end: End) -> &mut Option<Chain> {
        match end {
            End::Uniform => &mut self.from_uniform,
            End::Maximum => &mut self.from_maximum,
        }
    }

    /// What the chains say; none before there are any.
    pub fn rung(&self) -> Option<Rung> {
        let (lower, upper) = self.ends()?;
        Some(Rung {
            lambda: self.lambda,
            lower: lower.mean,
            upper: upper.mean,
            error: lower.error.max(upper.error),
            error_of_mean: self.error_of_mean(lower.error, upper.error),
            variance: (lower.variance + upper.variance) / 2.0,
        })
    }

    /// Whether chains from both ends agree: their mean losses, within 3 standard errors of the
    /// difference, and those of a point with each other (R-hat), at all points but a tenth. With one
    /// end, as in the uniform law, they do.
    pub fn ends_meet(&self) -> bool {
        let (Some(lower), Some(upper)) = (&self.from_uniform, &self.from_maximum) else { return true };
        let do_move = [lower, upper].iter().all(|chain| chain.error_per_point.iter().all(Option::is_some));
        let points = lower.per_point.len();
        do_move
            && (lower.mean - upper.mean).abs() <= 3.0 * lower.error.hypot(upper.error)
            && self.mixing.as_ref().is_some_and(|mixing| 10 * mixing.unmixed_points <= points)
    }

    /// What the chains of one point say.
    pub fn rung_of(&self, point: usize) -> Option<Rung> {
        let (lower, upper) = self.ends()?;
        let error = |chain: &Chain| *chain.error_per_point.get(point)?;
        let errors = [error(lower)?, error(upper)?];
        Some(Rung {
            lambda: self.lambda,
            lower: *lower.per_point.get(point)?,
            upper: *upper.per_point.get(point)?,
            error: errors[0].max(errors[1]),
            error_of_mean: self.error_of_mean(errors[0], errors[1]),
            variance: (lower.variance_per_point.get(point)? + upper.variance_per_point.get(point)?) / 2.0,
        })
    }

    /// The error of the middle between both ends; of the only one, if there is one.
    fn error_of_mean(&self, lower: f64, upper: f64) -> f64 {
        let are_two = self.from_uniform.is_some() && self.from_maximum.is_some();
        if are_two { lower.hypot(upper) / 2.0 } else { lower }
    }

    fn ends(&self) -> Option<(&Chain, &Chain)> {
        let one = self.from_uniform.as_ref().or(self.from_maximum.as_ref())?;
        let other = self.from_maximum.as_ref().unwrap_or(one);
        Some((one, other))
    }
}

/// The sampler of the law of `lambda`: the user's, with these options.
///
/// # Errors
/// If it cannot be made, or declares another law.
pub fn law_sampler(spec: &PluginSpec, lambda: f64, steps: usize) -> Result<Sampler> {
    let other = |got: &str| {
        let expected = "expected a sampler of the law exp(lambda * loss), with an option `lambda`";
        spec.error(format!("--law-sampler: {expected}, got {got}"))
            .fix("use mala.so, metropolis.so or a sampler of your own that declares its law")
    };
    let options = Sampler::options_of(spec)?;
    let has = |option: &str| options.iter().any(|name| name == option);
    if !has("lambda") {
        return Err(other("one without this option"));
    }
    let mut adapted = spec.clone().with("lambda", lambda.into()).with_steps(STEPS_PER_DRAW);
    // The first half of a chain is forgotten: it may adapt the sampler.
    if has("burn_in") {
        adapted = adapted.with("burn_in", (visits_of_half(steps) * STEPS_PER_DRAW).into());
    }
    let sampler = Sampler::make(&adapted)?;
    match sampler.declaration().law {
        Law::Gibbs { lambda: declared } if (declared - lambda).abs() <= 1e-9 * lambda => Ok(sampler),
        Law::Gibbs { lambda: declared } => {
            Err(other(&format!("one that declares lambda {declared} for {lambda}")))
        }
        Law::Undeclared => Err(other("one that declares no law")),
        Law::Uniform => Err(other("one of the uniform law")),
    }
}

/// The tensors of a ladder under way.
pub type State = BTreeMap<String, Tensor>;

/// A ladder of laws.
pub struct Ladder<'a> {
    pub subject: &'a Subject<'a>,
    pub spec: &'a PluginSpec,
    pub copies: usize,
    pub steps: usize,
    pub stop: &'a AtomicBool,
    pub advance: &'a dyn Fn(u64),
}

impl Ladder<'_> {
    /// Measures the laws that are not measured yet. `save` keeps what there is after each.
    ///
    /// # Errors
    /// If a plugin fails, the disk refuses, or the user stops.
    pub fn climb(
        &self,
        diagnosis: &mut Diagnosis,
        state: &mut State,
        maximum: &Tensor,
        save: &dyn Fn(&Diagnosis, &State) -> Result<()>,
    ) -> Result<()> {
        let above = 1..diagnosis.laws.len();
        for end in [End::Uniform, End::Maximum] {
            let order: Vec<usize> = match end {
                End::Uniform => above.clone().collect(),
                End::Maximum => above.clone().rev().collect(),
            };
            for place in order {
                if diagnosis.laws[place].of(end).is_some() {
                    continue;
                }
                let key = format!("{end:?}");
                let particles = match (state.get(&key), end) {
                    (Some(particles), _) => particles.to_device(self.subject.natural.device()),
                    (None, End::Uniform) => self.subject.uniform("ladder", self.copies)?,
                    (None, End::Maximum) => maximum.shallow_clone(),
                };
                let lambda = diagnosis.laws[place].lambda;
                let (sampler, trace, particles) = self.measure(lambda, end, particles)?;
                *diagnosis.laws[place].of(end) = Some(summary(Some(&sampler), &trace, self.copies)?);
                state.insert(key, particles);
                let losses = format!("{lambda}");
                match (end, state.remove(&losses)) {
                    (End::Maximum, Some(from_uniform)) => {
                        let both = [&from_uniform, &trace.losses];
                        diagnosis.laws[place].mixing = mixing_of(&both, self.copies, sampler.steps)?;
                    }
                    _ => drop(state.insert(losses, trace.losses)),
                }
                save(diagnosis, state)?;
            }
        }
        Ok(())
    }

    /// Runs the chains of one lambda from these particles; the first half of their steps adapts the
    /// sampler and is forgotten.
    fn measure(&self, lambda: f64, end: End, particles: Tensor) -> Result<(Sampler, Trace, Tensor)> {
        let sampler = law_sampler(self.spec, lambda, self.steps)?;
        let mut chains = Chains::begin(&sampler, particles);
        let (name, count) = (format!("{end:?} {lambda}"), visits_of_half(self.steps));
        let half = Visits { name: &name, count, stop: self.stop, advance: self.advance };
        let trace = self.subject.second_half(&sampler, Start::Store, &mut chains, self.copies, &half)?;
        Ok((sampler, trace, chains.particles))
    }

    /// Passes that a whole climb takes, over so many lambdas above 0.
    pub fn passes(&self, lambdas: usize) -> Result<u64> {
        let sampler = law_sampler(self.spec, FIRST, self.steps)?;
        let of_visit = sampler.evaluations(STEPS_PER_DRAW) + 1;
        let visits = 2 * visits_of_half(self.steps);
        Ok((2 * lambdas * visits * of_visit * self.subject.points.len() * self.copies) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ladder_has_what_was_asked_for_and_no_gap_above_a_factor_of_two() {
        assert_eq!(rungs(&[1.0, 3.0]), [1.0, 3f64.sqrt(), 3.0]);
        assert_eq!(rungs(&[8.0]), [1.0, 2.0, 4.0, 8.0]);
        assert_eq!(rungs(&[0.25, 0.5]), [0.25, 0.5]);
        let long = rungs(&[1.0, 10.0, 10_000.0]);
        assert!(long.windows(2).all(|pair| pair[1] > pair[0] && pair[1] <= pair[0] * (FACTOR + 1e-9)));
        assert!([1.0, 10.0, 10_000.0].iter().all(|asked| long.contains(asked)), "{long:?}");
    }
}
