//! A moving average of the weights, which is evaluated in their place.

use crate::plugin::Model;
use crate::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

/// An exponential moving average of a model's parameters and buffers.
pub struct Average {
    decay: f64,
    steps: u64,
    tensors: Vec<(String, Tensor)>,
}

impl Average {
    /// An average that begins at the model's weights and keeps `decay` of itself at every step.
    pub fn new(decay: f64, model: &Model) -> Self {
        let copy = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.detach().copy());
        Self { decay, steps: 0, tensors: model.state().iter().map(copy).collect() }
    }

    /// Takes the model's weights in. The first steps keep less, so that the start is forgotten:
    /// (1 + t) / (10 + t) of the average at step t.
    pub fn update(&mut self, model: &Model) {
        let _guard = tch::no_grad_guard();
        let keep = self.decay.min((1.0 + self.steps as f64) / (10.0 + self.steps as f64));
        self.steps += 1;
        for ((_, average), (_, weights)) in self.tensors.iter_mut().zip(model.state()) {
            if average.is_floating_point() {
                let _ = average.lerp_(weights, 1.0 - keep);
            } else {
                average.copy_(weights);
            }
        }
    }

    /// Its tensors by name, as the model's.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// Takes over a saved average after this many steps.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (name, tensor) in &mut self.tensors {
            match saved.get(name) {
                Some(saved) if saved.size() == tensor.size() => tensor.copy_(saved),
                _ => return Err(Error::new(format!("the checkpoint's average does not fit: `{name}`"))),
            }
        }
        self.steps = steps;
        Ok(())
    }

    /// Works with the average in the model's place.
    ///
    /// # Errors
    /// The work's own.
    pub fn in_place_of<T>(&self, model: &Model, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _guard = tch::no_grad_guard();
        let weights: Vec<_> = model.state().iter().map(|(_, tensor)| tensor.detach().copy()).collect();
        let put = |tensors: &mut dyn Iterator<Item = &Tensor>| {
            for ((_, place), tensor) in model.state().iter().zip(tensors) {
                place.shallow_clone().copy_(tensor);
            }
        };
        put(&mut self.tensors.iter().map(|(_, tensor)| tensor));
        let outcome = work();
        put(&mut weights.iter());
        outcome
    }
}
