//! Checks for attacks.

use crate::toy::{Batch, LinearVictim, THREAT};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::abi::AttackInstance;
use plugin_api::tch::{self, Kind, Tensor};

macro_rules! check {
    ($name:literal, $run:ident, $sentence:literal) => {
        Check { name: $name, sentence: $sentence, kinds: &["attack"], run: $run }
    };
}

pub const CHECKS: [Check; 4] = [
    check!("attack-inside", inside, "candidates lie in ball and domain"),
    check!("attack-not-easier", not_easier, "accuracy under attack is at most clean accuracy"),
    check!("attack-victim", victim_untouched, "the victim's parameters and their gradients are left alone"),
    check!("attack-classes", classes, "2, 3 and 10 classes work, or are refused with a message"),
];

fn made(plugin: &Plugin) -> Result<AttackInstance, Outcome> {
    let Plugin::Attack(attack) = plugin else { return Err(Outcome::Skipped("not an attack".to_owned())) };
    let attack = attack.create("{}").map_err(|_| Outcome::blocked_by("options-defaults"))?;
    attack.supports(&THREAT).map_err(|error| Outcome::Skipped(format!("it does not know linf: {error}")))?;
    Ok(attack)
}

fn run(attack: &AttackInstance, batch: &Batch, victim: &LinearVictim) -> plugin_api::Result<Tensor> {
    let _guard = tch::no_grad_guard();
    attack.run((&batch.images, &batch.labels), &batch.points, batch.classes, THREAT, victim, &batch.random)
}

fn candidates(attack: &AttackInstance, batch: &Batch, victim: &LinearVictim) -> Result<Tensor, Outcome> {
    run(attack, batch, victim).map_err(|_| Outcome::blocked_by("tensors-result"))
}

/// Images labelled as the victim classifies them: clean accuracy is 1.
fn classified(seed: u64) -> Result<(Batch, LinearVictim), Outcome> {
    let mut batch = Batch::new(0..64, 10, Kind::Float, seed);
    let victim = LinearVictim::new(10, Kind::Float);
    let logits = plugin_api::VictimCalls::logits(&victim, &batch.images);
    batch.labels = logits.map_err(|error| Outcome::failed("logits", error))?.argmax(1, false);
    Ok((batch, victim))
}

fn inside(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let (batch, victim) = classified(seed)?;
    let candidates = candidates(&attack, &batch, &victim)?;
    if candidates.size() != batch.images.size() {
        return Err(Outcome::blocked_by("tensors-shape"));
    }
    let outside = THREAT.contains(&candidates, &batch.images).logical_not().sum(Kind::Int64).int64_value(&[]);
    Ok(Outcome::demand(outside == 0, "candidates inside ball and domain", format!("{outside} of 64 outside")))
}

fn not_easier(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let (mut batch, victim) = classified(seed)?;
    // Half the labels are wrong: an attack must not put them right.
    let wrong = (&batch.labels + 1).remainder(10);
    let half = Tensor::arange(64, (Kind::Int64, batch.labels.device())).lt(32);
    batch.labels = wrong.where_self(&half, &batch.labels);
    let accuracy = |images: &Tensor| {
        victim
            .accuracy(images, &batch.labels)
            .map_err(|error| Outcome::failed("candidates of the images' shape", error))
    };
    let clean = accuracy(&batch.images)?;
    let attacked = accuracy(&candidates(&attack, &batch, &victim)?)?;
    Ok(Outcome::demand(attacked <= clean, format!("accuracy of at most {clean}"), attacked))
}

fn victim_untouched(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let (batch, victim) = classified(seed)?;
    let before = victim.weights.detach().copy();
    candidates(&attack, &batch, &victim).map(drop)?;
    if victim.weights.detach() != before {
        return Ok(Outcome::failed("the victim's weights as they were", "other weights"));
    }
    Ok(Outcome::demand(
        !victim.weights.grad().defined(),
        "no gradient at the victim's weights",
        "a gradient there",
    ))
}

fn classes(plugin: &Plugin, seed: u64) -> Verdict {
    let attack = made(plugin)?;
    let run = |classes| {
        let batch = Batch::new(0..8, classes, Kind::Float, seed);
        run(&attack, &batch, &LinearVictim::new(classes, Kind::Float))
    };
    run(10).map(drop).map_err(|_| Outcome::blocked_by("tensors-result"))?;
    for classes in [2, 3] {
        // A refusal is fine; a panic is none.
        if let Err(error) = run(classes)
            && error.to_string().contains("panicked")
        {
            return Ok(Outcome::failed(
                format!("candidates or a clear refusal for {classes} classes"),
                error,
            ));
        }
    }
    Ok(Outcome::Passed)
}
