use crate::of_points;
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Batch, Error, Objective, Outer, Result, Setting, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

export_objective!("group_dro", GroupDro);

/// The largest number of a group.
const MOST_GROUPS: u32 = 10_000;

/// Group DRO (Sagawa et al. 2020): groups of points have weights q, which rise with their losses. At
/// every update q_g is multiplied by exp(step * loss of g) and normalised, and the weights of the
/// network descend on the sum of q_g times the loss of g: the mean over its points in the minibatch,
/// zero if it has none there.
pub struct GroupDro {
    options: Options,
    /// The group of each training point; none if groups are the classes.
    groups: Option<Vec<i64>>,
}

/// Its options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// File with a line `point,group` for each training point, numbered from 0; without one, groups
    /// are the classes.
    #[schemars(extend("x-file" = "data"))]
    pub groups: Option<String>,
    /// Step size of the groups' weights.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub step: f64,
}

impl Default for Options {
    /// The authors' step size.
    fn default() -> Self {
        Self { groups: None, step: 0.01 }
    }
}

/// Reads a file of groups. Points may come in any order.
fn read(file: &str) -> Result<Vec<i64>> {
    let text = fs::read_to_string(file)
        .map_err(|why| Error::new(format!("groups: {file}: {why}; expected a text in UTF-8")))?;
    // Some editors begin a file with a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    let mut groups = BTreeMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refused = |why: String| Error::new(format!("groups: {file}, line {}: {why}", number + 1));
        let parts = line.split_once(',').map(|(point, group)| (point.trim(), group.trim()));
        // A heading is allowed.
        let is_heading = parts.is_some_and(|(point, group)| {
            point.eq_ignore_ascii_case("point") && group.eq_ignore_ascii_case("group")
        });
        if groups.is_empty() && is_heading {
            continue;
        }
        let parsed =
            parts.and_then(|(point, group)| Some((point.parse::<u32>().ok()?, group.parse::<u32>().ok()?)));
        let (point, group) = parsed.ok_or_else(|| {
            let shown: String = line.escape_debug().take(60).collect();
            refused(format!("expected POINT,GROUP (whole numbers from 0), got `{shown}`"))
        })?;
        if group >= MOST_GROUPS {
            return Err(refused(format!("expected a group below {MOST_GROUPS}, got {group}")));
        }
        if groups.insert(point, i64::from(group)).is_some() {
            return Err(refused(format!("point {point} has a group already; expected one line a point")));
        }
    }
    let refused = |why: String| Err(Error::new(format!("groups: {file}: {why}")));
    if groups.is_empty() {
        return refused("expected lines POINT,GROUP, got none".to_owned());
    }
    if let Some((missing, _)) = (0u32..).zip(groups.keys()).find(|(point, known)| point != *known) {
        return refused(format!("point {missing} has no group; expected one line a point"));
    }
    let known: BTreeSet<_> = groups.values().copied().collect();
    if let Some((missing, _)) = (0i64..).zip(&known).find(|(group, known)| group != *known) {
        return refused(format!(
            "group {missing} has no point; expected groups numbered from 0 without gaps, got {} as the largest",
            known.last().copied().unwrap_or_default()
        ));
    }
    Ok(groups.into_values().collect())
}

impl GroupDro {
    fn count(&self, classes: i64) -> i64 {
        match &self.groups {
            Some(groups) => groups.iter().max().map_or(0, |largest| largest + 1),
            None => classes,
        }
    }

    /// The group of each point of a minibatch, `[B]`.
    fn groups_of(&self, batch: &Batch) -> Result<Tensor> {
        let copies = batch.particles_per_point;
        let Some(groups) = &self.groups else {
            return Ok(batch.labels.f_slice(0, None, None, copies as i64)?);
        };
        let group = |point: &i64| {
            groups.get(*point as usize).copied().ok_or_else(|| {
                Error::new(format!(
                    "groups: point {point} has no group; the file has {} points",
                    groups.len()
                ))
            })
        };
        let found: Vec<i64> = batch.points.iter().step_by(copies).map(group).collect::<Result<_>>()?;
        Ok(Tensor::f_from_slice(&found)?.f_to_device(batch.logits.device())?)
    }
}

impl Objective for GroupDro {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        let groups = options.groups.as_deref().map(read).transpose()?;
        Ok(Self { options, groups })
    }

    fn supports(&self, setting: &Setting) -> Result<()> {
        match &self.groups {
            Some(groups) if groups.len() != setting.training_points => Err(Error::new(format!(
                "groups: {}: expected the {} training points, got {} points",
                self.options.groups.as_deref().unwrap_or_default(),
                setting.training_points,
                groups.len()
            ))),
            _ => Ok(()),
        }
    }

    fn couples_points(&self) -> bool {
        true
    }

    fn state(&self, setting: &Setting) -> Vec<(&'static str, Tensor)> {
        let count = self.count(setting.classes);
        vec![("weights", Tensor::full([count], 1.0 / count as f64, tch::kind::FLOAT_CPU))]
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let [weights] = batch.state else {
            return Err(Error::new(format!("expected one state tensor, got {}", batch.state.len())));
        };
        let (losses, groups) = (of_points(batch)?, self.groups_of(batch)?);
        let zeros = losses.f_new_zeros(weights.size(), (losses.kind(), losses.device()))?;
        let sums = zeros.f_index_add(0, &groups, &losses)?;
        let counts = zeros.f_index_add(0, &groups, &losses.detach().ones_like())?;
        let means = sums / counts.clamp_min(1.0);
        // In logarithms, since the exponential of a large step times a large loss has no number.
        let raised = weights.log() + (means.detach() * self.options.step).to_kind(Kind::Float);
        let next = raised.f_softmax(0, Kind::Float)?;
        let loss = (means * next.to_kind(losses.kind())).f_sum(losses.kind())?;
        Ok(Outer { loss, state: vec![next] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::with_losses;
    use plugin_api::ThreatModel;
    use plugin_api::testing::{Round, assert_close};
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn reading(text: &str) -> Result<GroupDro> {
        let file = file(text);
        GroupDro::new(Options { groups: Some(file.path().display().to_string()), step: 2f64.ln() })
    }

    #[test]
    fn weights_rise_with_the_losses_of_their_groups() {
        // Groups 0 and 1 have the means 1 and 3, group 2 has no point here. The file begins with a byte
        // order mark. With the step log 2, the
        // weights 1/2, 1/4, 1/4 are multiplied by 2, 8 and 1: 1, 2 and 1/4 out of 13/4.
        let objective = reading("\u{feff}Point,Group\n1,0\n0,0\n2,1\n3,2\n").expect("an objective");
        let state = vec![Tensor::from_slice(&[0.5f32, 0.25, 0.25])];
        let round = Round { state, ..with_losses(&[0.5, 1.5, 3.0]) };
        let Outer { loss, state } = objective.outer(&round.batch()).expect("a loss");
        for (got, expected) in
            Vec::<f32>::try_from(&state[0]).expect("f32").iter().zip([4.0 / 13.0, 8.0 / 13.0, 1.0 / 13.0])
        {
            assert!((got - expected).abs() < 1e-6, "got {got}, expected {expected}");
        }
        assert!((loss.double_value(&[]) - (4.0 + 24.0) / 13.0).abs() < 1e-6);
    }

    #[test]
    fn groups_are_the_classes_unless_there_is_a_file() {
        let objective = GroupDro::new(Options::default()).expect("an objective");
        let setting = Setting {
            threat: ThreatModel::default(),
            particles_per_point: 1,
            classes: 2,
            training_points: 5,
        };
        let state = objective.state(&setting);
        assert_close(&state[0].1, &[0.5, 0.5]);
        assert_eq!(objective.supports(&setting), Ok(()));
        let of_a_file = reading("0,0\n1,1\n").expect("an objective");
        let refused = of_a_file.supports(&setting).expect_err("refused").to_string();
        assert!(refused.ends_with(": expected the 5 training points, got 2 points"), "{refused}");
    }

    #[test]
    fn files_with_gaps_duplicates_or_other_words_are_refused_with_the_line() {
        for (text, expected) in [
            ("0,0\n0,1\n", ", line 2: point 0 has a group already"),
            ("0,0\n2,1\n", "point 1 has no group"),
            ("0,0\n1,2\n", "group 1 has no point; expected groups numbered from 0 without gaps, got 2"),
            ("0,0\n1;2\n", ", line 2: expected POINT,GROUP"),
            ("0,-1\n", ", line 1: expected POINT,GROUP"),
            ("0,10000\n", "expected a group below 10000, got 10000"),
            ("\n", "expected lines POINT,GROUP, got none"),
            ("99999999999,0\n", ", line 1: expected POINT,GROUP"),
        ] {
            let refused = reading(text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains(expected), "{text:?}: {refused}");
        }
    }
}
