//! Evaluations in shards: the points of an evaluation are dealt out to several processes, on one
//! machine or on many, and their findings are merged. Each shard has a journal of its own in the run's
//! folder, so that several may be evaluated at once, and each is continued like an evaluation.

use crate::error::shown;
use crate::evaluation::journal::{Journal, Settings};
use crate::evaluation::verdict::{AttackResult, Cost, FoundAtRadius, PartialEvaluation, Verdicts, share};
use crate::run::RunFolder;
use crate::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One of N shards of an evaluation: every N-th of its points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shard {
    /// Its number, from 1 to `count`.
    pub number: usize,
    /// The number of shards, N.
    pub count: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(written: &str) -> std::result::Result<Self, String> {
        let numbers = written.split_once('/').and_then(|(number, count)| {
            Some(Self { number: number.parse().ok()?, count: count.parse().ok()? })
        });
        numbers
            .filter(|shard| (1..=shard.count).contains(&shard.number))
            .ok_or_else(|| "expected I/N with I from 1 to N, such as 2/8".to_owned())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.count)
    }
}

impl Shard {
    /// Its points. The points of neighbouring shards are neighbours: every shard has as many points of
    /// a sorted data set's classes as the others.
    ///
    /// # Errors
    /// If there are more shards than points.
    pub fn points(self, all: &[i64]) -> Result<Vec<i64>> {
        let Self { number, count } = self;
        if count > all.len() {
            return Err(Error::new(format!(
                "expected at most as many shards as there are points, {}; got {count}",
                all.len()
            ))
            .fix("take fewer shards (--shard I/N) or processes, or more points (--points)"));
        }
        Ok(all.iter().skip(number - 1).step_by(count).copied().collect())
    }

    /// The shard of the journal in this folder, `I-of-N-ID`.
    fn of_folder(folder: &Path) -> Option<Self> {
        let name = folder.file_name()?.to_str()?;
        let mut parts = name.split('-');
        let (number, of, count) = (parts.next()?, parts.next()?, parts.next()?);
        if of == "of" { format!("{number}/{count}").parse().ok() } else { None }
    }
}

/// The setting that tells a shard's journal from that of the whole evaluation.
pub(crate) const SHARD: &str = "shard";

/// What may differ between a shard and the process that merges it, which computes no verdict. All
/// shards must agree in it.
const OF_PROCESS: [&str; 3] = ["batch", "device", "threads"];

/// All shards of an evaluation, finished. Other processes cannot work on them.
pub(crate) struct Shards {
    /// Their journals, in order.
    pub(crate) journals: Vec<Journal>,
    /// What they found, as one process would have found it.
    pub(crate) found: PartialEvaluation,
}

impl Shards {
    /// The finished shards of the evaluation of `points` with these settings.
    ///
    /// # Errors
    /// If a shard is missing, unfinished, in use or of other settings: which one, and what to do.
    pub(crate) fn open(
        run: &RunFolder,
        expected: &Settings,
        (attack_count, radii): (usize, usize),
        points: &[i64],
    ) -> Result<Self> {
        let folders = choose(run, expected)?;
        let count = folders.len();
        let (mut journals, mut found) = (Vec::new(), Vec::new());
        for (folder, number) in folders.iter().zip(1..) {
            let shard = Shard { number, count };
            let (journal, findings) = Journal::reopen(folder).map_err(|error| error.note("shard", shard))?;
            if !findings.is_finished(attack_count, radii) {
                let done = findings.smaller.len() * attack_count + findings.results.len();
                return Err(Error::new(format!(
                    "shard {shard} is not finished: expected {} attacks, got {done}",
                    attack_count * radii
                ))
                .fix(again(shard)));
            }
            if !findings.is_consistent(attack_count, &shard.points(points)?) {
                return Err(Error::file("merge", &journal.findings(), "its parts do not fit one another")
                    .fix(format!("remove {}, then {}", shown(folder), again(shard))));
            }
            journals.push(journal);
            found.push(findings);
        }
        Ok(Self { found: merge(&found, points), journals })
    }

    /// The settings of the processes that evaluated them, in which all agree.
    pub(crate) fn process_settings(&self) -> impl Iterator<Item = (String, Value)> {
        let settings = self.journals.first().map(Journal::settings);
        let of_process = settings.into_iter().flatten().filter(|(key, _)| OF_PROCESS.contains(&key.as_str()));
        of_process.map(|(key, value)| (key.clone(), value.clone()))
    }
}

fn again(shard: Shard) -> String {
    format!("give the same command with --shard {shard} instead of --merge")
}

/// The settings that all shards of one evaluation share, with or without those of the process.
fn shared(settings: &Settings, with_process: bool) -> Settings {
    let is_shared = |key: &str| key != SHARD && (with_process || !OF_PROCESS.contains(&key));
    let shared = settings.iter().filter(|(key, _)| is_shared(key));
    shared.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The first difference between settings: "its `seed` is 1; expected 0".
fn difference(expected: &Settings, got: &Settings) -> Option<String> {
    let keys = expected.keys().chain(got.keys());
    let mut differing = keys.filter(|key| expected.get(*key) != got.get(*key));
    differing.next().map(|key| {
        let value = |settings: &Settings| settings.get(key).map_or("nothing".to_owned(), Value::to_string);
        format!("its `{key}` is {}; expected {}", value(got), value(expected))
    })
}

/// The folders of the shards to merge, in order. Where a run has shards of several numbers N, those
/// are chosen of which the largest part is there.
fn choose(run: &RunFolder, expected: &Settings) -> Result<Vec<PathBuf>> {
    let found = Journal::shards(run)?;
    let numbered = |(folder, settings): (PathBuf, Option<Settings>)| {
        Some((Shard::of_folder(&folder)?, folder, settings))
    };
    let found: Vec<(Shard, PathBuf, Option<Settings>)> = found.into_iter().filter_map(numbered).collect();
    let wanted = shared(expected, false);
    let matching: Vec<(Shard, &PathBuf, Settings)> = found
        .iter()
        .filter_map(|(shard, folder, settings)| Some((*shard, folder, settings.as_ref()?)))
        .filter(|(.., settings)| shared(settings, false) == wanted)
        .map(|(shard, folder, settings)| (shard, folder, shared(settings, true)))
        .collect();
    let group = |like: &(Shard, &PathBuf, Settings)| -> Vec<_> {
        let is_alike = |one: &&(Shard, &PathBuf, Settings)| one.0.count == like.0.count && one.2 == like.2;
        matching.iter().filter(is_alike).cloned().collect()
    };
    let groups = matching.iter().map(group);
    let part = |group: &Vec<(Shard, &PathBuf, Settings)>| group.len() as f64 / group[0].0.count as f64;
    let Some(group) = groups.max_by(|one, other| part(one).total_cmp(&part(other))) else {
        return Err(without_any(run, &found, &wanted));
    };
    let (first, _, settings) = &group[0];
    let of_number = |number: usize| {
        let shard = Shard { number, count: first.count };
        let here = group.iter().find(|(found, ..)| *found == shard);
        here.map(|(_, folder, _)| (*folder).clone()).ok_or_else(|| lacking(shard, &found, settings))
    };
    (1..=first.count).map(of_number).collect()
}

/// The error of a run without any shard of this evaluation.
fn without_any(run: &RunFolder, found: &[(Shard, PathBuf, Option<Settings>)], expected: &Settings) -> Error {
    let Some((shard, folder, settings)) = found.first() else {
        return Error::new(format!("--merge: {} has no shards of evaluations", run.name().display()))
            .fix("evaluate them first: the same command with --shard 1/N to --shard N/N instead of --merge");
    };
    let settings = settings.as_ref().map(|settings| shared(settings, false));
    match settings.and_then(|settings| difference(expected, &settings)) {
        Some(what) => Error::new(format!("--merge: shard {shard} is of another evaluation: {what}"))
            .note("shard", shown(folder))
            .fix("give the options that the shards were evaluated with"),
        None => {
            Error::new(format!("shard {shard} is not finished: it has found nothing yet")).fix(again(*shard))
        }
    }
}

/// The error of a shard that does not match the others.
fn lacking(shard: Shard, found: &[(Shard, PathBuf, Option<Settings>)], expected: &Settings) -> Error {
    let others: Vec<_> = found.iter().filter(|(number, ..)| *number == shard).collect();
    let of_others = others.iter().find_map(|(_, folder, settings)| {
        let what = difference(expected, &shared(settings.as_ref()?, true))?;
        Some((folder, what))
    });
    match (of_others, others.is_empty()) {
        (Some((folder, what)), _) => Error::new(format!("shard {shard} differs from the others: {what}"))
            .note("shard", shown(folder))
            .fix(again(shard)),
        (None, false) => {
            Error::new(format!("shard {shard} is not finished: it has found nothing yet")).fix(again(shard))
        }
        (None, true) => Error::new(format!("shard {shard} is missing")).fix(again(shard)),
    }
}

/// What one process would have found at all points; the costs add up.
fn merge(shards: &[PartialEvaluation], points: &[i64]) -> PartialEvaluation {
    let radii = shards.first().map_or(0, |shard| shard.smaller.len());
    let at = |radius: usize| -> FoundAtRadius {
        let of_shard = |shard: &PartialEvaluation| match shard.smaller.get(radius) {
            Some(found) => found.clone(),
            None => FoundAtRadius {
                verdicts: shard.verdicts.clone(),
                results: shard.results.clone(),
                candidates: shard.candidates.clone(),
            },
        };
        merge_radius(&shards.iter().map(of_shard).collect::<Vec<_>>(), points)
    };
    let FoundAtRadius { verdicts, results, candidates } = at(radii);
    PartialEvaluation {
        verdicts,
        natural_losses: dealt(shards.iter().map(|shard| &shard.natural_losses)),
        results,
        candidates,
        attack_progress: None,
        smaller: (0..radii).map(at).collect(),
    }
}

fn merge_radius(shards: &[FoundAtRadius], points: &[i64]) -> FoundAtRadius {
    let attack_count = shards.first().map_or(0, |shard| shard.results.len());
    let verdicts = Verdicts {
        indices: points.to_vec(),
        clean: dealt(shards.iter().map(|shard| &shard.verdicts.clean)),
        attacks: (0..attack_count)
            .map(|attack| dealt(shards.iter().map(|shard| &shard.verdicts.attacks[attack])))
            .collect(),
    };
    let candidates_of =
        |shard: &FoundAtRadius, attack: usize| shard.candidates.get(attack).copied().unwrap_or_default();
    let result = |attack: usize| -> AttackResult {
        let mut cost = Cost::default();
        let (mut rise, mut candidates) = (0.0, 0);
        for shard in shards {
            let result = &shard.results[attack];
            cost.forward_passes += result.cost.forward_passes;
            cost.backward_passes += result.cost.backward_passes;
            cost.seconds += result.cost.seconds;
            let of_shard = candidates_of(shard, attack);
            rise += result.loss_rise.unwrap_or_default() * of_shard as f64;
            candidates += of_shard;
        }
        AttackResult {
            attack: shards[0].results[attack].attack.clone(),
            robust: share(&verdicts.attacks[attack]),
            cost,
            loss_rise: (candidates > 0).then(|| rise / candidates as f64),
            moved: shards.iter().filter_map(|shard| shard.results[attack].moved).reduce(f64::max),
        }
    };
    let sum = |attack: usize| shards.iter().map(|shard| candidates_of(shard, attack)).sum();
    FoundAtRadius {
        results: (0..attack_count).map(result).collect(),
        candidates: (0..attack_count).map(sum).collect(),
        verdicts,
    }
}

/// One list of what was dealt out: the first of each list, then the second of each, and so on.
fn dealt<'a, T: Copy + 'a>(lists: impl Iterator<Item = &'a Vec<T>>) -> Vec<T> {
    let lists: Vec<_> = lists.collect();
    let longest = lists.iter().map(|list| list.len()).max().unwrap_or_default();
    (0..longest).flat_map(|place| lists.iter().filter_map(move |list| list.get(place).copied())).collect()
}

/// Adds to the settings of an evaluation those of its shard.
pub(crate) fn of_shard(mut settings: Settings, shard: Shard) -> Settings {
    settings.insert(SHARD.to_owned(), json!(shard));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_written_as_a_number_of_a_number() {
        assert_eq!("2/3".parse(), Ok(Shard { number: 2, count: 3 }));
        for wrong in ["0/3", "4/3", "3", "1/0", "0/0", "a/3", "1/b", "-1/3", "1/3/3", "", "/"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn points_are_dealt_out_and_come_back_in_order() {
        let all: Vec<i64> = (10..20).collect();
        for count in 1..=10 {
            let shards: Vec<Vec<i64>> =
                (1..=count).map(|number| Shard { number, count }.points(&all).expect("points")).collect();
            let sizes: Vec<_> = shards.iter().map(Vec::len).collect();
            assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1, "{sizes:?}");
            assert_eq!(dealt(shards.iter()), all);
        }
        let refused = Shard { number: 1, count: 11 }.points(&all).expect_err("refused").to_string();
        assert!(refused.contains("10; got 11"), "{refused}");
    }

    #[test]
    fn the_folder_of_a_journal_names_its_shard() {
        let of = |name: &str| Shard::of_folder(Path::new(name));
        assert_eq!(of("run/shards/2-of-3-0123456789abcdef"), Some(Shard { number: 2, count: 3 }));
        assert_eq!(
            (of("run/shards/2-3-0123"), of("run/shards/4-of-3-0123"), of("other")),
            (None, None, None)
        );
    }

    #[test]
    fn means_are_weighted_by_their_candidates_and_costs_add_up() {
        let found = |robust: [bool; 2], loss_rise, candidates, forward_passes| FoundAtRadius {
            verdicts: Verdicts {
                indices: vec![0, 1],
                clean: vec![true, true],
                attacks: vec![robust.to_vec()],
            },
            results: vec![AttackResult {
                attack: "a.so".to_owned(),
                robust: 0.5,
                cost: Cost { forward_passes, backward_passes: 1, seconds: 2.0 },
                loss_rise,
                moved: loss_rise.map(|rise| rise / 8.0),
            }],
            candidates: vec![candidates],
        };
        let parts = [found([true, false], Some(1.0), 1, 10), found([true, true], Some(4.0), 2, 20)];
        let merged = merge_radius(&parts, &[5, 6, 7, 8]);
        assert_eq!(merged.verdicts.attacks, [[true, true, false, true]]);
        let result = &merged.results[0];
        assert_eq!((result.robust, result.loss_rise), (0.75, Some(3.0)));
        assert_eq!(result.moved, Some(0.5), "the larger of both");
        assert_eq!(
            (result.cost.forward_passes, result.cost.backward_passes, result.cost.seconds),
            (30, 2, 4.0)
        );
        let none = merge_radius(&[found([true, true], None, 0, 1)], &[5, 6]);
        assert_eq!(none.results[0].loss_rise, None);
    }
}
