//! Common functions for files, output, interruptions, memory, values of options, their written form,
//! matchings and pickles.

pub(crate) mod child;
pub(crate) mod console;
mod fault;
pub(crate) mod files;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod interrupt;
pub(crate) mod matching;
pub(crate) mod memory;
pub(crate) mod number;
pub(crate) mod pickle;
pub(crate) mod pulse;
pub(crate) mod written;

/// A whole number of at least 1, as the value of an option.
pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number >= 1);
    number.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}
