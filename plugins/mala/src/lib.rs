//! The Metropolis-adjusted Langevin algorithm (Besag 1994; Roberts and Tweedie 1996).
//!
//! From the particle x, with xi standard normal and the step size tau, the proposal is
//! u = x + d(x) + tau * xi with the drift d = (tau^2 / 2) * lambda * gradient of the loss. It is
//! accepted with probability min(1, exp(lambda * (loss(u) - loss(x))) * q(u -> x) / q(x -> u)), where
//! q(x -> .) is the normal density with mean x + d(x) and standard deviation tau. For fixed weights
//! the chain leaves the density proportional to exp(lambda * loss) invariant, exactly.
//!
//! Each coordinate of the drift is cut to [-tau, tau], in both directions of a proposal: a truncated
//! drift keeps the chain stable where gradients are large (Roberts and Tweedie 1996, MALTA), and
//! changes no law.
//!
//! With reflection, the chain runs on the periodic continuation of the loss: proposals are made
//! without bounds and folded back into the box. The continuation and the proposals are symmetric
//! under reflections at the faces, so that the folded chain is reversible, and q is evaluated at the
//! proposal before it is folded.
//!
//! The rate of acceptance that tau is adapted to is 0.574 (Roberts and Rosenthal 1998).

use plugin_api::law::Law;
use plugin_api::metropolis::{Boundary, Judged, Metropolis};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Error, Next, Projection, Result, Sampler, Step, ThreatModel, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("mala", Mala);

/// The rate of acceptance that the step size is adapted to.
const ACCEPTANCE: f64 = 0.574;

/// The Metropolis-adjusted Langevin sampler.
pub struct Mala {
    chain: Metropolis,
    boundary: Boundary,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The factor of the loss in the law exp(lambda * loss), per unit of the loss; above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub lambda: f64,
    /// Standard deviation of the noise in each pixel (tau), in units of the domain, before
    /// adaptation; above 0. At most 2 * epsilon is used.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub step: f64,
    /// What becomes of proposals outside the ball or the domain.
    pub boundary: Boundary,
    /// Number of first proposals of each particle during which its step size is adapted to a rate of
    /// acceptance of 0.574; 0 keeps `step`. Afterwards the chain has its law exactly.
    pub burn_in: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { lambda: 10.0, step: 0.05, boundary: Boundary::Reflect, burn_in: 100 }
    }
}

/// A chain after the judgement of its proposal.
struct Chain {
    numbers: Tensor,
    position: Tensor,
    gradient: Tensor,
}

impl Mala {
    fn drift(&self, gradient: &Tensor, tau: &Tensor) -> Tensor {
        let drift = gradient.to_kind(Kind::Double) * tau.square() * (self.chain.lambda / 2.0);
        drift.maximum(&-tau).minimum(tau)
    }

    /// Judges the proposal, if there is one.
    fn judged(&self, step: &Step) -> Result<Chain> {
        let [numbers, position, gradient, proposal] = step.state else {
            return Err(Error::new(format!("expected 4 state tensors, got {}", step.state.len())));
        };
        let tau = self.chain.step_size(step, numbers);
        let (_, sign) = self.boundary.bring_back(step, position, proposal);
        let moved = (proposal.to_kind(Kind::Double) - position) / &tau;
        let there = &moved - self.drift(gradient, &tau) / &tau;
        let back = &moved + self.drift(&(step.gradient * sign), &tau) / &tau;
        let squares = (there.square() - back.square()).flatten(1, -1);
        let log_proposals = squares.sum_dim_intlist([1i64].as_slice(), false, Kind::Double) / 2.0;
        let Judged { accepted, numbers } = self.chain.judge(step, numbers, position, Some(&log_proposals))?;
        Ok(Chain {
            numbers,
            position: step.particles.where_self(&accepted, position),
            gradient: step.gradient.where_self(&accepted, gradient),
        })
    }
}

impl Sampler for Mala {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        let Options { lambda, step, boundary, burn_in } = options;
        Ok(Self { chain: Metropolis::new(lambda, step, burn_in, ACCEPTANCE)?, boundary })
    }

    fn law(&self) -> Law {
        Law::Gibbs { lambda: self.chain.lambda }
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        self.boundary.supports(threat)
    }

    fn projection(&self) -> Projection {
        Projection::Sampler
    }

    fn numbers(&self) -> Vec<&'static str> {
        Metropolis::NUMBERS.to_vec()
    }

    fn figures(&self) -> Vec<&'static str> {
        Metropolis::FIGURES.to_vec()
    }

    /// The position that a proposal was made from, the gradient there, and the proposal before it
    /// was brought back into ball and domain.
    fn visit_tensors(&self) -> usize {
        3
    }

    fn judges_last_proposal(&self) -> bool {
        true
    }

    fn judges_by_gradient(&self) -> bool {
        true
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let Chain { numbers, position, gradient } = self.judged(step)?;
        let tau = self.chain.step_size(step, &numbers);
        let noise = step.random.normal(&position)?.to_kind(Kind::Double);
        let proposal = &position + self.drift(&gradient, &tau) + noise * &tau;
        let proposal = proposal.to_kind(position.kind());
        let (particles, _) = self.boundary.bring_back(step, &position, &proposal);
        Ok(Next { particles, state: vec![numbers, position, gradient, proposal] })
    }

    fn finish(&self, step: &Step) -> Result<Next> {
        let Chain { numbers, position, gradient } = self.judged(step)?;
        let proposal = position.shallow_clone();
        Ok(Next { particles: position.shallow_clone(), state: vec![numbers, position, gradient, proposal] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Norm;
    use plugin_api::testing::{FixedNumbers, assert_close, one_visit};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

    /// A step of size 0.1 at lambda 10 from one pixel with loss 0 and gradient `here` to another
    /// place, with loss `rise` and gradient `there`. All random numbers are 0.5.
    fn after_one_step(boundary: Boundary, pixel: f64, here: f64, rise: f64, there: f64) -> Tensor {
        let options = Options { step: 0.1, boundary, burn_in: 0, ..Options::default() };
        let natural = Tensor::from_slice(&[pixel]).reshape([1, 1, 1, 1]);
        let evaluate = |particles: &Tensor| {
            let (loss, gradient) = if particles == &natural { (0.0, here) } else { (rise, there) };
            (Tensor::from_slice(&[loss]), natural.full_like(gradient))
        };
        let sampler = Mala::new(options).expect("a sampler");
        let next = one_visit(&sampler, &natural, evaluate, 1, LINF, &FixedNumbers(vec![0.5]));
        next.expect("a visit").particles
    }

    #[test]
    fn the_acceptance_takes_the_proposals_of_both_directions_into_account() {
        // The drift is 0.1^2 / 2 * 10 * 1 = 0.05 and the noise 0.05: from 0.5 to 0.6, half a standard
        // deviation above the mean of the proposal. Back from 0.6 with gradient 1, the mean is 0.65
        // and 0.5 lies 1.5 standard deviations below: log q differs by (0.25 - 2.25) / 2 = -1. With
        // the uniform number 0.5, 10 * rise - 1 must exceed -0.6931.
        for (rise, expected) in [(0.0306, 0.5), (0.0308, 0.6)] {
            assert_close(&after_one_step(Boundary::Reflect, 0.5, 1.0, rise, 1.0), &[expected]);
        }
        // With gradient -1 there, both directions are equally likely: 10 * rise > -0.6931.
        for (rise, expected) in [(-0.0694, 0.5), (-0.0692, 0.6)] {
            assert_close(&after_one_step(Boundary::Reject, 0.5, 1.0, rise, -1.0), &[expected]);
        }
    }

    #[test]
    fn the_gradient_is_reflected_with_the_proposal() {
        // From 0.97 to 1.07, which is reflected to 0.93. The gradient 1 there is one of -1 at 1.07, so
        // both directions are equally likely.
        for (rise, expected) in [(-0.0694, 0.97), (-0.0692, 0.93)] {
            assert_close(&after_one_step(Boundary::Reflect, 0.97, 1.0, rise, 1.0), &[expected]);
        }
        // Rejected without reflection.
        assert_close(&after_one_step(Boundary::Reject, 0.97, 1.0, 9.0, 1.0), &[0.97]);
    }

    #[test]
    fn the_drift_is_cut_to_the_step_size_in_both_directions() {
        // From 0.5 by 0.1 + 0.05 to 0.65; back with the mean 0.75, 2.5 standard deviations away:
        // log q differs by (0.25 - 6.25) / 2 = -3, and 10 * rise must exceed 3 - 0.6931.
        for (rise, expected) in [(0.230, 0.5), (0.231, 0.65)] {
            assert_close(&after_one_step(Boundary::Reflect, 0.5, 1e9, rise, 1e9), &[expected]);
        }
    }

    #[test]
    fn options_that_are_not_above_zero_are_refused() {
        let refusal = |options: Options| Mala::new(options).err().expect("refused").to_string();
        let refused = refusal(Options { lambda: 0.0, ..Options::default() });
        assert_eq!(refused, "option `lambda`: expected a finite number above 0, got 0");
        let refused = refusal(Options { step: -0.5, ..Options::default() });
        assert_eq!(refused, "option `step`: expected a finite number above 0, got -0.5");
    }
}
