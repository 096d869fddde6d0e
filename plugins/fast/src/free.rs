//! Free adversarial training (Shafahi et al. 2019, Algorithm 1): the perturbation goes on from one
//! minibatch to the next, row by row, whatever their images are. With `--mode fused --replay m` it
//! is the paper's method: one backward for weights and perturbation, m times for each minibatch.
//!
//! As in the authors' code, the perturbation delta itself is kept in the ball and only the image
//! x + delta in the domain: where the image was cut to the domain, the loss does not depend on delta,
//! which therefore stays as it is, and acts on the next image. With m replays,
//! delta' = the ball's nearest to delta + epsilon * sign(gradient).

use plugin_api::tch::Tensor;
use plugin_api::{Next, Result, Sampler, Start, Step, ThreatModel, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("free", Free);

/// The sampler of free adversarial training.
pub struct Free {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step, as a multiple of epsilon.
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
}

impl Default for Options {
    /// The paper's setting.
    fn default() -> Self {
        Self { step_scale: 1.0 }
    }
}

impl Sampler for Free {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Carried
    }

    /// The perturbation, which may lead out of the domain.
    fn state_tensors(&self) -> usize {
        1
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        let [perturbation] = crate::state(start)?;
        let perturbation = in_ball(perturbation, start);
        Ok(Next { particles: start.natural + &perturbation, state: vec![perturbation] })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let [perturbation] = crate::state(step)?;
        let (low, high) = step.threat.domain;
        let image = step.natural + perturbation;
        let is_inside = image.ge(low).logical_and(&image.le(high));
        let ascent = step.threat.steepest_ascent(&(step.gradient * is_inside));
        let length = self.options.step_scale * step.threat.epsilon;
        let perturbation = in_ball(&(perturbation + ascent * length), step);
        Ok(Next { particles: step.natural + &perturbation, state: vec![perturbation] })
    }
}

/// The perturbation nearest to this one in the ball of a step, without regard to the domain.
fn in_ball(perturbation: &Tensor, step: &Step) -> Tensor {
    let ball = ThreatModel { domain: (f64::NEG_INFINITY, f64::INFINITY), ..step.threat };
    ball.project(perturbation, &perturbation.zeros_like())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{image, visit};
    use plugin_api::testing::assert_close;

    #[test]
    fn the_perturbation_goes_to_the_ball_and_stays_where_the_image_is_cut() {
        let sampler = Free { options: Options { step_scale: 0.8 } };
        // Steps of 0.2 in a ball of 0.25. The second pixel is at the end of the domain: its first
        // step leads out of it, and the second step does not move it back.
        let next = visit(&sampler, &image(&[0.5, 1.0, 0.5]), &[1.0, 1.0, -1.0], 1, &[0.0]);
        assert_close(&next.state[0], &[0.2, 0.2, -0.2]);
        assert_close(&next.particles, &[0.7, 1.2, 0.3]);
        let next = visit(&sampler, &image(&[0.5, 1.0, 0.5]), &[1.0, 1.0, -1.0], 2, &[0.0]);
        assert_close(&next.state[0], &[0.25, 0.2, -0.25]);
    }
}
