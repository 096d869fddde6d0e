//! Adversarial examples and the natural ones.

use super::Figure;
use super::chart::*;
use crate::Result;
use crate::report::collect::{Example, Strip};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::html;
use plugin_api::{Norm, ThreatModel};
use resvg::tiny_skia;
use tch::{Kind, Tensor};

const SIDE: usize = 88;

/// Natural examples, adversarial ones, and the perturbation between them.
pub(in crate::report) fn strip(
    strip: &Strip,
    threat: &ThreatModel,
    classes: &[String],
    name: &str,
) -> Result<Figure> {
    const LEFT: usize = 100;
    /// The width of a letter is a little more than half of the height of the text.
    const LETTER: usize = 8;
    const NARROWEST: usize = 114;
    const GAP: usize = 6;
    const LINES: usize = 18;
    let class = |number: i64| {
        usize::try_from(number)
            .ok()
            .and_then(|number| classes.get(number))
            .map_or(number.to_string(), |name| name.to_string())
    };
    let guess =
        |(number, probability): (i64, f64)| format!("{}: {:.0} %", class(number), 100.0 * probability);
    let scale = perturbation_scale(&strip.examples, threat);
    let row_height = SIDE + LINES + GAP;
    let columns: Vec<(String, [(String, String); 3])> = strip
        .examples
        .iter()
        .map(|example| {
            let difference = (&example.adversarial - &example.natural) / (2.0 * scale) + 0.5;
            let picture = |image: &Tensor| -> Result<String> {
                Ok(format!("data:image/png;base64,{}", STANDARD.encode(png_of_image(image)?)))
            };
            let rows = [
                (picture(&example.natural)?, guess(example.natural_guess)),
                (picture(&example.adversarial)?, guess(example.adversarial_guess)),
                (picture(&difference)?, String::new()),
            ];
            Ok((format!("label {}", class(example.label)), rows))
        })
        .collect::<Result<_>>()?;
    // Every column has the width of the longest caption, so that none is cut.
    let captions = columns
        .iter()
        .flat_map(|(label, rows)| std::iter::once(label).chain(rows.iter().map(|(_, guess)| guess)));
    let longest = captions.map(|caption| caption.chars().count()).max().unwrap_or(0);
    let column_width = NARROWEST.max(LETTER * (longest + 1));
    let (width, height) = (LEFT + columns.len() * column_width, LINES + 3 * row_height);
    let size = TEXT - 3;
    let svg = html! {
        svg width=(width) height=(height) viewBox=(format!("0 0 {width} {height}"))
            xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size=(size) {
            @for (row, name) in ["natural", "adversarial", "perturbation"].iter().enumerate() {
                text x="4" y=(LINES + row * row_height + SIDE / 2 + 4) fill=(hex(INK)) { (name) }
            }
            @for (column, (label, rows)) in (0..).zip(&columns) {
                @let left = LEFT + column * column_width + (column_width - SIDE) / 2;
                text x=(left + SIDE / 2) y=(LINES - 5) text-anchor="middle" fill=(hex(INK)) { (label) }
                @for (row, (picture, guess)) in (0..).zip(rows) {
                    @let top = LINES + row * row_height;
                    image x=(left) y=(top) width=(SIDE) height=(SIDE) href=(picture) image-rendering="optimizeSpeed" {}
                    text x=(left + SIDE / 2) y=(top + SIDE + LINES - 5) text-anchor="middle" fill=(hex(INK)) { (guess) }
                }
            }
        }
    };
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
        svg: svg.into_string(),
    })
}

fn attacks(examples: &[Example]) -> String {
    let attacks: std::collections::BTreeSet<_> =
        examples.iter().map(|example| example.attack.as_str()).collect();
    attacks.into_iter().collect::<Vec<_>>().join("; ")
}

/// The change of a pixel that is shown as white: epsilon if it bounds the change of every pixel,
/// otherwise the largest change.
fn perturbation_scale(examples: &[Example], threat: &ThreatModel) -> f64 {
    let largest = || {
        let changes = examples
            .iter()
            .map(|example| (&example.adversarial - &example.natural).abs().max().double_value(&[]));
        changes.fold(0.0, f64::max)
    };
    let scale = match threat.norm {
        Norm::Linf => threat.epsilon,
        Norm::L2 => largest(),
    };
    scale.max(1e-6)
}

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
