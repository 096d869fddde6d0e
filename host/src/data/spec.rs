//! How a data set is named: `NAME[,option=value]…` or `PATH[,option=value]…`.

use super::NAMES;
use crate::error::absolute;
use crate::util::written::{parts, quoted_if_necessary};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// The ending of a Python file, whose name may be followed by `:PART`.
const PYTHON: &str = ".py";

/// A data set as it is named on the command line and in experiments: a known name or a path, with
/// options for its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataSpec {
    /// One of [`NAMES`], or a path.
    place: String,
    /// What of a Python file is evaluated: the name after the colon.
    part: Option<String>,
    options: BTreeMap<String, String>,
}

impl DataSpec {
    /// Reads a name. A folder whose own name has a comma or a colon is found as it is written.
    ///
    /// # Errors
    /// If an option is no `option=value`, or is given twice.
    pub fn parse(written: &str) -> Result<Self> {
        let (place, written_options) = if Path::new(written).exists() {
            (written.to_owned(), Vec::new())
        } else {
            parts(written).map_err(Error::new)?
        };
        let mut options = BTreeMap::new();
        for option in written_options {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                Error::new(format!("--data {written}: expected option=value after {place}, got `{option}`"))
                    .fix("write a path that has a comma in quotes: '\"a,b\"'")
            })?;
            let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
            if options.insert(key.clone(), value).is_some() {
                return Err(Error::new(format!("--data {written}: the option {key} is given twice")));
            }
        }
        let of_python = place.rsplit_once(':').filter(|(file, _)| file.ends_with(PYTHON));
        let (place, part) = match of_python {
            Some((file, part)) if !Path::new(&place).exists() => (file.to_owned(), Some(part.to_owned())),
            _ => (place, None),
        };
        Ok(Self { place, part, options })
    }

    /// Reads a name that was recorded. Older versions recorded paths as they are, also with commas.
    pub fn recorded(written: &str) -> Self {
        let path = || Self { place: written.to_owned(), part: None, options: BTreeMap::new() };
        Self::parse(written).unwrap_or_else(|_| path())
    }

    /// The known name, if it is one.
    pub fn known(&self) -> Option<&'static str> {
        NAMES.into_iter().find(|name| *name == self.place)
    }

    /// The path, or the known name.
    pub fn path(&self) -> &Path {
        Path::new(&self.place)
    }

    /// Whether it names a file, by its ending, and no folder.
    pub fn is_file(&self) -> bool {
        self.is_python() || self.place.ends_with(super::numpy::ARCHIVE)
    }

    /// Whether it names a Python file.
    pub fn is_python(&self) -> bool {
        self.place.ends_with(PYTHON)
    }

    /// The name after the colon of a Python file.
    pub(super) fn part(&self) -> Option<&str> {
        self.part.as_deref()
    }

    /// The same data set, elsewhere.
    pub fn at(&self, path: &Path) -> Self {
        Self { place: path.to_string_lossy().into_owned(), ..self.clone() }
    }

    /// The same with an absolute path, if it has a path.
    pub fn absolute(&self) -> Self {
        if self.known().is_some() { self.clone() } else { self.at(&absolute(self.path())) }
    }

    /// The same with this option, in place of any other value that it has.
    pub fn with(mut self, option: &str, value: impl fmt::Display) -> Self {
        self.options.insert(option.to_owned(), value.to_string());
        self
    }

    /// The name as people know it: the known name, or the last part of the path.
    pub fn name(&self) -> String {
        self.path().file_name().unwrap_or(self.path().as_os_str()).to_string_lossy().into_owned()
    }

    /// The value of an option.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// The value of an option that is read from text; `expected` says what it is.
    ///
    /// # Errors
    /// If the value is no such.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>> {
        let read = |value: &str| {
            value.parse().map_err(|_| self.error(format!("option {name}: expected {expected}, got {value}")))
        };
        self.option(name).map(read).transpose()
    }

    /// Refuses options other than these.
    ///
    /// # Errors
    /// Names the first that is none of them.
    pub(super) fn takes(&self, known: &[&str]) -> Result<()> {
        match self.options.keys().find(|option| !known.contains(&option.as_str())) {
            None => Ok(()),
            Some(option) => Err(self
                .error(format!("there is no option {option} of these data"))
                .note("options", if known.is_empty() { "none".to_owned() } else { known.join(", ") })
                .fix(if option == RESIZE {
                    "leave it out: only folders of images are resized"
                } else {
                    "leave it out, or correct its name"
                })),
        }
    }

    /// An error about this data set.
    pub(super) fn error(&self, message: impl fmt::Display) -> Error {
        Error::new(format!("--data {}: {message}", self.place))
    }
}

/// The option that numbers the labels anew.
pub(super) const RELABEL: &str = "relabel";

/// The option with the size of images of a folder.
pub(crate) const RESIZE: &str = "resize";

impl fmt::Display for DataSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.part {
            Some(part) => format!("{}:{part}", self.place),
            None => self.place.clone(),
        };
        formatter.write_str(&quoted_if_necessary(&place))?;
        self.options.iter().try_for_each(|(option, value)| write!(formatter, ",{option}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(written: &str) -> String {
        DataSpec::parse(written).expect_err("refused").first_line().to_owned()
    }

    #[test]
    fn a_name_comes_back_as_it_was_written() {
        for written in [
            "mnist",
            "/a/b",
            "cifar-100,labels=coarse",
            "/a/mine.npz,images=x,labels=y",
            "/a/mine.py:test,train=small",
            "\"/a,b/c.npz\",layout=NHWC",
        ] {
            assert_eq!(DataSpec::parse(written).expect("valid").to_string(), written);
        }
    }

    #[test]
    fn the_parts_of_a_name_are_told_apart() {
        let spec = DataSpec::parse("d/mine.py:val,train=small").expect("valid");
        assert_eq!((spec.path(), spec.part()), (Path::new("d/mine.py"), Some("val")));
        assert!(spec.is_file() && spec.is_python());
        assert_eq!((spec.option("train"), spec.name().as_str()), (Some("small"), "mine.py"));
        let spec = DataSpec::parse("a:b.npz").expect("valid");
        assert_eq!((spec.path(), spec.part()), (Path::new("a:b.npz"), None));
        assert_eq!(DataSpec::parse("mnist").expect("valid").known(), Some("mnist"));
        assert_eq!(DataSpec::parse("./mnist").expect("valid").known(), None);
        assert_eq!(DataSpec::parse("mnist").expect("valid").absolute().to_string(), "mnist");
        let moved = DataSpec::parse("a.npz,images=x").expect("valid").at(Path::new("/b,c/a.npz"));
        assert_eq!(moved.to_string(), "\"/b,c/a.npz\",images=x");
        assert_eq!(moved.with("images", "z").to_string(), "\"/b,c/a.npz\",images=z");
    }

    #[test]
    fn a_folder_whose_name_has_a_comma_is_found_as_it_is_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a,b:c");
        std::fs::create_dir(&path).expect("made");
        let spec = DataSpec::parse(path.to_str().expect("UTF-8")).expect("valid");
        assert_eq!(spec.path(), path);
        // What is recorded is read again, also once the folder is gone.
        let recorded = spec.to_string();
        std::fs::remove_dir(&path).expect("removed");
        assert_eq!(DataSpec::parse(&recorded).expect("valid"), spec);
    }

    #[test]
    fn the_error_names_the_invalid_option() {
        assert_eq!(refusal("a.npz,x"), "--data a.npz,x: expected option=value after a.npz, got `x`");
        assert_eq!(refusal("a.npz,x=1,x=2"), "--data a.npz,x=1,x=2: the option x is given twice");
        let spec = DataSpec::parse("a,resize=64,sise=3").expect("valid");
        let error = spec.takes(&["resize", "relabel"]).expect_err("refused").to_string();
        assert!(error.starts_with("--data a: there is no option sise of these data\n"), "{error}");
        assert!(error.contains("resize, relabel"), "{error}");
        assert!(spec.parsed::<u32>("resize", "a size").expect("a number") == Some(64));
    }
}
