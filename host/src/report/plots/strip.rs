//! Pictures: adversarial examples and the natural ones, and close pairs of training points.

use super::Figure;
use super::chart::*;
use crate::Result;
use crate::data::pairs::PairCheck;
use crate::plugin::Threat;
use crate::report::collect::{Example, PicturedPair, Strip};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::html;
use plugin_api::Norm;
use resvg::tiny_skia;
use tch::{Kind, Tensor};

const SIDE: usize = 88;

/// Natural examples, adversarial ones, and the perturbation between them.
pub(in crate::report) fn strip(strip: &Strip, classes: &[String], name: &str) -> Result<Figure> {
    let class = |number: i64| class_name(classes, number);
    let guess =
        |(number, probability): (i64, f64)| format!("{}: {:.0} %", class(number), 100.0 * probability);
    let scale = perturbation_scale(&strip.examples, &strip.threat);
    let columns = strip.examples.iter().map(|example| Column {
        heading: format!("label {}", class(example.label)),
        captions: [guess(example.natural_guess), guess(example.adversarial_guess)],
        images: [&example.natural, &example.adversarial],
    });
    let svg = pictures(["natural", "adversarial", "perturbation"], columns, scale)?;
    let descriptions = strip.examples.iter().map(|example| {
        format!(
            "label {}, classified as {} after {}",
            class(example.label),
            class(example.adversarial_guess.0),
            example.attack
        )
    });
    Ok(Figure {
        name: format!("{name}-examples"),
        title: "Adversarial examples".to_owned(),
        alternative: format!(
            "{} examples: {}.",
            strip.examples.len(),
            descriptions.collect::<Vec<_>>().join("; ")
        ),
        caption: format!(
            "Examples that fooled the model, with its class for each image and the probability. The perturbation is \
             scaled: grey is none, white +{scale:.4}, black -{scale:.4}. Attacks: {}. From {}.",
            attacks(&strip.examples),
            strip.file.display()
        ),
        svg,
    })
}

/// The closest pairs of one kind (`same` or `different`) of a data set: both images of each, and
/// their difference.
pub(in crate::report) fn pairs(
    check: &PairCheck,
    pairs: &[PicturedPair],
    kind: &str,
    classes: &[String],
    name: &str,
) -> Result<Figure> {
    let scale = largest_change(pairs.iter().map(|pair| [&pair.images[0], &pair.images[1]]));
    let columns = pairs.iter().map(|PicturedPair { pair, images: [one, other], .. }| Column {
        heading: format!("{:.4} apart", pair.distance),
        captions: [0, 1].map(|place| {
            format!("{}: point {}", class_name(classes, pair.labels[place]), pair.points[place])
        }),
        images: [one, other],
    });
    let svg = pictures(["first", "second", "difference"], columns, scale)?;
    let descriptions = pairs.iter().map(|PicturedPair { pair, .. }| {
        let [one, other] = pair.points;
        let [class, other_class] = pair.labels.map(|label| class_name(classes, label));
        format!("points {one} ({class}) and {other} ({other_class}), {:.4} apart", pair.distance)
    });
    let labels = if kind == "same" { "one label" } else { "different labels" };
    let within = pairs.iter().filter(|pair| pair.is_within).count();
    Ok(Figure {
        name: format!("{name}-{kind}-pairs"),
        title: format!("Closest pairs of {labels}"),
        alternative: format!(
            "{} pairs of training points: {}.",
            pairs.len(),
            descriptions.collect::<Vec<_>>().join("; ")
        ),
        caption: format!(
            "The closest pairs of training points of {labels}, and their {} distances; {within} of those \
             shown are within 2 epsilon. Below each image are its class and its index. The difference is scaled: \
             grey is none, white +{scale:.4}, black -{scale:.4}.",
            check.norm
        ),
        svg,
    })
}

/// A column of two pictures and their difference.
struct Column<'a> {
    heading: String,
    captions: [String; 2],
    images: [&'a Tensor; 2],
}

/// Rows of first pictures, second pictures and differences between them. A difference of `scale` is
/// shown in white, one of `-scale` in black.
fn pictures<'a>(
    row_names: [&str; 3],
    columns: impl IntoIterator<Item = Column<'a>>,
    scale: f64,
) -> Result<String> {
    const LEFT: usize = 100;
    /// The width of a letter is a little more than half of the height of the text.
    const LETTER: usize = 8;
    const NARROWEST: usize = 114;
    const GAP: usize = 6;
    const LINES: usize = 18;
    let row_height = SIDE + LINES + GAP;
    let columns: Vec<_> = columns.into_iter().collect();
    // Every column has the width of the longest caption, so that none is cut.
    let captions = columns.iter().flat_map(|column| std::iter::once(&column.heading).chain(&column.captions));
    let longest = captions.map(|caption| caption.chars().count()).max().unwrap_or(0);
    let column_width = NARROWEST.max(LETTER * (longest + 1));
    let drawn = columns.iter().map(|Column { heading, captions: [first, second], images: [one, other] }| {
        let difference = (*other - *one) / (2.0 * scale) + 0.5;
        let picture = |image: &Tensor| -> Result<String> {
            Ok(format!("data:image/png;base64,{}", STANDARD.encode(png_of_image(image)?)))
        };
        let rows = [
            (picture(one)?, first.as_str()),
            (picture(other)?, second.as_str()),
            (picture(&difference)?, ""),
        ];
        Ok((heading, rows))
    });
    let drawn: Vec<_> = drawn.collect::<Result<_>>()?;
    let (width, height) = (LEFT + columns.len() * column_width, LINES + 3 * row_height);
    let size = TEXT - 3;
    let svg = html! {
        svg width=(width) height=(height) viewBox=(format!("0 0 {width} {height}"))
            xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size=(size) {
            @for (row, name) in row_names.iter().enumerate() {
                text x="4" y=(LINES + row * row_height + SIDE / 2 + 4) fill=(hex(INK)) { (name) }
            }
            @for (column, (heading, rows)) in (0..).zip(&drawn) {
                @let left = LEFT + column * column_width + (column_width - SIDE) / 2;
                text x=(left + SIDE / 2) y=(LINES - 5) text-anchor="middle" fill=(hex(INK)) { (heading) }
                @for (row, (picture, caption)) in (0..).zip(rows) {
                    @let top = LINES + row * row_height;
                    image x=(left) y=(top) width=(SIDE) height=(SIDE) href=(picture) image-rendering="optimizeSpeed" {}
                    text x=(left + SIDE / 2) y=(top + SIDE + LINES - 5) text-anchor="middle" fill=(hex(INK)) { (caption) }
                }
            }
        }
    };
    Ok(svg.into_string())
}

fn class_name(classes: &[String], label: i64) -> String {
    let name = usize::try_from(label).ok().and_then(|label| classes.get(label));
    name.map_or(label.to_string(), String::clone)
}

fn attacks(examples: &[Example]) -> String {
    let attacks: std::collections::BTreeSet<_> =
        examples.iter().map(|example| example.attack.as_str()).collect();
    attacks.into_iter().collect::<Vec<_>>().join("; ")
}

/// The change of a pixel that is shown as white: epsilon if it bounds the change of every pixel,
/// otherwise the largest change.
fn perturbation_scale(examples: &[Example], threat: &Threat) -> f64 {
    match threat.norm {
        Norm::Linf => threat.epsilon.max(LEAST_SCALE),
        Norm::L2 | Norm::L1 => {
            largest_change(examples.iter().map(|example| [&example.natural, &example.adversarial]))
        }
    }
}

/// The largest difference between a pixel of two images.
fn largest_change<'a>(images: impl Iterator<Item = [&'a Tensor; 2]>) -> f64 {
    images.map(|[one, other]| (other - one).abs().max().double_value(&[])).fold(LEAST_SCALE, f64::max)
}

/// Differences are divided by the scale.
const LEAST_SCALE: f64 = 1e-6;

/// An image `[C, H, W]`, from 0 to 1, as PNG: in colour if C is 3, otherwise its first channel in
/// grey.
fn png_of_image(image: &Tensor) -> Result<Vec<u8>> {
    // The pixels are enlarged here, because browsers smooth images when they enlarge them.
    let enlarge = (2 * SIDE as i64 / image.size()[1].max(image.size()[2]).max(1)).max(1);
    let image = if image.size()[0] == 3 {
        image.shallow_clone()
    } else {
        image.narrow(0, 0, 1).expand([3, -1, -1], true)
    };
    let image =
        image.repeat_interleave_self_int(enlarge, 1, None).repeat_interleave_self_int(enlarge, 2, None);
    let bytes = (image.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8).permute([1, 2, 0]).contiguous();
    let (height, width) = (bytes.size()[0] as u32, bytes.size()[1] as u32);
    let colours: Vec<u8> = Vec::try_from(bytes.flatten(0, -1))?;
    let mut pixmap = tiny_skia::Pixmap::new(width, height).ok_or_else(|| defect("an image has no pixels"))?;
    let (triples, _) = colours.as_chunks::<3>();
    for (pixel, [red, green, blue]) in pixmap.pixels_mut().iter_mut().zip(triples) {
        *pixel = tiny_skia::ColorU8::from_rgba(*red, *green, *blue, u8::MAX).premultiply();
    }
    pixmap.encode_png().map_err(defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_have_the_colours_of_their_pixels() {
        let pixels = |image: Tensor| {
            let picture = tiny_skia::Pixmap::decode_png(&png_of_image(&image).expect("PNG")).expect("PNG");
            let pixel = |x: u32| picture.pixel(x, 0).map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]);
            [pixel(0), pixel(picture.width() - 1)].map(|pixel| pixel.expect("a pixel"))
        };
        // Two pixels, `[C, 1, 2]`: red and half-bright blue; then grey ones.
        let colours = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0, 0.0, 0.5]).reshape([3, 1, 2]);
        assert_eq!(pixels(colours), [[255, 0, 0], [0, 0, 128]]);
        assert_eq!(pixels(Tensor::from_slice(&[0.2f32, 1.0]).reshape([1, 1, 2])), [[51; 3], [255; 3]]);
    }
}
