//! What a command is about to do, shown before it begins.

use crate::plugin::Threat;
use indicatif::HumanCount;
use serde::Serialize;
use std::fmt;

/// What a command is about to do.
#[derive(Debug, Clone, Serialize)]
pub struct Outline<Cost> {
    /// The points, and the data set that they are of.
    pub data: Points,
    /// The model, as written.
    pub model: String,
    /// The threat model.
    pub threat: Threat,
    /// What is done, for people.
    pub method: String,
    /// What it is expected to cost.
    pub cost: Cost,
}

/// Points of a data set.
#[derive(Debug, Clone, Serialize)]
pub struct Points {
    /// The data set: a name or a folder.
    pub name: String,
    /// How many.
    pub points: usize,
    /// Which ones: "training points".
    pub kind: &'static str,
    /// Number of classes.
    pub classes: i64,
    /// Channels, height and width of an image.
    pub shape: Vec<i64>,
}

impl<Cost: fmt::Display> fmt::Display for Outline<Cost> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Points { name, points, kind, classes, shape } = &self.data;
        let points = HumanCount(*points as u64);
        let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
        writeln!(formatter, "data          {name}: {points} {kind}, {classes} classes, {shape}")?;
        writeln!(formatter, "model         {}", self.model)?;
        writeln!(formatter, "threat model  {}", self.threat)?;
        writeln!(formatter, "method        {}", self.method)?;
        write!(formatter, "cost          {}", self.cost)
    }
}
