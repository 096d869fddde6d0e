//! From SVG to PNG.

use super::chart::defect;
use crate::Result;
use resvg::{tiny_skia, usvg};

/// Turns figures into PNG images. It has a font of its own, so that the machine needs none.
pub(in crate::report) struct Rasteriser {
    options: usvg::Options<'static>,
}

impl Rasteriser {
    /// The pixels for each unit of a figure that is not too large.
    const PIXELS: f32 = 3.0;

    /// The largest number of pixels of an image.
    const MOST_PIXELS: f32 = 3.2e7;

    pub(in crate::report) fn new() -> Self {
        let mut options = usvg::Options::default();
        let fonts = options.fontdb_mut();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family =
            fonts.faces().next().and_then(|face| face.families.first().map(|(name, _)| name.clone()));
        fonts.set_sans_serif_family(family.unwrap_or_default());
        Self { options }
    }

    /// A figure on a white background.
    ///
    /// # Errors
    /// If it is not valid SVG.
    pub(in crate::report) fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let tree = usvg::Tree::from_str(svg, &self.options).map_err(defect)?;
        let size = tree.size();
        let enlarge = Self::PIXELS.min((Self::MOST_PIXELS / (size.width() * size.height())).sqrt());
        let [width, height] = [size.width(), size.height()].map(|side| (side * enlarge).ceil() as u32);
        let mut pixmap = tiny_skia::Pixmap::new(width, height).ok_or_else(|| defect("it is too large"))?;
        pixmap.fill(tiny_skia::Color::WHITE);
        let enlarge = tiny_skia::Transform::from_scale(enlarge, enlarge);
        resvg::render(&tree, enlarge, &mut pixmap.as_mut());
        pixmap.encode_png().map_err(defect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_long_figures_have_a_bounded_size() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"480\" height=\"100000\"></svg>";
        let png = Rasteriser::new().png(svg).expect("a picture");
        // The width and the height are in the header of a PNG file.
        let number =
            |at: usize| png[at..at + 4].iter().fold(0, |number, byte| 256 * number + u64::from(*byte));
        assert!(number(16) * number(20) < 33_000_000, "{} x {}", number(16), number(20));
    }

    #[test]
    fn text_is_drawn_without_any_font_of_the_machine() {
        let picture = |word: &str| {
            let svg = format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"100\" height=\"30\">\
                 <text x=\"5\" y=\"20\" font-family=\"sans-serif\" font-size=\"16\">{word}</text></svg>"
            );
            let png = Rasteriser::new().png(&svg).expect("a picture");
            tiny_skia::Pixmap::decode_png(&png).expect("PNG")
        };
        let dark = |word: &str| picture(word).pixels().iter().filter(|pixel| pixel.red() < 100).count();
        assert_eq!(dark(""), 0);
        assert!(dark("epsilon") > 500, "{}", dark("epsilon"));
        assert!(dark("epsilon epsilon") > dark("epsilon"));
    }
}
