//! Images and labels from arrays of numbers: which dimension is which, which values mean what.

use super::Split;
use super::npy::Array;
use crate::{Error, Result};
use std::str::FromStr;
use tch::{Kind, Tensor};

/// The order of the dimensions of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Grey images: number, height, width.
    Nhw,
    /// Number, height, width, channels.
    Nhwc,
    /// Number, channels, height, width.
    Nchw,
}

/// The names of the layouts.
pub(super) const LAYOUTS: &str = "NHW, NHWC or NCHW";

/// The option that names the layout.
pub(super) const LAYOUT: &str = "layout";

/// How far a value may be from a 255th to count as one: the rounding of half precision.
const ON_GRID: f64 = 0.5 / 255.0 / 8.0;

impl FromStr for Layout {
    type Err = ();

    fn from_str(written: &str) -> std::result::Result<Self, ()> {
        match written.to_ascii_uppercase().as_str() {
            "NHW" => Ok(Self::Nhw),
            "NHWC" => Ok(Self::Nhwc),
            "NCHW" => Ok(Self::Nchw),
            _ => Err(()),
        }
    }
}

impl Layout {
    /// The layout of images of this shape.
    ///
    /// # Errors
    /// If the number of dimensions fits none, or several fit.
    fn recognise(images: &Array) -> Result<Self> {
        let is_channels = |size: i64| size == 1 || size == 3;
        let shape = images.values.size();
        let got = shown(&shape);
        match shape[..] {
            [_, _, _] => Ok(Self::Nhw),
            [_, first, _, last] => match (is_channels(first), is_channels(last)) {
                (true, false) => Ok(Self::Nchw),
                (false, true) => Ok(Self::Nhwc),
                (true, true) => Err(images
                    .bad(format!("has the shape {got}, in which channels may be first or last"))
                    .fix("say which it is: the option layout=NHWC or layout=NCHW after the name of the data")),
                (false, false) => Err(images
                    .bad(format!("has the shape {got}: expected 1 or 3 channels, first or last"))
                    .fix("give the option layout=NHWC or layout=NCHW if images have another number of channels")),
            },
            _ => Err(images
                .bad(format!("has the shape {got}: expected images as {LAYOUTS}, of 3 or 4 dimensions"))
                .fix("reshape the array: images.reshape(-1, height, width)")),
        }
    }

    /// This layout, if images of this shape have 1 or 3 channels in it.
    ///
    /// # Errors
    /// If they have another number.
    pub(super) fn usual(self, images: &Array) -> Result<Self> {
        let shape = images.values.size();
        let channels = match (self, &shape[..]) {
            (Self::Nchw, [_, channels, _, _]) | (Self::Nhwc, [_, _, _, channels]) => *channels,
            _ => return Ok(self),
        };
        if channels == 1 || channels == 3 {
            return Ok(self);
        }
        let (name, got) = (format!("{self:?}").to_uppercase(), shown(&shape));
        Err(images
            .bad(format!("has the shape {got}: expected 1 or 3 channels ({name}), got {channels}"))
            .fix(format!(
                "permute the dimensions to {name}, or say which they are: layout=NHWC or layout=NCHW"
            )))
    }

    /// Images as `[n, channels, height, width]`.
    fn apply(self, images: &Array) -> Result<Tensor> {
        let (values, shape) = (&images.values, images.values.size());
        Ok(match (self, &shape[..]) {
            (Self::Nhw, [_, _, _]) => values.f_unsqueeze(1)?,
            (Self::Nhwc, [_, _, _, _]) => values.f_permute([0, 3, 1, 2])?.f_contiguous()?,
            (Self::Nchw, [_, _, _, _]) => values.shallow_clone(),
            _ => {
                let (name, got) = (format!("{self:?}").to_uppercase(), shown(&shape));
                let expected = name.len();
                return Err(
                    images.bad(format!("has the shape {got}: expected {expected} dimensions ({name})"))
                );
            }
        })
    }
}

/// Sizes as Python writes them.
fn shown(shape: &[i64]) -> String {
    let sizes: Vec<_> = shape.iter().map(i64::to_string).collect();
    format!("({}{})", sizes.join(", "), if sizes.len() == 1 { "," } else { "" })
}

/// The images and labels of a split, and what a reader of results should know about them.
///
/// Images are whole numbers from 0 to 255, or fractions from 0 to 1, which are rounded to 255ths.
/// Labels are whole numbers, one per image.
///
/// # Errors
/// If values are out of range or of another kind, or the shapes do not fit.
pub(super) fn split(images: &Array, labels: &Array, layout: Option<Layout>) -> Result<(Split, Vec<String>)> {
    let layout = layout.map_or_else(|| Layout::recognise(images), Ok)?;
    let arranged = layout.apply(images)?;
    let size = arranged.size();
    if size.contains(&0) {
        let shape = shown(&images.values.size());
        return Err(images.bad(format!("holds no images: its shape is {shape}")));
    }
    let (pixels, rounded) = bytes(images, &arranged)?;
    let labels = whole_labels(labels, size[0], &images.place)?;
    let findings = rounded.then(|| {
        format!(
            "{} holds other values than 255ths: its images are rounded to 256 levels, by at most 1/510",
            images.place
        )
    });
    Ok((Split { images: pixels, labels }, findings.into_iter().collect()))
}

/// Pixels as bytes, and whether that changed them.
fn bytes(images: &Array, values: &Tensor) -> Result<(Tensor, bool)> {
    let kind = images.kind;
    match values.kind() {
        Kind::Uint8 => return Ok((values.shallow_clone(), false)),
        Kind::Bool => {
            return Err(images
                .bad("holds truth values (bool): expected whole numbers from 0 to 255, or floats from 0 to 1")
                .fix("convert it: (255 * images).astype('uint8')"));
        }
        _ => {}
    }
    if !images.is_whole() {
        // In parts, so that no copy in double precision of a whole data set is needed.
        let mut rounded = false;
        let parts = values.f_split(4096, 0)?;
        let parts = parts.iter().map(|part| {
            let part = part.f_to_kind(Kind::Double)?;
            check_fractions(images, &part)?;
            let scaled = part * 255.0;
            let levels = scaled.f_round()?;
            rounded |= (scaled - &levels).abs().max().double_value(&[]) > 255.0 * ON_GRID;
            Ok(levels.f_to_kind(Kind::Uint8)?)
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        return Ok((Tensor::f_cat(&parts, 0)?, rounded));
    }
    let [low, high] = [values.min(), values.max()].map(|value| value.int64_value(&[]));
    if low < 0 || high > 255 {
        return Err(images
            .bad(format!("holds values from {low} to {high} ({kind}): expected whole numbers from 0 to 255"))
            .fix("scale the images to 8 bits: uint8 from 0 to 255, or floats from 0 to 1"));
    }
    Ok((values.f_to_kind(Kind::Uint8)?, false))
}

/// Refuses fractions outside of [0, 1].
fn check_fractions(images: &Array, values: &Tensor) -> Result<()> {
    let kind = images.kind;
    if !bool::try_from(values.isfinite().all())? {
        return Err(images
            .bad(format!("holds NaN or infinite values ({kind}): expected floats from 0 to 1"))
            .fix("find and replace them: numpy.isfinite(images)"));
    }
    let [low, high] = [values.min(), values.max()].map(|value| value.double_value(&[]));
    if low >= 0.0 && high <= 1.0 {
        return Ok(());
    }
    let error =
        images.bad(format!("holds values from {low:.4} to {high:.4} ({kind}): expected floats from 0 to 1"));
    Err(if low < 0.0 {
        error.fix(
            "leave out what normalises the images (as torchvision's transforms.Normalize does): the models take \
             mean and std as options, so that epsilon keeps the units of the pixels",
        )
    } else {
        error.fix("divide the images by 255, or convert them to uint8")
    })
}

/// Labels as whole numbers, one per image.
fn whole_labels(labels: &Array, images: i64, place: &str) -> Result<Tensor> {
    let (kind, shape) = (labels.kind, labels.values.size());
    let got = shown(&shape);
    let values = match shape[..] {
        [_] => labels.values.shallow_clone(),
        [_, 1] => labels.values.f_squeeze_dim(1)?,
        [_, classes] => {
            return Err(labels
                .bad(format!("has the shape {got}, as of one-hot labels of {classes} classes: expected a label per image"))
                .fix("take the number of the class: labels.argmax(axis=1)"));
        }
        _ => return Err(labels.bad(format!("has the shape {got}: expected a label per image"))),
    };
    if !labels.is_whole() {
        return Err(labels
            .bad(format!("holds {kind} labels: expected whole numbers from 0"))
            .fix("convert it: labels.astype('int64')"));
    }
    let count = values.size()[0];
    if count != images {
        return Err(labels.bad(format!("holds {count} labels, but {place} holds {images} images")));
    }
    Ok(values.f_to_kind(Kind::Int64)?)
}

/// The labels of both splits, numbered from 0 in the order of their values, and these values.
///
/// # Errors
/// If libtorch fails.
pub(super) fn relabel(train: &mut Split, test: &mut Split) -> Result<Vec<i64>> {
    let both = Tensor::f_cat(&[&train.labels, &test.labels], 0)?;
    let (values, numbers, _) = both.f_unique_dim(0, true, true, false)?;
    let (train_points, test_points) = (train.count(), test.count());
    train.labels = numbers.f_narrow(0, 0, train_points)?;
    test.labels = numbers.f_narrow(0, train_points, test_points)?;
    Vec::try_from(values).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::npy::encode;
    use crate::data::tests::first_line;
    use std::path::Path;

    fn array(place: &str, descr: &str, shape: &[usize], bytes: &[u8]) -> Array {
        Array::read(place, &encode(descr, shape, bytes)).expect("valid")
    }

    fn images(shape: &[usize]) -> Array {
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|value| value as u8).collect();
        array("IMAGES", "|u1", shape, &bytes)
    }

    fn labels(values: &[i64]) -> Array {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        array("LABELS", "<i8", &[values.len()], &bytes)
    }

    fn floats(values: &[f32]) -> Array {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        array("IMAGES", "<f4", &[1, 1, values.len()], &bytes)
    }

    fn refusal(images: &Array, labels: &Array, layout: Option<Layout>) -> String {
        first_line(split(images, labels, layout), Path::new("unused"))
    }

    #[test]
    fn the_layout_is_recognised_where_only_one_fits() {
        let read =
            |shape: &[usize], layout| split(&images(shape), &labels(&[0, 1]), layout).map(|(split, _)| split);
        assert_eq!(read(&[2, 4, 5], None).expect("grey").images.size(), [2, 1, 4, 5]);
        let last = read(&[2, 4, 5, 3], None).expect("channels last").images;
        assert_eq!((last.size(), last.int64_value(&[0, 2, 0, 1])), (vec![2, 3, 4, 5], 5));
        assert_eq!(read(&[2, 3, 4, 5], None).expect("channels first").images.size(), [2, 3, 4, 5]);
        assert_eq!(read(&[2, 3, 4, 3], Some(Layout::Nhwc)).expect("said").images.size(), [2, 3, 3, 4]);
        assert_eq!(read(&[2, 3, 4, 3], Some(Layout::Nchw)).expect("said").images.size(), [2, 3, 4, 3]);
        assert_eq!(
            read(&[2, 2, 4, 4], Some(Layout::Nchw)).expect("two channels").images.size(),
            [2, 2, 4, 4]
        );
        let refusal = |shape: &[usize], layout| refusal(&images(shape), &labels(&[0, 1]), layout);
        assert_eq!(
            refusal(&[2, 3, 4, 3], None),
            "IMAGES has the shape (2, 3, 4, 3), in which channels may be first or last"
        );
        assert_eq!(
            refusal(&[2, 2, 4, 4], None),
            "IMAGES has the shape (2, 2, 4, 4): expected 1 or 3 channels, first or last"
        );
        assert_eq!(
            refusal(&[2, 20], None),
            "IMAGES has the shape (2, 20): expected images as NHW, NHWC or NCHW, of 3 or 4 dimensions"
        );
        assert_eq!(
            refusal(&[2, 4, 5], Some(Layout::Nhwc)),
            "IMAGES has the shape (2, 4, 5): expected 4 dimensions (NHWC)"
        );
        assert_eq!(refusal(&[2, 0, 5], None), "IMAGES holds no images: its shape is (2, 0, 5)");
    }

    #[test]
    fn a_tensor_with_channels_elsewhere_is_not_taken_for_another() {
        assert!(Layout::Nchw.usual(&images(&[2, 3, 4, 5])).is_ok());
        assert!(Layout::Nhwc.usual(&images(&[2, 4, 5, 1])).is_ok());
        assert!(Layout::Nhw.usual(&images(&[2, 4, 5])).is_ok());
        let message = first_line(Layout::Nchw.usual(&images(&[2, 4, 5, 3])), Path::new("unused"));
        assert_eq!(message, "IMAGES has the shape (2, 4, 5, 3): expected 1 or 3 channels (NCHW), got 4");
    }

    #[test]
    fn fractions_become_255ths_and_other_values_are_said() {
        let read = |values: &[f32]| split(&floats(values), &labels(&[0]), None).expect("valid");
        let on_grid: Vec<f32> = (0..=255u8).map(|level| f32::from(level) / 255.0).collect();
        let (split, findings) = read(&on_grid);
        assert_eq!(Vec::<u8>::try_from(split.images.flatten(0, -1)).unwrap(), (0..=255).collect::<Vec<u8>>());
        assert!(findings.is_empty(), "{findings:?}");
        let (split, findings) = read(&[0.5, 0.001]);
        assert_eq!(Vec::<u8>::try_from(split.images.flatten(0, -1)).unwrap(), [128, 0]);
        assert_eq!(
            findings,
            ["IMAGES holds other values than 255ths: its images are rounded to 256 levels, by at most 1/510"]
        );
    }

    #[test]
    fn pixels_of_another_range_are_refused() {
        let refusal = |images: &Array| refusal(images, &labels(&[0]), None);
        assert_eq!(
            refusal(&floats(&[0.0, 255.0])),
            "IMAGES holds values from 0.0000 to 255.0000 (float32): expected floats from 0 to 1"
        );
        let normalised = split(&floats(&[-0.4242, 2.8215]), &labels(&[0]), None).unwrap_err();
        assert!(normalised.advice().unwrap().contains("transforms.Normalize"), "{normalised}");
        assert!(normalised.advice().unwrap().contains("mean and std"), "{normalised}");
        assert_eq!(
            refusal(&floats(&[0.5, f32::NAN])),
            "IMAGES holds NaN or infinite values (float32): expected floats from 0 to 1"
        );
        assert_eq!(
            refusal(&array("IMAGES", "<i2", &[1, 1, 2], &[0xff, 0xff, 0x2c, 0x01])),
            "IMAGES holds values from -1 to 300 (int16): expected whole numbers from 0 to 255"
        );
        assert!(
            refusal(&array("IMAGES", "|b1", &[1, 1, 1], &[1]))
                .starts_with("IMAGES holds truth values (bool)")
        );
        let whole = array("IMAGES", "<i2", &[1, 1, 2], &[0xff, 0, 3, 0]);
        let (whole, _) = split(&whole, &labels(&[0]), None).expect("valid");
        assert_eq!(Vec::<u8>::try_from(whole.images.flatten(0, -1)).unwrap(), [255, 3]);
    }

    #[test]
    fn labels_that_are_no_classes_are_refused() {
        let two = images(&[2, 4, 4]);
        let refusal = |labels: &Array| refusal(&two, labels, None);
        assert_eq!(refusal(&labels(&[1])), "LABELS holds 1 labels, but IMAGES holds 2 images");
        assert_eq!(
            refusal(&array("LABELS", "<f4", &[2], &[0; 8])),
            "LABELS holds float32 labels: expected whole numbers from 0"
        );
        assert_eq!(
            refusal(&array("LABELS", "|u1", &[2, 10], &[0; 20])),
            "LABELS has the shape (2, 10), as of one-hot labels of 10 classes: expected a label per image"
        );
        let column = array("LABELS", "|u1", &[2, 1], &[3, 4]);
        let (split, _) = split(&two, &column, None).expect("valid");
        assert_eq!(Vec::<i64>::try_from(&split.labels).unwrap(), [3, 4]);
    }

    #[test]
    fn labels_are_numbered_in_the_order_of_their_values() {
        let make =
            |values: &[i64]| split(&images(&[values.len(), 1, 2]), &labels(values), None).expect("valid").0;
        let (mut train, mut test) = (make(&[5, 1, 9, 1]), make(&[9, 7]));
        assert_eq!(relabel(&mut train, &mut test).expect("numbered"), [1, 5, 7, 9]);
        assert_eq!(Vec::<i64>::try_from(&train.labels).unwrap(), [1, 0, 3, 0]);
        assert_eq!(Vec::<i64>::try_from(&test.labels).unwrap(), [3, 2]);
    }
}
