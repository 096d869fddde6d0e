//! Pairs of training points that are close to each other: Assumption 3.1 of the paper, and what
//! follows for every classifier where it does not hold.
//!
//! Pixels are whole numbers from 0 to 255, so that distances are computed and compared without
//! rounding: in linf in pixel steps, in l2 in squares of them.

use super::pack::pixels::Rows;
use super::{DataSpec, Dataset, Split};
use crate::error::absolute;
use crate::util::matching::largest_matching;
use crate::{Error, Result};
use indicatif::HumanCount;
use plugin_api::Norm;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tch::Kind;

/// The answer of `host data check`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PairCheck {
    /// The data set.
    pub data: CheckedData,
    /// The norm of the distances.
    pub norm: Norm,
    /// The radius of the balls around the points.
    pub epsilon: f64,
    /// The counts.
    #[serde(flatten)]
    pub found: ClosePairs,
    /// Seconds that the comparisons took.
    pub seconds: f64,
}

/// A data set, as a [`PairCheck`] records it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckedData {
    /// A known name, or an absolute path, with options, as [`DataSpec`] reads it.
    pub name: String,
    /// The folder of the named data sets.
    pub folder: PathBuf,
    /// MD5 of each file, as in [`Dataset::checksums`].
    pub checksums: BTreeMap<String, String>,
    /// As in [`Dataset::class_names`].
    pub class_names: Vec<String>,
}

impl CheckedData {
    /// The record of a data set that was loaded by this name (or from this folder) and from this
    /// folder of the named ones.
    pub fn new(dataset: &Dataset, name: &str, folder: &Path) -> Self {
        Self {
            name: DataSpec::recorded(name).absolute().to_string(),
            folder: absolute(folder),
            checksums: dataset.checksums.clone(),
            class_names: dataset.class_names.clone(),
        }
    }

    /// The name of the class with this label.
    pub fn class(&self, label: i64) -> String {
        let name = usize::try_from(label).ok().and_then(|label| self.class_names.get(label));
        name.map_or(label.to_string(), String::clone)
    }
}

/// The pairs of points whose balls of radius epsilon touch or overlap: those at most 2 epsilon
/// apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClosePairs {
    /// Number of points.
    pub points: usize,
    /// Number of pairs of points that were compared: all.
    pub compared: u64,
    /// Whether Assumption 3.1 holds: no pair is at most 2 epsilon apart.
    pub assumption_3_1: bool,
    /// The pairs of points of one label.
    pub same_label: PairsOfKind,
    /// The pairs of points of two labels.
    pub different_label: PairsOfKind,
    /// Number of points in at least one pair within 2 epsilon.
    pub points_in_pairs: usize,
    /// Number of points in at least one such pair of two labels.
    pub points_in_conflict: usize,
    /// A number of points on which every classifier errs at epsilon, at least: the size of a
    /// maximum fractional matching of the pairs of two labels, a whole number or a half more.
    pub unavoidable_errors: f64,
    /// That number as a share of all points.
    pub lowest_error: f64,
}

/// The pairs of points of one label, or those of two.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairsOfKind {
    /// Number of pairs within 2 epsilon.
    pub within: u64,
    /// Number of pairs of equal images.
    pub equal: u64,
    /// The smallest distance; none if there is no pair at all.
    pub smallest: Option<f64>,
    /// The closest pairs, whether they are within 2 epsilon or not, the closest first.
    pub closest: Vec<ClosePair>,
}

/// Two points and their distance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClosePair {
    /// Their indices in the training split, the smaller one first.
    pub points: [usize; 2],
    /// Their labels.
    pub labels: [i64; 2],
    /// Their distance, in units of the range of pixels.
    pub distance: f64,
}

/// Number of the closest pairs of each kind that are kept.
const KEPT: usize = 6;

/// The most pairs of two labels, with points after a point, that are used for the bound of the
/// error. Without the others, it remains a bound.
const MOST_CONFLICTS: usize = 256;

impl ClosePairs {
    /// Whether the assumption holds, in a sentence.
    pub fn verdict(&self) -> String {
        let within = self.same_label.within + self.different_label.within;
        let verdict = if self.assumption_3_1 { "holds" } else { "does not hold" };
        format!("pairs within 2 epsilon: {}; Assumption 3.1 {verdict}", HumanCount(within))
    }

    /// What the pairs of two labels mean for every classifier, in a sentence.
    pub fn bound(&self) -> String {
        if self.different_label.within == 0 {
            return "no pair of different labels is within 2 epsilon, so that these pairs make no error \
                    unavoidable"
                .to_owned();
        }
        format!(
            "every classifier errs at epsilon on at least {} of these {} points ({:.4} %): of two points of \
             different labels within 2 epsilon, one is not robust",
            self.unavoidable_errors,
            HumanCount(self.points as u64),
            100.0 * self.lowest_error
        )
    }
}

/// Pixels that are compared at once.
const CHUNK: usize = 32;

type Chunk = [u8; CHUNK];

/// Images whose pixels decide the order of pixels.
const SAMPLE: i64 = 4096;

/// Points that are compared with each other while they are in the cache.
const BLOCK: usize = 64;

/// Images as bytes, and their labels.
pub struct Points {
    /// The chunks of every image. Pixels that vary most come first, in all images in the same
    /// order, so that most pairs are told apart by a few pixels.
    chunks: Vec<Chunk>,
    chunks_per_point: usize,
    labels: Vec<i64>,
}

impl Points {
    /// The first points of a split.
    ///
    /// # Errors
    /// If there are fewer than two, fewer than `count`, or all of them have one label.
    pub fn new(split: &Split, count: usize) -> Result<Self> {
        let all = split.count() as usize;
        if !(2..=all).contains(&count) {
            return Err(Error::new(format!(
                "a pair needs two points: expected 2 to {all} training points, got {count}"
            ))
            .fix("change --train-points, or give data with more training images"));
        }
        let labels: Vec<i64> = Vec::try_from(split.labels.f_narrow(0, 0, count as i64)?)?;
        if labels.iter().all(|label| *label == labels[0]) {
            return Err(Error::new(format!(
                "all {count} training points have the label {}: expected at least two classes",
                labels[0]
            ))
            .fix("give data of several classes, or a larger --train-points"));
        }
        let images = split.images.f_narrow(0, 0, count as i64)?;
        Rows::of(&images).map_or(Ok(()), |rows| rows.check((0, 1)))?;
        let images = images.f_flatten(1, -1)?;
        // Some images are enough to find a good order.
        let some = images.f_narrow(0, 0, SAMPLE.min(count as i64))?.f_to_kind(Kind::Float)?;
        let variance = some.f_var_dim([0i64].as_slice(), false, false)?;
        let order = variance.f_argsort(0, true)?;
        let pixels: Vec<u8> = Vec::try_from(images.f_index_select(1, &order)?.f_flatten(0, -1)?)?;
        let width = pixels.len() / count;
        let chunks = pixels.chunks(width).flat_map(|image| image.chunks(CHUNK)).map(|part| {
            let mut chunk = [0; CHUNK];
            chunk[..part.len()].copy_from_slice(part);
            chunk
        });
        Ok(Self { chunks: chunks.collect(), chunks_per_point: width.div_ceil(CHUNK), labels })
    }

    fn chunks(&self, point: usize) -> &[Chunk] {
        &self.chunks[point * self.chunks_per_point..][..self.chunks_per_point]
    }

    /// Number of pairs of points.
    pub fn pairs(&self) -> u64 {
        let points = self.labels.len() as u64;
        points * (points - 1) / 2
    }

    /// Compares every point with every other one. `go_on` is told every so often how many more
    /// pairs were compared; the work ends when it returns false, with none.
    ///
    /// # Errors
    /// If epsilon is not a radius.
    pub fn close_pairs(
        &self,
        norm: Norm,
        epsilon: f64,
        go_on: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Option<ClosePairs>> {
        Ok(self.search(norm, epsilon, go_on)?.all())
    }

    /// The points within 2 epsilon of another one, in order; otherwise as [`Points::close_pairs`].
    ///
    /// # Errors
    /// If epsilon is not a radius.
    pub fn close_points(
        &self,
        norm: Norm,
        epsilon: f64,
        go_on: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Option<Vec<i64>>> {
        let search = self.search(norm, epsilon, go_on)?;
        let is_close = |point: &i64| search.in_pairs.iter().any(|flags| flags[*point as usize].load(Relaxed));
        Ok(search.all().map(|_| (0..self.labels.len() as i64).filter(is_close).collect()))
    }

    fn search<'a>(
        &'a self,
        norm: Norm,
        epsilon: f64,
        go_on: &'a (dyn Fn(u64) -> bool + Sync),
    ) -> Result<Search<'a>> {
        check_epsilon(epsilon)?;
        Ok(Search {
            points: self,
            norm,
            limit: limit(norm, epsilon),
            nearest: [u64::MAX; 2].map(AtomicU64::new),
            in_pairs: [(); 2].map(|()| self.labels.iter().map(|_| AtomicBool::new(false)).collect()),
            go_on,
        })
    }
}

/// Refuses what is no radius of a ball.
///
/// # Errors
/// If it is negative, infinite or not a number.
pub fn check_epsilon(epsilon: f64) -> Result<()> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::new(format!("--epsilon: expected a number of at least 0, got {epsilon}"))
        .fix("give the radius of the threat model, such as 0.3 or 8/255"))
}

/// The largest distance of two points whose balls have a point in common, in pixel steps or squares
/// of them. As [`plugin_api::ThreatModel::contains`], it allows for a rounding of epsilon of about
/// 1e-6, which is far less than a pixel step.
fn limit(norm: Norm, epsilon: f64) -> u64 {
    let steps = 2.0 * (epsilon + 1e-6 * (1.0 + epsilon)) * PIXEL_STEPS;
    match norm {
        Norm::Linf | Norm::L1 => steps as u64,
        Norm::L2 => (steps * steps) as u64,
    }
}

const PIXEL_STEPS: f64 = 255.0;

/// A distance in units of the range of pixels.
fn distance(norm: Norm, measured: u64) -> f64 {
    match norm {
        Norm::Linf | Norm::L1 => measured as f64 / PIXEL_STEPS,
        Norm::L2 => (measured as f64).sqrt() / PIXEL_STEPS,
    }
}

/// How the differences of pixels make a distance.
trait Measure {
    /// The distance over the pixels of a chunk.
    fn of_chunk(one: &Chunk, other: &Chunk) -> u64;

    /// The distance over the pixels of two parts.
    fn joined(one: u64, other: u64) -> u64;

    /// The distance of two images if it is at most `bound`.
    fn within(one: &[Chunk], other: &[Chunk], bound: u64) -> Option<u64> {
        let mut distance = 0;
        for (one, other) in one.iter().zip(other) {
            distance = Self::joined(distance, Self::of_chunk(one, other));
            if distance > bound {
                return None;
            }
        }
        Some(distance)
    }
}

struct Largest;

impl Measure for Largest {
    fn of_chunk(one: &Chunk, other: &Chunk) -> u64 {
        let differences = one.iter().zip(other).map(|(one, other)| one.abs_diff(*other));
        differences.fold(0, u8::max).into()
    }

    fn joined(one: u64, other: u64) -> u64 {
        one.max(other)
    }
}

struct SumOfSquares;

impl Measure for SumOfSquares {
    fn of_chunk(one: &Chunk, other: &Chunk) -> u64 {
        let differences = one.iter().zip(other).map(|(one, other)| i32::from(one.abs_diff(*other)));
        differences.map(|difference| difference * difference).sum::<i32>() as u64
    }

    fn joined(one: u64, other: u64) -> u64 {
        one + other
    }
}

struct Sum;

impl Measure for Sum {
    fn of_chunk(one: &Chunk, other: &Chunk) -> u64 {
        let differences = one.iter().zip(other).map(|(one, other)| u32::from(one.abs_diff(*other)));
        differences.sum::<u32>().into()
    }

    fn joined(one: u64, other: u64) -> u64 {
        one + other
    }
}

/// A comparison of all pairs. Of two values, the first is for pairs of one label, the second for
/// pairs of two.
struct Search<'a> {
    points: &'a Points,
    norm: Norm,
    limit: u64,
    /// A distance that the closest pairs which are kept do not exceed.
    nearest: [AtomicU64; 2],
    /// Whether each point is in a pair within the limit.
    in_pairs: [Vec<AtomicBool>; 2],
    go_on: &'a (dyn Fn(u64) -> bool + Sync),
}

/// What was found in some pairs.
#[derive(Default)]
struct Tally {
    within: [u64; 2],
    equal: [u64; 2],
    /// Distance and points of the closest pairs, in order.
    closest: [Vec<(u64, u32, u32)>; 2],
    /// The pairs of two labels within the limit, by their first points.
    conflicts: Vec<(u32, Vec<u32>)>,
}

impl Search<'_> {
    fn all(&self) -> Option<ClosePairs> {
        match self.norm {
            Norm::Linf => self.all_by::<Largest>(),
            Norm::L2 => self.all_by::<SumOfSquares>(),
            Norm::L1 => self.all_by::<Sum>(),
        }
    }

    fn all_by<M: Measure>(&self) -> Option<ClosePairs> {
        let count = self.points.labels.len();
        let blocks = (0..count.div_ceil(BLOCK)).into_par_iter();
        let tallies = blocks.map(|block| self.block::<M>(block * BLOCK..count.min((block + 1) * BLOCK)));
        let mut whole = Tally::default();
        for tally in tallies.collect::<Option<Vec<_>>>()? {
            for kind in [0, 1] {
                whole.within[kind] += tally.within[kind];
                whole.equal[kind] += tally.equal[kind];
                tally.closest[kind].iter().for_each(|pair| whole.keep(kind, *pair));
            }
            whole.conflicts.extend(tally.conflicts);
        }
        let [same_label, different_label] = [0, 1].map(|kind| self.of_kind(&whole, kind));
        let [in_same, in_different] = &self.in_pairs;
        let is_in = |flags: &[AtomicBool], point: usize| flags[point].load(Relaxed);
        let in_any = |point: &usize| is_in(in_same, *point) || is_in(in_different, *point);
        let unavoidable_errors = unavoidable_errors(&whole.conflicts, count);
        Some(ClosePairs {
            points: count,
            compared: self.points.pairs(),
            assumption_3_1: whole.within == [0, 0],
            same_label,
            different_label,
            points_in_pairs: (0..count).filter(in_any).count(),
            points_in_conflict: (0..count).filter(|point| is_in(in_different, *point)).count(),
            unavoidable_errors,
            lowest_error: unavoidable_errors / count as f64,
        })
    }

    /// Compares the points of a block with each other and with all later ones. None if the work is
    /// to end.
    fn block<M: Measure>(&self, block: Range<usize>) -> Option<Tally> {
        let labels = &self.points.labels;
        let mut tally = Tally {
            conflicts: block.clone().map(|point| (point as u32, Vec::new())).collect(),
            ..Tally::default()
        };
        let mut compared = 0;
        for start in (block.start..labels.len()).step_by(BLOCK) {
            let end = labels.len().min(start + BLOCK);
            let bounds = [0, 1].map(|kind| self.limit.max(self.nearest[kind].load(Relaxed)));
            for first in block.clone() {
                let (chunks, label, from) = (self.points.chunks(first), labels[first], start.max(first + 1));
                let others = self.points.chunks[from.min(end) * self.points.chunks_per_point..]
                    .chunks_exact(self.points.chunks_per_point);
                for ((second, other), other_label) in (from..end).zip(others).zip(&labels[from.min(end)..]) {
                    let kind = usize::from(label != *other_label);
                    if let Some(distance) = M::within(chunks, other, bounds[kind]) {
                        self.add(&mut tally, kind, distance, [first, second], first - block.start);
                    }
                }
                compared += (end.saturating_sub(from)) as u64;
            }
            for kind in [0, 1] {
                if let [.., (furthest, ..)] = tally.closest[kind][..]
                    && tally.closest[kind].len() == KEPT
                {
                    self.nearest[kind].fetch_min(furthest, Relaxed);
                }
            }
        }
        (self.go_on)(compared).then_some(tally)
    }

    fn add(&self, tally: &mut Tally, kind: usize, distance: u64, [first, second]: [usize; 2], row: usize) {
        tally.keep(kind, (distance, first as u32, second as u32));
        if distance > self.limit {
            return;
        }
        tally.within[kind] += 1;
        tally.equal[kind] += u64::from(distance == 0);
        for point in [first, second] {
            let is_in = &self.in_pairs[kind][point];
            // Most are set already; a write would take the line from the caches of other threads.
            if !is_in.load(Relaxed) {
                is_in.store(true, Relaxed);
            }
        }
        let conflicts = &mut tally.conflicts[row].1;
        if kind == 1 && conflicts.len() < MOST_CONFLICTS {
            conflicts.push(second as u32);
        }
    }

    fn of_kind(&self, tally: &Tally, kind: usize) -> PairsOfKind {
        let closest: Vec<_> = tally.closest[kind]
            .iter()
            .map(|(measured, first, second)| {
                let points = [*first as usize, *second as usize];
                let labels = points.map(|point| self.points.labels[point]);
                ClosePair { points, labels, distance: distance(self.norm, *measured) }
            })
            .collect();
        PairsOfKind {
            within: tally.within[kind],
            equal: tally.equal[kind],
            smallest: closest.first().map(|pair| pair.distance),
            closest,
        }
    }
}

impl Tally {
    /// Keeps a pair if it is one of the closest. Of pairs with the same distance, those of earlier
    /// points are, so that the result does not depend on threads.
    fn keep(&mut self, kind: usize, pair: (u64, u32, u32)) {
        let closest = &mut self.closest[kind];
        let place = closest.partition_point(|kept| *kept < pair);
        if place < KEPT {
            closest.insert(place, pair);
            closest.truncate(KEPT);
        }
    }
}

/// A number of points on which every classifier errs, given pairs of which it errs on one point at
/// least: the size of a maximum fractional matching. It is half of the size of a maximum matching
/// between two copies of the points.
fn unavoidable_errors(conflicts: &[(u32, Vec<u32>)], points: usize) -> f64 {
    let mut neighbours = vec![Vec::new(); points];
    for (first, others) in conflicts {
        for second in others {
            neighbours[*first as usize].push(*second);
            neighbours[*second as usize].push(*first);
        }
    }
    largest_matching(&neighbours, points) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Tensor;

    fn split(width: usize, pixels: &[u8], labels: &[i64]) -> Split {
        let images = Tensor::from_slice(pixels).reshape([labels.len() as i64, 1, 1, width as i64]);
        Split { images, labels: Tensor::from_slice(labels) }
    }

    fn found(norm: Norm, epsilon: f64, width: usize, pixels: &[u8], labels: &[i64]) -> ClosePairs {
        let points = Points::new(&split(width, pixels, labels), labels.len()).expect("points");
        points.close_pairs(norm, epsilon, &|_| true).expect("a radius").expect("it was not stopped")
    }

    /// The same with real numbers, pair by pair. Distances within 1e-9 of 2 epsilon count.
    fn by_definition(norm: Norm, epsilon: f64, width: usize, pixels: &[u8], labels: &[i64]) -> ClosePairs {
        let values: Vec<_> = pixels.iter().map(|pixel| f64::from(*pixel) / 255.0).collect();
        let images: Vec<_> = values.chunks(width).collect();
        let mut kinds = [(); 2].map(|()| PairsOfKind::default());
        let (mut in_pairs, mut in_conflict) = (vec![false; labels.len()], vec![false; labels.len()]);
        let mut conflicts = vec![Vec::new(); labels.len()];
        for first in 0..labels.len() {
            for second in first + 1..labels.len() {
                let differences =
                    images[first].iter().zip(images[second]).map(|(one, other)| (one - other).abs());
                let distance = match norm {
                    Norm::Linf => differences.fold(0.0, f64::max),
                    Norm::L2 => differences.map(|difference| difference * difference).sum::<f64>().sqrt(),
                    Norm::L1 => differences.sum(),
                };
                let differ = labels[first] != labels[second];
                let kind = &mut kinds[usize::from(differ)];
                let labels = [labels[first], labels[second]];
                kind.closest.push(ClosePair { points: [first, second], labels, distance });
                kind.equal += u64::from(images[first] == images[second]);
                if distance <= 2.0 * epsilon + 1e-9 {
                    kind.within += 1;
                    for point in [first, second] {
                        in_pairs[point] = true;
                        in_conflict[point] |= differ;
                    }
                    if differ {
                        conflicts[first].push(second as u32);
                    }
                }
            }
        }
        for kind in &mut kinds {
            // The sort is stable. Rounding must not decide between equal distances.
            kind.closest.sort_by_key(|pair| (pair.distance * 1e9).round() as u64);
            kind.closest.truncate(KEPT);
            kind.smallest = kind.closest.first().map(|pair| pair.distance);
        }
        let count = |flags: &[bool]| flags.iter().filter(|flag| **flag).count();
        let [same_label, different_label] = kinds;
        let unavoidable_errors = unavoidable_errors(&(0..).zip(conflicts).collect::<Vec<_>>(), labels.len());
        ClosePairs {
            points: labels.len(),
            compared: (labels.len() * (labels.len() - 1) / 2) as u64,
            assumption_3_1: same_label.within + different_label.within == 0,
            same_label,
            different_label,
            points_in_pairs: count(&in_pairs),
            points_in_conflict: count(&in_conflict),
            unavoidable_errors,
            lowest_error: unavoidable_errors / labels.len() as f64,
        }
    }

    /// Distances in l2 may differ in the last bits.
    fn rounded(mut pairs: ClosePairs) -> ClosePairs {
        for kind in [&mut pairs.same_label, &mut pairs.different_label] {
            kind.closest.iter_mut().for_each(|pair| pair.distance = (pair.distance * 1e9).round());
            kind.smallest = kind.closest.first().map(|pair| pair.distance);
        }
        pairs
    }

    /// Images whose size and number are below, at and above those of chunks and blocks.
    fn data() -> impl Strategy<Value = (usize, Vec<u8>, Vec<i64>)> {
        let width = prop_oneof![1usize..4, 30usize..35, 63usize..66];
        let count = prop_oneof![2usize..9, 62usize..67, 127usize..131];
        // Few values, so that many distances are equal.
        let value = prop_oneof![Just(0u8), Just(255), 100u8..104, any::<u8>()];
        (width, count).prop_flat_map(move |(width, count)| {
            let pixels = prop::collection::vec(value.clone(), width * count);
            let labels = prop::collection::vec(0i64..3, count).prop_map(|mut labels| {
                (labels[0], labels[1]) = (0, 1);
                labels
            });
            (Just(width), pixels, labels)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn pairs_are_those_of_the_definition(
            (width, pixels, labels) in data(), steps in 0u32..520, norm in prop::sample::select(Norm::ALL.to_vec())
        ) {
            let epsilon = f64::from(steps) / 510.0;
            let expected = by_definition(norm, epsilon, width, &pixels, &labels);
            prop_assert_eq!(rounded(found(norm, epsilon, width, &pixels, &labels)), rounded(expected));
        }

        /// With two labels, the bound is the smallest number of points whose removal leaves no pair
        /// (Koenig's theorem); with more labels it is not above that.
        #[test]
        fn the_bound_is_that_of_the_best_classifier(
            edges in prop::collection::vec((0u32..9, 0u32..9), 0..14), are_two_labels in any::<bool>()
        ) {
            let edges: Vec<_> = edges
                .into_iter()
                .filter(|(one, other)| one < other && (!are_two_labels || (one + other) % 2 == 1))
                .collect();
            let is_cover = |points: &u32| {
                edges.iter().all(|(one, other)| points & (1 << one | 1 << other) != 0)
            };
            let least = (0u32..1 << 9).filter(is_cover).map(u32::count_ones).min().expect("all points");
            let conflicts: Vec<_> = edges.iter().map(|(one, other)| (*one, vec![*other])).collect();
            let bound = unavoidable_errors(&conflicts, 9);
            prop_assert!(bound <= f64::from(least), "{bound} for {least}");
            prop_assert!(!are_two_labels || bound == f64::from(least), "{bound} for {least}");
        }
    }

    #[test]
    fn three_labels_that_all_conflict_cost_one_and_a_half_points() {
        assert_eq!(unavoidable_errors(&[(0, vec![1, 2]), (1, vec![2])], 3), 1.5);
    }

    #[test]
    fn a_pair_is_within_2_epsilon_exactly_up_to_that_distance() {
        let within = |norm, epsilon, pixels: &[u8]| {
            found(norm, epsilon, pixels.len() / 2, pixels, &[0, 1]).different_label.within
        };
        // 2 * 0.3 * 255 is 153, and 2 * 8 is 16.
        for (epsilon, steps) in [(0.3, 153u8), (8.0 / 255.0, 16), (0.1, 51), (0.0, 0), (4.0 / 255.0, 8)] {
            assert_eq!(within(Norm::Linf, epsilon, &[7, 7 + steps]), 1, "{epsilon}");
            assert_eq!(within(Norm::Linf, epsilon, &[8 + steps, 7]), 0, "{epsilon}");
            assert_eq!(within(Norm::L2, epsilon, &[7, 7 + steps]), 1, "{epsilon}");
            assert_eq!(within(Norm::L2, epsilon, &[8 + steps, 7]), 0, "{epsilon}");
        }
        for steps in 0..255u8 {
            let epsilon = f64::from(steps) / 510.0;
            for norm in Norm::ALL {
                let counts = [steps, steps + 1].map(|steps| within(norm, epsilon, &[0, steps]));
                assert_eq!(counts, [1, 0], "{norm}, {steps}");
            }
        }
        // By hand: a triangle of 3, 4 and 5 steps.
        assert_eq!(within(Norm::L2, 5.0 / 510.0, &[10, 20, 13, 24]), 1);
        assert_eq!(within(Norm::L2, 4.99 / 510.0, &[10, 20, 13, 24]), 0);
        assert_eq!(within(Norm::L1, 7.0 / 510.0, &[10, 20, 13, 24]), 1);
        assert_eq!(within(Norm::L1, 6.99 / 510.0, &[10, 20, 13, 24]), 0);
        // A whole number of half pixel steps below is no rounding.
        assert_eq!(within(Norm::Linf, 15.5 / 510.0, &[0, 16]), 0);
    }

    #[test]
    fn equal_images_are_counted_at_every_epsilon() {
        let pixels = [5, 5, 5, 5, 5, 5, 200, 200];
        let pairs = found(Norm::Linf, 0.0, 2, &pixels, &[0, 0, 1, 1]);
        assert_eq!((pairs.same_label.within, pairs.same_label.equal), (1, 1));
        assert_eq!((pairs.different_label.within, pairs.different_label.equal), (2, 2));
        assert_eq!((pairs.points_in_pairs, pairs.points_in_conflict), (3, 3));
        // The third point conflicts with both others: a classifier that errs there errs nowhere else.
        assert_eq!((pairs.unavoidable_errors, pairs.lowest_error), (1.0, 0.25));
        assert_eq!(pairs.different_label.smallest, Some(0.0));
        assert!(!pairs.assumption_3_1);
        assert_eq!(pairs.verdict(), "pairs within 2 epsilon: 3; Assumption 3.1 does not hold");
    }

    #[test]
    fn a_kind_without_any_pair_has_no_smallest_distance() {
        let pairs = found(Norm::Linf, 0.1, 1, &[0, 255], &[0, 1]);
        assert_eq!(pairs.same_label, PairsOfKind::default());
        assert_eq!(pairs.different_label.smallest, Some(1.0));
        assert_eq!(pairs.verdict(), "pairs within 2 epsilon: 0; Assumption 3.1 holds");
    }

    #[test]
    fn the_bound_stands_where_more_pairs_conflict_than_are_used() {
        let count = 4 * MOST_CONFLICTS;
        let labels: Vec<_> = (0..count as i64).map(|point| point % 2).collect();
        let pairs = found(Norm::Linf, 1.0, 1, &vec![9; count], &labels);
        assert_eq!(pairs.different_label.within as usize, count * count / 4);
        assert_eq!(pairs.points_in_conflict, count);
        assert_eq!(pairs.lowest_error, 0.5);
    }

    #[test]
    fn the_result_does_not_depend_on_threads() {
        let pixels: Vec<u8> = (0..700u32).map(|at| (at * at % 251) as u8).collect();
        let labels: Vec<_> = (0..350).map(|point| point % 3).collect();
        let [one, four] = [1, 4].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| found(Norm::L2, 0.05, 2, &pixels, &labels))
        });
        assert_eq!(one, four);
        assert!(one.same_label.within > 0 && one.different_label.within > 0);
    }

    #[test]
    fn all_pairs_are_announced_and_the_work_ends_when_it_is_told_to() {
        let labels: Vec<_> = (0..200).map(|point| point % 2).collect();
        let points = Points::new(&split(1, &[0; 200], &labels), 200).expect("points");
        let announced = AtomicU64::new(0);
        let count = |more| announced.fetch_add(more, Relaxed) < u64::MAX;
        assert!(points.close_pairs(Norm::Linf, 0.1, &count).expect("a radius").is_some());
        assert_eq!(announced.into_inner(), points.pairs());
        assert_eq!(points.close_pairs(Norm::Linf, 0.1, &|_| false).expect("a radius"), None);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let refused = |count, labels: &[i64]| {
            let split = split(1, &vec![0; labels.len()], labels);
            let result = Points::new(&split, count).map(drop);
            result.expect_err("refused").first_line().to_owned()
        };
        for count in [0, 1, 4] {
            let expected = format!("a pair needs two points: expected 2 to 3 training points, got {count}");
            assert_eq!(refused(count, &[0, 1, 0]), expected);
        }
        assert!(refused(2, &[3, 3, 0]).starts_with("all 2 training points have the label 3"));
        for epsilon in [-0.1, f64::NAN, f64::INFINITY] {
            let message = check_epsilon(epsilon).expect_err("refused").to_string();
            assert!(message.contains(&format!("at least 0, got {epsilon}")), "{message}");
        }
    }
}
