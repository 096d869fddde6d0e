//! Checks for attacks.

use crate::tensors::no_result;
use crate::toy::{Batch, Problem, SIDE, THREATS, guarded};
use crate::{Check, Outcome, Plugin, Table, Verdict};
use plugin_api::abi::AttackInstance;
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Task, ThreatModel};

pub const CHECKS: [Check; 5] = [
    Check::new("attack-inside", "candidates lie in ball and domain", inside).of(&["attack"]),
    Check::new("attack-not-easier", "accuracy under attack is at most clean accuracy", not_easier)
        .of(&["attack"]),
    Check::new(
        "attack-victim",
        "the victim's parameters and their gradients do not change",
        victim_untouched,
    )
    .of(&["attack"]),
    Check::new("attack-budget", "there are no more forward passes than declared", budget).of(&["attack"]),
    Check::new("attack-classes", "2, 3 and 10 classes work, or supports_task refuses them", classes)
        .of(&["attack"]),
];

fn made(plugin: &Plugin) -> Result<AttackInstance, Outcome> {
    let Table::Attack(attack) = &plugin.table else {
        return Err(Outcome::Skipped("not an attack".to_owned()));
    };
    attack.create(&plugin.options).map_err(|error| Outcome::failed("an instance", error))
}

/// The threat models that the attack supports; at least one, since the attack returned a result.
fn supported(attack: &AttackInstance) -> impl Iterator<Item = ThreatModel> {
    THREATS.into_iter().filter(|threat| attack.supports(threat).is_ok())
}

fn candidates(attack: &AttackInstance, batch: &Batch) -> plugin_api::Result<Tensor> {
    let Batch { problem, images, labels, points, victim, random, .. } = batch;
    guarded(|| attack.run((images, labels), points, problem.classes, problem.threat, victim, random))
}

/// A batch of 64 examples in the first threat model that the attack supports.
fn usual(attack: &AttackInstance, seed: u64) -> Result<Batch, Outcome> {
    let threat = supported(attack).next();
    let threat = threat.ok_or_else(|| Outcome::failed("an attack that supports linf or l2", "neither"))?;
    Problem { threat, ..Problem::new(seed) }.batch(0..64).classified().map_err(no_result)
}

fn inside(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    for threat in supported(&attack) {
        let batch = Problem { threat, ..Problem::new(seed) }.batch(0..16).classified().map_err(no_result)?;
        let candidates = candidates(&attack, &batch).map_err(no_result)?;
        let outside =
            threat.contains(&candidates, &batch.images).logical_not().sum(Kind::Int64).int64_value(&[]);
        if outside > 0 {
            return Ok(Outcome::failed(
                "candidates inside ball and domain",
                format!("{outside} of 16 outside, {threat:?}"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn not_easier(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let mut batch = usual(&attack, seed)?;
    // The victim misclassifies half of the examples. An attack must not make them correct.
    let wrong = (&batch.labels + 1).remainder(10);
    let half = Tensor::arange(64, (Kind::Int64, batch.labels.device())).lt(32);
    batch.labels = wrong.where_self(&half, &batch.labels);
    let accuracy = |images: &Tensor| batch.victim.accuracy(images, &batch.labels).map_err(no_result);
    let clean = accuracy(&batch.images)?;
    let attacked = accuracy(&candidates(&attack, &batch).map_err(no_result)?)?;
    Ok(Outcome::demand(attacked <= clean, format!("accuracy of at most {clean}"), attacked))
}

fn victim_untouched(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let batch = usual(&attack, seed)?;
    let weights = &batch.victim.weights;
    let before = weights.detach().copy();
    let _ = candidates(&attack, &batch).map_err(no_result)?;
    if weights.detach() != before {
        return Ok(Outcome::failed("unchanged weights of the victim", "changed weights"));
    }
    Ok(Outcome::demand(!weights.grad().defined(), "no gradient of the victim's weights", "a gradient"))
}

fn budget(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let declaration = attack.declaration().map_err(|error| Outcome::failed("a declaration", error))?;
    let Some(budget) = declaration.query_budget else {
        return Err(Outcome::Skipped("it declares no query budget".to_owned()));
    };
    for threat in supported(&attack) {
        // In one ball every point is fooled at once. In the other none is, and the attack uses its
        // whole budget.
        for epsilon in [threat.epsilon, 1e-4] {
            let problem = Problem { threat: ThreatModel { epsilon, ..threat }, ..Problem::new(seed) };
            let batch = problem.batch(0..2).classified().map_err(no_result)?;
            let before = batch.victim.forward_passes();
            let _ = candidates(&attack, &batch).map_err(no_result)?;
            let taken = batch.victim.forward_passes() - before;
            if taken > 2 * budget {
                return Ok(Outcome::failed(
                    format!("at most {budget} forward passes per example, as declared"),
                    format!("{taken} for 2 examples, {:?}", problem.threat),
                ));
            }
        }
    }
    Ok(Outcome::Passed)
}

fn classes(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let threat = usual(&attack, seed)?.problem.threat;
    for classes in [2, 3, 10] {
        let task = Task { channels: 1, height: SIDE, width: SIDE, classes };
        // An attack may refuse the task before it runs.
        if attack.supports_task(&task).is_ok() {
            let batch = Problem { classes, threat, ..Problem::new(seed) }.batch(0..8);
            let run = candidates(&attack, &batch);
            if let Err(error) = run {
                return Ok(Outcome::failed(
                    format!("candidates for {classes} classes, or a refusal by supports_task"),
                    error,
                ));
            }
        }
    }
    Ok(Outcome::Passed)
}
