//! Libraries that the folder of a run may name.
//!
//! A library is native code. One that the user names, or that lies in a folder which is searched
//! for plugins, is opened. One that only the record of a run names is opened if its SHA-256 is in
//! the user's list: the folder of a run, and the libraries beside it, may come from someone else.

use super::library::{self, Record};
use crate::error::absolute;
use crate::util::console::quoted;
use crate::util::files;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The user's list: a line for each library, its SHA-256 and its name.
fn list() -> Result<PathBuf> {
    let folder = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".local/share")));
    let folder = folder.ok_or_else(|| {
        Error::new("there is no home folder for the list of trusted libraries").fix("set XDG_DATA_HOME")
    })?;
    Ok(folder.join("host/trusted"))
}

/// The lines of the list; empty if there is no list.
fn lines(list: &Path) -> Result<String> {
    if list.exists() {
        files::read(list).map(|text| String::from_utf8_lossy(&text).into_owned())
    } else {
        Ok(String::new())
    }
}

fn is_listed(lines: &str, sha256: &str) -> bool {
    lines.lines().any(|line| line.split_whitespace().next() == Some(sha256))
}

/// Whether a library lies in a folder that is searched for plugins, other than the working
/// directory.
fn is_installed(library: &Path) -> bool {
    let folders = library::searched_folders().into_iter().filter_map(|folder| folder.canonicalize().ok());
    library.parent().is_some_and(|parent| folders.into_iter().any(|folder| folder == parent))
}

/// # Errors
/// If a library, or another file of code, that the record of a run names is not trusted.
pub(crate) fn check(path: &Path, sha256: &str) -> Result<()> {
    if is_installed(path) || is_listed(&lines(&list()?)?, sha256) {
        return Ok(());
    }
    let what = if path.extension().is_some_and(|ending| ending == "so") { "library" } else { "code" };
    let path = path.display();
    Err(Error::new(format!("the run names the {what} {path}, which is not trusted here"))
        .note("SHA-256", sha256)
        .fix(format!("if you know what it does: host trust {}", quoted(path))))
}

/// The user's list, and the number of files in it.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn count() -> Result<(PathBuf, usize)> {
    let list = list()?;
    let count = lines(&list)?.lines().count();
    Ok((list, count))
}

/// The file that the user names, a library or other code, and its SHA-256.
///
/// # Errors
/// If it cannot be read, or is a library without plugins.
pub(crate) fn named(name: &str) -> Result<(PathBuf, String)> {
    let path = absolute(Path::new(name));
    if path.is_file() && path.extension().is_some_and(|ending| ending != "so") {
        let (_, sha256) = files::size_and_sha256(&path)?;
        return Ok((path, sha256));
    }
    library::inspect(name).map(|library| (library.path, library.sha256))
}

/// Adds a file of code to the user's list.
///
/// # Errors
/// If the list cannot be written.
pub(crate) fn add(path: &Path, sha256: &str) -> Result<()> {
    let list = list()?;
    let folder = list.parent().unwrap_or(Path::new("/"));
    files::create_folders(folder).map_err(|why| Error::file("create", folder, why))?;
    let _lock = files::wait_for_lock(&folder.join(".lock"))?;
    let mut lines = lines(&list)?;
    if is_listed(&lines, sha256) {
        return Ok(());
    }
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    lines += &format!("{sha256} {}\n", name.escape_debug());
    files::write_whole(&list, lines.as_bytes())
}

/// Adds the library that the user names with `name` to the list, and the code that the options of its
/// plugin name, so that the run which uses them can be continued and evaluated. Files in folders
/// that are searched need not be listed.
///
/// # Errors
/// As for [`add`]; a library that cannot be read is no error here.
pub(crate) fn add_named(name: &str, record: Option<&Record>) -> Result<()> {
    let library = library::find(name).ok().filter(|path| !is_installed(path));
    let library = library.and_then(|_| library::inspect(name).ok()).map(|file| (file.path, file.sha256));
    let files = record.into_iter().flat_map(|record| record.files.values()).filter(|file| file.code);
    let code = files.map(|file| (file.path.clone(), file.sha256.clone()));
    library.into_iter().chain(code).try_for_each(|(path, sha256)| add(&path, &sha256))
}
