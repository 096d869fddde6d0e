//! Random crops and flips that keep persistent particles valid.
//!
//! The particle store keeps a particle and its sampler state in the data frame, the frame of the
//! image in the data set. At each visit, image, particle and state are transformed to the augmented
//! frame (cropped and flipped), the sampler moves the particle there, and the inverse
//! transformation maps the result back. The transformation only moves pixels. It does not
//! interpolate, so nothing is rounded.
//!
//! All K particles of a point share one transformation, so that a sampler with interacting
//! particles compares the same pixels.
//!
//! A random resized crop (`resampling.rs`) interpolates. It has no inverse, so that no particle can
//! be carried back: chains then begin anew at every visit.

use super::resampling::Resampling;
use crate::config::Train;
use crate::plugin::Visit;
use crate::torch::random::{Draws, Purpose};
use crate::training::store::Stored;
use crate::{Error, Result};
use plugin_api::{Distribution, RandomSource, ThreatModel};
use tch::{Kind, Tensor};

/// The transformation of each row of a minibatch.
pub enum Transformation {
    /// Images are not augmented.
    None,
    /// Pixels are moved.
    Crop(Crop),
    /// Images are resampled, which has no inverse: no particle is carried between visits.
    Resample(Resampling),
}

/// Lookups between the data frame and the augmented frame.
pub struct Crop {
    /// For every pixel of the augmented frame, its place in the data frame.
    to_augmented: Lookup,
    /// For every pixel of the data frame, its place in the augmented frame.
    to_data: Lookup,
}

impl Transformation {
    /// Draws the transformations of an update for the rows `images` (`[N, C, H, W]`) of these
    /// points (length N).
    ///
    /// With `train.scale`, a window of a random area and aspect ratio is resized to the size of the
    /// image ([`Resampling`]). Otherwise each image is padded by `train.crop` pixels of zeros on every side. A window of the size of
    /// the image is cut at a uniformly random place. With `train.flip` it is then mirrored left to
    /// right with probability 1/2. The transformation depends only on the seed, the update and the
    /// point.
    pub fn draw(train: &Train, update: u64, points: &[i64], images: &Tensor) -> Result<Self> {
        if let Some(scale) = &train.scale {
            return Resampling::draw(train, scale, update, points, images).map(Self::Resample);
        }
        if train.crop == 0 && !train.flip {
            return Ok(Self::None);
        }
        // One particle per point: all rows of a point draw the same three numbers.
        let draws = Draws::new(train.seed, Purpose::Augmentation, update, points, 1);
        let like = Tensor::f_zeros([images.size()[0], 3], (Kind::Float, images.device()))?;
        let numbers = draws
            .draw(Distribution::Uniform, &like)
            .map_err(|error| Error::new(error).on_the_way())?
            .to_kind(Kind::Double);
        let crop = train.crop as f64;
        let shifts = (numbers.narrow(1, 0, 2) * (2.0 * crop + 1.0)).floor() - crop;
        let flips = numbers.narrow(1, 2, 1).lt(if train.flip { 0.5 } else { 0.0 });
        Ok(Self::new(&shifts.to_kind(Kind::Int64), &flips.to_kind(Kind::Int64), images))
    }

    /// The window is shifted by `shifts` (`[N, 2]`, i64: rows, columns) from the corner of the
    /// image, and mirrored where `flips` (`[N, 1]`, i64) is 1.
    fn new(shifts: &Tensor, flips: &Tensor, images: &Tensor) -> Self {
        let [.., height, width] = images.size()[..] else { return Self::None };
        let count = |size: i64| Tensor::arange(size, (Kind::Int64, images.device()));
        let mirrored = |columns: &Tensor| flips * (width - 1) + (flips * -2 + 1) * columns;
        let (down, right) = (shifts.narrow(1, 0, 1), shifts.narrow(1, 1, 1));
        let to_augmented = Lookup::new(&(count(height) + &down), &(mirrored(&count(width)) + &right));
        let to_data = Lookup::new(&(count(height) - &down), &mirrored(&(count(width) - &right)));
        Self::Crop(Crop { to_augmented, to_data })
    }

    /// Transforms images, particles or a state tensor (`[N, C, H, W]`) to the augmented frame.
    /// Padding is zero.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        match self {
            Self::None => images.shallow_clone(),
            Self::Crop(Crop { to_augmented, .. }) => {
                to_augmented.read(images).where_scalarother(&to_augmented.inside, 0.0)
            }
            Self::Resample(resampling) => resampling.apply(images),
        }
    }

    /// Transforms stored chains to the augmented frame, where `natural` are the natural examples. In
    /// padding, particles begin there.
    pub fn carry(&self, stored: &Stored, natural: &Tensor) -> Stored {
        let state = stored.state.iter().map(|state| of_pixels(state, |state| self.apply(state))).collect();
        let particles = match self {
            Self::Crop(Crop { to_augmented, .. }) => {
                to_augmented.read(&stored.particles).where_self(&to_augmented.inside, natural)
            }
            _ => self.apply(&stored.particles),
        };
        Stored { particles, state }
    }

    /// The inverse of [`Transformation::apply`]: transforms `augmented` to the data frame. Pixels
    /// outside the window keep their values from `before`.
    pub fn undo(&self, augmented: &Tensor, before: &Tensor) -> Tensor {
        match self {
            Self::None => augmented.shallow_clone(),
            Self::Crop(Crop { to_data, .. }) => to_data.read(augmented).where_self(&to_data.inside, before),
            // Refused before the run begins.
            Self::Resample(_) => before.shallow_clone(),
        }
    }

    /// The chains to be stored after a visit, in the data frame, given the chains stored `before`
    /// the visit and the natural examples in the data frame. `ball` is where the particles may be.
    /// Changes of padding are discarded.
    pub fn carry_back(&self, visit: &Visit, before: &Stored, natural: &Tensor, ball: &ThreatModel) -> Stored {
        let particles = self.undo(&visit.particles, &before.particles);
        let state = visit.state.iter().zip(&before.state);
        let state = state.map(|(state, before)| of_pixels(state, |state| self.undo(state, before))).collect();
        match self {
            Self::None => Stored { particles, state },
            // Pixels inside and outside the window were moved at different visits. Together they
            // may leave the l2 or the l1 ball.
            _ => Stored { particles: ball.project(&particles, natural), state },
        }
    }
}

/// A state tensor transformed if it has pixels, `[N, C, H, W]`. Numbers of a particle, `[N, numbers]`,
/// are the same in every frame.
fn of_pixels(state: &Tensor, transform: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    if state.dim() == 4 { transform(state) } else { state.shallow_clone() }
}

/// For each pixel of one frame, its place in another frame.
struct Lookup {
    /// Index of the pixel to read, `[N, 1, H * W]`, i64. Any valid index where the place is
    /// outside.
    index: Tensor,
    /// Whether the place is inside the other frame, `[N, 1, H, W]`, bool.
    inside: Tensor,
}

impl Lookup {
    /// From the rows `[N, H]` and columns `[N, W]` to read, which may be outside.
    fn new(rows: &Tensor, columns: &Tensor) -> Self {
        let (height, width) = (rows.size()[1], columns.size()[1]);
        let within = |places: &Tensor, size: i64| places.ge(0).logical_and(&places.lt(size));
        let (row_inside, column_inside) = (within(rows, height), within(columns, width));
        let index =
            (rows.clamp(0, height - 1) * width).unsqueeze(2) + columns.clamp(0, width - 1).unsqueeze(1);
        Self {
            index: index.flatten(1, 2).unsqueeze(1),
            inside: row_inside.unsqueeze(2).logical_and(&column_inside.unsqueeze(1)).unsqueeze(1),
        }
    }

    fn read(&self, images: &Tensor) -> Tensor {
        let size = images.size();
        images.flatten(2, 3).gather(2, &self.index.expand([-1, size[1], -1], false), false).reshape(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Norm;
    use tch::Device;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn transformation(shifts: &[[i64; 2]], flips: &[i64], images: &Tensor) -> Transformation {
        let shifts = Tensor::from_slice(&shifts.concat()).reshape([-1, 2]);
        Transformation::new(&shifts, &Tensor::from_slice(flips).reshape([-1, 1]), images)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    /// `rows` images with the numbers 1 to 6 in two rows of three pixels.
    fn numbered(rows: i64) -> Tensor {
        Tensor::arange_start(1, 7, CPU).reshape([1, 1, 2, 3]).repeat([rows, 1, 1, 1])
    }

    fn train(crop: usize, flip: bool) -> Train {
        Train { crop, flip, ..Train::default() }
    }

    #[test]
    fn particles_begin_at_the_natural_example_in_padding() {
        // By hand: of [[1, 2], [3, 4]], a window one row lower and one column to the right has 4, and padding.
        let particles = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).reshape([1, 1, 2, 2]);
        let number = |values: &[i64], width: i64| Tensor::from_slice(values).reshape([1, width]);
        let transformation = Transformation::new(&number(&[1, 1], 2), &number(&[0], 1), &particles);
        let natural = particles.full_like(7.0);
        let stored = Stored { particles: particles.shallow_clone(), state: vec![particles] };
        let carried = transformation.carry(&stored, &natural);
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).expect("f32");
        assert_eq!(values(&carried.particles), [4.0, 7.0, 7.0, 7.0]);
        assert_eq!(values(&carried.state[0]), [4.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn crops_and_flips_equal_those_computed_by_hand() {
        let images = numbered(4);
        let moved =
            transformation(&[[0, 0], [1, 1], [-1, 0], [0, -1]], &[0, 0, 1, 1], &images).apply(&images);
        let rows = [
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            // One row down and one column to the right: padding at the bottom and on the right.
            [5.0, 6.0, 0.0, 0.0, 0.0, 0.0],
            // One row up, then mirrored: padding on top.
            [0.0, 0.0, 0.0, 3.0, 2.0, 1.0],
            // One column to the left is (0 1 2 / 0 4 5), mirrored (2 1 0 / 5 4 0).
            [2.0, 1.0, 0.0, 5.0, 4.0, 0.0],
        ];
        assert_eq!(values(&moved), rows.concat());
    }

    #[test]
    fn the_inverse_is_exact_inside_the_window_and_keeps_pixels_outside() {
        for flip in [0, 1] {
            for (down, right) in (-1..=1).flat_map(|down| (-2..=2).map(move |right| (down, right))) {
                let images = numbered(1) / 7.0;
                let transformation = transformation(&[[down, right]], &[flip], &images);
                let back = values(&transformation.undo(&transformation.apply(&images), &(&images + 10.0)));
                for (place, (value, image)) in back.iter().zip(values(&images)).enumerate() {
                    let (row, column) = (place as i64 / 3, place as i64 % 3);
                    let shown = (0..2).contains(&(row - down)) && (0..3).contains(&(column - right));
                    let expected = if shown { image } else { image + 10.0 };
                    assert_eq!(*value, expected, "{down} {right} {flip}: row {row}, column {column}");
                }
            }
        }
    }

    #[test]
    fn a_flip_is_its_own_inverse() {
        let images = numbered(2);
        let mirror = transformation(&[[0, 0], [0, 0]], &[1, 1], &images);
        assert_ne!(mirror.apply(&images), images);
        assert_eq!(mirror.apply(&mirror.apply(&images)), images);
        assert_eq!(mirror.undo(&mirror.apply(&images), &images.zeros_like()), images);
    }

    #[test]
    fn a_step_in_the_augmented_frame_changes_the_same_pixel_in_the_data_frame() {
        let natural = numbered(2) / 10.0;
        let transformation = transformation(&[[1, 0], [0, 1]], &[1, 0], &natural);
        // The windows are (6 5 4 / 0 0 0) and (2 3 0 / 5 6 0). The step changes the upper left
        // corner, and a pixel of padding.
        let step = Tensor::from_slice(&[0.25f32, 0.0, 0.0, 0.0, 0.0, 0.5]).reshape([1, 1, 2, 3]);
        let moved = transformation.apply(&natural) + step;
        let back = transformation.undo(&moved, &natural) - &natural;
        let expected = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.25], [0.0, 0.25, 0.0, 0.0, 0.0, 0.0]].concat();
        for (got, expected) in values(&back).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{back}");
        }
    }

    #[test]
    fn draws_depend_on_the_point_and_are_uniform() {
        let train = train(1, true);
        let points: Vec<i64> = (0..900).collect();
        // Each pixel has its own number above 0; padding is 0.
        let images = numbered(900);
        let seen = Transformation::draw(&train, 3, &points, &images).expect("drawn").apply(&images);
        let alone = Transformation::draw(&train, 3, &[17, 17], &numbered(2)).expect("drawn");
        for row in 0..2 {
            assert_eq!(
                alone.apply(&numbered(2)).get(row),
                seen.get(17),
                "the draw does not depend on the rest of the batch"
            );
        }
        let later = Transformation::draw(&train, 4, &points, &images).expect("drawn").apply(&images);
        assert_ne!(later, seen);
        let mut counts = std::collections::BTreeMap::<_, i32>::new();
        for row in 0..900 {
            let window: Vec<u8> = values(&seen.get(row)).iter().map(|value| *value as u8).collect();
            *counts.entry(window).or_default() += 1;
        }
        // Nine places, mirrored or not: the expected count is 50, with a standard deviation of 6.9.
        assert_eq!(counts.len(), 18);
        assert!(counts.values().all(|count| (15..85).contains(count)), "{counts:?}");
    }

    #[test]
    fn stored_particles_lie_in_the_ball_and_the_domain() {
        let points: Vec<i64> = (0..50).collect();
        let natural = Tensor::rand([50, 3, 6, 5], CPU);
        for norm in Norm::ALL {
            let threat = ThreatModel { norm, epsilon: 0.25, domain: (0.0, 1.0) };
            let mut stored = Stored { particles: natural.shallow_clone(), state: vec![natural.zeros_like()] };
            for update in 0..10 {
                let transformation =
                    Transformation::draw(&train(2, true), update, &points, &natural).expect("drawn");
                let seen = transformation.apply(&natural);
                let labels = Tensor::zeros([50], (Kind::Int64, Device::Cpu));
                let away = transformation.apply(&stored.particles) + Tensor::randn([50, 3, 6, 5], CPU);
                let visit = Visit {
                    natural: &seen,
                    labels: &labels,
                    points: &points,
                    particles_per_point: 1,
                    threat,
                    particles: threat.project(&away, &seen),
                    state: vec![transformation.apply(&stored.state[0]) + 1.0],
                };
                let next = transformation.carry_back(&visit, &stored, &natural, &threat);
                let inside = threat.contains(&next.particles, &natural).all();
                assert!(bool::try_from(inside).expect("a bool"), "{norm:?} at visit {update}");
                // The state changes at every pixel inside the window, so an equal state shows the
                // pixels outside. The projection onto the linf ball leaves them unchanged.
                let hidden = next.state[0].eq_tensor(&stored.state[0]);
                if norm == Norm::Linf {
                    let moved = next.particles.ne_tensor(&stored.particles).logical_and(&hidden);
                    assert_eq!(moved.any().int64_value(&[]), 0, "pixels outside the window stay unchanged");
                }
                stored = next;
            }
            assert!(stored.state[0].max().double_value(&[]) == 10.0, "some pixels were in every window");
            assert!(stored.state[0].min().double_value(&[]) < 10.0, "some pixels were not");
        }
    }

    #[test]
    fn without_crop_and_flip_images_stay_unchanged() {
        let images = numbered(1);
        let none = Transformation::draw(&train(0, false), 0, &[0], &images).expect("nothing is drawn");
        assert_eq!(none.apply(&images), images);
        assert_eq!(none.undo(&images, &images.zeros_like()), images);
    }
}
