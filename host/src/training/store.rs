//! The particle store: K particles of every training point, kept for the whole run.

use crate::config::Format;
use crate::data::examples::{Examples, repeat_rows, scaled};
use crate::plugin::fresh_start;
use crate::torch::random::{Draws, Purpose};
use crate::util::files;
use crate::{Error, Result};
use plugin_api::{Start, ThreatModel};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The store is filled in parts, so that no second copy of it is in memory.
const POINTS_AT_A_TIME: i64 = 1000;

/// Number of quantisation steps from the natural example to the surface of the ball in
/// [`Format::U8`].
const STEPS: f64 = 127.0;

/// Chains of B points: the particles and their sampler state, `[B * K, C, H, W]` each (f32).
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
    threat: ThreatModel,
    /// The particles, then the state tensors, `[n, K, C, H, W]` each.
    tensors: Vec<Tensor>,
    /// The files of the tensors, if any; they are locked while the store exists.
    _locked: Vec<File>,
}

impl ParticleStore {
    /// A store with all particles at their natural examples, and `state_tensors` state tensors of
    /// zeros. If `file` is given, the tensors are in that file (and `file.state-1`, ...), mapped
    /// into memory. Otherwise they are in memory on the device of the examples.
    ///
    /// # Errors
    /// If there is too little memory or disk space, or the file is in use or holds other data.
    pub fn new(
        examples: &Examples,
        particles_per_point: usize,
        state_tensors: usize,
        threat: ThreatModel,
        format: Format,
        file: Option<&Path>,
    ) -> Result<Self> {
        let mut shape = examples.images.size();
        shape.insert(1, particles_per_point as i64);
        let device = examples.images.device();
        let mut locked = Vec::new();
        let mut make = |number: usize, kind: Kind| -> Result<Tensor> {
            let path = file.and_then(|file| files(file).nth(number));
            match path {
                Some(path) => {
                    let (tensor, file) = map_file(&path, &shape, kind)?;
                    locked.push(file);
                    Ok(tensor)
                }
                None => Tensor::f_zeros(&shape, (kind, device)).map_err(|_| {
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
        let mut tensors = vec![make(0, kind)?];
        for number in 1..=state_tensors {
            tensors.push(make(number, state_kind)?);
        }
        match format {
            Format::F32 => {
                let some = |tensor: &Tensor| tensor.f_split(POINTS_AT_A_TIME, 0);
                for (mut particles, images) in some(&tensors[0])?.into_iter().zip(some(&examples.images)?) {
                    particles.f_copy_(&scaled(&images).f_unsqueeze(1)?)?;
                }
            }
            Format::F16 => {}
            Format::U8 => tensors[0] = tensors[0].f_fill_(STEPS)?,
        }
        Ok(Self { format, threat, tensors, _locked: locked })
    }

    /// Moves every particle to a uniform draw from the ball of its point.
    ///
    /// # Errors
    /// If a draw fails.
    pub fn begin_at_uniform_draws(
        &mut self,
        examples: &Examples,
        threat: &ThreatModel,
        seed: u64,
    ) -> Result<()> {
        let particles_per_point = self.tensors[0].size()[1] as usize;
        let all = Tensor::arange(examples.len() as i64, (Kind::Int64, self.tensors[0].device()));
        for indices in all.split(POINTS_AT_A_TIME, 0) {
            let (natural, _) = examples.batch(&indices);
            let natural = repeat_rows(&natural, particles_per_point);
            let points: Vec<i64> = Vec::try_from(&indices)?;
            let points: Vec<i64> =
                points.iter().flat_map(|point| std::iter::repeat_n(*point, particles_per_point)).collect();
            let draws = Draws::new(seed, Purpose::Start, 0, &points, particles_per_point);
            let particles = fresh_start(Start::Uniform, &natural, threat, &draws)?;
            self.save(&indices, &natural, &Stored { particles, state: Vec::new() });
        }
        Ok(())
    }

    /// The chains of the points with these indices (`[B]`, i64, on the device). `natural` are their
    /// natural examples (`[B * K, C, H, W]`).
    pub fn load(&self, points: &Tensor, natural: &Tensor) -> Stored {
        let mut rows = self.tensors.iter().map(|tensor| tensor.index_select(0, points).flatten(0, 1));
        let particles = rows.next().unwrap_or_default();
        let state = rows.map(|state| state.to_kind(Kind::Float)).collect();
        let distance = match self.format {
            Format::F32 => return Stored { particles, state },
            Format::F16 => particles.to_kind(Kind::Float),
            Format::U8 => (particles.to_kind(Kind::Float) - STEPS) * (self.threat.epsilon / STEPS),
        };
        // Rounding may have moved particles out of the ball or the domain.
        Stored { particles: self.threat.project(&(natural + distance), natural), state }
    }

    /// Stores the chains of these points; the arguments are as in [`ParticleStore::load`].
    pub fn save(&mut self, points: &Tensor, natural: &Tensor, Stored { particles, state }: &Stored) {
        let particles = match self.format {
            Format::F32 => particles.shallow_clone(),
            Format::F16 => particles - natural,
            Format::U8 => {
                let mut steps = (particles - natural) * (STEPS / self.threat.epsilon.max(f64::MIN_POSITIVE));
                steps.round_().clamp_(-STEPS, STEPS) + STEPS
            }
        };
        for (tensor, rows) in self.tensors.iter_mut().zip([&particles].into_iter().chain(state)) {
            let mut shape = tensor.size();
            shape[0] = points.size()[0];
            let _ = tensor.index_copy_(0, points, &rows.detach().to_kind(tensor.kind()).reshape(shape));
        }
    }

    /// All tensors by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let names = (0..).map(|number| match number {
            0 => "particles".to_owned(),
            _ => format!("state.{number}"),
        });
        names.zip(self.tensors.iter().map(Tensor::shallow_clone)).collect()
    }

    /// Loads saved particles and state tensors.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, mut tensor) in self.state() {
            match saved.get(&name) {
                Some(saved) if saved.size() == tensor.size() => tensor.copy_(saved),
                _ => {
                    return Err(Error::new(format!(
                        "the particles in the checkpoint do not match the run: `{name}` is missing or has \
                         another shape"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Ending of the name of a particle file until its run has a record.
const BEGUN: &str = ".begun";

/// The particle files of a run that begins: with this name, files are nobody's if that run is killed
/// before it has a record.
pub fn begun(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(BEGUN);
    path.into()
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

/// Gives the particle files of a run that has begun their names.
///
/// # Errors
/// If the disk refuses.
pub fn name_files(file: &Path) -> Result<()> {
    for (from, to) in files(&begun(file)).zip(files(file)).filter(|(from, to)| from.exists() && !to.exists())
    {
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

/// Maps a file as a tensor of zeros. The file is created, or overwritten if it holds an earlier
/// store of the same size. Returns the tensor, and the file, which is locked while it is open.
fn map_file(path: &Path, shape: &[i64], kind: Kind) -> Result<(Tensor, File)> {
    let numbers: i64 = shape.iter().product();
    let bytes = numbers as u64 * kind.elt_size_in_bytes() as u64;
    let refused = |why: &dyn std::fmt::Display| Error::file("store particles in", path, why);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let file = files::open(&options, path).map_err(|why| refused(&why))?;
    if !files::try_lock(&file, path)? {
        return Err(refused(&"another run uses this file"));
    }
    let length = file.metadata().map_err(|why| refused(&why))?.len();
    if length != 0 && length != bytes {
        return Err(refused(&format!(
            "it holds other data: expected an empty file or {bytes} bytes, got {length} bytes"
        ))
        .fix("move this file, or choose another name"));
    }
    // Disk space is allocated now: if the disk filled up later, the process would be killed.
    let allocated = file.set_len(0).and_then(|()| allocate(&file, bytes));
    // If the allocation fails, the file is left empty, so that a later run can use it.
    allocated.inspect_err(|_| drop(file.set_len(0))).map_err(|why| refused(&why))?;
    let name = path.to_str().ok_or_else(|| refused(&"its name is not UTF-8"))?;
    let mapped = Tensor::f_from_file(name, true, numbers, (kind, Device::Cpu));
    mapped
        .and_then(|mapped| mapped.f_reshape(shape))
        .map(|mapped| (mapped, file))
        .map_err(|why| refused(&plugin_api::first_line(&why.to_string())))
}

/// Extends a file to this length and allocates disk space for all of it.
fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor belongs to an open file, and the call only extends the file.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;
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
        ParticleStore::new(&examples(), particles_per_point, 1, THREAT, format, file).expect("enough memory")
    }

    /// Chains whose state is ten times the particles.
    fn stored(particles: &Tensor) -> Stored {
        Stored { particles: particles.shallow_clone(), state: vec![particles * 10.0] }
    }

    /// The natural examples of these points, each for two particles.
    fn natural(points: &[i64]) -> (Tensor, Tensor) {
        let indices = Tensor::from_slice(points);
        let natural = repeat_rows(&examples().batch(&indices).0, 2);
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
        store.save(&points, &there, &stored(&moved));
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
        let (natural, _) = examples.batch(&points);
        let moved =
            &natural + Tensor::linspace(-0.3, 0.3, 201, (Kind::Float, Device::Cpu)).reshape([201, 1, 1, 1]);
        for (format, bound) in [(Format::U8, 0.3 / 254.0), (Format::F16, 0.3 / 2048.0)] {
            let mut store = ParticleStore::new(&examples, 1, 0, THREAT, format, None).expect("enough memory");
            store.save(&points, &natural, &Stored { particles: moved.shallow_clone(), state: Vec::new() });
            let loaded = store.load(&points, &natural);
            let off = (&loaded.particles - &moved).abs().max().double_value(&[]);
            assert!(off <= bound + 1e-7, "{format:?} is off by {off}, more than {bound}");
            assert!(off > 0.0, "{format:?} rounds");
            assert!(bool::try_from(THREAT.contains(&loaded.particles, &natural).all()).expect("a bool"));
            // A second rounding changes nothing.
            store.save(&points, &natural, &loaded);
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
            let (natural, _) = examples().batch(&points);
            let state = Tensor::from_slice(&[1e-12f32, 3e15]).reshape([2, 1, 1, 1]);
            store.save(
                &points,
                &natural,
                &Stored { particles: natural.shallow_clone(), state: vec![state.copy()] },
            );
            let off = (&store.load(&points, &natural).state[0] / &state - 1.0).abs().max().double_value(&[]);
            assert!(off <= 1.0 / 256.0, "{format:?}: off by {off}");
        }
    }

    #[test]
    fn a_file_with_other_data_is_refused_and_stays_unchanged() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notes");
        std::fs::write(&path, "years of work").expect("written");
        let refused = ParticleStore::new(&examples(), 1, 0, THREAT, Format::U8, Some(&path));
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
            store.save(&points, &there, &stored(&moved));
            let Stored { particles, state } = store.load(&points, &there);
            (values(&particles), values(&state[0]))
        });
        assert_eq!(loaded[0], loaded[1]);
        // Four points with two particles: one byte for each, and two bytes for each number of the
        // state.
        assert_eq!(std::fs::metadata(&path).expect("a file").len(), 8);
        assert_eq!(std::fs::metadata(folder.path().join("particles.state-1")).expect("a file").len(), 16);
        // While a store uses the file, no other store can.
        let held = store(2, Format::U8, Some(&path));
        let second = ParticleStore::new(&examples(), 2, 1, THREAT, Format::U8, Some(&path));
        assert!(second.is_err_and(|why| why.to_string().contains("another run uses this file")));
        drop(held);
        let nowhere = folder.path().join("nowhere/particles");
        let refused = ParticleStore::new(&examples(), 1, 0, THREAT, Format::F32, Some(&nowhere));
        assert!(refused.is_err_and(|why| why.to_string().contains("cannot store particles in")));
    }

    #[test]
    fn files_of_a_run_that_was_killed_at_its_beginning_are_in_nobodys_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("particles");
        let begun = begun(&path);
        let held = store(2, Format::U8, Some(&begun));
        remove_unused(&begun);
        assert!(begun.exists(), "another run begins there");
        drop(held);
        remove_unused(&begun);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
        drop(store(2, Format::U8, Some(&begun)));
        name_files(&path).expect("renamed");
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .flatten()
            .map(|file| file.file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["particles", "particles.state-1"]);
    }
}
