//! Why the verdict of an evaluation may not be trusted. Most follow the checks that come with
//! AutoAttack (Croce and Hein 2020); `docs/evaluation.md` explains each.

use crate::evaluation::verdict::Caveat;
use crate::evaluation::verdict::{AttackResult, Order, Verdicts};
use crate::plugin::{CountedVictim, Model};
use crate::{Error, Result};
use plugin_api::VictimCalls;
use plugin_api::losses::cross_entropy;
use tch::{Kind, Tensor};

/// Logits may differ this much, relative to their size, from one pass to the next.
const ROUNDING: f64 = 1e-5;

/// A black-box attack that breaks more than this share of all points after white-box ones, as in
/// the reference, and at least so many of them: where 0.2 % fall to it by chance, one of 150
/// points does in a quarter of all evaluations, two do in one of 27.
const MASKED_SHARE: f64 = 0.002;
const MASKED_POINTS: usize = 2;

/// What the model itself gives cause for, judged on some natural examples (`[N, C, H, W]`,
/// labels `[N]`): three forward passes and a backward pass of each.
///
/// # Errors
/// If the model fails.
pub fn of_model(model: &Model, images: &Tensor, labels: &Tensor) -> Result<Vec<Caveat>> {
    let mut doubts = of_logits(&model.logits(images)?, &model.logits(images)?);
    let victim = CountedVictim::new(model);
    let (logits, leaf) = victim.differentiable(images).map_err(Error::new)?;
    let loss = tch::with_grad(|| cross_entropy(&logits, labels));
    let zero = victim.input_gradient(&loss, &leaf).map_err(Error::new)?.eq(0.0).flatten(1, -1);
    let (points, vanished) = (images.size()[0], number(zero.all_dim(1, false).sum(Kind::Int64)));
    if vanished > 0.0 {
        let entries = 100.0 * number(zero.to_kind(Kind::Double).mean(Kind::Double));
        doubts.push(Caveat::new(
            "vanishing-gradients",
            format!(
                "the gradient is exactly zero at {vanished:.0} of {points} points ({entries:.1} % of all its entries)"
            ),
        ));
    }
    Ok(doubts)
}

fn number(tensor: Tensor) -> f64 {
    tensor.to_kind(Kind::Double).double_value(&[])
}

/// What the logits of the same images, `[N, classes]`, in two passes give cause for.
fn of_logits(logits: &Tensor, again: &Tensor) -> Vec<Caveat> {
    let mut doubts = Vec::new();
    let (points, finite) = (logits.size()[0], logits.isfinite());
    let broken = points - finite.all_dim(1, false).sum(Kind::Int64).int64_value(&[]);
    if broken > 0 {
        doubts.push(Caveat::new(
            "not-finite",
            format!("logits of {broken} of {points} points are NaN or infinite: they count as misclassified"),
        ));
    }
    let largest = |of: Tensor| number(of.abs().where_scalarother(&finite, 0.0).max());
    let difference = largest(logits - again);
    if difference.is_nan() || difference > ROUNDING * largest(logits.shallow_clone()).max(1.0) {
        doubts.push(Caveat::new(
            "random-logits",
            format!("logits of the same images differ by {difference:.2e} from one pass to the next"),
        ));
    }
    let off = number((logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Double) - 1.0).abs().max());
    if off < 1e-4 && number(logits.min()) >= 0.0 {
        doubts.push(Caveat::new(
            "probabilities",
            "every row of the logits is positive and sums to 1: they look like probabilities",
        ));
    }
    doubts
}

/// What the results of attacks on the model's own gradients give cause for.
pub fn of_results(order: Order, verdicts: &Verdicts, results: &[AttackResult]) -> Vec<Caveat> {
    let mut doubts = Vec::new();
    // The points that the attacks so far leave, and whether any of them used gradients.
    let (mut left, mut white_box) = (verdicts.clean.clone(), false);
    for (result, robust) in results.iter().zip(&verdicts.attacks) {
        let uses_gradients = result.cost.backward_passes > 0;
        let broken = left.iter().zip(robust).filter(|(left, robust)| **left && !**robust).count();
        let share = broken as f64 / left.len().max(1) as f64;
        if white_box && !uses_gradients && share > MASKED_SHARE && broken >= MASKED_POINTS {
            doubts.push(Caveat::new(
                "black-box-wins",
                format!(
                    "{} uses no gradients and breaks {broken} of all {} points ({:.2} %) after attacks with gradients did what they could: gradients are masked",
                    result.attack,
                    left.len(),
                    100.0 * share
                ),
            ));
        }
        // On points that withstood others, one that looks for the nearest example (FAB) may find
        // none within epsilon, and hands the natural ones back.
        let may_find_none = order == Order::Cascade && white_box;
        let not_raised = |rise: &f64| *rise < 0.0 || (*rise == 0.0 && !may_find_none);
        if let Some(rise) = result.loss_rise.filter(|rise| uses_gradients && not_raised(rise)) {
            doubts.push(Caveat::new(
                "loss-not-raised",
                format!("{} changed the mean loss by {rise:.2e}: it does not rise", result.attack),
            ));
        }
        white_box |= uses_gradients;
        left.iter_mut().zip(robust).for_each(|(left, robust)| *left &= robust);
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::verdict::Cost;
    use std::borrow::Cow;

    /// What an attack did to some points, of which those numbered `fooled` fell to it.
    struct Did(&'static str, std::ops::Range<usize>, u64, f64);

    /// The doubts after a suite of these attacks on so many points.
    fn names(points: usize, attacks: &[Did]) -> Vec<Cow<'static, str>> {
        names_in(Order::Cascade, points, attacks)
    }

    fn names_in(order: Order, points: usize, attacks: &[Did]) -> Vec<Cow<'static, str>> {
        let result = |Did(attack, fooled, backward_passes, loss_rise): &Did| AttackResult {
            attack: (*attack).to_owned(),
            robust: 1.0 - fooled.len() as f64 / points as f64,
            cost: Cost { forward_passes: 1, backward_passes: *backward_passes, seconds: 0.0 },
            loss_rise: Some(*loss_rise),
        };
        let robust = |Did(_, fooled, ..): &Did| (0..points).map(|point| !fooled.contains(&point)).collect();
        let verdicts = Verdicts {
            indices: (0..points as i64).collect(),
            clean: vec![true; points],
            attacks: attacks.iter().map(robust).collect(),
        };
        let results: Vec<_> = attacks.iter().map(result).collect();
        of_results(order, &verdicts, &results).into_iter().map(|doubt| doubt.name).collect()
    }

    #[test]
    fn logits_that_are_not_finite_are_one_doubt_and_random_ones_another() {
        let names = |logits: [f64; 4], again: [f64; 4]| -> Vec<_> {
            let [logits, again] = [logits, again].map(|values| Tensor::from_slice(&values).reshape([2, 2]));
            of_logits(&logits, &again).into_iter().map(|doubt| doubt.name).collect()
        };
        let (infinite, nan) = (f64::INFINITY, f64::NAN);
        assert!(names([1.0, 2.0, -3.0, 4.0], [1.0, 2.0, -3.0, 4.0 + 1e-5]).is_empty());
        assert_eq!(names([1.0, 2.0, -3.0, 4.0], [1.0, 2.0, -3.0, 4.001]), ["random-logits"]);
        for broken in [infinite, -infinite, nan] {
            assert_eq!(names([1.0, 2.0, -3.0, broken], [1.0, 2.0, -3.0, broken]), ["not-finite"]);
        }
        assert_eq!(names([1.0, nan, 2.0, 3.0], [1.0, nan, 2.0, 4.0]), ["not-finite", "random-logits"]);
        assert_eq!(names([1.0, 2.0, -3.0, 4.0], [1.0, 2.0, -3.0, nan]), ["random-logits"]);
        assert_eq!(names([0.25, 0.75, 0.5, 0.5], [0.25, 0.75, 0.5, 0.5]), ["probabilities"]);
    }

    #[test]
    fn a_black_box_attack_that_breaks_much_after_white_box_ones_is_a_doubt() {
        let apgd = || Did("apgd", 0..500, 10, 1.0);
        let square = |fooled| Did("square", fooled, 0, 1.0);
        assert_eq!(names(1000, &[apgd(), square(500..503)]), ["black-box-wins"]);
        assert!(names(1000, &[apgd(), square(500..502)]).is_empty(), "two of a thousand are forgiven");
        assert!(names(1000, &[apgd(), square(100..500)]).is_empty(), "those had fallen before");
        assert!(names(1000, &[square(0..900)]).is_empty(), "nothing came before");
    }

    #[test]
    fn one_point_alone_is_no_sign_of_masking_however_few_there_are() {
        let apgd = || Did("apgd", 0..100, 10, 1.0);
        for (points, fooled, doubts) in [
            (150, 1, vec![]),
            (150, 2, vec!["black-box-wins"]),
            (999, 2, vec!["black-box-wins"]),
            (10_000, 20, vec![]),
            (10_000, 21, vec!["black-box-wins"]),
        ] {
            let square = Did("square", 100..100 + fooled, 0, 1.0);
            assert_eq!(names(points, &[apgd(), square]), doubts, "{fooled} of {points}");
        }
    }

    #[test]
    fn a_white_box_attack_that_does_not_raise_the_loss_is_a_doubt() {
        assert_eq!(names(1000, &[Did("apgd", 0..0, 10, 0.0)]), ["loss-not-raised"]);
        assert!(names(1000, &[Did("apgd", 0..0, 10, 1e-3)]).is_empty());
        let then_fab = |rise| [Did("apgd", 0..500, 10, 1.0), Did("fab", 0..0, 10, rise)];
        assert!(names(1000, &then_fab(0.0)).is_empty(), "it may find none where others found none");
        assert_eq!(names(1000, &then_fab(-1e-3)), ["loss-not-raised"]);
        assert_eq!(names_in(Order::Separate, 1000, &then_fab(0.0)), ["loss-not-raised"]);
    }
}
