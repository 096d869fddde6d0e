//! What the binding to libtorch lacks: devices, precisions, a record of the arithmetic, the settings
//! of the process, keyed random numbers, the identity of tensors, a check for NaN that does not wait
//! for the device, tensors and weights in files, TorchScript, and groups of processes.

pub(crate) mod ahead;
pub mod arithmetic;
pub(crate) mod c10d;
pub mod device;
pub(crate) mod finite;
pub(crate) mod identity;
pub(crate) mod nccl;
pub mod precision;
pub(crate) mod process;
pub mod random;
pub(crate) mod script;
pub(crate) mod tensors;
pub(crate) mod weights;
