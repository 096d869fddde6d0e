//! In which precision networks compute while training.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Device;

/// A precision. Weights, gradients, optimiser and particles are f32 in any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Convolutions and matrix products in bf16, as libtorch's autocast chooses; faster where
    /// the processor has instructions for it.
    Bf16,
}

unsafe extern "C" {
    fn host_autocast_begin(cuda: bool);
    fn host_autocast_end(cuda: bool);
}

/// Ends autocast when it is dropped, on a panic too.
struct Autocast {
    cuda: bool,
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: this sets a flag of the thread and empties a cache of libtorch's.
        unsafe { host_autocast_end(self.cuda) }
    }
}

impl Precision {
    /// Runs a forward pass on `device` in this precision.
    pub fn run<T>(self, device: Device, forward: impl FnOnce() -> T) -> T {
        if self == Self::F32 {
            return forward();
        }
        let cuda = device != Device::Cpu;
        // SAFETY: this sets flags of the thread, which the guard resets.
        unsafe { host_autocast_begin(cuda) };
        let _guard = Autocast { cuda };
        forward()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn products_are_bf16_inside_and_f32_outside() {
        let matrix = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        let product = || matrix.matmul(&matrix).kind();
        assert_eq!(Precision::Bf16.run(Device::Cpu, product), Kind::BFloat16);
        assert_eq!(Precision::F32.run(Device::Cpu, product), Kind::Float);
        let panicked = std::panic::catch_unwind(|| Precision::Bf16.run(Device::Cpu, || panic!("on the way")));
        assert!(panicked.is_err());
        assert_eq!(product(), Kind::Float);
    }
}
