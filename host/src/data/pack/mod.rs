//! Packs: a data set in a folder of its own, which need not fit into memory. `host data pack` makes
//! one of any other data set (`write.rs`).
//!
//! A pack has a record, `pack.json`, and for each split the images (`train_images.npy`, u8,
//! `[n, C, H, W]`) and the labels (`train_labels.npy`, i64, `[n]`), which NumPy reads, too.
//!
//! The record ends with a SHA-256 of itself. It has the MD5 of every file, which identify the data
//! (as those of other data sets do, they are in the record of a run), and the CRC-32C of each block
//! of images. At the start, the record, the labels and the length of every file are checked; of the
//! images, those that are used, block by block, as fast as the disk reads them.

pub(crate) mod pixels;
mod source;
pub(crate) mod write;

use super::npy::Array;
use super::{DataSpec, Dataset, Origin, Split, md5};
use crate::error::shown;
use crate::util::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use tch::Tensor;

/// The record of a pack.
const RECORD: &str = "pack.json";

/// The version of packs that this program makes and reads.
const VERSION: u32 = 1;

/// The names of the splits.
const SPLITS: [&str; 2] = ["train", "test"];

/// `pack.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    /// What was packed, as it is written for `--data`.
    source: String,
    /// The checksums of what was packed.
    source_checksums: BTreeMap<String, String>,
    /// The side to which images were resized, if they were.
    size: Option<usize>,
    /// Channels, height and width.
    image: [usize; 3],
    classes: i64,
    class_names: Vec<String>,
    /// What a reader of results on these data should know.
    findings: Vec<String>,
    /// The test split, and the training split if there is one.
    splits: BTreeMap<String, SplitRecord>,
}

/// One split of a pack.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SplitRecord {
    /// Number of images.
    images: usize,
    /// Images that cannot be decoded and were left out: `CLASS/FILE`, and why.
    left_out: Vec<(String, String)>,
    /// Images in each block but the last.
    images_per_block: usize,
    /// The CRC-32C of each block.
    blocks: Vec<u32>,
    /// Length and MD5 of the file of images, and of that of labels.
    files: [(u64, String); 2],
}

/// The files of the images and of the labels of a split.
fn file_names(split: &str) -> [String; 2] {
    ["images", "labels"].map(|what| format!("{split}_{what}.npy"))
}

/// Whether a folder is a pack.
pub(super) fn found(folder: &Path) -> bool {
    folder.join(RECORD).is_file()
}

/// The error of a file that is not the one that was packed.
fn changed(path: &Path, what: &str, packed: &dyn Display, found: &dyn Display) -> Error {
    Error::new(format!("{} has changed: {what}", shown(path)))
        .note("packed", packed)
        .note("found", found)
        .fix("restore the file, or pack the data again into another folder: `host data pack`")
}

impl Record {
    fn read(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = folder.join(RECORD);
        let Version { version } = files::read_sealed(&path)?;
        if version != VERSION {
            return Err(Error::new(format!(
                "{} is of version {version} of packs: expected version {VERSION}",
                shown(&path)
            ))
            .fix(
                "pack the data again with this program: `host data pack`, or use the program that made it",
            ));
        }
        let record: Self = files::read_sealed(&path)?;
        record.check().map_err(|what| Error::file("understand", &path, what))?;
        Ok(record)
    }

    /// What does not fit together in it.
    fn check(&self) -> std::result::Result<(), String> {
        let bytes = self.image.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
        if bytes.is_none_or(|bytes| bytes == 0) {
            return Err(format!("its images have {:?} pixels", self.image));
        }
        if !(2..=super::MOST_CLASSES).contains(&self.classes) {
            return Err(format!("it has {} classes", self.classes));
        }
        for (name, split) in &self.splits {
            let blocks = split
                .images
                .checked_div(split.images_per_block)
                .map(|whole| whole + usize::from(!split.images.is_multiple_of(split.images_per_block)));
            if !SPLITS.contains(&name.as_str()) || split.images == 0 || blocks != Some(split.blocks.len()) {
                return Err(format!("its split {name} does not fit together"));
            }
        }
        Ok(())
    }
}

/// Opens a pack. Its images are mapped, not read.
///
/// # Errors
/// If a file is missing, damaged, truncated or of another version.
pub(super) fn load(folder: &Path, spec: &DataSpec) -> Result<Dataset> {
    spec.takes(&[])?;
    let record = Record::read(folder)?;
    let mut checksums = BTreeMap::new();
    let mut open = |name: &str| -> Result<Option<Split>> {
        let Some(split) = record.splits.get(name) else { return Ok(None) };
        let names = file_names(name);
        for (file, (_, md5)) in names.iter().zip(&split.files) {
            checksums.insert(file.trim_end_matches(".npy").to_owned(), md5.clone());
        }
        let [images, labels] = names.map(|name| folder.join(name));
        Ok(Some(Split {
            images: open_images(&images, split, record.image)?,
            labels: open_labels(&labels, split, record.classes)?,
        }))
    };
    let [train, test] = SPLITS.map(&mut open);
    let test = test?.ok_or_else(|| Error::new(format!("{} has no test split", shown(folder))))?;
    let train = train?.map_or_else(|| test.none(), Ok)?;
    Ok(Dataset {
        name: spec.name(),
        train,
        test,
        classes: record.classes,
        class_names: record.class_names,
        checksums,
        remarks: record.findings,
        origin: Origin::Own,
    })
}

/// Refuses a file of another length than that recorded.
fn check_length(path: &Path, expected: u64) -> Result<()> {
    let got = path.metadata().map_err(|why| Error::file("read", path, why))?.len();
    match got {
        _ if got == expected => Ok(()),
        _ => {
            let what = if got < expected { "it is truncated" } else { "it has more bytes than were packed" };
            Err(changed(path, what, &format_args!("{expected} bytes"), &format_args!("{got} bytes")))
        }
    }
}

fn open_images(path: &Path, split: &SplitRecord, image: [usize; 3]) -> Result<Tensor> {
    let numbers = image.iter().try_fold(split.images as u64, |all, size| all.checked_mul(*size as u64));
    let bytes = numbers.and_then(|numbers| numbers.checked_add(super::npy::HEADER as u64));
    if bytes != Some(split.files[0].0) {
        return Err(Error::file("understand", path, "its recorded length does not fit its images"));
    }
    check_length(path, split.files[0].0)?;
    pixels::map(path, split, image)
}

fn open_labels(path: &Path, split: &SplitRecord, classes: i64) -> Result<Tensor> {
    check_length(path, split.files[1].0)?;
    let bytes = files::read(path)?;
    let (found, (_, packed)) = (md5(&bytes), &split.files[1]);
    if found != *packed {
        let text = |digest: &str| format!("MD5 {digest}");
        return Err(changed(path, "its labels are not those that were packed", &text(packed), &text(&found)));
    }
    let labels = Array::read(&path.display().to_string(), &bytes)?.values;
    let bad = |what: &dyn Display| Error::file("understand", path, what);
    if labels.size() != [split.images as i64] {
        return Err(bad(&format_args!("expected {} labels, got {:?}", split.images, labels.size())));
    }
    let (low, high) = (labels.f_min()?.int64_value(&[]), labels.f_max()?.int64_value(&[]));
    if low < 0 || high >= classes {
        return Err(bad(&format_args!("expected labels from 0 to {}, got {low} to {high}", classes - 1)));
    }
    Ok(labels)
}
