//! MI-FGSM (Dong et al. 2018, equations 6 and 7): steps along the momentum of normalised gradients.
//!
//! g' = mu * g + gradient / (sum of its absolute values); the particle moves by alpha along the
//! steepest ascent of g' (in linf its sign). g is zero where a visit begins.

use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("mi_fgsm", MiFgsm);

/// The MI-FGSM sampler.
pub struct MiFgsm {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of each step, as a multiple of epsilon; 1 / T in a visit of T steps if not given.
    #[schemars(range(min = 0.0))]
    pub step_scale: Option<f64>,
    /// The share of the momentum that a step keeps (mu).
    #[schemars(range(min = 0.0))]
    pub momentum: f64,
}

impl Default for Options {
    /// The paper's setting.
    fn default() -> Self {
        Self { step_scale: None, momentum: 1.0 }
    }
}

impl Sampler for MiFgsm {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Natural
    }

    fn default_steps(&self) -> usize {
        10
    }

    /// The momentum.
    fn visit_tensors(&self) -> usize {
        1
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let [momentum] = crate::state(step)?;
        let sum = step.gradient.abs().sum_dim_intlist([1i64, 2, 3].as_slice(), true, step.gradient.kind());
        let normalised = step.gradient / sum.where_self(&sum.gt(0.0), &sum.ones_like());
        let momentum = momentum * self.options.momentum + normalised;
        let length = self.options.step_scale.unwrap_or(1.0 / step.of as f64) * step.threat.epsilon;
        let particles = step.particles + step.threat.steepest_ascent(&momentum) * length;
        Ok(Next { particles, state: vec![momentum] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{LINF, image, visit};
    use plugin_api::testing::{FixedNumbers, assert_close, one_visit};

    #[test]
    fn the_momentum_is_of_gradients_over_their_sums() {
        let sampler = MiFgsm { options: Options { momentum: 0.5, ..Options::default() } };
        // The gradient over its sum is (0.75, -0.25, 0); with momentum, 1.5 times that. Two steps of
        // 0.25 / 2.
        let next = visit(&sampler, &image(&[0.5, 0.5, 0.5]), &[3.0, -1.0, 0.0], 2, &[0.0]);
        assert_close(&next.particles, &[0.75, 0.25, 0.5]);
        assert_close(&next.state[0], &[1.125, -0.375, 0.0]);
    }

    #[test]
    fn the_momentum_outlasts_a_gradient_of_the_other_sign_and_size() {
        let sampler = MiFgsm { options: Options { step_scale: Some(0.4), momentum: 1.0 } };
        // First +1, then -1 in a gradient of which it is a quarter: the momentum is 0.75.
        let natural = image(&[0.5, 0.5]);
        let evaluate = |particles: &plugin_api::tch::Tensor| {
            let first = particles == &natural;
            let gradient = if first { image(&[5.0, 0.0]) } else { image(&[-2.0, 6.0]) };
            (plugin_api::tch::Tensor::from_slice(&[0.0]), gradient)
        };
        let next =
            one_visit(&sampler, &natural, evaluate, 2, LINF, &FixedNumbers(vec![0.0])).expect("a visit");
        assert_close(&next.state[0], &[0.75, 0.75]);
        assert_close(&next.particles, &[0.7, 0.6]);
    }

    #[test]
    fn without_any_gradient_nothing_moves() {
        let sampler = MiFgsm { options: Options::default() };
        let next = visit(&sampler, &image(&[0.5, 0.25]), &[0.0, 0.0], 3, &[0.0]);
        assert_close(&next.particles, &[0.5, 0.25]);
    }
}
