//! The accuracies of a sweep over its axes.

use super::Figure;
use super::chart::*;
use crate::Result;
use crate::evaluation::verdict::confidence_interval;
use crate::report::collect::CollectedSweep;
use crate::report::tables::setting_text;
use crate::sweep::short;
use crate::sweep::summary::{COSTS, OF_TRAINING, SavedSummary, Status, is_shown, title};
use crate::util::number::short_number;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The largest number of values of an axis in a heat map.
const MOST_PLACES: usize = 24;

/// The accuracies of a sweep as curves over its only numeric axis, or as heat maps over its two;
/// none for other sweeps. If seeds vary, the accuracies are medians over them. Also the reasons why
/// figures are not drawn.
pub(in crate::report) fn sweep(sweep: &CollectedSweep, name: &str) -> Result<(Vec<Figure>, Vec<String>)> {
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
    // A figure for each combination of values of the other axes.
    let mut parts: BTreeMap<String, Vec<&Setting>> = BTreeMap::new();
    for setting in &settings {
        let texts = others
            .iter()
            .filter_map(|key| Some(format!("{} = {}", short(key), setting_text(setting.0.get(*key)?))));
        parts.entry(texts.collect::<Vec<_>>().join(", ")).or_default().push(setting);
    }
    let points = summary.runs.iter().filter_map(|run| run.row.points).min();
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
                        "There is no heat map of {} and {}{of_part}: {} has {} values, and a heat map has at most \
                         {MOST_PLACES}. The table has them all.",
                        short(across),
                        short(up),
                        short(axis),
                        places(settings, axis).len()
                    ));
                    continue;
                }
                for figure in accuracies(settings) {
                    let name = format!("{name}-map-{}", figures.len() + 1);
                    let interval = points.and_then(|points| interval(settings, &figure, points));
                    figures.push(heat_map(settings, (across, up), (&figure, interval), &of_part, &name)?);
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

/// The values on the axes and the figures of every finished setting.
fn settings(summary: &SavedSummary) -> Vec<Setting> {
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
            .filter(|run| run.row.status == Status::Finished)
            .map(|run| {
                let figures = run.row.figures.iter().map(|(name, value)| (name.to_owned(), value));
                (run.settings.clone(), figures.collect())
            })
            .collect(),
    }
}

/// The names of the shown accuracies.
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

/// How far the values of an accuracy are certain, if it was measured by evaluations on so many points
/// or more.
fn interval(settings: &[&Setting], figure: &str, points: usize) -> Option<String> {
    if OF_TRAINING.contains(&figure) {
        return None;
    }
    let halves = settings.iter().filter_map(|(_, figures)| {
        let (low, high) = confidence_interval(*figures.get(figure)?, points);
        Some((high - low) / 2.0)
    });
    let widest = halves.fold(0.0, f64::max);
    Some(format!(
        "The 95 % interval of a value reaches at most {:.1} to either side ({points} points).",
        100.0 * widest
    ))
}

fn heat_map(
    settings: &[&Setting],
    (across, up): (&str, &str),
    (figure, interval): (&str, Option<String>),
    of_part: &str,
    name: &str,
) -> Result<Figure> {
    const HEIGHT: i32 = 36;
    const TITLE: i32 = 36;
    let (columns, rows) = (places(settings, across), places(settings, up));
    // No label is cut, and none reaches into another.
    let widest =
        |places: &[f64]| places.iter().map(|place| width_of(&short_number(*place))).max().unwrap_or(0);
    let cell = (64.max(widest(&columns) + 8), HEIGHT);
    let (width, height) = (columns.len() as i32 * cell.0, rows.len() as i32 * cell.1);
    let beyond = |title: &str, side: i32| ((width_of(short(title)) - side) / 2).max(0);
    let left = (TITLE + widest(&rows) + 8).max(beyond(across, width) + 4);
    let (right, top) = (20.max(beyond(across, width) + 4), 12.max(beyond(up, height) + 4));
    let shares: Vec<_> = settings.iter().filter_map(|(_, figures)| figures.get(figure).copied()).collect();
    let (low, high) =
        (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
    let mut svg = String::new();
    {
        let size = ((left + width + right).max(260) as u32, (top + height + 60.max(top)) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let centred = |colour: RGBColor| label(colour).pos(Pos::new(HPos::Center, VPos::Center));
        for (values, figures) in settings {
            let Some(share) = figures.get(figure) else { continue };
            let column = columns.iter().position(|place| *place == value(values, across)).unwrap_or(0) as i32;
            let row = rows.iter().rev().position(|place| *place == value(values, up)).unwrap_or(0) as i32;
            let (left, top) = (left + column * cell.0, top + row * cell.1);
            let strength = if high > low { (share - low) / (high - low) } else { 1.0 };
            let (ground, ink) = heat(strength);
            area.draw(&Rectangle::new([(left, top), (left + cell.0 - 2, top + cell.1 - 2)], ground.filled()))
                .map_err(defect)?;
            let middle = (left + cell.0 / 2 - 1, top + cell.1 / 2 - 1);
            area.draw(&Text::new(format!("{:.1}", 100.0 * share), middle, centred(ink))).map_err(defect)?;
        }
        for (column, place) in columns.iter().enumerate() {
            let at = (left + column as i32 * cell.0 + cell.0 / 2, top + height + 12);
            area.draw(&Text::new(short_number(*place), at, centred(INK))).map_err(defect)?;
        }
        for (row, place) in rows.iter().rev().enumerate() {
            let at = (left - 8, top + row as i32 * cell.1 + cell.1 / 2);
            let style = label(INK).pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(short_number(*place), at, style)).map_err(defect)?;
        }
        let below = (left + width / 2, top + height + 38);
        area.draw(&Text::new(short(across).to_owned(), below, centred(INK))).map_err(defect)?;
        let turned = ("sans-serif", TEXT).into_font().transform(FontTransform::Rotate270).color(&INK);
        let style = turned.pos(Pos::new(HPos::Center, VPos::Center));
        area.draw(&Text::new(short(up).to_owned(), (18, top + height / 2), style)).map_err(defect)?;
        area.present().map_err(defect)?;
    }
    let title = format!("{} over {} and {}{of_part}", title(figure), short(across), short(up));
    Ok(Figure {
        name: name.to_owned(),
        alternative: format!("Heat map of {title}, from {:.1} to {:.1} per cent.", 100.0 * low, 100.0 * high),
        caption: format!(
            "Accuracy in per cent, from {:.1} (light) to {:.1} (dark); where seeds vary, their median.{}",
            100.0 * low,
            100.0 * high,
            interval.map(|interval| format!(" {interval}")).unwrap_or_default()
        ),
        title,
        svg,
    })
}

/// The colour of a field from 0 (lowest) to 1, and the colour of its text.
fn heat(strength: f64) -> (RGBColor, RGBColor) {
    const LOW: [f64; 3] = [247.0, 228.0, 200.0];
    const HIGH: [f64; 3] = [0.0, 75.0, 125.0];
    let [red, green, blue] =
        [0, 1, 2].map(|place| (LOW[place] + strength * (HIGH[place] - LOW[place])) as u8);
    (RGBColor(red, green, blue), if strength < 0.5 { BLACK } else { WHITE })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of a figure, its place, and whether it is turned.
    type Placed = (i32, i32, bool, String);

    /// The texts of a figure, and its size.
    fn texts(svg: &str) -> (Vec<Placed>, i32, i32) {
        let number = |tag: &str, key: &str| -> i32 {
            let (_, rest) = tag.split_once(&format!(" {key}=\"")).expect("an attribute");
            rest.split('"').next().expect("a value").parse().expect("a number")
        };
        let tags = svg.split("<text").skip(1).map(|tag| {
            let (tag, text) = tag.split_once('>').expect("a tag");
            let text = text.split("</text>").next().expect("a text").trim().to_owned();
            (number(tag, "x"), number(tag, "y"), tag.contains("rotate"), text)
        });
        let head = svg.split_once('>').expect("a tag").0;
        (tags.collect(), number(head, "width"), number(head, "height"))
    }

    #[test]
    fn titles_of_axes_are_not_cut_however_few_the_fields() {
        let (across, up) = ("sampler.an_option_with_a_long_name", "model.another_option_with_a_long_name");
        let setting = |place: f64| {
            let values = [(across, 0.0313725 * place), (up, 1e-7 * place)];
            let values = values.map(|(key, value)| (key.to_owned(), Value::from(value)));
            (values.into_iter().collect(), [("clean".to_owned(), 0.5)].into())
        };
        let settings = [setting(1.0), setting(2.0)];
        let settings: Vec<_> = settings.iter().collect();
        let map = heat_map(&settings, (across, up), ("clean", None), "", "map").expect("a figure");
        let (texts, width, height) = texts(&map.svg);
        for title in [across, up] {
            let (x, y, is_turned, _) = texts.iter().find(|(.., text)| text == title).expect("a title");
            let half = width_of(title) / 2;
            let (middle, room) = if *is_turned { (*y, height) } else { (*x, width) };
            assert!(middle - half >= 0 && middle + half <= room, "{title}: {middle} of {room}");
        }
        // Labels of rows end before the fields, and begin after the title.
        let (x, _, _, label) = texts.iter().find(|(.., text)| text == "1e-7").expect("a label");
        assert!(x - width_of(label) >= 26, "{x}");
    }
}
