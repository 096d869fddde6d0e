//! Models: a linear one, one with batch normalisation, and two bad ones built on it.

use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module, ModuleT};
use plugin_api::{Model, NoOptions, Result, Task, export_model};
use std::cell::Cell;

export_model!("linear", Linear);

/// Good: one linear layer on the pixels.
pub struct Linear {
    layer: nn::Linear,
}

impl Model for Linear {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        Ok(Self { layer: nn::linear(path / "linear", pixels, task.classes, Default::default()) })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.flatten(1, -1)))
    }
}

export_model!("normalised", Normalised);

/// Good: the linear model with batch normalisation of its logits.
struct Normalised {
    linear: Linear,
    normalisation: nn::BatchNorm,
}

impl Model for Normalised {
    type Options = NoOptions;

    fn new(options: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let normalisation = nn::batch_norm1d(path / "normalisation", task.classes, Default::default());
        Ok(Self { linear: Linear::new(options, task, path)?, normalisation })
    }

    fn train_differs(&self) -> bool {
        true
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let logits = self.linear.forward(images, train)?;
        Ok(self.normalisation.forward_t(&logits, train))
    }
}

export_model!("explodes", Explodes);

/// The number of forward calls in training after which the logits of `explodes` become NaN.
const GOOD_CALLS: usize = 13;

struct Explodes {
    linear: Linear,
    calls: Cell<usize>,
}

impl Model for Explodes {
    type Options = NoOptions;

    fn new(options: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        Ok(Self { linear: Linear::new(options, task, path)?, calls: Cell::new(0) })
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let logits = self.linear.forward(images, train)?;
        self.calls.set(self.calls.get() + usize::from(train));
        Ok(if train && self.calls.get() > GOOD_CALLS { logits * f64::NAN } else { logits })
    }
}

export_model!("wrong-logits", WrongLogits);

/// Has one class too many.
struct WrongLogits {
    linear: Linear,
}

impl Model for WrongLogits {
    type Options = NoOptions;

    fn new(options: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let task = Task { classes: task.classes + 1, ..task };
        Ok(Self { linear: Linear::new(options, task, path)? })
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.linear.forward(images, train)
    }
}
