//! The results of `host data check`, and the images of the closest pairs.

use super::{Collector, Gap, Part, shell_words};
use crate::config::Data;
use crate::data::DataSpec;
use crate::data::examples::scaled;
use crate::data::pairs::{ClosePair, PairCheck, PairsOfKind};
use crate::util::files;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tch::Tensor;

/// A result of `host data check`.
pub(crate) struct CollectedCheck {
    /// The last part of its data set's name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its contents.
    pub check: PairCheck,
    /// The closest pairs of one label, and those of two, with their images.
    pub pictures: Option<[Vec<PicturedPair>; 2]>,
    /// The missing parts.
    pub gaps: Vec<Gap>,
}

/// Two training points and their images: `[C, H, W]`, f32, 0 to 1.
pub(crate) struct PicturedPair {
    /// The points.
    pub pair: ClosePair,
    /// Their images.
    pub images: [Tensor; 2],
    /// Whether they are within 2 epsilon.
    pub is_within: bool,
}

/// Reads the file of a result.
///
/// # Errors
/// If it is damaged, or not such a file.
pub(super) fn read(path: &Path) -> Result<PairCheck> {
    files::read_sealed(path).map_err(|why| {
        why.fix("give the folders of runs and sweeps, and files that `host data check --out` wrote")
    })
}

impl Collector<'_> {
    pub(super) fn check(&mut self, path: &Path, check: PairCheck) -> CollectedCheck {
        let (pictures, gaps) = match self.pictures(&check) {
            Ok(pictures) => (Some(pictures), Vec::new()),
            Err(why) => {
                let what = format!("the closest pairs cannot be shown: {}", why.first_line());
                let fix = why.advice().map_or_else(|| again(path, &check), str::to_owned);
                (None, vec![Gap { part: Part::Pairs, what, fix }])
            }
        };
        let name = DataSpec::recorded(&check.data.name).name();
        CollectedCheck { name, path: path.to_owned(), check, pictures, gaps }
    }

    /// The images, from the data set that was checked.
    fn pictures(&mut self, check: &PairCheck) -> Result<[Vec<PicturedPair>; 2]> {
        let (name, folder) = (check.data.name.clone(), check.data.folder.clone());
        let data = Data { name, folder, ..Data::default() };
        let train = &self.dataset(&data, &check.data.checksums)?.train;
        let labels: Vec<i64> = Vec::try_from(&train.labels)?;
        let pictured = |kind: &PairsOfKind| {
            let pictured = |(rank, pair): (u64, &ClosePair)| {
                if [0, 1].iter().any(|place| labels.get(pair.points[*place]) != Some(&pair.labels[*place])) {
                    return Err(Error::new(format!("points {:?} are not those of the data", pair.points)));
                }
                let images = pair.points.map(|point| scaled(&train.images.get(point as i64)));
                Ok(PicturedPair { pair: pair.clone(), images, is_within: rank < kind.within })
            };
            (0..).zip(&kind.closest).map(pictured).collect::<Result<Vec<_>>>()
        };
        Ok([pictured(&check.found.same_label)?, pictured(&check.found.different_label)?])
    }
}

/// The command that makes a result again.
fn again(path: &Path, check: &PairCheck) -> String {
    let [epsilon, points] = [check.epsilon.to_string(), check.found.points.to_string()];
    let [file, folder] = [path, &check.data.folder].map(|path| path.to_string_lossy().into_owned());
    shell_words([
        "host",
        "data",
        "check",
        "--data",
        &check.data.name,
        "--epsilon",
        &epsilon,
        "--norm",
        check.norm.name(),
        "--train-points",
        &points,
        "--data-folder",
        &folder,
        "--out",
        &file,
        "--force",
    ])
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::util::fuzz::{USUAL, corpus, withstands};

    #[test]
    fn data_checks_may_be_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        withstands(&[corpus("data-check.json")], &folder.path().join("check.json"), USUAL, read);
    }
}
