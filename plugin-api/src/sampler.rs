use crate::{PluginOptions, Random, Result, ThreatModel};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Where a chain begins when its points come up in a minibatch (or under attack).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Where it was left: the particle store, which begins at the natural examples.
    Store,
    /// At the natural example.
    Natural,
    /// At a uniform draw from the ball, cut to the domain.
    Uniform,
}

/// Who keeps particles inside the threat model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// The host projects what `step` returns: ball, then domain.
    Host,
    /// The sampler does (reflection, rejection); the host only verifies.
    Sampler,
}

/// A transition kernel: where particles go next, given the loss and its gradient there.
///
/// A sampler never sees the model. The host computes gradients, counts passes, projects,
/// keeps the particle store and seeds the randomness. A sampler holds its options and
/// nothing else: what a chain must remember goes into [`Step::state`], which the host keeps,
/// shuffles and saves with the particle.
pub trait Sampler: Sized + Send + 'static {
    /// What a user may set; documented and checked by its JSON schema. The name `steps` is
    /// taken: every sampler has that option, and the host keeps it.
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

    /// How many steps a visit takes unless the user says otherwise; at least 1.
    fn default_steps(&self) -> usize {
        1
    }

    /// Who keeps particles inside the threat model.
    fn projection(&self) -> Projection {
        Projection::Host
    }

    /// How many tensors of the particle's shape each particle remembers; they begin as zeros.
    fn state_tensors(&self) -> usize {
        0
    }

    /// Whether [`Sampler::finish`] is to be called after the last step of a visit.
    fn judges_last_proposal(&self) -> bool {
        false
    }

    /// Whether many steps raise a loss that can be raised. A sampler that explores for its own
    /// sake says no.
    fn ascends(&self) -> bool {
        true
    }

    /// One step of the chain. Runs without gradient tracking.
    ///
    /// # Errors
    /// If the step cannot be taken; training stops with the message.
    fn step(&self, step: &Step) -> Result<Next>;

    /// Accepts or replaces the last proposal, given the loss there (no gradient: `gradient`
    /// of this step is zero). Called after the last step if `judges_last_proposal`.
    ///
    /// # Errors
    /// As for `step`.
    fn finish(&self, proposal: &Step) -> Result<Next> {
        Ok(Next { particles: proposal.particles.shallow_clone(), state: clones(proposal.state) })
    }
}

/// What a sampler is given for one step: N = B * K particles, those of a point in a row
/// (particle k of the i-th point is row i * K + k).
///
/// Float tensors share one dtype and device; do not assume which. Inputs are only lent:
/// never write to them in place.
pub struct Step<'a> {
    /// The natural examples, `[N, C, H, W]`, each repeated for its K particles.
    pub natural: &'a Tensor,
    /// Their labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// Where the particles are, `[N, C, H, W]`.
    pub particles: &'a Tensor,
    /// The loss of each particle, `[N]`.
    pub loss: &'a Tensor,
    /// The gradient of the sum of the losses towards each particle, `[N, C, H, W]`: that of the
    /// particle's own loss, which depends neither on the batch nor on K, unless the network
    /// couples a batch by its statistics and is climbed in mode train.
    pub gradient: &'a Tensor,
    /// What each particle remembers: [`Sampler::state_tensors`] tensors, `[N, C, H, W]`.
    pub state: &'a [Tensor],
    /// Index of each row's point in its split of the data, length N.
    pub points: &'a [i64],
    /// Particles per point, K.
    pub particles_per_point: usize,
    /// Which step of the visit this is, from 0.
    pub number: usize,
    /// How many steps the visit has, T.
    pub of: usize,
    /// Norm, epsilon and domain.
    pub threat: ThreatModel,
    /// The host's random numbers, one stream per particle and step.
    pub random: Random<'a>,
}

/// Where the particles go, and what they remember.
#[derive(Debug)]
pub struct Next {
    /// The next particles, `[N, C, H, W]`, in the dtype and on the device of the old ones.
    pub particles: Tensor,
    /// The next state: as many tensors as [`Sampler::state_tensors`].
    pub state: Vec<Tensor>,
}

impl From<Tensor> for Next {
    fn from(particles: Tensor) -> Self {
        Self { particles, state: Vec::new() }
    }
}

fn clones(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::shallow_clone).collect()
}
