//! Adversarial examples of a run, and the model's answers to them.

use super::{Collector, Gap, Part, Run, SavedEvaluation};
use crate::data::examples::Examples;
use crate::plugin::{LoadedModel, Threat};
use crate::run::{self, RunFolder};
use crate::torch::tensors;
use crate::util::files;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

/// The number of examples shown of a run.
const MOST_EXAMPLES: usize = 8;

/// Examples that fooled a model.
pub(crate) struct Strip {
    /// The examples.
    pub examples: Vec<Example>,
    /// The file of the examples.
    pub file: PathBuf,
    /// The threat model that they were made in.
    pub threat: Threat,
}

/// An example that fooled a model: images `[C, H, W]`, f32, 0 to 1.
pub(crate) struct Example {
    /// The natural image.
    pub natural: Tensor,
    /// The adversarial image.
    pub adversarial: Tensor,
    /// Its class.
    pub label: i64,
    /// The model's class of the natural image, and its probability.
    pub natural_guess: (i64, f64),
    /// The model's class of the adversarial image, and its probability.
    pub adversarial_guess: (i64, f64),
    /// The attack.
    pub attack: String,
}

impl Collector<'_> {
    /// Examples of the newest evaluation that saved some.
    pub(super) fn examples(&mut self, folder: &RunFolder, run: &Run) -> std::result::Result<Strip, Gap> {
        let evaluation = run.evaluations.iter().rev().find(|evaluation| evaluation.examples.is_some());
        let Some(evaluation) = evaluation else {
            return Err(Gap {
                part: Part::Examples,
                what: "no adversarial examples were saved".to_owned(),
                fix: run.save_examples_command(),
            });
        };
        self.read_examples(folder, run, evaluation).map_err(|why| Gap {
            part: Part::Examples,
            what: format!("the adversarial examples cannot be shown: {}", why.first_line()),
            fix: why.advice().map_or_else(|| run.save_examples_command(), str::to_owned),
        })
    }

    fn read_examples(
        &mut self,
        folder: &RunFolder,
        run: &Run,
        evaluation: &SavedEvaluation,
    ) -> Result<Strip> {
        let recorded = evaluation.examples.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
        // The folder may have been moved since.
        let file = run.path.join(recorded);
        let found = files::size_and_sha256(&file)?.1;
        if evaluation.examples_sha256.as_ref().is_some_and(|recorded| *recorded != found) {
            return Err(files::damaged(&file));
        }
        let saved = tensors::read(&file)?;
        let damaged = |what: &str| Error::file("understand", &file, what);
        let tensor =
            |name: &str| saved.get(name).ok_or_else(|| damaged(&format!("it has no tensor `{name}`")));
        let images = tensor("images")?.to_kind(Kind::Float);
        let numbers = |name: &str| -> Result<Vec<i64>> {
            let numbers = tensor(name)?.to_kind(Kind::Int64);
            if numbers.dim() != 1 || images.dim() != 4 || numbers.size()[0] != images.size()[0] {
                return Err(damaged(&format!("`{name}` does not fit `images`")));
            }
            Ok(Vec::try_from(numbers)?)
        };
        if images.dim() == 4 && images.size()[0] == 0 {
            return Err(Error::new("none fooled the model")
                .fix("this is not an error; stronger attacks may find some"));
        }
        let (labels, points, attacks) = (numbers("labels")?, numbers("points")?, numbers("attacks")?);
        let dataset = self.dataset(&run.record.experiment.data, &run.record.data.checksums)?;
        let test = Examples::new(&dataset.test, 0, dataset.test.count() as usize, Device::Cpu)?;
        if points.iter().any(|point| !(0..test.len() as i64).contains(point))
            || images.size()[1..] != dataset.test.images.size()[1..]
        {
            return Err(damaged("it is not of the run's data"));
        }
        let spec = &run.record.experiment.model;
        let mut on_change = run::unless(self.allow_changed);
        let spec = run::recorded_plugin(spec, &run.record.plugins.model, self.plugins, &mut on_change)?;
        let model = LoadedModel::build(&spec, dataset.task(), Device::Cpu, 0)?;
        let progress = run::load_weights(folder, &run.record, &model)?.progress;
        if progress.update != evaluation.update {
            return Err(Error::new(format!(
                "they were made on the weights of update {}, and the run has those of update {}",
                evaluation.update, progress.update
            )));
        }
        let chosen = one_of_each_class_first(&labels, &points, MOST_EXAMPLES);
        let rows = Tensor::from_slice(&chosen);
        let adversarial = images.index_select(0, &rows);
        let at: Vec<i64> = chosen.iter().map(|row| points[*row as usize]).collect();
        let (natural, _) = test.batch(&Tensor::from_slice(&at))?;
        let (before, after) = (guesses(&model, &natural)?, guesses(&model, &adversarial)?);
        let examples = chosen.iter().zip(0..).map(|(row, place)| {
            let row = *row as usize;
            let attack = evaluation.result.attacks.get(attacks[row].max(0) as usize);
            Example {
                natural: natural.get(place),
                adversarial: adversarial.get(place),
                label: labels[row],
                natural_guess: before[place as usize],
                adversarial_guess: after[place as usize],
                attack: attack.map_or(String::new(), |attack| attack.attack.clone()),
            }
        });
        let threat = evaluation.threat(&run.record.experiment.threat);
        Ok(Strip { examples: examples.collect(), file, threat })
    }
}

/// The shown rows, sorted by label: first one of each label, then further ones. No point is shown
/// twice.
fn one_of_each_class_first(labels: &[i64], points: &[i64], most: usize) -> Vec<i64> {
    let (mut seen, mut shown) = (BTreeSet::new(), BTreeSet::new());
    let (first, others): (Vec<_>, Vec<_>) =
        (0..labels.len()).filter(|row| shown.insert(points[*row])).partition(|row| seen.insert(labels[*row]));
    let mut chosen: Vec<_> = first.into_iter().chain(others).take(most).map(|row| row as i64).collect();
    chosen.sort_by_key(|row| labels[*row as usize]);
    chosen
}

/// The most likely class of each image, and its probability.
fn guesses(model: &LoadedModel, images: &Tensor) -> Result<Vec<(i64, f64)>> {
    let (probabilities, classes) = model.logits(images)?.softmax(-1, Kind::Double).max_dim(1, false);
    let probabilities: Vec<f64> = Vec::try_from(probabilities)?;
    let classes: Vec<i64> = Vec::try_from(classes)?;
    Ok(classes.into_iter().zip(probabilities).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_is_shown_before_any_is_shown_twice() {
        assert_eq!(one_of_each_class_first(&[7, 7, 3, 7, 1], &[0, 1, 2, 3, 4], 3), [4, 2, 0]);
        assert_eq!(one_of_each_class_first(&[7, 7, 3], &[0, 1, 2], 3), [2, 0, 1]);
        assert_eq!(one_of_each_class_first(&[7, 7, 3, 3], &[5, 5, 2, 5], 3), [2, 0], "a point once");
        assert_eq!(one_of_each_class_first(&[], &[], 3), [0i64; 0]);
    }
}
