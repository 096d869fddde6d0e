//! The columns of robust accuracies, and which of several evaluations they show.

use crate::plugin::PluginSpec;
use crate::report::collect::{Run, SavedEvaluation};
use crate::report::method::ball_of;
use crate::report::paper;
use crate::util::number::listed;
use plugin_api::Norm;

/// A column of robust accuracies: an attack on its own, or a suite.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measure {
    pub name: String,
    /// The plugin of the attack and its steps; none for a suite.
    attack: Option<(String, Option<usize>)>,
    /// The paper's name for it, and the length of PGD's steps.
    pub in_paper: Option<(&'static str, Option<f64>)>,
}

/// An accuracy and the evaluation that found it.
pub(super) struct Found<'a> {
    pub measure: Measure,
    pub share: f64,
    pub evaluation: &'a SavedEvaluation,
}

/// The accuracies of an evaluation of a run, named with the ball if it is not the run's own.
pub(super) fn found<'a>(run: &Run, evaluation: &'a SavedEvaluation) -> Vec<Found<'a>> {
    let of_run = &run.record.experiment.threat;
    let threat = evaluation.threat(of_run);
    let mut found = found_in_any_ball(evaluation);
    if threat != *of_run {
        for Found { measure, .. } in &mut found {
            measure.name = format!("{}, {}", measure.name, ball_of(&threat));
            measure.in_paper = None;
        }
    }
    found
}

/// The accuracies of an evaluation, whatever its ball.
fn found_in_any_ball(evaluation: &SavedEvaluation) -> Vec<Found<'_>> {
    let SavedEvaluation { result, suite, source, restarts, plugins, .. } = evaluation;
    let elsewhere = source.as_ref().map_or(String::new(), |source| format!(", made on {}", source.display()));
    let often = if *restarts > 1 { format!(", {restarts} restarts") } else { String::new() };
    let own = elsewhere.is_empty() && often.is_empty();
    if let Some(suite) = suite {
        let in_paper = (own && suite == "autoattack").then_some(("autoattack", None));
        let name = format!("{suite}{often}{elsewhere}");
        let measure = Measure { name, attack: None, in_paper };
        return vec![Found { measure, share: result.worst_case, evaluation }];
    }
    let measures = result.attacks.iter().enumerate().map(|(number, attack)| {
        let spec = attack.attack.parse::<PluginSpec>().ok();
        let steps = spec.as_ref().and_then(PluginSpec::steps);
        let plugin = plugins.get(number).map_or("", |record| &record.manifest.name);
        let in_paper = spec.filter(|_| own).and_then(|spec| paper::attack_name(plugin, &spec));
        let name = format!("{}{often}{elsewhere}", attack.attack);
        let measure = Measure { name, attack: Some((plugin.to_owned(), steps)), in_paper };
        Found { measure, share: attack.robust, evaluation }
    });
    measures.collect()
}

/// The shown one of several evaluations of a run, and how many there are. The newest weights come
/// first, then the most points, then the latest evaluation.
pub(super) fn best<'a, T>(
    found: impl Iterator<Item = (&'a SavedEvaluation, T)>,
) -> Option<(&'a SavedEvaluation, T, usize)> {
    let mut count = 0;
    let best = found.inspect(|_| count += 1).reduce(|one, other| {
        let rank = |(evaluation, _): &(&SavedEvaluation, T)| (evaluation.update, evaluation.points());
        if rank(&other) >= rank(&one) { other } else { one }
    });
    best.map(|(evaluation, value)| (evaluation, value, count))
}

/// The columns for the evaluations of these runs.
pub(super) fn measures(runs: &[Run]) -> Vec<Measure> {
    let mut measures: Vec<Measure> = Vec::new();
    for found in
        runs.iter().flat_map(|run| run.evaluations.iter().flat_map(move |evaluation| found(run, evaluation)))
    {
        if !measures.contains(&found.measure) {
            measures.push(found.measure);
        }
    }
    // From the weakest, as in tables of papers: FGSM, PGD by its steps, other attacks, suites.
    measures.sort_by_key(|measure| match &measure.attack {
        Some((plugin, _)) if plugin == "fgsm" => (0, None),
        Some((plugin, steps)) if plugin == "pgd" => (1, *steps),
        Some(_) => (2, None),
        None => (3, None),
    });
    measures
}

/// Robust accuracy over the radius of the ball, of an attack on its own or a suite.
pub(in crate::report) struct Curve {
    /// The attack or the suite.
    pub name: String,
    /// The norm of the balls.
    pub norm: Norm,
    /// The radius of each channel, as a multiple of theirs, if it is not the same for all.
    pub channel_scale: Option<Vec<f64>>,
    /// Accuracy without an attack.
    pub clean: f64,
    /// The number of points.
    pub count: usize,
    /// Radii, rising, each with the robust accuracy there.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Its name in a figure of curves of one norm.
    pub(in crate::report) fn label(&self) -> String {
        match &self.channel_scale {
            None => self.name.clone(),
            Some(scale) => format!("{} x ({})", self.name, listed(scale)),
        }
    }
}

/// The curves of a run: of its newest evaluated weights, for each measure and norm that was evaluated
/// at several radii on equally many points. Of several evaluations at one radius, the latest counts.
pub(in crate::report) fn curves(run: &Run) -> Vec<Curve> {
    let newest = run.evaluations.iter().map(|evaluation| evaluation.update).max();
    let mut curves: Vec<Curve> = Vec::new();
    for evaluation in run.evaluations.iter().filter(|evaluation| Some(evaluation.update) == newest) {
        let threat = evaluation.threat(&run.record.experiment.threat);
        for Found { measure, share, .. } in found_in_any_ball(evaluation) {
            let (norm, scale, count) = (threat.norm, &threat.channel_scale, evaluation.points());
            let is_same = |curve: &Curve| {
                (&curve.name, curve.norm, &curve.channel_scale, curve.count)
                    == (&measure.name, norm, scale, count)
            };
            let at = curves.iter().position(is_same).unwrap_or_else(|| {
                let (name, clean) = (measure.name.clone(), evaluation.result.clean);
                curves.push(Curve {
                    name,
                    norm,
                    channel_scale: scale.clone(),
                    clean,
                    count,
                    points: Vec::new(),
                });
                curves.len() - 1
            });
            curves[at].points.retain(|(epsilon, _)| *epsilon != threat.epsilon);
            curves[at].points.push((threat.epsilon, share));
        }
    }
    curves.retain(|curve| curve.points.len() > 1);
    for curve in &mut curves {
        curve.points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    }
    curves
}
