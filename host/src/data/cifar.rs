//! The binary version of CIFAR-10. A record is one label byte, then the red, the green and the blue
//! plane of a 32 x 32 image, row by row.

use super::{DataFile, Samples};
use crate::Result;
use std::path::{Path, PathBuf};

/// The canonical names of the files: five for training, one for testing.
pub(super) const NAMES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// The name of the folder inside the original archive.
pub(super) const FOLDER: &str = "cifar-10-batches-bin";

const SHAPE: [usize; 3] = [3, 32, 32];
/// Bytes of a record: a label and an image.
pub(super) const RECORD: usize = 1 + 3 * 32 * 32;

/// The path of this file in the folder, or in the subfolder [`FOLDER`].
pub(super) fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    [folder.join(name), folder.join(FOLDER).join(name)].into_iter().find(|path| path.is_file())
}

/// The training and the test split. Every label must be below `classes`.
///
/// # Errors
/// If a file is missing, is empty, ends within a record, or has a label out of range.
pub(super) fn decode(files: &[DataFile], classes: usize) -> Result<[Samples; 2]> {
    let [training @ .., testing] = NAMES;
    Ok([decode_split(files, &training, classes)?, decode_split(files, &[testing], classes)?])
}

fn decode_split(files: &[DataFile], names: &[&str], classes: usize) -> Result<Samples> {
    let mut samples = Samples { pixels: Vec::new(), shape: SHAPE, labels: Vec::new() };
    for name in names {
        let file = DataFile::named(files, name)?;
        let (records, rest) = file.contents.as_chunks::<RECORD>();
        if !rest.is_empty() {
            return Err(file.bad(format!(
                "does not hold a whole number of records: expected a multiple of {RECORD} bytes, got {}",
                file.contents.len()
            )));
        }
        if records.is_empty() {
            return Err(file.bad(format!("holds no images: expected records of {RECORD} bytes, got 0 bytes")));
        }
        let labels: Vec<u8> = records.iter().map(|record| record[0]).collect();
        file.check_labels(&labels, classes)?;
        samples.labels.extend(labels);
        for record in records {
            samples.pixels.extend_from_slice(&record[1..]);
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::first_line;
    use std::fs;

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

    fn message(files: &[DataFile]) -> String {
        first_line(decode(files, 10), Path::new("unused"))
    }

    #[test]
    fn records_become_images_in_order() {
        let second = record(9, |channel, row, column| (7 * channel + 3 * row + column) as u8);
        let files = files(|index, contents| {
            if index == 1 {
                contents.extend(&second);
            }
        });
        let [train, test] = decode(&files, 10).unwrap();
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
    fn files_are_found_in_the_folder_of_the_archive_too() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join(FOLDER);
        fs::create_dir(&below).unwrap();
        fs::write(below.join("test_batch.bin"), "").unwrap();
        assert_eq!(find(folder.path(), "test_batch.bin"), Some(below.join("test_batch.bin")));
        assert_eq!(find(folder.path(), "data_batch_1.bin"), None);
        fs::write(folder.path().join("test_batch.bin"), "").unwrap();
        assert_eq!(find(folder.path(), "test_batch.bin"), Some(folder.path().join("test_batch.bin")));
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

    #[test]
    fn the_error_names_a_missing_file() {
        let mut files = files(|_, _| {});
        files.remove(4);
        assert_eq!(message(&files), "no file data_batch_5.bin");
    }
}
