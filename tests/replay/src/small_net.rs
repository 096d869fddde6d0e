use plugin_api::tch::{self, Tensor};
use plugin_api::{Error, Norm, Result, ThreatModel, VictimCalls, losses};
use std::cell::RefCell;
use std::collections::HashMap;

/// A small fixed network to attack: two 3x3 convolutions with padding 1, the second with stride 2,
/// each followed by a ReLU, and a linear layer. It counts passes as the host does. It keeps a copy
/// of every queried batch of images and of the gradients, so that tests can compare an attack's
/// iterates.
#[derive(Debug)]
pub struct SmallNet {
    convolution1: Layer,
    convolution2: Layer,
    output: Layer,
    queries: RefCell<Vec<Tensor>>,
    /// Images, and gradients with respect to them.
    gradients: RefCell<Vec<(Tensor, Tensor)>>,
}

#[derive(Debug)]
struct Layer {
    weight: Tensor,
    bias: Tensor,
}

impl Layer {
    fn new(tensors: &HashMap<String, Tensor>, name: &str) -> Result<Self> {
        let tensor = |name: String| match tensors.get(&name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => Err(Error::new(format!("a small network needs the tensor `{name}`; it is missing"))),
        };
        Ok(Self { weight: tensor(format!("{name}.weight"))?, bias: tensor(format!("{name}.bias"))? })
    }

    fn convolve(&self, input: &Tensor, stride: i64) -> Result<Tensor> {
        let sums = input.f_conv2d(&self.weight, Some(&self.bias), [stride, stride], [1, 1], [1, 1], 1)?;
        Ok(sums.f_relu()?)
    }
}

impl SmallNet {
    /// The network with these weights: `conv1`, `conv2` and `output`, each with a `.weight` and
    /// a `.bias`; other tensors are ignored.
    ///
    /// # Errors
    /// If a weight is missing: its name.
    pub fn new(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Ok(Self {
            convolution1: Layer::new(tensors, "conv1")?,
            convolution2: Layer::new(tensors, "conv2")?,
            output: Layer::new(tensors, "output")?,
            queries: RefCell::default(),
            gradients: RefCell::default(),
        })
    }

    /// Logits `[N, classes]` of images `[N, C, H, W]` in the weights' dtype, neither recorded nor
    /// counted.
    ///
    /// # Errors
    /// If the images do not fit the weights.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let hidden = self.convolution2.convolve(&self.convolution1.convolve(images, 1)?, 2)?;
        Ok(hidden.f_flatten(1, -1)?.f_linear(&self.output.weight, Some(&self.output.bias))?)
    }

    /// Copies of the queried batches of images, in order.
    pub fn queries(&self) -> Vec<Tensor> {
        self.queries.borrow().iter().map(Tensor::shallow_clone).collect()
    }

    /// Forward passes of single images so far.
    pub fn forward_passes(&self) -> u64 {
        self.queries.borrow().iter().map(rows).sum()
    }

    /// Backward passes of single images so far.
    pub fn backward_passes(&self) -> u64 {
        self.gradients.borrow().iter().map(|(images, _)| rows(images)).sum()
    }

    /// A message with possible causes of a difference between a replayed attack and its recording
    /// at the step after `image` (`[1, C, H, W]`): the size of the gradient there, and the number
    /// of pixels at a bound of the ball (linf) or the domain.
    pub fn suspects(&self, image: &Tensor, natural: &Tensor, threat: &ThreatModel) -> String {
        let number = |tensor: Tensor| tensor.to_kind(tch::Kind::Double).double_value(&[]);
        let gradients = self.gradients.borrow();
        let gradient = gradients.iter().rev().find_map(|(images, gradients)| {
            let row = (0..images.size()[0]).find(|row| images.narrow(0, *row, 1) == *image)?;
            Some(gradients.get(row).abs())
        });
        let gradient = gradient.map_or("no gradient".to_owned(), |gradient| {
            let (smallest, largest) = (number(gradient.min()), number(gradient.max()));
            format!("gradients of {smallest:.1e} to {largest:.1e} (near zero, rounding changes signs)")
        });
        let (low, high) = threat.domain;
        let mut bound = image.le(low).logical_or(&image.ge(high));
        if threat.norm == Norm::Linf {
            bound = bound.logical_or(&(image - natural).abs().ge(threat.epsilon * (1.0 - 1e-9)));
        }
        format!(
            "the step before had {gradient}, and {} of {} pixels at a bound of the projection",
            number(bound.sum(tch::Kind::Int64)),
            image.numel()
        )
    }
}

fn rows(batch: &Tensor) -> u64 {
    batch.size()[0] as u64
}

impl VictimCalls for SmallNet {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.queries.borrow_mut().push(images.detach().copy());
        tch::no_grad(|| self.forward(images))
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        self.queries.borrow_mut().push(images.detach().copy());
        let leaf = images.detach().set_requires_grad(true);
        let logits = tch::with_grad(|| self.forward(&leaf))?;
        Ok((logits, leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        let total = tch::with_grad(|| loss.f_sum(loss.kind()))?;
        let gradient = losses::gradient(&total, leaf, true)?;
        self.gradients.borrow_mut().push((leaf.detach(), gradient.copy()));
        Ok(gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Victim;
    use plugin_api::tch::{Device, Kind};

    /// Weights of a network for 1x4x4 images and three classes.
    fn weights() -> HashMap<String, Tensor> {
        let shapes: [(&str, &[i64]); 6] = [
            ("conv1.weight", &[8, 1, 3, 3]),
            ("conv1.bias", &[8]),
            ("conv2.weight", &[8, 8, 3, 3]),
            ("conv2.bias", &[8]),
            ("output.weight", &[3, 32]),
            ("output.bias", &[3]),
        ];
        let tensor = |shape: &[i64]| {
            let numbers = Tensor::arange(shape.iter().product::<i64>(), (Kind::Double, Device::Cpu));
            (numbers * 0.7).sin().reshape(shape)
        };
        shapes.iter().map(|(name, shape)| ((*name).to_owned(), tensor(shape))).collect()
    }

    #[test]
    fn gradients_are_correct_and_queries_are_recorded_and_counted() {
        let net = SmallNet::new(&weights()).expect("a network");
        let images = Tensor::linspace(0.0, 1.0, 32, (Kind::Double, Device::Cpu)).reshape([2, 1, 4, 4]);
        let (_, gradient) = Victim::new(&net)
            .forward(&images)
            .and_then(|evaluation| evaluation.gradient(|logits| logits.select(1, 0)))
            .expect("a gradient");

        let nudge = images.zeros_like();
        let _ = nudge.narrow(0, 1, 1).flatten(0, -1).narrow(0, 5, 1).fill_(1e-6);
        let logit = |images: &Tensor| net.forward(images).expect("logits").double_value(&[1, 0]);
        let slope = (logit(&(&images + &nudge)) - logit(&(&images - &nudge))) / 2e-6;
        assert!((gradient.double_value(&[1, 0, 1, 1]) - slope).abs() < 1e-6);

        let _ = net.logits(&images.narrow(0, 0, 1)).expect("logits");
        assert_eq!((net.forward_passes(), net.backward_passes()), (3, 2));
        assert_eq!(net.queries(), [images.shallow_clone(), images.narrow(0, 0, 1)]);
    }

    #[test]
    fn a_missing_weight_is_named() {
        let mut weights = weights();
        weights.remove("conv2.bias");
        let message = SmallNet::new(&weights).expect_err("refused").to_string();
        assert!(message.contains("`conv2.bias`"), "{message}");
    }
}
