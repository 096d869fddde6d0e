//! The macro that declares options: each option once, with its help, default and range.

use super::{Algorithm, Format, Mode, ModelMode, Select, Shape, Start};
use crate::plugin::PluginSpec;
use crate::torch::precision::Precision;
use crate::util::number::{Real, Reals};
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

/// The type of an option.
pub trait Setting: Sized {
    /// The type of a set value.
    type Value;
    /// The type of its flag, which a file has too.
    type Flag;

    /// The value, if one is set.
    fn value(&self) -> Option<&Self::Value>;

    /// Reads it from a file.
    ///
    /// # Errors
    /// If it is of another type.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error>;
}

impl<T: Setting<Value = T>> Setting for Option<T>
where
    T::Flag: for<'de> Deserialize<'de> + Into<T>,
{
    type Value = T;
    type Flag = T::Flag;

    fn value(&self) -> Option<&T> {
        self.as_ref()
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<T::Flag>::deserialize(deserializer)?.map(Into::into))
    }
}

macro_rules! settings {
    ($($type:ty: $flag:ty),*) => {
        $(impl Setting for $type {
            type Value = Self;
            type Flag = $flag;

            fn value(&self) -> Option<&Self> {
                Some(self)
            }

            fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$flag>::deserialize(deserializer).map(Into::into)
            }
        })*
    };
    ($($type:ty),*) => {
        settings!($($type: $type),*);
    };
}

settings!(f64: Real, Vec<f64>: Reals);
settings!(bool, u64, usize, String, PathBuf, PluginSpec);
settings!(Algorithm, Format, Mode, ModelMode, Precision, Select, Shape, Start);

/// Formats a value for the error message that refuses it.
pub(super) trait Shown {
    fn shown(&self) -> String;
}

macro_rules! shown {
    ($($type:ty: $format:literal),*) => {
        $(impl Shown for $type {
            fn shown(&self) -> String {
                format!($format, self)
            }
        })*
    };
}

shown!(f64: "{}", usize: "{}", u64: "{}", Vec<f64>: "{:?}");

/// An option whose value is out of range.
pub struct Refused {
    /// The option's key.
    pub key: &'static str,
    /// The range.
    pub expected: &'static str,
    /// The value.
    pub got: String,
}

/// Declares a table of options and the flags that override it. An option is written as
///
/// ```text
/// /// help
/// name (arguments of its flag): type = default, test of a value => "expected range";
/// ```
///
/// The arguments and the test are optional. An `Option` that is unset is not tested.
macro_rules! options {
    (
        $(#[doc = $about:literal])*
        $section:literal: $Table:ident, $Flags:ident {
            $(
                $(#[doc = $help:literal])*
                $name:ident $(($($argument:tt)*))?: $type:ty = $default:expr $(, $test:expr => $expected:literal)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $Table {
            $(
                $(#[doc = $help])*
                #[serde(deserialize_with = "crate::config::options::Setting::read")]
                pub $name: $type,
            )*
        }

        impl Default for $Table {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl $Table {
            /// The first option whose value is out of its range.
            pub(super) fn out_of_range(&self) -> Option<$crate::config::options::Refused> {
                use $crate::config::options::{Refused, Setting, Shown};
                $($({
                    let test: fn(&<$type as Setting>::Value) -> bool = $test;
                    if let Some(value) = Setting::value(&self.$name).filter(|value| !test(value)) {
                        let key = concat!($section, ".", stringify!($name));
                        return Some(Refused { key, expected: $expected, got: value.shown() });
                    }
                })?)*
                None
            }
        }

        #[doc = concat!("Flags that override the options of `", $section, "`.")]
        #[derive(Debug, Default, clap::Args, serde::Serialize)]
        pub struct $Flags {
            $(
                $(#[doc = $help])*
                #[arg(long $(, $($argument)*)?)]
                #[serde(skip_serializing_if = "Option::is_none")]
                $name: Option<<$type as $crate::config::options::Setting>::Flag>,
            )*
        }
    };
}

pub(super) use options;

/// Whether a number is finite and at least 0.
pub(super) fn at_least_0(number: &f64) -> bool {
    *number >= 0.0 && number.is_finite()
}

/// Whether a number is finite and above 0.
pub(super) fn above_0(number: &f64) -> bool {
    *number > 0.0 && number.is_finite()
}

/// Whether a number is at least 0 and below 1.
pub(super) fn from_0_to_below_1(number: &f64) -> bool {
    (0.0..1.0).contains(number)
}

/// Whether a number is above 0 and below 1.
pub(super) fn between_0_and_1(number: &f64) -> bool {
    *number > 0.0 && *number < 1.0
}

/// Whether numbers are finite, above 0 and strictly increasing. False for an empty list.
pub(super) fn rising(numbers: &[f64]) -> bool {
    numbers.first().is_some_and(|first| *first > 0.0)
        && numbers.is_sorted_by(|one, next| one < next)
        && numbers.iter().all(|number| number.is_finite())
}
