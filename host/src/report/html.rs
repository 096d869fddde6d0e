//! The page of a report: one file that needs no other file, no network and no script.

use super::collect::{Gap, Part};
use super::plots::{self, Figure};
use super::table::{Cell, Table};
use super::{Document, GENERATOR, RunSection, SweepSection};
use crate::run::Versions;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The page. It links to files in a folder of the name given beside it.
pub(super) fn page(document: &Document, folder: &str) -> String {
    let versions = Versions::current();
    let style = [
        include_str!("style.css"),
        "@media screen and (prefers-color-scheme: dark){",
        &plots::dark_style(),
        "}",
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(GENERATOR);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Report" }
                style { (PreEscaped(style.concat())) }
            }
            body {
                header {
                    h1 { "Report" }
                    p {
                        (document.runs.len()) " runs; made by host " (versions.host) " (contract " (versions.contract)
                        ", libtorch " (versions.libtorch) "). Tables and figures lie in the folder " code { (folder) } "."
                    }
                    nav aria-label="Sections" {
                        a href="#results" { "Results" }
                        a href="#cost" { "Error against cost" }
                        @if !document.sweeps.is_empty() { a href="#sweeps" { "Sweeps" } }
                        a href="#runs" { "Runs" }
                        a href="#evaluations-section" { "Evaluations" }
                        a href="#provenance-section" { "How it was made" }
                    }
                }
                main {
                    section id="results" {
                        h2 { "Results" }
                        (table(&document.summary, folder))
                    }
                    section id="cost" {
                        h2 { "Error against cost" }
                        (traces(document, folder))
                    }
                    @if !document.sweeps.is_empty() {
                        section id="sweeps" {
                            h2 { "Sweeps" }
                            @for section in &document.sweeps { (sweep(section, folder)) }
                        }
                    }
                    section id="runs" {
                        h2 { "Runs" }
                        @for section in &document.runs { (run(section, folder)) }
                    }
                    section id="evaluations-section" {
                        h2 { "Evaluations" }
                        (table(&document.evaluations, folder))
                    }
                    section id="provenance-section" {
                        h2 { "How it was made" }
                        (table(&document.provenance, folder))
                        (table(&document.plugins, folder))
                    }
                }
            }
        }
    }
    .into_string()
}

fn traces(document: &Document, folder: &str) -> Markup {
    let none = Gap {
        part: Part::Trace,
        what: "no run measured its error while it trained".to_owned(),
        fix: "host train --trace fgsm.so (it cannot be measured afterwards)".to_owned(),
    };
    let of_runs = document.runs.iter().flat_map(|section| section.run.gaps_of(Part::Trace));
    html! {
        div.figures { @for one in &document.traces { (figure(one, folder)) } }
        (missing(of_runs.chain(document.traces.is_empty().then_some(&none))))
    }
}

fn sweep(section: &SweepSection, folder: &str) -> Markup {
    html! {
        section {
            h3 { (section.sweep.name) }
            div.figures { @for one in &section.figures { (figure(one, folder)) } }
            @for why in &section.not_drawn { p { (why) } }
            @for one in &section.tables { (table(one, folder)) }
            (missing(&section.sweep.gaps))
        }
    }
}

fn run(section: &RunSection, folder: &str) -> Markup {
    let RunSection { run, curves, distances, examples } = section;
    html! {
        section {
            h3 { (run.name) }
            p { code { (run.path.display()) } }
            div.figures {
                @for one in curves.iter().chain(distances).chain(examples) { (figure(one, folder)) }
            }
            @if let [only] = run.epochs.as_slice() {
                p {
                    "There is no curve of one epoch: the loss was " (format!("{:.4}", only.train_loss))
                    ", accuracy on the training examples " (format!("{:.2}", 100.0 * only.train_accuracy)) " %."
                }
            }
            (missing(run.gaps.iter().filter(|gap| gap.part != Part::Trace)))
        }
    }
}

/// What is missing in a part of the page, each gap with the command that fills it, in one line.
fn missing<'a>(gaps: impl IntoIterator<Item = &'a Gap>) -> Markup {
    let mut gaps = gaps.into_iter().peekable();
    html! {
        @if gaps.peek().is_some() {
            p.gap {
                strong { "Missing: " }
                @for (number, gap) in gaps.enumerate() {
                    @if number > 0 { "; " }
                    (gap.what) " (" code { (gap.fix) } ")"
                }
                "."
            }
        }
    }
}

fn figure(figure: &Figure, folder: &str) -> Markup {
    let Figure { name, title, alternative, caption, svg } = figure;
    html! {
        figure id=(name) {
            div.scroll tabindex="0" role="img" aria-label=(alternative) { (PreEscaped(svg)) }
            figcaption {
                strong { (title) ". " } (caption) " "
                (files(folder, name, &["svg", "png"]))
            }
        }
    }
}

fn table(table: &Table, folder: &str) -> Markup {
    let Table { name, caption, header, rows, notes } = table;
    html! {
        p id=(format!("{name}-caption")) { (caption) " " (files(folder, name, &["csv", "md"])) }
        @if rows.is_empty() {
            p.gap { "There is nothing to show." }
        } @else {
            div.scroll tabindex="0" role="region" aria-labelledby=(format!("{name}-caption")) {
                table id=(name) aria-labelledby=(format!("{name}-caption")) {
                    thead { tr { @for column in header { th scope="col" { (column) } } } }
                    tbody {
                        @for row in rows {
                            tr.paper[row.of_paper] {
                                @for (number, one) in row.cells.iter().enumerate() {
                                    @if number == 0 {
                                        th scope="row" { (cell(one, name)) }
                                    } @else {
                                        td.number[one.content.is_number()] { (cell(one, name)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        @if !notes.is_empty() {
            ol.notes {
                @for (number, note) in notes.numbered() { li id=(format!("{name}-note-{number}")) { (note) } }
            }
        }
    }
}

fn cell(cell: &Cell, table: &str) -> Markup {
    html! {
        // Specs of plugins have no spaces. Lines may break after their commas.
        @for part in cell.content.shown().split_inclusive(',') { (part) wbr; }
        @for line in cell.content.certainty().iter().flatten() { " " small { (line) } }
        @for note in &cell.notes {
            sup { a href=(format!("#{table}-note-{note}")) { (note) } " " }
        }
    }
}

fn files(folder: &str, name: &str, endings: &[&str]) -> Markup {
    html! {
        span.files {
            @for ending in endings {
                a href=(format!("{}/{name}.{ending}", percent_encoded(folder))) { (ending.to_uppercase()) } " "
            }
        }
    }
}

/// A name in a link (RFC 3986): all but unreserved characters as `%XX`.
fn percent_encoded(name: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_line() {
        let gap = |what: &str| Gap { part: Part::Trace, what: what.to_owned(), fix: format!("host {what}") };
        assert_eq!(missing(&[]).into_string(), "");
        let line = missing(&[gap("one"), gap("two")]).into_string();
        let expected = "<p class=\"gap\"><strong>Missing: </strong>one (<code>host one</code>); \
                        two (<code>host two</code>).</p>";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_first_column_of_a_table_is_fixed_on_the_screen_and_not_on_paper() {
        let style = include_str!("style.css");
        let (screen, paper) = style.split_once("@media print").expect("rules for paper");
        assert!(screen.contains("th:first-child { position: sticky; left: 0;"));
        assert!(paper.contains("th:first-child { position: static; }"));
    }

    #[test]
    fn folders_of_any_name_can_be_linked_to() {
        assert_eq!(percent_encoded("report-1.a_b~"), "report-1.a_b~");
        assert_eq!(percent_encoded("50 %#?ä"), "50%20%25%23%3F%C3%A4");
    }
}
