use super::signals::stop_on_signals;
use crate::command::arguments::SweepArguments;
use crate::error::shown;
use crate::sweep::check::check;
use crate::sweep::folder::SweepFolder;
use crate::sweep::worker::{Outcome, Worker};
use crate::sweep::{Setting, Sweep, axis, short};
use crate::util::console::{Indicator, Style, say, warn};
use crate::util::interrupt::heed;
use crate::util::number::counted;
use crate::{INTERRUPTED, Result};
use comfy_table::{Table, presets};

/// `host sweep`
pub fn run(arguments: &SweepArguments) -> Result<u8> {
    let stop = stop_on_signals(&arguments.stop)?;
    let sweep = Sweep::read(&arguments.file)?;
    let folder = SweepFolder::for_file(&arguments.file, arguments.out.as_deref())?;
    folder.agrees_with(&sweep)?;
    check(&sweep)?;
    let mine = |number: &usize| arguments.task.is_none_or(|task| task.has(*number));
    let mine: Vec<_> = (1..).zip(&sweep.settings).filter(|(number, _)| mine(number)).collect();
    if arguments.dry_run {
        list(&sweep, &folder, &mine);
        return Ok(0);
    }
    folder.create(&arguments.file)?;
    say(format_args!(
        "sweep folder {}: {}{}",
        shown(folder.path()),
        counted(sweep.settings.len(), "run"),
        arguments.task.map_or(String::new(), |_| format!(", {} of them in this task", mine.len()))
    ));
    heed();
    let indicator =
        Indicator::new(Style::Human, mine.len() as u64, "runs", "{pos}/{len} runs [{bar:20}] {wide_msg}");
    let (sweep, folder, retry_failed) = (&sweep, &folder, arguments.retry_failed);
    let stop_signal = arguments.stop.signal;
    let worker = Worker { sweep, folder, retry_failed, stop: &stop, stop_signal, indicator };
    let Outcome { failed, damaged, busy, interrupted } = worker.finish_all(&mine)?;
    worker.indicator.finish();
    let summary = folder.summarise(sweep)?;
    if interrupted {
        warn("stopped; the same command goes on from here");
        return Ok(INTERRUPTED);
    }
    for name in busy {
        say(format_args!("{name}: another process is working on it"));
    }
    say(summary.tables());
    say(format_args!("summary: {}", shown(&folder.file("summary.csv"))));
    if failed > 0 {
        warn(format_args!(
            "{failed} of {} failed; --retry-failed tries them again",
            counted(mine.len(), "run")
        ));
    }
    if damaged > 0 {
        let all = counted(mine.len(), "run");
        warn(format_args!("{damaged} of {all} were left unchanged: a file is unreadable"));
    }
    Ok(u8::from(failed + damaged > 0))
}

/// `--dry-run`
fn list(sweep: &Sweep, folder: &SweepFolder, mine: &[(usize, &Setting)]) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let axes = sweep.axes.iter().map(|key| short(key).to_owned());
    table.set_header(
        ["run".to_owned()].into_iter().chain(axes).chain(["status", "folder"].map(str::to_owned)),
    );
    for (number, setting) in mine {
        let status = folder.row(sweep, setting).status.name().to_owned();
        let values = setting.values.iter().map(axis::text);
        table.add_row([number.to_string()].into_iter().chain(values).chain([status, setting.name.clone()]));
    }
    say(table);
    say(format_args!("{}, in {}", counted(mine.len(), "run"), shown(folder.path())));
}
