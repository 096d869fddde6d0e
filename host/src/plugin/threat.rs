//! The threat model of an experiment, and the coordinates in which plugins see images.
//!
//! A plugin knows a ball of one radius, epsilon. Where channels have radii of their own, the host
//! changes the coordinates of a batch so that the ball has that radius in all of them. With w the
//! scale of a channel (its radius is w times epsilon), n a pixel of the natural example, and n' the
//! same in the coordinates of plugins, a plugin's z stands for the pixel n + w (z - n').
//!
//! |z - n'| is at most epsilon exactly where the pixel is within w epsilon of n. The domain is kept
//! by the choice of n': as far from the end of the domain, in units of w, as n is, if that is less
//! than epsilon; linear in n between. So z meets the end exactly where the pixel does, in this ball and
//! in every smaller one. In l2 and l1, the change of a channel is divided by w.
//!
//! No plugin and no part of the contract knows of this. Such coordinates exist for an epsilon of at
//! most half of the domain only.

use super::LoadedModel;
use crate::torch::precision::Precision;
use crate::util::number::{Real, Reals, listed};
use crate::{Error, Result};
use plugin_api::{Norm, Task, ThreatModel};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use tch::Tensor;

/// A threat model whose radius may differ between the channels of an image. In files, its numbers may
/// be fractions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Threat {
    /// Norm of the ball.
    pub norm: Norm,
    /// Radius of the ball, in units of the domain; at least 0.
    #[serde(deserialize_with = "real")]
    pub epsilon: f64,
    /// Smallest and largest value of a pixel.
    #[serde(deserialize_with = "bounds")]
    pub domain: (f64, f64),
    /// Radius of each channel, as a multiple of `epsilon`: 0 to 1, the largest 1. Default: 1 for all.
    /// In l2 and l1, where changes are divided by it before they are summed, it is above 0.
    #[serde(deserialize_with = "reals", skip_serializing_if = "Option::is_none")]
    pub channel_scale: Option<Vec<f64>>,
}

fn real<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Real::deserialize(deserializer).map(f64::from)
}

fn reals<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Vec<f64>>, D::Error> {
    Ok(channel_scale(Option::deserialize(deserializer)?))
}

/// The scale of channels that is written as a list; 1 alone is one radius for all.
pub(crate) fn channel_scale(written: Option<Reals>) -> Option<Vec<f64>> {
    written.map(Vec::from).filter(|scale| scale[..] != [1.0])
}

fn bounds<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<(f64, f64), D::Error> {
    let (low, high) = <(Real, Real)>::deserialize(deserializer)?;
    Ok((low.into(), high.into()))
}

impl Default for Threat {
    fn default() -> Self {
        ThreatModel::default().into()
    }
}

impl From<ThreatModel> for Threat {
    fn from(ThreatModel { norm, epsilon, domain }: ThreatModel) -> Self {
        Self { norm, epsilon, domain, channel_scale: None }
    }
}

impl fmt::Display for Threat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, epsilon {}", self.norm, self.epsilon)?;
        if let Some(scale) = &self.channel_scale {
            write!(formatter, " times {} in the channels", listed(scale))?;
        }
        let (low, high) = self.domain;
        write!(formatter, ", domain [{low}, {high}]")
    }
}

impl Threat {
    /// Whether all channels have one radius.
    pub fn is_one_radius(&self) -> bool {
        self.channel_scale.is_none()
    }

    /// The number of channels that may change, of images with so many.
    pub fn changing_channels(&self, channels: i64) -> i64 {
        let changing = |scale: &Vec<f64>| scale.iter().filter(|scale| **scale > 0.0).count() as i64;
        self.channel_scale.as_ref().map_or(channels, changing)
    }

    /// The ball that plugins know, in their coordinates.
    pub fn ball(&self) -> ThreatModel {
        let Self { norm, epsilon, domain, .. } = *self;
        ThreatModel { norm, epsilon, domain }
    }

    /// Refuses a scale of channels that is not one, or whose ball has no such coordinates.
    ///
    /// # Errors
    /// If a number is outside 0 to 1, none is 1, or all are; one is 0 in l2 or l1; or epsilon is more
    /// than half of the domain.
    pub fn check_channel_scale(&self) -> Result<()> {
        let Some(scale) = &self.channel_scale else { return Ok(()) };
        let one_radius = "for one radius in all channels, give 1 alone (--channel-scale 1)";
        let refused = |expected: &str, got: &dyn fmt::Display, fix: &str| {
            Err(Error::new(format!("threat.channel_scale: expected {expected}, got {got}"))
                .fix(format!("{fix}; {one_radius}")))
        };
        let is_multiple = |scale: &f64| (0.0..=1.0).contains(scale);
        if !scale.iter().all(is_multiple) || !scale.contains(&1.0) {
            let expected = "a multiple of epsilon from 0 to 1 for each channel, the largest 1";
            let fix = "let epsilon be the largest radius, and divide the others by it";
            return refused(expected, &listed(scale), fix);
        }
        if scale.iter().all(|scale| *scale == 1.0) {
            return refused(
                "a channel with a smaller radius",
                &listed(scale),
                "give its multiple of epsilon",
            );
        }
        if self.norm != Norm::Linf && scale.contains(&0.0) {
            let expected = format!("multiples above 0 in norm {}", self.norm);
            return refused(&expected, &listed(scale), "give a channel that may hardly change 0.01");
        }
        let most = (self.domain.1 - self.domain.0) / 2.0;
        if self.epsilon > most {
            let expected = format!("an epsilon of at most {most}, half of the domain");
            return refused(&expected, &self.epsilon, "lower epsilon (in training, also epsilon_scale)");
        }
        Ok(())
    }

    /// Refuses a task whose images have other channels.
    ///
    /// # Errors
    /// Both numbers of channels.
    pub fn check_task(&self, task: &Task) -> Result<()> {
        match &self.channel_scale {
            Some(scale) if scale.len() as i64 != task.channels => Err(Error::new(format!(
                "threat.channel_scale: expected a number for each channel of the images, of which there are {}, \
                 got {}: {}",
                task.channels,
                scale.len(),
                listed(scale)
            ))),
            _ => Ok(()),
        }
    }

    /// The scale of each channel, `[1, C, 1, 1]`.
    fn scale_like(&self, images: &Tensor) -> Option<Tensor> {
        let scale = Tensor::from_slice(self.channel_scale.as_ref()?);
        Some(scale.to_kind(images.kind()).to_device(images.device()).reshape([1, -1, 1, 1]))
    }

    /// Natural examples (`[N, C, H, W]`) in the coordinates of plugins.
    pub fn natural(&self, pixels: &Tensor) -> Tensor {
        let Some(scale) = self.scale_like(pixels) else { return pixels.shallow_clone() };
        let (epsilon, (low, high)) = (self.epsilon, self.domain);
        // A channel that does not change lies anywhere; one of scale 1 stays as it is.
        let stays = scale.eq(0.0).logical_or(&scale.eq(1.0));
        let divisor = scale.where_self(&stays.logical_not(), &scale.ones_like());
        let reach = &divisor * epsilon;
        let (above, below) = (pixels - low, pixels * -1.0 + high);
        let between = (&above - &reach) / (&reach * -2.0 + (high - low)) * (high - low - 2.0 * epsilon)
            + (low + epsilon);
        let near_high = (&below / &divisor) * -1.0 + high;
        let near_low = (&above / &divisor) + low;
        let moved = near_low.where_self(&above.le_tensor(&reach), &between);
        let moved = near_high.where_self(&below.le_tensor(&reach), &moved);
        pixels.where_self(&stays, &moved)
    }

    /// From the coordinates of plugins to pixels, for images around natural examples that are `pixels`
    /// (`[N, C, H, W]`) and `natural` in the coordinates of plugins. Each is repeated for the `copies`
    /// particles of its point.
    pub fn pixels(&self, pixels: &Tensor, natural: &Tensor, copies: usize) -> Pixels {
        Pixels(self.scale_like(pixels).map(|scale| Scaled {
            is_one: scale.eq(1.0),
            scale,
            pixels: pixels.shallow_clone(),
            natural: natural.shallow_clone(),
            copies: copies as i64,
        }))
    }
}

/// A model that is given images in the coordinates of plugins.
#[derive(Clone, Copy)]
pub struct SeenModel<'a> {
    /// The model, which is given pixels.
    pub model: &'a LoadedModel,
    /// How images become pixels.
    pub pixels: &'a Pixels,
}

impl SeenModel<'_> {
    /// As [`LoadedModel::forward_in`].
    ///
    /// # Errors
    /// As there, or if the number of images is not that of [`Pixels::of`].
    pub fn forward_in(&self, precision: Precision, images: &Tensor, train: bool) -> Result<Tensor> {
        let pixels = self.pixels.of(images).map_err(Error::new)?;
        self.model.forward_in(precision, &pixels, train)
    }
}

/// From the coordinates of plugins to pixels.
pub struct Pixels(Option<Scaled>);

struct Scaled {
    /// `[1, C, 1, 1]`.
    scale: Tensor,
    /// Where it is 1.
    is_one: Tensor,
    /// The natural examples in pixels, `[N, C, H, W]`.
    pixels: Tensor,
    /// The same in the coordinates of plugins.
    natural: Tensor,
    /// Rows of each point.
    copies: i64,
}

impl Pixels {
    /// Whether the coordinates of plugins are the pixels.
    pub fn are_same(&self) -> bool {
        self.0.is_none()
    }

    /// The pixels of images (`[M, C, H, W]`) in the coordinates of plugins, differentiably. They are
    /// one of each particle (M = N), one of each point (M = N / K), or all of the only point.
    ///
    /// # Errors
    /// If M is neither of these numbers.
    pub fn of(&self, images: &Tensor) -> plugin_api::Result<Tensor> {
        let Some(Scaled { scale, is_one, pixels, natural, copies }) = &self.0 else {
            return Ok(images.shallow_clone());
        };
        let (rows, known) = (images.size()[0], natural.size()[0]);
        let (pixels, natural) = if rows == known || known == 1 {
            (pixels.shallow_clone(), natural.shallow_clone())
        } else if rows * copies == known {
            let first = |images: &Tensor| images.slice(0, None, None, *copies);
            (first(pixels), first(natural))
        } else {
            return Err(plugin_api::Error::new(format!(
                "with a radius for each channel, expected {known} images, one of each particle, or {}, one of each \
                 point; got {rows}",
                known / copies
            )));
        };
        // Where the scale is 1, nothing is rounded.
        let moved = pixels + (images - natural) * scale;
        Ok(images.where_self(is_one, &moved))
    }

    /// Images (`[N, C, H, W]`) in the coordinates of plugins, with those of `other` in the channels that do
    /// not change: there, a move of a plugin means nothing.
    pub fn of_changing(&self, images: &Tensor, other: &Tensor) -> Tensor {
        match &self.0 {
            None => images.shallow_clone(),
            Some(Scaled { scale, .. }) => images.where_self(&scale.gt(0.0), other),
        }
    }

    /// The gradient with respect to images in the coordinates of plugins, from that with respect to
    /// their pixels.
    pub fn gradient(&self, of_pixels: Tensor) -> Tensor {
        match &self.0 {
            None => of_pixels,
            Some(Scaled { scale, .. }) => of_pixels * scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn threat(epsilon: f64, domain: (f64, f64), scale: &[f64]) -> Threat {
        Threat { norm: Norm::Linf, epsilon, domain, channel_scale: Some(scale.to_vec()) }
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.flatten(0, -1).to_kind(Kind::Double)).expect("f64")
    }

    /// A row of pixels in each channel, which are the same in all.
    fn images(pixels: &[f64], channels: i64) -> Tensor {
        Tensor::from_slice(pixels).reshape([1, 1, 1, -1]).repeat([1, channels, 1, 1])
    }

    #[test]
    fn natural_examples_are_as_far_from_the_ends_of_the_domain_in_units_of_their_radius() {
        // By hand, radius 0.25, scale 0.5: 0.0625 is half of the radius 0.125 from 0, and so is 0.125 of
        // 0.25; 0.9375 alike. Between 0.125 and 0.875, linear onto 0.25 to 0.75: 0.3125 is a quarter of
        // the way. Scales of 1 and 0 change nothing.
        let pixels = images(&[0.0, 0.0625, 0.125, 0.3125, 0.9375, 1.0], 3);
        let found = values(&threat(0.25, (0.0, 1.0), &[1.0, 0.5, 0.0]).natural(&pixels));
        let (same, halved) =
            ([0.0, 0.0625, 0.125, 0.3125, 0.9375, 1.0], [0.0, 0.125, 0.25, 0.375, 0.875, 1.0]);
        assert_eq!(found, [same, halved, same].concat());
    }

    #[test]
    fn the_ball_of_plugins_is_the_ball_of_each_channel_cut_to_the_domain() {
        let scale = [1.0, 0.75, 0.1, 0.0];
        for (epsilon, (low, high)) in [(0.3, (0.0, 1.0)), (0.5, (0.0, 1.0)), (8.0 / 255.0, (-1.0, 2.0))] {
            let threat = threat(epsilon, (low, high), &scale);
            threat.check_channel_scale().expect("valid");
            let pixels = images(&[0.0, 1e-3, 0.02, 0.11, 0.26, 0.5, 0.6, 0.71, 0.97, 0.999, 1.0], 4);
            let natural = threat.natural(&pixels);
            let seen = threat.pixels(&pixels, &natural, 1);
            assert_eq!(seen.of(&natural).expect("pixels"), pixels, "natural examples are not rounded");
            // In a ball that grows, the coordinates are those of its full radius.
            for radius in [epsilon, 0.5 * epsilon] {
                let ball = ThreatModel { epsilon: radius, ..threat.ball() };
                let reach =
                    |sign: f64| seen.of(&ball.project(&(&natural + sign * 9.0), &natural)).expect("pixels");
                let scale = Tensor::from_slice(&scale).reshape([1, -1, 1, 1]);
                for (sign, end) in [(-1.0, low), (1.0, high)] {
                    let expected = (&pixels + &scale * (sign * radius)).clamp(low, high);
                    let error = (reach(sign) - expected).abs().max().double_value(&[]);
                    assert!(error < 1e-12, "{epsilon}, {radius}, towards {end}: {error}");
                }
            }
        }
    }

    #[test]
    fn every_point_of_the_domain_is_a_pixel_of_the_domain() {
        // Attacks that look for the nearest example, and samplers that reach beyond epsilon, leave the ball.
        let threat = threat(0.3, (0.0, 1.0), &[1.0, 0.6, 0.01]);
        let pixels = images(&[0.0, 0.001, 0.1, 0.31, 0.5, 0.77, 1.0], 3);
        let seen = threat.pixels(&pixels, &threat.natural(&pixels), 1);
        for end in [0.0, 0.25, 1.0] {
            let found = seen.of(&pixels.full_like(end)).expect("pixels");
            let (low, high) = (found.min().double_value(&[]), found.max().double_value(&[]));
            assert!(low >= -1e-12 && high <= 1.0 + 1e-12, "{end}: {low} to {high}");
        }
    }

    #[test]
    fn gradients_are_those_of_the_coordinates() {
        let threat = threat(0.25, (0.0, 1.0), &[1.0, 0.5, 0.0]);
        let pixels = images(&[0.2, 0.9], 3);
        let natural = threat.natural(&pixels);
        let seen = threat.pixels(&pixels, &natural, 1);
        let leaf = natural.detach().set_requires_grad(true);
        // The gradient of the sum of the squares is twice the pixel, times the scale of its channel.
        let loss = seen.of(&leaf).expect("pixels").square().sum(Kind::Double);
        loss.backward();
        let expected = [0.4, 1.8, 0.2, 0.9, 0.0, 0.0];
        let by_hand = seen.gradient(&pixels * 2.0);
        for found in [leaf.grad(), by_hand] {
            for (found, expected) in values(&found).into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
            }
        }
    }

    #[test]
    fn images_are_of_all_particles_or_of_one_for_each_point() {
        // Two points with three particles each.
        let threat = threat(0.25, (0.0, 1.0), &[1.0, 0.5]);
        let pixels = Tensor::from_slice(&[0.5, 0.75]).reshape([2, 1, 1, 1]).repeat([1, 2, 1, 1]);
        let pixels = pixels.repeat_interleave_self_int(3, 0, None);
        let natural = threat.natural(&pixels);
        let seen = threat.pixels(&pixels, &natural, 3);
        let moved = |images: &Tensor| seen.of(&(images + 0.125)).expect("pixels");
        let of_points = |images: &Tensor| images.slice(0, None, None, 3);
        assert_eq!(
            values(&moved(&natural)),
            values(&moved(&of_points(&natural)).repeat_interleave_self_int(3, 0, None))
        );
        assert_eq!(values(&moved(&of_points(&natural))), [0.625, 0.5625, 0.875, 0.8125]);
        let error = seen.of(&natural.narrow(0, 0, 4)).expect_err("refused").to_string();
        for part in ["expected 6 images", "or 2, one of each point", "got 4"] {
            assert!(error.contains(part), "{error}");
        }
        // Of one point, there may be any number.
        let alone = threat.pixels(&pixels.narrow(0, 0, 1), &natural.narrow(0, 0, 1), 1);
        assert_eq!(alone.of(&natural.narrow(0, 0, 1).repeat([5, 1, 1, 1])).expect("pixels").size()[0], 5);
    }

    #[test]
    fn one_radius_for_all_channels_changes_nothing() {
        let threat = Threat::default();
        let pixels = Tensor::rand([2, 3, 2, 2], (Kind::Float, Device::Cpu));
        assert_eq!(threat.natural(&pixels), pixels);
        assert!(threat.pixels(&pixels, &pixels, 1).are_same());
        let read: Threat = toml::from_str("channel_scale = [1]").expect("TOML");
        assert_eq!(read, threat);
        assert_eq!(
            serde_json::json!(threat),
            serde_json::json!(ThreatModel::default()),
            "as in older records"
        );
    }

    #[test]
    fn a_scale_that_is_none_is_refused() {
        let refused = |epsilon: f64, scale: &[f64], parts: &[&str]| {
            let error =
                threat(epsilon, (0.0, 1.0), scale).check_channel_scale().expect_err("refused").to_string();
            parts.iter().for_each(|part| assert!(error.contains(part), "{error}"));
        };
        refused(0.1, &[0.5, 0.5, 0.2], &["threat.channel_scale", "the largest 1", "got 0.5,0.5,0.2"]);
        refused(0.1, &[1.5, 1.0], &["0 to 1", "got 1.5,1"]);
        refused(0.1, &[1.0, -0.5], &["0 to 1", "got 1,-0.5"]);
        refused(0.1, &[1.0, f64::NAN], &["got 1,NaN"]);
        refused(0.1, &[], &["the largest 1"]);
        refused(0.1, &[1.0, 1.0], &["a channel with a smaller radius, got 1,1"]);
        let l2 = Threat { norm: Norm::L2, ..threat(0.1, (0.0, 1.0), &[1.0, 0.0]) };
        let error = l2.check_channel_scale().expect_err("refused").to_string();
        assert!(error.contains("multiples above 0 in norm l2, got 1,0"), "{error}");
        refused(0.6, &[1.0, 0.5], &["at most 0.5, half of the domain, got 0.6"]);
        let task = Task { channels: 3, height: 2, width: 2, classes: 2 };
        let error = threat(0.1, (0.0, 1.0), &[1.0, 0.5]).check_task(&task).expect_err("refused").to_string();
        assert!(error.contains("of which there are 3, got 2: 1,0.5"), "{error}");
    }
}
