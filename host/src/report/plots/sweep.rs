//! The accuracies of a sweep over its axes.

use super::Figure;
use super::chart::*;
use crate::Result;
use crate::report::collect::CollectedSweep;
use crate::report::tables::setting_text;
use crate::sweep::short;
use crate::sweep::summary::{COSTS, SavedSummary, Status, is_shown, title};
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

/// The colour of a field from 0 (lowest) to 1, and the colour of its text.
fn heat(strength: f64) -> (RGBColor, RGBColor) {
    const LOW: [f64; 3] = [247.0, 228.0, 200.0];
    const HIGH: [f64; 3] = [0.0, 75.0, 125.0];
    let [red, green, blue] =
        [0, 1, 2].map(|place| (LOW[place] + strength * (HIGH[place] - LOW[place])) as u8);
    (RGBColor(red, green, blue), if strength < 0.5 { BLACK } else { WHITE })
}
