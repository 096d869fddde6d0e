use super::refuse_taken;
use super::signals::stop_on_signals;
use crate::command::arguments::{CheckArguments, DataCommand, PackArguments, style};
use crate::data::pack::write::{self, Packed, Packing};
use crate::data::pairs::{CheckedData, PairCheck, Points, check_epsilon};
use crate::data::{DataSpec, RESIZE};
use crate::error::{absolute, shown};
use crate::torch::device::set_threads;
use crate::util::console::{Indicator, Style, begin, quoted, say, warn};
use crate::util::files;
use crate::util::interrupt::heed;
use crate::{Error, INTERRUPTED, Result, data};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, HumanCount};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// `host data`
pub fn run(command: &DataCommand) -> Result<u8> {
    match command {
        DataCommand::Fetch { name, data_folder } => {
            let folder = data::fetch(name, data_folder, &|text| say(text))?;
            say(format_args!("{name} is in {}", folder.display()));
        }
        DataCommand::Check(arguments) => return check(arguments),
        DataCommand::Pack(arguments) => return pack(arguments),
        DataCommand::List { data_folder } => {
            for name in data::NAMES {
                let status = match data::load(name, data_folder) {
                    Ok(dataset) => {
                        let [train, test] = [dataset.train.count(), dataset.test.count()];
                        let findings = dataset.findings()?.into_iter().map(|finding| format!("; {finding}"));
                        format!(
                            "present: {train} training and {test} test images, {} classes{}",
                            dataset.classes,
                            findings.collect::<String>()
                        )
                    }
                    Err(error) if data_folder.join(name).exists() => {
                        format!("damaged: {}", error.to_string().lines().next().unwrap_or_default())
                    }
                    Err(_) => format!("missing; run `host data fetch {name}`"),
                };
                say(format_args!("{name:15}{status}"));
            }
        }
    }
    Ok(0)
}

/// `host data pack`
fn pack(arguments: &PackArguments) -> Result<u8> {
    let PackArguments { source, out, size, skip_bad, data_folder, threads, stop, json } = arguments;
    let style = style(*json);
    let (stop, started) = (stop_on_signals(stop)?, Instant::now());
    begin(style);
    set_threads(*threads)?;
    heed();
    let indicator = Indicator::new(style, 1, "done", "{msg} [{bar:30}] {percent} %, {eta} left");
    let shown_before = Mutex::new("");
    let show = |what: &'static str, done: usize, all: usize| {
        let mut before = shown_before.lock().unwrap_or_else(PoisonError::into_inner);
        indicator.set_length(all as u64);
        if std::mem::replace(&mut *before, what) != what {
            indicator.begin_at(0);
        }
        indicator.show(done as u64, || format!("{what} of {}", shown(out)));
    };
    let packing = Packing { source, data_folder, out, size: *size, skip_bad: *skip_bad };
    let packed = write::pack(&packing, &show, &stop)?;
    indicator.finish();
    let Some(packed) = packed else {
        warn("stopped before the pack was whole; the same command goes on");
        return Ok(INTERRUPTED);
    };
    let seconds = started.elapsed().as_secs_f64();
    match style {
        Style::Json => say(serde_json::json!({"seconds": seconds, "pack": packed})),
        Style::Human => show_pack(&packed, seconds),
    }
    Ok(0)
}

/// Prints what was packed for people.
fn show_pack(packed: &Packed, seconds: f64) {
    let Packed { folder, image: [channels, height, width], classes, splits, resumed } = packed;
    say(format_args!(
        "packed        {}: {channels} x {height} x {width} pixels, {classes} classes",
        shown(folder)
    ));
    for (name, split) in splits {
        let images = HumanCount(split.images as u64);
        say(format_args!("{name:14}{images} images, {} in their file", HumanBytes(split.bytes)));
        for (image, why) in &split.left_out {
            warn(format_args!("{image} is left out: {why}"));
        }
    }
    let images = splits.values().map(|split| split.images).sum::<usize>() - resumed;
    let bytes = (images * channels * height * width) as f64;
    let before = if *resumed > 0 {
        format!(", after {} of an earlier process", HumanCount(*resumed as u64))
    } else {
        String::new()
    };
    say(format_args!(
        "time          {seconds:.1} s: {:.0} images/s, {:.0} MB/s{before}",
        images as f64 / seconds,
        bytes / 1e6 / seconds
    ));
    say(format_args!("use           --data {}", quoted(shown(folder))));
}

/// `host data check`
fn check(arguments: &CheckArguments) -> Result<u8> {
    let CheckArguments { data: name, norm, data_folder, force, .. } = arguments;
    let (norm, epsilon, style) = (*norm, f64::from(arguments.epsilon), style(arguments.json));
    let stop = stop_on_signals(&arguments.stop)?;
    begin(style);
    check_epsilon(epsilon)?;
    let out = arguments.out.as_deref().map(absolute);
    out.as_deref().map_or(Ok(()), |out| check_place(out, *force))?;
    set_threads(arguments.threads)?;
    let name = &match arguments.resize {
        Some(side) => DataSpec::parse(name)?.with(RESIZE, side).to_string(),
        None => name.clone(),
    };
    let dataset = data::load(name, data_folder)?;
    if dataset.train.count() == 0 {
        return Err(Error::new(format!("{} has no training images to compare", dataset.name))
            .fix("give data that have both splits"));
    }
    let count = arguments.train_points.unwrap_or(dataset.train.count() as usize);
    let points = Points::new(&dataset.train, count)?;
    dataset.findings()?.iter().for_each(warn);

    heed();
    let (started, compared) = (Instant::now(), AtomicU64::new(0));
    let indicator =
        Indicator::new(style, points.pairs(), "pairs", "{msg} [{bar:30}] {percent} %, {eta} left");
    let found = points.close_pairs(norm, epsilon, &|more| {
        let now = compared.fetch_add(more, Relaxed) + more;
        indicator.show(now, || format!("comparing points of {}", dataset.name));
        !stop.load(Relaxed)
    })?;
    indicator.finish();
    let Some(found) = found else {
        warn("stopped before all pairs were compared; there is no result");
        return Ok(INTERRUPTED);
    };
    let check = PairCheck {
        data: CheckedData::new(&dataset, name, data_folder),
        norm,
        epsilon,
        found,
        seconds: started.elapsed().as_secs_f64(),
    };
    match style {
        Style::Json => say(serde_json::to_string(&check).map_err(Error::new)?),
        Style::Human => show(&check),
    }
    if let Some(out) = out {
        files::write_sealed(&out, [serde_json::to_string_pretty(&check)])?;
        if style == Style::Human {
            say(format_args!("saved: {}", shown(&out)));
        }
    }
    Ok(0)
}

/// Refuses a place for the result that has something else.
fn check_place(out: &Path, force: bool) -> Result<()> {
    if !(force && out.is_file()) {
        return refuse_taken(
            out,
            "choose another name with --out, or replace an earlier result with --force",
        );
    }
    files::read_sealed::<PairCheck>(out).map(drop).map_err(|why| {
        Error::new(format!("{} is no result of `host data check`", shown(out)))
            .note("because", why.first_line())
            .fix("move it, or choose another name with --out")
    })
}

/// Prints the answer for people.
fn show(check: &PairCheck) {
    let PairCheck { data, norm, epsilon, found, seconds } = check;
    let name = DataSpec::recorded(&data.name);
    let name = shown(name.path());
    say(format_args!("data          {name}: {} training points", HumanCount(found.points as u64)));
    say(format_args!("threat model  {norm}, epsilon {epsilon}: 2 epsilon is {}", 2.0 * epsilon));
    say(format_args!(
        "compared      {} pairs in {seconds:.1} s, {:.3e} pairs per second",
        HumanCount(found.compared),
        found.compared as f64 / seconds
    ));
    let kinds = [("same", &found.same_label), ("different", &found.different_label)];
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["labels", "within 2 epsilon", "equal images", "smallest distance"]);
    for (name, kind) in kinds {
        let smallest = kind.smallest.map_or("no pair".to_owned(), |distance| format!("{distance:.4}"));
        table.add_row([
            name.to_owned(),
            HumanCount(kind.within).to_string(),
            HumanCount(kind.equal).to_string(),
            smallest,
        ]);
    }
    let mut closest = Table::new();
    closest.load_style(presets::UTF8_FULL_CONDENSED);
    closest.set_header(["closest pairs", "points", "classes", "distance"]);
    for (name, kind) in kinds {
        for pair in &kind.closest {
            let [one, other] = pair.points;
            let [class, other_class] = pair.labels.map(|label| data.class(label));
            closest.add_row([
                format!("{name} label"),
                format!("{one}, {other}"),
                format!("{class}, {other_class}"),
                format!("{:.4}", pair.distance),
            ]);
        }
    }
    for table in [&mut table, &mut closest] {
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    }
    say(format_args!("{table}\n{closest}"));
    say(found.verdict());
    say(found.bound());
}
