//! The named choices of an experiment: each is a key of its file, a flag and a word.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A choice as it is written.
pub(crate) fn name_of(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// How theta's and the particles' updates share passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Algorithm 1: the sampler's gradient is taken at the old particle, the weights descend at
    /// the new one; T + 1 passes.
    Faithful,
    /// One backward gives both gradients: the weights descend at the particle, and the particle
    /// moves along the gradient that was taken there; as many passes as replays.
    Fused,
}

/// Which mode a model is in during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModelMode {
    /// As it is evaluated: batch normalisation by its running moments, no dropout.
    Eval,
    /// As it is trained: batch normalisation by the minibatch's moments, dropout.
    Train,
}

/// Where chains begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the sampler declares.
    Sampler,
    /// In the particle store, which begins at the natural examples.
    Store,
    /// In the particle store, which begins at uniform draws from the ball.
    UniformStore,
    /// At the natural example, at every visit.
    Natural,
    /// At a uniform draw from the ball, at every visit.
    Uniform,
}

impl Start {
    /// What that is for a sampler that declares this start.
    pub fn of(self, declared: plugin_api::Start) -> plugin_api::Start {
        match self {
            Self::Sampler => declared,
            Self::Store | Self::UniformStore => plugin_api::Start::Store,
            Self::Natural => plugin_api::Start::Natural,
            Self::Uniform => plugin_api::Start::Uniform,
        }
    }
}

/// Which weights a run leaves for evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// Those of the last epoch.
    Last,
    /// Those of the epoch that scored best on the validation points: accuracy against the
    /// probe if there is one, clean accuracy otherwise.
    Best,
}

/// What the weights descend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The cross-entropy at the particles, which the sampler climbs too.
    CrossEntropy,
    /// The cross-entropy at the natural example and, `trades_beta` times, the divergence of the
    /// prediction at the particle from it; the sampler climbs the divergence (TRADES; Zhang et
    /// al., Theoretically principled trade-off between robustness and accuracy, 2019).
    Trades,
}

impl Objective {
    /// Whether the sampler climbs another loss than the weights descend on.
    pub fn has_its_own_inner_loss(self) -> bool {
        match self {
            Self::CrossEntropy => false,
            Self::Trades => true,
        }
    }
}

/// How particles are stored; they are f32 wherever they are computed with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As they are: four bytes a number.
    #[default]
    F32,
    /// Their distance from the natural example in half precision: two bytes; their state in bf16, as
    /// many, which has fewer digits and the range of f32: gradients may be very small.
    F16,
    /// Their distance from the natural example in 255 steps over the ball, off by epsilon / 254
    /// at most: one byte; their state in bf16.
    U8,
}

/// Which optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Stochastic gradient descent, with momentum if it is not 0.
    Sgd,
    /// Steps of the sign of the gradient, or of its momentum.
    SignSgd,
    /// Adam (Kingma and Ba 2015), weight decay added to the gradient.
    Adam,
}

/// How the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Not at all.
    Constant,
    /// Falls by a factor at each of some milestones.
    Step,
    /// Falls along half a cosine, to zero at the end of the run.
    Cosine,
    /// Rises linearly from zero to its peak and falls linearly to zero: the cyclic schedule of
    /// fast adversarial training (Wong et al. 2020).
    OneCycle,
}
