//! Small problems for the checks.

use crate::objective;
use crate::{Outcome, Plugin, Table};
use plugin_api::abi::{AttackInstance, ModelInstance, ObjectiveInstance, SamplerInstance};
use plugin_api::losses::{correct, cross_entropy, gradient};
use plugin_api::tch::{self, Device, Kind, Tensor};
use plugin_api::{Distribution, Error, Norm, Random, RandomSource, Result, Step, ThreatModel, VictimCalls};
use std::cell::Cell;

/// Images of 12x12 pixels: large enough for convolutions, small enough to be fast.
pub const SIDE: i64 = 12;

pub const THREAT: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.1, domain: (0.0, 1.0) };

/// The threat models of the checks: every norm, the usual domain and another one.
pub const THREATS: [ThreatModel; 6] = [
    THREAT,
    ThreatModel { norm: Norm::L2, epsilon: 0.5, domain: (0.0, 1.0) },
    ThreatModel { norm: Norm::Linf, epsilon: 0.2, domain: (-1.0, 1.0) },
    ThreatModel { norm: Norm::L2, epsilon: 1.0, domain: (-1.0, 1.0) },
    ThreatModel { norm: Norm::L1, epsilon: 2.0, domain: (0.0, 1.0) },
    ThreatModel { norm: Norm::L1, epsilon: 4.0, domain: (-1.0, 1.0) },
];

/// The parameters of examples and a victim.
#[derive(Clone, Copy)]
pub struct Problem {
    pub channels: i64,
    pub classes: i64,
    pub kind: Kind,
    pub threat: ThreatModel,
    pub seed: u64,
}

impl Problem {
    /// Grey images of 10 classes in f32.
    pub fn new(seed: u64) -> Self {
        Self { channels: 1, classes: 10, kind: Kind::Float, threat: THREAT, seed }
    }

    /// Examples, each of which depends on its point only.
    pub fn batch(self, points: impl IntoIterator<Item = i64>) -> Batch {
        let points: Vec<i64> = points.into_iter().collect();
        let Self { channels, classes, kind, threat, seed } = self;
        let like = Tensor::zeros([points.len() as i64, channels, SIDE, SIDE], (kind, Device::Cpu));
        let uniform = |seed| Numbers::new(seed, &points).numbers(Distribution::Uniform, &like);
        let (low, high) = threat.domain;
        let images = uniform(seed ^ 0x5eed) * (high - low) + low;
        let aside = (uniform(seed ^ 0xa51de) - 0.5) * threat.epsilon;
        let labels: Vec<i64> = points.iter().map(|point| point % classes).collect();
        Batch {
            particles: threat.project(&(&images + aside), &images),
            images,
            labels: Tensor::from_slice(&labels),
            random: Numbers::new(seed, &points),
            victim: LinearVictim::new(self),
            problem: self,
            points,
        }
    }
}

/// A batch of examples, a victim and random numbers.
pub struct Batch {
    pub problem: Problem,
    pub images: Tensor,
    pub particles: Tensor,
    pub labels: Tensor,
    pub points: Vec<i64>,
    pub random: Numbers,
    pub victim: LinearVictim,
}

impl Batch {
    /// The same batch on another device.
    pub fn on(mut self, device: Device) -> Self {
        for tensor in [&mut self.images, &mut self.particles, &mut self.labels] {
            *tensor = tensor.to_device(device);
        }
        self.victim.weights = self.victim.weights.detach().to_device(device).set_requires_grad(true);
        self
    }

    /// The same examples, labelled with the victim's predictions.
    pub fn classified(mut self) -> Result<Self> {
        self.labels = self.victim.logits(&self.images)?.argmax(1, false);
        Ok(self)
    }

    /// The inputs of an instance.
    pub fn inputs(&self, instance: &Instance) -> Result<Inputs> {
        let (loss, gradient, state) = match instance {
            Instance::Sampler(sampler) => {
                let (loss, gradient) = self.victim.loss_and_gradient(&self.particles, &self.labels)?;
                (loss, gradient, sampler.declaration().fresh_state(&self.images))
            }
            _ => (self.images.zeros_like(), self.images.zeros_like(), Vec::new()),
        };
        Ok(Inputs {
            natural: self.images.shallow_clone(),
            particles: self.particles.shallow_clone(),
            labels: self.labels.shallow_clone(),
            loss,
            gradient,
            state,
        })
    }
}

/// The inputs of an instance. Models use `natural` only, attacks also the labels.
pub struct Inputs {
    pub natural: Tensor,
    pub particles: Tensor,
    pub labels: Tensor,
    pub loss: Tensor,
    pub gradient: Tensor,
    pub state: Vec<Tensor>,
}

impl Inputs {
    /// The same inputs with `change` applied to every tensor that is shaped like images.
    pub fn with_images(mut self, change: impl Fn(&Tensor) -> Tensor) -> Self {
        let images = [&mut self.natural, &mut self.particles, &mut self.gradient];
        let state = self.state.iter_mut().filter(|state| state.dim() == 4);
        for tensor in images.into_iter().chain(state) {
            *tensor = change(tensor);
        }
        self
    }

    /// All tensors with their names.
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let Self { natural, particles, labels, loss, gradient, state } = self;
        let named = [
            ("natural", natural),
            ("particles", particles),
            ("labels", labels),
            ("loss", loss),
            ("gradient", gradient),
        ];
        named.into_iter().chain(state.iter().map(|state| ("state", state))).collect()
    }
}

/// Random numbers that depend on seed, point and draw.
pub struct Numbers {
    seed: u64,
    points: Vec<i64>,
    draws: Cell<u64>,
    /// Whether every draw is refused.
    pub refuses: bool,
}

impl Numbers {
    pub fn new(seed: u64, points: &[i64]) -> Self {
        Self { seed, points: points.to_vec(), draws: Cell::new(0), refuses: false }
    }

    /// The number of draws so far.
    pub fn draws(&self) -> u64 {
        self.draws.get()
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
        Tensor::from_slice(&values).reshape(like.size()).to_kind(like.kind()).to_device(like.device())
    }
}

impl RandomSource for Numbers {
    fn draw(&self, distribution: Distribution, like: &Tensor) -> Result<Tensor> {
        match like.size().first() {
            Some(rows) if *rows as usize == self.points.len() && !self.refuses => {
                Ok(self.numbers(distribution, like))
            }
            _ => {
                self.draws.set(self.draws.get() + 1);
                Err(Error::new("a draw must have one row for each example"))
            }
        }
    }
}

/// The finaliser of splitmix64, a hash.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A linear classifier, whose cross-entropy is convex in the image.
pub struct LinearVictim {
    pub weights: Tensor,
    middle: f64,
    /// Whether every call is refused.
    pub refuses: bool,
    calls: Cell<u64>,
    forward_passes: Cell<u64>,
    trace: Cell<f64>,
}

impl LinearVictim {
    pub fn new(problem: Problem) -> Self {
        let Problem { channels, classes, kind, threat, .. } = problem;
        let like = Tensor::zeros([classes, channels * SIDE * SIDE], (kind, Device::Cpu));
        let rows: Vec<i64> = (0..classes).collect();
        let weights = Numbers::new(7, &rows).numbers(Distribution::Normal, &like) * 0.3;
        Self {
            weights: weights.set_requires_grad(true),
            middle: (threat.domain.0 + threat.domain.1) / 2.0,
            refuses: false,
            calls: Cell::new(0),
            forward_passes: Cell::new(0),
            trace: Cell::new(0.0),
        }
    }

    /// The number of calls so far, including refused ones.
    pub fn calls(&self) -> u64 {
        self.calls.get()
    }

    /// Forward passes of single images so far.
    pub fn forward_passes(&self) -> u64 {
        self.forward_passes.get()
    }

    /// A number that depends on the sequence of queries.
    pub fn trace(&self) -> f64 {
        self.trace.get()
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.calls.set(self.calls.get() + 1);
        if self.refuses {
            return Err(Error::new("this victim refuses every call"));
        }
        let logits = (images - self.middle).f_flatten(1, -1)?.f_matmul(&self.weights.tr())?;
        self.forward_passes.set(self.forward_passes.get() + images.size()[0] as u64);
        self.trace.set(0.9 * self.trace.get() + logits.detach().sum(Kind::Double).double_value(&[]));
        Ok(logits)
    }

    /// Logits with a graph through images and weights, if gradients are tracked.
    pub fn tracked_logits(&self, images: &Tensor) -> Result<Tensor> {
        self.forward(images)
    }

    /// Loss of each example and its gradient with respect to the images.
    pub fn loss_and_gradient(&self, images: &Tensor, labels: &Tensor) -> Result<(Tensor, Tensor)> {
        let (logits, leaf) = self.differentiable(images)?;
        let loss = tch::with_grad(|| cross_entropy(&logits, labels));
        let gradient = self.input_gradient(&loss, &leaf)?;
        Ok((loss.detach(), gradient))
    }

    pub fn accuracy(&self, images: &Tensor, labels: &Tensor) -> Result<f64> {
        let correct = correct(&self.logits(images)?, labels);
        Ok(correct.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]))
    }
}

impl VictimCalls for LinearVictim {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.forward(images)
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let leaf = images.detach().set_requires_grad(true);
        let logits = tch::with_grad(|| self.forward(&leaf))?;
        Ok((logits, leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        let total = tch::with_grad(|| loss.f_sum(loss.kind()))?;
        gradient(&total, leaf, true)
    }
}

/// Calls a plugin as the host does: without gradient tracking. Gradient mode and number of threads
/// are restored.
pub fn guarded<T>(call: impl FnOnce() -> T) -> T {
    let threads = tch::get_num_threads();
    let _guard = tch::no_grad_guard();
    let result = call();
    if tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
    result
}

/// A plugin's instance.
pub enum Instance {
    Model(ModelInstance),
    Sampler(SamplerInstance),
    Attack(AttackInstance),
    Objective(ObjectiveInstance),
}

impl Instance {
    /// An instance with the options of the checks, for batches like this one.
    pub fn new(plugin: &Plugin, batch: &Batch) -> std::result::Result<Self, Outcome> {
        let made = Self::with_options(plugin, &plugin.options, batch);
        made.map_err(|error| Outcome::failed("an instance", error))
    }

    pub fn with_options(plugin: &Plugin, options: &str, batch: &Batch) -> Result<Self> {
        Self::drawn(plugin, options, batch, 1)
    }

    /// An instance with initial weights drawn from this seed.
    pub fn drawn(plugin: &Plugin, options: &str, batch: &Batch, seed: i64) -> Result<Self> {
        Ok(match &plugin.table {
            Table::Model(model) => {
                tch::manual_seed(seed);
                let none = batch.images.narrow(0, 0, 0);
                Self::Model(tch::with_grad(|| model.create(options, &none, batch.problem.classes))?)
            }
            Table::Sampler(sampler) => Self::Sampler(sampler.create(options)?),
            Table::Attack(attack) => Self::Attack(attack.create(options)?),
            Table::Objective(objective) => Self::Objective(objective.create(options)?),
        })
    }

    /// Logits of a model, the next particles and state of a sampler, candidates of an attack, outer
    /// and inner losses of an objective.
    pub fn act(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        self.act_on(batch, &batch.inputs(self)?)
    }

    /// As `act`, with other inputs than those of the batch.
    pub fn act_on(&self, batch: &Batch, inputs: &Inputs) -> Result<Vec<Tensor>> {
        guarded(|| self.act_unguarded(batch, inputs))
    }

    /// As `act_on`, without restoring gradient mode and number of threads.
    pub fn act_unguarded(&self, batch: &Batch, inputs: &Inputs) -> Result<Vec<Tensor>> {
        let Batch { problem, points, random, victim, .. } = batch;
        let Inputs { natural, particles, labels, loss, gradient, state } = inputs;
        Ok(match self {
            Self::Model(model) => vec![model.forward(natural, false)?],
            Self::Sampler(sampler) => {
                let step = Step {
                    natural,
                    labels,
                    particles,
                    loss,
                    gradient,
                    state,
                    points,
                    particles_per_point: 1,
                    number: 0,
                    of: 1,
                    threat: supported(|threat| sampler.supports(threat), problem.threat)?,
                    random: Random::new(random),
                };
                let next = sampler.step(&step, random)?;
                std::iter::once(next.particles).chain(next.state).collect()
            }
            Self::Attack(attack) => {
                let threat = supported(|threat| attack.supports(threat), problem.threat)?;
                vec![attack.run((natural, labels), points, problem.classes, threat, victim, random)?]
            }
            Self::Objective(objective) => {
                let rows = objective::Rows {
                    natural,
                    particles,
                    labels,
                    points,
                    particles_per_point: 1,
                    problem: *problem,
                    sureness: 1.0,
                };
                let first = objective::first_state(objective, &rows)?;
                let losses = objective::losses(objective, &rows, &first, (victim, random))?;
                vec![losses.outer, losses.inner]
            }
        })
    }

    /// The shapes that `act` must return.
    pub fn shapes(&self, batch: &Batch) -> Vec<Vec<i64>> {
        let images = || batch.images.size();
        match self {
            Self::Model(_) => vec![vec![batch.points.len() as i64, batch.problem.classes]],
            Self::Sampler(sampler) => {
                let state = sampler.declaration().state().into_iter();
                std::iter::once(images()).chain(state.map(|shape| shape.size(&batch.images))).collect()
            }
            Self::Attack(_) => vec![images()],
            Self::Objective(_) => vec![vec![batch.points.len() as i64]; 2],
        }
    }
}

/// The threat model if the plugin supports it, else one in another norm.
fn supported(supports: impl Fn(&ThreatModel) -> Result<()>, threat: ThreatModel) -> Result<ThreatModel> {
    let others = THREATS.into_iter().filter(|other| other.domain == threat.domain);
    let mut supported = std::iter::once(threat).chain(others).filter(|threat| supports(threat).is_ok());
    supported.next().ok_or_else(|| Error::new("it supports none of linf, l2 and l1"))
}
