//! Helpers for tests of a plugin's arithmetic, without a host.

use crate::{
    losses, Batch, Distribution, Network, NetworkCalls, Next, Random, RandomSource, Result, Sampler, Step,
    ThreatModel,
};
use tch::Tensor;

/// Fixed random numbers. Every draw is filled with these values, row by row, from the first one on;
/// they are repeated if the draw is longer.
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

/// One step of a sampler from natural examples `[N, C, H, W]`, given the gradient there, the state
/// of the particles and the random numbers. The result is not projected. Labels and losses are
/// zero.
///
/// # Errors
/// Those of the sampler.
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

/// A visit of `steps` steps of a sampler from natural examples `[N, C, H, W]` with fresh state, after
/// its `begin` if it begins itself, and with its `finish` if it judges the last proposal. `evaluate`
/// returns the loss (`[N]`) and the gradient at particles. Nothing is projected. Labels are zero, and every call gets the same numbers.
///
/// # Errors
/// Those of the sampler.
pub fn one_visit<S: Sampler>(
    sampler: &S,
    natural: &Tensor,
    evaluate: impl Fn(&Tensor) -> (Tensor, Tensor),
    steps: usize,
    threat: ThreatModel,
    numbers: &dyn RandomSource,
) -> Result<Next> {
    let rows = natural.size()[0];
    let points: Vec<i64> = (0..rows).collect();
    let images = |count: usize| (0..count).map(|_| natural.zeros_like());
    let kept = match sampler.numbers().len() as i64 {
        0 => None,
        count => Some(natural.new_zeros([rows, count], (natural.kind(), natural.device()))),
    };
    let state = images(sampler.state_tensors()).chain(kept).chain(images(sampler.visit_tensors())).collect();
    let mut next = Next { particles: natural.copy(), state };
    let labels = Tensor::zeros([rows], (tch::Kind::Int64, natural.device()));
    let at = |next: &Next, (loss, gradient): (Tensor, Tensor), number: usize, take: Take| {
        take(&Step {
            natural,
            labels: &labels,
            particles: &next.particles,
            loss: &loss,
            gradient: &gradient,
            state: &next.state,
            points: &points,
            particles_per_point: 1,
            number,
            of: steps,
            threat,
            random: Random::new(numbers),
        })
    };
    if sampler.begins() {
        let loss = natural.new_zeros([rows], (natural.kind(), natural.device()));
        next = at(&next, (loss, natural.zeros_like()), 0, &|step| sampler.begin(step))?;
    }
    for number in 0..steps {
        next = at(&next, evaluate(&next.particles), number, &|step| sampler.step(step))?;
    }
    if sampler.judges_last_proposal() {
        next = at(&next, evaluate(&next.particles), steps, &|step| sampler.finish(step))?;
    }
    Ok(next)
}

/// A minibatch for tests of an objective. Images are those of [`Round::new`] unless they are replaced.
pub struct Round<'a> {
    /// [`Batch::logits`].
    pub logits: Tensor,
    /// [`Batch::natural_logits`].
    pub natural_logits: Option<Tensor>,
    /// [`Batch::natural`].
    pub natural: Tensor,
    /// [`Batch::particles`].
    pub particles: Tensor,
    /// [`Batch::start`].
    pub start: Tensor,
    /// [`Batch::labels`].
    pub labels: Tensor,
    /// [`Batch::points`].
    pub points: Vec<i64>,
    /// [`Batch::particles_per_point`].
    pub particles_per_point: usize,
    /// [`Batch::threat`].
    pub threat: ThreatModel,
    /// [`Batch::state`].
    pub state: Vec<Tensor>,
    /// The network: logits of images.
    pub network: &'a dyn Fn(&Tensor) -> Tensor,
    /// The random numbers.
    pub numbers: FixedNumbers,
}

impl Round<'_> {
    /// Rows with these logits (`[N, classes]`) and labels, one particle a point, black images of one
    /// pixel, and a network whose logits are zero.
    pub fn new(logits: Tensor, labels: &[i64]) -> Self {
        let rows = labels.len() as i64;
        let images = Tensor::zeros([rows, 1, 1, 1], (logits.kind(), logits.device()));
        Self {
            natural_logits: None,
            natural: images.shallow_clone(),
            start: images.shallow_clone(),
            particles: images,
            labels: Tensor::from_slice(labels).to_device(logits.device()),
            points: (0..rows).collect(),
            particles_per_point: 1,
            threat: ThreatModel::default(),
            state: Vec::new(),
            network: &|images| images.flatten(1, -1) * 0.0,
            numbers: FixedNumbers(vec![0.0]),
            logits,
        }
    }

    /// The minibatch, as an objective is given it.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            logits: &self.logits,
            natural_logits: self.natural_logits.as_ref(),
            natural: &self.natural,
            particles: &self.particles,
            start: &self.start,
            labels: &self.labels,
            points: &self.points,
            particles_per_point: self.particles_per_point,
            classes: self.logits.size()[1],
            threat: self.threat,
            state: &self.state,
            network: Network::new(self),
            random: Random::new(&self.numbers),
        }
    }
}

impl NetworkCalls for Round<'_> {
    fn logits(&self, images: &Tensor, _: bool) -> Result<Tensor> {
        Ok((self.network)(images))
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> Result<Tensor> {
        losses::differentiable_gradient(&loss.f_sum(loss.kind())?, images)
    }
}
/// A method of a sampler.
type Take<'a> = &'a dyn Fn(&Step) -> Result<Next>;

/// Asserts that a step returned these particles, in order, up to rounding.
///
/// # Panics
/// If the step failed or the particles differ.
#[track_caller]
pub fn assert_particles(step: Result<Next>, expected: &[f64]) {
    assert_close(&step.expect("a step").particles, expected);
}

/// Asserts that a tensor has these values, in order, up to rounding in f64 (1e-11).
///
/// # Panics
/// If the values or their number differ.
#[track_caller]
pub fn assert_close(tensor: &Tensor, expected: &[f64]) {
    let got: Vec<f64> = Vec::try_from(tensor.flatten(0, -1).to_kind(tch::Kind::Double)).expect("numbers");
    let close = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-11);
    assert!(close && got.len() == expected.len(), "got {got:?}, expected {expected:?}");
}
