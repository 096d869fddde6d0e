//! Opens a run to be diagnosed, and refuses what cannot be diagnosed before any work.

use super::exact::Affine;
use super::ladder::{self, STEPS_PER_DRAW};
use super::record::Settings;
use crate::config::Experiment;
use crate::data::{Dataset, examples::Examples};
use crate::law::chain::FEWEST_DRAWS;
use crate::law::sampling::Subject;
use crate::plugin::{LoadedModel, Objective, PluginSpec, Sampler, Threat};
use crate::run::moved::Moved;
use crate::run::progress::Progress;
use crate::run::{self, RunFolder, RunRecord, checkpoint};
use crate::torch::device;
use crate::torch::random::{Purpose, permutation};
use crate::training::setup::{make_sampler, split};
use crate::training::shards::{self, Stores};
use crate::training::store::Stored;
use crate::util::console::{quoted, warn};
use crate::util::number::listed;
use crate::{Error, Result};
use clap::Args;
use plugin_api::{Climbs, Norm, Start};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// The options of a diagnosis.
#[derive(Debug, Clone, Args)]
pub struct DiagnosisOptions {
    /// Number of training points: a random subset, the same for every run
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = crate::util::at_least_one)]
    pub points: usize,
    /// The lambdas of the laws that the chain is compared with; others are measured between them
    #[arg(long = "lambda", value_name = "L,…", value_delimiter = ',', default_value = "1,10,100,1000")]
    pub lambdas: Vec<f64>,
    /// Chains of each point from either end; at least 2
    #[arg(long, value_name = "K", default_value_t = 2)]
    pub chains: usize,
    /// Steps of each chain at each lambda; the first half adapts the sampler and is forgotten
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub steps: usize,
    /// The sampler of the law exp(lambda * loss)
    #[arg(long, value_name = "PLUGIN", default_value = "mala.so")]
    pub law_sampler: PluginSpec,
    /// Also run this sampler at the run's weights, to compare it with the law; may be repeated
    #[arg(long, value_name = "PLUGIN")]
    pub beside: Vec<PluginSpec>,
    /// The sampler that looks for the maximum, from uniform draws
    #[arg(long, value_name = "PLUGIN", default_value = "pgd.so,steps=100")]
    pub maximiser: PluginSpec,
    /// Epochs of the classifier that is trained anew against the stored particles; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub anew_epochs: usize,
    /// Fail where the exact law is not known: it is known for softmax regression (linear.so) and a
    /// whole lambda
    #[arg(long)]
    pub exact: bool,
    /// Also try the stored particles on these other runs; may be repeated
    #[arg(long, value_name = "RUN")]
    pub transfer: Vec<PathBuf>,
    /// Replace the diagnosis that the run has
    #[arg(long)]
    pub replace: bool,
    /// Seed of the chains [default: the run's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where the data and the plugins of the run are now
    #[command(flatten)]
    pub moved: Moved,
    /// cpu, cuda or cuda:N [default: as in the run]
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch [default: as in the run]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// A run with its weights and particles, ready to be diagnosed.
pub struct Setup<'a> {
    pub options: &'a DiagnosisOptions,
    pub folder: RunFolder,
    pub experiment: Experiment,
    pub dataset: Dataset,
    pub device: Device,
    /// The training points.
    pub examples: Examples,
    pub model: LoadedModel,
    /// How the model is made.
    pub model_spec: PluginSpec,
    pub sampler: Sampler,
    /// Where its chains begin.
    pub start: Start,
    pub maximiser: Sampler,
    /// Samplers that are run beside the run's own.
    pub beside: Vec<Sampler>,
    pub stores: Stores,
    /// Other runs, by the path that was given, with the digests of their weights.
    pub others: Vec<(String, LoadedModel, String)>,
    /// The lambdas asked for, in rising order.
    pub lambdas: Vec<f64>,
    pub points: Vec<i64>,
    pub seed: u64,
    update: u64,
}

impl<'a> Setup<'a> {
    /// Opens the run in this folder.
    ///
    /// # Errors
    /// If it cannot be diagnosed: what, and what would do.
    pub fn open(path: &Path, options: &'a DiagnosisOptions) -> Result<Self> {
        let lambdas = check(options)?;
        let (folder, record) = RunFolder::open(path)?;
        check_run(&record, path)?;
        let experiment = record.experiment.clone();
        device::set_threads(options.threads.or(experiment.train.threads))?;
        let name = options.device.as_ref().unwrap_or(&experiment.train.device);
        let device = device::open(device::parse(name).map_err(Error::new)?)?;
        let dataset = run::recorded_data(&experiment.data, options.moved.data_folder.as_deref())?;
        let mut on_change = run::unless(options.moved.allow_changed);
        run::check_data(&dataset, &record.data.checksums, &mut on_change)?;
        let mut spec_of = |spec: &PluginSpec, recorded| {
            run::recorded_plugin(spec, recorded, options.moved.plugins.as_deref(), &mut on_change)
        };
        let model_spec = spec_of(&experiment.model, &record.plugins.model)?;
        let model = LoadedModel::build(&model_spec, dataset.task(), device, 0)?;
        let (Some(spec), Some(recorded)) = (&experiment.sampler.0, &record.plugins.sampler) else {
            return Err(without_particles(path, "it is ordinary training: it has no sampler"));
        };
        let sampler = make_sampler(&spec_of(spec, recorded)?, &experiment.train)?;
        let objective = &experiment.train.objective;
        let climbs_cross_entropy = match &record.plugins.objective {
            _ if experiment.train.is_cross_entropy() => true,
            Some(recorded) => {
                Objective::make(&spec_of(objective, recorded)?)?.declaration().climbs == Climbs::CrossEntropy
            }
            None => false,
        };
        if !climbs_cross_entropy {
            return Err(Error::new(format!(
                "{}: expected a run whose particles climb the cross-entropy, got train.objective {objective}",
                path.display()
            ))
            .note("because", "the law that is measured is exp(lambda * cross-entropy)"));
        }
        let start = experiment.train.start.of(sampler.declaration().start);
        if start != Start::Store {
            let name = sampler.name();
            let why = if start == Start::Carried {
                format!("the chains of {name} go on from minibatch to minibatch, not with their points")
            } else {
                format!("the chains of {name} begin anew at every visit")
            };
            return Err(without_particles(path, &why));
        }

        let saved = {
            let of_shards = shards::groups(shards::PARTICLES, &experiment.train);
            let groups: Vec<_> =
                std::iter::once("weights").chain(of_shards.iter().map(String::as_str)).collect();
            checkpoint::load::<Progress>(&folder.checkpoints(), &groups)?
        };
        let Some(mut saved) = saved else {
            return Err(Error::new(format!("{} has no checkpoint yet", path.display()))
                .fix(format!("train it with `host train --resume {}`", quoted(path.display()))));
        };
        saved
            .damaged
            .iter()
            .for_each(|what| warn(format_args!("{what}; going back to the checkpoint before it")));
        model.load(&saved.groups.remove("weights").unwrap_or_default())?;
        let (count, _) = split(&experiment, &dataset)?;
        let updates_per_epoch = count.div_ceil(experiment.train.batch) as f64;
        let done = saved.update as f64 / updates_per_epoch;
        if done < experiment.train.warmup_epsilon {
            return Err(Error::new(format!(
                "{}: expected a run whose ball has its full radius, after {} epochs (train.warmup_epsilon); got {done:.2}",
                path.display(),
                experiment.train.warmup_epsilon
            ))
            .fix(format!("train it further with `host train --resume {}`", quoted(path.display()))));
        }
        let examples = Examples::new(&dataset.train, 0, count, device)?;
        let state = sampler.declaration().stored_state();
        let stores = Stores::of_checkpoint(&experiment, folder.path(), &examples, &state, &mut saved.groups)?;

        let threat = experiment.training_threat().ball();
        sampler.keeps_to_ball()?;
        let maximiser = Sampler::make(&options.maximiser)?;
        let beside = options.beside.iter().map(Sampler::make).collect::<Result<Vec<_>>>()?;
        for sampler in std::iter::once(&maximiser).chain(&beside) {
            sampler.keeps_to_ball()?;
            sampler.supports(&threat)?;
        }
        for lambda in &lambdas {
            ladder::law_sampler(&options.law_sampler, *lambda, options.steps)?.supports(&threat)?;
        }
        if options.points > count {
            return Err(Error::new(format!(
                "--points: expected at most {count} (the run's training points), got {}",
                options.points
            )));
        }
        let mut points = permutation(0, Purpose::Subset, 0, count);
        points.truncate(options.points);
        points.sort_unstable();
        let mut others = Vec::new();
        for other in &options.transfer {
            others.push(open_other(other, &dataset, device, options)?);
        }
        let seed = options.seed.unwrap_or(experiment.train.seed);
        let update = saved.update;
        let setup = Self {
            options,
            folder,
            experiment,
            dataset,
            device,
            examples,
            model,
            model_spec,
            sampler,
            start,
            maximiser,
            beside,
            stores,
            others,
            lambdas,
            points,
            seed,
            update,
        };
        if options.exact {
            setup.check_exact(path)?;
        }
        Ok(setup)
    }

    /// The classifier and the points.
    ///
    /// # Errors
    /// If the images are in a file that cannot be read.
    pub fn subject(&self) -> Result<Subject<'_>> {
        self.subject_of(&self.model)
    }

    /// Another classifier at the same points.
    ///
    /// # Errors
    /// As for [`Self::subject`].
    pub fn subject_of<'s>(&'s self, model: &'s LoadedModel) -> Result<Subject<'s>> {
        let (natural, labels) = self.examples.batch(&self.indices())?;
        let (points, threat) = (self.points.clone(), self.experiment.training_threat().ball());
        Ok(Subject { model, threat, natural, labels, points, seed: self.seed })
    }

    fn indices(&self) -> Tensor {
        Tensor::from_slice(&self.points).to_device(self.device)
    }

    /// The stored particles of the points, `[P * K, C, H, W]`, and their state.
    pub fn stored(&self, subject: &Subject) -> Stored {
        self.stores.load_any(&self.indices(), &subject.repeated(self.particles_per_point()))
    }

    /// K.
    pub fn particles_per_point(&self) -> usize {
        self.experiment.train.particles
    }

    /// What decides the figures.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn settings(&self) -> Result<Settings> {
        let DiagnosisOptions { chains, steps, anew_epochs, ref law_sampler, .. } = *self.options;
        let lambda = self.lambdas.last().copied().unwrap_or(1.0);
        Ok(Settings {
            update: self.update,
            weights: self.model.digest()?,
            points: self.points.clone(),
            threat: self.experiment.training_threat().ball(),
            lambdas: self.lambdas.clone(),
            chains,
            steps,
            anew_epochs,
            seed: self.seed,
            law_sampler: ladder::law_sampler(law_sampler, lambda, steps)?.record,
            maximiser: self.maximiser.record.clone(),
            beside: self.beside.iter().map(|sampler| sampler.record.clone()).collect(),
            transfer: self.others.iter().map(|(run, _, digest)| (run.clone(), digest.clone())).collect(),
        })
    }

    fn check_exact(&self, path: &Path) -> Result<()> {
        let subject = self.subject()?;
        let Some(affine) = Affine::of(&subject)? else {
            return Err(Error::new(format!(
                "--exact: no exact law is known for {}: expected softmax regression, got {}",
                path.display(),
                self.model.record.spec
            ))
            .fix("train a run with --model linear.so, or leave out --exact"));
        };
        for lambda in &self.lambdas {
            affine.check(*lambda).map_err(|why| {
                Error::new(format!("--exact: {}", why.first_line()))
                    .fix("give other numbers with --lambda, or leave out --exact")
            })?;
        }
        Ok(())
    }
}

/// Refuses options that no run could be diagnosed with. Returns the lambdas in rising order.
fn check(options: &DiagnosisOptions) -> Result<Vec<f64>> {
    let DiagnosisOptions { chains, steps, ref lambdas, .. } = *options;
    if let Some(lambda) = lambdas.iter().find(|lambda| !(lambda.is_finite() && **lambda > 0.0)) {
        return Err(Error::new(format!("--lambda: expected finite numbers above 0, got {lambda}"))
            .fix("leave out 0: its law is the uniform one, which is always measured"));
    }
    if chains < 2 {
        return Err(Error::new(format!("--chains: expected at least 2, got {chains}"))
            .note("because", "whether chains agree (R-hat) can only be seen from two or more"));
    }
    let least = 2 * FEWEST_DRAWS * STEPS_PER_DRAW;
    if steps < least {
        return Err(Error::new(format!("--steps: expected at least {least}, got {steps}"))
            .note("because", "the autocorrelation of shorter chains cannot be estimated"));
    }
    let mut lambdas = lambdas.clone();
    lambdas.sort_by(f64::total_cmp);
    lambdas.dedup();
    Ok(lambdas)
}

fn check_run(record: &RunRecord, path: &Path) -> Result<()> {
    let Threat { norm, channel_scale, .. } = record.experiment.training_threat();
    if let Some(scale) = channel_scale {
        return Err(Error::new(format!(
            "{}: expected a run with one radius for all channels, got threat.channel_scale {}",
            path.display(),
            listed(&scale)
        )));
    }
    if norm != Norm::Linf {
        return Err(Error::new(format!("{}: expected a run in linf, got {norm}", path.display())).note(
            "because",
            "laws are compared with the uniform law on the ball cut to the domain, which is drawn from in linf only",
        ));
    }
    Ok(())
}

fn without_particles(path: &Path, why: &str) -> Error {
    Error::new(format!("{} keeps no particles that could be diagnosed", path.display()))
        .note("because", why)
        .fix("diagnose a run whose chains go on from a store, such as one of langevin.so")
}

/// Another run with its weights for evaluation, and their digest.
fn open_other(
    path: &Path,
    dataset: &Dataset,
    device: Device,
    options: &DiagnosisOptions,
) -> Result<(String, LoadedModel, String)> {
    let (folder, record) = RunFolder::open(path)?;
    let mut on_change = run::unless(options.moved.allow_changed);
    run::check_data(dataset, &record.data.checksums, &mut on_change)?;
    let (spec, recorded) = (&record.experiment.model, &record.plugins.model);
    let spec = run::recorded_plugin(spec, recorded, options.moved.plugins.as_deref(), &mut on_change)?;
    let model = LoadedModel::build(&spec, dataset.task(), device, 0)?;
    run::load_weights(&folder, &record, &model)?;
    let digest = model.digest()?;
    Ok((path.display().to_string(), model, digest))
}

/// The names of the parts of settings that differ.
pub fn differences(one: &Settings, other: &Settings) -> Vec<String> {
    let fields = |settings: &Settings| -> BTreeMap<String, serde_json::Value> {
        serde_json::json!(settings)
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let other = fields(other);
    fields(one).into_iter().filter(|(key, value)| other.get(key) != Some(value)).map(|(key, _)| key).collect()
}
