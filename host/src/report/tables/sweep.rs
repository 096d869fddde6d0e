//! The tables of a sweep: every run, and every setting over its seeds.

use super::caveat_notes;
use crate::report::collect::CollectedSweep;
use crate::report::table::{Cell, Column, Table, empty, number, share, text};
use crate::sweep::summary::{COSTS, SECONDS, SavedGroup, SavedRow, SavedSummary, in_order, is_shown, title};
use crate::sweep::{axis, short};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The tables of a sweep: every run, and every setting over its seeds if they vary. None without a
/// summary.
pub(in crate::report) fn sweep(sweep: &CollectedSweep, name: &str) -> Vec<Table> {
    let Some(summary) = &sweep.summary else { return Vec::new() };
    let names = summary.runs.iter().flat_map(|run| run.row.figures.iter().map(|(name, _)| name));
    let names: BTreeSet<_> = names.filter(|name| is_shown(name)).collect();
    let figures = in_order(names.into_iter());
    let mut tables = vec![runs(summary, &sweep.name, name, &figures)];
    tables.extend(summary.groups.as_ref().map(|all| groups(summary, all, &sweep.name, name, &figures)));
    tables
}

/// Every run.
fn runs(summary: &SavedSummary, sweep: &str, name: &str, figures: &[String]) -> Table {
    let keys = keys(summary.runs.first().map(|run| &run.settings));
    let mut columns: Vec<Column<&SavedRow>> = keys
        .into_iter()
        .map(|key| Column::plain(short(key), move |run: &&SavedRow| setting(&run.settings, key)))
        .collect();
    columns.push(Column::new("status", |notes, SavedRow { run, row, .. }: &&SavedRow| {
        let mut status = text(row.status.name());
        if let Some(reason) = &row.reason {
            status.notes.push(notes.number(&format!("{run}: {reason}.")));
        }
        status.notes.extend(caveat_notes(notes, &row.caveats));
        status
    }));
    for name in figures {
        columns
            .push(Column::plain(title(name), move |run: &&SavedRow| figure(name, run.row.figures.get(name))));
    }
    let caption = format!("Sweep {sweep}: every run. Accuracies in per cent.");
    Table::new(name, &caption, &columns, &summary.runs)
}

/// Every setting over its seeds.
fn groups(
    summary: &SavedSummary,
    groups: &[SavedGroup],
    sweep: &str,
    name: &str,
    figures: &[String],
) -> Table {
    let keys = keys(groups.first().map(|group| &group.settings));
    let mut columns: Vec<Column<&SavedGroup>> = keys
        .iter()
        .map(|key| Column::plain(short(key), move |group: &&SavedGroup| setting(&group.settings, key)))
        .collect();
    columns.push(Column::new("finished", |notes, group: &&SavedGroup| {
        let is_of_group = |run: &&SavedRow| {
            keys.iter().all(|key| run.settings.get(key.as_str()) == group.settings.get(key.as_str()))
        };
        let of_group = summary.runs.iter().filter(is_of_group);
        let caveats = caveat_notes(notes, of_group.flat_map(|run| &run.row.caveats));
        Cell { notes: caveats, ..text(format!("{} of {}", group.finished, group.runs)) }
    }));
    for name in figures {
        let title = title(name);
        columns.push(Column::plain(format!("{title} (median)"), move |group: &&SavedGroup| {
            figure(name, group.figures.get(name).map(|over| over.median))
        }));
        columns.push(Column::plain(format!("{title} (worst)"), move |group: &&SavedGroup| {
            figure(name, group.figures.get(name).map(|over| over.worst))
        }));
    }
    let caption = format!("Sweep {sweep}: every setting over its seeds. Accuracies in per cent.");
    Table::new(&format!("{name}-seeds"), &caption, &columns, groups)
}

/// The keys of some settings.
fn keys(settings: Option<&Map<String, Value>>) -> Vec<&String> {
    settings.map(|settings| settings.keys().collect()).unwrap_or_default()
}

/// A setting as a cell.
fn setting(settings: &Map<String, Value>, key: &str) -> Cell {
    text(settings.get(key).map_or(String::new(), setting_text))
}

/// A value of an experiment or of an axis, for people.
pub(in crate::report) fn setting_text(value: &Value) -> String {
    match toml::Value::try_from(value) {
        Ok(value) => axis::text(&value),
        Err(_) => value.to_string(),
    }
}

/// A figure as a cell.
fn figure(name: &str, value: Option<f64>) -> Cell {
    match value {
        None => empty(),
        Some(value) if name == SECONDS => number(value, 1),
        Some(value) if COSTS.contains(&name) => number(value, 0),
        Some(value) => share(value),
    }
}
