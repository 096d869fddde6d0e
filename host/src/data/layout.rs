//! The formats of data sets that consist of a few large files, and how a folder's is recognised.

use super::spec::RELABEL;
use super::{DataSpec, Split, cifar, idx, images, md5, numpy, pack, svhn};
use crate::util::files;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The formats of folders, for messages.
pub(super) const LAYOUTS: &str = "IDX files, CIFAR-10, CIFAR-100, SVHN, NumPy arrays, a pack, or images in train/CLASS \
                                  and test/CLASS";

/// Files and folders of other formats, what they are and what to do.
const OTHER_FORMATS: [(&str, &str, &str); 13] = [
    ("data_batch_1.mat", MATLAB, GET_BINARY),
    ("cifar-10-batches-mat", MATLAB, GET_BINARY),
    ("cifar-100-matlab", "CIFAR-100's MATLAB version", "get another version: `host data fetch cifar-100`"),
    ("cifar-10-python.tar.gz", PACKED, UNPACK),
    ("cifar-10-binary.tar.gz", PACKED, UNPACK),
    ("cifar-100-python.tar.gz", PACKED, UNPACK),
    ("cifar-100-binary.tar.gz", PACKED, UNPACK),
    ("tiny-imagenet-200.zip", PACKED, "unpack it: `unzip FILE`"),
    ("tiny-imagenet-200", "the folder of Tiny ImageNet", "give that folder itself"),
    ("mnist.npz", "Keras's copy of MNIST", "give that file itself"),
    ("mnist.pkl.gz", "a pickled copy of MNIST", "fetch the IDX files: `host data fetch mnist`"),
    ("MNIST/raw", "torchvision's folder of MNIST", "give that folder itself"),
    ("FashionMNIST/raw", "torchvision's folder of Fashion-MNIST", "give that folder itself"),
];

const MATLAB: &str = "CIFAR-10's MATLAB version";
const GET_BINARY: &str = "get another version: `host data fetch cifar-10`";
const PACKED: &str = "an archive that is still packed";
const UNPACK: &str = "unpack it: `tar -xzf FILE`";

/// An error that names the other format of the data in a folder; none if there is none.
fn other_format(folder: &Path) -> Option<Error> {
    let (name, what, fix) = OTHER_FORMATS.into_iter().find(|(name, ..)| folder.join(name).exists())?;
    let found = folder.join(name);
    Some(Error::new(format!("{} is {what}: expected {LAYOUTS}", found.display())).fix(fix))
}

/// What a folder holds.
pub(super) enum Found {
    Files(Layout),
    Images,
    TinyImageNet,
    Arrays,
    Pack,
}

/// Recognises the format of a folder by the names of its files.
///
/// # Errors
/// If it has none, or several.
pub(super) fn detect(folder: &Path) -> Result<Found> {
    // The files of a pack are NumPy arrays as well.
    if pack::found(folder) {
        return Ok(Found::Pack);
    }
    let files = Layout::ALL.into_iter().filter(|layout| layout.found(folder)).map(Found::Files);
    let mut found: Vec<_> = files.collect();
    if images::is_tiny_imagenet(folder) {
        found.push(Found::TinyImageNet);
    } else if images::found(folder) {
        found.push(Found::Images);
    }
    if numpy::found(folder) {
        found.push(Found::Arrays);
    }
    if found.len() == 1 {
        return Ok(found.remove(0));
    }
    let what = if found.is_empty() { "no data set" } else { "more than one data set" };
    if let (true, Some(error)) = (found.is_empty(), other_format(folder)) {
        return Err(error);
    }
    let notes = Layout::ALL.map(|layout| (layout.title(), layout.names().concat().join(", ")));
    let error = Error::new(format!("{} holds {what}: expected {LAYOUTS}", folder.display()));
    Err(notes
        .into_iter()
        .fold(error, |error, (title, names)| error.note(title, names))
        .note("NumPy", "x_train.npy, y_train.npy, x_test.npy, y_test.npy")
        .note("images", "train/CLASS/*.png, *.jpg or *.jpeg, and the same in test or val")
        .fix("give a folder with all files of one of these formats, under these names"))
}

/// A format of data sets that consist of a few large files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Idx,
    /// CIFAR-10's binary version.
    Cifar10,
    /// CIFAR-10's Python version.
    Cifar10Python,
    /// CIFAR-100's binary version.
    Cifar100,
    /// CIFAR-100's Python version.
    Cifar100Python,
    Svhn,
}

/// The option that names one of several IDX sets in a folder.
const SET: &str = "set";

/// The option that chooses the labels of CIFAR-100.
const LABELS: &str = "labels";

impl Layout {
    const ALL: [Self; 6] =
        [Self::Idx, Self::Cifar10, Self::Cifar10Python, Self::Cifar100, Self::Cifar100Python, Self::Svhn];

    /// The formats in which a known data set is published.
    pub(super) fn versions(name: &str) -> &'static [Self] {
        match name {
            "cifar-10" => &[Self::Cifar10, Self::Cifar10Python],
            "cifar-100" => &[Self::Cifar100, Self::Cifar100Python],
            "svhn" => &[Self::Svhn],
            _ => &[Self::Idx],
        }
    }

    /// The format of a known data set in its folder.
    pub(super) fn of_known(name: &str, folder: &Path) -> Self {
        let versions = Self::versions(name);
        versions.iter().copied().find(|version| version.found(folder)).unwrap_or(versions[0])
    }

    fn title(self) -> &'static str {
        match self {
            Self::Idx => "IDX",
            Self::Cifar10 | Self::Cifar10Python => "CIFAR-10",
            Self::Cifar100 | Self::Cifar100Python => "CIFAR-100",
            Self::Svhn => "SVHN",
        }
    }

    /// The canonical names of the files: those of training, and those of the test.
    pub(super) fn names(self) -> [&'static [&'static str]; 2] {
        match self {
            Self::Idx => idx::NAMES.split_at(2).into(),
            Self::Cifar10 => cifar::NAMES.split_at(5).into(),
            Self::Cifar10Python => cifar::PYTHON_NAMES.split_at(5).into(),
            Self::Cifar100 => cifar::NAMES_100.split_at(1).into(),
            Self::Cifar100Python => cifar::PYTHON_NAMES_100.split_at(1).into(),
            Self::Svhn => svhn::NAMES.split_at(1).into(),
        }
    }

    /// Whether a folder has one of the files.
    fn found(self, folder: &Path) -> bool {
        let has = |set| self.names().concat().into_iter().any(|name| self.find(folder, name, set).is_some());
        has(None) || (self == Self::Idx && !idx::sets(folder).is_empty())
    }

    /// The path of the file with this canonical name, in the folder or in the subfolder of the
    /// published archive.
    fn find(self, folder: &Path, name: &str, set: Option<&str>) -> Option<PathBuf> {
        let below = match self {
            Self::Idx => return idx::find(folder, name, set),
            Self::Cifar10 => cifar::FOLDER,
            Self::Cifar10Python => cifar::PYTHON_FOLDER,
            Self::Cifar100 => cifar::FOLDER_100,
            Self::Cifar100Python => cifar::PYTHON_FOLDER_100,
            Self::Svhn => ".",
        };
        [folder.join(name), folder.join(below).join(name)].into_iter().find(|path| path.is_file())
    }

    /// The name before those of the files, if they have one.
    ///
    /// # Errors
    /// If there are several sets and no option says which, or there is no such.
    pub(super) fn set(self, folder: &Path, spec: &DataSpec) -> Result<Option<String>> {
        let sets = if self == Self::Idx { idx::sets(folder) } else { Vec::new() };
        let fix = |error: Error| {
            error
                .note("sets", sets.join(", "))
                .fix(format!("name one of them: --data {},{SET}=NAME", folder.display()))
        };
        match (spec.option(SET), &sets[..]) {
            (Some(set), _) if sets.iter().any(|known| known == set) => Ok(Some(set.to_owned())),
            (Some(set), _) => {
                Err(fix(spec.error(format!("option {SET}: there are no files {set}-train-images…"))))
            }
            (None, _) if self.names().concat().iter().any(|name| self.find(folder, name, None).is_some()) => {
                Ok(None)
            }
            (None, []) => Ok(None),
            (None, [only]) => Ok(Some(only.clone())),
            (None, several) => {
                let count = several.len();
                Err(fix(Error::new(format!(
                    "{} holds {count} sets of IDX files: expected one",
                    folder.display()
                ))))
            }
        }
    }

    /// The options of a folder.
    pub(super) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Idx => &[SET, RELABEL],
            Self::Cifar100 | Self::Cifar100Python => &[LABELS, RELABEL],
            _ => &[RELABEL],
        }
    }

    /// The options of a known data set.
    pub(super) fn options_of_known(self) -> &'static [&'static str] {
        match self {
            Self::Cifar100 | Self::Cifar100Python => &[LABELS],
            _ => &[],
        }
    }

    /// The name of a known data set with these options.
    pub(super) fn name_of_known(self, name: &str, spec: &DataSpec) -> String {
        match spec.option(LABELS) {
            Some(COARSE) => format!("{name}-{COARSE}"),
            _ => name.to_owned(),
        }
    }

    /// The number of classes, or the largest that the format can hold.
    ///
    /// # Errors
    /// If an option is not valid.
    pub(super) fn classes(self, spec: &DataSpec) -> Result<usize> {
        Ok(match self {
            Self::Idx => 256,
            Self::Cifar10 | Self::Cifar10Python | Self::Svhn => 10,
            Self::Cifar100 | Self::Cifar100Python if is_coarse(spec)? => 20,
            Self::Cifar100 | Self::Cifar100Python => 100,
        })
    }

    /// Reads all files without decoding them. The files of training may be missing, if all are, and
    /// `is_whole` is false.
    pub(super) fn read(self, folder: &Path, set: Option<&str>, is_whole: bool) -> Result<Vec<DataFile>> {
        let [train, test] = self.names();
        let is_there = |name: &&str| self.find(folder, name, set).is_some();
        let has_train = is_whole || train.iter().any(is_there) || !test.iter().all(is_there);
        let names = [if has_train { train } else { &[] }, test].concat();
        let read = |name: &'static str| {
            let path = self.find(folder, name, set).ok_or_else(|| {
                other_format(folder)
                    .unwrap_or_else(|| Error::new(format!("{} has no file {name}", folder.display())))
            })?;
            let file = DataFile::read(name, &path)?;
            if self == Self::Idx { idx::uncompress(file) } else { Ok(file) }
        };
        names.into_iter().map(read).collect()
    }

    /// The training split, if there is one, and the test split. Every label must be below
    /// `classes`.
    pub(super) fn decode(
        self,
        files: &[DataFile],
        classes: usize,
        spec: &DataSpec,
    ) -> Result<[Option<Samples>; 2]> {
        let decode = |names: &[&str]| -> Result<Option<Samples>> {
            let named = names.iter().map(|name| DataFile::named(files, name)).collect::<Result<Vec<_>>>();
            let Ok(named) = named else { return Ok(None) };
            Ok(Some(match self {
                Self::Idx => idx::decode_split(named[0], named[1], classes)?,
                Self::Cifar10 => cifar::decode(&named, classes)?,
                Self::Cifar100 => cifar::decode_100(&named, classes, is_coarse(spec)?)?,
                Self::Cifar10Python => cifar::decode_python(&named, classes, "labels")?,
                Self::Cifar100Python => {
                    let labels = if is_coarse(spec)? { "coarse_labels" } else { "fine_labels" };
                    cifar::decode_python(&named, classes, labels)?
                }
                Self::Svhn => svhn::decode(named[0])?,
            }))
        };
        let [train, test] = self.names();
        Ok([decode(train)?, decode(test)?])
    }
}

const COARSE: &str = "coarse";

/// Whether the 20 superclasses of CIFAR-100 are asked for.
fn is_coarse(spec: &DataSpec) -> Result<bool> {
    match spec.option(LABELS) {
        None | Some("fine") => Ok(false),
        Some(COARSE) => Ok(true),
        Some(other) => Err(spec.error(format!("option {LABELS}: expected fine or {COARSE}, got {other}"))),
    }
}

/// One file of a data set.
pub(super) struct DataFile {
    /// Its canonical name.
    pub name: &'static str,
    /// Its path or URL, for messages.
    pub place: String,
    pub contents: Vec<u8>,
}

impl DataFile {
    pub(super) fn read(name: &'static str, path: &Path) -> Result<Self> {
        Ok(Self { name, place: path.display().to_string(), contents: files::read(path)? })
    }

    /// The file with this canonical name.
    pub(super) fn named<'a>(files: &'a [Self], name: &str) -> Result<&'a Self> {
        files.iter().find(|file| file.name == name).ok_or_else(|| Error::new(format!("no file {name}")))
    }

    pub(super) fn md5(&self) -> String {
        md5(&self.contents)
    }

    /// Checks that every label is below `classes`.
    pub(super) fn check_labels(&self, labels: &[u8], classes: usize) -> Result<()> {
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
    pub(super) fn bad(&self, message: impl std::fmt::Display) -> Error {
        Error::new(format!("{} {message}", self.place))
    }
}

/// The images and labels of one split as bytes.
#[derive(Debug)]
pub(super) struct Samples {
    /// One byte per value, in the order of `[n, channels, height, width]`.
    pub pixels: Vec<u8>,
    /// Channels, height and width.
    pub shape: [usize; 3],
    pub labels: Vec<u8>,
}

impl Samples {
    pub(super) fn tensors(&self) -> Result<Split> {
        let [channels, height, width] = self.shape.map(|size| size as i64);
        let images = Tensor::f_from_slice(&self.pixels)?.f_view([-1, channels, height, width])?;
        let labels = Tensor::f_from_slice(&self.labels)?.f_to_kind(Kind::Int64)?;
        Ok(Split { images, labels })
    }
}
