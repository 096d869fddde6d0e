//! Random-walk Metropolis (Metropolis et al. 1953; on particles that stay between visits).
//!
//! From the particle x, a normal step of standard deviation tau is proposed, y = x + tau * xi, and
//! accepted with probability min(1, exp(lambda * (loss(y) - loss(x)))). The chain uses no gradient.
//! For fixed weights it leaves the density proportional to exp(lambda * loss) invariant. A proposal
//! outside the ball or the domain is reflected, which keeps the proposals symmetric, or rejected.
//! The default rate of acceptance that tau is adapted to is 0.234 (Roberts, Gelman and Gilks 1997).

use plugin_api::law::Law;
use plugin_api::metropolis::{Boundary, Judged, Metropolis};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Error, Next, Projection, Result, Sampler, Step, ThreatModel, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("metropolis", RandomWalk);

/// The rate of acceptance that the step size is adapted to.
const ACCEPTANCE: f64 = 0.234;

/// The random-walk Metropolis sampler.
pub struct RandomWalk {
    chain: Metropolis,
    boundary: Boundary,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The factor of the loss in the law exp(lambda * loss), per unit of the loss; above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub lambda: f64,
    /// Standard deviation of a proposal in each pixel, in units of the domain, before adaptation;
    /// above 0. At most 2 * epsilon is used.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub step: f64,
    /// What becomes of proposals outside the ball or the domain.
    pub boundary: Boundary,
    /// Number of first proposals of each particle during which its step size is adapted to a rate of
    /// acceptance of 0.234; 0 keeps `step`. Afterwards the chain has its law exactly.
    pub burn_in: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { lambda: 10.0, step: 0.05, boundary: Boundary::Reflect, burn_in: 100 }
    }
}

impl RandomWalk {
    /// The numbers and the position after judging the proposal, if there is one.
    fn judged(&self, step: &Step) -> Result<(Tensor, Tensor)> {
        let [numbers, position] = step.state else {
            return Err(Error::new(format!("expected 2 state tensors, got {}", step.state.len())));
        };
        let Judged { accepted, numbers } = self.chain.judge(step, numbers, position, None)?;
        Ok((numbers, step.particles.where_self(&accepted, position)))
    }
}

impl Sampler for RandomWalk {
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

    /// The position that a proposal was made from.
    fn visit_tensors(&self) -> usize {
        1
    }

    fn uses_gradient(&self) -> bool {
        false
    }

    fn judges_last_proposal(&self) -> bool {
        true
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let (numbers, position) = self.judged(step)?;
        let noise = step.random.normal(&position)?.to_kind(Kind::Double);
        let proposal = &position + noise * self.chain.step_size(step, &numbers);
        let (particles, _) = self.boundary.bring_back(step, &position, &proposal.to_kind(position.kind()));
        Ok(Next { particles, state: vec![numbers, position] })
    }

    fn finish(&self, proposal: &Step) -> Result<Next> {
        let (numbers, position) = self.judged(proposal)?;
        Ok(Next { particles: position.shallow_clone(), state: vec![numbers, position] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::{FixedNumbers, assert_close, one_visit};
    use plugin_api::{Norm, RandomSource};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

    fn sampler(boundary: Boundary, burn_in: u32) -> RandomWalk {
        RandomWalk::new(Options { boundary, burn_in, step: 0.1, ..Options::default() }).expect("a sampler")
    }

    /// A visit from these pixels (one row each) where the loss is 0 at them and `rise` elsewhere.
    fn visit(sampler: &RandomWalk, pixels: &[f64], rise: f64, steps: usize, numbers: &[f64]) -> Next {
        let natural = Tensor::from_slice(pixels).reshape([-1, 1, 1, 1]);
        let numbers: &dyn RandomSource = &FixedNumbers(numbers.to_vec());
        let evaluate = |particles: &Tensor| {
            let moved = particles.ne_tensor(&natural);
            let loss = particles.full_like(rise).where_self(&moved, &particles.zeros_like());
            (loss.flatten(0, -1), particles.zeros_like())
        };
        one_visit(sampler, &natural, evaluate, steps, LINF, numbers).expect("a visit")
    }

    #[test]
    fn a_proposal_is_accepted_with_the_ratio_of_the_densities() {
        // The proposal is 0.5 + 0.1 * 0.5. The uniform number is 0.5, too, and exp(10 * rise) crosses
        // it at a rise of -0.0693.
        for (rise, expected, share) in [(-0.069, 0.55, 1.0), (-0.070, 0.5, 0.0), (1.0, 0.55, 1.0)] {
            let next = visit(&sampler(Boundary::Reflect, 0), &[0.5], rise, 1, &[0.5]);
            assert_close(&next.particles, &[expected]);
            let loss = if share > 0.0 { rise } else { 0.0 };
            assert_close(&next.state[0], &[share, 0.1, loss, 0.0, 0.0]);
        }
    }

    #[test]
    fn a_loss_that_is_no_number_is_rejected() {
        for loss in [f64::NAN, f64::NEG_INFINITY] {
            let next = visit(&sampler(Boundary::Reflect, 100), &[0.5], loss, 1, &[0.5]);
            assert_close(&next.particles, &[0.5]);
            // The step size shrinks by the factor exp(-2 * 0.234).
            assert_close(&next.state[0], &[0.0, 0.1 * (-0.468f64).exp(), 0.0, -0.468, 1.0]);
        }
    }

    #[test]
    fn a_proposal_outside_is_reflected_or_rejected() {
        // 0.95 + 0.1 * 0.8 = 1.03 is reflected at 1; 0.5 + 0.08 is inside.
        let reflected = visit(&sampler(Boundary::Reflect, 0), &[0.95, 0.5], 1.0, 1, &[0.8]);
        assert_close(&reflected.particles, &[0.97, 0.58]);
        let rejected = visit(&sampler(Boundary::Reject, 0), &[0.95, 0.5], 1.0, 1, &[0.8]);
        assert_close(&rejected.particles, &[0.95, 0.58]);
        assert_close(&rejected.state[0].select(1, 0), &[0.0, 1.0]);
    }

    #[test]
    fn the_step_grows_while_proposals_are_accepted_and_is_then_kept() {
        // The log of the step gains 2 * 1^-0.6 * (1 - 0.234), then the burn-in ends.
        let next = visit(&sampler(Boundary::Reflect, 1), &[0.5], 1.0, 3, &[0.01]);
        let grown = 0.1 * (2.0f64 * 0.766).exp();
        assert_close(&next.state[0], &[1.0, grown, 1.0, 2.0 * 0.766, 1.0]);
        // It grows up to the diameter of the ball.
        let next = visit(&sampler(Boundary::Reflect, 9), &[0.5], 1.0, 9, &[0.01]);
        assert_close(&next.state[0].select(1, 1), &[0.6]);
    }

    #[test]
    fn reflection_needs_a_box() {
        let l2 = ThreatModel { norm: Norm::L2, ..LINF };
        let refused = sampler(Boundary::Reflect, 0).supports(&l2).expect_err("refused").to_string();
        assert!(refused.contains("`reflect` needs the faces of a box"), "{refused}");
        assert_eq!(sampler(Boundary::Reject, 0).supports(&l2), Ok(()));
    }

    #[test]
    fn options_that_are_not_above_zero_are_refused() {
        let refusal = |options: Options| RandomWalk::new(options).err().expect("refused").to_string();
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let refused = refusal(Options { lambda: value, ..Options::default() });
            assert_eq!(refused, format!("option `lambda`: expected a finite number above 0, got {value}"));
            let refused = refusal(Options { step: value, ..Options::default() });
            assert_eq!(refused, format!("option `step`: expected a finite number above 0, got {value}"));
        }
    }
}
