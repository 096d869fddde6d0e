//! What the runs of a sweep came to: one row each, and one for each setting over its seeds.

use super::axis::text;
use super::{SEED, Sweep, short};
use crate::run::progress;
use crate::run::progress::EpochMetrics;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not begun.
    Waiting,
    /// Begun; its last checkpoint is where it goes on.
    Unfinished,
    /// Trained, and not evaluated yet.
    Trained,
    /// Done.
    Finished,
    /// Ended by an error; it is not tried again unasked.
    Failed,
}

impl Status {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Unfinished => "unfinished",
            Status::Trained => "trained",
            Status::Finished => "finished",
            Status::Failed => "failed",
        }
    }
}

/// An evaluation of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluated {
    /// The suite, none for the attacks of `[eval]`.
    pub suite: Option<String>,
    /// The attacks that were asked for.
    pub attacks: Vec<String>,
    /// What `host eval --json` printed.
    pub result: Value,
}

/// What is known of a run.
#[derive(Debug)]
pub struct Row {
    /// How far it is.
    pub status: Status,
    /// Why it failed.
    pub reason: Option<String>,
    /// What it measured, by name.
    pub figures: Figures,
    /// Why its evaluations may not be trusted.
    pub doubts: Vec<Value>,
    /// What its training looked like in the end, if it looked wrong.
    pub alarms: Vec<String>,
}

impl Row {
    /// Of a run with these epochs, whose weights are those of the best of them or of the last,
    /// and these evaluations.
    pub fn new(
        status: Status,
        reason: Option<String>,
        epochs: &[EpochMetrics],
        best_epoch: bool,
        evaluations: &[Evaluated],
    ) -> Self {
        // Evaluations of older versions have `doubts`.
        let caveats = |result: &Value| result.get("caveats").or(result.get("doubts"))?.as_array().cloned();
        let doubts = evaluations.iter().filter_map(|done| caveats(&done.result)).flatten();
        let doubts = doubts.collect();
        let alarms = epochs.last().map(|last| last.alarms.clone()).unwrap_or_default();
        Self { status, reason, figures: figures(epochs, best_epoch, evaluations), doubts, alarms }
    }

    /// In one line, for people.
    pub fn line(&self) -> String {
        let shown = self.figures.iter().filter(|(name, _)| is_shown(name));
        let figures = shown.map(|(name, value)| format!("{} {}", title(name), show(name, *value)));
        let alarms = self.alarms.iter().map(|alarm| format!("alarm: {alarm}"));
        let status = std::iter::once(self.status.name().to_owned());
        status.chain(figures).chain(alarms).collect::<Vec<_>>().join("  ")
    }
}

/// Measured values by name; accuracies are shares.
pub type Figures = Vec<(String, f64)>;

/// Figures of cost: what is worse is more. Of all others, it is less.
pub(crate) const COSTS: [&str; 3] = [EPOCH, PASSES, SECONDS];
const EPOCH: &str = "epoch";
const PASSES: &str = "passes_per_sample";
pub(crate) const SECONDS: &str = "seconds";

const WORST_CASE: &str = "worst_case";

/// Figures of training that come first, in this order.
pub(crate) const OF_TRAINING: [&str; 6] =
    [EPOCH, PASSES, SECONDS, "train_accuracy", "validation_accuracy", "probe_accuracy"];

/// The figures of a run: the cost of all its epochs; the accuracies of the epoch whose weights
/// are evaluated; what attacks left standing.
fn figures(epochs: &[EpochMetrics], best_epoch: bool, evaluations: &[Evaluated]) -> Figures {
    let mut figures = Figures::new();
    if let Some(last) = epochs.last() {
        let evaluated = progress::best_epoch(epochs).filter(|_| best_epoch).unwrap_or(last);
        let (last, evaluated) = (json!(last), json!(evaluated));
        let of_training = OF_TRAINING.into_iter().filter_map(|name| {
            let epoch = if [PASSES, SECONDS].contains(&name) { &last } else { &evaluated };
            Some((name.to_owned(), epoch[name].as_f64()?))
        });
        figures.extend(of_training);
    }
    for Evaluated { suite, result, .. } in evaluations {
        let mut add = |name: String, value: &Value| {
            if let Some(value) = value.as_f64().filter(|_| figures.iter().all(|(known, _)| *known != name)) {
                figures.push((name, value));
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

/// The column of what stands after a member of a suite; the suite's own is the worst case.
fn member(suite: &str, attack: &str) -> String {
    format!("{suite}{MEMBER}{attack}")
}

fn find(figures: &[(String, f64)], name: &str) -> Option<f64> {
    figures.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// The names of all figures that any row has.
fn columns(rows: &[Row]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for name in rows.iter().flat_map(|row| &row.figures).map(|(name, _)| name) {
        if !columns.contains(name) {
            columns.push(name.clone());
        }
    }
    // A run without a validation score, say, must not decide where that column goes.
    columns.sort_by_key(|name| OF_TRAINING.iter().position(|first| first == name).unwrap_or(usize::MAX));
    columns
}

/// Runs that differ in nothing but the seed.
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

    /// Median and worst value of a figure over the runs that are finished.
    fn over_seeds(&self, name: &str) -> Option<(f64, f64)> {
        let mut values: Vec<f64> = self.finished().filter_map(|row| find(&row.figures, name)).collect();
        values.sort_by(f64::total_cmp);
        let worst = if COSTS.contains(&name) { values.last() } else { values.first() };
        let (low, high) = (values.get(values.len().saturating_sub(1) / 2)?, values.get(values.len() / 2)?);
        Some(((low + high) / 2.0, *worst?))
    }
}

/// A sweep's rows, one for each of its settings.
pub struct Summary<'a> {
    sweep: &'a Sweep,
    rows: Vec<Row>,
    columns: Vec<String>,
}

impl<'a> Summary<'a> {
    /// The summary of these rows, in the order of the sweep's settings.
    pub fn new(sweep: &'a Sweep, rows: Vec<Row>) -> Self {
        Self { sweep, columns: columns(&rows), rows }
    }

    /// The rows, in the order of the sweep's settings.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Runs by their setting, if some differ in nothing but the seed.
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

    /// One JSON object: every run, and every setting over its seeds.
    pub fn json(&self) -> Value {
        let object = |keys: &mut dyn Iterator<Item = &String>, values: &[&toml::Value]| {
            keys.zip(values).map(|(key, value)| (key.clone(), json!(value))).collect::<Map<_, _>>()
        };
        let runs: Vec<_> = (self.sweep.settings.iter().zip(&self.rows))
            .map(|(setting, row)| {
                let values: Vec<_> = setting.values.iter().collect();
                json!({
                    "run": setting.name,
                    "settings": object(&mut self.sweep.axes.iter(), &values),
                    "status": row.status,
                    "reason": row.reason,
                    "doubts": row.doubts,
                    "alarms": row.alarms,
                    "figures": row.figures.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
                })
            })
            .collect();
        let groups = self.groups().map(|groups| {
            let group = |group: &Group| {
                let of = |name: &String| {
                    let (median, worst) = group.over_seeds(name)?;
                    Some((name.clone(), json!({"median": median, "worst": worst})))
                };
                json!({
                    "settings": object(&mut self.swept(), &group.values),
                    "runs": group.rows.len(),
                    "finished": group.finished().count(),
                    "figures": self.columns.iter().filter_map(of).collect::<Map<_, _>>(),
                })
            };
            groups.iter().map(group).collect::<Vec<_>>()
        });
        json!({"runs": runs, "groups": groups})
    }

    /// A line for every run; shares are from 0 to 1.
    pub fn runs_csv(&self) -> String {
        let mut lines = vec![
            [&["run".to_owned()], self.sweep.axes.as_slice(), &["status".to_owned()], &self.columns].concat(),
        ];
        for (setting, row) in self.sweep.settings.iter().zip(&self.rows) {
            let figure = |name| find(&row.figures, name).map_or(String::new(), |value| value.to_string());
            let mut line = vec![setting.name.clone()];
            line.extend(setting.values.iter().map(text));
            line.push(row.status.name().to_owned());
            line.extend(self.columns.iter().map(|name| figure(name)));
            lines.push(line);
        }
        csv(&lines)
    }

    /// A line for every setting over its seeds, if they vary; shares are from 0 to 1.
    pub fn groups_csv(&self) -> Option<String> {
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
                    Some((median, worst)) => [median, worst].map(|value| value.to_string()),
                    None => [String::new(), String::new()],
                });
            }
            lines.push(line);
        }
        Some(csv(&lines))
    }

    /// The tables that people read: every run, and every setting over its seeds.
    pub fn tables(&self) -> String {
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
                |name: &&String| find(&row.figures, name).map_or(String::new(), |value| show(name, value));
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
                figures.map_or(String::new(), |(median, worst)| {
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

/// Whether a figure is shown to people: a suite's members are too many.
pub(crate) fn is_shown(name: &str) -> bool {
    !name.contains(MEMBER)
}

/// A figure's name for people.
pub(crate) fn title(name: &str) -> String {
    match name {
        PASSES => "passes".to_owned(),
        WORST_CASE => "worst case".to_owned(),
        _ if OF_TRAINING.contains(&name) => name.replace('_', " "),
        _ => name.to_owned(),
    }
}

/// A figure for people.
fn show(name: &str, value: f64) -> String {
    match name {
        SECONDS => format!("{value:.1}"),
        EPOCH | PASSES => value.to_string(),
        _ => format!("{:.2}", 100.0 * value),
    }
}

/// Comma-separated values (RFC 4180, with line feeds).
pub(crate) fn csv(lines: &[Vec<String>]) -> String {
    let field = |text: &String| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.clone(),
    };
    let line = |fields: &Vec<String>| fields.iter().map(field).collect::<Vec<_>>().join(",") + "\n";
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::Setting;

    fn epoch(number: usize, probe_accuracy: f64) -> EpochMetrics {
        let line = json!({
            "epoch": number, "updates": 10 * number, "learning_rate": 0.1, "train_loss": 1.0,
            "train_accuracy": 0.5 + 0.1 * number as f64, "probe_accuracy": probe_accuracy,
            "passes_per_sample": 2 * number, "seconds": 3.0 * number as f64,
        });
        serde_json::from_value(line).expect("metrics")
    }

    fn evaluated(suite: Option<&str>, robust: &[(&str, f64)], worst: f64) -> Evaluated {
        let attacks: Vec<_> =
            robust.iter().map(|(attack, robust)| json!({"attack": attack, "robust": robust})).collect();
        let result = json!({"clean": 0.99, "attacks": attacks, "worst_case": worst});
        Evaluated { suite: suite.map(str::to_owned), attacks: Vec::new(), result }
    }

    #[test]
    fn accuracies_are_of_the_evaluated_epoch_and_costs_of_all() {
        let epochs = [epoch(1, 0.7), epoch(2, 0.8), epoch(3, 0.8), epoch(4, 0.6)];
        let value = |best: bool, name: &str| find(&figures(&epochs, best, &[]), name).expect("a figure");
        assert_eq!((value(false, "epoch"), value(false, "probe_accuracy")), (4.0, 0.6));
        assert_eq!((value(true, "epoch"), value(true, "probe_accuracy")), (2.0, 0.8));
        for best in [false, true] {
            assert_eq!((value(best, "passes_per_sample"), value(best, "seconds")), (8.0, 12.0));
        }
        assert_eq!(find(&figures(&epochs, false, &[]), "validation_accuracy"), None);
        assert!(figures(&[], true, &[]).is_empty());
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
        assert_eq!(figures(&[], false, &evaluations), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    /// Two settings with these numbers of seeds; each run's accuracy and seconds.
    fn sweep_and_rows(runs: &[(i64, i64, Status, f64, f64)]) -> (Sweep, Vec<Row>) {
        let settings = runs.iter().map(|(setting, seed, ..)| Setting {
            name: format!("sampler=a,b={setting},seed={seed}"),
            values: vec![toml::Value::Integer(*setting), toml::Value::Integer(*seed)],
            experiment: Default::default(),
        });
        let rows = runs.iter().map(|(_, _, status, accuracy, seconds)| Row {
            status: *status,
            reason: None,
            figures: vec![("train_accuracy".to_owned(), *accuracy), (SECONDS.to_owned(), *seconds)],
            doubts: Vec::new(),
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
        let json = summary.json();
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
        // Of an even number, the mean of the two in the middle; the unfinished one is left out.
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
