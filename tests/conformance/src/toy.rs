//! Small problems that plugins are tried on.

use crate::{Outcome, Plugin};
use plugin_api::abi::{AttackInstance, ModelInstance, SamplerInstance};
use plugin_api::losses::cross_entropy;
use plugin_api::tch::{self, Device, Kind, Tensor};
use plugin_api::{Distribution, Norm, Random, RandomSource, Result, Step, ThreatModel, VictimCalls};

/// Images of 1x12x12 pixels: large enough for convolutions, small enough to be fast.
pub const SIDE: i64 = 12;

pub const THREAT: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.1, domain: (0.0, 1.0) };

/// A batch of examples whose every row depends on its point alone.
pub struct Batch {
    pub images: Tensor,
    pub labels: Tensor,
    pub points: Vec<i64>,
    pub classes: i64,
    pub random: Numbers,
    pub victim: LinearVictim,
}

impl Batch {
    pub fn new(points: impl IntoIterator<Item = i64>, classes: i64, kind: Kind, seed: u64) -> Self {
        let points: Vec<i64> = points.into_iter().collect();
        let shape = [points.len() as i64, 1, SIDE, SIDE];
        let like = Tensor::zeros(shape, (kind, Device::Cpu));
        let images = Numbers::new(seed ^ 0x5eed, &points).numbers(Distribution::Uniform, &like);
        let labels: Vec<i64> = points.iter().map(|point| point % classes).collect();
        Self {
            images,
            labels: Tensor::from_slice(&labels),
            random: Numbers::new(seed, &points),
            victim: LinearVictim::new(classes, kind),
            points,
            classes,
        }
    }

    /// Images with the same values that lie otherwise in memory.
    pub fn with_strides(mut self) -> Self {
        self.images = self.images.transpose(2, 3).contiguous().transpose(2, 3);
        self
    }
}

/// Random numbers that depend on seed, point and draw.
pub struct Numbers {
    seed: u64,
    points: Vec<i64>,
    draws: std::cell::Cell<u64>,
}

impl Numbers {
    pub fn new(seed: u64, points: &[i64]) -> Self {
        Self { seed, points: points.to_vec(), draws: std::cell::Cell::new(0) }
    }

    fn numbers(&self, distribution: Distribution, like: &Tensor) -> Tensor {
        let draw = self.draws.replace(self.draws.get() + 1);
        let width = like.numel() / self.points.len().max(1);
        let mut values = Vec::with_capacity(like.numel());
        for point in &self.points {
            let mut state = mix(self.seed ^ mix(*point as u64 ^ mix(draw + 1)));
            let mut uniform = || {
                state = mix(state);
                (state >> 40) as f64 / (1u64 << 24) as f64
            };
            for _ in 0..width {
                values.push(match distribution {
                    Distribution::Uniform => uniform(),
                    // Box and Muller.
                    Distribution::Normal => {
                        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
                        radius * (std::f64::consts::TAU * uniform()).cos()
                    }
                });
            }
        }
        Tensor::from_slice(&values).reshape(like.size()).to_kind(like.kind())
    }
}

impl RandomSource for Numbers {
    fn draw(&self, distribution: Distribution, like: &Tensor) -> Result<Tensor> {
        match like.size().first() {
            Some(rows) if *rows as usize == self.points.len() => Ok(self.numbers(distribution, like)),
            _ => Err(plugin_api::Error::new("random numbers come in one row for each example")),
        }
    }
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A linear classifier, whose cross-entropy is convex in the image.
pub struct LinearVictim {
    pub weights: Tensor,
}

impl LinearVictim {
    pub fn new(classes: i64, kind: Kind) -> Self {
        let like = Tensor::zeros([classes, SIDE * SIDE], (kind, Device::Cpu));
        let rows: Vec<i64> = (0..classes).collect();
        let weights = Numbers::new(7, &rows).numbers(Distribution::Normal, &like) * 0.3;
        Self { weights: weights.set_requires_grad(true) }
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        Ok((images - 0.5).f_flatten(1, -1)?.f_matmul(&self.weights.tr())?)
    }

    /// Loss of each example and its gradient towards the images.
    pub fn loss_and_gradient(&self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        let (logits, leaf) = self.differentiable(images)?;
        let loss = tch::with_grad(|| cross_entropy(&logits, labels));
        let gradient = self.input_gradient(&loss, &leaf)?;
        Ok((loss.detach(), gradient))
    }

    pub fn accuracy(&self, images: &Tensor, labels: &Tensor) -> Result<f64> {
        let correct = plugin_api::losses::correct(&self.logits(images)?, labels);
        Ok(correct.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]))
    }
}

impl VictimCalls for LinearVictim {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.forward(images))
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let leaf = images.detach().set_requires_grad(true);
        let logits = tch::with_grad(|| self.forward(&leaf))?;
        Ok((logits, leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        let total = tch::with_grad(|| loss.sum(loss.kind()));
        let gradients = Tensor::f_run_backward(&[total], &[leaf], true, false)?;
        gradients.into_iter().next().ok_or_else(|| plugin_api::Error::new("no gradient"))
    }
}

/// A plugin's instance, with whatever it has to do on a batch.
pub enum Instance {
    Model(ModelInstance),
    Sampler(SamplerInstance),
    Attack(AttackInstance),
}

impl Instance {
    /// Made with default options, for batches like this one.
    pub fn new(plugin: &Plugin, batch: &Batch) -> std::result::Result<Self, Outcome> {
        Self::with_options(plugin, "{}", batch).map_err(|_| Outcome::blocked_by("options-defaults"))
    }

    pub fn with_options(plugin: &Plugin, options: &str, batch: &Batch) -> Result<Self> {
        Ok(match plugin {
            Plugin::Model(model) => {
                tch::manual_seed(1);
                let none = batch.images.narrow(0, 0, 0);
                Self::Model(tch::with_grad(|| model.create(options, &none, batch.classes))?)
            }
            Plugin::Sampler(sampler) => Self::Sampler(sampler.create(options)?),
            Plugin::Attack(attack) => Self::Attack(attack.create(options)?),
        })
    }

    /// Logits of a model, the next particles and state of a sampler, candidates of an attack.
    pub fn act(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let _guard = tch::no_grad_guard();
        self.act_unguarded(batch)
    }

    /// The same, without restoring the grad mode that the plugin leaves behind.
    pub fn act_unguarded(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let Batch { images, labels, points, classes, random, victim } = batch;
        Ok(match self {
            Self::Model(model) => vec![model.forward(images, false)?],
            Self::Sampler(sampler) => {
                let (loss, gradient) = victim.loss_and_gradient(images, labels)?;
                let state: Vec<_> =
                    (0..sampler.declaration().state_tensors).map(|_| images.zeros_like()).collect();
                let step = Step {
                    natural: images,
                    labels,
                    particles: images,
                    loss: &loss,
                    gradient: &gradient,
                    state: &state,
                    points,
                    particles_per_point: 1,
                    number: 0,
                    of: 1,
                    threat: THREAT,
                    random: Random::new(random),
                };
                let next = sampler.step(&step, random)?;
                std::iter::once(next.particles).chain(next.state).collect()
            }
            Self::Attack(attack) => {
                vec![attack.run((images, labels), points, *classes, THREAT, victim, random)?]
            }
        })
    }

    /// The shape that `act` must return.
    pub fn shape(&self, batch: &Batch) -> Vec<i64> {
        match self {
            Self::Model(_) => vec![batch.points.len() as i64, batch.classes],
            _ => batch.images.size(),
        }
    }
}
