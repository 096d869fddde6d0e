//! Checkpoints of a particle store in a file, without a copy of it.
//!
//! The file has three slots for each point. Two of them may belong to the last two checkpoints; where
//! a point is visited, its chains go to a slot that belongs to neither. A checkpoint then needs the
//! chains on the disk, where they are written anyway, and for each point the number of its slot and a
//! digest of what is there (CRC-32C): a few bytes. What changed since the last checkpoint is written
//! once, and nothing else.
//!
//! What a process leaves that is killed, or whose machine fails:
//!
//! * between checkpoints: slots that no checkpoint names, with anything in them. The last two
//!   checkpoints are whole, since their slots are not written to.
//! * while the file is synced, or the checkpoint is written: the same. The checkpoint gets its name
//!   (`run/checkpoint.rs`) only after the sync.
//! * after the checkpoint got its name: it is the last one, and the one before it is whole. The
//!   slots of the one before that were not free until then ([`Slots::saved`]).
//!
//! A run that goes on takes the slots of its checkpoint as they are. Until its next checkpoint it
//! spares those of the checkpoint before, too: each checkpoint names both. If the chains of the last
//! checkpoint are not those that their digests are of, the run goes back to the one before.

use crate::error::shown;
use crate::torch::tensors;
use crate::util::{files, pulse};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// Slots of each point.
pub const SLOTS: usize = 3;

/// The tensors of a checkpoint: the slot of each point (`[n]`, u8), those of the checkpoint before, if
/// there was one, and the digest of each point's chains in each file (`[files, n]`, i32).
const CURRENT: &str = "slots";
const BEFORE: &str = "slots-before";
const DIGESTS: &str = "digests";

/// Which slot of a file has the chains of each point.
pub struct Slots {
    current: Vec<u8>,
    /// Those of the last checkpoint, and of the one before.
    saved: [Option<Vec<u8>>; 2],
    /// The digest of each point's row, by file.
    digests: Vec<Vec<u32>>,
    /// Locked while they are open.
    files: Vec<(PathBuf, File)>,
}

impl Slots {
    /// The slots of these files, for so many points: all in the first one.
    pub fn new(files: Vec<(PathBuf, File)>, points: usize) -> Self {
        let digests = files.iter().map(|_| vec![0; points]).collect();
        Self { current: vec![0; points], saved: [None, None], digests, files }
    }

    /// The rows (`[B]`, i64) of the files' tensors (`[3 n, ...]`) that have the chains of these points.
    pub fn rows(&self, points: &[i64]) -> Tensor {
        rows_of(points, &self.current)
    }

    /// The rows to which the next chains of these points go.
    pub fn next_rows(&mut self, points: &[i64]) -> Tensor {
        for point in points {
            let point = *point as usize;
            let is_taken = |slot: u8| self.saved.iter().flatten().any(|saved| saved[point] == slot);
            if is_taken(self.current[point]) {
                // Two checkpoints leave one of three slots.
                self.current[point] = (0..SLOTS as u8).find(|slot| !is_taken(*slot)).unwrap_or_default();
            }
        }
        self.rows(points)
    }

    /// Notes what is written to these points' rows of a file: `rows` is `[B, ...]`, contiguous.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn note(&mut self, file: usize, points: &[i64], rows: &Tensor) -> Result<()> {
        let bytes = tensors::bytes(rows)?;
        let each = (bytes.len() / points.len().max(1)).max(1);
        for (point, row) in points.iter().zip(bytes.chunks(each)) {
            self.digests[file][*point as usize] = crc32c::crc32c(row);
        }
        Ok(())
    }

    /// Notes that all rows of a file are alike.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn note_all(&mut self, file: usize, row: &Tensor) -> Result<()> {
        let digest = crc32c::crc32c(&tensors::bytes(row)?);
        self.digests[file].fill(digest);
        Ok(())
    }

    /// Whether these files are those of a store at this path.
    pub fn are_at(&self, place: &Path) -> bool {
        self.files.iter().zip(super::store::files(place)).all(|((_, file), path)| files::is_at(file, &path))
    }

    /// What a checkpoint holds of the store. All chains are on the disk once this returns.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        for (path, file) in &self.files {
            files::sync(file).map_err(|why| Error::file("write", path, why).on_the_way())?;
        }
        let digests: Vec<i32> = self.digests.iter().flatten().map(|digest| digest.cast_signed()).collect();
        let digests = Tensor::f_from_slice(&digests)?.f_view([self.files.len() as i64, -1])?;
        let mut state =
            vec![(CURRENT.to_owned(), Tensor::f_from_slice(&self.current)?), (DIGESTS.to_owned(), digests)];
        if let Some(before) = &self.saved[0] {
            state.push((BEFORE.to_owned(), Tensor::f_from_slice(before)?));
        }
        Ok(state)
    }

    /// The checkpoint of [`Slots::state`] has its name: what the one before the last had is free.
    pub fn saved(&mut self) {
        self.saved.swap(0, 1);
        self.saved[0] = Some(self.current.clone());
    }

    /// Takes the slots of a checkpoint.
    ///
    /// # Errors
    /// If they are not of so many points.
    pub fn adopt(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let index = Index::of(saved, self.current.len(), self.files.len())?;
        self.saved = [Some(index.current.clone()), index.before];
        (self.current, self.digests) = (index.current, index.digests);
        Ok(())
    }

    /// Compares the chains of a checkpoint with their digests.
    ///
    /// # Errors
    /// If a file cannot be read, or one of them differs.
    pub fn check(&self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let index = Index::of(saved, self.current.len(), self.files.len())?;
        for (number, (path, file)) in self.files.iter().enumerate() {
            let row_bytes = row_bytes(path, file, self.current.len())?;
            let points: Vec<usize> = (0..self.current.len()).collect();
            let check = |points: &[usize]| {
                let mut row = vec![0; row_bytes];
                points.iter().try_for_each(|point| index.read(number, (path, file), *point, &mut row))
            };
            points.par_chunks(1024).try_for_each(check)?;
        }
        Ok(())
    }
}

/// Whether a checkpoint names slots of a file, and has no particles itself.
pub fn is_of_file(saved: &BTreeMap<String, Tensor>) -> bool {
    saved.contains_key(CURRENT)
}

/// Reads the chains that a checkpoint names in a file of a store of so many points: the rows of
/// `points`, one after the other.
///
/// # Errors
/// If the file cannot be read, or the chains are not those that their digests are of.
pub fn read(
    saved: &BTreeMap<String, Tensor>,
    place: &Path,
    number: usize,
    count: usize,
    points: std::ops::Range<usize>,
) -> Result<Vec<u8>> {
    let path = super::store::files(place).nth(number).unwrap_or_else(|| place.to_owned());
    let file = File::open(&path).map_err(|why| {
        Error::file("read", &path, why)
            .note("because", "the checkpoint has no copy of the particles in this file")
    })?;
    let row_bytes = row_bytes(&path, &file, count)?;
    let index = Index::of(saved, count, number + 1)?;
    let mut rows = vec![0; row_bytes * points.len()];
    let rows_and_points = rows.par_chunks_mut(row_bytes).zip(points);
    rows_and_points.try_for_each(|(row, point)| index.read(number, (&path, &file), point, row))?;
    Ok(rows)
}

fn rows_of(points: &[i64], slots: &[u8]) -> Tensor {
    let row = |point: &i64| i64::from(slots[*point as usize]) * slots.len() as i64 + point;
    Tensor::from_slice(&points.iter().map(row).collect::<Vec<_>>())
}

/// Bytes of a point's row in one slot of a file.
fn row_bytes(path: &Path, file: &File, count: usize) -> Result<usize> {
    let length = file.metadata().map_err(|why| Error::file("read", path, why))?.len();
    let rows = (SLOTS * count) as u64;
    match length.checked_div(rows) {
        Some(bytes) if bytes > 0 && length.is_multiple_of(rows) => Ok(bytes as usize),
        _ => Err(Error::new(format!(
            "{} is damaged: {length} bytes are no particles of {count} points",
            shown(path)
        ))),
    }
}

/// What a checkpoint holds.
struct Index {
    current: Vec<u8>,
    before: Option<Vec<u8>>,
    digests: Vec<Vec<u32>>,
}

impl Index {
    /// The index of a store of so many points in at least so many files.
    fn of(saved: &BTreeMap<String, Tensor>, points: usize, files: usize) -> Result<Self> {
        let bad = || Error::new("the particles in the checkpoint do not match the run: it names other slots");
        let slots = |name: &str| -> Result<Option<Vec<u8>>> {
            let Some(slots) = saved.get(name) else { return Ok(None) };
            let slots = Vec::<u8>::try_from(slots).map_err(|_| bad())?;
            let fit = slots.len() == points && slots.iter().all(|slot| usize::from(*slot) < SLOTS);
            if fit { Ok(Some(slots)) } else { Err(bad()) }
        };
        let digests = saved.get(DIGESTS).ok_or_else(bad)?;
        if digests.size().len() != 2 || digests.size()[1] != points as i64 || digests.size()[0] < files as i64
        {
            return Err(bad());
        }
        let digests: Vec<i32> = Vec::try_from(digests.f_to_kind(Kind::Int)?.f_flatten(0, -1)?)?;
        let digests =
            digests.chunks(points).map(|some| some.iter().map(|digest| digest.cast_unsigned()).collect());
        Ok(Self {
            current: slots(CURRENT)?.ok_or_else(bad)?,
            before: slots(BEFORE)?,
            digests: digests.collect(),
        })
    }

    /// Reads the row of a point into `row`.
    fn read(&self, number: usize, (path, file): (&Path, &File), point: usize, row: &mut [u8]) -> Result<()> {
        let at = usize::from(self.current[point]) * self.current.len() + point;
        file.read_exact_at(row, (at * row.len()) as u64).map_err(|why| Error::file("read", path, why))?;
        pulse::beat();
        let (found, expected) = (crc32c::crc32c(row), self.digests[number][point]);
        if found == expected {
            return Ok(());
        }
        Err(Error::new(format!(
            "{} is damaged: the chains of point {point} are not those of the checkpoint (CRC-32C {expected:08x}, got \
             {found:08x})",
            shown(path)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// Slots of two points in a file of two bytes a row.
    fn slots(folder: &Path) -> Slots {
        let path = folder.join("store");
        std::fs::write(&path, [0; 12]).expect("written");
        let file = File::options().read(true).write(true).open(&path).expect("opened");
        Slots::new(vec![(path, file)], 2)
    }

    fn rows(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).expect("i64")
    }

    /// What a store does where it saves the chains of a point.
    fn visit(slots: &mut Slots, point: i64, value: u8) {
        let row = rows(&slots.next_rows(&[point]))[0];
        slots.note(0, &[point], &Tensor::from_slice(&[value, value]).view([1, 2])).expect("noted");
        slots.files[0].1.write_all_at(&[value; 2], 2 * row as u64).expect("written");
    }

    fn checkpoint(slots: &mut Slots) -> BTreeMap<String, Tensor> {
        let state = slots.state().expect("synced").into_iter().collect();
        slots.saved();
        state
    }

    #[test]
    fn the_slots_of_the_last_two_checkpoints_are_not_written_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut slots = slots(folder.path());
        slots.note_all(0, &Tensor::zeros([2], (Kind::Uint8, Device::Cpu))).expect("noted");
        let mut kept = Vec::new();
        for value in 1..20u8 {
            // One point is visited at every interval, twice; the other one at every third.
            visit(&mut slots, 0, value);
            visit(&mut slots, 0, value + 100);
            if value % 3 == 0 {
                visit(&mut slots, 1, value);
            }
            // Whenever the process ends, the last two are whole.
            kept.iter().rev().take(2).for_each(|saved| slots.check(saved).expect("whole"));
            kept.push(checkpoint(&mut slots));
            kept.iter().rev().take(2).for_each(|saved| slots.check(saved).expect("whole"));
            let of = |back: usize, point: usize| {
                let saved = &kept[kept.len() - 1 - back];
                read(saved, &folder.path().join("store"), 0, 2, point..point + 1).expect("whole")
            };
            assert_eq!((of(0, 0), of(0, 1)), (vec![value + 100; 2], vec![value / 3 * 3; 2]));
            if value > 1 {
                assert_eq!(of(1, 0), [value + 99; 2]);
            }
        }
        assert!(slots.check(&kept[0]).is_err(), "older ones are overwritten");
    }

    #[test]
    fn a_run_that_goes_on_spares_the_checkpoint_before_and_takes_the_same_slots() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = slots(folder.path());
        let mut kept = Vec::new();
        for value in 1..5 {
            visit(&mut first, 0, value);
            visit(&mut first, 1, value);
            kept.push(checkpoint(&mut first));
        }
        let files = std::mem::take(&mut first.files);
        let mut resumed = Slots::new(files, 2);
        resumed.adopt(&kept[3]).expect("fits");
        let next = [&mut first, &mut resumed].map(|slots| rows(&slots.next_rows(&[0, 1])));
        assert_eq!(next[0], next[1]);
        visit(&mut resumed, 0, 9);
        visit(&mut resumed, 1, 9);
        for saved in [&kept[2], &kept[3]] {
            resumed.check(saved).expect("whole");
        }
    }

    #[test]
    fn damaged_chains_and_indices_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut slots = slots(folder.path());
        visit(&mut slots, 0, 7);
        visit(&mut slots, 1, 8);
        let saved = checkpoint(&mut slots);
        slots.check(&saved).expect("whole");
        slots.files[0].1.write_all_at(&[9], 3).expect("written");
        let error = slots.check(&saved).expect_err("damaged").to_string();
        assert!(error.contains("the chains of point 1 are not those of the checkpoint"), "{error}");
        let with = |name: &str, tensor: Tensor| {
            let mut other: BTreeMap<_, _> =
                saved.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
            other.insert(name.to_owned(), tensor);
            slots.check(&other).expect_err("refused").to_string()
        };
        for wrong in [
            with(CURRENT, Tensor::from_slice(&[0u8])),
            with(CURRENT, Tensor::from_slice(&[0u8, 3])),
            with(DIGESTS, Tensor::from_slice(&[0i32])),
        ] {
            assert!(wrong.contains("do not match the run"), "{wrong}");
        }
    }
}
