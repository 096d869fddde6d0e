//! A PyTorch network from a TorchScript file, scripted (`torch.jit.script`) or traced
//! (`torch.jit.trace`). Its parameters and buffers have PyTorch's names, and begin with the file's
//! values. A trial before work finds the usual mistakes of such files.

mod module;
mod trial;

use module::{Module, RandomState, Role};
use plugin_api::tch::nn;
use plugin_api::tch::{Device, Kind, Tensor};
use plugin_api::{Error, Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ffi::CString;

export_model!("torchscript", TorchScript);

/// The network of a file.
pub struct TorchScript {
    module: Module,
    options: Options,
    output: Option<CString>,
    train_differs: bool,
    notes: Vec<String>,
}

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-conform" = {"example": true}))]
pub struct Options {
    /// The TorchScript file, written by `torch.jit.script(net).save(FILE)` or
    /// `torch.jit.trace(net.eval(), images).save(FILE)`.
    #[schemars(extend("x-file" = "code"))]
    pub file: Option<String>,
    /// Which element of the result are the logits: its index in a tuple or list, or its name in a
    /// named tuple or dictionary. Not needed if the result is one tensor.
    pub output: Option<String>,
    /// The network returns probabilities: take their logarithm. What rounds to zero has no gradient.
    pub probabilities: bool,
    /// The network draws random numbers in evaluation, too, and is meant to.
    pub random: bool,
    /// Train all parameters; otherwise those with `requires_grad` in the file.
    pub train_all: bool,
    /// Without a file: use a small network of two layers, with which the plugin itself is checked.
    pub example: bool,
}

/// The units of the hidden layer of the example.
const HIDDEN: i64 = 16;

impl Options {
    /// The name and the contents of the file.
    fn contents(&self, task: Task) -> Result<(String, Vec<u8>)> {
        match (&self.file, self.example) {
            (None, false) => Err(Error::new(
                "the option `file` is missing: name a TorchScript file, file=NET.pt, written by \
                 torch.jit.script(net).save(\"NET.pt\")",
            )),
            (None, true) => {
                let features = task.channels * task.height * task.width;
                let weights = |rows, columns: i64| {
                    let draws = Tensor::rand([rows, columns], (Kind::Float, Device::Cpu));
                    ((draws - 0.5) * (2.0 / (columns as f64).sqrt())).set_requires_grad(true)
                };
                let (first, second) = (weights(HIDDEN, features), weights(task.classes, HIDDEN));
                Ok(("the example".to_owned(), module::example(&first, &second)?))
            }
            (Some(file), _) => {
                let bytes =
                    std::fs::read(file).map_err(|why| Error::new(format!("cannot read {file}: {why}")))?;
                trial::check_format(file, &bytes)?;
                Ok((file.clone(), bytes))
            }
        }
    }
}

/// The module in `bytes` on the device and in the dtype of `path`.
fn load(file: &str, bytes: &[u8], path: &nn::Path) -> Result<Module> {
    let module = Module::load(bytes, path.device())
        .map_err(|why| Error::new(format!("{file} cannot be loaded as TorchScript: {why}")))?;
    trial::check_weights(file, &module)?;
    if path.kind() == Kind::Double {
        module.double()?;
    }
    Ok(module)
}

impl Model for TorchScript {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let output = options.output.as_deref().map(CString::new).transpose().map_err(Error::new)?;
        let (file, bytes) = options.contents(task)?;
        let module = load(&file, &bytes, path)?;
        let facts = module.facts()?;
        let mut trained = Self {
            module: load(&file, &bytes, path)?,
            train_differs: facts.reads_mode || options.random,
            notes: trial::notes(&file, &facts),
            options,
            output,
        };
        {
            // The trial changes the statistics of batch normalisation, so that it has a module of its
            // own, and draws for dropout.
            let _random = RandomState::keep(path.device())?;
            trial::run(&file, &trained, &facts, task, path)?;
        }
        trained.module = module;
        trained.list(&file, path)?;
        Ok(trained)
    }

    fn train_differs(&self) -> bool {
        self.train_differs
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let logits = self.module.forward(images, train, self.output.as_ref())?;
        if !self.options.probabilities {
            return Ok(logits);
        }
        // The smallest normal number of f32.
        Ok(logits.clamp_min(f64::from(f32::MIN_POSITIVE)).log())
    }
}

impl TorchScript {
    /// Makes the module's parameters and buffers those of the path, under PyTorch's names.
    fn list(&self, file: &str, path: &nn::Path) -> Result<()> {
        let tensors = self.module.tensors()?;
        let parameters = || tensors.iter().filter(|(_, role, _)| *role == Role::Parameter);
        let is_trained = |tensor: &Tensor| self.options.train_all || tensor.requires_grad();
        if !parameters().any(|(.., tensor)| is_trained(tensor)) {
            return Err(Error::new(format!(
                "no parameter of {file} is trainable: requires_grad is false for all {}; train_all=true trains them",
                parameters().count()
            )));
        }
        for (name, role, tensor) in &tensors {
            let mut parts: Vec<_> = name.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            let folder = parts.into_iter().fold(path.set_group(0), |folder, part| folder / part);
            let trained = *role == Role::Parameter && is_trained(tensor);
            if *role != Role::Other {
                let _ = folder.add(last, tensor.shallow_clone(), trained);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
