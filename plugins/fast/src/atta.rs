//! ATTA (Zheng et al. 2020, "Efficient Adversarial Training with Transferable Adversarial Examples"):
//! a visit goes on from the perturbation of the same point in the epoch before, which the host
//! carries through crops and flips. Every so many epochs, the particle begins anew at the natural
//! example.
//!
//! One step is the paper's ATTA-1, with steps=K its ATTA-K.

use plugin_api::{Next, Result, Sampler, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("atta", Atta);

/// The ATTA sampler.
pub struct Atta {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step, as a multiple of epsilon.
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
    /// Number of visits (epochs) after which a particle begins anew at its natural example.
    #[schemars(range(min = 1))]
    pub reset: u32,
}

impl Default for Options {
    /// A step of 4/255 at the epsilon of CIFAR-10, 8/255.
    fn default() -> Self {
        Self { step_scale: 0.5, reset: 10 }
    }
}

impl Sampler for Atta {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn numbers(&self) -> Vec<&'static str> {
        vec!["visits"]
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        let [visits] = crate::state(start)?;
        let anew = crate::begins_anew(visits, self.options.reset);
        Ok(Next { particles: start.natural.where_self(&anew, start.particles), state: vec![visits + 1.0] })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let [visits] = crate::state(step)?;
        let length = self.options.step_scale * step.threat.epsilon;
        let particles = step.particles + step.threat.steepest_ascent(step.gradient) * length;
        Ok(Next { particles, state: vec![visits.copy()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{LINF, image, visit};
    use plugin_api::Random;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_close};

    #[test]
    fn a_visit_steps_by_a_multiple_of_epsilon_and_is_counted() {
        let sampler = Atta { options: Options::default() };
        let next = visit(&sampler, &image(&[0.5, 0.5]), &[3.0, -2.0], 1, &[0.0]);
        assert_close(&next.particles, &[0.625, 0.375]);
        assert_close(&next.state[0], &[1.0]);
    }

    #[test]
    fn a_particle_begins_where_it_was_and_anew_after_so_many_visits() {
        let sampler = Atta { options: Options { reset: 3, ..Options::default() } };
        let (natural, particles, numbers) = (image(&[0.5]), image(&[0.625]), FixedNumbers(vec![0.0]));
        for (visits, expected) in [(0.0, 0.5), (1.0, 0.625), (2.0, 0.625), (3.0, 0.5), (4.0, 0.625)] {
            let start = Step {
                natural: &natural,
                labels: &Tensor::from_slice(&[0i64]),
                particles: &particles,
                loss: &Tensor::from_slice(&[0.0]),
                gradient: &natural.zeros_like(),
                state: &[Tensor::from_slice(&[visits]).reshape([1, 1])],
                points: &[0],
                particles_per_point: 1,
                number: 0,
                of: 1,
                threat: LINF,
                random: Random::new(&numbers),
            };
            let begun = sampler.begin(&start).expect("a start");
            assert_close(&begun.particles, &[expected]);
            assert_close(&begun.state[0], &[visits + 1.0]);
        }
    }
}
