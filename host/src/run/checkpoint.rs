//! Checkpoints: the state from which a run resumes exactly.
//!
//! A checkpoint is a folder: weights, optimiser state and particles as safetensors, and
//! `progress.json` with the rest and a digest of each file. It is written under another name,
//! synced and renamed. The last two are kept, so that a damaged one does not end the run.

use crate::error::shown;
use crate::torch::tensors;
use crate::util::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// The group of a moving average of the weights, which is evaluated in their place.
pub const AVERAGE: &str = "average";

/// Number of checkpoints that are kept.
const KEPT: usize = 2;

/// Ending of a checkpoint's folder while it is being removed.
const OUTDATED: &str = "outdated";

/// Ending of a checkpoint's folder until another one of the same update stands in its place.
const REPLACED: &str = "replaced";

/// Ending of a checkpoint's folder while it is being written.
const PARTIAL: &str = "partial";

const PROGRESS: &str = "progress.json";

/// Named tensors of a checkpoint, by file.
pub type Groups = BTreeMap<String, Vec<(String, Tensor)>>;

/// A checkpoint that was read: its progress and the tensors asked for.
pub struct Loaded<Progress> {
    /// The number of the update, from the checkpoint's name.
    pub update: u64,
    /// The progress of the run.
    pub progress: Progress,
    /// Tensors by group and name, on the CPU.
    pub groups: ReadGroups,
    /// Damaged checkpoints that were passed over, newest first, with the reason.
    pub damaged: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Saved<Progress> {
    progress: Progress,
    files: Digests,
}

/// Size and SHA-256 of each file.
pub type Digests = BTreeMap<String, (u64, String)>;

/// Writes the checkpoint of update number `update` into `folder`, and removes those that are
/// not needed any more.
///
/// # Errors
/// If the disk refuses; earlier checkpoints are then untouched.
pub fn save<Progress: Serialize>(
    folder: &Path,
    update: u64,
    groups: &Groups,
    progress: &Progress,
) -> Result<()> {
    save_with(folder, update, groups, progress, |_| Ok(Vec::new()))
}

/// As [`save`], where other processes write groups of their own. `others` is given the folder that
/// they write into ([`write_groups`]), and returns the digests of their files.
///
/// # Errors
/// That of `others`, or if the disk refuses; earlier checkpoints are then untouched.
pub fn save_with<Progress: Serialize>(
    folder: &Path,
    update: u64,
    groups: &Groups,
    progress: &Progress,
    others: impl FnOnce(&Path) -> Result<Vec<Digests>>,
) -> Result<()> {
    let finished = path_of(folder, update);
    let partial = finished.with_extension(PARTIAL);
    remove_leftovers(folder);
    let written = write(&partial, groups, progress, others).and_then(|()| {
        let replaced = finished.with_extension(REPLACED);
        let renamed = (|| {
            // One of the same update is gone only once this one stands in its place.
            let is_replaced = finished.exists();
            if is_replaced {
                files::rename(&finished, &replaced)?;
            }
            if let Err(why) = files::rename(&partial, &finished) {
                if is_replaced {
                    files::rename(&replaced, &finished)?;
                }
                return Err(why);
            }
            files::sync_folder(folder)?;
            let _ = files::remove_folder(&replaced);
            Ok(())
        })();
        renamed.map_err(|why| Error::file("write", &finished, why))
    });
    if let Err(error) = written {
        let _ = files::remove_folder(&partial);
        let before = newest_first(folder);
        let kept = match before.first() {
            Some(path) => format!("the checkpoint before it, {}, is untouched", shown(path)),
            None => "there was none before it".to_owned(),
        };
        return Err(error
            .note("kept", kept)
            .fix("make room on the disk, then go on with --resume")
            .on_the_way());
    }
    // Newer ones were passed over as damaged when the run was resumed.
    let (damaged, whole): (Vec<_>, Vec<_>) =
        newest_first(folder).into_iter().partition(|path| *path > finished);
    for outdated in damaged.into_iter().chain(whole.into_iter().skip(KEPT)) {
        // Under another name first: half a checkpoint must never look like one.
        let hidden = outdated.with_extension(OUTDATED);
        let _ = files::rename(&outdated, &hidden).and_then(|()| files::remove_folder(&hidden));
    }
    Ok(())
}

fn path_of(folder: &Path, update: u64) -> PathBuf {
    folder.join(format!("{update:09}"))
}

/// The update of the checkpoint at this path.
fn update_of(path: &Path) -> u64 {
    path.file_stem().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default()
}

/// Adds to what the checkpoint of update number `update` says of the run's progress.
///
/// # Errors
/// If there is no such checkpoint, or the disk refuses; it is then untouched.
pub fn save_progress<Progress: Serialize>(folder: &Path, update: u64, progress: &Progress) -> Result<()> {
    let path = path_of(folder, update).join(PROGRESS);
    let saved: Saved<serde::de::IgnoredAny> = files::read_sealed(&path)?;
    write_progress(&path, progress, saved.files)
}

/// Removes what a process left behind that was killed while it wrote or removed a checkpoint. One
/// that was to be replaced goes back to its place if that is empty.
fn remove_leftovers(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let left = |path: &PathBuf| {
        [OUTDATED, PARTIAL, REPLACED].iter().any(|ending| path.extension().is_some_and(|is| is == *ending))
    };
    for path in entries.filter(left) {
        let place = path.with_extension("");
        let _ = if path.extension().is_some_and(|ending| ending == REPLACED) && !place.exists() {
            files::rename(&path, &place)
        } else {
            files::remove_folder(&path)
        };
    }
}

fn write<Progress: Serialize>(
    partial: &Path,
    groups: &Groups,
    progress: &Progress,
    others: impl FnOnce(&Path) -> Result<Vec<Digests>>,
) -> Result<()> {
    // The folders above these are not made anew: the run's folder may have been moved.
    for folder in partial.parent().into_iter().chain([partial]) {
        files::create_folder(folder).map_err(|why| Error::file("create", folder, why))?;
    }
    let mut digests = write_groups(partial, groups)?;
    digests.extend(others(partial)?.into_iter().flatten());
    write_progress(&partial.join(PROGRESS), progress, digests)
}

/// Writes the files of these groups into the folder of a checkpoint that is being written. Returns
/// their digests.
///
/// # Errors
/// If the disk refuses, or the folder is not there.
pub fn write_groups(partial: &Path, groups: &Groups) -> Result<Digests> {
    let mut digests = BTreeMap::new();
    for (group, tensors) in groups {
        let file_name = format!("{group}.safetensors");
        let path = partial.join(&file_name);
        tensors::write(&path, tensors)?;
        digests.insert(file_name, files::size_and_sha256(&path)?);
    }
    Ok(digests)
}

fn write_progress<Progress: Serialize>(path: &Path, progress: Progress, files: Digests) -> Result<()> {
    files::write_sealed(path, [serde_json::to_string_pretty(&Saved { progress, files })])
}

/// Reads the newest checkpoint in `folder` whose files of the groups of tensors named are whole;
/// others may be gone. None if there is no checkpoint at all.
///
/// # Errors
/// If there are checkpoints and every one is damaged.
pub fn load<Progress: for<'de> Deserialize<'de>>(
    folder: &Path,
    groups: &[&str],
) -> Result<Option<Loaded<Progress>>> {
    let wanted = Wanted { others: &[], is_wanted: &|_| true, check: &|_| Ok(()) };
    load_checked(folder, groups, &wanted)
}

/// Which checkpoints are wanted, and what is checked in them.
pub struct Wanted<'a> {
    /// Groups whose files are not read, but must be whole.
    pub others: &'a [&'a str],
    /// Whether the checkpoint of an update is wanted.
    pub is_wanted: &'a dyn Fn(u64) -> bool,
    /// Refuses groups that were read, as damaged.
    pub check: &'a dyn Fn(&ReadGroups) -> Result<()>,
}

/// As [`load`], of the checkpoints that are wanted.
///
/// # Errors
/// If there are such checkpoints and every one is damaged.
pub fn load_checked<Progress: for<'de> Deserialize<'de>>(
    folder: &Path,
    groups: &[&str],
    wanted: &Wanted,
) -> Result<Option<Loaded<Progress>>> {
    let mut damaged = Vec::new();
    for path in newest_first(folder).into_iter().filter(|path| (wanted.is_wanted)(update_of(path))) {
        let read = read(&path, groups, wanted.others).and_then(|(progress, groups)| {
            (wanted.check)(&groups)?;
            Ok((progress, groups))
        });
        match read {
            Ok((progress, groups)) => {
                return Ok(Some(Loaded { update: update_of(&path), progress, groups, damaged }));
            }
            Err(error) => damaged.push(error.to_string()),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    Err(Error::new(format!("no checkpoint in {} is whole", shown(folder)))
        .note("damaged", damaged.join("; "))
        .fix("train anew into another folder"))
}

/// Tensors of a checkpoint by group and name, on the CPU.
pub type ReadGroups = BTreeMap<String, BTreeMap<String, Tensor>>;

fn read<Progress: for<'de> Deserialize<'de>>(
    path: &Path,
    wanted: &[&str],
    checked: &[&str],
) -> Result<(Progress, ReadGroups)> {
    let saved: Saved<Progress> = files::read_sealed(&path.join(PROGRESS))?;
    let mut groups = BTreeMap::new();
    for (file_name, (size, digest)) in &saved.files {
        let file = path.join(file_name);
        let group = file_name.trim_end_matches(".safetensors");
        if !wanted.contains(&group) && !checked.contains(&group) {
            continue;
        }
        let damaged = |what: String| Error::new(format!("{} is damaged: {what}", shown(&file)));
        let got = fs::metadata(&file).map_err(|why| Error::file("read", &file, why))?.len();
        if got != *size {
            return Err(damaged(format!("expected {size} bytes, got {got}")));
        }
        if files::size_and_sha256(&file)?.1 != *digest {
            return Err(files::damaged(&file));
        }
        if !wanted.contains(&group) {
            continue;
        }
        let tensors = tensors::read(&file).map_err(|why| damaged(why.to_string()))?;
        groups.insert(group.to_owned(), tensors);
    }
    Ok((saved.progress, groups))
}

/// Paths of all checkpoints, the newest first.
fn newest_first(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let is_checkpoint = |path: &PathBuf| {
        let place = path.with_extension("");
        let is_there = match path.extension() {
            None => true,
            Some(ending) => ending == REPLACED && !place.exists(),
        };
        is_there && place.file_name().and_then(|name| name.to_str()).is_some_and(is_number)
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(is_checkpoint).collect();
    paths.sort_by(|one, other| other.cmp(one));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(value: f32) -> Groups {
        let tensors = vec![
            ("half".to_owned(), Tensor::from_slice(&[value, -0.0]).to_kind(tch::Kind::Half)),
            ("whole".to_owned(), Tensor::from_slice(&[value, f32::MIN_POSITIVE]).reshape([2, 1])),
        ];
        [("weights".to_owned(), tensors)].into()
    }

    fn first_weight(loaded: &Loaded<u32>) -> f64 {
        loaded.groups["weights"]["whole"].double_value(&[0, 0])
    }

    #[test]
    fn a_checkpoint_comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        save(folder.path(), 7, &groups(0.1), &42u32).expect("saved");
        let loaded: Loaded<u32> = load(folder.path(), &["weights"]).expect("whole").expect("present");
        assert_eq!(loaded.progress, 42);
        for (name, expected) in &groups(0.1)["weights"] {
            let got = &loaded.groups["weights"][name];
            assert_eq!((got.kind(), got), (expected.kind(), expected));
        }
    }

    #[test]
    fn a_damaged_checkpoint_falls_back_to_the_one_before() {
        let folder = tempfile::tempdir().expect("a folder");
        for update in 1..=3u32 {
            save(folder.path(), update.into(), &groups(update as f32), &update).expect("saved");
        }
        assert_eq!(newest_first(folder.path()).len(), KEPT);

        let newest = newest_first(folder.path())[0].join("weights.safetensors");
        let whole = fs::read(&newest).expect("readable");
        fs::write(&newest, &whole[..whole.len() - 3]).expect("truncated");
        let loaded: Loaded<u32> = load(folder.path(), &["weights"]).expect("falls back").expect("present");
        assert_eq!((loaded.progress, first_weight(&loaded)), (2, 2.0));
        assert!(loaded.damaged[0].contains(&format!(
            "expected {} bytes, got {}",
            whole.len(),
            whole.len() - 3
        )));

        // Whoever does not need the file does not miss it.
        let loaded: Loaded<u32> = load(folder.path(), &["others"]).expect("whole").expect("present");
        assert_eq!((loaded.progress, loaded.damaged.len()), (3, 0));

        let mut flipped = whole;
        *flipped.last_mut().expect("bytes") ^= 1;
        fs::write(&newest, flipped).expect("corrupted");
        let loaded: Loaded<u32> = load(folder.path(), &["weights"]).expect("falls back").expect("present");
        assert!(loaded.damaged[0].contains("SHA-256"));

        for path in newest_first(folder.path()) {
            fs::write(path.join(PROGRESS), "{").expect("truncated");
        }
        assert!(load::<u32>(folder.path(), &["weights"]).is_err());
    }

    #[test]
    fn a_checkpoint_is_there_while_it_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        save(folder.path(), 7, &groups(0.1), &42u32).expect("saved");
        // A process that is killed between its two renames leaves this.
        let place = path_of(folder.path(), 7);
        fs::rename(&place, place.with_extension(REPLACED)).expect("renamed");
        fs::create_dir(place.with_extension(PARTIAL)).expect("a folder");
        let progress = || load::<u32>(folder.path(), &["weights"]).expect("whole").expect("present").progress;
        assert_eq!(progress(), 42);
        save(folder.path(), 7, &groups(0.2), &43u32).expect("saved");
        assert_eq!(progress(), 43);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "no leftovers");
    }

    #[test]
    fn changed_progress_falls_back_to_the_checkpoint_before() {
        let folder = tempfile::tempdir().expect("a folder");
        for update in 6..=7u32 {
            save(folder.path(), update.into(), &groups(update as f32), &update).expect("saved");
        }
        let newest = path_of(folder.path(), 7).join(PROGRESS);
        let text = fs::read_to_string(&newest).expect("text");
        fs::write(&newest, text.replace(": 7", ": 8")).expect("changed");
        let loaded: Loaded<u32> = load(folder.path(), &["weights"]).expect("falls back").expect("present");
        assert_eq!((loaded.progress, first_weight(&loaded)), (6, 6.0));
        assert!(loaded.damaged[0].contains("progress.json is damaged"), "{:?}", loaded.damaged);
    }

    #[test]
    fn progress_is_added_to_and_the_tensors_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        save(folder.path(), 7, &groups(0.1), &42u32).expect("saved");
        save_progress(folder.path(), 7, &43u32).expect("saved");
        let loaded: Loaded<u32> = load(folder.path(), &["weights"]).expect("whole").expect("present");
        assert_eq!((loaded.progress, first_weight(&loaded)), (43, f64::from(0.1f32)));
        assert!(save_progress(folder.path(), 8, &43u32).is_err(), "there is none");
    }

    #[test]
    fn an_empty_folder_holds_no_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(load::<u32>(folder.path(), &[]).expect("not damaged").is_none());
    }
}
