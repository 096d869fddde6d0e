//! CIFAR-10 and CIFAR-100 in two of their published versions. In the binary one, a record is one label
//! byte (CIFAR-100: the superclass, then the class), then the red, the green and the blue plane of a
//! 32 x 32 image, row by row. In the Python one, a file is a pickled dictionary with the same
//! planes as an array, and lists of labels. Nothing in it is executed.

use super::layout::{DataFile, Samples};
use crate::Result;
use crate::util::pickle::Pickle;

/// The canonical names of the files of CIFAR-10: five for training, one for testing.
pub(super) const NAMES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// The same of the Python version.
pub(super) const PYTHON_NAMES: [&str; 6] =
    ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"];

/// The canonical names of the files of CIFAR-100: one for training, one for testing.
pub(super) const NAMES_100: [&str; 2] = ["train.bin", "test.bin"];

/// The same of the Python version.
pub(super) const PYTHON_NAMES_100: [&str; 2] = ["train", "test"];

/// The names of the folders inside the original archives.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";
pub(super) const PYTHON_FOLDER: &str = "cifar-10-batches-py";
pub(super) const FOLDER_100: &str = "cifar-100-binary";
pub(super) const PYTHON_FOLDER_100: &str = "cifar-100-python";

const SHAPE: [usize; 3] = [3, 32, 32];
/// Bytes of an image.
const IMAGE: usize = 3 * 32 * 32;
/// Bytes of a record: a label and an image.
pub(super) const RECORD: usize = 1 + IMAGE;
/// Bytes of a record of CIFAR-100: two labels and an image.
pub(super) const RECORD_100: usize = 2 + IMAGE;

/// Decodes a split of CIFAR-10. Every label must be below `classes`.
///
/// # Errors
/// If a file is empty, ends within a record, or has a label out of range.
pub(super) fn decode(files: &[&DataFile], classes: usize) -> Result<Samples> {
    decode_records::<RECORD>(files, classes, 0)
}

/// Decodes a split of CIFAR-100, with the labels of the classes, or those of the superclasses.
///
/// # Errors
/// As for [`decode`].
pub(super) fn decode_100(files: &[&DataFile], classes: usize, is_coarse: bool) -> Result<Samples> {
    decode_records::<RECORD_100>(files, classes, usize::from(!is_coarse))
}

/// Decodes records of `N` bytes, of which the image is the end, and the label the byte `label`.
fn decode_records<const N: usize>(files: &[&DataFile], classes: usize, label: usize) -> Result<Samples> {
    let mut samples = Samples { pixels: Vec::new(), shape: SHAPE, labels: Vec::new() };
    for file in files {
        let (records, rest) = file.contents.as_chunks::<N>();
        if !rest.is_empty() {
            return Err(file.bad(format!(
                "does not hold a whole number of records: expected a multiple of {N} bytes, got {}",
                file.contents.len()
            )));
        }
        if records.is_empty() {
            return Err(file.bad(format!("holds no images: expected records of {N} bytes, got 0 bytes")));
        }
        let labels: Vec<u8> = records.iter().map(|record| record[label]).collect();
        file.check_labels(&labels, classes)?;
        samples.labels.extend(labels);
        for record in records {
            samples.pixels.extend_from_slice(&record[N - IMAGE..]);
        }
    }
    Ok(samples)
}

/// Decodes a split of the Python version, with the labels of this key.
///
/// # Errors
/// If a file is no pickled dictionary with images and labels, or has a label out of range.
pub(super) fn decode_python(files: &[&DataFile], classes: usize, labels_key: &str) -> Result<Samples> {
    let mut samples = Samples { pixels: Vec::new(), shape: SHAPE, labels: Vec::new() };
    for file in files {
        let bad = |why: String| {
            let error = file.bad(format!("is no file of CIFAR's Python version: {why}"));
            error.fix("get the files from their source again: https://www.cs.toronto.edu/~kriz/cifar.html")
        };
        let pickle = Pickle::read(&file.contents).map_err(|why| bad(why.to_string()))?;
        let value = |key: &str| {
            pickle.root().get(key).ok_or_else(|| bad(format!("expected a dictionary with {key}, got none")))
        };
        let images = value("data")?.numpy_array().map_err(|why| bad(format!("data is {why}")))?;
        let count = images.shape.first().copied().unwrap_or(0);
        if images.shape != [count, IMAGE] || !images.dtype.ends_with("u1") || images.fortran || count == 0 {
            let (shape, dtype) = (super::sizes(&images.shape), &images.dtype);
            return Err(bad(format!("expected data of n x {IMAGE} bytes, got {shape} of type {dtype}")));
        }
        let labels = value(labels_key)?;
        let labels: Option<Vec<u8>> =
            labels.items().and_then(|labels| labels.map(|label| label.integer()).collect());
        let labels =
            labels.ok_or_else(|| bad(format!("expected a list of whole numbers as {labels_key}")))?;
        if labels.len() != count {
            return Err(bad(format!("it has {} {labels_key}, but {count} images", labels.len())));
        }
        file.check_labels(&labels, classes)?;
        samples.labels.extend(labels);
        samples.pixels.extend_from_slice(&images.bytes);
    }
    Ok(samples)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::data::tests::first_line;
    use std::path::Path;

    fn record(label: u8, pixel: impl Fn(usize, usize, usize) -> u8) -> Vec<u8> {
        let mut record = vec![label];
        for channel in 0..3 {
            for row in 0..32 {
                record.extend((0..32).map(|column| pixel(channel, row, column)));
            }
        }
        record
    }

    fn files(mut change: impl FnMut(usize, &mut Vec<u8>)) -> Vec<DataFile> {
        let file = |(index, name): (usize, &'static str)| {
            let mut contents =
                record(index as u8, |channel, row, column| (100 * channel + 32 * row + column) as u8);
            change(index, &mut contents);
            DataFile { name, place: format!("DIR/{name}"), contents }
        };
        NAMES.into_iter().enumerate().map(file).collect()
    }

    /// The training and the test split.
    fn decode_both(files: &[DataFile]) -> Result<[Samples; 2]> {
        let files: Vec<_> = files.iter().collect();
        let (training, testing) = files.split_at(5);
        Ok([decode(training, 10)?, decode(testing, 10)?])
    }

    fn message(files: &[DataFile]) -> String {
        first_line(decode_both(files), Path::new("unused"))
    }

    #[test]
    fn records_become_images_in_order() {
        let second = record(9, |channel, row, column| (7 * channel + 3 * row + column) as u8);
        let files = files(|index, contents| {
            if index == 1 {
                contents.extend(&second);
            }
        });
        let [train, test] = decode_both(&files).unwrap();
        assert_eq!(train.labels, [0, 1, 9, 2, 3, 4]);
        assert_eq!(test.labels, [5]);

        let images = train.tensors().unwrap().images;
        assert_eq!(images.size(), [6, 3, 32, 32]);
        let pixel = |index: [i64; 4]| images.int64_value(&index);
        assert_eq!(pixel([0, 2, 1, 5]), 200 + 32 + 5);
        assert_eq!(pixel([0, 0, 0, 31]), 31);
        assert_eq!(pixel([2, 1, 30, 4]), 7 + 90 + 4);
        assert_eq!(pixel([2, 2, 31, 31]), 14 + 93 + 31);
    }

    #[test]
    fn a_file_that_ends_within_a_record_is_refused() {
        let truncated = files(|index, contents| contents.truncate(if index == 3 { 3000 } else { RECORD }));
        assert_eq!(
            message(&truncated),
            "DIR/data_batch_4.bin does not hold a whole number of records: expected a multiple of 3073 bytes, got 3000"
        );
        let trailing = files(|index, contents| contents.extend(vec![0; index / 5]));
        assert_eq!(
            message(&trailing),
            "DIR/test_batch.bin does not hold a whole number of records: expected a multiple of 3073 bytes, got 3074"
        );
        let empty = files(|index, contents| contents.truncate(if index == 5 { 0 } else { RECORD }));
        assert_eq!(
            message(&empty),
            "DIR/test_batch.bin holds no images: expected records of 3073 bytes, got 0 bytes"
        );
    }

    #[test]
    fn a_label_out_of_range_is_refused() {
        let files = files(|index, contents| contents[0] = if index == 1 { 10 } else { 0 });
        assert_eq!(message(&files), "DIR/data_batch_2.bin has label 10 at index 0: expected 0 to 9");
    }

    /// A pickle of protocol 2 as Python 2 wrote CIFAR's: keys and planes are byte strings.
    pub(crate) fn pickled(labels: &[(&str, &[u8])], pixels: &[u8]) -> Vec<u8> {
        let text = |text: &str| [&[b'U', text.len() as u8][..], text.as_bytes()].concat();
        let number = |number: u8| vec![b'K', number];
        let count = (pixels.len() / IMAGE) as u8;
        let array = [
            b"cnumpy.core.multiarray\n_reconstruct\n".to_vec(),
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01".to_vec(),
            [&b"K"[..], &[count], b"M", &(IMAGE as u16).to_le_bytes(), b"\x86"].concat(),
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
                .to_vec(),
            [&b"\x89T"[..], &(pixels.len() as u32).to_le_bytes(), pixels, b"tb"].concat(),
        ]
        .concat();
        let lists = labels.iter().flat_map(|(key, labels)| {
            let numbers: Vec<u8> = labels.iter().flat_map(|label| number(*label)).collect();
            [text(key), b"](".to_vec(), numbers, b"e".to_vec()].concat()
        });
        [&b"\x80\x02}("[..], &text("data"), &array, &lists.collect::<Vec<u8>>(), b"u."].concat()
    }

    fn python_file(contents: Vec<u8>) -> DataFile {
        DataFile { name: "data_batch_1", place: "DIR/data_batch_1".to_owned(), contents }
    }

    #[test]
    fn the_python_version_has_the_same_images_as_the_binary_one() {
        let records = [3u8, 9].map(|label| {
            record(label, |channel, row, column| (7 * channel + 3 * row + column) as u8 + label)
        });
        let pixels = records.each_ref().map(|record| &record[1..]).concat();
        let binary = DataFile { contents: records.concat(), ..python_file(Vec::new()) };
        let python = python_file(pickled(&[("labels", &[3, 9])], &pixels));
        let (binary, python) =
            (decode(&[&binary], 10).unwrap(), decode_python(&[&python], 10, "labels").unwrap());
        assert_eq!((python.pixels, python.labels), (binary.pixels, binary.labels));
        let both = [("fine_labels", &[99][..]), ("coarse_labels", &[19])];
        let file = python_file(pickled(&both, &[5; IMAGE]));
        assert_eq!(decode_python(&[&file], 100, "fine_labels").unwrap().labels, [99]);
        assert_eq!(decode_python(&[&file], 20, "coarse_labels").unwrap().labels, [19]);
    }

    #[test]
    fn cifar_100_has_two_labels_in_a_record() {
        let mut contents = [&[4u8, 77][..], &[8; IMAGE], &[19, 0], &[9; IMAGE]].concat();
        let file = |contents: &[u8]| DataFile { contents: contents.to_vec(), ..python_file(Vec::new()) };
        assert_eq!(decode_100(&[&file(&contents)], 100, false).unwrap().labels, [77, 0]);
        let coarse = decode_100(&[&file(&contents)], 20, true).unwrap();
        assert_eq!((coarse.labels, coarse.pixels), (vec![4, 19], [[8; IMAGE], [9; IMAGE]].concat()));
        contents[1] = 100;
        assert_eq!(
            first_line(decode_100(&[&file(&contents)], 100, false), Path::new("unused")),
            "DIR/data_batch_1 has label 100 at index 0: expected 0 to 99"
        );
    }

    #[test]
    fn a_pickle_of_python_3_is_read() {
        let file = python_file(crate::util::fuzz::repository_file("tests/end-to-end/inputs/cifar-python"));
        let samples = decode_python(&[&file], 100, "fine_labels").unwrap();
        assert_eq!(samples.labels, [0, 99, 7]);
        assert_eq!(decode_python(&[&file], 20, "coarse_labels").unwrap().labels, [19, 0, 3]);
        let images = samples.tensors().unwrap().images;
        assert_eq!(images.size(), [3, 3, 32, 32]);
        assert_eq!(images.int64_value(&[2, 1, 30, 4]), 2 * 30 + 3 * 4 + 50 + 7 * 2);
    }

    #[test]
    fn pickles_of_other_things_are_refused() {
        let message = |contents: Vec<u8>| {
            first_line(decode_python(&[&python_file(contents)], 10, "labels"), Path::new("unused"))
        };
        let start = "DIR/data_batch_1 is no file of CIFAR's Python version: ";
        assert_eq!(
            message(b"\x80\x02}.".to_vec()),
            format!("{start}expected a dictionary with data, got none")
        );
        assert!(message(b"".to_vec()).starts_with(start));
        assert_eq!(
            message(pickled(&[("labels", &[1, 2])], &[0; IMAGE])),
            format!("{start}it has 2 labels, but 1 images")
        );
        assert_eq!(
            message(pickled(&[("fine_labels", &[1])], &[0; IMAGE])),
            format!("{start}expected a dictionary with labels, got none")
        );
        assert_eq!(
            message(pickled(&[("labels", &[10])], &[0; IMAGE])),
            "DIR/data_batch_1 has label 10 at index 0: expected 0 to 9"
        );
        // os.system("touch FILE") in the place of the images.
        let hostile = b"\x80\x02}(U\x04datacos\nsystem\nU\x05touchx\x85RU\x06labels](K\x01eu.".to_vec();
        assert!(message(hostile).starts_with(start));
    }

    #[test]
    fn fuzz_pickles_of_cifar_may_be_damaged() {
        use crate::data::load;
        use crate::data::tests::folder_with;
        use crate::util::fuzz::{USUAL, withstands};
        let file = pickled(&[("labels", &[3])], &[7; IMAGE]);
        let files = PYTHON_NAMES.map(|name| (name, file.clone()));
        let folder = folder_with(&files);
        let read = |path: &Path| load(path.parent().unwrap().to_str().unwrap(), Path::new("unused"));
        withstands(std::slice::from_ref(&file), &folder.path().join("data_batch_2"), USUAL, read);
    }
}
