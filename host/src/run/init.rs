//! Given weights: where a run begins from them, and how those of other programs are read.

use super::{RunFolder, load_weights};
use crate::config::OF_MODEL;
use crate::error::{absolute, shown};
use crate::plugin::LoadedModel;
use crate::torch::weights;
use crate::util::files;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// PyTorch's batch normalisation counts its batches under this name. The count has no effect on
/// networks whose running statistics have a fixed momentum.
const COUNTER: &str = "num_batches_tracked";

/// The weights that a run began with, as `run.json` records them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitialWeights {
    /// The file or the run that they are from; `model` if the model plugin brought them.
    pub path: PathBuf,
    /// SHA-256 of the file; none if they are not from a file.
    pub sha256: Option<String>,
    /// SHA-256 of all parameters and buffers, as they were loaded.
    pub weights_sha256: String,
    /// The update of the checkpoint, if they are from a run.
    pub update: Option<u64>,
    /// How they were found in the file, if there was a choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What a reader of the results should know about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

impl InitialWeights {
    /// Loads given weights into a model: those of a file, those for evaluation of a run, or those
    /// that the plugin brings. `rebuilt` builds the same model with another seed.
    ///
    /// # Errors
    /// If there are none, they are not of this model, or one of them is NaN or infinite.
    pub(crate) fn load(
        init: &Path,
        model: &LoadedModel,
        rebuilt: impl FnOnce() -> Result<LoadedModel>,
    ) -> Result<Self> {
        let path = absolute(init);
        let (mut sha256, mut update, mut findings, mut notes) = (None, None, Vec::new(), Vec::new());
        if init == Path::new(OF_MODEL) {
            if rebuilt()?.digest()? != model.digest()? {
                let name = &model.record.manifest.name;
                return Err(Error::new(format!(
                    "model {name} brings no weights: it draws them at random, others with every seed"
                ))
                .fix(
                    "give its weights: --weights FILE (host eval, host predict) or --init FILE (host train)",
                ));
            }
        } else if path.is_dir() {
            let (folder, record) = RunFolder::open(&path)?;
            let found =
                load_weights(&folder, &record, model).map_err(|why| why.note("weights", shown(&path)))?;
            update = Some(found.progress.update);
            findings.extend(found.damaged.into_iter().chain(found.unfinished));
        } else {
            let read = weights::read(&path)?;
            let mut tensors = read.tensors;
            fit_counters(model, &mut tensors);
            findings.extend(model.load(&tensors).map_err(|why| why.note("weights", shown(&path)))?);
            notes = read.notes;
            sha256 = Some(files::size_and_sha256(&path)?.1);
        }
        refuse_broken(model, &path)?;
        let path = if sha256.is_none() && update.is_none() { init.to_owned() } else { path };
        Ok(Self { path, sha256, weights_sha256: model.digest()?, update, notes, findings })
    }

    /// Where they are from, for people.
    pub(crate) fn origin(&self) -> String {
        match self.update {
            _ if self.path == Path::new(OF_MODEL) => "the weights of the plugin".to_owned(),
            Some(update) => format!("the weights of {} after update {update}", shown(&self.path)),
            None => format!("the weights of {}", shown(&self.path)),
        }
    }
}

/// Removes the counters of PyTorch's batch normalisation where the model has none, and keeps the
/// model's own where the file is older than these counters. They have no effect on logits.
fn fit_counters(model: &LoadedModel, tensors: &mut BTreeMap<String, Tensor>) {
    let is_known = |name: &str| model.state().iter().any(|(known, _)| known == name);
    let is_counter = |name: &str| name.rsplit('.').next() == Some(COUNTER);
    tensors.retain(|name, _| is_known(name) || !is_counter(name));
    for (name, tensor) in model.state().iter().filter(|(name, _)| is_counter(name)) {
        tensors.entry(name.clone()).or_insert_with(|| tensor.copy());
    }
}

/// Refuses weights with which no result means anything.
fn refuse_broken(model: &LoadedModel, path: &Path) -> Result<()> {
    let broken = |(_, tensor): &&(String, Tensor)| tensor.isfinite().all().int64_value(&[]) == 0;
    match model.state().iter().find(broken) {
        Some((name, _)) => Err(Error::new(format!(
            "the weights of {} are broken: `{name}` has NaN or infinite numbers",
            shown(path)
        ))
        .fix("take a checkpoint from before training failed")),
        None => Ok(()),
    }
}
