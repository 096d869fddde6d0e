use crate::law::Law;
use crate::{PluginOptions, Random, Result, ThreatModel};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Where a chain begins when its point is in a minibatch, or under attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// At its particle in the particle store, which holds the natural examples at first.
    Store,
    /// At the natural example.
    Natural,
    /// At a uniform draw from the ball, cut to the domain.
    Uniform,
    /// At the natural example plus the perturbation with which the same row of the minibatch before
    /// ended, projected onto the ball and the domain; at the natural example in the first minibatch,
    /// and under attack. The state is that of the same row, too. Since contract 1.2.
    Carried,
}

/// The side that keeps particles inside the threat model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// The host projects what `step` returns: ball, then domain.
    Host,
    /// The sampler keeps them inside (by reflection or rejection); the host only verifies.
    Sampler,
}

/// A transition kernel: it computes the next particles from the particles, the loss and its
/// gradient.
///
/// A sampler has no access to the model. The host computes gradients, counts passes, projects,
/// keeps the particle store and draws the random numbers. A sampler holds its options and nothing
/// else. The state of a chain belongs in [`Step::state`], which the host keeps, shuffles and saves
/// with the particle.
pub trait Sampler: Sized + Send + 'static {
    /// The user's options, documented and checked by their JSON schema. The name `steps` is
    /// reserved: the host adds this option to every sampler.
    type Options: PluginOptions;

    /// A sampler with these options.
    ///
    /// # Errors
    /// If the options contradict one another.
    fn new(options: Self::Options) -> Result<Self>;

    /// Where chains begin.
    fn start(&self) -> Start {
        Start::Store
    }

    /// The default number of steps of a visit; at least 1.
    fn default_steps(&self) -> usize {
        1
    }

    /// The side that keeps particles inside the threat model.
    fn projection(&self) -> Projection {
        Projection::Host
    }

    /// The radius of the ball that particles keep to, in units of epsilon; 1 or more. Where it is
    /// above 1, the sampler is refused as an attack.
    fn reach(&self) -> f64 {
        1.0
    }

    /// Whether the chains of a batch act on one another, so that a chain depends on its neighbours.
    fn interacts(&self) -> bool {
        false
    }

    /// The distribution that the chain leaves invariant at fixed weights. The conformance checks
    /// judge a sampler by the law that it declares, and `host diagnose` draws from it.
    fn law(&self) -> Law {
        Law::Undeclared
    }

    /// Checks whether the sampler can keep to this threat model.
    ///
    /// # Errors
    /// If not: the reason.
    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        let _ = threat;
        Ok(())
    }

    /// The number of state tensors of a particle, each in the particle's shape; they are zeros at
    /// first, and stored with the particle.
    fn state_tensors(&self) -> usize {
        0
    }

    /// The names of the numbers that are kept for each particle; they are zeros at first, and stored
    /// with the particle in f32.
    fn numbers(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Those of [`Sampler::numbers`] that the host averages over the particles at the end of every
    /// visit, and writes to `metrics.jsonl` under their names.
    fn figures(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// The number of state tensors of a particle, each in the particle's shape, that last for one
    /// visit: they are zeros when it begins, and are not stored.
    fn visit_tensors(&self) -> usize {
        0
    }

    /// Whether the sampler uses the gradient of the loss. If not, the host does not compute it, and
    /// [`Step::gradient`] is zero.
    fn uses_gradient(&self) -> bool {
        true
    }

    /// Whether the host must call [`Sampler::begin`] before the first step of a visit.
    fn begins(&self) -> bool {
        false
    }

    /// Whether the host must call [`Sampler::finish`] after the last step of a visit. This costs an
    /// evaluation of the loss.
    fn judges_last_proposal(&self) -> bool {
        false
    }

    /// Whether [`Sampler::finish`] is given the gradient at the last proposal, too.
    fn judges_by_gradient(&self) -> bool {
        false
    }

    /// Whether many steps raise the loss. A sampler that explores without regard to the loss
    /// returns false.
    fn ascends(&self) -> bool {
        true
    }

    /// Where a visit begins, and with which state, given where it would begin by [`Sampler::start`].
    /// Called before step 0 if `begins` returns true. It costs no pass: loss and gradient are zero.
    ///
    /// # Errors
    /// As for `step`.
    fn begin(&self, start: &Step) -> Result<Next> {
        Ok(unchanged(start))
    }

    /// One step of the chain. Runs without gradient tracking.
    ///
    /// The weights may have moved since the last visit. Step 0 is therefore given the loss and the
    /// gradient at the particle itself under the present weights; later steps are given those at
    /// what the step before returned.
    ///
    /// # Errors
    /// If the step cannot be taken; training stops with the message.
    fn step(&self, step: &Step) -> Result<Next>;

    /// Accepts or rejects the last proposal, given the loss there, and the gradient if
    /// `judges_by_gradient` returns true (otherwise `gradient` is zero). Called after the last step
    /// if `judges_last_proposal` returns true. The weights descend at the particles that it returns.
    ///
    /// # Errors
    /// As for `step`.
    fn finish(&self, proposal: &Step) -> Result<Next> {
        Ok(unchanged(proposal))
    }
}

/// The inputs of one step: N = B * K particles. Row i * K + k is particle k of the i-th point.
///
/// Float tensors share one dtype and device, which may be any. Inputs are only lent: never write to
/// them in place.
pub struct Step<'a> {
    /// The natural examples, `[N, C, H, W]`, each repeated for its K particles.
    pub natural: &'a Tensor,
    /// Their labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// Where the particles are, `[N, C, H, W]`.
    pub particles: &'a Tensor,
    /// The loss of each particle, `[N]`.
    pub loss: &'a Tensor,
    /// The gradient of each particle's own loss with respect to the particle, `[N, C, H, W]`. It
    /// depends neither on the batch nor on K, unless the network has batch normalisation and its
    /// gradient is computed in training mode.
    pub gradient: &'a Tensor,
    /// The state of each particle: [`Sampler::state_tensors`] tensors `[N, C, H, W]`; if there are
    /// [`Sampler::numbers`], a tensor `[N, numbers]`; [`Sampler::visit_tensors`] tensors
    /// `[N, C, H, W]`.
    pub state: &'a [Tensor],
    /// Index of each row's point in its split of the data, length N.
    pub points: &'a [i64],
    /// Particles per point, K.
    pub particles_per_point: usize,
    /// The number of this step in the visit, from 0.
    pub number: usize,
    /// The number of steps of the visit, T.
    pub of: usize,
    /// Norm, epsilon and domain.
    pub threat: ThreatModel,
    /// The host's random numbers, one stream per particle and step.
    pub random: Random<'a>,
}

/// The next particles and their state.
#[derive(Debug)]
pub struct Next {
    /// The next particles, `[N, C, H, W]`, in the dtype and on the device of the old ones.
    pub particles: Tensor,
    /// The next state, in the order of [`Step::state`].
    pub state: Vec<Tensor>,
}

impl From<Tensor> for Next {
    fn from(particles: Tensor) -> Self {
        Self { particles, state: Vec::new() }
    }
}

fn unchanged(step: &Step) -> Next {
    let state = step.state.iter().map(Tensor::shallow_clone).collect();
    Next { particles: step.particles.shallow_clone(), state }
}
