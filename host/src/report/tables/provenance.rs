//! The tables of the commands, software, data and plugins of the runs.

use crate::config::Role;
use crate::plugin::Record;
use crate::report::collect::{Run, shell_words};
use crate::report::table::{Column, Table, text};
use crate::run::RunRecord;

/// The command that began a run, and those that extended it.
fn commands(record: &RunRecord) -> String {
    let extensions = record.extensions.iter().map(|extension| &extension.command);
    let commands = std::iter::once(&record.command).chain(extensions);
    commands.map(|words| shell_words(words.iter().map(String::as_str))).collect::<Vec<_>>().join("; then ")
}

/// The command, software and data of every run.
pub(in crate::report) fn provenance(runs: &[Run]) -> Table {
    type Of<'a> = Column<'a, &'a Run>;
    let columns = [
        Of::plain("run", |run| text(&run.name)),
        Of::plain("command", |run| text(commands(&run.record))),
        Of::plain("started", |run| text(&run.record.started)),
        Of::plain("seed", |run| text(run.record.experiment.train.seed)),
        Of::plain("threads", |run| {
            let threads = run.record.experiment.train.threads;
            text(threads.map_or("all cores".to_owned(), |threads| threads.to_string()))
        }),
        Of::plain("device", |run| text(&run.record.experiment.train.device)),
        Of::plain("host", |run| text(&run.record.versions.host)),
        Of::plain("contract", |run| text(run.record.versions.contract)),
        Of::plain("libtorch", |run| text(&run.record.versions.libtorch)),
        Of::plain("data (MD5)", |run| {
            let data = &run.record.data;
            let checksums: Vec<_> =
                data.checksums.iter().map(|(file, md5)| format!("{file} {md5}")).collect();
            text(format!("{}: {}", data.name, checksums.join(", ")))
        }),
    ];
    let caption = "The commands that started the runs, and the software and data they used.";
    Table::new("provenance", caption, &columns, runs)
}

/// A plugin of a run.
struct Used<'a> {
    run: &'a Run,
    role: Role,
    record: &'a Record,
}

/// The plugins of every run and its evaluations. A plugin with the same role, spec and library is
/// listed once for each run.
pub(in crate::report) fn plugins(runs: &[Run]) -> Table {
    type Of<'a> = Column<'a, Used<'a>>;
    let columns = [
        Of::plain("run", |used| text(&used.run.name)),
        Of::plain("used as", |used| text(used.role.name())),
        Of::plain("plugin", |used| text(&used.record.spec)),
        Of::plain("name", |used| text(&used.record.manifest.name)),
        Of::plain("version", |used| text(&used.record.manifest.version)),
        Of::plain("contract", |used| text(used.record.manifest.contract)),
        Of::plain("libtorch", |used| text(&used.record.manifest.libtorch)),
        Of::plain("SHA-256", |used| text(&used.record.sha256)),
    ];
    let caption = "The plugins of the runs and of their evaluations.";
    Table::new("plugins", caption, &columns, runs.iter().flat_map(used))
}

/// The plugins of a run and its evaluations, each once.
fn used(run: &Run) -> Vec<Used<'_>> {
    let attacks = run.evaluations.iter().flat_map(|evaluation| &evaluation.plugins);
    let mut listed: Vec<Used> = Vec::new();
    for (role, record) in run.record.plugins.iter().chain(attacks.map(|record| (Role::Attack, record))) {
        let is_same = |used: &Used| {
            used.role == role && (&used.record.spec, &used.record.sha256) == (&record.spec, &record.sha256)
        };
        if !listed.iter().any(is_same) {
            listed.push(Used { run, role, record });
        }
    }
    listed
}
