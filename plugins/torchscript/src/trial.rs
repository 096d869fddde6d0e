//! What is tried before work: the format of the file, its weights, and forward passes of a copy.

use crate::TorchScript;
use crate::module::{Facts, Module, Role, records};
use plugin_api::tch::{self, Kind, Tensor, nn};
use plugin_api::{Error, Result, Task};

/// Logits of the same images may differ this much, relative to the largest.
const ROUNDING: f64 = 1e-5;

/// The first bytes of a zip archive, which files of `torch.save` and of TorchScript are.
const ZIP: &[u8] = b"PK\x03\x04";

/// Refuses a file that is not TorchScript, and says what it is.
///
/// # Errors
/// If it is not.
pub(crate) fn check_format(file: &str, bytes: &[u8]) -> Result<()> {
    const SCRIPT: &str = "write one in Python: torch.jit.script(net).save(\"NET.pt\")";
    let refused = |what: &str| Err(Error::new(format!("{file} {what}")));
    let of_weights = format!(
        "is a pickle of torch.save (weights, or a network that only its Python code can build), not TorchScript: \
         build the network in Python, load_state_dict the weights, and {SCRIPT}"
    );
    if bytes.is_empty() {
        return refused("is empty: copy or export it again");
    }
    if !bytes.starts_with(ZIP) {
        // A pickle begins with the number of its protocol.
        let is_pickle = matches!(bytes, [0x80, 2..=5, ..]);
        let is_safetensors = bytes.get(8) == Some(&b'{');
        return match (is_pickle, is_safetensors) {
            (true, _) => refused(&of_weights),
            (_, true) => refused(&format!(
                "has weights in the format safetensors, not TorchScript: build the network in Python, \
                 load_state_dict the weights, and {SCRIPT}"
            )),
            _ => refused(&format!("is no TorchScript file (expected a zip archive): {SCRIPT}")),
        };
    }
    let names = match records(bytes) {
        Ok(names) => names,
        Err(why) => {
            return refused(&format!(
                "is damaged, or was cut short ({} bytes): copy or export it again ({why})",
                bytes.len()
            ));
        }
    };
    let has = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if has("constants.pkl") || has("code/") {
        return Ok(());
    }
    if has("models/") || has("serialized_") || names.iter().any(|name| name.ends_with(".json")) {
        return refused(&format!(
            "is a program of torch.export, which cannot be trained here, not TorchScript: {SCRIPT}"
        ));
    }
    if has("data.pkl") {
        return refused(&of_weights);
    }
    refused(&format!("is a zip archive without TorchScript: {SCRIPT}"))
}

/// Refuses a module without parameters, and one whose numbers are not f32.
///
/// # Errors
/// If it is one.
pub(crate) fn check_weights(file: &str, module: &Module) -> Result<()> {
    let tensors = module.tensors()?;
    let parameters = tensors.iter().filter(|(_, role, _)| *role == Role::Parameter).count();
    if parameters == 0 {
        let why = if module.facts()?.has_constant_weights {
            "its weights are constants of its code, as after torch.jit.freeze or optimize_for_inference; save \
             the scripted network before that"
        } else {
            "there is nothing to train"
        };
        return Err(Error::new(format!("{file} has no parameters: {why}")));
    }
    let is_other = |tensor: &Tensor| tensor.is_floating_point() && tensor.kind() != Kind::Float;
    if let Some((name, _, tensor)) = tensors.iter().find(|(.., tensor)| is_other(tensor)) {
        return Err(Error::new(format!(
            "{file}: `{name}` is {:?}; expected Float (f32); in Python: torch.jit.load(\"NET.pt\").float().save(\"NET32.pt\")",
            tensor.kind()
        )));
    }
    Ok(())
}

/// What a user should know of a module that works.
pub(crate) fn notes(file: &str, facts: &Facts) -> Vec<String> {
    let traced = facts.has_modes && !facts.reads_mode;
    let note = || {
        format!(
            "{file} was traced: its dropout and normalisation work in training as in evaluation; \
             torch.jit.script keeps both modes"
        )
    };
    traced.then(note).into_iter().collect()
}

/// Images on which a network is tried, `[count, C, H, W]` in [0, 1]; tests in Python make the same.
fn images(count: i64, task: Task, path: &nn::Path) -> Tensor {
    let Task { channels, height, width, .. } = task;
    let numbers = Tensor::arange(count * channels * height * width, (Kind::Double, path.device()));
    (numbers.sin() * 0.5 + 0.5).reshape([count, channels, height, width]).to_kind(path.kind())
}

/// The tensors of a module other than its parameters, with copies, and its other attributes.
struct Kept {
    tensors: Vec<(String, Role, Tensor)>,
    attributes: String,
}

impl Kept {
    fn of(module: &Module) -> Result<Self> {
        let copied = |(name, role, tensor): (String, Role, Tensor)| (name, role, tensor.detach().copy());
        let tensors = module.tensors()?.into_iter().map(copied).collect();
        Ok(Self { tensors, attributes: module.attributes()? })
    }

    /// The first thing that is another one now; with `buffers`, those too.
    fn changed(&self, module: &Module, buffers: bool) -> Result<Option<String>> {
        let now = Self::of(module)?;
        let counts = |role: &Role| buffers || *role == Role::Other;
        let mut pairs = self.tensors.iter().zip(&now.tensors).filter(|((_, role, _), _)| counts(role));
        let differs = |one: &Tensor, other: &Tensor| one.size() != other.size() || !one.equal(other);
        let tensor = pairs.find(|((.., before), (.., after))| differs(before, after));
        let mut lines = self.attributes.lines().zip(now.attributes.lines());
        let attribute = lines.find(|(before, after)| before != after).map(|(before, _)| before);
        let attribute = attribute.map(|line| line.split('=').next().unwrap_or_default().to_owned());
        Ok(tensor.map(|((name, ..), _)| name.clone()).or(attribute))
    }
}

fn number(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).double_value(&[])
}

/// Tries the network, which is changed by it, on batches of one, two and three images in both modes.
///
/// # Errors
/// If it fails, or works but not as the network of a run must.
pub(crate) fn run(
    file: &str,
    network: &TorchScript,
    facts: &Facts,
    task: Task,
    path: &nn::Path,
) -> Result<()> {
    let options = &network.options;
    let forward = |count: i64, train: bool| {
        let images = images(count, task, path);
        let logits = tch::no_grad(|| network.module.forward(&images, train, network.output.as_ref()))?;
        let (size, expected) = (logits.size(), [count, task.classes]);
        if size != expected {
            return Err(Error::new(format!(
                "logits of shape {size:?} for {count} images and {} classes; expected {expected:?}",
                task.classes
            )));
        }
        if logits.kind() != path.kind() || logits.device() != path.device() {
            return Err(Error::new(format!(
                "logits are {:?} on {:?}; expected {:?} on {:?}, like the images",
                logits.kind(),
                logits.device(),
                path.kind(),
                path.device()
            )));
        }
        Ok(logits)
    };
    let before = Kept::of(&network.module)?;
    let sizes = [1, 2, 3].map(|count| (count, forward(count, false)));
    let works = |wanted: bool| {
        let counts =
            sizes.iter().filter(|(_, result)| result.is_ok() == wanted).map(|(count, _)| count.to_string());
        counts.collect::<Vec<_>>().join(" and ")
    };
    if let Some((_, Err(why))) = sizes.iter().find(|(_, result)| result.is_err()) {
        let Task { channels, height, width, .. } = task;
        let other_devices: Vec<_> =
            facts.devices.iter().filter(|name| !is_on(name, path.device())).cloned().collect();
        let what = match (works(true), other_devices.is_empty()) {
            (counts, _) if !counts.is_empty() => format!(
                "{file} takes batches of {counts} images and not of {}: {why}; it was traced for one size of \
                 batch: use torch.jit.script, or write x.flatten(1) for x.reshape(N, -1)",
                works(false)
            ),
            (_, false) => format!(
                "{file} names the device {} in its code, as a trace made there does, and fails on {:?}; export \
                 it on the CPU: {why}",
                other_devices.join(", "),
                path.device()
            ),
            _ => format!("{file} fails on images of {channels} x {height} x {width}: {why}"),
        };
        return Err(Error::new(what));
    }
    if let Some(name) = before.changed(&network.module, true)? {
        return Err(Error::new(format!(
            "{file} changes `{name}` in evaluation mode: it was traced in training mode, or keeps a state; \
             call net.eval() before torch.jit.trace, or use torch.jit.script"
        )));
    }
    let [logits, again] = [forward(3, false)?, forward(3, false)?];
    let difference = number(&(&again - &logits).abs().max());
    if !options.random && difference > ROUNDING * number(&logits.abs().max()).max(1.0) {
        return Err(Error::new(format!(
            "{file} returns other logits for the same images in evaluation mode (they differ by {difference:.2e}): \
             a network traced in training mode keeps its dropout for ever; call net.eval() before \
             torch.jit.trace, or use torch.jit.script; random=true accepts it"
        )));
    }
    let off = number(&(logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Double) - 1.0).abs().max());
    let (least, most) = (number(&logits.min()), number(&logits.max()));
    let are_probabilities = off < 1e-4 && least >= 0.0 && most <= 1.0;
    match (are_probabilities, options.probabilities) {
        (true, false) => {
            return Err(Error::new(format!(
                "{file} returns probabilities, not logits: its rows sum to 1 and lie in [0, 1]; export it \
                 without its softmax; or probabilities=true takes their logarithm"
            )));
        }
        (false, true) => {
            return Err(Error::new(format!(
                "probabilities=true, but {file} returns none: expected rows in [0, 1] that sum to 1, got values \
                 from {least:.3} to {most:.3}, sums off by {off:.3}"
            )));
        }
        _ => {}
    }
    let leaf = images(2, task, path).set_requires_grad(true);
    let logits = tch::with_grad(|| network.module.forward(&leaf, false, network.output.as_ref()))?;
    let reaches = logits.requires_grad().then(|| {
        let gradients = Tensor::f_run_backward(&[logits.sum(Kind::Float)], &[&leaf], false, false);
        gradients.is_ok_and(|gradients| gradients.iter().all(Tensor::defined))
    });
    if reaches != Some(true) {
        return Err(Error::new(format!(
            "{file}: the logits have no gradient with respect to the images: its code detaches them, or runs \
             under torch.no_grad; export it without that"
        )));
    }
    forward(3, true).map(drop).map_err(|why| Error::new(format!("{file} fails in training mode: {why}")))?;
    if let Some(name) = before.changed(&network.module, false)? {
        return Err(Error::new(format!(
            "{file} changes `{name}`, which is neither a parameter nor a buffer: checkpoints would lack it; \
             make it one with register_buffer"
        )));
    }
    Ok(())
}

/// Whether the name of a device in TorchScript's code means this device.
fn is_on(name: &str, device: tch::Device) -> bool {
    match device {
        tch::Device::Cuda(index) => name == "cuda" || name == format!("cuda:{index}"),
        _ => name == "cpu",
    }
}
