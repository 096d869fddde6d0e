//! What the binding to libtorch lacks: devices, precisions, a record of the arithmetic, keyed
//! random numbers, a check for NaN that does not wait for the device, and tensors in files.

pub mod arithmetic;
pub mod device;
pub(crate) mod finite;
pub mod precision;
pub mod random;
pub(crate) mod tensors;
