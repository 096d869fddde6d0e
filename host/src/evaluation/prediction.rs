//! The logits of a classifier at natural examples, or at saved ones.

use crate::config::Data;
use crate::data::{self, Dataset, Split, examples::Examples};
use crate::error::absolute;
use crate::evaluation::evaluator::chosen;
use crate::evaluation::options::EvaluationOptions;
use crate::evaluation::setup::EvaluationSetup;
use crate::evaluation::verdict::Caveat;
use crate::plugin::{LoadedModel, PluginSpec};
use crate::run::init::InitialWeights;
use crate::run::moved::Moved;
use crate::torch::{device, tensors};
use crate::{Error, Result};
use clap::{Args, ValueEnum};
use plugin_api::Task;
use plugin_api::losses::correct;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Examples per forward pass by default.
const BATCH: usize = 250;

/// The options of a prediction.
#[derive(Debug, Clone, Args)]
pub struct PredictionOptions {
    /// Which examples: those of the test split, of the training split, or the training points that
    /// the run held out
    #[arg(long, value_enum, default_value_t = Part::Test)]
    pub split: Part,
    /// Number of points: the same random subset as that of `host eval` [default: all]
    #[arg(id = "points", long = "points", value_name = "N")]
    pub count: Option<usize>,
    /// Predict these examples instead, which `host eval --save-examples` wrote: safetensors with
    /// images, labels and points
    #[arg(long, value_name = "FILE", conflicts_with_all = ["split", "points"])]
    pub examples: Option<PathBuf>,
    /// Examples per forward pass
    #[arg(long, value_name = "N", default_value_t = BATCH, value_parser = crate::util::at_least_one)]
    pub batch: usize,
    /// Where the data and the plugins of the run are now
    #[command(flatten)]
    pub moved: Moved,
    /// cpu, cuda or cuda:N [default: as in the run, else cpu]
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch [default: as in the run, else all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The test split
    Test,
    /// The training split
    Train,
    /// The training points that the run held out
    Validation,
}

/// The logits of a classifier at some examples.
pub struct Predicted {
    /// Number of examples.
    pub count: usize,
    /// Number of classes.
    pub classes: i64,
    /// Share of examples whose largest logit is that of their label.
    pub accuracy: f64,
    /// The name of the examples, for people.
    pub points_name: &'static str,
    /// SHA-256 of all parameters and buffers.
    pub weights_sha256: String,
    /// Reasons not to trust them.
    pub caveats: Vec<Caveat>,
    tensors: Vec<(String, Tensor)>,
}

impl Predicted {
    /// Writes logits (`[N, classes]`, f32), predictions, labels and points (`[N]`, i64) as
    /// safetensors.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn write(&self, out: &Path) -> Result<()> {
        tensors::write(out, &self.tensors).map_err(Error::on_the_way)
    }
}

/// The logits of the run at `path`, with the weights that are evaluated.
///
/// # Errors
/// If there is no such run, its plugin or data have changed, or the examples are not of its data.
pub fn of_run(path: &Path, options: &PredictionOptions) -> Result<Predicted> {
    let opened = EvaluationOptions {
        validation: options.split == Part::Validation,
        moved: options.moved.clone(),
        device: options.device.clone(),
        threads: options.threads,
        ..Default::default()
    };
    let setup = EvaluationSetup::open(path, &opened)?;
    let run = setup.open_run(path)?;
    let held_out = run.record.data.validation_points;
    let mut predicted = predict(&run.model, &setup.dataset, held_out, setup.device, options)?;
    predicted.caveats = run.caveats;
    Ok(predicted)
}

/// The logits of a network from elsewhere: `init` is where its weights are from, as in
/// `train.init`.
///
/// # Errors
/// If the weights are not of the model, or the model or the examples do not fit the data.
pub fn of_network(
    model: &PluginSpec,
    data: &str,
    init: &Path,
    options: &PredictionOptions,
) -> Result<Predicted> {
    device::set_threads(options.threads)?;
    let device = options.device.as_deref().map_or(Ok(Device::Cpu), device::parse).map_err(Error::new)?;
    let device = device::open(device)?;
    let folder = options.moved.data_folder.clone().unwrap_or_else(|| Data::default().folder);
    let dataset = data::load(data, &folder)?;
    if options.split == Part::Validation {
        return Err(Error::new("--split validation: a network from elsewhere held out no points")
            .fix("give --split test or --split train"));
    }
    let build = |seed| LoadedModel::build(model, dataset.task(), device, seed);
    let built = build(0)?;
    let init = InitialWeights::load(init, &built, || build(1))?;
    let mut predicted = predict(&built, &dataset, 0, device, options)?;
    predicted.caveats = init.findings.into_iter().map(|what| Caveat::new("weights", what)).collect();
    Ok(predicted)
}

/// The logits at the examples of the options.
fn predict(
    model: &LoadedModel,
    dataset: &Dataset,
    held_out: usize,
    device: Device,
    options: &PredictionOptions,
) -> Result<Predicted> {
    let whole = |split: &Split| Examples::new(split, 0, split.count() as usize, device);
    let (train, test) = (&dataset.train, &dataset.test);
    let (examples, points, points_name) = match (&options.examples, options.split) {
        (Some(file), _) => {
            let (saved, points) = saved_examples(&absolute(file), dataset.task(), device)?;
            (saved, points, "saved examples")
        }
        (None, Part::Test) => (whole(test)?, None, "test points"),
        (None, Part::Train) => (whole(train)?, None, "training points"),
        (None, Part::Validation) => {
            let first = train.count() as usize - held_out;
            (Examples::new(train, first, held_out, device)?, None, "held-out training points")
        }
    };
    let rows = chosen(options.count, examples.len())?;
    let (mut logits, mut labels) = (Vec::new(), Vec::new());
    for batch in rows.chunks(options.batch) {
        let (images, truth) = examples.batch_of(batch, &Tensor::from_slice(batch).to_device(device))?;
        logits.push(model.logits(&images)?);
        labels.push(truth);
    }
    let (logits, labels) = (Tensor::f_cat(&logits, 0)?, Tensor::f_cat(&labels, 0)?);
    let accuracy = correct(&logits, &labels).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    let predictions = logits.argmax(1, false);
    let points = points.unwrap_or_else(|| Tensor::from_slice(&rows));
    let tensors = [("logits", logits), ("predictions", predictions), ("labels", labels), ("points", points)];
    Ok(Predicted {
        count: rows.len(),
        classes: model.classes(),
        accuracy,
        points_name,
        weights_sha256: model.digest()?,
        caveats: Vec::new(),
        tensors: tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into(),
    })
}

/// The examples of a file, and the index of each in its split.
fn saved_examples(file: &Path, task: Task, device: Device) -> Result<(Examples, Option<Tensor>)> {
    let saved = tensors::read(file)?;
    let Task { channels, height, width, classes } = task;
    let images = of(&saved, "images", file)?.to_kind(Kind::Float);
    let count = images.size().first().copied().unwrap_or_default();
    let expected = [count, channels, height, width];
    if images.size() != expected {
        return Err(Error::file(
            "use",
            file,
            format!("`images`: expected [N, {channels}, {height}, {width}], got {:?}", images.size()),
        ));
    }
    if count == 0 {
        return Err(Error::file("use", file, "it has no examples"));
    }
    let numbers = |name: &str| -> Result<Tensor> {
        let numbers = of(&saved, name, file)?.to_kind(Kind::Int64);
        match numbers.size()[..] {
            [length] if length == count => Ok(numbers),
            _ => Err(Error::file(
                "use",
                file,
                format!("`{name}`: expected [{count}], got {:?}", numbers.size()),
            )),
        }
    };
    let labels = numbers("labels")?;
    let (low, high) = (labels.min().int64_value(&[]), labels.max().int64_value(&[]));
    if low < 0 || high >= classes {
        let what = format!("`labels`: expected 0 to {}, got {low} to {high}", classes - 1);
        return Err(Error::file("use", file, what));
    }
    let points = numbers("points")?;
    let split = Split { images, labels };
    Ok((Examples::new(&split, 0, count as usize, device)?, Some(points)))
}

/// A tensor of a file.
fn of<'a>(saved: &'a BTreeMap<String, Tensor>, name: &str, file: &Path) -> Result<&'a Tensor> {
    saved.get(name).ok_or_else(|| Error::file("use", file, format!("it has no tensor `{name}`")))
}
