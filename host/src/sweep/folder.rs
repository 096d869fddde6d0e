//! The folder of a sweep. It is the only record of the sweep: the state of every run follows from
//! the files in it.

use super::summary::{Row, SavedSummary, Status, Summary, SweepEvaluation};
use super::{Setting, Sweep};
use crate::config::{Experiment, Select, suite};
use crate::error::{absolute, shown};
use crate::run::RunFolder;
use crate::run::progress::{EpochMetrics, is_trained};
use crate::util::files;
use crate::util::number::counted;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// The copy of the sweep's file. Every sweep's folder has it.
const COPY: &str = "sweep.toml";

/// The folder of the lock files.
const LOCKS: &str = ".locks";

/// The folder of a sweep. For each run it has the run's folder NAME, and beside it NAME.toml (the
/// experiment), NAME.log (the output of all commands) and, if the run failed, NAME.failed. The
/// evaluations that the sweep asked for are in NAME/sweep.json.
pub(crate) struct SweepFolder {
    path: PathBuf,
}

/// The contents of NAME.failed.
#[derive(Serialize, Deserialize)]
pub(super) struct Failure {
    /// The command that failed.
    pub command: String,
    /// How it ended.
    pub ended: String,
    /// The last lines of its output.
    pub lines: Vec<String>,
}

/// The contents of NAME/sweep.json.
#[derive(Serialize, Deserialize)]
#[serde(from = "AnyEvaluations")]
struct Evaluations {
    evaluations: Vec<SweepEvaluation>,
}

/// Older versions wrote the list alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnyEvaluations {
    Object { evaluations: Vec<SweepEvaluation> },
    List(Vec<SweepEvaluation>),
}

impl From<AnyEvaluations> for Evaluations {
    fn from(any: AnyEvaluations) -> Self {
        let (AnyEvaluations::Object { evaluations } | AnyEvaluations::List(evaluations)) = any;
        Self { evaluations }
    }
}

impl Failure {
    fn reason(&self) -> &str {
        let error = self.lines.iter().find_map(|line| line.strip_prefix("error: "));
        error.unwrap_or(&self.ended)
    }
}

impl SweepFolder {
    /// The folder of the sweep in `file`: `out`, or `sweeps/` and the file's name. Nothing is
    /// written yet.
    ///
    /// # Errors
    /// If the folder has other contents than a sweep.
    pub(crate) fn for_file(file: &Path, out: Option<&Path>) -> Result<Self> {
        let default = || Path::new("sweeps").join(file.file_stem().unwrap_or(file.as_os_str()));
        let folder = Self::at(&out.map_or_else(default, Path::to_owned));
        // Another process may have made the folder but not the copy. Until then all its files are
        // hidden.
        let visible = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
        let taken = fs::read_dir(&folder.path).is_ok_and(|entries| entries.flatten().any(visible));
        if folder.path.is_file() || (taken && !folder.is_sweep()) {
            return Err(Error::new(format!("{} already exists and holds no sweep", shown(&folder.path)))
                .fix("choose another folder with --out"));
        }
        Ok(folder)
    }

    /// The folder at this path, whatever its contents.
    pub(crate) fn at(path: &Path) -> Self {
        Self { path: absolute(path) }
    }

    /// Whether the folder is a sweep's.
    pub(crate) fn is_sweep(&self) -> bool {
        self.copy().is_file()
    }

    /// The sweep that the folder's copy of its file describes.
    ///
    /// # Errors
    /// As for [`Sweep::read`].
    pub(crate) fn sweep(&self) -> Result<Sweep> {
        Sweep::read(&self.copy())
    }

    /// Refuses a sweep that has other settings for one of its names than the folder's run of that
    /// name. The location of the data may differ, because a run records the checksums of its data.
    ///
    /// # Errors
    /// Names the first key that differs.
    pub(crate) fn agrees_with(&self, sweep: &Sweep) -> Result<()> {
        for setting in &sweep.settings {
            let path = self.config(setting);
            if !path.is_file() {
                continue;
            }
            let mut there = Experiment::read(&path)?;
            there.data.folder.clone_from(&setting.experiment.data.folder);
            let theirs = there.differences(&setting.experiment).into_iter();
            let ours = setting.experiment.differences(&there).into_iter();
            if let Some(((key, theirs), (_, ours))) = theirs.zip(ours).next() {
                return Err(Error::new(format!(
                    "{} has {key} = {theirs}; the sweep's file now says {ours}",
                    shown(&path)
                ))
                .fix("choose another folder with --out, or remove that file and the run beside it"));
            }
        }
        Ok(())
    }

    /// Makes the folder, with a copy of the sweep's file.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn create(&self, sweep_file: &Path) -> Result<()> {
        let locks = self.file(LOCKS);
        files::create_folders(&locks).map_err(|why| Error::file("create", &locks, why))?;
        files::write_whole(&self.copy(), &files::read(sweep_file)?)
    }

    /// Its absolute path: a plugin may change the working directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The copy of the sweep's file.
    pub(crate) fn copy(&self) -> PathBuf {
        self.file(COPY)
    }

    /// Whether a run of this name has begun: it has a folder, or it has failed before it made one.
    pub(crate) fn has_begun(&self, run: &str) -> bool {
        self.file(run).exists() || self.file(&format!("{run}.failed")).is_file()
    }

    pub(super) fn run(&self, setting: &Setting) -> PathBuf {
        self.file(&setting.name)
    }

    pub(super) fn config(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.toml", setting.name))
    }

    pub(super) fn log(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.log", setting.name))
    }

    pub(super) fn failure_path(&self, setting: &Setting) -> PathBuf {
        self.file(&format!("{}.failed", setting.name))
    }

    fn evaluations_path(&self, setting: &Setting) -> PathBuf {
        self.run(setting).join("sweep.json")
    }

    /// The path of a lock file.
    pub(super) fn lock_path(&self, name: &str) -> PathBuf {
        self.file(LOCKS).join(name)
    }

    fn failure(&self, setting: &Setting) -> Result<Option<Failure>> {
        let path = self.failure_path(setting);
        path.is_file().then(|| files::read_sealed(&path)).transpose()
    }

    /// Records how a run failed.
    pub(super) fn write_failure(&self, setting: &Setting, failure: &Failure) -> Result<()> {
        files::write_sealed(&self.failure_path(setting), [serde_json::to_string(failure)])
    }

    fn evaluations(&self, setting: &Setting) -> Result<Vec<SweepEvaluation>> {
        let path = self.evaluations_path(setting);
        if !path.is_file() {
            return Ok(Vec::new());
        }
        let Evaluations { evaluations } = files::read_sealed(&path)
            .map_err(|error| error.note("because", "the sweep's summary rests on it"))?;
        Ok(evaluations)
    }

    /// Adds an evaluation to those of a run. It replaces an earlier one of the same suite.
    pub(super) fn add_evaluation(&self, setting: &Setting, new: SweepEvaluation) -> Result<()> {
        let mut evaluations = self.evaluations(setting)?;
        evaluations.retain(|done| done.suite != new.suite);
        evaluations.push(new);
        let evaluations = serde_json::to_string_pretty(&Evaluations { evaluations });
        files::write_sealed(&self.evaluations_path(setting), [evaluations])
    }

    /// The finished epochs of a run; none if the file is damaged. Resumed training rewrites the
    /// file.
    fn epochs(&self, setting: &Setting) -> Vec<EpochMetrics> {
        RunFolder::at(&self.run(setting)).metrics().unwrap_or_default()
    }

    pub(super) fn is_trained(&self, setting: &Setting) -> bool {
        is_trained(&self.epochs(setting), setting.experiment.train.epochs)
    }

    /// The evaluations that a run still lacks. An evaluation with other attacks than the sweep now
    /// asks for does not count. The attacks of a suite are not compared if its file cannot be read:
    /// a report may be made in another directory than the sweep.
    pub(super) fn missing<'a>(&self, sweep: &'a Sweep, setting: &Setting) -> Result<Vec<&'a Option<String>>> {
        let done = self.evaluations(setting)?;
        let is_missing = |suite: &&Option<String>| {
            let attacks = attacks(suite, setting).ok();
            let is_wanted = |done: &SweepEvaluation| {
                done.suite == **suite && attacks.as_ref().is_none_or(|attacks| done.attacks == *attacks)
            };
            !done.iter().any(is_wanted)
        };
        Ok(sweep.evaluations.iter().filter(is_missing).collect())
    }

    fn status(&self, sweep: &Sweep, setting: &Setting) -> Result<Status> {
        Ok(if self.failure_path(setting).is_file() {
            Status::Failed
        } else if self.is_trained(setting) {
            if self.missing(sweep, setting)?.is_empty() { Status::Finished } else { Status::Trained }
        } else if self.run(setting).exists() {
            Status::Unfinished
        } else {
            Status::Waiting
        })
    }

    /// The state and the results of a run. A run with an unreadable file has failed.
    pub(crate) fn row(&self, sweep: &Sweep, setting: &Setting) -> Row {
        let unreadable = |why: Error| Row::new(Status::Failed, Some(why.to_string()), &[], false, &[]);
        self.readable_row(sweep, setting).unwrap_or_else(unreadable)
    }

    /// The state and the results of a run.
    ///
    /// # Errors
    /// If one of its files is damaged.
    pub(super) fn readable_row(&self, sweep: &Sweep, setting: &Setting) -> Result<Row> {
        let wanted = setting.experiment.train.epochs;
        if let Ok((_, record)) = RunFolder::open(&self.run(setting))
            && record.experiment.train.epochs != wanted
        {
            let path = self.run(setting);
            return Err(Error::new(format!(
                "{} has {}, the sweep asks for {wanted}: it was extended",
                path.display(),
                counted(record.experiment.train.epochs, "epoch")
            )));
        }
        let best_epoch = match setting.experiment.train.select {
            Select::Best => true,
            Select::Last => false,
        };
        let is_asked_for = |done: &SweepEvaluation| sweep.evaluations.contains(&done.suite);
        let evaluations: Vec<_> = self.evaluations(setting)?.into_iter().filter(is_asked_for).collect();
        let status = self.status(sweep, setting)?;
        let reason = self.failure(setting)?.map(|failure| failure.reason().to_owned());
        Ok(Row::new(status, reason, &self.epochs(setting), best_epoch, &evaluations))
    }

    /// Reads all runs and writes the summary's files. Of several processes, the last to read is the
    /// last to write.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn summarise<'a>(&self, sweep: &'a Sweep) -> Result<Summary<'a>> {
        let _lock = files::wait_for_lock(&self.lock_path("summary"))?;
        let rows = sweep.settings.iter().map(|setting| self.row(sweep, setting)).collect();
        let summary = Summary::new(sweep, rows);
        files::write_sealed(&self.summary_path(), [serde_json::to_string_pretty(&summary.saved())])?;
        files::write_whole(&self.file("summary.csv"), summary.runs_csv().as_bytes())?;
        let of_seeds = self.file("summary-seeds.csv");
        match summary.groups_csv() {
            Some(groups) => files::write_whole(&of_seeds, groups.as_bytes())?,
            // An earlier version of the sweep's file may have had several seeds.
            None if of_seeds.exists() => {
                files::remove_file(&of_seeds).map_err(|why| Error::file("remove", &of_seeds, why))?;
            }
            None => {}
        }
        Ok(summary)
    }

    fn summary_path(&self) -> PathBuf {
        self.file("summary.json")
    }

    /// The contents of `summary.json`.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub(crate) fn saved_summary(&self) -> Result<SavedSummary> {
        files::read_sealed(&self.summary_path())
    }
}

/// The attacks of an evaluation of a run: of a suite, or of `[eval]`.
pub(super) fn attacks(suite: &Option<String>, setting: &Setting) -> Result<Vec<String>> {
    let attacks = match suite {
        None => setting.experiment.eval.attacks.clone(),
        Some(suite) => suite::attacks(suite)?,
    };
    Ok(attacks.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A folder with one trained run of `[eval]`'s attack FGSM, and its sweep.
    fn trained() -> (tempfile::TempDir, SweepFolder, Sweep) {
        let place = tempfile::tempdir().expect("a folder");
        let folder = SweepFolder::at(place.path());
        let text =
            "[train]\nepochs = 1\n[eval]\nattacks = [\"fgsm.so\"]\n[sweep]\neval = true\nseeds = [0]\n";
        fs::write(folder.copy(), text).expect("written");
        let sweep = folder.sweep().expect("a sweep");
        let run = folder.run(&sweep.settings[0]);
        fs::create_dir(&run).expect("a folder");
        let epoch = json!({
            "epoch": 1, "updates": 10, "learning_rate": 0.1, "train_loss": 1.0, "train_accuracy": 0.5,
            "passes_per_sample": 2, "seconds": 3.0,
        });
        fs::write(run.join("metrics.jsonl"), epoch.to_string()).expect("written");
        (place, folder, sweep)
    }

    #[test]
    fn an_evaluation_with_other_attacks_does_not_count() {
        let (_place, folder, mut sweep) = trained();
        let status = |sweep: &Sweep| folder.row(sweep, &sweep.settings[0]).status;
        assert_eq!(status(&sweep), Status::Trained);
        let result = json!({"clean": 0.9, "attacks": [], "worst_case": 0.5});
        let evaluation = SweepEvaluation { suite: None, attacks: vec!["fgsm.so".to_owned()], result };
        folder.add_evaluation(&sweep.settings[0], evaluation).expect("written");
        assert_eq!(status(&sweep), Status::Finished);
        sweep.settings[0].experiment.eval.attacks = vec!["pgd.so".parse().expect("a spec")];
        assert_eq!(status(&sweep), Status::Trained);
    }

    #[test]
    fn attacks_of_a_suite_without_a_file_are_not_compared() {
        let (place, folder, mut sweep) = trained();
        let suite = place.path().join("mine.toml").display().to_string();
        sweep.evaluations = vec![Some(suite.clone())];
        let result = json!({"clean": 0.9, "attacks": [], "worst_case": 0.5});
        let attacks = vec!["fgsm.so".to_owned()];
        let evaluation = SweepEvaluation { suite: Some(suite.clone()), attacks, result };
        folder.add_evaluation(&sweep.settings[0], evaluation).expect("written");
        let status = || folder.row(&sweep, &sweep.settings[0]).status;
        assert_eq!(status(), Status::Finished);
        fs::write(&suite, "attacks = [\"pgd.so\"]").expect("written");
        assert_eq!(status(), Status::Trained);
        fs::write(&suite, "attacks = [\"fgsm.so\"]").expect("written");
        assert_eq!(status(), Status::Finished);
    }

    #[test]
    fn a_failed_run_has_the_error_as_its_reason() {
        let (_place, folder, sweep) = trained();
        let setting = &sweep.settings[0];
        let lines = ["warning: hot", "error: the disk is full", "  at       here"].map(str::to_owned).into();
        let failure = Failure { command: "host eval".to_owned(), ended: "exit code 1".to_owned(), lines };
        fs::write(folder.failure_path(setting), json!(failure).to_string()).expect("written");
        let row = folder.row(&sweep, setting);
        assert_eq!((row.status, row.reason.as_deref()), (Status::Failed, Some("the disk is full")));
        // The results so far are kept.
        assert_eq!(row.figures.get("train_accuracy"), Some(0.5));
        fs::write(folder.failure_path(setting), "{").expect("written");
        let row = folder.row(&sweep, setting);
        assert!(row.reason.is_some_and(|reason| reason.starts_with("cannot understand")));
    }

    #[test]
    fn fuzz_the_files_of_a_sweep_may_be_damaged() {
        use crate::util::fuzz::{USUAL, corpus, withstands};
        let (_place, folder, sweep) = trained();
        let setting = &sweep.settings[0];
        let row = |_: &Path| folder.readable_row(&sweep, setting);
        withstands(&[corpus("sweep.json")], &folder.evaluations_path(setting), USUAL, row);
        fs::write(folder.evaluations_path(setting), corpus("sweep.json")).expect("written");
        let failure =
            Failure { command: "train".into(), ended: "exit code 1".into(), lines: vec!["error: x".into()] };
        let failure = json!(failure).to_string().into_bytes();
        withstands(&[failure], &folder.failure_path(setting), USUAL, row);
        withstands(&[corpus("summary.json")], &folder.summary_path(), USUAL, |_| folder.saved_summary());
        let mut files = crate::util::fuzz::toml_files("examples/sweeps");
        files.push(corpus("sweep.toml"));
        withstands(&files, &folder.file("mine.toml"), 100 * USUAL, Sweep::read);
    }
}
