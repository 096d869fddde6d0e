//! Objectives that each break one rule, and two good ones.

use plugin_api::losses::cross_entropy;
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Batch, Climbs, NoOptions, Objective, Outer, Passes, Result, Setting, export_objective};
use std::cell::Cell;

fn losses(batch: &Batch) -> Tensor {
    cross_entropy(batch.logits, batch.labels)
}

/// An objective whose `outer` is the function given. It declares `climbs`, and whether it couples points.
macro_rules! objective {
    ($name:literal, $objective:ident, $climbs:expr, $couples:expr, $outer:expr) => {
        export_objective!($name, $objective);

        struct $objective;

        impl Objective for $objective {
            type Options = NoOptions;

            fn new(_: NoOptions) -> Result<Self> {
                Ok(Self)
            }

            fn climbs(&self) -> Climbs {
                $climbs
            }

            fn couples_points(&self) -> bool {
                $couples
            }

            fn outer(&self, batch: &Batch) -> Result<Outer> {
                let outer: fn(&Batch) -> Result<Outer> = $outer;
                outer(batch)
            }
        }
    };
}

// The good ones: a loss of each row, and one number for all of them.
objective!("good-rows", GoodRows, Climbs::Outer, false, |batch| Ok(losses(batch).into()));
objective!("good-number", GoodNumber, Climbs::CrossEntropy, true, |batch| {
    Ok(losses(batch).mean(Kind::Float).to_kind(batch.logits.kind()).into())
});

// The gradient of a square root at zero is infinite.
objective!("infinite-gradient", InfiniteGradient, Climbs::CrossEntropy, false, |batch| {
    Ok((losses(batch) * 0.0).sqrt().into())
});
// The first row counts for more.
objective!("minds-the-order", MindsTheOrder, Climbs::CrossEntropy, true, |batch| {
    let losses = losses(batch);
    Ok((losses.get(0) * 0.5 + losses.mean(losses.kind())).into())
});
// Less the mean of the minibatch.
objective!("couples-in-secret", CouplesInSecret, Climbs::CrossEntropy, false, |batch| {
    let losses = losses(batch);
    Ok((&losses - losses.mean(losses.kind()) * 0.5).into())
});
// Neighbouring rows are not always particles of one point.
objective!("groups-in-pairs", GroupsInPairs, Climbs::CrossEntropy, false, |batch| {
    let losses = losses(batch);
    if batch.particles_per_point == 1 {
        return Ok(losses.into());
    }
    Ok(((&losses + losses.roll(1, 0)) * 0.5).into())
});
export_objective!("keeps-state-in-itself", KeepsStateInItself);

/// Weighs the loss by the number of its calls.
struct KeepsStateInItself {
    calls: Cell<f64>,
}

impl Objective for KeepsStateInItself {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { calls: Cell::new(1.0) })
    }

    fn state(&self, _: &Setting) -> Vec<(&'static str, Tensor)> {
        vec![("calls", Tensor::zeros([1], tch::kind::FLOAT_CPU))]
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let calls = self.calls.replace(self.calls.get() + 1.0);
        Ok(Outer { loss: losses(batch) * calls, state: vec![&batch.state[0] + 1.0] })
    }
}

export_objective!("declares-no-passes", DeclaresNoPasses);

/// Calls the network twice for each row, and declares once.
struct DeclaresNoPasses;

impl Objective for DeclaresNoPasses {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn passes(&self) -> Passes {
        Passes { per_point: 0, per_particle: 1 }
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let [one, other] = [(); 2].map(|()| batch.network.logits(batch.natural, true));
        let natural = (one? + other?) * 0.5;
        Ok((losses(batch) + cross_entropy(&natural, batch.labels)).into())
    }
}

export_objective!("calls-backward", CallsBackward);

/// Calls `backward`, which leaves gradients in the network's weights.
struct CallsBackward;

impl Objective for CallsBackward {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn passes(&self) -> Passes {
        Passes { per_point: 0, per_particle: 1 }
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let logits = batch.network.logits(batch.natural, true)?;
        cross_entropy(&logits, batch.labels).sum(logits.kind()).f_backward()?;
        Ok(losses(batch).into())
    }
}

export_objective!("has-no-graph", HasNoGraph);

/// Returns a loss without a graph if it is asked to train.
struct HasNoGraph;

impl Objective for HasNoGraph {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        Ok(losses(batch).detach().into())
    }
}
