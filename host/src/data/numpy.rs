//! Data sets of NumPy arrays: an archive `.npz`, or a folder of files `.npy`.

use super::arrays::{self, LAYOUT, LAYOUTS};
use super::npy::{self, Array};
use super::spec::RELABEL;
use super::{DataSpec, Dataset, Split, md5};
use crate::util::files;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;
use zip::ZipArchive;

/// The ending of an archive.
pub(super) const ARCHIVE: &str = ".npz";

/// The ending of a file with one array.
pub(super) const ENDING: &str = ".npy";

/// Largest uncompressed size of an array.
const MOST_BYTES: u128 = 64 << 30;

/// Usual names of the images and labels of a split; `*` stands for `train`, or `test` or `val`.
const OF_A_SPLIT: [[&str; 2]; 6] = [
    ["x_*", "y_*"],
    ["X_*", "y_*"],
    ["*_images", "*_labels"],
    ["*_x", "*_y"],
    ["images_*", "labels_*"],
    ["*_data", "*_labels"],
];

/// Usual names in a file of one split.
const OF_ONE: [[&str; 2]; 7] = [
    ["x", "y"],
    ["X", "y"],
    ["images", "labels"],
    ["image", "label"],
    ["data", "labels"],
    ["data", "targets"],
    ["arr_0", "arr_1"],
];

/// The options: names of arrays, and the order of their dimensions.
const OPTIONS: [&str; 8] =
    ["images", "labels", "train_images", "train_labels", "test_images", "test_labels", LAYOUT, RELABEL];

/// Reads the file of an array.
type Reader = dyn FnMut(&str) -> Result<Vec<u8>>;

/// Arrays by their names.
struct Store {
    /// The path of the archive or folder, for messages.
    place: String,
    names: Vec<String>,
    read: Box<Reader>,
}

/// The names of the images and of the labels of a split.
type Names = [String; 2];

/// Whether a folder holds arrays.
pub(super) fn found(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| array_name(&entry.path()).is_some()))
    })
}

/// The name of the array in a file of this path.
fn array_name(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.strip_suffix(ENDING).map(str::to_owned)
}

/// Reads an archive or a folder.
///
/// # Errors
/// If an array is missing, damaged, or holds other than images or labels.
pub(super) fn load(spec: &DataSpec) -> Result<Dataset> {
    spec.takes(&OPTIONS)?;
    let layout = spec.parsed(LAYOUT, LAYOUTS)?;
    let mut store = if spec.path().is_dir() { folder(spec.path())? } else { archive(spec.path())? };
    let (train, test) = store.splits(spec)?;
    let (mut checksums, mut findings) = (BTreeMap::new(), Vec::new());
    let mut read = |names: &Names| -> Result<Split> {
        let [images, labels] = names.each_ref().map(|name| {
            let bytes = (store.read)(name)?;
            checksums.insert(name.clone(), md5(&bytes));
            Array::read(&format!("{name} of {}", store.place), &bytes)
        });
        let (split, found) = arrays::split(&images?, &labels?, layout)?;
        findings.extend(found);
        Ok(split)
    };
    let test = read(&test)?;
    let train = train.as_ref().map(&mut read).transpose()?;
    let dataset = Dataset::of_splits(spec, train, test, checksums)?;
    Ok(Dataset { remarks: findings, ..dataset })
}

/// The arrays of a folder.
fn folder(folder: &Path) -> Result<Store> {
    let failed = |why| Error::file("list", folder, why);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(array_name(&entry.map_err(failed)?.path()));
    }
    names.sort();
    let path = folder.to_owned();
    let read = move |name: &str| files::read(&path.join(format!("{name}{ENDING}")));
    Ok(Store { place: folder.display().to_string(), names, read: Box::new(read) })
}

/// The arrays of an archive.
fn archive(path: &Path) -> Result<Store> {
    let place = path.display().to_string();
    let damaged = |place: &str, why: &dyn std::fmt::Display| {
        Error::new(format!("{place} is no whole archive of NumPy arrays (.npz): {why}"))
            .fix("write it again with numpy.savez, or get it from its source again")
    };
    let mut archive =
        ZipArchive::new(Cursor::new(files::read(path)?)).map_err(|why| damaged(&place, &why))?;
    let names = archive.file_names().filter_map(std::result::Result::ok);
    let mut names: Vec<_> = names.filter_map(|name| array_name(Path::new(&*name))).collect();
    names.sort();
    let shown = place.clone();
    let read = move |name: &str| {
        let failed = |why: &dyn std::fmt::Display| damaged(&format!("{name} of {place}"), why);
        let mut entry = archive.by_name(&format!("{name}{ENDING}")).map_err(|why| failed(&why))?;
        // No more is decompressed than the header announces.
        let mut bytes = Vec::new();
        (&mut entry).take(npy::START).read_to_end(&mut bytes).map_err(|why| failed(&why))?;
        if let Some(announced) = npy::announced_bytes(&bytes) {
            if announced > MOST_BYTES {
                return Err(failed(&format_args!(
                    "its header announces {announced} bytes, expected at most {MOST_BYTES}"
                )));
            }
            let missing = (announced as u64 + 1).saturating_sub(bytes.len() as u64);
            (&mut entry).take(missing).read_to_end(&mut bytes).map_err(|why| failed(&why))?;
            bytes.truncate(announced as usize + 1);
        }
        Ok(bytes)
    };
    Ok(Store { place: shown, names, read: Box::new(read) })
}

impl Store {
    /// The names of the arrays of the training split, if there is one, and of the test split.
    fn splits(&self, spec: &DataSpec) -> Result<(Option<Names>, Names)> {
        let given = |start: &str| {
            let [images, labels] = ["images", "labels"].map(|what| format!("{start}{what}"));
            match (spec.option(&images), spec.option(&labels)) {
                (Some(of_images), Some(of_labels)) => Ok(Some([of_images, of_labels].map(str::to_owned))),
                (None, None) => Ok(None),
                _ => Err(spec
                    .error(format!("expected both options {images} and {labels}, got one of them"))
                    .fix("name the array of the images and that of the labels")),
            }
        };
        let (one, train, test) = (given("")?, given("train_")?, given("test_")?);
        if one.is_some() && (train.is_some() || test.is_some()) {
            return Err(spec
                .error(
                    "the options images and labels name the only split: expected no train_ or test_ options",
                )
                .fix("name test_images and test_labels instead"));
        }
        let named = [&one, &train, &test].into_iter().flatten().flatten();
        for name in named {
            if !self.names.contains(name) {
                return Err(self.bad(format!("has no array {name}")).fix("name one of its arrays"));
            }
        }
        let train = train.or_else(|| self.usual("train"));
        let test = one.clone().or(test).or_else(|| self.usual("test")).or_else(|| self.usual("val"));
        match (train, test) {
            (_, Some(test)) if one.is_some() => Ok((None, test)),
            (train, Some(test)) => Ok((train, test)),
            (Some([images, labels]), None) => Err(self
                .bad(format!("has no test images: expected arrays such as x_test and y_test beside {images} and {labels}"))
                .fix("name them with the options test_images and test_labels")),
            (None, None) => match OF_ONE.into_iter().find_map(|pair| self.both(pair.map(str::to_owned))) {
                Some(only) => Ok((None, only)),
                None => Err(self
                    .bad("has no arrays of usual names: expected x_train, y_train, x_test, y_test")
                    .fix(
                        "name the arrays: --data PLACE,train_images=A,train_labels=B,test_images=C,test_labels=D, or \
                         images=A,labels=B for the only split",
                    )),
            },
        }
    }

    /// The arrays of a split under usual names.
    fn usual(&self, split: &str) -> Option<Names> {
        OF_A_SPLIT.into_iter().find_map(|pair| self.both(pair.map(|name| name.replace('*', split))))
    }

    /// These arrays, if both are there.
    fn both(&self, pair: Names) -> Option<Names> {
        pair.iter().all(|name| self.names.contains(name)).then_some(pair)
    }

    /// An error about the archive or the folder, with the names of its arrays.
    fn bad(&self, message: impl std::fmt::Display) -> Error {
        let names = if self.names.is_empty() { "none".to_owned() } else { self.names.join(", ") };
        Error::new(format!("{} {message}", self.place)).note("arrays", names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::load as load_any;
    use crate::data::npy::encode;
    use crate::data::tests::{first_line, folder_with};
    use std::io::Write;
    use tempfile::TempDir;
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    /// Images of 2 x 3 pixels, and labels.
    fn arrays(images: &str, labels: &str, of: &[u8]) -> [(String, Vec<u8>); 2] {
        let pixels: Vec<u8> = (10..).take(6 * of.len()).collect();
        [
            (images.to_owned(), encode("|u1", &[of.len(), 2, 3], &pixels)),
            (labels.to_owned(), encode("|u1", &[of.len()], of)),
        ]
    }

    fn usual() -> Vec<(String, Vec<u8>)> {
        [arrays("x_train", "y_train", &[0, 2, 1]), arrays("x_test", "y_test", &[1])].concat()
    }

    fn zipped(arrays: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in arrays {
            let options = SimpleFileOptions::default().compression_method(method);
            archive.start_file(format!("{name}.npy"), options).expect("begun");
            archive.write_all(bytes).expect("written");
        }
        archive.finish().expect("finished").into_inner()
    }

    fn with_archive(arrays: &[(String, Vec<u8>)]) -> TempDir {
        folder_with(&[("mine.npz", zipped(arrays, CompressionMethod::Deflated))])
    }

    fn load_archive(folder: &TempDir, options: &str) -> Result<Dataset> {
        load_any(&format!("{}{options}", folder.path().join("mine.npz").display()), Path::new("unused"))
    }

    fn refusal(arrays: &[(String, Vec<u8>)], options: &str) -> String {
        let folder = with_archive(arrays);
        first_line(load_archive(&folder, options), folder.path())
    }

    #[test]
    fn archives_and_folders_of_the_same_arrays_are_the_same_data() {
        let folder = with_archive(&usual());
        let data = load_archive(&folder, "").expect("valid");
        assert_eq!((data.name.as_str(), data.classes), ("mine.npz", 3));
        assert_eq!(data.train.images.size(), [3, 1, 2, 3]);
        assert_eq!(Vec::<i64>::try_from(&data.train.labels).unwrap(), [0, 2, 1]);
        assert_eq!(data.checksums.keys().collect::<Vec<_>>(), ["x_test", "x_train", "y_test", "y_train"]);
        let files: Vec<_> = usual().into_iter().map(|(name, bytes)| (format!("{name}.npy"), bytes)).collect();
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        let plain = folder_with(&files);
        let same = load_any(plain.path().to_str().unwrap(), Path::new("unused")).expect("valid");
        assert_eq!((&same.checksums, &same.train.images), (&data.checksums, &data.train.images));
        let stored = folder_with(&[("mine.npz", zipped(&usual(), CompressionMethod::Stored))]);
        assert_eq!(load_archive(&stored, "").expect("valid").checksums, data.checksums);
    }

    #[test]
    fn arrays_of_other_names_are_named_by_options() {
        let two = [arrays("a", "b", &[0, 1]), arrays("c", "d", &[1])].concat();
        let folder = with_archive(&two);
        let options = ",train_images=a,train_labels=b,test_images=c,test_labels=d";
        let data = load_archive(&folder, options).expect("valid");
        assert_eq!((data.train.count(), data.test.count()), (2, 1));
        let data = load_archive(&folder, ",images=a,labels=b").expect("valid");
        assert_eq!((data.train.count(), data.test.count()), (0, 2));
        assert_eq!(data.train.images.size(), [0, 1, 2, 3]);
        assert_eq!(refusal(&two, ",images=a,labels=z"), "DIR/mine.npz has no array z");
        assert_eq!(
            refusal(&two, ",images=a"),
            "--data DIR/mine.npz: expected both options images and labels, got one of them"
        );
        assert_eq!(
            refusal(&two, ""),
            "DIR/mine.npz has no arrays of usual names: expected x_train, y_train, x_test, y_test"
        );
        assert_eq!(
            refusal(&two[..2], ",train_images=a,train_labels=b"),
            "DIR/mine.npz has no test images: expected arrays such as x_test and y_test beside a and b"
        );
    }

    #[test]
    fn usual_names_are_found() {
        for names in OF_A_SPLIT {
            let [train, test] = ["train", "val"].map(|split| names.map(|name| name.replace('*', split)));
            let both = [arrays(&train[0], &train[1], &[0, 1]), arrays(&test[0], &test[1], &[1])].concat();
            let data = load_archive(&with_archive(&both), "").expect("valid");
            assert_eq!((data.train.count(), data.test.count()), (2, 1), "{names:?}");
        }
        for [images, labels] in OF_ONE {
            let data = load_archive(&with_archive(&arrays(images, labels, &[0, 1])), "").expect("valid");
            assert_eq!((data.train.count(), data.test.count()), (0, 2), "{images}");
            let findings = data.findings().expect("findings");
            assert!(findings[0].starts_with("there are no training images"), "{findings:?}");
        }
    }

    #[test]
    fn pickled_objects_and_damaged_archives_are_refused() {
        let mut pickled = usual();
        pickled[3].1 = encode("|O", &[1], b"\x80\x04N.");
        assert_eq!(
            refusal(&pickled, ""),
            "y_test of DIR/mine.npz holds pickled Python objects (dtype object), which are never unpickled: \
             expected numbers"
        );
        let folder = folder_with(&[("mine.npz", b"no archive".to_vec())]);
        let message = first_line(load_archive(&folder, ""), folder.path());
        assert!(
            message.starts_with("DIR/mine.npz is no whole archive of NumPy arrays (.npz): "),
            "{message}"
        );
        let mut whole = zipped(&usual(), CompressionMethod::Stored);
        let middle = whole.windows(6).position(|bytes| bytes == [10, 11, 12, 13, 14, 15]).expect("pixels");
        whole[middle] ^= 1;
        let folder = folder_with(&[("mine.npz", whole)]);
        let message = first_line(load_archive(&folder, ""), folder.path());
        assert!(message.contains(" of DIR/mine.npz is no whole archive"), "{message}");
        assert_eq!(
            refusal(&usual(), ",layuot=NHWC"),
            "--data DIR/mine.npz: there is no option layuot of these data"
        );
        assert_eq!(
            refusal(&usual(), ",layout=HWN"),
            "--data DIR/mine.npz: option layout: expected NHW, NHWC or NCHW, got HWN"
        );
    }

    #[test]
    fn an_archive_of_numpy_is_read() {
        use crate::util::fuzz::repository_file;
        let folder = folder_with(&[("mine.npz", repository_file("tests/end-to-end/inputs/numpy.npz"))]);
        let data = load_archive(&folder, "").expect("valid");
        assert_eq!((data.train.images.size(), data.test.images.size()), (vec![6, 3, 4, 5], vec![2, 3, 4, 5]));
        for (split, images) in [(&data.train, 6), (&data.test, 2)] {
            for image in 0..images {
                for (channel, row, column) in [(0, 0, 0), (2, 3, 4), (1, 2, 0), (0, 1, 3)] {
                    let expected = (40 * image + 7 * row + 3 * column + 11 * channel) % 256;
                    assert_eq!(split.images.int64_value(&[image, channel, row, column]), expected);
                }
            }
        }
        assert_eq!(Vec::<i64>::try_from(&data.train.labels).unwrap(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(Vec::<i64>::try_from(&data.test.labels).unwrap(), [2, 1]);
        assert!(data.remarks.is_empty(), "{:?}", data.remarks);
    }

    #[test]
    fn a_small_archive_cannot_fill_the_memory() {
        let mut large = usual();
        large[0].1 = encode("|u1", &[1 << 20, 1 << 20, 1 << 20], &[0; 1 << 20]);
        assert!(refusal(&large, "").contains("expected at most 68719476736"), "{}", refusal(&large, ""));
        large[0].1 = encode("|u1", &[2, 2, 3], &[0; 1 << 20]);
        assert_eq!(
            refusal(&large, ""),
            "x_train of DIR/mine.npz has trailing bytes: expected 12 bytes for 2 x 2 x 3 numbers of uint8, got 13"
        );
    }

    #[test]
    fn labels_are_numbered_anew_on_request() {
        let letters = [arrays("x_train", "y_train", &[1, 2, 5]), arrays("x_test", "y_test", &[2])].concat();
        let folder = with_archive(&letters);
        let plain = load_archive(&folder, "").expect("valid");
        assert_eq!((plain.classes, plain.class_names.len()), (6, 0));
        assert!(
            plain
                .findings()
                .expect("findings")
                .iter()
                .any(|finding| finding.contains("no image of classes 0, 3, 4"))
        );
        let data = load_archive(&folder, ",relabel=true").expect("valid");
        assert_eq!((data.classes, &data.class_names[..]), (3, &["1", "2", "5"].map(str::to_owned)[..]));
        assert_eq!(Vec::<i64>::try_from(&data.train.labels).unwrap(), [0, 1, 2]);
        assert_eq!(Vec::<i64>::try_from(&data.test.labels).unwrap(), [1]);
        assert_eq!(
            refusal(&letters, ",relabel=yes"),
            "--data DIR/mine.npz: option relabel: expected true or false, got yes"
        );
    }

    #[test]
    fn fuzz_archives_and_arrays_may_be_damaged() {
        use crate::util::fuzz::withstands;
        /// The densest deflate stream has 1/1032 of its contents, and values are copied.
        const UNPACKED: usize = 4 * 1032;
        let folder = with_archive(&usual());
        let valid = [CompressionMethod::Stored, CompressionMethod::Deflated].map(|way| zipped(&usual(), way));
        let read = |path: &Path| load_any(path.to_str().unwrap(), Path::new("unused"));
        withstands(&valid, &folder.path().join("mine.npz"), UNPACKED, read);
        let array = encode("<f4", &[2, 2, 3], &[0; 48]);
        withstands(&[array], &folder.path().join("mine.npy"), 256, |path| {
            Array::read(&path.display().to_string(), &files::read(path)?)
        });
    }
}
