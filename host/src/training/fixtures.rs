//! A small data set, models and samplers for the tests of training.

use crate::data::{Dataset, Split};
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Next, NoOptions, Result, Sampler, Step, Task, export_model, export_sampler};
use tch::{Device, Kind, Tensor};

export_model!("with-dropout", WithDropout<true>);
export_model!("without-dropout", WithDropout<false>);
export_sampler!("ascending", Ascending<false>);
export_sampler!("judging", Ascending<true>);

/// A linear classifier, whose logits in training may differ from those in evaluation.
struct WithDropout<const DROPS: bool> {
    layer: nn::Linear,
}

impl<const DROPS: bool> plugin_api::Model for WithDropout<DROPS> {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        Ok(Self { layer: nn::linear(path, pixels, task.classes, Default::default()) })
    }

    fn train_differs(&self) -> bool {
        DROPS
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.flatten(1, -1)).dropout(0.5, train && DROPS))
    }
}

/// Steps along the sign of the gradient.
struct Ascending<const JUDGES: bool>;

impl<const JUDGES: bool> Sampler for Ascending<JUDGES> {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn judges_last_proposal(&self) -> bool {
        JUDGES
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok((step.particles + step.gradient.sign() * 0.01).into())
    }
}

/// Ten grey images of 2 x 2 pixels in two classes.
pub fn dataset() -> Dataset {
    let split = || Split {
        images: Tensor::arange(40, (Kind::Uint8, Device::Cpu)).reshape([10, 1, 2, 2]),
        labels: Tensor::arange(10, (Kind::Int64, Device::Cpu)).remainder(2),
    };
    Dataset {
        name: "ten".to_owned(),
        train: split(),
        test: split(),
        classes: 2,
        class_names: Vec::new(),
        checksums: Default::default(),
    }
}

export_sampler!("rejecting", Rejecting);

/// Steps along the sign of the gradient, and rejects its last proposal: back to the natural example.
struct Rejecting;

impl Sampler for Rejecting {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn judges_last_proposal(&self) -> bool {
        true
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok((step.particles + step.gradient.sign() * 0.01).into())
    }

    fn finish(&self, proposal: &Step) -> Result<Next> {
        Ok(proposal.natural.shallow_clone().into())
    }
}
