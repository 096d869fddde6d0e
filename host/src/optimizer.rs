//! Gradient descent on the weights.
//!
//! Moments are plain tensors of ours, because those inside libtorch's optimisers cannot be
//! read out for a checkpoint; the steps are libtorch's.

use crate::{Error, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::Tensor;

/// Which optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Stochastic gradient descent, with momentum if it is not 0.
    Sgd,
    /// Steps of the sign of the gradient, or of its momentum.
    SignSgd,
    /// Adam (Kingma and Ba 2015), weight decay added to the gradient.
    Adam,
}

/// What distinguishes one optimiser from another, learning rate aside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Which optimiser.
    pub algorithm: Algorithm,
    /// Share of the last step kept, 0 to 1 (`sgd`, `sign-sgd`).
    pub momentum: f64,
    /// Multiple of the weights added to their gradients, at least 0.
    pub weight_decay: f64,
}

const ADAM_BETAS: (f64, f64) = (0.9, 0.999);
const ADAM_EPSILON: f64 = 1e-8;

/// An optimiser and its moments.
pub struct Optimizer {
    settings: Settings,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
    steps: u64,
}

impl Optimizer {
    /// An optimiser of these parameters (shared, not copied) that has taken no step.
    pub fn new(settings: Settings, parameters: &[(&str, &Tensor)]) -> Self {
        let zeros = |wanted: bool| {
            let wanted = parameters.iter().filter(|_| wanted);
            wanted.map(|(_, parameter)| parameter.detach().zeros_like()).collect()
        };
        let adam = settings.algorithm == Algorithm::Adam;
        Self {
            first_moments: zeros(adam || settings.momentum > 0.0),
            second_moments: zeros(adam),
            names: parameters.iter().map(|(name, _)| (*name).to_owned()).collect(),
            parameters: parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect(),
            settings,
            steps: 0,
        }
    }

    /// The parameters, in the order that [`Optimizer::step`] expects gradients in.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// One step down these gradients; a parameter without one (undefined) stays.
    pub fn step(&mut self, gradients: &[Tensor], learning_rate: f64) {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let Settings { algorithm, momentum, weight_decay } = self.settings;
        for (index, gradient) in gradients.iter().enumerate().filter(|(_, gradient)| gradient.defined()) {
            let parameter = &mut self.parameters[index];
            let decayed = (weight_decay > 0.0).then(|| gradient + &*parameter * weight_decay);
            let gradient = decayed.as_ref().unwrap_or(gradient);
            if algorithm == Algorithm::Adam {
                let (keep_first, keep_second) = ADAM_BETAS;
                let first = &mut self.first_moments[index];
                *first *= keep_first;
                *first += gradient * (1.0 - keep_first);
                let second = &mut self.second_moments[index];
                *second *= keep_second;
                *second += gradient.square() * (1.0 - keep_second);
                let correction = |keep: f64| 1.0 - keep.powf(self.steps as f64);
                let scale = (&*second / correction(keep_second)).sqrt_() + ADAM_EPSILON;
                *parameter -= &*first / scale * (learning_rate / correction(keep_first));
                continue;
            }
            let direction = match self.first_moments.get_mut(index) {
                None => gradient.shallow_clone(),
                Some(moment) => {
                    *moment *= momentum;
                    *moment += gradient;
                    moment.shallow_clone()
                }
            };
            *parameter -= match algorithm {
                Algorithm::SignSgd => direction.sign() * learning_rate,
                _ => direction * learning_rate,
            };
        }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Its moments by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |kind: &'static str, moments: &[Tensor]| -> Vec<(String, Tensor)> {
            let pairs = self.names.iter().zip(moments);
            pairs.map(|(name, moment)| (format!("{kind}.{name}"), moment.shallow_clone())).collect()
        };
        let mut state = named("first_moment", &self.first_moments);
        state.extend(named("second_moment", &self.second_moments));
        state
    }

    /// Takes over saved moments and the number of steps.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (name, mut moment) in self.state() {
            match saved.get(&name) {
                Some(saved) if saved.size() == moment.size() => moment.copy_(saved),
                _ => {
                    return Err(Error::new(format!(
                        "the checkpoint's optimiser state does not fit: `{name}`"
                    )));
                }
            }
        }
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::{self, OptimizerConfig};
    use tch::{Device, Kind};

    /// Ten steps on a quadratic, by ours and by libtorch's optimiser.
    fn assert_same_as_libtorch<C: OptimizerConfig>(settings: Settings, config: C) {
        let curvature = Tensor::from_slice(&[1.0f32, 0.1, 10.0]);
        let start = Tensor::from_slice(&[1.0f32, -2.0, 0.5]);
        let loss = |x: &Tensor| (x * x * &curvature).sum(Kind::Float);

        let variables = nn::VarStore::new(Device::Cpu);
        let theirs = variables.root().var_copy("x", &start);
        let mut reference = config.build(&variables, 0.01).expect("an optimiser");
        let ours = start.copy().set_requires_grad(true);
        let mut optimizer = Optimizer::new(settings, &[("x", &ours)]);
        for _ in 0..10 {
            reference.backward_step(&loss(&theirs));
            let gradients = Tensor::run_backward(&[loss(&ours)], &[&ours], false, false);
            optimizer.step(&gradients, 0.01);
        }
        let difference = (&ours - &theirs).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{settings:?}: {ours:?} differs from {theirs:?} by {difference}");
        assert!((&ours - &start).abs().min().double_value(&[]) > 1e-3, "it moved");
    }

    #[test]
    fn steps_are_libtorchs() {
        let sgd = Settings { algorithm: Algorithm::Sgd, momentum: 0.0, weight_decay: 0.0 };
        assert_same_as_libtorch(sgd, nn::sgd(0.0, 0.0, 0.0, false));
        let heavy = Settings { momentum: 0.9, weight_decay: 0.01, ..sgd };
        assert_same_as_libtorch(heavy, nn::sgd(0.9, 0.0, 0.01, false));
        let adam = Settings { algorithm: Algorithm::Adam, weight_decay: 0.01, ..sgd };
        assert_same_as_libtorch(adam, nn::adam(0.9, 0.999, 0.01));
    }

    #[test]
    fn sign_sgd_moves_every_weight_by_the_learning_rate() {
        let weights = Tensor::from_slice(&[1.0f32, 1.0, 1.0]);
        let settings = Settings { algorithm: Algorithm::SignSgd, momentum: 0.0, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(settings, &[("w", &weights)]);
        optimizer.step(&[Tensor::from_slice(&[5.0f32, -0.001, 0.0])], 0.25);
        assert_eq!(Vec::<f32>::try_from(&weights).expect("f32"), [0.75, 1.25, 1.0]);
    }
}
