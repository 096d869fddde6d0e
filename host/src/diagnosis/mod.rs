//! How far the particles of a run are from the law of its inner problem.
//!
//! `setup` opens the run; then each part is measured and kept in turn: where the particles are, how
//! adversarial some distributions are (`chains`), the laws of a ladder of lambdas (`ladder`), their
//! exact values where a model is softmax regression (`exact`), and what either player could gain
//! (`game`). `record` is what comes out.

mod chains;
mod exact;
mod game;
mod ladder;
pub mod record;
mod setup;

pub use setup::DiagnosisOptions;

use crate::data::examples::repeat_rows;
use crate::data::pairs::Points;
use crate::law::dual::{integrate, order};
use crate::law::effective::effective;
use crate::law::faces::Tally;
use crate::law::sampling::{Chains, Subject, Trace, Visits};
use crate::law::{Rung, transport};
use crate::plugin::Sampler;
use crate::run::{self, Versions, checkpoint};
use crate::torch::arithmetic::Arithmetic;
use crate::training::store;
use crate::util::console::{Indicator, Style};
use crate::util::files;
use crate::util::interrupt::{heed, refuse_if_stopped};
use crate::{Error, Result};
use chains::{level, summary};
use exact::Affine;
use ladder::{Ladder, State};
use plugin_api::Start;
use record::{Diagnosis, LawAt, Level, Losses, Particles};
use setup::{Setup, differences};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tch::{Kind, Tensor};

/// Uniform draws of each point.
const UNIFORM_DRAWS: usize = 64;

/// The name of the file in a run's folder.
pub const FILE: &str = "diagnosis.json";

/// The folder of a diagnosis under way, in the run's folder.
const UNFINISHED: &str = "unfinished-diagnosis";

/// Diagnoses the run in this folder, and writes `diagnosis.json`. A diagnosis of the same settings
/// that was interrupted is continued, and one that is finished is returned. Progress is shown in
/// this style.
///
/// # Errors
/// If the run cannot be diagnosed, holds a diagnosis of other settings, a plugin or the disk fails,
/// or the user stops.
pub fn diagnose(
    path: &Path,
    options: &DiagnosisOptions,
    style: Style,
    stop: &AtomicBool,
) -> Result<Diagnosis> {
    let setup = Setup::open(path, options)?;
    let place = setup.folder.path();
    let file = place.join(FILE);
    let fresh = setup.fresh()?;
    if let Some(earlier) = if options.replace { None } else { read(place)? } {
        if earlier.settings == fresh.settings {
            return Ok(earlier);
        }
        refuse_other(&file, &earlier, &fresh, options)?;
    }
    let unfinished = place.join(UNFINISHED);
    let begun = || checkpoint::load::<Diagnosis>(&unfinished, &["state"]);
    if let Some(other) = begun()?.filter(|saved| saved.progress.settings != fresh.settings) {
        refuse_other(&unfinished, &other.progress, &fresh, options)?;
    }
    let Some(_lock) = files::lock(&place.join(".diagnosis.lock"))? else {
        return Err(Error::new(format!("another process is diagnosing {}", path.display()))
            .fix("wait for it or stop it"));
    };
    let (mut diagnosis, mut state, mut done) = (fresh, State::new(), 0);
    match begun()? {
        Some(mut saved) if saved.progress.settings == diagnosis.settings => {
            (diagnosis, done) = (saved.progress, saved.update);
            state = saved.groups.remove("state").unwrap_or_default();
        }
        Some(_) => {
            files::remove_folder(&unfinished).map_err(|why| Error::file("remove", &unfinished, why))?;
        }
        None => {}
    }
    setup.measure(&mut diagnosis, &mut state, done, (style, stop), &unfinished)?;
    files::write_sealed(&file, [serde_json::to_string_pretty(&diagnosis)])?;
    files::remove_folder(&unfinished).map_err(|why| Error::file("remove", &unfinished, why).on_the_way())?;
    Ok(diagnosis)
}

/// The diagnosis of the run in this folder; none if there is none.
///
/// # Errors
/// If it is damaged.
pub fn read(folder: &Path) -> Result<Option<Diagnosis>> {
    let file = folder.join(FILE);
    if !file.exists() {
        return Ok(None);
    }
    files::read_sealed(&file)
        .map(Some)
        .map_err(|why| why.fix("diagnose the run again with --replace, or move the file away"))
}

fn refuse_other(
    file: &Path,
    earlier: &Diagnosis,
    wanted: &Diagnosis,
    options: &DiagnosisOptions,
) -> Result<()> {
    if options.replace {
        return Ok(());
    }
    let differences = differences(&earlier.settings, &wanted.settings).join(", ");
    let file = crate::error::shown(file);
    Err(Error::new(format!("{file} holds a diagnosis with other settings: they differ in {differences}"))
        .fix("give the same options as then, or replace it with --replace"))
}

/// How a measurement is stopped, and what it tells of its passes.
struct Measuring<'a> {
    stop: &'a AtomicBool,
    advance: &'a dyn Fn(u64),
}

impl Setup<'_> {
    /// A diagnosis in which nothing is measured yet.
    fn fresh(&self) -> Result<Diagnosis> {
        let law =
            |lambda| LawAt { lambda, from_uniform: None, from_maximum: None, mixing: None, exact: None };
        Ok(Diagnosis {
            command: run::command(),
            begun: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            settings: self.settings()?,
            versions: Versions::current(),
            arithmetic: Arithmetic::current(self.device)?,
            passes: 0,
            particles: None,
            losses: None,
            chain: None,
            beside: Vec::new(),
            laws: std::iter::once(0.0).chain(ladder::rungs(&self.lambdas)).map(law).collect(),
            effective_of_stored: None,
            effective_of_chain: None,
            dual: Vec::new(),
            order: Vec::new(),
            game: None,
            transfer: Vec::new(),
        })
    }

    /// Measures what is not measured yet. What there is, is kept after each part.
    fn measure(
        &self,
        diagnosis: &mut Diagnosis,
        state: &mut State,
        done: u64,
        (style, stop): (Style, &AtomicBool),
        unfinished: &Path,
    ) -> Result<()> {
        heed();
        let subject = self.subject()?;
        let ladder = |advance| Ladder {
            subject: &subject,
            spec: &self.options.law_sampler,
            copies: self.options.chains,
            steps: self.options.steps,
            stop,
            advance,
        };
        let total = self.passes(&ladder(&|_| {}), diagnosis)?;
        let template = "{msg} [{bar:30}] {percent}% {eta} left";
        let status = Indicator::new(style, total, "passes", template);
        status.begin_at(diagnosis.passes);
        let part = std::cell::Cell::new("particles");
        let advance = |passes: u64| status.show(status.position() + passes, || part.get().to_owned());
        let (number, ladder) = (std::cell::Cell::new(done), ladder(&advance));
        let save = |diagnosis: &Diagnosis, state: &State| {
            let mut diagnosis = diagnosis.clone();
            diagnosis.passes = status.position();
            number.set(number.get() + 1);
            let tensors = state.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
            let groups = [("state".to_owned(), tensors)].into();
            checkpoint::save(unfinished, number.get(), &groups, &diagnosis)
        };
        let measuring = Measuring { stop, advance: &advance };

        if diagnosis.particles.is_none() {
            let show = || status.show(status.position(), || "comparing training points".to_owned());
            diagnosis.particles = Some(self.particles(&subject, &show, stop)?);
            save(diagnosis, state)?;
        }
        part.set("losses");
        if diagnosis.losses.is_none() || !state.contains_key("maximum") {
            let (losses, uniform, maximum) = self.losses(&subject, &measuring)?;
            state.insert("maximum".to_owned(), maximum);
            diagnosis.losses = Some(losses);
            if let Some(law) = diagnosis.laws.first_mut() {
                law.from_uniform = Some(uniform);
            }
            save(diagnosis, state)?;
        }
        part.set("the run's chain");
        if diagnosis.chain.is_none() {
            diagnosis.chain = Some(self.own_chain(&subject, &measuring)?);
            save(diagnosis, state)?;
        }
        part.set("other samplers");
        for sampler in &self.beside[diagnosis.beside.len()..] {
            let beside = self.run_beside(&subject, sampler, &measuring)?;
            diagnosis.beside.push(beside);
            save(diagnosis, state)?;
        }
        part.set("the law at each lambda");
        let maximum = state.get("maximum").map(Tensor::shallow_clone).unwrap_or_default();
        ladder.climb(diagnosis, state, &maximum.to_device(self.device), &save)?;
        self.compare(diagnosis)?;
        part.set("exact values");
        if let Some(affine) = Affine::of(&subject)? {
            for place in 1..diagnosis.laws.len() {
                let lambda = diagnosis.laws[place].lambda;
                let is_due = diagnosis.laws[place].exact.is_none() && self.lambdas.contains(&lambda);
                if is_due && affine.check(lambda).is_ok() {
                    let exact = affine.values(&subject, &diagnosis.laws[..=place], stop, &advance)?;
                    diagnosis.laws[place].exact = Some(exact);
                    save(diagnosis, state)?;
                }
            }
        }
        diagnosis.transfer = self.transfer()?;
        part.set("a classifier trained anew");
        if diagnosis.game.is_none() && self.options.anew_epochs > 0 {
            diagnosis.game = Some(self.game(diagnosis, stop, &advance)?);
            save(diagnosis, state)?;
        }
        diagnosis.passes = status.position();
        status.finish();
        Ok(())
    }

    /// Passes that all parts together take.
    fn passes(&self, ladder: &Ladder, diagnosis: &Diagnosis) -> Result<u64> {
        let of_visits = |sampler: &Sampler, visits: usize| (sampler.evaluations(sampler.steps) + 1) * visits;
        let rows = self.points.len() * self.options.chains;
        let maximiser = of_visits(&self.maximiser, 1) * rows;
        let chains = std::iter::once(&self.sampler).chain(&self.beside);
        let own: usize = chains.map(|sampler| of_visits(sampler, self.visits_of(sampler)) * rows).sum();
        let anew = self.options.anew_epochs * self.examples.len() * self.particles_per_point();
        Ok((maximiser + own + anew) as u64 + ladder.passes(diagnosis.laws.len() - 1)?)
    }

    /// Visits of a sampler that have the steps that were asked for.
    fn visits_of(&self, sampler: &Sampler) -> usize {
        let least = 2 * crate::law::chain::FEWEST_DRAWS;
        (self.options.steps / sampler.steps).max(least)
    }

    /// Where the particles of the whole store are.
    fn particles(&self, subject: &Subject, show: &(dyn Fn() + Sync), stop: &AtomicBool) -> Result<Particles> {
        let (copies, threat) = (self.particles_per_point(), subject.threat);
        let rounding = || store::rounding(self.experiment.train.store, &threat);
        let (mut stored, mut uniform) = (Tally::new(threat, rounding()), Tally::new(threat, rounding()));
        let points = Points::new(&self.dataset.train, self.examples.len())?;
        let go_on = |_| {
            show();
            !stop.load(Ordering::Relaxed)
        };
        let close = points.close_points(threat.norm, threat.epsilon, &go_on)?;
        refuse_if_stopped(stop)?;
        let close = close.unwrap_or_default();
        // The largest distance of a particle from its point, over points that have no other nearby and
        // over all.
        let (mut farthest_alone, mut farthest): (f64, f64) = (0.0, 0.0);
        let is_close = Tensor::zeros([self.examples.len() as i64], (Kind::Bool, self.device));
        let close_indices = Tensor::from_slice(&close).to_device(self.device);
        let _ = is_close.shallow_clone().index_fill_(0, &close_indices, 1);
        let all = Tensor::arange(self.examples.len() as i64, (Kind::Int64, self.device));
        for indices in all.split(store::POINTS_AT_A_TIME, 0) {
            refuse_if_stopped(stop)?;
            let natural = repeat_rows(&self.examples.batch(&indices)?.0, copies);
            let particles = self.stores.load_any(&indices, &natural).particles;
            stored.add(&particles, &natural)?;
            let is_close = repeat_rows(&is_close.index_select(0, &indices), copies);
            let distances = threat.distance(&particles, &natural);
            farthest = farthest.max(distances.max().double_value(&[]));
            let alone = distances.masked_fill(&is_close, 0.0);
            farthest_alone = farthest_alone.max(alone.max().double_value(&[]));
        }
        uniform.add(&subject.uniform("uniform", UNIFORM_DRAWS)?, &subject.repeated(UNIFORM_DRAWS))?;
        // A particle of a point without others nearby comes from that point. Where such a particle is
        // the farthest, up to rounding, no other assignment of the rest makes the distance smaller.
        let w_infinity = if farthest - farthest_alone <= 1e-6 * (1.0 + threat.epsilon) {
            farthest
        } else {
            let natural = self.examples.batch(&close_indices)?.0;
            let particles = self.stores.load_any(&close_indices, &repeat_rows(&natural, copies)).particles;
            farthest_alone.max(transport::distance(&particles, &natural, &threat)?.w_infinity)
        };
        let none = || Error::new("the run has no particles");
        Ok(Particles {
            places: stored.places()?.ok_or_else(none)?,
            uniform: uniform.places()?.ok_or_else(none)?,
            w_infinity,
            close_points: close.len(),
        })
    }

    /// How adversarial some distributions are; the summary of uniform draws; where the maximiser's
    /// chains end, `[P * K, C, H, W]`.
    fn losses(&self, subject: &Subject, measuring: &Measuring) -> Result<(Losses, record::Chain, Tensor)> {
        let copies = self.options.chains;
        let uniform = subject.uniform("uniform", UNIFORM_DRAWS)?;
        let (losses, accuracy) = subject.losses(&uniform, UNIFORM_DRAWS)?;
        // Draws of a point are independent: each may stand for a visit of one chain.
        let trace = Trace { losses: losses.reshape([-1, UNIFORM_DRAWS as i64]).tr(), figures: None };
        let summed = summary(None, &trace, 1)?;
        let uniform =
            Level { mean: summed.mean, error: summed.error, accuracy, per_point: summed.per_point.clone() };
        let start = subject.uniform("maximum", copies)?;
        let mut chains = Chains::begin(&self.maximiser, start);
        let visits = Visits { name: "maximum", count: 1, stop: measuring.stop, advance: measuring.advance };
        let kept = Start::Store;
        subject.run(&self.maximiser, kept, &mut chains, copies, &visits)?;
        let (at_ends, accuracy) = subject.losses(&chains.particles, copies)?;
        let largest: Vec<f64> = Vec::try_from(at_ends.reshape([-1, copies as i64]).amax([1], false))?;
        let mean = largest.iter().sum::<f64>() / largest.len() as f64;
        let maximum = Level { mean, error: 0.0, accuracy, per_point: largest };
        let natural = level(subject, &subject.natural, 1)?;
        let stored = level(subject, &self.stored(subject).particles, self.particles_per_point())?;
        Ok((Losses { natural, uniform, stored, maximum }, summed, chains.particles))
    }

    /// The run's own sampler from its stored particles, at fixed weights.
    fn own_chain(&self, subject: &Subject, measuring: &Measuring) -> Result<record::Chain> {
        let copies = self.options.chains;
        // Chains of a point begin at its particles, in turn.
        let stored = self.stored(subject);
        let each = self.particles_per_point() as i64;
        let rows = (0..subject.points.len() as i64)
            .flat_map(|point| (0..copies as i64).map(move |chain| point * each + chain % each));
        let rows = Tensor::from_slice(&rows.collect::<Vec<_>>()).to_device(self.device);
        let select = |tensor: &Tensor| tensor.index_select(0, &rows);
        let particles = select(&stored.particles);
        let state = stored.state.iter().map(select).collect();
        let state = self.sampler.declaration().begin_visit(state, &particles);
        let mut chains = Chains { particles, state };
        self.second_half(subject, &self.sampler, ("own", self.start), &mut chains, measuring)
    }

    /// Another sampler at the same weights, from natural examples or where it begins by itself.
    fn run_beside(
        &self,
        subject: &Subject,
        sampler: &Sampler,
        measuring: &Measuring,
    ) -> Result<record::Beside> {
        let written = sampler.record.spec.clone();
        let natural = subject.repeated(self.options.chains);
        let mut chains = Chains::begin(sampler, natural.shallow_clone());
        let how = (written.as_str(), sampler.declaration().start);
        let chain = self.second_half(subject, sampler, how, &mut chains, measuring)?;
        let mut places = Tally::new(subject.threat, None);
        places.add(&chains.particles, &natural)?;
        let places = places.places()?.ok_or_else(|| Error::new("there are no chains"))?;
        Ok(record::Beside { sampler: written, chain, places, effective: None })
    }

    /// What chains say in the second half of their steps; the first is forgotten.
    fn second_half(
        &self,
        subject: &Subject,
        sampler: &Sampler,
        (name, start): (&str, Start),
        chains: &mut Chains,
        measuring: &Measuring,
    ) -> Result<record::Chain> {
        let (copies, count) = (self.options.chains, self.visits_of(sampler) / 2);
        let half = Visits { name, count, stop: measuring.stop, advance: measuring.advance };
        let trace = subject.second_half(sampler, start, chains, copies, &half)?;
        summary(Some(sampler), &trace, copies)
    }

    /// What follows from the laws: the effective lambdas, the dual values and their order.
    fn compare(&self, diagnosis: &mut Diagnosis) -> Result<()> {
        let rungs: Vec<Rung> = diagnosis.laws.iter().filter_map(LawAt::rung).collect();
        let (Some(losses), Some(chain)) = (&mut diagnosis.losses, &diagnosis.chain) else { return Ok(()) };
        // The stored particles are draws, too: as many as there are, at every point.
        let variances = chain.variance_per_point.iter().sum::<f64>() / self.particles_per_point() as f64;
        losses.stored.error = variances.sqrt() / self.points.len() as f64;
        diagnosis.effective_of_stored = effective(&rungs, losses.stored.mean, losses.stored.error);
        diagnosis.effective_of_chain = effective(&rungs, chain.mean, chain.error);
        for beside in &mut diagnosis.beside {
            beside.effective = effective(&rungs, beside.chain.mean, beside.chain.error);
        }
        diagnosis.dual = integrate(&rungs)?;
        diagnosis.order = order(&rungs, losses.maximum.mean)?;
        Ok(())
    }
}
