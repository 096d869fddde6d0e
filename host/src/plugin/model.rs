use super::library::{Opened, open_model};
use super::{Owned, PluginSpec, Record, call, check_like};
use crate::torch::c10d::Reducer;
use crate::torch::identity::{self, Identity};
use crate::torch::precision::Precision;
use crate::torch::script::{self, Traced};
use crate::torch::tensors;
use crate::util::console::warn;
use crate::util::{files, pulse};
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
///
/// Weights of few input channels stay, too, except those at the images: libtorch 2.13 writes outside
/// its memory in their backward pass (ResNet-18 of width 2 to 6 on 12 x 12 images, also in Python).
fn lay_channels_last(state: &[(String, Tensor)], channels_of_images: i64) -> Result<()> {
    const FEW: i64 = 8;
    let _guard = tch::no_grad_guard();
    for (_, tensor) in state.iter().filter(|(_, tensor)| tensor.dim() == 4) {
        // Strides are given explicitly, since with one input channel both formats count as
        // contiguous.
        let [outputs, channels, height, width] = tensor.size()[..] else { continue };
        if channels < FEW && (channels != channels_of_images || outputs < FEW) {
            continue;
        }
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
        let Opened { plugin, record, options, .. } = open_model(spec)?;
        Self::make(&plugin, (record, &options), spec, (task, device), seed)
    }

    fn make(
        plugin: &ModelPlugin,
        (record, options): (Record, &str),
        spec: &PluginSpec,
        (task, device): (Task, Device),
        seed: i64,
    ) -> Result<Self> {
        if spec.steps().is_some() {
            return Err(spec.error(format!("{}: unknown option `steps`", record.manifest.name)));
        }
        let name = record.manifest.name.clone();
        let Task { channels, height, width, classes } = task;
        let create = |device| -> Result<_> {
            let none = Tensor::zeros([0, channels, height, width], (Kind::Float, device));
            let create = || plugin.create(options, &none, classes);
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
        lay_channels_last(&state, channels)?;
        let declaration = call(&name, "declare", [], || instance.declaration())?;
        declaration.notes.iter().for_each(|note| warn(format_args!("{name}: {note}")));
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

    /// Refuses a network that cannot be trained, before work starts.
    ///
    /// # Errors
    /// If its logits have no gradient.
    pub(crate) fn check_trainable(&self, task: Task) -> Result<()> {
        let Task { channels, height, width, .. } = task;
        let Some((_, tensor)) = self.state.first() else { return Ok(()) };
        let images = Tensor::zeros([2, channels, height, width], (Kind::Float, tensor.device()));
        let passes = self.forwards.get();
        let logits = self.forward(&images, false)?;
        // It is no pass of the training.
        self.forwards.set(passes);
        if logits.requires_grad() {
            return Ok(());
        }
        let what = format!("{}: forward returned logits without a gradient", self.name);
        Err(Error::new(format!("{what}; expected ones that depend on the parameters"))
            .fix("leave out detach and no_grad (set_grad_enabled, inference_mode) inside forward"))
    }

    /// The model of this name that is linked into the test program.
    #[cfg(test)]
    pub fn linked(name: &str, task: Task) -> Self {
        let mut models = plugin_api::abi::linked().models.into_iter();
        let plugin = models.find(|model| model.name == name).expect("a linked model");
        let spec = name.parse().expect("a spec");
        let record = Record::linked(super::library::Kind::Model, name);
        Self::make(&plugin, (record, "{}"), &spec, (task, Device::Cpu), 0).expect("a model")
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
        pulse::beat();
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

    /// The gradients of a scalar loss by one backward pass of `rows` images: with respect to the
    /// parameters of the reducer, summed over all processes, and with respect to the images `leaf`
    /// of this process (of no elements without them).
    ///
    /// # Errors
    /// If the loss does not depend on them, or another process is gone.
    pub(crate) fn summed_gradients(
        &self,
        loss: &Tensor,
        reducer: &Reducer,
        leaf: Option<&Tensor>,
        rows: i64,
    ) -> Result<(Vec<Tensor>, Tensor)> {
        self.count_backward(rows);
        if !loss.requires_grad() {
            return Err(self.without_gradient("parameters", "the loss has no graph"));
        }
        let (gradients, of_leaf) = reducer.gradients(Some(loss), leaf)?;
        let missing = || self.without_gradient("images", "the logits do not depend on them");
        let of_leaf = if leaf.is_some() { of_leaf.ok_or_else(missing)? } else { Tensor::new() };
        Ok((gradients, of_leaf))
    }

    fn without_gradient(&self, inputs: &str, why: impl Display) -> Error {
        Error::new(format!("model {} has no gradient with respect to its {inputs}: {why}", self.name))
            .on_the_way()
    }

    /// Counts a backward pass of so many images.
    pub(crate) fn count_backward(&self, rows: i64) {
        pulse::beat();
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

    /// The forward pass in evaluation mode, traced at these images `[N, C, H, W]` into a TorchScript
    /// module with the parameters and buffers under their names.
    ///
    /// # Errors
    /// If the plugin fails, or libtorch cannot trace what it does.
    pub(crate) fn trace(&self, images: &Tensor) -> Result<Traced> {
        let forward = |images: &Tensor| {
            call(&self.name, "forward", self.lent(false), || self.instance.forward(images, false))
        };
        tch::no_grad(|| script::trace(&self.state, images, forward))
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

    /// Loads saved parameters and buffers. Numbers of another floating-point type are converted;
    /// whole numbers are, if their values stay the same. Returns how many tensors were rounded, and
    /// from which types, if any were.
    ///
    /// # Errors
    /// If names are missing or unknown, a shape differs, or a conversion would change a number by
    /// more than rounding: all of these are counted, and the first of them are shown. The model is
    /// then unchanged.
    pub fn load(&self, saved: &BTreeMap<String, Tensor>) -> Result<Option<String>> {
        let mut missing = Vec::new();
        let mut other_shapes = Vec::new();
        let mut other_types = Vec::new();
        let mut rounded = BTreeMap::new();
        let mut converted = Vec::new();
        for (name, tensor) in &self.state {
            let Some(saved) = saved.get(name) else {
                missing.push(format!("`{name}`"));
                continue;
            };
            if saved.size() != tensor.size() {
                let [expected, got] =
                    [tensor, saved].map(|tensor| format!("{:?} {:?}", tensor.kind(), tensor.size()));
                other_shapes.push(format!("`{name}`: expected {expected}, got {got}"));
                continue;
            }
            match convert(saved, tensor.kind())? {
                Some((saved_as, is_exact)) => {
                    if !is_exact {
                        *rounded.entry(format!("{:?}", saved.kind())).or_insert(0) += 1;
                    }
                    converted.push((tensor, saved_as));
                }
                None => other_types.push(format!(
                    "`{name}`: expected numbers of {:?}, got some of {:?} that it does not have",
                    tensor.kind(),
                    saved.kind()
                )),
            }
        }
        let is_known = |name: &&String| self.state.iter().any(|(known, _)| known == *name);
        let unexpected: Vec<_> =
            saved.keys().filter(|name| !is_known(name)).map(|name| format!("`{name}`")).collect();
        let kinds = [
            ("missing", "missing", &missing),
            ("unexpected", "unknown", &unexpected),
            ("of another shape", "shapes", &other_shapes),
            ("of another type", "types", &other_types),
        ];
        let found: Vec<_> = kinds.into_iter().filter(|(.., found)| !found.is_empty()).collect();
        if !found.is_empty() {
            let counts: Vec<_> =
                found.iter().map(|(what, _, found)| format!("{} {what}", found.len())).collect();
            let mismatch = Error::new(format!(
                "the weights do not match model {}: of its {} tensors and the {} given, {}",
                self.name,
                self.state.len(),
                saved.len(),
                counts.join(", ")
            ));
            let with_notes = found
                .into_iter()
                .fold(mismatch, |error, (_, label, found)| error.note(label, first_of(found)));
            return Err(with_notes
                .fix("use the model plugin and options that the weights were saved with (`host inspect` shows them)"));
        }
        let _guard = tch::no_grad_guard();
        for (tensor, saved) in converted {
            tensor.shallow_clone().copy_(&saved);
        }
        let count = |(kind, count): (&String, &usize)| format!("{count} of {kind}");
        let counts: Vec<_> = rounded.iter().map(count).collect();
        Ok((!counts.is_empty()).then(|| {
            format!(
                "the numbers of {} of {} tensors were rounded: {}",
                rounded.values().sum::<usize>(),
                self.state.len(),
                counts.join(", ")
            )
        }))
    }
}

/// Number of tensors shown of those that do not match.
const SHOWN: usize = 10;

/// The first of a list, and how many more there are.
fn first_of(found: &[String]) -> String {
    let shown = found[..found.len().min(SHOWN)].join("; ");
    match found.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// A tensor with its numbers in another type, and whether all of them are the same. None if one of
/// them has no counterpart there: a fraction or a number too large.
fn convert(tensor: &Tensor, kind: Kind) -> Result<Option<(Tensor, bool)>> {
    if tensor.kind() == kind {
        return Ok(Some((tensor.shallow_clone(), true)));
    }
    let converted = tensor.f_to_kind(kind)?;
    let back = converted.f_to_kind(tensor.kind())?;
    let same = back.f_eq_tensor(tensor)?.f_logical_or(&back.f_isnan()?.f_logical_and(&tensor.f_isnan()?)?)?;
    let is_exact = same.f_all()?.int64_value(&[]) == 1;
    let both_are_real = tensor.is_floating_point() && converted.is_floating_point();
    // Rounding keeps finite numbers finite.
    let stays_finite = || converted.isfinite().eq_tensor(&tensor.isfinite()).all().int64_value(&[]) == 1;
    Ok((is_exact || (both_are_real && stays_finite())).then_some((converted, is_exact)))
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
        lay_channels_last(&named(&[&free, &seen]), 2).expect("laid out");
        assert_eq!(free.stride(), [18, 1, 6, 2]);
        assert_eq!(seen.stride(), [18, 9, 3, 1]);
        let few = weights();
        lay_channels_last(&named(&[&few]), 3).expect("laid out");
        assert_eq!(few.stride(), [18, 9, 3, 1]);
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
    #[test]
    fn numbers_are_converted_unless_that_loses_more_than_rounding() {
        let to = |tensor: Tensor, kind| convert(&tensor, kind).expect("converted").map(|(_, exact)| exact);
        let halves = || Tensor::from_slice(&[0.5f32, -2.0, f32::INFINITY, f32::NAN]);
        for kind in [Kind::Half, Kind::BFloat16, Kind::Double] {
            assert_eq!(to(halves().to_kind(kind), Kind::Float), Some(true), "{kind:?}");
        }
        assert_eq!(to(Tensor::from_slice(&[0.1f64]), Kind::Float), Some(false), "rounded");
        assert_eq!(to(Tensor::from_slice(&[1e300f64]), Kind::Float), None, "too large");
        assert_eq!(to(Tensor::from_slice(&[3i64, -1]), Kind::Float), Some(true));
        assert_eq!(to(Tensor::from_slice(&[(1i64 << 24) + 1]), Kind::Float), None, "too many digits");
        assert_eq!(to(Tensor::from_slice(&[3.0f32]), Kind::Int64), Some(true));
        assert_eq!(to(Tensor::from_slice(&[3.5f32]), Kind::Int64), None, "a fraction");
    }

    #[test]
    fn all_that_does_not_match_is_counted_and_the_first_ten_are_shown() {
        let names: Vec<_> = (0..12).map(|number| format!("`layer{number}`")).collect();
        let shown = first_of(&names);
        assert!(shown.ends_with("`layer9`; and 2 more") && !shown.contains("layer10"), "{shown}");
        assert_eq!(first_of(&names[..2]), "`layer0`; `layer1`");
    }
}
