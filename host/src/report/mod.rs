//! `host report`: the results of runs, sweeps and data checks, as one page to read, and as tables and
//! figures for a paper.

pub(crate) mod collect;
mod html;
mod method;
mod paper;
mod plots;
mod table;
mod tables;

use crate::Result;
use crate::diagnosis::record::Diagnosis;
use collect::{CollectedCheck, CollectedSweep, Collection, Run};
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
        let of_check = name.starts_with("data-") && name.ends_with("-pairs");
        let of_diagnosis =
            is_of_diagnosis(name, &["particles", "losses", "law", "chains", "game", "transfer"]);
        let of_radii = name.starts_with("run-") && name.ends_with("-radii");
        return fixed.contains(&name) || name.starts_with("sweep-") || of_check || of_diagnosis || of_radii;
    }
    let unnumbered = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let unnumbered = if unnumbered == name { name } else { unnumbered.trim_end_matches('-') };
    let ends_in = |parts: &[&str]| parts.iter().any(|part| unnumbered.ends_with(part));
    OF_FIGURES.contains(&ending)
        && (is_of_diagnosis(name, &["places", "lambda", "dual"])
            || ["trace-passes", "trace-backprops"].contains(&unnumbered)
            || (name.starts_with("sweep-") && ends_in(&["-curves", "-map"]))
            || (name.starts_with("data-") && ends_in(&["-same-pairs", "-different-pairs"]))
            || (name.starts_with("run-") && ends_in(&["-curves", "-distances", "-examples", "-radii"])))
}

/// Whether a file belongs to one of these parts of a run's diagnosis.
fn is_of_diagnosis(name: &str, parts: &[&str]) -> bool {
    let part = name.rsplit_once("-diagnosis-").map(|(_, part)| part);
    name.starts_with("run-") && part.is_some_and(|part| parts.contains(&part))
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
    checks: Vec<CheckSection<'a>>,
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
    radii: Option<(Figure, Table)>,
    distances: Option<Figure>,
    examples: Option<Figure>,
    diagnosis: Option<DiagnosisSection<'a>>,
}

struct DiagnosisSection<'a> {
    found: &'a Diagnosis,
    tables: Vec<Table>,
    figures: Vec<Figure>,
}

struct CheckSection<'a> {
    check: &'a CollectedCheck,
    table: Table,
    figures: Vec<Figure>,
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
            let trained_in = &run.record.experiment.training_threat();
            let distances = run.distances.as_ref().map(|found| plots::distances(found, trained_in, &name));
            let classes = &class_names(&run.record.data.name, &run.record.data.class_names);
            let examples = run.examples.as_ref().map(|strip| plots::strip(strip, classes, &name));
            let diagnosis = run.diagnosis.as_ref().map(|found| -> Result<_> {
                let (tables, figures) = (tables::diagnosis(found, &name), plots::diagnosis(found, &name)?);
                Ok(DiagnosisSection { found, tables, figures })
            });
            Ok(RunSection {
                run,
                curves: plots::curves(run, &name)?,
                radii: plots::radii(run, &name)?.zip(tables::radii(run, &name)),
                distances: distances.transpose()?,
                examples: examples.transpose()?,
                diagnosis: diagnosis.transpose()?,
            })
        });
        let runs = runs.collect::<Result<_>>()?;
        let checks = collection.checks.iter().map(|check| {
            let name = file_name(&format!("data-{}", check.name), &mut taken);
            let classes = class_names(&check.check.data.name, &check.check.data.class_names);
            let of_kind = |(pairs, kind): (&Vec<_>, _)| {
                (!pairs.is_empty()).then(|| plots::pairs(&check.check, pairs, kind, &classes, &name))
            };
            let pictures =
                check.pictures.iter().flat_map(|pictures| pictures.iter().zip(["same", "different"]));
            let figures = pictures.filter_map(of_kind).collect::<Result<_>>()?;
            Ok(CheckSection { check, table: tables::pairs(check, &name), figures })
        });
        let checks = checks.collect::<Result<_>>()?;
        Ok(Self {
            checks,
            runs,
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
        let of_sweeps = self.sweeps.iter().flat_map(|section| &section.tables);
        let diagnoses = self.runs.iter().filter_map(|section| section.diagnosis.as_ref());
        let of_diagnoses = diagnoses.flat_map(|diagnosis| &diagnosis.tables);
        let of_radii = self.runs.iter().filter_map(|section| Some(&section.radii.as_ref()?.1));
        of_runs
            .into_iter()
            .chain(of_sweeps)
            .chain(of_diagnoses)
            .chain(of_radii)
            .chain(self.checks.iter().map(|section| &section.table))
    }

    fn figures(&self) -> impl Iterator<Item = &Figure> {
        let of_runs = self.runs.iter().flat_map(|section| {
            let of_diagnosis = section.diagnosis.iter().flat_map(|diagnosis| &diagnosis.figures);
            let of_radii = section.radii.iter().map(|(figure, _)| figure);
            section
                .curves
                .iter()
                .chain(of_radii)
                .chain(&section.distances)
                .chain(&section.examples)
                .chain(of_diagnosis)
        });
        let of_sweeps = self.sweeps.iter().flat_map(|section| &section.figures);
        let of_checks = self.checks.iter().flat_map(|section| &section.figures);
        self.traces.iter().chain(of_sweeps).chain(of_runs).chain(of_checks)
    }
}

/// The names of CIFAR-10's classes, in the order of their labels.
const CIFAR_CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The names of a data set's classes, in the order of their labels, if they are known.
fn class_names(data: &str, recorded: &[String]) -> Vec<String> {
    if data == "cifar-10" { CIFAR_CLASSES.map(str::to_owned).into() } else { recorded.to_owned() }
}

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
            "run-demo-diagnosis-lambda.svg",
            "run-demo-diagnosis-losses.csv",
            "run-demo-diagnosis-chains.md",
            "run-demo-radii.csv",
            "run-demo-2-radii.svg",
            "data-mnist-pairs.csv",
            "data-mnist-2-same-pairs.svg",
            "data-digits-different-pairs.png",
        ] {
            assert!(is_file_of_report(name), "{name}");
        }
        for name in [
            "run-demo-diagnosis-notes.md",
            "diagnosis-losses.csv",
            "demo-radii.csv",
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
            "data-mnist.csv",
            "data-mnist-pairs.png",
            ".summary.csv",
        ] {
            assert!(!is_file_of_report(name), "{name}");
        }
    }

    #[test]
    fn pages_of_reports_are_told_from_others() {
        let nothing = Collection { runs: Vec::new(), sweeps: Vec::new(), checks: Vec::new() };
        let report = make(&nothing, "report").expect("a report");
        assert!(is_page_of_report(report.page.as_bytes()));
        assert!(report.files.iter().all(|(name, _)| is_file_of_report(name)));
        assert!(!is_page_of_report(b"<!DOCTYPE html><title>Report</title>"));
        assert!(!is_page_of_report(b""));
    }
}
