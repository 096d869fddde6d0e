use crate::{losses, Error, PluginOptions, Random, Result, ThreatModel};
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What a sampler climbs while the weights descend on an objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Climbs {
    /// The cross-entropy of each particle.
    CrossEntropy,
    /// The outer loss of each particle: both problems have one function, so that one backward can
    /// serve both (mode fused).
    Outer,
    /// A function of its own, [`Objective::inner`].
    Inner,
}

/// The passes of an update besides those at the particles, which the host counts for every objective,
/// and those at the natural examples that [`Objective::uses_natural`] asks for. A forward counts as a
/// pass, since the backward of the weights goes through it; a gradient with respect to images counts
/// as another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Passes {
    /// For each point of the minibatch.
    pub per_point: usize,
    /// For each particle.
    pub per_particle: usize,
}

/// The setting in which an objective is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// The threat model of training.
    pub threat: ThreatModel,
    /// Particles per point, K.
    pub particles_per_point: usize,
    /// Number of classes.
    pub classes: i64,
    /// Number of training points; their indices are 0 to this number.
    pub training_points: usize,
}

/// The losses of the min-max problem: what the weights descend on, and what the sampler climbs.
///
/// An objective holds its options and nothing else. What it learns during training belongs in
/// [`Batch::state`], which the host keeps and saves in checkpoints.
pub trait Objective: Sized + Send + 'static {
    /// The user's options, documented and checked by their JSON schema.
    type Options: PluginOptions;

    /// An objective with these options.
    ///
    /// # Errors
    /// If the options contradict one another.
    fn new(options: Self::Options) -> Result<Self>;

    /// Whether it can be used in this setting; called before any work starts.
    ///
    /// # Errors
    /// If it cannot: the reason.
    fn supports(&self, setting: &Setting) -> Result<()> {
        let _ = setting;
        Ok(())
    }

    /// What the sampler climbs.
    fn climbs(&self) -> Climbs {
        Climbs::CrossEntropy
    }

    /// Whether it needs the logits at the natural examples ([`Batch::natural_logits`]): one pass for
    /// each point.
    fn uses_natural(&self) -> bool {
        false
    }

    /// Whether the outer loss of a row depends on other points of the minibatch. Such a loss cannot
    /// be divided among processes.
    fn couples_points(&self) -> bool {
        false
    }

    /// The passes of [`Objective::outer`] through [`Batch::network`]. The host compares them with
    /// those that it counts.
    fn passes(&self) -> Passes {
        Passes::default()
    }

    /// The names and the first values of the state tensors (f32, finite).
    fn state(&self, setting: &Setting) -> Vec<(&'static str, Tensor)> {
        let _ = setting;
        Vec::new()
    }

    /// The outer loss, on which the weights descend: of each row, `[N]`, of which the host takes the
    /// mean; or one number for the whole minibatch, `[]`. It is differentiated with respect to the
    /// weights, through the logits and the calls of [`Batch::network`]. With [`Climbs::Outer`] it is
    /// also differentiated with respect to the particles, must be `[N]`, and the loss of a row must
    /// depend on this row only.
    ///
    /// # Errors
    /// If it cannot be computed; training stops with the message.
    fn outer(&self, batch: &Batch) -> Result<Outer>;

    /// The inner loss of each row, `[N]`, which the sampler climbs: called with [`Climbs::Inner`]
    /// only. It is differentiated with respect to the particles. The loss of a row must depend on
    /// this row only. [`Batch::natural_logits`] have no graph here, and the network cannot be called.
    ///
    /// # Errors
    /// As for `outer`.
    fn inner(&self, batch: &Batch) -> Result<Tensor> {
        Ok(losses::cross_entropy(batch.logits, batch.labels))
    }
}

/// A minibatch of B points with K particles each: N = B * K rows. Row i * K + k is particle k of the
/// i-th point. Runs with gradient tracking.
///
/// Float tensors share one dtype and device, which may be any. Inputs are only lent: never write to
/// them in place.
pub struct Batch<'a> {
    /// The logits at the particles, `[N, classes]`, with their graph.
    pub logits: &'a Tensor,
    /// The logits at the natural example of each particle, `[N, classes]`, if
    /// [`Objective::uses_natural`] returns true: one forward for each point. In `outer` they have a
    /// graph.
    pub natural_logits: Option<&'a Tensor>,
    /// The natural examples, `[N, C, H, W]`, each repeated for its K particles.
    pub natural: &'a Tensor,
    /// The particles, `[N, C, H, W]`; with a graph where the loss is differentiated with respect to
    /// them.
    pub particles: &'a Tensor,
    /// Where the chains of this visit began, `[N, C, H, W]`: before the steps of this update; the
    /// natural examples without a sampler.
    pub start: &'a Tensor,
    /// The labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// Index of each row's point in the training points, length N.
    pub points: &'a [i64],
    /// Particles per point, K.
    pub particles_per_point: usize,
    /// Number of classes.
    pub classes: i64,
    /// Norm, epsilon and domain; epsilon is that of the present update (epsilon ramp).
    pub threat: ThreatModel,
    /// The state tensors, in the order of [`Objective::state`].
    pub state: &'a [Tensor],
    /// The network, for further images.
    pub network: Network<'a>,
    /// The host's random numbers, one stream per row and update.
    pub random: Random<'a>,
}

impl Batch<'_> {
    /// [`Batch::natural_logits`].
    ///
    /// # Errors
    /// If there are none: [`Objective::uses_natural`] returns false.
    pub fn natural_logits(&self) -> Result<&Tensor> {
        self.natural_logits.ok_or_else(|| {
            Error::new("expected the logits at the natural examples, got none: see `uses_natural`")
        })
    }
}

/// The outer loss and the next state.
#[derive(Debug)]
pub struct Outer {
    /// The loss, `[N]` or `[]`.
    pub loss: Tensor,
    /// The next state, in the order of [`Batch::state`], without a graph.
    pub state: Vec<Tensor>,
}

impl From<Tensor> for Outer {
    fn from(loss: Tensor) -> Self {
        Self { loss, state: Vec::new() }
    }
}

/// The host's side of the network that an objective may call. The host counts the rows of every call.
pub trait NetworkCalls {
    /// Logits `[M, classes]` with a graph through weights and images.
    ///
    /// # Errors
    /// If the model fails.
    fn logits(&self, images: &Tensor, train: bool) -> Result<Tensor>;

    /// The gradient of the sum of `loss` with respect to `images`, with a graph of its own.
    ///
    /// # Errors
    /// If the loss does not depend on the images.
    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> Result<Tensor>;
}

/// The network, for images besides particles and natural examples. An objective has no access to its
/// weights.
#[derive(Clone, Copy)]
pub struct Network<'a> {
    calls: &'a dyn NetworkCalls,
}

impl<'a> Network<'a> {
    /// A network behind these calls.
    pub fn new(calls: &'a dyn NetworkCalls) -> Self {
        Self { calls }
    }

    /// Logits `[M, classes]` of any M images, differentiable with respect to the weights and to the
    /// images, if these require a gradient: one pass an image. `train`: the mode of the model, as for
    /// the logits at the particles (true) or as in evaluation (false).
    ///
    /// # Errors
    /// If the model fails.
    pub fn logits(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.calls.logits(images, train)
    }

    /// The gradient (`[M, C, H, W]`) of the sum of `loss` (`[M]`) with respect to the images from
    /// whose logits it was computed. It can be differentiated again: one pass an image.
    ///
    /// # Errors
    /// If the loss does not depend on the images.
    pub fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> Result<Tensor> {
        self.calls.input_gradient(loss, images)
    }
}
