//! Decoding of one image file, PNG or JPEG.

use crate::data::md5;
use crate::util::files;
use crate::{Error, Result};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageReader};
use std::io::Cursor;
use std::path::PathBuf;

/// The first bytes of a JPEG.
const JPEG: [u8; 2] = [0xff, 0xd8];

/// The file of an image.
pub(in crate::data) struct Picture {
    pub path: PathBuf,
    /// `CLASS/FILE`.
    pub name: String,
    pub class: usize,
}

impl Picture {
    /// Whether its file can be read, whatever its contents are.
    pub(in crate::data) fn is_readable(&self) -> bool {
        files::read(&self.path).is_ok()
    }
}

/// Properties of an image that are known before it is decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::data) struct Header {
    pub height: u32,
    pub width: u32,
    pub grey: bool,
}

/// The MD5 of the file of an image, and its header.
pub(super) fn inspect(picture: &Picture) -> Result<(String, Header)> {
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

/// The pixels of an image, plane by plane.
pub(super) fn planes(picture: &Picture, channels: i64) -> Result<Vec<u8>> {
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
pub(super) fn most_pixels(bytes: &[u8]) -> u64 {
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
pub(super) fn ambiguous_components(bytes: &[u8]) -> Option<String> {
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

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::util::fuzz::{for_cases, repository_file, withstands};
    use image::{ExtendedColorType, ImageFormat};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

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
