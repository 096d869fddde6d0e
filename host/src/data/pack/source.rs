//! What is packed: files of images, which are decoded one by one, or a data set of another format,
//! which is read as a whole.

use super::SPLITS;
use super::write::{Packing, Show};
use crate::data::images::{self, Inspected, Picture, Tree};
use crate::data::layout::{self, Found};
use crate::data::{self, DataSpec, Origin, RESIZE, Split, in_parallel};
use crate::error::shown;
use crate::torch::tensors;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use tch::Tensor;

/// The images and labels that are packed.
pub(super) struct Source {
    /// As it is written for `--data`.
    pub written: String,
    pub checksums: BTreeMap<String, String>,
    /// The names of the splits in the pack.
    pub splits: Vec<&'static str>,
    /// Channels, height and width of the images of the pack.
    pub image: [usize; 3],
    pub classes: i64,
    pub class_names: Vec<String>,
    /// What was found while it was read.
    pub findings: Vec<String>,
    side: Option<usize>,
    contents: Contents,
}

enum Contents {
    Files {
        tree: Tree,
        inspected: Inspected,
    },
    /// Images and labels by split.
    Memory(Vec<(Mutex<Tensor>, Vec<i64>)>),
}

/// The pixels of an image, or which one cannot be decoded, and why.
pub(super) type Decoded = std::result::Result<Vec<u8>, (usize, String)>;

impl Source {
    /// Opens the data. Files of images are read once, and not decoded.
    ///
    /// # Errors
    /// If they are no data set, or an image cannot be decoded and bad images are not skipped.
    pub(super) fn open(packing: &Packing, show: Show) -> Result<Self> {
        let spec = DataSpec::parse(packing.source)?;
        if let (Some(size), Some(resize)) = (packing.size, spec.option(RESIZE)) {
            return Err(Error::new(format!(
                "--size {size} and the option {RESIZE}={resize} of the data say the same: expected one of them"
            )));
        }
        let size = packing.size.map(images::checked_side).transpose()?;
        let path = spec.path();
        let is_folder = spec.known().is_none() && !spec.is_file() && path.is_dir();
        let tree = match if is_folder { Some(layout::detect(path)?) } else { None } {
            Some(Found::Images) => images::tree(path)?,
            Some(Found::TinyImageNet) => images::tiny_imagenet(path)?,
            Some(Found::Pack) => {
                return Err(Error::new(format!("{} is a pack already", shown(path)))
                    .fix("pack what it was made from: its pack.json names it"));
            }
            _ => return Self::read(packing, &spec, size),
        };
        spec.takes(&[RESIZE])?;
        let side = size.map_or_else(|| images::side(&spec), |size| Ok(Some(size)))?;
        let inspected = tree.inspect(packing.skip_bad, show).map_err(or_skip)?;
        let channels = images::channels(&tree, &inspected.picked, side.is_some(), "--size N")?;
        let first = inspected.picked.iter().flatten().next().ok_or_else(|| Error::new("no images"))?;
        let own = [first.header.height, first.header.width].map(|size| size as usize);
        let [height, width] = side.map_or(own, |side| [side; 2]);
        Ok(Self {
            written: spec.absolute().to_string(),
            checksums: inspected.checksums.clone(),
            splits: SPLITS[SPLITS.len() - tree.splits.len()..].to_vec(),
            image: [channels as usize, height, width],
            classes: tree.classes.len() as i64,
            class_names: tree.classes.clone(),
            findings: Vec::new(),
            side,
            contents: Contents::Files { tree, inspected },
        })
    }

    /// Reads a data set of a few large files.
    fn read(packing: &Packing, spec: &DataSpec, side: Option<usize>) -> Result<Self> {
        let dataset = data::load(packing.source, packing.data_folder)?;
        let size = dataset.test.images.size();
        let [channels, height, width] = [size[1], size[2], size[3]].map(|size| size as usize);
        let [height, width] = side.map_or([height, width], |side| [side; 2]);
        let mut findings = dataset.remarks;
        if let Origin::Altered(how) = dataset.origin {
            findings.push(how);
        }
        let named = SPLITS.into_iter().zip([dataset.train, dataset.test]);
        let (mut splits, mut contents) = (Vec::new(), Vec::new());
        for (name, Split { images, labels }) in named.filter(|(_, split)| split.count() > 0) {
            splits.push(name);
            contents.push((Mutex::new(images), Vec::try_from(labels)?));
        }
        Ok(Self {
            written: spec.absolute().to_string(),
            checksums: dataset.checksums,
            splits,
            image: [channels, height, width],
            classes: dataset.classes,
            class_names: dataset.class_names,
            findings,
            side,
            contents: Contents::Memory(contents),
        })
    }

    /// The number of images of a split that may be packed.
    pub(super) fn count(&self, split: usize) -> usize {
        match &self.contents {
            Contents::Files { inspected, .. } => inspected.picked[split].len(),
            Contents::Memory(splits) => splits[split].1.len(),
        }
    }

    /// The pixels of some images, of the pack's size, decoded on all cores.
    ///
    /// # Errors
    /// If one cannot be read, or not decoded and bad ones are not skipped.
    pub(super) fn pixels(&self, split: usize, items: Range<usize>, skip_bad: bool) -> Result<Vec<Decoded>> {
        let decode = |item: usize| {
            let Contents::Files { tree, inspected } = &self.contents else { return Ok(Ok(Vec::new())) };
            let (header, picture) =
                (&inspected.picked[split][item].header, picture(tree, inspected, split, item));
            match images::pixels(picture, header, self.image[0] as i64, self.side) {
                Ok(pixels) => Ok(Ok(pixels)),
                Err(error) if skip_bad && picture.is_readable() => {
                    Ok(Err((item, error.first_line().to_owned())))
                }
                Err(error) => Err(or_skip(error).on_the_way()),
            }
        };
        let Contents::Memory(splits) = &self.contents else {
            return in_parallel(&items.collect::<Vec<_>>(), |item| decode(*item));
        };
        let (bytes, size) = {
            let images = splits[split].0.lock().unwrap_or_else(PoisonError::into_inner);
            let some = images.f_narrow(0, items.start as i64, items.len() as i64)?;
            (tensors::bytes(&some)?, some.size())
        };
        let [height, width] = [size[2], size[3]].map(|size| size as usize);
        let each: Vec<_> = bytes.chunks(self.image[0] * height * width).collect();
        in_parallel(&each, |image| Ok(Ok(images::of_side(image.to_vec(), [height, width], self.side))))
    }

    /// The labels of all items of a split.
    pub(super) fn labels(&self, split: usize) -> Vec<i64> {
        match &self.contents {
            Contents::Files { tree, inspected } => {
                let class = |item| picture(tree, inspected, split, item).class as i64;
                (0..self.count(split)).map(class).collect()
            }
            Contents::Memory(splits) => splits[split].1.clone(),
        }
    }

    /// The name of an item, for messages.
    pub(super) fn name(&self, split: usize, item: usize) -> String {
        match &self.contents {
            Contents::Files { tree, inspected } => picture(tree, inspected, split, item).name.clone(),
            Contents::Memory(_) => item.to_string(),
        }
    }

    /// Images of a split that were left out before decoding: `CLASS/FILE`, and why.
    pub(super) fn refused(&self, split: usize) -> &[(String, String)] {
        match &self.contents {
            Contents::Files { inspected, .. } => &inspected.refused[split],
            Contents::Memory(_) => &[],
        }
    }
}

fn picture<'a>(tree: &'a Tree, inspected: &Inspected, split: usize, item: usize) -> &'a Picture {
    &tree.splits[split].1[inspected.picked[split][item].place]
}

/// The error of an image that ends the work, with the other way out.
fn or_skip(error: Error) -> Error {
    error.note("or", "--skip-bad leaves out images that cannot be decoded, and names them")
}
