//! Random crops and flips under which a persistent particle stays right.
//!
//! A particle is kept in the frame of its image as it lies in the data. At a visit the image is
//! cropped and flipped, the particle and what it remembers travel through the same transformation,
//! the sampler moves the particle there, and what it did travels back by the inverse. Pixels are
//! only ever moved, never mixed: nothing is rounded on the way.
//!
//! All K particles of a point share its transformation, so that a sampler whose particles interact
//! compares the same pixels.

use crate::config::Train;
use crate::plugin::Visit;
use crate::torch::random::{Draws, Purpose};
use crate::training::store::Stored;
use crate::{Error, Result};
use plugin_api::{Distribution, RandomSource};
use tch::{Kind, Tensor};

/// How the images of one minibatch are transformed, row by row.
pub struct Transformation(Option<Crop>);

/// Where pixels go and where they come from.
struct Crop {
    /// For every pixel of the augmented image, where it lies in the data.
    there: Lookup,
    /// For every pixel of the data, where it lies in the augmented image.
    back: Lookup,
}

impl Transformation {
    /// The transformations of an update for rows `[N, C, H, W]` of these points (length N): a
    /// window of the image's own size is cut at a uniform place out of the image padded by
    /// `train.crop` zeros on every side, then mirrored left to right with probability 1/2 if
    /// `train.flip` says so. They depend on the seed, the update and the point alone.
    ///
    /// # Errors
    /// If the numbers cannot be drawn.
    pub fn draw(train: &Train, update: u64, points: &[i64], images: &Tensor) -> Result<Self> {
        if train.crop == 0 && !train.flip {
            return Ok(Self(None));
        }
        // Particles are not told apart: every row of a point draws the same three numbers.
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

    /// The window begins `shifts` (`[N, 2]`, i64: rows, columns) from the image's own corner, and
    /// is mirrored where `flips` (`[N, 1]`, i64) is 1.
    fn new(shifts: &Tensor, flips: &Tensor, images: &Tensor) -> Self {
        let [.., height, width] = images.size()[..] else { return Self(None) };
        let count = |size: i64| Tensor::arange(size, (Kind::Int64, images.device()));
        let mirrored = |columns: &Tensor| flips * (width - 1) + (flips * -2 + 1) * columns;
        let (down, right) = (shifts.narrow(1, 0, 1), shifts.narrow(1, 1, 1));
        let there = Lookup::new(&(count(height) + &down), &(mirrored(&count(width)) + &right));
        let back = Lookup::new(&(count(height) - &down), &mirrored(&(count(width) - &right)));
        Self(Some(Crop { there, back }))
    }

    /// Images, particles or what they remember (`[N, C, H, W]`), as they look in the augmented
    /// frame: zero where it shows padding.
    pub fn apply(&self, images: &Tensor) -> Tensor {
        match &self.0 {
            None => images.shallow_clone(),
            Some(Crop { there, .. }) => there.read(images).where_scalarother(&there.inside, 0.0),
        }
    }

    /// Stored chains, as they look in the augmented frame.
    pub fn carry(&self, stored: &Stored) -> Stored {
        let state = stored.state.iter().map(|state| self.apply(state)).collect();
        Stored { particles: self.apply(&stored.particles), state }
    }

    /// The way back: `augmented`, as it lies in the data. Where the augmented frame does not
    /// show the data, it is what it was `before`.
    pub fn undo(&self, augmented: &Tensor, before: &Tensor) -> Tensor {
        match &self.0 {
            None => augmented.shallow_clone(),
            Some(Crop { back, .. }) => back.read(augmented).where_self(&back.inside, before),
        }
    }

    /// What a visit leaves to be stored, given what was stored `before` it and the natural
    /// examples as they lie in the data. What happened to padding is forgotten.
    pub fn carry_back(&self, visit: &Visit, before: &Stored, natural: &Tensor) -> Stored {
        let particles = self.undo(&visit.particles, &before.particles);
        let state = visit.state.iter().zip(&before.state);
        let state = state.map(|(state, before)| self.undo(state, before)).collect();
        match self.0 {
            None => Stored { particles, state },
            // Each part lies in the ball; what was moved at two visits may together leave that of l2.
            Some(_) => Stored { particles: visit.threat.project(&particles, natural), state },
        }
    }
}

/// Where each pixel of an image is to be read in another.
struct Lookup {
    /// `[N, 1, H * W]`, i64; anything inside the image where there is nothing to read.
    index: Tensor,
    /// Whether there is something to read: `[N, 1, H, W]`, bool.
    inside: Tensor,
}

impl Lookup {
    /// Of the rows `[N, H]` and columns `[N, W]` to be read, which may lie outside.
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
    use plugin_api::{Norm, ThreatModel};
    use tch::Device;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn transformation(shifts: &[[i64; 2]], flips: &[i64], images: &Tensor) -> Transformation {
        let shifts = Tensor::from_slice(&shifts.concat()).reshape([-1, 2]);
        Transformation::new(&shifts, &Tensor::from_slice(flips).reshape([-1, 1]), images)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    /// 1 to 6 in two rows of three, as often as there are rows.
    fn numbered(rows: i64) -> Tensor {
        Tensor::arange_start(1, 7, CPU).reshape([1, 1, 2, 3]).repeat([rows, 1, 1, 1])
    }

    fn train(crop: usize, flip: bool) -> Train {
        Train { crop, flip, ..Train::default() }
    }

    #[test]
    fn windows_and_mirrors_by_hand() {
        let images = numbered(4);
        let moved =
            transformation(&[[0, 0], [1, 1], [-1, 0], [0, -1]], &[0, 0, 1, 1], &images).apply(&images);
        let rows = [
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            // One row down and one column to the right; padding at the bottom and on the right.
            [5.0, 6.0, 0.0, 0.0, 0.0, 0.0],
            // One row up, then mirrored: padding on top.
            [0.0, 0.0, 0.0, 3.0, 2.0, 1.0],
            // One column to the left is (0 1 2 / 0 4 5), mirrored (2 1 0 / 5 4 0).
            [2.0, 1.0, 0.0, 5.0, 4.0, 0.0],
        ];
        assert_eq!(values(&moved), rows.concat());
    }

    #[test]
    fn back_is_exact_where_the_window_shows_the_image_and_keeps_the_rest() {
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
    fn a_mirror_undoes_itself() {
        let images = numbered(2);
        let mirror = transformation(&[[0, 0], [0, 0]], &[1, 1], &images);
        assert_ne!(mirror.apply(&images), images);
        assert_eq!(mirror.apply(&mirror.apply(&images)), images);
        assert_eq!(mirror.undo(&mirror.apply(&images), &images.zeros_like()), images);
    }

    #[test]
    fn a_step_taken_in_the_augmented_frame_lands_on_its_own_pixel() {
        let natural = numbered(2) / 10.0;
        let transformation = transformation(&[[1, 0], [0, 1]], &[1, 0], &natural);
        // The first row shows (6 5 4 / 0 0 0), the second (2 3 0 / 5 6 0); both are moved in the
        // upper left corner, and in padding.
        let step = Tensor::from_slice(&[0.25f32, 0.0, 0.0, 0.0, 0.0, 0.5]).reshape([1, 1, 2, 3]);
        let moved = transformation.apply(&natural) + step;
        let back = transformation.undo(&moved, &natural) - &natural;
        let expected = [[0.0, 0.0, 0.0, 0.0, 0.0, 0.25], [0.0, 0.25, 0.0, 0.0, 0.0, 0.0]].concat();
        for (got, expected) in values(&back).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{back}");
        }
    }

    #[test]
    fn draws_belong_to_points_and_are_uniform() {
        let train = train(1, true);
        let points: Vec<i64> = (0..900).collect();
        // Whole numbers tell where each pixel came from; all are above 0, which is padding.
        let images = numbered(900);
        let seen = Transformation::draw(&train, 3, &points, &images).expect("drawn").apply(&images);
        let alone = Transformation::draw(&train, 3, &[17, 17], &numbered(2)).expect("drawn");
        for row in 0..2 {
            assert_eq!(alone.apply(&numbered(2)).get(row), seen.get(17), "whatever else is in the batch");
        }
        let later = Transformation::draw(&train, 4, &points, &images).expect("drawn").apply(&images);
        assert_ne!(later, seen);
        let mut counts = std::collections::BTreeMap::<_, i32>::new();
        for row in 0..900 {
            let window: Vec<u8> = values(&seen.get(row)).iter().map(|value| *value as u8).collect();
            *counts.entry(window).or_default() += 1;
        }
        // Three by three places, mirrored or not: 50 of each are expected, give or take 6.9.
        assert_eq!(counts.len(), 18);
        assert!(counts.values().all(|count| (15..85).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_comes_back_lies_in_the_ball_and_the_domain_of_the_data() {
        let points: Vec<i64> = (0..50).collect();
        let natural = Tensor::rand([50, 3, 6, 5], CPU);
        for norm in [Norm::Linf, Norm::L2] {
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
                let next = transformation.carry_back(&visit, &stored, &natural);
                let inside = threat.contains(&next.particles, &natural).all();
                assert!(bool::try_from(inside).expect("a bool"), "{norm:?} at visit {update}");
                // Where the state did not move, no window showed the pixel; linf leaves it alone.
                let hidden = next.state[0].eq_tensor(&stored.state[0]);
                if norm == Norm::Linf {
                    let moved = next.particles.ne_tensor(&stored.particles).logical_and(&hidden);
                    assert_eq!(moved.any().int64_value(&[]), 0, "hidden parts stay as they were");
                }
                stored = next;
            }
            assert!(stored.state[0].max().double_value(&[]) == 10.0, "some pixels were always seen");
            assert!(stored.state[0].min().double_value(&[]) < 10.0, "some were not");
        }
    }

    #[test]
    fn without_crop_and_flip_nothing_changes() {
        let images = numbered(1);
        let none = Transformation::draw(&train(0, false), 0, &[0], &images).expect("nothing is drawn");
        assert_eq!(none.apply(&images), images);
        assert_eq!(none.undo(&images, &images.zeros_like()), images);
    }
}
