//! Checks for models.

use crate::lifecycle::{named, state};
use crate::tensors::{demand_same, no_result};
use crate::toy::{Batch, Instance, Problem, mix};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::abi::ModelInstance;
use plugin_api::losses::{self, cross_entropy};
use plugin_api::tch::{self, Kind, Tensor};

pub const CHECKS: [Check; 5] = [
    Check::new("model-logits", "outputs are logits, not probabilities", logits).of(&["model"]),
    Check::new("model-gradients", "gradients reach the images and every parameter", gradients).of(&["model"]),
    Check::new("model-derivative", "gradients are those that finite differences show, in f64", derivative)
        .of(&["model"])
        .after(&["model-gradients"]),
    Check::new(
        "model-parameters",
        "parameters and buffers are the model's own, under names of their own",
        parameters,
    )
    .of(&["model"]),
    Check::new(
        "model-modes",
        "evaluation changes nothing, and training differs from it only where declared",
        modes,
    )
    .of(&["model"])
    .after(&["determinism-repeats"]),
];

fn built(plugin: &Plugin, batch: &Batch) -> Result<ModelInstance, Outcome> {
    match Instance::new(plugin, batch)? {
        Instance::Model(model) => Ok(model),
        _ => Err(Outcome::Skipped("not a model".to_owned())),
    }
}

fn forward(model: &ModelInstance, images: &Tensor, train: bool) -> Result<Tensor, Outcome> {
    tch::with_grad(|| model.forward(images, train)).map_err(no_result)
}

fn logits(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..16);
    let outputs = forward(&built(plugin, &batch)?, &batch.images, false)?.detach();
    let sums = outputs.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let off = (sums - 1.0).abs().max().double_value(&[]);
    if off < 1e-4 && outputs.min().double_value(&[]) >= 0.0 {
        return Ok(Outcome::Warning(
            "every row is positive and sums to 1: these look like probabilities".to_owned(),
        ));
    }
    Ok(Outcome::Passed)
}

fn gradients(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem { kind: Kind::Double, ..Problem::new(seed) }.batch(0..16);
    let model = built(plugin, &batch)?;
    // What a layer is given may reach it in one mode only: batch normalisation takes away in
    // training whatever is added before it.
    let (training, evaluation) =
        (largest_gradients(&model, &batch, true)?, largest_gradients(&model, &batch, false)?);
    for ((name, training), (_, evaluation)) in training.iter().zip(&evaluation) {
        if training.max(*evaluation) == 0.0 {
            return Ok(Outcome::failed(
                "a gradient for the images and every parameter",
                format!("none for {name}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

/// The largest entry of the loss's gradient towards the images and every trainable parameter.
fn largest_gradients(
    model: &ModelInstance,
    batch: &Batch,
    train: bool,
) -> Result<Vec<(String, f64)>, Outcome> {
    let images = batch.images.detach().set_requires_grad(true);
    let loss = tch::with_grad(|| {
        Ok::<_, Outcome>(cross_entropy(&forward(model, &images, train)?, &batch.labels).sum(Kind::Double))
    })?;
    if !loss.requires_grad() {
        return Err(Outcome::failed(
            "logits with a graph",
            "logits without one (detached, or made without tracking)",
        ));
    }
    let trainable = named(model)?.into_iter().filter(|(_, tensor)| tensor.requires_grad());
    let (names, inputs): (Vec<_>, Vec<_>) =
        std::iter::once(("the images".to_owned(), images)).chain(trainable).unzip();
    let gradients = losses::gradients(&loss, &inputs, false)
        .map_err(|error| Outcome::failed("gradients for the images and every parameter", error))?;
    let largest = |gradient: &Tensor| match gradient.defined() {
        true => gradient.abs().max().double_value(&[]),
        false => 0.0,
    };
    Ok(names.into_iter().zip(gradients.iter().map(largest)).collect())
}

/// Half the distances of finite differences. A wide one may reach across the kink of a ReLU,
/// where there is no slope to compare with; a narrow one suffers from rounding.
const DISTANCES: [f64; 4] = [1e-4, 1e-5, 1e-6, 1e-7];

fn derivative(plugin: &Plugin, seed: u64) -> Verdict {
    let problem = Problem { kind: Kind::Double, ..Problem::new(seed) };
    let batch = problem.batch(0..2);
    let model = built(plugin, &batch)?;
    let loss = |images: &Tensor| {
        tch::with_grad(|| {
            let logits = forward(&model, images, false)?;
            Ok::<_, Outcome>(cross_entropy(&logits, &batch.labels).sum(Kind::Double))
        })
    };
    let leaf = batch.images.detach().set_requires_grad(true);
    let gradient = losses::gradient(&loss(&leaf)?, &leaf, false)
        .map_err(|error| Outcome::failed("a gradient towards the images", error))?;
    for direction in 1..=3 {
        let direction = Problem { seed: mix(seed ^ direction), ..problem }.batch(0..2).images - 0.5;
        let slope = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
        let at = |distance: f64| {
            Ok::<_, Outcome>(loss(&(&batch.images + &direction * distance))?.double_value(&[]))
        };
        let mut differences = Vec::new();
        for distance in DISTANCES {
            differences.push((at(distance)? - at(-distance)?) / (2.0 * distance));
        }
        let close =
            |difference: &f64| (slope - difference).abs() <= 1e-3 * (slope.abs() + difference.abs()) + 1e-7;
        if !differences.iter().any(close) {
            return Ok(Outcome::failed(
                format!("a slope of {:.6e} (finite differences)", differences[1]),
                format!("{slope:.6e}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn parameters(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..2);
    let model = built(plugin, &batch)?;
    let parameters = named(&model)?;
    let mut names: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != parameters.len() {
        return Ok(Outcome::failed("a name of its own for every parameter", "a name given twice"));
    }
    // Overwriting what is listed must reach the network: that is how weights are loaded.
    let before = forward(&model, &batch.images, false)?.detach();
    let _guard = tch::no_grad_guard();
    for (_, tensor) in parameters.iter().filter(|(_, tensor)| tensor.is_floating_point()) {
        let _ = tensor.shallow_clone().fill_(0.01);
    }
    let after = forward(&model, &batch.images, false)?.detach();
    Ok(Outcome::demand(
        before != after,
        "other logits once the listed parameters are overwritten",
        "the same logits",
    ))
}

fn modes(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..8);
    let model = built(plugin, &batch)?;
    let evaluate = || Ok::<_, Outcome>(forward(&model, &batch.images, false)?.detach());
    let before = state(&model)?;
    let logits = evaluate()?;
    if evaluate()? != logits {
        return Ok(Outcome::failed(
            "the same logits whenever the model is evaluated",
            "others the second time",
        ));
    }
    let after = state(&model)?;
    if let Some(((name, _), _)) = before.iter().zip(&after).find(|(before, after)| before != after) {
        return Ok(Outcome::failed(
            "parameters and buffers that evaluation leaves alone",
            format!("`{name}` is another"),
        ));
    }
    let declaration = model.declaration().map_err(|error| Outcome::failed("a declaration", error))?;
    match declaration.train_differs {
        None => Err(Outcome::Skipped(
            "evaluation is as it should be; contract 1.0 cannot declare that training differs".to_owned(),
        )),
        Some(true) => Ok(Outcome::Passed),
        Some(false) => {
            let trained = forward(&model, &batch.images, true)?.detach();
            demand_same(
                &[logits.shallow_clone(), logits],
                &[trained, evaluate()?],
                1e-5,
                "the same logits in training, and after it, as it does not declare train_differs",
            )
        }
    }
}
