//! The state of an evaluation on disk, from which an interrupted evaluation continues.
//!
//! Each evaluation under way has a folder `unfinished/ID` in its run's folder; a shard of one has
//! `shards/I-of-N-ID`. ID is a digest of all settings that decide its verdicts, so that the same
//! command finds the folder again. The arithmetic of the machine is recorded, but is no part of the
//! digest: an evaluation may continue elsewhere.

use crate::error::shown;
use crate::evaluation::verdict::PartialEvaluation;
use crate::run::RunFolder;
use crate::torch::arithmetic::Arithmetic;
use crate::torch::tensors;
use crate::util::{files, interrupt};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tch::{Kind, Tensor};

/// The contents of `findings.json`.
#[derive(Serialize, Deserialize)]
struct Saved {
    settings: Settings,
    #[serde(flatten)]
    arithmetic: ArithmeticUsed,
    /// When the evaluation began; unknown in a journal of an older version.
    #[serde(default)]
    begun: Option<String>,
    /// Size and SHA-256 of each file of kept examples; unknown in a journal of an older version.
    #[serde(default)]
    kept: Option<Kept>,
    findings: PartialEvaluation,
}

type Kept = BTreeMap<String, (u64, String)>;

/// The settings that decide the verdicts of an evaluation.
pub(crate) type Settings = BTreeMap<String, Value>;

/// The arithmetic of every session of an evaluation.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct ArithmeticUsed {
    /// That of the beginning; unknown in a journal of an older version.
    #[serde(default)]
    arithmetic: Option<Arithmetic>,
    /// That of each later session with another one than the session before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    later_arithmetic: Vec<Arithmetic>,
}

impl ArithmeticUsed {
    fn iter(&self) -> impl Iterator<Item = &Arithmetic> {
        self.arithmetic.iter().chain(&self.later_arithmetic)
    }

    /// Adds that of the present session.
    fn add(&mut self, present: Arithmetic) {
        if self.iter().last() != Some(&present) {
            self.later_arithmetic.push(present);
        }
    }
}

/// The folder of an evaluation under way.
pub(crate) struct Journal {
    folder: PathBuf,
    settings: Settings,
    arithmetic: ArithmeticUsed,
    begun: String,
    keeps_examples: bool,
    /// The files of examples so far.
    kept: RefCell<Kept>,
    /// Keeps other processes from the same evaluation.
    _lock: File,
}

impl Journal {
    /// The journal of the evaluation with these settings, and its state if it was interrupted. `shard`
    /// is which of how many shards it is of, if it is of one.
    ///
    /// # Errors
    /// If the files there are damaged or of other settings or points, another process uses them, or
    /// the disk refuses. Nothing is overwritten.
    pub(crate) fn open(
        (run, shard): (&RunFolder, Option<(usize, usize)>),
        settings: Settings,
        present: Arithmetic,
        attack_count: usize,
        points: &[i64],
        keeps_examples: bool,
    ) -> Result<(Self, Option<PartialEvaluation>)> {
        // From here on there is something to keep.
        interrupt::heed();
        let digest = files::sha256(json!(settings).to_string().as_bytes());
        let id = &digest[..16];
        let (all, name) = match shard {
            None => (UNFINISHED, id.to_owned()),
            Some((number, count)) => (SHARDS, format!("{number}-of-{count}-{id}")),
        };
        let folder = run.path().join(all).join(name);
        remove_outdated(&run.path().join(all));
        files::create_folders(&folder).map_err(|why| Error::file("create", &folder, why))?;
        let lock = files::lock(&folder.join(LOCK))?.ok_or_else(|| {
            Error::new("another process is at this very evaluation").fix("wait for it or stop it")
        })?;
        let saved = read(&folder.join(PARTIAL), &settings, attack_count, points)?;
        files::remove_leftovers(&folder);
        let is_older = saved.as_ref().is_some_and(|saved| saved.kept.is_none());
        let now = || humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let (arithmetic, begun, kept, partial) = match saved {
            Some(Saved { mut arithmetic, begun, kept, findings, .. }) => {
                arithmetic.add(present);
                (arithmetic, begun, kept.unwrap_or_default(), Some(findings))
            }
            None => {
                let arithmetic = ArithmeticUsed { arithmetic: Some(present), ..Default::default() };
                (arithmetic, None, Kept::new(), None)
            }
        };
        let begun = begun.unwrap_or_else(now);
        let kept = RefCell::new(kept);
        let journal = Self { folder, settings, arithmetic, begun, keeps_examples, kept, _lock: lock };
        journal.check_examples(is_older)?;
        Ok((journal, partial))
    }

    /// The journal in this folder, and its state.
    ///
    /// # Errors
    /// If the files there are damaged, another process uses them, or nothing was saved.
    pub(crate) fn reopen(folder: &Path) -> Result<(Self, PartialEvaluation)> {
        let lock = files::lock(&folder.join(LOCK))?
            .ok_or_else(|| Error::file("read", folder, "another process works on it").fix("wait for it"))?;
        let path = folder.join(PARTIAL);
        let saved: Saved = files::read_sealed(&path).map_err(|error| error.fix(from_the_beginning(&path)))?;
        let Saved { settings, arithmetic, begun, kept, findings } = saved;
        let journal = Self {
            folder: folder.to_owned(),
            settings,
            arithmetic,
            begun: begun.unwrap_or_default(),
            keeps_examples: false,
            kept: RefCell::new(kept.unwrap_or_default()),
            _lock: lock,
        };
        journal.check_examples(false)?;
        Ok((journal, findings))
    }

    /// The folders of all shards of evaluations of a run, each with its settings, if it has saved
    /// anything yet. They are read without a lock.
    ///
    /// # Errors
    /// If a file is damaged.
    pub(crate) fn shards(run: &RunFolder) -> Result<Vec<(PathBuf, Option<Settings>)>> {
        #[derive(Deserialize)]
        struct OfShard {
            settings: Settings,
        }
        let entries = fs::read_dir(run.path().join(SHARDS)).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).collect();
        folders.retain(|folder| folder.is_dir() && folder.extension().is_none());
        folders.sort();
        let with_settings = |folder: PathBuf| {
            let path = folder.join(PARTIAL);
            let saved = path.exists().then(|| files::read_sealed::<OfShard>(&path)).transpose();
            let saved = saved.map_err(|error| error.fix(from_the_beginning(&path)))?;
            Ok((folder, saved.map(|saved| saved.settings)))
        };
        folders.into_iter().map(with_settings).collect()
    }

    /// Takes over what the journals of all shards recorded beside their findings: the arithmetic, the
    /// earliest beginning, and the examples.
    ///
    /// # Errors
    /// If examples cannot be copied.
    pub(crate) fn take_over(&mut self, shards: &[Self]) -> Result<()> {
        let mut arithmetic = shards.iter().flat_map(|shard| shard.arithmetic.iter().cloned());
        self.arithmetic = ArithmeticUsed { arithmetic: arithmetic.next(), later_arithmetic: Vec::new() };
        arithmetic.for_each(|used| self.arithmetic.add(used));
        if let Some(begun) = shards.iter().map(|shard| &shard.begun).min() {
            self.begun.clone_from(begun);
        }
        for (number, shard) in shards.iter().enumerate() {
            for name in shard.kept.borrow().keys() {
                let copy = name.replace(".safetensors", &format!("-{number:05}.safetensors"));
                let path = self.folder.join(&copy);
                files::write_whole(&path, &files::read(&shard.folder.join(name))?)?;
                self.kept.borrow_mut().insert(copy, files::size_and_sha256(&path)?);
            }
        }
        Ok(())
    }

    /// Where the findings are.
    pub(crate) fn findings(&self) -> PathBuf {
        self.folder.join(PARTIAL)
    }

    /// Its settings.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reports damaged files of examples before any work. Those of an older version have no digest
    /// yet. Others that the saved state does not know are of a batch that will be repeated.
    fn check_examples(&self, are_older: bool) -> Result<()> {
        for file in self.example_files()? {
            let damaged = |error: Error| error.fix(from_the_beginning(&file));
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if are_older {
                tensors::read(&file).map_err(damaged)?;
                self.kept.borrow_mut().insert(name, files::size_and_sha256(&file)?);
            } else if !self.kept.borrow().contains_key(&name) {
                files::remove_file(&file).map_err(|why| Error::file("remove", &file, why))?;
            }
        }
        for (name, recorded) in &*self.kept.borrow() {
            let file = self.folder.join(name);
            if files::size_and_sha256(&file).map_err(|error| error.fix(from_the_beginning(&file)))?
                != *recorded
            {
                return Err(files::damaged(&file).fix(from_the_beginning(&file)));
            }
        }
        Ok(())
    }

    /// Whether nothing has been saved yet.
    fn is_empty(&self) -> bool {
        !self.folder.join(PARTIAL).exists()
    }

    /// The error of an evaluation that cannot continue. Removes the folder if nothing was saved.
    /// `others_are_kept` says whether the same command keeps other journals.
    pub(crate) fn abandon(self, failure: Error, others_are_kept: bool) -> Error {
        let is_empty = self.is_empty();
        if is_empty && let Err(why) = self.discard() {
            return why;
        }
        if (others_are_kept || !is_empty) && !failure.is_interrupted() {
            failure.note("kept", "what was found so far; the same command goes on from there")
        } else {
            failure
        }
    }

    /// The settings and the arithmetic, as an entry of `eval.json` records them.
    pub(crate) fn recorded_settings(&self) -> Value {
        let mut settings = json!(self.settings);
        settings["arithmetic"] = json!(self.arithmetic.arithmetic);
        if !self.arithmetic.later_arithmetic.is_empty() {
            settings["later arithmetic"] = json!(self.arithmetic.later_arithmetic);
        }
        settings
    }

    /// The arithmetic of every session, in order; none for the first one if an older version, which
    /// did not record it, began the evaluation.
    pub(crate) fn arithmetic_used(&self) -> impl Iterator<Item = Option<&Arithmetic>> {
        let ArithmeticUsed { arithmetic, later_arithmetic } = &self.arithmetic;
        std::iter::once(arithmetic.as_ref()).chain(later_arithmetic.iter().map(Some))
    }

    /// When the evaluation began. With the settings, this tells it from all others.
    pub(crate) fn begun(&self) -> &str {
        &self.begun
    }

    /// Saves the state of the evaluation.
    pub(crate) fn save(&self, partial: &PartialEvaluation) -> Result<()> {
        let mut saved = json!(self.arithmetic);
        saved["settings"] = json!(self.settings);
        saved["begun"] = json!(self.begun);
        saved["kept"] = json!(self.kept);
        saved["findings"] = json!(partial);
        files::write_sealed(&self.folder.join(PARTIAL), [Ok(saved.to_string())])
    }

    /// Forgets what was found: it cannot be relied on.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn forget(&self) -> Result<()> {
        let path = self.folder.join(PARTIAL);
        match files::remove_file(&path) {
            Err(why) if why.kind() != ErrorKind::NotFound => {
                Err(Error::file("remove", &path, why).on_the_way())
            }
            _ => Ok(()),
        }
    }

    /// Keeps a batch's adversarial examples, if they were asked for. The files are ordered by the
    /// numbers of the attack, the restart and the batch.
    pub(crate) fn keep(
        &self,
        numbers: [usize; 3],
        examples: impl FnOnce() -> Result<AdversarialExamples>,
    ) -> Result<()> {
        if !self.keeps_examples {
            return Ok(());
        }
        let [attack, restart, batch] = numbers;
        let name = format!("{attack:04}-{restart:05}-{batch:09}.safetensors");
        let path = self.folder.join(&name);
        tensors::write(&path, &examples()?.named())?;
        self.kept.borrow_mut().insert(name, files::size_and_sha256(&path)?);
        Ok(())
    }

    /// Removes the folder.
    pub(crate) fn discard(self) -> Result<()> {
        // Under another name first: a part of it must never look like the whole.
        files::rename(&self.folder, &self.folder.with_extension(OUTDATED))
            .map_err(|why| Error::file("remove", &self.folder, why).on_the_way())?;
        if let Some(unfinished) = self.folder.parent() {
            remove_outdated(unfinished);
            // Fails while another evaluation of the run is unfinished.
            let _ = files::remove_empty_folder(unfinished);
        }
        Ok(())
    }

    /// The files of examples, in the order in which they were written.
    fn example_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder).map_err(|why| Error::file("read", &self.folder, why))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|ending| ending == "safetensors"));
        files.sort();
        Ok(files)
    }

    /// Writes the kept examples into one file of the run's folder, after `none`, which has their
    /// names and shapes. Returns the file's name, which follows from its contents, and its SHA-256.
    ///
    /// Those of one radius, whose first attack has the number `first`.
    ///
    /// # Errors
    /// If their number differs from `broken_counts` for an attack, or the disk refuses.
    pub(crate) fn collect(
        &self,
        run: &RunFolder,
        none: AdversarialExamples,
        first: usize,
        broken_counts: &[usize],
    ) -> Result<(String, String)> {
        // Names begin with the attack's number. An attack that failed may have left files: they are
        // not used.
        let [begin, end] = [first, first + broken_counts.len()].map(|number| format!("{number:04}"));
        let mut columns: BTreeMap<String, Vec<Tensor>> =
            none.named().into_iter().map(|(name, tensor)| (name, vec![tensor])).collect();
        for name in self.kept.borrow().keys().filter(|name| **name >= begin && **name < end) {
            for (name, tensor) in tensors::read(&self.folder.join(name)).map_err(Error::on_the_way)? {
                columns.entry(name).or_default().push(tensor);
            }
        }
        let joined: BTreeMap<_, _> =
            columns.into_iter().map(|(name, parts)| (name, Tensor::cat(&parts, 0))).collect();
        for (attack, expected) in broken_counts.iter().enumerate() {
            let got = joined[ATTACKS].eq(attack as i64).sum(Kind::Int64).int64_value(&[]);
            if got != *expected as i64 {
                return Err(Error::new(format!(
                    "{}: expected {expected} adversarial examples of attack {attack}, got {got}",
                    shown(&self.folder)
                ))
                .fix(from_the_beginning(&self.folder.join(PARTIAL)))
                .on_the_way());
            }
        }
        let collected = self.folder.join("collected.safetensors");
        tensors::write(&collected, &Vec::from_iter(joined))?;
        let (_, digest) = files::size_and_sha256(&collected)?;
        let name = format!("examples-{}.safetensors", &digest[..16]);
        let path = run.path().join(&name);
        files::rename(&collected, &path)
            .and_then(|()| files::sync_folder(run.path()))
            .map_err(|why| Error::file("write", &path, why).on_the_way())?;
        Ok((name, digest))
    }
}

/// Removes what is left of evaluations that have ended.
fn remove_outdated(unfinished: &Path) {
    let entries = fs::read_dir(unfinished).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in entries.filter(|path| path.extension().is_some_and(|ending| ending == OUTDATED)) {
        let _ = files::remove_folder(&path);
    }
}

/// The remedy for a damaged file of a journal.
fn from_the_beginning(path: &Path) -> String {
    format!("remove {} to evaluate from the beginning", shown(path.parent().unwrap_or(path)))
}

/// The folder of the journals of a run.
const UNFINISHED: &str = "unfinished";

/// The folder of the journals of shards of evaluations of a run.
const SHARDS: &str = "shards";

const LOCK: &str = ".lock";

/// Ending of a journal's folder while it is being removed.
const OUTDATED: &str = "outdated";

const PARTIAL: &str = "findings.json";
const ATTACKS: &str = "attacks";

/// The saved state; none if there is no such file.
fn read(path: &Path, settings: &Settings, attack_count: usize, points: &[i64]) -> Result<Option<Saved>> {
    if !path.exists() {
        return Ok(None);
    }
    let fix = || from_the_beginning(path);
    let saved: Saved = files::read_sealed(path).map_err(|error| {
        error.note("because", "the evaluation would go on from the verdicts in it").fix(fix())
    })?;
    let differing = settings.iter().find(|(key, value)| saved.settings.get(*key) != Some(value));
    if let Some((key, expected)) = differing {
        let got = saved.settings.get(key).map_or("nothing".to_owned(), Value::to_string);
        return Err(Error::new(format!(
            "cannot go on with {}: it is of another evaluation, whose `{key}` is {got}; expected {expected}",
            shown(path)
        ))
        .fix(fix()));
    }
    if !saved.findings.is_consistent(attack_count, points) {
        return Err(Error::file("go on with", path, "its parts do not fit one another").fix(fix()));
    }
    Ok(Some(saved))
}

/// Examples that fooled the model.
pub(crate) struct AdversarialExamples {
    /// The examples, `[M, C, H, W]`.
    pub(crate) images: Tensor,
    /// Their true labels, `[M]`, i64.
    pub(crate) labels: Tensor,
    /// Index of each point in the data, `[M]`, i64.
    pub(crate) points: Tensor,
    /// Number of the attack in the evaluation, from 0, `[M]`, i64.
    pub(crate) attacks: Tensor,
}

impl AdversarialExamples {
    fn named(self) -> Vec<(String, Tensor)> {
        let Self { images, labels, points, attacks } = self;
        [("images", images), ("labels", labels), ("points", points), (ATTACKS, attacks)]
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::files::until_unlocked;

    fn open(run: &RunFolder, processor: &str) -> (Journal, Option<PartialEvaluation>) {
        let settings = BTreeMap::from([("seed".to_owned(), json!(1))]);
        let present = Arithmetic { processor: processor.to_owned(), ..Default::default() };
        let open = || Journal::open((run, None), settings.clone(), present.clone(), 1, &[], false);
        let is_locked = |why: &Error| why.to_string().starts_with("another process");
        until_unlocked(open, |opened| !opened.as_ref().is_err_and(is_locked)).expect("a journal")
    }

    fn processors(journal: &Journal) -> Vec<String> {
        journal.arithmetic_used().flatten().map(|used| used.processor.clone()).collect()
    }

    #[test]
    fn the_arithmetic_of_every_session_is_kept_and_is_no_part_of_the_identity() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        let mut ids = Vec::new();
        for (processor, expected) in [
            ("A", vec!["A"]),
            ("A", vec!["A"]),
            ("B", vec!["A", "B"]),
            ("B", vec!["A", "B"]),
            ("A", vec!["A", "B", "A"]),
        ] {
            let (journal, _) = open(&run, processor);
            assert_eq!(processors(&journal), expected);
            journal.save(&PartialEvaluation::default()).expect("saved");
            ids.push(journal.folder.clone());
        }
        assert!(ids.iter().all(|id| *id == ids[0]));
        let (journal, partial) = open(&run, "A");
        assert!(partial.is_some());
        let recorded = journal.recorded_settings();
        assert_eq!((&recorded["seed"], &recorded["arithmetic"]["processor"]), (&json!(1), &json!("A")));
        assert_eq!(recorded["later arithmetic"][0]["processor"], "B");
    }

    #[test]
    fn a_session_that_saves_nothing_leaves_no_arithmetic() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        open(&run, "A").0.save(&PartialEvaluation::default()).expect("saved");
        drop(open(&run, "B"));
        assert_eq!(processors(&open(&run, "A").0), ["A"]);
    }

    #[test]
    fn a_journal_of_an_older_version_is_continued_with_unknown_arithmetic() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        let (journal, _) = open(&run, "A");
        let older = json!({"settings": journal.settings, "findings": PartialEvaluation::default()});
        fs::write(journal.folder.join(PARTIAL), older.to_string()).expect("written");
        drop(journal);
        let (journal, partial) = open(&run, "B");
        assert!(partial.is_some());
        assert_eq!(processors(&journal), ["B"]);
        assert!(journal.arithmetic_used().next().is_some_and(|first| first.is_none()));
        assert_eq!(journal.recorded_settings()["arithmetic"], Value::Null);
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::evaluation::verdict::Order;
    use crate::util::fuzz::{USUAL, corpus, withstands};

    #[test]
    fn journals_may_be_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let valid: Saved = serde_json::from_slice(&corpus("findings.json")).expect("valid");
        let points = valid.findings.verdicts.indices.clone();
        let path = folder.path().join(PARTIAL);
        withstands(&[corpus("findings.json")], &path, USUAL, |path| {
            let found = read(path, &valid.settings, 2, &points)?.map(|saved| saved.findings);
            // What is accepted can be gone on with.
            let mut found = found.ok_or_else(|| Error::new("no file"))?;
            if let Some(progress) = &mut found.attack_progress {
                while let Some(batch) = progress.next_batch(2, 3) {
                    assert!(batch.iter().all(|position| *position < points.len()));
                    progress.done += batch.len();
                }
            }
            found.verdicts.broken_counts(Order::Separate, None);
            Ok(())
        });
    }

    #[test]
    fn a_journal_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = RunFolder::at(folder.path());
        let Saved { settings, findings, .. } =
            serde_json::from_slice(&corpus("findings.json")).expect("valid");
        let points = findings.verdicts.indices.clone();
        let open = || Journal::open((&run, None), settings.clone(), Arithmetic::default(), 2, &points, false);
        let (journal, found) = open().expect("a journal");
        assert!(found.is_none());
        journal.save(&findings).expect("saved");
        let saved =
            read(&journal.folder.join(PARTIAL), &settings, 2, &points).expect("valid").expect("there");
        assert_eq!(json!(saved.findings), json!(findings));
    }
}
