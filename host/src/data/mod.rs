//! Data sets of labelled images: MNIST, Fashion-MNIST, CIFAR-10, any folder in the format of one of
//! them (IDX files, or the binary version of CIFAR-10), or a tree of image files.

mod cifar;
pub mod examples;
mod fetch;
mod findings;
mod idx;
mod images;

pub use fetch::{fetch, has_published_checksums};

use crate::util::files;
use crate::{Error, Result};
use md5::{Digest, Md5};
use plugin_api::Task;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};

/// The data sets that are known by name.
pub const NAMES: [&str; 3] = ["mnist", "fashion-mnist", "cifar-10"];

/// Number of classes of every data set in [`NAMES`].
const KNOWN_CLASSES: usize = 10;

/// Largest number of classes: IDX files and CIFAR-10 store a label in one byte.
const MOST_CLASSES: usize = 256;

/// Images and labels of one split, on the CPU.
#[derive(Debug)]
pub struct Split {
    /// Images `[n, channels, height, width]`, u8, 0 to 255.
    pub images: Tensor,
    /// Labels `[n]`, i64, from 0 to [`Dataset::classes`] - 1.
    pub labels: Tensor,
}

/// A data set for classification. Both splits hold at least one image, and all images have one
/// size.
#[derive(Debug)]
pub struct Dataset {
    /// The known name, or the name of the folder.
    pub name: String,
    /// The training split.
    pub train: Split,
    /// The test split.
    pub test: Split,
    /// Number of classes: 10 for the known data sets, the number of class folders for a tree of
    /// images, otherwise the largest label plus one. At least 2.
    pub classes: i64,
    /// The names of the classes for a tree of images (the names of its folders); otherwise empty.
    pub class_names: Vec<String>,
    /// MD5 of the uncompressed contents of each file, by its canonical name (without `.gz`). For a
    /// tree of images: one MD5 for each split, by the name of the split. It is the MD5 of the lines
    /// that `md5sum` writes for the files of the split.
    pub checksums: BTreeMap<String, String>,
    /// Whether these are the published files of a known data set.
    pub origin: Origin,
}

/// Where the files of a data set come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// They are the published files of the known data set of this name.
    Published,
    /// The data set was asked for by a known name, but its files differ from the published ones in
    /// this way.
    Altered(String),
    /// They are a folder of the user's.
    Own,
}

impl Split {
    /// Number of images.
    pub fn count(&self) -> i64 {
        self.labels.numel() as i64
    }
}

impl Dataset {
    /// The classification problem that a model is built for: size of an image and number of
    /// classes.
    pub fn task(&self) -> Task {
        let size = self.train.images.size();
        Task { channels: size[1], height: size[2], width: size[3], classes: self.classes }
    }
}

/// Reads a data set. `data` is one of [`NAMES`], whose files are in `root/NAME`, or the path of a
/// folder. The format of a folder is recognised by the names of its files:
///
/// * IDX: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
///   `t10k-labels-idx1-ubyte`. A dot may replace the hyphen before `idx`
///   (`train-images.idx3-ubyte`). Files may be compressed (`.gz`).
/// * The binary version of CIFAR-10: `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`,
///   in the folder or in its subfolder `cifar-10-batches-bin`.
/// * A tree of images: PNG and JPEG files in `train/CLASS/` and `test/CLASS/` (or `val/CLASS/` if
///   there is no `test`).
///
/// The files of a known data set may differ from the published files, for example hold a subset.
/// [`Dataset::findings`] says so.
///
/// # Errors
/// If the folder or a file is missing, or a file is damaged or has another format than its name.
pub fn load(data: &str, root: &Path) -> Result<Dataset> {
    match NAMES.into_iter().find(|name| *name == data) {
        Some(name) => load_known(name, &root.join(name)),
        None => load_folder(Path::new(data)),
    }
}

fn load_known(name: &str, folder: &Path) -> Result<Dataset> {
    let root = folder.parent().unwrap_or(folder).display();
    let fetch = format!("`host data fetch {name} --data-folder {root}`");
    let fix = format!("run {fetch}, which downloads the original files");
    if !folder.is_dir() {
        let message = format!("data set {name} is missing: there is no folder {}", folder.display());
        return Err(Error::new(message).fix(format!(
            "give the folder that has {name} with --data-folder FOLDER, or with the variable DRO_DATA when a run \
             or sweep begins; or {fix}"
        )));
    }
    let layout = if name == "cifar-10" { Layout::Cifar } else { Layout::Idx };
    let read = || -> Result<Dataset> {
        let files = layout.read(folder)?;
        let [train, test] = layout.decode(&files, KNOWN_CLASSES)?;
        let origin = fetch::verify(name, &files).map_or_else(
            |why| {
                Origin::Altered(format!(
                    "the data are not the published {name}: {}; {fetch} replaces them, \
                     --data FOLDER takes data of your own",
                    why.first_line()
                ))
            },
            |()| Origin::Published,
        );
        Ok(Dataset { origin, ..dataset(name, &files, KNOWN_CLASSES, &train, &test)? })
    };
    read().map_err(|error| error.fix(fix))
}

fn load_folder(folder: &Path) -> Result<Dataset> {
    if !folder.is_dir() {
        let found = if folder.exists() { "this is a file" } else { "there is no such folder" };
        let message = format!("{} is neither a known data set nor a folder: {found}", folder.display());
        return Err(Error::new(message)
            .note("known", NAMES.join(", "))
            .fix(format!("give a known name, or the path of a folder with {LAYOUTS}")));
    }
    let path = fs::canonicalize(folder).map_err(|why| Error::file("find", folder, why))?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let Some(layout) = Layout::detect(folder)? else { return images::load(folder, &name) };
    let read = || -> Result<Dataset> {
        let files = layout.read(folder)?;
        let [train, test] = layout.decode(&files, MOST_CLASSES)?;
        let highest_label = train.labels.iter().chain(&test.labels).max().copied().unwrap_or(0);
        let classes = (usize::from(highest_label) + 1).max(2);
        let origin = fetch::verify(&name, &files).map_or(Origin::Own, |()| Origin::Published);
        Ok(Dataset { origin, ..dataset(&name, &files, classes, &train, &test)? })
    };
    let fix = format!("get the files from their source again: {}", layout.names().join(", "));
    read().map_err(|error| error.fix(fix))
}

/// Makes a data set of decoded samples.
fn dataset(
    name: &str,
    files: &[DataFile],
    classes: usize,
    train: &Samples,
    test: &Samples,
) -> Result<Dataset> {
    if train.shape != test.shape {
        let [train, test] = [train, test].map(|samples| sizes(&samples.shape));
        let message = format!("images of {name} differ in size: {train} for training, {test} for testing");
        let places = files.iter().map(|file| file.place.as_str());
        return Err(Error::new(message).note("files", places.collect::<Vec<_>>().join(", ")));
    }
    Ok(Dataset {
        name: name.to_owned(),
        train: train.tensors()?,
        test: test.tensors()?,
        classes: classes as i64,
        class_names: Vec::new(),
        checksums: files.iter().map(|file| (file.name.to_owned(), file.md5())).collect(),
        origin: Origin::Own,
    })
}

/// The formats of folders, for messages.
const LAYOUTS: &str = "IDX files, CIFAR-10's binary version, or images in train/CLASS and test/CLASS";

/// Files and folders of other formats of the known data sets, what they are and what to do.
const OTHER_FORMATS: [(&str, &str, &str); 12] = [
    ("data_batch_1", PICKLED, GET_BINARY),
    ("cifar-10-batches-py", PICKLED, GET_BINARY),
    ("cifar-10-python.tar.gz", "the archive of CIFAR-10's Python version", GET_BINARY),
    ("data_batch_1.mat", MATLAB, GET_BINARY),
    ("cifar-10-batches-mat", MATLAB, GET_BINARY),
    ("cifar-10-binary.tar.gz", "an archive that is still packed", "unpack it: `tar -xzf FILE`"),
    ("cifar-100-binary", "CIFAR-100", "write its images into train/CLASS and test/CLASS"),
    ("fine_label_names.txt", "the labels of CIFAR-100", "write its images into train/CLASS and test/CLASS"),
    ("mnist.npz", "Keras's copy of MNIST", "fetch the IDX files: `host data fetch mnist`"),
    ("mnist.pkl.gz", "a pickled copy of MNIST", "fetch the IDX files: `host data fetch mnist`"),
    ("MNIST/raw", "torchvision's folder of MNIST", "give that folder itself"),
    ("FashionMNIST/raw", "torchvision's folder of Fashion-MNIST", "give that folder itself"),
];

const PICKLED: &str = "CIFAR-10's Python version (pickled)";
const MATLAB: &str = "CIFAR-10's MATLAB version";
const GET_BINARY: &str = "get the binary version: `host data fetch cifar-10`, or \
                          https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";

/// An error that names the other format of the data in a folder; none if there is none.
fn other_format(folder: &Path) -> Option<Error> {
    let (name, what, fix) = OTHER_FORMATS.into_iter().find(|(name, ..)| folder.join(name).exists())?;
    let found = folder.join(name);
    Some(Error::new(format!("{} is {what}: expected {LAYOUTS}", found.display())).fix(fix))
}

/// A format of data sets that consist of a few large files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Idx,
    Cifar,
}

impl Layout {
    /// Recognises the format by the names of the files; none for a tree of images.
    fn detect(folder: &Path) -> Result<Option<Self>> {
        let idx = idx::NAMES.into_iter().any(|name| idx::find(folder, name).is_some());
        let cifar = cifar::NAMES.into_iter().any(|name| cifar::find(folder, name).is_some());
        let found = match (idx, cifar, images::found(folder)) {
            (true, false, false) => return Ok(Some(Self::Idx)),
            (false, true, false) => return Ok(Some(Self::Cifar)),
            (false, false, true) => return Ok(None),
            (false, false, false) => match other_format(folder) {
                Some(error) => return Err(error),
                None => "no data set",
            },
            _ => "more than one data set",
        };
        Err(Error::new(format!("{} holds {found}: expected {LAYOUTS}", folder.display()))
            .note("IDX", idx::NAMES.join(", "))
            .note("CIFAR-10", cifar::NAMES.join(", "))
            .note("images", "train/CLASS/*.png, *.jpg or *.jpeg, and the same in test or val")
            .fix("give a folder with all files of one of these formats, under these names"))
    }

    /// The canonical names of the files.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Idx => &idx::NAMES,
            Self::Cifar => &cifar::NAMES,
        }
    }

    /// Reads all files without decoding them.
    fn read(self, folder: &Path) -> Result<Vec<DataFile>> {
        let read = |name: &'static str| {
            let missing = || {
                other_format(folder)
                    .unwrap_or_else(|| Error::new(format!("{} has no file {name}", folder.display())))
            };
            match self {
                Self::Idx => {
                    let path = idx::find(folder, name).ok_or_else(missing)?;
                    idx::uncompress(DataFile::read(name, &path)?)
                }
                Self::Cifar => DataFile::read(name, &cifar::find(folder, name).ok_or_else(missing)?),
            }
        };
        self.names().iter().copied().map(read).collect()
    }

    /// The training and the test split. Every label must be below `classes`.
    fn decode(self, files: &[DataFile], classes: usize) -> Result<[Samples; 2]> {
        match self {
            Self::Idx => idx::decode(files, classes),
            Self::Cifar => cifar::decode(files, classes),
        }
    }
}

/// One file of a data set.
struct DataFile {
    /// Its canonical name.
    name: &'static str,
    /// Its path or URL, for messages.
    place: String,
    contents: Vec<u8>,
}

impl DataFile {
    fn read(name: &'static str, path: &Path) -> Result<Self> {
        Ok(Self { name, place: path.display().to_string(), contents: files::read(path)? })
    }

    /// The file with this canonical name.
    fn named<'a>(files: &'a [Self], name: &str) -> Result<&'a Self> {
        files.iter().find(|file| file.name == name).ok_or_else(|| Error::new(format!("no file {name}")))
    }

    fn md5(&self) -> String {
        md5(&self.contents)
    }

    /// Checks that every label is below `classes`.
    fn check_labels(&self, labels: &[u8], classes: usize) -> Result<()> {
        match labels.iter().position(|label| usize::from(*label) >= classes) {
            None => Ok(()),
            Some(index) => Err(self.bad(format!(
                "has label {} at index {index}: expected 0 to {}",
                labels[index],
                classes - 1
            ))),
        }
    }

    /// An error about this file: `PLACE MESSAGE`.
    fn bad(&self, message: impl std::fmt::Display) -> Error {
        Error::new(format!("{} {message}", self.place))
    }
}

/// The images and labels of one split as bytes.
struct Samples {
    /// One byte per value, in the order of `[n, channels, height, width]`.
    pixels: Vec<u8>,
    /// Channels, height and width.
    shape: [usize; 3],
    labels: Vec<u8>,
}

impl Samples {
    fn tensors(&self) -> Result<Split> {
        let [channels, height, width] = self.shape.map(|size| size as i64);
        let images = Tensor::f_from_slice(&self.pixels)?.f_view([-1, channels, height, width])?;
        let labels = Tensor::f_from_slice(&self.labels)?.f_to_kind(Kind::Int64)?;
        Ok(Split { images, labels })
    }
}

/// Sizes as text: `1 x 28 x 28`.
fn sizes(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// MD5 in hexadecimal.
fn md5(bytes: &[u8]) -> String {
    files::hexadecimal(&Md5::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    use tempfile::TempDir;

    /// The first line of the error message, with the path of the folder shortened to `DIR`.
    pub(super) fn first_line<T>(result: Result<T>, folder: &Path) -> String {
        let message = result.err().expect("an error").to_string();
        message.lines().next().unwrap_or_default().replace(&folder.display().to_string(), "DIR")
    }

    pub(super) fn folder_with(files: &[(&str, Vec<u8>)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        folder
    }

    pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn load_path(folder: &TempDir) -> Result<Dataset> {
        load(folder.path().to_str().unwrap(), Path::new("unused"))
    }

    /// Two training images and one test image of 2 x 3 pixels.
    pub(super) fn idx_files() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            (
                "train-images-idx3-ubyte",
                idx::encode(&[2, 2, 3], &[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 255]),
            ),
            ("train-labels-idx1-ubyte", idx::encode(&[2], &[3, 0])),
            ("t10k-images-idx3-ubyte", idx::encode(&[1, 2, 3], &[20, 21, 22, 23, 24, 25])),
            ("t10k-labels-idx1-ubyte", idx::encode(&[1], &[1])),
        ]
    }

    pub(super) fn cifar_files() -> Vec<(&'static str, Vec<u8>)> {
        cifar::NAMES
            .into_iter()
            .zip(0..)
            .map(|(name, label)| (name, [vec![label], vec![label; 3072]].concat()))
            .collect()
    }

    #[test]
    fn a_folder_of_idx_files_is_read() {
        let folder = folder_with(&idx_files());
        let dataset = load_path(&folder).unwrap();
        assert_eq!(dataset.name, folder.path().file_name().unwrap().to_str().unwrap());
        let Task { channels, height, width, .. } = dataset.task();
        assert_eq!([channels, height, width], [1, 2, 3]);
        assert_eq!((dataset.train.count(), dataset.test.count()), (2, 1));
        assert_eq!(dataset.classes, 4);
        assert_eq!(dataset.train.images.kind(), Kind::Uint8);
        assert_eq!(
            dataset.train.images,
            Tensor::from_slice(&[0u8, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 255]).view([2, 1, 2, 3])
        );
        assert_eq!(dataset.train.labels, Tensor::from_slice(&[3i64, 0]));
        assert_eq!(dataset.train.labels.kind(), Kind::Int64);
        assert_eq!(dataset.test.labels, Tensor::from_slice(&[1i64]));
        let labels = idx::encode(&[1], &[1]);
        assert_eq!(dataset.checksums["t10k-labels-idx1-ubyte"], md5(&labels));
        assert_eq!(dataset.checksums.len(), 4);
    }

    #[test]
    fn compressed_files_are_read_like_plain_files() {
        let plain = load_path(&folder_with(&idx_files())).unwrap();
        let mut files = idx_files();
        files[0] = ("train-images.idx3-ubyte.gz", gzip(&files[0].1));
        let compressed = load_path(&folder_with(&files)).unwrap();
        assert_eq!(compressed.train.images, plain.train.images);
        assert_eq!(compressed.checksums, plain.checksums);
    }

    #[test]
    fn a_known_data_set_is_read_from_its_folder_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let error = load("mnist", root.path()).unwrap_err();
        for way in ["--data-folder FOLDER", "DRO_DATA", "run `host data fetch mnist --data-folder "] {
            assert!(error.advice().unwrap().contains(way), "{error}");
        }
        let message = first_line(Err::<(), _>(error), root.path());
        assert_eq!(message, "data set mnist is missing: there is no folder DIR/mnist");

        fs::create_dir(root.path().join("mnist")).unwrap();
        let error = load("mnist", root.path()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let fetch = format!("run `host data fetch mnist --data-folder {}`", root.path().display());
        assert!(error.to_string().contains(&fetch), "{error}");
        let message = first_line(Err::<(), _>(error), root.path());
        assert_eq!(message, "DIR/mnist has no file train-images-idx3-ubyte");

        for (name, contents) in idx_files() {
            fs::write(root.path().join("mnist").join(name), contents).unwrap();
        }
        let dataset = load("mnist", root.path()).unwrap();
        assert_eq!((dataset.name.as_str(), dataset.classes), ("mnist", 10));
    }

    #[test]
    fn the_format_of_a_folder_is_recognised_by_its_files() {
        let task = load_path(&folder_with(&cifar_files())).unwrap().task();
        assert_eq!([task.channels, task.height, task.width], [3, 32, 32]);

        let both = folder_with(&[idx_files(), cifar_files()].concat());
        assert_eq!(
            first_line(load_path(&both), both.path()),
            "DIR holds more than one data set: expected IDX files, CIFAR-10's binary version, or images in train/CLASS and test/CLASS"
        );
        let neither = folder_with(&[("notes.txt", Vec::new())]);
        assert_eq!(
            first_line(load_path(&neither), neither.path()),
            "DIR holds no data set: expected IDX files, CIFAR-10's binary version, or images in train/CLASS and test/CLASS"
        );
        let path = neither.path().join("notes.txt");
        assert_eq!(
            first_line(load(path.to_str().unwrap(), Path::new("unused")), neither.path()),
            "DIR/notes.txt is neither a known data set nor a folder: this is a file"
        );
    }

    #[test]
    fn other_formats_are_called_by_their_names() {
        let expected =
            "expected IDX files, CIFAR-10's binary version, or images in train/CLASS and test/CLASS";
        for (name, what) in [
            ("data_batch_1", "CIFAR-10's Python version (pickled)"),
            ("cifar-10-batches-py/data_batch_1", "CIFAR-10's Python version (pickled)"),
            ("cifar-10-batches-mat/data_batch_1.mat", "CIFAR-10's MATLAB version"),
            ("cifar-10-binary.tar.gz", "an archive that is still packed"),
            ("fine_label_names.txt", "the labels of CIFAR-100"),
            ("mnist.npz", "Keras's copy of MNIST"),
            ("MNIST/raw", "torchvision's folder of MNIST"),
        ] {
            let folder = folder_with(&[(name, Vec::new())]);
            let found = name.split("/data_batch").next().unwrap();
            let message = format!("DIR/{found} is {what}: {expected}");
            assert_eq!(first_line(load_path(&folder), folder.path()), message);
            let root = tempfile::tempdir().unwrap();
            std::os::unix::fs::symlink(folder.path(), root.path().join("cifar-10")).unwrap();
            let error = load("cifar-10", root.path()).unwrap_err();
            assert!(
                error.to_string().contains(&format!("cifar-10/{found} is {what}: {expected}")),
                "{error}"
            );
        }
        // Such files beside the right ones do not matter.
        let folder = folder_with(&[cifar_files(), vec![("cifar-10-python.tar.gz", Vec::new())]].concat());
        assert!(load_path(&folder).is_ok());
    }

    #[test]
    fn data_that_are_not_the_published_ones_are_recognised() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("mnist")).unwrap();
        for (name, contents) in idx_files() {
            fs::write(root.path().join("mnist").join(name), contents).unwrap();
        }
        let dataset = load("mnist", root.path()).unwrap();
        let Origin::Altered(how) = &dataset.origin else { panic!("{:?}", dataset.origin) };
        let start = format!(
            "the data are not the published mnist: {} is not the original file: expected MD5 6bbc9ace",
            root.path().join("mnist/train-images-idx3-ubyte").display()
        );
        assert!(how.starts_with(&start), "{how}");
        assert_eq!(dataset.findings().unwrap()[0], *how);
        // A folder of the user's may have any contents, and any name.
        let own = load(root.path().join("mnist").to_str().unwrap(), root.path()).unwrap();
        assert_eq!((own.name.as_str(), own.origin), ("mnist", Origin::Own));
    }

    #[test]
    fn the_error_for_an_unknown_name_lists_the_known_names() {
        let error = load("minst", Path::new("data")).unwrap_err().to_string();
        assert!(
            error.starts_with("minst is neither a known data set nor a folder: there is no such folder\n"),
            "{error}"
        );
        assert!(error.contains("mnist, fashion-mnist, cifar-10"), "{error}");
    }

    #[test]
    fn training_and_test_images_have_one_size() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("mnist")).unwrap();
        let mut files = idx_files();
        files[2].1 = idx::encode(&[1, 3, 2], &[20, 21, 22, 23, 24, 25]);
        for (name, contents) in files {
            fs::write(root.path().join("mnist").join(name), contents).unwrap();
        }
        assert_eq!(
            first_line(load("mnist", root.path()), root.path()),
            "images of mnist differ in size: 1 x 2 x 3 for training, 1 x 3 x 2 for testing"
        );
    }

    #[test]
    fn there_are_at_least_two_classes() {
        let mut files = idx_files();
        files[1].1 = idx::encode(&[2], &[0, 0]);
        files[3].1 = idx::encode(&[1], &[0]);
        assert_eq!(load_path(&folder_with(&files)).unwrap().classes, 2);
    }
}

#[cfg(test)]
mod fuzz {
    use super::tests::{cifar_files, folder_with, gzip, idx_files};
    use super::*;
    use crate::util::fuzz::{USUAL, for_cases, withstands};
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// The densest gzip stream has 1/1032 of its contents.
    const UNPACKED: usize = 3 * 1032;

    #[test]
    fn idx_files_may_be_damaged() {
        for (name, contents) in idx_files() {
            let folder = folder_with(&idx_files());
            let read = |path: &Path| load(path.parent().unwrap().to_str().unwrap(), Path::new("unused"));
            let valid = [gzip(&contents), contents];
            withstands(&valid, &folder.path().join(name), UNPACKED, read);
        }
    }

    #[test]
    fn files_of_cifar_may_be_damaged() {
        let files = cifar_files();
        let folder = folder_with(&files);
        let read = |path: &Path| load(path.parent().unwrap().to_str().unwrap(), Path::new("unused"));
        withstands(&[files[1].1.clone()], &folder.path().join(files[1].0), USUAL, read);
    }

    #[test]
    fn idx_files_come_back_as_they_were_written() {
        let sizes = (1..5usize, 1..6usize, 1..6usize);
        let samples = sizes.prop_flat_map(|(count, height, width)| {
            (Just([count, height, width]), vec(any::<u8>(), count * height * width), vec(any::<u8>(), count))
        });
        for_cases(&(samples, any::<bool>()), |(([count, height, width], pixels, labels), is_compressed)| {
            let sizes = [count, height, width].map(|size| size as u32);
            let packed = |bytes: Vec<u8>| if is_compressed { gzip(&bytes) } else { bytes };
            let images = packed(idx::encode(&sizes, &pixels));
            let label_file = packed(idx::encode(&sizes[..1], &labels));
            let [train, test] = ["train", "t10k"].map(|split| {
                [
                    (format!("{split}-images-idx3-ubyte"), &images),
                    (format!("{split}-labels-idx1-ubyte"), &label_file),
                ]
            });
            let folder = tempfile::tempdir().unwrap();
            for (name, contents) in train.iter().chain(&test) {
                fs::write(folder.path().join(name), contents).unwrap();
            }
            let read = load(folder.path().to_str().unwrap(), Path::new("unused")).unwrap();
            for split in [&read.train, &read.test] {
                prop_assert_eq!(split.images.size(), [count, 1, height, width].map(|size| size as i64));
                prop_assert_eq!(&Vec::<u8>::try_from(split.images.flatten(0, -1)).unwrap(), &pixels);
                let expected: Vec<_> = labels.iter().map(|label| i64::from(*label)).collect();
                prop_assert_eq!(&Vec::<i64>::try_from(&split.labels).unwrap(), &expected);
            }
            Ok(())
        });
    }
}
