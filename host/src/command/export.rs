use super::refuse_taken;
use crate::command::arguments::{ExportArguments, ExportFormat};
use crate::error::{absolute, shown};
use crate::plugin::{LoadedModel, PluginSpec, library};
use crate::run::{self, Choice, ChosenWeights, RunFolder, RunRecord};
use crate::torch::device;
use crate::torch::{script, tensors, weights};
use crate::util::console::{say, warn};
use crate::util::files;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tch::{CModule, Device, Kind, Tensor};

/// Images with which a network is traced. Another number than those it is tested with.
const TRACED: i64 = 2;

/// Numbers of images with which a traced network is tested.
const TESTED: [i64; 3] = [1, 3, 8];

/// How far the logits of a traced network may be from those of the plugin, as a share of the largest.
const TOLERANCE: f64 = 1e-5;

/// The plugin whose network is a TorchScript file already.
const SCRIPTED: &str = "torchscript";

/// `host export`
pub fn run(arguments: &ExportArguments) -> Result<u8> {
    let out = place(&arguments.out, arguments.force)?;
    let (folder, record) = RunFolder::open(&arguments.run)?;
    let choice = Choice { select: arguments.select, not_averaged: arguments.no_average };
    let chosen = run::chosen_weights(&folder, &record, choice)?;
    let (damaged, unfinished) = (&chosen.found.damaged, &chosen.found.unfinished);
    damaged.iter().for_each(|what| warn(format_args!("{what}; the checkpoint before it is exported")));
    unfinished.iter().for_each(warn);
    let named: Vec<_> =
        chosen.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    match arguments.format {
        ExportFormat::StateDict => weights::write_state_dict(&out, &named)?,
        ExportFormat::Safetensors => tensors::write(&out, &named)?,
        ExportFormat::Torchscript => {
            let file = if record.plugins.model.manifest.name == SCRIPTED {
                refilled(arguments, &record, &named)?
            } else {
                traced(arguments, &record, &chosen)?
            };
            files::write_whole(&out, &file)?;
        }
    }
    let ChosenWeights { is_average, found, .. } = &chosen;
    let numbers: usize = named.iter().map(|(_, tensor)| tensor.numel()).sum();
    let average = if *is_average { "the average of the weights" } else { "the weights" };
    say(format_args!(
        "{}: {} tensors, {numbers} numbers; {average} at update {}",
        shown(&out),
        named.len(),
        found.progress.update
    ));
    Ok(0)
}

/// The file to write.
fn place(out: &Path, force: bool) -> Result<PathBuf> {
    let out = absolute(out);
    if !(force && out.is_file()) {
        refuse_taken(&out, "choose another name with --out, or replace the file with --force")?;
    }
    Ok(out)
}

/// The TorchScript file that a run of torchscript.so began with, with the run's weights.
fn refilled(arguments: &ExportArguments, record: &RunRecord, named: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let opened = library::open_model(&recorded_model(arguments, record)?)?;
    let file = opened.record.files.get("file").ok_or_else(|| {
        Error::new(
            "the run trained the example network of torchscript.so, which has no file to put weights into",
        )
        .fix("export its weights with --format state-dict")
    })?;
    script::refill(&files::read(&file.path)?, named).map_err(|error| error.note("network", shown(&file.path)))
}

/// The spec of the run's model.
fn recorded_model(arguments: &ExportArguments, record: &RunRecord) -> Result<PluginSpec> {
    let plugins = arguments.moved.plugins.as_deref();
    let mut on_change = run::unless(arguments.moved.allow_changed);
    run::recorded_plugin(&record.experiment.model, &record.plugins.model, plugins, &mut on_change)
}

/// The run's network, traced.
fn traced(arguments: &ExportArguments, record: &RunRecord, chosen: &ChosenWeights) -> Result<Vec<u8>> {
    device::set_threads(record.experiment.train.threads)?;
    let dataset = run::recorded_data(&record.experiment.data, arguments.moved.data_folder.as_deref())?;
    run::check_data(&dataset, &record.data.checksums, &mut run::unless(arguments.moved.allow_changed))?;
    let task = dataset.task();
    let model = LoadedModel::build(&recorded_model(arguments, record)?, task, Device::Cpu, 0)?;
    model.load(&chosen.tensors)?;
    let images = |count: i64| {
        Tensor::f_rand([count, task.channels, task.height, task.width], (Kind::Float, Device::Cpu))
    };
    tch::manual_seed(0);
    let traced = model.trace(&images(TRACED)?)?;
    for what in &traced.fixed {
        warn(format_args!(
            "the file has {what}, as the plugin computes it: on another device or in another precision it may not run"
        ));
    }
    let module = CModule::load_data(&mut traced.file.as_slice())?;
    for count in TESTED {
        let images = images(count)?;
        let expected = model.logits(&images)?;
        let got = tch::no_grad(|| module.forward_ts(&[&images]));
        let distance = got.ok().filter(|got| got.size() == expected.size()).map(|got| {
            let largest = expected.abs().max().double_value(&[]).max(1.0);
            (got - &expected).abs().max().double_value(&[]) / largest
        });
        if distance.is_none_or(|distance| distance.is_nan() || distance > TOLERANCE) {
            let differs = distance.map(|distance| format!("logits that differ by {distance:.1e}"));
            return Err(Error::new(format!(
                "the network of {} cannot be traced: traced for {TRACED} images, it gives for {count} images {}",
                record.plugins.model.spec,
                differs.unwrap_or_else(|| "an error or logits of another shape".to_owned())
            ))
            .note("because", "the number of images, or what depends on their values, became a constant")
            .fix("export the weights with --format state-dict, or write the plugin's forward without sizes: \
                  flatten(1, -1) and unflatten(1, ...) instead of view"));
        }
    }
    Ok(traced.file)
}
