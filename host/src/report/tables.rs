//! The tables of a report, once for every format.

use super::collect::{Evaluated, Part, Run, Summary, SummaryRow, Sweep, shell_words};
use super::paper::{self, Column};
use crate::config::Objective;
use crate::config::{Experiment, Mode, Select};
use crate::evaluation::verdict::Caveat;
use crate::evaluation::verdict::{Order, confidence_interval};
use crate::plugin::{PluginSpec, Record};
use crate::run::progress::EpochMetrics;
use crate::sweep::summary::{COSTS, OF_TRAINING, SECONDS, csv, is_shown, title};
use crate::sweep::{axis, short};
use crate::torch::precision::Precision;
use plugin_api::Norm;
use serde_json::Value;
use std::fmt::Write;

/// A table.
pub struct Table {
    /// What its files are called.
    pub name: String,
    /// What it shows.
    pub caption: String,
    /// The columns' names.
    pub header: Vec<String>,
    /// The rows; the first cell of each says what the row is about.
    pub rows: Vec<Row>,
    /// Footnotes, numbered from 1.
    pub notes: Vec<String>,
}

/// A row of a table.
#[derive(Default)]
pub struct Row {
    /// Its cells, as many as the table has columns.
    pub cells: Vec<Cell>,
    /// Whether its figures are the paper's.
    pub of_paper: bool,
}

/// A cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What it says.
    pub content: Content,
    /// Numbers of the footnotes that belong to it.
    pub notes: Vec<usize>,
}

/// What a cell says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Nothing is known.
    Empty,
    /// Words.
    Text(String),
    /// A number, and how many decimals are shown.
    Number(f64, usize),
    /// An accuracy, from 0 to 1, and on how many points it was measured if that is known.
    Share(f64, Option<usize>),
}

impl From<Content> for Cell {
    fn from(content: Content) -> Self {
        Self { content, notes: Vec::new() }
    }
}

fn text(text: impl ToString) -> Cell {
    Content::Text(text.to_string()).into()
}

fn number(number: f64, decimals: usize) -> Cell {
    Content::Number(number, decimals).into()
}

fn empty() -> Cell {
    Content::Empty.into()
}

impl Content {
    /// The main value for people: accuracies in per cent.
    pub fn shown(&self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Text(text) => text.clone(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::Share(share, _) => format!("{:.2}", 100.0 * share),
        }
    }

    /// How sure an accuracy is, for people: its interval, and the number of points.
    pub fn certainty(&self) -> Option<[String; 2]> {
        let Self::Share(share, Some(points)) = self else { return None };
        let (low, high) = confidence_interval(*share, *points);
        Some([format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high), format!("{points} points")])
    }

    /// Whether it is to be set flush right.
    pub fn is_number(&self) -> bool {
        matches!(self, Self::Number(..) | Self::Share(..))
    }
}

impl Table {
    fn new<Name: ToString>(name: &str, caption: &str, header: impl IntoIterator<Item = Name>) -> Self {
        let header = header.into_iter().map(|name| name.to_string()).collect();
        Self {
            name: name.to_owned(),
            caption: caption.to_owned(),
            header,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn add(&mut self, cells: Vec<Cell>) {
        self.rows.push(Row { cells, of_paper: false });
    }

    /// The number of a footnote, which it has already or gets.
    fn note(&mut self, text: &str) -> usize {
        let known = self.notes.iter().position(|note| note == text);
        1 + known.unwrap_or_else(|| {
            self.notes.push(text.to_owned());
            self.notes.len() - 1
        })
    }

    /// As Markdown, footnotes below.
    pub fn markdown(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('|', "\\|").replace('\n', " ");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut markdown = format!("**{}**\n\n", self.caption);
        markdown += &line(self.header.iter().map(|name| escape(name)).collect());
        let numeric = |column: usize| self.rows.iter().any(|row| row.cells[column].content.is_number());
        let rules = (0..self.header.len()).map(|column| if numeric(column) { "---:" } else { "---" });
        markdown += &line(rules.map(str::to_owned).collect());
        for row in &self.rows {
            let cell = |Cell { content, notes }: &Cell| {
                let mut cell = escape(&content.shown());
                if let Some(certainty) = content.certainty() {
                    let _ = write!(cell, " ({})", certainty.join("; "));
                }
                notes.iter().for_each(|note| cell += &format!(" [{note}]"));
                cell
            };
            markdown += &line(row.cells.iter().map(cell).collect());
        }
        for (number, note) in (1..).zip(&self.notes) {
            let _ = write!(markdown, "\n[{number}] {}\n", escape(note));
        }
        markdown
    }

    /// As comma-separated values: accuracies from 0 to 1, each measured one with its interval and
    /// number of points; footnotes in the last column.
    pub fn csv(&self) -> String {
        let columns: Vec<_> = (0..self.header.len()).collect();
        let measured = |column: &usize| {
            self.rows.iter().any(|row| matches!(row.cells[*column].content, Content::Share(_, Some(_))))
        };
        let mut header = Vec::new();
        for column in &columns {
            let name = &self.header[*column];
            header.push(name.clone());
            if measured(column) {
                header.extend(["low", "high", "points"].map(|what| format!("{name}, {what}")));
            }
        }
        if !self.notes.is_empty() {
            header.push("notes".to_owned());
        }
        let mut lines = vec![header];
        for row in &self.rows {
            let mut line = Vec::new();
            for column in &columns {
                let content = &row.cells[*column].content;
                line.push(match content {
                    Content::Number(number, _) | Content::Share(number, _) => number.to_string(),
                    other => other.shown(),
                });
                if measured(column) {
                    line.extend(match content {
                        Content::Share(share, Some(points)) => {
                            let (low, high) = confidence_interval(*share, *points);
                            [low.to_string(), high.to_string(), points.to_string()]
                        }
                        _ => Default::default(),
                    });
                }
            }
            if !self.notes.is_empty() {
                let numbers = row.cells.iter().flat_map(|cell| &cell.notes);
                let notes: Vec<_> = numbers.map(|number| self.notes[number - 1].as_str()).collect();
                line.push(notes.join("; "));
            }
            lines.push(line);
        }
        csv(&lines)
    }
}

/// A column of robust accuracies: an attack on its own, or a suite.
#[derive(Debug, Clone, PartialEq)]
struct Measure {
    name: String,
    /// The attack's plugin and its steps; none for a suite.
    attack: Option<(String, Option<usize>)>,
    /// What the paper calls it, and the length of PGD's steps.
    in_paper: Option<(&'static str, Option<f64>)>,
}

/// A share with what it was measured on.
struct Found<'a> {
    measure: Measure,
    share: f64,
    evaluation: &'a Evaluated,
}

/// What an evaluation found, by measure.
fn found(evaluation: &Evaluated) -> Vec<Found<'_>> {
    let Evaluated { result, suite, source, restarts, plugins, .. } = evaluation;
    let elsewhere = source.as_ref().map_or(String::new(), |source| format!(", made on {}", source.display()));
    let often = if *restarts > 1 { format!(", {restarts} restarts") } else { String::new() };
    let own = elsewhere.is_empty() && often.is_empty();
    if let Some(suite) = suite {
        let in_paper = (own && suite == "autoattack").then_some(("autoattack", None));
        let name = format!("{suite}{often}{elsewhere}");
        let measure = Measure { name, attack: None, in_paper };
        return vec![Found { measure, share: result.worst_case, evaluation }];
    }
    let measures = result.attacks.iter().enumerate().map(|(number, attack)| {
        let spec = attack.attack.parse::<PluginSpec>().ok();
        let steps = spec.as_ref().and_then(PluginSpec::steps);
        let plugin = plugins.get(number).map_or("", |record| &record.manifest.name);
        let in_paper = spec.filter(|_| own).and_then(|spec| paper::attack_name(plugin, &spec));
        let name = format!("{}{often}{elsewhere}", attack.attack);
        let measure = Measure { name, attack: Some((plugin.to_owned(), steps)), in_paper };
        Found { measure, share: attack.robust, evaluation }
    });
    measures.collect()
}

/// Of several evaluations the one of the newest weights, of these the one on the most points, of
/// these the latest; and how many there were.
fn best<'a, T>(found: impl Iterator<Item = (&'a Evaluated, T)>) -> Option<(&'a Evaluated, T, usize)> {
    let mut count = 0;
    let best = found.inspect(|_| count += 1).reduce(|one, other| {
        let rank = |(evaluation, _): &(&Evaluated, T)| (evaluation.update, evaluation.result.count);
        if rank(&other) >= rank(&one) { other } else { one }
    });
    best.map(|(evaluation, value)| (evaluation, value, count))
}

fn measures(runs: &[Run]) -> Vec<Measure> {
    let mut measures: Vec<Measure> = Vec::new();
    for found in runs.iter().flat_map(|run| &run.evaluations).flat_map(found) {
        if !measures.contains(&found.measure) {
            measures.push(found.measure);
        }
    }
    // From the weakest, as tables of papers have them: FGSM, PGD by its steps, others, suites.
    measures.sort_by_key(|measure| match &measure.attack {
        Some((plugin, _)) if plugin == "fgsm" => (0, None),
        Some((plugin, steps)) if plugin == "pgd" => (1, *steps),
        Some(_) => (2, None),
        None => (3, None),
    });
    measures
}

/// Every run, and the paper's rows below the last run that each corresponds to.
pub fn summary(runs: &[Run]) -> Table {
    const FIXED: [&str; 9] = [
        "run",
        "method",
        "architecture",
        "task",
        "passes per sample",
        "seconds",
        "seed",
        "training adversary",
        "clean",
    ];
    let measures = measures(runs);
    let header =
        FIXED.into_iter().map(str::to_owned).chain(measures.iter().map(|measure| measure.name.clone()));
    let caption = "Accuracies in per cent, with their 95 % intervals (Wilson) and the number of points. Training \
                   adversary: accuracy on the training particles in the last epoch; passes and seconds: of training.";
    let mut table = Table::new("summary", caption, header);
    let columns: Vec<_> = runs.iter().map(|run| paper::column_of(&run.record)).collect();
    for (place, run) in runs.iter().enumerate() {
        let cells = summary_row(&mut table, run, &measures);
        table.add(cells);
        if let Some(column) = columns[place]
            && !columns[place + 1..].iter().flatten().any(|later| std::ptr::eq(*later, column))
        {
            let cells = paper_row(&mut table, column, &measures);
            table.rows.push(Row { cells, of_paper: true });
        }
    }
    table
}

fn summary_row(table: &mut Table, run: &Run, measures: &[Measure]) -> Vec<Cell> {
    let Experiment { model, threat, train, .. } = &run.record.experiment;
    let mut name = text(&run.name);
    for gap in &run.gaps {
        // The rest is told where it is missing.
        if matches!(gap.part, Part::Curves | Part::Evaluations) {
            name.notes.push(table.note(&format!("{}: {}", run.name, gap.what)));
        }
    }
    let seeds: Vec<_> = run.evaluations.iter().map(|evaluation| evaluation.seed).collect();
    let others = seeds.iter().filter(|seed| **seed != train.seed).collect::<std::collections::BTreeSet<_>>();
    let mut seed = train.seed.to_string();
    if !others.is_empty() {
        let others: Vec<_> = others.iter().map(|seed| seed.to_string()).collect();
        seed += &format!(" (attacks also {})", others.join(", "));
    }
    let last = run.epochs.last();
    let of_last = |cell: &dyn Fn(&EpochMetrics) -> Cell| last.map_or(empty(), cell);
    let mut cells = vec![
        name,
        text(method(&run.record.experiment, run.epochs.last())),
        text(model),
        text(format!("{}, {}", run.record.data.name, ball(threat.norm, threat.epsilon))),
        of_last(&|epoch| number(epoch.passes_per_sample as f64, 0)),
        of_last(&|epoch| number(epoch.seconds, 1)),
        text(seed),
        match run.record.experiment.sampler.0 {
            Some(_) => of_last(&|epoch| Content::Share(epoch.train_accuracy, None).into()),
            None => empty(),
        },
    ];
    let clean = best(run.evaluations.iter().map(|evaluation| (evaluation, evaluation.result.clean)));
    cells.push(measured(table, run, clean.map(|(evaluation, share, _)| (evaluation, share, 1))));
    for measure in measures {
        let found = run.evaluations.iter().flat_map(found).filter(|found| found.measure == *measure);
        let best = best(found.map(|found| (found.evaluation, found.share)));
        cells.push(measured(table, run, best));
    }
    cells
}

/// An accuracy, with what there is to say about it.
fn measured(table: &mut Table, run: &Run, best: Option<(&Evaluated, f64, usize)>) -> Cell {
    let Some((evaluation, share, count)) = best else { return empty() };
    let mut cell: Cell = Content::Share(share, Some(evaluation.result.count)).into();
    for doubt in &evaluation.result.caveats {
        cell.notes.push(table.note(&format!("Caveat ({}): {}.", doubt.name, doubt.finding)));
    }
    if count > 1 {
        let note = "Measured several times (all of them are below): shown is that of the newest weights, of these the one \
                    on the most points, of these the latest.";
        cell.notes.push(table.note(note));
    }
    let newest = run.epochs.last().map_or(0, |epoch| epoch.updates);
    if run.record.experiment.train.select == Select::Last && evaluation.update < newest {
        let note = format!("{}: measured after {} of {newest} updates.", run.name, evaluation.update);
        cell.notes.push(table.note(&note));
    }
    cell.notes.dedup();
    cell
}

fn paper_row(table: &mut Table, column: &Column, measures: &[Measure]) -> Vec<Cell> {
    let share =
        |figure: &str| column.share(figure).map_or(empty(), |share| Content::Share(share, None).into());
    let mut cells = vec![
        text(format!("paper, {}", column.table)),
        text(format!("{}, {} epochs", column.sampler, column.epochs)),
        text(&column.name),
        text(ball(column.threat.norm, column.threat.epsilon)),
        empty(),
        column.seconds.map_or(empty(), |seconds| number(seconds, 0)),
        empty(),
        share("train"),
        share("clean"),
    ];
    let mut suite_shown = false;
    for measure in measures {
        let same = |(_, steps): &(_, Option<f64>)| steps.is_none_or(|size| column.takes_steps_of(size));
        let figure = measure.in_paper.filter(same).map(|(figure, _)| figure);
        let mut cell = figure.map_or(empty(), share);
        if let (Some("autoattack"), Some(doubt)) = (figure, &column.doubt) {
            cell.notes.push(table.note(doubt));
            suite_shown = true;
        }
        cells.push(cell);
    }
    if let (false, Some(doubt), Some(printed)) = (suite_shown, &column.doubt, column.share("autoattack")) {
        let note = format!("The paper prints {:.2} for AutoAttack. {doubt}", 100.0 * printed);
        cells[0].notes.push(table.note(&note));
    }
    if let Some(remark) = &column.remark {
        cells[0].notes.push(table.note(remark));
    }
    cells[0].notes.push(table.note(&format!("As printed in: {}.", paper::source())));
    cells
}

/// How a run was trained: its sampler, its mode, its epochs, and what else is not the default.
fn method(experiment: &Experiment, last: Option<&EpochMetrics>) -> String {
    let train = &experiment.train;
    let mut method = match &experiment.sampler.0 {
        None => "ordinary training".to_owned(),
        Some(sampler) => {
            let mode = if train.mode == Mode::Fused { "fused" } else { "faithful" };
            format!("{sampler}; {mode}")
        }
    };
    if train.replay > 1 {
        let _ = write!(method, ", {} replays", train.replay);
    }
    if train.epsilon_scale != 1.0 {
        let _ = write!(method, "; in {} epsilon", train.epsilon_scale);
    }
    if train.particles > 1 {
        let _ = write!(method, "; {} particles", train.particles);
    }
    if train.objective == Objective::Trades {
        let _ = write!(method, "; TRADES, beta {}", train.trades_beta());
    }
    if train.average > 0.0 || train.swa_from.is_some() {
        method += "; averaged weights";
    }
    let (done, all) = (last.map_or(0, |epoch| epoch.epoch), train.epochs);
    let of_all = if done == all { String::new() } else { format!("{done} of ") };
    let _ = write!(method, "; {of_all}{all} {}", if all == 1 { "epoch" } else { "epochs" });
    if let Some(points) = experiment.data.train_points {
        let _ = write!(method, " of {points} points");
    }
    if train.precision == Precision::Bf16 {
        method += "; bf16";
    }
    method
}

/// A ball as the field writes it: `linf 0.3`, `linf 8/255`.
fn ball(norm: Norm, epsilon: f64) -> String {
    const SHORT: usize = 6;
    let norm = match norm {
        Norm::Linf => "linf",
        Norm::L2 => "l2",
    };
    let levels = 255.0 * epsilon;
    match epsilon.to_string() {
        short if short.len() <= SHORT => format!("{norm} {short}"),
        _ if (levels - levels.round()).abs() < 1e-6 => format!("{norm} {levels:.0}/255"),
        long => format!("{norm} {long}"),
    }
}

/// Every attack of every evaluation.
pub fn evaluations(runs: &[Run]) -> Table {
    let header = [
        "run",
        "attack",
        "suite",
        "robust",
        "worst case",
        "passes per point",
        "seconds",
        "restarts",
        "seed",
        "update",
        "host",
        "libtorch",
    ];
    let caption = "Every evaluation, oldest first. In a suite, what still stands after each attack in turn; worst \
                   case: what stands after all attacks of the evaluation.";
    let mut table = Table::new("evaluations", caption, header);
    for run in runs {
        for evaluation in &run.evaluations {
            let Evaluated { result, suite, source, restarts, seed, update, versions, .. } = evaluation;
            let points = result.count;
            let share = |share| Cell::from(Content::Share(share, Some(points)));
            for attack in &result.attacks {
                let then = if result.order == Order::Cascade { "then " } else { "" };
                let mut name = text(format!("{then}{}", attack.attack));
                if let Some(source) = source {
                    name.notes.push(table.note(&format!("Examples made on {}.", source.display())));
                }
                for doubt in &result.caveats {
                    name.notes.push(table.note(&format!("Caveat ({}): {}.", doubt.name, doubt.finding)));
                }
                table.add(vec![
                    text(&run.name),
                    name,
                    text(suite.as_deref().unwrap_or_default()),
                    share(attack.robust),
                    share(result.worst_case),
                    number(attack.cost.passes() / points.max(1) as f64, 1),
                    number(attack.cost.seconds, 1),
                    number(f64::from(*restarts), 0),
                    text(seed),
                    text(update),
                    text(&versions.host),
                    text(&versions.libtorch),
                ]);
            }
        }
    }
    table
}

/// How every run was made.
pub fn provenance(runs: &[Run]) -> Table {
    let header = [
        "run",
        "command",
        "started",
        "seed",
        "threads",
        "device",
        "host",
        "contract",
        "libtorch",
        "data (MD5)",
    ];
    let mut table = Table::new(
        "provenance",
        "The commands that started the runs, and the software and data they used.",
        header,
    );
    for run in runs {
        let record = &run.record;
        let train = &record.experiment.train;
        let checksums: Vec<_> =
            record.data.checksums.iter().map(|(file, md5)| format!("{file} {md5}")).collect();
        table.add(vec![
            text(&run.name),
            text(shell_words(record.command.iter().map(String::as_str))),
            text(&record.started),
            text(train.seed),
            text(train.threads.map_or("all cores".to_owned(), |threads| threads.to_string())),
            text(&train.device),
            text(&record.versions.host),
            text(record.versions.contract),
            text(&record.versions.libtorch),
            text(format!("{}: {}", record.data.name, checksums.join(", "))),
        ]);
    }
    table
}

/// The plugins of every run and its evaluations.
pub fn plugins(runs: &[Run]) -> Table {
    let header = ["run", "used as", "plugin", "name", "version", "contract", "libtorch", "SHA-256"];
    let mut table = Table::new("plugins", "The plugins of the runs and of their evaluations.", header);
    for run in runs {
        let of_run = &run.record.plugins;
        let probe = of_run.probe.iter().map(|record| ("probe", record));
        let trace = of_run.trace.iter().map(|record| ("trace", record));
        let used = [("model", &of_run.model)]
            .into_iter()
            .chain(of_run.sampler.iter().map(|record| ("sampler", record)));
        let attacks = run.evaluations.iter().flat_map(|evaluation| &evaluation.plugins);
        let mut listed: Vec<(&str, &Record)> = Vec::new();
        for (role, record) in used.chain(probe).chain(trace).chain(attacks.map(|record| ("attack", record))) {
            let same = |(known, other): &(&str, &Record)| {
                *known == role && (&other.spec, &other.sha256) == (&record.spec, &record.sha256)
            };
            if listed.iter().any(same) {
                continue;
            }
            listed.push((role, record));
            table.add(vec![
                text(&run.name),
                text(role),
                text(&record.spec),
                text(&record.manifest.name),
                text(&record.manifest.version),
                text(record.manifest.contract),
                text(&record.manifest.libtorch),
                text(&record.sha256),
            ]);
        }
    }
    table
}

/// What a sweep's runs came to, and each setting over its seeds.
pub fn sweep(sweep: &Sweep, name: &str) -> Vec<Table> {
    let Some(Summary { runs, groups }) = &sweep.summary else { return Vec::new() };
    let mut figures: Vec<&String> = Vec::new();
    for figure in runs.iter().flat_map(|row| row.figures.keys()).filter(|figure| is_shown(figure)) {
        if !figures.contains(&figure) {
            figures.push(figure);
        }
    }
    figures.sort_by_key(|name| OF_TRAINING.iter().position(|first| first == name).unwrap_or(usize::MAX));
    let axes = |settings: Option<&serde_json::Map<String, Value>>| -> Vec<String> {
        settings.map(|settings| settings.keys().cloned().collect()).unwrap_or_default()
    };
    let header = |axes: &[String], last: &str, names: Vec<String>| {
        let axes = axes.iter().map(|key| short(key).to_owned());
        axes.chain([last.to_owned()]).chain(names).collect::<Vec<_>>()
    };
    let values = |axes: &[String], settings: &serde_json::Map<String, Value>| {
        axes.iter().map(|key| text(settings.get(key).map_or(String::new(), setting_text))).collect::<Vec<_>>()
    };
    let figure =
        |name: &String, value: Option<f64>| value.map_or(empty(), |value| cell_of_figure(name, value));
    let keys = axes(runs.first().map(|row| &row.settings));
    let names = figures.iter().map(|name| title(name)).collect();
    let caption = format!("Sweep {}: every run. Accuracies in per cent.", sweep.name);
    let mut tables = vec![Table::new(name, &caption, header(&keys, "status", names))];
    for row in runs {
        let mut cells = values(&keys, &row.settings);
        let mut status = text(row.status.name());
        if let Some(reason) = &row.reason {
            status.notes.push(tables[0].note(&format!("{}: {reason}.", row.run)));
        }
        for Caveat { name, finding } in &row.doubts {
            status.notes.push(tables[0].note(&format!("Caveat ({name}): {finding}.")));
        }
        status.notes.dedup();
        cells.push(status);
        cells.extend(figures.iter().map(|name| figure(name, row.figures.get(*name).copied())));
        tables[0].add(cells);
    }
    if let Some(groups) = groups {
        let keys = axes(groups.first().map(|group| &group.settings));
        let names =
            figures.iter().flat_map(|name| ["median", "worst"].map(|of| format!("{} ({of})", title(name))));
        let caption = format!("Sweep {}: every setting over its seeds. Accuracies in per cent.", sweep.name);
        let header = header(&keys, "finished", names.collect());
        let mut table = Table::new(&format!("{name}-seeds"), &caption, header);
        for group in groups {
            let mut cells = values(&keys, &group.settings);
            let mut finished = text(format!("{} of {}", group.finished, group.runs));
            let of_group =
                |row: &&SummaryRow| keys.iter().all(|key| row.settings.get(key) == group.settings.get(key));
            for Caveat { name, finding } in runs.iter().filter(of_group).flat_map(|row| &row.doubts) {
                finished.notes.push(table.note(&format!("Caveat ({name}): {finding}.")));
            }
            finished.notes.dedup();
            cells.push(finished);
            for name in &figures {
                let over = group.figures.get(*name);
                cells.extend([figure(name, over.map(|of| of.median)), figure(name, over.map(|of| of.worst))]);
            }
            table.add(cells);
        }
        tables.push(table);
    }
    tables
}

/// A setting of a sweep for people.
pub fn setting_text(value: &Value) -> String {
    match toml::Value::try_from(value) {
        Ok(value) => axis::text(&value),
        Err(_) => value.to_string(),
    }
}

fn cell_of_figure(name: &str, value: f64) -> Cell {
    match COSTS.contains(&name) {
        true => number(value, usize::from(name == SECONDS)),
        false => Content::Share(value, None).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balls_are_written_as_the_field_does() {
        assert_eq!(ball(Norm::Linf, 0.3), "linf 0.3");
        assert_eq!(ball(Norm::Linf, 8.0 / 255.0), "linf 8/255");
        assert_eq!(ball(Norm::L2, 0.123_456_789), "l2 0.123456789");
    }

    #[test]
    fn tables_say_the_same_in_every_format() {
        let mut table = Table::new("t", "A table.", ["run", "clean"]);
        let note = table.note("Why not.");
        assert_eq!((note, table.note("Another."), table.note("Why not.")), (1, 2, 1));
        table.add(vec![text("a|b, c"), Cell { content: Content::Share(0.92, Some(100)), notes: vec![note] }]);
        table.add(vec![text("d"), empty()]);
        // Wilson's interval for 92 of 100: see the test of `confidence_interval`.
        assert_eq!(
            table.markdown(),
            "**A table.**\n\n| run | clean |\n| --- | ---: |\n| a\\|b, c | 92.00 (85.0 to 95.9; 100 points) [1] |\n\
             | d |  |\n\n[1] Why not.\n\n[2] Another.\n"
        );
        let csv = table.csv();
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("run,clean,\"clean, low\",\"clean, high\",\"clean, points\",notes"));
        let line = lines.next().expect("a line");
        assert!(line.starts_with("\"a|b, c\",0.92,0.85") && line.ends_with(",100,Why not."), "{line}");
        assert_eq!(lines.next(), Some("d,,,,,"));
    }
}
