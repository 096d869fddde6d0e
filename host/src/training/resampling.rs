//! Random resized crops, as torchvision's `RandomResizedCrop` draws and computes them: a window of a
//! random share of the area and a random aspect ratio is resized to the size of the image.
//!
//! The window is never larger than the image, so that bilinear interpolation needs no antialiasing.

use crate::config::Train;
use crate::torch::random::{Draws, Purpose};
use crate::{Error, Result};
use plugin_api::{Distribution, RandomSource};
use tch::{Kind, Tensor};

/// The aspect ratios (width over height) of a window before rounding.
const RATIOS: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

/// Windows that are drawn until one lies in the image; then the largest one in the middle is taken.
const TRIES: i64 = 10;

/// Numbers that are drawn for a try: area, aspect ratio, row and column.
const NUMBERS: i64 = 4;

/// For every pixel of the result, the two pixels of the image between which it lies, along rows and
/// along columns.
pub struct Resampling {
    rows: Line,
    columns: Line,
}

/// Places along one axis.
struct Line {
    /// The pixels before and after each place, `[N, size]`, i64.
    before: Tensor,
    after: Tensor,
    /// The weight of the pixel after it, `[N, size]`, f32.
    weight: Tensor,
}

impl Resampling {
    /// Draws the windows of an update for the rows `images` (`[N, C, H, W]`) of these points (length
    /// N), with shares of the area from `scale[0]` to `scale[1]`; mirrored with probability 1/2 if
    /// `train.flip`. They depend only on the seed, the update and the point.
    ///
    /// # Errors
    /// If a draw fails.
    pub fn draw(train: &Train, scale: &[f64], update: u64, points: &[i64], images: &Tensor) -> Result<Self> {
        let [count, _, height, width] = images.size()[..] else {
            return Err(Error::new("train.scale: expected images with rows and columns"));
        };
        let draws = Draws::new(train.seed, Purpose::Augmentation, update, points, 1);
        let like = Tensor::f_zeros([count, 1 + TRIES * NUMBERS], (Kind::Float, images.device()))?;
        let numbers = draws
            .draw(Distribution::Uniform, &like)
            .map_err(|error| Error::new(error).on_the_way())?
            .to_kind(Kind::Double);
        let flips = numbers.narrow(1, 0, 1).lt(if train.flip { 0.5 } else { 0.0 });
        let tries = numbers.narrow(1, 1, TRIES * NUMBERS).view([count, TRIES, NUMBERS]);
        let windows = Windows::of(&tries, scale, [height, width]);
        Ok(Self::new(&windows, &flips.to_kind(Kind::Double), [height, width]))
    }

    /// `flips` is `[N, 1]`, 1 where the result is mirrored.
    fn new(windows: &Windows, flips: &Tensor, [height, width]: [i64; 2]) -> Self {
        let count = |size: i64| Tensor::arange(size, (Kind::Double, flips.device()));
        let mirrored = flips * (width - 1) as f64 + (flips * -2.0 + 1.0) * count(width);
        let Windows { top, left, height: rows, width: columns } = windows;
        Self {
            rows: Line::new(&count(height).unsqueeze(0), top, rows, height),
            columns: Line::new(&mirrored, left, columns, width),
        }
    }

    /// The resized windows of images (`[N, C, H, W]`).
    pub fn apply(&self, images: &Tensor) -> Tensor {
        let size = images.size();
        let along = |images: &Tensor, index: &Tensor, shape: [i64; 4], axis: i64| {
            images.gather(axis, &index.view(shape).expand(size.as_slice(), false), false)
        };
        let between = |images: &Tensor, line: &Line, shape: [i64; 4], axis: i64| {
            let before = along(images, &line.before, shape, axis);
            let after = along(images, &line.after, shape, axis);
            before.lerp_tensor(&after, &line.weight.view(shape))
        };
        let rows = between(images, &self.rows, [size[0], 1, size[2], 1], 2);
        between(&rows, &self.columns, [size[0], 1, 1, size[3]], 3)
    }
}

impl Line {
    /// `places` (`[N or 1, size]`, f64) are pixels of the result, which is `size` pixels of the
    /// window's `length` (`[N, 1]`) from `first` (`[N, 1]`) on.
    fn new(places: &Tensor, first: &Tensor, length: &Tensor, size: i64) -> Self {
        let inside = (places + 0.5) * length / size as f64 - 0.5;
        // Beyond its outermost pixels, a window goes on with them.
        let last = length - 1.0;
        let inside = inside.clamp_min(0.0).minimum(&last);
        let before = inside.floor();
        let after = (&before + 1.0).minimum(&last);
        Self {
            weight: (&inside - &before).to_kind(Kind::Float),
            before: (first + before).to_kind(Kind::Int64),
            after: (first + after).to_kind(Kind::Int64),
        }
    }
}

/// Windows in whole pixels, `[N, 1]` each, f64.
struct Windows {
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
}

impl Windows {
    /// From uniform numbers (`[N, tries, 4]`, f64).
    fn of(tries: &Tensor, scale: &[f64], size: [i64; 2]) -> Self {
        let [height, width] = size.map(|size| size as f64);
        let number = |which: i64| tries.select(2, which);
        let between = |share: Tensor, [low, high]: [f64; 2]| share * (high - low) + low;
        let area = between(number(0), [scale[0], scale[1]]) * (height * width);
        let ratio = between(number(1), RATIOS.map(f64::ln)).exp();
        let widths = (&area * &ratio).sqrt().round();
        let heights = (area / ratio).sqrt().round();
        let of_size = |lengths: &Tensor, most: f64| lengths.ge(1.0).logical_and(&lengths.le(most));
        let fits = of_size(&widths, width).logical_and(&of_size(&heights, height));
        // The first that fits.
        let chosen = fits.to_kind(Kind::Int64).argmax(1, true);
        let any = fits.any_dim(1, true);
        let [middle_height, middle_width] = middle([height, width]);
        let choose =
            |lengths: &Tensor, middle: f64| lengths.gather(1, &chosen, false).where_scalarother(&any, middle);
        let (heights, widths) = (choose(&heights, middle_height), choose(&widths, middle_width));
        let place = |which: i64, lengths: &Tensor, size: f64| {
            let room = lengths.neg() + size;
            let drawn = (number(which).gather(1, &chosen, false) * (&room + 1.0)).floor().minimum(&room);
            drawn.where_self(&any, &(room / 2.0).floor())
        };
        Self {
            top: place(2, &heights, height),
            left: place(3, &widths, width),
            height: heights,
            width: widths,
        }
    }
}

/// The largest window in the middle whose aspect ratio is allowed.
fn middle([height, width]: [f64; 2]) -> [f64; 2] {
    let [low, high] = RATIOS;
    match width / height {
        ratio if ratio < low => [(width / low).round_ties_even(), width],
        ratio if ratio > high => [height, (height * high).round_ties_even()],
        _ => [height, width],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn column(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).unsqueeze(1)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    fn resampled(images: &Tensor, [top, left, height, width]: [f64; 4], flip: f64) -> Vec<f32> {
        let windows = Windows {
            top: column(&[top]),
            left: column(&[left]),
            height: column(&[height]),
            width: column(&[width]),
        };
        let size = images.size();
        values(&Resampling::new(&windows, &column(&[flip]), [size[2], size[3]]).apply(images))
    }

    #[test]
    fn windows_are_resized_as_torchvision_does() {
        // torchvision.transforms.functional.resized_crop(x, 0, 1, 2, 2, [2, 4]) and others, antialias
        // or not, of x = arange(8).reshape(1, 2, 4); checked by hand: columns 1 and 2 at -0.25, 0.25,
        // 0.75 and 1.25 of the window.
        let images = Tensor::arange(8, CPU).view([1, 1, 2, 4]);
        let rows = [[1.0, 1.25, 1.75, 2.0], [5.0, 5.25, 5.75, 6.0]];
        assert_eq!(resampled(&images, [0.0, 1.0, 2.0, 2.0], 0.0), rows.concat());
        let mirrored: Vec<f32> = rows.iter().flat_map(|row| row.iter().rev().copied()).collect();
        assert_eq!(resampled(&images, [0.0, 1.0, 2.0, 2.0], 1.0), mirrored);
        // One row of the image fills all rows.
        assert_eq!(resampled(&images, [1.0, 0.0, 1.0, 4.0], 0.0), [4.0, 5.0, 6.0, 7.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(resampled(&images, [0.0, 0.0, 2.0, 4.0], 0.0), values(&images), "the whole image stays");
    }

    #[test]
    fn a_resized_image_is_that_of_libtorch() {
        let images = Tensor::rand([1, 3, 9, 11], CPU);
        let got = resampled(&images, [2.0, 3.0, 5.0, 7.0], 0.0);
        let window = images.narrow(2, 2, 5).narrow(3, 3, 7);
        let expected = values(&window.upsample_bilinear2d([9, 11], false, None, None));
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn windows_have_the_area_and_the_aspect_ratio_that_were_drawn() {
        let train = Train { flip: true, ..Train::default() };
        let points: Vec<i64> = (0..4000).collect();
        let images = Tensor::zeros([4000, 1, 40, 40], CPU);
        let draws = Draws::new(train.seed, Purpose::Augmentation, 3, &points, 1);
        let like = Tensor::zeros([4000, 1 + TRIES * NUMBERS], CPU);
        let numbers = draws.draw(Distribution::Uniform, &like).expect("drawn").to_kind(Kind::Double);
        let tries = numbers.narrow(1, 1, TRIES * NUMBERS).view([4000, TRIES, NUMBERS]);
        let Windows { top, left, height, width } = Windows::of(&tries, &[0.25, 0.5], [40, 40]);
        let share = (&height * &width) / 1600.0;
        let (low, high, mean) = (share.min(), share.max(), share.mean(Kind::Double));
        let number = |tensor: &Tensor| tensor.double_value(&[]);
        // Rounding to whole pixels moves the area by a few percent.
        assert!(number(&low) > 0.22 && number(&high) < 0.54, "{low} {high}");
        assert!((number(&mean) - 0.375).abs() < 0.01, "{mean}");
        let ratio = (&width / &height).log();
        assert!(number(&ratio.mean(Kind::Double)).abs() < 0.01, "as often wide as high");
        assert!(number(&ratio.abs().max()) < (4.0f64 / 3.0).ln() + 0.05);
        for (place, length) in [(&top, &height), (&left, &width)] {
            assert!(number(&place.min()) >= 0.0 && number(&(place + length).max()) <= 40.0);
            let room = length.neg() + 40.0;
            assert!((number(&(place / room).mean(Kind::Double)) - 0.5).abs() < 0.02);
        }
        // All particles of a point, and a point in any batch, have the same window.
        let numbered = Tensor::arange(1600, CPU).view([1, 1, 40, 40]).repeat([2, 1, 1, 1]);
        let alone =
            Resampling::draw(&train, &[0.25, 0.5], 3, &[17, 17], &numbered).expect("drawn").apply(&numbered);
        let all = Resampling::draw(&train, &[0.25, 0.5], 3, &points, &images).expect("drawn");
        let seen = all.apply(&numbered.get(0).expand([4000, 1, 40, 40], false));
        assert_eq!(alone.get(0), alone.get(1));
        assert_eq!(alone.get(0), seen.get(17));
        assert_ne!(seen.get(17), seen.get(18));
    }

    #[test]
    fn where_no_window_fits_the_middle_is_taken() {
        let never = Tensor::zeros([1, TRIES, NUMBERS], (Kind::Double, Device::Cpu)) + 0.5;
        // Of 30 x 120 pixels, no window of the whole area has an allowed ratio: 30 x 40 do.
        let Windows { top, left, height, width } = Windows::of(&never, &[1.0, 1.0], [30, 120]);
        let numbers = [top, left, height, width].map(|number| number.double_value(&[0, 0]));
        assert_eq!(numbers, [0.0, 40.0, 30.0, 40.0]);
        assert_eq!(middle([120.0, 30.0]), [40.0, 30.0]);
        assert_eq!(middle([30.0, 30.0]), [30.0, 30.0]);
    }
}
