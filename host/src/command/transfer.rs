use super::eval::print_caveats;
use super::signals::stop_on_signals;
use crate::Result;
use crate::command::arguments::{EvalArguments, style};
use crate::evaluation::transfer::transfer_with_style;
use crate::util::console::{begin, say};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

/// `host eval A B C --transfer`: every model against the examples made on every model.
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    let (options, style) = (&arguments.options, style(arguments.json));
    let stop = stop_on_signals(&arguments.stop)?;
    begin(style);
    let matrix = transfer_with_style(&arguments.runs, options, style, &stop)?;
    let names: Vec<_> = arguments.runs.iter().map(|path| path.display().to_string()).collect();
    let (count, clean, worst_case) = (matrix.count(), matrix.clean(), matrix.worst_case());
    if arguments.json {
        say(json!({
            "outline": matrix.outline, "runs": names, "points": count, "clean": clean, "worst_case": worst_case,
            "evaluations": matrix.evaluations, "caveats": matrix.caveats, "threat": matrix.threat,
            "seed": matrix.seed, "batch": matrix.batch, "arithmetic": matrix.arithmetic,
        }));
    } else {
        say(table(&names, &clean, &worst_case));
        let (points_name, attacks) = (options.points_name(), matrix.attack_count);
        say(format_args!("accuracy % on {count} {points_name}, worst case over {attacks} attacks"));
    }
    print_caveats(&matrix.caveats);
    let has_caveats = !matrix.caveats.is_empty();
    matrix.discard_journals()?;
    Ok(u8::from(arguments.strict && has_caveats))
}

/// A table with a row for each model that examples are made on and a column for each attacked
/// model.
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
