//! In which precision networks compute while training.

use crate::torch::device::refusal;
use crate::util::console::warn;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::ffi::c_char;
use tch::{Device, TchError};

/// A precision. Weights, gradients, optimiser state and particles are f32 in all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Convolutions and matrix products in bf16, as libtorch's autocast chooses; faster where
    /// the processor has instructions for it.
    Bf16,
    /// On a GPU, f32 whose convolutions and matrix products read ten bits of the significand instead
    /// of 23.
    Tf32,
}

unsafe extern "C" {
    fn host_allow_tf32(allowed: bool) -> *const c_char;
    fn host_autocast_begin(device: i8) -> *const c_char;
    fn host_autocast_end(device: i8) -> *const c_char;
}

/// The number of the device's type in libtorch (`c10::DeviceType`).
fn device_type(device: Device) -> i8 {
    match device {
        Device::Cpu => 0,
        Device::Cuda(_) => 1,
        Device::Vulkan => 10,
        Device::Mps => 13,
    }
}

/// Autocast to bf16 on this thread, from `begin` to `end`; on a panic, until it is dropped.
struct Autocast {
    device: i8,
    is_over: bool,
}

impl Autocast {
    fn begin(device: Device) -> Result<Self, TchError> {
        let device = device_type(device);
        // SAFETY: this sets flags of the thread, which `end` or `drop` resets.
        match refusal(unsafe { host_autocast_begin(device) }) {
            None => Ok(Self { device, is_over: false }),
            Some(why) => Err(TchError::Torch(why)),
        }
    }

    fn end(mut self) -> Result<(), TchError> {
        self.is_over = true;
        // SAFETY: this resets a flag of the thread and empties a cache of libtorch's.
        refusal(unsafe { host_autocast_end(self.device) }).map_or(Ok(()), |why| Err(TchError::Torch(why)))
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // SAFETY: this resets a flag of the thread and empties a cache of libtorch's.
        if let Some(why) = refusal(unsafe { host_autocast_end(self.device) }) {
            warn(format_args!("libtorch's autocast cannot be ended: {why}"));
        }
    }
}

/// TF32 in all f32 convolutions and matrix products of the process on a GPU, until it is dropped:
/// backward passes, too.
pub(crate) struct Tf32(());

impl Tf32 {
    fn begin() -> Result<Self, TchError> {
        // SAFETY: this sets flags of libtorch's global context, which `drop` resets.
        refusal(unsafe { host_allow_tf32(true) }).map_or(Ok(Self(())), |why| Err(TchError::Torch(why)))
    }
}

impl Drop for Tf32 {
    fn drop(&mut self) {
        // SAFETY: this resets flags of libtorch's global context.
        if let Some(why) = refusal(unsafe { host_allow_tf32(false) }) {
            warn(format_args!("libtorch's TF32 cannot be switched off: {why}"));
        }
    }
}

impl Precision {
    /// Switches on what whole updates of the weights compute in, backward passes included; probes and
    /// evaluations between updates stay f32.
    ///
    /// # Errors
    /// If libtorch refuses.
    pub(crate) fn of_updates(self) -> Result<Option<Tf32>, TchError> {
        (self == Self::Tf32).then(Tf32::begin).transpose()
    }

    /// Runs a forward pass on `device` in this precision.
    ///
    /// # Errors
    /// If libtorch has no autocast on this device.
    pub(crate) fn run<T>(self, device: Device, forward: impl FnOnce() -> T) -> Result<T, TchError> {
        if self != Self::Bf16 {
            return Ok(forward());
        }
        let autocast = Autocast::begin(device)?;
        let made = forward();
        autocast.end()?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::arithmetic::Arithmetic;
    use tch::{Kind, Tensor};

    #[test]
    fn products_are_bf16_inside_and_f32_outside() {
        let matrix = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let product = || matrix.matmul(&matrix).kind();
        assert_eq!(Precision::Bf16.run(Device::Cpu, product).expect("autocast"), Kind::BFloat16);
        assert_eq!(product(), Kind::Float);
        assert_eq!(Precision::F32.run(Device::Cpu, product).expect("nothing to do"), Kind::Float);
        let panicked = std::panic::catch_unwind(|| Precision::Bf16.run(Device::Cpu, || panic!("on the way")));
        assert!(panicked.is_err());
        assert_eq!(product(), Kind::Float);
    }

    #[test]
    fn tf32_is_allowed_during_updates_only() {
        let allowed = || {
            let found = Arithmetic::current(Device::Cpu).expect("libtorch answers");
            [found.tf32_cudnn, found.tf32_cublas]
        };
        // As on a GPU, where the host switches it off.
        drop(Precision::Tf32.of_updates().expect("allowed"));
        assert_eq!(allowed(), [false; 2]);
        assert!(Precision::F32.of_updates().expect("nothing to do").is_none());
        assert!(Precision::Bf16.of_updates().expect("nothing to do").is_none());
        let during = Precision::Tf32.of_updates().expect("allowed");
        assert_eq!(allowed(), [true; 2]);
        drop(during);
        assert_eq!(allowed(), [false; 2]);
        // It is no autocast.
        let matrix = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let product = || matrix.matmul(&matrix).kind();
        assert_eq!(Precision::Tf32.run(Device::Cpu, product).expect("nothing to do"), Kind::Float);
    }

    /// libtorch throws a C++ exception here: without a handler it would end the process.
    #[test]
    fn a_device_without_autocast_is_an_error() {
        let refused = Precision::Bf16.run(Device::Vulkan, || panic!("must not run")).expect_err("refused");
        assert!(refused.to_string().contains("unknown device type for autocast"), "{refused}");
        assert!(Precision::F32.run(Device::Vulkan, || ()).is_ok());
    }
}
