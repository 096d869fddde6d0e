//! The page of a report: one file that needs no other file, no network and no script.

use super::collect::{Gap, Part};
use super::plots::{self, Figure};
use super::table::{Cell, Table};
use super::{CheckSection, DiagnosisSection, Document, GENERATOR, RunSection, SweepSection};
use crate::diagnosis::record::{Diagnosis, Particles, Settings};
use crate::run::Versions;
use crate::util::number::short_number;
use indicatif::HumanCount;
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
    // A page of data checks alone has no sections about runs.
    let has_runs = document.checks.is_empty() || !document.runs.is_empty() || !document.sweeps.is_empty();
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
                        @if has_runs {
                            a href="#results" { "Results" }
                            a href="#cost" { "Error against cost" }
                        }
                        @if !document.sweeps.is_empty() { a href="#sweeps" { "Sweeps" } }
                        @if !document.checks.is_empty() { a href="#data" { "Distances in the data" } }
                        @if has_runs {
                            a href="#runs" { "Runs" }
                            a href="#evaluations-section" { "Evaluations" }
                            a href="#provenance-section" { "How it was made" }
                        }
                    }
                }
                main {
                    @if has_runs {
                        section id="results" {
                            h2 { "Results" }
                            (table(&document.summary, folder))
                        }
                        section id="cost" {
                            h2 { "Error against cost" }
                            (traces(document, folder))
                        }
                    }
                    @if !document.sweeps.is_empty() {
                        section id="sweeps" {
                            h2 { "Sweeps" }
                            @for section in &document.sweeps { (sweep(section, folder)) }
                        }
                    }
                    @if !document.checks.is_empty() {
                        section id="data" {
                            h2 { "Distances in the data" }
                            @for section in &document.checks { (check(section, folder)) }
                        }
                    }
                    @if has_runs {
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
    let RunSection { run, curves, radii, distances, examples, diagnosis: found } = section;
    let of_radii = radii.iter().map(|(figure, _)| figure);
    html! {
        section {
            h3 { (run.name) }
            p { code { (run.path.display()) } }
            div.figures {
                @for one in curves.iter().chain(of_radii).chain(distances).chain(examples) { (figure(one, folder)) }
            }
            @if let [only] = run.epochs.as_slice() {
                p {
                    "There is no curve of one epoch: the loss was " (format!("{:.4}", only.train_loss))
                    ", accuracy on the training examples " (format!("{:.2}", 100.0 * only.train_accuracy)) " %."
                }
            }
            @if let Some((_, counts)) = radii { (table(counts, folder)) }
            @if let (Some(init), 0) = (&run.record.init, run.record.experiment.train.epochs) {
                p { "This network was not trained here: it has " (init.origin()) ", SHA-256 of all tensors " code { (init.weights_sha256) } "." }
            }
            @if let Some(found) = found { (diagnosis(found, folder)) }
            (missing(run.gaps.iter().filter(|gap| gap.part != Part::Trace)))
        }
    }
}

fn diagnosis(section: &DiagnosisSection, folder: &str) -> Markup {
    let DiagnosisSection { found, tables, figures } = section;
    let Settings { update, points, threat, .. } = &found.settings;
    html! {
        h4 { "How far the particles are from the law" }
        p {
            "At the weights of update " (update) ", around " (points.len()) " training points. The law of lambda has the \
             density exp(lambda * loss) on the ball of radius " (threat.epsilon) " (" (threat.norm) ") cut to the \
             domain; every loss is the cross-entropy in evaluation mode."
        }
        ul { @for sentence in sentences(found) { li { (sentence) } } }
        div.figures { @for one in figures { (figure(one, folder)) } }
        @for one in tables { (table(one, folder)) }
    }
}

/// What a diagnosis found, in sentences.
fn sentences(found: &Diagnosis) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(Particles { places, w_infinity, close_points, .. }) = &found.particles {
        let assumption = match close_points {
            0 => "holds: no two training points are within 2 epsilon".to_owned(),
            points => {
                let points = HumanCount(*points as u64);
                format!("does not hold: {points} training points are within 2 epsilon of another one")
            }
        };
        sentences.push(format!(
            "W_inf between the stored particles and the training points is {w_infinity:.4}; a particle is up to \
             {:.4} away from its own point, and epsilon is {}. Assumption 3.1 {assumption}.",
            places.largest, found.settings.threat.epsilon
        ));
    }
    let effective = [
        ("The stored particles are", &found.effective_of_stored),
        ("At these weights, the run's own chain is", &found.effective_of_chain),
    ];
    sentences.extend(effective.into_iter().filter_map(|(who, effective)| {
        Some(format!("{who} as adversarial as the law of lambda {}.", effective.as_ref()?))
    }));
    let broken: Vec<_> =
        found.order.iter().filter(|order| !order.holds()).map(|order| short_number(order.lambda)).collect();
    match (found.order.len(), broken.as_slice()) {
        (0, _) => {}
        (rungs, []) => sentences.push(format!(
            "E_uniform <= g <= E_q <= max holds at all {rungs} values of lambda, within two standard errors."
        )),
        (_, broken) => sentences.push(format!(
            "E_uniform <= g <= E_q <= max fails at lambda {}, by more than two standard errors: there, chains do \
             not mix, or they find more than the maximiser.",
            broken.join(", ")
        )),
    }
    if let Some(game) = &found.game {
        sentences.push(format!(
            "The adversary could gain {:.4} in mean loss with other particles ({}), the classifier {:.4} with other \
             weights.",
            game.adversary_gains, game.adversary, game.classifier_gains
        ));
    }
    sentences
}

fn check(section: &CheckSection, folder: &str) -> Markup {
    let CheckSection { check: collected, table: counts, figures } = section;
    let found = &collected.check.found;
    html! {
        section {
            h3 { (collected.name) ", " (collected.check.norm) ", epsilon " (collected.check.epsilon) }
            p { code { (collected.path.display()) } }
            p { strong { (found.verdict()) } ": " (found.bound()) "." }
            (table(counts, folder))
            ul {
                li {
                    "Pairs within 2 epsilon: the balls of radius epsilon around the two points touch or overlap. A \
                     particle in both balls does not tell which point it began at (Assumption 3.1). With the same \
                     label, this makes no error."
                }
                li {
                    "Pairs of equal images: no epsilon separates them. With different labels, they are errors \
                     without any attack."
                }
                li {
                    "Smallest distance: half of that between different labels is the radius below which these \
                     points allow a classifier without any error."
                }
                li {
                    (HumanCount(found.points_in_pairs as u64)) " points are in at least one pair within 2 epsilon, "
                    (HumanCount(found.points_in_conflict as u64)) " in one of different labels."
                }
                li {
                    "The bound is a lower bound of the error of every classifier on these training points: it counts \
                     points in disjoint pairs of different labels (halves, where pairs form odd cycles). Compare \
                     Proposition 3.6, and Bhagoji et al. 2019 (lower bounds on adversarial robustness from optimal \
                     transport)."
                }
            }
            div.figures { @for one in figures { (figure(one, folder)) } }
            (missing(&collected.gaps))
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
    fn a_diagnosis_is_told_in_sentences() {
        let mut found: Diagnosis =
            serde_json::from_slice(&crate::util::fuzz::corpus("diagnosis.json")).expect("a diagnosis");
        let told = sentences(&found).join("\n");
        for words in [
            "training points is 0.2800; a particle is up to 0.3000 away from its own point, and epsilon is 0.3.",
            "does not hold: 1,234 training points are within 2 epsilon of another one",
            "own chain is as adversarial as the law of lambda 31.6 (12.5 to above 100).",
            "fails at lambda 10, by more",
            "could gain 0.4200 in mean loss with other particles (the maximiser), the classifier 0.0500",
        ] {
            assert!(told.contains(words), "{words} is not in {told}");
        }
        let particles = found.particles.as_mut().expect("measured");
        particles.close_points = 0;
        found.order.remove(2);
        let told = sentences(&found).join("\n");
        for words in ["Assumption 3.1 holds", "holds at all 3 values of lambda"] {
            assert!(told.contains(words), "{words} is not in {told}");
        }
    }

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
