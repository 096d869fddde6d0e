//! The particle store: K particles of every training point, kept for the whole run.

use super::slots::{self, SLOTS, Slots};
use crate::config::{Format, IN_RUN, Train};
use crate::data::examples::{Part, repeat_rows};
use crate::error::shown;
use crate::law::faces::Rounding;
use crate::plugin::{Threat, fresh_start, uniform_in_box};
use crate::torch::random::{Draws, Purpose};
use crate::util::{files, pulse};
use crate::{Error, Result};
use plugin_api::abi::StateShape;
use plugin_api::{Norm, Start, ThreatModel};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The store is filled in parts, so that no second copy of it is in memory.
pub const POINTS_AT_A_TIME: i64 = 1000;

/// Numbers (f32) of such a part, at most: 128 MB of them.
const NUMBERS_AT_A_TIME: i64 = 1 << 25;

/// The points in parts, on the device, for work on so many particles of each.
fn parts(examples: &Part, particles_per_point: usize) -> Vec<Tensor> {
    let numbers = examples.shape()[1..].iter().product::<i64>() * particles_per_point as i64;
    let points = (NUMBERS_AT_A_TIME / numbers.max(1)).clamp(1, POINTS_AT_A_TIME);
    Tensor::arange(examples.count() as i64, (Kind::Int64, examples.device())).split(points, 0)
}

/// Number of quantisation steps from the natural example to the surface of the ball in
/// [`Format::U8`].
const STEPS: f64 = 127.0;

/// Chains of B points: the particles and their sampler state, `[B * K, ...]` each (f32).
#[derive(Debug)]
pub struct Stored {
    /// The particles.
    pub particles: Tensor,
    /// The state tensors of the sampler.
    pub state: Vec<Tensor>,
}

/// K particles per training point, and the sampler state of each.
pub struct ParticleStore {
    format: Format,
    threat: Threat,
    /// The particles (`[n, K, C, H, W]`), then the state tensors (`[n, K, ...]`). In a file, there are
    /// three slots, one after the other: `[3 n, ...]`.
    tensors: Vec<Tensor>,
    /// Which of the slots has the chains of each point, in a file.
    slots: Option<Slots>,
    /// Its files that were not there before.
    made: Vec<PathBuf>,
}

/// Where a store is.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In memory, on the device of the examples.
    Memory,
    /// In new files, mapped into memory: `FILE`, and `FILE.state-1` and so on.
    New(&'a Path),
    /// In the files of a run that goes on; they are made if they are not there. Nothing is in them
    /// until a checkpoint is loaded.
    Kept(&'a Path),
}

impl ParticleStore {
    /// A store with all particles at their natural examples, and state tensors of these shapes, of
    /// zeros.
    ///
    /// # Errors
    /// If there is too little memory or disk space, or the file is in use or holds other data.
    pub fn new(
        examples: &Part,
        particles_per_point: usize,
        state: &[StateShape],
        threat: Threat,
        format: Format,
        place: Place,
    ) -> Result<Self> {
        let mut shape = examples.shape();
        shape.insert(1, particles_per_point as i64);
        let shape_of_numbers = |count: usize| vec![shape[0], shape[1], count as i64];
        let device = examples.device();
        let (mut opened, mut new) = (Vec::new(), Vec::new());
        let mut make = |number: usize, shape: &[i64], kind: Kind| -> Result<Tensor> {
            let file = match place {
                Place::Memory => None,
                Place::New(file) | Place::Kept(file) => Some(file),
            };
            match file.and_then(|file| files(file).nth(number)) {
                Some(path) => {
                    let is_kept = matches!(place, Place::Kept(_));
                    let Mapped { tensor, file, was_there } = map_file(&path, shape, kind, is_kept)?;
                    new.extend((!was_there).then(|| path.clone()));
                    opened.push((path, file));
                    Ok(tensor)
                }
                None => Tensor::f_zeros(shape, (kind, device)).map_err(|_| {
                    let bytes = shape.iter().map(|size| *size as f64).product::<f64>();
                    let gigabytes = bytes * kind.elt_size_in_bytes() as f64 / 1e9;
                    Error::new(format!("not enough memory for {gigabytes:.1} GB of particles"))
                        .fix("use --store u8 (fewer bytes), --store-file (a file) or fewer --particles")
                }),
            }
        };
        let (kind, state_kind) = match format {
            Format::F32 => (Kind::Float, Kind::Float),
            Format::F16 => (Kind::Half, Kind::BFloat16),
            Format::U8 => (Kind::Uint8, Kind::BFloat16),
        };
        let mut tensors = vec![make(0, &shape, kind)?];
        for (number, state) in (1..).zip(state) {
            tensors.push(match *state {
                StateShape::Particles => make(number, &shape, state_kind)?,
                // Numbers take no space, and may need the precision.
                StateShape::Numbers(count) => make(number, &shape_of_numbers(count), Kind::Float)?,
            });
        }
        let slots = (!opened.is_empty()).then(|| Slots::new(opened, examples.count()));
        let mut made = Self { format, threat, tensors, slots, made: new };
        if !matches!(place, Place::Kept(_)) {
            made.fill(examples)?;
        }
        Ok(made)
    }

    /// Puts all particles at their natural examples.
    fn fill(&mut self, examples: &Part) -> Result<()> {
        let points = examples.count() as i64;
        if self.format == Format::U8 {
            for some in self.tensors[0].f_narrow(0, 0, points)?.f_split(POINTS_AT_A_TIME, 0)? {
                pulse::beat();
                let _ = some.shallow_clone().f_fill_(STEPS)?;
            }
        }
        if let Some(slots) = &mut self.slots {
            for (number, tensor) in self.tensors.iter().enumerate() {
                slots.note_all(number, &tensor.f_get(0)?)?;
            }
        }
        if self.format != Format::F32 {
            return Ok(());
        }
        let copies = self.tensors[0].size()[1];
        for points in parts(examples, copies as usize) {
            let (images, _) = examples.batch(&points)?;
            let images = self.threat.natural(&images);
            self.put(&points, &[images.f_unsqueeze(1)?.f_repeat_interleave_self_int(copies, 1, None)?])?;
        }
        Ok(())
    }

    /// Puts rows (`[B, ...]`, of any type) of the first tensors in place of the chains of these
    /// points (`[B]`, i64, on the device). The others stay.
    fn put(&mut self, points: &Tensor, rows: &[Tensor]) -> Result<()> {
        let mut places = [points.shallow_clone(), points.shallow_clone()];
        let mut numbers = Vec::new();
        if let Some(slots) = &mut self.slots {
            numbers = Vec::try_from(points)?;
            places = [slots.rows(&numbers), slots.next_rows(&numbers)];
        }
        let [before, now] = places;
        let moved = before != now;
        pulse::beat();
        for (number, tensor) in self.tensors.iter_mut().enumerate() {
            let mut shape = tensor.size();
            shape[0] = points.size()[0];
            let rows = match rows.get(number) {
                Some(rows) => rows.detach().f_to_kind(tensor.kind())?.f_reshape(shape)?,
                None if moved => tensor.f_index_select(0, &before)?,
                None => continue,
            };
            if let Some(slots) = &mut self.slots {
                slots.note(number, &numbers, &rows)?;
            }
            let _ = tensor.f_index_copy_(0, &now, &rows)?;
        }
        Ok(())
    }

    /// Moves every particle to a uniform draw from the ball of its point: on the ball cut to the
    /// domain if `in_box` and the norm is linf, otherwise on the ball, and projected.
    ///
    /// # Errors
    /// If a draw fails.
    pub fn begin_at_uniform_draws(&mut self, examples: &Part, seed: u64, in_box: bool) -> Result<()> {
        let particles_per_point = self.tensors[0].size()[1] as usize;
        let ball = self.threat.ball();
        for indices in parts(examples, particles_per_point) {
            let (natural, _) = examples.batch(&indices)?;
            let natural = repeat_rows(&self.threat.natural(&natural), particles_per_point);
            let rows: Vec<i64> = Vec::try_from(&indices)?;
            let points: Vec<i64> = rows
                .iter()
                .flat_map(|row| std::iter::repeat_n(examples.point_of(*row), particles_per_point))
                .collect();
            let draws = Draws::new(seed, Purpose::Start, 0, &points, particles_per_point);
            let particles = if in_box && ball.norm == Norm::Linf {
                uniform_in_box(&natural, &ball, &draws)?
            } else {
                fresh_start(Start::Uniform, &natural, &ball, &draws)?
            };
            self.save(&indices, &natural, &Stored { particles, state: Vec::new() })?;
        }
        Ok(())
    }

    /// The chains of the points with these indices (`[B]`, i64, on the device). `natural` are their
    /// natural examples (`[B * K, C, H, W]`).
    pub fn load(&self, points: &Tensor, natural: &Tensor) -> Stored {
        let rows = match &self.slots {
            None => points.shallow_clone(),
            // Of a store on the CPU, indices can be read without waiting.
            Some(slots) => slots.rows(&Vec::try_from(points).unwrap_or_default()),
        };
        let mut rows = self.tensors.iter().map(|tensor| tensor.index_select(0, &rows).flatten(0, 1));
        let particles = rows.next().unwrap_or_default();
        let state = rows.map(|state| state.to_kind(Kind::Float)).collect();
        let distance = match self.format {
            Format::F32 => return Stored { particles, state },
            Format::F16 => particles.to_kind(Kind::Float),
            Format::U8 => (particles.to_kind(Kind::Float) - STEPS) * (self.threat.epsilon / STEPS),
        };
        // Rounding may have moved particles out of the ball or the domain.
        Stored { particles: self.threat.ball().project(&(natural + distance), natural), state }
    }

    /// Stores the chains of these points; the arguments are as in [`ParticleStore::load`].
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn save(
        &mut self,
        points: &Tensor,
        natural: &Tensor,
        Stored { particles, state }: &Stored,
    ) -> Result<()> {
        let particles = match rounding(self.format, &self.threat.ball()) {
            Some(rounding) => rounding(&(particles - natural)),
            None => particles.shallow_clone(),
        };
        let rows = [&particles].into_iter().chain(state).map(Tensor::shallow_clone).collect::<Vec<_>>();
        self.put(points, &rows)
    }

    /// What a checkpoint holds, by name. For a store in files at `place` (its files as they are seen
    /// from the folder of the checkpoint) these are the numbers of slots, once all chains are on the
    /// disk; [`ParticleStore::saved`] must follow once the checkpoint has its name. Otherwise it is
    /// everything.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn state(&self, place: Option<&Path>) -> Result<Vec<(String, Tensor)>> {
        let Some(slots) = &self.slots else { return self.whole(|tensor| Ok(tensor.shallow_clone())) };
        match place {
            Some(place) if slots.are_at(place) => slots.state(),
            _ => {
                let points: Vec<i64> = (0..self.points() as i64).collect();
                let rows = slots.rows(&points);
                self.whole(|tensor| Ok(tensor.f_index_select(0, &rows)?))
            }
        }
    }

    /// All tensors by name.
    fn whole(&self, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<(String, Tensor)>> {
        self.tensors.iter().enumerate().map(|(number, tensor)| Ok((name(number), of(tensor)?))).collect()
    }

    /// The last [`ParticleStore::state`] is in a checkpoint.
    pub fn saved(&mut self) {
        if let Some(slots) = &mut self.slots {
            slots.saved();
        }
    }

    /// Number of points.
    fn points(&self) -> usize {
        self.tensors[0].size()[0] as usize / if self.slots.is_some() { SLOTS } else { 1 }
    }

    /// Compares the chains that a checkpoint names in the store's files with their digests.
    ///
    /// # Errors
    /// If they are damaged, or their files are missing.
    pub fn check(&self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        match &self.slots {
            Some(slots) if slots::is_of_file(saved) && self.made.is_empty() => slots.check(saved),
            Some(_) if slots::is_of_file(saved) => Err(self.missing()),
            _ => Ok(()),
        }
    }

    /// The error of a checkpoint whose chains are in files that were gone when the run went on. What
    /// was made in their place is removed.
    fn missing(&self) -> Error {
        self.made.iter().for_each(|path| drop(files::remove_file(path)));
        let names: Vec<_> = self.made.iter().map(|path| shown(path).to_string()).collect();
        Error::new(format!(
            "the particles of the checkpoint are missing: there is no file {}, of which it has no copy",
            names.join(", ")
        ))
    }

    /// Loads the particles and state tensors of a checkpoint, which are in the files at `place` if it
    /// names slots.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape, or the files are not those of the checkpoint.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>, place: Option<&Path>) -> Result<()> {
        if let Some(slots) = self.slots.as_mut().filter(|_| slots::is_of_file(saved)) {
            return slots.adopt(saved);
        }
        let points = self.points();
        let all: Vec<i64> = (0..points as i64).collect();
        for some in all.chunks(POINTS_AT_A_TIME as usize) {
            let range = some[0] as usize..some[0] as usize + some.len();
            let mut rows = Vec::new();
            for (number, tensor) in self.tensors.iter().enumerate() {
                let mut shape = tensor.size();
                shape[0] = some.len() as i64;
                rows.push(match place {
                    Some(place) if slots::is_of_file(saved) => {
                        let bytes = slots::read(saved, place, number, points, range.clone())?;
                        Tensor::f_from_data_size(&bytes, &shape, tensor.kind())?
                    }
                    _ => whole_rows(saved, &name(number), points, &shape)?.f_narrow(
                        0,
                        some[0],
                        some.len() as i64,
                    )?,
                });
            }
            let device = self.tensors[0].device();
            let rows = rows
                .iter()
                .map(|rows| rows.f_to_device(device))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            self.put(&Tensor::from_slice(some).to_device(device), &rows)?;
        }
        Ok(())
    }
}

/// The name of a tensor of a store in a checkpoint.
fn name(number: usize) -> String {
    match number {
        0 => "particles".to_owned(),
        _ => format!("state.{number}"),
    }
}

/// A tensor of a checkpoint that holds all of it, whose rows have the shape of `shape` after its
/// first number.
pub(super) fn whole_rows(
    saved: &BTreeMap<String, Tensor>,
    name: &str,
    points: usize,
    shape: &[i64],
) -> Result<Tensor> {
    let fits = |tensor: &&Tensor| {
        let size = tensor.size();
        size.first() == Some(&(points as i64)) && size[1..] == shape[1..]
    };
    saved.get(name).filter(fits).map(Tensor::shallow_clone).ok_or_else(|| {
        Error::new(format!(
            "the particles in the checkpoint do not match the run: `{name}` is missing or has another shape"
        ))
    })
}

/// How a store of this format holds changes from natural examples; none if it holds the particles
/// themselves, in f32.
pub fn rounding(format: Format, threat: &ThreatModel) -> Option<Rounding> {
    let steps_per_unit = STEPS / threat.epsilon.max(f64::MIN_POSITIVE);
    match format {
        Format::F32 => None,
        Format::F16 => Some(Box::new(|change| change.to_kind(Kind::Half))),
        Format::U8 => Some(Box::new(move |change| {
            let steps = (change * steps_per_unit).round_().clamp_(-STEPS, STEPS) + STEPS;
            steps.to_kind(Kind::Uint8)
        })),
    }
}

/// The name of that file.
const NAME: &str = "particles";

/// The file of the particles of a run's shard, if they are in one. `run` is the folder of the run.
pub fn place(train: &Train, run: &Path, shard: usize) -> Option<PathBuf> {
    let file = train.store_file.as_deref()?;
    let of_all = if file == Path::new(IN_RUN) { run.join(NAME) } else { file.to_owned() };
    Some(of_shard(of_all.into_os_string(), train, shard).into())
}

/// The name of a shard's file, made of the name for all shards of the run.
fn of_shard(mut of_all: OsString, train: &Train, shard: usize) -> OsString {
    if train.shards > 1 {
        of_all.push(format!("-{}-of-{}", shard + 1, train.shards));
    }
    of_all
}

/// Ending of the name of a particle file until its run has a record.
const BEGUN: &str = ".begun";

/// The particle files of a run that begins: with this name, files are nobody's if that run is killed
/// before it has a record. The folder of the run is not there yet: what goes into it is beside it.
pub fn begun(train: &Train, run: &Path, shard: usize) -> Option<PathBuf> {
    let file = train.store_file.as_deref()?;
    let in_run = || [run.as_os_str(), OsStr::new("."), OsStr::new(NAME)].join(OsStr::new(""));
    let of_all = if file == Path::new(IN_RUN) { in_run() } else { file.as_os_str().to_owned() };
    let mut path = of_shard(of_all, train, shard);
    path.push(BEGUN);
    Some(path.into())
}

/// Removes the files of a store that no process uses.
pub fn remove_unused(file: &Path) {
    for path in files(file) {
        let is_unused = |file: File| files::try_lock(&file, &path).unwrap_or(false);
        if File::open(&path).is_ok_and(is_unused) {
            let _ = files::remove_file(&path);
        }
    }
}

/// Gives the files of a store that are in `begun` the names of files in `file`, if there are any.
///
/// # Errors
/// If the disk refuses.
pub fn name_files(train: &Train, run: &Path, shard: usize) -> Result<()> {
    let (Some(begun), Some(file)) = (begun(train, run, shard), place(train, run, shard)) else {
        return Ok(());
    };
    for (from, to) in files(&begun).zip(files(&file)).filter(|(from, to)| from.exists() && !to.exists()) {
        files::rename(&from, &to).map_err(|why| Error::file("write", &to, why))?;
    }
    Ok(())
}

/// The files of a store in `file`: first the particles, then the state tensors.
pub fn files(file: &Path) -> impl Iterator<Item = PathBuf> {
    /// More than the number of state tensors of any sampler.
    const MOST: usize = 100;
    let numbered = (1..MOST).map(move |number| {
        let mut path = file.as_os_str().to_owned();
        path.push(format!(".state-{number}"));
        path.into()
    });
    std::iter::once(file.to_owned()).chain(numbered)
}

/// A file of a store.
struct Mapped {
    tensor: Tensor,
    /// Locked while it is open.
    file: File,
    /// Whether it had rows before.
    was_there: bool,
}

/// Maps a file as a tensor with three slots for each row of this shape. It is created with zeros, or
/// overwritten if it has the size of a store of this shape. If it is to be kept and has three slots,
/// it stays as it is; older versions kept one.
fn map_file(path: &Path, shape: &[i64], kind: Kind, is_kept: bool) -> Result<Mapped> {
    let mut shape = shape.to_vec();
    let of_one = shape.iter().product::<i64>() as u64 * kind.elt_size_in_bytes() as u64;
    shape[0] *= SLOTS as i64;
    let bytes = of_one * SLOTS as u64;
    let refused = |why: &dyn std::fmt::Display| Error::file("store particles in", path, why);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = files::open(&options, path).map_err(|why| refused(&why))?;
    if !files::try_lock(&file, path)? {
        return Err(refused(&"another run uses this file"));
    }
    let length = file.metadata().map_err(|why| refused(&why))?.len();
    if ![0, of_one, bytes].contains(&length) {
        return Err(refused(&format!(
            "it holds other data: expected an empty file or {bytes} bytes, got {length} bytes"
        ))
        .fix("move this file, or choose another name"));
    }
    let was_there = is_kept && length == bytes && length > 0;
    if !was_there {
        // Disk space is allocated now: if the disk filled up later, the process would be killed.
        let room = || files::check_room(path.parent().unwrap_or(path), bytes, "the particles");
        let allocated = file
            .set_len(0)
            .map_err(|why| refused(&why))
            .and_then(|()| room())
            .and_then(|()| files::allocate(&file, bytes).map_err(|why| refused(&why)));
        // If the allocation fails, the file is left empty, so that a later run can use it.
        allocated.inspect_err(|_| drop(file.set_len(0))).map_err(|error| {
            error.fix("make room on the disk, choose another with --store-file FILE, or take fewer bytes: --store u8")
        })?;
    }
    let name = path.to_str().ok_or_else(|| refused(&"its name is not UTF-8"))?;
    let mapped = Tensor::f_from_file(name, true, shape.iter().product::<i64>(), (kind, Device::Cpu));
    mapped
        .and_then(|mapped| mapped.f_reshape(shape))
        .map(|tensor| Mapped { tensor, file, was_there })
        .map_err(|why| refused(&plugin_api::first_line(&why.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;
    use crate::data::examples::Examples;
    use crate::util::files::until_unlocked;
    use plugin_api::Norm;

    fn examples() -> Examples {
        let images = Tensor::from_slice(&[0u8, 51, 102, 255]).reshape([4, 1, 1, 1]);
        let split = Split { images, labels: Tensor::from_slice(&[0i64, 1, 2, 3]) };
        Examples::new(&split, 0, 4, Device::Cpu).expect("enough memory")
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    const THREAT: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };

    fn store(particles_per_point: usize, format: Format, file: Option<&Path>) -> ParticleStore {
        ParticleStore::new(
            &examples().part(0, 1),
            particles_per_point,
            &STATE,
            THREAT.into(),
            format,
            place(file),
        )
        .expect("enough memory")
    }

    fn place(file: Option<&Path>) -> Place<'_> {
        file.map_or(Place::Memory, Place::New)
    }

    const STATE: [StateShape; 1] = [StateShape::Particles];

    #[test]
    fn with_a_radius_for_each_channel_particles_are_in_the_coordinates_of_plugins() {
        let threat = Threat { channel_scale: Some(vec![0.5]), ..THREAT.into() };
        let points = Tensor::from_slice(&[0i64, 1, 2, 3]);
        let pixels = examples().batch(&points).expect("in memory").0;
        let natural = threat.natural(&pixels);
        assert_ne!(pixels, natural);
        for format in [Format::F32, Format::F16, Format::U8] {
            let part = examples();
            let part = part.part(0, 1);
            let mut store =
                ParticleStore::new(&part, 1, &[], threat.clone(), format, Place::Memory).expect("room");
            assert_eq!(store.load(&points, &natural).particles, natural, "{format:?}");
            for in_box in [true, false] {
                store.begin_at_uniform_draws(&part, 0, in_box).expect("drawn");
                let drawn = store.load(&points, &natural).particles;
                let seen = threat.pixels(&pixels, &natural, 1).of(&drawn).expect("pixels");
                let moved = (seen - &pixels).abs().max().double_value(&[]);
                assert!((0.02..=0.15 + 1e-6).contains(&moved), "{format:?}: {moved}, half of 0.3 at most");
            }
        }
    }

    /// Chains whose state is ten times the particles.
    fn stored(particles: &Tensor) -> Stored {
        Stored { particles: particles.shallow_clone(), state: vec![particles * 10.0] }
    }

    /// The natural examples of these points, each for two particles.
    fn natural(points: &[i64]) -> (Tensor, Tensor) {
        let indices = Tensor::from_slice(points);
        let natural = repeat_rows(&examples().batch(&indices).expect("in memory").0, 2);
        (indices, natural)
    }

    #[test]
    fn particles_begin_at_the_natural_examples() {
        for format in [Format::F32, Format::F16, Format::U8] {
            let (points, natural) = natural(&[3, 1]);
            let Stored { particles, state } = store(2, format, None).load(&points, &natural);
            assert_eq!(particles.size(), [4, 1, 1, 1]);
            assert_eq!(values(&particles), [1.0, 1.0, 0.2, 0.2]);
            assert_eq!(values(&state[0]), [0.0; 4]);
        }
    }

    #[test]
    fn chains_are_loaded_for_the_point_and_particle_that_they_were_saved_for() {
        let mut store = store(2, Format::F32, None);
        let moved = Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).reshape([4, 1, 1, 1]);
        let (points, there) = natural(&[3, 1]);
        store.save(&points, &there, &stored(&moved)).expect("saved");
        let (points, there) = natural(&[1, 0, 3]);
        let Stored { particles, state } = store.load(&points, &there);
        assert_eq!(values(&particles), [0.3, 0.4, 0.0, 0.0, 0.1, 0.2]);
        assert_eq!(values(&state[0]), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn the_rounding_error_of_small_formats_is_within_the_documented_bound() {
        // The natural example is 0.4; the particles cover the whole ball.
        let images = Tensor::full([201], 102, (Kind::Uint8, Device::Cpu)).reshape([201, 1, 1, 1]);
        let split = Split { images, labels: Tensor::zeros([201], (Kind::Int64, Device::Cpu)) };
        let examples = Examples::new(&split, 0, 201, Device::Cpu).expect("enough memory");
        let points = Tensor::arange(201, (Kind::Int64, Device::Cpu));
        let (natural, _) = examples.batch(&points).expect("in memory");
        let moved =
            &natural + Tensor::linspace(-0.3, 0.3, 201, (Kind::Float, Device::Cpu)).reshape([201, 1, 1, 1]);
        for (format, bound) in [(Format::U8, 0.3 / 254.0), (Format::F16, 0.3 / 2048.0)] {
            let mut store =
                ParticleStore::new(&examples.part(0, 1), 1, &[], THREAT.into(), format, Place::Memory)
                    .expect("enough memory");
            store
                .save(&points, &natural, &Stored { particles: moved.shallow_clone(), state: Vec::new() })
                .expect("saved");
            let loaded = store.load(&points, &natural);
            let off = (&loaded.particles - &moved).abs().max().double_value(&[]);
            assert!(off <= bound + 1e-7, "{format:?} is off by {off}, more than {bound}");
            assert!(off > 0.0, "{format:?} rounds");
            assert!(bool::try_from(THREAT.contains(&loaded.particles, &natural).all()).expect("a bool"));
            // A second rounding changes nothing.
            store.save(&points, &natural, &loaded).expect("saved");
            let again =
                (store.load(&points, &natural).particles - &loaded.particles).abs().max().double_value(&[]);
            assert!(again < 1e-6, "{format:?} drifts by {again}");
        }
    }

    #[test]
    fn state_tensors_keep_very_small_and_very_large_values_in_every_format() {
        for format in [Format::F32, Format::F16, Format::U8] {
            let mut store = store(1, format, None);
            let points = Tensor::from_slice(&[0i64, 1]);
            let (natural, _) = examples().batch(&points).expect("in memory");
            let state = Tensor::from_slice(&[1e-12f32, 3e15]).reshape([2, 1, 1, 1]);
            store
                .save(
                    &points,
                    &natural,
                    &Stored { particles: natural.shallow_clone(), state: vec![state.copy()] },
                )
                .expect("saved");
            let off = (&store.load(&points, &natural).state[0] / &state - 1.0).abs().max().double_value(&[]);
            assert!(off <= 1.0 / 256.0, "{format:?}: off by {off}");
        }
    }

    #[test]
    fn coordinates_on_faces_are_found_in_every_format() {
        use crate::law::faces::Tally;
        // Every byte as a pixel, at both faces, and at uniform draws between them.
        let images = Tensor::arange(256, (Kind::Uint8, Device::Cpu)).reshape([256, 1, 1, 1]);
        let split = Split { images, labels: Tensor::zeros([256], (Kind::Int64, Device::Cpu)) };
        let examples = Examples::new(&split, 0, 256, Device::Cpu).expect("enough memory");
        let points = Tensor::arange(256, (Kind::Int64, Device::Cpu));
        let natural = repeat_rows(&examples.batch(&points).expect("in memory").0, 100);
        for epsilon in [0.3, 8.0 / 255.0] {
            let threat = ThreatModel { epsilon, ..THREAT };
            let face = |end: f64| threat.project(&natural.full_like(end), &natural);
            let (low, high) = (face(-1.0), face(2.0));
            // The middle 98 % of the box: nearer to a face than half a step of u8 there is none.
            let share = Tensor::linspace(0.01, 0.99, natural.numel() as i64, (Kind::Float, Device::Cpu));
            let inside = &low + (&high - &low) * share.reshape_as(&natural);
            for format in [Format::F32, Format::F16, Format::U8] {
                let share_on_faces = |particles: &Tensor| {
                    let mut store = ParticleStore::new(
                        &examples.part(0, 1),
                        100,
                        &[],
                        threat.into(),
                        format,
                        Place::Memory,
                    )
                    .expect("enough memory");
                    let stored = Stored { particles: particles.shallow_clone(), state: Vec::new() };
                    store.save(&points, &natural, &stored).expect("saved");
                    let mut tally = Tally::new(threat, rounding(format, &threat));
                    tally.add(&store.load(&points, &natural).particles, &natural).expect("counted");
                    tally.places().expect("shares").expect("particles").coordinates.expect("linf").on_faces
                };
                for on_face in [&low, &high] {
                    assert_eq!(share_on_faces(on_face), 1.0, "{format:?} {epsilon}");
                }
                assert_eq!(share_on_faces(&inside), 0.0, "{format:?} {epsilon}");
                let uniform = &low + (&high - &low) * Tensor::rand_like(&natural);
                let by_rounding = share_on_faces(&uniform);
                assert!(by_rounding < 0.012, "{format:?} {epsilon}: {by_rounding}");
            }
        }
    }

    #[test]
    fn a_file_with_other_data_is_refused_and_stays_unchanged() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notes");
        std::fs::write(&path, "years of work").expect("written");
        let refused =
            ParticleStore::new(&examples().part(0, 1), 1, &[], THREAT.into(), Format::U8, Place::New(&path));
        assert!(refused.is_err_and(|why| why.to_string().contains("got 13 bytes")));
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "years of work");
    }

    #[test]
    fn a_store_in_a_file_equals_a_store_in_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("particles");
        let moved = Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).reshape([4, 1, 1, 1]);
        let (points, there) = natural(&[3, 1]);
        let loaded = [None, Some(path.as_path())].map(|file| {
            let mut store = store(2, Format::U8, file);
            store.save(&points, &there, &stored(&moved)).expect("saved");
            let Stored { particles, state } = store.load(&points, &there);
            (values(&particles), values(&state[0]))
        });
        assert_eq!(loaded[0], loaded[1]);
        // Three slots of four points with two particles: one byte for each, and two bytes for each number of the
        // state.
        assert_eq!(std::fs::metadata(&path).expect("a file").len(), 3 * 8);
        assert_eq!(std::fs::metadata(folder.path().join("particles.state-1")).expect("a file").len(), 3 * 16);
        // While a store uses the file, no other store can.
        let held = store(2, Format::U8, Some(&path));
        let second = ParticleStore::new(
            &examples().part(0, 1),
            2,
            &STATE,
            THREAT.into(),
            Format::U8,
            Place::New(&path),
        );
        assert!(second.is_err_and(|why| why.to_string().contains("another run uses this file")));
        drop(held);
        let nowhere = folder.path().join("nowhere/particles");
        let refused = ParticleStore::new(
            &examples().part(0, 1),
            1,
            &[],
            THREAT.into(),
            Format::F32,
            Place::New(&nowhere),
        );
        assert!(refused.is_err_and(|why| why.to_string().contains("cannot store particles in")));
    }

    #[test]
    fn a_checkpoint_of_a_file_names_slots_and_gives_the_same_chains() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("particles");
        let moved = |by: f64| Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).reshape([4, 1, 1, 1]) + by;
        let all = natural(&[0, 1, 2, 3]);
        let chains = |store: &ParticleStore| {
            let Stored { particles, state } = store.load(&all.0, &all.1);
            (values(&particles), values(&state[0]))
        };
        let (points, there) = natural(&[3, 1]);
        let mut one = store(2, Format::F32, Some(&path));
        let (mut checkpoints, mut expected) = (Vec::new(), Vec::new());
        for by in [0.0, 0.1, 0.2] {
            one.save(&points, &there, &stored(&moved(by))).expect("saved");
            let saved: BTreeMap<_, _> = one.state(Some(&path)).expect("synced").into_iter().collect();
            one.saved();
            assert!(saved.values().all(|tensor| tensor.numel() <= 2 * 4), "no particles are in it");
            checkpoints.push(saved);
            expected.push(chains(&one));
        }
        // What a process leaves that is killed between checkpoints.
        one.save(&points, &there, &stored(&moved(0.9))).expect("saved");
        let whole: BTreeMap<_, _> = one.state(None).expect("everything").into_iter().collect();
        let last = chains(&one);
        drop(one);
        let open = |name: &Path| {
            ParticleStore::new(
                &examples().part(0, 1),
                2,
                &STATE,
                THREAT.into(),
                Format::F32,
                Place::Kept(name),
            )
        };
        let kept = |name: &Path| until_unlocked(|| open(name), Result::is_ok);
        for checkpoint in [1, 2] {
            let mut again = kept(&path).expect("opened");
            again.check(&checkpoints[checkpoint]).expect("whole");
            again.load_state(&checkpoints[checkpoint], Some(&path)).expect("loaded");
            assert_eq!(chains(&again), expected[checkpoint]);
            // Another program that reads the run copies the chains.
            let mut copy = store(2, Format::F32, None);
            copy.load_state(&checkpoints[checkpoint], Some(&path)).expect("loaded");
            assert_eq!(chains(&copy), expected[checkpoint]);
        }
        assert!(kept(&path).expect("opened").check(&checkpoints[0]).is_err(), "its slots were written to");
        // Everything goes into any store.
        for place in [Place::Memory, Place::New(&folder.path().join("other"))] {
            let mut other =
                ParticleStore::new(&examples().part(0, 1), 2, &STATE, THREAT.into(), Format::F32, place)
                    .expect("room");
            other.load_state(&whole, None).expect("loaded");
            assert_eq!(chains(&other), last);
        }
        std::fs::remove_file(&path).expect("removed");
        let missing = kept(&path).expect("made").check(&checkpoints[2]).expect_err("missing").to_string();
        assert!(
            missing.contains("the particles of the checkpoint are missing: there is no file"),
            "{missing}"
        );
        assert!(!path.exists(), "what was made in its place is removed");
    }

    #[test]
    fn files_of_a_run_that_was_killed_at_its_beginning_are_in_nobodys_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("particles");
        let train = Train { store_file: Some(path.clone()), ..Train::default() };
        let begun = begun(&train, folder.path(), 0).expect("a file");
        let held = store(2, Format::U8, Some(&begun));
        remove_unused(&begun);
        assert!(begun.exists(), "another run begins there");
        drop(held);
        let left = || std::fs::read_dir(folder.path()).expect("a folder").count();
        until_unlocked(|| remove_unused(&begun), |()| left() == 0);
        assert_eq!(left(), 0);
        drop(store(2, Format::U8, Some(&begun)));
        name_files(&train, folder.path(), 0).expect("renamed");
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .flatten()
            .map(|file| file.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["particles", "particles.state-1"]);
    }
}
