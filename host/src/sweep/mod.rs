//! Many experiments from one file: an experiment file with a table `[sweep]`.
//!
//! docs/sweeps.md describes the file. The code does not list the keys of an experiment: an axis is
//! any key that the experiment accepts.

pub(crate) mod axis;
pub(crate) mod check;
pub(crate) mod folder;
pub(crate) mod summary;
pub(crate) mod worker;

use crate::config::{
    self, Experiment, IN_RUN, Role, check_norm, from_table, one_line, origin, parse_toml, read_text,
};
use crate::torch::random::{Purpose, step_of_name, uniform};
use crate::util::files;
use crate::util::written::{parts, quoted_if_necessary};
use crate::{Error, Result};
use axis::{Axis, Choice, MOST, text};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

const SEED: &str = "train.seed";

/// The key of an axis whose values are parts of whole experiments.
const WHOLE: &str = "experiment";

/// The largest number of bytes of a run's name. File systems allow 255, endings included.
const LONGEST_NAME: usize = 200;

/// The number of draws in a row without a new setting after which a random search ends.
const MOST_DRAWS: u32 = 1_000_000;

/// A sweep: all its runs, in order.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// The keys of the axes, in the order of the file, seeds last.
    pub axes: Vec<String>,
    /// The runs.
    pub settings: Vec<Setting>,
    /// The evaluations after training: of a suite, given by its name or file, or of the attacks of
    /// `[eval]` (none).
    pub evaluations: Vec<Option<String>>,
}

/// One run of a sweep.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The name of its files, made from its values.
    pub name: String,
    /// Its value on each axis.
    pub values: Vec<Value>,
    /// Its experiment.
    pub experiment: Experiment,
}

/// A share of a sweep's runs: every N-th run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    number: usize,
    of: usize,
}

impl Task {
    /// Whether a run is in this share. Runs are counted from 1.
    pub(crate) fn has(self, run: usize) -> bool {
        run % self.of == self.number % self.of
    }
}

impl FromStr for Task {
    type Err = String;

    /// Shares are counted from 1 to N or from 0 to N - 1. Share 0 is the same as share N, so each
    /// run is in exactly one share either way.
    fn from_str(written: &str) -> std::result::Result<Self, String> {
        let task = written
            .split_once('/')
            .and_then(|(number, of)| Some(Self { number: number.parse().ok()?, of: of.parse().ok()? }));
        task.filter(|task| task.of >= 1 && task.number <= task.of)
            .ok_or_else(|| "expected I/N, I from 1 to N or from 0 to N - 1".to_owned())
    }
}

/// The table `[sweep]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Options {
    search: Search,
    runs: Option<usize>,
    seed: Option<u64>,
    eval: bool,
    suite: Option<String>,
    /// Read by [`axis`], with the numbers of the lines.
    seeds: IgnoredAny,
    axes: IgnoredAny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Search {
    /// Every combination of values.
    #[default]
    Grid,
    /// Combinations drawn at random, none twice.
    Random,
}

impl Sweep {
    /// Reads a sweep's file.
    ///
    /// # Errors
    /// If a run has an unknown key or an invalid value. The error names the line or the run.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The sweep in the text of a file of this name.
    ///
    /// # Errors
    /// As for [`Sweep::read`].
    fn parse(text: &str, name: &str) -> Result<Self> {
        let mut file = parse_toml(text, name)?;
        let Some(sweep) = file.get_mut().remove("sweep") else {
            return Err(Error::new(format!("{name} has no table [sweep]"))
                .fix("add one (docs/sweeps.md), or run the experiment with `host train --config`"));
        };
        let base = Experiment::from_table(file, text, name)?;
        let span = sweep.span();
        let DeValue::Table(sweep) = sweep.into_inner() else {
            return Err(Error::new(format!("{}: sweep: expected a table", origin(text, name, span.start))));
        };
        let options: Options = from_table(Spanned::new(span, sweep.clone()), text, name)?;
        let axes = axes(&sweep, &|offset| origin(text, name, offset))?;
        let (swept, seeds): (Vec<_>, Vec<_>) = axes.iter().cloned().partition(|axis| axis.key != SEED);
        let mut combinations = match options.search {
            Search::Grid => {
                refuse_options_of_random_search(&options, name)?;
                grid(&swept)?
            }
            Search::Random => random(&swept, &options, name)?,
        };
        // Every setting with every seed, the seeds of one setting in a row.
        if let [seeds] = seeds.as_slice() {
            let seeds = grid(std::slice::from_ref(seeds))?;
            let with_seeds = combinations.iter().flat_map(|setting| {
                seeds.iter().map(move |seed| [setting.as_slice(), seed.as_slice()].concat())
            });
            combinations = with_seeds.collect();
        }
        if combinations.len() > MOST {
            return Err(Error::new(format!(
                "{name}: expected at most {MOST} runs, got {}",
                combinations.len()
            )));
        }
        let axes: Vec<_> = swept.into_iter().chain(seeds).collect();
        let template = Template::new(base)?;
        axes.iter().try_for_each(|axis| template.check(axis))?;
        let settings = combinations.into_iter().map(|choices| template.setting(&axes, &choices));
        Ok(Self {
            settings: settings.collect::<Result<_>>()?,
            axes: axes.into_iter().map(|axis| axis.key).collect(),
            evaluations: options.eval.then_some(None).into_iter().chain(options.suite.map(Some)).collect(),
        })
    }
}

/// The axes of a sweep's table: its `axes`, and its `seeds`.
fn axes(sweep: &DeTable, origin: &dyn Fn(usize) -> String) -> Result<Vec<Axis>> {
    let mut axes = match sweep.get("axes").map(Spanned::get_ref) {
        Some(DeValue::Table(table)) => axis::axes(table, origin)?,
        Some(_) => return Err(Error::new("sweep.axes: expected a table")),
        None => Vec::new(),
    };
    if let Some((key, seeds)) = sweep.get_key_value("seeds") {
        axes.push(Axis::new(SEED.to_owned(), origin(key.span().start), seeds, origin)?);
    }
    if axes.is_empty() {
        return Err(Error::new("the sweep varies nothing")
            .fix("give [sweep.axes] a key with a list or a range, or [sweep] a list of seeds"));
    }
    for (number, axis) in axes.iter().enumerate() {
        let sets_too = |(earlier, other): &(usize, &Axis)| {
            let below = match other.key.as_str() {
                WHOLE => Some(axis.key.as_str()),
                key => axis.key.strip_prefix(key).and_then(|rest| rest.strip_prefix('.')),
            };
            (axis.key == other.key && *earlier < number)
                || below.is_some_and(|key| other.examples().iter().any(|choice| sets(&choice.value, key)))
        };
        if let Some((_, other)) = axes.iter().enumerate().find(sets_too) {
            return Err(Error::new(format!("{}: {} is set twice", axis.origin, axis.key))
                .note("also by", format!("{}, {}", other.key, other.origin)));
        }
    }
    Ok(axes)
}

/// Whether a table has a value at a dotted key. Other values than tables have no keys: they are
/// plugins, or are refused because of their type.
fn sets(value: &Value, key: &str) -> bool {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let inner = value.as_table().and_then(|table| table.get(first));
    inner.is_some_and(|inner| rest.is_none_or(|rest| sets(inner, rest)))
}

/// Refuses options that have no effect on a grid.
fn refuse_options_of_random_search(options: &Options, name: &str) -> Result<()> {
    let ignored = [("runs", options.runs.is_some()), ("seed", options.seed.is_some())];
    match ignored.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((key, _)) => Err(Error::new(format!("{name}: sweep.{key} goes with search = \"random\""))
            .fix("a grid has every combination; the seeds of training are sweep.seeds")),
    }
}

/// Every combination, the last axis fastest.
fn grid(axes: &[Axis]) -> Result<Vec<Vec<Choice>>> {
    let mut combinations = vec![Vec::new()];
    for axis in axes {
        let Some(values) = axis.listed() else {
            return Err(Error::new(format!(
                "{}: {}: the range never ends; expected `step` or `count`",
                axis.origin, axis.key
            ))
            .fix("give it one, or [sweep] search = \"random\", which draws from it"));
        };
        if combinations.len() * values.len() > MOST {
            return Err(Error::new(format!("{}: {} makes more than {MOST} runs", axis.origin, axis.key)));
        }
        let longer = combinations
            .iter()
            .flat_map(|shorter: &Vec<Choice>| values.iter().map(|value| with(shorter, value)));
        combinations = longer.collect();
    }
    Ok(combinations)
}

fn with(choices: &[Choice], one_more: &Choice) -> Vec<Choice> {
    choices.iter().chain([one_more]).cloned().collect()
}

/// The requested number of combinations, drawn at random, none twice. With more runs, the first
/// combinations stay the same. The draws of an axis do not depend on the other axes.
fn random(axes: &[Axis], options: &Options, name: &str) -> Result<Vec<Vec<Choice>>> {
    let runs = options.runs.unwrap_or(0);
    if !(1..=MOST).contains(&runs) {
        let got = options.runs.map_or("nothing".to_owned(), |runs| runs.to_string());
        return Err(Error::new(format!(
            "{name}: sweep.runs: expected 1 to {MOST} for search = \"random\", got {got}"
        )));
    }
    let too_many = |most: usize| {
        Error::new(format!("{name}: sweep.runs: expected at most {most}, all settings there are, got {runs}"))
    };
    let counts = axes.iter().map(|axis| axis.listed().map(<[_]>::len));
    let all = counts.into_iter().try_fold(1usize, |all, count| Some(all.saturating_mul(count?)));
    if let Some(all) = all.filter(|all| *all < runs) {
        return Err(too_many(all));
    }
    let seed = options.seed.unwrap_or(0);
    let (mut combinations, mut seen, mut in_vain) = (Vec::new(), BTreeSet::new(), 0);
    for draw in 0.. {
        let draw_from = |axis: &Axis| axis.draw(uniform(seed, Purpose::Sweep, step_of_name(&axis.key), draw));
        let choices: Vec<_> = axes.iter().map(draw_from).collect();
        if seen.insert(choices.iter().map(|choice| text(&choice.value)).collect::<Vec<_>>()) {
            combinations.push(choices);
            in_vain = 0;
        } else {
            in_vain += 1;
        }
        if combinations.len() == runs {
            break;
        }
        if in_vain == MOST_DRAWS {
            return Err(too_many(combinations.len()));
        }
    }
    Ok(combinations)
}

/// The experiment that all runs are based on.
struct Template {
    experiment: Experiment,
    /// The same as a table with all defaults.
    table: Table,
}

impl Template {
    fn new(experiment: Experiment) -> Result<Self> {
        Ok(Self { table: experiment.table()?, experiment })
    }

    /// Refuses invalid values of an axis.
    fn check(&self, axis: &Axis) -> Result<()> {
        for Choice { value, origin } in axis.examples() {
            let refused = |why: &str| Error::new(format!("{origin}: {}: {why}", axis.key));
            if option_of(&axis.key).is_none() {
                let mut table = self.table.clone();
                place(&mut table, &axis.key, &value);
                Experiment::deserialize(table).map_err(|why| refused(&one_line(&why)))?;
            } else if matches!(value, Value::Array(_) | Value::Table(_) | Value::Datetime(_)) {
                let expected = "a plugin's option takes a number, a string, true or false";
                return Err(refused(&format!("{expected}; got {}", value.type_str())));
            } else if text(&value).contains(',') {
                return Err(refused(&format!(
                    "expected an option's value without a comma, got {}",
                    text(&value)
                )));
            }
        }
        Ok(())
    }

    /// The run with one value of each axis.
    fn setting(&self, axes: &[Axis], choices: &[Choice]) -> Result<Setting> {
        let name = name(axes, choices);
        let with_name = |error: Error| error.note("run", &name);
        let (options, keys): (Vec<_>, Vec<_>) =
            axes.iter().zip(choices).partition(|(axis, _)| option_of(&axis.key).is_some());
        let (mut table, mut placed) = (self.table.clone(), Table::new());
        for (axis, choice) in &keys {
            place(&mut table, &axis.key, &choice.value);
            place(&mut placed, &axis.key, &choice.value);
        }
        check_norm(&self.experiment.threat, &placed).map_err(with_name)?;
        for (axis, choice) in &options {
            let (plugin, option) = option_of(&axis.key).unwrap_or_default();
            let with_option = with_option(&table, plugin, option, &text(&choice.value))
                .map_err(|why| with_name(Error::new(format!("{}: {}: {why}", choice.origin, axis.key))))?;
            place(&mut table, plugin, &Value::String(with_option));
        }
        let mut experiment =
            Experiment::deserialize(table).map_err(|why| with_name(Error::new(one_line(&why))))?;
        let is_shared = |file: &&mut PathBuf| file.as_path() != Path::new(IN_RUN);
        if let Some(file) = experiment.train.store_file.as_mut().filter(is_shared) {
            file.as_mut_os_string().push(format!(".{name}"));
        }
        for (role, spec) in experiment.plugins_mut() {
            let names = |(axis, _): &&(&Axis, &Choice)| {
                let rest = axis.key.strip_prefix(role.key());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            let choice = keys.iter().chain(&options).rfind(names).map(|(_, choice)| choice.origin.clone());
            spec.origin = choice.or_else(|| self.experiment.origin_of(role, spec));
        }
        experiment.validate().map_err(|error| {
            let message = error.to_string();
            let is_about = |(axis, _): &(&Axis, &Choice)| {
                message.strip_prefix(&axis.key).is_some_and(|rest| rest.starts_with([':', '.']))
            };
            match keys.into_iter().find(is_about) {
                Some((_, choice)) => with_name(error.note("in", &choice.origin)),
                None => with_name(error),
            }
        })?;
        let values = choices.iter().map(|choice| choice.value.clone()).collect();
        Ok(Setting { name, values, experiment })
    }
}

/// The plugin and the option that a key names, if it names an option.
fn option_of(key: &str) -> Option<(&'static str, &str)> {
    let plugins = Role::ALL.into_iter().filter(|role| role.is_single()).map(Role::key);
    plugins.into_iter().find_map(|plugin| Some((plugin, key.strip_prefix(plugin)?.strip_prefix('.')?)))
}

/// Sets the value of an axis.
fn place(table: &mut Table, key: &str, value: &Value) {
    match (key, value) {
        (WHOLE, Value::Table(keys)) => keys.iter().for_each(|(key, value)| config::place(table, key, value)),
        _ => config::place(table, key, value),
    }
}

/// The spec of a plugin with an option set. It replaces an option of the same name.
fn with_option(
    table: &Table,
    plugin: &str,
    option: &str,
    value: &str,
) -> std::result::Result<String, String> {
    let mut keys = plugin.split('.');
    let first = keys.next().and_then(|key| table.get(key));
    let spec = keys.fold(first, |value, key| value?.get(key)).and_then(Value::as_str);
    let Some(spec) = spec.filter(|spec| *spec != "none") else {
        return Err(format!("there is no {plugin} to have an option `{option}`"));
    };
    let (file, options) = parts(spec)?;
    let is_option = |part: &&str| part.split_once('=').is_some_and(|(key, _)| key.trim() == option);
    let (file, set) = (quoted_if_necessary(&file), format!("{option}={value}"));
    let kept = options.into_iter().filter(|part| !is_option(part));
    Ok(std::iter::once(&*file).chain(kept).chain([&*set]).collect::<Vec<_>>().join(","))
}

/// The short form of a key for people: most keys belong to `[train]`.
pub(crate) fn short(key: &str) -> &str {
    key.strip_prefix("train.").unwrap_or(key)
}

/// The name of a run: its values sorted by key, so that the order of the file's lines does not
/// matter.
fn name(axes: &[Axis], choices: &[Choice]) -> String {
    let mut pairs: Vec<_> =
        axes.iter().zip(choices).map(|(axis, choice)| (axis.key.as_str(), text(&choice.value))).collect();
    pairs.sort();
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("{}={value}", short(key))).collect();
    let written = pairs.join(",");
    let plain = |c: char| if c.is_ascii_alphanumeric() || "=,.+-_".contains(c) { c } else { '_' };
    let mut name: String = written.chars().map(plain).collect();
    if name != written || name.len() > LONGEST_NAME {
        name.truncate(LONGEST_NAME);
        name = format!("{name}-{}", &files::sha256(written.as_bytes())[..8]);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(text: &str) -> Result<Sweep> {
        Sweep::parse(text, "s.toml")
    }

    fn names(text: &str) -> Vec<String> {
        sweep(text).expect("a sweep").settings.into_iter().map(|setting| setting.name).collect()
    }

    #[track_caller]
    fn refuses(text: &str, parts: &[&str]) {
        let error = sweep(text).expect_err("refused").to_string();
        for part in parts {
            assert!(error.contains(part), "without {part:?}: {error}");
        }
    }

    #[test]
    fn a_grid_has_every_combination_the_last_axis_fastest_and_seeds_fastest_of_all() {
        let text =
            "[sweep]\nseeds = [3, 1]\n[sweep.axes]\ntrain.momentum = [0.9, 0]\n\"train.epochs\" = [1, 2]\n";
        let expected = [
            "epochs=1,momentum=0.9,seed=3",
            "epochs=1,momentum=0.9,seed=1",
            "epochs=2,momentum=0.9,seed=3",
            "epochs=2,momentum=0.9,seed=1",
            "epochs=1,momentum=0,seed=3",
            "epochs=1,momentum=0,seed=1",
            "epochs=2,momentum=0,seed=3",
            "epochs=2,momentum=0,seed=1",
        ];
        assert_eq!(names(text), expected);
        let settings = sweep(text).expect("a sweep").settings;
        let train = &settings[5].experiment.train;
        assert_eq!((train.momentum, train.epochs, train.seed), (0.0, 1, 1));
        assert_eq!(train.batch, Experiment::default().train.batch, "other keys stay the same");
        assert_eq!(settings[5].values, [Value::Integer(0), Value::Integer(1), Value::Integer(1)]);
    }

    #[test]
    fn the_order_of_the_lines_changes_no_name() {
        let axes = ["train.epochs = [1, 2]\n", "threat.epsilon = [0.1]\n"];
        let [one, other] =
            [axes.concat(), [axes[1], axes[0]].concat()].map(|axes| names(&format!("[sweep.axes]\n{axes}")));
        assert_eq!(one, ["threat.epsilon=0.1,epochs=1", "threat.epsilon=0.1,epochs=2"]);
        assert_eq!(one, other);
    }

    #[test]
    fn a_plugins_options_are_set_in_its_spec_whatever_the_order_of_the_lines() {
        let text = "sampler = \"langevin.so,noise=0.3,step_size=0.1\"\n[sweep.axes]\n\
                    \"sampler.noise\" = [0.1, 0.2]\nsampler = [\"a.so\", \"b.so,noise=1,steps=2\"]\n\
                    \"train.probe\" = [\"pgd.so\"]\n\"train.probe.steps\" = [7]\nmodel.arch = [\"A\"]\n";
        let settings = sweep(text).expect("a sweep").settings;
        let specs: Vec<_> = settings
            .iter()
            .map(|setting| setting.experiment.sampler.0.as_ref().expect("a sampler").to_string())
            .collect();
        assert_eq!(
            specs,
            ["a.so,noise=0.1", "b.so,steps=2,noise=0.1", "a.so,noise=0.2", "b.so,steps=2,noise=0.2"]
        );
        let Experiment { model, train, .. } = &settings[0].experiment;
        assert_eq!(model.to_string(), "cnn.so,arch=A");
        assert_eq!(train.probe.as_ref().map(ToString::to_string).as_deref(), Some("pgd.so,steps=7"));
        // An error in a plugin's spec names the line that changed the spec.
        assert_eq!(model.origin.as_deref(), Some("s.toml, line 7"));
        assert_eq!(train.probe.as_ref().and_then(|probe| probe.origin.as_deref()), Some("s.toml, line 6"));
        refuses(
            "sampler = \"none\"\n[sweep.axes]\nsampler.noise = [0.1]\n",
            &["s.toml, line 3: sampler.noise: there is no sampler to have an option `noise`"],
        );
    }

    #[test]
    fn every_plugin_of_an_experiment_can_be_an_axis_and_so_can_its_options() {
        for role in Role::ALL {
            let key = role.key();
            let list = |names: [&str; 2]| {
                if role.is_single() {
                    format!("[\"{}\", \"{}\"]", names[0], names[1])
                } else {
                    format!("[[\"{}\"], [\"{}\"]]", names[0], names[1])
                }
            };
            let text = format!("[sweep.axes]\n\"{key}\" = {}\n", list(["a.so,x=1", "b.so"]));
            let named = |settings: &[Setting]| -> Vec<_> {
                let of_role = |setting: &Setting| {
                    let mut plugins = setting.experiment.plugins().filter(|(known, _)| *known == role);
                    plugins.next().map(|(_, spec)| (spec.to_string(), spec.origin.clone()))
                };
                settings.iter().filter_map(of_role).collect()
            };
            let line = Some("s.toml, line 2".to_owned());
            let expected = ["a.so,x=1", "b.so"].map(|spec| (spec.to_owned(), line.clone()));
            assert_eq!(named(&sweep(&text).expect("a sweep").settings), expected, "{key}");
            if role.is_single() {
                let text = format!("{text}\"{key}.x\" = [2]\n");
                let specs = named(&sweep(&text).expect("a sweep").settings).into_iter().map(|(spec, _)| spec);
                assert!(specs.eq(["a.so,x=2", "b.so,x=2"]), "{key}");
            }
        }
    }

    #[test]
    fn whole_experiments_are_an_axis_too() {
        let text = "[train]\nmomentum = 0.5\n[sweep]\nseeds = [1, 2]\n[sweep.axes]\nexperiment = [\n\
                    { sampler = \"none\", train = { epochs = 3 } },\n\
                    { sampler = \"pgd.so,steps=7\", threat = { epsilon = 0.1 } },\n]\n";
        let settings = sweep(text).expect("a sweep").settings;
        let Experiment { sampler, train, threat, .. } = &settings[1].experiment;
        assert_eq!((train.epochs, train.momentum, train.seed, threat.epsilon), (3, 0.5, 2, 0.3));
        assert!(sampler.0.is_none());
        let Experiment { sampler, train, threat, .. } = &settings[2].experiment;
        assert_eq!((train.epochs, train.momentum, train.seed, threat.epsilon), (5, 0.5, 1, 0.1));
        assert_eq!(sampler.0.as_ref().map(ToString::to_string).as_deref(), Some("pgd.so,steps=7"));
        refuses(
            &text.replace("[sweep.axes]\n", "[sweep.axes]\ntrain.epochs = [1]\n"),
            &["s.toml, line 6: train.epochs is set twice", "experiment, s.toml, line 7"],
        );
        refuses("[sweep.axes]\nexperiment = [{ epoch = 1 }]\n", &["s.toml, line 2", "unknown field `epoch`"]);
        refuses("[sweep.axes]\nexperiment = [3]\n", &["s.toml, line 2", "unknown field `experiment`"]);
    }

    #[test]
    fn fractions_are_numbers_in_settings_and_their_names() {
        let text = "[sweep.axes]\nthreat.epsilon = [\"1/4\", 0.5]\nsampler.noise = [\"1/8\"]\n";
        let settings = sweep(text).expect("a sweep").settings;
        let epsilons = settings.iter().map(|setting| setting.experiment.threat.epsilon);
        assert!(epsilons.eq([0.25, 0.5]));
        assert_eq!(settings[0].name, "sampler.noise=0.125,threat.epsilon=0.25");
    }

    #[test]
    fn an_axis_gives_another_norm_a_radius_of_its_own() {
        let alone = "[sweep.axes]\nthreat.norm = [\"linf\", \"l2\"]\n";
        refuses(alone, &["threat.norm: l2 needs an epsilon of its own", "threat.norm=l2"]);
        let whole = "[sweep.axes]\nexperiment = [{ threat = { norm = \"l2\" } }]\n";
        refuses(whole, &["threat.norm: l2 needs an epsilon of its own"]);
        let both = "[sweep.axes]\nthreat = [{ norm = \"linf\" }, { norm = \"l2\", epsilon = 2 }]\n";
        assert_eq!(sweep(both).expect("a sweep").settings.len(), 2);
    }

    #[test]
    fn tables_vary_several_keys_together_and_override_the_file() {
        let text = "[train]\nmomentum = 0.5\n[sweep.axes]\n\
                    train = [{ epochs = 1, learning_rate = 0.1 }, { epochs = 2 }]\n";
        let sweep = sweep(text).expect("a sweep");
        let train = |number: usize| &sweep.settings[number].experiment.train;
        assert_eq!((train(0).epochs, train(0).learning_rate, train(0).momentum), (1, 0.1, 0.5));
        assert_eq!((train(1).epochs, train(1).learning_rate, train(1).momentum), (2, 0.02, 0.5));
        assert_eq!(sweep.settings[0].name, "train=epochs=1,learning_rate=0.1");
        // Other keys of the same table may vary separately.
        let more =
            text.replace("[sweep.axes]\n", "[sweep]\nseeds = [3, 4]\n[sweep.axes]\n\"train.batch\" = [7]\n");
        let settings = super::tests::sweep(&more).expect("a sweep").settings;
        let train = &settings[3].experiment.train;
        assert_eq!((train.epochs, train.batch, train.seed), (2, 7, 4));
    }

    #[test]
    fn random_settings_differ_and_more_runs_keep_the_first() {
        let text = |runs: usize, more: &str| {
            format!(
                "[sweep]\nsearch = \"random\"\nruns = {runs}\n{more}[sweep.axes]\n\
                 train.epochs = [1, 2, 3]\ntrain.momentum = {{ from = 0.0, to = 0.4, step = 0.1 }}\n"
            )
        };
        // All of the 3 x 5 settings are found, each once.
        let all = names(&text(15, ""));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 15);
        assert_eq!(names(&text(4, "")), all[..4]);
        assert_ne!(names(&text(4, "seed = 1\n")), all[..4]);
        refuses(&text(16, ""), &["s.toml: sweep.runs: expected at most 15", "got 16"]);
        // Each setting with each seed.
        let seeds = names(&text(2, "seeds = [7, 8]\n"));
        let expected: Vec<_> =
            all[..2].iter().flat_map(|name| [7, 8].map(|seed| format!("{name},seed={seed}"))).collect();
        assert_eq!(seeds, expected);
    }

    #[test]
    fn random_numbers_cover_the_whole_range() {
        let text = "[sweep]\nsearch = \"random\"\nruns = 1000\n[sweep.axes]\n\
                    train.learning_rate = { from = 0.001, to = 0.1, scale = \"log\" }\n";
        let settings = sweep(text).expect("a sweep").settings;
        let rates = || settings.iter().map(|setting| setting.experiment.train.learning_rate);
        assert!(rates().all(|rate| (0.001..=0.1).contains(&rate)));
        // Half of them lie below the geometric mean, 0.01, with a standard deviation of 16.
        let below = rates().filter(|rate| *rate < 0.01).count();
        assert!((420..580).contains(&below), "{below}");
        refuses(
            &text.replace("0.001, to = 0.1", "1.0, to = 1.005"),
            &["expected at most 6, all settings there are"],
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let axes = |axes: &str| format!("[train]\nepochs = 3\n[sweep.axes]\n{axes}\n");
        for (text, parts) in [
            (
                "[train]\nepochs = 3\n".to_owned(),
                ["s.toml has no table [sweep]", "host train --config"].as_slice(),
            ),
            ("sweep = 3\n".to_owned(), &["s.toml, line 1: sweep: expected a table"]),
            ("[sweep]\n".to_owned(), &["the sweep varies nothing", "[sweep.axes]"]),
            ("[sweep]\naxes = 3\n".to_owned(), &["sweep.axes: expected a table"]),
            ("[sweep]\nrun = 3\n".to_owned(), &["s.toml, line 2: unknown field `run`", "`runs`", "`axes`"]),
            ("[sweep]\nsearch = \"bayes\"\n".to_owned(), &["s.toml, line 2: unknown variant `bayes`"]),
            (
                "[train]\nepoch = 3\n[sweep]\nseeds = [1]\n".to_owned(),
                &["s.toml, line 2: unknown field `epoch`"],
            ),
            ("[sweep]\nseeds = []\n".to_owned(), &["s.toml, line 2: train.seed: the list is empty"]),
            (
                "[sweep]\nseeds = [-1]\n".to_owned(),
                &["s.toml, line 2: train.seed: invalid value: integer `-1`"],
            ),
            ("[sweep]\nruns = 3\nseeds = [1]\n".to_owned(), &["sweep.runs goes with search = \"random\""]),
            (
                "[sweep]\nsearch = \"random\"\nseeds = [1]\n".to_owned(),
                &["sweep.runs: expected 1 to 10000", "got nothing"],
            ),
            (axes("train.epoch = [1]"), &["s.toml, line 4: train.epoch: unknown field `epoch`"]),
            (axes("trian.epochs = [1]"), &["s.toml, line 4: trian.epochs: unknown field `trian`"]),
            (axes("train.device.x = [1]"), &["s.toml, line 4: train.device.x: invalid type: map"]),
            (
                axes("train.epochs = [1,\n\"two\"]"),
                &["s.toml, line 5: train.epochs: invalid type: string \"two\""],
            ),
            (
                axes("train.epochs = { from = 0.5, to = 1.5, step = 0.5 }"),
                &["s.toml, line 4: train.epochs: invalid type: floating point `0.5`"],
            ),
            (
                axes("train.momentum = { from = 0.5, to = 0.9 }"),
                &["line 4: train.momentum: the range never ends"],
            ),
            (axes("sampler.noise = [[1]]"), &["s.toml, line 4: sampler.noise: a plugin's option takes"]),
            (
                axes("sampler.noise = [\"1,sign=true\"]"),
                &["s.toml, line 4: sampler.noise:", "without a comma"],
            ),
            (axes("sampler = [\"a.so,x\"]"), &["s.toml, line 4: sampler: expected option=value"]),
            (
                axes("train.momentum = [0.5, 1]"),
                &["train.momentum: expected a number from 0", "s.toml, line 4"],
            ),
            (
                axes("train.warmup_epochs = [2, 4]"),
                &["train.warmup_epochs: expected a number from 0 to train.epochs, got 4", "warmup_epochs=4"],
            ),
            (
                axes("train.epochs = [1]\n\"train.epochs\" = [2]"),
                &["s.toml, line 5: train.epochs is set twice", "train.epochs, s.toml, line 4"],
            ),
            (
                axes("train = [{ epochs = 1 }]\n\"train.epochs\" = [2]"),
                &["s.toml, line 5: train.epochs is set twice", "train, s.toml, line 4"],
            ),
            (
                axes("train.seed = [1]").replace("[sweep.axes]", "[sweep]\nseeds = [1]\n[sweep.axes]"),
                &["train.seed is set twice"],
            ),
            (
                axes(
                    "train.seed = { from = 0, to = 200, step = 1 }\ntrain.epochs = { from = 1, to = 100, step = 1 }",
                ),
                &["at most 10000 runs, got 20100"],
            ),
            (
                axes(
                    "train.batch = { from = 1, to = 200, step = 1 }\ntrain.epochs = { from = 1, to = 100, step = 1 }",
                ),
                &["s.toml, line 5: train.epochs makes more than 10000 runs"],
            ),
        ] {
            refuses(&text, parts);
        }
    }

    #[test]
    fn every_run_has_a_particle_file_of_its_own() {
        let text = "[train]\nstore_file = \"big/particles\"\n[sweep]\nseeds = [0, 1]\n";
        let settings = sweep(text).expect("a sweep").settings;
        let files: Vec<_> =
            settings.iter().filter_map(|setting| setting.experiment.train.store_file.as_deref()).collect();
        assert_eq!(files, ["big/particles.seed=0", "big/particles.seed=1"].map(Path::new));
        // One name is a prefix of the other.
        let text = "[train]\nstore_file = \"p\"\n[sweep.axes]\ntrain.momentum = [0.0, 0.1]\n";
        let settings = sweep(text).expect("a sweep").settings;
        let files = settings.iter().filter_map(|setting| setting.experiment.train.store_file.as_deref());
        let all: Vec<_> = files.flat_map(crate::training::store::files).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "no two runs have a file in common");
    }

    #[test]
    fn names_are_valid_for_files() {
        let attacks = "[sweep.axes]\neval.attacks = [[\"fgsm.so\"], [\"fgsm.so\", \"./pgd.so,steps=3\"]]\n";
        let names = names(attacks);
        assert_eq!(names[0], "eval.attacks=fgsm.so");
        assert!(names[1].starts_with("eval.attacks=fgsm.so+._pgd.so,steps=3-"), "{names:?}");
        let long = format!("[sweep.axes]\nmodel.note = [\"{}\", \"{0}x\"]\n", "n".repeat(300));
        let names = self::names(&long);
        assert!(names.iter().all(|name| name.len() < 220));
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn every_run_is_in_one_task_whether_counted_from_0_or_from_1() {
        for first in [0, 1] {
            let tasks: Vec<Task> =
                (first..first + 3).map(|number| format!("{number}/3").parse().expect("a task")).collect();
            for run in 1..=10 {
                assert_eq!(tasks.iter().filter(|task| task.has(run)).count(), 1, "run {run}");
            }
            let shares = tasks.iter().map(|task| (1..=10).filter(|run| task.has(*run)).count());
            assert!(shares.into_iter().all(|share| (3..=4).contains(&share)));
        }
        for written in ["4/3", "1/0", "1", "-1/3", "a/b", "1/3/5"] {
            assert!(written.parse::<Task>().is_err(), "{written}");
        }
    }

    #[test]
    fn every_example_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sweeps");
        let files: Vec<_> = std::fs::read_dir(folder).expect("a folder").flatten().collect();
        assert!(!files.is_empty());
        for file in files {
            assert!(Sweep::read(&file.path()).expect("valid").settings.len() > 1);
        }
    }

    #[test]
    fn every_table_and_figure_of_the_paper_has_a_file_and_a_quick_one_like_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/paper");
        let files = |folder: &Path| {
            let files = std::fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path());
            let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
            files.sort();
            files
        };
        let (full, quick) = (files(&folder), files(&folder.join("quick")));
        assert_eq!(full.len(), 9);
        assert!(full.iter().map(|path| path.file_name()).eq(quick.iter().map(|path| path.file_name())));
        for (full, quick) in full.iter().zip(&quick) {
            let [full, quick] = [full, quick].map(|file| Sweep::read(file).expect("valid"));
            assert_eq!(full.axes, quick.axes);
            let setting = |sweep: &Sweep| sweep.settings[0].experiment.clone();
            let (full, quick) = (setting(&full), setting(&quick));
            assert_eq!((full.data.name, full.threat.epsilon), (quick.data.name, quick.threat.epsilon));
            assert_eq!(full.train.trace.is_some(), quick.train.trace.is_some());
            assert!(full.train.epochs > quick.train.epochs && full.eval.points.is_none());
        }
    }
}
