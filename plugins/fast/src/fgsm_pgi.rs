//! FGSM with prior-guided initialisation (Jia et al. 2022), with momentum over all epochs (their
//! FGSM-MEP): a step begins at a perturbation that the earlier epochs suggest.
//!
//! For each point, with the perturbation eta where the visit begins and the momentum g:
//!
//! * s = sign of the gradient of the loss at x + eta
//! * g' = mu * g + s
//! * the particle, at which the weights descend, is x + eta + alpha * s
//! * the next visit begins at eta' = eta + alpha * sign(g')
//!
//! Particle and eta' are projected onto ball and domain. With mu = 0, eta' is the perturbation of
//! the epoch before (the paper's FGSM-EP). Every so many epochs, g is zero again, and eta a random
//! corner of the ball. The paper's regularisation of the outer loss is the objective `prior_guided.so`.

use plugin_api::{Next, Result, Sampler, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("fgsm_pgi", FgsmPgi);

/// The FGSM-PGI sampler.
pub struct FgsmPgi {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step, as a multiple of epsilon (alpha).
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
    /// The share of the momentum that a step keeps (mu).
    #[schemars(range(min = 0.0))]
    pub momentum: f64,
    /// Number of visits (epochs) after which a particle begins anew at a random corner.
    #[schemars(range(min = 1))]
    pub reset: u32,
}

impl Default for Options {
    /// The paper's setting for CIFAR-10.
    fn default() -> Self {
        Self { step_scale: 1.0, momentum: 0.3, reset: 40 }
    }
}

impl Sampler for FgsmPgi {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    /// The momentum, and the perturbation where the next visit begins.
    fn state_tensors(&self) -> usize {
        2
    }

    fn numbers(&self) -> Vec<&'static str> {
        vec!["visits"]
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        let [momentum, prior, visits] = crate::state(start)?;
        let anew = crate::begins_anew(visits, self.options.reset);
        let corner = start.threat.steepest_ascent(&(start.random.uniform(prior)? - 0.5));
        let prior = (corner * (self.options.step_scale * start.threat.epsilon)).where_self(&anew, prior);
        let momentum = momentum.zeros_like().where_self(&anew, momentum);
        Ok(Next { particles: start.natural + &prior, state: vec![momentum, prior, visits + 1.0] })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let [momentum, _, visits] = crate::state(step)?;
        let length = self.options.step_scale * step.threat.epsilon;
        let ascent = step.threat.steepest_ascent(step.gradient);
        let momentum = momentum * self.options.momentum + &ascent;
        let next_start = step.particles + step.threat.steepest_ascent(&momentum) * length;
        let prior = step.threat.project(&next_start, step.natural) - step.natural;
        Ok(Next { particles: step.particles + ascent * length, state: vec![momentum, prior, visits.copy()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{LINF, image, visit};
    use plugin_api::Random;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_close};

    /// The next visit of the particle of a point, from this state: its start, then its step along
    /// this gradient.
    fn next_visit(sampler: &FgsmPgi, natural: &Tensor, state: Vec<Tensor>, gradient: &[f64]) -> (Next, Next) {
        let numbers = FixedNumbers(vec![0.75, 0.25]);
        let call = |particles: &Tensor, state: &[Tensor], gradient: &Tensor, begins: bool| {
            let step = Step {
                natural,
                labels: &Tensor::from_slice(&[0i64]),
                particles,
                loss: &Tensor::from_slice(&[0.0]),
                gradient,
                state,
                points: &[0],
                particles_per_point: 1,
                number: 0,
                of: 1,
                threat: LINF,
                random: Random::new(&numbers),
            };
            if begins { sampler.begin(&step) } else { sampler.step(&step) }.expect("a call")
        };
        let start = call(natural, &state, &natural.zeros_like(), true);
        let next = call(&start.particles, &start.state, &image(gradient), false);
        (start, next)
    }

    #[test]
    fn a_visit_begins_where_the_momentum_of_earlier_visits_points() {
        let options = Options { step_scale: 0.4, momentum: 0.5, reset: 40 };
        let (sampler, natural) = (FgsmPgi { options }, image(&[0.5, 0.5]));
        // First at a random corner: 0.1 along the signs of 0.75 - 0.5 and 0.25 - 0.5.
        let fresh = vec![
            natural.zeros_like(),
            natural.zeros_like(),
            Tensor::zeros([1, 1], (natural.kind(), natural.device())),
        ];
        let (start, next) = next_visit(&sampler, &natural, fresh, &[2.0, 3.0]);
        assert_close(&start.particles, &[0.6, 0.4]);
        assert_close(&next.particles, &[0.7, 0.5]);
        assert_close(&next.state[0], &[1.0, 1.0]);
        assert_close(&next.state[1], &[0.2, 0.0]);
        assert_close(&next.state[2], &[1.0]);
        // The momentum is then 0.5 - 1 and 0.5 + 1. The particle moves by the sign of the gradient,
        // and the next start is clipped to the ball of 0.25: 0.2 - 0.1, 0 + 0.1.
        let (start, next) = next_visit(&sampler, &natural, next.state, &[-1.0, 4.0]);
        assert_close(&start.particles, &[0.7, 0.5]);
        assert_close(&next.particles, &[0.6, 0.6]);
        assert_close(&next.state[0], &[-0.5, 1.5]);
        assert_close(&next.state[1], &[0.1, 0.1]);
        // Another gradient of zero: the momentum alone moves the start.
        let (_, next) = next_visit(&sampler, &natural, next.state, &[0.0, 0.0]);
        assert_close(&next.particles, &[0.6, 0.6]);
        assert_close(&next.state[1], &[0.0, 0.2]);
    }

    #[test]
    fn a_particle_begins_anew_after_so_many_visits() {
        let options = Options { step_scale: 0.4, momentum: 0.5, reset: 2 };
        let (sampler, natural) = (FgsmPgi { options }, image(&[0.5, 0.5]));
        let visits = Tensor::from_slice(&[2.0]).reshape([1, 1]);
        let state = vec![image(&[9.0, -9.0]), image(&[-0.25, 0.25]), visits];
        let (start, _) = next_visit(&sampler, &natural, state, &[0.0, 0.0]);
        assert_close(&start.particles, &[0.6, 0.4]);
        assert_close(&start.state[0], &[0.0, 0.0]);
    }

    #[test]
    fn the_first_visit_of_a_fresh_particle_needs_no_state() {
        let sampler = FgsmPgi { options: Options::default() };
        let next = visit(&sampler, &image(&[0.5, 0.5]), &[3.0, -2.0], 1, &[0.75, 0.25]);
        assert_close(&next.particles, &[1.0, 0.0]);
    }
}
