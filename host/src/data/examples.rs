//! Images and labels on a device, for training and evaluation.

use super::pack::pixels::Rows;
use crate::data::Split;
use crate::torch::device::upload;
use crate::{Error, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use tch::{Device, Kind, Tensor};

/// Minibatches that are read ahead, at most: one that the device works on soon, and one that is read
/// meanwhile.
const AHEAD: usize = 2;

/// Images and labels on a device. Images take one byte per pixel; [`Examples::batch`] converts them
/// to f32. Those of a pack stay in its file, from which every batch is read.
pub struct Examples {
    pub(crate) images: Tensor,
    labels: Tensor,
    device: Device,
    file: Option<InFile>,
}

/// Images in a file, and the batches of them that were announced.
struct InFile {
    rows: Rows,
    ahead: Mutex<Option<Ahead>>,
}

/// What another thread reads ahead.
struct Ahead {
    batches: Receiver<Batch>,
    /// The next of them, once it was looked at.
    next: Option<Batch>,
}

/// Points, and their images (`[B, C, H, W]`, u8, on the CPU).
type Batch = (Vec<i64>, Result<Tensor>);

impl Examples {
    /// Points `first..first + count` of a split, on `device`. The images of a pack are compared with
    /// its digests.
    ///
    /// # Errors
    /// If the device has too little memory, or a pack was changed.
    pub fn new(split: &Split, first: usize, count: usize, device: Device) -> Result<Self> {
        let examples = Self::unchecked(split, first, count, device)?;
        examples.check((0, 1))?;
        Ok(examples)
    }

    /// The same without that comparison: [`Examples::check`] must follow, here or in other processes.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub(crate) fn unchecked(split: &Split, first: usize, count: usize, device: Device) -> Result<Self> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first as i64, count as i64);
        let (images, labels) = (rows(&split.images)?, rows(&split.labels)?.f_to_device(device)?);
        let file = match Rows::of(&images) {
            None => return Ok(Self { images: images.f_to_device(device)?, labels, device, file: None }),
            Some(rows) => InFile { rows, ahead: Mutex::new(None) },
        };
        Ok(Self { images, labels, device, file: Some(file) })
    }

    /// Compares images of a pack with its digests: of all blocks, every `of`-th from number `number`.
    ///
    /// # Errors
    /// If a block was changed.
    pub(crate) fn check(&self, (number, of): (usize, usize)) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.rows.check((number, of)))
    }

    /// What tells the file of a pack's images from others, the same wherever that file is seen; none if
    /// the images are in memory.
    ///
    /// # Errors
    /// If the file cannot be looked at.
    pub(crate) fn file(&self) -> Result<Option<String>> {
        self.file.as_ref().map(|file| file.rows.identity()).transpose()
    }

    /// Every `step`-th point from the one with number `first`.
    pub fn part(&self, first: usize, step: usize) -> Part<'_> {
        Part { examples: self, first: first as i64, step: step as i64 }
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The device of the batches.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Images `[B, C, H, W]` (f32, 0 to 1) and labels `[B]` (i64) of the points with these indices
    /// (`[B]`, i64, on the device).
    ///
    /// # Errors
    /// If the images are in a file that cannot be read.
    pub fn batch(&self, indices: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.file {
            None => Ok((
                scaled(&self.images.f_index_select(0, indices)?),
                self.labels.f_index_select(0, indices)?,
            )),
            Some(_) => self.batch_of(&Vec::<i64>::try_from(indices)?, indices),
        }
    }

    /// The same, where the indices are known on the CPU, too: then nothing waits for the device.
    ///
    /// # Errors
    /// As for [`Examples::batch`].
    pub fn batch_of(&self, points: &[i64], indices: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some(file) = &self.file else { return self.batch(indices) };
        let images = upload(&file.take(points)?, self.device)?;
        Ok((scaled(&images), self.labels.f_index_select(0, indices)?))
    }

    /// Says which batches will be asked for next, in this order. Another thread reads their images
    /// ahead if they are in a file; the batches are the same as without.
    ///
    /// # Errors
    /// If that file was written to since it was opened.
    pub fn announce(&self, batches: impl Iterator<Item = Vec<i64>> + Send + 'static) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.rows.refuse_if_changed()?;
        // The thread waits with one batch in its hands.
        let (sender, receiver) = sync_channel(AHEAD - 1);
        let rows = file.rows.clone();
        // It ends with the batches, or once nobody waits for them.
        let read = move || {
            for points in batches {
                let images = rows.read(&points);
                if sender.send((points, images)).is_err() {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("read-ahead".to_owned()).spawn(read);
        started.map_err(|why| Error::new(format!("cannot start a thread: {why}")).on_the_way())?;
        *file.ahead.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Ahead { batches: receiver, next: None });
        Ok(())
    }
}

/// Some of the points of examples, in rows.
pub struct Part<'a> {
    examples: &'a Examples,
    first: i64,
    step: i64,
}

impl Part<'_> {
    /// Number of points.
    pub fn count(&self) -> usize {
        (self.examples.len() - self.first as usize).div_ceil(self.step as usize)
    }

    /// The shape of the images, `[n, C, H, W]`.
    pub fn shape(&self) -> Vec<i64> {
        let mut shape = self.examples.images.size();
        shape[0] = self.count() as i64;
        shape
    }

    /// The device of the batches.
    pub fn device(&self) -> Device {
        self.examples.device
    }

    /// The number of the point of a row.
    pub fn point_of(&self, row: i64) -> i64 {
        self.first + self.step * row
    }

    /// Images and labels of these rows, as [`Examples::batch`] gives them.
    ///
    /// # Errors
    /// If the images are in a file that cannot be read.
    pub fn batch(&self, rows: &Tensor) -> Result<(Tensor, Tensor)> {
        self.examples.batch(&(rows * self.step + self.first))
    }
}

impl InFile {
    /// The images of these points: those that were read ahead, if they are the next ones.
    fn take(&self, points: &[i64]) -> Result<Tensor> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ahead { batches, next }) = &mut *ahead {
            let announced = next.take().or_else(|| batches.recv().ok());
            match announced {
                Some((announced, images)) if announced == points => return images,
                // What was announced is still to come: this is a batch of a measurement.
                other => *next = other,
            }
        }
        self.rows.read(points)
    }
}

/// Converts pixels from bytes (0 to 255) to f32 (0 to 1). Pixels in f32 stay as they are.
pub fn scaled(images: &Tensor) -> Tensor {
    match images.kind() {
        Kind::Float => images.shallow_clone(),
        _ => images.to_kind(Kind::Float) / 255.0,
    }
}

/// Repeats each row `copies` times, copies next to each other: `[B, ...]` becomes
/// `[B * copies, ...]`.
pub fn repeat_rows(rows: &Tensor, copies: usize) -> Tensor {
    match copies {
        1 => rows.shallow_clone(),
        _ => rows.repeat_interleave_self_int(copies as i64, 0, None),
    }
}
