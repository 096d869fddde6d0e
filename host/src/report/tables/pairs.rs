//! The table of a data check.

use crate::data::pairs::PairsOfKind;
use crate::report::collect::CollectedCheck;
use crate::report::table::{Column, Table, empty, number, text};
use indicatif::HumanCount;

/// A row: the pairs of one label, or those of two.
type Kind<'a> = (&'static str, &'a PairsOfKind);

/// The pairs of one label and those of two.
pub(in crate::report) fn pairs(collected: &CollectedCheck, name: &str) -> Table {
    let check = &collected.check;
    let found = &check.found;
    let columns = [
        Column::plain("labels of the pair", |(name, _): &Kind| text(name)),
        Column::plain("pairs within 2 epsilon", |(_, kind): &Kind| number(kind.within as f64, 0)),
        Column::plain("pairs of equal images", |(_, kind): &Kind| number(kind.equal as f64, 0)),
        Column::plain("smallest distance", |(_, kind): &Kind| {
            kind.smallest.map_or_else(empty, |distance| number(distance, 4))
        }),
    ];
    let caption = format!(
        "Distances ({}) between all {} pairs of the {} training points of {}; epsilon {}.",
        check.norm,
        HumanCount(found.compared),
        HumanCount(found.points as u64),
        collected.name,
        check.epsilon
    );
    let kinds = [("same", &found.same_label), ("different", &found.different_label)];
    Table::new(&format!("{name}-pairs"), &caption, &columns, kinds)
}
