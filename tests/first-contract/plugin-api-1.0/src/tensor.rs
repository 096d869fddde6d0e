//! How tensors cross the boundary between host and plugins.
//!
//! Both sides link the same libtorch, so an `at::Tensor*` made on one side means the same on
//! the other, autograd graph included. Each side has its own copy of the binding, so every
//! tensor is released by the side that made its handle.

use crate::abi::{Given, Lent};
use std::ffi::c_void;
use tch::Tensor;

/// Lends a tensor for the length of a call.
pub(crate) fn lend(tensor: &Tensor) -> Lent {
    Lent { pointer: tensor.as_ptr() as *const c_void }
}

/// A reference of one's own to a lent tensor.
///
/// # Safety
/// The lender's tensor is still alive, and both sides use the same libtorch.
pub(crate) unsafe fn borrowed(lent: Lent) -> Tensor {
    // SAFETY: the pointer is a live `at::Tensor*` (the caller's promise);
    // `clone_from_ptr` takes a new reference and leaves the lender's alone.
    unsafe { Tensor::clone_from_ptr(lent.pointer as *mut _) }
}

/// Gives a tensor away; whoever drops the handle releases it through this side's binding.
pub(crate) fn give(mut tensor: Tensor) -> Given {
    let pointer = tensor.as_mut_ptr() as *mut c_void;
    std::mem::forget(tensor);
    Given { pointer, release }
}

/// A reference of one's own to a given tensor; the giver's is released.
pub(crate) fn taken(given: Given) -> Tensor {
    // SAFETY: a `Given` is made by `give` alone and keeps its tensor alive until it is dropped,
    // which happens at the end of this function, after the new reference was taken.
    unsafe { Tensor::clone_from_ptr(given.pointer as *mut _) }
}

extern "C" fn release(pointer: *mut c_void) {
    // SAFETY: called once, by `Given::drop`, with the pointer that `give` took out of a tensor.
    drop(unsafe { Tensor::from_ptr(pointer as *mut _) });
}
