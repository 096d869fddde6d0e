//! Folder trees of images: `train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), PNG and JPEG.
//!
//! Classes are numbered in the order of their names. Within a split, images are sorted by the MD5
//! of `CLASS/FILE`: the order is the same on every machine, and the first or last N images are a
//! mix of all classes. All images have one size, or are resized to one. If all images are grey they have one channel,
//! otherwise all have three.

mod picture;
mod resize;

use super::pack::write::Show;
use super::spec::RESIZE;
use super::{DataSpec, Dataset, Origin, Split, in_parallel, md5};
use crate::util::files;
use crate::{Error, Result};
pub(super) use picture::Picture;
use picture::{Header, inspect, planes};
use resize::resized;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use tch::{Device, Kind, Tensor};

/// The folder of the training images.
pub(super) const TRAIN: &str = "train";

/// The folder of the test images; the second name is used if the first does not exist.
pub(super) const TEST: [&str; 2] = ["test", "val"];

/// File extensions of images, in lower case.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Number of images that are decoded before they are copied into the tensor of the split.
const IMAGES_AT_A_TIME: usize = 1024;

/// Whether a folder looks like a tree of images: it has a folder of training or of test images.
pub(super) fn found(folder: &Path) -> bool {
    [TRAIN].into_iter().chain(TEST).any(|split| folder.join(split).is_dir())
}

/// The files of images of a data set.
pub(super) struct Tree {
    /// The images of each split by its name in the source: those of training, if there are any, and
    /// those of the test.
    pub splits: Vec<(&'static str, Vec<Picture>)>,
    /// The names of the classes.
    pub classes: Vec<String>,
}

/// An image that was inspected.
#[derive(Clone, Copy)]
pub(super) struct Picked {
    /// Its place among the images of its split.
    pub place: usize,
    pub header: Header,
}

/// Reads a tree of images.
///
/// # Errors
/// As [`tree`], and if an image is damaged, has transparent parts or has another size.
pub(super) fn load_tree(folder: &Path, spec: &DataSpec) -> Result<Dataset> {
    assemble(spec, &tree(folder)?)
}

/// Lists a tree of images. The folder of training images may be missing.
///
/// # Errors
/// If there are fewer than two classes, or a class is empty or missing in one split.
pub(super) fn tree(folder: &Path) -> Result<Tree> {
    let test = TEST.into_iter().find(|test| folder.join(test).is_dir()).ok_or_else(|| {
        Error::new(format!("{} has no folder {} or {}", folder.display(), TEST[0], TEST[1]))
            .fix("put the test images into test/CLASS/")
    })?;
    let [train_folder, test_folder] = [TRAIN, test].map(|split| folder.join(split));
    let classes = class_names(&test_folder)?;
    let mut splits = vec![(test, pictures(&test_folder, &classes)?)];
    if train_folder.is_dir() {
        let of_train = class_names(&train_folder)?;
        same_classes(&train_folder, &of_train, &test_folder, &classes)?;
        splits.insert(0, (TRAIN, pictures(&train_folder, &of_train)?));
    }
    Ok(Tree { splits, classes })
}

/// The list of the classes of Tiny ImageNet, and the labels of its validation images.
const CLASS_LIST: &str = "wnids.txt";
const ANNOTATIONS: &str = "val_annotations.txt";

/// Whether a folder is laid out as Tiny ImageNet.
pub(super) fn is_tiny_imagenet(folder: &Path) -> bool {
    folder.join(CLASS_LIST).is_file() && folder.join("val").join(ANNOTATIONS).is_file()
}

/// Reads a folder in the layout of Tiny ImageNet.
///
/// # Errors
/// As [`tiny_imagenet`], and as [`load_tree`].
pub(super) fn load_tiny_imagenet(folder: &Path, spec: &DataSpec) -> Result<Dataset> {
    assemble(spec, &tiny_imagenet(folder)?)
}

/// Lists a folder in the layout of Tiny ImageNet: training images in `train/CLASS/images`, and in
/// `val/images` those of the test split, whose classes are in `val/val_annotations.txt`. The images
/// of its folder `test` have no labels.
///
/// # Errors
/// As for [`tree`], and if an image of `val` has no class.
pub(super) fn tiny_imagenet(folder: &Path) -> Result<Tree> {
    let list = folder.join(CLASS_LIST);
    let text = files::read_text(&list)?;
    let mut classes: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    classes.sort();
    classes.dedup();
    let folders = class_names(&folder.join(TRAIN))?;
    if let Some(class) = classes.iter().find(|class| !folders.contains(class)) {
        return Err(Error::new(format!(
            "{} has the class {class}: there is no folder of it in {TRAIN}",
            list.display()
        ))
        .fix("get the data from their source again"));
    }
    let mut of_train = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        of_train.extend(pictures_in(&folder.join(TRAIN).join(class).join("images"), class, label)?);
    }
    let images = folder.join("val/images");
    let annotations = folder.join("val").join(ANNOTATIONS);
    let mut labels = BTreeMap::new();
    let text = files::read_text(&annotations)?;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split('\t');
        let (name, class) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default().trim());
        let label = classes.iter().position(|known| known == class).ok_or_else(|| {
            Error::new(format!(
                "{}, line {}: expected the name of an image and a class of {CLASS_LIST}, got `{}`",
                annotations.display(),
                number + 1,
                line.chars().take(80).collect::<String>().escape_debug()
            ))
        })?;
        labels.insert(name.to_owned(), (class.to_owned(), label));
    }
    let (mut of_test, mut present) = (Vec::new(), BTreeSet::new());
    for (path, name) in image_files(&images)? {
        let (class, label) = labels.get(&name).ok_or_else(|| {
            Error::new(format!(
                "{} has no class: {} has no line for it",
                path.display(),
                annotations.display()
            ))
        })?;
        of_test.push(Picture { path, name: format!("{class}/{name}"), class: *label });
        present.insert(name);
    }
    if let Some(name) = labels.keys().find(|name| !present.contains(*name)) {
        let (place, annotations) = (images.display(), annotations.display());
        return Err(Error::new(format!("{place} has no image {name}: {annotations} has a line for it"))
            .fix("get the data from their source again"));
    }
    [&mut of_train, &mut of_test].into_iter().for_each(|pictures| sort(pictures));
    Ok(Tree { splits: vec![(TRAIN, of_train), ("val", of_test)], classes })
}

/// Largest side of resized images.
const LARGEST_SIDE: usize = 4096;

/// The side to which a data set's images are to be resized; none if they are not.
///
/// # Errors
/// If it is no such.
pub(super) fn side(spec: &DataSpec) -> Result<Option<usize>> {
    let expected = format!("a size from 1 to {LARGEST_SIDE}");
    let side: Option<usize> = spec.parsed(RESIZE, &expected)?;
    match side.filter(|side| !(1..=LARGEST_SIDE).contains(side)) {
        Some(got) => Err(spec.error(format!("option {RESIZE}: expected {expected}, got {got}"))),
        None => Ok(side),
    }
}

/// The same side, given as `--size`.
///
/// # Errors
/// If images cannot have it.
pub(super) fn checked_side(side: usize) -> Result<usize> {
    if (1..=LARGEST_SIDE).contains(&side) {
        return Ok(side);
    }
    Err(Error::new(format!("--size: expected a size from 1 to {LARGEST_SIDE}, got {side}")))
}

impl Tree {
    /// Reads every file once: the checksum of each split, and the images with their headers. With
    /// `skip_bad`, images that cannot be decoded are left out of both.
    ///
    /// # Errors
    /// If a file cannot be read or understood.
    pub(super) fn inspect(&self, skip_bad: bool, show: Show) -> Result<Inspected> {
        let all = self.splits.iter().map(|(_, pictures)| pictures.len()).sum();
        let done = AtomicUsize::new(0);
        let look = |picture: &Picture| {
            let found = inspect(picture);
            show("reading headers", done.fetch_add(1, Relaxed) + 1, all);
            match found {
                Ok(found) => Ok(Ok(found)),
                Err(error) if skip_bad && picture.is_readable() => Ok(Err(error.first_line().to_owned())),
                Err(error) => Err(error),
            }
        };
        let mut inspected = Inspected::default();
        for (split, pictures) in &self.splits {
            let (mut lines, mut picked, mut refused) = (Vec::new(), Vec::new(), Vec::new());
            for (place, found) in in_parallel(pictures, look)?.into_iter().enumerate() {
                let name = &pictures[place].name;
                match found {
                    Ok((digest, header)) => {
                        lines.push((name, digest));
                        picked.push(Picked { place, header });
                    }
                    Err(why) => refused.push((name.clone(), why)),
                }
            }
            inspected.checksums.insert((*split).to_owned(), digest_of_all(lines));
            inspected.picked.push(picked);
            inspected.refused.push(refused);
        }
        Ok(inspected)
    }
}

/// What is known of the images of a tree before they are decoded, by split.
#[derive(Default)]
pub(super) struct Inspected {
    pub checksums: BTreeMap<String, String>,
    pub picked: Vec<Vec<Picked>>,
    /// Images that cannot be decoded: `CLASS/FILE`, and why.
    pub refused: Vec<Vec<(String, String)>>,
}

/// The number of channels of all images: 1 if all are grey, otherwise 3.
///
/// # Errors
/// If there are no images, or they differ in size and are not resized. `flag` is what resizes them.
pub(super) fn channels(tree: &Tree, picked: &[Vec<Picked>], is_resized: bool, flag: &str) -> Result<i64> {
    let of_split = |(pictures, picked): (&'_ (&str, Vec<Picture>), &'_ Vec<Picked>)| {
        picked.iter().map(|picked| (pictures.1[picked.place].path.clone(), picked.header)).collect::<Vec<_>>()
    };
    let all: Vec<_> = tree.splits.iter().zip(picked).flat_map(of_split).collect();
    let [(ref place, first), ..] = all[..] else { return Err(Error::new("no images")) };
    let differs =
        |(_, other): &&(PathBuf, Header)| (other.height, other.width) != (first.height, first.width);
    if let (false, Some((other_place, other))) = (is_resized, all.iter().find(differs)) {
        return Err(Error::new(format!(
            "{} is {} x {} pixels (height x width): expected {} x {}, as {} is",
            other_place.display(),
            other.height,
            other.width,
            first.height,
            first.width,
            place.display()
        ))
        .fix(format!(
            "resize all images as they are read: {flag}, for N x N pixels (or the option {RESIZE}=N after the \
             name of the data)"
        )));
    }
    Ok(if all.iter().all(|(_, header)| header.grey) { 1 } else { 3 })
}

/// Reads the images of a tree.
fn assemble(spec: &DataSpec, tree: &Tree) -> Result<Dataset> {
    spec.takes(&[RESIZE])?;
    let side = side(spec)?;
    let Inspected { checksums, picked, .. } = tree.inspect(false, &|_, _, _| {})?;
    let channels = channels(tree, &picked, side.is_some(), "--resize N")?;
    let mut decoded = Vec::new();
    for ((_, pictures), picked) in tree.splits.iter().zip(&picked) {
        decoded.push(decode(pictures, picked, channels, side)?);
    }
    let test = decoded.pop().ok_or_else(|| Error::new("no images"))?;
    let train = decoded.pop().map_or_else(|| test.none(), Ok)?;
    Ok(Dataset {
        name: spec.name(),
        train,
        test,
        classes: tree.classes.len() as i64,
        class_names: tree.classes.clone(),
        checksums,
        remarks: Vec::new(),
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
    for (label, class) in classes.iter().enumerate() {
        pictures.extend(pictures_in(&split.join(class), class, label)?);
    }
    sort(&mut pictures);
    Ok(pictures)
}

fn sort(pictures: &mut [Picture]) {
    pictures.sort_by_cached_key(|picture| md5(picture.name.as_bytes()));
}

/// The images in a folder, all of one class.
fn pictures_in(folder: &Path, class_name: &str, class: usize) -> Result<Vec<Picture>> {
    let picture = |(path, name)| Picture { path, name: format!("{class_name}/{name}"), class };
    let pictures: Vec<_> = image_files(folder)?.into_iter().map(picture).collect();
    if pictures.is_empty() {
        return Err(Error::new(format!("{} holds no images: expected PNG or JPEG files", folder.display()))
            .note("endings", ENDINGS.join(", ")));
    }
    Ok(pictures)
}

/// The paths and names of the images in a folder, which has nothing else.
fn image_files(folder: &Path) -> Result<Vec<(PathBuf, String)>> {
    let entries = entries(folder)?;
    // Reading a named pipe would block.
    match entries.iter().find(|(path, name)| !path.is_file() || !is_image(name)) {
        None => Ok(entries),
        Some((path, _)) => {
            Err(Error::new(format!("{} is not an image: expected PNG or JPEG files", path.display()))
                .note("endings", ENDINGS.join(", "))
                .fix("convert it, or move it out of the folder"))
        }
    }
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

/// The MD5 of a split, of the names and MD5s of its files. It is the MD5 of the lines that `md5sum`
/// writes for the files of the split, sorted by name.
fn digest_of_all(mut lines: Vec<(&String, String)>) -> String {
    lines.sort();
    let lines: String = lines.into_iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
    md5(lines.as_bytes())
}

/// The images and labels of a split, resized to `side` x `side` pixels if there is a side.
fn decode(pictures: &[Picture], picked: &[Picked], channels: i64, side: Option<usize>) -> Result<Split> {
    let [Picked { header: first, .. }, ..] = picked else { return Err(Error::new("no images")) };
    let own = [first.height, first.width].map(|size| size as usize);
    let [height, width] = side.map_or(own, |side| [side, side]).map(|size| size as i64);
    let count = picked.len() as i64;
    let images = Tensor::f_zeros([count, channels, height, width], (Kind::Uint8, Device::Cpu))?;
    let read = |picked: &Picked| pixels(&pictures[picked.place], &picked.header, channels, side);
    for (number, some) in picked.chunks(IMAGES_AT_A_TIME).enumerate() {
        let planes = in_parallel(some, read)?.concat();
        let first = (number * IMAGES_AT_A_TIME) as i64;
        let planes = Tensor::f_from_slice(&planes)?.f_view([-1, channels, height, width])?;
        images.f_narrow(0, first, some.len() as i64)?.f_copy_(&planes)?;
    }
    let labels: Vec<_> = picked.iter().map(|picked| pictures[picked.place].class as i64).collect();
    Ok(Split { images, labels: Tensor::f_from_slice(&labels)? })
}

/// The pixels of an image, plane by plane, resized if there is a side.
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn pixels(
    picture: &Picture,
    header: &Header,
    channels: i64,
    side: Option<usize>,
) -> Result<Vec<u8>> {
    let size = [header.height, header.width].map(|size| size as usize);
    Ok(of_side(planes(picture, channels)?, size, side))
}

/// Planes of this height and width, resized if there is a side.
pub(super) fn of_side(planes: Vec<u8>, size: [usize; 2], side: Option<usize>) -> Vec<u8> {
    let Some(side) = side else { return planes };
    planes.chunks(size[0] * size[1]).flat_map(|plane| resized(plane, size, side)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::load as load_any;
    use crate::data::tests::first_line;
    use image::{DynamicImage, GrayImage, ImageEncoder, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
    use picture::{ambiguous_components, most_pixels};
    use std::io::Cursor;
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
    fn images_of_any_size_are_resized_on_request() {
        let folder = tree();
        put(&folder, "test/cat/d.png", GrayImage::from_pixel(20, 30, Luma([200])));
        let load =
            |options: &str| load_any(&format!("{}{options}", folder.path().display()), Path::new("unused"));
        assert!(load("").expect_err("refused").advice().is_some_and(|fix| fix.contains("--resize N")));
        let data = load(",resize=5").expect("a data set");
        assert_eq!((data.train.images.size(), data.test.images.size()), (vec![3, 1, 5, 5], vec![2, 1, 5, 5]));
        let row = (0..2).find(|row| data.test.labels.int64_value(&[*row]) == 0).expect("a cat");
        assert_eq!(data.test.images.get(row), Tensor::full([1, 5, 5], 200, (Kind::Uint8, Device::Cpu)));
        for (size, got) in [("0", "0"), ("4097", "4097"), ("a", "a")] {
            let message = first_line(load(&format!(",resize={size}")), folder.path());
            assert!(
                message.ends_with(&format!("option resize: expected a size from 1 to 4096, got {got}")),
                "{message}"
            );
        }
    }

    #[test]
    fn resized_jpeg_files_are_those_of_torchvision() {
        use crate::util::fuzz::repository_file;
        let expected = repository_file("tests/end-to-end/inputs/resized-jpeg.bin");
        for (number, wanted) in expected.chunks(3 * 12 * 12).enumerate() {
            let folder = tree();
            let file = repository_file(&format!("tests/end-to-end/inputs/resized-{number}.jpg"));
            fs::remove_file(folder.path().join("test/cat/d.png")).expect("removed");
            fs::write(folder.path().join("test/cat/d.jpg"), file).expect("written");
            let written = format!("{},resize=12", folder.path().display());
            let data = load_any(&written, Path::new("unused")).expect("a data set");
            let row = (0..2).find(|row| data.test.labels.int64_value(&[*row]) == 0).expect("a cat");
            let got = Vec::<u8>::try_from(data.test.images.get(row).flatten(0, -1)).expect("bytes");
            // The decoders round differently; PNG files give the same bytes.
            let most = got.iter().zip(wanted).map(|(one, other)| one.abs_diff(*other)).max();
            assert!(most <= Some(4), "image {number}: {most:?} levels");
        }
    }

    #[test]
    fn the_layout_of_tiny_imagenet_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, value) in [
            ("train/n02/images/n02_0.JPEG", 10),
            ("train/n01/images/n01_0.JPEG", 20),
            ("train/n01/images/n01_1.JPEG", 30),
            ("val/images/val_0.JPEG", 40),
            ("val/images/val_1.JPEG", 50),
            ("test/images/test_0.JPEG", 60),
        ] {
            put(&folder, name, colour(value));
        }
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        write("wnids.txt", "n02\nn01\n");
        write("train/n01/n01_boxes.txt", "n01_0.JPEG\t0\t0\t1\t1\n");
        write("val/val_annotations.txt", "val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n");
        let data = load_tree(&folder).expect("a data set");
        assert_eq!((data.train.count(), data.test.count(), data.classes), (3, 2, 2));
        assert_eq!(data.class_names, ["n01", "n02"]);
        assert_eq!(data.checksums.keys().collect::<Vec<_>>(), ["train", "val"]);
        let labels: Vec<i64> = Vec::try_from(&data.test.labels).expect("labels");
        let mut order = [("n02/val_0.JPEG", 1), ("n01/val_1.JPEG", 0)];
        order.sort_by_key(|(name, _)| md5(name.as_bytes()));
        assert_eq!(labels, order.map(|(_, label)| label));
        write("val/val_annotations.txt", "val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn03\t0\t0\t1\t1\n");
        let message = refusal(&folder);
        assert!(
            message.starts_with(
                "DIR/val/val_annotations.txt, line 2: expected the name of an image and a class"
            ),
            "{message}"
        );
        write("val/val_annotations.txt", "val_0.JPEG\tn02\n");
        assert!(
            refusal(&folder).starts_with("DIR/val/images/val_1.JPEG has no class: "),
            "{}",
            refusal(&folder)
        );
        write("val/val_annotations.txt", "val_0.JPEG\tn02\nval_1.JPEG\tn01\nval_2.JPEG\tn01\n");
        assert!(
            refusal(&folder).starts_with("DIR/val/images has no image val_2.JPEG: "),
            "{}",
            refusal(&folder)
        );
        write("wnids.txt", "n02\nn01\nn03\n");
        assert!(refusal(&folder).starts_with("DIR/wnids.txt has the class n03: "), "{}", refusal(&folder));
    }

    #[test]
    fn test_images_alone_can_be_read() {
        let folder = tree();
        fs::remove_dir_all(folder.path().join("train")).expect("removed");
        let data = load_tree(&folder).expect("a data set");
        assert_eq!(
            (data.train.count(), data.test.count(), data.train.images.size()),
            (0, 2, vec![0, 1, 2, 3])
        );
        fs::rename(folder.path().join("test"), folder.path().join("train")).expect("renamed");
        assert_eq!(refusal(&folder), "DIR has no folder test or val");
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
            include_bytes!(concat!("../../../../tests/end-to-end/inputs/", $name)).as_slice()
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
