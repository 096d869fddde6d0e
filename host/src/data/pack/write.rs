//! Making a pack: images are decoded on all cores and written block by block, so that neither the
//! source nor the pack need fit into memory.
//!
//! A pack is made in a folder `OUT.packing`, which is renamed once it is whole. After every block,
//! `packing.json` there says how far the work is. A process that was killed leaves whole blocks and
//! at most a part of one more: the same command compares the whole ones with their digests, cuts the
//! rest off, and goes on.

use super::source::Source;
use super::{RECORD, Record, SPLITS, SplitRecord, VERSION, file_names};
use crate::data;
use crate::data::npy::{HEADER, header};
use crate::error::shown;
use crate::util::files;
use crate::{Error, Result};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a block of images, about.
const BLOCK: usize = 32 << 20;

/// Images of a block, at most: no more work than that is lost.
const MOST_IMAGES: usize = 1 << 10;

/// Ending of the folder of a pack that is not whole.
const UNFINISHED: &str = ".packing";

/// How far a pack is.
const PROGRESS: &str = "packing.json";

const LOCK: &str = "lock";

/// Room on the disk for records and the like.
const SLACK: u64 = 1 << 20;

/// What is to be packed.
#[derive(Debug)]
pub struct Packing<'a> {
    /// The data, as they are written for `--data`.
    pub source: &'a str,
    /// The folder of the named data sets.
    pub data_folder: &'a Path,
    /// The folder to be made.
    pub out: &'a Path,
    /// Side of the images: the shorter side is resized to it, and the middle is cut out.
    pub size: Option<usize>,
    /// Whether images that cannot be decoded are left out.
    pub skip_bad: bool,
}

/// A pack that was made.
#[derive(Debug, Serialize)]
pub struct Packed {
    /// Its folder.
    pub folder: PathBuf,
    /// Channels, height and width.
    pub image: [usize; 3],
    /// Number of classes.
    pub classes: i64,
    /// Its splits.
    pub splits: BTreeMap<String, PackedSplit>,
    /// Images that were there already: an earlier process had packed them.
    pub resumed: usize,
}

/// One split of it.
#[derive(Debug, Serialize)]
pub struct PackedSplit {
    /// Number of images.
    pub images: usize,
    /// Bytes of the file of images.
    pub bytes: u64,
    /// Images that were left out, since they cannot be decoded: `CLASS/FILE`, and why.
    pub left_out: Vec<(String, String)>,
}

/// What the work is at: what is done, how much of it, and how much there is.
pub type Show<'a> = &'a (dyn Fn(&'static str, usize, usize) + Sync);

/// `packing.json`: what must be the same for the work to go on, and how far it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Progress {
    order: Order,
    splits: BTreeMap<String, SplitProgress>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    version: u32,
    source: String,
    source_checksums: BTreeMap<String, String>,
    size: Option<usize>,
    image: [usize; 3],
    skip_bad: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct SplitProgress {
    /// Items of the source that were decoded, or left out.
    examined: usize,
    /// Images that were written.
    images: usize,
    blocks: Vec<u32>,
    /// Items that were left out since their decoding failed.
    left_out: Vec<(usize, String)>,
    brightest: u8,
    /// Whether an image differs from the first.
    differ: bool,
    /// MD5 of the first image.
    first: Option<String>,
}

/// Some images that are to be written in one piece.
struct Block {
    bytes: Vec<u8>,
    images: usize,
    examined: usize,
    left_out: Vec<(usize, String)>,
}

/// Makes a pack. None if `stop` is set before it is whole; the same call then goes on.
///
/// # Errors
/// If the source cannot be read, an image cannot be decoded, or the disk has too little room.
pub fn pack(packing: &Packing, show: Show, stop: &AtomicBool) -> Result<Option<Packed>> {
    let Packing { out, skip_bad, .. } = *packing;
    let out = &crate::error::absolute(out);
    refuse_taken(out)?;
    let source = Source::open(packing, show)?;
    let image = source.image;
    let order = Order {
        version: VERSION,
        source: source.written.clone(),
        source_checksums: source.checksums.clone(),
        size: packing.size,
        image,
        skip_bad,
    };
    let unfinished = beside(out);
    let begun = begun(&unfinished, &order)?;
    let per_image = image.iter().product::<usize>();
    let of_split = |(number, name): (usize, &&str)| {
        let count = source.count(number);
        let written =
            begun.as_ref().and_then(|begun| begun.splits.get(*name)).map_or(0, |split| split.images);
        (2 * HEADER + count * 8 + count.saturating_sub(written) * per_image) as u64
    };
    let needed: u64 = source.splits.iter().enumerate().map(of_split).sum();
    files::check_room(out.parent().unwrap_or(out), needed + SLACK, "the pack")
        .map_err(|error| error.fix("make room there, choose another disk with --out, or a smaller --size"))?;

    files::create_folder(&unfinished).map_err(|why| Error::file("create", &unfinished, why))?;
    let Some(_lock) = files::lock(&unfinished.join(LOCK))? else {
        return Err(Error::new(format!("another process makes {}", shown(out)))
            .fix("wait for it, or choose another --out"));
    };
    files::remove_leftovers(&unfinished);
    let mut progress = begun.unwrap_or(Progress { order, splits: BTreeMap::new() });
    let resumed = progress.splits.values().map(|split| split.images).sum();
    let mut records = BTreeMap::new();
    for (number, name) in source.splits.iter().enumerate() {
        let writer = Writer { source: &source, number, name, folder: &unfinished, skip_bad, show, stop };
        let Some(record) = writer.write(&mut progress)? else { return Ok(None) };
        records.insert((*name).to_owned(), record);
    }
    let findings = findings(&source, &progress, &records);
    let Order { source: written, source_checksums, size, .. } = progress.order;
    let record = Record {
        version: VERSION,
        source: written,
        source_checksums,
        size,
        image,
        classes: source.classes,
        class_names: source.class_names,
        findings,
        splits: records,
    };
    files::write_sealed(&unfinished.join(RECORD), [serde_json::to_string_pretty(&record)])?;
    files::rename(&unfinished, out).map_err(|why| Error::file("create", out, why).on_the_way())?;
    // If the machine fails before the new name is on the disk, the same command gives it again.
    let _ = files::sync_folder(out.parent().unwrap_or(out));
    // Nobody reads these; a process that is killed here leaves them.
    for name in [PROGRESS, LOCK] {
        let _ = files::remove_file(&out.join(name));
    }
    let splits = record.splits.into_iter().map(|(name, split)| {
        let packed = PackedSplit { images: split.images, bytes: split.files[0].0, left_out: split.left_out };
        (name, packed)
    });
    Ok(Some(Packed {
        folder: out.clone(),
        image,
        classes: record.classes,
        splits: splits.collect(),
        resumed,
    }))
}

fn refuse_taken(out: &Path) -> Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(
            Error::new(format!("{} already exists", shown(out))).fix("choose another folder with --out")
        );
    }
    let above = out.parent().unwrap_or(out);
    if !above.is_dir() {
        return Err(Error::new(format!("--out: there is no folder {}", shown(above))).fix("create it"));
    }
    Ok(())
}

/// The folder in which a pack is made.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// The progress of an earlier process that made the same pack; none if there is none.
fn begun(unfinished: &Path, order: &Order) -> Result<Option<Progress>> {
    let path = unfinished.join(PROGRESS);
    if !path.exists() {
        return Ok(None);
    }
    let fix = format!("remove {} to begin anew, or choose another --out", shown(unfinished));
    let progress: Progress = files::read_sealed(&path).map_err(|error| error.fix(&fix))?;
    let begun = &progress.order;
    if begun == order {
        return Ok(Some(progress));
    }
    let [of_begun, of_order] = [begun, order].map(|order| {
        let digest = data::md5(format!("{:?}", order.source_checksums).as_bytes());
        let size = order.size.map_or("none".to_owned(), |size| size.to_string());
        format!(
            "{}, size {size}, images {:?}, skip-bad {}, data {digest}",
            order.source, order.image, order.skip_bad
        )
    });
    Err(Error::new(format!("{} holds the beginning of another pack", shown(unfinished)))
        .note("begun", of_begun)
        .note("now", of_order)
        .fix(fix))
}

/// Writes one split.
struct Writer<'a> {
    source: &'a Source,
    /// The number of the split in the source.
    number: usize,
    name: &'a str,
    folder: &'a Path,
    skip_bad: bool,
    show: Show<'a>,
    stop: &'a AtomicBool,
}

impl Writer<'_> {
    /// Writes what is missing of the split. None if it was stopped.
    fn write(&self, progress: &mut Progress) -> Result<Option<SplitRecord>> {
        let [images, labels] = file_names(self.name).map(|name| self.folder.join(name));
        let image = progress.order.image;
        let per_image = image.iter().product::<usize>();
        let per_block = (BLOCK / per_image).clamp(1, MOST_IMAGES);
        let count = self.source.count(self.number);
        let mut mine = progress.splits.get(self.name).cloned().unwrap_or_default();
        let shape = |images: usize| [images, image[0], image[1], image[2]];
        let (mut file, mut digest) = self.reopen(&images, &mut mine, &shape(count), per_block * per_image)?;

        let mut pending = self.decode(mine.examined, count, per_block)?;
        while let Some(block) = pending.take() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            // The next block is decoded while this one is written.
            let next = block.examined;
            let (decoded, written) = rayon::join(
                || if next < count { self.decode(next, count, per_block) } else { Ok(None) },
                || -> Result<()> {
                    let crc = crc32c::crc32c(&block.bytes);
                    digest.update(&block.bytes);
                    note_pixels(&mut mine, &block.bytes, per_image);
                    files::append(&mut file, &block.bytes).map_err(|why| full(&images, why))?;
                    mine.blocks.extend((block.images > 0).then_some(crc));
                    mine.images += block.images;
                    mine.examined = block.examined;
                    mine.left_out.extend(block.left_out.iter().cloned());
                    progress.splits.insert(self.name.to_owned(), mine.clone());
                    let path = self.folder.join(PROGRESS);
                    files::write_sealed(&path, [serde_json::to_string(&progress)])
                        .map_err(|error| error.fix(AGAIN))
                },
            );
            written?;
            (self.show)("packing", mine.examined, count);
            pending = decoded?;
        }
        if mine.images == 0 {
            return Err(
                Error::new(format!("no image of the split {} can be decoded", self.name)).on_the_way()
            );
        }
        let bytes = HEADER as u64 + (mine.images * per_image) as u64;
        let md5 = if mine.images == count {
            files::hexadecimal(&digest.finalize())
        } else {
            files::overwrite(&mut file, 0, &header("|u1", &shape(mine.images)))
                .map_err(|why| full(&images, why))?;
            md5_of(&images, self.show)?
        };
        let of_labels = self.write_labels(&labels, &mine)?;
        let mut left_out = self.source.refused(self.number).to_vec();
        left_out.extend(
            mine.left_out.iter().map(|(item, why)| (self.source.name(self.number, *item), why.clone())),
        );
        left_out.sort();
        Ok(Some(SplitRecord {
            images: mine.images,
            left_out,
            images_per_block: per_block,
            blocks: mine.blocks,
            files: [(bytes, md5), of_labels],
        }))
    }

    /// The file of images, with the blocks that are whole and nothing after them, and its MD5 so far.
    fn reopen(
        &self,
        path: &Path,
        mine: &mut SplitProgress,
        shape: &[usize],
        block: usize,
    ) -> Result<(File, Md5)> {
        let refused = |why| full(path, why);
        let start = header("|u1", shape);
        let mut digest = Md5::new();
        digest.update(start);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = files::open(&options, path).map_err(refused)?;
        let mut end = HEADER as u64;
        if mine.images > 0 {
            let mut kept = vec![0; block.min(mine.images * shape[1..].iter().product::<usize>())];
            let mut left = mine.images * shape[1..].iter().product::<usize>();
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(end)).map_err(refused)?;
            for (number, crc) in mine.blocks.iter().enumerate() {
                let some = &mut kept[..left.min(block)];
                let read = file.read_exact(some);
                if read.is_err() || crc32c::crc32c(some) != *crc {
                    return Err(Error::new(format!(
                        "{} is damaged: block {number} is not the one that was written",
                        shown(path)
                    ))
                    .fix(format!("remove {} to begin anew", shown(self.folder))));
                }
                digest.update(&*some);
                left -= some.len();
                end += some.len() as u64;
                (self.show)("comparing what is packed", number + 1, mine.blocks.len());
            }
        } else {
            files::overwrite(&mut file, 0, &start).map_err(refused)?;
        }
        files::cut(&mut file, end).map_err(refused)?;
        Ok((file, digest))
    }

    /// Decodes images from `first` on, until there are enough for a block. None if none are left.
    fn decode(&self, first: usize, count: usize, per_block: usize) -> Result<Option<Block>> {
        let mut block = Block { bytes: Vec::new(), images: 0, examined: first, left_out: Vec::new() };
        while block.images < per_block && block.examined < count {
            let end = (block.examined + per_block - block.images).min(count);
            let decoded = self.source.pixels(self.number, block.examined..end, self.skip_bad)?;
            for one in decoded {
                match one {
                    Ok(pixels) => {
                        block.images += 1;
                        block.bytes.extend(pixels);
                    }
                    Err(left_out) => block.left_out.push(left_out),
                }
            }
            block.examined = end;
        }
        Ok((block.examined > first).then_some(block))
    }

    /// Writes the labels of the images that were written. Returns the length of their file, and its
    /// MD5.
    fn write_labels(&self, path: &Path, mine: &SplitProgress) -> Result<(u64, String)> {
        let left_out: std::collections::BTreeSet<usize> =
            mine.left_out.iter().map(|(item, _)| *item).collect();
        let labels = self.source.labels(self.number);
        let kept = labels.iter().enumerate().filter(|(item, _)| !left_out.contains(item));
        let mut contents = header("<i8", &[mine.images]).to_vec();
        contents.extend(kept.flat_map(|(_, label)| label.to_le_bytes()));
        files::write_whole(path, &contents)?;
        Ok((contents.len() as u64, data::md5(&contents)))
    }
}

/// What to do about a disk that filled up meanwhile.
const AGAIN: &str = "make room on the disk, then give the same command again: it goes on";

fn full(path: &Path, why: std::io::Error) -> Error {
    Error::file("write", path, why).fix(AGAIN).on_the_way()
}

/// Keeps what the findings need to know of the pixels.
fn note_pixels(mine: &mut SplitProgress, bytes: &[u8], per_image: usize) {
    mine.brightest = bytes.iter().copied().max().unwrap_or(0).max(mine.brightest);
    for image in bytes.chunks(per_image) {
        if mine.differ {
            return;
        }
        let digest = data::md5(image);
        let first = mine.first.get_or_insert_with(|| digest.clone());
        mine.differ = *first != digest;
    }
}

/// The MD5 of a file, which may be larger than the memory.
fn md5_of(path: &Path, show: Show) -> Result<String> {
    let refused = |why| Error::file("read", path, why);
    let mut file = File::open(path).map_err(refused)?;
    let all = file.metadata().map_err(refused)?.len();
    let (mut digest, mut some, mut done) = (Md5::new(), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut some).map_err(refused)? {
            0 => return Ok(files::hexadecimal(&digest.finalize())),
            count => {
                digest.update(&some[..count]);
                done += count;
                show("computing the checksum", done, all as usize);
            }
        }
    }
}

/// What a reader of results should know, of what only the images tell: a pack is not read as a whole
/// when it is used.
fn findings(source: &Source, progress: &Progress, records: &BTreeMap<String, SplitRecord>) -> Vec<String> {
    let mut findings = source.findings.clone();
    for (name, title) in SPLITS.into_iter().zip(["training", "test"]) {
        let (Some(split), Some(record)) = (progress.splits.get(name), records.get(name)) else { continue };
        if split.images > 1 && !split.differ {
            findings.push(format!("all {} {title} images are equal", split.images));
        }
        if !record.left_out.is_empty() {
            let count = record.left_out.len();
            findings.push(format!(
                "{count} {title} images cannot be decoded and are left out: pack.json names them"
            ));
        }
    }
    let [train, test] =
        SPLITS.map(|name| records.get(name).map(|record| (&record.blocks, &record.files[0].1)));
    if train.is_some() && train == test {
        findings.push("the test images are the training images".to_owned());
    }
    let (name, title) = if train.is_some() { (SPLITS[0], "training") } else { (SPLITS[1], "test") };
    if let Some(brightest) =
        progress.splits.get(name).map(|split| split.brightest).filter(|value| *value <= 1)
    {
        findings.push(format!(
            "the highest value in the {title} images is {brightest}: expected pixels from 0 to 255"
        ));
    }
    findings
}
