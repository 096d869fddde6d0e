//! Data sets of PyTorch in a Python file. A Python process of its own reads every item and writes
//! the images and labels as NumPy arrays into a temporary folder (`dataset.py`); what the file does
//! to its process does not touch this one.

use super::arrays::{self, LAYOUT, LAYOUTS, Layout};
use super::fetch::temporary_folder;
use super::npy::Array;
use super::spec::RELABEL;
use super::{DataSpec, Dataset, Split, md5};
use crate::error::absolute;
use crate::util::{files, pulse};
use crate::{Error, Result};
use plugin_api::python::{VARIABLE, program};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tempfile::TempDir;

const SCRIPT: &str = include_str!("dataset.py");

/// The option that names the training set in the file.
const TRAIN: &str = "train";

/// The name of the test set, if none is given.
const TEST: &str = "test";

/// The variable with the seconds that Python may take without any progress.
const PATIENCE: &str = "DRO_PYTHON_SECONDS";

/// Its default. Downloads and large files are read within a few minutes.
const USUAL_PATIENCE: u64 = 600;

/// What the script found, by the role of a data set.
#[derive(Deserialize)]
#[serde(untagged)]
enum Outcome {
    Found { found: BTreeMap<String, Found> },
    Failed { error: String, fix: Option<String>, r#where: Vec<String> },
}

/// A data set in the file.
#[derive(Deserialize)]
struct Found {
    name: String,
    /// The layout of its images; none if it is to be recognised.
    layout: Option<String>,
    classes: Vec<String>,
}

/// Reads the data sets of a Python file: `test`, or the one that is named after the colon, and `train`,
/// if there is one.
///
/// # Errors
/// If there is no Python, the file fails, or its items are no images with labels.
pub(super) fn load(spec: &DataSpec) -> Result<Dataset> {
    spec.takes(&[TRAIN, LAYOUT, RELABEL])?;
    let path = absolute(spec.path());
    if !path.is_file() {
        return Err(Error::new(format!("there is no Python file {}", path.display()))
            .fix("correct the path: --data FILE.py, or --data FILE.py:NAME"));
    }
    let layout: Option<Layout> = spec.parsed(LAYOUT, LAYOUTS)?;
    let test = spec.part().unwrap_or(TEST);
    let train = spec.option(TRAIN).map_or_else(|| format!("?{TRAIN}"), str::to_owned);
    let folder = temporary_folder()?;
    let process = Process {
        path: &path,
        folder: &folder,
        interpreter: program().map_err(Error::new)?,
        patience: patience()?,
    };
    let mut found = process.run(&[(TRAIN, &train), (TEST, test)])?;

    let (mut checksums, mut remarks) = (BTreeMap::new(), Vec::new());
    let mut read = |role: &str, found: &Found| -> Result<Split> {
        let arrays = ["images", "labels"].map(|what| -> Result<_> {
            let bytes = files::read(&folder.path().join(format!("{role}-{what}.npy")))?;
            let array =
                Array::read(&format!("{} of {}: its array of {what}", found.name, path.display()), &bytes)?;
            Ok((md5(&bytes), array))
        });
        let [images, labels] = arrays;
        let ((of_images, images), (of_labels, labels)) = (images?, labels?);
        checksums.insert(role.to_owned(), md5(format!("{of_images}\n{of_labels}\n").as_bytes()));
        let own: Option<Layout> = found.layout.as_deref().and_then(|name| name.parse().ok());
        let own = layout.map(Ok).or_else(|| own.map(|own| own.usual(&images))).transpose()?;
        let (split, found) = arrays::split(&images, &labels, own)?;
        remarks.extend(found);
        Ok(split)
    };
    let of_test = found.remove(TEST).ok_or_else(|| Error::new("Python wrote no test set"))?;
    let test = read(TEST, &of_test)?;
    let train = found.get(TRAIN).map(|found| read(TRAIN, found)).transpose()?;
    let mut dataset = Dataset::of_splits(spec, train, test, checksums)?;
    dataset.remarks = remarks;
    let names = of_test.classes;
    if dataset.class_names.is_empty() && names.len() as i64 >= dataset.classes {
        dataset.classes = names.len() as i64;
        dataset.class_names = names;
    }
    Ok(dataset)
}

fn patience() -> Result<Duration> {
    let Ok(written) = env::var(PATIENCE) else { return Ok(Duration::from_secs(USUAL_PATIENCE)) };
    let seconds = written.parse().ok().filter(|seconds| *seconds >= 1);
    seconds.map(Duration::from_secs).ok_or_else(|| {
        Error::new(format!("{PATIENCE}: expected a whole number of seconds of at least 1, got {written}"))
    })
}

/// The process that reads a file's data sets.
struct Process<'a> {
    path: &'a Path,
    /// Where it writes.
    folder: &'a TempDir,
    interpreter: PathBuf,
    patience: Duration,
}

impl Process<'_> {
    /// Has these data sets written, each a role and a name; a name with a `?` may be missing.
    fn run(&self, wanted: &[(&str, &str)]) -> Result<BTreeMap<String, Found>> {
        let output = self.folder.path().join("output");
        let started = |why| {
            let interpreter = self.interpreter.display();
            Error::new(format!("cannot run {interpreter}, which reads {}: {why}", self.path.display()))
                .fix(format!("set {VARIABLE} to a Python interpreter with the packages of the file"))
        };
        let file = files::create_new(&output).map_err(started)?;
        let errors = file.try_clone().map_err(started)?;
        let mut child = Command::new(&self.interpreter)
            .args(["-B", "-c", SCRIPT])
            .arg(self.folder.path())
            .arg(self.path)
            .args(wanted.iter().map(|(role, name)| format!("{role}={name}")))
            .env("PYTHONHASHSEED", "0")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .map_err(started)?;
        let status = self.wait(&mut child);
        if !matches!(status, Ok(Some(_))) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let Some(status) = status.map_err(started)? else {
            let (seconds, state) = (self.patience.as_secs(), self.state());
            return Err(self
                .error(format!("makes no progress: Python {state}, and nothing more for {seconds} seconds"))
                .fix(format!(
                    "let the file go on, or give it more time: {PATIENCE}=SECONDS (now {seconds})"
                )));
        };
        self.outcome(status)
    }

    /// Waits for the end of the process; none if it made no progress for too long.
    fn wait(&self, child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
        let (mut state, mut since) = (self.state(), Instant::now());
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            let now = self.state();
            if now != state {
                (state, since) = (now, Instant::now());
                pulse::beat();
            } else if since.elapsed() > self.patience {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the process does.
    fn state(&self) -> String {
        fs::read_to_string(self.folder.path().join("state")).unwrap_or_else(|_| "starts".to_owned())
    }

    fn outcome(&self, status: ExitStatus) -> Result<BTreeMap<String, Found>> {
        let Ok(text) = fs::read_to_string(self.folder.path().join("result.json")) else {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("with exit code {code}"),
                (None, signal) => format!("by signal {}", signal.unwrap_or(0)),
            };
            return Err(self.error(format!("ends its process {how}, while Python {}", self.state())));
        };
        match serde_json::from_str(&text)
            .map_err(|why| self.error(format!("has an unreadable result: {why}")))?
        {
            Outcome::Found { found } => Ok(found),
            Outcome::Failed { error, fix, r#where } => {
                let error = r#where.iter().fold(self.error(error), |error, place| error.note("at", place));
                Err(fix.into_iter().fold(error, Error::fix))
            }
        }
    }

    /// An error about the file, with the interpreter and the end of what it printed.
    fn error(&self, message: impl std::fmt::Display) -> Error {
        const LINES: usize = 5;
        let output = fs::read(self.folder.path().join("output")).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
        let printed = &lines[lines.len().saturating_sub(LINES)..];
        let error = Error::new(format!("{}: {message}", self.path.display()))
            .note("python", self.interpreter.display());
        printed.iter().fold(error, |error, line| error.note("printed", line))
    }
}
