//! The axes of a sweep: keys of an experiment, each with a list or a range of values.

use crate::util::number::fraction;
use crate::{Error, Result};
use serde::Deserialize;
use toml::Value;
use toml::de::{DeArray, DeTable, DeValue, ValueDeserializer};

/// The largest number of values of one axis, and of settings of one sweep.
pub(super) const MOST: usize = 10_000;

/// The significant digits of a number drawn at random.
const DRAWN_DIGITS: usize = 4;

/// The decimal digits of a range's numbers that are free of rounding errors.
const TIDY_DIGITS: i32 = 12;

/// Whole numbers up to this one are exact in an f64.
const LARGEST: f64 = 9e15;

/// A key of an experiment, or an option of one of its plugins, and its values.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// The dotted key: `train.epochs`, or `sampler.noise` for an option of a plugin.
    pub key: String,
    /// Its place in the file: "sweep.toml, line 9".
    pub origin: String,
    values: Values,
}

/// One value of an axis.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// The value.
    pub value: Value,
    /// Its place in the file.
    pub origin: String,
}

#[derive(Debug, Clone)]
enum Values {
    Listed(Vec<Choice>),
    /// A range without a step or a count. Numbers are drawn from it.
    Drawn(Range),
}

/// A range as it is written in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: Value,
    to: Value,
    step: Option<Value>,
    count: Option<usize>,
    #[serde(default)]
    scale: Scale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scale {
    #[default]
    Linear,
    Log,
}

const RANGE_KEYS: [&str; 5] = ["from", "to", "step", "count", "scale"];

/// All axes in a table, in the order of the file. A table in it that is not a range has further
/// axes, so that `train.epochs = [1, 2]` needs no quotes.
///
/// # Errors
/// If an axis is empty, endless, or neither a list nor a range. The error names the axis and its
/// line.
pub(super) fn axes(table: &DeTable, origin: &dyn Fn(usize) -> String) -> Result<Vec<Axis>> {
    let mut found = Vec::new();
    collect(table, "", origin, &mut found)?;
    found.sort_by_key(|(start, _)| *start);
    Ok(found.into_iter().map(|(_, axis)| axis).collect())
}

fn collect(
    table: &DeTable,
    prefix: &str,
    origin: &dyn Fn(usize) -> String,
    found: &mut Vec<(usize, Axis)>,
) -> Result<()> {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let start = name.span().start;
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() && !is_range(inner) => {
                collect(inner, &format!("{key}."), origin, found)?;
            }
            _ => found.push((start, Axis::new(key, origin(start), value, origin)?)),
        }
    }
    Ok(())
}

fn is_range(table: &DeTable) -> bool {
    let composite = |value: &DeValue| value.is_array() || value.is_table();
    table.iter().any(|(key, value)| RANGE_KEYS.contains(&&**key.get_ref()) && !composite(value.get_ref()))
}

impl Axis {
    /// The axis of a list or a range.
    ///
    /// # Errors
    /// As for [`axes`].
    pub(super) fn new(
        key: String,
        place: String,
        written: &toml::Spanned<DeValue>,
        origin: &dyn Fn(usize) -> String,
    ) -> Result<Self> {
        let refused = |why: String| Error::new(format!("{place}: {key}: {why}"));
        let values = match written.get_ref() {
            DeValue::Array(list) => Values::Listed(listed(list, origin).map_err(refused)?),
            DeValue::Table(_) => {
                let range = Value::deserialize(ValueDeserializer::from(written.clone()))
                    .and_then(|range| Range::deserialize(with_numbers(range)))
                    .map_err(|why| refused(why.message().to_owned()))?;
                match range.numbers().map_err(refused)? {
                    None => Values::Drawn(range),
                    Some(numbers) => Values::Listed(
                        numbers.into_iter().map(|value| Choice { value, origin: place.clone() }).collect(),
                    ),
                }
            }
            other => {
                let expected = "a list, or a range such as { from = 1, to = 5, step = 2 }";
                return Err(refused(format!("expected {expected}, got {}", with_article(other.type_str()))));
            }
        };
        Ok(Self { key, origin: place, values })
    }

    /// Its values, if they are not drawn.
    pub(super) fn listed(&self) -> Option<&[Choice]> {
        match &self.values {
            Values::Listed(values) => Some(values),
            Values::Drawn(_) => None,
        }
    }

    /// Values to check its type with: all of them, or the ends of a range.
    pub(super) fn examples(&self) -> Vec<Choice> {
        match &self.values {
            Values::Listed(values) => values.clone(),
            Values::Drawn(range) => {
                [0.0, 1.0].map(|at| Choice { value: range.at(at), origin: self.origin.clone() }).into()
            }
        }
    }

    /// The value that belongs to a random number from 0 to below 1.
    pub(super) fn draw(&self, uniform: f64) -> Choice {
        match &self.values {
            Values::Listed(values) => values[(uniform * values.len() as f64) as usize].clone(),
            Values::Drawn(range) => Choice { value: range.at(uniform), origin: self.origin.clone() },
        }
    }
}

fn listed(list: &DeArray, origin: &dyn Fn(usize) -> String) -> std::result::Result<Vec<Choice>, String> {
    if list.is_empty() {
        return Err("the list is empty; expected at least one value".to_owned());
    }
    if list.len() > MOST {
        return Err(format!("expected at most {MOST} values, got {}", list.len()));
    }
    let mut choices: Vec<Choice> = Vec::new();
    for item in list {
        let value = Value::deserialize(ValueDeserializer::from(item.clone()))
            .map(with_numbers)
            .map_err(|why| why.message().to_owned())?;
        if choices.iter().any(|choice| text(&choice.value) == text(&value)) {
            return Err(format!("{} is listed twice", text(&value)));
        }
        choices.push(Choice { value, origin: origin(item.span().start) });
    }
    Ok(choices)
}

/// A value with numbers in place of fractions such as "8/255", so that names and tables have them.
fn with_numbers(value: Value) -> Value {
    match value {
        Value::String(text) => fraction(&text).map_or(Value::String(text), Value::Float),
        Value::Array(list) => Value::Array(list.into_iter().map(with_numbers).collect()),
        Value::Table(table) => {
            Value::Table(table.into_iter().map(|(key, value)| (key, with_numbers(value))).collect())
        }
        other => other,
    }
}

impl Range {
    /// All its numbers, both ends included; none without a step or a count.
    fn numbers(&self) -> std::result::Result<Option<Vec<Value>>, String> {
        let (from, to) = (number("from", &self.from)?, number("to", &self.to)?);
        if from > to {
            return Err(format!("expected `from` to be at most `to`, got {from} and {to}"));
        }
        if self.scale == Scale::Log && from <= 0.0 {
            return Err(format!("scale \"log\": expected `from` above 0, got {from}"));
        }
        let numbers: Vec<f64> = match (&self.step, self.count) {
            (Some(_), Some(_)) => return Err("expected `step` or `count`, got both".to_owned()),
            (Some(_), None) if self.scale == Scale::Log => {
                return Err("scale \"log\" goes with `count`, got `step`".to_owned());
            }
            (Some(step), None) => {
                let step = number("step", step)?;
                if step <= 0.0 {
                    return Err(format!("expected a `step` above 0, got {step}: the range never ends"));
                }
                let steps = (to - from) / step;
                if steps >= MOST as f64 {
                    return Err(format!("expected at most {MOST} values, got {:.0}", steps + 1.0));
                }
                // 0.1 + 2 x 0.1 is a little more than 0.3, which must be included.
                let last = (steps + 1e-9).floor() as usize;
                (0..=last).map(|index| from + index as f64 * step).collect()
            }
            (None, Some(count)) => {
                if !(2..=MOST).contains(&count) {
                    return Err(format!("`count`: expected 2 to {MOST}, got {count}"));
                }
                (0..count).map(|index| self.between(index as f64 / (count - 1) as f64)).collect()
            }
            (None, None) => return Ok(None),
        };
        let values: Vec<_> = numbers.into_iter().map(|number| self.value(number)).collect();
        match values.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("the range has {} twice; expected fewer values", text(&pair[0]))),
            None => Ok(Some(values)),
        }
    }

    /// The number at a share of the distance from one end to the other.
    fn between(&self, share: f64) -> f64 {
        let [from, to] = [&self.from, &self.to].map(|end| number("", end).unwrap_or_default());
        match self.scale {
            _ if share == 1.0 => to,
            Scale::Linear => from + share * (to - from),
            Scale::Log => from * (to / from).powf(share),
        }
    }

    /// A number of the range without rounding errors. It is whole if the ends and the step are
    /// written as whole numbers.
    fn value(&self, number: f64) -> Value {
        if self.is_whole() {
            return Value::Integer(number.round() as i64);
        }
        let [from, to] = [0.0, 1.0].map(|share| self.between(share));
        if [from, to].contains(&number) {
            return Value::Float(number);
        }
        let size = match self.scale {
            Scale::Linear => from.abs().max(to.abs()),
            Scale::Log => number,
        };
        let decimals = (TIDY_DIGITS - size.log10().ceil().max(-300.0) as i32).max(0) as usize;
        Value::Float(format!("{number:.decimals$}").parse().unwrap_or(number))
    }

    /// The number that belongs to a random number from 0 to below 1. Whole numbers have equal
    /// probability. Real ones are rounded to some significant digits, unless the result is outside
    /// the range.
    fn at(&self, uniform: f64) -> Value {
        let (from, to) = (self.between(0.0), self.between(1.0));
        if self.is_whole() {
            let number = match self.scale {
                Scale::Linear => from + uniform * (to - from + 1.0),
                Scale::Log => from * ((to + 1.0) / from).powf(uniform),
            };
            return Value::Integer((number.floor() as i64).min(to as i64));
        }
        let (number, digits) = (self.between(uniform), DRAWN_DIGITS - 1);
        let rounded = format!("{number:.digits$e}").parse().ok().filter(|it| (from..=to).contains(it));
        Value::Float(rounded.unwrap_or(number))
    }

    fn is_whole(&self) -> bool {
        [&self.from, &self.to].into_iter().chain(&self.step).all(Value::is_integer)
    }
}

fn number(name: &str, value: &Value) -> std::result::Result<f64, String> {
    let number = match value {
        Value::Integer(number) => *number as f64,
        Value::Float(number) => *number,
        other => return Err(format!("`{name}`: expected a number, got {}", with_article(other.type_str()))),
    };
    // False for NaN too.
    if number.abs() <= LARGEST {
        Ok(number)
    } else {
        Err(format!("`{name}`: expected a number of at most {LARGEST:e}, got {number}"))
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A value in its usual notation, the same for 1 and 1.0.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) => number.to_string(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join("+"),
        Value::Table(table) => {
            table.iter().map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Axis>> {
        let table = DeTable::parse(text).expect("TOML");
        let line = |offset: usize| format!("line {}", text[..offset].matches('\n').count() + 1);
        axes(table.get_ref(), &line)
    }

    fn values(written: &str) -> Vec<Value> {
        let axes = parse(&format!("x = {written}")).expect("an axis");
        axes[0].listed().expect("a list").iter().map(|choice| choice.value.clone()).collect()
    }

    fn refusal(written: &str) -> String {
        parse(&format!("x = {written}")).expect_err("refused").to_string()
    }

    fn floats(numbers: &[f64]) -> Vec<Value> {
        numbers.iter().map(|number| Value::Float(*number)).collect()
    }

    fn integers(numbers: &[i64]) -> Vec<Value> {
        numbers.iter().map(|number| Value::Integer(*number)).collect()
    }

    #[test]
    fn axes_keep_the_order_of_the_file_and_need_no_quotes() {
        let text = "\"train.seed\" = [2, 1]\nsampler.noise = { from = 0.1, to = 0.2, step = 0.1 }\n\
                    model.scale = [3]\ntrain.epochs = [1]\n";
        let axes = parse(text).expect("axes");
        let keys: Vec<_> = axes.iter().map(|axis| (axis.key.as_str(), axis.origin.as_str())).collect();
        let expected = [
            ("train.seed", "line 1"),
            ("sampler.noise", "line 2"),
            ("model.scale", "line 3"),
            ("train.epochs", "line 4"),
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn numbers_may_be_fractions() {
        assert_eq!(values("[\"1/4\", 0.5, \"a/b\"]")[..2], floats(&[0.25, 0.5]));
        assert_eq!(values("[\"1/4\", \"a/b\"]")[1], Value::from("a/b"));
        let range = "{ from = \"1/4\", to = \"3/4\", step = \"1/4\" }";
        assert_eq!(values(range), floats(&[0.25, 0.5, 0.75]));
        let table = &values("[{ epsilon = \"1/4\" }]")[0];
        assert_eq!(text(table), "epsilon=0.25");
        assert!(refusal("[\"1/4\", 0.25]").contains("0.25 is listed twice"));
    }

    #[test]
    fn a_value_has_the_line_of_its_place() {
        let axes = parse("x = [\n1,\n\n2]").expect("an axis");
        let lines: Vec<_> =
            axes[0].listed().expect("a list").iter().map(|choice| choice.origin.as_str()).collect();
        assert_eq!(lines, ["line 2", "line 4"]);
    }

    #[test]
    fn steps_include_the_end_if_they_reach_it() {
        assert_eq!(values("{ from = 1, to = 5, step = 2 }"), integers(&[1, 3, 5]));
        assert_eq!(values("{ from = 1, to = 6, step = 2 }"), integers(&[1, 3, 5]));
        // Plain sums give 0.30000000000000004, and miss 0.7.
        assert_eq!(
            values("{ from = 0.1, to = 0.7, step = 0.1 }"),
            floats(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
        );
        assert_eq!(values("{ from = -0.2, to = 0.2, step = 0.1 }"), floats(&[-0.2, -0.1, 0.0, 0.1, 0.2]));
        assert_eq!(values("{ from = 1, to = 2, step = 0.5 }"), floats(&[1.0, 1.5, 2.0]));
        assert_eq!(values("{ from = 3, to = 3, step = 1 }"), integers(&[3]));
    }

    #[test]
    fn counts_give_equal_steps_or_equal_factors() {
        assert_eq!(values("{ from = 0.0, to = 1.0, count = 5 }"), floats(&[0.0, 0.25, 0.5, 0.75, 1.0]));
        // 0.4 / 0.05 = 8 = 2 x 2 x 2; 0.1 / 0.0001 = 1000 = 10 x 10 x 10.
        assert_eq!(
            values("{ from = 0.05, to = 0.4, scale = \"log\", count = 4 }"),
            floats(&[0.05, 0.1, 0.2, 0.4])
        );
        assert_eq!(
            values("{ from = 0.0001, to = 0.1, scale = \"log\", count = 4 }"),
            floats(&[0.0001, 0.001, 0.01, 0.1])
        );
        assert_eq!(values("{ from = 1, to = 100, scale = \"log\", count = 3 }"), integers(&[1, 10, 100]));
        // The ends are not rounded.
        let third = 1.0 / 3.0;
        assert_eq!(values(&format!("{{ from = 0.0, to = {third}, count = 2 }}")), floats(&[0.0, third]));
    }

    #[test]
    fn draws_cover_the_range_and_stay_in_it() {
        let drawn = |written: &str, uniform: f64| {
            parse(&format!("x = {written}")).expect("an axis")[0].draw(uniform).value
        };
        let below_one = 1.0 - f64::EPSILON / 2.0;
        let real = "{ from = 0.001, to = 0.1, scale = \"log\" }";
        assert_eq!(drawn(real, 0.0), Value::Float(0.001));
        assert_eq!(drawn(real, 0.5), Value::Float(0.01));
        // 0.001 x 100^0.3 = 0.00398107...
        assert_eq!(drawn(real, 0.3), Value::Float(0.003981));
        assert_eq!(drawn("{ from = 0.0, to = 3.0 }", 0.25), Value::Float(0.75));
        assert_eq!(drawn("{ from = 0.12345, to = 0.12346 }", 0.0), Value::Float(0.12345));
        let whole = "{ from = 1, to = 4 }";
        let numbers = [0.0, 0.24, 0.26, 0.74, below_one].map(|uniform| drawn(whole, uniform));
        assert_eq!(numbers.to_vec(), integers(&[1, 1, 2, 3, 4]));
        assert_eq!(drawn("{ from = 1, to = 7, scale = \"log\" }", 0.5), Value::Integer(2));
        let list = "[\"a\", \"b\", \"c\"]";
        assert_eq!(
            [0.0, 0.5, below_one].map(|uniform| text(&drawn(list, uniform))),
            ["a", "b", "c"].map(str::to_owned)
        );
    }

    #[test]
    fn invalid_axes_are_refused() {
        for (written, expected) in [
            ("[]", "line 1: x: the list is empty"),
            ("3", "line 1: x: expected a list, or a range such as"),
            ("\"a\"", "got a string"),
            ("{}", "missing field `from`"),
            ("{ from = 1 }", "missing field `to`"),
            ("{ from = 1, to = 2, stop = 3 }", "unknown field `stop`"),
            ("{ from = \"a\", to = 2, step = 1 }", "`from`: expected a number, got a string"),
            ("{ from = 1, to = 2, step = 0 }", "a `step` above 0, got 0: the range never ends"),
            ("{ from = 1, to = 2, step = -1 }", "never ends"),
            ("{ from = 1, to = inf, step = 1 }", "`to`: expected a number of at most 9e15, got inf"),
            ("{ from = 1.0, to = nan, count = 3 }", "`to`: expected a number of at most 9e15, got NaN"),
            ("{ from = 2, to = 1, step = 1 }", "`from` to be at most `to`, got 2 and 1"),
            ("{ from = 1, to = 2, step = 1, count = 2 }", "`step` or `count`, got both"),
            ("{ from = 1, to = 2, count = 1 }", "`count`: expected 2 to 10000, got 1"),
            ("{ from = 0, to = 2, scale = \"log\", count = 2 }", "`from` above 0, got 0"),
            ("{ from = 1, to = 2, scale = \"log\", step = 1 }", "goes with `count`"),
            ("{ from = 1, to = 3, count = 9 }", "the range has 1 twice"),
            ("{ from = 1, to = 1e9, step = 1 }", "at most 10000 values, got 1000000000"),
            ("{ from = 0.1, to = 0.2, scale = \"cubic\" }", "unknown variant `cubic`"),
            ("[0.1, 0.2, 0.1]", "0.1 is listed twice"),
            ("[1, 1.0]", "1 is listed twice"),
        ] {
            let message = refusal(written);
            assert!(message.contains(expected), "{written}: {message}");
        }
    }
}
