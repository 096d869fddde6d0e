//! Objectives of distributionally robust optimisation over the points of a minibatch: what counts is not
//! the mean of their losses but that under the worst weights. The loss of a point is the mean
//! cross-entropy of its particles; the sampler climbs the cross-entropy.
//!
//! | plugin | worst weights |
//! |---|---|
//! | `cvar` | on a share alpha of the points |
//! | `kl_dro` | those of exp(loss / temperature): the KL ball in its Lagrangian form |
//! | `chi2_dro` | in a chi-squared ball of radius rho |
//! | `group_dro` | on groups of points, learned during training |

mod balls;
mod group;

use plugin_api::losses::cross_entropy;
use plugin_api::tch::Tensor;
use plugin_api::{Batch, Result};

/// The loss of each point of a minibatch, `[B]`.
fn of_points(batch: &Batch) -> Result<Tensor> {
    let losses = cross_entropy(batch.logits, batch.labels);
    let kind = losses.kind();
    let of_particles = losses.f_reshape([-1, batch.particles_per_point as i64])?;
    Ok(of_particles.f_mean_dim([1i64].as_slice(), false, kind)?)
}

#[cfg(test)]
mod fixtures {
    use plugin_api::tch::Tensor;
    use plugin_api::testing::Round;

    /// Logits of two classes and labels 0, with these losses.
    pub fn with_losses(losses: &[f64]) -> Round<'static> {
        let rows: Vec<_> = losses.iter().flat_map(|loss| [-loss, (1.0 - (-loss).exp()).ln()]).collect();
        let logits = Tensor::from_slice(&rows).reshape([-1, 2]).set_requires_grad(true);
        Round::new(logits, &vec![0; losses.len()])
    }
}
