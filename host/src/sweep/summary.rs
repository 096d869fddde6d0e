//! The results of a sweep: a row for each run, and one for each setting over its seeds.

use super::axis::text;
use super::{SEED, Setting, Sweep, short};
use crate::evaluation::verdict::Caveat;
use crate::run::progress;
use crate::run::progress::EpochMetrics;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Not begun.
    Waiting,
    /// Begun. A repeated sweep continues it from its last checkpoint.
    Unfinished,
    /// Trained, but not evaluated yet.
    Trained,
    /// Trained and evaluated.
    Finished,
    /// Ended by an error. A repeated sweep retries it only on request.
    Failed,
}

impl Status {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Unfinished => "unfinished",
            Status::Trained => "trained",
            Status::Finished => "finished",
            Status::Failed => "failed",
        }
    }
}

/// An evaluation of a run: an entry of the run's `sweep.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SweepEvaluation {
    /// The suite; none for the attacks of `[eval]`.
    pub suite: Option<String>,
    /// The requested attacks.
    pub attacks: Vec<String>,
    /// The output of `host eval --json`.
    pub result: Value,
}

impl SweepEvaluation {
    /// The reasons not to trust the evaluation. Older hosts call them `doubts`.
    fn caveats(&self) -> impl Iterator<Item = Caveat> {
        let lists = ["caveats", "doubts"].into_iter().filter_map(|key| self.result[key].as_array());
        lists.flatten().filter_map(|caveat| Caveat::deserialize(caveat).ok())
    }
}

/// The state and the results of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    /// How far the run is.
    pub status: Status,
    /// Why the run failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Why its evaluations may not be trusted. Older hosts call them `doubts`.
    #[serde(default, alias = "doubts")]
    pub caveats: Vec<Caveat>,
    /// The alarms of its last epoch.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// The smallest number of points of its evaluations. Older hosts do not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub points: Option<usize>,
    /// Its measured values.
    pub figures: Figures,
}

impl Row {
    /// The row of a run with these epochs and evaluations. Its weights are those of the best epoch
    /// if `best_epoch`, otherwise those of the last.
    pub(crate) fn new(
        status: Status,
        reason: Option<String>,
        epochs: &[EpochMetrics],
        best_epoch: bool,
        evaluations: &[SweepEvaluation],
    ) -> Self {
        let caveats = evaluations.iter().flat_map(SweepEvaluation::caveats).collect();
        let alarms = epochs.last().map(|last| last.alarms.clone()).unwrap_or_default();
        let points = |evaluation: &SweepEvaluation| evaluation.result["points"].as_u64();
        let points = evaluations.iter().filter_map(points).min().map(|points| points as usize);
        Self { status, reason, caveats, alarms, points, figures: figures(epochs, best_epoch, evaluations) }
    }

    /// The row in one line, for people.
    pub(crate) fn line(&self) -> String {
        let shown = self.figures.iter().filter(|(name, _)| is_shown(name));
        let figures = shown.map(|(name, value)| format!("{} {}", title(name), show(name, value)));
        let alarms = self.alarms.iter().map(|alarm| format!("alarm: {alarm}"));
        let status = std::iter::once(self.status.name().to_owned());
        status.chain(figures).chain(alarms).collect::<Vec<_>>().join("  ")
    }

    /// Whether another row has the same status and figures, up to rounding in the last digits.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let is_same = |(name, value): (&str, f64)| {
            other.figures.get(name).is_some_and(|known| (known - value).abs() <= 1e-12 * value.abs())
        };
        self.status == other.status
            && self.figures.iter().count() == other.figures.iter().count()
            && self.figures.iter().all(is_same)
    }
}

/// Measured values by name, in the order of their columns; accuracies are shares. In JSON, an
/// object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    /// The value of this name.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// All names with their values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Adds a value, unless there is one of this name.
    fn add(&mut self, name: String, value: f64) {
        if self.get(&name).is_none() {
            self.0.push((name, value));
        }
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Figures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(BTreeMap::deserialize(deserializer)?.into_iter().collect()))
    }
}

/// The contents of `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedSummary {
    /// Every run.
    pub runs: Vec<SavedRow>,
    /// Every setting over its seeds, if seeds vary.
    pub groups: Option<Vec<SavedGroup>>,
}

/// A run of a sweep in `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedRow {
    /// The name of its folder.
    pub run: String,
    /// Its value on every axis.
    pub settings: Map<String, Value>,
    /// Its state and results.
    #[serde(flatten)]
    pub row: Row,
}

/// A setting of a sweep over its seeds in `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedGroup {
    /// Its value on every axis but the seed's.
    pub settings: Map<String, Value>,
    /// The number of its runs.
    pub runs: usize,
    /// The number of its finished runs.
    pub finished: usize,
    /// The figures of its finished runs.
    pub figures: BTreeMap<String, OverSeeds>,
}

/// A figure over several seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct OverSeeds {
    /// The median.
    pub median: f64,
    /// The worst value.
    pub worst: f64,
}

/// Figures of cost, of which the highest is the worst. Of all others, the lowest is.
pub(crate) const COSTS: [&str; 4] = [EPOCH, PASSES, SECONDS, PEAK_MEMORY];
const EPOCH: &str = "epoch";
const PASSES: &str = "passes_per_sample";
pub(crate) const SECONDS: &str = "seconds";
const PEAK_MEMORY: &str = "peak_memory";

const WORST_CASE: &str = "worst_case";

/// The figures of training, in the order of their columns. They precede all others.
pub(crate) const OF_TRAINING: [&str; 7] =
    [EPOCH, PASSES, SECONDS, PEAK_MEMORY, "train_accuracy", "validation_accuracy", "probe_accuracy"];

/// The figures of a run: the cost of all its epochs, the accuracies of the evaluated epoch, and the
/// accuracies under attack.
fn figures(epochs: &[EpochMetrics], best_epoch: bool, evaluations: &[SweepEvaluation]) -> Figures {
    let mut figures = Figures::default();
    if let Some(last) = epochs.last() {
        let evaluated = progress::best_epoch(epochs).filter(|_| best_epoch).unwrap_or(last);
        let (last, evaluated) = (json!(last), json!(evaluated));
        for name in OF_TRAINING {
            let epoch = if [PASSES, SECONDS, PEAK_MEMORY].contains(&name) { &last } else { &evaluated };
            if let Some(value) = epoch[name].as_f64() {
                figures.add(name.to_owned(), value);
            }
        }
    }
    for SweepEvaluation { suite, result, .. } in evaluations {
        let mut add = |name: String, value: &Value| {
            if let Some(value) = value.as_f64() {
                figures.add(name, value);
            }
        };
        add("clean".to_owned(), &result["clean"]);
        for attack in result["attacks"].as_array().into_iter().flatten() {
            let name = attack["attack"].as_str().unwrap_or_default();
            add(suite.as_ref().map_or(name.to_owned(), |suite| member(suite, name)), &attack["robust"]);
        }
        add(suite.clone().unwrap_or(WORST_CASE.to_owned()), &result["worst_case"]);
    }
    figures
}

const MEMBER: &str = ": ";

/// The column of the accuracy after a member of a suite. The suite's own column is its worst case.
fn member(suite: &str, attack: &str) -> String {
    format!("{suite}{MEMBER}{attack}")
}

/// The names of the figures of all rows.
fn columns(rows: &[Row]) -> Vec<String> {
    in_order(rows.iter().flat_map(|row| row.figures.iter().map(|(name, _)| name)))
}

/// Each name once: those of training first, the others in the order given.
pub(crate) fn in_order<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for name in names {
        if !columns.iter().any(|known| known == name) {
            columns.push(name.to_owned());
        }
    }
    // A first run without a validation score must not move that column to the end.
    columns.sort_by_key(|name| OF_TRAINING.iter().position(|first| first == name).unwrap_or(usize::MAX));
    columns
}

/// Runs that differ only in the seed.
#[derive(Debug)]
struct Group<'a> {
    /// Its value on each axis but the seed's.
    values: Vec<&'a toml::Value>,
    rows: Vec<&'a Row>,
}

impl Group<'_> {
    fn finished(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().copied().filter(|row| row.status == Status::Finished)
    }

    /// Median and worst value of a figure over the finished runs.
    fn over_seeds(&self, name: &str) -> Option<OverSeeds> {
        let mut values: Vec<f64> = self.finished().filter_map(|row| row.figures.get(name)).collect();
        values.sort_by(f64::total_cmp);
        let worst = *if COSTS.contains(&name) { values.last() } else { values.first() }?;
        let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
        Some(OverSeeds { median: (low + high) / 2.0, worst })
    }
}

/// The rows of a sweep, one for each of its settings.
pub(crate) struct Summary<'a> {
    sweep: &'a Sweep,
    rows: Vec<Row>,
    columns: Vec<String>,
}

impl<'a> Summary<'a> {
    /// The summary of these rows, in the order of the sweep's settings.
    pub(crate) fn new(sweep: &'a Sweep, rows: Vec<Row>) -> Self {
        Self { sweep, columns: columns(&rows), rows }
    }

    /// The runs by their setting, if some differ only in the seed.
    fn groups(&self) -> Option<Vec<Group<'_>>> {
        let seed = self.sweep.axes.iter().position(|key| key == SEED)?;
        let mut groups: Vec<Group> = Vec::new();
        for (setting, row) in self.sweep.settings.iter().zip(&self.rows) {
            let mut values: Vec<_> = setting.values.iter().collect();
            values.remove(seed);
            match groups.iter_mut().find(|group| group.values == values) {
                Some(group) => group.rows.push(row),
                None => groups.push(Group { values, rows: vec![row] }),
            }
        }
        groups.iter().any(|group| group.rows.len() > 1).then_some(groups)
    }

    fn swept(&self) -> impl Iterator<Item = &String> {
        self.sweep.axes.iter().filter(|key| *key != SEED)
    }

    /// The contents of `summary.json`.
    pub(crate) fn saved(&self) -> SavedSummary {
        fn object<'a>(
            keys: impl Iterator<Item = &'a String>,
            values: impl Iterator<Item = &'a toml::Value>,
        ) -> Map<String, Value> {
            keys.cloned().zip(values.map(|value| json!(value))).collect()
        }
        let run = |(setting, row): (&Setting, &Row)| SavedRow {
            run: setting.name.clone(),
            settings: object(self.sweep.axes.iter(), setting.values.iter()),
            row: row.clone(),
        };
        let group = |group: &Group| SavedGroup {
            settings: object(self.swept(), group.values.iter().copied()),
            runs: group.rows.len(),
            finished: group.finished().count(),
            figures: (self.columns.iter())
                .filter_map(|name| Some((name.clone(), group.over_seeds(name)?)))
                .collect(),
        };
        SavedSummary {
            runs: self.sweep.settings.iter().zip(&self.rows).map(run).collect(),
            groups: self.groups().map(|groups| groups.iter().map(group).collect()),
        }
    }

    /// A line for every run; shares are from 0 to 1.
    pub(crate) fn runs_csv(&self) -> String {
        let mut lines = vec![
            [&["run".to_owned()], self.sweep.axes.as_slice(), &["status".to_owned()], &self.columns].concat(),
        ];
        for (setting, row) in self.sweep.settings.iter().zip(&self.rows) {
            let figure = |name| row.figures.get(name).map_or(String::new(), |value| value.to_string());
            let mut line = vec![setting.name.clone()];
            line.extend(setting.values.iter().map(text));
            line.push(row.status.name().to_owned());
            line.extend(self.columns.iter().map(|name| figure(name)));
            lines.push(line);
        }
        csv(&lines)
    }

    /// A line for every setting over its seeds, if they vary; shares are from 0 to 1.
    pub(crate) fn groups_csv(&self) -> Option<String> {
        let mut header: Vec<_> = self.swept().cloned().collect();
        header.extend(["runs", "finished"].map(str::to_owned));
        header.extend(
            self.columns.iter().flat_map(|name| ["median", "worst"].map(|of| format!("{name} {of}"))),
        );
        let mut lines = vec![header];
        for group in self.groups()? {
            let mut line: Vec<_> = group.values.iter().map(|value| text(value)).collect();
            line.extend([group.rows.len(), group.finished().count()].map(|count| count.to_string()));
            for name in &self.columns {
                line.extend(match group.over_seeds(name) {
                    Some(OverSeeds { median, worst }) => [median, worst].map(|value| value.to_string()),
                    None => [String::new(), String::new()],
                });
            }
            lines.push(line);
        }
        Some(csv(&lines))
    }

    /// The tables for people: every run, and every setting over its seeds.
    pub(crate) fn tables(&self) -> String {
        let shown: Vec<_> = self.columns.iter().filter(|name| is_shown(name)).collect();
        let header = |axes: &mut dyn Iterator<Item = &String>, last: &str| {
            let axes = axes.map(|key| short(key).to_owned());
            let shown = shown.iter().map(|name| title(name));
            axes.chain([last.to_owned()]).chain(shown).collect::<Vec<_>>()
        };
        let mut runs = new_table(header(&mut self.sweep.axes.iter(), "status"));
        for (setting, row) in self.sweep.settings.iter().zip(&self.rows) {
            let mut cells: Vec<_> = setting.values.iter().map(text).collect();
            cells.push(row.status.name().to_owned());
            let cell =
                |name: &&String| row.figures.get(name).map_or(String::new(), |value| show(name, value));
            cells.extend(shown.iter().map(cell));
            runs.add_row(cells);
        }
        let caption = "passes per sample; accuracies in %";
        let Some(groups) = self.groups() else { return format!("{runs}\n{caption}") };
        let mut seeds = new_table(header(&mut self.swept(), "finished"));
        for group in groups {
            let mut cells: Vec<_> = group.values.iter().map(|value| text(value)).collect();
            cells.push(format!("{} of {}", group.finished().count(), group.rows.len()));
            let cell = |name: &&String| {
                let figures = group.over_seeds(name);
                figures.map_or(String::new(), |OverSeeds { median, worst }| {
                    format!("{} ({})", show(name, median), show(name, worst))
                })
            };
            cells.extend(shown.iter().map(cell));
            seeds.add_row(cells);
        }
        format!("{runs}\n{caption}\n\n{seeds}\nmedian (worst) over the seeds")
    }
}

fn new_table(header: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Whether a figure is shown to people. Members of suites are not: they are too many.
pub(crate) fn is_shown(name: &str) -> bool {
    !name.contains(MEMBER)
}

/// A figure's name for people.
pub(crate) fn title(name: &str) -> String {
    match name {
        PASSES => "passes".to_owned(),
        WORST_CASE => "worst case".to_owned(),
        PEAK_MEMORY => "peak MiB".to_owned(),
        _ if OF_TRAINING.contains(&name) => name.replace('_', " "),
        _ => name.to_owned(),
    }
}

/// A figure for people.
fn show(name: &str, value: f64) -> String {
    match name {
        SECONDS => format!("{value:.1}"),
        EPOCH | PASSES | PEAK_MEMORY => value.to_string(),
        _ => format!("{:.2}", 100.0 * value),
    }
}

/// Comma-separated values (RFC 4180, with line feeds).
pub(crate) fn csv(lines: &[Vec<String>]) -> String {
    let field = |text: &String| {
        if text.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.clone()
        }
    };
    let line = |fields: &Vec<String>| fields.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: usize, probe_accuracy: f64) -> EpochMetrics {
        let line = json!({
            "epoch": number, "updates": 10 * number, "learning_rate": 0.1, "train_loss": 1.0,
            "train_accuracy": 0.5 + 0.1 * number as f64, "probe_accuracy": probe_accuracy,
            "passes_per_sample": 2 * number, "seconds": 3.0 * number as f64,
        });
        serde_json::from_value(line).expect("metrics")
    }

    fn evaluated(suite: Option<&str>, robust: &[(&str, f64)], worst: f64) -> SweepEvaluation {
        let attacks: Vec<_> =
            robust.iter().map(|(attack, robust)| json!({"attack": attack, "robust": robust})).collect();
        let result = json!({"clean": 0.99, "attacks": attacks, "worst_case": worst});
        SweepEvaluation { suite: suite.map(str::to_owned), attacks: Vec::new(), result }
    }

    #[test]
    fn accuracies_are_of_the_evaluated_epoch_and_costs_of_all() {
        let epochs = [epoch(1, 0.7), epoch(2, 0.8), epoch(3, 0.8), epoch(4, 0.6)];
        let value = |best: bool, name: &str| figures(&epochs, best, &[]).get(name).expect("a figure");
        assert_eq!((value(false, "epoch"), value(false, "probe_accuracy")), (4.0, 0.6));
        assert_eq!((value(true, "epoch"), value(true, "probe_accuracy")), (2.0, 0.8));
        for best in [false, true] {
            assert_eq!((value(best, "passes_per_sample"), value(best, "seconds")), (8.0, 12.0));
        }
        assert_eq!(figures(&epochs, false, &[]).get("validation_accuracy"), None);
        assert_eq!(figures(&[], true, &[]), Figures::default());
    }

    #[test]
    fn evaluations_have_a_column_for_each_attack_and_one_for_the_worst_case() {
        let evaluations = [
            evaluated(None, &[("fgsm.so", 0.9), ("pgd.so,steps=40", 0.8)], 0.79),
            evaluated(Some("autoattack"), &[("apgd.so,loss=ce", 0.75)], 0.7),
        ];
        let expected = [
            ("clean", 0.99),
            ("fgsm.so", 0.9),
            ("pgd.so,steps=40", 0.8),
            ("worst_case", 0.79),
            ("autoattack: apgd.so,loss=ce", 0.75),
            ("autoattack", 0.7),
        ];
        assert!(figures(&[], false, &evaluations).iter().eq(expected));
    }

    /// Two settings with these numbers of seeds; each run's accuracy and seconds.
    fn sweep_and_rows(runs: &[(i64, i64, Status, f64, f64)]) -> (Sweep, Vec<Row>) {
        let settings = runs.iter().map(|(setting, seed, ..)| Setting {
            name: format!("sampler=a,b={setting},seed={seed}"),
            values: vec![toml::Value::Integer(*setting), toml::Value::Integer(*seed)],
            experiment: Default::default(),
        });
        let rows = runs.iter().map(|(_, _, status, accuracy, seconds)| Row {
            points: None,
            status: *status,
            reason: None,
            figures: Figures(vec![("train_accuracy".to_owned(), *accuracy), (SECONDS.to_owned(), *seconds)]),
            caveats: Vec::new(),
            alarms: Vec::new(),
        });
        let axes = ["train.epochs", SEED].map(str::to_owned).into();
        (Sweep { axes, settings: settings.collect(), evaluations: Vec::new() }, rows.collect())
    }

    #[test]
    fn seeds_are_summed_up_by_their_median_and_the_worst() {
        use Status::{Finished, Unfinished};
        let (sweep, rows) = sweep_and_rows(&[
            (1, 0, Finished, 0.5, 10.0),
            (1, 1, Finished, 0.9, 30.0),
            (1, 2, Finished, 0.75, 20.0),
            (2, 0, Finished, 0.25, 4.0),
            (2, 1, Finished, 0.5, 2.0),
            (2, 2, Unfinished, 0.0, 99.0),
        ]);
        let summary = Summary::new(&sweep, rows);
        let json = json!(summary.saved());
        assert_eq!(
            json["groups"][0],
            json!({
                "settings": {"train.epochs": 1}, "runs": 3, "finished": 3,
                "figures": {
                    "train_accuracy": {"median": 0.75, "worst": 0.5},
                    "seconds": {"median": 20.0, "worst": 30.0},
                }
            })
        );
        // Of an even number, the mean of the two in the middle. The unfinished run does not count.
        assert_eq!(json["groups"][1]["figures"]["train_accuracy"], json!({"median": 0.375, "worst": 0.25}));
        assert_eq!(json["groups"][1]["finished"], 2);
        assert_eq!(json["runs"][5]["status"], "unfinished");
        assert_eq!(
            summary.groups_csv().expect("seeds"),
            "train.epochs,runs,finished,seconds median,seconds worst,train_accuracy median,train_accuracy worst\n\
             1,3,3,20,30,0.75,0.5\n2,3,2,3,4,0.375,0.25\n"
        );
        let tables = summary.tables();
        assert!(tables.contains("75.00 (50.00)") && tables.contains("2 of 3"), "{tables}");
    }

    #[test]
    fn summaries_of_older_hosts_are_read() {
        let old = json!({
            "runs": [{
                "run": "seed=0", "settings": {"train.seed": 0}, "status": "finished", "reason": null,
                "doubts": [{"name": "changed", "finding": "the data changed"}], "figures": {"clean": 0.5},
            }],
            "groups": null,
        });
        let summary: SavedSummary = serde_json::from_value(old).expect("a summary");
        let row = &summary.runs[0].row;
        assert_eq!((row.caveats[0].name.as_ref(), row.figures.get("clean")), ("changed", Some(0.5)));
        let written = json!(summary);
        assert_eq!(written["runs"][0]["caveats"][0]["finding"], "the data changed");
        assert!(written["runs"][0].get("doubts").is_none());
    }

    #[test]
    fn evaluations_of_older_hosts_have_their_caveats() {
        let caveats = json!([{"name": "changed", "finding": "the data changed"}]);
        for key in ["caveats", "doubts"] {
            let result = json!({ key: caveats });
            let evaluation = SweepEvaluation { suite: None, attacks: Vec::new(), result };
            let row = Row::new(Status::Finished, None, &[], false, &[evaluation]);
            assert_eq!(json!(row.caveats), caveats, "{key}");
        }
    }

    #[test]
    fn lines_for_machines_are_quoted_where_they_must_be() {
        let (sweep, rows) = sweep_and_rows(&[(1, 0, Status::Failed, 0.5, 10.0)]);
        let summary = Summary::new(&sweep, rows);
        assert_eq!(
            summary.runs_csv(),
            "run,train.epochs,train.seed,status,seconds,train_accuracy\n\
             \"sampler=a,b=1,seed=0\",1,0,failed,10,0.5\n"
        );
        assert_eq!(csv(&[vec!["say \"a\"".to_owned(), "b".to_owned()]]), "\"say \"\"a\"\"\",b\n");
        assert!(summary.groups_csv().is_none(), "one seed is none to sum up over");
    }
}
