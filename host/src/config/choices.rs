//! The options of an experiment that are a choice of named values.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The name of a choice in files and flags.
pub(crate) fn name_of(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

/// How updates of the weights and of the particles share passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Algorithm 1 of the paper: the particle takes T steps, then the weights descend at the new
    /// particle; T + 1 passes
    Faithful,
    /// Free adversarial training (Shafahi et al. 2019) with a particle per sample and the sampler's
    /// noise: one backward gives the gradients of weights and particle; one pass per replay
    Fused,
}

/// Mode of a model during a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ModelMode {
    /// As in evaluation: running statistics of batch normalisation, no dropout
    Eval,
    /// As in training: batch normalisation with the statistics of the minibatch, dropout
    Train,
}

/// Where chains begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the sampler declares
    Sampler,
    /// At the particles of the last visit, from the particle store, which begins at the natural
    /// examples
    Store,
    /// As `store`, but the particle store begins at uniform draws from the ball
    UniformStore,
    /// At the natural example, at every visit
    Natural,
    /// At a uniform draw from the ball, at every visit
    Uniform,
    /// At the natural example plus the perturbation with which the same row of the minibatch before
    /// ended
    Carried,
}

impl Start {
    /// The start of chains for a sampler that declares the start `declared`.
    pub fn of(self, declared: plugin_api::Start) -> plugin_api::Start {
        match self {
            Self::Sampler => declared,
            Self::Store | Self::UniformStore => plugin_api::Start::Store,
            Self::Natural => plugin_api::Start::Natural,
            Self::Uniform => plugin_api::Start::Uniform,
            Self::Carried => plugin_api::Start::Carried,
        }
    }
}

/// The weights that are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Select {
    /// The weights of the last epoch
    Last,
    /// The weights of the epoch with the best score on the validation points: accuracy against the
    /// probe if there is one, clean accuracy otherwise
    Best,
}

/// How particles are stored. Every computation with them is in f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Four bytes per number, exact
    #[default]
    F32,
    /// Two bytes per number: the difference from the natural example in half precision, the state
    /// in bf16
    // The state may hold very small gradients: bf16 has the range of f32.
    F16,
    /// One byte per number: the difference from the natural example in 255 steps over the ball,
    /// with an error of at most epsilon / 254; the state in bf16
    U8,
}

/// The optimiser of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Stochastic gradient descent, with momentum
    Sgd,
    /// Steps along the sign of the gradient, or of its momentum
    SignSgd,
    /// Adam (Kingma and Ba 2015), with weight decay added to the gradient
    Adam,
    /// Adam with weight decay apart from the gradient (Loshchilov and Hutter 2019)
    #[serde(rename = "adamw")]
    #[value(name = "adamw")]
    AdamW,
}

/// The schedule of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Does not change
    Constant,
    /// Falls by a factor at each milestone
    Step,
    /// Falls along half a cosine to zero at the end of the run
    Cosine,
    /// Rises linearly from zero to its peak and falls linearly to zero (the cyclic schedule of fast
    /// adversarial training, Wong et al. 2020)
    OneCycle,
}
