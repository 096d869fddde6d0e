//! Checks that a call does not change the process.

use crate::errors::unusable;
use crate::tensors::{act, no_result, results};
use crate::toy::{Instance, Problem};
use crate::{Check, Library, Outcome, Plugin, Table, Verdict};
use plugin_api::tch::{self, Cuda, Device, Kind, Tensor};
use std::fs;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

pub const CHECKS: [Check; 6] = [
    Check::new("hygiene-grad-mode", "gradient tracking does not change", grad_mode).after(&["errors-drop"]),
    Check::new("hygiene-precision", "the precision of arithmetic does not change", precision)
        .after(&["errors-drop"]),
    Check::of_library(
        "hygiene-process",
        "settings of libtorch, signals, standard streams, working directory and environment do not change",
        process,
    )
    .after(&["errors-drop"]),
    Check::new("hygiene-threads", "libtorch's number of threads does not change", threads)
        .after(&["errors-drop"]),
    Check::new("hygiene-leftovers", "a call leaves no open file and no thread", leftovers),
    Check::new("hygiene-memory", "memory does not grow over many calls", memory),
];

/// The state of the process after a call that works and after one that fails. Settings are not
/// restored before `measure`.
fn after_calls<T>(
    plugin: &Plugin,
    seed: u64,
    measure: impl Fn() -> T,
) -> Result<[(&'static str, T); 2], Outcome> {
    let batch = Problem::new(seed).batch(0..4);
    let instance = Instance::new(plugin, &batch)?;
    let inputs = || batch.inputs(&instance).map_err(no_result);
    let (good, bad) = (inputs()?, unusable(inputs()?));
    let threads = tch::get_num_threads();
    let after = |inputs| {
        let _ = instance.act_unguarded(&batch, inputs);
        let state = measure();
        tch::set_num_threads(threads);
        state
    };
    Ok([("a call", after(&good)), ("an error", after(&bad))])
}

/// Whether gradient tracking is on.
fn tracking() -> bool {
    (Tensor::from(1.0).set_requires_grad(true) * 2.0).requires_grad()
}

fn grad_mode(plugin: &Plugin, seed: u64) -> Verdict {
    for before in [false, true] {
        let calls = || after_calls(plugin, seed, tracking);
        let after = if before { tch::with_grad(calls) } else { tch::no_grad(calls) }?;
        if let Some((call, after)) = after.into_iter().find(|(_, after)| *after != before) {
            return Ok(Outcome::failed(
                format!("gradient tracking {} as before", on_or_off(before)),
                format!("{} after {call}", on_or_off(after)),
            ));
        }
    }
    Ok(Outcome::Passed)
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Properties of libtorch's arithmetic, by name.
type Arithmetic = [(&'static str, String); 4];

fn arithmetic() -> Arithmetic {
    let values = Tensor::arange(64 * 64, (Kind::Float, Device::Cpu)).reshape([64, 64]).sin();
    let product = values.matmul(&values);
    let tiny = Tensor::from_slice(&[f32::MIN_POSITIVE]) * 0.5;
    let quotient = Tensor::from_slice(&[1i64]).true_divide(&Tensor::from_slice(&[3i64]));
    [
        ("default dtype", format!("{:?}", quotient.kind())),
        (
            "matrix product in f32",
            format!("{:?} {:e}", product.kind(), product.sum(Kind::Double).double_value(&[])),
        ),
        (
            "smallest numbers",
            if tiny.double_value(&[0]) > 0.0 { "kept" } else { "flushed to zero" }.to_owned(),
        ),
        ("cuDNN", on_or_off(Cuda::user_enabled_cudnn()).to_owned()),
    ]
}

/// libtorch's arithmetic before this process called any plugin.
static BEFORE: OnceLock<Arithmetic> = OnceLock::new();

/// Measures libtorch's arithmetic at the first call, before any call of a plugin.
pub fn before_all_calls() -> &'static Arithmetic {
    BEFORE.get_or_init(arithmetic)
}

fn precision(plugin: &Plugin, seed: u64) -> Verdict {
    let before = before_all_calls();
    for (call, after) in after_calls(plugin, seed, arithmetic)? {
        for ((what, before), (_, after)) in before.iter().zip(after) {
            if *before != after {
                return Ok(Outcome::failed(
                    format!("{what}: {before}, as before"),
                    format!("{after} after {call}"),
                ));
            }
        }
    }
    Ok(Outcome::Passed)
}

fn process(library: &dyn Library, seed: u64) -> Verdict {
    let plugin = library.plugin().map_err(|why| Outcome::failed("a library that can be opened", why))?;
    let changes = after_calls(plugin, seed, || library.changes_of_process())?;
    let changed = changes.into_iter().find_map(|(call, change)| Some((call, change?)));
    Ok(changed.map_or(Outcome::Passed, |(call, change)| {
        Outcome::failed(
            "the process as it was before the first call",
            format!("after {call}, changed: {change}"),
        )
    }))
}

fn threads(plugin: &Plugin, seed: u64) -> Verdict {
    let before = tch::get_num_threads();
    let changed =
        after_calls(plugin, seed, tch::get_num_threads)?.into_iter().find(|(_, after)| *after != before);
    Ok(changed.map_or(Outcome::Passed, |(call, after)| {
        Outcome::failed(format!("{before} threads"), format!("{after} after {call}"))
    }))
}

/// Open files and threads of this process.
type Held = [(&'static str, usize); 2];

fn held() -> Held {
    let count = |folder: &str| fs::read_dir(folder).map(Iterator::count).unwrap_or_default();
    [("open files", count("/proc/self/fd")), ("threads", count("/proc/self/task"))]
}

/// How often, and how long apart, open files and threads are counted. A thread that a call has
/// waited for may still be ending: its thread-local values are dropped after its result is there.
const COUNTS: (usize, Duration) = (100, Duration::from_millis(10));

/// What this process holds when nothing is ending any more: the smallest of several counts.
pub fn settled() -> Held {
    let mut least = held();
    for _ in 0..COUNTS.0 / 4 {
        sleep(COUNTS.1);
        least = smaller(least, held());
    }
    least
}

/// What this process holds now: no more than `before`, unless something is left behind.
fn held_after(before: Held) -> Held {
    let mut least = held();
    for _ in 0..COUNTS.0 {
        if smaller(least, before) == least {
            break;
        }
        sleep(COUNTS.1);
        least = smaller(least, held());
    }
    least
}

fn smaller(one: Held, other: Held) -> Held {
    std::array::from_fn(|index| (one[index].0, one[index].1.min(other[index].1)))
}

/// Passes if nothing is left behind since `before`.
pub fn demand_nothing_left(before: Held, when: &str) -> Outcome {
    let after = held_after(before);
    Outcome::demand(smaller(after, before) == after, format!("{before:?}"), format!("{after:?}{when}"))
}

fn leftovers(plugin: &Plugin, seed: u64) -> Verdict {
    let batch = || Problem::new(seed).batch(0..4);
    // The first call may start libtorch's own threads.
    results(plugin, &batch())?;
    let before = settled();
    results(plugin, &batch())?;
    Ok(demand_nothing_left(before, ""))
}

/// Resident memory varies by up to this without a leak. A leak of one result of a sampler or attack
/// per call is several times as large.
const RESIDENT_SLACK: u64 = 8 << 20;

/// The number of allocated bytes is exact; libtorch's own caches grow by less than this. A leak of
/// one result of a model per call is several times as large.
const HEAP_SLACK: u64 = 128 << 10;

fn memory(plugin: &Plugin, seed: u64) -> Verdict {
    let (points, calls) = match plugin.table {
        Table::Model(_) => (16, 1000),
        Table::Sampler(_) | Table::Objective(_) => (64, 1000),
        // A call of an attack takes many passes.
        Table::Attack(_) => (64, 40),
    };
    let batch = Problem::new(seed).batch(0..points);
    let instance = Instance::new(plugin, &batch)?;
    let used_after = |calls: usize| {
        (0..calls).try_for_each(|_| act(&instance, &batch).map(drop))?;
        // Threads that are still ending hold memory.
        settled();
        Ok::<_, Outcome>((resident_bytes(), heap_bytes()))
    };
    let (resident, heap) = used_after(calls / 4)?;
    let (resident_then, heap_then) = used_after(calls)?;
    let grown = [
        ("resident", resident_then.saturating_sub(resident), RESIDENT_SLACK),
        ("allocated", heap_then.saturating_sub(heap), HEAP_SLACK),
    ];
    let leak = grown.into_iter().find(|(_, grown, slack)| grown > slack);
    Ok(leak.map_or(Outcome::Passed, |(what, grown, slack)| {
        Outcome::failed(
            format!("less than {slack} more bytes {what} after {calls} calls"),
            format!("{grown} more"),
        )
    }))
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or_default()
        * 1024
}

/// Bytes that the process has allocated and not freed.
fn heap_bytes() -> u64 {
    // SAFETY: mallinfo2 only reads the allocator's counters.
    let counters = unsafe { libc::mallinfo2() };
    (counters.uordblks + counters.hblkhd) as u64
}
