//! Helpers for tests of a plugin's arithmetic, without a host.

use crate::{
    losses, Distribution, Error, Model, Next, Norm, Random, RandomSource, Result, Sampler, Step, Task,
    ThreatModel, VictimCalls,
};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use tch::{nn, Device, Kind, Tensor};

/// Random numbers known in advance: every draw is filled with these values, row by row, from
/// the first one on, repeated where the draw is longer.
#[derive(Debug, Clone)]
pub struct FixedNumbers(
    /// The values; at least one.
    pub Vec<f64>,
);

impl RandomSource for FixedNumbers {
    fn draw(&self, _: Distribution, like: &Tensor) -> Result<Tensor> {
        let values: Vec<f64> = self.0.iter().copied().cycle().take(like.numel()).collect();
        Ok(Tensor::from_slice(&values).reshape(like.size()).to_kind(like.kind()).to_device(like.device()))
    }
}

/// Random numbers recorded elsewhere, handed out draw by draw in the order given. Every draw
/// must have the shape that is asked for; dtype and device are adapted.
#[derive(Debug)]
pub struct ReplayedNumbers {
    draws: Vec<Tensor>,
    handed_out: Cell<usize>,
}

impl ReplayedNumbers {
    /// These draws, one row per example of the call each.
    pub fn new(draws: Vec<Tensor>) -> Self {
        Self { draws, handed_out: Cell::new(0) }
    }

    /// The same draws from the first one on, for a call with only these examples.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn rows(&self, rows: &[i64]) -> Self {
        let rows = Tensor::from_slice(rows);
        Self::new(
            self.draws.iter().map(|draw| draw.index_select(0, &rows.to_device(draw.device()))).collect(),
        )
    }

    /// How many draws have been handed out.
    pub fn handed_out(&self) -> usize {
        self.handed_out.get()
    }
}

impl RandomSource for ReplayedNumbers {
    fn draw(&self, _: Distribution, like: &Tensor) -> Result<Tensor> {
        let number = self.handed_out.replace(self.handed_out.get() + 1);
        match self.draws.get(number) {
            Some(draw) if draw.size() == like.size() => {
                Ok(draw.to_kind(like.kind()).to_device(like.device()).copy())
            }
            Some(draw) => Err(Error::new(format!(
                "draw {number}: recorded with shape {:?}, asked for with shape {:?}",
                draw.size(),
                like.size()
            ))),
            None => {
                Err(Error::new(format!("{} draws are recorded, one more was asked for", self.draws.len())))
            }
        }
    }
}

/// The tensors of a safetensors file by name.
///
/// # Errors
/// If the file cannot be read.
pub fn read_tensors(path: impl AsRef<Path>) -> Result<HashMap<String, Tensor>> {
    Ok(Tensor::read_safetensors(path)?.into_iter().collect())
}

/// A small fixed network to attack: two 3x3 convolutions with padding 1, the second with stride
/// 2, each followed by a ReLU, and a linear layer. It keeps a copy of every batch of images that
/// it was asked about, and of the gradients there, so a test sees an attack's iterates, and
/// counts passes as the host does.
#[derive(Debug)]
pub struct SmallNet {
    convolution1: Layer,
    convolution2: Layer,
    output: Layer,
    queries: RefCell<Vec<Tensor>>,
    /// Images and the gradients towards them.
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
    /// Names the weight that is missing.
    pub fn new(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Ok(Self {
            convolution1: Layer::new(tensors, "conv1")?,
            convolution2: Layer::new(tensors, "conv2")?,
            output: Layer::new(tensors, "output")?,
            queries: RefCell::default(),
            gradients: RefCell::default(),
        })
    }

    /// Logits `[N, classes]` of images `[N, C, H, W]` in the weights' dtype; neither recorded
    /// nor counted.
    ///
    /// # Errors
    /// If the images do not fit the weights.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let hidden = self.convolution2.convolve(&self.convolution1.convolve(images, 1)?, 2)?;
        Ok(hidden.f_flatten(1, -1)?.f_linear(&self.output.weight, Some(&self.output.bias))?)
    }

    /// Copies of the batches of images that were asked about, in order.
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

    /// What may lead a replayed attack away from its recording at the step after `image`
    /// (`[1, C, H, W]`), in words: how nearly zero a gradient there is, and how many pixels a
    /// projection holds at a bound of the ball (linf) or the domain.
    pub fn suspects(&self, image: &Tensor, natural: &Tensor, threat: &ThreatModel) -> String {
        let number = |tensor: Tensor| tensor.to_kind(tch::Kind::Double).double_value(&[]);
        let gradients = self.gradients.borrow();
        let gradient = gradients.iter().rev().find_map(|(images, gradients)| {
            let row = (0..images.size()[0]).find(|row| images.narrow(0, *row, 1) == *image)?;
            Some(gradients.get(row).abs())
        });
        let gradient = gradient.map_or("no gradient was taken".to_owned(), |gradient| {
            let (smallest, largest) = (number(gradient.min()), number(gradient.max()));
            format!("gradients of {smallest:.1e} to {largest:.1e} (near zero a sign flips)")
        });
        let (low, high) = threat.domain;
        let mut bound = image.le(low).logical_or(&image.ge(high));
        if threat.norm == Norm::Linf {
            bound = bound.logical_or(&(image - natural).abs().ge(threat.epsilon * (1.0 - 1e-9)));
        }
        format!(
            "the step before had {gradient}, and {} of {} pixels at a bound (projection)",
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

/// One step of a sampler from natural examples `[N, C, H, W]`, given the gradient there, the
/// particle's state and the random numbers; nothing is projected. Labels and losses are zero.
///
/// # Errors
/// The sampler's own.
pub fn one_step<S: Sampler>(
    sampler: &S,
    natural: &Tensor,
    gradient: &Tensor,
    state: &[Tensor],
    threat: ThreatModel,
    numbers: &FixedNumbers,
) -> Result<Next> {
    let rows = natural.size()[0];
    let points: Vec<i64> = (0..rows).collect();
    sampler.step(&Step {
        natural,
        labels: &Tensor::zeros([rows], (tch::Kind::Int64, natural.device())),
        particles: natural,
        loss: &Tensor::zeros([rows], (natural.kind(), natural.device())),
        gradient,
        state,
        points: &points,
        particles_per_point: 1,
        number: 0,
        of: 1,
        threat,
        random: Random::new(numbers),
    })
}

/// Demands that a step led to these particles, in order, up to rounding.
///
/// # Panics
/// If it failed or led elsewhere.
#[track_caller]
pub fn assert_particles(step: Result<Next>, expected: &[f64]) {
    assert_close(&step.expect("a step").particles, expected);
}

/// Demands these values, in order, up to rounding in f64 (1e-11).
///
/// # Panics
/// If they differ, in number too.
#[track_caller]
pub fn assert_close(tensor: &Tensor, expected: &[f64]) {
    let got: Vec<f64> = Vec::try_from(tensor.flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers");
    let close = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-11);
    assert!(close && got.len() == expected.len(), "got {got:?}, expected {expected:?}");
}

/// Numbers between -1 and 1, in f64, that look like noise and can be worked out anywhere.
fn waves(shape: &[i64], phase: f64) -> Tensor {
    let places = Tensor::arange(shape.iter().product::<i64>(), (Kind::Int64, Device::Cpu));
    ((&places * &places).remainder(1009).to_kind(Kind::Double) + phase).sin().reshape(shape)
}

/// Demands that a network on images `[4, 3, 12, 12]` of ten classes computes, in f64, what
/// `tests/parity/record_networks.py` recorded of the same network: logits in evaluation, logits
/// in training, and after that the running moments of its first and its last normalisation.
/// Weights and images are filled by that program's formula, which depends on the sorted names.
///
/// # Errors
/// The network's own, or if the file cannot be read.
///
/// # Panics
/// If something differs by more than 1e-9.
pub fn assert_computes_as_recorded<M: Model>(
    options: M::Options,
    recorded: impl AsRef<Path>,
    norms: [&str; 2],
) -> Result<()> {
    let _guard = tch::no_grad_guard();
    let mut variables = nn::VarStore::new(Device::Cpu);
    let task = Task { channels: 3, height: 12, width: 12, classes: 10 };
    let model = M::new(options, task, &variables.root())?;
    variables.double();
    let mut state: Vec<_> = variables.variables().into_iter().collect();
    state.sort_by(|(one, _), (other, _)| one.cmp(other));
    for (place, (name, tensor)) in state.iter_mut().enumerate() {
        let (size, numbers) = (tensor.size(), waves(&tensor.size(), place as f64));
        let spread = name.ends_with("weight") || name.ends_with("running_var");
        tensor.copy_(&match size.len() {
            1 => numbers / 4 + f64::from(u8::from(spread)),
            _ => numbers * (2.0 / size[1..].iter().product::<i64>() as f64).sqrt(),
        });
    }
    let recorded = read_tensors(recorded)?;
    let demand = |what: &str, got: &Tensor| {
        let difference = (got - &recorded[what]).abs().max().double_value(&[]);
        assert!(difference < 1e-9, "{what} differs by {difference:e}");
    };
    let images = (waves(&[4, 3, 12, 12], 0.5) + 1) / 2;
    demand("evaluation", &model.forward(&images, false)?);
    demand("training", &model.forward(&images, true)?);
    let state = variables.variables();
    for (what, norm) in ["first", "last"].into_iter().zip(norms) {
        let moments = ["mean", "var"].map(|moment| &state[&format!("{norm}.running_{moment}")]);
        demand(what, &Tensor::cat(&moments, 0).narrow(0, 0, recorded[what].size()[0]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Victim;

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
    fn the_small_net_differentiates_records_and_counts() {
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

    #[test]
    fn recorded_numbers_come_draw_by_draw_and_row_by_row() {
        let draws = [[1.0f64, 2.0], [3.0, 4.0]].map(|draw| Tensor::from_slice(&draw).reshape([2, 1]));
        let numbers = ReplayedNumbers::new(draws.into()).rows(&[1]);
        let like = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu));
        let draw = || numbers.draw(Distribution::Uniform, &like);
        assert_eq!(draw().expect("the first"), Tensor::from_slice(&[2.0f32]).reshape([1, 1]));
        assert_eq!(draw().expect("the second"), Tensor::from_slice(&[4.0f32]).reshape([1, 1]));
        assert!(draw().is_err(), "nothing is left");
        assert!(numbers.rows(&[0, 0]).draw(Distribution::Uniform, &like).is_err(), "two rows");
    }
}
