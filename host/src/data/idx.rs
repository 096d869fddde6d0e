//! IDX files, the format of MNIST: a magic number with the data type and the number of dimensions,
//! the sizes of the dimensions (32 bits each, big-endian), then one byte per element.

use super::layout::{DataFile, Samples};
use super::sizes;
use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The canonical names of the files.
pub(super) const NAMES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

/// The magic number of unsigned bytes, without the number of dimensions.
const UNSIGNED_BYTES: u32 = 0x0800;
const LABELS: u32 = UNSIGNED_BYTES | 1;
const IMAGES: u32 = UNSIGNED_BYTES | 3;

/// Largest uncompressed size of a compressed file.
const MOST_BYTES: u64 = 4 << 30;

/// Length of the header of images.
const LONGEST_HEADER: u64 = 16;

/// The path of the file with this canonical name or one of its variants, of the set of this name.
pub(super) fn find(folder: &Path, name: &str, set: Option<&str>) -> Option<PathBuf> {
    let names = match set {
        None => vec![name.to_owned()],
        // EMNIST calls its test files so.
        Some(set) => vec![format!("{set}-{name}"), format!("{set}-{}", name.replace("t10k", "test"))],
    };
    let spellings = names.iter().flat_map(|name| {
        let dotted = name.replace("-idx", ".idx");
        [name.to_owned(), dotted.clone(), format!("{name}.gz"), format!("{dotted}.gz")]
    });
    spellings.map(|spelling| folder.join(spelling)).find(|path| path.is_file())
}

/// The names of the sets in a folder whose files have a name before the canonical one, sorted:
/// `emnist-letters` for `emnist-letters-test-images-idx3-ubyte.gz`.
pub(super) fn sets(folder: &Path) -> Vec<String> {
    const TEST_IMAGES: [&str; 2] = ["-t10k-images", "-test-images"];
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let set = |file: &str| {
        let (set, end) = TEST_IMAGES.into_iter().find_map(|middle| file.split_once(middle))?;
        let is_idx = ["-idx3-ubyte", ".idx3-ubyte"].contains(&end.strip_suffix(".gz").unwrap_or(end));
        (is_idx && !set.is_empty()).then(|| set.to_owned())
    };
    let mut sets: Vec<_> = entries.filter_map(|entry| set(entry.file_name().to_str()?)).collect();
    sets.sort();
    sets.dedup();
    sets
}

/// Decompresses a file that begins with the magic bytes of gzip, whatever its name; returns any
/// other file unchanged. Decompresses no more than the header of the IDX file inside announces, since
/// a few kilobytes of gzip can expand to gigabytes.
///
/// # Errors
/// If the gzip stream is corrupt, or holds other than the header announces, or more than 4 GiB.
pub(super) fn uncompress(file: DataFile) -> Result<DataFile> {
    uncompress_at_most(MOST_BYTES, file)
}

fn uncompress_at_most(most_bytes: u64, file: DataFile) -> Result<DataFile> {
    if !file.contents.starts_with(&[0x1f, 0x8b]) {
        return Ok(file);
    }
    let mut stream = MultiGzDecoder::new(file.contents.as_slice());
    let mut contents = Vec::new();
    let mut read_to = |length: u64, contents: &mut Vec<u8>| {
        let missing = length - contents.len() as u64;
        (&mut stream).take(missing).read_to_end(contents).map(drop).map_err(|why| {
            file.bad(format!("is corrupt: its gzip stream fails after {} bytes ({why})", contents.len()))
        })
    };
    read_to(LONGEST_HEADER, &mut contents)?;
    // Without a valid header, the decoder refuses the file.
    if let Some(expected) = announced_bytes(&contents) {
        if expected > u128::from(most_bytes) {
            return Err(file.bad(format!(
                "is too large: its header announces {expected} bytes, expected at most {most_bytes}"
            )));
        }
        let longest = (expected as u64 + 1).max(LONGEST_HEADER);
        read_to(longest, &mut contents)?;
        if contents.len() as u64 == longest {
            return Err(file.bad(format!("has trailing bytes: expected {expected} uncompressed, got more")));
        }
    }
    Ok(DataFile { contents, ..file })
}

/// The length of a whole file that begins with these bytes; none if they are no header.
fn announced_bytes(start: &[u8]) -> Option<u128> {
    let (words, _) = start.as_chunks::<4>();
    let (magic, sizes) = words.split_first()?;
    let dimensions = match u32::from_be_bytes(*magic) {
        LABELS => 1,
        IMAGES => 3,
        _ => return None,
    };
    let sizes = sizes.get(..dimensions)?.iter().map(|size| u32::from_be_bytes(*size) as usize);
    Some(whole_length(&sizes.collect::<Vec<_>>()))
}

/// The length of an IDX file with these sizes, in bytes.
fn whole_length(sizes: &[usize]) -> u128 {
    // The product of three sizes of 32 bits fits in 128 bits.
    (4 + 4 * sizes.len()) as u128 + sizes.iter().map(|size| *size as u128).product::<u128>()
}

/// The images and labels of a split. Every label must be below `classes`.
///
/// # Errors
/// If a file is not a valid IDX file of images or labels, or has a label out of range.
pub(super) fn decode_split(image_file: &DataFile, label_file: &DataFile, classes: usize) -> Result<Samples> {
    let ([images, height, width], pixels) = decode_file(image_file, IMAGES)?;
    let ([labels], label_bytes) = decode_file(label_file, LABELS)?;
    if images != labels {
        return Err(
            image_file.bad(format!("holds {images} images, but {} holds {labels} labels", label_file.place))
        );
    }
    label_file.check_labels(label_bytes, classes)?;
    Ok(Samples { pixels: pixels.to_vec(), shape: [1, height, width], labels: label_bytes.to_vec() })
}

/// The sizes in the header, and the bytes after the header.
fn decode_file<const DIMENSIONS: usize>(
    file: &DataFile,
    expected: u32,
) -> Result<([usize; DIMENSIONS], &[u8])> {
    let header = 4 + 4 * DIMENSIONS;
    let (words, _) = file.contents.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_be_bytes(*word));
    let magic = words.next();
    if let Some(magic) = magic
        && magic != expected
    {
        return Err(wrong_kind(file, magic, expected));
    }
    let got = file.contents.len();
    if got < header {
        return Err(file.bad(format!("is truncated: expected a header of {header} bytes, got {got}")));
    }
    let mut dimensions = [0; DIMENSIONS];
    for (size, word) in dimensions.iter_mut().zip(words) {
        *size = word as usize;
    }
    let expected_bytes = whole_length(&dimensions);
    let what = sizes(&dimensions);
    if (got as u128) < expected_bytes {
        return Err(
            file.bad(format!("is truncated: expected {expected_bytes} bytes for {what} values, got {got}"))
        );
    }
    if got as u128 > expected_bytes {
        return Err(
            file.bad(format!("has trailing bytes: expected {expected_bytes} for {what} values, got {got}"))
        );
    }
    if dimensions.contains(&0) {
        return Err(file.bad(format!("holds no {}: its sizes are {what}", kind(expected))));
    }
    Ok((dimensions, &file.contents[header..]))
}

fn wrong_kind(file: &DataFile, magic: u32, expected: u32) -> Error {
    let wanted = kind(expected);
    if magic == LABELS || magic == IMAGES {
        let got = kind(magic);
        return file.bad(format!("holds {got} (magic number {magic}): expected {wanted} ({expected})"));
    }
    file.bad(format!(
        "is not an IDX file of {wanted}: expected magic number {expected:#010x}, got {magic:#010x}"
    ))
}

fn kind(magic: u32) -> &'static str {
    if magic == LABELS { "labels" } else { "images" }
}

/// The contents of an IDX file of unsigned bytes.
pub(super) fn encode(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let magic = UNSIGNED_BYTES | dimensions.len() as u32;
    let header = [&[magic], dimensions].concat();
    let mut contents: Vec<u8> = header.into_iter().flat_map(u32::to_be_bytes).collect();
    contents.extend(bytes);
    contents
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{first_line, gzip};

    fn file(contents: Vec<u8>) -> DataFile {
        DataFile { name: "a", place: "FILE".to_owned(), contents }
    }

    fn message<T>(result: Result<T>) -> String {
        first_line(result, Path::new("unused"))
    }

    fn images_message(contents: Vec<u8>) -> String {
        message(decode_file::<3>(&file(contents), IMAGES))
    }

    /// A split of two images of 1 x 1 pixel, with these labels.
    fn split(labels: &[u8]) -> Result<Samples> {
        let images = DataFile { place: "IMAGES".to_owned(), ..file(encode(&[2, 1, 1], &[7, 8])) };
        let labels = DataFile { place: "LABELS".to_owned(), ..file(encode(&[labels.len() as u32], labels)) };
        decode_split(&images, &labels, 10)
    }

    #[test]
    fn the_layout_of_bytes_follows_the_format() {
        let contents = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 5, 6, 7, 8];
        assert_eq!(encode(&[2, 1, 2], &[5, 6, 7, 8]), contents);
        let file = file(contents.to_vec());
        assert_eq!(decode_file::<3>(&file, IMAGES).unwrap(), ([2, 1, 2], [5, 6, 7, 8].as_slice()));
    }

    #[test]
    fn every_variant_of_a_name_is_found_and_the_canonical_name_first() {
        let folder = tempfile::tempdir().unwrap();
        let name = "t10k-labels-idx1-ubyte";
        assert_eq!(find(folder.path(), name, None), None);
        for spelling in
            ["t10k-labels.idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "t10k-labels.idx1-ubyte", name]
        {
            let path = folder.path().join(spelling);
            fs::write(&path, "").unwrap();
            assert_eq!(find(folder.path(), name, None), Some(path));
        }
    }

    #[test]
    fn gzip_is_decompressed_and_plain_bytes_stay_unchanged() {
        let contents = encode(&[2], &[1, 2]);
        assert_eq!(uncompress(file(gzip(&contents))).unwrap().contents, contents);
        assert_eq!(uncompress(file(contents.clone())).unwrap().contents, contents);
    }

    #[test]
    fn a_corrupt_gzip_stream_is_refused() {
        let whole = gzip(&encode(&[992], &[1; 992]));
        let start = whole[..whole.len() - 8].to_vec();
        let expected = "FILE is corrupt: its gzip stream fails after 1000 bytes (";
        assert!(message(uncompress(file(start))).starts_with(expected));

        let mut wrong_sum = whole.clone();
        let checksum = whole.len() - 8;
        wrong_sum[checksum] ^= 1;
        assert!(message(uncompress(file(wrong_sum))).starts_with(expected));

        let trailing = [whole.as_slice(), b"more"].concat();
        assert!(message(uncompress(file(trailing))).starts_with(expected));
    }

    #[test]
    fn a_small_file_cannot_fill_the_memory() {
        let zeros = vec![0; 1 << 20];
        let bomb = |start: &[u8]| file(gzip(&[start, &zeros].concat()));
        assert!(uncompress_at_most(1009, file(gzip(&encode(&[1001], &zeros[..1001])))).is_ok());
        assert_eq!(
            message(uncompress_at_most(1008, file(gzip(&encode(&[1001], &zeros[..1001]))))),
            "FILE is too large: its header announces 1009 bytes, expected at most 1008"
        );
        assert_eq!(
            message(uncompress(bomb(&encode(&[60_000, 60_000, 60_000], &[])))),
            "FILE is too large: its header announces 216000000000016 bytes, expected at most 4294967296"
        );
        assert_eq!(
            message(uncompress(bomb(&encode(&[2, 28, 28], &[])))),
            "FILE has trailing bytes: expected 1584 uncompressed, got more"
        );
        // Without a header, nothing after its place is decompressed.
        assert_eq!(uncompress(bomb(b"no IDX")).unwrap().contents.len(), 16);
    }

    #[test]
    fn a_file_with_the_wrong_magic_number_is_refused() {
        assert_eq!(
            images_message(encode(&[2], &[1, 2])),
            "FILE holds labels (magic number 2049): expected images (2051)"
        );
        assert_eq!(
            message(decode_file::<1>(&file(encode(&[1, 1, 1], &[1])), LABELS)),
            "FILE holds images (magic number 2051): expected labels (2049)"
        );
        assert_eq!(
            images_message(b"\x89PNG, or anything".to_vec()),
            "FILE is not an IDX file of images: expected magic number 0x00000803, got 0x89504e47"
        );
    }

    #[test]
    fn a_file_whose_length_differs_from_its_header_is_refused() {
        assert_eq!(images_message(Vec::new()), "FILE is truncated: expected a header of 16 bytes, got 0");
        assert_eq!(
            images_message(encode(&[2, 1, 1], &[])[..15].to_vec()),
            "FILE is truncated: expected a header of 16 bytes, got 15"
        );
        assert_eq!(
            images_message(encode(&[2, 2, 1], &[1, 2, 3])),
            "FILE is truncated: expected 20 bytes for 2 x 2 x 1 values, got 19"
        );
        assert_eq!(
            images_message(encode(&[2, 2, 1], &[1, 2, 3, 4, 5])),
            "FILE has trailing bytes: expected 20 for 2 x 2 x 1 values, got 21"
        );
        assert_eq!(
            images_message(encode(&[u32::MAX, u32::MAX, u32::MAX], &[1])),
            "FILE is truncated: expected 79228162458924105385300197391 bytes for \
             4294967295 x 4294967295 x 4294967295 values, got 17"
        );
    }

    #[test]
    fn a_file_without_elements_is_refused() {
        assert_eq!(
            images_message(encode(&[0, 28, 28], &[])),
            "FILE holds no images: its sizes are 0 x 28 x 28"
        );
        assert_eq!(
            images_message(encode(&[3, 0, 28], &[])),
            "FILE holds no images: its sizes are 3 x 0 x 28"
        );
        assert_eq!(
            message(decode_file::<1>(&file(encode(&[0], &[])), LABELS)),
            "FILE holds no labels: its sizes are 0"
        );
    }

    #[test]
    fn there_is_one_label_for_every_image() {
        let samples = split(&[9, 0]).unwrap();
        assert_eq!((samples.pixels, samples.shape, samples.labels), (vec![7, 8], [1, 1, 1], vec![9, 0]));
        assert_eq!(message(split(&[1])), "IMAGES holds 2 images, but LABELS holds 1 labels");
        assert_eq!(message(split(&[9, 10])), "LABELS has label 10 at index 1: expected 0 to 9");
    }

    #[test]
    fn files_may_have_a_name_before_theirs() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "emnist-letters-test-images-idx3-ubyte.gz",
            "emnist-letters-train-images-idx3-ubyte.gz",
            "emnist-letters-mapping.txt",
            "kmnist-t10k-images.idx3-ubyte",
            "-test-images-idx3-ubyte",
            "a-test-images-idx1-ubyte",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(sets(folder.path()), ["emnist-letters", "kmnist"]);
        let found =
            |name, set| find(folder.path(), name, Some(set)).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(
            found("t10k-images-idx3-ubyte", "emnist-letters").unwrap(),
            "emnist-letters-test-images-idx3-ubyte.gz"
        );
        assert_eq!(found("t10k-images-idx3-ubyte", "kmnist").unwrap(), "kmnist-t10k-images.idx3-ubyte");
        assert_eq!(found("train-images-idx3-ubyte", "kmnist"), None);
    }
}
