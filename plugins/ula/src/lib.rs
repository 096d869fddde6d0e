//! The unadjusted Langevin algorithm (Roberts and Tweedie 1996) in units of the law.
//!
//! A step is x + gamma * gradient of the loss + sqrt(2 * gamma / lambda) * xi, with xi standard
//! normal: Algorithm 1 with eta = gamma and sigma^2 = 2 * gamma / lambda, without the sign. For small
//! gamma, the chain approximates the density proportional to exp(lambda * loss). Its error is of the
//! order of gamma, and larger at the faces of a ball that projects, so it declares no law.

use plugin_api::metropolis::Boundary as Exact;
use plugin_api::tch::Tensor;
use plugin_api::{Error, Next, Projection, Result, Sampler, Step, ThreatModel, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("ula", Ula);

/// The unadjusted Langevin sampler.
pub struct Ula {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The factor of the loss in the law exp(lambda * loss), per unit of the loss; above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub lambda: f64,
    /// Step size gamma, in squared units of the domain per unit of the loss; above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gamma: f64,
    /// What becomes of steps that leave the ball or the domain.
    pub boundary: Boundary,
}

/// What becomes of steps that leave the ball or the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// They are projected, as in Algorithm 1. Many particles then lie exactly on the faces.
    #[default]
    Project,
    /// They are reflected at the faces. Norm linf only.
    Reflect,
    /// They are not taken.
    Reject,
}

impl Boundary {
    /// The boundary of an exact sampler; none if the host projects.
    fn exact(self) -> Option<Exact> {
        match self {
            Self::Project => None,
            Self::Reflect => Some(Exact::Reflect),
            Self::Reject => Some(Exact::Reject),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { lambda: 10.0, gamma: 0.002, boundary: Boundary::Project }
    }
}

impl Sampler for Ula {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        for (name, value) in [("lambda", options.lambda), ("gamma", options.gamma)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::new(format!(
                    "option `{name}`: expected a finite number above 0, got {value}"
                )));
            }
        }
        Ok(Self { options })
    }

    fn projection(&self) -> Projection {
        match self.options.boundary {
            Boundary::Project => Projection::Host,
            Boundary::Reflect | Boundary::Reject => Projection::Sampler,
        }
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        self.options.boundary.exact().map_or(Ok(()), |boundary| boundary.supports(threat))
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let Options { lambda, gamma, boundary } = self.options;
        let noise = step.random.normal(step.particles)? * (2.0 * gamma / lambda).sqrt();
        let moved: Tensor = step.particles + step.gradient * gamma + noise;
        let particles = match boundary.exact() {
            Some(boundary) => boundary.bring_back(step, step.particles, &moved).0,
            None => moved,
        };
        Ok(particles.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Norm;
    use plugin_api::testing::{FixedNumbers, assert_particles, one_step};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

    #[test]
    fn a_step_is_gamma_times_the_gradient_plus_the_noise_of_the_law() {
        // gamma 0.02 at lambda 4: the noise has standard deviation sqrt(0.04 / 4) = 0.1. From 0.5 with
        // gradient 2 and number 1: 0.5 + 0.04 + 0.1. From 0.95 with gradient -1 and number 1:
        // 0.95 - 0.02 + 0.1 = 1.03, left to the host, reflected at 1, or not taken.
        let natural = Tensor::from_slice(&[0.5, 0.95]).reshape([2, 1, 1, 1]);
        let gradient = Tensor::from_slice(&[2.0, -1.0]).reshape([2, 1, 1, 1]);
        for (boundary, projection, second) in [
            (Boundary::Project, Projection::Host, 1.03),
            (Boundary::Reflect, Projection::Sampler, 0.97),
            (Boundary::Reject, Projection::Sampler, 0.95),
        ] {
            let sampler = Ula::new(Options { lambda: 4.0, gamma: 0.02, boundary }).expect("a sampler");
            assert_eq!(sampler.projection(), projection);
            let next = one_step(&sampler, &natural, &gradient, &[], LINF, &FixedNumbers(vec![1.0]));
            assert_particles(next, &[0.64, second]);
        }
    }

    #[test]
    fn reflection_needs_a_box_and_options_are_above_zero() {
        let made = |lambda, gamma, boundary| Ula::new(Options { lambda, gamma, boundary });
        let l2 = ThreatModel { norm: Norm::L2, ..LINF };
        let supports = |boundary| made(1.0, 1.0, boundary).expect("a sampler").supports(&l2);
        assert!(supports(Boundary::Reflect).is_err());
        assert_eq!([supports(Boundary::Project), supports(Boundary::Reject)], [Ok(()), Ok(())]);
        let refused = made(0.0, 1.0, Boundary::Project).err().expect("refused").to_string();
        assert_eq!(refused, "option `lambda`: expected a finite number above 0, got 0");
        let refused = made(1.0, -1.0, Boundary::Project).err().expect("refused").to_string();
        assert_eq!(refused, "option `gamma`: expected a finite number above 0, got -1");
    }
}
