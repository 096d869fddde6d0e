//! `host report`: pages, tables and figures of complete and incomplete runs and sweeps.

use crate::data::{digits, write};
use crate::eval::trained;
use crate::harness::{Place, built, edit, write_sealed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn read(place: &Place, file: &str) -> String {
    fs::read_to_string(place.path(file)).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// The lines of a table's CSV file by the names of its columns.
fn csv(place: &Place, file: &str) -> Vec<BTreeMap<String, String>> {
    let text = read(place, file);
    let mut lines = text.lines().map(fields);
    let header = lines.next().expect("a header");
    let named = |line: Vec<String>| {
        assert_eq!(line.len(), header.len(), "{line:?}");
        header.iter().cloned().zip(line).collect()
    };
    lines.map(named).collect()
}

/// The fields of a line of comma-separated values.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("a field").push(letter),
        }
    }
    fields
}

/// The page must be well-formed (every element is closed, in order), must need no other file or
/// address, must have no scripts, and must have a text for every figure.
fn assert_well_formed(page: &str) {
    const VOID: [&str; 6] = ["br", "meta", "wbr", "link", "img", "hr"];
    assert!(page.starts_with("<!DOCTYPE html>"), "{}", &page[..100.min(page.len())]);
    let (mut open, mut ids, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = page.trim_start_matches("<!DOCTYPE html>");
    while let Some(start) = rest.find('<') {
        let end =
            start + rest[start..].find('>').unwrap_or_else(|| panic!("a tag has no end: {}", &rest[start..]));
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default();
        assert!(!["script", "iframe", "object"].contains(&name), "<{tag}>");
        let value = |attribute: &str| {
            let (_, value) = tag.split_once(&format!(" {attribute}=\""))?;
            Some(value.split('"').next().unwrap_or_default().to_owned())
        };
        ids.extend(value("id"));
        for attribute in ["href", "src"] {
            let address = value(attribute).unwrap_or_default();
            assert!(!address.starts_with("http") && !address.starts_with("//"), "<{tag}>");
            targets.extend(address.strip_prefix('#').map(str::to_owned));
        }
        if value("role").as_deref() == Some("img") {
            assert!(value("aria-label").is_some_and(|text| text.len() > 20), "<{tag}>");
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes something else");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id is there twice");
    for target in targets {
        assert!(ids.contains(&target), "#{target} is nowhere");
    }
}

/// Makes `report.html`, which must be a well-formed page with a folder of files beside it.
pub fn report(place: &Place, arguments: &str) -> String {
    place.host(&format!("report {arguments}")).succeeds();
    let page = read(place, "report.html");
    assert_well_formed(&page);
    for entry in fs::read_dir(place.path("report")).expect("a folder").flatten() {
        let bytes = fs::read(entry.path()).expect("readable");
        match entry.path().extension().and_then(|ending| ending.to_str()).expect("an ending") {
            "png" => assert!(bytes.starts_with(b"\x89PNG\r\n") && bytes.len() > 1000),
            "svg" => assert!(
                bytes.starts_with(b"<svg") && bytes.ends_with(b"</svg>") || bytes.ends_with(b"</svg>\n")
            ),
            "csv" | "md" => assert!(bytes.is_empty() || bytes.ends_with(b"\n")),
            other => panic!("a file that ends in {other}"),
        }
    }
    page
}

/// Makes runs for a report with all parts: two runs, one of them with examples, a trace and
/// particles; a suite; a sweep. Returns the arguments of the report.
pub fn everything(place: &Place) -> &'static str {
    place.host("eval run --attack fgsm.so --attack pgd.so,steps=3 --points 60").succeeds();
    let train = "train --recipe algorithm-1 --data digits --threads 1 --mode faithful --epochs 3 --batch 20 --epsilon 0.1 --optimizer adam \
                 --learning-rate 0.002 --sampler langevin.so,step_size=0.04,noise=0.02 --out other \
                 --validation-points 40 --probe fgsm.so";
    place.host(train).succeeds();
    place.host("eval other --attack pgd.so,steps=10,step_size=0.03 --save-examples").ended_with(0);
    fs::write(place.path("mine.toml"), "attacks = [\"fgsm.so\", \"pgd.so,steps=3\"]").expect("written");
    place.host("eval other --suite mine.toml --seed 9").ended_with(0);
    let line = |steps: u64, passes: f64, accuracy: f64| {
        json!({
            "updates": steps, "optimizer_steps": steps, "passes_per_sample": passes, "seconds": 0.5,
            "clean_accuracy": 0.9, "attack_accuracy": accuracy, "attack": "fgsm.so", "points": 50,
        })
        .to_string()
    };
    let trace = [line(0, 0.0, 0.1), line(2, 0.5, 0.3), line(18, 2.0, 0.6), line(54, 6.0, 0.75)];
    write_sealed(&place.path("other/trace.jsonl"), &trace.join("\n"));
    write_sweep(place, "grid", &["sampler.noise", "sampler.step_size"]);
    "run other grid"
}

/// Writes the folder of a sweep without its runs, over two values of each axis. The accuracies are
/// 0.5, 0.6 and 0.7; unfinished runs have none.
fn write_sweep(place: &Place, name: &str, axes: &[&str]) {
    fs::create_dir_all(place.path(name)).expect("a folder");
    fs::write(place.path(&format!("{name}/sweep.toml")), "").expect("written");
    let run = |number: usize| {
        let value = |place: usize| json!(0.1 * (1 + (number >> place & 1)) as f64);
        let settings: serde_json::Map<_, _> =
            axes.iter().enumerate().map(|(place, axis)| ((*axis).to_owned(), value(place))).collect();
        let finished = number < 3;
        let figures = if finished {
            json!({"clean": 0.9, "worst_case": 0.5 + 0.1 * number as f64, "passes_per_sample": 4.0})
        } else {
            json!({})
        };
        json!({
            "run": format!("run-{number}"), "settings": settings, "caveats": [], "reason": null,
            "status": if finished { "finished" } else { "waiting" }, "figures": figures, "points": 100,
        })
    };
    let summary = json!({"groups": null, "runs": (0..1 << axes.len()).map(run).collect::<Vec<_>>()});
    write_sealed(&place.path(&format!("{name}/summary.json")), &summary.to_string());
}

#[test]
fn the_numbers_are_those_of_the_evaluations() {
    let place = trained(0.06);
    let page = report(&place, everything(&place));
    let summary = csv(&place, "report/summary.csv");
    let row = |run: &str| summary.iter().find(|row| row["run"] == run).expect("a row");
    let markdown = read(&place, "report/summary.md");
    let agree = |run: &str, column: &str, share: &Value, points: &str| {
        let row = row(run);
        assert_eq!(row[column].parse::<f64>().ok(), share.as_f64(), "{column}");
        assert_eq!(row[&format!("{column}, points")], points);
        let percent = format!("{:.2}", 100.0 * share.as_f64().expect("a share"));
        assert!(page.contains(&percent) && markdown.contains(&percent), "{percent}");
    };
    let evaluations = place.run("run").evaluations();
    let result = &evaluations[0]["result"];
    agree("run", "clean", &result["clean"], "60");
    agree("run", "fgsm.so", &result["attacks"][0]["robust"], "60");
    agree("run", "pgd.so,steps=3", &result["attacks"][1]["robust"], "60");
    let evaluations = place.run("other").evaluations();
    agree(
        "other",
        "pgd.so,steps=10,step_size=0.03",
        &evaluations[0]["result"]["attacks"][0]["robust"],
        "100",
    );
    // A suite has one column, its worst case; its members are among the evaluations.
    agree("other", "mine.toml", &evaluations[1]["result"]["worst_case"], "100");
    assert_eq!(row("other")["fgsm.so"], "");
    assert_eq!(csv(&place, "report/evaluations.csv").len(), 5);
    assert!(row("other")["seed"].contains("attacks also 9"));

    // Wilson's interval of 100 points.
    let share = evaluations[1]["result"]["worst_case"].as_f64().expect("a share");
    let (z, n) = (1.959963984540054f64, 100.0);
    let low = (share + z * z / (2.0 * n) - z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt())
        / (1.0 + z * z / n);
    assert!((row("other")["mine.toml, low"].parse::<f64>().expect("a number") - low).abs() < 1e-12);

    let last = place.run("other").metrics().pop().expect("an epoch");
    assert_eq!(row("other")["passes per sample"], last["passes_per_sample"].to_string());
    assert_eq!(row("other")["training adversary"], last["train_accuracy"].to_string());
    assert!(row("other")["method"].contains("langevin.so,step_size=0.04,noise=0.02; faithful"));
    // Below the method's usual description are the other keys in which the two runs differ.
    assert!(row("run")["method"].starts_with("ordinary training; 4 epochs; "), "{}", row("run")["method"]);
    for part in ["; 3 epochs; ", "; probe=fgsm.so", "; data.validation_points=40"] {
        assert!(row("other")["method"].contains(part), "{}", row("other")["method"]);
    }
    assert!(!row("run")["method"].contains("learning_rate"), "both have the same");
    assert_eq!(row("run")["training adversary"], "", "there was none");
    let version = csv(&place, "report/evaluations.csv")[0]["host"].clone();
    assert_eq!(version, evaluations[0]["versions"]["host"].as_str().expect("a version"));

    // The page has the settings of the runs.
    let record = place.run("other").record();
    let digest = record["plugins"]["sampler"]["sha256"].as_str().expect("a digest");
    assert!(page.contains(digest) && page.contains("--learning-rate 0.002"));
}

#[test]
fn figures_are_made_from_the_data_of_the_runs() {
    let place = trained(0.06);
    let page = report(&place, everything(&place));
    for figure in ["run-run-curves", "run-other-curves", "run-other-examples", "run-other-distances"] {
        assert!(place.path(&format!("report/{figure}.png")).is_file(), "{figure}");
        assert!(page.contains(&format!("id=\"{figure}\"")), "{figure}");
    }
    assert!(!place.path("report/run-run-distances.svg").exists(), "ordinary training has no particles");
    // Only runs with a probe and validation points have their curves.
    assert!(read(&place, "report/run-other-curves.svg").contains("attacked by the probe"));
    assert!(!read(&place, "report/run-run-curves.svg").contains("attacked by the probe"));
    // Three of the trace's points have a place on the logarithmic axis. There is a figure for each
    // cost.
    for (figure, axis) in
        [("trace-passes", "passes per training point"), ("trace-backprops", "as the paper counts")]
    {
        let svg = read(&place, &format!("report/{figure}.svg"));
        assert_eq!(svg.matches("<circle").count(), 3, "{figure}");
        assert!(svg.contains(axis), "{figure}");
    }
    for cost in ["6 passes", "3 backprops"] {
        assert!(page.contains(&format!(": ends at 25.00 per cent after {cost}")), "{cost}");
    }
    let strip = read(&place, "report/run-other-examples.svg");
    let pictures = strip.matches("data:image/png;base64").count();
    assert!(pictures >= 3 && pictures.is_multiple_of(3), "{pictures} pictures in threes");
    assert!(page.contains("white +0.1000, black -0.1000"), "the scale of the perturbation");
    // Two numeric axes give a heat map of every accuracy.
    let map = read(&place, "report/sweep-grid-map-2.svg");
    for word in ["50.0", "60.0", "70.0", "sampler.noise", "sampler.step_size"] {
        assert!(map.contains(word), "{word}");
    }
    assert!(!place.path("report/sweep-grid-map-3.svg").exists(), "costs are no accuracies");
    // By hand from Wilson's formula for 50 of 100: sqrt(0.0025 + 0.0000922) * 1.96 / 1.0384 = 0.0962.
    let says = "from 50.0 (light) to 70.0 (dark); where seeds vary, their median. The 95 % interval of a value \
                reaches at most 9.6 to either side (100 points).";
    assert!(page.contains(says), "the caption of a heat map");
}

#[test]
fn a_sweep_over_numbers_is_a_curve_and_over_words_a_table() {
    let place = Place::empty();
    write_sweep(&place, "noise", &["sampler.noise"]);
    report(&place, "noise");
    let curve = read(&place, "report/sweep-noise-curves-1.svg");
    assert!(curve.contains("worst case") && curve.contains("sampler.noise"));
    // Two settings of two accuracies, and the legend's lines.
    assert_eq!(curve.matches("<circle").count(), 6);
    assert_eq!(csv(&place, "report/sweep-noise.csv")[1]["worst case"], "0.6");

    let mut summary: Value = serde_json::from_str(&read(&place, "noise/summary.json")).expect("JSON");
    for run in summary["runs"].as_array_mut().expect("a list") {
        run["settings"] = json!({"sampler": run["run"]});
    }
    write_sealed(&place.path("noise/summary.json"), &summary.to_string());
    report(&place, "noise --force");
    assert!(
        !place.path("report/sweep-noise-curves-1.svg").exists(),
        "a figure of the earlier report is removed"
    );
    assert_eq!(csv(&place, "report/sweep-noise.csv").len(), 2);
}

#[test]
fn missing_parts_are_marked_with_the_command_that_makes_them() {
    let place = trained(0.06);
    let page = report(&place, "run");
    for words in
        ["there is no evaluation", "host eval run", "host eval run --save-examples", "--trace fgsm.so"]
    {
        assert!(page.contains(words), "{words}");
    }
    let said = place.host("report run --force").succeeds().words();
    assert!(said.contains("2 gaps are marked"), "{said}");

    // A run without weights cannot be evaluated.
    fs::rename(place.path("run/checkpoints"), place.path("aside")).expect("renamed");
    let page = report(&place, "run --force");
    assert!(!page.contains("host eval run") && page.contains("host train --resume run"));
    fs::rename(place.path("aside"), place.path("run/checkpoints")).expect("renamed");

    // A damaged file is marked, too, and the rest is shown.
    fs::write(place.path("run/eval.json"), "{").expect("written");
    write_sealed(&place.path("run/metrics.jsonl"), "{\"epoch\": 1}");
    fs::write(place.path("run/trace.jsonl"), "[1]\n").expect("written");
    let page = report(&place, "run --force");
    for file in ["run/eval.json", "run/metrics.jsonl", "run/trace.jsonl"] {
        assert!(page.contains(&format!("cannot understand {file}")), "{file}");
    }
    write_sealed(&place.path("run/eval.json"), "{\"evaluations\": [{\"result\": 3}]}");
    assert!(report(&place, "run --force").contains("cannot understand run/eval.json"));
}

#[test]
fn a_run_without_its_plugin_data_or_examples_is_reported_with_marks() {
    let place = Place::with_digits(8, 400);
    let model = place.copy_built("libcnn.so");
    let train = format!(
        "train --recipe algorithm-1 --data digits --threads 1 --epochs 3 --batch 20 --optimizer adam --learning-rate 0.002 --epsilon 0.1 \
         --sampler langevin.so,step_size=0.02,noise=0.02 --model {} --out run",
        model.display()
    );
    place.host(&train).ended_with(0);
    place.host("eval run --attack fgsm.so --save-examples --points 1").ended_with(0);
    assert_eq!(place.run("run").evaluations()[0]["result"]["worst_case"], 1.0);
    assert!(report(&place, "run").contains("none fooled the model"));
    place.host("eval run --attack pgd.so,steps=10,step_size=0.1 --save-examples").ended_with(0);
    let whole = report(&place, "run --force");
    assert!(whole.contains("id=\"run-run-examples\"") && whole.contains("id=\"run-run-distances\""));

    let gone = |what: &str, words: &[&str]| {
        fs::rename(place.path(what), place.path("aside")).expect("renamed");
        let page = report(&place, "run --force");
        for word in words {
            assert!(page.contains(word), "without {what} the page must contain {word}");
        }
        assert!(!page.contains("id=\"run-run-examples\""), "{what}");
        fs::rename(place.path("aside"), place.path(what)).expect("renamed");
    };
    gone("digits", &["the adversarial examples cannot be shown", "distances cannot be shown", "digits"]);
    gone("run/checkpoints", &["no checkpoint yet", "host train --resume run"]);
    let newest = place.run("run").evaluations().pop().expect("an evaluation");
    let examples =
        newest["examples"].as_str().expect("a file").rsplit('/').next().expect("a name").to_owned();
    gone(&format!("run/{examples}"), &["the adversarial examples cannot be shown", "--save-examples"]);
    // Examples that were made for other weights are not shown.
    let update = newest["update"].as_u64().expect("an update");
    let evaluations = read(&place, "run/eval.json");
    let older = evaluations.replace(&format!("\"update\": {update}"), "\"update\": 7");
    assert_ne!(older, evaluations);
    write_sealed(&place.path("run/eval.json"), &older);
    let page = report(&place, "run --force");
    assert!(page.contains("made on the weights of update 7") && page.contains("--save-examples"));
    assert!(!page.contains("id=\"run-run-examples\""));
    fs::write(place.path("run/eval.json"), evaluations).expect("written");
    // A library that differs from the recorded one is not used without --allow-changed.
    fs::copy(built("liblangevin.so"), &model).expect("copied");
    assert!(report(&place, "run --force").contains("has changed since the run began"));
    fs::copy(built("libcnn.so"), &model).expect("copied");
    edit(&place.path(&format!("run/{examples}")), |bytes| bytes.truncate(100));
    assert!(report(&place, "run --force").contains("the adversarial examples cannot be shown"));
}

#[test]
fn a_diagnosis_is_shown_and_marked_where_one_is_missing_or_damaged() {
    let place = Place::with_digits(8, 100);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --epochs 1 --batch 20 --epsilon 0.1";
    place.host(&format!("{train} --sampler langevin.so,step_size=0.02,noise=0.02 --out run")).ended_with(0);
    // Only particles that are kept can be diagnosed.
    place.host(&format!("{train} --sampler pgd.so,steps=1,step_size=0.1 --out anew")).ended_with(0);
    assert!(!report(&place, "anew").contains("diagnos"));
    let page = report(&place, "run --force");
    assert!(page.contains("there is no diagnosis (<code>host diagnose run</code>)"));

    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/diagnosis.json");
    fs::copy(saved, place.path("run/diagnosis.json")).expect("copied");
    let page = report(&place, "run --force");
    assert!(!page.contains("there is no diagnosis"));
    for words in ["How far the particles are from the law", "as adversarial as the law of lambda 31.6"] {
        assert!(page.contains(words), "{words}");
    }
    for part in ["places", "lambda", "dual"] {
        assert!(page.contains(&format!("id=\"run-run-diagnosis-{part}\"")), "{part}");
        assert!(place.path(&format!("report/run-run-diagnosis-{part}.png")).is_file(), "{part}");
    }
    for part in ["particles", "losses", "law", "chains", "game", "transfer"] {
        assert!(page.contains(&format!("run-run-diagnosis-{part}.csv")), "{part}");
        assert!(!csv(&place, &format!("report/run-run-diagnosis-{part}.csv")).is_empty(), "{part}");
    }
    // All of these files are a report's, and replaced by the next one.
    edit(&place.path("run/diagnosis.json"), |bytes| bytes.truncate(1000));
    let page = report(&place, "run --force");
    assert!(page.contains("the diagnosis cannot be shown") && page.contains("run/diagnosis.json"));
    assert!(page.contains("move the file away, then host diagnose run"));
    assert!(!place.path("report/run-run-diagnosis-dual.svg").exists());
}

#[test]
fn unfinished_runs_are_marked() {
    let place = Place::with_digits(8, 100);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --epochs 1000 --batch 10 --checkpoint-every 1 --out run";
    place.interrupt(train, "run", libc::SIGINT, |update| update > 12).was_interrupted(&[]);
    let page = report(&place, "run");
    assert!(page.contains("of 1000 epochs are done") && page.contains("host train --resume run"), "{page}");
}

#[test]
fn other_files_are_never_overwritten_and_reports_only_with_force() {
    let place = Place::empty();
    write_sweep(&place, "noise", &["sampler.noise"]);
    place.refuses("report noise --out page", &["--out", ".html", "page"]);
    place.host("report noise --out pages/first.html").succeeds();
    assert!(place.path("pages/first/sweep-noise.csv").is_file());
    place
        .refuses("report noise --out pages/first.html", &["first.html already exists"])
        .explains(&["--force"]);
    fs::remove_file(place.path("pages/first.html")).expect("removed");
    place.refuses("report noise --out pages/first.html", &["pages/first already exists"]);
    place.host("report noise --out pages/first.html --force").succeeds();
    fs::write(place.path("pages/first/thesis.tex"), "years of work").expect("written");
    place.refuses(
        "report noise --out pages/first.html --force",
        &["thesis.tex", "was not written by `host report`"],
    );
    // A user's own picture or page is not treated as part of a report.
    fs::rename(place.path("pages/first/thesis.tex"), place.path("pages/first/thesis.png")).expect("renamed");
    place.refuses(
        "report noise --out pages/first.html --force",
        &["thesis.png", "was not written by `host report`"],
    );
    fs::remove_file(place.path("pages/first/thesis.png")).expect("removed");
    fs::write(place.path("pages/mine.html"), "<!DOCTYPE html><title>Mine</title>").expect("written");
    place.refuses(
        "report noise --out pages/mine.html --force",
        &["mine.html", "was not written by `host report`"],
    );
    assert!(!place.path("pages/mine").exists());
    place.host("report noise --out pages/first.html --force").succeeds();
    place.host("report noise --out ./50%#1.html").succeeds();
    assert!(read(&place, "50%#1.html").contains("href=\"50%25%231/sweep-noise.csv\""));
}

#[test]
fn folders_without_a_run_are_refused() {
    let place = Place::with_digits(8, 20);
    place.refuses("report nowhere", &["nowhere", "neither a run nor a sweep"]);
    place.refuses("report digits", &["digits", "neither a run nor a sweep"]).explains(&["--out"]);
    place.refuses("report", &["required arguments were not provided"]);
    fs::create_dir(place.path("damaged")).expect("a folder");
    fs::write(place.path("damaged/run.json"), "{\"command\": []}").expect("written");
    place.refuses("report damaged", &["cannot understand damaged/run.json"]);
}

#[test]
fn data_that_are_not_the_published_ones_are_not_beside_the_papers_figures() {
    let place = Place::empty();
    // As many test points as MNIST has.
    write(&place.path("data/mnist"), 8, &digits(8, 60, 10, 1), &digits(8, 10_000, 10, 2));
    let train =
        "train --recipe algorithm-1 --model cnn.so,arch=B --threads 1 --epochs 1 --batch 20 --out run";
    let finding = ["the data are not the published mnist", "expected MD5 6bbc9ace898e44ae57da46a324031adb"];
    place
        .host(train)
        .succeeds_with_warning(&finding)
        .explains(&["`host data fetch mnist --data-folder ", "--data FOLDER"]);
    assert!(place.host("data list").succeeds().words().contains(finding[0]));
    place.host("eval run --attack fgsm.so --points 10").succeeds_with_warning(&finding);
    let data = place.run("run").record()["data"].clone();
    assert_eq!(data["published"], false);
    let recorded = data["findings"][0].as_str().expect("a finding").to_owned();
    assert!(recorded.starts_with(finding[0]), "{recorded}");

    let rows = |place: &Place| csv(place, "report/summary.csv").len();
    let page = report(&place, "run");
    assert_eq!(rows(&place), 1);
    assert!(page.contains(finding[0]) && !page.contains("Table 4"));
    // The record of an older version has the checksums only.
    edit_json(&place, "run/run.json", |record| {
        let data = record["data"].as_object_mut().expect("an object");
        data.remove("published");
        data.remove("findings");
    });
    report(&place, "run --force");
    assert_eq!(rows(&place), 1);
    edit_json(&place, "run/run.json", |record| record["data"]["published"] = true.into());
    assert!(report(&place, "run --force").contains("Table 4"));
    assert_eq!(rows(&place), 2);
}

#[test]
fn a_run_of_one_epoch_has_no_curve_and_lists_every_plugin() {
    let place = Place::with_digits(8, 100);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --epochs 1 --batch 20 --train-points 60 --trace fgsm.so --out run";
    place.host(train).ended_with(0);
    let page = report(&place, "run");
    assert!(page.contains("no curve of one epoch") && !place.path("report/run-run-curves.svg").exists());
    let roles: Vec<_> =
        csv(&place, "report/plugins.csv").into_iter().map(|row| row["used as"].clone()).collect();
    assert_eq!(roles, ["model", "sampler", "objective", "trace"]);
    let method = csv(&place, "report/summary.csv")[0]["method"].clone();
    assert!(method.ends_with("; 1 epoch of 60 points"), "{method}");
}

/// Changes a JSON file.
fn edit_json(place: &Place, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_str(&read(place, file)).expect("JSON");
    change(&mut value);
    write_sealed(&place.path(file), &value.to_string());
}

/// Changes the summary of a sweep.
fn edit_summary(place: &Place, sweep: &str, change: impl FnOnce(&mut Value)) {
    edit_json(place, &format!("{sweep}/summary.json"), change);
}

#[test]
fn the_folders_of_a_sweep_take_precedence_over_its_summary() {
    let place = Place::with_digits(8, 100);
    let text = "model = \"bad_plugins.so,plugin=linear\"\nsampler = \"langevin.so\"\n[data]\nname = \"digits\"\n\
                [threat]\nepsilon = 0.05\n[train]\nepochs = 1\nbatch = 20\nthreads = 1\n[eval]\n\
                attacks = [\"fgsm.so\"]\npoints = 30\n[sweep]\nseeds = [0, 1]\neval = true\n\
                [sweep.axes]\ntrain.learning_rate = [0.01, 0.05]\n";
    fs::write(place.path("small.toml"), text).expect("written");
    place.host("sweep small.toml --out small").ended_with(0);
    let page = report(&place, "small");
    let tables =
        || ["sweep-small", "sweep-small-seeds"].map(|name| csv(&place, &format!("report/{name}.csv")));
    let expected = tables();
    assert!(!page.contains("summary.json is old"), "{page}");
    assert_eq!(expected[1][0]["finished"], "2 of 2");

    // The state of a sweep that was killed before it wrote the summary of its last runs.
    let whole = read(&place, "small/summary.json");
    edit_summary(&place, "small", |summary| {
        for run in [2, 3] {
            summary["runs"][run]["status"] = json!("unfinished");
            summary["runs"][run]["figures"] = json!({"clean": 0.125});
        }
        summary["groups"][1]["finished"] = json!(0);
        summary["groups"][1]["figures"] = json!({});
    });
    let page = report(&place, "small --force");
    assert!(page.contains("summary.json is old") && page.contains("host sweep small/sweep.toml --out small"));
    assert_eq!(tables(), expected);

    // Results that are only in the summary are shown and marked.
    fs::write(place.path("small/summary.json"), whole).expect("written");
    fs::rename(place.path("small/learning_rate=0.01,seed=1"), place.path("aside")).expect("renamed");
    let page = report(&place, "small --force");
    assert!(page.contains("learning_rate=0.01,seed=1 is finished by the sweep's summary.json"), "{page}");
    assert!(!page.contains("summary.json is old"), "{page}");
    assert_eq!(tables(), expected);
}

#[test]
fn a_report_has_the_statuses_and_reasons_of_the_sweep() {
    let place = Place::with_digits(8, 60);
    let suite = |attacks: &str| {
        fs::write(place.path("mine.toml"), format!("attacks = [{attacks}]")).expect("written");
    };
    suite("\"fgsm.so\"");
    // The second model fails at its 14th call, in the second epoch.
    let text = "sampler = \"none\"\n[data]\nname = \"digits\"\n[train]\nepochs = 2\nbatch = 6\nthreads = 1\n\
                [eval]\npoints = 30\n[sweep]\nsuite = \"mine.toml\"\n[sweep.axes]\n\
                model = [\"bad_plugins.so,plugin=linear\", \"bad_plugins.so,plugin=explodes\"]\n";
    fs::write(place.path("small.toml"), text).expect("written");
    place.host("sweep small.toml --out small").ended_with(1);
    let reason = "the loss became NaN or infinite at update 14";
    let rows = |flags: &str| {
        let page = report(&place, &format!("small{flags}"));
        let rows = csv(&place, "report/sweep-small.csv");
        (page, rows.into_iter().map(|row| (row["status"].clone(), row["notes"].clone())).collect::<Vec<_>>())
    };
    let failed = ("failed".to_owned(), format!("model=bad_plugins.so,plugin=explodes: {reason}."));
    let (page, first) = rows("");
    assert!(!page.contains("summary.json is old"));
    assert_eq!(first, [("finished".to_owned(), String::new()), failed.clone()]);

    // Without a summary, the reason is still that of the sweep.
    fs::rename(place.path("small/summary.json"), place.path("aside")).expect("renamed");
    assert_eq!(rows(" --force").1, first);
    fs::rename(place.path("aside"), place.path("small/summary.json")).expect("renamed");

    // An evaluation with the former attacks of the suite does not count for either command.
    suite("\"fgsm.so\", \"pgd.so,steps=2\"");
    let listed = place.host("sweep small.toml --out small --dry-run").succeeds().words();
    assert_eq!((listed.matches(" trained ").count(), listed.matches(" failed ").count()), (1, 1), "{listed}");
    let (page, second) = rows(" --force");
    assert_eq!(second, [("trained".to_owned(), String::new()), failed]);
    assert!(page.contains("summary.json is old") && page.contains("model=bad_plugins.so,plugin=linear"));
}

#[test]
fn a_sweeps_failures_and_caveats_are_footnotes_and_crowded_maps_are_left_out() {
    let place = Place::empty();
    write_sweep(&place, "grid", &["sampler.noise", "sampler.step_size"]);
    edit_summary(&place, "grid", |summary| {
        let caveats = json!([{"name": "vanishing-gradients", "finding": "gradients vanish"}]);
        summary["runs"][1]["caveats"] = caveats.clone();
        // The key that older hosts wrote.
        let row = summary["runs"][2].as_object_mut().expect("a row");
        row.remove("caveats");
        row.insert("doubts".to_owned(), caveats);
        summary["runs"][3]["status"] = json!("failed");
        summary["runs"][3]["reason"] = json!("the disk is full");
    });
    report(&place, "grid");
    let rows = csv(&place, "report/sweep-grid.csv");
    for row in [1, 2] {
        assert_eq!(rows[row]["notes"], "Caveat (vanishing-gradients): gradients vanish.");
    }
    assert_eq!((&*rows[3]["status"], &*rows[3]["notes"]), ("failed", "run-3: the disk is full."));

    for (values, drawn) in [(24, true), (25, false)] {
        edit_summary(&place, "grid", |summary| {
            let run = |number: usize| {
                json!({
                    "run": format!("run-{number}"), "status": "finished", "figures": {"clean": 0.01 * number as f64},
                    "settings": {"sampler.noise": 0.01 * number as f64, "sampler.step_size": 0.1 * (number % 2) as f64},
                })
            };
            summary["runs"] = (0..values).map(run).collect();
        });
        let page = report(&place, "grid --force");
        assert_eq!(place.path("report/sweep-grid-map-1.png").exists(), drawn);
        assert_eq!(page.contains("sampler.noise has 25 values"), !drawn);
    }
}

#[test]
fn a_transfer_matrix_of_two_equal_runs_is_complete() {
    let place = trained(0.06);
    let copied =
        std::process::Command::new("cp").args(["-r", "run", "twin"]).current_dir(place.path("")).status();
    assert!(copied.expect("cp").success());
    let command = "eval run twin --transfer --json --attack pgd.so,steps=3,step_size=0.02";
    let matrix = place.host(command).succeeds().json();
    let worst = &matrix["worst_case"];
    assert!((0..4).all(|field| worst[field / 2][field % 2] == worst[0][0]), "{worst}");
    assert!(["run", "twin"].iter().all(|run| !place.path(run).join("unfinished").exists()));
}
