//! `host report`: the results of runs and sweeps, as one page to read, and as tables and figures
//! for a paper.

pub(crate) mod collect;
mod html;
mod method;
mod paper;
mod plots;
mod table;
mod tables;

use crate::Result;
use collect::{CollectedSweep, Collection, Run};
use plots::{Figure, Rasteriser};
use std::collections::BTreeSet;
use table::Table;

/// Whether a report writes files of this name into its folder.
pub(crate) fn is_file_of_report(name: &str) -> bool {
    const OF_TABLES: [&str; 2] = ["csv", "md"];
    const OF_FIGURES: [&str; 2] = ["png", "svg"];
    let Some((name, ending)) = name.rsplit_once('.') else { return false };
    if OF_TABLES.contains(&ending) {
        let fixed = ["summary", "evaluations", "provenance", "plugins"];
        return fixed.contains(&name) || name.starts_with("sweep-");
    }
    let unnumbered = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let unnumbered = if unnumbered == name { name } else { unnumbered.trim_end_matches('-') };
    let ends_in = |parts: &[&str]| parts.iter().any(|part| unnumbered.ends_with(part));
    OF_FIGURES.contains(&ending)
        && (["trace-passes", "trace-backprops"].contains(&unnumbered)
            || (name.starts_with("sweep-") && ends_in(&["-curves", "-map"]))
            || (name.starts_with("run-") && ends_in(&["-curves", "-distances", "-examples"])))
}

/// Whether the contents of a file are the page of a report.
pub(crate) fn is_page_of_report(contents: &[u8]) -> bool {
    let marker = format!("<meta name=\"generator\" content=\"{GENERATOR}\">");
    contents.windows(marker.len()).any(|window| window == marker.as_bytes())
}

/// The generator that a page names in its head.
const GENERATOR: &str = "host report";

/// A report, ready to be written.
pub(crate) struct Report {
    /// The page. It needs no other file.
    pub page: String,
    /// Tables and figures by file name.
    pub files: Vec<(String, Vec<u8>)>,
}

/// The parts of a report.
struct Document<'a> {
    summary: Table,
    evaluations: Table,
    provenance: Table,
    plugins: Table,
    traces: Vec<Figure>,
    sweeps: Vec<SweepSection<'a>>,
    runs: Vec<RunSection<'a>>,
}

struct SweepSection<'a> {
    sweep: &'a CollectedSweep,
    tables: Vec<Table>,
    figures: Vec<Figure>,
    /// Why some figures are not drawn.
    not_drawn: Vec<String>,
}

struct RunSection<'a> {
    run: &'a Run,
    curves: Option<Figure>,
    distances: Option<Figure>,
    examples: Option<Figure>,
}

/// Makes the report. Its page links to the files in a folder of the name given beside it.
///
/// # Errors
/// If a figure cannot be drawn, which is a defect.
pub(crate) fn make(collection: &Collection, folder: &str) -> Result<Report> {
    let document = Document::new(collection)?;
    let rasteriser = Rasteriser::new();
    let mut files = Vec::new();
    for table in document.tables() {
        files.push((format!("{}.csv", table.name), table.csv().into_bytes()));
        files.push((format!("{}.md", table.name), table.markdown().into_bytes()));
    }
    for figure in document.figures() {
        files.push((format!("{}.svg", figure.name), figure.svg.clone().into_bytes()));
        files.push((format!("{}.png", figure.name), rasteriser.png(&figure.svg)?));
    }
    Ok(Report { page: html::page(&document, folder), files })
}

impl<'a> Document<'a> {
    fn new(collection: &'a Collection) -> Result<Self> {
        let mut taken = BTreeSet::new();
        let sweeps = collection.sweeps.iter().map(|sweep| {
            let name = file_name(&format!("sweep-{}", sweep.name), &mut taken);
            let (figures, not_drawn) = plots::sweep(sweep, &name)?;
            Ok(SweepSection { sweep, tables: tables::sweep(sweep, &name), figures, not_drawn })
        });
        let sweeps = sweeps.collect::<Result<_>>()?;
        let runs = collection.runs.iter().map(|run| {
            let name = file_name(&format!("run-{}", run.name), &mut taken);
            let threat = &run.record.experiment.threat;
            let trained_in = &run.record.experiment.training_threat();
            let distances = run.distances.as_ref().map(|found| plots::distances(found, trained_in, &name));
            let classes = match run.record.data.name.as_str() {
                "cifar-10" => &CIFAR_CLASSES.map(str::to_owned),
                _ => run.record.data.class_names.as_slice(),
            };
            let examples = run.examples.as_ref().map(|strip| plots::strip(strip, threat, classes, &name));
            Ok(RunSection {
                run,
                curves: plots::curves(run, &name)?,
                distances: distances.transpose()?,
                examples: examples.transpose()?,
            })
        });
        Ok(Self {
            runs: runs.collect::<Result<_>>()?,
            sweeps,
            traces: plots::traces(&collection.runs)?,
            summary: tables::summary(&collection.runs),
            evaluations: tables::evaluations(&collection.runs),
            provenance: tables::provenance(&collection.runs),
            plugins: tables::plugins(&collection.runs),
        })
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        let of_runs = [&self.summary, &self.evaluations, &self.provenance, &self.plugins];
        of_runs.into_iter().chain(self.sweeps.iter().flat_map(|section| &section.tables))
    }

    fn figures(&self) -> impl Iterator<Item = &Figure> {
        let of_runs = self
            .runs
            .iter()
            .flat_map(|section| section.curves.iter().chain(&section.distances).chain(&section.examples));
        self.traces.iter().chain(self.sweeps.iter().flat_map(|section| &section.figures)).chain(of_runs)
    }
}

/// The names of CIFAR-10's classes, in the order of their labels.
const CIFAR_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// A name for files and links that is not taken yet.
fn file_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    /// File systems allow 255 bytes, endings included.
    const LONGEST: usize = 100;
    let plain =
        |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '-' };
    let plain: String = name.chars().map(plain).take(LONGEST).collect();
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut names = std::iter::once(plain.clone()).chain(numbered);
    names.find(|name| taken.insert(name.clone())).unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_and_differ() {
        let mut taken = BTreeSet::new();
        let mut name = |name: &str| file_name(name, &mut taken);
        assert_eq!(name("run-a/b,c=1"), "run-a-b-c-1");
        assert_eq!(name("run-a b,c=1"), "run-a-b-c-1-2");
        assert_eq!(name("run-ä"), "run--");
    }

    #[test]
    fn files_of_reports_are_told_from_others() {
        for name in [
            "summary.csv",
            "plugins.md",
            "trace-passes.svg",
            "trace-backprops-2.png",
            "sweep-grid.csv",
            "sweep-grid-seeds.md",
            "sweep-grid-curves-1.svg",
            "sweep-grid-map-12.png",
            "run-a-b-c-1-2-curves.svg",
            "run-demo-examples.png",
        ] {
            assert!(is_file_of_report(name), "{name}");
        }
        for name in [
            "thesis.md",
            "photo.png",
            "summary.txt",
            "summary.png",
            "summary",
            "summary.csv.bak",
            "trace-passes.csv",
            "trace-passes-mine.svg",
            "run-demo.png",
            "run-demo-curves.csv",
            "sweep-grid.png",
            ".summary.csv",
        ] {
            assert!(!is_file_of_report(name), "{name}");
        }
    }

    #[test]
    fn pages_of_reports_are_told_from_others() {
        let nothing = Collection { runs: Vec::new(), sweeps: Vec::new() };
        let report = make(&nothing, "report").expect("a report");
        assert!(is_page_of_report(report.page.as_bytes()));
        assert!(report.files.iter().all(|(name, _)| is_file_of_report(name)));
        assert!(!is_page_of_report(b"<!DOCTYPE html><title>Report</title>"));
        assert!(!is_page_of_report(b""));
    }
}
