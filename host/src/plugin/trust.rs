//! Libraries that the folder of a run may name.
//!
//! A library is native code. One that the user names, or that lies in a folder which is searched
//! for plugins, is opened. One that only the record of a run names is opened if its SHA-256 is in
//! the user's list: the folder of a run, and the libraries beside it, may come from someone else.

use super::library::{self, File};
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

/// Whether a library lies in a folder that is searched for plugins: next to the executable, or in
/// DRO_PLUGIN_PATH.
fn is_installed(library: &Path) -> bool {
    let folders = library::searched_folders().into_iter().filter_map(|folder| folder.canonicalize().ok());
    library.parent().is_some_and(|parent| folders.into_iter().any(|folder| folder == parent))
}

/// # Errors
/// If a library that the record of a run names is not trusted.
pub(super) fn check(file: &File) -> Result<()> {
    if is_installed(&file.path) || is_listed(&lines(&list()?)?, &file.sha256) {
        return Ok(());
    }
    let path = file.path.display();
    Err(Error::new(format!("the run names the library {path}, which is not trusted here"))
        .note("SHA-256", &file.sha256)
        .fix(format!("if you know what it does: host trust {}", quoted(path))))
}

/// Adds a library to the user's list.
///
/// # Errors
/// If the list cannot be written.
pub(crate) fn add(file: &File) -> Result<()> {
    let list = list()?;
    let folder = list.parent().unwrap_or(Path::new("/"));
    files::create_folders(folder).map_err(|why| Error::file("create", folder, why))?;
    let _lock = files::wait_for_lock(&folder.join(".lock"))?;
    let mut lines = lines(&list)?;
    if is_listed(&lines, &file.sha256) {
        return Ok(());
    }
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    lines += &format!("{} {}\n", file.sha256, name.escape_debug());
    files::write_whole(&list, lines.as_bytes())
}

/// Adds the library that the user names with `name` to the list, so that the run which uses it can
/// be continued and evaluated. Libraries in folders that are searched need not be listed.
///
/// # Errors
/// As for [`add`]; a library that cannot be read is no error here.
pub(crate) fn add_named(name: &str) -> Result<()> {
    match library::find(name) {
        Ok(path) if !is_installed(&path) => library::inspect(name).map_or(Ok(()), |file| add(&file)),
        _ => Ok(()),
    }
}
