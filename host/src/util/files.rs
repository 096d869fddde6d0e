//! Reading, locking and writing of files.
//!
//! Whatever this program makes, changes or removes on a disk goes through this module, so that tests
//! can kill the process, or fill the disk, at every place (`fault.rs`).

use super::console::warn;
use super::{fault, pulse};
use crate::error::shown;
use crate::{Error, Result};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes that are read or written at a time, so that others see that this process moves.
const BYTES_AT_A_TIME: usize = 1 << 20;

/// Called before an operation that a full disk refuses.
fn before_writing() -> io::Result<()> {
    pulse::beat();
    fault::before_writing()
}

/// Called before an operation that a full disk allows.
fn before_removing() {
    pulse::beat();
    fault::before_removing();
}

/// The start of the name of a file that is being written.
const UNFINISHED: &str = ".unfinished-";

/// Writes a file atomically: under a temporary name in the same folder, then synced and renamed. A
/// reader of `path` gets either the old or the new contents, never a part of a file.
///
/// # Errors
/// If the file cannot be written; the old file is then unchanged.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    write_whole_with(path, |file| write_all(&mut OpenOptions::new().write(true).open(file)?, contents))
}

/// The same, if `write` puts the contents into the file of the temporary name, or puts another file
/// in its place.
///
/// # Errors
/// As for [`write_whole`].
pub fn write_whole_with(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        before_writing()?;
        // Temporary files are private to the user by default. This file gets the usual permissions.
        let permissions = fs::Permissions::from_mode(0o666);
        let mut temporary = tempfile::Builder::new();
        let temporary = temporary.prefix(UNFINISHED).permissions(permissions).tempfile_in(folder)?;
        let permissions = temporary.as_file().metadata()?.permissions();
        before_writing()?;
        write(temporary.path())?;
        let written = File::open(temporary.path())?;
        written.set_permissions(permissions)?;
        before_writing()?;
        write_back(&written)?;
        written.sync_all()?;
        before_removing();
        temporary.into_temp_path().persist(path)?;
        sync_folder(folder)
    };
    write().map_err(|why| Error::file("write", path, why).on_the_way())
}

/// Makes a folder, which is whole or absent: `write` puts the contents into one of a temporary name.
///
/// # Errors
/// If `write` fails, or the disk refuses.
pub fn write_folder(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let refused = |why| Error::file("create", path, why);
    let above = path.parent().unwrap_or(Path::new("."));
    let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
    create_folders(above).and_then(|()| before_writing()).map_err(refused)?;
    let mut temporary = tempfile::Builder::new();
    let temporary = temporary.prefix(UNFINISHED).permissions(fs::Permissions::from_mode(0o777));
    let temporary = temporary.tempdir_in(above).map_err(refused)?;
    write(temporary.path())?;
    rename(temporary.path(), path).map_err(refused)?;
    let _ = temporary.keep();
    sync_folder(above).map_err(refused)
}

/// Whether a process that was killed while it wrote a file may have left this one.
pub fn is_leftover(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(UNFINISHED)
}

/// Whether there are such files in a folder.
pub fn has_leftovers(folder: &Path) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| is_leftover(&entry.file_name()))
}

/// Removes such files from a folder in which no process writes.
pub fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_leftover(&entry.file_name()) {
            let _ = remove_file(&entry.path());
        }
    }
}

/// Syncs a folder to the disk, so that new and renamed files survive a crash of the machine.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    before_writing()?;
    File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()
}

/// Creates a folder and those above it, as far as they do not exist.
pub fn create_folders(path: &Path) -> io::Result<()> {
    before_writing()?;
    fs::create_dir_all(path)
}

/// Creates a folder, unless it exists, in one that exists.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    before_writing()?;
    fs::create_dir(path)
}

/// Creates a file that does not exist.
pub fn create_new(path: &Path) -> io::Result<File> {
    before_writing()?;
    File::create_new(path)
}

/// Opens a file with options that may create it.
pub fn open(options: &OpenOptions, path: &Path) -> io::Result<File> {
    before_writing()?;
    options.open(path)
}

/// Appends to an open file, and syncs it.
pub fn append(file: &mut File, contents: &[u8]) -> io::Result<()> {
    before_writing()?;
    file.write_all(contents)?;
    file.sync_data()
}

/// Syncs an open file to the disk, what was written through a mapping of it included.
pub fn sync(file: &File) -> io::Result<()> {
    before_writing()?;
    write_back(file)?;
    file.sync_data()
}

/// Writes what an open file has in memory to the disk, part by part. A sync of a large file takes
/// minutes, in which nothing would show that this process moves.
fn write_back(file: &File) -> io::Result<()> {
    const PART: u64 = 64 << 20;
    const HOW: libc::c_uint =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    for place in (0..file.metadata()?.len()).step_by(PART as usize) {
        pulse::beat();
        // SAFETY: the descriptor belongs to an open file, and the call reads nothing but its arguments.
        let code = unsafe {
            libc::sync_file_range(file.as_raw_fd(), place as libc::off64_t, PART as libc::off64_t, HOW)
        };
        if code != 0 {
            let why = io::Error::last_os_error();
            return match why.raw_os_error() {
                // Files of this kind are synced as a whole.
                Some(libc::EINVAL | libc::ENOSYS | libc::ESPIPE) => Ok(()),
                // The sync that follows might not repeat it.
                _ => Err(why),
            };
        }
    }
    Ok(())
}

/// Allocates disk space for all of an open file, and extends it to this length.
///
/// # Errors
/// If the disk has no room.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    // Where a disk cannot allocate, the C library writes.
    const PART: u64 = 1 << 30;
    for place in (0..bytes).step_by(PART as usize) {
        before_writing()?;
        let part = PART.min(bytes - place);
        // SAFETY: the descriptor belongs to an open file, and the call only extends the file.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), place as libc::off_t, part as libc::off_t) } {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
    Ok(())
}

/// Writes into an open file.
pub fn write_all(file: &mut File, contents: &[u8]) -> io::Result<()> {
    contents.chunks(BYTES_AT_A_TIME).try_for_each(|some| {
        pulse::beat();
        file.write_all(some)
    })
}

/// Overwrites bytes of an open file, and syncs it.
pub fn overwrite(file: &mut File, place: u64, contents: &[u8]) -> io::Result<()> {
    before_writing()?;
    file.write_all_at(contents, place)?;
    file.sync_data()
}

/// Cuts an open file off, and lets the next write append to it.
pub fn cut(file: &mut File, length: u64) -> io::Result<()> {
    before_writing()?;
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length)).map(drop)
}

/// Refuses a disk on which fewer bytes are free than `what` takes. Where the kernel does not tell,
/// the write will.
///
/// # Errors
/// Both numbers, before anything is written.
pub fn check_room(folder: &Path, needed: u64, what: &str) -> Result<()> {
    match free(folder) {
        Some(free) if free < needed => Err(Error::new(format!(
            "not enough room in {} for {what}: expected {needed} bytes ({:.1} GB), got {free} free ({:.1} GB)",
            shown(folder),
            needed as f64 / 1e9,
            free as f64 / 1e9
        ))),
        _ => Ok(()),
    }
}

/// Bytes of the disk of a folder that this user may still write.
fn free(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    if let Some(bytes) = super::fault::room() {
        return Some(bytes);
    }
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: zeros are a valid `statvfs`, which the call overwrites; the path ends with a zero.
    let (code, found) = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut found), found)
    };
    (code == 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Renames a file or a folder.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before_removing();
    fs::rename(from, to)
}

/// Removes a file.
pub fn remove_file(path: &Path) -> io::Result<()> {
    before_removing();
    fs::remove_file(path)
}

/// Removes an empty folder.
pub fn remove_empty_folder(path: &Path) -> io::Result<()> {
    before_removing();
    fs::remove_dir(path)
}

/// Removes a folder with its contents. A process that is killed meanwhile leaves a part of them, so
/// a folder of which a part could be taken for the whole is renamed first.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    before_removing();
    fs::remove_dir_all(path)
}

/// Locks the file at this path, which is created if necessary and otherwise unchanged. The lock
/// lasts as long as the returned handle. None if another process holds the lock.
///
/// # Errors
/// If the path is a symbolic link, or the disk refuses.
pub fn lock(path: &Path) -> Result<Option<File>> {
    loop {
        let file = open_lock(path)?;
        if !try_lock(&file, path)? {
            return Ok(None);
        }
        if is_at(&file, path) {
            return Ok(Some(file));
        }
    }
}

/// The same, but waits while another process holds the lock.
///
/// # Errors
/// As for [`lock`].
pub fn wait_for_lock(path: &Path) -> Result<File> {
    loop {
        let file = open_lock(path)?;
        file.lock().map_err(|why| Error::file("lock", path, why))?;
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    open(&options, path).map_err(|why| {
        if path.is_symlink() {
            Error::file("lock", path, "it is a symbolic link").fix("remove the link")
        } else {
            Error::file("create", path, why)
        }
    })
}

/// Whether an open file or folder is the one at this path. It may have been renamed or removed since.
pub fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let there = fs::metadata(path).map(identity);
    file.metadata().map(identity).is_ok_and(|mine| there.is_ok_and(|there| there == mine))
}

/// Locks an open file; `path` is for the error message. False if another process holds the lock.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(why)) => Err(Error::file("lock", path, why)),
    }
}

/// The last key of a JSON object that has a digest.
const DIGEST: &str = "\"sha256\"";

/// Writes JSON objects, each with a digest as its last key: the SHA-256 of all bytes of the file
/// before the digest. The objects are the lines of a file of JSON lines, or the only object of a
/// JSON file.
///
/// # Errors
/// If an object could not be serialised, or the disk refuses.
pub fn write_sealed(
    path: &Path,
    objects: impl IntoIterator<Item = serde_json::Result<String>>,
) -> Result<()> {
    let (mut text, mut digest) = (String::new(), Sha256::new());
    for object in objects {
        let object = object.map_err(|why| Error::file("write", path, why))?;
        let fields = object.strip_suffix('}').unwrap_or(&object).trim_end();
        let [before, after_key, end] =
            if object.contains('\n') { ["\n  ", " ", "\n}\n"] } else { ["", "", "}\n"] };
        let comma = if fields.ends_with('{') { "" } else { "," };
        let part = [fields, comma, before, DIGEST, ":", after_key].concat();
        digest.update(&part);
        let value = format!("\"{}\"{end}", hexadecimal(&digest.clone().finalize()));
        digest.update(&value);
        text.extend([part, value]);
    }
    write_whole(path, text.as_bytes())
}

/// Reads the only object of a file that [`write_sealed`] wrote. One without a digest was written by
/// an older version: it is read with a warning.
///
/// # Errors
/// If the file is not the one that was written, or it cannot be understood.
pub fn read_sealed<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_and_check(path).map(|(object, _)| object)
}

/// The same, and whether the object has a digest.
///
/// # Errors
/// As for [`read_sealed`].
pub fn read_and_check<T: DeserializeOwned>(path: &Path) -> Result<(T, bool)> {
    let text = read_text(path)?;
    let (objects, has_digests) = checked(path, &text, [text.as_str()])?;
    let object =
        serde_json::from_str(&objects.concat()).map_err(|why| Error::file("understand", path, why))?;
    warn_unless(has_digests, path);
    Ok((object, has_digests))
}

/// The same for a file of any number of lines, each of them an object.
///
/// # Errors
/// As for [`read_sealed`].
pub fn read_sealed_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_text(path)?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let (objects, has_digests) = checked(path, &text, lines)?;
    let objects =
        objects.iter().map(|object| serde_json::from_str(object)).collect::<serde_json::Result<_>>();
    let objects = objects.map_err(|why| Error::file("understand", path, why))?;
    warn_unless(has_digests, path);
    Ok(objects)
}

/// Warns of a file without digests, once.
fn warn_unless(has_digests: bool, path: &Path) {
    static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if !has_digests && WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned()) {
        warn(format_args!("{} has no digest: an older version wrote it", shown(path)));
    }
}

/// Reads a whole file of text.
///
/// # Errors
/// If it cannot be read, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|why| Error::file("understand", path, why))
}

/// The objects of a file without their digests, which have been checked, and whether they have any.
/// The objects are parts of `text`, all that the file has.
fn checked<'a>(
    path: &Path,
    text: &str,
    objects: impl IntoIterator<Item = &'a str>,
) -> Result<(Vec<String>, bool)> {
    let (mut digest, mut digested, mut without_digest) = (Sha256::new(), 0, 0);
    let mut checked = Vec::new();
    for object in objects {
        let Some(Sealed { fields, before_digest, value }) = Sealed::split(object) else {
            without_digest += 1;
            checked.push(object.to_owned());
            continue;
        };
        let end = before_digest.as_ptr() as usize + before_digest.len() - text.as_ptr() as usize;
        digest.update(&text[digested..end]);
        digested = end;
        if hexadecimal(&digest.clone().finalize()) != value {
            return Err(damaged(path));
        }
        checked.push(format!("{fields}}}"));
    }
    if without_digest > 0 && without_digest < checked.len() {
        return Err(damaged(path));
    }
    Ok((checked, without_digest == 0))
}

/// A JSON object that ends with a digest.
struct Sealed<'a> {
    /// The object's other keys, with the brace before them.
    fields: &'a str,
    before_digest: &'a str,
    value: &'a str,
}

impl<'a> Sealed<'a> {
    /// None if the object does not end with a digest. With a key or a value that a single damaged
    /// byte has changed it does.
    fn split(object: &'a str) -> Option<Self> {
        let rest = object.trim_end().strip_suffix('}')?.trim_end().strip_suffix('"')?;
        let (before_digest, value) = rest.rsplit_once('"')?;
        let fields = before_digest.trim_end().strip_suffix(':')?.trim_end().strip_suffix(DIGEST);
        let looks_like_one = value.len() == 64 && value.bytes().all(|digit| digit.is_ascii_hexdigit());
        if fields.is_none() && !looks_like_one {
            return None;
        }
        let fields = fields.unwrap_or_default().trim_end();
        Some(Self { fields: fields.strip_suffix(',').unwrap_or(fields), before_digest, value })
    }
}

/// The error of a file whose contents are not those that its digest was computed of.
pub fn damaged(path: &Path) -> Error {
    let path = shown(path);
    Error::new(format!("{path} is damaged: its contents are not those that were written (SHA-256)"))
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let (mut file, mut contents) = (File::open(path)?, Vec::new());
        let expected = file.metadata()?.len();
        contents.try_reserve_exact(usize::try_from(expected).unwrap_or(usize::MAX))?;
        while (&mut file).take(BYTES_AT_A_TIME as u64).read_to_end(&mut contents)? > 0 {
            pulse::beat();
        }
        Ok(contents)
    };
    read().map_err(|why| Error::file("read", path, why))
}

/// Length in bytes and SHA-256 (in hexadecimal) of a file. The file is read in parts, since it may
/// be larger than the memory.
pub fn size_and_sha256(path: &Path) -> Result<(u64, String)> {
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut some = vec![0; BYTES_AT_A_TIME];
        loop {
            match file.read(&mut some)? {
                0 => return Ok(()),
                count => {
                    pulse::beat();
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

/// Tries again until it has worked, or for five seconds. Tests beside this one start processes. Until
/// such a process has loaded its program, it holds a copy of every open file, and with it the lock of
/// a file that was just dropped.
#[cfg(test)]
pub fn until_unlocked<T>(attempt: impl Fn() -> T, has_worked: impl Fn(&T) -> bool) -> T {
    for _ in 0..1000 {
        let outcome = attempt();
        if has_worked(&outcome) {
            return outcome;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value, json};

    type Object = Map<String, Value>;

    fn sealed(objects: &[Value]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file.json");
        write_sealed(&path, objects.iter().map(serde_json::to_string)).expect("written");
        (folder, path)
    }

    #[test]
    fn objects_come_back_without_their_digests() {
        let objects =
            [json!({"a": {"b": [1.5, "}"]}}), json!({}), json!({"sha256": 3, "x": "\"sha256\":\""})];
        let (_folder, path) = sealed(&objects);
        assert_eq!(read_sealed_lines::<Value>(&path).expect("whole"), objects);
        for object in &objects {
            for written in [serde_json::to_string(object), serde_json::to_string_pretty(object)] {
                write_sealed(&path, [written]).expect("written");
                assert_eq!(read_sealed::<Value>(&path).expect("whole"), *object);
            }
        }
        let (_folder, path) = sealed(&[]);
        assert!(read_sealed_lines::<Value>(&path).expect("whole").is_empty());
    }

    #[test]
    fn the_digest_is_that_of_the_bytes_before_it() {
        let (_folder, path) = sealed(&[json!({"a": 1})]);
        let digest = sha256(b"{\"a\":1,\"sha256\":");
        assert_eq!(fs::read_to_string(path).expect("text"), format!("{{\"a\":1,\"sha256\":\"{digest}\"}}\n"));
    }

    #[test]
    fn whatever_byte_is_changed_the_file_is_refused() {
        let (_folder, path) = sealed(&[json!({"update": 6}), json!({"update": 7})]);
        let whole = fs::read(&path).expect("readable");
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << bit;
                fs::write(&path, &flipped).expect("written");
                // White space at the end of an object or of the file says nothing.
                let found = read_sealed_lines::<Object>(&path);
                assert!(
                    found.is_err() || whole[place].is_ascii_whitespace(),
                    "{}",
                    String::from_utf8_lossy(&flipped)
                );
                if let Ok(found) = found {
                    assert_eq!(json!(found), json!([{"update": 6}, {"update": 7}]));
                }
            }
        }
    }

    #[test]
    fn a_line_that_is_removed_inserted_or_moved_is_found() {
        let (_folder, path) = sealed(&[json!({"epoch": 1}), json!({"epoch": 2}), json!({"epoch": 3})]);
        let whole = fs::read_to_string(&path).expect("text");
        let lines: Vec<_> = whole.lines().collect();
        let older = "{\"epoch\":4}";
        for changed in [
            vec![lines[1], lines[2]],
            vec![lines[0], lines[2]],
            vec![lines[0], lines[2], lines[1]],
            vec![lines[0], lines[0], lines[1], lines[2]],
            vec![lines[0], lines[1], lines[2], older],
            vec![older, lines[0]],
        ] {
            fs::write(&path, changed.join("\n")).expect("written");
            let refused = read_sealed_lines::<Object>(&path).expect_err("refused").to_string();
            assert!(refused.contains("file.json is damaged"), "{refused}");
        }
    }

    #[test]
    fn files_of_an_older_version_are_read() {
        let (_folder, path) = sealed(&[]);
        fs::write(&path, "{\"epoch\": 1}\n\n{\"epoch\": 2}").expect("written");
        assert_eq!(
            read_sealed_lines::<Value>(&path).expect("older"),
            [json!({"epoch": 1}), json!({"epoch": 2})]
        );
        fs::write(&path, "{\n  \"digest\": \"abc\"\n}\n").expect("written");
        assert_eq!(read_sealed::<Value>(&path).expect("older"), json!({"digest": "abc"}));
    }

    #[test]
    fn every_part_of_a_large_file_shows_that_the_process_moves() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, contents) = (folder.path().join("large"), vec![7; 5 * BYTES_AT_A_TIME + 3]);
        // Other tests move, too: it may be more.
        let moves = |work: &dyn Fn()| {
            let before = pulse::read().0;
            work();
            assert!(pulse::read().0 >= before + 6);
        };
        moves(&|| write_whole(&path, &contents).expect("written"));
        moves(&|| assert_eq!(read(&path).expect("whole"), contents));
        moves(&|| assert_eq!(size_and_sha256(&path).expect("whole").1, sha256(&contents)));
    }

    #[test]
    fn space_is_allocated_for_all_of_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File::create(folder.path().join("file")).expect("created");
        for bytes in [0, 4096, 10_000] {
            allocate(&file, bytes).expect("room");
            sync(&file).expect("synced");
            let found = file.metadata().expect("a file");
            assert!(found.len() == bytes && found.blocks() * 512 >= bytes, "{bytes}");
        }
    }

    #[test]
    fn a_lock_changes_no_file_and_follows_no_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs::write(&file, "precious").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        for refused in [lock(&link).map(drop), wait_for_lock(&link).map(drop)] {
            assert!(refused.expect_err("refused").to_string().contains("it is a symbolic link"));
        }
        assert!(lock(&file).expect("allowed").is_some());
        assert_eq!(fs::read_to_string(&file).expect("text"), "precious");
    }

    #[test]
    fn an_open_file_is_at_its_path_until_that_is_renamed_or_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let [file, other] = ["file", "other"].map(|name| folder.path().join(name));
        let open = File::create(&file).expect("created");
        assert!(is_at(&open, &file));
        fs::rename(&file, &other).expect("renamed");
        assert!(!is_at(&open, &file) && is_at(&open, &other));
        fs::write(&file, "").expect("another");
        assert!(!is_at(&open, &file));
    }
}
