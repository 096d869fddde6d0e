use super::eval::{Bench, Subject, look_at_models, points_name, tell, wanted_points};
use super::stop_on_signals;
use crate::command::arguments::EvalArguments;
use crate::evaluation::journal::Journal;
use crate::evaluation::verdict::Caveat;
use crate::util::console::{Style, say};
use crate::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use std::path::PathBuf;

/// `host eval A B C --transfer`: every model against the examples made on every model.
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    if arguments.runs.len() < 2 {
        return Err(Error::new(format!(
            "--transfer: expected two runs or more, got {}",
            arguments.runs.len()
        )));
    }
    refuse_repetition(&arguments.runs)?;
    let stop = stop_on_signals()?;
    let bench = Bench::open(&arguments.runs[0], arguments)?;
    let subjects: Vec<Subject> =
        arguments.runs.iter().map(|path| bench.subject(path, arguments)).collect::<Result<_>>()?;
    let first = &subjects[0].record.experiment;
    for (path, subject) in arguments.runs.iter().zip(&subjects) {
        let (expected, got) = (first.threat, subject.record.experiment.threat);
        if got != expected {
            return Err(Error::new(format!(
                "{} has another threat model: expected {} as in {}, got {}",
                path.display(),
                json!(expected),
                arguments.runs[0].display(),
                json!(got)
            )));
        }
    }
    let (attacks, mut doubts) = bench.attacks(arguments, &subjects[0].record)?;
    // Each field has a journal, which stays until the matrix is whole.
    let (mut matrix, mut journals, mut goes_on) = (Vec::new(), Vec::new(), false);
    for source in &subjects {
        let mut row = Vec::new();
        for (path, target) in arguments.runs.iter().zip(&subjects) {
            // Set up alike for all: one row's examples differ by the points that are attacked alone.
            let evaluator = bench.evaluator(arguments, first, target, source, &stop);
            let points = evaluator.choose_points(wanted_points(arguments, first))?;
            let found = match std::ptr::eq(source, target) {
                true => look_at_models(&evaluator, &points)?,
                false => Vec::new(),
            };
            let (journal, before) =
                bench.journal(arguments, &evaluator, target, Some(source), &attacks, &points)?;
            if before.is_some() && !goes_on && evaluator.style == Style::Human {
                say("going on with this matrix, which was interrupted");
            }
            goes_on |= before.is_some();
            let evaluation = match evaluator.run(&attacks, points, before, Some(&journal)) {
                Ok((evaluation, None)) => evaluation,
                Ok((_, Some(failure))) | Err(failure) => {
                    return Err(journal.abandon(failure, !journals.is_empty()));
                }
            };
            journals.push(journal);
            let changes = target.changes.iter().filter(|_| std::ptr::eq(source, target));
            for doubt in changes.chain(&found).chain(&evaluation.doubts) {
                let finding = format!("{}: {}", path.display(), doubt.finding);
                doubts.push(Caveat { finding, name: doubt.name.clone() });
            }
            row.push(evaluation);
        }
        matrix.push(row);
    }
    let names: Vec<_> = arguments.runs.iter().map(|path| path.display().to_string()).collect();
    let worst: Vec<Vec<f64>> =
        matrix.iter().map(|row| row.iter().map(|evaluation| evaluation.worst_case).collect()).collect();
    let clean: Vec<f64> = matrix[0].iter().map(|evaluation| evaluation.clean).collect();
    if arguments.json {
        say(json!({
            "runs": names, "points": matrix[0][0].points, "clean": clean, "worst_case": worst,
            "evaluations": matrix, "doubts": doubts, "threat": first.threat,
            "seed": arguments.seed.unwrap_or(first.train.seed),
            "batch": arguments.batch.unwrap_or(first.eval.batch),
        }));
    } else {
        say(table(&names, &clean, &worst));
        say(format_args!(
            "accuracy % on {} {}, worst case over {} attacks",
            matrix[0][0].points,
            points_name(arguments),
            attacks.len()
        ));
    }
    tell(&doubts);
    journals.into_iter().try_for_each(Journal::discard)?;
    Ok(u8::from(arguments.strict && !doubts.is_empty()))
}

/// A run that is named twice would wait for itself.
fn refuse_repetition(runs: &[PathBuf]) -> Result<()> {
    let folders: Vec<_> = runs.iter().map(|path| path.canonicalize().unwrap_or(path.clone())).collect();
    match (1..runs.len()).find(|run| folders[..*run].contains(&folders[*run])) {
        Some(run) => {
            Err(Error::new(format!("--transfer: expected different runs, got {} twice", runs[run].display())))
        }
        None => Ok(()),
    }
}

/// A row for each model that examples are made on, a column for each that is attacked.
fn table(names: &[String], clean: &[f64], worst: &[Vec<f64>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(std::iter::once("examples made on".to_owned()).chain(names.iter().cloned()));
    let rows = std::iter::once(("none (clean)".to_owned(), clean))
        .chain(names.iter().cloned().zip(worst.iter().map(Vec::as_slice)));
    for (name, shares) in rows {
        let shares = shares.iter().map(|share| format!("{:.2}", 100.0 * share));
        table.add_row(std::iter::once(name).chain(shares));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
