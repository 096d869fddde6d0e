//! How well chains mix: autocorrelation time, effective sample size and R-hat.
//!
//! The estimators are those of Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021),
//! "Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of
//! MCMC", as ArviZ computes them.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

/// In shorter chains, no autocorrelation can be estimated: half of a chain would have fewer than
/// five draws, and the effective sample size would be its upper limit whatever the draws are.
pub const FEWEST_DRAWS: usize = 10;

/// How well some chains of one quantity mix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mixing {
    /// The number of draws of all chains that the estimates use.
    pub draws: usize,
    /// The mean of the quantity.
    pub mean: f64,
    /// The standard error of the mean, with autocorrelation and the differences between chains.
    pub error: f64,
    /// The integrated autocorrelation time, in draws: the number of draws of these chains that are
    /// worth one independent draw for the mean. Below 1 if draws are anticorrelated.
    pub autocorrelation_time: f64,
    /// The effective sample size for the mean: `draws / autocorrelation_time`.
    pub effective: f64,
    /// The effective sample size of the rank-normalised quantity (bulk ESS).
    pub bulk_effective: f64,
    /// The larger of the rank-normalised split R-hat of the quantity and of its distance from the
    /// median; 1 where the chains agree. None if no half of a chain moves: then it is infinite.
    pub r_hat: Option<f64>,
}

/// How well chains of the same length mix. Each is split into halves, so that one chain suffices.
///
/// None if there is nothing to estimate from: fewer than [`FEWEST_DRAWS`] draws per chain, chains of
/// different lengths, a draw that is not finite, or draws that are all equal (chains that never
/// moved say nothing about the law).
pub fn mixing<Chain: AsRef<[f64]>>(chains: &[Chain]) -> Option<Mixing> {
    let draws = chains.first()?.as_ref().len();
    let are_usable = chains.iter().map(AsRef::as_ref).all(|chain| {
        chain.len() == draws && draws >= FEWEST_DRAWS && chain.iter().all(|draw| draw.is_finite())
    });
    if !are_usable {
        return None;
    }
    // The draw in the middle of an odd number belongs to neither half.
    let half = draws / 2;
    let halves: Vec<Vec<f64>> = chains
        .iter()
        .map(AsRef::as_ref)
        .flat_map(|chain| [chain[..half].to_vec(), chain[draws - half..].to_vec()])
        .collect();
    let first = halves[0][0];
    if halves.iter().flatten().all(|draw| *draw == first) {
        return None;
    }
    let ranked = normal_scores(&halves);
    let centre = median(halves.concat());
    let folded: Vec<Vec<f64>> =
        halves.iter().map(|half| half.iter().map(|draw| (draw - centre).abs()).collect()).collect();
    let bulk = r_hat(&ranked);
    // The folded draws may all be equal (two values, half of the draws each): only the bulk counts.
    let r_hat = bulk.map(|bulk| r_hat(&normal_scores(&folded)).map_or(bulk, |tail| tail.max(bulk)));

    let all = halves.len() * half;
    let effective = effective_sample_size(&halves);
    let mean = halves.iter().flatten().sum::<f64>() / all as f64;
    let variance =
        halves.iter().flatten().map(|draw| (draw - mean).powi(2)).sum::<f64>() / (all as f64 - 1.0);
    Some(Mixing {
        draws: all,
        mean,
        error: (variance / effective).sqrt(),
        autocorrelation_time: all as f64 / effective,
        effective,
        bulk_effective: effective_sample_size(&ranked),
        r_hat,
    })
}

/// The draws' normal scores: the normal quantiles of their ranks among all (Blom's formula), equal
/// draws with their mean rank.
fn normal_scores(chains: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let all = chains.concat();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|a, b| all[*a].total_cmp(&all[*b]));
    let normal = Normal::standard();
    let mut scores = vec![0.0; all.len()];
    let mut before = 0.0;
    for equal in order.chunk_by(|a, b| all[*a] == all[*b]) {
        let rank = before + (equal.len() as f64 + 1.0) / 2.0;
        let score = normal.inverse_cdf((rank - 0.375) / (all.len() as f64 + 0.25));
        equal.iter().for_each(|draw| scores[*draw] = score);
        before += equal.len() as f64;
    }
    scores.chunks(chains[0].len()).map(<[f64]>::to_vec).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The unbiased variance.
fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)
}

/// Potential scale reduction of chains; none if each of them is constant.
fn r_hat(chains: &[Vec<f64>]) -> Option<f64> {
    // The variance of equal numbers may be a rounding error instead of 0.
    chains.iter().find(|chain| chain.iter().any(|draw| *draw != chain[0]))?;
    let draws = chains[0].len() as f64;
    let within = mean(&chains.iter().map(|chain| variance(chain)).collect::<Vec<_>>());
    let between = draws * variance(&chains.iter().map(|chain| mean(chain)).collect::<Vec<_>>());
    Some(((between / within + draws - 1.0) / draws).sqrt())
}

/// The effective sample size of chains that are not all constant and equal, with Geyer's initial
/// monotone sequence.
fn effective_sample_size(chains: &[Vec<f64>]) -> f64 {
    let (count, draws) = (chains.len() as f64, chains[0].len());
    let means: Vec<f64> = chains.iter().map(|chain| mean(chain)).collect();
    let autocovariance = |lag: usize| {
        let of_chain = |(chain, mean): (&Vec<f64>, &f64)| {
            chain.iter().zip(&chain[lag..]).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / draws as f64
        };
        chains.iter().zip(&means).map(of_chain).sum::<f64>() / count
    };
    let biased = autocovariance(0);
    let within = biased * draws as f64 / (draws as f64 - 1.0);
    let total = biased + variance(&means);
    let correlation = |lag: usize| 1.0 - (within - autocovariance(lag)) / total;

    // Sums of neighbouring correlations are positive for a reversible chain, and fall.
    let mut even = 1.0;
    let mut odd = correlation(1);
    let mut pairs = Vec::new();
    let mut lag = 1;
    while lag < draws - 3 && even + odd > 0.0 {
        pairs.push((even, odd));
        (even, odd) = (correlation(lag + 1), correlation(lag + 2));
        lag += 2;
    }
    let mut smallest = f64::INFINITY;
    let sum: f64 = pairs
        .iter()
        .map(|(even, odd)| {
            smallest = (even + odd).min(smallest);
            smallest
        })
        .sum();
    // Half of the first pair that is left out improves the estimate if draws are anticorrelated.
    let next = if even > 0.0 || even + odd >= 0.0 { even } else { 0.0 };
    let time = -1.0 + 2.0 * sum + next;
    let all = count * draws as f64;
    // The upper limit of ArviZ and Stan: an estimate beyond it would be noise.
    all / time.max(1.0 / all.log10())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha8Rng;
    use chacha20::rand_core::SeedableRng;
    use rand_distr::{Distribution as _, StandardNormal};

    /// Stationary chains `x = rho x + sqrt(1 - rho^2) noise` of unit variance.
    fn autoregressive(rho: f64, chains: usize, draws: usize) -> Vec<Vec<f64>> {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        let mut normal = || -> f64 { StandardNormal.sample(&mut generator) };
        (0..chains)
            .map(|_| {
                let mut value = normal();
                let step = |_| {
                    value = rho * value + (1.0 - rho * rho).sqrt() * normal();
                    value
                };
                (0..draws).map(step).collect()
            })
            .collect()
    }

    /// Chains with the bulk ESS, the ESS of the mean and the R-hat of arviz-stats 1.2.0:
    /// `from arviz_stats.base import array_stats`, then `ess(chains, method="bulk")`, the same with
    /// `"mean"`, and `rhat(chains, method="rank")`. ArviZ refuses the R-hat of a single chain: there
    /// it is that of its halves, `_rhat` of `_z_scale` of `_split_chains` and of their folds.
    #[test]
    fn estimates_are_those_of_arviz() {
        let slow = vec![
            vec![0.18, -0.02, -0.55, -0.71, -1.17, -0.9, 0.09, -0.23, -0.55, -0.15, 0.1, 0.14],
            vec![-0.76, -0.19, -0.96, -1.04, -1.98, -2.35, -2.99, -2.53, -2.79, -2.07, -1.56, -1.36],
            vec![-2.34, -1.9, -1.45, -2.08, -1.95, -2.15, -2.2, -1.13, -1.39, -1.13, -0.37, -0.65],
            vec![-0.02, 0.02, -0.72, -0.53, 0.39, -0.62, 0.02, 0.09, -0.31, 0.95, 1.22, 0.25],
        ];
        // With an odd number of draws, the one in the middle is left out.
        let apart = vec![
            vec![0.54, 0.1, 0.64, 0.26, 0.71, 1.6, 0.22, 0.28, -0.26, -0.02, -1.04, -1.02, -0.68, 0.44, 1.21],
            vec![0.15, 1.39, -0.28, 0.21, 0.77, 2.22, 2.46, 1.7, 1.28, 1.17, 2.66, 1.71, 1.34, 1.73, 1.51],
        ];
        let single = vec![vec![
            -1.01, -0.61, -0.72, 0.5, 0.82, 0.47, 0.82, 0.22, 0.97, 0.58, 0.81, -0.54, -0.05, -1.38, -2.46,
            -1.72, -1.75, -0.92, 1.24, 0.08, -0.45, -0.11, 0.33, 0.06, -0.13,
        ]];
        let ties = vec![
            vec![1.0, -1.0, 0.0, 0.0, -1.0, 0.0, -1.0, 1.0, 0.0, 0.0],
            vec![0.0, -2.0, -2.0, 0.0, -2.0, 0.0, -2.0, 0.0, -1.0, 1.0],
        ];
        let alternating = vec![
            vec![
                -1.19, 1.72, -0.18, 0.08, -0.25, 0.06, -0.74, 1.3, -1.3, 0.87, -1.18, 0.38, -1.18, 1.72,
                -1.31, 1.61,
            ],
            vec![
                -0.51, 0.12, -0.48, 0.34, -0.51, 0.14, -1.08, 0.18, 1.05, -1.22, 0.1, 0.17, 0.88, -1.66,
                1.01, -1.16,
            ],
        ];
        for (chains, bulk, of_mean, r_hat) in [
            (slow, 15.297134886465583, 14.683337545509819, 1.763149117088623),
            (apart, 7.126997729183794, 7.048174433045932, 1.356965797879837),
            (single, 6.979446572762118, 5.590101626172079, 1.1130169669430352),
            (ties, 26.020599913279625, 26.020599913279625, 1.033550204441199),
            (alternating, 48.16479930623699, 48.16479930623699, 1.0997234836864755),
        ] {
            let found = mixing(&chains).expect("estimates");
            for (found, expected) in [
                (found.bulk_effective, bulk),
                (found.effective, of_mean),
                (found.r_hat.expect("moves"), r_hat),
            ] {
                assert!((found / expected - 1.0).abs() < 1e-9, "{found} for {expected}");
            }
        }
    }

    #[test]
    fn autocorrelation_of_a_known_chain_is_found() {
        for rho in [-0.4, 0.0, 0.5, 0.9] {
            let found = mixing(&autoregressive(rho, 4, 20_000)).expect("estimates");
            let time = (1.0 + rho) / (1.0 - rho);
            assert!((found.autocorrelation_time / time - 1.0).abs() < 0.15, "{rho}: {found:?}");
            assert!((found.effective * found.autocorrelation_time / 80_000.0 - 1.0).abs() < 1e-9);
            assert!((found.bulk_effective / found.effective - 1.0).abs() < 0.1, "{rho}: {found:?}");
            assert!((found.error / (time / 80_000.0).sqrt() - 1.0).abs() < 0.15, "{rho}: {found:?}");
            assert!(found.mean.abs() < 4.0 * found.error, "{rho}: {found:?}");
            let r_hat = found.r_hat.expect("moves");
            assert!((0.999..1.01).contains(&r_hat), "{rho}: {found:?}");
        }
    }

    #[test]
    fn chains_that_disagree_have_a_large_r_hat() {
        let mut chains = autoregressive(0.5, 2, 1000);
        chains[1].iter_mut().for_each(|draw| *draw += 5.0);
        let of_place = mixing(&chains).expect("estimates");
        assert!(of_place.r_hat.expect("moves") > 1.5 && of_place.effective < 10.0, "{of_place:?}");
        // The same median, but another spread: the folded draws tell.
        let mut chains = autoregressive(0.5, 2, 1000);
        chains[1].iter_mut().for_each(|draw| *draw *= 10.0);
        let of_spread = mixing(&chains).expect("estimates");
        assert!(of_spread.r_hat.expect("moves") > 1.3, "{of_spread:?}");
    }

    #[test]
    fn constant_chains_have_no_effective_draws() {
        assert_eq!(mixing(&[[0.3; 50], [0.3; 50]]), None);
        // Each is stuck in a place of its own: R-hat is infinite, and the draws are worth few.
        let stuck = mixing(&[[0.25; 50], [0.5; 50]]).expect("estimates");
        assert_eq!((stuck.r_hat, stuck.mean), (None, 0.375));
        assert!(stuck.effective < 4.0, "{stuck:?}");
    }

    #[test]
    fn chains_without_enough_draws_have_no_estimates() {
        let none: [&[f64]; 0] = [];
        assert_eq!(mixing(&none), None);
        let draws = autoregressive(0.5, 1, FEWEST_DRAWS).remove(0);
        assert!(mixing(&[&draws]).is_some());
        assert_eq!(mixing(&[&draws[1..]]), None, "too short");
        assert_eq!(mixing(&[&draws, &draws[1..]]), None, "of different lengths");
        let mut broken = draws.clone();
        broken[4] = f64::NAN;
        assert_eq!(mixing(&[draws, broken]), None, "not a number");
    }
}
