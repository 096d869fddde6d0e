//! The distributionally adversarial attack (DAA, Zheng, Chen and Ren 2019): particles of a batch climb
//! together, as a discretised gradient flow of their distribution.
//!
//! The N particles x_i of the batch, of whatever points, act on one another through the kernel
//! K_ij = exp(-|x_i - x_j|^2 / (2 h^2)), with the Euclidean distance of the images. With the gradient
//! g_i of the loss at x_i, each moves by a step along the steepest ascent (in linf the sign) of v_i:
//!
//! * `blob` (DAA-BLOB): v_i = g_i + c / N * sum over j of K_ij (g_j - (x_i - x_j) / h^2)
//! * `dgf` (DAA-DGF): v_i = g_i + c * sum over j of K_ij (|x_i - x_j|^2 / (2 h^2) - 1) (x_i - x_j)
//!
//! h^2 is half of the median of all N^2 squared distances over log N (`blob`) or log(N + 1) (`dgf`).
//! Signs and constants are those of the authors' code: c = 1.1 and c = -0.001.

use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Next, Result, Sampler, Start, Step, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("daa", Daa);

/// The DAA sampler.
pub struct Daa {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// How particles act on one another.
    pub variant: Variant,
    /// Weight of what they do (c); the authors' value if not given: 1.1 for blob, -0.001 for dgf.
    pub interaction: Option<f64>,
    /// Length of each step, as a multiple of epsilon.
    #[schemars(range(min = 0.0))]
    pub step_scale: f64,
}

/// How particles act on one another.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// DAA-BLOB: by the mean of the gradients and of the attraction of near particles.
    #[default]
    Blob,
    /// DAA-DGF, the discrete gradient flow: by the repulsion of near particles.
    Dgf,
}

impl Default for Options {
    /// The setting of the authors' code for MNIST: steps of 0.01 at an epsilon of 0.3.
    fn default() -> Self {
        Self { variant: Variant::Blob, interaction: None, step_scale: 1.0 / 30.0 }
    }
}

impl Sampler for Daa {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn start(&self) -> Start {
        Start::Uniform
    }

    fn default_steps(&self) -> usize {
        40
    }

    fn interacts(&self) -> bool {
        true
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let Options { variant, interaction, step_scale } = self.options;
        let (particles, gradients) = (step.particles.flatten(1, -1), step.gradient.flatten(1, -1));
        let velocities = match variant {
            Variant::Blob => blob(&particles, &gradients, interaction.unwrap_or(1.1)),
            Variant::Dgf => dgf(&particles, &gradients, interaction.unwrap_or(-0.001)),
        };
        let ascent = step.threat.steepest_ascent(&velocities.reshape(step.particles.size()));
        Ok((step.particles + ascent * (step_scale * step.threat.epsilon)).into())
    }
}

/// The velocities of DAA-BLOB at particles `[N, D]` with these gradients.
fn blob(particles: &Tensor, gradients: &Tensor, weight: f64) -> Tensor {
    let count = particles.size()[0] as f64;
    let (squares, bandwidth) = distances(particles, count.ln());
    let kernel = (squares / &bandwidth / -2.0).exp();
    let attraction = differences(&kernel, particles) / bandwidth;
    gradients + (kernel.matmul(gradients) - attraction) * (weight / count.max(1.0))
}

/// The velocities of DAA-DGF.
fn dgf(particles: &Tensor, gradients: &Tensor, weight: f64) -> Tensor {
    let (squares, bandwidth) = distances(particles, (particles.size()[0] as f64).ln_1p());
    let scaled = squares / bandwidth / 2.0;
    gradients + differences(&((&scaled - 1.0) * scaled.neg().exp()), particles) * weight
}

/// The squared distances of all pairs, `[N, N]`, and the squared bandwidth h^2, half of their median
/// over `spread`. It is 1 where that is not above 0: for a single particle, or equal ones.
fn distances(particles: &Tensor, spread: f64) -> (Tensor, Tensor) {
    // Mode 2 computes differences, whose rounding is small where distances are.
    let squares = Tensor::cdist(particles, particles, 2.0, 2i64).square();
    let (sorted, _) = squares.flatten(0, -1).sort(0, false);
    let count = sorted.size()[0];
    let median = match count {
        0 => return (squares.shallow_clone(), squares.new_ones([1], (squares.kind(), squares.device()))),
        _ => sorted.narrow(0, (count - 1) / 2, 2 - count % 2).mean(Kind::Double),
    };
    let bandwidth = (median / (2.0 * spread)).to_kind(squares.kind());
    let is_positive = bandwidth.gt(0.0).logical_and(&bandwidth.isfinite());
    let bandwidth = bandwidth.where_self(&is_positive, &bandwidth.ones_like());
    (squares, bandwidth)
}

/// For each i the sum over j of weights_ij (x_i - x_j): `[N, D]`.
fn differences(weights: &Tensor, particles: &Tensor) -> Tensor {
    let totals = weights.sum_dim_intlist([1i64].as_slice(), true, weights.kind());
    particles * totals - weights.matmul(particles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::{FixedNumbers, assert_close, assert_particles, one_step};
    use plugin_api::{Norm, ThreatModel};

    fn column(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).reshape([-1, 1])
    }

    #[test]
    fn blob_adds_the_gradients_of_neighbours_and_their_attraction() {
        // Two particles at a distance of 0.5: the squared distances are 0, 0.25, 0.25, 0 with the
        // median 0.125, so h^2 = 0.0625 / ln 2, and K_12 = exp(-0.25 * ln 2 / 0.125) = 1/4.
        // The attraction is 1/4 * 0.5 / h^2 = 2 ln 2.
        let velocities = blob(&column(&[0.0, 0.5]), &column(&[1.0, -3.0]), 0.5);
        let pull = 2.0 * 2f64.ln();
        assert_close(&velocities, &[1.0 + 0.25 * (1.0 - 0.75 + pull), -3.0 + 0.25 * (-3.0 + 0.25 - pull)]);
    }

    #[test]
    fn dgf_moves_near_particles_apart_and_far_ones_together() {
        // h^2 = 0.0625 / ln 3, K_12 = exp(-2 ln 3) = 1/9, with the factor 2 ln 3 - 1.
        let velocities = dgf(&column(&[0.0, 0.5]), &column(&[1.0, -3.0]), -2.0);
        let push = 2.0 * 0.5 * (2.0 * 3f64.ln() - 1.0) / 9.0;
        assert_close(&velocities, &[1.0 + push, -3.0 - push]);
    }

    #[test]
    fn a_particle_alone_follows_its_gradient() {
        assert_close(&blob(&column(&[0.5]), &column(&[2.0]), 0.5), &[3.0]);
        assert_close(&dgf(&column(&[0.5]), &column(&[2.0]), 0.5), &[2.0]);
        // So do equal ones, along their mean.
        assert_close(&blob(&column(&[0.5, 0.5]), &column(&[2.0, 4.0]), 1.0), &[5.0, 7.0]);
    }

    #[test]
    fn a_step_goes_along_the_sign_of_the_velocity() {
        // By the gradient of its neighbour, the first particle moves against its own.
        let natural = Tensor::from_slice(&[0.5, 0.5]).reshape([2, 1, 1, 1]);
        let gradient = Tensor::from_slice(&[-0.1, 1.0]).reshape([2, 1, 1, 1]);
        let threat = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };
        let sampler = Daa { options: Options { step_scale: 0.4, ..Options::default() } };
        let next = one_step(&sampler, &natural, &gradient, &[], threat, &FixedNumbers(vec![0.0]));
        assert_particles(next, &[0.6, 0.6]);
    }
}
