//! Real numbers as values of options.

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

const EXPECTED: &str = "a number, or a fraction such as 8/255";

/// A real number, which an option writes as a number or as a fraction. In files, a fraction is a
/// string.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Real(f64);

/// A list of real numbers; a flag separates them by commas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reals(Vec<Real>);

/// The value of a fraction of two numbers, such as `8/255`, if the text is one.
pub(crate) fn fraction(text: &str) -> Option<f64> {
    let (above, below) = text.split_once('/')?;
    let value = above.trim().parse::<f64>().ok()? / below.trim().parse::<f64>().ok()?;
    value.is_finite().then_some(value)
}

/// So many of something: `1 run`, `2 runs`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Numbers with commas between them, as a flag takes them.
pub(crate) fn listed(numbers: &[f64]) -> String {
    numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

/// A number in few characters.
pub(crate) fn short_number(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let tidy = |digits: &str| {
        let whole = !digits.contains('.');
        if whole { digits.to_owned() } else { digits.trim_end_matches('0').trim_end_matches('.').to_owned() }
    };
    let size = number.abs();
    if !(1e-3..1e6).contains(&size) {
        let written = format!("{number:.2e}");
        let (digits, power) = written.split_once('e').unwrap_or((&written, "0"));
        return format!("{}e{power}", tidy(digits));
    }
    let decimals = (3 - size.log10().floor() as i32).max(0) as usize;
    tidy(&format!("{number:.decimals$}"))
}

impl From<Real> for f64 {
    fn from(number: Real) -> Self {
        number.0
    }
}

impl Reals {
    /// The list that is 1 alone.
    pub(crate) fn one() -> Self {
        Self(vec![Real(1.0)])
    }
}

impl From<Reals> for Vec<f64> {
    fn from(numbers: Reals) -> Self {
        numbers.0.into_iter().map(f64::from).collect()
    }
}

impl FromStr for Real {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim().parse().ok().or_else(|| fraction(text));
        number.map(Self).ok_or_else(|| format!("expected {EXPECTED}, got `{text}`"))
    }
}

impl FromStr for Reals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl<'de> Deserialize<'de> for Real {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RealVisitor)
    }
}

struct RealVisitor;

impl Visitor<'_> for RealVisitor {
    type Value = Real;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(EXPECTED)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Real, E> {
        Ok(Real(number))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Real, E> {
        Ok(Real(number as f64))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Real, E> {
        Ok(Real(number as f64))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Real, E> {
        let number = fraction(text).map(Real);
        number.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_something_is_not_several() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "run")), ["0 runs", "1 run", "2 runs"]);
    }

    #[test]
    fn numbers_are_short_but_precise_enough() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.5e-4, "1.5e-4"),
            (2e-4, "2e-4"),
            (-1.25e7, "-1.25e7"),
            (0.00125, "0.00125"),
            (0.0313725, "0.03137"),
            (0.5, "0.5"),
            (100.0, "100"),
            (60000.0, "60000"),
            (99.5, "99.5"),
        ] {
            assert_eq!(short_number(number), expected);
        }
    }

    #[test]
    fn a_flag_takes_numbers_and_fractions() {
        for (text, expected) in
            [("8/255", 8.0 / 255.0), ("0.3", 0.3), (" 2 / 4 ", 0.5), ("-1/4", -0.25), ("1e-3", 1e-3)]
        {
            assert_eq!(text.parse(), Ok(Real(expected)), "{text}");
        }
        for text in ["", "/", "8/", "/255", "1/0", "0/0", "1/2/3", "a/b", "8:255"] {
            let refused = text.parse::<Real>().expect_err("refused");
            assert_eq!(refused, format!("expected a number, or a fraction such as 8/255, got `{text}`"));
        }
        assert_eq!("0.25,1/2".parse::<Reals>().map(Vec::from), Ok(vec![0.25, 0.5]));
        assert!("0.25,".parse::<Reals>().is_err());
    }

    #[test]
    fn a_file_has_numbers_or_fractions_as_strings_and_a_fraction_is_recorded_as_its_number() {
        let read = |text: &str| serde_json::from_str::<Real>(text);
        assert_eq!(read("\"8/255\"").expect("a fraction"), Real(8.0 / 255.0));
        assert_eq!(read("1").expect("a number"), Real(1.0));
        assert_eq!(read("-1.5").expect("a number"), Real(-1.5));
        assert_eq!(serde_json::json!(Real(8.0 / 255.0)), serde_json::json!(8.0 / 255.0));
        let refused = read("\"0.3\"").expect_err("refused").to_string();
        assert!(
            refused.contains("string \"0.3\", expected a number, or a fraction such as 8/255"),
            "{refused}"
        );
    }
}
