use super::library::{Opened, open_model};
use super::{Owned, PluginSpec, Record, call, check_like};
use crate::torch::identity::{self, Identity};
use crate::torch::precision::Precision;
use crate::torch::tensors;
use crate::util::files;
use crate::{Error, Result};
use plugin_api::Task;
use plugin_api::abi::{ModelInstance, ModelPlugin};
use plugin_api::losses;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Display;
use tch::{Device, Kind, Tensor};

/// A model that was built by a plugin.
pub struct LoadedModel {
    instance: Owned<ModelInstance>,
    name: String,
    classes: i64,
    state: Vec<(String, Tensor)>,
    /// Whether the logits in training mode may differ from those in evaluation mode.
    pub train_differs: bool,
    /// The record of its plugin.
    pub record: Record,
    /// Number of forward passes of single images.
    forwards: Cell<u64>,
    /// Number of backward passes of single images.
    backwards: Cell<u64>,
}

/// Number of images per thread and forward pass on a CPU without a graph. The batch is so small
/// that the output of a layer is still in the cache when the next layer reads it.
const IMAGES_PER_THREAD: i64 = 32;

/// Stores the weights of two-dimensional convolutions in the channels-last memory format, which the
/// activations then follow. Convolutions of libtorch then need no reordering, which takes a quarter
/// of their time on a CPU. Shapes, values and names do not change. Weights of which the model keeps
/// a view, or a handle of its own, stay where they are: the view would keep the old memory.
fn lay_channels_last(state: &[(String, Tensor)]) -> Result<()> {
    let _guard = tch::no_grad_guard();
    for (_, tensor) in state.iter().filter(|(_, tensor)| tensor.dim() == 4) {
        // Strides are given explicitly, since with one input channel both formats count as
        // contiguous.
        let [_, channels, height, width] = tensor.size()[..] else { continue };
        let strides = [height * width * channels, 1, width * channels, channels];
        if Identity::of(tensor)?.storage_users > 1 {
            continue;
        }
        let mut last = Tensor::f_empty_strided(tensor.size(), strides, (tensor.kind(), tensor.device()))?;
        last.f_copy_(tensor)?;
        tensor.shallow_clone().set_data(&last);
    }
    Ok(())
}

/// Refuses two listed tensors that share memory, unless they are one tensor under two names (tied
/// weights). An optimiser would move the memory twice, and a checkpoint would hold it twice.
///
/// # Errors
/// If two do: their names.
pub(crate) fn check_memory(state: &[(String, Tensor)]) -> Result<()> {
    let occupied = |(name, tensor): &'_ (String, Tensor)| {
        Ok((name.clone(), Identity::of(tensor)?.tensor, identity::extent(tensor)?))
    };
    let mut occupied = state.iter().map(occupied).collect::<Result<Vec<_>>>()?;
    occupied.sort_by_key(|(.., extent)| extent.start);
    for pair in occupied.windows(2) {
        let [(one, tensor, extent), (other, other_tensor, other_extent)] = pair else { continue };
        if tensor != other_tensor && other_extent.start < extent.end && !other_extent.is_empty() {
            return Err(Error::new(format!(
                "its tensors `{one}` and `{other}` share memory but are not one tensor"
            ))
            .fix("list a tied weight as one tensor, and no view of a listed tensor"));
        }
    }
    Ok(())
}

impl LoadedModel {
    /// Builds the model of a spec for a task. libtorch draws the initial weights from `seed`; they
    /// are the same on every device.
    ///
    /// # Errors
    /// If the plugin cannot be opened, refuses its options or images of this size, or has no
    /// trainable parameter.
    pub fn build(spec: &PluginSpec, task: Task, device: Device, seed: i64) -> Result<Self> {
        let Opened { plugin, record, .. } = open_model(spec)?;
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
        let Task { channels, height, width, classes } = task;
        let create = |device| -> Result<_> {
            let none = Tensor::zeros([0, channels, height, width], (Kind::Float, device));
            let create = || plugin.create(&spec.options(), &none, classes);
            let instance =
                call(&name, "new", [], || tch::with_grad(create)).map_err(|error| spec.error(error))?;
            let state = call(&name, "parameters", [], || instance.parameters())?;
            if let Some((parameter, _)) = state.iter().find(|(_, tensor)| !tensor.defined()) {
                return Err(spec.error(format!("{name}: the parameter `{parameter}` is an undefined tensor")));
            }
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
        check_memory(&state).map_err(|error| spec.error(format!("{name}: {error}")))?;
        lay_channels_last(&state)?;
        let declaration = call(&name, "declare", [], || instance.declaration())?;
        let train_differs = declaration.train_differs.unwrap_or(true);
        let (forwards, backwards) = (Cell::new(0), Cell::new(0));
        let instance = Owned::new(&name, instance);
        let model = Self { instance, name, classes, state, train_differs, record, forwards, backwards };
        if model.trainable().is_empty() {
            return Err(spec.error(format!("{}: the model has no trainable parameter", model.name)));
        }
        // A trial forward pass finds a network that does not fit the images before work starts.
        let one = Tensor::zeros([2, channels, height, width], (Kind::Float, device));
        let fits = model.logits(&one).map(drop);
        fits.map_err(|error| {
            spec.error(error).note("images", format!("{channels}x{height}x{width}, {classes} classes"))
        })?;
        Ok(model)
    }

    /// The model of this name that is linked into the test program.
    #[cfg(test)]
    pub fn linked(name: &str, task: Task) -> Self {
        let mut models = plugin_api::abi::linked().models.into_iter();
        let plugin = models.find(|model| model.name == name).expect("a linked model");
        let spec = name.parse().expect("a spec");
        let record = Record::linked(super::library::Kind::Model, name);
        Self::make(&plugin, record, &spec, task, Device::Cpu, 0).expect("a model")
    }

    /// Logits `[N, classes]` of images `[N, C, H, W]`, with a graph. `train` selects training mode.
    ///
    /// # Errors
    /// If the plugin fails or returns a tensor of another shape, dtype or device.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        tch::with_grad(|| self.call_forward(images, train, || self.instance.forward(images, train)))
    }

    /// As [`LoadedModel::forward`], computed in this precision. The logits are always f32. Under
    /// `no_grad` there is no graph.
    ///
    /// # Errors
    /// If the plugin fails or returns a tensor of another shape, dtype or device.
    pub fn forward_in(&self, precision: Precision, images: &Tensor, train: bool) -> Result<Tensor> {
        let forward = || self.instance.forward(images, train).map(|logits| logits.to_kind(images.kind()));
        self.call_forward(images, train, || precision.run(images.device(), forward)?)
    }

    /// Logits `[N, classes]` in evaluation mode, without a graph.
    ///
    /// # Errors
    /// If the plugin fails or returns a tensor of another shape, dtype or device.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let logits = |images: &Tensor| {
            tch::no_grad(|| self.call_forward(images, false, || self.instance.forward(images, false)))
        };
        let at_a_time = IMAGES_PER_THREAD * i64::from(tch::get_num_threads());
        if images.device() != Device::Cpu || images.size()[0] <= at_a_time {
            return logits(images);
        }
        let parts = images.f_split(at_a_time, 0)?;
        Ok(Tensor::f_cat(&parts.iter().map(logits).collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Calls the plugin, and checks what it did and what it returned. The logits are a copy: a
    /// plugin may use the memory of its result again in the next call.
    fn call_forward(
        &self,
        images: &Tensor,
        train: bool,
        forward: impl FnOnce() -> plugin_api::Result<Tensor>,
    ) -> Result<Tensor> {
        let lent = std::iter::once(("images", images)).chain(self.lent(train));
        let logits = call(&self.name, "forward", lent, forward)?;
        self.forwards.set(self.forwards.get() + images.size()[0] as u64);
        check_like(&self.name, "forward", &logits, &[images.size()[0], self.classes], images)?;
        let mut copy = logits.f_empty_like()?;
        copy.f_copy_(&logits)?;
        Ok(copy)
    }

    /// The tensors of the model that a call must not write to: all of them in evaluation mode, the
    /// parameters in training mode, in which buffers may be updated.
    pub fn lent(&self, train: bool) -> impl Iterator<Item = (&str, &Tensor)> {
        let lent = self.state.iter().filter(move |(_, tensor)| !train || tensor.requires_grad());
        lent.map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The gradient of a scalar loss with respect to the images `leaf` (`[N, C, H, W]`). The loss
    /// must be computed from logits of this model at `leaf`.
    ///
    /// # Errors
    /// If the loss does not depend on `leaf`.
    pub fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        self.count_backward(leaf.size()[0]);
        losses::gradient(loss, leaf, false).map_err(|why| self.without_gradient("images", why))
    }

    /// The gradients of a scalar loss with respect to parameters. The loss must be computed from
    /// logits of `rows` images. A gradient is undefined if the loss does not depend on the
    /// parameter.
    ///
    /// # Errors
    /// If the loss depends on none of the parameters.
    pub fn parameter_gradients(
        &self,
        loss: &Tensor,
        parameters: &[Tensor],
        rows: i64,
    ) -> Result<Vec<Tensor>> {
        self.count_backward(rows);
        losses::gradients(loss, parameters, false).map_err(|why| self.without_gradient("parameters", why))
    }

    /// The gradients of a scalar loss with respect to parameters and to the images `leaf`
    /// (`[N, C, H, W]`), by one backward pass.
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
        Error::new(format!("model {} has no gradient with respect to its {inputs}: {why}", self.name))
            .on_the_way()
    }

    fn count_backward(&self, rows: i64) {
        self.backwards.set(self.backwards.get() + rows as u64);
    }

    /// Number of forward and of backward passes of single images so far.
    pub fn passes(&self) -> (u64, u64) {
        (self.forwards.get(), self.backwards.get())
    }

    /// Number of classes.
    pub fn classes(&self) -> i64 {
        self.classes
    }

    /// Parameters and buffers by name. The tensors are shared with the model.
    pub fn state(&self) -> &[(String, Tensor)] {
        &self.state
    }

    /// SHA-256 of all parameters and buffers, in hexadecimal.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn digest(&self) -> Result<String> {
        let bytes: Result<Vec<_>> = self.state.iter().map(|(_, tensor)| tensors::bytes(tensor)).collect();
        Ok(files::sha256(&bytes?.concat()))
    }

    /// The trainable parameters, by name. A tied parameter, which the model lists under several
    /// names, is here once, under the first of them.
    pub fn trainable(&self) -> Vec<(&str, &Tensor)> {
        let is_first = |index: usize| {
            let (_, tensor) = &self.state[index];
            let is_tensor = |earlier: &Tensor| tensor.numel() > 0 && earlier.data_ptr() == tensor.data_ptr();
            !self.state[..index].iter().any(|(_, earlier)| is_tensor(earlier))
        };
        let parameters = (0..self.state.len()).filter(|index| self.state[*index].1.requires_grad());
        let listed = parameters.filter(|index| is_first(*index));
        listed.map(|index| (self.state[index].0.as_str(), &self.state[index].1)).collect()
    }

    /// Loads saved parameters and buffers.
    ///
    /// # Errors
    /// If a name is missing or unknown, or a shape or dtype differs. The model is then unchanged.
    pub fn load(&self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        let mismatch = |what: String| {
            Error::new(format!("the weights do not match model {}: {what}", self.name))
                .fix("use the model plugin and options that the weights were saved with")
        };
        for (name, tensor) in &self.state {
            let saved = saved.get(name).ok_or_else(|| mismatch(format!("`{name}` is missing")))?;
            if (saved.size(), saved.kind()) != (tensor.size(), tensor.kind()) {
                let expected = format!("{:?} {:?}", tensor.kind(), tensor.size());
                let got = format!("{:?} {:?}", saved.kind(), saved.size());
                return Err(mismatch(format!("`{name}`: expected {expected}, got {got}")));
            }
        }
        if let Some(unknown) = saved.keys().find(|name| !self.state.iter().any(|(known, _)| known == *name)) {
            return Err(mismatch(format!("the model has no tensor `{unknown}`")));
        }
        let _guard = tch::no_grad_guard();
        for (name, tensor) in &self.state {
            tensor.shallow_clone().copy_(&saved[name]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> Tensor {
        Tensor::arange(8 * 3 * 3 * 2, (Kind::Float, Device::Cpu)).reshape([8, 2, 3, 3]).copy()
    }

    fn named(tensors: &[&Tensor]) -> Vec<(String, Tensor)> {
        let named = tensors.iter().enumerate();
        named.map(|(number, tensor)| (number.to_string(), tensor.shallow_clone())).collect()
    }

    #[test]
    fn weights_are_laid_channels_last_unless_something_else_sees_their_memory() {
        let (free, seen) = (weights(), weights());
        let alias = seen.detach();
        lay_channels_last(&named(&[&free, &seen])).expect("laid out");
        assert_eq!(free.stride(), [18, 1, 6, 2]);
        assert_eq!(seen.stride(), [18, 9, 3, 1]);
        assert_eq!((&free, &seen), (&weights(), &weights()));
        let _ = seen.shallow_clone().fill_(1.0);
        assert_eq!(alias, seen);
    }

    #[test]
    fn listed_tensors_share_no_memory_unless_they_are_one() {
        let (weights, other) = (weights(), weights());
        assert!(check_memory(&named(&[&weights, &other, &weights])).is_ok(), "tied");
        let rows = [weights.narrow(0, 0, 4), weights.narrow(0, 4, 4)];
        assert!(check_memory(&named(&[&rows[0], &rows[1]])).is_ok(), "views that do not overlap");
        for alias in [weights.detach(), weights.narrow(0, 7, 1), weights.view([-1])] {
            let refused = check_memory(&named(&[&other, &weights, &alias])).expect_err("refused");
            assert!(refused.first_line().contains("share memory"), "{refused}");
        }
        let empty = weights.narrow(0, 3, 0);
        assert!(check_memory(&named(&[&weights, &empty, &empty])).is_ok(), "no element");
    }
}
