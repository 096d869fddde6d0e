use crate::{PluginOptions, Result};
use tch::{nn, Tensor};

/// The task of a model: the shape of its images and the number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// Channels of an image (1 for grey, 3 for colour).
    pub channels: i64,
    /// Rows of an image.
    pub height: i64,
    /// Columns of an image.
    pub width: i64,
    /// Number of classes, at least 2.
    pub classes: i64,
}

/// A differentiable classifier.
///
/// The host has the optimiser, the checkpoints and the device. It also seeds libtorch's generator,
/// from which initial weights and dropout are drawn.
pub trait Model: Sized + Send + 'static {
    /// The user's options, documented and checked by their JSON schema.
    type Options: PluginOptions;

    /// Builds the network. Every parameter and buffer is made through `path` (tch's variable
    /// store), which has the device and names each of them.
    ///
    /// # Errors
    /// If an option is out of range, or the network cannot take such images.
    fn new(options: Self::Options, task: Task, path: &nn::Path) -> Result<Self>;

    /// Whether logits in training differ from those in evaluation, as they do with dropout or batch
    /// normalisation.
    fn train_differs(&self) -> bool {
        false
    }

    /// What a user should know of this network before work starts: one sentence each. The host
    /// prints them as warnings.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Logits `[N, classes]` of images `[N, channels, height, width]` in the domain of the
    /// threat model; not probabilities. `train` switches dropout and batch statistics on.
    ///
    /// # Errors
    /// If the images do not fit.
    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor>;
}
