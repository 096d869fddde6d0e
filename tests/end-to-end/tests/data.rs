//! Small data sets in the layouts of MNIST and CIFAR-10, and as folders of images.

use std::fs;
use std::path::Path;

/// The number of test images of every data set here.
pub const TEST_POINTS: usize = 100;

/// Numbers that look random and are the same everywhere (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Uniform between -1 and 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Square grey images with their labels.
pub struct Samples {
    /// One byte per pixel, image after image.
    pub pixels: Vec<u8>,
    /// One byte per image.
    pub labels: Vec<u8>,
}

/// The bytes of an IDX file.
pub fn idx(dimensions: &[usize], bytes: &[u8]) -> Vec<u8> {
    let magic = 0x0800 | dimensions.len() as u32;
    let sizes = dimensions.iter().map(|size| *size as u32);
    let header = std::iter::once(magic).chain(sizes).flat_map(u32::to_be_bytes);
    header.chain(bytes.iter().copied()).collect()
}

/// Writes a data set of images `side` x `side`.
pub fn write(folder: &Path, side: usize, train: &Samples, test: &Samples) {
    write_rectangles(folder, [side, side], train, test);
}

/// Writes a data set of images `height` x `width`.
pub fn write_rectangles(folder: &Path, [height, width]: [usize; 2], train: &Samples, test: &Samples) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, samples) in [("train", train), ("t10k", test)] {
        let points = samples.labels.len();
        let images = idx(&[points, height, width], &samples.pixels);
        fs::write(folder.join(format!("{name}-images-idx3-ubyte")), images).expect("written");
        let labels = idx(&[points], &samples.labels);
        fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), labels).expect("written");
    }
}

/// Writes a data set of ten classes. Each class has its own pattern of light and dark pixels, and
/// each image has noise.
pub fn write_digits(folder: &Path, side: usize, train_points: usize) {
    write_classes(folder, side, train_points, 10);
}

/// As [`write_digits`], with this number of classes.
pub fn write_classes(folder: &Path, side: usize, train_points: usize, classes: usize) {
    write(folder, side, &digits(side, train_points, classes, 1), &digits(side, TEST_POINTS, classes, 2));
}

/// As [`write_digits`], with images that are twice as wide as high.
pub fn write_wide_digits(folder: &Path, height: usize, train_points: usize) {
    let [train, test] = [(train_points, 1), (TEST_POINTS, 2)].map(|(points, seed)| {
        let square = digits(height, points, 10, seed);
        let rows = square.pixels.chunks(height).flat_map(|row| row.iter().chain(row).copied());
        Samples { pixels: rows.collect(), labels: square.labels }
    });
    write_rectangles(folder, [height, 2 * height], &train, &test);
}

/// The images of [`write_digits`] as PNG files, in a folder for each class.
pub fn write_image_tree(folder: &Path, side: usize, train_points: usize) {
    for (split, points, seed) in [("train", train_points, 1), ("test", TEST_POINTS, 2)] {
        let Samples { pixels, labels } = digits(side, points, 10, seed);
        for (number, (pixels, label)) in pixels.chunks(side * side).zip(labels).enumerate() {
            let class = folder.join(split).join(format!("digit-{label}"));
            fs::create_dir_all(&class).expect("a folder");
            let size = side as u32;
            let file = class.join(format!("{number}.png"));
            image::save_buffer(file, pixels, size, size, image::ExtendedColorType::L8).expect("saved");
        }
    }
}

/// Writes a data set of ten classes in the layout of CIFAR-10's binary version: a label, then a
/// red, a green and a blue plane of 32 x 32 pixels.
pub fn write_colour_batches(folder: &Path, points_per_batch: usize) {
    fs::create_dir_all(folder).expect("a folder");
    let names = (1..=5).map(|batch| (format!("data_batch_{batch}"), points_per_batch));
    for (seed, (name, points)) in names.chain([("test_batch".to_owned(), TEST_POINTS)]).enumerate() {
        // The three planes are made as one image of 96 x 32 pixels.
        write_batch(
            &folder.join(format!("{name}.bin")),
            &rectangles([3 * 32, 32], points, 10, 1 + seed as u64),
        );
    }
}

/// Colour images (three planes of 32 x 32 pixels each) in that layout, in batches of equal sizes.
pub fn write_colours(folder: &Path, train: &Samples, test: &Samples) {
    fs::create_dir_all(folder).expect("a folder");
    let points = train.labels.len() / 5;
    for batch in 0..5 {
        let labels = train.labels[batch * points..][..points].to_vec();
        let pixels = train.pixels[batch * points * 3 * 32 * 32..][..points * 3 * 32 * 32].to_vec();
        write_batch(&folder.join(format!("data_batch_{}.bin", batch + 1)), &Samples { pixels, labels });
    }
    write_batch(&folder.join("test_batch.bin"), test);
}

fn write_batch(file: &Path, Samples { pixels, labels }: &Samples) {
    let records = labels.iter().zip(pixels.chunks(3 * 32 * 32));
    let bytes = records.flat_map(|(label, planes)| std::iter::once(label).chain(planes).copied());
    fs::write(file, bytes.collect::<Vec<_>>()).expect("written");
}

/// The images of [`write_digits`].
pub fn digits(side: usize, points: usize, classes: usize, seed: u64) -> Samples {
    rectangles([side, side], points, classes, seed)
}

fn rectangles([height, width]: [usize; 2], points: usize, classes: usize, seed: u64) -> Samples {
    let mut noise = Noise(seed);
    let labels: Vec<u8> = (0..points).map(|point| (point % classes) as u8).collect();
    let pixels = labels.iter().flat_map(|label| {
        let mut pattern = Noise(1000 + u64::from(*label));
        let image = (0..height * width)
            .map(|_| 128.0 + 50.0 * pattern.uniform().signum() + 40.0 * noise.uniform())
            .map(|value| value as u8);
        image.collect::<Vec<_>>()
    });
    Samples { pixels: pixels.collect(), labels }
}
