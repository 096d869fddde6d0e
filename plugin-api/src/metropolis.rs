//! What Metropolis-Hastings samplers on a ball share: the boundary, the decision whether a proposal
//! is accepted, and the length of their steps.
//!
//! Such a sampler proposes a position, which the host evaluates, and judges it in its next call. It
//! keeps the numbers [`Metropolis::NUMBERS`] with each particle, so that chains continue in later
//! visits.

use crate::{Error, Norm, Result, Step, ThreatModel};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What becomes of a proposal outside the ball or the domain. Neither choice changes the law of the
/// chain, as a projection would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// It is reflected at the faces, as often as needed. Norm linf only.
    #[default]
    Reflect,
    /// It is rejected. In many dimensions, and from natural examples with pixels on a face of the
    /// domain (the black ones of MNIST), nearly every proposal is: begin inside, at a uniform start.
    Reject,
}

impl Boundary {
    /// Checks whether this boundary is possible with the norm.
    ///
    /// # Errors
    /// If a reflection is wanted in another norm than linf.
    pub fn supports(self, threat: &ThreatModel) -> Result<()> {
        if self == Self::Reflect && threat.norm != Norm::Linf {
            let norm = threat.norm;
            return Err(Error::new(format!(
                "option `boundary`: `reflect` needs the faces of a box, norm linf, got norm {norm}; choose \
                 `reject`"
            )));
        }
        Ok(())
    }

    /// The allowed position for a proposal, and the sign with which each coordinate of the position
    /// follows that of the proposal. A proposal that is rejected has the position `from`.
    pub fn bring_back(self, step: &Step, from: &Tensor, proposal: &Tensor) -> (Tensor, Tensor) {
        match self {
            Self::Reflect => {
                let (lo, hi) = faces(step);
                let (position, sign) = fold(&proposal.to_kind(Kind::Double), &lo, &hi);
                (position.to_kind(proposal.kind()), sign)
            }
            Self::Reject => {
                // An allowed point does not change under projection.
                let outside = step.threat.project(proposal, step.natural).ne_tensor(proposal);
                let left = per_row(&outside.flatten(1, -1).any_dim(1, false), proposal);
                let sign = proposal.ones_like().to_kind(Kind::Double);
                (from.where_self(&left, proposal), sign)
            }
        }
    }
}

/// The lower and upper faces of the box of every particle, in f64: the linf ball cut to the domain.
fn faces(step: &Step) -> (Tensor, Tensor) {
    let ThreatModel { epsilon, domain: (low, high), .. } = step.threat;
    let natural = step.natural.to_kind(Kind::Double);
    ((&natural - epsilon).clamp_min(low), (natural + epsilon).clamp_max(high))
}

/// Reflects coordinates at the faces until they lie between them: a triangle wave. Also returns the
/// wave's slope, 1 or -1.
fn fold(coordinates: &Tensor, lo: &Tensor, hi: &Tensor) -> (Tensor, Tensor) {
    let width = hi - lo;
    // A box without extent in a coordinate: any divisor will do.
    let divisor = width.where_self(&width.gt(0.0), &width.ones_like());
    let phase = ((coordinates - lo) / divisor).remainder(2.0);
    let falls = phase.gt(1.0);
    let height = phase.rsub_scalar(2.0).where_self(&falls, &phase);
    let slope = phase.full_like(-1.0).where_self(&falls, &phase.ones_like());
    (lo + height * width, slope)
}

/// A Metropolis-Hastings chain with the law q ∝ exp(lambda * loss).
///
/// Its step size is adapted to a rate of acceptance during the first proposals of each particle, and
/// then stays. While it is adapted, the chain is not exactly one of this law.
#[derive(Debug, Clone, Copy)]
pub struct Metropolis {
    /// The factor of the loss.
    pub lambda: f64,
    /// The first step size.
    pub step: f64,
    /// The number of proposals during which the step size is adapted.
    pub burn_in: u32,
    /// The rate of acceptance that adaptation aims at.
    pub target: f64,
}

/// A judged proposal.
pub struct Judged {
    /// Whether it is accepted, `[N, 1, 1, 1]`.
    pub accepted: Tensor,
    /// The numbers of each particle, `[N, numbers]`.
    pub numbers: Tensor,
}

impl Metropolis {
    /// The numbers kept with a particle: the share of proposals accepted in this visit, the step
    /// size, the loss at the particle, the log of the factor by which adaptation changed the step
    /// size, and the number of proposals that did so.
    pub const NUMBERS: [&'static str; 5] = ["acceptance", "step_size", "loss", "log_factor", "adapted"];

    /// The numbers of general interest.
    pub const FIGURES: [&'static str; 2] = ["acceptance", "step_size"];

    /// Checks the options.
    ///
    /// # Errors
    /// If lambda or the step size is not above 0 or not finite.
    pub fn new(lambda: f64, step: f64, burn_in: u32, target: f64) -> Result<Self> {
        for (name, value) in [("lambda", lambda), ("step", step)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::new(format!(
                    "option `{name}`: expected a finite number above 0, got {value}"
                )));
            }
        }
        Ok(Self { lambda, step, burn_in, target })
    }

    /// The step size of each particle with these numbers, `[N, 1, 1, 1]` in f64. It is at most the
    /// ball's diameter in linf, so that adaptation ends where every proposal is accepted.
    pub fn step_size(&self, step: &Step, numbers: &Tensor) -> Tensor {
        let log_factor = numbers.select(1, 3).to_kind(Kind::Double);
        per_row(&self.step_sizes(step, &log_factor), step.particles)
    }

    fn step_sizes(&self, step: &Step, log_factor: &Tensor) -> Tensor {
        (log_factor.exp() * self.step).clamp_max(2.0 * step.threat.epsilon).clamp_min(1e-12)
    }

    /// Accepts or rejects the position at which `step` was evaluated, proposed from `from`.
    /// `log_proposals` (`[N]`, f64) is the log of the density of the proposal back, minus that of the
    /// proposal that was made; none if they are equal. A position equal to `from` counts as rejected.
    /// At the beginning of a visit there is no proposal: the particle is accepted.
    ///
    /// # Errors
    /// If the host cannot draw.
    pub fn judge(
        &self,
        step: &Step,
        numbers: &Tensor,
        from: &Tensor,
        log_proposals: Option<&Tensor>,
    ) -> Result<Judged> {
        let columns = <[Tensor; 5]>::try_from(numbers.to_kind(Kind::Double).unbind(1));
        let [mut acceptance, _, loss_before, mut log_factor, mut adapted] = columns
            .map_err(|got| Error::new(format!("expected 5 numbers of a particle, got {}", got.len())))?;
        let mut loss = step.loss.to_kind(Kind::Double);
        let mut accepted = loss.ones_like().to_kind(Kind::Bool);
        if step.number > 0 {
            let mut log_ratio = (&loss - &loss_before) * self.lambda;
            if let Some(log_proposals) = log_proposals {
                log_ratio += log_proposals;
            }
            let moved = step.particles.ne_tensor(from).flatten(1, -1).any_dim(1, false);
            let chance =
                log_ratio.exp().clamp_max(1.0).nan_to_num(0.0, 1.0, 0.0) * moved.to_kind(Kind::Double);
            accepted = step.random.uniform(&chance)?.lt_tensor(&chance);
            loss = loss.where_self(&accepted, &loss_before);
            let earlier = (step.number - 1) as f64;
            acceptance = (acceptance * earlier + accepted.to_kind(Kind::Double)) / (earlier + 1.0);
            // Robbins and Monro: the gains fall, and their sum grows without bound.
            let adapts = adapted.lt(f64::from(self.burn_in)).to_kind(Kind::Double);
            log_factor += (&adapted + 1.0).pow_tensor_scalar(-0.6) * 2.0 * &adapts * (chance - self.target);
            log_factor = log_factor.clamp_max((2.0 * step.threat.epsilon / self.step).max(1e-9).ln());
            adapted += adapts;
        }
        let step_size = self.step_sizes(step, &log_factor);
        let numbers = Tensor::stack(&[acceptance, step_size, loss, log_factor, adapted], 1);
        Ok(Judged {
            accepted: per_row(&accepted, step.particles),
            numbers: numbers.to_kind(step.particles.kind()),
        })
    }
}

/// `[N]` as `[N, 1, 1, 1]`.
fn per_row(values: &Tensor, like: &Tensor) -> Tensor {
    let mut shape = vec![1; like.dim()];
    shape[0] = -1;
    values.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_close;

    #[test]
    fn folding_is_a_triangle_wave() {
        // On [0.25, 0.75]: inside; beyond the upper and the lower face; two reflections; no extent.
        let lo = Tensor::from_slice(&[0.25, 0.25, 0.25, 0.25, 0.25, 0.5]);
        let hi = Tensor::from_slice(&[0.75, 0.75, 0.75, 0.75, 0.75, 0.5]);
        let (folded, slope) = fold(&Tensor::from_slice(&[0.5, 0.875, 0.0, 1.3125, -0.5, 9.0]), &lo, &hi);
        assert_close(&folded, &[0.5, 0.625, 0.5, 0.3125, 0.5, 0.5]);
        assert_close(&slope.narrow(0, 0, 5), &[1.0, -1.0, -1.0, 1.0, 1.0]);
    }
}
