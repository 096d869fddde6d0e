//! A small data set, models and samplers for the tests of training.

use crate::data::{Dataset, Origin, Split};
use plugin_api::losses::{cross_entropy, kl_divergence};
use plugin_api::tch::nn::{self, Module};
use plugin_api::{
    Batch, Climbs, Next, NoOptions, Objective, Outer, Result, Sampler, Step, Task, export_model,
    export_objective, export_sampler,
};
use tch::{Device, Kind, Tensor};

export_model!("with-dropout", WithDropout<true>);
export_model!("without-dropout", WithDropout<false>);
export_sampler!("ascending", Ascending<NEVER>);
export_sampler!("judging", Ascending<BY_LOSS>);
export_sampler!("judging-by-gradient", Ascending<BY_GRADIENT>);
export_sampler!("gradient-free", Ascending<WITHOUT_GRADIENT>);
export_sampler!("counting", Counting);
export_objective!("cross_entropy", CrossEntropy);
export_objective!("divergence", Divergence);

/// The cross-entropy, for both problems.
struct CrossEntropy;

impl Objective for CrossEntropy {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn climbs(&self) -> Climbs {
        Climbs::Outer
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        Ok(cross_entropy(batch.logits, batch.labels).into())
    }
}

/// The divergence from the prediction at the natural example is climbed, and added to the
/// cross-entropy there.
struct Divergence;

impl Objective for Divergence {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn climbs(&self) -> Climbs {
        Climbs::Inner
    }

    fn uses_natural(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let natural = batch.natural_logits.expect("natural logits");
        Ok((cross_entropy(natural, batch.labels) + kl_divergence(natural, batch.logits)).into())
    }

    fn inner(&self, batch: &Batch) -> Result<Tensor> {
        Ok(kl_divergence(batch.natural_logits.expect("natural logits"), batch.logits))
    }
}

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

/// How an [`Ascending`] sampler judges its last proposal.
const NEVER: u8 = 0;
const BY_LOSS: u8 = 1;
const BY_GRADIENT: u8 = 2;
/// By the loss, and no step uses the gradient.
const WITHOUT_GRADIENT: u8 = 3;

/// Steps along the sign of the gradient. An acceptance step may follow the last proposal.
struct Ascending<const JUDGES: u8>;

impl<const JUDGES: u8> Sampler for Ascending<JUDGES> {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn judges_last_proposal(&self) -> bool {
        JUDGES != NEVER
    }

    fn judges_by_gradient(&self) -> bool {
        JUDGES == BY_GRADIENT
    }

    fn uses_gradient(&self) -> bool {
        JUDGES != WITHOUT_GRADIENT
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
        remarks: Vec::new(),
        origin: Origin::Own,
    }
}

export_sampler!("drifting", Drifting);

/// Moves every pixel up by 0.01 at each step, and by 0.002 where a visit begins.
struct Drifting;

impl Sampler for Drifting {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn start(&self) -> plugin_api::Start {
        plugin_api::Start::Carried
    }

    fn numbers(&self) -> Vec<&'static str> {
        vec!["steps"]
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&self, start: &Step) -> Result<Next> {
        Ok(Next { particles: start.particles + 0.002, state: vec![start.state[0].copy()] })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok(Next { particles: step.particles + 0.01, state: vec![&step.state[0] + 1.0] })
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

/// Does not move its particles. Counts its steps in the visit and in all visits, and fails if a
/// tensor of the visit is not zero when it begins.
struct Counting;

impl Sampler for Counting {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn numbers(&self) -> Vec<&'static str> {
        vec!["in_visit", "in_all"]
    }

    fn figures(&self) -> Vec<&'static str> {
        vec!["in_all"]
    }

    fn visit_tensors(&self) -> usize {
        1
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let [numbers, of_visit] = step.state else { return Err(plugin_api::Error::new("two state tensors")) };
        if step.number == 0 && of_visit.abs().max().double_value(&[]) != 0.0 {
            return Err(plugin_api::Error::new("a tensor of the visit is not zero when it begins"));
        }
        Ok(Next { particles: step.particles.shallow_clone(), state: vec![numbers + 1.0, of_visit + 1.0] })
    }
}
