//! The known ways in which cheap adversarial training fails, recognised after every epoch.

use crate::run::progress::EpochMetrics;

/// A loss that stays this close to that of guessing, as a share of it, has not begun to fall.
const CHANCE: f64 = 0.98;

/// So much of the way from guessing to certainty in accuracy is still guessing. A loss of
/// several terms may pass by that of guessing long after the classifier has begun to learn.
const GUESSING: f64 = 0.1;

/// So much of that way in accuracy has learnt.
const LEARNT: f64 = 0.5;

/// Epochs at chance that are nothing unusual where a run begins.
const PATIENCE: usize = 2;

/// A run of fewer updates may well end before it has learnt anything.
const UPDATES_TO_LEARN: u64 = 100;

/// A loss this many times that of guessing, of a network that guesses, is no longer falling towards it.
const DIVERGED: f64 = 2.0;

/// What the last of these epochs looks like, if it looks wrong: what was found, and what helps.
/// `is_end` says whether none will follow. `adversary` says whether that of training moves in the
/// whole of the probe's ball yet; where it does not, or there is none, breaking down under the probe
/// is what is expected.
pub fn look_at(epochs: &[EpochMetrics], is_end: bool, classes: i64, adversary: Option<bool>) -> Vec<String> {
    let Some((last, before)) = epochs.split_last() else { return Vec::new() };
    let mut alarms = Vec::new();
    let guessing = (classes as f64).ln();
    let lucky = 1.0 / classes as f64;
    // How far accuracy has got on the way from guessing to certainty.
    let learnt = |epoch: &EpochMetrics| (epoch.train_accuracy - lucky) / (1.0 - lucky);
    let at_chance = |epoch: &EpochMetrics| {
        (CHANCE * guessing..guessing * (2.0 - CHANCE)).contains(&epoch.train_loss) && learnt(epoch) < GUESSING
    };
    let helps = match adversary {
        Some(_) => {
            "let epsilon grow for longer (train.warmup_epsilon), or change train.epsilon_scale, the learning rate \
             or the seed"
        }
        None => "change the learning rate",
    };
    let is_hopeless = is_end && last.updates >= UPDATES_TO_LEARN;
    let stuck = epochs.iter().rev().take_while(|epoch| at_chance(epoch)).count();
    if let Some(before) = before.iter().rev().find(|before| learnt(before) > LEARNT).filter(|_| stuck > 0) {
        alarms.push(format!(
            "collapsed: the loss is {:.3} (guessing has {guessing:.3}), and was {:.3} in epoch {}; {helps}",
            last.train_loss, before.train_loss, before.epoch
        ));
    } else if stuck > PATIENCE || (stuck > 0 && is_hopeless) {
        let epochs = if stuck == 1 { "epoch" } else { "epochs" };
        alarms.push(format!(
            "stuck at chance: the loss has been {:.3} (guessing has {guessing:.3}) for {stuck} {epochs}; {helps}",
            last.train_loss
        ));
    }
    let has_doubled = before.last().is_some_and(|before| last.train_loss > 2.0 * before.train_loss);
    if last.train_loss > DIVERGED * guessing && (has_doubled || is_hopeless && learnt(last) < GUESSING) {
        alarms.push(format!(
            "diverging: the loss is {:.3} (guessing has {guessing:.3}); lower the learning rate",
            last.train_loss
        ));
    }
    if let Some(probe) = last.probe_accuracy.filter(|_| adversary == Some(true)) {
        let best = before.iter().filter_map(|epoch| epoch.probe_accuracy).fold(0.0, f64::max);
        if learnt(last) > LEARNT && (probe < last.train_accuracy / 3.0 || probe < best / 2.0) {
            alarms.push(format!(
                "catastrophic overfitting: {:.1} % on the training adversary's particles, {:.1} % against the probe on \
                 held-out points (best so far {:.1} %); use more replays or steps, a start in the ball \
                 (train.start), or let epsilon grow for longer (train.warmup_epsilon)",
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
        }
    }

    fn names_when(is_end: bool, epochs: &[EpochMetrics]) -> Vec<String> {
        let name = |alarm: &String| alarm.split(':').next().unwrap_or_default().to_owned();
        look_at(epochs, is_end, 10, Some(true)).iter().map(name).collect()
    }

    fn names(epochs: &[EpochMetrics]) -> Vec<String> {
        names_when(false, epochs)
    }

    fn names_at_the_end(epochs: &[EpochMetrics]) -> Vec<String> {
        names_when(true, epochs)
    }

    #[test]
    fn the_loss_may_rest_at_chance_for_two_epochs() {
        // log 10 = 2.3026.
        let chance = || epoch(2.301, 0.11, None);
        assert!(names(&[chance(), chance()]).is_empty());
        assert_eq!(names(&[chance(), chance(), chance()]), ["stuck at chance"]);
        assert!(names(&[chance(), chance(), chance(), epoch(2.1, 0.2, None)]).is_empty(), "it fell");
        let late = || EpochMetrics { updates: 100, ..chance() };
        assert_eq!(names_at_the_end(&[late()]), ["stuck at chance"], "nothing more will come");
        assert!(names(&[late()]).is_empty() && names_at_the_end(&[chance()]).is_empty());
    }

    #[test]
    fn who_had_learnt_and_guesses_again_has_collapsed() {
        // The loss and accuracy of a run of two epochs that ended dead.
        let epochs = [epoch(0.651, 0.764, None), epoch(2.302, 0.112, None)];
        assert_eq!(names(&epochs), ["collapsed"]);
        assert_eq!(names_at_the_end(&epochs), ["collapsed"]);
        assert!(
            names(&[epoch(2.2, 0.2, None), epoch(2.302, 0.112, None)]).is_empty(),
            "it had learnt nothing"
        );
    }

    #[test]
    fn who_has_begun_to_learn_is_not_guessing() {
        // Cross-entropy 1.4 and 6 times a divergence of 0.15: TRADES on its way.
        let on_its_way = || epoch(2.3, 0.35, None);
        assert!(names(&[on_its_way(), on_its_way(), on_its_way()]).is_empty());
    }

    #[test]
    fn half_right_of_two_classes_is_guessing() {
        let guesses = || epoch(0.692, 0.53, None);
        assert!(look_at(&[guesses(), guesses()], false, 2, None).is_empty());
    }

    #[test]
    fn good_accuracy_on_the_particles_and_none_against_the_probe_is_overfitting() {
        assert_eq!(names(&[epoch(0.2, 0.95, Some(0.1))]), ["catastrophic overfitting"]);
        assert_eq!(
            names(&[epoch(0.5, 0.8, Some(0.9)), epoch(0.2, 0.95, Some(0.4))]),
            ["catastrophic overfitting"]
        );
        assert!(names(&[epoch(0.5, 0.8, Some(0.7)), epoch(0.2, 0.95, Some(0.6))]).is_empty());
        assert!(names(&[epoch(2.2, 0.2, Some(0.0))]).is_empty(), "nothing is learnt yet");
        let broken_down = [epoch(0.2, 0.95, Some(0.1))];
        assert!(look_at(&broken_down, false, 10, None).is_empty(), "ordinary training");
        assert!(
            look_at(&broken_down, false, 10, Some(false)).is_empty(),
            "in a smaller ball than the probe's"
        );
    }

    #[test]
    fn a_loss_that_doubles_beyond_guessing_or_ends_there_diverges() {
        assert_eq!(names(&[epoch(2.3, 0.1, None), epoch(9.0, 0.1, None)]), ["diverging"]);
        assert!(names(&[epoch(8.0, 0.1, None), epoch(9.0, 0.1, None)]).is_empty(), "it may fall yet");
        let late = |loss| EpochMetrics { updates: 100, ..epoch(loss, 0.1, None) };
        assert_eq!(names_at_the_end(&[epoch(9.0, 0.1, None), late(8.0)]), ["diverging"]);
        assert!(names_at_the_end(&[epoch(9.0, 0.1, None), late(4.0)]).is_empty());
        assert!(names_at_the_end(&[epoch(9.0, 0.1, None)]).is_empty(), "it had no time to fall");
        let sum_of_terms = EpochMetrics { updates: 100, ..epoch(5.0, 0.6, None) };
        assert!(names_at_the_end(&[sum_of_terms]).is_empty(), "it classifies");
    }
}
