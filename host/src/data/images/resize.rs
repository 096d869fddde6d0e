//! Resizing of images as torchvision's `Resize(N)` and `CenterCrop(N)` do it on images of Pillow: the
//! shorter side becomes N pixels, then the middle N x N pixels are cut out.
//!
//! The arithmetic is Pillow's (`src/libImaging/Resample.c`): bilinear with antialiasing, in whole
//! numbers, first along rows, then along columns, each rounded to bytes.

/// Binary digits of a weight after the point.
const PRECISION: u32 = 32 - 8 - 2;

/// The weights of a pixel of the result.
struct Weights {
    /// The first pixel that has one.
    first: usize,
    weights: Vec<i64>,
}

/// A plane of `height` x `width` pixels, row by row, as `side` x `side` pixels.
pub(super) fn resized(plane: &[u8], [height, width]: [usize; 2], side: usize) -> Vec<u8> {
    let short = height.min(width);
    // As torchvision truncates it.
    let scaled = |size: usize| {
        if size == short { side } else { ((side * size) as f64 / short as f64) as usize }
    };
    let [columns, rows] = [width, height].map(|size| weights(size, scaled(size), side));
    let narrow: Vec<u8> = plane
        .chunks(width)
        .flat_map(|row| columns.iter().map(|weights| weighted(weights, |place| row[place])))
        .collect();
    let of_row = |weights| (0..side).map(move |column| (weights, column));
    let places = rows.iter().flat_map(of_row);
    places.map(|(weights, column)| weighted(weights, |place| narrow[place * side + column])).collect()
}

/// The weights of the middle `side` of `scaled` pixels, to which `size` pixels are resized.
fn weights(size: usize, scaled: usize, side: usize) -> Vec<Weights> {
    // Python rounds halves to even.
    let first = ((scaled - side) as f64 / 2.0).round_ties_even() as usize;
    (first..first + side).map(|place| weights_of(size, scaled, place)).collect()
}

fn weights_of(size: usize, scaled: usize, place: usize) -> Weights {
    if size == scaled {
        return Weights { first: place, weights: vec![1 << PRECISION] };
    }
    let scale = size as f64 / scaled as f64;
    // The triangle covers a pixel of the result, and at least one of the original on either side.
    let support = scale.max(1.0);
    let centre = (place as f64 + 0.5) * scale;
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(size);
    let triangle = |pixel: usize| (1.0 - ((pixel as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
    let all: Vec<f64> = (first..end).map(triangle).collect();
    let sum: f64 = all.iter().sum();
    let fixed = |weight: &f64| (0.5 + weight * (1.0 / sum) * f64::from(1u32 << PRECISION)) as i64;
    Weights { first, weights: all.iter().map(fixed).collect() }
}

/// The weighted sum of pixels, as a byte.
fn weighted(Weights { first, weights }: &Weights, pixel: impl Fn(usize) -> u8) -> u8 {
    let half = 1 << (PRECISION - 1);
    let products = weights.iter().zip(*first..).map(|(weight, place)| weight * i64::from(pixel(place)));
    ((half + products.sum::<i64>()) >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fuzz::repository_file;

    /// The side of the recorded images.
    const SIDE: usize = 12;

    /// The images that `tests/end-to-end/inputs/resized.py` makes: a pattern of waves, stripes and
    /// noise, one plane per channel.
    fn plane(number: usize, channel: usize, [height, width]: [usize; 2]) -> Vec<u8> {
        let mut state = (1 + 3 * number + channel) as u32;
        let places = (0..height).flat_map(|row| (0..width).map(move |column| (row, column)));
        let pixel = |(row, column): (usize, usize)| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 24) as usize;
            let smooth = (row * (3 + channel) + column * (5 + number % 7)) % 256;
            let stripes = if (row / 3 + column / 2).is_multiple_of(2) { 0 } else { 255 };
            [noise, smooth, stripes, (noise + smooth) / 2][number % 4] as u8
        };
        places.map(pixel).collect()
    }

    fn size(number: usize) -> [usize; 2] {
        [[5, 7], [12, 12], [64, 48], [13, 100], [31, 30], [12, 40], [200, 9], [25, 12], [1, 3], [77, 78]]
            [number % 10]
            .map(|size| size + number / 10 * (number % 3))
    }

    #[test]
    fn the_result_is_that_of_torchvision() {
        let expected = repository_file("tests/end-to-end/inputs/resized.bin");
        assert_eq!(expected.len(), 50 * 3 * SIDE * SIDE);
        let mut planes = expected.chunks(SIDE * SIDE);
        let mut most = 0;
        for number in 0..50 {
            for channel in 0..3 {
                let got = resized(&plane(number, channel, size(number)), size(number), SIDE);
                let wanted = planes.next().expect("a plane");
                assert_eq!(got.len(), wanted.len());
                most = got
                    .iter()
                    .zip(wanted)
                    .map(|(one, other)| one.abs_diff(*other))
                    .max()
                    .max(Some(most))
                    .unwrap();
            }
        }
        assert!(most <= 1, "{most} levels of difference");
    }

    #[test]
    fn an_image_of_that_size_stays_as_it_is() {
        let pixels = plane(0, 0, [SIDE, SIDE]);
        assert_eq!(resized(&pixels, [SIDE, SIDE], SIDE), pixels);
        // Of a wider one, the middle is cut out: columns 1 to 12 of 15, as 1.5 is rounded to 2.
        let wide: Vec<u8> = (0..SIDE * 15).map(|place| (place % 15) as u8).collect();
        let expected: Vec<u8> = (0..SIDE * SIDE).map(|place| (2 + place % SIDE) as u8).collect();
        assert_eq!(resized(&wide, [SIDE, 15], SIDE), expected);
    }
}
