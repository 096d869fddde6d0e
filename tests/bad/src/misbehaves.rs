//! A sampler and a model that misbehave in the way that an option names, and are good without it.

use crate::models::Linear;
use plugin_api::tch::{Tensor, nn};
use plugin_api::{Error, Model, Next, NoOptions, Result, Sampler, Step, Task, export_model, export_sampler};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_sampler!("misbehaves", Misbehaves);
export_model!("misbehaving-model", MisbehavingModel);

/// The options of both.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// What is done wrongly, if anything.
    how: String,
}

impl Options {
    /// Misbehaves if this is the way to do it.
    fn at(&self, place: &str) -> Result<()> {
        let Some(what) = self.how.strip_prefix(place).and_then(|what| what.strip_prefix('-')) else {
            return Ok(());
        };
        match what {
            "exits" => std::process::exit(0),
            // SAFETY: the call ends the process at once.
            "vanishes" => unsafe { libc::_exit(0) },
            "panics-in-drop" => std::panic::panic_any(PanicsInDrop),
            "prints-escapes" => Err(Error::new("\u{1b}[31mred\u{7}\r\u{9b}2J\nanother line")),
            "is-verbose" => Err(Error::new("a long message ".repeat(100_000))),
            "quotes-libtorch" => {
                let refused = Tensor::from(1.0).f_matmul(&Tensor::from(1.0)).expect_err("refused");
                Err(Error::new(format!("{refused}")))
            }
            "panics-in-libtorch" => {
                let _ = Tensor::from(1.0).matmul(&Tensor::from(1.0));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// What a panic carries; it panics when it is dropped.
struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        panic!("in drop");
    }
}

pub struct Misbehaves(Options);

impl Sampler for Misbehaves {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        options.at("new").map(|()| Self(options))
    }

    fn default_steps(&self) -> usize {
        if self.0.how == "many-steps" { 65_535 } else { 1 }
    }

    fn state_tensors(&self) -> usize {
        if self.0.how == "many-states" { usize::MAX } else { 0 }
    }

    fn ascends(&self) -> bool {
        false
    }

    fn step(&self, step: &Step) -> Result<Next> {
        self.0.at("step")?;
        // "fails-at-7": the process that has point 7 does, and no other one.
        let at = self.0.how.split_once("-at-").and_then(|(what, point)| Some((what, point.parse().ok()?)));
        match at.filter(|(_, point)| step.points.contains(point)) {
            Some(("fails", point)) => Err(Error::new(format!("point {point} is one too many"))),
            Some(("waits", _)) => loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            },
            _ => Ok(step.particles.copy().into()),
        }
    }
}

impl Drop for Misbehaves {
    fn drop(&mut self) {
        let _ = self.0.at("drop");
    }
}

pub struct MisbehavingModel {
    options: Options,
    linear: Linear,
}

impl Model for MisbehavingModel {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        options.at("new")?;
        Ok(Self { options, linear: Linear::new(NoOptions {}, task, path)? })
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.options.at(if train { "training" } else { "forward" })?;
        self.linear.forward(images, train)
    }
}
