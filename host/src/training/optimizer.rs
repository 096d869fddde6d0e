//! The optimisers of the weights: SGD, sign SGD, Adam and AdamW.
//!
//! The optimiser state (moments) is kept in tensors of the host, because the state inside
//! libtorch's optimisers cannot be read for a checkpoint. SGD and Adam use the fused steps of
//! libtorch, which update all weights in one pass through memory, without temporary tensors.

use crate::config::{Algorithm, Train};
use crate::torch::device::refusal;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::c_char;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

/// The settings of an optimiser, without the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Momentum, from 0 to below 1 (`sgd` and `sign-sgd`).
    pub momentum: f64,
    /// Weight decay, at least 0: multiple of the weights that is added to their gradients; for AdamW,
    /// share of the weights, in units of the learning rate, by which each step shortens them.
    pub weight_decay: f64,
}

impl Settings {
    /// The settings of a run.
    pub fn of(train: &Train) -> Self {
        Self { algorithm: train.optimizer, momentum: train.momentum, weight_decay: train.weight_decay }
    }
}

const ADAM_BETAS: (f64, f64) = (0.9, 0.999);
const ADAM_EPSILON: f64 = 1e-8;

/// An optimiser and its state.
pub struct Optimizer {
    settings: Settings,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    first_moments: Vec<Tensor>,
    second_moments: Vec<Tensor>,
    steps: u64,
}

impl Optimizer {
    /// An optimiser of these parameters, before the first step. The tensors are shared, not copied.
    pub fn new(settings: Settings, parameters: &[(&str, &Tensor)]) -> Self {
        let zeros = |wanted: bool| {
            let wanted = parameters.iter().filter(|_| wanted);
            wanted.map(|(_, parameter)| parameter.detach().zeros_like()).collect()
        };
        let adam = matches!(settings.algorithm, Algorithm::Adam | Algorithm::AdamW);
        Self {
            first_moments: zeros(adam || settings.momentum > 0.0),
            second_moments: zeros(adam),
            names: parameters.iter().map(|(name, _)| (*name).to_owned()).collect(),
            parameters: parameters.iter().map(|(_, parameter)| parameter.shallow_clone()).collect(),
            settings,
            steps: 0,
        }
    }

    /// The parameters, in the order in which [`Optimizer::step`] expects the gradients.
    pub fn parameters(&self) -> &[Tensor] {
        &self.parameters
    }

    /// One step, given the gradients in the order of [`Optimizer::parameters`]. A parameter whose
    /// gradient is undefined stays unchanged.
    ///
    /// # Panics
    /// If a libtorch operation fails.
    pub fn step(&mut self, gradients: &[Tensor], learning_rate: f64) {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let moving: Vec<_> = (0..gradients.len()).filter(|index| gradients[*index].defined()).collect();
        if moving.is_empty() {
            return;
        }
        match self.settings.algorithm {
            Algorithm::Sgd => self.sgd(&moving, gradients, learning_rate),
            Algorithm::SignSgd => self.sign_sgd(&moving, gradients, learning_rate),
            Algorithm::Adam | Algorithm::AdamW => self.adam(&moving, gradients, learning_rate),
        }
    }

    fn sgd(&self, moving: &[usize], gradients: &[Tensor], learning_rate: f64) {
        let Settings { momentum, weight_decay, .. } = self.settings;
        let of = |tensors: &[Tensor]| pointers(moving, tensors);
        let (parameters, gradients) = (of(&self.parameters), of(gradients));
        let moments = if self.first_moments.is_empty() { Vec::new() } else { of(&self.first_moments) };
        // SAFETY: the pointers belong to tensors that live during the call. Each list has
        // `moving.len()` of them; the list of moments may be empty.
        check(unsafe {
            host_sgd_step(
                parameters.as_ptr(),
                gradients.as_ptr(),
                moving.len(),
                moments.as_ptr(),
                moments.len(),
                learning_rate,
                momentum,
                weight_decay,
            )
        });
    }

    fn adam(&self, moving: &[usize], gradients: &[Tensor], learning_rate: f64) {
        let of = |tensors: &[Tensor]| pointers(moving, tensors);
        let (parameters, gradients) = (of(&self.parameters), of(gradients));
        let (first, second) = (of(&self.first_moments), of(&self.second_moments));
        let device = self.parameters[0].device();
        let step = Tensor::full([] as [i64; 0], self.steps as f64, (Kind::Float, device));
        let (keep_first, keep_second) = ADAM_BETAS;
        // SAFETY: the pointers belong to tensors that live during the call. Each list has
        // `moving.len()` of them.
        check(unsafe {
            host_adam_step(
                parameters.as_ptr(),
                gradients.as_ptr(),
                moving.len(),
                first.as_ptr(),
                second.as_ptr(),
                step.as_ptr(),
                learning_rate,
                keep_first,
                keep_second,
                self.settings.weight_decay,
                self.settings.algorithm == Algorithm::AdamW,
                ADAM_EPSILON,
            )
        });
    }

    // libtorch has no fused step for this optimiser.
    fn sign_sgd(&mut self, moving: &[usize], gradients: &[Tensor], learning_rate: f64) {
        let Settings { momentum, weight_decay, .. } = self.settings;
        for &index in moving {
            let parameter = &mut self.parameters[index];
            let mut direction = if weight_decay > 0.0 {
                &gradients[index] + &*parameter * weight_decay
            } else {
                gradients[index].shallow_clone()
            };
            if let Some(moment) = self.first_moments.get_mut(index) {
                *moment *= momentum;
                *moment += direction;
                direction = moment.shallow_clone();
            }
            *parameter -= direction.sign() * learning_rate;
        }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let named = |kind: &'static str, moments: &[Tensor]| -> Vec<(String, Tensor)> {
            let pairs = self.names.iter().zip(moments);
            pairs.map(|(name, moment)| (format!("{kind}.{name}"), moment.shallow_clone())).collect()
        };
        let mut state = named("first_moment", &self.first_moments);
        state.extend(named("second_moment", &self.second_moments));
        state
    }

    /// Loads saved moments and the number of steps taken.
    ///
    /// # Errors
    /// If a moment is missing or has another shape.
    pub fn load(&mut self, saved: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for (name, mut moment) in self.state() {
            match saved.get(&name) {
                Some(saved) if saved.size() == moment.size() => moment.copy_(saved),
                _ => {
                    return Err(Error::new(format!(
                        "the optimiser state in the checkpoint does not match the run: `{name}` is missing or \
                         has another shape"
                    )));
                }
            }
        }
        self.steps = steps;
        Ok(())
    }
}

unsafe extern "C" {
    fn host_sgd_step(
        parameters: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        count: usize,
        moments: *const *mut C_tensor,
        moment_count: usize,
        learning_rate: f64,
        momentum: f64,
        weight_decay: f64,
    ) -> *const c_char;
    fn host_adam_step(
        parameters: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        count: usize,
        first_moments: *const *mut C_tensor,
        second_moments: *const *mut C_tensor,
        step: *const C_tensor,
        learning_rate: f64,
        keep_first: f64,
        keep_second: f64,
        weight_decay: f64,
        decoupled: bool,
        epsilon: f64,
    ) -> *const c_char;
}

/// Gradients whose length, all of them together, is at most `most`: they are shortened if need be, as
/// by PyTorch's `clip_grad_norm_`. Also their length before that, `[]`. Nothing waits for the device.
/// Gradients may be undefined.
pub fn clipped(gradients: &[Tensor], most: f64) -> (Vec<Tensor>, Tensor) {
    let _guard = tch::no_grad_guard();
    let norms = gradients.iter().filter(|gradient| gradient.defined());
    let norms: Vec<_> = norms.map(|gradient| gradient.norm_scalaropt_dtype(2.0, Kind::Float)).collect();
    if norms.is_empty() {
        return (gradients.iter().map(Tensor::shallow_clone).collect(), Tensor::from(0.0f32));
    }
    let length = Tensor::stack(&norms, 0).norm_scalaropt_dtype(2.0, Kind::Float);
    let share = ((&length + 1e-6).reciprocal() * most).clamp_max(1.0);
    let scaled =
        |gradient: &Tensor| if gradient.defined() { gradient * &share } else { gradient.shallow_clone() };
    (gradients.iter().map(scaled).collect(), length)
}

/// The libtorch pointers of the tensors with these indices.
fn pointers(chosen: &[usize], tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    chosen.iter().map(|&index| tensors[index].as_ptr().cast_mut()).collect()
}

/// Panics if libtorch returned an error message, as the in-place operations of tch do.
pub(super) fn check(message: *const c_char) {
    if let Some(why) = refusal(message) {
        panic!("{why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;
    use tch::nn::{self, OptimizerConfig};

    /// Ten steps on a quadratic function of the weights of a convolution, by this optimiser and by
    /// libtorch's. The weights have these `strides`, the gradients are contiguous. A second
    /// parameter has no gradient.
    fn assert_same_as_libtorch<C: OptimizerConfig>(settings: Settings, strides: [i64; 4], config: C) {
        let start = Tensor::arange(24, (Kind::Float, Device::Cpu)).reshape([2, 3, 2, 2]) / 10.0 - 1.0;
        let curvature = start.flip([0, 1]) + 2.0;
        let loss = |x: &Tensor| (x * x * &curvature).sum(Kind::Float);

        let variables = nn::VarStore::new(Device::Cpu);
        let theirs = variables.root().var_copy("x", &start);
        let mut reference = config.build(&variables, 0.01).expect("an optimiser");
        let memory = Tensor::full([60], 7.0, (Kind::Float, Device::Cpu));
        let mut ours = memory.as_strided([2, 3, 2, 2], strides, 0);
        ours.copy_(&start);
        let unused = Tensor::ones([2], (Kind::Float, Device::Cpu));
        let mut optimizer = Optimizer::new(settings, &[("unused", &unused), ("x", &ours)]);
        for _ in 0..10 {
            reference.backward_step(&loss(&theirs));
            let gradient = (&ours * &curvature * 2.0).contiguous();
            optimizer.step(&[Tensor::new(), gradient], 0.01);
        }
        let difference = (&ours - &theirs).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{settings:?}: {ours:?} differs from {theirs:?} by {difference}");
        assert!((&ours - &start).abs().max().double_value(&[]) > 1e-2, "the weights have moved");
        assert_eq!(Vec::<f32>::try_from(&unused).expect("f32"), [1.0, 1.0]);
        let beside = memory.eq(7.0).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(beside, 60 - 24, "memory between the weights is unchanged");
    }

    #[test]
    fn steps_equal_those_of_libtorch_for_every_memory_layout() {
        let sgd = Settings { algorithm: Algorithm::Sgd, momentum: 0.0, weight_decay: 0.0 };
        let heavy = Settings { momentum: 0.9, weight_decay: 0.01, ..sgd };
        let adam = Settings { algorithm: Algorithm::Adam, weight_decay: 0.01, ..sgd };
        // Contiguous, channels last, and with gaps.
        for strides in [[12, 4, 2, 1], [12, 1, 6, 3], [30, 8, 4, 2]] {
            assert_same_as_libtorch(sgd, strides, nn::sgd(0.0, 0.0, 0.0, false));
            assert_same_as_libtorch(heavy, strides, nn::sgd(0.9, 0.0, 0.01, false));
            assert_same_as_libtorch(adam, strides, nn::adam(0.9, 0.999, 0.01));
            let decoupled = Settings { algorithm: Algorithm::AdamW, ..adam };
            assert_same_as_libtorch(decoupled, strides, nn::adamw(0.9, 0.999, 0.01));
        }
    }

    #[test]
    fn sign_sgd_moves_every_weight_by_the_learning_rate() {
        let weights = Tensor::from_slice(&[1.0f32, 1.0, 1.0]);
        let settings = Settings { algorithm: Algorithm::SignSgd, momentum: 0.0, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(settings, &[("w", &weights)]);
        optimizer.step(&[Tensor::from_slice(&[5.0f32, -0.001, 0.0])], 0.25);
        assert_eq!(Vec::<f32>::try_from(&weights).expect("f32"), [0.75, 1.25, 1.0]);
    }

    #[test]
    fn clipped_gradients_are_as_long_as_they_may_be_all_together() {
        // Lengths 3 and 4: 5 together. The second of them is undefined and stays so.
        let gradients = [Tensor::from_slice(&[3.0f32]), Tensor::new(), Tensor::from_slice(&[0.0f32, 4.0])];
        let values = |tensors: &[Tensor]| -> Vec<f32> {
            let defined = tensors.iter().filter(|tensor| tensor.defined());
            defined.flat_map(|tensor| Vec::<f32>::try_from(tensor).expect("f32")).collect()
        };
        let (short, length) = clipped(&gradients, 2.5);
        assert_eq!(length.double_value(&[]), 5.0);
        assert!(!short[1].defined());
        for (got, expected) in values(&short).iter().zip([1.5, 0.0, 2.0]) {
            assert!((got - expected).abs() < 1e-6, "got {got}, expected {expected}");
        }
        assert_eq!(values(&clipped(&gradients, 10.0).0), values(&gradients), "short enough");
    }
}
