//! Checks for samplers.

use crate::tensors::{demand_same, no_result, results};
use crate::toy::{LinearVictim, Numbers, Problem, THREATS, guarded, mix};
use crate::{Check, Outcome, Plugin, Table, Verdict};
use plugin_api::abi::SamplerInstance;
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::walk::{Call, Visit, Walk};
use plugin_api::{Next, Projection, ThreatModel};

pub const CHECKS: [Check; 8] = [
    Check::new("sampler-begin", "a start of its own is finite and depends on its row only", begin)
        .of(&["sampler"])
        .after(&["tensors-finite"]),
    Check::new(
        "sampler-state",
        "a step returns the declared number of state tensors, shaped like the particles",
        state,
    )
    .of(&["sampler"])
    .after(&["sampler-begin"]),
    Check::new("sampler-zero-gradient", "steps at zero gradient are finite", zero_gradient)
        .of(&["sampler"])
        .after(&["sampler-state"]),
    Check::new("sampler-ascent", "many steps raise a convex loss", ascent)
        .of(&["sampler"])
        .after(&["sampler-state", "determinism-repeats"]),
    Check::new(
        "sampler-projection",
        "a sampler with its own projection stays in ball and domain",
        projection,
    )
    .of(&["sampler"])
    .after(&["sampler-state"]),
    Check::new(
        "sampler-shuffled",
        "a chain does not depend on the other points of its minibatches",
        shuffled,
    )
    .of(&["sampler"])
    .after(&["sampler-state", "determinism-neighbours"]),
    Check::new("sampler-reach", "a sampler that declares a reach beyond the ball goes there", reach)
        .of(&["sampler"])
        .after(&["sampler-state"]),
    Check::new(
        "sampler-interaction",
        "chains that are declared to act on one another do so, in any order of the rows",
        interaction,
    )
    .of(&["sampler"])
    .after(&["sampler-state", "determinism-repeats"]),
];

fn made(plugin: &Plugin) -> Result<SamplerInstance, Outcome> {
    let Table::Sampler(sampler) = &plugin.table else {
        return Err(Outcome::Skipped("not a sampler".to_owned()));
    };
    sampler.create(&plugin.options).map_err(|error| Outcome::failed("an instance", error))
}

/// Whether the plugin is a sampler whose chains act on one another, so that a row depends on its
/// batch.
pub fn interacts(plugin: &Plugin) -> bool {
    made(plugin).is_ok_and(|sampler| sampler.declaration().interacts)
}

/// The threat models of the checks that the sampler supports.
fn supported(sampler: &SamplerInstance) -> impl Iterator<Item = ThreatModel> {
    THREATS.into_iter().filter(|threat| guarded(|| sampler.supports(threat)).is_ok())
}

/// Number of points, with one chain each.
const POINTS: i64 = 8;

/// Steps of a visit.
const STEPS: usize = 4;

/// Chains on the loss of a linear classifier, one for each point. Between visits, the particles are
/// in a store, as in training.
struct Chains<'a> {
    sampler: &'a SamplerInstance,
    problem: Problem,
    victim: LinearVictim,
    natural: Tensor,
    labels: Tensor,
    particles: Tensor,
    state: Vec<Tensor>,
}

impl<'a> Chains<'a> {
    fn new(sampler: &'a SamplerInstance, threat: ThreatModel, seed: u64) -> Self {
        let problem = Problem { kind: Kind::Double, threat, ..Problem::new(seed) };
        let batch = problem.batch(0..POINTS);
        let state = sampler.declaration().fresh_state(&batch.images);
        Self {
            sampler,
            problem,
            victim: batch.victim,
            particles: batch.images.copy(),
            natural: batch.images,
            labels: batch.labels,
            state,
        }
    }

    /// A visit of some points: STEPS steps of their chains, which are then written back to the
    /// store. `visit` decides the random numbers.
    fn visit(&mut self, points: &[i64], visit: u64) -> Result<(), Outcome> {
        let rows = Tensor::from_slice(points);
        let select = |tensor: &Tensor| tensor.index_select(0, &rows);
        let (natural, labels) = (select(&self.natural), select(&self.labels));
        let mut chains = Visit {
            natural: &natural,
            labels: &labels,
            points,
            particles_per_point: 1,
            threat: self.problem.threat,
            particles: select(&self.particles),
            state: self
                .sampler
                .declaration()
                .begin_visit(self.state.iter().map(select).collect(), &select(&self.particles)),
        };
        let at = |chains: &Visit| {
            self.victim.loss_and_gradient(&chains.particles, chains.labels).map_err(no_result)
        };
        Walk { sampler: self.sampler, steps: STEPS }.run(
            &mut chains,
            |due, chains| at(chains).map(|(loss, gradient)| (loss, due.gradient.then_some(gradient))),
            |call| {
                let seed = self.problem.seed ^ mix(visit << 32 | call.stream() as u64);
                perform(self.sampler, call, &Numbers::new(mix(seed), points))
            },
        )?;
        let Visit { particles, state, .. } = chains;
        let _guard = tch::no_grad_guard();
        let stores =
            std::iter::once((&mut self.particles, particles)).chain(self.state.iter_mut().zip(state));
        for (store, rows_of_it) in stores {
            let _ = store.index_copy_(0, &rows, &rows_of_it);
        }
        Ok(())
    }

    /// Visits all points at once.
    fn visit_all(&mut self, visit: u64) -> Result<(), Outcome> {
        self.visit(&(0..POINTS).collect::<Vec<_>>(), visit)
    }

    fn mean_loss(&self) -> Result<f64, Outcome> {
        let (loss, _) = self.victim.loss_and_gradient(&self.particles, &self.labels).map_err(no_result)?;
        Ok(loss.mean(Kind::Double).double_value(&[]))
    }

    fn outside(&self) -> i64 {
        let ball = self.sampler.declaration().ball(&self.problem.threat);
        let inside = ball.contains(&self.particles, &self.natural);
        inside.logical_not().sum(Kind::Int64).int64_value(&[])
    }
}

/// Makes a call of a walk, and fails if the state does not have the declared shapes.
pub fn perform(sampler: &SamplerInstance, call: &Call, random: &Numbers) -> Result<Next, Outcome> {
    let next = guarded(|| call.make(random)).map_err(no_result)?;
    let shapes: Vec<_> = next.state.iter().map(Tensor::size).collect();
    let state = sampler.declaration().state().into_iter();
    let expected: Vec<_> = state.map(|shape| shape.size(&call.visit.particles)).collect();
    if shapes != expected {
        return Err(Outcome::failed(
            format!("state of shapes {expected:?}"),
            format!("shapes {shapes:?} from {}", call.method.name()),
        ));
    }
    Ok(next)
}

fn begin(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    if !sampler.declaration().begins {
        return Err(Outcome::Skipped("it declares no start of its own".to_owned()));
    }
    // The start of the chains of these points, and their state.
    let begun = |points: std::ops::Range<i64>, kind: Kind| -> Result<Vec<Tensor>, Outcome> {
        let problem =
            Problem { kind, threat: supported(&sampler).next().unwrap_or(THREATS[0]), ..Problem::new(seed) };
        let batch = problem.batch(points);
        let mut visit = Visit {
            natural: &batch.images,
            labels: &batch.labels,
            points: &batch.points,
            particles_per_point: 1,
            threat: problem.threat,
            particles: batch.particles.copy(),
            state: sampler.declaration().fresh_state(&batch.images),
        };
        let walk = Walk { sampler: &sampler, steps: STEPS };
        walk.begin(&mut visit, |call| {
            let next = perform(&sampler, call, &Numbers::new(seed, &batch.points))?;
            let like = |tensor: &Tensor| (tensor.size(), tensor.kind(), tensor.device());
            let (got, expected) = (like(&next.particles), like(&batch.images));
            if got != expected {
                return Err(Outcome::failed(format!("{expected:?}"), format!("{got:?} from begin")));
            }
            Ok(next)
        })?;
        Ok(std::iter::once(visit.particles).chain(visit.state).collect())
    };
    for kind in [Kind::Float, Kind::Double] {
        let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        if !begun(0..4, kind)?.iter().all(is_finite) {
            return Ok(Outcome::failed("a finite start", format!("NaN or infinite values ({kind:?})")));
        }
    }
    let repeats = demand_same(
        &begun(0..4, Kind::Float)?,
        &begun(0..4, Kind::Float)?,
        0.0,
        "the same start for the same seed",
    )?;
    if repeats != Outcome::Passed || sampler.declaration().interacts {
        return Ok(repeats);
    }
    let of_last = |tensor: &Tensor| tensor.narrow(0, 2, 2);
    let together: Vec<_> = begun(0..4, Kind::Double)?.iter().map(of_last).collect();
    demand_same(&together, &begun(2..4, Kind::Double)?, 1e-6, "the same start in another batch")
}

fn reach(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    let reach = sampler.declaration().reach;
    if reach == 1.0 {
        return Err(Outcome::Skipped("it declares that it keeps to the ball".to_owned()));
    }
    let threat = supported(&sampler).next().unwrap_or(THREATS[0]);
    let mut chains = Chains::new(&sampler, threat, seed);
    let mut farthest = 0.0f64;
    for visit in 0..VISITS {
        chains.visit_all(visit)?;
        let distances = threat.distance(&chains.particles, &chains.natural);
        farthest = farthest.max(distances.max().double_value(&[]));
    }
    Ok(Outcome::demand(
        farthest > threat.epsilon * (1.0 + 1e-6),
        format!("a particle beyond epsilon = {}: it declares a reach of {reach} epsilon", threat.epsilon),
        format!("at most {farthest:.4} in {VISITS} visits"),
    ))
}

fn interaction(plugin: &Plugin, seed: u64) -> Verdict {
    if !interacts(plugin) {
        return Err(Outcome::Skipped("it declares that chains do not act on one another".to_owned()));
    }
    let problem = Problem { kind: Kind::Double, ..Problem::new(seed) };
    let together = results(plugin, &problem.batch(0..POINTS))?;
    let backwards = results(plugin, &problem.batch((0..POINTS).rev()))?;
    let back: Vec<_> = backwards.iter().map(|result| result.flip([0i64])).collect();
    let verdict = demand_same(&together, &back, 1e-6, "the same chains for any order of the rows")?;
    if verdict != Outcome::Passed {
        return Ok(verdict);
    }
    let some: Vec<_> = together.iter().map(|result| result.narrow(0, 0, POINTS / 2)).collect();
    let alone = results(plugin, &problem.batch(0..POINTS / 2))?;
    if demand_same(&some, &alone, 1e-9, "")? != Outcome::Passed {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Warning(format!(
        "it declares that chains act on one another; a step beside {} others is that beside {}",
        POINTS - 1,
        POINTS / 2 - 1
    )))
}

fn state(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    Chains::new(&sampler, THREATS[0], seed).visit_all(0).map(|()| Outcome::Passed)
}

fn zero_gradient(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    for threat in supported(&sampler) {
        let mut chains = Chains::new(&sampler, threat, seed);
        // Zero weights give a zero gradient.
        chains.victim.weights = chains.victim.weights.zeros_like().set_requires_grad(true);
        chains.visit_all(0)?;
        if chains.particles.isfinite().all().int64_value(&[]) != 1 {
            let norm = threat.norm;
            return Ok(Outcome::failed(
                "finite particles at zero gradient",
                format!("NaN or infinite particles ({norm:?})"),
            ));
        }
    }
    Ok(Outcome::Passed)
}

/// Number of visits in which the loss must rise.
const VISITS: u64 = 12;

fn ascent(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    if sampler.declaration().ascends == Some(false) {
        return Err(Outcome::Skipped("it declares that it does not ascend".to_owned()));
    }
    let mut chains = Chains::new(&sampler, THREATS[0], seed);
    let before = chains.mean_loss()?;
    let mut after = 0.0;
    for visit in 0..VISITS {
        chains.visit_all(visit)?;
        // The loss of a chain that samples rises and falls, so it is averaged over the second half.
        after += if visit < VISITS / 2 { 0.0 } else { chains.mean_loss()? / (VISITS / 2) as f64 };
    }
    // The tolerance is larger than the rounding of a mean.
    if after > before + 1e-9 * before.abs() {
        return Ok(Outcome::Passed);
    }
    let steps = VISITS * STEPS as u64;
    let got = format!("{after:.4} after {steps} steps");
    // A plugin of contract 1.0 cannot declare `ascends`.
    Ok(match sampler.declaration().ascends {
        None => Outcome::Warning(format!("the mean loss went from {before:.4} to {got}")),
        Some(_) => Outcome::failed(format!("a mean loss above {before:.4}, where the chains began"), got),
    })
}

fn projection(plugin: &Plugin, seed: u64) -> Verdict {
    let sampler = made(plugin)?;
    if sampler.declaration().projection == Projection::Host {
        return Err(Outcome::Skipped("the host projects for this sampler".to_owned()));
    }
    for threat in supported(&sampler) {
        let mut chains = Chains::new(&sampler, threat, seed);
        for visit in 0..5 {
            chains.visit_all(visit)?;
            if chains.outside() > 0 {
                return Ok(Outcome::failed(
                    "particles inside ball and domain",
                    format!(
                        "{} of {POINTS} outside after {} steps, {threat:?}",
                        chains.outside(),
                        (visit + 1) * STEPS as u64
                    ),
                ));
            }
        }
    }
    Ok(Outcome::Passed)
}

/// The minibatches of each visit, as lists of points.
type Minibatches = [&'static [&'static [i64]]; 3];

const TOGETHER: Minibatches = [&[&[0, 1, 2, 3, 4, 5, 6, 7]]; 3];

/// Minibatches with other points, sizes and orders in each visit.
const SHUFFLED: Minibatches =
    [&[&[0, 1, 2, 3], &[4, 5, 6, 7]], &[&[6, 0, 3, 5], &[2, 7, 1, 4]], &[&[7], &[1, 0, 6, 2, 5], &[4, 3]]];

fn shuffled(plugin: &Plugin, seed: u64) -> Verdict {
    if interacts(plugin) {
        return Err(Outcome::Skipped("it declares that chains act on one another".to_owned()));
    }
    let ends = |visits: Minibatches| {
        let sampler = made(plugin)?;
        let mut chains = Chains::new(&sampler, THREATS[0], seed);
        for (visit, minibatches) in visits.iter().enumerate() {
            for points in *minibatches {
                chains.visit(points, visit as u64)?;
            }
        }
        Ok(std::iter::once(chains.particles).chain(chains.state).collect::<Vec<_>>())
    };
    demand_same(
        &ends(TOGETHER)?,
        &ends(SHUFFLED)?,
        1e-9,
        "the same particles and state for any shuffling of the points among minibatches",
    )
}
