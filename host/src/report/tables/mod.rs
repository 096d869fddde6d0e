//! The tables of a report.

mod diagnosis;
mod evaluations;
mod measures;
mod pairs;
mod provenance;
mod radii;
mod summary;
mod sweep;

pub(super) use diagnosis::diagnosis;
pub(super) use evaluations::evaluations;
pub(super) use measures::{Curve, curves};
pub(super) use pairs::pairs;
pub(super) use provenance::{plugins, provenance};
pub(super) use radii::radii;
pub(super) use summary::summary;
pub(super) use sweep::{setting_text, sweep};

use super::table::Notes;
use crate::evaluation::verdict::Caveat;

/// The numbers of the footnotes on caveats.
fn caveat_notes<'a>(notes: &mut Notes, caveats: impl IntoIterator<Item = &'a Caveat>) -> Vec<usize> {
    let mut numbers: Vec<_> = caveats
        .into_iter()
        .map(|Caveat { name, finding }| notes.number(&format!("Caveat ({name}): {finding}.")))
        .collect();
    numbers.dedup();
    numbers
}
