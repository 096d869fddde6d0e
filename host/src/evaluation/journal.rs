//! What an evaluation has found so far, on disk: one that was interrupted goes on where it was.
//!
//! Each evaluation under way has a folder `unfinished/ID` in its run's folder, named after a
//! digest of everything that decides its verdicts: the same command finds it again.

use crate::evaluation::verdict::Findings;
use crate::run::RunFolder;
use crate::torch::tensors;
use crate::util::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The contents of `findings.json`.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// What decides the verdicts.
    settings: BTreeMap<String, Value>,
    findings: Findings,
}

/// The folder of an evaluation under way.
pub struct Journal {
    id: String,
    folder: PathBuf,
    settings: BTreeMap<String, Value>,
    keeps_examples: bool,
    /// Held for as long as this process evaluates.
    _lock: File,
}

impl Journal {
    /// The journal of the evaluation with these settings, and what an interrupted one had found.
    ///
    /// # Errors
    /// If what is there is damaged or of other settings or points, another process is at it, or the
    /// disk refuses. Nothing is overwritten.
    pub fn open(
        run: &RunFolder,
        settings: BTreeMap<String, Value>,
        attacks: usize,
        points: &[i64],
        keeps_examples: bool,
    ) -> Result<(Self, Option<Findings>)> {
        let digest = files::sha256(serde_json::json!(settings).to_string().as_bytes());
        let id = digest[..16].to_owned();
        let folder = run.path().join("unfinished").join(&id);
        fs::create_dir_all(&folder).map_err(|why| Error::file("create", &folder, why))?;
        let lock = files::lock(&folder.join(".lock"))?.ok_or_else(|| {
            Error::new("another process is at this very evaluation").fix("wait for it or stop it")
        })?;
        let found = read(&folder.join(FINDINGS), &settings, attacks, points)?;
        let journal = Self { id, folder, settings, keeps_examples, _lock: lock };
        // Damage is to be known before any work.
        for part in journal.parts()? {
            tensors::read(&part).map_err(|error| error.fix(from_the_beginning(&part)))?;
        }
        Ok((journal, found))
    }

    /// Whether nothing has been found yet.
    pub fn is_empty(&self) -> bool {
        !self.folder.join(FINDINGS).exists()
    }

    /// What an evaluation ends with that cannot go on: nothing is left of it if nothing was found.
    /// `has_more` says whether something else of the same command is kept.
    pub fn abandon(self, failure: Error, has_more: bool) -> Error {
        let is_empty = self.is_empty();
        if is_empty && let Err(why) = self.discard() {
            return why;
        }
        match (has_more || !is_empty) && !failure.is_interrupted() {
            true => failure.note("kept", "what was found so far; the same command goes on from there"),
            false => failure,
        }
    }

    /// What decides the verdicts.
    pub fn settings(&self) -> &BTreeMap<String, Value> {
        &self.settings
    }

    /// A name for what this evaluation leaves behind: the same whenever it is repeated.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Saves what was found so far.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save(&self, findings: &Findings) -> Result<()> {
        let saved = serde_json::json!({ "settings": self.settings, "findings": findings });
        files::write_whole(&self.folder.join(FINDINGS), saved.to_string().as_bytes())
    }

    /// Keeps a batch's adversarial examples, if they were asked for. `part` orders batches.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn keep(
        &self,
        part: [usize; 3],
        examples: impl FnOnce() -> Result<AdversarialExamples>,
    ) -> Result<()> {
        if !self.keeps_examples {
            return Ok(());
        }
        let [attack, restart, batch] = part;
        let path = self.folder.join(format!("{attack:04}-{restart:05}-{batch:09}.safetensors"));
        write_tensors(&path, &examples()?.named())
    }

    /// Takes the folder away.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn discard(self) -> Result<()> {
        fs::remove_dir_all(&self.folder)
            .map_err(|why| Error::file("remove", &self.folder, why).on_the_way())?;
        // Fails while another evaluation of the run is unfinished.
        let _ = self.folder.parent().map(fs::remove_dir);
        Ok(())
    }

    /// The files of examples, in the order in which they were found.
    fn parts(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder).map_err(|why| Error::file("read", &self.folder, why))?;
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.retain(|part| part.extension().is_some_and(|ending| ending == "safetensors"));
        parts.sort();
        Ok(parts)
    }

    /// Puts the examples that attacks left into one file: of each attack so many, beginning with `none`.
    ///
    /// # Errors
    /// If there are others than these, or the disk refuses.
    pub fn collect(&self, path: &Path, none: AdversarialExamples, fallen: &[usize]) -> Result<()> {
        // A later attack may have failed on its way; the names of parts begin with their attack's number.
        let mut parts = self.parts()?;
        parts.retain(|part| part.file_name() < Some(OsStr::new(&format!("{:04}", fallen.len()))));
        let mut columns: BTreeMap<String, Vec<Tensor>> =
            none.named().into_iter().map(|(name, tensor)| (name, vec![tensor])).collect();
        for part in parts {
            for (name, tensor) in tensors::read(&part).map_err(Error::on_the_way)? {
                columns.entry(name).or_default().push(tensor);
            }
        }
        let joined: BTreeMap<_, _> =
            columns.into_iter().map(|(name, parts)| (name, Tensor::cat(&parts, 0))).collect();
        for (attack, expected) in fallen.iter().enumerate() {
            let got = joined[ATTACKS].eq(attack as i64).sum(Kind::Int64).int64_value(&[]);
            if got != *expected as i64 {
                return Err(Error::new(format!(
                    "{}: expected {expected} adversarial examples of attack {attack}, got {got}",
                    self.folder.display()
                ))
                .fix(from_the_beginning(&self.folder.join(FINDINGS)))
                .on_the_way());
            }
        }
        write_tensors(path, &Vec::from_iter(joined))
    }
}

/// Writes a file that is either whole or absent.
fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let partial = path.with_extension("partial");
    tensors::write(&partial, tensors)?;
    fs::rename(&partial, path).map_err(|why| Error::file("write", path, why).on_the_way())
}

/// What helps against a damaged file of a journal.
fn from_the_beginning(path: &Path) -> String {
    format!("remove {} to evaluate from the beginning", path.parent().unwrap_or(path).display())
}

const FINDINGS: &str = "findings.json";
const ATTACKS: &str = "attacks";

fn read(
    path: &Path,
    settings: &BTreeMap<String, Value>,
    attacks: usize,
    points: &[i64],
) -> Result<Option<Findings>> {
    if !path.exists() {
        return Ok(None);
    }
    let fix = || from_the_beginning(path);
    let saved: Saved = serde_json::from_slice(&files::read(path)?)
        .map_err(|why| Error::file("go on with", path, format!("it is damaged: {why}")).fix(fix()))?;
    let differing = settings.iter().find(|(key, value)| saved.settings.get(*key) != Some(value));
    if let Some((key, expected)) = differing {
        let got = saved.settings.get(key).map_or("nothing".to_owned(), Value::to_string);
        return Err(Error::new(format!(
            "cannot go on with {}: it is of another evaluation, whose `{key}` is {got}; expected {expected}",
            path.display()
        ))
        .fix(fix()));
    }
    match saved.findings.is_consistent(attacks, points) {
        true => Ok(Some(saved.findings)),
        false => Err(Error::file("go on with", path, "its parts do not fit one another").fix(fix())),
    }
}

/// Points that an attack moved across the boundary.
pub struct AdversarialExamples {
    /// The examples, `[M, C, H, W]`.
    pub images: Tensor,
    /// Their true labels, `[M]`, i64.
    pub labels: Tensor,
    /// Index of each point in the data, `[M]`, i64.
    pub points: Tensor,
    /// Number of the attack in the evaluation, from 0, `[M]`, i64.
    pub attacks: Tensor,
}

impl AdversarialExamples {
    fn named(self) -> Vec<(String, Tensor)> {
        let Self { images, labels, points, attacks } = self;
        [("images", images), ("labels", labels), ("points", points), (ATTACKS, attacks)]
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .into()
    }
}
