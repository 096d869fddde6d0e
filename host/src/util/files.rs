//! Files that are either whole or absent.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file under a temporary name beside it, syncs it and renames it: whoever reads
/// `path` sees the old contents or the new, never a part.
///
/// # Errors
/// If the disk refuses; what was at `path` is then unchanged.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        // As readable as the user's other files (less the umask), not private to the user.
        let permissions = fs::Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_folder(folder)
    };
    write().map_err(|why| Error::file("write", path, why).on_the_way())
}

/// Makes the names in a folder durable.
///
/// # Errors
/// If the disk refuses.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()
}

/// Makes a file and locks it for as long as the handle lives; none if another process holds it.
///
/// # Errors
/// If the disk refuses.
pub fn lock(path: &Path) -> Result<Option<File>> {
    let file = File::create(path).map_err(|why| Error::file("create", path, why))?;
    Ok(try_lock(&file, path)?.then_some(file))
}

/// Locks an open file, whose path is told if that fails. False if another process holds the lock.
///
/// # Errors
/// If the disk refuses.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(why)) => Err(Error::file("lock", path, why)),
    }
}

/// Reads a whole file.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|why| Error::file("read", path, why))
}

/// Length and SHA-256 (in hexadecimal) of a file, which need not fit into memory.
///
/// # Errors
/// If it cannot be read.
pub fn size_and_sha256(path: &Path) -> Result<(u64, String)> {
    const BYTES_AT_A_TIME: usize = 1 << 20;
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut some = vec![0; BYTES_AT_A_TIME];
        loop {
            match file.read(&mut some)? {
                0 => return Ok(()),
                count => {
                    digest.update(&some[..count]);
                    size += count as u64;
                }
            }
        }
    };
    read().map_err(|why| Error::file("read", path, why))?;
    Ok((size, hexadecimal(&digest.finalize())))
}

/// SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
