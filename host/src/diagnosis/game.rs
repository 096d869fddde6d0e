//! What either player could gain, and what the particles do to other runs.

use super::chains::level;
use super::record::{Diagnosis, Game, Transfer};
use super::setup::Setup;
use crate::Result;
use crate::config::{Data, Mode, SamplerChoice, Select, Start, Train};
use crate::data::examples::repeat_rows;
use crate::data::{Dataset, Origin, Split};
use crate::plugin::{LoadedModel, Objective};
use crate::torch::random::{Purpose, seed_for};
use crate::training::Training;
use crate::training::store::POINTS_AT_A_TIME;
use crate::util::interrupt::refuse_if_stopped;
use plugin_api::losses::cross_entropy;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind, Tensor};

impl Setup<'_> {
    /// Trains a classifier anew against the stored particles, and compares.
    ///
    /// # Errors
    /// If a plugin fails, or the user stops.
    pub fn game(&self, diagnosis: &Diagnosis, stop: &AtomicBool, advance: &dyn Fn(u64)) -> Result<Game> {
        let frozen = self.frozen()?;
        let anew = self.train_anew(&frozen, stop, advance)?;
        let (loss_of_run, loss_of_anew) = (mean_loss(&self.model, &frozen)?, mean_loss(&anew, &frozen)?);
        let (adversary, largest) = largest(diagnosis);
        let stored = diagnosis.losses.as_ref().map_or(f64::NAN, |losses| losses.stored.mean);
        Ok(Game {
            adversary_gains: largest - stored,
            adversary,
            longer_chain_gains: diagnosis.chain.as_ref().map_or(f64::NAN, |chain| chain.mean) - stored,
            loss_of_run,
            loss_of_anew,
            classifier_gains: loss_of_run - loss_of_anew,
            epochs: self.options.anew_epochs,
        })
    }

    /// The stored particles as a data set of their own.
    fn frozen(&self) -> Result<Dataset> {
        let copies = self.particles_per_point();
        let all = Tensor::arange(self.examples.len() as i64, (Kind::Int64, self.device));
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for indices in all.split(POINTS_AT_A_TIME, 0) {
            let (natural, of_points) = self.examples.batch(&indices)?;
            let natural = repeat_rows(&natural, copies);
            images.push(self.stores.load_any(&indices, &natural).particles.to_device(Device::Cpu));
            labels.push(repeat_rows(&of_points, copies).to_device(Device::Cpu));
        }
        let train = Split { images: Tensor::cat(&images, 0), labels: Tensor::cat(&labels, 0) };
        // Nothing is tested on them.
        let test = Split { images: train.images.narrow(0, 0, 1), labels: train.labels.narrow(0, 0, 1) };
        Ok(Dataset {
            name: "particles".to_owned(),
            train,
            test,
            classes: self.dataset.classes,
            class_names: Vec::new(),
            checksums: Default::default(),
            remarks: Vec::new(),
            origin: Origin::Own,
        })
    }

    /// A classifier of the run's kind, trained with the run's optimiser on particles that stay where
    /// they are.
    fn train_anew(&self, frozen: &Dataset, stop: &AtomicBool, advance: &dyn Fn(u64)) -> Result<LoadedModel> {
        let mut experiment = self.experiment.clone();
        experiment.sampler = SamplerChoice(None);
        experiment.data = Data { train_points: None, ..experiment.data };
        experiment.data.validation_points = None;
        experiment.train = Train {
            mode: Mode::Faithful,
            replay: 1,
            particles: 1,
            epochs: self.options.anew_epochs,
            crop: 0,
            flip: false,
            scale: None,
            probe: None,
            trace: None,
            select: Select::Last,
            patience: None,
            diagnose_every: None,
            average: 0.0,
            swa_from: None,
            store_file: None,
            start: Start::Sampler,
            sampler_gradient: None,
            epsilon_scale: 1.0,
            domain_only: false,
            warmup_epsilon: 0.0,
            // The payoff of the game is the cross-entropy, whatever the run descended on.
            objective: Train::default().objective,
            awp: None,
            ..experiment.train
        };
        let seed = seed_for(self.seed, Purpose::Diagnosis, 0);
        let model = LoadedModel::build(&self.model_spec, frozen.task(), self.device, seed)?;
        let players = (model, Objective::make(&experiment.train.objective)?, None);
        let training = Training::new(experiment, players, (None, None), frozen, self.device)?;
        training.train_in_memory(|points| {
            advance(points);
            refuse_if_stopped(stop)
        })
    }

    /// What the stored particles of the points do to the other runs.
    ///
    /// # Errors
    /// If a model fails.
    pub fn transfer(&self) -> Result<Vec<Transfer>> {
        let own = self.subject()?;
        let particles = self.stored(&own).particles;
        let each = self.others.iter().map(|(run, model, _)| {
            let subject = self.subject_of(model)?;
            Ok(Transfer {
                run: run.clone(),
                natural: level(&subject, &subject.natural, 1)?,
                particles: level(&subject, &particles, self.particles_per_point())?,
            })
        });
        each.collect()
    }
}

/// The largest mean loss of all chains, and their name.
fn largest(diagnosis: &Diagnosis) -> (String, f64) {
    let maximum = diagnosis.losses.iter().map(|losses| ("the maximiser".to_owned(), losses.maximum.mean));
    let chain = diagnosis.chain.iter().map(|chain| ("the run's own chain".to_owned(), chain.mean));
    let laws = diagnosis.laws.iter().flat_map(|law| {
        let ends = law.from_uniform.iter().chain(&law.from_maximum);
        ends.map(|chain| (format!("the law of lambda {}", law.lambda), chain.mean))
    });
    let all = maximum.chain(chain).chain(laws);
    all.reduce(|best, other| if other.1 > best.1 { other } else { best }).unwrap_or((String::new(), f64::NAN))
}

/// The mean loss of a model at all images of the training split, in evaluation mode.
fn mean_loss(model: &LoadedModel, frozen: &Dataset) -> Result<f64> {
    let Split { images, labels } = &frozen.train;
    let device = model.state().first().map_or(Device::Cpu, |(_, tensor)| tensor.device());
    let mut sum = 0.0;
    for (images, labels) in images.split(POINTS_AT_A_TIME, 0).iter().zip(labels.split(POINTS_AT_A_TIME, 0)) {
        let losses = cross_entropy(&model.logits(&images.to_device(device))?, &labels.to_device(device));
        sum += losses.sum(Kind::Double).double_value(&[]);
    }
    Ok(sum / labels.size()[0] as f64)
}
