use super::library::{self, Kind, Opened, open_attack};
use super::{
    LoadedModel, Owned, Pixels, PluginSpec, Record, Sampler, Threat, Visit, call, check_like, fresh_start,
};
use crate::torch::finite::FiniteCheck;
use crate::torch::random::Draws;
use crate::util::interrupt::{self, NEVER};
use crate::{Error, Result};
use plugin_api::abi::AttackInstance;
use plugin_api::losses::{self, cross_entropy};
use plugin_api::{Task, ThreatModel, VictimCalls};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Kind as Dtype, Tensor};

/// An attack for evaluation: an attack plugin, or a sampler. The candidate of a sampler is the last
/// iterate of its chain from a fresh start.
pub struct Attack {
    kind: AttackKind,
    name: String,
    key: String,
    query_budget: Option<u64>,
    /// The record of the plugin.
    pub record: Record,
}

enum AttackKind {
    Plugin(Owned<AttackInstance>),
    Sampler(Box<Sampler>),
}

impl Attack {
    /// Makes the attack or sampler that `spec` names.
    ///
    /// # Errors
    /// If the plugin cannot be opened or refuses its options.
    pub fn make(spec: &PluginSpec) -> Result<Self> {
        let (_, manifest) = library::choose(spec, &[Kind::Attack, Kind::Sampler])?;
        let name = manifest.name;
        let key = format!("{name} {}", spec.attack_options());
        if manifest.kind == Kind::Sampler {
            let sampler = Sampler::make(spec)?;
            let record = sampler.record.clone();
            return Ok(Self {
                kind: AttackKind::Sampler(Box::new(sampler)),
                name,
                key,
                query_budget: None,
                record,
            });
        }
        let Opened { plugin, record, options, .. } = open_attack(spec)?;
        let _guard = tch::no_grad_guard();
        let create = || plugin.create(&options);
        let instance = call(&name, "new", [], create).map_err(|error| spec.error(error))?;
        let declaration = call(&name, "declare", [], || instance.declaration())?;
        let query_budget = declaration.query_budget;
        Ok(Self { kind: AttackKind::Plugin(Owned::new(&name, instance)), name, key, query_budget, record })
    }

    /// Whether it supports this threat model and can attack models of this task.
    ///
    /// # Errors
    /// If not: the reason.
    pub fn supports(&self, threat: &Threat, task: &Task) -> Result<()> {
        let threat = &threat.ball();
        let supported = match &self.kind {
            AttackKind::Plugin(instance) => call(&self.name, "supports", [], || {
                instance.supports(threat)?;
                instance.supports_task(task)
            }),
            AttackKind::Sampler(sampler) => sampler.keeps_to_ball().and_then(|()| sampler.supports(threat)),
        };
        supported.map_err(|error| Error::new(error).fix("choose other attacks with --attack"))
    }

    /// Refuses a sampler whose chains act on one another: the shards of an evaluation would give other
    /// candidates than the whole.
    ///
    /// # Errors
    /// If it is one.
    pub fn runs_in_shards(&self) -> Result<()> {
        match &self.kind {
            AttackKind::Sampler(sampler) if sampler.declaration().interacts => Err(Error::new(format!(
                "{}: its chains act on one another, so that a shard of the points would give other candidates",
                self.name
            ))
            .fix("evaluate all points in one process, without --shard")),
            _ => Ok(()),
        }
    }

    /// The most forward and backward passes of a point, where they are known.
    pub fn most_passes(&self) -> (Option<u64>, Option<u64>) {
        match &self.kind {
            AttackKind::Plugin(_) => (self.query_budget, None),
            AttackKind::Sampler(sampler) => {
                let [forward, backward] =
                    [sampler.evaluations(sampler.steps), sampler.gradients(sampler.steps)];
                (Some(forward as u64), Some(backward as u64))
            }
        }
    }

    /// Refuses a result that took more forward passes than the plugin declares.
    fn check_query_budget(&self, forward_passes: u64, points: u64) -> Result<()> {
        match self.query_budget {
            Some(budget) if forward_passes > budget.saturating_mul(points) => Err(Error::new(format!(
                "{}: run took {forward_passes} forward passes for {points} points; it declares at most {budget} per point",
                self.name
            ))
            .on_the_way()),
            _ => Ok(()),
        }
    }

    /// The key of its random numbers: the plugin's name and the given options, but not the path of
    /// the file. An option that is given with its default value changes the key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it runs on one point at a time: nothing else tells the host which example an image belongs
    /// to that a plugin hands to the victim.
    pub fn takes_points_alone(&self, threat: &Threat) -> bool {
        !threat.is_one_radius() && matches!(self.kind, AttackKind::Plugin(_))
    }

    /// One candidate per example, inside ball and domain.
    ///
    /// # Errors
    /// If the plugin fails, returns a tensor of another shape, dtype or device, or returns points
    /// outside the threat model; an interruption if the victim refused a call because of a stop,
    /// whatever the plugin made of that.
    pub fn run(
        &self,
        victim: &CountedVictim,
        (natural, labels): (&Tensor, &Tensor),
        points: &[i64],
        threat: &Threat,
        draws: &Draws,
    ) -> Result<Candidates> {
        let _guard = tch::no_grad_guard();
        if !self.takes_points_alone(threat) {
            return self.run_together(victim, (natural, labels), points, threat, draws);
        }
        let alone = (0..points.len()).map(|row| {
            let [natural, labels] = [natural, labels].map(|tensor| tensor.narrow(0, row as i64, 1));
            let points = &points[row..=row];
            let candidate =
                self.run_together(victim, (&natural, &labels), points, threat, &draws.row(row))?;
            Ok(candidate.images)
        });
        Ok(Candidates { images: Tensor::f_cat(&alone.collect::<Result<Vec<_>>>()?, 0)?, moved: None })
    }

    /// As [`Attack::run`], all points in one call.
    fn run_together(
        &self,
        victim: &CountedVictim,
        (natural, labels): (&Tensor, &Tensor),
        points: &[i64],
        threat: &Threat,
        draws: &Draws,
    ) -> Result<Candidates> {
        let (images, ball, before) = (natural, threat.ball(), victim.forward_passes.get());
        let natural = &threat.natural(images);
        let pixels = &threat.pixels(images, natural, 1);
        let seen = SeenVictim { victim, pixels };
        let outcome = match &self.kind {
            AttackKind::Plugin(instance) => {
                let classes = victim.model.classes();
                let lent =
                    [("natural", natural), ("labels", labels)].into_iter().chain(victim.model.lent(false));
                let run = || instance.run((natural, labels), points, classes, ball, &seen, draws);
                call(&self.name, "run", lent, run).map(|images| Candidates { images, moved: None })
            }
            AttackKind::Sampler(sampler) => {
                run_sampler(sampler, &seen, (natural, labels), points, ball, draws)
            }
        };
        if victim.has_refused() {
            return Err(interrupt::interrupted());
        }
        let candidates = outcome?;
        self.check_query_budget(victim.forward_passes.get() - before, points.len() as u64)?;
        let images = &candidates.images;
        check_like(&self.name, "run", images, &natural.size(), natural)?;
        let outside = ball.contains(images, natural).logical_not().sum(Dtype::Int64).int64_value(&[]);
        if outside > 0 {
            let message = format!(
                "{}: run returned {outside} of {} candidates outside the threat model (or not finite)",
                self.name,
                points.len()
            );
            return Err(Error::new(message).fix("project candidates with ThreatModel::project").on_the_way());
        }
        if pixels.are_same() {
            return Ok(candidates);
        }
        // The change of coordinates may round beyond the end of the domain.
        let images = pixels.of(images).map_err(Error::new)?.clamp(ball.domain.0, ball.domain.1);
        Ok(Candidates { images, ..candidates })
    }
}

/// The result of an attack on a batch.
pub struct Candidates {
    /// The candidates, `[N, C, H, W]`.
    pub images: Tensor,
    /// How far the chains of a sampler moved from where they began, as a share of epsilon, `[N]`. An
    /// attack plugin does not say, and without a radius there is no share.
    pub moved: Option<Tensor>,
}

fn run_sampler(
    sampler: &Sampler,
    victim: &SeenVictim,
    (natural, labels): (&Tensor, &Tensor),
    points: &[i64],
    threat: ThreatModel,
    draws: &Draws,
) -> Result<Candidates> {
    let mut watch = FiniteCheck::new("step", natural.device());
    let mut visit = Visit {
        natural,
        labels,
        points,
        particles_per_point: 1,
        threat,
        particles: fresh_start(sampler.declaration().start, natural, &threat, draws)?,
        state: sampler.declaration().fresh_state(natural),
    };
    sampler.begin(&mut visit, draws, &mut watch)?;
    let starts = visit.particles.shallow_clone();
    sampler.walk().steps(
        &mut visit,
        |due, visit| {
            if !due.gradient {
                let logits = victim.logits(&visit.particles).map_err(on_the_way)?;
                return Ok((cross_entropy(&logits, labels), None));
            }
            let (logits, leaf) = victim.differentiable(&visit.particles).map_err(on_the_way)?;
            let loss = tch::with_grad(|| cross_entropy(&logits, labels));
            let gradient = victim.input_gradient(&loss, &leaf).map_err(on_the_way)?;
            Ok((loss.detach(), Some(gradient)))
        },
        |call| {
            // `finish` counts as part of the last step.
            watch.at(sampler.steps.min(call.number + 1) as u64);
            sampler.perform(call, draws, &mut watch)
        },
    )?;
    watch.read()?;
    let changing = victim.pixels.of_changing(&visit.particles, &starts);
    let moved = (threat.epsilon > 0.0).then(|| threat.distance(&changing, &starts) / threat.epsilon);
    Ok(Candidates { images: visit.particles, moved })
}

/// A victim that is handed images in the coordinates of plugins.
struct SeenVictim<'a> {
    victim: &'a CountedVictim<'a>,
    pixels: &'a Pixels,
}

impl VictimCalls for SeenVictim<'_> {
    fn logits(&self, images: &Tensor) -> plugin_api::Result<Tensor> {
        self.victim.logits(&self.pixels.of(images)?)
    }

    fn differentiable(&self, images: &Tensor) -> plugin_api::Result<(Tensor, Tensor)> {
        self.victim.differentiable(&self.pixels.of(images)?)
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> plugin_api::Result<Tensor> {
        Ok(self.pixels.gradient(self.victim.input_gradient(loss, leaf)?))
    }
}

fn on_the_way(error: plugin_api::Error) -> Error {
    Error::new(error).on_the_way()
}

/// How long an attack may go on asking after its victim has refused to answer.
const STUBBORN: Duration = Duration::from_secs(2);

/// The model under attack, in evaluation mode. Every row of every call is counted. Once the user
/// wants to stop, every call is refused: an attack with many calls in a batch ends within one of them.
pub struct CountedVictim<'a> {
    model: &'a LoadedModel,
    observer: &'a dyn Fn(u64),
    stop: &'a AtomicBool,
    /// When a call was refused for the first time.
    refused: Cell<Option<Instant>>,
    /// Forward passes of single examples so far.
    pub forward_passes: Cell<u64>,
    /// Backward passes of single examples so far.
    pub backward_passes: Cell<u64>,
}

impl<'a> CountedVictim<'a> {
    /// A victim whose counters are at zero, and which nothing stops.
    pub fn new(model: &'a LoadedModel) -> Self {
        Self::observed(model, &|_| {}, &NEVER)
    }

    /// The same, and `observer` is given the number of forward passes after each call. It must not
    /// wait for the device. Once `stop` is set, every call is refused.
    pub fn observed(model: &'a LoadedModel, observer: &'a dyn Fn(u64), stop: &'a AtomicBool) -> Self {
        let (forward_passes, backward_passes) = (Cell::new(0), Cell::new(0));
        Self { model, observer, stop, refused: Cell::new(None), forward_passes, backward_passes }
    }

    /// Whether a call was refused because of a stop.
    pub fn has_refused(&self) -> bool {
        self.refused.get().is_some()
    }

    /// Refuses a call once the user wants to stop. An attack that goes on asking holds the process,
    /// which then ends here: what lies on the disk is whole at any moment.
    fn refuse_if_stopped(&self) -> plugin_api::Result<()> {
        if !self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let first = self.refused.get().unwrap_or_else(Instant::now);
        self.refused.set(Some(first));
        if first.elapsed() > STUBBORN {
            let attack = super::running::running().unwrap_or_else(|| "an attack".to_owned());
            interrupt::end(&format!(
                "stopped while {attack} went on asking the model, which no longer answered; what was found before is kept"
            ));
        }
        Err(plugin_api::Error::new("the user wants to stop: return this error"))
    }

    fn count_forward(&self, images: &Tensor) {
        count(&self.forward_passes, images);
        (self.observer)(self.forward_passes.get());
    }
}

fn count(counter: &Cell<u64>, rows: &Tensor) {
    counter.set(counter.get() + rows.size()[0] as u64);
}

impl VictimCalls for CountedVictim<'_> {
    fn logits(&self, images: &Tensor) -> plugin_api::Result<Tensor> {
        self.refuse_if_stopped()?;
        let logits = self.model.logits(images).map_err(plugin_api::Error::new)?;
        self.count_forward(images);
        Ok(logits)
    }

    fn differentiable(&self, images: &Tensor) -> plugin_api::Result<(Tensor, Tensor)> {
        self.refuse_if_stopped()?;
        let leaf = images.detach().set_requires_grad(true);
        let logits = self.model.forward(&leaf, false).map_err(plugin_api::Error::new)?;
        self.count_forward(images);
        Ok((logits, leaf))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> plugin_api::Result<Tensor> {
        self.refuse_if_stopped()?;
        let total = tch::with_grad(|| loss.f_sum(loss.kind()))?;
        let gradient = losses::gradient(&total, leaf, true).map_err(|why| {
            plugin_api::Error::new(format!(
                "the gradient with respect to the images cannot be computed: {why}"
            ))
        })?;
        count(&self.backward_passes, leaf);
        Ok(gradient)
    }
}
