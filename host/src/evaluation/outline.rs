//! What an evaluation is expected to cost.

use crate::plugin::Attack;
use indicatif::HumanCount;
use serde::Serialize;
use std::fmt;

/// The most that an evaluation costs. It costs less where the model misclassifies points without an
/// attack, and where attacks end early.
#[derive(Debug, Clone, Serialize)]
pub struct ExpectedCost {
    points: usize,
    attacks: Vec<ExpectedAttack>,
}

/// The most passes that an attack takes on all points; none where the plugin declares no limit.
#[derive(Debug, Clone, Serialize)]
struct ExpectedAttack {
    attack: String,
    forward_passes: Option<u64>,
    backward_passes: Option<u64>,
}

impl ExpectedCost {
    /// The cost of these attacks on so many points, each repeated so many times.
    pub(crate) fn new(attacks: &[Attack], points: usize, repetitions: u64) -> Self {
        let all = |passes: u64| passes * points as u64 * repetitions;
        let expected = |attack: &Attack| {
            let (forward, backward) = attack.most_passes();
            // One more forward pass for the verdict.
            let forward_passes = forward.map(|forward| all(forward + 1));
            ExpectedAttack {
                attack: attack.record.spec.clone(),
                forward_passes,
                backward_passes: backward.map(all),
            }
        };
        Self { points, attacks: attacks.iter().map(expected).collect() }
    }
}

impl fmt::Display for ExpectedCost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, attacks } = self;
        let count = |number: usize| HumanCount(number as u64);
        let of = |passes: fn(&ExpectedAttack) -> Option<u64>| {
            let known = HumanCount(attacks.iter().filter_map(passes).sum());
            let unknown = attacks.iter().filter(|attack| passes(attack).is_none()).count();
            if unknown == attacks.len() {
                return "an unknown number of".to_owned();
            }
            let but = |unknown| format!(" (not known for {unknown} of the attacks)");
            format!("{known}{}", if unknown > 0 { but(unknown) } else { String::new() })
        };
        write!(
            formatter,
            "{} points, {} attack{}: at most {} forward passes and {} backward passes",
            count(*points),
            count(attacks.len()),
            if attacks.len() == 1 { "" } else { "s" },
            of(|attack| attack.forward_passes),
            of(|attack| attack.backward_passes)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_are_not_known_are_said_to_be() {
        let attack = |forward_passes, backward_passes| ExpectedAttack {
            attack: String::new(),
            forward_passes,
            backward_passes,
        };
        let cost = |attacks| ExpectedCost { points: 1500, attacks }.to_string();
        assert_eq!(
            cost(vec![attack(Some(3000), Some(1500)), attack(Some(9000), Some(0))]),
            "1,500 points, 2 attacks: at most 12,000 forward passes and 1,500 backward passes"
        );
        assert_eq!(
            cost(vec![attack(Some(3000), Some(1500)), attack(Some(9000), None)]),
            "1,500 points, 2 attacks: at most 12,000 forward passes and 1,500 (not known for 1 of the attacks) \
             backward passes"
        );
    }
}
