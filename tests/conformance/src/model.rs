//! Checks for models.

use crate::lifecycle::{named, state};
use crate::tensors::{demand_same, no_result};
use crate::toy::{Batch, Instance, Problem, mix};
use crate::{Check, Library, Outcome, Plugin, Verdict};
use plugin_api::abi::ModelInstance;
use plugin_api::losses::{self, cross_entropy};
use plugin_api::tch::{self, Kind, Tensor};

pub const CHECKS: [Check; 6] = [
    Check::new("model-logits", "outputs are logits, not probabilities", logits).of(&["model"]),
    Check::new("model-gradients", "gradients reach the images and every parameter", gradients).of(&["model"]),
    Check::new("model-derivative", "gradients agree with finite differences in f64", derivative)
        .of(&["model"])
        .after(&["model-gradients"]),
    Check::new(
        "model-parameters",
        "parameters have different names, and the network uses the listed tensors",
        parameters,
    )
    .of(&["model"]),
    Check::of_library(
        "model-memory",
        "listed parameters and buffers share no memory, except a tied tensor under several names",
        memory,
    )
    .of(&["model"]),
    Check::new(
        "model-modes",
        "evaluation changes nothing, and training differs from it only if declared",
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
    // A gradient may be zero in one mode only: in training, batch normalisation removes a bias
    // before it.
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

/// The largest entry of the gradient of the loss with respect to the images and to every trainable
/// parameter.
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
            "logits without a graph (detached, or computed without gradient tracking)",
        ));
    }
    // A parameter without elements has no gradient that could be missing.
    let trainable =
        named(model)?.into_iter().filter(|(_, tensor)| tensor.requires_grad() && tensor.numel() > 0);
    let (names, inputs): (Vec<_>, Vec<_>) =
        std::iter::once(("the images".to_owned(), images)).chain(trainable).unzip();
    let gradients = losses::gradients(&loss, &inputs, false)
        .map_err(|error| Outcome::failed("gradients for the images and every parameter", error))?;
    let largest =
        |gradient: &Tensor| if gradient.defined() { gradient.abs().max().double_value(&[]) } else { 0.0 };
    Ok(names.into_iter().zip(gradients.iter().map(largest)).collect())
}

/// Half the widths of the finite differences. A wide one may cross the kink of a ReLU, where there
/// is no derivative; a narrow one suffers from rounding.
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
        .map_err(|error| Outcome::failed("a gradient with respect to the images", error))?;
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
        return Ok(Outcome::failed("a different name for every parameter", "two parameters of one name"));
    }
    // Weights are loaded by overwriting the listed tensors, so this must change the network.
    let before = forward(&model, &batch.images, false)?.detach();
    let _guard = tch::no_grad_guard();
    for (_, tensor) in parameters.iter().filter(|(_, tensor)| tensor.is_floating_point()) {
        let _ = tensor.shallow_clone().fill_(0.01);
    }
    let after = forward(&model, &batch.images, false)?.detach();
    Ok(Outcome::demand(
        before != after,
        "other logits after the listed parameters are overwritten",
        "the same logits",
    ))
}

fn memory(library: &dyn Library, seed: u64) -> Verdict {
    let plugin = library.plugin().map_err(|why| Outcome::failed("a library that can be opened", why))?;
    let model = built(plugin, &Problem::new(seed).batch(0..2))?;
    match library.accepts(&named(&model)?) {
        Ok(()) => Ok(Outcome::Passed),
        Err(why) => Ok(Outcome::failed("a different memory for every listed tensor", why)),
    }
}

fn modes(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..8);
    let model = built(plugin, &batch)?;
    let evaluate = || Ok::<_, Outcome>(forward(&model, &batch.images, false)?.detach());
    let before = state(&model)?;
    let logits = evaluate()?;
    if evaluate()? != logits {
        return Ok(Outcome::failed("the same logits in every evaluation", "other logits the second time"));
    }
    let after = state(&model)?;
    if let Some(((name, _), _)) = before.iter().zip(&after).find(|(before, after)| before != after) {
        return Ok(Outcome::failed(
            "parameters and buffers that evaluation does not change",
            format!("`{name}` changed"),
        ));
    }
    let declaration = model.declaration().map_err(|error| Outcome::failed("a declaration", error))?;
    match declaration.train_differs {
        None => Err(Outcome::Skipped(
            "evaluation changes nothing; a plugin of contract 1.0 cannot declare that training differs"
                .to_owned(),
        )),
        Some(true) => Ok(Outcome::Passed),
        Some(false) => {
            let trained = forward(&model, &batch.images, true)?.detach();
            demand_same(
                &[logits.shallow_clone(), logits],
                &[trained, evaluate()?],
                1e-5,
                "the same logits in training and after it, since train_differs is false",
            )
        }
    }
}
