//! A plugin of each kind, built against the contract as it was first.

use plugin_api::losses::cross_entropy;
use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module};
use plugin_api::{
    Attack, Model, Next, NoOptions, Result, Sampler, Step, Target, Task, export_attack, export_model,
    export_sampler,
};

export_model!("old-model", OldModel);

/// One linear layer on the pixels.
struct OldModel {
    layer: nn::Linear,
}

impl Model for OldModel {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        Ok(Self { layer: nn::linear(path / "linear", pixels, task.classes, Default::default()) })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.f_flatten(1, -1)?))
    }
}

export_sampler!("old-sampler", OldSampler);

/// A small step up the loss.
struct OldSampler;

impl Sampler for OldSampler {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok((step.particles + step.threat.steepest_ascent(step.gradient) * 0.05).into())
    }
}

export_attack!("old-attack", OldAttack);

/// One step to the surface of the ball.
struct OldAttack;

impl Attack for OldAttack {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        let evaluation = target.victim.forward(target.natural)?;
        let (_, gradient) = evaluation.gradient(|logits| cross_entropy(logits, target.labels))?;
        let ahead = target.natural + target.threat.steepest_ascent(&gradient) * target.threat.epsilon;
        Ok(target.threat.project(&ahead, target.natural))
    }
}
