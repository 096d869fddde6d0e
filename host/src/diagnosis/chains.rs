//! What chains at fixed weights say, from the losses that they passed through.

use super::record::{Chain, Level, MixingOfPoints};
use crate::Result;
use crate::law::chain::{Mixing, mixing};
use crate::law::sampling::{Subject, Trace};
use crate::plugin::Sampler;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// R-hat above this says that the chains of a point do not agree yet.
const MIXED: f64 = 1.05;

/// The losses of each point's chains, in order: `[visits, P * K]` as P lists of K chains.
pub fn of_points(losses: &Tensor, copies: usize) -> Result<Vec<Vec<Vec<f64>>>> {
    let chains: Vec<Vec<f64>> = losses
        .tr()
        .to_kind(Kind::Double)
        .unbind(0)
        .into_iter()
        .map(|chain| Vec::try_from(&chain))
        .collect::<std::result::Result<_, _>>()?;
    Ok(chains.chunks(copies).map(<[Vec<f64>]>::to_vec).collect())
}

/// The summary of chains, K at each point, that went through these losses.
///
/// # Errors
/// If libtorch fails.
pub fn summary(sampler: Option<&Sampler>, trace: &Trace, copies: usize) -> Result<Chain> {
    let points = of_points(&trace.losses, copies)?;
    let mixed: Vec<Option<Mixing>> = points.iter().map(|chains| mixing(chains)).collect();
    let moments: Vec<(f64, f64)> = points.iter().map(|chains| moments(&chains.concat())).collect();
    let count = points.len() as f64;
    let mean_of = |of: &dyn Fn(&(f64, f64)) -> f64| moments.iter().map(of).sum::<f64>() / count;
    // Chains that did not move, or are too few to tell, have the error of their spread.
    let errors = mixed.iter().zip(&moments);
    let squares: f64 =
        errors.map(|(mixed, (_, variance))| mixed.map_or(*variance, |mixed| mixed.error.powi(2))).sum();
    let figures = match (&trace.figures, sampler) {
        (Some(figures), Some(sampler)) => {
            let means: Vec<f64> =
                Vec::try_from(figures.flatten(0, 1).mean_dim([0i64].as_slice(), false, Kind::Double))?;
            sampler.declaration().figures.iter().cloned().zip(means).collect()
        }
        _ => BTreeMap::new(),
    };
    Ok(Chain {
        mean: mean_of(&|(mean, _)| *mean),
        error: squares.sqrt() / count,
        variance: mean_of(&|(_, variance)| *variance),
        per_point: moments.iter().map(|(mean, _)| *mean).collect(),
        error_per_point: mixed.iter().map(|mixed| mixed.map(|mixed| mixed.error)).collect(),
        variance_per_point: moments.iter().map(|(_, variance)| *variance).collect(),
        mixing: sampler.and_then(|sampler| of_mixed(&mixed, sampler.steps)),
        figures,
    })
}

/// The mean loss at particles, `copies` at each point (`[P * copies, C, H, W]`), which count as
/// given: the mean has no error.
///
/// # Errors
/// If the model fails.
pub fn level(subject: &Subject, particles: &Tensor, copies: usize) -> Result<Level> {
    let (losses, accuracy) = subject.losses(particles, copies)?;
    let per_point =
        Vec::try_from(losses.reshape([-1, copies as i64]).mean_dim([1i64].as_slice(), false, Kind::Double))?;
    Ok(Level { mean: losses.mean(Kind::Double).double_value(&[]), error: 0.0, accuracy, per_point })
}

/// How chains of a point mix with each other, over the points: `losses` has the losses of each
/// group of chains, `[visits, P * K]`.
///
/// # Errors
/// If libtorch fails.
pub fn mixing_of(losses: &[&Tensor], copies: usize, steps_per_draw: usize) -> Result<Option<MixingOfPoints>> {
    let groups = losses.iter().map(|losses| of_points(losses, copies)).collect::<Result<Vec<_>>>()?;
    let points = groups.first().map_or(0, Vec::len);
    let together = (0..points).map(|point| groups.iter().flat_map(|group| group[point].clone()).collect());
    let mixed: Vec<_> = together.map(|chains: Vec<Vec<f64>>| mixing(&chains)).collect();
    Ok(of_mixed(&mixed, steps_per_draw))
}

fn of_mixed(mixed: &[Option<Mixing>], steps_per_draw: usize) -> Option<MixingOfPoints> {
    let moved: Vec<&Mixing> = mixed.iter().flatten().collect();
    let first = moved.first()?;
    let r_hat = |mixed: &&Mixing| mixed.r_hat.unwrap_or(f64::INFINITY);
    let median = |of: &dyn Fn(&&Mixing) -> f64| median(moved.iter().map(of).collect());
    let are_all_there = moved.len() == mixed.len() && moved.iter().all(|mixed| mixed.r_hat.is_some());
    Some(MixingOfPoints {
        draws: first.draws,
        steps_per_draw,
        autocorrelation_time: median(&|mixed| mixed.autocorrelation_time),
        effective: median(&|mixed| mixed.effective),
        r_hat: Some(median(&r_hat)).filter(|r_hat| r_hat.is_finite()),
        largest_r_hat: are_all_there.then(|| moved.iter().map(r_hat).fold(0.0, f64::max)),
        unmixed_points: mixed.len() - moved.iter().filter(|mixed| r_hat(mixed) <= MIXED).count(),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Mean and variance of draws.
fn moments(draws: &[f64]) -> (f64, f64) {
    let count = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / count;
    (mean, draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn chains_are_summed_up_point_by_point() {
        // Two points with two chains each; the second point's chains stay apart.
        let visits = 40i64;
        let time = Tensor::arange(visits, (Kind::Double, Device::Cpu));
        let noise = |phase: f64| ((&time + phase) * 2.4).sin();
        let columns = [noise(0.0) + 1.0, noise(0.7) + 1.0, noise(0.0) + 5.0, noise(0.7) + 9.0];
        let losses = Tensor::stack(&columns, 1);
        let trace = Trace { losses: losses.shallow_clone(), figures: None };
        let chain = summary(None, &trace, 2).expect("a summary");
        let by_hand = |from: usize| {
            let both = Tensor::cat(&[&columns[from], &columns[from + 1]], 0);
            (both.mean(Kind::Double).double_value(&[]), both.var(true).double_value(&[]))
        };
        for point in 0..2 {
            let (mean, variance) = by_hand(2 * point);
            assert!((chain.per_point[point] - mean).abs() < 1e-12);
            assert!((chain.variance_per_point[point] - variance).abs() < 1e-12);
        }
        assert!((chain.mean - (by_hand(0).0 + by_hand(2).0) / 2.0).abs() < 1e-12);
        let mixed = mixing_of(&[&losses], 2, 5).expect("computed").expect("chains that moved");
        assert_eq!((mixed.draws, mixed.steps_per_draw, mixed.unmixed_points), (80, 5, 1));
        // Ranks bound it: for two groups of chains that do not overlap, by 1.83.
        assert!(mixed.largest_r_hat.expect("finite") > 1.5);
        // The same chains given as two groups of one chain each point.
        let [first, second] = [[0i64, 2], [1, 3]].map(|of| losses.index_select(1, &Tensor::from_slice(&of)));
        let apart = mixing_of(&[&first, &second], 1, 5).expect("computed").expect("chains that moved");
        assert_eq!(apart.largest_r_hat, mixed.largest_r_hat);
    }

    #[test]
    fn chains_that_do_not_move_count_as_not_mixed() {
        let losses = Tensor::ones([40, 2], (Kind::Double, Device::Cpu));
        assert!(mixing_of(&[&losses], 2, 1).expect("computed").is_none());
        let chain = summary(None, &Trace { losses, figures: None }, 2).expect("a summary");
        assert_eq!((chain.mean, chain.variance, chain.error), (1.0, 0.0, 0.0));
        assert_eq!(chain.error_per_point, [None]);
    }
}
