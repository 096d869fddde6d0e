use super::signals::stop_on_signals;
use crate::command::arguments::ReportArguments;
use crate::error::{absolute, shown};
use crate::report;
use crate::report::Report;
use crate::report::collect::Collector;
use crate::run::RunFolder;
use crate::torch::device::set_threads;
use crate::util::console::{Style, begin, say};
use crate::util::files;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// `host report`
pub fn run(arguments: &ReportArguments) -> Result<u8> {
    // Nothing is kept of an unfinished report: a stop ends it at once.
    stop_on_signals(&arguments.stop)?;
    begin(Style::Human);
    let place = Place::new(&arguments.out, arguments.force)?;
    set_threads(None)?;
    let mut collector = Collector::new(
        arguments.data_folder.as_deref(),
        arguments.plugins.as_deref(),
        arguments.allow_changed,
    );
    let collection = collector.collect(&arguments.runs)?;
    let report = report::make(&collection, &place.folder_name())?;
    place.write(&report)?;
    let gaps = collection.gaps();
    if gaps > 0 {
        say(format_args!("{gaps} gaps are marked, each with a command or advice to fill it"));
    }
    let runs = collection.runs.len();
    let checks = match collection.checks.len() {
        0 => String::new(),
        checks => format!(" and {checks} data checks"),
    };
    say(format_args!("report of {runs} runs{checks}: {}", shown(&place.page)));
    say(format_args!("tables and figures: {}", shown(&place.folder)));
    Ok(0)
}

/// The location of a report: a page, and a folder of the same name beside it.
struct Place {
    page: PathBuf,
    folder: PathBuf,
}

impl Place {
    /// Refuses to overwrite anything, or with `force` anything but an earlier report.
    fn new(page: &Path, force: bool) -> Result<Self> {
        if page.extension().is_none_or(|ending| ending != "html") {
            return Err(Error::new(format!(
                "--out: expected a file whose name ends in .html, got {}",
                page.display()
            )));
        }
        let page = absolute(page);
        let place = Self { folder: page.with_extension(""), page };
        if RunFolder::open(&place.folder).is_ok() {
            return Err(Error::new(format!(
                "{} holds a run: the tables and figures of {} would go into that folder",
                shown(&place.folder),
                shown(&place.page)
            ))
            .fix("choose another name with --out"));
        }
        for path in [&place.page, &place.folder] {
            if path.exists() && !force {
                return Err(Error::new(format!("{} already exists", shown(path)))
                    .fix("choose another name with --out, or replace an earlier report with --force"));
            }
        }
        if place.page.exists() && !place.page.is_file() {
            return Err(Error::new(format!("{} is not a file", shown(&place.page))));
        }
        if place.page.exists() && !report::is_page_of_report(&files::read(&place.page)?) {
            return Err(not_of_report(&place.page));
        }
        if place.folder.exists() {
            place.earlier_files()?;
        }
        Ok(place)
    }

    fn folder_name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The files of an earlier report in the folder, also of one that was killed.
    fn earlier_files(&self) -> Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(&self.folder).map_err(|why| Error::file("read", &self.folder, why))?.flatten();
        let files: Vec<_> = entries.map(|entry| entry.path()).collect();
        let is_of_report = |path: &Path| {
            let name = path.file_name().and_then(|name| name.to_str());
            let is_leftover = path.file_name().is_some_and(files::is_leftover);
            path.is_file() && (is_leftover || name.is_some_and(report::is_file_of_report))
        };
        match files.iter().find(|path| !is_of_report(path)) {
            None => Ok(files),
            Some(path) => Err(not_of_report(path)),
        }
    }

    /// Writes the files and then the page. Removes the other files of an earlier report.
    fn write(&self, report: &Report) -> Result<()> {
        files::create_folders(&self.folder)
            .map_err(|why| Error::file("create", &self.folder, why).on_the_way())?;
        for (name, contents) in &report.files {
            files::write_whole(&self.folder.join(name), contents)?;
        }
        files::write_whole(&self.page, report.page.as_bytes())?;
        let is_new = |path: &PathBuf| {
            report.files.iter().any(|(name, _)| path.file_name().is_some_and(|file| file == name.as_str()))
        };
        for path in self.earlier_files()?.iter().filter(|path| !is_new(path)) {
            files::remove_file(path).map_err(|why| Error::file("remove", path, why).on_the_way())?;
        }
        Ok(())
    }
}

fn not_of_report(path: &Path) -> Error {
    Error::new(format!("{} was not written by `host report`", shown(path)))
        .fix("move it, or choose another name with --out")
}
