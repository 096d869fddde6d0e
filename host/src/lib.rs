//! The engine behind the `host` program.
//!
//! Each folder knows only those above it in this list. [`training`] holds the min-max loop,
//! [`evaluation`] the verdicts; [`command`] ties both to the command line.

pub mod command;
pub mod config;
pub mod data;
pub mod diagnosis;
pub(crate) mod error;
pub mod evaluation;
pub mod law;
pub mod plugin;
pub mod ranks;
pub(crate) mod report;
pub mod run;
pub(crate) mod sweep;
pub mod torch;
pub mod training;
pub(crate) mod util;

pub use error::{Error, INTERRUPTED, Result};

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The folders (and `error.rs`) of this crate; each may use itself and those before it.
    const LAYERS: [&str; 15] = [
        "error",
        "util",
        "torch",
        "data",
        "plugin",
        "ranks",
        "config",
        "run",
        "evaluation",
        "law",
        "training",
        "sweep",
        "diagnosis",
        "report",
        "command",
    ];

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
        let is_rust = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "rs");
        files.into_iter().filter(is_rust).chain(folders.iter().flat_map(|folder| sources(folder))).collect()
    }

    /// The names that follow `crate::` in a text, one by one; those in braces too.
    fn used(text: &str) -> Vec<String> {
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let mut names = Vec::new();
        for (place, prefix) in text.match_indices("crate::") {
            let rest = &text[place + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => {
                    let list = &list[..list.find(';').unwrap_or(list.len())];
                    names.extend(list.split([',', '{', '}']).map(|item| item.trim().to_owned()));
                }
                None => names.push(rest.to_owned()),
            }
        }
        let first_word =
            |name: String| name.chars().take_while(|letter| is_word(*letter)).collect::<String>();
        names.into_iter().map(first_word).filter(|name| !name.is_empty()).collect()
    }

    #[test]
    fn a_list_in_braces_is_read() {
        let text = "use crate::{Error, data::Split, files};\nlet a = crate::run::open();";
        assert_eq!(used(text), ["Error", "data", "files", "run"]);
    }

    #[test]
    fn each_folder_uses_those_before_it_alone() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut checked = 0;
        for path in sources(&root) {
            let inside = path.strip_prefix(&root).expect("inside");
            let folder = inside.components().next().expect("a part").as_os_str().to_string_lossy();
            let folder = folder.trim_end_matches(".rs");
            if ["lib", "main"].contains(&folder) {
                continue;
            }
            let layer = LAYERS.iter().position(|name| *name == folder);
            let layer = layer.unwrap_or_else(|| panic!("{folder} is in no place of LAYERS"));
            for name in used(&fs::read_to_string(&path).expect("text")) {
                if let Some(used) = LAYERS.iter().position(|layer| *layer == name) {
                    assert!(used <= layer, "{}: {folder} must not use {name}", inside.display());
                    checked += 1;
                }
            }
        }
        assert!(checked > 100, "{checked} uses were found");
    }

    #[test]
    fn only_one_module_changes_the_disk() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let calls = ["fs::write(", "fs::rename(", "fs::remove_", "fs::create_dir", "File::create", ".sync_"];
        let changes = |path: &Path| {
            let text = fs::read_to_string(path).expect("text");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            calls.iter().find(|call| code.contains(**call)).copied()
        };
        let files = root.join("util/files.rs");
        assert!(changes(&files).is_some(), "the calls are recognised");
        let of_tests = |path: &Path| ["tests.rs", "fuzz.rs"].iter().any(|name| path.ends_with(name));
        for path in sources(&root).into_iter().filter(|path| *path != files && !of_tests(path)) {
            assert_eq!(changes(&path), None, "{}: use util/files.rs", path.display());
        }
    }

    #[test]
    fn every_promise_names_a_test_that_exists() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = include_str!("../../docs/threat-model.md");
        let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise"));
        for row in rows {
            let tests: Vec<_> = row.split('`').filter(|word| word.contains("::")).collect();
            assert!(!tests.is_empty() || row.contains("| the same |"), "{row}");
            for test in tests {
                let (file, name) = test.rsplit_once("::").expect("file::test");
                let file = file.replace("::", "/") + ".rs";
                let folders = ["tests/end-to-end/tests", "host/src", "plugin-api/src"];
                let texts = folders.map(|folder| repository.join(folder).join(&file));
                let text = texts.iter().find_map(|path| fs::read_to_string(path).ok());
                let text = text.unwrap_or_else(|| panic!("{test}: there is no {file}"));
                assert!(text.contains(&format!("fn {name}()")), "{test}: {file} has no such test");
            }
        }
    }

    #[test]
    fn an_update_reaches_no_file() {
        let update = include_str!("training/update.rs");
        for name in ["run", "util", "tensors", "checkpoint", "RunFolder", "std::fs", "std::path"] {
            assert!(
                !update.contains(&format!("{name}::")) && !update.contains(&format!("::{name}")),
                "{name}"
            );
        }
    }
}
