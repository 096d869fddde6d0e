//! The table of every attack of every evaluation.

use super::caveat_notes;
use crate::evaluation::verdict::{AttackResult, Order};
use crate::report::collect::{Run, SavedEvaluation};
use crate::report::method::ball_of;
use crate::report::table::{Cell, Column, Content, Table, number, text};

/// An attack of an evaluation of a run.
struct Item<'a> {
    run: &'a Run,
    evaluation: &'a SavedEvaluation,
    attack: &'a AttackResult,
}

impl Item<'_> {
    /// An accuracy on the evaluation's points.
    fn share(&self, share: f64) -> Cell {
        Content::Share(share, Some(self.evaluation.points())).into()
    }
}

/// Every attack of every evaluation.
pub(in crate::report) fn evaluations(runs: &[Run]) -> Table {
    type Of<'a> = Column<'a, Item<'a>>;
    let columns = [
        Of::plain("run", |item| text(&item.run.name)),
        Of::new("attack", |notes, Item { evaluation, attack, .. }| {
            let mut cell = text(match evaluation.result.order {
                Order::Cascade => format!("then {}", attack.attack),
                Order::Separate => attack.attack.clone(),
            });
            if let Some(source) = &evaluation.source {
                cell.notes.push(notes.number(&format!("Examples made on {}.", source.display())));
            }
            cell.notes.extend(caveat_notes(notes, evaluation.caveats()));
            cell
        }),
        Of::plain("suite", |item| text(item.evaluation.suite.as_deref().unwrap_or_default())),
        Of::plain("ball", |item| {
            let threat = item.evaluation.threat(&item.run.record.experiment.threat);
            text(ball_of(&threat))
        }),
        Of::plain("robust", |item| item.share(item.attack.robust)),
        Of::plain("worst case", |item| item.share(item.evaluation.result.worst_case)),
        Of::plain("passes per point", |Item { evaluation, attack, .. }| {
            number(attack.cost.passes() / evaluation.points().max(1) as f64, 1)
        }),
        Of::plain("seconds", |item| number(item.attack.cost.seconds, 1)),
        Of::plain("restarts", |item| number(f64::from(item.evaluation.restarts), 0)),
        Of::plain("seed", |item| text(item.evaluation.seed)),
        Of::plain("update", |item| text(item.evaluation.update)),
        Of::plain("host", |item| text(&item.evaluation.versions.host)),
        Of::plain("libtorch", |item| text(&item.evaluation.versions.libtorch)),
    ];
    let caption = "Every evaluation, oldest first. In a suite, the accuracy after each attack in turn; worst case: \
                   the accuracy after all attacks of the evaluation.";
    let evaluations =
        runs.iter().flat_map(|run| run.evaluations.iter().map(move |evaluation| (run, evaluation)));
    let items = evaluations.flat_map(|(run, evaluation)| {
        evaluation.result.attacks.iter().map(move |attack| Item { run, evaluation, attack })
    });
    Table::new("evaluations", caption, &columns, items)
}
