//! Images and labels on a device, for training and evaluation.

use crate::Result;
use crate::data::Split;
use tch::{Device, Kind, Tensor};

/// Images and labels on a device. Images take one byte per pixel; [`Examples::batch`] converts them
/// to f32.
pub struct Examples {
    pub(crate) images: Tensor,
    labels: Tensor,
}

impl Examples {
    /// Points `first..first + count` of a split, on `device`.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(split: &Split, first: usize, count: usize, device: Device) -> Result<Self> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first as i64, count as i64)?.f_to_device(device);
        Ok(Self { images: rows(&split.images)?, labels: rows(&split.labels)? })
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images `[B, C, H, W]` (f32, 0 to 1) and labels `[B]` (i64) of the points with these indices
    /// (`[B]`, i64, on the device).
    pub fn batch(&self, points: &Tensor) -> (Tensor, Tensor) {
        (scaled(&self.images.index_select(0, points)), self.labels.index_select(0, points))
    }
}

/// Converts pixels from bytes (0 to 255) to f32 (0 to 1).
pub fn scaled(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 255.0
}

/// Repeats each row `copies` times, copies next to each other: `[B, ...]` becomes
/// `[B * copies, ...]`.
pub fn repeat_rows(rows: &Tensor, copies: usize) -> Tensor {
    match copies {
        1 => rows.shallow_clone(),
        _ => rows.repeat_interleave_self_int(copies as i64, 0, None),
    }
}
