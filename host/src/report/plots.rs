//! The figures of a report, as SVG and as PNG. This file has those of training.

mod chart;
mod diagnosis;
mod raster;
mod strip;
mod sweep;

use super::collect::{Distances, Run};
use super::method::ball;
use super::tables::{self, Curve};
use crate::Result;
use crate::plugin::Threat;
use crate::run::progress::TracePoint;
use crate::util::number::counted;
use chart::*;
use plugin_api::Norm;

pub(super) use chart::dark_style;
pub(super) use diagnosis::diagnosis;
pub(super) use raster::Rasteriser;
pub(super) use strip::{pairs, strip};
pub(super) use sweep::sweep;

/// A figure.
pub(super) struct Figure {
    /// The name of its files.
    pub name: String,
    /// Its title, in a few words.
    pub title: String,
    /// Its contents in words, for screen readers.
    pub alternative: String,
    /// Its explanation.
    pub caption: String,
    /// The figure itself.
    pub svg: String,
}

/// The training curves; none if fewer than two epochs are finished.
pub(super) fn curves(run: &Run, name: &str) -> Result<Option<Figure>> {
    let [_, .., last] = run.epochs.as_slice() else { return Ok(None) };
    let over_epochs =
        |name: &str, value: &dyn Fn(&crate::run::progress::EpochMetrics) -> Option<f64>| Series {
            name: name.to_owned(),
            points: run.epochs.iter().filter_map(|epoch| Some((epoch.epoch as f64, value(epoch)?))).collect(),
        };
    let panel = |y: Axis<'static>, mut series: Vec<Series>| {
        series.retain(|series| !series.points.is_empty());
        Panel { x: Axis { title: "epoch", scale: Scale::Whole }, y, series }
    };
    let seen =
        if run.record.experiment.sampler.0.is_some() { "training particles" } else { "training points" };
    let accuracies = vec![
        over_epochs(seen, &|epoch| Some(100.0 * epoch.train_accuracy)),
        over_epochs("validation points", &|epoch| Some(100.0 * epoch.validation_accuracy?)),
        over_epochs("validation points, attacked by the probe", &|epoch| Some(100.0 * epoch.probe_accuracy?)),
    ];
    let panels = [
        panel(
            Axis::linear("loss"),
            vec![
                over_epochs("loss", &|epoch| Some(epoch.train_loss)),
                over_epochs("stored particles", &|epoch| Some(epoch.law.as_ref()?.stored)),
                over_epochs("uniform draws", &|epoch| Some(epoch.law.as_ref()?.uniform)),
                over_epochs("natural examples", &|epoch| Some(epoch.law.as_ref()?.natural)),
            ],
        ),
        panel(Axis::percent("accuracy, %"), accuracies),
        panel(
            Axis::linear("learning rate"),
            vec![over_epochs("learning rate", &|epoch| Some(epoch.learning_rate))],
        ),
    ];
    Ok(Some(Figure {
        name: format!("{name}-curves"),
        title: "Training".to_owned(),
        alternative: format!(
            "Loss, accuracy and learning rate over {}: the loss ends at {:.4}, accuracy on the {seen} at \
             {:.2} per cent.",
            counted(last.epoch, "epoch"),
            last.train_loss,
            100.0 * last.train_accuracy
        ),
        caption: format!(
            "Mean loss and accuracy at the {seen}; accuracy on held-out points where there are some; learning rate \
             of each epoch's last update. Stored particles, uniform draws and natural examples: mean losses of \
             some training points in evaluation mode, where these were measured (--diagnose-every)."
        ),
        svg: draw(&panels)?,
    }))
}

/// Robust accuracy over the radius of the ball, a panel for each norm; none without such a curve.
pub(super) fn radii(run: &Run, name: &str) -> Result<Option<Figure>> {
    let curves = tables::curves(run);
    let mut panels = Vec::new();
    let titles = Norm::ALL.map(|norm| format!("radius (epsilon, {norm})"));
    for (norm, title) in Norm::ALL.iter().zip(&titles) {
        let of_norm: Vec<_> = curves.iter().filter(|curve| curve.norm == *norm).collect();
        for some in of_norm.chunks(MOST_SERIES) {
            let series = some.iter().map(|curve| {
                let clean = (0.0, curve.clean);
                let points = std::iter::once(clean).chain(curve.points.iter().copied());
                Series {
                    name: curve.label(),
                    points: points.map(|(epsilon, share)| (epsilon, 100.0 * share)).collect(),
                }
            });
            panels.push(Panel {
                x: Axis::linear(title),
                y: Axis::percent("robust accuracy, %"),
                series: series.collect(),
            });
        }
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let told = |curve: &Curve| {
        let (epsilon, robust) = curve.points.last().copied().unwrap_or_default();
        format!(
            "{}: from {:.2} per cent without an attack to {:.2} at {}",
            curve.name,
            100.0 * curve.clean,
            100.0 * robust,
            ball(curve.norm, epsilon, curve.channel_scale.as_deref())
        )
    };
    let ends: Vec<_> = curves.iter().map(told).collect();
    Ok(Some(Figure {
        name: format!("{name}-radii"),
        title: "Robust accuracy over the radius".to_owned(),
        alternative: format!("Robust accuracy falls with the radius: {}.", ends.join("; ")),
        caption: "Robust accuracy over the radius of the ball, at the newest evaluated weights; at radius 0, accuracy \
                  without an attack. Only measured radii are marked by a bend of the line."
            .to_owned(),
        svg: draw(&panels)?,
    }))
}

/// The error against passes, and against backprops as the paper counts them.
pub(super) fn traces(runs: &[Run]) -> Result<Vec<Figure>> {
    let traced: Vec<_> = runs.iter().filter(|run| !run.trace.is_empty()).collect();
    let mut figures = Vec::new();
    for (number, runs) in traced.chunks(MOST_SERIES).enumerate() {
        let series = |cost: &dyn Fn(&Run, &TracePoint) -> Option<f64>| {
            let one = |run: &&Run| Series {
                name: match run.trace.first() {
                    Some(first) => format!("{}: {}, {} points", run.name, first.attack, first.points),
                    None => run.name.clone(),
                },
                points: run
                    .trace
                    .iter()
                    .filter_map(|point| Some((cost(run, point)?, 100.0 * (1.0 - point.attack_accuracy))))
                    .collect(),
            };
            runs.iter().map(one).filter(|series| !series.points.is_empty()).collect::<Vec<_>>()
        };
        let cost_in_backprops = |run: &Run, point: &TracePoint| {
            let train = &run.record.experiment.train;
            // The paper has no count for others.
            train
                .is_cross_entropy()
                .then(|| backprops(point, run.record.data.train_points, train.batch, train.particles))
        };
        for (name, unit, x, title, caption, series) in [
            (
                "trace-passes",
                "passes",
                "passes per training point",
                "Error against passes",
                "Error under attack during training, against all passes of training. A pass is one forward and one \
                 backward of one point, for the particles or for the weights.",
                series(&|_, point| Some(point.passes_per_sample)),
            ),
            (
                "trace-backprops",
                "backprops",
                "backprops per training point, as the paper counts",
                "Error against backprops as the paper counts them",
                "The same against backprops: all passes less those for the weights, or those for the weights if that \
                 is more. The paper counts one backprop for an update of Langevin, which takes two passes, and K for \
                 PGD-K, which takes K + 1. It has no count for TRADES: such runs are left out.",
                series(&cost_in_backprops),
            ),
        ] {
            if series.is_empty() {
                continue;
            }
            let ends: Vec<_> = series
                .iter()
                .filter_map(|Series { name, points }| {
                    let (cost, error) = points.last()?;
                    let cost = (10.0 * cost).round() / 10.0;
                    Some(format!("{name}: ends at {error:.2} per cent after {cost} {unit}"))
                })
                .collect();
            let panel = Panel {
                x: Axis { title: x, scale: Scale::Log },
                y: Axis::percent("error under attack, %"),
                series,
            };
            figures.push(Figure {
                name: if number == 0 { name.to_owned() } else { format!("{name}-{}", number + 1) },
                title: title.to_owned(),
                alternative: format!("{title}, on a logarithmic axis: {}.", ends.join("; ")),
                caption: caption.to_owned(),
                svg: draw(&[panel])?,
            });
        }
    }
    Ok(figures)
}

/// Backprops per training point as the paper counts them ("one back-propagation per update" of
/// Langevin): all passes less those for the weights, or those for the weights if that is more.
fn backprops(point: &TracePoint, train_points: usize, batch: usize, particles: usize) -> f64 {
    let updates_of_an_epoch = train_points.div_ceil(batch.max(1)).max(1) as u64;
    let (epochs, within) = (point.updates / updates_of_an_epoch, point.updates % updates_of_an_epoch);
    let visits = epochs as f64 + (within * batch as u64) as f64 / train_points.max(1) as f64;
    let steps_of_an_update = point.optimizer_steps as f64 / point.updates.max(1) as f64;
    let of_weights = visits * steps_of_an_update * particles as f64;
    (point.passes_per_sample - of_weights).max(of_weights)
}

/// The histogram of the distances of the particles from their natural examples.
pub(super) fn distances(found: &Distances, threat: &Threat, name: &str) -> Result<Figure> {
    let series = found.measured.iter().map(|measured| (measured.name.clone(), measured.shares.as_slice()));
    let histogram =
        Histogram { x: "share of the largest distance", y: "particles, %", series: series.collect() };
    let means =
        found.measured.iter().map(|measured| format!("{}: {:.3} on average", measured.name, measured.mean));
    let means = means.collect::<Vec<_>>().join("; ");
    Ok(Figure {
        name: format!("{name}-distances"),
        title: "Distances of the particles".to_owned(),
        alternative: format!(
            "Histogram of the distances of {} particles from their natural examples. {means}.",
            found.particles
        ),
        caption: format!(
            "Distances of the {} particles of the newest checkpoint from their natural examples, each as a share of \
             the largest in the ball (epsilon = {}). {means}.",
            found.particles, threat.epsilon
        ),
        svg: draw_histograms(&[histogram])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backprops_are_those_of_the_paper() {
        // 250 points in batches of 100: an epoch has three updates. Four updates visit 350 points,
        // 1.4 epochs.
        let cost = |passes_of_a_visit: f64, steps_of_an_update: u64, particles: usize| {
            let point = TracePoint {
                updates: 4,
                optimizer_steps: 4 * steps_of_an_update,
                passes_per_sample: 1.4 * passes_of_a_visit,
                seconds: 1.0,
                clean_accuracy: 0.9,
                attack_accuracy: 0.5,
                attack: "fgsm.so".to_owned(),
                points: 10,
            };
            backprops(&point, 250, 100, particles) / 1.4
        };
        let cases = [
            ("ordinary training", cost(1.0, 1, 1), 1.0),
            ("Langevin in mode faithful", cost(2.0, 1, 1), 1.0),
            ("the same with three particles", cost(6.0, 1, 3), 3.0),
            ("PGD-40", cost(41.0, 1, 1), 40.0),
            ("mode fused", cost(1.0, 1, 1), 1.0),
            ("mode fused with four replays", cost(4.0, 4, 1), 4.0),
        ];
        for (what, found, expected) in cases {
            assert!((found - expected).abs() < 1e-9, "{what}: {found} for {expected}");
        }
    }
}
