//! Tests of readers with damaged files. `cargo test` tries the same few hundred of each every time
//! (as many as PROPTEST_CASES says), `make fuzz` tries others for FUZZ_SECONDS each.

use crate::Result;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The memory that a reader may take for each byte of a file. A byte can become a value of a JSON
/// array, whose memory grows by doubling.
pub(crate) const USUAL: usize = 256;

/// The memory that a reader may take whatever the size of the file: buffers, messages, tables.
const ALWAYS: usize = 1 << 20;

/// A valid file in `tests/corpus`.
pub(crate) fn corpus(name: &str) -> Vec<u8> {
    repository_file(&format!("tests/corpus/{name}"))
}

/// A file of the repository.
pub(crate) fn repository_file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}

/// The TOML files in a folder of the repository.
pub(crate) fn toml_files(folder: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder));
    let paths = entries.expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// Reads files at this path: these valid ones, which must be accepted, then such with changed bytes
/// and files of arbitrary bytes. On these the reader must not panic and must not take more memory
/// than `per_byte` and a constant allow, and an error must name the file.
pub(crate) fn withstands<T>(
    valid: &[Vec<u8>],
    path: &Path,
    per_byte: usize,
    read: impl Fn(&Path) -> Result<T>,
) {
    for bytes in valid {
        fs::write(path, bytes).expect("written");
        let accepted = read(path).map(drop);
        assert!(accepted.is_ok(), "a valid file is refused: {accepted:?}");
    }
    let name = path.file_name().expect("a name").to_string_lossy();
    for_cases(&changed(valid), |Contents(bytes)| {
        fs::write(path, &bytes).expect("written");
        let mut outcome = Ok(Ok(()));
        // The counter does not survive a panic.
        let read = || catch_unwind(AssertUnwindSafe(|| read(path).map(drop)));
        let memory = allocation_counter::measure(|| outcome = read());
        let most = (per_byte * bytes.len() + ALWAYS) as u64;
        prop_assert!(memory.bytes_max <= most, "{} bytes of memory, at most {most}", memory.bytes_max);
        if let Err(error) = outcome.unwrap_or_else(|panic| resume_unwind(panic)) {
            prop_assert!(error.to_string().contains(&*name), "no {name} in: {error}");
        }
        Ok(())
    });
}

/// Tests values of this strategy.
pub(crate) fn for_cases<S: Strategy>(strategy: &S, test: impl Fn(S::Value) -> TestCaseResult) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let seconds = std::env::var("FUZZ_SECONDS").ok().map(|text| text.parse().expect("FUZZ_SECONDS: seconds"));
    let (end, mut runner) = match seconds {
        None => {
            let same_each_time = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            (Duration::ZERO, TestRunner::new_with_rng(config, same_each_time))
        }
        Some(seconds) => (Duration::from_secs(seconds), TestRunner::new(config)),
    };
    let begun = Instant::now();
    loop {
        if let Err(failure) = runner.run(strategy, &test) {
            panic!("{failure}");
        }
        if begun.elapsed() >= end {
            return;
        }
    }
}

/// One of these files with a few changes, or arbitrary bytes.
pub(crate) fn changed(valid: &[Vec<u8>]) -> impl Strategy<Value = Contents> + use<> {
    let changed = (select(valid.to_vec()), vec(change(), 1..5)).prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    prop_oneof![9 => changed, 1 => vec(any::<u8>(), 0..256)].prop_map(Contents)
}

/// The contents of a file, shown as text.
#[derive(Clone)]
pub(crate) struct Contents(pub Vec<u8>);

impl fmt::Debug for Contents {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "b\"{}\"", self.0.escape_ascii())
    }
}

#[derive(Debug, Clone)]
enum Change {
    /// Other bytes in the place of as many.
    Replace(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A piece once more, elsewhere.
    Copy(Index, usize, Index),
    Truncate(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    let piece = || prop_oneof![vec(any::<u8>(), 1..5), select(notable())];
    prop_oneof![
        6 => (place(), piece()).prop_map(|(at, bytes)| Change::Replace(at, bytes)),
        4 => (place(), piece()).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (place(), 1..64usize).prop_map(|(at, count)| Change::Remove(at, count)),
        2 => (place(), 1..64usize, place()).prop_map(|(from, count, to)| Change::Copy(from, count, to)),
        1 => place().prop_map(Change::Truncate),
    ]
}

/// Pieces at which readers fail: extreme sizes, and words of JSON and TOML.
fn notable() -> Vec<Vec<u8>> {
    let numbers = [0u64, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX];
    let binary = numbers.into_iter().flat_map(|number| {
        let (short, long) = (number as u32, number);
        [short.to_le_bytes().to_vec(), short.to_be_bytes().to_vec(), long.to_le_bytes().to_vec()]
    });
    let words = [
        "-1",
        "0",
        "1e999",
        "18446744073709551615",
        "9223372036854775807",
        "0.1",
        "null",
        "true",
        "nan",
        "[]",
        "{}",
        "\"\"",
        "\"\\ud800\"",
        ",",
        ":",
        "=",
        "\n",
        "\0",
        "\u{feff}",
        "[[[[[[[[",
        "{from = 0, to = 1e9}",
        "99999",
    ];
    binary.chain(words.map(|word| word.as_bytes().to_vec())).collect()
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: &Index, length: usize| at.index(length + 1);
        match self {
            Self::Replace(at, new) => {
                let first = place(at, bytes.len());
                let end = (first + new.len()).min(bytes.len());
                bytes.splice(first..end, new.iter().copied());
            }
            Self::Insert(at, new) => {
                let first = place(at, bytes.len());
                bytes.splice(first..first, new.iter().copied());
            }
            Self::Remove(at, count) => {
                let first = place(at, bytes.len());
                let end = (first + count).min(bytes.len());
                bytes.drain(first..end);
            }
            Self::Copy(from, count, to) => {
                let first = place(from, bytes.len());
                let piece = bytes[first..(first + count).min(bytes.len())].to_vec();
                let to = place(to, bytes.len());
                bytes.splice(to..to, piece);
            }
            Self::Truncate(at) => bytes.truncate(place(at, bytes.len())),
        }
    }
}

#[test]
fn a_reader_that_panics_allocates_or_does_not_name_the_file_is_found() {
    use crate::Error;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.bin");
    let is_found = |read: fn(&Path, &[u8]) -> Result<()>| {
        let read = |path: &Path| read(path, &fs::read(path).expect("readable"));
        let test = || withstands(&[b"valid".to_vec()], &path, USUAL, read);
        catch_unwind(AssertUnwindSafe(test)).is_err()
    };
    assert!(!is_found(|path, bytes| match bytes {
        b"valid" => Ok(()),
        _ => Err(Error::file("read", path, "it is damaged")),
    }));
    assert!(is_found(|_, bytes| (bytes.first() != Some(&0xff))
        .then_some(())
        .ok_or_else(|| panic!("at the end"))));
    assert!(is_found(|_, bytes| {
        let bytes = if bytes == b"valid" { 0 } else { 1 << 30 };
        std::hint::black_box(Vec::<u8>::with_capacity(bytes));
        Ok(())
    }));
    assert!(is_found(|_, bytes| (bytes == b"valid")
        .then_some(())
        .ok_or_else(|| Error::new("it is damaged"))));
}
