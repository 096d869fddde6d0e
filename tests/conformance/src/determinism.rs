//! Checks that results depend on the inputs and the seed only.

use crate::sampler::interacts;
use crate::tensors::{act, demand_same, results};
use crate::toy::{Instance, Numbers, Problem};
use crate::{Check, Outcome, Plugin, Verdict};
use plugin_api::tch::{self, Device, Kind, Tensor};

pub const CHECKS: [Check; 5] = [
    Check::new("determinism-repeats", "the same seed gives the same results", repeats),
    Check::new("determinism-seed", "another seed of the host gives other results", other_seed)
        .of(&["sampler", "attack", "objective"])
        .after(&["determinism-repeats"]),
    Check::new("determinism-instances", "instances do not affect one another", instances)
        .after(&["determinism-repeats"]),
    Check::new("determinism-generator", "libtorch's generator is not used", generator),
    Check::new("determinism-neighbours", "a row does not depend on the rest of its batch", neighbours)
        .after(&["determinism-repeats"]),
];

fn repeats(plugin: &Plugin, seed: u64) -> Verdict {
    let once = || results(plugin, &Problem::new(seed).batch(0..4));
    demand_same(&once()?, &once()?, 0.0, "the same results for the same seed")
}

fn other_seed(plugin: &Plugin, seed: u64) -> Verdict {
    let run = |draws_seed| {
        let mut batch = Problem::new(seed).batch(0..4);
        batch.random = Numbers::new(draws_seed, &batch.points);
        let results = results(plugin, &batch)?;
        Ok((results, batch.victim.trace(), batch.random.draws()))
    };
    let ((one, trace, draws), (other, other_trace, _)) = (run(seed)?, run(seed + 1)?);
    if draws == 0 {
        return Err(Outcome::Skipped("it draws no random number".to_owned()));
    }
    // An attack with random starts may end at the same best point, but its queries differ.
    Ok(Outcome::demand(
        one != other || trace != other_trace,
        format!("other results if the {draws} draws from the host change"),
        "the same results: the draws are not used",
    ))
}

fn instances(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = || Problem::new(seed).batch(0..4);
    let another = Problem::new(seed + 1).batch(0..4);
    let alone = results(plugin, &batch())?;
    let one = Instance::new(plugin, &batch())?;
    act(&Instance::new(plugin, &another)?, &another)?;
    demand_same(&act(&one, &batch())?, &alone, 0.0, "the same results beside another instance")
}

fn generator(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = Problem::new(seed).batch(0..4);
    let instance = Instance::new(plugin, &batch)?;
    let draw = || Tensor::rand([8], (Kind::Double, Device::Cpu));
    tch::manual_seed(seed as i64);
    let expected = draw();
    tch::manual_seed(seed as i64);
    act(&instance, &batch)?;
    Ok(Outcome::demand(
        draw() == expected,
        "random numbers from the host only",
        "libtorch's generator was used or seeded",
    ))
}

fn neighbours(plugin: &Plugin, seed: u64) -> Verdict {
    if interacts(plugin) {
        return Err(Outcome::Skipped("it declares that chains act on one another".to_owned()));
    }
    let problem = Problem { kind: Kind::Double, ..Problem::new(seed) };
    if let Instance::Objective(objective) = Instance::new(plugin, &problem.batch(0..4))?
        && objective.declaration().couples_points
    {
        return Err(Outcome::Skipped("it declares that it couples points".to_owned()));
    }
    let together = results(plugin, &problem.batch(0..4))?;
    let together: Vec<_> = together.iter().map(|result| result.narrow(0, 2, 2)).collect();
    demand_same(&together, &results(plugin, &problem.batch(2..4))?, 1e-6, "the same rows in another batch")
}
