//! The fast gradient sign method (Goodfellow et al. 2015): one step to the edge of the ball. With
//! `start=uniform,step_scale=1.25` it is RS-FGSM, the fast adversarial training of Wong et al. 2020.

use plugin_api::{Error, Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("fgsm", Fgsm);

/// The FGSM sampler.
pub struct Fgsm {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Length of the step in the threat model's norm, in units of the domain.
    #[schemars(range(min = 0.0))]
    pub step_size: Option<f64>,
    /// Length of the step as a multiple of epsilon; 1 if no length is given.
    #[schemars(range(min = 0.0))]
    pub step_scale: Option<f64>,
    /// The start of the step.
    pub start: From,
}

/// The start of the step.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// At the natural example.
    #[default]
    Natural,
    /// At a uniform draw from the ball.
    Uniform,
}

impl Sampler for Fgsm {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        match options {
            Options { step_size: Some(size), step_scale: Some(scale), .. } => Err(Error::new(format!(
                "expected step_size or step_scale, got both: {size} and {scale} epsilon"
            ))),
            _ => Ok(Self { options }),
        }
    }

    fn start(&self) -> Start {
        match self.options.start {
            From::Natural => Start::Natural,
            From::Uniform => Start::Uniform,
        }
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let Options { step_size, step_scale, .. } = self.options;
        let step_size = step_size.unwrap_or(step_scale.unwrap_or(1.0) * step.threat.epsilon);
        Ok((step.particles + step.threat.steepest_ascent(step.gradient) * step_size).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Tensor;
    use plugin_api::testing::{FixedNumbers, assert_particles, one_step};
    use plugin_api::{Norm, ThreatModel};

    /// A step from (0.5, 0.5) with gradient (3, -4), epsilon 0.25.
    fn assert_step(sampler: &Fgsm, norm: Norm, expected: [f64; 2]) {
        let natural = Tensor::from_slice(&[0.5, 0.5]).reshape([1, 1, 1, 2]);
        let gradient = Tensor::from_slice(&[3.0, -4.0]).reshape([1, 1, 1, 2]);
        let threat = ThreatModel { norm, epsilon: 0.25, domain: (0.0, 1.0) };
        let numbers = FixedNumbers(vec![0.0]);
        assert_particles(one_step(sampler, &natural, &gradient, &[], threat, &numbers), &expected);
    }

    #[test]
    fn the_step_reaches_the_edge_by_default() {
        assert_step(&Fgsm { options: Options::default() }, Norm::Linf, [0.75, 0.25]);
        let short = Options { step_size: Some(0.1), ..Options::default() };
        assert_step(&Fgsm { options: short }, Norm::Linf, [0.6, 0.4]);
        let long = Options { step_scale: Some(1.25), ..Options::default() };
        assert_step(&Fgsm { options: long }, Norm::Linf, [0.8125, 0.1875]);
    }

    #[test]
    fn two_lengths_are_refused() {
        let both = Options { step_size: Some(0.1), step_scale: Some(1.25), ..Options::default() };
        let refused = Fgsm::new(both).err().expect("refused").to_string();
        assert_eq!(refused, "expected step_size or step_scale, got both: 0.1 and 1.25 epsilon");
    }

    #[test]
    fn the_start_is_an_option() {
        assert_eq!(Fgsm { options: Options::default() }.start(), Start::Natural);
        let uniform = Options { start: From::Uniform, ..Options::default() };
        assert_eq!(Fgsm { options: uniform }.start(), Start::Uniform);
    }
}
