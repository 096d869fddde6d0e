//! The summary of a sweep, brought up to date with the folders of its runs.

use super::commands::sweep_command;
use super::{Gap, Part, RUN_FILE, last_part};
use crate::sweep::folder::SweepFolder;
use crate::sweep::summary::{Row, SavedSummary, Status, Summary};
use crate::{Error, Result};
use std::path::PathBuf;

/// A sweep's folder.
pub(crate) struct CollectedSweep {
    /// The last part of its path.
    pub name: String,
    /// Its summary; none if it cannot be read.
    pub summary: Option<SavedSummary>,
    /// The missing parts, and the differences from `summary.json`.
    pub gaps: Vec<Gap>,
}

/// A sweep, and the folders of those of its runs that were begun.
pub(super) fn read(folder: &SweepFolder) -> Result<(CollectedSweep, Vec<PathBuf>)> {
    let path = folder.path();
    let mut gaps = Vec::new();
    let mut gap = |what| gaps.push(Gap { part: Part::Evaluations, what, fix: sweep_command(folder) });
    let saved = folder.saved_summary();
    let updated = updated(saved.as_ref().ok(), folder);
    let summary = match (saved, updated) {
        (Ok(saved), Ok(None)) => Some(saved),
        (Ok(_), Ok(Some((updated, changed)))) => {
            if !changed.is_empty() {
                gap(format!(
                    "the sweep's summary.json is old: shown are the contents of the runs' folders for {}",
                    changed.join("; ")
                ));
            }
            Some(updated)
        }
        (Ok(saved), Err(why)) => {
            gap(format!(
                "the sweep's summary.json may be old, and cannot be compared with its runs: {}",
                why.first_line()
            ));
            Some(saved)
        }
        (Err(why), Ok(Some((updated, _)))) => {
            gap(format!("{}: shown are the contents of the runs' folders", why.first_line()));
            Some(updated)
        }
        (Err(why), Ok(None)) | (Err(_), Err(why)) => {
            gap(format!("the sweep's summary cannot be shown: {}", why.first_line()));
            None
        }
    };
    for run in summary.iter().flat_map(|summary| &summary.runs) {
        let has_folder = match run.row.status {
            Status::Waiting | Status::Failed => false,
            Status::Unfinished | Status::Trained | Status::Finished => true,
        };
        if has_folder && !folder.has_begun(&run.run) {
            gap(format!(
                "{} is {} by the sweep's summary.json, but its folder is gone: there is no more to show of it",
                run.run,
                run.row.status.name()
            ));
        }
    }
    let runs: Vec<_> = match &summary {
        Some(summary) => summary.runs.iter().map(|run| folder.file(&run.run)).collect(),
        None => {
            let entries = std::fs::read_dir(path).map_err(|why| Error::file("read", path, why))?;
            let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            folders.sort();
            folders
        }
    };
    let begun = runs.into_iter().filter(|run| run.join(RUN_FILE).is_file()).collect();
    Ok((CollectedSweep { name: last_part(path), summary, gaps }, begun))
}

/// The summary of the runs' folders, and the names of the runs that differ from the saved summary.
/// A saved summary is old if the sweep was killed, or its runs were resumed without it. Runs
/// without a folder keep their saved rows. None if no run has a folder.
fn updated(
    saved: Option<&SavedSummary>,
    folder: &SweepFolder,
) -> Result<Option<(SavedSummary, Vec<String>)>> {
    let saved = saved.map(|saved| saved.runs.as_slice()).unwrap_or_default();
    if !saved.is_empty() && !saved.iter().any(|run| folder.has_begun(&run.run)) {
        return Ok(None);
    }
    let sweep = folder.sweep()?;
    let (mut changed, mut rows) = (Vec::new(), Vec::new());
    for setting in &sweep.settings {
        let known = saved.iter().find(|run| run.run == setting.name).map(|run| &run.row);
        let row = match known {
            Some(known) if !folder.has_begun(&setting.name) => known.clone(),
            _ => folder.row(&sweep, setting),
        };
        if !known.is_some_and(|known: &Row| known.agrees_with(&row)) {
            changed.push(setting.name.clone());
        }
        rows.push(row);
    }
    Ok(Some((Summary::new(&sweep, rows).saved(), changed)))
}
