//! The figures of a report, as SVG and as PNG.
//!
//! Figures are drawn in the colours of [`INKS`]; a page restyles them for dark mode by the
//! colours' names, see [`dark_style`].

use super::collect::{BARS, Distances, Example, Run, Strip, Summary, Sweep};
use super::tables::setting_text;
use crate::objective::Objective;
use crate::progress::TracePoint;
use crate::sweep::short;
use crate::sweep::summary::{COSTS, is_shown, title};
use crate::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::html;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plugin_api::{Norm, ThreatModel};
use resvg::{tiny_skia, usvg};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Kind, Tensor};

/// A figure.
pub struct Figure {
    /// What its files are called.
    pub name: String,
    /// What it shows, in a few words.
    pub title: String,
    /// What can be seen, for those who do not see it.
    pub alternative: String,
    /// What there is to know about it.
    pub caption: String,
    /// The figure itself.
    pub svg: String,
}

/// Colours on light ground, and what they become on dark ground: text and axes, grid, then
/// series. The series' are Okabe and Ito's, told apart by people who see fewer colours.
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

const INK: RGBColor = INKS[0].0;
const GRID: RGBColor = INKS[1].0;

/// Series drawn into one figure.
const MOST_SERIES: usize = INKS.len() - 2;

fn ink_of_series(number: usize) -> RGBColor {
    INKS[2 + number % MOST_SERIES].0
}

/// Rules of a style sheet that give a figure's colours their dark counterparts.
pub fn dark_style() -> String {
    let rule = |(RGBColor(red, green, blue), dark): &(RGBColor, &str)| {
        let light = format!("#{red:02X}{green:02X}{blue:02X}");
        format!(
            "figure svg [fill=\"{light}\"]{{fill:{dark}}}figure svg [stroke=\"{light}\"]{{stroke:{dark}}}"
        )
    };
    INKS.iter().map(rule).collect()
}

/// Width of a figure, and height of one of its panels.
const SIZE: (u32, u32) = (480, 260);
const TEXT: i32 = 16;
const LEGEND_LINE: u32 = 20;

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    /// Values are from 0 to 100.
    Percent,
    /// Values are whole numbers.
    Whole,
    /// Values are above 0.
    Log,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        if self == Self::Log { value.log10() } else { value }
    }

    fn value(self, place: f64) -> f64 {
        if self == Self::Log { 10f64.powf(place) } else { place }
    }

    /// The ends of an axis that shows these places.
    fn extent(self, places: impl Iterator<Item = f64>) -> Range<f64> {
        let range = extent(places);
        if self != Self::Percent {
            return range;
        }
        let room = (1.0 - (range.end - range.start)).max(0.0) / 2.0;
        (range.start - room).max(0.0)..(range.end + room).min(100.0)
    }

    /// Where ticks are, in a range of places.
    fn ticks(self, range: &Range<f64>) -> Vec<f64> {
        const AT_MOST: usize = 7;
        // What is left of 0 by rounding is 0.
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

struct Axis<'a> {
    title: &'a str,
    scale: Scale,
}

impl Axis<'_> {
    fn linear(title: &str) -> Axis<'_> {
        Axis { title, scale: Scale::Linear }
    }

    fn percent(title: &str) -> Axis<'_> {
        Axis { title, scale: Scale::Percent }
    }
}

/// Points joined by lines.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Axes with series.
struct Panel<'a> {
    x: Axis<'a>,
    y: Axis<'a>,
    series: Vec<Series>,
}

/// Why a figure cannot be drawn, which is a defect.
fn defect(why: impl std::fmt::Display) -> Error {
    Error::new(format!("a figure cannot be drawn: {why}")).on_the_way()
}

fn label(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", TEXT).into_font().color(&colour)
}

/// Panels one below the other, each with its legend if it has more than one series.
fn draw(panels: &[Panel]) -> Result<String> {
    let legend = |panel: &Panel| match panel.series.as_slice() {
        [] | [_] => 0,
        series => legend_height(series.iter().map(|series| series.name.as_str())),
    };
    let height: u32 = panels.iter().map(|panel| SIZE.1 + legend(panel)).sum();
    let mut svg = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
        for panel in panels {
            let (here, below) = rest.split_vertically(SIZE.1 + legend(panel));
            let (area, legend_area) = here.split_vertically(SIZE.1);
            draw_panel(&area, panel)?;
            if panel.series.len() > 1 {
                draw_legend(&legend_area, panel.series.iter().map(|series| series.name.as_str()))?;
            }
            rest = below;
        }
        rest.present().map_err(defect)?;
    }
    Ok(svg)
}

/// The ends of some values' places, apart from one another.
fn extent(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    match high - low {
        width if !width.is_finite() => 0.0..1.0,
        width if width < 1e-9 * high.abs().max(1e-9) => {
            low - 0.5 * low.abs().max(1e-3)..high + 0.5 * high.abs().max(1e-3)
        }
        width => {
            // Ticks of an axis much narrower than its values would be written alike.
            let (middle, least) = (0.5 * (low + high), 2e-3 * high.abs().max(low.abs()));
            let half = (0.52 * width).max(least);
            middle - half..middle + half
        }
    }
}

/// One axis in the units of its places, with the ticks that it is to have.
struct Places {
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

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Places, Places>>;

/// Axes with ticks and titles; each has its ends, as places.
fn axes<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    (x, across): (&Axis, Range<f64>),
    (y, up): (&Axis, Range<f64>),
) -> Result<Chart<'a, 'b>> {
    let places =
        |axis: &Axis, range: Range<f64>| Places { ticks: axis.scale.ticks(&range), linear: range.into() };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(22)
        .set_label_area_size(LabelAreaPosition::Left, 70)
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

/// Height of a legend with these names.
fn legend_height<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    names.map(|name| wrapped(name).len() as u32 * LEGEND_LINE).sum()
}

/// A name in lines that fit beside their mark; broken after spaces and commas where there are any.
fn wrapped(name: &str) -> Vec<String> {
    /// Of a legend's width, at a good half of the text's height each.
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

/// A number in few characters.
fn short_number(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let tidy = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    let size = number.abs();
    if !(1e-3..1e6).contains(&size) {
        let written = format!("{number:.2e}");
        let (digits, power) = written.split_once('e').unwrap_or((&written, "0"));
        return format!("{}e{power}", tidy(digits));
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    tidy(&format!("{number:.decimals$}"))
}

/// Training, epoch by epoch; none if fewer than two are finished.
pub fn curves(run: &Run, name: &str) -> Result<Option<Figure>> {
    let [_, .., last] = run.epochs.as_slice() else { return Ok(None) };
    let over_epochs = |name: &str, value: &dyn Fn(&crate::progress::EpochMetrics) -> Option<f64>| Series {
        name: name.to_owned(),
        points: run.epochs.iter().filter_map(|epoch| Some((epoch.epoch as f64, value(epoch)?))).collect(),
    };
    let panel = |y: Axis<'static>, mut series: Vec<Series>| {
        series.retain(|series| !series.points.is_empty());
        Panel { x: Axis { title: "epoch", scale: Scale::Whole }, y, series }
    };
    let seen =
        if run.record.experiment.sampler.0.is_some() { "training particles" } else { "training points" };
    let accuracies = vec![
        over_epochs(seen, &|epoch| Some(100.0 * epoch.train_accuracy)),
        over_epochs("validation points", &|epoch| Some(100.0 * epoch.validation_accuracy?)),
        over_epochs("validation points, attacked by the probe", &|epoch| Some(100.0 * epoch.probe_accuracy?)),
    ];
    let panels = [
        panel(Axis::linear("loss"), vec![over_epochs("loss", &|epoch| Some(epoch.train_loss))]),
        panel(Axis::percent("accuracy, %"), accuracies),
        panel(
            Axis::linear("learning rate"),
            vec![over_epochs("learning rate", &|epoch| Some(epoch.learning_rate))],
        ),
    ];
    Ok(Some(Figure {
        name: format!("{name}-curves"),
        title: "Training".to_owned(),
        alternative: format!(
            "Loss, accuracy and learning rate over {} epochs: the loss ends at {:.4}, accuracy on the {seen} at \
             {:.2} per cent.",
            last.epoch,
            last.train_loss,
            100.0 * last.train_accuracy
        ),
        caption: format!(
            "Mean loss and accuracy at the {seen}; accuracy on held-out points where there are some; learning rate \
             of each epoch's last update."
        ),
        svg: draw(&panels)?,
    }))
}

/// The error against passes, and against backprops as the paper counts them.
pub fn traces(runs: &[Run]) -> Result<Vec<Figure>> {
    let traced: Vec<_> = runs.iter().filter(|run| !run.trace.is_empty()).collect();
    let mut figures = Vec::new();
    for (number, runs) in traced.chunks(MOST_SERIES).enumerate() {
        let series = |cost: &dyn Fn(&Run, &TracePoint) -> Option<f64>| {
            let one = |run: &&Run| Series {
                name: match run.trace.first() {
                    Some(first) => format!("{}: {}, {} points", run.name, first.attack, first.points),
                    None => run.name.clone(),
                },
                points: run
                    .trace
                    .iter()
                    .filter_map(|point| Some((cost(run, point)?, 100.0 * (1.0 - point.attack_accuracy))))
                    .collect(),
            };
            runs.iter().map(one).filter(|series| !series.points.is_empty()).collect::<Vec<_>>()
        };
        let cost_in_backprops = |run: &Run, point: &TracePoint| {
            let train = &run.record.experiment.train;
            let counted = train.objective == Objective::CrossEntropy;
            counted.then(|| backprops(point, run.record.data.train_points, train.batch, train.particles))
        };
        for (name, unit, x, title, caption, series) in [
            (
                "trace-passes",
                "passes",
                "passes per training point",
                "Error against passes",
                "Error under attack while training, against all passes that training took: one forward and one \
                 backward of one point, for the particles and for the weights.",
                series(&|_, point| Some(point.passes_per_sample)),
            ),
            (
                "trace-backprops",
                "backprops",
                "backprops per training point, as the paper counts",
                "Error against backprops as the paper counts them",
                "The same against one backprop for each gradient that moves the particles, or one for each step of the \
                 optimiser where that is more: passes less those of the weights. The paper counts one an update of \
                 Langevin, which takes two passes, and K of PGD-K, which takes K + 1. It has no count for TRADES: \
                 such runs are left out.",
                series(&cost_in_backprops),
            ),
        ] {
            if series.is_empty() {
                continue;
            }
            let ends: Vec<_> = series
                .iter()
                .filter_map(|Series { name, points }| {
                    let (cost, error) = points.last()?;
                    let cost = (10.0 * cost).round() / 10.0;
                    Some(format!("{name}: ends at {error:.2} per cent after {cost} {unit}"))
                })
                .collect();
            let panel = Panel {
                x: Axis { title: x, scale: Scale::Log },
                y: Axis::percent("error under attack, %"),
                series,
            };
            figures.push(Figure {
                name: if number == 0 { name.to_owned() } else { format!("{name}-{}", number + 1) },
                title: title.to_owned(),
                alternative: format!("{title}, on a logarithmic axis: {}.", ends.join("; ")),
                caption: caption.to_owned(),
                svg: draw(&[panel])?,
            });
        }
    }
    Ok(figures)
}

/// Backprops per training point as the paper counts them ("one back-propagation per update" of
/// Langevin): passes less those that the weights take, and no fewer than those.
fn backprops(point: &TracePoint, train_points: usize, batch: usize, particles: usize) -> f64 {
    let updates_of_an_epoch = train_points.div_ceil(batch.max(1)).max(1) as u64;
    let (epochs, within) = (point.updates / updates_of_an_epoch, point.updates % updates_of_an_epoch);
    let visits = epochs as f64 + (within * batch as u64) as f64 / train_points.max(1) as f64;
    let steps_of_an_update = point.optimizer_steps as f64 / point.updates.max(1) as f64;
    let of_weights = visits * steps_of_an_update * particles as f64;
    (point.passes_per_sample - of_weights).max(of_weights)
}

/// How far particles are from their natural examples.
pub fn distances(found: &Distances, threat: &ThreatModel, name: &str) -> Result<Figure> {
    let legend = legend_height(found.measured.iter().map(|measured| measured.name.as_str()));
    let mut svg = String::new();
    {
        let whole = SVGBackend::with_string(&mut svg, (SIZE.0, SIZE.1 + legend)).into_drawing_area();
        let (area, legend_area) = whole.split_vertically(SIZE.1);
        let highest =
            found.measured.iter().flat_map(|measured| &measured.shares).copied().fold(0.0, f64::max);
        let (across, up) = (0.0..1.0, 0.0..(105.0 * highest).clamp(1.0, 100.0));
        let mut chart = axes(
            &area,
            (&Axis::linear("share of the largest distance"), across),
            (&Axis::linear("particles, %"), up),
        )?;
        let width = 1.0 / BARS as f64;
        let each = 0.9 * width / found.measured.len() as f64;
        for (number, measured) in found.measured.iter().enumerate() {
            let bars = measured.shares.iter().enumerate().map(|(bar, share)| {
                let left = (bar as f64 + 0.05) * width + number as f64 * each;
                let corners = [(left, 0.0), (left + each, 100.0 * share)];
                Rectangle::new(corners, ink_of_series(number).filled())
            });
            chart.draw_series(bars).map_err(defect)?;
        }
        draw_legend(&legend_area, found.measured.iter().map(|measured| measured.name.as_str()))?;
        whole.present().map_err(defect)?;
    }
    let means =
        found.measured.iter().map(|measured| format!("{}: {:.3} on average", measured.name, measured.mean));
    let means = means.collect::<Vec<_>>().join("; ");
    Ok(Figure {
        name: format!("{name}-distances"),
        title: "Distances of the particles".to_owned(),
        alternative: format!(
            "Histogram of the distances of {} particles from their natural examples. {means}.",
            found.particles
        ),
        caption: format!(
            "Distances of the {} particles of the newest checkpoint from their natural examples, each as a share of \
             the largest that the ball has (epsilon = {}). {means}.",
            found.particles, threat.epsilon
        ),
        svg,
    })
}

/// Values that a heat map shows of an axis.
const MOST_PLACES: usize = 24;

/// A sweep's accuracies as curves over its one numeric axis, or as heat maps over its two; none
/// for other sweeps. Where seeds vary, their median. Also what is not drawn, and why.
pub fn sweep(sweep: &Sweep, name: &str) -> Result<(Vec<Figure>, Vec<String>)> {
    let Some(summary) = &sweep.summary else { return Ok(Default::default()) };
    let settings = settings(summary);
    let keys: Vec<_> = settings.first().map(|(keys, _)| keys.keys().cloned().collect()).unwrap_or_default();
    let is_numeric = |key: &&String| {
        let mut values: Vec<_> =
            settings.iter().map(|(settings, _)| settings.get(*key).and_then(Value::as_f64)).collect();
        values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
        values.dedup();
        values.len() > 1 && values.iter().all(Option::is_some)
    };
    let (numeric, others): (Vec<_>, Vec<_>) = keys.iter().partition(is_numeric);
    // A figure for each combination of what is no number.
    let mut parts: BTreeMap<String, Vec<&Setting>> = BTreeMap::new();
    for setting in &settings {
        let texts = others
            .iter()
            .filter_map(|key| Some(format!("{} = {}", short(key), setting_text(setting.0.get(*key)?))));
        parts.entry(texts.collect::<Vec<_>>().join(", ")).or_default().push(setting);
    }
    let (mut figures, mut not_drawn) = (Vec::new(), Vec::new());
    for (part, settings) in &parts {
        let number = figures.len() + 1;
        let of_part = if part.is_empty() { String::new() } else { format!(" ({part})") };
        match numeric.as_slice() {
            [axis] => {
                figures.push(sweep_curves(settings, axis, &of_part, &format!("{name}-curves-{number}"))?);
            }
            [across, up] => {
                let crowded = |axis: &&&String| places(settings, axis).len() > MOST_PLACES;
                if let Some(axis) = [across, up].into_iter().find(crowded) {
                    not_drawn.push(format!(
                        "There is no heat map of {} and {}{of_part}: {} has {} values, more than the {MOST_PLACES} that \
                         one has room for. The table has them all.",
                        short(across),
                        short(up),
                        short(axis),
                        places(settings, axis).len()
                    ));
                    continue;
                }
                for figure in accuracies(settings) {
                    let name = format!("{name}-map-{}", figures.len() + 1);
                    figures.push(heat_map(settings, (across, up), &figure, &of_part, &name)?);
                }
            }
            _ => {}
        }
    }
    Ok((figures, not_drawn))
}

/// The values of an axis, in order.
fn places(settings: &[&Setting], key: &str) -> Vec<f64> {
    let mut places: Vec<_> = settings.iter().map(|(values, _)| value(values, key)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    places
}

type Setting = (Map<String, Value>, BTreeMap<String, f64>);

/// Values on the axes and figures of every finished setting.
fn settings(summary: &Summary) -> Vec<Setting> {
    match &summary.groups {
        Some(groups) => groups
            .iter()
            .filter(|group| group.finished > 0)
            .map(|group| {
                let medians = group.figures.iter().map(|(name, over)| (name.clone(), over.median));
                (group.settings.clone(), medians.collect())
            })
            .collect(),
        None => summary
            .runs
            .iter()
            .filter(|row| row.status == crate::sweep::summary::Status::Finished)
            .map(|row| (row.settings.clone(), row.figures.clone()))
            .collect(),
    }
}

/// Names of the accuracies that people are shown.
fn accuracies(settings: &[&Setting]) -> Vec<String> {
    let names: std::collections::BTreeSet<_> =
        settings.iter().flat_map(|(_, figures)| figures.keys()).collect();
    names.into_iter().filter(|name| is_shown(name) && !COSTS.contains(&name.as_str())).cloned().collect()
}

fn value(settings: &Map<String, Value>, key: &str) -> f64 {
    settings.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn sweep_curves(settings: &[&Setting], axis: &str, of_part: &str, name: &str) -> Result<Figure> {
    let names = accuracies(settings);
    let series: Vec<_> = names
        .iter()
        .map(|figure| {
            let point =
                |(values, figures): &&Setting| Some((value(values, axis), 100.0 * figures.get(figure)?));
            let mut points: Vec<_> = settings.iter().filter_map(point).collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            Series { name: title(figure), points }
        })
        .collect();
    let places: Vec<_> = settings.iter().map(|(values, _)| value(values, axis)).collect();
    let (low, high) =
        (places.iter().copied().fold(f64::INFINITY, f64::min), places.iter().copied().fold(0.0, f64::max));
    let scale = if low > 0.0 && high >= 20.0 * low { Scale::Log } else { Scale::Linear };
    let title = format!("Accuracy against {}{of_part}", short(axis));
    let panels: Vec<_> = {
        let mut series = series.into_iter().peekable();
        std::iter::from_fn(|| {
            series.peek()?;
            Some(series.by_ref().take(MOST_SERIES).collect::<Vec<_>>())
        })
        .map(|series| Panel {
            x: Axis { title: short(axis), scale },
            y: Axis::percent("accuracy, %"),
            series,
        })
        .collect()
    };
    Ok(Figure {
        name: name.to_owned(),
        alternative: format!("{title}, for {} finished settings from {low} to {high}.", settings.len()),
        caption: format!("{} finished settings; where seeds vary, their median.", settings.len()),
        svg: draw(&panels)?,
        title,
    })
}

fn heat_map(
    settings: &[&Setting],
    (across, up): (&str, &str),
    figure: &str,
    of_part: &str,
    name: &str,
) -> Result<Figure> {
    const CELL: (i32, i32) = (64, 36);
    const LEFT: i32 = 90;
    const TOP: i32 = 12;
    let (columns, rows) = (places(settings, across), places(settings, up));
    let shares: Vec<_> = settings.iter().filter_map(|(_, figures)| figures.get(figure).copied()).collect();
    let (low, high) =
        (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
    let (width, height) = (columns.len() as i32 * CELL.0, rows.len() as i32 * CELL.1);
    let mut svg = String::new();
    {
        let size = ((LEFT + width + 20).max(260) as u32, (TOP + height + 60) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let centred = |colour: RGBColor| label(colour).pos(Pos::new(HPos::Center, VPos::Center));
        for (values, figures) in settings {
            let Some(share) = figures.get(figure) else { continue };
            let column = columns.iter().position(|place| *place == value(values, across)).unwrap_or(0) as i32;
            let row = rows.iter().rev().position(|place| *place == value(values, up)).unwrap_or(0) as i32;
            let (left, top) = (LEFT + column * CELL.0, TOP + row * CELL.1);
            let strength = if high > low { (share - low) / (high - low) } else { 1.0 };
            let (ground, ink) = heat(strength);
            area.draw(&Rectangle::new([(left, top), (left + CELL.0 - 2, top + CELL.1 - 2)], ground.filled()))
                .map_err(defect)?;
            let middle = (left + CELL.0 / 2 - 1, top + CELL.1 / 2 - 1);
            area.draw(&Text::new(format!("{:.1}", 100.0 * share), middle, centred(ink))).map_err(defect)?;
        }
        for (column, place) in columns.iter().enumerate() {
            let at = (LEFT + column as i32 * CELL.0 + CELL.0 / 2, TOP + height + 12);
            area.draw(&Text::new(short_number(*place), at, centred(INK))).map_err(defect)?;
        }
        for (row, place) in rows.iter().rev().enumerate() {
            let at = (LEFT - 8, TOP + row as i32 * CELL.1 + CELL.1 / 2);
            let style = label(INK).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(short_number(*place), at, style)).map_err(defect)?;
        }
        let below = (LEFT + width / 2, TOP + height + 38);
        area.draw(&Text::new(short(across).to_owned(), below, centred(INK))).map_err(defect)?;
        let turned = ("sans-serif", TEXT).into_font().transform(FontTransform::Rotate270).color(&INK);
        let style = turned.pos(Pos::new(HPos::Center, VPos::Center));
        area.draw(&Text::new(short(up).to_owned(), (18, TOP + height / 2), style)).map_err(defect)?;
        area.present().map_err(defect)?;
    }
    let title = format!("{} over {} and {}{of_part}", title(figure), short(across), short(up));
    Ok(Figure {
        name: name.to_owned(),
        alternative: format!("Heat map of {title}, from {:.1} to {:.1} per cent.", 100.0 * low, 100.0 * high),
        caption: "Accuracy in per cent; where seeds vary, their median.".to_owned(),
        title,
        svg,
    })
}

/// A field's colour from 0 (lowest) to 1, and that of the text on it.
fn heat(strength: f64) -> (RGBColor, RGBColor) {
    const LOW: [f64; 3] = [247.0, 228.0, 200.0];
    const HIGH: [f64; 3] = [0.0, 75.0, 125.0];
    let [red, green, blue] =
        [0, 1, 2].map(|place| (LOW[place] + strength * (HIGH[place] - LOW[place])) as u8);
    (RGBColor(red, green, blue), if strength < 0.5 { BLACK } else { WHITE })
}

const SIDE: usize = 88;

/// Natural examples, adversarial ones, and the perturbation between them.
pub fn strip(strip: &Strip, threat: &ThreatModel, classes: &[String], name: &str) -> Result<Figure> {
    const LEFT: usize = 100;
    /// Room for the longest caption, a class's name and its probability.
    const COLUMN: usize = 114;
    const LONGEST_NAME: usize = 11;
    const GAP: usize = 6;
    const LINES: usize = 18;
    let class = |number: i64| {
        usize::try_from(number)
            .ok()
            .and_then(|number| classes.get(number))
            .map_or(number.to_string(), |name| name.to_string())
    };
    let short_class = |number: i64| match class(number) {
        name if name.chars().count() > LONGEST_NAME => {
            name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
        }
        name => name,
    };
    let guess =
        |(number, probability): (i64, f64)| format!("{}: {:.0} %", short_class(number), 100.0 * probability);
    let scale = perturbation_scale(&strip.examples, threat);
    let row_height = SIDE + LINES + GAP;
    let (width, height) = (LEFT + strip.examples.len() * COLUMN, LINES + 3 * row_height);
    let columns: Vec<_> = strip
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
            Ok((format!("label {}", short_class(example.label)), rows))
        })
        .collect::<Result<_>>()?;
    let size = TEXT - 3;
    let svg = html! {
        svg width=(width) height=(height) viewBox=(format!("0 0 {width} {height}"))
            xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size=(size) {
            @for (row, name) in ["natural", "adversarial", "perturbation"].iter().enumerate() {
                text x="4" y=(LINES + row * row_height + SIDE / 2 + 4) fill=(hex(INK)) { (name) }
            }
            @for (column, (label, rows)) in (0..).zip(&columns) {
                @let left = LEFT + column * COLUMN + (COLUMN - SIDE) / 2;
                text x=(left + SIDE / 2) y=(LINES - 5) text-anchor="middle" fill=(hex(INK)) { (label) }
                @for (row, (picture, guess)) in (0..).zip(rows) {
                    @let top = LINES + row * row_height;
                    image x=(left) y=(top) width=(SIDE) height=(SIDE) href=(picture) image-rendering="optimizeSpeed" {}
                    text x=(left + SIDE / 2) y=(top + SIDE + LINES - 5) text-anchor="middle" fill=(hex(INK)) { (guess) }
                }
            }
        }
    };
    let told = strip.examples.iter().map(|example| {
        format!(
            "label {}, taken for {} after {}",
            class(example.label),
            class(example.adversarial_guess.0),
            example.attack
        )
    });
    Ok(Figure {
        name: format!("{name}-examples"),
        title: "Adversarial examples".to_owned(),
        alternative: format!("{} examples: {}.", strip.examples.len(), told.collect::<Vec<_>>().join("; ")),
        caption: format!(
            "Examples that fooled the model, with what it takes them for and how sure it is. The perturbation is \
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

/// The change of a pixel that is shown as white: epsilon where that is a pixel's bound, or else
/// the largest there is.
fn perturbation_scale(examples: &[Example], threat: &ThreatModel) -> f64 {
    let largest = || {
        let changes = examples
            .iter()
            .map(|example| (&example.adversarial - &example.natural).abs().max().double_value(&[]));
        changes.fold(0.0, f64::max)
    };
    let scale = if threat.norm == Norm::Linf { threat.epsilon } else { largest() };
    scale.max(1e-6)
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// An image `[C, H, W]` (C is 1 or 3; of other numbers the first is shown), from 0 to 1, as PNG.
fn png_of_image(image: &Tensor) -> Result<Vec<u8>> {
    // Browsers and others smooth small images when they enlarge them: pixels are enlarged here.
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

/// Turns figures into PNG images, with a font of its own: the machine need not have any.
pub struct Rasteriser {
    options: usvg::Options<'static>,
}

impl Rasteriser {
    /// Pixels for each unit of the figure, if it is not too large.
    const PIXELS: f32 = 3.0;

    /// Pixels of an image, all together.
    const MOST_PIXELS: f32 = 3.2e7;

    /// One that has its font.
    pub fn new() -> Self {
        let mut options = usvg::Options::default();
        let fonts = options.fontdb_mut();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family =
            fonts.faces().next().and_then(|face| face.families.first().map(|(name, _)| name.clone()));
        fonts.set_sans_serif_family(family.unwrap_or_default());
        Self { options }
    }

    /// A figure on white ground.
    ///
    /// # Errors
    /// If it is no SVG, or too large.
    pub fn png(&self, svg: &str) -> Result<Vec<u8>> {
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
    fn numbers_are_short_and_differ_where_they_should() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.5e-4, "1.5e-4"),
            (2e-4, "2e-4"),
            (-1.25e7, "-1.25e7"),
            (0.00125, "0.00125"),
            (0.0313725, "0.03137"),
            (0.5, "0.5"),
            (100.0, "100"),
            (60000.0, "60000"),
            (99.5, "99.5"),
        ] {
            assert_eq!(short_number(number), expected);
        }
    }

    #[test]
    fn legends_are_wrapped_and_lose_nothing() {
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
    fn backprops_are_those_of_the_paper() {
        // 250 points in batches of 100: an epoch has three updates. After four, 350 points were
        // visited, 1.4 epochs.
        let cost = |passes_of_a_visit: f64, steps_of_an_update: u64, particles: usize| {
            let point = TracePoint {
                updates: 4,
                optimizer_steps: 4 * steps_of_an_update,
                passes_per_sample: 1.4 * passes_of_a_visit,
                seconds: 1.0,
                clean_accuracy: 0.9,
                attack_accuracy: 0.5,
                attack: "fgsm.so".to_owned(),
                points: 10,
            };
            backprops(&point, 250, 100, particles) / 1.4
        };
        let cases = [
            ("ordinary training", cost(1.0, 1, 1), 1.0),
            ("Langevin in mode faithful", cost(2.0, 1, 1), 1.0),
            ("the same with three particles", cost(6.0, 1, 3), 3.0),
            ("PGD-40", cost(41.0, 1, 1), 40.0),
            ("mode fused", cost(1.0, 1, 1), 1.0),
            ("mode fused with four replays", cost(4.0, 4, 1), 4.0),
        ];
        for (what, found, expected) in cases {
            assert!((found - expected).abs() < 1e-9, "{what}: {found} for {expected}");
        }
    }

    #[test]
    fn pictures_of_long_figures_have_a_bound() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"480\" height=\"100000\"></svg>";
        let png = Rasteriser::new().png(svg).expect("a picture");
        // The width and the height are in the header of a PNG file.
        let number =
            |at: usize| png[at..at + 4].iter().fold(0, |number, byte| 256 * number + u64::from(*byte));
        assert!(number(16) * number(20) < 33_000_000, "{} x {}", number(16), number(20));
    }

    #[test]
    fn what_cannot_be_placed_is_left_out() {
        // 0 has no place on a logarithmic axis, and NaN has none anywhere.
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

    #[test]
    fn words_are_drawn_without_any_font_of_the_machine() {
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
