//! A small data set, models and samplers for the tests of training.

use crate::data::{Dataset, Origin, Split};
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Next, NoOptions, Result, Sampler, Step, Task, export_model, export_sampler};
use tch::{Device, Kind, Tensor};

export_model!("with-dropout", WithDropout<true>);
export_model!("without-dropout", WithDropout<false>);
export_sampler!("ascending", Ascending<false>);
export_sampler!("judging", Ascending<true>);

/// A linear classifier, with dropout in training mode if `DROPS`.
struct WithDropout<const DROPS: bool> {
    layer: nn::Linear,
}

impl<const DROPS: bool> plugin_api::Model for WithDropout<DROPS> {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let layer = nn::linear(path, pixels, task.classes, Default::default());
        // Tests beside this one draw from libtorch's generator, too: these weights do not.
        let weights = Tensor::arange(pixels * task.classes, (Kind::Float, Device::Cpu)).sin();
        tch::no_grad(|| {
            layer.ws.shallow_clone().copy_(&weights.view_as(&layer.ws));
            layer.bs.iter().for_each(|bias| drop(bias.shallow_clone().zero_()));
        });
        Ok(Self { layer })
    }

    fn train_differs(&self) -> bool {
        DROPS
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.flatten(1, -1)).dropout(0.5, train && DROPS))
    }
}

/// Steps along the sign of the gradient. With `JUDGES`, an acceptance step follows the last
/// proposal.
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
        origin: Origin::Own,
    }
}

export_sampler!("rejecting", Rejecting);

/// Steps along the sign of the gradient and rejects the last proposal: it returns the natural
/// example.
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
