//! Reading, locking and atomic writing of files.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file atomically: under a temporary name in the same folder, then synced and renamed. A
/// reader of `path` gets either the old or the new contents, never a part of a file.
///
/// # Errors
/// If the file cannot be written; the old file is then unchanged.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        // Temporary files are private to the user by default. This file gets the usual permissions.
        let permissions = fs::Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(folder)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_folder(folder)
    };
    write().map_err(|why| Error::file("write", path, why).on_the_way())
}

/// Syncs a folder to the disk, so that new and renamed files survive a crash of the machine.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()
}

/// Creates and locks a file. The lock lasts as long as the returned handle. None if another process
/// holds the lock.
pub fn lock(path: &Path) -> Result<Option<File>> {
    let file = File::create(path).map_err(|why| Error::file("create", path, why))?;
    Ok(try_lock(&file, path)?.then_some(file))
}

/// Locks an open file; `path` is for the error message. False if another process holds the lock.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(why)) => Err(Error::file("lock", path, why)),
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|why| Error::file("read", path, why))
}

/// Length in bytes and SHA-256 (in hexadecimal) of a file. The file is read in parts, since it may
/// be larger than the memory.
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
