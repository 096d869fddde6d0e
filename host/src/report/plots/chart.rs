//! The parts of charts: colours, axes, series, legends.
//!
//! Figures have the colours of [`INKS`]. A page replaces them in dark mode, see [`dark_style`].

use crate::util::number::short_number;
use crate::{Error, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Colours on a light background, and their counterparts on a dark one: text and axes, grid, then
/// series. The colours of series are Okabe and Ito's, which people with colour blindness can
/// distinguish.
const INKS: [(RGBColor, &str); 8] = [
    (RGBColor(0x1a, 0x1a, 0x1a), "#e6e6e6"),
    (RGBColor(0xdd, 0xdd, 0xdd), "#3a3a3a"),
    (RGBColor(0x00, 0x72, 0xb2), "#56b4e9"),
    (RGBColor(0xd5, 0x5e, 0x00), "#ff9a57"),
    (RGBColor(0x00, 0x9e, 0x73), "#3ddbaa"),
    (RGBColor(0xcc, 0x79, 0xa7), "#e7a3ca"),
    (RGBColor(0xa6, 0x76, 0x1d), "#e5b95c"),
    (RGBColor(0x66, 0x66, 0x66), "#b3b3b3"),
];

pub(super) const INK: RGBColor = INKS[0].0;
const GRID: RGBColor = INKS[1].0;

/// The largest number of series in one figure.
pub(super) const MOST_SERIES: usize = INKS.len() - 2;

pub(super) fn ink_of_series(number: usize) -> RGBColor {
    INKS[2 + number % MOST_SERIES].0
}

/// A colour in the notation of plotters' SVG.
pub(super) fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Rules of a style sheet that replace the colours of figures by their dark counterparts.
pub(in crate::report) fn dark_style() -> String {
    let rule = |(light, dark): &(RGBColor, &str)| {
        let light = hex(*light);
        format!(
            "figure svg [fill=\"{light}\"]{{fill:{dark}}}figure svg [stroke=\"{light}\"]{{stroke:{dark}}}"
        )
    };
    INKS.iter().map(rule).collect()
}

/// The width of a figure, and the height of one of its panels.
pub(super) const SIZE: (u32, u32) = (480, 260);
pub(super) const TEXT: i32 = 16;
const LEGEND_LINE: u32 = 20;

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    /// Values are from 0 to 100.
    Percent,
    /// Values are whole numbers.
    Whole,
    /// Values are above 0.
    Log,
}

impl Scale {
    pub(super) fn place(self, value: f64) -> f64 {
        match self {
            Self::Log => value.log10(),
            Self::Linear | Self::Percent | Self::Whole => value,
        }
    }

    fn value(self, place: f64) -> f64 {
        match self {
            Self::Log => 10f64.powf(place),
            Self::Linear | Self::Percent | Self::Whole => place,
        }
    }

    /// The ends of an axis with these places.
    pub(super) fn extent(self, places: impl Iterator<Item = f64>) -> Range<f64> {
        let range = extent(places);
        match self {
            Self::Linear | Self::Whole | Self::Log => range,
            Self::Percent => {
                let room = (1.0 - (range.end - range.start)).max(0.0) / 2.0;
                (range.start - room).max(0.0)..(range.end + room).min(100.0)
            }
        }
    }

    /// The places of the ticks in a range of places.
    fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        const AT_MOST: usize = 7;
        // Rounding errors turn a tick at 0 into a tiny number.
        let exact = |tick: f64| if tick.abs() < 1e-9 * (range.end - range.start) { 0.0 } else { tick };
        let linear = || {
            RangedCoordf64::from(range.clone()).key_points(AT_MOST).into_iter().map(exact).collect::<Vec<_>>()
        };
        match self {
            Self::Linear | Self::Percent => return linear(),
            Self::Whole => return linear().into_iter().filter(|tick| tick.fract() == 0.0).collect(),
            Self::Log => {}
        }
        let decades = range.start.floor() as i32..=range.end.ceil() as i32;
        let within = |digits: &[f64]| -> Vec<f64> {
            let ticks = decades
                .clone()
                .flat_map(|decade| digits.iter().map(move |digit| digit.log10() + f64::from(decade)));
            ticks.filter(|tick| (range.start - 1e-9..=range.end + 1e-9).contains(tick)).collect()
        };
        let mut choices = [within(&[1.0, 2.0, 5.0]), within(&[1.0])].into_iter();
        let fitting = choices.find(|ticks| (2..=AT_MOST + 2).contains(&ticks.len()));
        fitting.unwrap_or_else(|| vec![range.start, range.end])
    }
}

pub(super) struct Axis<'a> {
    pub title: &'a str,
    pub scale: Scale,
}

impl Axis<'_> {
    pub fn linear(title: &str) -> Axis<'_> {
        Axis { title, scale: Scale::Linear }
    }

    pub fn percent(title: &str) -> Axis<'_> {
        Axis { title, scale: Scale::Percent }
    }
}

/// Points joined by lines.
pub(super) struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Axes with series.
pub(super) struct Panel<'a> {
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    pub series: Vec<Series>,
}

/// The error of a figure that cannot be drawn, which is a defect.
pub(super) fn defect(why: impl std::fmt::Display) -> Error {
    Error::new(format!("a figure cannot be drawn: {why}")).on_the_way()
}

pub(super) fn label(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", TEXT).into_font().color(&colour)
}

/// Panels one below the other, each with its legend if it has more than one series.
pub(super) fn draw(panels: &[Panel]) -> Result<String> {
    let names = |panel: &Panel| match panel.series.as_slice() {
        [] | [_] => Vec::new(),
        series => series.iter().map(|series| series.name.clone()).collect(),
    };
    stacked(panels, names, draw_panel)
}

/// Items one below the other, each drawn on an area of the usual size, with the legend of its names.
pub(super) fn stacked<Item>(
    items: &[Item],
    names: impl Fn(&Item) -> Vec<String>,
    draw: impl Fn(&DrawingArea<SVGBackend, Shift>, &Item) -> Result<()>,
) -> Result<String> {
    let legend = |item: &Item| legend_height(names(item).iter().map(String::as_str));
    let height: u32 = items.iter().map(|item| SIZE.1 + legend(item)).sum();
    let mut svg = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        for item in items {
            let (here, below) = rest.split_vertically(SIZE.1 + legend(item));
            let (area, legend_area) = here.split_vertically(SIZE.1);
            draw(&area, item)?;
            draw_legend(&legend_area, names(item).iter().map(String::as_str))?;
            rest = below;
        }
        rest.present().map_err(defect)?;
    }
    Ok(svg)
}

/// Shares in equal steps from 0 to 1.
pub(super) struct Histogram<'a> {
    pub x: &'a str,
    pub y: &'a str,
    /// The name of each series, and its shares.
    pub series: Vec<(String, &'a [f64])>,
}

/// Histograms one below the other, with the bars of all series beside each other.
pub(super) fn draw_histograms(histograms: &[Histogram]) -> Result<String> {
    let names = |histogram: &Histogram| histogram.series.iter().map(|(name, _)| name.clone()).collect();
    stacked(histograms, names, |area, Histogram { x, y, series }| {
        let highest = series.iter().flat_map(|(_, shares)| *shares).copied().fold(0.0, f64::max);
        let (across, up) = (0.0..1.0, 0.0..(105.0 * highest).clamp(1.0, 100.0));
        let mut chart = axes(area, (&Axis::linear(x), across), (&Axis::linear(y), up))?;
        for (number, (_, shares)) in series.iter().enumerate() {
            let width = 1.0 / shares.len() as f64;
            let each = 0.9 * width / series.len() as f64;
            let bars = shares.iter().enumerate().map(|(bar, share)| {
                let left = (bar as f64 + 0.05) * width + number as f64 * each;
                let corners = [(left, 0.0), (left + each, 100.0 * share)];
                Rectangle::new(corners, ink_of_series(number).filled())
            });
            chart.draw_series(bars).map_err(defect)?;
        }
        Ok(())
    })
}

/// The ends of a range around some values, even if all values are equal.
fn extent(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match high - low {
        width if !width.is_finite() => 0.0..1.0,
        width if width < 1e-9 * high.abs().max(1e-9) => {
            low - 0.5 * low.abs().max(1e-3)..high + 0.5 * high.abs().max(1e-3)
        }
        width => {
            // The ticks of a narrower axis would all have the same label.
            let (middle, least) = (0.5 * (low + high), 2e-3 * high.abs().max(low.abs()));
            let half = (0.52 * width).max(least);
            middle - half..middle + half
        }
    }
}

/// An axis in the units of its places, with its ticks.
pub(super) struct Places {
    linear: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, pixels: (i32, i32)) -> i32 {
        self.linear.map(place, pixels)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.linear.range()
    }
}

pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Places, Places>>;

/// Axes with ticks and titles. The ends of each are given as places.
pub(super) fn axes<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    (x, across): (&Axis, Range<f64>),
    (y, up): (&Axis, Range<f64>),
) -> Result<Chart<'a, 'b>> {
    let places =
        |axis: &Axis, range: Range<f64>| Places { ticks: axis.scale.ticks(&range), linear: range.into() };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(30)
        .set_label_area_size(LabelAreaPosition::Left, 84)
        .set_label_area_size(LabelAreaPosition::Bottom, 48)
        .build_cartesian_2d(places(x, across), places(y, up))
        .map_err(defect)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style(label(INK))
        .x_desc(x.title)
        .y_desc(y.title)
        .x_label_formatter(&|place| short_number(x.scale.value(*place)))
        .y_label_formatter(&|place| short_number(y.scale.value(*place)))
        .draw()
        .map_err(defect)?;
    Ok(chart)
}

fn draw_panel(area: &DrawingArea<SVGBackend, Shift>, panel: &Panel) -> Result<()> {
    let Panel { x, y, series } = panel;
    let drawable = |(over, up): &(f64, f64)| {
        let place = (x.scale.place(*over), y.scale.place(*up));
        (place.0.is_finite() && place.1.is_finite()).then_some(place)
    };
    let places: Vec<Vec<_>> =
        series.iter().map(|series| series.points.iter().filter_map(drawable).collect()).collect();
    let all = || places.iter().flatten();
    let across = x.scale.extent(all().map(|place| place.0));
    let up = y.scale.extent(all().map(|place| place.1));
    let mut chart = axes(area, (x, across), (y, up))?;
    for (number, places) in places.into_iter().enumerate() {
        let ink = ink_of_series(number);
        let points: Vec<_> = places.iter().map(|place| Circle::new(*place, 3, ink.filled())).collect();
        chart.draw_series(LineSeries::new(places, ink.stroke_width(2))).map_err(defect)?;
        chart.draw_series(points).map_err(defect)?;
    }
    Ok(())
}

fn draw_legend<'a>(
    area: &DrawingArea<SVGBackend, Shift>,
    names: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let mut middle = LEGEND_LINE as i32 / 2;
    for (number, name) in names.enumerate() {
        let ink = ink_of_series(number);
        area.draw(&PathElement::new([(20, middle), (44, middle)], ink.stroke_width(2))).map_err(defect)?;
        area.draw(&Circle::new((32, middle), 3, ink.filled())).map_err(defect)?;
        for line in wrapped(name) {
            let style = label(INK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(line, (52, middle), style)).map_err(defect)?;
            middle += LEGEND_LINE as i32;
        }
    }
    Ok(())
}

/// The height of a legend with these names.
fn legend_height<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    names.map(|name| wrapped(name).len() as u32 * LEGEND_LINE).sum()
}

/// A name in lines of a legend's width, broken after spaces, commas and slashes where possible.
fn wrapped(name: &str) -> Vec<String> {
    /// The width of a letter is a little more than half of the height of the text.
    const LETTERS: usize = 46;
    let mut lines = vec![String::new()];
    for word in name.split_inclusive([' ', ',', '/']) {
        let letters = |text: &str| text.chars().count();
        let line = lines.last().map_or(0, |line| letters(line));
        if line > 0 && line + letters(word.trim_end()) > LETTERS {
            lines.push(String::new());
        }
        for letter in word.chars() {
            if lines.last().is_some_and(|line| letters(line) >= LETTERS) && letter != ' ' {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                line.push(letter);
            }
        }
    }
    lines
}

/// A width that is enough for a text.
pub(super) fn width_of(text: &str) -> i32 {
    (text.chars().count() as i32 * TEXT * 3).div_euclid(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: Vec<(f64, f64)>, scale: Scale) -> String {
        let series = ["one", "two"].map(|name| Series { name: name.to_owned(), points: points.clone() });
        let panel =
            Panel { x: Axis { title: "passes", scale }, y: Axis::linear("error"), series: series.into() };
        draw(&[panel]).expect("drawn")
    }

    fn assert_ticks(scale: Scale, range: Range<f64>, expected: &[f64]) {
        let ticks = scale.ticks(&range).into_iter().map(|tick| scale.value(tick)).collect::<Vec<_>>();
        assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
        assert!(
            ticks.iter().zip(expected).all(|(tick, expected)| (tick / expected - 1.0).abs() < 1e-9),
            "{ticks:?}"
        );
    }

    #[test]
    fn logarithmic_axes_have_ticks_however_long_they_are() {
        let range = |from: f64, to: f64| from.log10()..to.log10();
        assert_ticks(Scale::Log, range(2.0, 10.0), &[2.0, 5.0, 10.0]);
        assert_ticks(Scale::Log, range(0.9, 101.0), &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        let decades: Vec<f64> = (-3..=4).map(|decade| 10f64.powi(decade)).collect();
        assert_ticks(Scale::Log, range(1e-3, 1e4), &decades);
        assert_ticks(Scale::Log, range(2.2, 4.4), &[2.2, 4.4]);
        assert_ticks(Scale::Whole, 1.0..2.0, &[1.0, 2.0]);
    }

    #[test]
    fn axes_end_where_values_do() {
        let percent = |values: &[f64]| Scale::Percent.extent(values.iter().copied());
        assert_eq!(percent(&[0.0, 100.0]), 0.0..100.0);
        assert_eq!(percent(&[10.0, 60.0]), 9.0..61.0);
        // At least one per cent is shown.
        let one = percent(&[100.0, 100.0]);
        assert!(one.end == 100.0 && (one.start - 50.0).abs() < 1e-9, "{one:?}");
        let narrow = percent(&[50.0, 50.1]);
        assert!((narrow.end - narrow.start - 1.0).abs() < 1e-9, "{narrow:?}");
        assert!(Scale::Linear.ticks(&(-0.3..0.3)).contains(&0.0));
    }

    #[test]
    fn legends_are_wrapped_without_loss() {
        assert_eq!(wrapped("short"), ["short"]);
        let name = format!("sweeps/a,b=1: pgd.so,steps=40,step_size=0.01, 1000 points {}", "x".repeat(100));
        let lines = wrapped(&name);
        assert_eq!(lines.concat(), name);
        assert_eq!(lines[0], "sweeps/a,b=1: pgd.so,steps=40,step_size=0.01, ");
        assert!(lines.iter().all(|line| line.trim_end().chars().count() <= 46), "{lines:?}");
        assert_eq!(
            legend_height([name.as_str(), "short"].into_iter()),
            (lines.len() as u32 + 1) * LEGEND_LINE
        );
    }

    #[test]
    fn values_without_a_place_are_left_out() {
        // 0 has no place on a logarithmic axis, and NaN has none on any axis.
        let svg = line(vec![(0.0, 1.0), (1.0, 0.5), (f64::NAN, 0.5), (10.0, 0.25)], Scale::Log);
        // Two points for each of two series, and one in each line of the legend.
        assert_eq!(svg.matches("<circle").count(), 6, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        for nothing in [vec![], vec![(1.0, 1.0)]] {
            assert!(line(nothing, Scale::Linear).contains("</svg>"));
        }
    }

    #[test]
    fn every_colour_has_a_dark_counterpart() {
        let svg = line(vec![(1.0, 0.5), (10.0, 0.25)], Scale::Linear);
        let style = dark_style();
        let colours = svg.match_indices("=\"#").map(|(at, _)| &svg[at + 2..at + 9]);
        let colours: std::collections::BTreeSet<_> = colours.collect();
        assert!(colours.len() >= 4, "{colours:?}");
        for colour in colours {
            assert!(style.contains(&format!("[fill=\"{colour}\"]")), "{colour} is not restyled");
        }
    }
}
