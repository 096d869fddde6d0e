//! An average of the weights, which is evaluated instead of the weights.

use super::optimizer::check;
use crate::plugin::LoadedModel;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::c_char;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn host_lerp(
        averages: *const *mut C_tensor,
        weights: *const *mut C_tensor,
        count: usize,
        share: f64,
    ) -> *const c_char;
}

/// How the weights after each of the optimiser's steps are averaged.
#[derive(Debug, Clone, Copy)]
pub enum Averaging {
    /// Exponential moving average: every step keeps this share of the average (0 to 1). Buffers are
    /// averaged like parameters.
    Exponential(f64),
    /// Equal mean from this step on, counted from 0 (stochastic weight averaging, Izmailov et al.
    /// 2018). Buffers are not averaged but recomputed: see [`Average::renew_buffers`].
    EqualFrom(u64),
}

/// An average of the parameters of a model, and its buffers.
pub struct Average {
    averaging: Averaging,
    steps: u64,
    tensors: Vec<(String, Tensor)>,
}

impl Average {
    /// An average that begins at the weights of the model.
    pub fn new(averaging: Averaging, model: &LoadedModel) -> Self {
        Self { averaging, steps: 0, tensors: copies(model) }
    }

    /// Whether the average contains any weights. An exponential average contains the initial
    /// weights.
    pub fn has_begun(&self) -> bool {
        matches!(self.averaging, Averaging::Exponential(_)) || self.steps_in_it() > 0
    }

    /// Number of optimiser steps after which the weights were added.
    pub fn steps_in_it(&self) -> u64 {
        match self.averaging {
            Averaging::Exponential(_) => self.steps,
            Averaging::EqualFrom(first) => self.steps.saturating_sub(first),
        }
    }

    /// Whether [`Average::renew_buffers`] must be called before an evaluation.
    pub fn has_stale_buffers(&self, model: &LoadedModel) -> bool {
        matches!(self.averaging, Averaging::EqualFrom(_))
            && self.has_begun()
            && model.state().iter().any(|(_, tensor)| !tensor.requires_grad())
    }

    /// Adds the weights of the model after a step of the optimiser. At step t, an exponential
    /// average keeps at most (1 + t) / (10 + t) of itself, so that the influence of the initial
    /// weights decays fast.
    pub fn update(&mut self, model: &LoadedModel) {
        let _guard = tch::no_grad_guard();
        let step = self.steps;
        self.steps += 1;
        let keep = match self.averaging {
            Averaging::Exponential(decay) => decay.min((1.0 + step as f64) / (10.0 + step as f64)),
            Averaging::EqualFrom(first) if step < first => return,
            Averaging::EqualFrom(first) => (step - first) as f64 / (step - first + 1) as f64,
        };
        let with_buffers = matches!(self.averaging, Averaging::Exponential(_));
        let (mut averages, mut weights) = (Vec::new(), Vec::new());
        for ((_, average), (_, new)) in self.tensors.iter_mut().zip(model.state()) {
            if !with_buffers && !new.requires_grad() {
                continue;
            }
            if average.is_floating_point() {
                averages.push(average.as_ptr().cast_mut());
                weights.push(new.as_ptr().cast_mut());
            } else {
                average.copy_(new);
            }
        }
        let share = 1.0 - keep;
        // SAFETY: the pointers belong to tensors that live during the call, as many in each list.
        check(unsafe { host_lerp(averages.as_ptr(), weights.as_ptr(), averages.len(), share) });
    }

    /// Recomputes the buffers (running statistics of batch normalisation) for the averaged
    /// parameters. The buffers begin at those of the model. `forwards` then passes training
    /// examples through the model in training mode, with the averaged parameters in place. The
    /// resulting buffers are kept.
    ///
    /// # Errors
    /// The errors of `forwards`.
    pub fn renew_buffers(
        &mut self,
        model: &LoadedModel,
        forwards: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let take_buffers = |average: &mut Self, from: &[(String, Tensor)]| {
            let pairs = average.tensors.iter_mut().zip(from).zip(model.state());
            for (((_, ours), (_, theirs)), _) in pairs.filter(|(_, (_, own))| !own.requires_grad()) {
                ours.copy_(theirs);
            }
        };
        take_buffers(self, model.state());
        let renewed = self.in_place_of(model, || forwards().map(|()| copies(model)))?;
        take_buffers(self, &renewed);
        Ok(())
    }

    /// The averaged tensors, with the names of the model's tensors.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// Loads a saved average. `steps` is the number of optimiser steps so far.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps = steps;
        if !self.has_begun() {
            return Ok(());
        }
        for (name, tensor) in &mut self.tensors {
            match saved.get(name) {
                Some(saved) if saved.size() == tensor.size() => tensor.copy_(saved),
                _ => {
                    return Err(Error::new(format!(
                        "the averaged weights in the checkpoint do not match the model: `{name}` is missing or \
                         has another shape"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Calls `work` while the model has the averaged weights, then restores the weights of the
    /// model.
    ///
    /// # Errors
    /// The errors of `work`.
    pub fn in_place_of<T>(&self, model: &LoadedModel, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _guard = tch::no_grad_guard();
        let weights = copies(model);
        let put = |tensors: &[(String, Tensor)]| {
            for ((_, place), (_, tensor)) in model.state().iter().zip(tensors) {
                place.shallow_clone().copy_(tensor);
            }
        };
        put(&self.tensors);
        let outcome = work();
        put(&weights);
        outcome
    }
}

fn copies(model: &LoadedModel) -> Vec<(String, Tensor)> {
    let copy = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.detach().copy());
    model.state().iter().map(copy).collect()
}
