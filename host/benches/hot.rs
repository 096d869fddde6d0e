//! Benchmarks of the hot code: a sampler step (called directly and through the plugin boundary),
//! projection, the particle store, other work of an update outside its passes, an update in every
//! mode and precision, the comparison of all pairs of training points, and the way into Python.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use host::config::Algorithm;
use host::config::Format;
use host::config::{Experiment, Mode};
use host::data::examples::Examples;
use host::data::pairs::Points;
use host::data::{Dataset, Origin, Split};
use host::plugin::library::open_sampler;
use host::plugin::{Guard, LoadedModel, Objective, PluginSpec, Sampler, Threat, parse};
use host::torch::device::set_up;
use host::torch::precision::Precision;
use host::torch::random::{Draws, Purpose};
use host::training::Training;
use host::training::optimizer::{Optimizer, Settings};
use host::training::store::{ParticleStore, Place};
use langevin::{Langevin, Options};
use plugin_api::tch::{Device, Kind, Tensor};
use plugin_api::{Distribution, Norm, Random, RandomSource, Result, Sampler as _, Step, ThreatModel};
use std::collections::BTreeMap;
use std::time::Instant;

const BATCH: i64 = 100;
const POINTS: i64 = 1000;

/// Random numbers drawn in advance, so that the benchmark does not measure the draw.
struct Drawn(Tensor);

impl RandomSource for Drawn {
    fn draw(&self, _: Distribution, _: &Tensor) -> Result<Tensor> {
        Ok(self.0.shallow_clone())
    }
}

fn images(count: i64) -> Tensor {
    Tensor::rand([count, 1, 28, 28], (Kind::Float, Device::Cpu))
}

/// A plugin from the target folder. Benchmarks are in its subfolder `deps`.
fn plugin(name: &str) -> PluginSpec {
    let program = std::env::current_exe().expect("this program has a path");
    let folder = program.ancestors().nth(2).expect("it is in a target folder");
    parse(&folder.join(name).display().to_string()).expect("a plugin")
}

fn dataset() -> Dataset {
    dataset_of([1, 28, 28])
}

/// Noise in images of these channels, rows and columns.
fn dataset_of([channels, rows, columns]: [i64; 3]) -> Dataset {
    let split = || Split {
        images: Tensor::randint(256, [POINTS, channels, rows, columns], (Kind::Uint8, Device::Cpu)),
        labels: Tensor::randint(10, [POINTS], (Kind::Int64, Device::Cpu)),
    };
    Dataset {
        name: "noise".to_owned(),
        train: split(),
        test: split(),
        classes: 10,
        class_names: Vec::new(),
        checksums: BTreeMap::new(),
        remarks: Vec::new(),
        origin: Origin::Own,
    }
}

/// A sampler step. With one particle, the relative cost of the plugin boundary is largest.
fn sampler_step(criterion: &mut Criterion, particles: i64) {
    let _guard = plugin_api::tch::no_grad_guard();
    let (natural, gradient) = (images(particles), images(particles) - 0.5);
    let (labels, loss) = (
        Tensor::zeros([particles], (Kind::Int64, Device::Cpu)),
        Tensor::zeros([particles], (Kind::Float, Device::Cpu)),
    );
    let points: Vec<i64> = (0..particles).collect();
    let random = Drawn(images(particles).randn_like());
    let step = || Step {
        natural: &natural,
        labels: &labels,
        particles: &natural,
        loss: &loss,
        gradient: &gradient,
        state: &[],
        points: &points,
        particles_per_point: 1,
        number: 0,
        of: 1,
        threat: ThreatModel::default(),
        random: Random::new(&random),
    };
    let mut group = criterion.benchmark_group(format!("langevin step of {particles}"));
    let direct = Langevin::new(Options::default()).expect("default options");
    group.bench_function("called directly", |bench| bench.iter(|| direct.step(&step()).expect("a step")));
    let loaded = open_sampler(&plugin("liblangevin.so")).expect("built").plugin.create("{}").expect("made");
    group.bench_function("through the .so", |bench| {
        bench.iter(|| loaded.step(&step(), &random).expect("a step"));
    });
    group.finish();
}

fn project(criterion: &mut Criterion) {
    let (candidate, natural) = (images(BATCH) * 1.5, images(BATCH));
    let threat = ThreatModel::default();
    criterion.bench_function("project", |bench| bench.iter(|| threat.project(&candidate, &natural)));
}

fn store(criterion: &mut Criterion) {
    let examples = Examples::new(&dataset().train, 0, POINTS as usize, Device::Cpu).expect("enough memory");
    let mut store =
        ParticleStore::new(&examples.part(0, 1), 1, &[], Threat::default(), Format::F32, Place::Memory)
            .expect("enough memory");
    let indices = Tensor::randperm(POINTS, (Kind::Int64, Device::Cpu)).narrow(0, 0, BATCH);
    let (natural, _) = examples.batch(&indices).expect("in memory");
    criterion.bench_function("particles load", |bench| bench.iter(|| store.load(&indices, &natural)));
    let stored = store.load(&indices, &natural);
    criterion
        .bench_function("particles save", |bench| bench.iter(|| store.save(&indices, &natural, &stored)));
}

/// The work of an update outside its passes. The optimisers run on the weights of architectures A
/// and B.
fn beside_the_passes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("beside the passes");
    let split = Split {
        images: Tensor::randint(256, [60_000, 1, 28, 28], (Kind::Uint8, Device::Cpu)),
        labels: Tensor::zeros([60_000], (Kind::Int64, Device::Cpu)),
    };
    let examples = Examples::new(&split, 0, 60_000, Device::Cpu).expect("enough memory");
    let indices = Tensor::randperm(60_000, (Kind::Int64, Device::Cpu)).narrow(0, 0, BATCH);
    group.bench_function("batch of 60,000 points", |bench| bench.iter(|| examples.batch(&indices)));
    let points: Vec<i64> = (0..BATCH).collect();
    let like = images(BATCH);
    let mut update = 0;
    group.bench_function("noise", |bench| {
        bench.iter(|| {
            update += 1;
            let draws = Draws::new(0, Purpose::Training, update, &points, 1);
            draws.draw(Distribution::Normal, &like).expect("numbers")
        });
    });
    for arch in ["A", "B"] {
        let model =
            LoadedModel::build(&plugin(&format!("libcnn.so,arch={arch}")), dataset().task(), Device::Cpu, 0)
                .expect("built");
        let trainable = model.trainable();
        let gradients: Vec<_> = trainable.iter().map(|(_, weights)| weights.detach().ones_like()).collect();
        for (name, algorithm, momentum) in [
            ("sgd", Algorithm::Sgd, 0.0),
            ("sgd with momentum", Algorithm::Sgd, 0.9),
            ("adam", Algorithm::Adam, 0.0),
        ] {
            let settings = Settings { algorithm, momentum, weight_decay: 0.0 };
            let mut optimizer = Optimizer::new(settings, &trainable);
            group.bench_function(format!("{name}, {arch}"), |bench| {
                bench.iter(|| optimizer.step(&gradients, 1e-9));
            });
        }
    }
    group.finish();
}

fn update(criterion: &mut Criterion) {
    let dataset = dataset();
    let points: Vec<i64> = (0..BATCH).collect();
    let mut group = criterion.benchmark_group("update");
    group.sample_size(20);
    for (name, sampler, mode, precision) in [
        ("clean f32", false, Mode::Faithful, Precision::F32),
        ("faithful f32", true, Mode::Faithful, Precision::F32),
        ("fused f32", true, Mode::Fused, Precision::F32),
        ("clean bf16", false, Mode::Faithful, Precision::Bf16),
        ("faithful bf16", true, Mode::Faithful, Precision::Bf16),
        ("fused bf16", true, Mode::Fused, Precision::Bf16),
    ] {
        let mut experiment = Experiment::default();
        (experiment.train.mode, experiment.train.precision) = (mode, precision);
        let model = LoadedModel::build(&plugin("libcnn.so"), dataset.task(), Device::Cpu, 0).expect("built");
        let sampler = sampler.then(|| Sampler::make(&plugin("liblangevin.so")).expect("built"));
        let objective = Objective::make(&experiment.train.objective).expect("an objective");
        let players = (model, objective, sampler);
        let mut training =
            Training::new(experiment, players, (None, None), &dataset, Device::Cpu).expect("enough memory");
        group.bench_function(name, |bench| bench.iter(|| training.update_on(&points).expect("an update")));
    }
    group.finish();
}

/// The share of an update that the guards around calls of plugins take, in every mode: the time of
/// a guard of the model, which is lent most, for each call. Printed, since criterion prints no ratios.
fn guards(_: &mut Criterion) {
    const GUARDS: u32 = 20_000;
    const UPDATES: u32 = 30;
    let (dataset, points) = (dataset(), (0..BATCH).collect::<Vec<_>>());
    for arch in ["A", "B"] {
        for mode in [Mode::Faithful, Mode::Fused] {
            let mut experiment = Experiment::default();
            (experiment.train.mode, experiment.train.replay) = (mode, 1);
            let build = || {
                let spec = plugin(&format!("libcnn.so,arch={arch}"));
                LoadedModel::build(&spec, dataset.task(), Device::Cpu, 0).expect("built")
            };
            let (model, images) = (build(), images(BATCH));
            let started = Instant::now();
            for _ in 0..GUARDS {
                let lent = [("images", &images)].into_iter().chain(model.lent(true));
                Guard::before(lent).and_then(|guard| guard.after("nothing")).expect("no change");
            }
            let guard = started.elapsed() / GUARDS;
            let sampler = Some(Sampler::make(&plugin("liblangevin.so")).expect("built"));
            let steps = sampler.as_ref().map_or(0, |sampler| sampler.steps) as u32;
            // A forward and a step of the sampler for each step, and the forward of the weights.
            let calls = if mode == Mode::Fused { 2 } else { 2 * steps + 1 };
            let parts = (None, None);
            let objective = Objective::make(&experiment.train.objective).expect("an objective");
            let players = (build(), objective, sampler);
            let mut training =
                Training::new(experiment, players, parts, &dataset, Device::Cpu).expect("enough memory");
            training.update_on(&points).expect("an update");
            let started = Instant::now();
            (0..UPDATES).for_each(|_| training.update_on(&points).expect("an update"));
            let update = started.elapsed() / UPDATES;
            let share = 100.0 * guard.as_secs_f64() * f64::from(calls) / update.as_secs_f64();
            println!(
                "guards, {arch}, {mode:?}: {guard:?} for each of {calls} calls, {share:.3} % of an update of {update:?}"
            );
        }
    }
}

/// The cost of a call of a network in Python that does nothing, and the share of an update that it
/// would take, with the network B and with ResNet-18 (10 classes of 3 x 32 x 32). Printed as for
/// [`guards`]. The median of calls, since the first ones are slower.
fn crossing(_: &mut Criterion) {
    const CALLS: usize = 2_000;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/nothing.py");
    let spec = plugin(&format!("libpython.so,plugin=python-model,file={file}"));
    let task = dataset().task();
    let model = match LoadedModel::build(&spec, task, Device::Cpu, 0) {
        Ok(model) => model,
        Err(why) => return println!("crossing into Python: not measured: {}", why.first_line()),
    };
    let images = images(BATCH);
    let mut times: Vec<_> = (0..CALLS)
        .map(|_| {
            let started = Instant::now();
            let _ = model.forward(&images, true).expect("logits");
            started.elapsed()
        })
        .collect();
    times.sort();
    let call = times[CALLS / 2];
    println!("crossing into Python: {call:?} a call, the host's checks included");
    for (name, spec, shape, updates) in
        [("B", "libcnn.so,arch=B", [1, 28, 28], 30), ("ResNet-18", "libresnet.so", [3, 32, 32], 3)]
    {
        let dataset = dataset_of(shape);
        let points: Vec<_> = (0..BATCH).collect();
        let mut experiment = Experiment::default();
        (experiment.train.mode, experiment.train.replay) = (Mode::Fused, 1);
        let model = LoadedModel::build(&plugin(spec), dataset.task(), Device::Cpu, 0).expect("built");
        let sampler = Some(Sampler::make(&plugin("liblangevin.so")).expect("built"));
        let objective = Objective::make(&experiment.train.objective).expect("an objective");
        let players = (model, objective, sampler);
        let mut training =
            Training::new(experiment, players, (None, None), &dataset, Device::Cpu).expect("enough memory");
        training.update_on(&points).expect("an update");
        let started = Instant::now();
        (0..updates).for_each(|_| training.update_on(&points).expect("an update"));
        let update = started.elapsed() / updates;
        // A network and a sampler in Python: a call of each.
        let share = 100.0 * 2.0 * call.as_secs_f64() / update.as_secs_f64();
        println!("crossing into Python, {name}: 2 calls are {share:.3} % of a fused update of {update:?}");
    }
}

/// All pairs of images of MNIST's size, as sparse as its digits. In elements (pairs) per second.
fn pairs(criterion: &mut Criterion) {
    const COMPARED: i64 = 4000;
    let [light, dark] = [(); 2].map(|()| images(COMPARED));
    let split = Split {
        images: (&light * 255.0 * dark.gt(0.75)).to_kind(Kind::Uint8),
        labels: Tensor::randint(10, [COMPARED], (Kind::Int64, Device::Cpu)),
    };
    let points = Points::new(&split, COMPARED as usize).expect("points");
    let mut group = criterion.benchmark_group("pairs of training points");
    group.throughput(Throughput::Elements(points.pairs()));
    group.sample_size(10);
    // With a radius of 0.6, all pairs are within 2 epsilon, and no comparison ends early.
    for (norm, epsilon) in [(Norm::Linf, 0.3), (Norm::Linf, 0.6), (Norm::L2, 2.0)] {
        group.bench_function(format!("{norm}, epsilon {epsilon}"), |bench| {
            bench.iter(|| points.close_pairs(norm, epsilon, &|_| true).expect("a radius"));
        });
    }
    group.finish();
}

fn all(criterion: &mut Criterion) {
    set_up();
    sampler_step(criterion, BATCH);
    sampler_step(criterion, 1);
    project(criterion);
    store(criterion);
    beside_the_passes(criterion);
    update(criterion);
    pairs(criterion);
    guards(criterion);
    crossing(criterion);
}

criterion_group!(benches, all);
criterion_main!(benches);
