//! Experiments: options, defaults, files and validation.

mod choices;
mod experiment;
mod file;
mod older;
mod options;
mod overlay;
mod plugins;
mod recipe;
pub(crate) mod suite;
mod validate;

pub(crate) use choices::name_of;
pub use choices::{Algorithm, Format, Mode, ModelMode, Select, Shape, Start};
pub use experiment::{
    Data, DataFlags, Eval, Experiment, PluginFlags, SamplerChoice, ThreatFlags, Train, TrainFlags,
};
pub(crate) use experiment::{IN_RUN, MILESTONES, OF_MODEL, PEAK_AT, STEP_FACTOR, norm_parser};
pub(crate) use file::{from_table, from_toml, origin, parse_toml, read_text};
pub(crate) use older::of_a_record;
pub(crate) use overlay::{check_norm, norm_alone, one_line, place};
pub use plugins::Role;
pub use recipe::{DEFAULT_RECIPE, recipe, recipes};

#[cfg(test)]
mod tests;
