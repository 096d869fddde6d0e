//! Data sets of labelled images: those that are known by name, files in the formats of one of them
//! (IDX, CIFAR, SVHN), trees of image files, NumPy arrays, and data sets of PyTorch in Python files.

mod arrays;
mod cifar;
pub mod examples;
mod fetch;
mod findings;
mod idx;
mod images;
mod layout;
mod matlab;
mod npy;
mod numpy;
pub(crate) mod pack;
pub mod pairs;
mod python;
mod spec;
mod svhn;

pub use fetch::{fetch, has_published_checksums};
pub use spec::DataSpec;
pub(crate) use spec::RESIZE;

use crate::util::{files, pulse};
use crate::{Error, Result};
use layout::{DataFile, Found, LAYOUTS, Layout, Samples};
use md5::{Digest, Md5};
use plugin_api::Task;
use spec::RELABEL;
use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::thread;
use tch::Tensor;

/// The data sets that are known by name.
pub const NAMES: [&str; 5] = ["mnist", "fashion-mnist", "cifar-10", "cifar-100", "svhn"];

/// Largest number of classes: a larger label is a mistake, and would make an output of the network
/// each.
const MOST_CLASSES: i64 = 1 << 16;

/// Images and labels of one split, on the CPU.
#[derive(Debug)]
pub struct Split {
    /// Images `[n, channels, height, width]`, u8, 0 to 255.
    pub images: Tensor,
    /// Labels `[n]`, i64, from 0 to [`Dataset::classes`] - 1.
    pub labels: Tensor,
}

/// A data set for classification. The test split holds at least one image, and all images have one
/// size. Without training images, a data set can be evaluated and not trained on.
#[derive(Debug)]
pub struct Dataset {
    /// The known name, or the name of the folder.
    pub name: String,
    /// The training split.
    pub train: Split,
    /// The test split.
    pub test: Split,
    /// Number of classes: that of a known data set, the number of class folders for a tree of
    /// images, otherwise the largest label plus one. At least 2.
    pub classes: i64,
    /// The names of the classes for a tree of images (the names of its folders), for labels that
    /// were numbered anew (the labels before), and for a data set in Python that has them;
    /// otherwise empty.
    pub class_names: Vec<String>,
    /// MD5 of the uncompressed contents of each file, by its canonical name (without `.gz`), or of
    /// each array by its name. For a tree of images: one MD5 for each split, by the name of the
    /// split. It is the MD5 of the lines that `md5sum` writes for the files of the split. For a data
    /// set in Python: one MD5 for each split, of its images and labels.
    pub checksums: BTreeMap<String, String>,
    /// What reading the data showed that a reader of results on them should know.
    pub remarks: Vec<String>,
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

    /// A split without images of this size.
    fn none(&self) -> Result<Self> {
        let (images, labels) = (self.images.f_narrow(0, 0, 0)?, self.labels.f_narrow(0, 0, 0)?);
        Ok(Self { images, labels })
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

/// Reads a data set. `data` is one of [`NAMES`], whose files are in `root/NAME`, or a path, with
/// options (`,option=value`). The path is that of a Python file (`FILE.py[:NAME]`), of an archive of
/// NumPy arrays (`.npz`), or of a folder, whose format is recognised by the names of its files:
///
/// * IDX: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
///   `t10k-labels-idx1-ubyte`. A dot may replace the hyphen before `idx`
///   (`train-images.idx3-ubyte`). Files may be compressed (`.gz`), and have a name before theirs
///   (EMNIST).
/// * CIFAR-10 and CIFAR-100, in the binary and in the Python version, in the folder or in the
///   subfolder of the published archive.
/// * SVHN: `train_32x32.mat` and `test_32x32.mat`.
/// * NumPy arrays: `x_train.npy` and so on.
/// * A pack: `pack.json` and what it names, made by `host data pack`. Its images are mapped, not read.
/// * A tree of images: PNG and JPEG files in `train/CLASS/` and `test/CLASS/` (or `val/CLASS/` if
///   there is no `test`), or as in Tiny ImageNet.
///
/// The files of a known data set may differ from the published files, for example hold a subset.
/// [`Dataset::findings`] says so.
///
/// # Errors
/// If the folder or a file is missing, a file is damaged or has another format than its name, or the
/// data have no such option.
pub fn load(data: &str, root: &Path) -> Result<Dataset> {
    let spec = DataSpec::parse(data)?;
    match spec.known() {
        Some(name) => load_known(name, &spec, &root.join(name)),
        None if spec.is_python() => python::load(&spec),
        None => load_own(&spec),
    }
}

fn load_known(name: &str, spec: &DataSpec, folder: &Path) -> Result<Dataset> {
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
    let layout = Layout::of_known(name, folder);
    spec.takes(layout.options_of_known())?;
    let read = || -> Result<Dataset> {
        let files = layout.read(folder, None, true)?;
        // IDX files can hold more classes than the known data sets have.
        let classes = if layout == Layout::Idx { 10 } else { layout.classes(spec)? };
        let splits = layout.decode(&files, classes, spec)?;
        let origin = fetch::verify(name, layout, &files).map_or_else(
            |why| {
                Origin::Altered(format!(
                    "the data are not the published {name}: {}; {fetch} replaces them, \
                     --data FOLDER takes data of your own",
                    why.first_line()
                ))
            },
            |()| Origin::Published,
        );
        let name = layout.name_of_known(name, spec);
        Ok(Dataset { name, classes: classes as i64, origin, ..of_files(spec, &files, &splits)? })
    };
    read().map_err(|error| error.fix(fix))
}

fn load_own(spec: &DataSpec) -> Result<Dataset> {
    let path = spec.path();
    if spec.is_file() && path.is_file() {
        return numpy::load(spec);
    }
    if !path.is_dir() {
        let found = match (path.exists(), spec.is_file()) {
            (true, _) => "this is a file",
            (false, true) => "there is no such file",
            (false, false) => "there is no such folder",
        };
        let message = format!("{} is neither a known data set nor a folder: {found}", path.display());
        return Err(Error::new(message).note("known", NAMES.join(", ")).fix(format!(
            "give a known name, the path of a folder with {LAYOUTS}, a file of NumPy arrays (.npz), or a Python \
             file with data sets of PyTorch (.py:NAME)"
        )));
    }
    // Its own name, whatever it was called by.
    let spec = &spec.at(&fs::canonicalize(path).map_err(|why| Error::file("find", path, why))?);
    let folder = path;
    let layout = match layout::detect(folder)? {
        Found::Files(layout) => layout,
        Found::Images => return images::load_tree(folder, spec),
        Found::TinyImageNet => return images::load_tiny_imagenet(folder, spec),
        Found::Arrays => return numpy::load(spec),
        Found::Pack => return pack::load(folder, spec),
    };
    spec.takes(layout.options())?;
    let read = || -> Result<Dataset> {
        let set = layout.set(folder, spec)?;
        let files = layout.read(folder, set.as_deref(), false)?;
        let splits = layout.decode(&files, layout.classes(spec)?, spec)?;
        let name = spec.name();
        let origin = fetch::verify(&name, layout, &files).map_or(Origin::Own, |()| Origin::Published);
        Ok(Dataset { origin, ..of_files(spec, &files, &splits)? })
    };
    let names = layout.names().concat();
    let fix = format!("get the files from their source again: {}", names.join(", "));
    read().map_err(|error| if error.advice().is_some() { error } else { error.fix(fix) })
}

/// Makes a data set of decoded samples: those of training, if there are any, and those of the test.
fn of_files(spec: &DataSpec, files: &[DataFile], splits: &[Option<Samples>; 2]) -> Result<Dataset> {
    let [train, test] = splits.each_ref().map(|split| split.as_ref().map(Samples::tensors).transpose());
    let test = test?.ok_or_else(|| Error::new("there are no test images"))?;
    let checksums = files.iter().map(|file| (file.name.to_owned(), file.md5())).collect();
    let read = Dataset::of_splits(spec, train?, test, checksums);
    read.map_err(|error| {
        let places = files.iter().map(|file| file.place.as_str());
        error.note("files", places.collect::<Vec<_>>().join(", "))
    })
}

impl Dataset {
    /// A data set of the user's with these splits. Its labels are numbered anew if the option
    /// `relabel` says so.
    ///
    /// # Errors
    /// If the splits do not fit together, or a label is out of range.
    fn of_splits(
        spec: &DataSpec,
        train: Option<Split>,
        mut test: Split,
        checksums: BTreeMap<String, String>,
    ) -> Result<Self> {
        let name = spec.name();
        let mut train = train.map_or_else(|| test.none(), Ok)?;
        let [of_train, of_test] = [&train, &test].map(|split| split.images.size()[1..].to_vec());
        if of_train != of_test {
            let [train, test] = [of_train, of_test].map(|size| sizes(&size));
            return Err(Error::new(format!(
                "images of {name} differ in size: {train} for training, {test} for testing"
            )));
        }
        let class_names = if spec.parsed(RELABEL, "true or false")?.unwrap_or(false) {
            arrays::relabel(&mut train, &mut test)?.iter().map(i64::to_string).collect()
        } else {
            Vec::new()
        };
        let labels = Tensor::f_cat(&[&train.labels, &test.labels], 0)?;
        let [low, high] = [labels.f_min()?, labels.f_max()?].map(|label| label.int64_value(&[]));
        if low < 0 || high >= MOST_CLASSES {
            let most = MOST_CLASSES - 1;
            return Err(Error::new(format!(
                "{name} has labels from {low} to {high}: expected whole numbers from 0 to {most}"
            ))
            .fix(
                "number the classes from 0, or let the option relabel=true do so: --data PLACE,relabel=true",
            ));
        }
        let classes = (high + 1).max(2);
        let (remarks, origin) = (Vec::new(), Origin::Own);
        Ok(Self { name, train, test, classes, class_names, checksums, remarks, origin })
    }
}

/// Sizes as text: `1 x 28 x 28`.
fn sizes<T: ToString>(sizes: &[T]) -> String {
    sizes.iter().map(T::to_string).collect::<Vec<_>>().join(" x ")
}

/// Applies a function to all items, on all cores. The results are in the order of the items.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let work = &|item| {
        pulse::beat();
        work(item)
    };
    let parts: Vec<Result<Vec<R>>> = thread::scope(|scope| {
        let share = items.len().div_ceil(cores).max(1);
        let parts: Vec<_> = items
            .chunks(share)
            .map(|part| scope.spawn(move || part.iter().map(work).collect::<Result<Vec<R>>>()))
            .collect();
        let panicked = |_| Err(Error::new("a thread that reads images panicked"));
        parts.into_iter().map(|part| part.join().unwrap_or_else(panicked)).collect()
    });
    let mut results = Vec::with_capacity(items.len());
    for part in parts {
        results.extend(part?);
    }
    Ok(results)
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
    use tch::Kind;
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
            format!("DIR holds more than one data set: expected {LAYOUTS}")
        );
        let neither = folder_with(&[("notes.txt", Vec::new())]);
        assert_eq!(
            first_line(load_path(&neither), neither.path()),
            format!("DIR holds no data set: expected {LAYOUTS}")
        );
        let path = neither.path().join("notes.txt");
        assert_eq!(
            first_line(load(path.to_str().unwrap(), Path::new("unused")), neither.path()),
            "DIR/notes.txt is neither a known data set nor a folder: this is a file"
        );
    }

    #[test]
    fn other_formats_are_called_by_their_names() {
        let expected = format!("expected {LAYOUTS}");
        for (name, what) in [
            ("cifar-10-batches-mat/data_batch_1.mat", "CIFAR-10's MATLAB version"),
            ("cifar-10-binary.tar.gz", "an archive that is still packed"),
            ("tiny-imagenet-200/wnids.txt", "the folder of Tiny ImageNet"),
            ("mnist.npz", "Keras's copy of MNIST"),
            ("MNIST/raw", "torchvision's folder of MNIST"),
        ] {
            let folder = folder_with(&[(name, Vec::new())]);
            let found =
                name.split("/data_batch").next().and_then(|name| name.split("/wnids").next()).unwrap();
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
    fn cifar_is_read_in_both_versions_and_cifar_100_with_both_kinds_of_labels() {
        use cifar::tests::pickled;
        let python = |labels: &[(&str, &[u8])]| pickled(labels, &[7; 3072]);
        let below = |folder: &str, name: &str| format!("{folder}/{name}");
        let names = cifar::PYTHON_NAMES.map(|name| below(cifar::PYTHON_FOLDER, name));
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), python(&[("labels", &[4])]))).collect();
        let data = load_path(&folder_with(&files)).unwrap();
        assert_eq!((data.train.count(), data.test.count(), data.classes), (5, 1, 5));
        assert_eq!(data.train.labels, Tensor::from_slice(&[4i64; 5]));
        assert_eq!(data.checksums["test_batch"], md5(&python(&[("labels", &[4])])));

        let both: [(&str, &[u8]); 2] = [("fine_labels", &[99]), ("coarse_labels", &[19])];
        let record = [&[19u8, 99][..], &[7; 3072]].concat();
        let versions = [
            [("train", python(&both)), ("test", python(&both))],
            [("cifar-100-binary/train.bin", record.clone()), ("cifar-100-binary/test.bin", record)],
        ];
        for files in versions {
            let root = tempfile::tempdir().unwrap();
            let folder = folder_with(&files);
            std::os::unix::fs::symlink(folder.path(), root.path().join("cifar-100")).unwrap();
            for (options, label, classes, name) in
                [("", 99, 100, "cifar-100"), (",labels=coarse", 19, 20, "cifar-100-coarse")]
            {
                let data = load(&format!("cifar-100{options}"), root.path()).unwrap();
                assert_eq!((data.classes, data.name.as_str()), (classes, name));
                assert_eq!(data.test.labels, Tensor::from_slice(&[label]));
                let own = load(&format!("{}{options}", folder.path().display()), root.path()).unwrap();
                assert_eq!((own.classes, own.train.labels), (label + 1, Tensor::from_slice(&[label])));
            }
            let error = load("cifar-100,labels=medium", root.path());
            assert_eq!(
                first_line(error, root.path()),
                "--data cifar-100: option labels: expected fine or coarse, got medium"
            );
        }
        let error = load("cifar-100,set=a", folder_with(&[("cifar-100/train", Vec::new())]).path());
        assert_eq!(
            first_line(error, Path::new("/unused")),
            "--data cifar-100: there is no option set of these data"
        );
    }

    #[test]
    fn a_test_split_alone_can_be_read() {
        let data = load_path(&folder_with(&idx_files()[2..])).unwrap();
        assert_eq!((data.train.count(), data.test.count()), (0, 1));
        assert_eq!(data.train.images.size(), [0, 1, 2, 3]);
        assert_eq!(data.checksums.len(), 2);
        let folder = folder_with(&idx_files()[..2]);
        assert_eq!(first_line(load_path(&folder), folder.path()), "DIR has no file t10k-images-idx3-ubyte");
        let folder = folder_with(&idx_files()[1..]);
        assert_eq!(first_line(load_path(&folder), folder.path()), "DIR has no file train-images-idx3-ubyte");
    }

    #[test]
    fn one_of_several_sets_in_a_folder_is_named() {
        let named = |set: &str, label: u8| {
            let mut files = idx_files();
            (files[1].1, files[3].1) = (idx::encode(&[2], &[label, 1]), idx::encode(&[1], &[label]));
            let name = |name: &str| format!("{set}-{}", name.replace("t10k", "test"));
            files.into_iter().map(|(file, contents)| (name(file), contents)).collect::<Vec<_>>()
        };
        let files = [named("emnist-letters", 26), named("emnist-digits", 9)].concat();
        let files: Vec<_> = files.iter().map(|(name, contents)| (name.as_str(), contents.clone())).collect();
        let folder = folder_with(&files);
        let message = first_line(load_path(&folder), folder.path());
        assert_eq!(message, "DIR holds 2 sets of IDX files: expected one");
        let load =
            |options: &str| load(&format!("{}{options}", folder.path().display()), Path::new("unused"));
        assert_eq!(load(",set=emnist-digits").unwrap().classes, 10);
        // Labels that begin at 1 are said, and numbered from 0 on request.
        let letters = load(",set=emnist-letters").unwrap();
        assert_eq!(letters.classes, 27);
        let findings = letters.findings().unwrap().join("\n");
        assert!(findings.contains("labels begin at 1: the option relabel=true"), "{findings}");
        let letters = load(",set=emnist-letters,relabel=true").unwrap();
        assert_eq!((letters.classes, &letters.class_names[..]), (2, &["1", "26"].map(str::to_owned)[..]));
        assert!(load(",set=emnist").unwrap_err().to_string().contains("emnist-digits, emnist-letters"));
        let only = folder_with(&files[..4]);
        assert_eq!(load_path(&only).unwrap().classes, 27);
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
