//! The images of a pack: a file that is mapped into memory, and read where rows are gathered.
//!
//! The mapping makes the file a tensor like any other. Minibatches are read from the file all the
//! same: what is read takes no memory of the process beyond the batch, a file that was truncated
//! meanwhile is an error and not a signal that ends the process, and reading a row costs one call
//! instead of a page fault for every few pages.

use super::super::npy::HEADER;
use super::{SplitRecord, changed};
use crate::data::in_parallel;
use crate::error::shown;
use crate::util::console::{Indicator, Style};
use crate::util::pulse;
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tch::{Device, Kind, Tensor};

/// Bytes that are read at a time where a whole file is read.
const BYTES_AT_A_TIME: usize = 1 << 20;

/// The images of one split in a file.
struct Pixels {
    path: PathBuf,
    file: File,
    /// The length of the file, and when it was last changed, as they were when it was opened.
    stamp: (u64, i64, i64),
    /// Where the first image is in memory.
    address: usize,
    /// Channels, height and width.
    image: [usize; 3],
    count: usize,
    images_per_block: usize,
    /// The CRC-32C of each block of images.
    blocks: Vec<u32>,
    /// Which blocks were found to be those that were packed.
    checked: Mutex<Vec<bool>>,
}

/// Every file that this process has mapped. Mappings stay until the process ends, since tensors on
/// them may live as long.
static MAPPED: Mutex<Vec<Arc<Pixels>>> = Mutex::new(Vec::new());

/// The images of a split as a tensor `[n, C, H, W]` (u8) over the mapped file. It must not be
/// written to.
///
/// # Errors
/// If the file has another length than recorded, or cannot be mapped.
pub(super) fn map(path: &Path, split: &SplitRecord, image: [usize; 3]) -> Result<Tensor> {
    let refused = |why: &dyn std::fmt::Display| Error::file("read", path, why);
    let file = File::open(path).map_err(|why| refused(&why))?;
    let stamp = stamp_of(&file.metadata().map_err(|why| refused(&why))?);
    let shape: Vec<i64> = [split.images].iter().chain(&image).map(|size| *size as i64).collect();
    if split.images == 0 {
        return Ok(Tensor::f_zeros(shape, (Kind::Uint8, Device::Cpu))?);
    }
    // SAFETY: the kernel chooses the place of a new mapping, which is read-only. The file is open.
    let start = unsafe {
        let (none, length) = (std::ptr::null_mut(), stamp.0 as usize);
        libc::mmap(none, length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if start == libc::MAP_FAILED {
        return Err(
            refused(&std::io::Error::last_os_error()).note("because", "it cannot be mapped into memory")
        );
    }
    let address = start as usize + HEADER;
    // SAFETY: the file has its recorded length (the caller compared it), so that all of the tensor
    // is in the mapping, which is never undone. Nothing in this program writes to a split.
    let images = unsafe { Tensor::f_from_blob(address as *const u8, &shape, &[], Kind::Uint8, Device::Cpu) }?;
    let pixels = Pixels {
        path: path.to_owned(),
        file,
        stamp,
        address,
        image,
        count: split.images,
        images_per_block: split.images_per_block,
        blocks: split.blocks.clone(),
        checked: Mutex::new(vec![false; split.blocks.len()]),
    };
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(pixels));
    Ok(images)
}

fn stamp_of(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// Some rows of the images of a pack.
#[derive(Clone)]
pub(crate) struct Rows {
    pixels: Arc<Pixels>,
    first: usize,
    count: usize,
}

impl Rows {
    /// The rows of the file that this tensor lies on; none if it lies in memory.
    pub(crate) fn of(images: &Tensor) -> Option<Self> {
        let is_plain = images.device() == Device::Cpu && images.kind() == Kind::Uint8;
        if !is_plain || images.numel() == 0 || !images.is_contiguous() {
            return None;
        }
        let address = images.data_ptr() as usize;
        let mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        let pixels = mapped.iter().find(|pixels| pixels.contains(address))?;
        let first = (address - pixels.address) / pixels.bytes_per_image();
        Some(Self { pixels: Arc::clone(pixels), first, count: images.size()[0] as usize })
    }

    /// Compares rows with what was packed, on all cores, once in a process: of all blocks of images,
    /// every `of`-th from number `number`.
    ///
    /// # Errors
    /// If a block differs, or cannot be read.
    pub(crate) fn check(&self, (number, of): (usize, usize)) -> Result<()> {
        let pixels = &self.pixels;
        let last = (self.first + self.count - 1) / pixels.images_per_block;
        let is_open = |block: &usize| !pixels.is_checked(*block);
        let all = self.first / pixels.images_per_block..=last;
        let blocks: Vec<_> = all.skip(number).step_by(of).filter(is_open).collect();
        let status = Indicator::of_part(Style::Json, blocks.len() as u64, "blocks");
        let done = AtomicU64::new(0);
        in_parallel(&blocks, |block| {
            pixels.check(*block)?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            status.show(done, || format!("comparing {} with its digests", shown(&pixels.path)));
            Ok(())
        })
        .map(drop)
    }

    /// What tells the file from others, and from what it was before. Machines that share a disk see the
    /// same.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(crate) fn identity(&self) -> Result<String> {
        let Pixels { path, file, .. } = &*self.pixels;
        let found = file.metadata().map_err(|why| Error::file("read", path, why))?;
        let (bytes, number) = (found.len(), found.ino());
        Ok(format!("{bytes} bytes, inode {number}, {}.{:09}", found.ctime(), found.ctime_nsec()))
    }

    /// Refuses to go on if the file was written to since it was opened.
    ///
    /// # Errors
    /// If its length or the time of its last change differs.
    pub(crate) fn refuse_if_changed(&self) -> Result<()> {
        let Pixels { path, file, stamp, .. } = &*self.pixels;
        let now = stamp_of(&file.metadata().map_err(|why| Error::file("read", path, why))?);
        if now == *stamp {
            return Ok(());
        }
        let text = |(bytes, seconds, nanoseconds): (u64, i64, i64)| {
            let since = Duration::new(seconds.max(0) as u64, nanoseconds.clamp(0, 999_999_999) as u32);
            format!("{bytes} bytes, of {}", humantime::format_rfc3339_nanos(UNIX_EPOCH + since))
        };
        Err(changed(path, "it was written to since the run began", &text(*stamp), &text(now)).on_the_way())
    }

    /// The images of these rows, counted from the first of the tensor: `[B, C, H, W]`, u8, in memory.
    ///
    /// # Errors
    /// If the file cannot be read, or ends before.
    pub(crate) fn read(&self, points: &[i64]) -> Result<Tensor> {
        let pixels = &self.pixels;
        let bytes = pixels.bytes_per_image();
        let mut buffer = vec![0; bytes * points.len()];
        let read = |(image, point): (&mut [u8], &i64)| {
            let row = usize::try_from(*point).ok().filter(|row| *row < self.count);
            let row = row.ok_or_else(|| Error::new(format!("there is no image {point}")))?;
            let place = HEADER as u64 + (self.first + row) as u64 * bytes as u64;
            let read = pixels.file.read_exact_at(image, place);
            read.map_err(|why| {
                // Its length says more than that a read failed.
                let changed = self.refuse_if_changed().err();
                changed.unwrap_or_else(|| {
                    Error::file("read", &pixels.path, format_args!("{why} (image {})", self.first + row))
                        .fix("restore the file; a run goes on with `host train --resume`")
                        .on_the_way()
                })
            })
        };
        // A read waits for the disk more often than it works.
        buffer.par_chunks_mut(bytes.max(1)).zip(points).try_for_each(read)?;
        let [channels, height, width] = pixels.image.map(|size| size as i64);
        Ok(Tensor::f_from_slice(&buffer)?.f_view([-1, channels, height, width])?)
    }
}

impl Pixels {
    fn bytes_per_image(&self) -> usize {
        self.image.iter().product()
    }

    fn contains(&self, address: usize) -> bool {
        let inside = address.wrapping_sub(self.address);
        inside < self.count * self.bytes_per_image() && inside.is_multiple_of(self.bytes_per_image())
    }

    fn is_checked(&self, block: usize) -> bool {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)[block]
    }

    fn check(&self, block: usize) -> Result<()> {
        let (first, bytes) = (block * self.images_per_block, self.bytes_per_image() as u64);
        let end = (first + self.images_per_block).min(self.count);
        let place = HEADER as u64 + first as u64 * bytes;
        let found = crc_of(&self.file, place, (end - first) as u64 * bytes)
            .map_err(|why| Error::file("read", &self.path, why))?;
        let packed = self.blocks[block];
        if found != packed {
            let what = format!("images {first} to {} are not those that were packed", end - 1);
            let crc = |crc: u32| {
                format!("CRC-32C {crc:08x} of {} bytes from byte {place}", (end - first) as u64 * bytes)
            };
            return Err(changed(&self.path, &what, &crc(packed), &crc(found)));
        }
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)[block] = true;
        Ok(())
    }
}

/// The CRC-32C of a part of a file.
fn crc_of(file: &File, mut place: u64, mut left: u64) -> std::io::Result<u32> {
    let (mut crc, mut some) = (0, vec![0; BYTES_AT_A_TIME]);
    while left > 0 {
        let now = left.min(some.len() as u64) as usize;
        file.read_exact_at(&mut some[..now], place)?;
        pulse::beat();
        crc = crc32c::crc32c_append(crc, &some[..now]);
        (place, left) = (place + now as u64, left - now as u64);
    }
    Ok(crc)
}
