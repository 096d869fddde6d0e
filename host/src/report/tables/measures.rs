//! The columns of robust accuracies, and which of several evaluations they show.

use crate::plugin::PluginSpec;
use crate::report::collect::{Run, SavedEvaluation};
use crate::report::paper;

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

/// The accuracies of an evaluation.
pub(super) fn found(evaluation: &SavedEvaluation) -> Vec<Found<'_>> {
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
    for found in runs.iter().flat_map(|run| &run.evaluations).flat_map(found) {
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
