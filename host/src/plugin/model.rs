use super::library::{Opened, open_model};
use super::{PluginSpec, Record, call, check_like};
use crate::torch::precision::Precision;
use crate::{Error, Result};
use plugin_api::Task;
use plugin_api::abi::{ModelInstance, ModelPlugin};
use plugin_api::losses;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Display;
use tch::{Device, Kind, Tensor};

/// A model plugin, built: the host's side of it.
pub struct Model {
    instance: ModelInstance,
    name: String,
    classes: i64,
    state: Vec<(String, Tensor)>,
    /// Whether its logits in training may differ from those in evaluation.
    pub train_differs: bool,
    /// Which it is.
    pub record: Record,
    /// Forward passes of single images.
    forwards: Cell<u64>,
    /// Backward passes of single images.
    backwards: Cell<u64>,
}

/// Images that a thread is given at a time on a CPU where no graph is kept: each layer then finds
/// what the one before it made in the cache.
const IMAGES_PER_THREAD: i64 = 32;

/// Lays the weights of two-dimensional convolutions out with the channels last, which the
/// images then follow: libtorch's convolutions need no reordering (a quarter of their time on a
/// CPU). Shapes, values and names stay.
fn lay_channels_last(state: &[(String, Tensor)]) -> Result<()> {
    let _guard = tch::no_grad_guard();
    for (_, tensor) in state.iter().filter(|(_, tensor)| tensor.dim() == 4) {
        // Strides are spelled out: with one input channel both layouts count as contiguous.
        let [_, channels, height, width] = tensor.size()[..] else { continue };
        let strides = [height * width * channels, 1, width * channels, channels];
        let mut last = Tensor::f_empty_strided(tensor.size(), strides, (tensor.kind(), tensor.device()))?;
        last.f_copy_(tensor)?;
        tensor.shallow_clone().set_data(&last);
    }
    Ok(())
}

impl Model {
    /// Builds the model that `spec` names for a task, its initial weights drawn by libtorch from
    /// `seed`: the same on every device.
    ///
    /// # Errors
    /// If the plugin cannot be opened, refuses its options or such images, or has nothing to
    /// train.
    pub fn build(spec: &PluginSpec, task: Task, device: Device, seed: i64) -> Result<Self> {
        let Opened { plugin, record } = open_model(spec)?;
        Self::make(&plugin, record, spec, task, device, seed)
    }

    fn make(
        plugin: &ModelPlugin,
        record: Record,
        spec: &PluginSpec,
        task: Task,
        device: Device,
        seed: i64,
    ) -> Result<Self> {
        if spec.steps().is_some() {
            return Err(spec.error(format!("{}: unknown option `steps`", record.manifest.name)));
        }
        let name = record.manifest.name.clone();
        let refused = |message: String| spec.error(format!("{name}: {message}"));
        let Task { channels, height, width, classes } = task;
        let create = |device| -> Result<_> {
            let none = Tensor::zeros([0, channels, height, width], (Kind::Float, device));
            let create = || plugin.create(&spec.options(), &none, classes);
            let instance =
                call(&name, "new", || tch::with_grad(create)).map_err(|error| spec.error(error))?;
            let state = instance.parameters().map_err(|error| refused(error.to_string()))?;
            Ok((instance, state))
        };
        tch::manual_seed(seed);
        let (mut instance, mut state) = create(Device::Cpu)?;
        if device != Device::Cpu {
            let (drawn, there) = (state, create(device)?);
            (instance, state) = there;
            tch::no_grad(|| {
                for ((_, tensor), (_, drawn)) in state.iter_mut().zip(&drawn) {
                    tensor.copy_(drawn);
                }
            });
        }
        lay_channels_last(&state)?;
        let declaration = instance.declaration().map_err(|error| refused(error.to_string()))?;
        let train_differs = declaration.train_differs.unwrap_or(true);
        let (forwards, backwards) = (Cell::new(0), Cell::new(0));
        let model = Self { instance, name, classes, state, train_differs, record, forwards, backwards };
        if model.trainable().is_empty() {
            return Err(spec.error(format!("{}: the model has no parameter that can be trained", model.name)));
        }
        // A network that does not fit the images is known before work starts.
        let one = Tensor::zeros([2, channels, height, width], (Kind::Float, device));
        let fits = model.logits(&one).map(drop);
        fits.map_err(|error| {
            spec.error(error).note("images", format!("{channels}x{height}x{width}, {classes} classes"))
        })?;
        Ok(model)
    }

    /// The model of this name that is linked into the program.
    #[cfg(test)]
    pub fn linked(name: &str, task: Task) -> Self {
        let mut models = plugin_api::abi::linked().models.into_iter();
        let plugin = models.find(|model| model.name == name).expect("a linked model");
        let spec = name.parse().expect("a spec");
        let record = Record::linked(super::library::Kind::Model, name);
        Self::make(&plugin, record, &spec, task, Device::Cpu, 0).expect("a model")
    }

    /// Logits `[N, classes]` with a graph, of images `[N, C, H, W]`.
    ///
    /// # Errors
    /// If the plugin fails or returns something else.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.checked(
            images,
            tch::with_grad(|| call(&self.name, "forward", || self.instance.forward(images, train))),
        )
    }

    /// The same computed in this precision, without a graph under `no_grad`; the logits are f32 in
    /// any.
    ///
    /// # Errors
    /// If the plugin fails or returns something else.
    pub fn forward_in(&self, precision: Precision, images: &Tensor, train: bool) -> Result<Tensor> {
        let forward = || self.instance.forward(images, train).map(|logits| logits.to_kind(images.kind()));
        self.checked(images, call(&self.name, "forward", || precision.run(images.device(), forward)))
    }

    /// Logits `[N, classes]` in evaluation mode, without a graph.
    ///
    /// # Errors
    /// If the plugin fails or returns something else.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let logits = |images: &Tensor| {
            self.checked(
                images,
                tch::no_grad(|| call(&self.name, "forward", || self.instance.forward(images, false))),
            )
        };
        let at_a_time = IMAGES_PER_THREAD * i64::from(tch::get_num_threads());
        if images.device() != Device::Cpu || images.size()[0] <= at_a_time {
            return logits(images);
        }
        let parts = images.f_split(at_a_time, 0)?;
        Ok(Tensor::f_cat(&parts.iter().map(logits).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn checked(&self, images: &Tensor, logits: Result<Tensor>) -> Result<Tensor> {
        let logits = logits?;
        self.forwards.set(self.forwards.get() + images.size()[0] as u64);
        check_like(&self.name, "forward", &logits, &[images.size()[0], self.classes], images)?;
        Ok(logits)
    }

    /// The gradient of a scalar loss, formed from logits of this model at `leaf` (`[N, C, H, W]`),
    /// towards `leaf`.
    ///
    /// # Errors
    /// If the loss does not depend on it.
    pub fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        self.count_backward(leaf.size()[0]);
        losses::gradient(loss, leaf, false).map_err(|why| self.without_gradient("images", why))
    }

    /// The gradients of a scalar loss, formed from logits of `rows` images, towards parameters; one is
    /// undefined where the loss does not depend on the parameter.
    ///
    /// # Errors
    /// If the loss depends on none.
    pub fn parameter_gradients(
        &self,
        loss: &Tensor,
        parameters: &[Tensor],
        rows: i64,
    ) -> Result<Vec<Tensor>> {
        self.count_backward(rows);
        losses::gradients(loss, parameters, false).map_err(|why| self.without_gradient("parameters", why))
    }

    /// The gradients of a scalar loss towards parameters and towards `leaf` (`[N, C, H, W]`), by one
    /// backward.
    ///
    /// # Errors
    /// If the loss does not depend on `leaf`.
    pub fn both_gradients(
        &self,
        loss: &Tensor,
        parameters: &[Tensor],
        leaf: &Tensor,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        self.count_backward(leaf.size()[0]);
        let mut inputs: Vec<_> = parameters.iter().map(Tensor::shallow_clone).collect();
        inputs.push(leaf.shallow_clone());
        let mut gradients = losses::gradients(loss, &inputs, false)
            .map_err(|why| self.without_gradient("images and parameters", why))?;
        let towards_leaf = gradients.pop().filter(Tensor::defined);
        let missing = || self.without_gradient("images", "the logits do not depend on them");
        Ok((gradients, towards_leaf.ok_or_else(missing)?))
    }

    fn without_gradient(&self, inputs: &str, why: impl Display) -> Error {
        Error::new(format!("model {} has no gradient towards its {inputs}: {why}", self.name)).on_the_way()
    }

    fn count_backward(&self, rows: i64) {
        self.backwards.set(self.backwards.get() + rows as u64);
    }

    /// Forward and backward passes of single images so far.
    pub fn passes(&self) -> (u64, u64) {
        (self.forwards.get(), self.backwards.get())
    }

    /// Number of classes.
    pub fn classes(&self) -> i64 {
        self.classes
    }

    /// Parameters and buffers, by name; the tensors are the model's own.
    pub fn state(&self) -> &[(String, Tensor)] {
        &self.state
    }

    /// The parameters that gradients reach, by name.
    pub fn trainable(&self) -> Vec<(&str, &Tensor)> {
        let parameters = self.state.iter().filter(|(_, tensor)| tensor.requires_grad());
        parameters.map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }

    /// Overwrites parameters and buffers with saved ones.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape or dtype differs; nothing is then changed.
    pub fn load(&self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let foreign = |what: String| {
            Error::new(format!("these weights are not of model {}: {what}", self.name))
                .fix("use the model plugin and options that the weights were saved with")
        };
        for (name, tensor) in &self.state {
            let saved = saved.get(name).ok_or_else(|| foreign(format!("`{name}` is missing")))?;
            if (saved.size(), saved.kind()) != (tensor.size(), tensor.kind()) {
                let expected = format!("{:?} {:?}", tensor.kind(), tensor.size());
                let got = format!("{:?} {:?}", saved.kind(), saved.size());
                return Err(foreign(format!("`{name}` is {got}; expected {expected}")));
            }
        }
        if let Some(unknown) = saved.keys().find(|name| !self.state.iter().any(|(known, _)| known == *name)) {
            return Err(foreign(format!("`{unknown}` is unknown to it")));
        }
        let _guard = tch::no_grad_guard();
        for (name, tensor) in &self.state {
            tensor.shallow_clone().copy_(&saved[name]);
        }
        Ok(())
    }
}
