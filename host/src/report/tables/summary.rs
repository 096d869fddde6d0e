//! The table of results: a row for each run, and the paper's rows below them.

use super::caveat_notes;
use super::measures::{Measure, best, found, measures};
use crate::config::{Experiment, Select};
use crate::report::collect::{Part, Run, SavedEvaluation};
use crate::report::method::{ball, ball_of, labels};
use crate::report::paper;
use crate::report::table::{Cell, Column, Content, Notes, Table, empty, number, share, text};
use crate::run::progress::EpochMetrics;
use std::collections::BTreeSet;

/// The subject of a row.
enum Subject<'a> {
    Run {
        run: &'a Run,
        /// The label of its method.
        method: String,
    },
    Paper(&'a paper::Column),
}

/// A column with one kind of cell for runs and another for the paper's rows.
fn column<'a>(
    header: impl ToString,
    of_run: impl Fn(&mut Notes, &Run) -> Cell + 'a,
    of_paper: impl Fn(&mut Notes, &paper::Column) -> Cell + 'a,
) -> Column<'a, &'a Subject<'a>> {
    Column::new(header, move |notes, subject: &&Subject| match subject {
        Subject::Run { run, .. } => of_run(notes, run),
        Subject::Paper(column) => of_paper(notes, column),
    })
}

/// Every run. The paper's rows stand below the last run that each corresponds to.
pub(in crate::report) fn summary(runs: &[Run]) -> Table {
    let of_paper: Vec<_> = runs.iter().map(|run| paper::column_of(&run.record)).collect();
    let mut subjects = Vec::new();
    for (place, (run, method)) in runs.iter().zip(labels(runs)).enumerate() {
        subjects.push(Subject::Run { run, method });
        if let Some(column) = of_paper[place]
            && !of_paper[place + 1..].iter().flatten().any(|later| std::ptr::eq(*later, column))
        {
            subjects.push(Subject::Paper(column));
        }
    }
    let caption = "Accuracies in per cent, with their 95 % intervals (Wilson) and the number of points. Training \
                   adversary: accuracy on the training particles in the last epoch; passes and seconds: of training.";
    let measures = measures(runs);
    let mut table = Table::new("summary", caption, &columns(&measures), &subjects);
    for (row, subject) in table.rows.iter_mut().zip(&subjects) {
        row.of_paper = matches!(subject, Subject::Paper(_));
    }
    table
}

/// The columns of the table of results.
fn columns<'a>(measures: &'a [Measure]) -> Vec<Column<'a, &'a Subject<'a>>> {
    let none = |_: &mut Notes, _: &paper::Column| empty();
    let mut columns = vec![
        column("run", name, |notes, column| name_in_paper(notes, column, measures)),
        Column::plain("method", |subject: &&Subject| match subject {
            Subject::Run { method, .. } => text(method),
            Subject::Paper(column) => text(format!("{}, {} epochs", column.sampler, column.epochs)),
        }),
        column("architecture", |_, run| text(&run.record.experiment.model), |_, column| text(&column.name)),
        column(
            "task",
            |_, run| {
                let Experiment { threat, .. } = &run.record.experiment;
                text(format!("{}, {}", run.record.data.name, ball_of(threat)))
            },
            |_, column| text(ball(column.threat.norm, column.threat.epsilon, None)),
        ),
        column(
            "passes per sample",
            |_, run| of_last(run, |epoch| number(epoch.passes_per_sample as f64, 0)),
            none,
        ),
        column(
            "seconds",
            |_, run| of_last(run, |epoch| number(epoch.seconds, 1)),
            |_, column| column.seconds.map_or(empty(), |seconds| number(seconds, 0)),
        ),
        column("seed", |_, run| seeds(run), none),
        column(
            "training adversary",
            |_, run| match run.record.experiment.sampler.0 {
                Some(_) => of_last(run, |epoch| share(epoch.train_accuracy)),
                None => empty(),
            },
            |_, column| printed(column, "train"),
        ),
        column(
            "clean",
            |notes, run| {
                let clean =
                    best(run.evaluations.iter().map(|evaluation| (evaluation, evaluation.result.clean)));
                measured(notes, run, clean.map(|(evaluation, share, _)| (evaluation, share, 1)))
            },
            |_, column| printed(column, "clean"),
        ),
    ];
    columns.extend(measures.iter().map(|measure| {
        column(
            &measure.name,
            |notes, run| {
                let found = run.evaluations.iter().flat_map(|evaluation| found(run, evaluation));
                let found = found.filter(|found| found.measure == *measure);
                measured(notes, run, best(found.map(|found| (found.evaluation, found.share))))
            },
            |notes, column| printed_under(notes, column, measure),
        )
    }));
    columns
}

/// The name of a run, with its gaps that the page marks in other places, and with what is to be known
/// about its data.
fn name(notes: &mut Notes, run: &Run) -> Cell {
    let mut name = text(&run.name);
    for gap in &run.gaps {
        if matches!(gap.part, Part::Curves | Part::Evaluations) {
            name.notes.push(notes.number(&format!("{}: {}", run.name, gap.what)));
        }
    }
    for finding in &run.record.data.findings {
        name.notes.push(notes.number(&format!("{}: {finding}", run.name)));
    }
    name
}

/// The seed of training, and those of the attacks if they differ from it.
fn seeds(run: &Run) -> Cell {
    let seed = run.record.experiment.train.seed;
    let others: BTreeSet<_> = run.evaluations.iter().map(|evaluation| evaluation.seed).collect();
    let others: Vec<_> =
        others.into_iter().filter(|other| *other != seed).map(|seed| seed.to_string()).collect();
    if others.is_empty() { text(seed) } else { text(format!("{seed} (attacks also {})", others.join(", "))) }
}

/// A cell about the last epoch.
fn of_last(run: &Run, cell: impl Fn(&EpochMetrics) -> Cell) -> Cell {
    run.epochs.last().map_or(empty(), cell)
}

/// An accuracy, with footnotes on its caveats, on other evaluations and on older weights.
fn measured(notes: &mut Notes, run: &Run, best: Option<(&SavedEvaluation, f64, usize)>) -> Cell {
    let Some((evaluation, share, count)) = best else { return empty() };
    let mut cell: Cell = Content::Share(share, Some(evaluation.points())).into();
    cell.notes.extend(caveat_notes(notes, evaluation.caveats()));
    if count > 1 {
        let note = "Measured several times (all of them are below): shown is that of the newest weights, of these the one \
                    on the most points, of these the latest.";
        cell.notes.push(notes.number(note));
    }
    let newest = run.epochs.last().map_or(0, |epoch| epoch.updates);
    match run.record.experiment.train.select {
        Select::Last if evaluation.update < newest => {
            let note = format!("{}: measured after {} of {newest} updates.", run.name, evaluation.update);
            cell.notes.push(notes.number(&note));
        }
        // The best weights may be those of any epoch.
        Select::Last | Select::Best => {}
    }
    cell
}

/// A figure of the paper.
fn printed(column: &paper::Column, figure: &str) -> Cell {
    column.share(figure).map_or(empty(), share)
}

/// The paper's name for a measure, if its attack took the same steps as the paper's.
fn figure_of(column: &paper::Column, measure: &Measure) -> Option<&'static str> {
    let (figure, step_size) = measure.in_paper?;
    step_size.is_none_or(|size| column.takes_steps_of(size)).then_some(figure)
}

/// The paper's accuracy under an attack.
fn printed_under(notes: &mut Notes, column: &paper::Column, measure: &Measure) -> Cell {
    let Some(figure) = figure_of(column, measure) else { return empty() };
    let mut cell = printed(column, figure);
    if let ("autoattack", Some(caveat)) = (figure, &column.caveat) {
        cell.notes.push(notes.number(caveat));
    }
    cell
}

/// The table of the paper, with the remarks on it and its caveat if no column shows it.
fn name_in_paper(notes: &mut Notes, column: &paper::Column, measures: &[Measure]) -> Cell {
    let mut cell = text(format!("paper, {}", column.table));
    let is_shown = measures.iter().any(|measure| figure_of(column, measure) == Some("autoattack"));
    if let (false, Some(caveat), Some(printed)) = (is_shown, &column.caveat, column.share("autoattack")) {
        let note = format!("The paper prints {:.2} for AutoAttack. {caveat}", 100.0 * printed);
        cell.notes.push(notes.number(&note));
    }
    if let Some(remark) = &column.remark {
        cell.notes.push(notes.number(remark));
    }
    cell.notes.push(notes.number(&format!("As printed in: {}.", paper::source())));
    cell
}
