//! Folder trees of images: `train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), PNG and JPEG.
//!
//! Classes are numbered in the order of their names. Within a split, images are sorted by the MD5
//! of `CLASS/FILE`: the order is the same on every machine, and the first or last N images are a
//! mix of all classes. All images have one size. If all images are grey they have one channel,
//! otherwise all have three.

use super::{Dataset, Origin, Split, md5};
use crate::util::files;
use crate::{Error, Result};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;
use tch::{Device, Kind, Tensor};

/// The folder of the training images.
pub(super) const TRAIN: &str = "train";

/// The folder of the test images; the second name is used if the first does not exist.
pub(super) const TEST: [&str; 2] = ["test", "val"];

/// File extensions of images, in lower case.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The first bytes of a JPEG.
const JPEG: [u8; 2] = [0xff, 0xd8];

/// Number of images that are decoded before they are copied into the tensor of the split.
const IMAGES_AT_A_TIME: usize = 1024;

/// Whether a folder looks like a tree of images: it has a folder of training images.
pub(super) fn found(folder: &Path) -> bool {
    folder.join(TRAIN).is_dir()
}

/// The file of an image.
struct Picture {
    path: PathBuf,
    /// `CLASS/FILE`.
    name: String,
    class: usize,
}

/// Properties of an image that are known before it is decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    height: u32,
    width: u32,
    grey: bool,
}

/// Reads a tree of images.
///
/// # Errors
/// If there are fewer than two classes, a class is empty or missing in one split, or an image is
/// damaged, has transparent parts or has another size.
pub(super) fn load(folder: &Path, name: &str) -> Result<Dataset> {
    let test = TEST.into_iter().find(|test| folder.join(test).is_dir()).ok_or_else(|| {
        Error::new(format!("{} has no folder {} or {}", folder.display(), TEST[0], TEST[1]))
            .fix("put the test images into test/CLASS/")
    })?;
    let [train_folder, test_folder] = [TRAIN, test].map(|split| folder.join(split));
    let classes = class_names(&train_folder)?;
    same_classes(&train_folder, &classes, &test_folder, &class_names(&test_folder)?)?;
    let splits = [pictures(&train_folder, &classes)?, pictures(&test_folder, &classes)?];

    let mut checksums = BTreeMap::new();
    let mut headers = Vec::new();
    for (split, pictures) in [TRAIN, test].into_iter().zip(&splits) {
        let (digests, found): (Vec<_>, Vec<_>) = in_parallel(pictures, inspect)?.into_iter().unzip();
        checksums.insert(split.to_owned(), digest_of_all(pictures, &digests));
        headers.extend(found);
    }
    let [first, ..] = headers[..] else { return Err(Error::new("no images")) };
    let all_pictures = splits.iter().flatten();
    if let Some((picture, other)) = all_pictures
        .zip(&headers)
        .find(|(_, other)| (other.height, other.width) != (first.height, first.width))
    {
        return Err(Error::new(format!(
            "{} is {} x {} pixels (height x width): expected {} x {}, as {} is",
            picture.path.display(),
            other.height,
            other.width,
            first.height,
            first.width,
            splits[0][0].path.display()
        ))
        .fix("resize or crop all images to one size"));
    }
    let channels = if headers.iter().all(|header| header.grey) { 1 } else { 3 };
    let [train, test] = splits.map(|pictures| decode(&pictures, channels, first));
    Ok(Dataset {
        name: name.to_owned(),
        train: train?,
        test: test?,
        classes: classes.len() as i64,
        class_names: classes,
        checksums,
        origin: Origin::Own,
    })
}

/// The names of the classes of a split, sorted.
fn class_names(split: &Path) -> Result<Vec<String>> {
    let mut classes = Vec::new();
    for (path, name) in entries(split)? {
        if path.is_dir() {
            classes.push(name);
        } else if !path.exists() {
            return Err(Error::new(format!("{} is a broken symbolic link", path.display()))
                .fix("repair or remove the link"));
        } else if is_image(&name) {
            return Err(Error::new(format!("{} is not in the folder of a class", path.display()))
                .fix("expected SPLIT/CLASS/IMAGE: move it into the folder of its class"));
        }
    }
    classes.sort();
    match classes.len() {
        0 | 1 => Err(Error::new(format!(
            "{} has too few classes: expected a folder for each of at least 2 classes, got {}",
            split.display(),
            classes.len()
        ))),
        _ => Ok(classes),
    }
}

/// Refuses splits with different classes.
fn same_classes(train: &Path, of_train: &[String], test: &Path, of_test: &[String]) -> Result<()> {
    for (here, classes, there, others) in [(train, of_train, test, of_test), (test, of_test, train, of_train)]
    {
        if let Some(class) = classes.iter().find(|class| !others.contains(class)) {
            return Err(Error::new(format!(
                "class {class} is in {} only: {} has no folder of that name",
                here.display(),
                there.display()
            ))
            .fix("give both splits the same classes"));
        }
    }
    Ok(())
}

/// The images of a split, sorted by the MD5 of their names.
fn pictures(split: &Path, classes: &[String]) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (class, class_name) in classes.iter().enumerate() {
        let folder = split.join(class_name);
        let before = pictures.len();
        for (path, name) in entries(&folder)? {
            // Reading a named pipe would block.
            if !path.is_file() || !is_image(&name) {
                return Err(Error::new(format!(
                    "{} is not an image: expected PNG or JPEG files",
                    path.display()
                ))
                .note("endings", ENDINGS.join(", "))
                .fix("convert it, or move it out of the folder"));
            }
            pictures.push(Picture { path, name: format!("{class_name}/{name}"), class });
        }
        if pictures.len() == before {
            return Err(Error::new(format!(
                "{} holds no images: expected PNG or JPEG files",
                folder.display()
            ))
            .note("endings", ENDINGS.join(", ")));
        }
    }
    pictures.sort_by_cached_key(|picture| md5(picture.name.as_bytes()));
    Ok(pictures)
}

/// The paths and names in a folder, without hidden entries.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let failed = |why| Error::file("list", folder, why);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.starts_with('.') => {}
            Some(name) => entries.push((path.clone(), name.to_owned())),
            None => return Err(Error::new(format!("the name of {} is not UTF-8", path.display()))),
        }
    }
    Ok(entries)
}

fn is_image(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// The MD5 of a split. It is the MD5 of the lines that `md5sum` writes for the files of the split,
/// sorted by name.
fn digest_of_all(pictures: &[Picture], digests: &[String]) -> String {
    let mut lines: Vec<_> = pictures.iter().map(|picture| &picture.name).zip(digests).collect();
    lines.sort();
    let lines: String = lines.into_iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
    md5(lines.as_bytes())
}

/// The MD5 of the file of an image, and its header.
fn inspect(picture: &Picture) -> Result<(String, Header)> {
    let bytes = files::read(&picture.path)?;
    let mut decoder = decoder(&bytes).map_err(|why| damaged(picture, why))?;
    let (width, height) = decoder.dimensions();
    let (claimed, most) = (u64::from(width) * u64::from(height), most_pixels(&bytes));
    if claimed > most {
        let length = bytes.len();
        let why = format!(
            "its header claims {height} x {width} pixels, but {length} bytes hold at most {most} pixels"
        );
        return Err(damaged(picture, why));
    }
    if let Some(components) = ambiguous_components(&bytes) {
        return Err(Error::new(format!(
            "{} has {components} and no marker of Adobe that says how they are stored: expected grey or RGB",
            picture.path.display()
        ))
        .fix("convert it to RGB with the program that wrote it"));
    }
    match decoder.orientation().map_err(|why| damaged(picture, why))? {
        Orientation::NoTransforms => {}
        other => {
            return Err(Error::new(format!(
                "{} is stored rotated or mirrored (EXIF orientation {}): expected pixels as they are to be seen",
                picture.path.display(),
                other.to_exif()
            ))
            .fix(
                "turn the pixels (`mogrify -auto-orient FILE`), or remove the tag if it is wrong \
                 (`exiftool -Orientation= FILE`)",
            ));
        }
    }
    let grey = match decoder.color_type() {
        ColorType::L8 | ColorType::La8 => true,
        ColorType::Rgb8 | ColorType::Rgba8 => false,
        other => {
            let bits = 8 * u32::from(other.bytes_per_pixel()) / u32::from(other.channel_count());
            return Err(Error::new(format!(
                "{} has {bits} bits per channel: expected 8, grey or RGB",
                picture.path.display()
            ))
            .fix("convert it to 8 bits per channel"));
        }
    };
    Ok((md5(&bytes), Header { height, width, grey }))
}

/// The images and labels of a split.
fn decode(pictures: &[Picture], channels: i64, Header { height, width, .. }: Header) -> Result<Split> {
    let (height, width) = (i64::from(height), i64::from(width));
    let count = pictures.len() as i64;
    let images = Tensor::f_zeros([count, channels, height, width], (Kind::Uint8, Device::Cpu))?;
    for (number, some) in pictures.chunks(IMAGES_AT_A_TIME).enumerate() {
        let planes = in_parallel(some, |picture| planes(picture, channels))?.concat();
        let first = (number * IMAGES_AT_A_TIME) as i64;
        let planes = Tensor::f_from_slice(&planes)?.f_view([-1, channels, height, width])?;
        images.f_narrow(0, first, some.len() as i64)?.f_copy_(&planes)?;
    }
    let labels: Vec<_> = pictures.iter().map(|picture| picture.class as i64).collect();
    Ok(Split { images, labels: Tensor::f_from_slice(&labels)? })
}

/// The pixels of an image, plane by plane.
fn planes(picture: &Picture, channels: i64) -> Result<Vec<u8>> {
    let bytes = files::read(&picture.path)?;
    let decoded =
        decoder(&bytes).and_then(DynamicImage::from_decoder).map_err(|why| damaged(picture, why))?;
    if !is_whole(&bytes) {
        return Err(damaged(picture, "it is truncated: the end of the JPEG is missing"));
    }
    let opaque = match &decoded {
        DynamicImage::ImageLumaA8(image) => image.pixels().all(|pixel| pixel[1] == u8::MAX),
        DynamicImage::ImageRgba8(image) => image.pixels().all(|pixel| pixel[3] == u8::MAX),
        _ => true,
    };
    if !opaque {
        return Err(Error::new(format!(
            "{} has transparent parts: expected grey or RGB",
            picture.path.display()
        ))
        .fix("replace the transparent parts with a background colour"));
    }
    if channels == 1 {
        return Ok(decoded.into_luma8().into_raw());
    }
    let interleaved = decoded.into_rgb8().into_raw();
    let plane = |channel: usize| interleaved[channel..].iter().step_by(3).copied();
    Ok((0..3).flat_map(plane).collect())
}

/// A decoder for the format that the first bytes show; the name of the file does not count.
fn decoder(bytes: &[u8]) -> image::ImageResult<impl ImageDecoder + '_> {
    ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()
}

/// Whether a JPEG is complete; true for other formats. Decoders do not report a truncated JPEG but
/// fill up the missing pixels. Markers cannot occur in the data of a scan: in a complete file, an
/// end of image follows the last start of a scan.
fn is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: [u8; 2] = [0xff, 0xda];
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let last = |marker| bytes.windows(2).rposition(|window| window == marker);
    !bytes.starts_with(&JPEG) || last(END_OF_IMAGE) > last(START_OF_SCAN)
}

/// The most pixels that a file of these bytes can hold. A header may claim more: decoding would then
/// fail only after memory for all of them was taken.
fn most_pixels(bytes: &[u8]) -> u64 {
    // Deflate, which PNG uses, compresses to 1/1032 at best. JPEG needs a bit for 64 pixels at least.
    const PIXEL_BYTES_PER_BYTE: u64 = 1032;
    const PNG_BIT_DEPTH: usize = 24;
    let pixels_per_pixel_byte = match bytes.get(PNG_BIT_DEPTH) {
        Some(depth @ (1 | 2 | 4)) if bytes.starts_with(b"\x89PNG") => u64::from(8 / depth),
        _ => 1,
    };
    PIXEL_BYTES_PER_BYTE * pixels_per_pixel_byte * bytes.len() as u64
}

/// The components of a JPEG if decoders disagree about their meaning; none for other images.
///
/// Without a marker of Adobe, four components are ink, but whether 0 is no ink or full ink is not
/// said. Components named R, G and B are taken for these colours by some decoders, and for YCbCr by
/// others.
fn ambiguous_components(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes.strip_prefix(&JPEG)?;
    let (mut names, mut of_adobe, mut of_jfif) = (Vec::new(), false, false);
    loop {
        // Between segments, decoders skip anything that is not a marker.
        rest = &rest[rest.iter().position(|byte| *byte == 0xff)?..];
        let [_, marker, after @ ..] = rest else { return None };
        let [high, low, ..] = after else { return None };
        let end = usize::from(u16::from_be_bytes([*high, *low]));
        match (marker, after.get(2..end)) {
            (0x00 | 0x01 | 0xd0..=0xd8 | 0xff, _) => {
                rest = &rest[1..];
                continue;
            }
            // The first scan, or the end.
            (0xd9 | 0xda, _) | (_, None) => break,
            (
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf,
                Some([_, _, _, _, _, count, of_each @ ..]),
            ) => names = of_each.chunks(3).take(usize::from(*count)).map(|one| one[0]).collect(),
            (0xe0, Some(segment)) => of_jfif |= segment.starts_with(b"JFIF\0"),
            (0xee, Some(segment)) => of_adobe |= segment.starts_with(b"Adobe"),
            _ => {}
        }
        rest = &after[end..];
    }
    match &names[..] {
        b"RGB" if !of_adobe && !of_jfif => Some("components named R, G and B".to_owned()),
        [] | [_] | [_, _, _] => None,
        [_, _, _, _] if of_adobe => None,
        names => Some(format!("{} components", names.len())),
    }
}

fn damaged(picture: &Picture, why: impl std::fmt::Display) -> Error {
    let why = why.to_string();
    Error::file("decode", &picture.path, why.lines().next().unwrap_or_default())
        .fix("get the file from its source again, or remove it")
}

/// Applies a function to all items, on all cores. The results are in the order of the items.
fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let work = &work;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::load as load_any;
    use crate::data::tests::first_line;
    use image::{GrayImage, ImageEncoder, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
    use tempfile::TempDir;

    fn put(folder: &TempDir, name: &str, image: impl Into<DynamicImage>) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        image.into().save(path).expect("saved");
    }

    /// Two rows of three pixels: `value` plus 0 to 5.
    fn grey(value: u8) -> GrayImage {
        GrayImage::from_fn(3, 2, |x, y| Luma([value + x as u8 + 3 * y as u8]))
    }

    fn colour(value: u8) -> RgbImage {
        RgbImage::from_fn(3, 2, |x, y| {
            let pixel = value + x as u8 + 3 * y as u8;
            Rgb([pixel, pixel + 50, pixel + 100])
        })
    }

    /// Three training and two test images of the classes cat and dog.
    fn tree() -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in [
            ("train/dog/a.png", 10),
            ("train/cat/b.png", 20),
            ("train/cat/c.PNG", 30),
            ("test/cat/d.png", 40),
            ("test/dog/e.png", 50),
        ] {
            put(&folder, name, grey(value));
        }
        folder
    }

    fn load_tree(folder: &TempDir) -> Result<Dataset> {
        load_any(folder.path().to_str().expect("UTF-8"), Path::new("unused"))
    }

    fn refusal(folder: &TempDir) -> String {
        first_line(load_tree(folder), folder.path())
    }

    #[test]
    fn checksums_equal_those_of_the_shell_command_in_the_documentation() {
        let folder = tree();
        let train = folder.path().join("train");
        // Hidden entries and other files are ignored; links are followed.
        fs::create_dir(train.join(".git")).expect("made");
        for file in [".git/f.png", "cat/.hidden.png", "notes.txt"] {
            fs::write(train.join(file), "no image").expect("written");
        }
        put(&folder, "elsewhere/g.png", grey(60));
        std::os::unix::fs::symlink("../../elsewhere/g.png", train.join("dog/g.png")).expect("linked");
        std::os::unix::fs::symlink("../elsewhere", train.join("emu")).expect("linked");
        std::os::unix::fs::symlink("../train/cat", folder.path().join("test/emu")).expect("linked");
        // The command in docs/training.md.
        let command = "find -L * -mindepth 1 -maxdepth 1 -type f ! -name '.*' | LC_ALL=C sort | \
                       xargs -d '\\n' md5sum | md5sum";
        let printed = std::process::Command::new("sh").args(["-c", command]).current_dir(&train).output();
        let printed = String::from_utf8(printed.expect("a shell").stdout).expect("UTF-8");
        let dataset = load_tree(&folder).expect("a data set");
        assert_eq!(dataset.train.count(), 5);
        assert_eq!(printed.split_whitespace().next(), Some(dataset.checksums["train"].as_str()));
    }

    #[test]
    fn folders_are_classes() {
        let folder = tree();
        fs::write(folder.path().join("train/cat/.hidden"), "").expect("written");
        let dataset = load_tree(&folder).expect("a data set");
        assert_eq!(dataset.class_names, ["cat", "dog"]);
        assert_eq!((dataset.classes, dataset.train.count(), dataset.test.count()), (2, 3, 2));
        assert_eq!(dataset.train.images.size(), [3, 1, 2, 3]);
        // Images are sorted by the MD5 of their names.
        let mut order = ["dog/a.png", "cat/b.png", "cat/c.PNG"];
        order.sort_by_key(|name| md5(name.as_bytes()));
        for (row, name) in order.into_iter().enumerate() {
            let (value, label) = match name {
                "dog/a.png" => (10, 1),
                "cat/b.png" => (20, 0),
                _ => (30, 0),
            };
            let pixels: Vec<u8> =
                Vec::try_from(dataset.train.images.get(row as i64).flatten(0, -1)).expect("u8");
            assert_eq!(pixels, [value, value + 1, value + 2, value + 3, value + 4, value + 5]);
            assert_eq!(dataset.train.labels.int64_value(&[row as i64]), label);
        }
        assert_eq!(dataset.checksums.keys().collect::<Vec<_>>(), ["test", "train"]);
        let lines: String = ["cat/b.png", "cat/c.PNG", "dog/a.png"]
            .map(|name| {
                let bytes = fs::read(folder.path().join("train").join(name)).expect("readable");
                format!("{}  {name}\n", md5(&bytes))
            })
            .concat();
        assert_eq!(dataset.checksums["train"], md5(lines.as_bytes()));
    }

    #[test]
    fn one_colour_image_gives_all_images_three_channels() {
        let folder = tree();
        put(&folder, "train/dog/a.png", colour(10));
        let mut opaque = RgbaImage::new(3, 2);
        opaque.pixels_mut().for_each(|pixel| *pixel = Rgba([1, 2, 3, 255]));
        put(&folder, "test/dog/e.png", opaque);
        let dataset = load_tree(&folder).expect("a data set");
        let task = dataset.task();
        assert_eq!([task.channels, task.height, task.width], [3, 2, 3]);
        let of = |split: &Split, label: i64| {
            let row = (0..split.count()).find(|row| split.labels.int64_value(&[*row]) == label).expect("one");
            Vec::<u8>::try_from(split.images.get(row).flatten(0, -1)).expect("u8")
        };
        let dog: Vec<u8> = [10, 60, 110].into_iter().flat_map(|first| first..first + 6).collect();
        assert_eq!(of(&dataset.train, 1), dog);
        assert_eq!(of(&dataset.test, 0), (40..46).collect::<Vec<u8>>().repeat(3));
        assert_eq!(of(&dataset.test, 1), [[1; 6], [2; 6], [3; 6]].concat());
    }

    #[test]
    fn jpeg_files_and_a_folder_val_are_accepted() {
        let folder = tree();
        fs::rename(folder.path().join("test"), folder.path().join("val")).expect("renamed");
        let mut flat = RgbImage::new(3, 2);
        flat.pixels_mut().for_each(|pixel| *pixel = Rgb([200, 100, 50]));
        put(&folder, "val/dog/f.JPEG", flat);
        let dataset = load_tree(&folder).expect("a data set");
        assert_eq!(dataset.test.images.size(), [3, 3, 2, 3]);
        assert_eq!(dataset.checksums.keys().collect::<Vec<_>>(), ["train", "val"]);
        // JPEG changes a flat image by a few grey values at most.
        let off = (dataset.test.images.to_kind(Kind::Float)
            - Tensor::from_slice(&[200f32, 100.0, 50.0]).reshape([1, 3, 1, 1]))
        .abs()
        .amax([1, 2, 3], false)
        .min();
        assert!(off.double_value(&[]) < 4.0, "{off}");
    }

    #[test]
    fn there_may_be_more_than_256_classes() {
        let folder = tempfile::tempdir().expect("a folder");
        for class in 0..300 {
            for split in ["train", "test"] {
                put(&folder, &format!("{split}/{class:03}/a.png"), grey(0));
            }
        }
        let dataset = load_tree(&folder).expect("a data set");
        assert_eq!((dataset.classes, dataset.train.labels.max().int64_value(&[])), (300, 299));
    }

    #[test]
    fn the_error_names_a_damaged_image() {
        let folder = tree();
        let path = folder.path().join("train/cat/b.png");
        let whole = fs::read(&path).expect("readable");
        fs::write(&path, &whole[..whole.len() / 2]).expect("written");
        assert!(refusal(&folder).starts_with("cannot decode DIR/train/cat/b.png: "), "{}", refusal(&folder));
        fs::write(&path, "no picture").expect("written");
        assert!(refusal(&folder).starts_with("cannot decode DIR/train/cat/b.png: "), "{}", refusal(&folder));
        fs::write(&path, "").expect("written");
        assert!(refusal(&folder).starts_with("cannot decode DIR/train/cat/b.png: "), "{}", refusal(&folder));
        let mut jpeg = Cursor::new(Vec::new());
        DynamicImage::from(grey(3)).write_to(&mut jpeg, ImageFormat::Jpeg).expect("encoded");
        let jpeg = jpeg.into_inner();
        fs::write(&path, &jpeg).expect("written");
        assert!(load_tree(&folder).is_ok(), "the format is recognised by the contents, not by the name");
        fs::write(&path, &jpeg[..jpeg.len() - 6]).expect("written");
        assert!(refusal(&folder).starts_with("cannot decode DIR/train/cat/b.png: "), "{}", refusal(&folder));
    }

    #[test]
    fn images_with_different_sizes_or_formats_are_refused() {
        let folder = tree();
        put(&folder, "test/cat/d.png", GrayImage::new(2, 3));
        let message = refusal(&folder);
        assert!(
            message.starts_with(
                "DIR/test/cat/d.png is 3 x 2 pixels (height x width): expected 2 x 3, as DIR/train/"
            ),
            "{message}"
        );
        put(&folder, "test/cat/d.png", RgbaImage::new(3, 2));
        assert_eq!(refusal(&folder), "DIR/test/cat/d.png has transparent parts: expected grey or RGB");
        let deep = DynamicImage::new_luma16(3, 2);
        put(&folder, "test/cat/d.png", deep);
        assert_eq!(refusal(&folder), "DIR/test/cat/d.png has 16 bits per channel: expected 8, grey or RGB");
    }

    #[test]
    fn splits_with_different_or_missing_classes_are_refused() {
        let folder = tree();
        put(&folder, "train/bird/a.png", grey(0));
        assert_eq!(refusal(&folder), "class bird is in DIR/train only: DIR/test has no folder of that name");
        fs::create_dir(folder.path().join("test/bird")).expect("made");
        assert_eq!(refusal(&folder), "DIR/test/bird holds no images: expected PNG or JPEG files");
        put(&folder, "test/bird/a.png", grey(0));
        assert!(load_tree(&folder).is_ok());
        fs::write(folder.path().join("test/bird/a.webp"), "").expect("written");
        assert_eq!(refusal(&folder), "DIR/test/bird/a.webp is not an image: expected PNG or JPEG files");

        let folder = tree();
        put(&folder, "train/stray.png", grey(0));
        assert_eq!(refusal(&folder), "DIR/train/stray.png is not in the folder of a class");
        let folder = tree();
        fs::remove_dir_all(folder.path().join("test")).expect("removed");
        assert_eq!(refusal(&folder), "DIR has no folder test or val");
        let folder = tree();
        fs::remove_dir_all(folder.path().join("train/dog")).expect("removed");
        assert_eq!(
            refusal(&folder),
            "DIR/train has too few classes: expected a folder for each of at least 2 classes, got 1"
        );
    }

    /// A file of the end-to-end tests.
    macro_rules! input {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/end-to-end/inputs/", $name)).as_slice()
        };
    }

    /// The error of a tree in which an image has these bytes.
    fn refusal_of(bytes: &[u8]) -> String {
        let folder = tree();
        fs::write(folder.path().join("train/cat/b.png"), bytes).expect("written");
        let error = load_tree(&folder).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        assert!(error.advice().is_some(), "{error}");
        first_line(Err::<(), _>(error), folder.path())
    }

    #[test]
    fn a_header_that_claims_more_pixels_than_the_file_can_hold_is_refused() {
        assert_eq!(
            refusal_of(input!("header-60000x60000.png")),
            "cannot decode DIR/train/cat/b.png: its header claims 60000 x 60000 pixels, but 69 bytes hold at \
             most 71208 pixels"
        );
        assert_eq!(
            refusal_of(input!("header-65500x65500.jpg")),
            "cannot decode DIR/train/cat/b.png: its header claims 65500 x 65500 pixels, but 347 bytes hold at \
             most 358104 pixels"
        );
    }

    #[test]
    fn images_that_are_compressed_as_far_as_possible_are_accepted() {
        let folder = tree();
        for (number, bits) in
            [image::ExtendedColorType::L8, image::ExtendedColorType::Rgb8].into_iter().enumerate()
        {
            let side = 3000;
            let black = vec![0; (side * side) as usize * usize::from(bits.channel_count())];
            for ending in ["png", "jpg"] {
                let path = folder.path().join(format!("{number}.{ending}"));
                image::save_buffer(&path, &black, side, side, bits).expect("saved");
                let bytes = fs::read(&path).expect("readable");
                assert!(
                    u64::from(side * side) <= most_pixels(&bytes),
                    "{bits:?} {ending}: {} bytes",
                    bytes.len()
                );
            }
        }
    }

    #[test]
    fn components_of_unknown_meaning_are_refused() {
        assert_eq!(
            refusal_of(input!("plain-cmyk-no-adobe-cyan.jpg")),
            "DIR/train/cat/b.png has 4 components and no marker of Adobe that says how they are stored: \
             expected grey or RGB"
        );
        let mut jpeg = Cursor::new(Vec::new());
        DynamicImage::from(colour(9)).write_to(&mut jpeg, ImageFormat::Jpeg).expect("encoded");
        let mut jpeg = jpeg.into_inner();
        assert_eq!(ambiguous_components(&jpeg), None);
        for start in [[0xff, 0xc0], [0xff, 0xda]] {
            let segment = jpeg.windows(2).position(|window| window == start).expect("a segment");
            let (first, each) = if start[1] == 0xc0 { (segment + 10, 3) } else { (segment + 5, 2) };
            (0..3).for_each(|component| jpeg[first + each * component] = b"RGB"[component]);
        }
        assert_eq!(ambiguous_components(&jpeg), None, "JFIF says that they are YCbCr");
        let name = jpeg.windows(4).position(|window| window == b"JFIF").expect("a marker");
        jpeg[name] = b'j';
        assert_eq!(
            refusal_of(&jpeg),
            "DIR/train/cat/b.png has components named R, G and B and no marker of Adobe that says how they are \
             stored: expected grey or RGB"
        );
        let mut marked = input!("plain-cmyk-no-adobe-cyan.jpg").to_vec();
        marked.splice(2..2, *b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0");
        assert_eq!(ambiguous_components(&marked), None);
    }

    #[test]
    fn images_that_are_stored_rotated_are_refused() {
        let with_orientation = |orientation: u8| {
            // A header, a directory with one entry, and no other directory.
            let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
            exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
            let (mut png, mut jpeg) = (Vec::new(), Vec::new());
            let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
            encoder.set_exif_metadata(exif.clone()).expect("supported");
            let image = grey(5);
            encoder.write_image(&image, 3, 2, image::ExtendedColorType::L8).expect("encoded");
            let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
            encoder.set_exif_metadata(exif).expect("supported");
            encoder.write_image(&image, 3, 2, image::ExtendedColorType::L8).expect("encoded");
            [png, jpeg]
        };
        for bytes in with_orientation(6) {
            assert_eq!(
                refusal_of(&bytes),
                "DIR/train/cat/b.png is stored rotated or mirrored (EXIF orientation 6): expected pixels as they \
                 are to be seen"
            );
        }
        for bytes in with_orientation(1) {
            let folder = tree();
            fs::write(folder.path().join("train/cat/b.png"), bytes).expect("written");
            assert!(load_tree(&folder).is_ok());
        }
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::util::fuzz::{for_cases, repository_file, withstands};
    use image::{ExtendedColorType, ImageFormat};
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// A byte can hold 8 pixels of 1032 bytes, and each pixel has three bytes, twice.
    const UNPACKED: usize = 8 * 1032 * 3 * 2;

    fn encoded(
        format: ImageFormat,
        colour: ExtendedColorType,
        [height, width]: [u32; 2],
        pixels: &[u8],
    ) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut bytes, pixels, width, height, colour, format).expect("encoded");
        bytes.into_inner()
    }

    fn picture(path: &Path) -> Picture {
        Picture { path: path.to_owned(), name: "a/0".to_owned(), class: 0 }
    }

    /// What [`load`] does with one image.
    fn read(path: &Path) -> Result<Vec<u8>> {
        let (_, Header { grey, .. }) = inspect(&picture(path))?;
        planes(&picture(path), if grey { 1 } else { 3 })
    }

    #[test]
    fn images_may_be_damaged() {
        let pixels: Vec<u8> = (0..108).collect();
        let mut valid = Vec::new();
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            valid.push(encoded(format, ExtendedColorType::Rgb8, [6, 6], &pixels));
            valid.push(encoded(format, ExtendedColorType::L8, [9, 12], &pixels));
        }
        let folder = tempfile::tempdir().expect("a folder");
        withstands(&valid, &folder.path().join("mine.png"), UNPACKED, read);
    }

    #[test]
    fn impossible_headers_may_be_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.png");
        for name in ["header-60000x60000.png", "header-65500x65500.jpg", "plain-cmyk-no-adobe-cyan.jpg"] {
            let bytes = repository_file(&format!("tests/end-to-end/inputs/{name}"));
            let refuse = |path: &Path| match read(path) {
                Err(error) if fs::read(path).expect("readable") != bytes => Err(error),
                _ => Ok(()),
            };
            withstands(std::slice::from_ref(&bytes), &path, UNPACKED, refuse);
        }
    }

    #[test]
    fn png_images_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.png");
        let images = (1..9usize, 1..9usize, select_channels()).prop_flat_map(|(height, width, channels)| {
            (Just([height, width, channels]), vec(any::<u8>(), height * width * channels))
        });
        for_cases(&images, |([height, width, channels], pixels)| {
            let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
            let size = [height, width].map(|size| size as u32);
            fs::write(&path, encoded(ImageFormat::Png, colour, size, &pixels)).expect("written");
            let read = read(&path).expect("valid");
            for (place, value) in pixels.iter().enumerate() {
                let (pixel, channel) = (place / channels, place % channels);
                prop_assert_eq!(read[channel * height * width + pixel], *value);
            }
            Ok(())
        });
    }

    fn select_channels() -> impl Strategy<Value = usize> {
        proptest::sample::select([1, 3].as_slice())
    }
}
