use super::stop_on_signals;
use crate::command::arguments::{EvalArguments, style};
use crate::evaluation::setup::{EvaluationSetup, FinishedEvaluation};
use crate::evaluation::verdict::{Caveat, Evaluation, Order, confidence_interval};
use crate::run::progress::Progress;
use crate::util::console::{Style, say, warn};
use crate::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;

/// `host eval` of one run
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    let [path] = arguments.runs.as_slice() else {
        return Err(Error::new(format!("expected one run, got {}", arguments.runs.len()))
            .fix("evaluate them one by one, or give --transfer to attack each with examples of each"));
    };
    let stop = stop_on_signals()?;
    let style = style(arguments.json);
    let setup = EvaluationSetup::open(path, &arguments.options)?.with_style(style);
    let mut finished = setup.evaluate(path, &stop)?;
    show(arguments, &finished, style);
    let failure = finished.failure.take();
    let has_caveats = !finished.evaluation.caveats.is_empty();
    let saved = finished.save()?;
    if style == Style::Human {
        say(format_args!("verdicts of every point: {}", saved.verdicts.display()));
        if let Some(examples) = saved.examples {
            say(format_args!("adversarial examples: {}", examples.display()));
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(u8::from(arguments.strict && has_caveats)),
    }
}

/// Prints each caveat as a warning that names its section of the documentation.
pub fn print_caveats(caveats: &[Caveat]) {
    for Caveat { name, finding } in caveats {
        warn(format_args!("{finding} (docs/evaluation.md, section {name})"));
    }
}

fn show(arguments: &EvalArguments, finished: &FinishedEvaluation, style: Style) {
    let FinishedEvaluation { outline, evaluation, run, .. } = finished;
    let source = arguments.options.source.as_ref();
    match style {
        Style::Json => {
            let mut answer = json!(evaluation);
            answer["source"] = json!(source);
            answer["outline"] = json!(outline);
            say(answer);
        }
        Style::Human => {
            let table = table(evaluation, arguments.options.points_name(), &run.progress);
            let made_on = source.map(|source| format!("; examples made on {}", source.display()));
            say(format_args!("{table}{}", made_on.unwrap_or_default()));
        }
    }
    print_caveats(&evaluation.caveats);
}

/// The table for people.
fn table(evaluation: &Evaluation, points_name: &str, progress: &Progress) -> String {
    let Evaluation { count, order, clean, attacks, worst_case, .. } = evaluation;
    let percent = |share: f64| {
        let (low, high) = confidence_interval(share, *count);
        [format!("{:.2}", 100.0 * share), format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)]
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["attack", "accuracy %", "95 % interval", "passes per point", "seconds"]);
    let row = |name: &str, share: f64, cost: [String; 2]| {
        let [accuracy, interval] = percent(share);
        let [passes, seconds] = cost;
        [name.to_owned(), accuracy, interval, passes, seconds]
    };
    let cost =
        |passes: f64, seconds: f64| [format!("{:.1}", passes / *count as f64), format!("{seconds:.1}")];
    table.add_row(row("clean", *clean, [String::new(), String::new()]));
    for attack in attacks {
        let name = match order {
            Order::Separate => attack.attack.clone(),
            Order::Cascade => format!("then {}", attack.attack),
        };
        table.add_row(row(&name, attack.robust, cost(attack.cost.passes(), attack.cost.seconds)));
    }
    if attacks.len() > 1 {
        let passes = attacks.iter().map(|attack| attack.cost.passes()).sum();
        let seconds = attacks.iter().map(|attack| attack.cost.seconds).sum();
        table.add_row(row("worst case", *worst_case, cost(passes, seconds)));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let trained = progress.epochs.last().map_or("less than an epoch".to_owned(), |last| {
        format!(
            "{} epochs, {} passes per sample in {:.1} s",
            last.epoch, last.passes_per_sample, last.seconds
        )
    });
    format!("{table}\n{count} {points_name}; trained for {trained}")
}
