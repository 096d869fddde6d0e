//! The paper's figures, and the runs that correspond to them.

use crate::plugin::PluginSpec;
use crate::run::RunRecord;
use plugin_api::Norm;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The paper's tables: the contents of `paper.toml`.
static PAPER: LazyLock<Paper> = LazyLock::new(|| {
    toml::from_str(include_str!("paper.toml")).unwrap_or_else(|why| unreachable!("paper.toml: {why}"))
});

/// Epsilons and steps that differ by less are the same: some files write 8/255 with few digits.
const SAME: f64 = 1e-4;

/// The number of test points of MNIST and of CIFAR-10. A part of a data set does not correspond to
/// the paper's.
const TEST_POINTS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Paper {
    source: String,
    defaults: BTreeMap<String, Map<String, Value>>,
    column: Vec<Column>,
}

/// A column of a table of the paper.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Column {
    /// Its subject.
    pub name: String,
    /// The table that it is printed in.
    pub table: String,
    data: String,
    /// The plugin of the model, and those of its options that must be the same.
    model: String,
    #[serde(default)]
    options: Map<String, Value>,
    /// The plugin of the sampler.
    pub sampler: String,
    /// The threat model.
    pub threat: Threat,
    /// The length of the steps of PGD in its evaluation, as far as known.
    pgd_step_size: f64,
    /// The number of epochs of training.
    pub epochs: usize,
    /// The seconds of training, if printed.
    pub seconds: Option<f64>,
    figures: BTreeMap<String, f64>,
    /// Why its figure for AutoAttack may not be trusted.
    pub caveat: Option<String>,
    /// Open questions about it.
    pub remark: Option<String>,
}

/// A threat model without its domain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Threat {
    /// Its norm.
    pub norm: Norm,
    /// Its radius.
    pub epsilon: f64,
}

/// The title of the paper.
pub(super) fn source() -> &'static str {
    &PAPER.source
}

/// The column with the data, network, sampler, objective and threat model of a run.
pub(super) fn column_of(record: &RunRecord) -> Option<&'static Column> {
    PAPER.column.iter().find(|column| column.is_of(record))
}

impl Column {
    fn is_of(&self, record: &RunRecord) -> bool {
        let sampler = record.plugins.sampler.as_ref();
        let threat = &record.experiment.threat;
        let model = &record.plugins.model.manifest.name;
        let option = |key| option(&record.experiment.model, model, key);
        record.data.name == self.data
            && record.data.is_published()
            && record.data.test_points.is_none_or(|points| points == TEST_POINTS)
            && record.experiment.train.is_cross_entropy()
            && *model == self.model
            && self.options.iter().all(|(key, value)| option(key).as_ref() == Some(value))
            && sampler.is_some_and(|sampler| sampler.manifest.name == self.sampler)
            && threat.norm == self.threat.norm
            && threat.is_one_radius()
            && (threat.epsilon - self.threat.epsilon).abs() < SAME
    }

    /// Whether PGD takes steps of this length in its evaluation.
    pub(super) fn takes_steps_of(&self, step_size: f64) -> bool {
        (step_size - self.pgd_step_size).abs() < SAME
    }

    /// A printed figure as a share: `train` (accuracy against the training adversary), `clean`, or
    /// the accuracy under an attack (see [`attack_name`]).
    pub(super) fn share(&self, figure: &str) -> Option<f64> {
        self.figures.get(figure).map(|percent| percent / 100.0)
    }
}

/// The value of a plugin's option in a spec, otherwise its default.
fn option(spec: &PluginSpec, plugin: &str, key: &str) -> Option<Value> {
    let options: Map<String, Value> = serde_json::from_str(&spec.options()).unwrap_or_default();
    options.get(key).or_else(|| PAPER.defaults.get(plugin)?.get(key)).cloned()
}

/// The paper's name for an attack of the plugin `plugin` with this spec, and the length of PGD's
/// steps. The attack must have run once.
pub(super) fn attack_name(plugin: &str, spec: &PluginSpec) -> Option<(&'static str, Option<f64>)> {
    let step_size = option(spec, plugin, "step_size").and_then(|size| size.as_f64());
    match (plugin, spec.steps()) {
        ("fgsm", None | Some(1)) if step_size.is_none() => Some(("fgsm", None)),
        ("pgd", None | Some(40)) => Some(("pgd-40", step_size)),
        ("pgd", Some(100)) => Some(("pgd-100", step_size)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_the_figures_of_a_table() {
        assert_eq!(PAPER.column.len(), 7);
        for column in &PAPER.column {
            let known = ["train", "clean", "fgsm", "pgd-40", "pgd-100"];
            assert!(known.iter().all(|figure| column.share(figure).is_some()), "{}", column.name);
            assert!(column.figures.values().all(|percent| (20.0..100.0).contains(percent)));
            // The accuracy falls with more steps, and is lowest under AutoAttack.
            let ladder: Vec<_> = ["clean", "fgsm", "pgd-40", "pgd-100", "autoattack"]
                .iter()
                .filter_map(|figure| column.share(figure))
                .collect();
            assert!(ladder.is_sorted_by(|one, other| one > other), "{}: {ladder:?}", column.name);
            let is_implausible = column.share("autoattack").is_some_and(|left| left < 0.5);
            assert_eq!(column.caveat.is_some(), is_implausible, "{}", column.name);
        }
    }

    #[test]
    fn attacks_with_other_steps_are_not_the_papers() {
        let name = |plugin: &str, spec: &str| attack_name(plugin, &spec.parse().expect("a spec"));
        assert_eq!(name("fgsm", "fgsm.so"), Some(("fgsm", None)));
        assert_eq!(name("fgsm", "fgsm.so,step_size=0.1"), None);
        assert_eq!(name("pgd", "pgd.so"), Some(("pgd-40", Some(0.01))));
        assert_eq!(name("pgd", "pgd.so,steps=100,step_size=0.5"), Some(("pgd-100", Some(0.5))));
        assert_eq!(name("pgd", "pgd.so,steps=20"), None);
        for column in &PAPER.column {
            let takes = [0.01, 0.007843, 0.0001].map(|step| column.takes_steps_of(step));
            assert_eq!(takes, [column.data == "mnist", column.data != "mnist", false], "{}", column.name);
        }
    }

    #[test]
    fn options_without_a_value_have_the_plugins_default() {
        let arch = |spec: &str| option(&spec.parse().expect("a spec"), "cnn", "arch");
        assert_eq!(arch("cnn.so"), Some("B".into()));
        assert_eq!(arch("cnn.so,arch=A"), Some("A".into()));
        let wide = |spec: &str| {
            ["depth", "width"].map(|key| option(&spec.parse().expect("a spec"), "wide-resnet", key))
        };
        assert_eq!(wide("wide_resnet.so,width=1"), [Some(28.into()), Some(1.into())]);
        let columns = PAPER.column.iter().filter(|column| column.model == "wide-resnet");
        for column in columns {
            let options = ["depth", "width"].map(|key| column.options.get(key).cloned());
            assert_eq!(options, wide("wide_resnet.so"), "{}", column.name);
        }
        assert_eq!(option(&"mine.so".parse().expect("a spec"), "mine", "arch"), None);
    }
}
