use super::arguments::{EvalArguments, Network, style};
use super::signals::stop_on_signals;
use crate::config::{Data, Experiment, SamplerChoice, Train};
use crate::error::shown;
use crate::evaluation::finished::{AtRadius, FinishedEvaluation};
use crate::evaluation::setup::EvaluationSetup;
use crate::evaluation::shard::Shard;
use crate::evaluation::verdict::{AttackResult, Caveat, Evaluation, Order, confidence_interval};
use crate::plugin::Threat;
use crate::ranks::Ranks;
use crate::run::progress::Progress;
use crate::run::{self, RunRecord};
use crate::training;
use crate::util::console::{Style, begin, say, warn};
use crate::util::number::{Reals, counted, short_number};
use crate::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// `host eval` of one run
pub fn run(arguments: &EvalArguments) -> Result<u8> {
    let stop = stop_on_signals(&arguments.stop)?;
    begin(style(arguments.json));
    let ranks = arguments.ranks.join("eval")?;
    ranks.end(evaluate(arguments, &ranks, &stop))
}

fn evaluate(arguments: &EvalArguments, ranks: &Ranks, stop: &AtomicBool) -> Result<u8> {
    refuse_parts_of_processes(arguments, ranks)?;
    let network = arguments.foreign.network(&arguments.runs)?;
    ranks.agree(&[("command".to_owned(), run::command().get(1..).unwrap_or_default().join(" "))].into())?;
    let style = style(arguments.json);
    let path = match &network {
        Network::Run(_) if arguments.out.is_some() => {
            return Err(Error::new("--out: the verdicts of a run are saved in its own folder")
                .fix("leave it out; it is for a network from elsewhere, with --model"));
        }
        Network::Run(path) => path,
        Network::Foreign { model, data, init } => {
            let experiment = experiment(
                arguments,
                Experiment {
                    model: (*model).clone(),
                    data: Data { name: (*data).to_owned(), ..Data::default() },
                    train: Train { init: Some(init.clone()), ..Train::default() },
                    ..Experiment::default()
                },
            )?;
            let out = arguments.out.as_deref().ok_or_else(|| {
                Error::new("--model: expected --out too, a folder for the network and its verdicts")
            })?;
            if ranks.is_first() {
                training::adopt(experiment, out, stop)?;
            }
            out
        }
    };
    ranks.meet()?;
    let mut options = arguments.options.clone();
    if let Network::Foreign { .. } = network {
        // The same command means the same threat model, whatever the folder was made with.
        let Threat { norm, .. } = Threat::default();
        options.norm.get_or_insert(norm);
        options.channel_scale.get_or_insert_with(Reals::one);
    }
    let setup = EvaluationSetup::open_in(path, &options, ranks)?.with_style(style);
    let mut finished = match arguments.shard {
        Some(shard) => setup.evaluate_shard(path, shard, stop)?,
        None if arguments.merge => setup.merge(path, stop)?,
        None if ranks.is_alone() => setup.evaluate(path, stop)?,
        None => match evaluate_together(&setup, path, ranks, stop)? {
            Some(merged) => merged,
            None => return Ok(0),
        },
    };
    show(arguments, &finished, style);
    let failure = finished.failure.take();
    let has_caveats = !finished.caveats().is_empty();
    let shard = finished.shard();
    let saved = finished.save()?;
    if style == Style::Human {
        say(match shard {
            None => format!("verdicts of every point: {}", saved.verdicts.display()),
            Some(shard) => format!(
                "shard {shard} is kept in {}; once all {} are, give the same command with --merge instead of --shard",
                shown(&saved.verdicts),
                shard.count
            ),
        });
        for examples in saved.examples {
            say(format_args!("adversarial examples: {}", examples.display()));
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(u8::from(arguments.strict && has_caveats)),
    }
}

/// The experiment of a network from elsewhere, which is not trained.
fn experiment(arguments: &EvalArguments, network: Experiment) -> Result<Experiment> {
    let options = &arguments.options;
    let base = Threat { norm: options.norm.unwrap_or(network.threat.norm), ..network.threat.clone() };
    let largest = match &options.epsilon {
        Some(_) => options.threats(&base)?.pop(),
        None => None,
    };
    let threat = largest.ok_or_else(|| {
        Error::new("--epsilon: expected a radius: a network from elsewhere has no threat model of its own")
            .fix("give --epsilon, and --norm l2 if it is not a radius in linf; usual are 0.3 for MNIST and 8/255 for CIFAR-10")
    })?;
    let mut experiment = Experiment { sampler: SamplerChoice(None), threat, ..network };
    let train = &mut experiment.train;
    train.epochs = 0;
    train.threads = options.threads;
    if let Some(device) = &options.device {
        train.device.clone_from(device);
    }
    if let Some(folder) = &options.moved.data_folder {
        experiment.data.folder.clone_from(folder);
    }
    experiment.validate()?;
    Ok(experiment)
}

/// Refuses to say which part of an evaluation is meant where processes share the points.
fn refuse_parts_of_processes(arguments: &EvalArguments, ranks: &Ranks) -> Result<()> {
    let parts = [
        ("--shard", arguments.shard.is_some()),
        ("--merge", arguments.merge),
        ("--once", arguments.options.once),
    ];
    match parts.into_iter().find(|(_, is_given)| *is_given && !ranks.is_alone()) {
        None => Ok(()),
        Some((flag, _)) => {
            Err(Error::new(format!("{flag}: {} processes share the points by themselves", ranks.size()))
                .fix("leave it out, or start one process"))
        }
    }
}

/// Evaluates a shard in each process; the first one merges them.
fn evaluate_together(
    setup: &EvaluationSetup,
    path: &Path,
    ranks: &Ranks,
    stop: &AtomicBool,
) -> Result<Option<FinishedEvaluation>> {
    let shard = Shard { number: ranks.rank() + 1, count: ranks.size() };
    let mut finished = setup.evaluate_shard(path, shard, stop)?;
    if let Some(error) = finished.failure.take() {
        return Err(error);
    }
    finished.save()?;
    ranks.meet()?;
    if ranks.is_first() { setup.merge(path, stop).map(Some) } else { Ok(None) }
}

/// Prints each caveat as a warning that names its section of the documentation.
pub fn print_caveats(caveats: &[Caveat]) {
    for Caveat { name, finding } in caveats {
        warn(format_args!("{finding} (docs/evaluation.md, section {name})"));
    }
}

fn show(arguments: &EvalArguments, finished: &FinishedEvaluation, style: Style) {
    let FinishedEvaluation { outline, radii, run, .. } = finished;
    let source = arguments.options.source.as_ref();
    match (style, radii.as_slice()) {
        (Style::Json, [only]) => {
            let mut answer = json!(only.evaluation);
            answer["source"] = json!(source);
            answer["outline"] = json!(outline);
            answer_of_portion(&mut answer, finished);
            say(answer);
        }
        (Style::Json, radii) => {
            let evaluations = radii.iter().map(|at| {
                let mut evaluation = json!(at.evaluation);
                evaluation["threat"] = json!(at.threat);
                evaluation
            });
            let mut answer = json!({
                "outline": outline, "source": source, "curve": finished.curve(),
                "radii": evaluations.collect::<Vec<_>>(),
            });
            answer_of_portion(&mut answer, finished);
            say(answer);
        }
        (Style::Human, radii) => {
            let table = match radii {
                [only] => table(&only.evaluation),
                radii => curve_table(radii),
            };
            let count = radii.first().map_or(0, |at| at.evaluation.count);
            let points = arguments.options.points_name();
            let made_on = source.map(|source| format!("; examples made on {}", source.display()));
            let trained = trained(&run.record, &run.progress);
            say(format_args!("{table}\n{count} {points}; {trained}{}", made_on.unwrap_or_default()));
        }
    }
    print_caveats(&finished.caveats());
}

/// Adds which shard an evaluation is of, or how many it was merged from.
fn answer_of_portion(answer: &mut Value, finished: &FinishedEvaluation) {
    if let Some(shard) = finished.shard() {
        answer["shard"] = json!(shard);
    }
    if let Some(shards) = finished.merged_from() {
        answer["shards"] = shards.into();
    }
}

/// How the weights came about, for people.
fn trained(record: &RunRecord, progress: &Progress) -> String {
    match (&record.init, progress.epochs.last()) {
        (Some(init), None) if progress.update == 0 => format!("{}, not trained here", init.origin()),
        (_, None) => "trained for less than an epoch".to_owned(),
        (_, Some(last)) => format!(
            "trained for {}, {} passes per sample in {:.1} s",
            counted(last.epoch, "epoch"),
            last.passes_per_sample,
            last.seconds
        ),
    }
}

/// A share in per cent, and its interval.
fn percent(share: f64, count: usize) -> [String; 2] {
    let (low, high) = confidence_interval(share, count);
    [format!("{:.2}", 100.0 * share), format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)]
}

/// Passes per point and seconds of some attacks.
fn cost<'a>(attacks: impl IntoIterator<Item = &'a AttackResult>, count: usize) -> [String; 2] {
    let sums = |(passes, seconds): (f64, f64), attack: &AttackResult| {
        (passes + attack.cost.passes(), seconds + attack.cost.seconds)
    };
    let (passes, seconds) = attacks.into_iter().fold((0.0, 0.0), sums);
    [format!("{:.1}", passes / count as f64), format!("{seconds:.1}")]
}

/// A table with right-aligned columns of numbers.
fn empty_table<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The table for people, at one radius.
fn table(evaluation: &Evaluation) -> Table {
    let Evaluation { count, order, clean, attacks, worst_case, .. } = evaluation;
    let mut table = empty_table(["attack", "accuracy %", "95 % interval", "passes per point", "seconds"]);
    let row = |name: String, share: f64, cost: [String; 2]| {
        let ([accuracy, interval], [passes, seconds]) = (percent(share, *count), cost);
        [name, accuracy, interval, passes, seconds]
    };
    table.add_row(row("clean".to_owned(), *clean, Default::default()));
    for attack in attacks {
        let name = match order {
            Order::Separate => attack.attack.clone(),
            Order::Cascade => format!("then {}", attack.attack),
        };
        table.add_row(row(name, attack.robust, cost([attack], *count)));
    }
    if attacks.len() > 1 {
        table.add_row(row("worst case".to_owned(), *worst_case, cost(attacks, *count)));
    }
    table
}

/// The robustness curve for people: a row for each radius.
fn curve_table(radii: &[AtRadius]) -> Table {
    let attacks = radii.first().map_or(&[][..], |at| &at.evaluation.attacks);
    let names = attacks.iter().map(|attack| attack.attack.as_str());
    let header = ["epsilon"].into_iter().chain(names);
    let header = header.chain(["worst case %", "95 % interval", "passes per point", "seconds"]);
    let mut table = empty_table(header);
    if let Some(AtRadius { evaluation: Evaluation { count, clean, .. }, .. }) = radii.first() {
        let [accuracy, interval] = percent(*clean, *count);
        let clean = ["0 (clean)".to_owned()].into_iter().chain(attacks.iter().map(|_| String::new()));
        table.add_row(clean.chain([accuracy, interval, String::new(), String::new()]));
    }
    for AtRadius { threat, evaluation, .. } in radii {
        let Evaluation { count, worst_case, attacks: found, .. } = evaluation;
        let each = (0..attacks.len()).map(|number| {
            found.get(number).map_or(String::new(), |attack| format!("{:.2}", 100.0 * attack.robust))
        });
        let numbers = [percent(*worst_case, *count), cost(found, *count)].into_iter().flatten();
        table.add_row([short_number(threat.epsilon)].into_iter().chain(each).chain(numbers));
    }
    table
}
