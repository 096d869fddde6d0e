//! The cost of training in passes. A pass is one forward and one backward of one sample; a forward
//! alone counts as a whole pass, so that no method looks cheaper than it is.

use super::update::Players;
use crate::config::{Mode, Objective, Train};

/// Passes of each training point in an epoch. For each of its K particles: in mode faithful T for the
/// steps of the particle, one for the weights and one if the sampler judges its last proposal; in mode
/// fused one for each replay. For each natural example: those that the objective needs, once for all
/// K particles.
pub(super) fn passes_per_epoch(train: &Train, players: &Players) -> u64 {
    let of_particles = match train.mode {
        Mode::Faithful => {
            let of_sampler = |sampler: &crate::plugin::Sampler| {
                sampler.steps + usize::from(sampler.judges_last_proposal())
            };
            players.sampler.as_ref().map_or(0, of_sampler) + 1
        }
        Mode::Fused => train.replay,
    };
    let of_natural = match train.objective {
        Objective::CrossEntropy => 0,
        Objective::Trades => 1 + usize::from(players.inner_target_is_apart(train)),
    };
    (of_particles * train.particles + of_natural) as u64
}

/// Passes of all points together that renewing the running statistics of averaged weights takes, with
/// `batches` minibatches out of `points` points. They are forwards without a graph, which count half a
/// pass each: they are measurement, and reported beside the cost of training.
pub(super) fn statistics_passes(train: &Train, points: usize, batches: usize) -> f64 {
    let minibatches = points.div_ceil(train.batch);
    let rest = (batches % minibatches * train.batch).min(points);
    let forwards = (batches / minibatches * points + rest) * train.particles;
    forwards as f64 / 2.0
}
