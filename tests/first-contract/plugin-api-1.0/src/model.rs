use crate::{PluginOptions, Result};
use tch::{nn, Tensor};

/// What a model is built for: the images it is given and the classes it tells apart.
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
/// The host owns everything around it: optimiser, checkpoints, device, and the seeds of
/// whatever libtorch draws itself (initial weights, dropout).
pub trait Model: Sized + Send + 'static {
    /// What a user may set; documented and checked by its JSON schema.
    type Options: PluginOptions;

    /// Builds the network. Every parameter and buffer is made through `path` (tch's
    /// variable store), which knows the device and gives each its name.
    ///
    /// # Errors
    /// If an option is out of range, or the network cannot take such images.
    fn new(options: Self::Options, task: Task, path: &nn::Path) -> Result<Self>;

    /// Logits `[N, classes]` of images `[N, channels, height, width]` in the domain of the
    /// threat model; not probabilities. `train` switches dropout and batch statistics on.
    ///
    /// # Errors
    /// If the images do not fit.
    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor>;
}
