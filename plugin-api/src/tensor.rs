//! Tensors as raw pointers, the form in which they cross the boundary between host and plugins.
//!
//! Both sides link the same libtorch, so an `at::Tensor*` of one side is valid on the other,
//! autograd graph included. Each side has its own copy of the binding, so the side that made a
//! pointer must release it.

use std::ffi::c_void;
use tch::Tensor;

/// The `at::Tensor*` of a tensor, valid while the tensor is; the tensor keeps its reference.
pub(crate) fn pointer_to(tensor: &Tensor) -> *const c_void {
    tensor.as_ptr() as *const c_void
}

/// A new reference to the tensor behind a pointer; the pointer stays valid.
///
/// # Safety
/// `pointer` is a live `at::Tensor*` of the libtorch that this side uses.
pub(crate) unsafe fn new_reference(pointer: *const c_void) -> Tensor {
    // SAFETY: the pointer is a live `at::Tensor*` (the caller's promise); `clone_from_ptr` takes a
    // new reference and does not change the given one.
    unsafe { Tensor::clone_from_ptr(pointer as *mut _) }
}

/// Turns a tensor into an `at::Tensor*`, which must be released with [`release`].
pub(crate) fn into_pointer(mut tensor: Tensor) -> *mut c_void {
    let pointer = tensor.as_mut_ptr() as *mut c_void;
    std::mem::forget(tensor);
    pointer
}

/// Drops the reference that a pointer holds.
///
/// # Safety
/// `pointer` was made by [`into_pointer`] of this library, and is not used any more.
pub(crate) unsafe fn release(pointer: *mut c_void) {
    // SAFETY: `into_pointer` took the pointer out of a tensor, and this happens once (the caller's
    // promise).
    drop(unsafe { Tensor::from_ptr(pointer as *mut _) });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_taken_through_pointers_share_memory_and_outlive_the_tensor() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        let address = tensor.data_ptr();
        // SAFETY: `tensor` is alive.
        let borrowed = unsafe { new_reference(pointer_to(&tensor)) };
        let pointer = into_pointer(tensor);
        // SAFETY: the pointer was just made and is not released yet; it is released once.
        let taken = unsafe {
            let taken = new_reference(pointer);
            release(pointer);
            taken
        };
        assert_eq!((borrowed.data_ptr(), taken.data_ptr()), (address, address));
        assert_eq!(taken, Tensor::from_slice(&[1.0f32, 2.0]));
    }
}
