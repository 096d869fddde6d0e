//! The exact law of softmax regression, where a model is one.

use super::record::{Exact, LawAt};
use crate::law::Rung;
use crate::law::dual::integrate;
use crate::law::sampling::Subject;
use crate::plugin::faces;
use crate::torch::random::{Draws, Purpose, step_of_name};
use crate::util::interrupt::refuse_if_stopped;
use crate::{Error, Result};
use plugin_api::Random;
use plugin_api::law::SoftmaxLaw;
use std::sync::atomic::AtomicBool;
use tch::{Kind, Tensor, no_grad};

/// Exact independent draws of each point, for the mean loss.
const DRAWS: i64 = 2000;

/// The logits of a model that is affine: z = W x + b.
pub struct Affine {
    /// W, `[classes, pixels]`, f64.
    weights: Tensor,
    /// b, `[classes]`, f64.
    bias: Tensor,
}

impl Affine {
    /// The weights of a model whose logits are affine in the pixels; none if they are not. They are
    /// found by their effect, whatever the model calls them.
    ///
    /// # Errors
    /// If the model fails.
    pub fn of(subject: &Subject) -> Result<Option<Self>> {
        let natural = &subject.natural;
        let pixels: i64 = natural.size()[1..].iter().product();
        let mut shape = natural.size();
        shape[0] = pixels + 1;
        let logits =
            |images: &Tensor| subject.model.logits(images).map(|logits| logits.to_kind(Kind::Double));
        // The first image is black; each other one has a single white pixel.
        let images = Tensor::zeros([pixels + 1, pixels], (natural.kind(), natural.device()));
        let _ = images.narrow(0, 1, pixels).fill_diagonal_(1.0, false);
        let logits_there = logits(&images.reshape(&shape))?;
        let bias = logits_there.get(0);
        let weights = (logits_there.narrow(0, 1, pixels) - &bias).tr();
        let there = subject.uniform("affine", 1)?;
        let expected = there.flatten(1, -1).to_kind(Kind::Double).matmul(&weights.tr()) + &bias;
        let got = logits(&there)?;
        let difference = (&got - expected).abs().max().double_value(&[]);
        // Rounding of f32 in a sum over all pixels.
        let scale = got.abs().max().double_value(&[]).max(1.0);
        Ok((difference < 1e-4 * scale).then_some(Self { weights, bias }))
    }

    /// The law of a point of the subject.
    fn law(&self, subject: &Subject, point: i64, lambda: f64) -> Result<SoftmaxLaw> {
        let natural = subject.natural.get(point).flatten(0, -1).unsqueeze(0).to_kind(Kind::Double);
        let [lo, hi] = faces(&natural, &subject.threat).map(|face| face.squeeze_dim(0));
        let label = subject.labels.int64_value(&[point]);
        SoftmaxLaw::new(&self.weights, &self.bias, label, &lo, &hi, lambda).map_err(Error::new)
    }

    /// Checks that the exact law is known at this lambda.
    ///
    /// # Errors
    /// If it is not: the reason.
    pub fn check(&self, lambda: f64) -> Result<()> {
        SoftmaxLaw::check(self.bias.size()[0], lambda).map(drop).map_err(Error::new)
    }

    /// The exact values at a lambda, beside those of the chains of `laws`, a ladder from 0 up to it.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn values(
        &self,
        subject: &Subject,
        laws: &[LawAt],
        stop: &AtomicBool,
        advance: &dyn Fn(u64),
    ) -> Result<Exact> {
        let lambda = laws.last().map_or(0.0, |law| law.lambda);
        let name = format!("exact {lambda}");
        let (mut g_per_point, mut per_point, mut error_per_point) = (Vec::new(), Vec::new(), Vec::new());
        for (row, point) in subject.points.iter().enumerate() {
            refuse_if_stopped(stop)?;
            advance(0);
            let law = no_grad(|| self.law(subject, row as i64, lambda))?;
            let rows = vec![*point; DRAWS as usize];
            let draws =
                Draws::new(subject.seed, Purpose::Diagnosis, step_of_name(&name), &rows, DRAWS as usize);
            let random = Random::new(&draws);
            let uniform = |columns: i64| {
                let like = Tensor::zeros([DRAWS, columns], (Kind::Float, subject.natural.device()));
                random.uniform(&like).map_err(Error::new)
            };
            let pixels = self.weights.size()[1];
            let (choices, uniforms) = (uniform(1)?.squeeze_dim(1), uniform(pixels)?);
            let (mean, error) = no_grad(|| law.mean_loss(&law.draws(&choices, &uniforms)));
            g_per_point.push(law.g());
            per_point.push(mean);
            error_per_point.push(error);
        }
        let count = subject.points.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
        let within = |differences: Vec<Option<f64>>| {
            [2.0, 3.0].map(|most| {
                differences.iter().filter(|difference| difference.is_some_and(|d| d.abs() <= most)).count()
            })
        };
        let of_means = (0..subject.points.len()).map(|point| {
            let rung = laws.last()?.rung_of(point)?;
            let error = rung.error_of_mean.hypot(error_per_point[point]);
            Some((rung.mean() - per_point[point]) / error)
        });
        let of_duals = (0..subject.points.len()).map(|point| {
            let ladder: Vec<Rung> = laws.iter().map(|law| law.rung_of(point)).collect::<Option<_>>()?;
            let dual = *integrate(&ladder).ok()?.last()?;
            Some((dual.g - g_per_point[point]) / dual.error)
        });
        Ok(Exact {
            g: mean(&g_per_point),
            mean: mean(&per_point),
            error: error_per_point.iter().map(|error| error * error).sum::<f64>().sqrt() / count,
            agreeing_means: within(of_means.collect()),
            agreeing_duals: within(of_duals.collect()),
            g_per_point,
            per_point,
            error_per_point,
        })
    }
}
