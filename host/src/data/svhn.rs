//! SVHN's cropped digits: MATLAB files with the images `X`, 32 x 32 x 3 x n, and the labels `y`, n x
//! 1, from 1 to 10, of which 10 is the digit 0.

use super::layout::{DataFile, Samples};
use super::{matlab, sizes};
use crate::Result;
use matlab::Numbers;

/// The canonical names of the files.
pub(super) const NAMES: [&str; 2] = ["train_32x32.mat", "test_32x32.mat"];

const SHAPE: [usize; 3] = [3, 32, 32];

/// The label of the digit 0.
const ZERO: u8 = 10;

/// Decodes a split.
///
/// # Errors
/// If the file is damaged, or has other variables, shapes or labels.
pub(super) fn decode(file: &DataFile) -> Result<Samples> {
    let [images, labels] = matlab::arrays(&file.contents, ["X", "y"]).map_err(|why| file.bad(why))?;
    let [channels, height, width] = SHAPE;
    let (got, count) = (sizes(&images.shape), labels.shape.first().copied().unwrap_or(0));
    if images.shape != [height, width, channels, count] || labels.shape != [count, 1] || count == 0 {
        let of_labels = sizes(&labels.shape);
        return Err(file.bad(format!(
            "has images X of {got} and labels y of {of_labels}: expected {height} x {width} x {channels} x n and n x 1"
        )));
    }
    let Numbers::Bytes(columns) = images.numbers else {
        return Err(file.bad("has images X that are not bytes (uint8)"));
    };
    let labels: Vec<u8> = match labels.numbers {
        Numbers::Bytes(labels) => labels,
        Numbers::Others(labels) => {
            let bytes =
                labels.iter().map(|label| Some(*label as u8).filter(|byte| f64::from(*byte) == *label));
            bytes.collect::<Option<_>>().ok_or_else(|| file.bad("has labels y that are not whole numbers"))?
        }
    };
    if let Some(index) = labels.iter().position(|label| !(1..=ZERO).contains(label)) {
        return Err(file.bad(format!("has label {} at index {index}: expected 1 to {ZERO}", labels[index])));
    }
    let mut pixels = Vec::with_capacity(columns.len());
    for plane in columns.chunks(height * width) {
        // Column-major: a column after the other.
        pixels.extend((0..height * width).map(|place| plane[place / width + height * (place % width)]));
    }
    Ok(Samples { pixels, shape: SHAPE, labels: labels.iter().map(|label| label % ZERO).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::load;
    use crate::data::matlab::tests::{compressed, file, variable};
    use crate::data::tests::{first_line, folder_with};
    use std::path::Path;
    use tempfile::TempDir;

    /// Images whose pixel in row r, column c and channel k of image n is 2 r + 3 c + 50 k + 7 n.
    fn split(labels: &[u8]) -> Vec<u8> {
        let mut pixels = Vec::new();
        for image in 0..labels.len() {
            for channel in 0..3 {
                for column in 0..32 {
                    pixels.extend((0..32).map(|row| (2 * row + 3 * column + 50 * channel + 7 * image) as u8));
                }
            }
        }
        let images = variable("X", 9, &[32, 32, 3, labels.len() as u32], 2, &pixels);
        let labels = variable("y", 9, &[labels.len() as u32, 1], 2, labels);
        file(&[compressed(&images), compressed(&labels)])
    }

    fn folder(train: &[u8], test: &[u8]) -> TempDir {
        folder_with(&[(NAMES[0], split(train)), (NAMES[1], split(test))])
    }

    fn refusal(folder: &TempDir) -> String {
        first_line(load(folder.path().to_str().unwrap(), Path::new("unused")), folder.path())
    }

    #[test]
    fn columns_become_rows_and_ten_becomes_zero() {
        let folder = folder(&[1, 10, 9], &[10, 2]);
        let data = load(folder.path().to_str().unwrap(), Path::new("unused")).expect("valid");
        assert_eq!(data.train.images.size(), [3, 3, 32, 32]);
        assert_eq!(Vec::<i64>::try_from(&data.train.labels).unwrap(), [1, 0, 9]);
        assert_eq!(Vec::<i64>::try_from(&data.test.labels).unwrap(), [0, 2]);
        let pixel = |index: [i64; 4]| data.train.images.int64_value(&index);
        assert_eq!(pixel([0, 0, 5, 1]), 2 * 5 + 3);
        assert_eq!(pixel([2, 1, 30, 4]), 2 * 30 + 3 * 4 + 50 + 7 * 2);
        assert_eq!(data.checksums["test_32x32.mat"], crate::data::md5(&split(&[10, 2])));
    }

    #[test]
    fn a_file_of_scipy_is_read() {
        let contents = crate::util::fuzz::repository_file("tests/end-to-end/inputs/svhn.mat");
        let file = DataFile { name: NAMES[0], place: "FILE".to_owned(), contents };
        let samples = decode(&file).expect("valid");
        assert_eq!((samples.shape, samples.labels), (SHAPE, vec![1, 0, 9]));
        let mut pixels = samples.pixels.iter();
        for image in 0..3 {
            for channel in 0..3 {
                for row in 0..32 {
                    for column in 0..32 {
                        let expected = 2 * row + 3 * column + 50 * channel + 7 * image;
                        assert_eq!(usize::from(*pixels.next().expect("a pixel")), expected % 256);
                    }
                }
            }
        }
    }

    #[test]
    fn other_labels_and_shapes_are_refused() {
        assert_eq!(
            refusal(&folder(&[1, 0], &[1])),
            "DIR/train_32x32.mat has label 0 at index 1: expected 1 to 10"
        );
        let shape = file(&[variable("X", 9, &[2, 2, 3, 1], 2, &[0; 12]), variable("y", 9, &[1, 1], 2, &[1])]);
        let other = folder_with(&[(NAMES[0], shape), (NAMES[1], split(&[1]))]);
        assert_eq!(
            refusal(&other),
            "DIR/train_32x32.mat has images X of 2 x 2 x 3 x 1 and labels y of 1 x 1: expected 32 x 32 x 3 x n and n x 1"
        );
        let half = variable("y", 6, &[1, 1], 9, &1.5f64.to_le_bytes());
        let half = file(&[variable("X", 9, &[32, 32, 3, 1], 2, &[0; 3072]), half]);
        let other = folder_with(&[(NAMES[0], half), (NAMES[1], split(&[1]))]);
        assert_eq!(refusal(&other), "DIR/train_32x32.mat has labels y that are not whole numbers");
    }

    #[test]
    fn fuzz_files_of_svhn_may_be_damaged() {
        use crate::util::fuzz::withstands;
        /// The densest zlib stream has 1/1032 of its contents, and they are copied a few times.
        const UNPACKED: usize = 6 * 1032;
        let folder = folder(&[1, 2], &[1]);
        let plain =
            file(&[variable("X", 9, &[32, 32, 3, 1], 2, &[5; 3072]), variable("y", 6, &[1, 1], 2, &[7])]);
        let read = |path: &Path| load(path.parent().unwrap().to_str().unwrap(), Path::new("unused"));
        withstands(&[split(&[3]), plain], &folder.path().join(NAMES[0]), UNPACKED, read);
    }
}
