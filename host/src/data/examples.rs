//! Images and labels on a device, as training and evaluation take them.

use crate::Result;
use crate::data::Split;
use tch::{Device, Kind, Tensor};

/// Images and labels on the device, one byte a pixel until a batch needs them.
pub struct Examples {
    pub(crate) images: Tensor,
    labels: Tensor,
}

impl Examples {
    /// Points `first..first + count` of a split, on `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(split: &Split, first: usize, count: usize, device: Device) -> Result<Self> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first as i64, count as i64)?.f_to_device(device);
        Ok(Self { images: rows(&split.images)?, labels: rows(&split.labels)? })
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images `[B, C, H, W]` (f32, 0 to 1) and labels `[B]` (i64) of the points whose indices
    /// `[B]` (i64, on the device) are given.
    pub fn batch(&self, points: &Tensor) -> (Tensor, Tensor) {
        (scaled(&self.images.index_select(0, points)), self.labels.index_select(0, points))
    }
}

/// Bytes as f32 from 0 to 1.
pub fn scaled(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 255.0
}

/// Each row `copies` times in a row: `[B, ...]` gives `[B * copies, ...]`.
pub fn repeat_rows(rows: &Tensor, copies: usize) -> Tensor {
    match copies {
        1 => rows.shallow_clone(),
        _ => rows.repeat_interleave_self_int(copies as i64, 0, None),
    }
}
