//! The checks behind the caveats of an evaluation. Most follow the checks of AutoAttack (Croce and
//! Hein 2020); `docs/evaluation.md` explains each.

use crate::evaluation::verdict::{AttackResult, Caveat, Order, Verdicts};
use crate::plugin::{CountedVictim, LoadedModel, Threat};
use crate::torch::arithmetic::Arithmetic;
use crate::{Error, Result};
use plugin_api::losses::{correct, cross_entropy};
use plugin_api::{Norm, VictimCalls};
use tch::{Kind, Tensor};

/// Logits may differ this much, relative to their size, from one pass to the next.
const ROUNDING: f64 = 1e-5;

/// Gradient masking is reported where a black-box attack breaks more than this share of all points
/// after white-box attacks, the threshold of the reference.
const MASKED_SHARE: f64 = 0.002;

/// It must break so many points, too. A single one is weak evidence in a small evaluation: if the
/// attack breaks 0.2 % of points by chance, it breaks one or more of 150 points in 26 % of
/// evaluations, and two or more in 4 %.
const MASKED_COUNT: usize = 2;

/// A sampler that moves no particle farther than this share of epsilon does not search the ball.
const SEARCHED: f64 = 0.5;

/// The caveat of a ball that reaches the middle of the domain from every image of so many values.
/// The adversary can then turn all images into the same grey one.
pub(crate) fn of_threat(threat: &Threat, values: i64) -> Option<Caveat> {
    // A channel with a smaller radius does not reach the middle.
    if !threat.is_one_radius() {
        return None;
    }
    let Threat { norm, epsilon, domain: (low, high), .. } = *threat;
    let farthest = (high - low) / 2.0;
    let (reach, of_what) = match norm {
        Norm::Linf => (farthest, "half of the width of the domain".to_owned()),
        Norm::L2 => {
            let length = (values as f64).sqrt();
            (farthest * length, format!("half of the diagonal of the domain of {values} values"))
        }
        Norm::L1 => {
            (farthest * values as f64, format!("half of the width of the domain, times its {values} values"))
        }
    };
    let finding = || {
        format!(
            "epsilon {epsilon} is at least {reach}, {of_what}: the adversary can make all images equal, in {norm}"
        )
    };
    (epsilon >= reach).then(|| Caveat::new("large-epsilon", finding()))
}

/// The caveats of the model itself, found on natural examples (`[N, C, H, W]`, labels `[N]`) with
/// three forward passes and one backward pass of each.
///
/// # Errors
/// If the model fails.
pub(crate) fn of_model(model: &LoadedModel, images: &Tensor, labels: &Tensor) -> Result<Vec<Caveat>> {
    let mut caveats = of_logits(&model.logits(images)?, &model.logits(images)?);
    let victim = CountedVictim::new(model);
    let (logits, leaf) = victim.differentiable(images).map_err(Error::new)?;
    let loss = tch::with_grad(|| cross_entropy(&logits, labels));
    let zero = victim.input_gradient(&loss, &leaf).map_err(Error::new)?.eq(0.0).flatten(1, -1);
    let (count, vanished) = (images.size()[0], number(zero.all_dim(1, false).sum(Kind::Int64)));
    if vanished > 0.0 {
        let entries = 100.0 * number(zero.to_kind(Kind::Double).mean(Kind::Double));
        caveats.push(Caveat::new(
            "vanishing-gradients",
            format!(
                "the gradient is exactly zero at {vanished:.0} of {count} points ({entries:.1} % of all its entries)"
            ),
        ));
    }
    Ok(caveats)
}

/// A way in which images may have another scale than a network expects.
struct Rescaling {
    /// What is done to the images.
    name: &'static str,
    /// Each pixel is multiplied by the first and the second is added, channel by channel: `[C]`.
    factors: Vec<f64>,
    terms: Vec<f64>,
    /// The remedy.
    fix: String,
}

/// Images in one forward pass, which must have room on the device.
const AT_A_TIME: i64 = 100;

/// The chance that a network that sees images as it should has a caveat of its scale, if it
/// classified rescaled images as well as those given.
const SCALE_CHANCE: f64 = 1e-4;

/// The caveat of a network that classifies rescaled images much better than those it is given. It
/// is found on natural examples (`[N, C, H, W]`, labels `[N]`) with five forward passes of each.
///
/// # Errors
/// If the model fails.
pub(crate) fn of_scale(model: &LoadedModel, images: &Tensor, labels: &Tensor) -> Result<Option<Caveat>> {
    let correct_on = |images: &Tensor| -> Result<Vec<bool>> {
        let parts = images.f_split(AT_A_TIME, 0)?;
        let logits = parts.iter().map(|images| model.logits(images)).collect::<Result<Vec<_>>>()?;
        Ok(Vec::try_from(correct(&Tensor::f_cat(&logits, 0)?, labels))?)
    };
    let count = labels.size()[0];
    let most_frequent = number(labels.bincount::<Tensor>(None, 0).max()) as usize;
    let given = correct_on(images)?;
    let right = |of: &[bool]| of.iter().filter(|is_right| **is_right).count();
    let percent = |of: &[bool]| 100.0 * right(of) as f64 / count.max(1) as f64;
    let per_channel = |numbers: &[f64]| {
        Tensor::from_slice(numbers).to_kind(images.kind()).to_device(images.device()).reshape([1, -1, 1, 1])
    };
    let mut best: Option<(Rescaling, Vec<bool>)> = None;
    for rescaling in rescalings(images)? {
        let rescaled = images * per_channel(&rescaling.factors) + per_channel(&rescaling.terms);
        let found = correct_on(&rescaled)?;
        if best.as_ref().is_none_or(|(_, best)| right(&found) > right(best)) {
            best = Some((rescaling, found));
        }
    }
    let Some((Rescaling { name, fix, .. }, found)) = best else { return Ok(None) };
    let only =
        |one: &[bool], other: &[bool]| one.iter().zip(other).filter(|(one, other)| **one && !**other).count();
    // Among the examples that are classified otherwise, each outcome is as likely as the other if
    // the scale does not matter (McNemar). A network that answers the same class everywhere may be
    // right as often as that class occurs. More contrast alone helps networks that were trained for
    // a short time, but does not halve their errors.
    let errors = |answers: &[bool]| answers.iter().filter(|answer| !**answer).count();
    let is_better = 2 * errors(&found) <= errors(&given)
        && sign_test(only(&found, &given), only(&given, &found)) < SCALE_CHANCE
        && sign_test(right(&found), most_frequent) < SCALE_CHANCE;
    Ok(is_better.then(|| {
        Caveat::new(
            "scale",
            format!(
                "{:.1} % of {count} natural examples are classified correctly as given, {:.1} % {name}: {fix}",
                percent(&given),
                percent(&found)
            ),
        )
    }))
}

/// The scales that are tried: pixels from 0 to 255, from -1 to 1, normalised by mean and standard
/// deviation of each channel of `images`, and the reverse of that.
fn rescalings(images: &Tensor) -> Result<Vec<Rescaling>> {
    let over = [0i64, 2, 3].as_slice();
    let exact = images.to_kind(Kind::Double);
    let means: Vec<f64> = Vec::try_from(exact.mean_dim(over, false, Kind::Double))?;
    let deviations: Vec<f64> = Vec::try_from(exact.std_dim(over, false, false))?;
    let channels = means.len();
    let list = |numbers: &[f64]| {
        let written: Vec<_> = numbers.iter().map(|number| format!("{number:.4}")).collect();
        format!("[{}]", written.join(","))
    };
    let expects = |what: &str, mean: &[f64], std: &[f64]| {
        format!(
            "the network seems to expect {what}; give its model the options mean={},std={}",
            list(mean),
            list(std)
        )
    };
    let all = |value: f64| vec![value; channels];
    let mut tried = vec![
        Rescaling {
            name: "multiplied by 255",
            factors: all(255.0),
            terms: all(0.0),
            fix: expects("pixels from 0 to 255", &all(0.0), &all(1.0 / 255.0)),
        },
        Rescaling {
            name: "stretched to -1 to 1",
            factors: all(2.0),
            terms: all(-1.0),
            fix: expects("pixels from -1 to 1", &all(0.5), &all(0.5)),
        },
    ];
    // A channel of one value has no scale.
    if deviations.iter().all(|deviation| *deviation > 0.0) {
        tried.push(Rescaling {
            name: "normalised by mean and standard deviation of each channel",
            factors: deviations.iter().map(|deviation| 1.0 / deviation).collect(),
            terms: means.iter().zip(&deviations).map(|(mean, deviation)| -mean / deviation).collect(),
            fix: expects("normalised images", &means, &deviations),
        });
        tried.push(Rescaling {
            name: "with the normalisation by mean and standard deviation of each channel undone",
            factors: deviations,
            terms: means,
            fix: "images seem to be normalised twice; leave out the options mean and std of its model"
                .to_owned(),
        });
    }
    Ok(tried)
}

/// The probability of at least so many heads among all tosses of a fair coin.
fn sign_test(heads: usize, tails: usize) -> f64 {
    let all = heads + tails;
    // The logarithm of all over k, from one k to the next.
    let mut log_of_choices = 0.0f64;
    let mut sum = 0.0;
    for k in 0..=all {
        if k >= heads {
            sum += (log_of_choices - all as f64 * std::f64::consts::LN_2).exp();
        }
        log_of_choices += ((all - k) as f64 / (k + 1) as f64).ln();
    }
    sum
}

fn number(tensor: Tensor) -> f64 {
    tensor.to_kind(Kind::Double).double_value(&[])
}

/// The caveats of the logits (`[N, classes]`) of the same images in two passes.
fn of_logits(logits: &Tensor, again: &Tensor) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    let (count, finite) = (logits.size()[0], logits.isfinite());
    let broken = count - finite.all_dim(1, false).sum(Kind::Int64).int64_value(&[]);
    if broken > 0 {
        caveats.push(Caveat::new(
            "not-finite",
            format!("logits of {broken} of {count} points are NaN or infinite: they count as misclassified"),
        ));
    }
    let largest = |of: Tensor| number(of.abs().where_scalarother(&finite, 0.0).max());
    let difference = largest(logits - again);
    if difference.is_nan() || difference > ROUNDING * largest(logits.shallow_clone()).max(1.0) {
        caveats.push(Caveat::new(
            "random-logits",
            format!("logits of the same images differ by {difference:.2e} from one pass to the next"),
        ));
    }
    let off = number((logits.sum_dim_intlist([1i64].as_slice(), false, Kind::Double) - 1.0).abs().max());
    if off < 1e-4 && number(logits.min()) >= 0.0 {
        caveats.push(Caveat::new(
            "probabilities",
            "every row of the logits is positive and sums to 1: they look like probabilities",
        ));
    }
    caveats
}

/// The caveats of the results of attacks on the model's own gradients.
pub(crate) fn of_results(order: Order, verdicts: &Verdicts, results: &[AttackResult]) -> Vec<Caveat> {
    let mut caveats = Vec::new();
    // The points that are robust to the attacks so far, and whether one of those used gradients.
    let (mut left, mut white_box) = (verdicts.clean.clone(), false);
    for (result, robust) in results.iter().zip(&verdicts.attacks) {
        let uses_gradients = result.cost.backward_passes > 0;
        let broken = left.iter().zip(robust).filter(|(left, robust)| **left && !**robust).count();
        let share = broken as f64 / left.len().max(1) as f64;
        if white_box && !uses_gradients && share > MASKED_SHARE && broken >= MASKED_COUNT {
            caveats.push(Caveat::new(
                "black-box-wins",
                format!(
                    "{} uses no gradients and breaks {broken} of all {} points ({:.2} %) after attacks with gradients: gradients are masked",
                    result.attack,
                    left.len(),
                    100.0 * share
                ),
            ));
        }
        // FAB searches for the nearest adversarial example. At points that earlier attacks failed
        // on, it may find none within epsilon, and then returns the natural examples.
        let may_find_none = order == Order::Cascade && white_box;
        let not_raised = |rise: &f64| *rise < 0.0 || (*rise == 0.0 && !may_find_none);
        if let Some(rise) = result.loss_rise.filter(|rise| uses_gradients && not_raised(rise)) {
            caveats.push(Caveat::new(
                "loss-not-raised",
                format!("{} did not raise the mean loss: it changed by {rise:.2e}", result.attack),
            ));
        }
        if let Some(moved) = result.moved.filter(|moved| *moved < SEARCHED) {
            caveats.push(Caveat::new(
                "short-steps",
                format!(
                    "{} moved no particle that it failed with by more than {moved:.2} epsilon: its steps are too \
                     short, or too few, for this ball",
                    result.attack
                ),
            ));
        }
        white_box |= uses_gradients;
        left.iter_mut().zip(robust).for_each(|(left, robust)| *left &= robust);
    }
    caveats
}

/// The caveat of an evaluation that went on with other arithmetic than it began with. `used` has
/// the arithmetic of each session, in order; none where it is unknown.
pub(crate) fn of_arithmetic<'a>(used: impl IntoIterator<Item = Option<&'a Arithmetic>>) -> Option<Caveat> {
    let used: Vec<_> = used.into_iter().collect();
    let between = |pair: &[Option<&Arithmetic>]| match pair {
        [Some(before), Some(after)] => before.differences(after),
        [None, Some(_)] => vec!["that of the beginning is unknown (an older version)".to_owned()],
        _ => Vec::new(),
    };
    let differences: Vec<_> = used.windows(2).flat_map(between).collect();
    let finding = || format!("the evaluation went on with other arithmetic: {}", differences.join("; "));
    (!differences.is_empty()).then(|| Caveat::new("changed", finding()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::verdict::Cost;
    use std::borrow::Cow;

    /// An attack's name, the positions of the points that it fooled, its backward passes, and the
    /// increase of the loss.
    struct Outcome(&'static str, std::ops::Range<usize>, u64, f64);

    /// The names of the caveats of a suite of these attacks on so many points.
    fn names(count: usize, attacks: &[Outcome]) -> Vec<Cow<'static, str>> {
        names_in(Order::Cascade, count, attacks)
    }

    fn names_in(order: Order, count: usize, attacks: &[Outcome]) -> Vec<Cow<'static, str>> {
        let result = |Outcome(attack, fooled, backward_passes, loss_rise): &Outcome| AttackResult {
            attack: (*attack).to_owned(),
            robust: 1.0 - fooled.len() as f64 / count as f64,
            cost: Cost { forward_passes: 1, backward_passes: *backward_passes, seconds: 0.0 },
            loss_rise: Some(*loss_rise),
            moved: Some(1.0),
        };
        let robust = |Outcome(_, fooled, ..): &Outcome| {
            (0..count).map(|position| !fooled.contains(&position)).collect()
        };
        let verdicts = Verdicts {
            indices: (0..count as i64).collect(),
            clean: vec![true; count],
            attacks: attacks.iter().map(robust).collect(),
        };
        let results: Vec<_> = attacks.iter().map(result).collect();
        of_results(order, &verdicts, &results).into_iter().map(|caveat| caveat.name).collect()
    }

    #[test]
    fn a_ball_that_holds_the_middle_of_the_domain_around_every_image_is_a_caveat() {
        let threat = Threat { epsilon: 0.5, ..Threat::default() };
        assert!(of_threat(&threat, 784).is_some());
        assert!(of_threat(&Threat { channel_scale: Some(vec![1.0, 0.1]), ..threat }, 784).is_none());
        let of =
            |norm, epsilon, domain| of_threat(&Threat { norm, epsilon, domain, channel_scale: None }, 784);
        let (unit, wide) = ((0.0, 1.0), (-1.0, 1.0));
        for (norm, epsilon, domain, is_caveat) in [
            (Norm::Linf, 0.49, unit, false),
            (Norm::Linf, 0.51, unit, true),
            (Norm::Linf, 8.0, unit, true),
            (Norm::Linf, 0.51, wide, false),
            (Norm::Linf, 1.1, wide, true),
            // The corners of a cube of 784 dimensions are sqrt(784) / 2 = 14 from its middle.
            (Norm::L2, 13.9, unit, false),
            (Norm::L2, 14.1, unit, true),
            (Norm::L2, 27.9, wide, false),
            (Norm::L2, 28.1, wide, true),
            (Norm::L1, 391.9, unit, false),
            (Norm::L1, 392.1, unit, true),
            (Norm::L1, 783.9, wide, false),
            (Norm::L1, 784.1, wide, true),
        ] {
            let name = of(norm, epsilon, domain).map(|caveat| caveat.name);
            assert_eq!(name.as_deref(), is_caveat.then_some("large-epsilon"), "{norm} {epsilon} {domain:?}");
        }
    }

    #[test]
    fn the_sign_test_is_that_of_a_fair_coin() {
        for (heads, tails, expected) in [
            (0, 0, 1.0),
            (0, 3, 1.0),
            (1, 0, 0.5),
            (3, 0, 0.125),
            (2, 1, 0.5),
            (14, 0, 0.5f64.powi(14)),
            (5, 1, 7.0 / 64.0),
        ] {
            assert!((sign_test(heads, tails) - expected).abs() < 1e-12, "{heads} {tails}");
        }
        assert!(sign_test(400, 100) < 1e-30 && sign_test(250, 250) > 0.5);
    }

    #[test]
    fn logits_that_are_not_finite_are_one_caveat_and_random_ones_another() {
        let names = |logits: [f64; 4], again: [f64; 4]| -> Vec<_> {
            let [logits, again] = [logits, again].map(|values| Tensor::from_slice(&values).reshape([2, 2]));
            of_logits(&logits, &again).into_iter().map(|caveat| caveat.name).collect()
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
    fn a_black_box_attack_that_breaks_much_after_white_box_ones_is_a_caveat() {
        let apgd = || Outcome("apgd", 0..500, 10, 1.0);
        let square = |fooled| Outcome("square", fooled, 0, 1.0);
        assert_eq!(names(1000, &[apgd(), square(500..503)]), ["black-box-wins"]);
        assert!(names(1000, &[apgd(), square(500..502)]).is_empty(), "two of a thousand are not enough");
        assert!(names(1000, &[apgd(), square(100..500)]).is_empty(), "apgd had broken those");
        assert!(names(1000, &[square(0..900)]).is_empty(), "nothing came before");
    }

    #[test]
    fn one_point_alone_is_no_sign_of_masking_however_few_there_are() {
        let apgd = || Outcome("apgd", 0..100, 10, 1.0);
        for (count, fooled, caveats) in [
            (150, 1, vec![]),
            (150, 2, vec!["black-box-wins"]),
            (999, 2, vec!["black-box-wins"]),
            (10_000, 20, vec![]),
            (10_000, 21, vec!["black-box-wins"]),
        ] {
            let square = Outcome("square", 100..100 + fooled, 0, 1.0);
            assert_eq!(names(count, &[apgd(), square]), caveats, "{fooled} of {count}");
        }
    }

    #[test]
    fn a_white_box_attack_that_does_not_raise_the_loss_is_a_caveat() {
        assert_eq!(names(1000, &[Outcome("apgd", 0..0, 10, 0.0)]), ["loss-not-raised"]);
        assert!(names(1000, &[Outcome("apgd", 0..0, 10, 1e-3)]).is_empty());
        let then_fab = |rise| [Outcome("apgd", 0..500, 10, 1.0), Outcome("fab", 0..0, 10, rise)];
        assert!(names(1000, &then_fab(0.0)).is_empty(), "it may find none where others found none");
        assert_eq!(names(1000, &then_fab(-1e-3)), ["loss-not-raised"]);
        assert_eq!(names_in(Order::Separate, 1000, &then_fab(0.0)), ["loss-not-raised"]);
    }

    #[test]
    fn a_sampler_that_hardly_moves_the_particles_that_it_fails_with_is_a_caveat() {
        let findings = |moved| {
            let cost = Cost { forward_passes: 40, backward_passes: 40, seconds: 0.0 };
            let attack = "pgd.so,steps=4".to_owned();
            let result = AttackResult { attack, robust: 0.5, cost, loss_rise: Some(0.1), moved };
            let attacks = vec![vec![false, true]];
            let verdicts = Verdicts { indices: vec![0, 1], clean: vec![true; 2], attacks };
            of_results(Order::Separate, &verdicts, &[result])
        };
        let caveat = findings(Some(0.133)).remove(0);
        assert_eq!(caveat.name, "short-steps");
        let expected = "pgd.so,steps=4 moved no particle that it failed with by more than 0.13 epsilon: its";
        assert!(caveat.finding.starts_with(expected), "{}", caveat.finding);
        for moved in [Some(0.5), None] {
            assert!(findings(moved).is_empty(), "{moved:?}");
        }
    }

    #[test]
    fn other_arithmetic_is_a_caveat_with_both_values_of_every_session() {
        let on = |processor: &str| Arithmetic { processor: processor.to_owned(), ..Default::default() };
        let [first, other] = [on("A"), on("B")];
        assert_eq!(of_arithmetic([Some(&first)]), None);
        assert_eq!(of_arithmetic([Some(&first), Some(&first)]), None);
        let caveat = of_arithmetic([None, Some(&first)]).expect("a caveat");
        assert!(caveat.finding.contains("that of the beginning is unknown"), "{}", caveat.finding);
        let caveat = of_arithmetic([Some(&first), Some(&other), Some(&first)]).expect("a caveat");
        assert_eq!(caveat.name, "changed");
        let expected =
            "the evaluation went on with other arithmetic: processor `A`, then `B`; processor `B`, then `A`";
        assert_eq!(caveat.finding, expected);
    }
}
