//! Alarms: known failures of cheap adversarial training, detected after every epoch.
//!
//! The chance level is the state of a classifier that gives every class the same probability. Its
//! accuracy is 1 / classes; its loss is what the objective says, log(classes) for the cross-entropy.
//! Where the objective has no such level, the accuracy decides alone. The progress of a classifier
//! is the share of the way from the accuracy of chance level to 1 that its training accuracy has
//! covered.

use crate::run::progress::EpochMetrics;
use crate::util::number::counted;

/// A loss is at chance level if it is between this multiple of the chance-level loss and 2 minus
/// this multiple of it.
const AT_CHANCE_LOSS: f64 = 0.98;

/// Below this progress a classifier is at chance level. The accuracy is checked too, because a loss
/// of several terms may equal the chance-level loss long after the classifier has begun to learn.
const AT_CHANCE_PROGRESS: f64 = 0.1;

/// Above this progress a classifier has learnt.
const LEARNT_PROGRESS: f64 = 0.5;

/// Number of epochs at chance level that are normal at the beginning of a run.
const PATIENCE: usize = 2;

/// A shorter run may end before the classifier has learnt anything.
const UPDATES_TO_LEARN: u64 = 100;

/// A loss above this multiple of the chance-level loss may be diverging.
const DIVERGED: f64 = 2.0;

/// If fewer proposals are accepted, particles do not move.
const LEAST_ACCEPTANCE: f64 = 0.01;

/// The chance level.
#[derive(Debug, Clone, Copy)]
pub struct Chance {
    /// 1 / classes.
    pub accuracy: f64,
    /// The outer loss; none if the objective has none there.
    pub loss: Option<f64>,
}

/// The alarms of the last of these epochs, each with its name, its finding and a remedy.
///
/// `is_end` is true for the last epoch of the run. `remedy` is what may help a run at chance level.
/// `adversary` is none for ordinary training, and otherwise whether the training adversary already
/// moves in the whole ball of the probe. Without such an adversary a low accuracy against the probe
/// is expected, and no catastrophic overfitting.
pub fn alarms_of(
    epochs: &[EpochMetrics],
    is_end: bool,
    (chance, remedy): (Chance, &str),
    adversary: Option<bool>,
) -> Vec<String> {
    let Some((last, before)) = epochs.split_last() else { return Vec::new() };
    let mut alarms = Vec::new();
    let progress = |epoch: &EpochMetrics| (epoch.train_accuracy - chance.accuracy) / (1.0 - chance.accuracy);
    let at_chance = |epoch: &EpochMetrics| {
        let is_loss_of_chance =
            |loss: f64| (epoch.train_loss - loss).abs() < (1.0 - AT_CHANCE_LOSS) * loss.abs();
        chance.loss.is_none_or(is_loss_of_chance) && progress(epoch) < AT_CHANCE_PROGRESS
    };
    let chance_level = chance.loss.map_or(String::new(), |loss| format!(" (chance level: {loss:.3})"));
    let is_final = is_end && last.updates >= UPDATES_TO_LEARN;
    let stuck = epochs.iter().rev().take_while(|epoch| at_chance(epoch)).count();
    if let Some(before) =
        before.iter().rev().find(|before| progress(before) > LEARNT_PROGRESS).filter(|_| stuck > 0)
    {
        alarms.push(format!(
            "collapsed: the loss is {:.3}{chance_level}, and was {:.3} in epoch {}; {remedy}",
            last.train_loss, before.train_loss, before.epoch
        ));
    } else if stuck > PATIENCE || (stuck > 0 && is_final) {
        let epochs = counted(stuck, "epoch");
        alarms.push(format!(
            "stuck at chance: the loss has been {:.3}{chance_level} for {epochs}; {remedy}",
            last.train_loss
        ));
    }
    let has_doubled = before.last().is_some_and(|before| last.train_loss > 2.0 * before.train_loss);
    let ends_at_chance = is_final && progress(last) < AT_CHANCE_PROGRESS;
    let is_far_above = chance.loss.is_some_and(|loss| last.train_loss > DIVERGED * loss);
    if is_far_above && (has_doubled || ends_at_chance) {
        alarms.push(format!(
            "diverging: the loss is {:.3}{chance_level}; lower the learning rate",
            last.train_loss
        ));
    }
    if let Some(acceptance) = last.sampler.get("acceptance").filter(|share| **share < LEAST_ACCEPTANCE) {
        alarms.push(format!(
            "particles do not move: {:.2} % of the sampler's proposals are accepted; begin inside the ball with \
             --start uniform-store, or let the sampler reflect at its boundary",
            100.0 * acceptance
        ));
    }
    if let Some(probe) = last.probe_accuracy.filter(|_| adversary == Some(true)) {
        let best = before.iter().filter_map(|epoch| epoch.probe_accuracy).fold(0.0, f64::max);
        if progress(last) > LEARNT_PROGRESS && (probe < last.train_accuracy / 3.0 || probe < best / 2.0) {
            alarms.push(format!(
                "catastrophic overfitting: the accuracy is {:.1} % on the training particles, but {:.1} % against \
                 the probe on validation points (best so far {:.1} %); use more replays or steps, a random \
                 start (train.start), or a longer epsilon ramp (train.warmup_epsilon)",
                100.0 * last.train_accuracy,
                100.0 * probe,
                100.0 * best.max(probe)
            ));
        }
    }
    alarms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(train_loss: f64, train_accuracy: f64, probe_accuracy: Option<f64>) -> EpochMetrics {
        EpochMetrics {
            sampler: Default::default(),
            law: None,
            gradient: None,
            epoch: 1,
            updates: 1,
            learning_rate: 0.1,
            train_loss,
            train_accuracy,
            validation_accuracy: None,
            probe_accuracy,
            validation_passes: None,
            statistics_passes: None,
            alarms: Vec::new(),
            stopped_early: false,
            passes_per_sample: 1,
            seconds: 1.0,
            communication_seconds: None,
            peak_memory: None,
        }
    }

    #[test]
    fn particles_that_do_not_move_raise_an_alarm() {
        let with = |acceptance: f64| EpochMetrics {
            sampler: [("acceptance".to_owned(), acceptance)].into(),
            ..epoch(1.0, 0.5, None)
        };
        assert_eq!(names_when(false, &[with(0.009)]), ["particles do not move"]);
        assert!(names_when(false, &[with(0.02)]).is_empty());
    }

    fn of_cross_entropy(classes: i64) -> Chance {
        Chance { accuracy: 1.0 / classes as f64, loss: Some((classes as f64).ln()) }
    }

    fn names_when(is_end: bool, epochs: &[EpochMetrics]) -> Vec<String> {
        let name = |alarm: &String| alarm.split(':').next().unwrap_or_default().to_owned();
        alarms_of(epochs, is_end, (of_cross_entropy(10), ""), Some(true)).iter().map(name).collect()
    }

    fn names(epochs: &[EpochMetrics]) -> Vec<String> {
        names_when(false, epochs)
    }

    fn names_at_the_end(epochs: &[EpochMetrics]) -> Vec<String> {
        names_when(true, epochs)
    }

    #[test]
    fn the_loss_may_stay_at_chance_level_for_two_epochs() {
        // log 10 = 2.3026.
        let chance = || epoch(2.301, 0.11, None);
        assert!(names(&[chance(), chance()]).is_empty());
        assert_eq!(names(&[chance(), chance(), chance()]), ["stuck at chance"]);
        assert!(
            names(&[chance(), chance(), chance(), epoch(2.1, 0.2, None)]).is_empty(),
            "the loss fell in the last epoch"
        );
        let late = || EpochMetrics { updates: 100, ..chance() };
        assert_eq!(names_at_the_end(&[late()]), ["stuck at chance"], "the run ends at chance level");
        assert!(names(&[late()]).is_empty() && names_at_the_end(&[chance()]).is_empty());
    }

    #[test]
    fn a_network_that_falls_back_to_chance_level_has_collapsed() {
        // Loss and accuracy of a real run of two epochs.
        let epochs = [epoch(0.651, 0.764, None), epoch(2.302, 0.112, None)];
        assert_eq!(names(&epochs), ["collapsed"]);
        assert_eq!(names_at_the_end(&epochs), ["collapsed"]);
        assert!(
            names(&[epoch(2.2, 0.2, None), epoch(2.302, 0.112, None)]).is_empty(),
            "the network had not learnt before"
        );
    }

    #[test]
    fn a_network_that_has_begun_to_learn_is_above_chance_level() {
        // TRADES: cross-entropy 1.4 plus 6 times a divergence of 0.15.
        let learning = || epoch(2.3, 0.35, None);
        assert!(names(&[learning(), learning(), learning()]).is_empty());
    }

    #[test]
    fn an_objective_may_have_another_loss_at_chance_level_or_none() {
        let stuck = [4.0, 4.01, 3.99].map(|loss| epoch(loss, 0.11, None));
        let names = |loss| alarms_of(&stuck, false, (Chance { accuracy: 0.1, loss }, ""), Some(true));
        assert!(names(Some(10f64.ln())).is_empty());
        assert!(
            names(Some(4.0))[0].starts_with("stuck at chance: the loss has been 3.990 (chance level: 4.000)")
        );
        assert!(names(None)[0].starts_with("stuck at chance: the loss has been 3.990 for 3 epochs"));
    }

    #[test]
    fn the_chance_level_of_two_classes_is_one_half() {
        let chance = || epoch(0.692, 0.53, None);
        assert!(alarms_of(&[chance(), chance()], false, (of_cross_entropy(2), ""), None).is_empty());
    }

    #[test]
    fn high_accuracy_on_particles_and_low_accuracy_against_the_probe_is_catastrophic_overfitting() {
        assert_eq!(names(&[epoch(0.2, 0.95, Some(0.1))]), ["catastrophic overfitting"]);
        assert_eq!(
            names(&[epoch(0.5, 0.8, Some(0.9)), epoch(0.2, 0.95, Some(0.4))]),
            ["catastrophic overfitting"]
        );
        assert!(names(&[epoch(0.5, 0.8, Some(0.7)), epoch(0.2, 0.95, Some(0.6))]).is_empty());
        assert!(names(&[epoch(2.2, 0.2, Some(0.0))]).is_empty(), "the network has not learnt yet");
        let low_probe = [epoch(0.2, 0.95, Some(0.1))];
        assert!(
            alarms_of(&low_probe, false, (of_cross_entropy(10), ""), None).is_empty(),
            "ordinary training"
        );
        assert!(
            alarms_of(&low_probe, false, (of_cross_entropy(10), ""), Some(false)).is_empty(),
            "the ball of training is smaller than that of the probe"
        );
    }

    #[test]
    fn a_loss_far_above_chance_level_that_doubles_or_ends_the_run_is_diverging() {
        assert_eq!(names(&[epoch(2.3, 0.1, None), epoch(9.0, 0.1, None)]), ["diverging"]);
        assert!(names(&[epoch(8.0, 0.1, None), epoch(9.0, 0.1, None)]).is_empty(), "the loss may still fall");
        let late = |loss| EpochMetrics { updates: 100, ..epoch(loss, 0.1, None) };
        assert_eq!(names_at_the_end(&[epoch(9.0, 0.1, None), late(8.0)]), ["diverging"]);
        assert!(names_at_the_end(&[epoch(9.0, 0.1, None), late(4.0)]).is_empty());
        assert!(names_at_the_end(&[epoch(9.0, 0.1, None)]).is_empty(), "the run is too short");
        let sum_of_terms = EpochMetrics { updates: 100, ..epoch(5.0, 0.6, None) };
        assert!(names_at_the_end(&[sum_of_terms]).is_empty(), "the accuracy is above chance level");
    }
}
