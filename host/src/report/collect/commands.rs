//! Commands that fill the gaps of a report.

use super::Run;
use crate::config::Select;
use crate::error::shown;
use crate::run::RunFolder;
use crate::sweep::folder::SweepFolder;

/// Continues a sweep, and rewrites its summary.
pub(super) fn sweep_command(folder: &SweepFolder) -> String {
    let [file, path] = [&folder.copy(), folder.path()].map(|path| shown(path).to_string());
    shell_words(["host", "sweep", &file, "--out", &path])
}

impl Run {
    /// Continues the training of the run, or the sweep that it belongs to.
    pub(super) fn resume_command(&self) -> String {
        match self.path.parent().map(SweepFolder::at).filter(SweepFolder::is_sweep) {
            Some(sweep) => sweep_command(&sweep),
            None => shell_words(["host", "train", "--resume", &self.path.to_string_lossy()]),
        }
    }

    /// Evaluates the run, or continues its training if it has no weights yet.
    pub(super) fn eval_command(&self) -> String {
        if self.has_weights() {
            shell_words(["host", "eval", &self.path.to_string_lossy()])
        } else {
            self.resume_command()
        }
    }

    /// Diagnoses the run.
    pub(super) fn diagnose_command(&self) -> String {
        shell_words(["host", "diagnose", &self.path.to_string_lossy()])
    }

    /// Evaluates the run and saves adversarial examples, or continues its training if it has no
    /// weights yet.
    pub(super) fn save_examples_command(&self) -> String {
        let flag = if self.has_weights() { " --save-examples" } else { "" };
        self.eval_command() + flag
    }

    fn has_weights(&self) -> bool {
        let folder = RunFolder::at(&self.path);
        let checkpoints = match self.record.experiment.train.select {
            Select::Best => folder.best(),
            Select::Last => folder.checkpoints(),
        };
        std::fs::read_dir(checkpoints).is_ok_and(|entries| entries.count() > 0)
    }
}

/// A command as it is typed into a shell.
pub(in crate::report) fn shell_words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let is_plain = |word: &str| {
        !word.is_empty()
            && word.chars().all(|letter| letter.is_alphanumeric() || "-_./,=:+@%".contains(letter))
    };
    let quoted = |word: &str| {
        if is_plain(word) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
    };
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        assert_eq!(shell_words(["host", "eval", "runs/a b"]), "host eval 'runs/a b'");
        assert_eq!(shell_words(["it's", "", "pgd.so,steps=40"]), "'it'\\''s' '' pgd.so,steps=40");
    }
}
