//! `host eval --suite`, `--source`, `--transfer`: attacks in order, interrupted and resumed.

use crate::data::{TEST_POINTS, write_colour_batches, write_wide_digits};
use crate::eval::{numbers, passes, share, trained, trained_with, verdicts};
use crate::harness::{Place, edit, json_file, write_sealed};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Writes a suite of these attacks into the place.
fn suite(place: &Place, attacks: &[&str]) {
    let text = format!("attacks = {attacks:?}\n");
    fs::write(place.path("mine.toml"), text).expect("written");
}

/// The files of findings of the unfinished evaluations of `run`.
fn all_findings(place: &Place) -> Vec<PathBuf> {
    let folders = fs::read_dir(place.path("run/unfinished")).into_iter().flatten().flatten();
    folders.map(|folder| folder.path().join("findings.json")).filter(|path| path.exists()).collect()
}

/// The file of findings of the only unfinished evaluation.
fn findings(place: &Place) -> Option<PathBuf> {
    all_findings(place).pop()
}

/// The text of that file; empty if there is none yet.
fn found_so_far(place: &Place) -> String {
    findings(place).and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default()
}

/// The folder of the only unfinished evaluation.
fn unfinished_folder(place: &Place) -> PathBuf {
    findings(place).and_then(|path| path.parent().map(PathBuf::from)).expect("a folder")
}

fn latest(place: &Place) -> Value {
    place.run("run").evaluations().pop().expect("an evaluation")
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The same value without times.
fn timeless(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            ["seconds", "begun"].iter().for_each(|key| _ = fields.remove(*key));
            fields.values_mut().for_each(|field| *field = timeless(field.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|item| *item = timeless(item.take())),
        _ => {}
    }
    value
}

#[test]
fn a_suite_attacks_in_order_the_points_that_are_still_robust() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "pgd.so,steps=3,step_size=0.02", "pgd.so,steps=10,step_size=0.02"]);
    let printed = place.host("eval run --json --suite mine.toml").succeeds().json();
    assert_eq!(printed["order"], "cascade");
    let saved = latest(&place);
    let clean = verdicts(&saved["verdicts"]["clean"]);
    let after: Vec<_> = (0..3).map(|number| verdicts(&saved["verdicts"]["attacks"][number])).collect();
    let count = |verdicts: &[bool]| verdicts.iter().filter(|stands| **stands).count() as u64;
    let before = [&clean, &after[0], &after[1]];
    for (number, steps) in [(0, 1), (1, 3), (2, 10)] {
        let result = &printed["attacks"][number];
        assert_eq!(passes(result)[1], steps * count(before[number]), "only robust points are attacked");
        assert_eq!(result["robust"], share(&after[number]));
        assert!(after[number].iter().zip(before[number]).all(|(after, before)| *before || !after));
    }
    assert_eq!(printed["worst_case"], share(&after[2]));
    assert!(count(&after[2]) < count(&after[0]), "later attacks break more");
    for (point, broken_by) in saved["broken_by"].as_array().expect("a list").iter().enumerate() {
        let first = after.iter().position(|after| !after[point]).filter(|_| clean[point]);
        assert_eq!(broken_by.as_u64(), first.map(|number| number as u64), "point {point}");
    }
    // The order of attacks changes which attack fools a point, not whether it is fooled.
    suite(&place, &["pgd.so,steps=10,step_size=0.02", "fgsm.so", "pgd.so,steps=3,step_size=0.02"]);
    let other = place.host("eval run --json --suite mine.toml").succeeds().json();
    assert_eq!(other["worst_case"], printed["worst_case"]);
    let table = place.host("eval run --suite mine.toml").succeeds().words();
    assert!(table.contains("then fgsm.so") && table.contains("worst case"), "{table}");
}

#[test]
fn autoattack_is_the_worst_case_of_its_members() {
    let place = trained(0.06);
    let printed = place.host("eval run --json --points 40 --suite autoattack").ended_with(0).json();
    let names: Vec<_> =
        printed["attacks"].as_array().expect("a list").iter().map(|attack| &attack["attack"]).collect();
    assert_eq!(names, ["apgd.so,loss=ce", "apgd.so,loss=dlr-targeted", "fab.so", "square.so"]);
    let pgd = "--attack pgd.so,steps=40,step_size=0.01";
    let pgd = place.host(&format!("eval run --json --points 40 {pgd}")).ended_with(0).json();
    assert!(number(&printed["worst_case"]) <= number(&pgd["worst_case"]), "{printed}");
    for suite in ["autoattack-plus", "autoattack-rand"] {
        let other = place.host(&format!("eval run --json --points 5 --suite {suite}")).ended_with(0).json();
        assert!(other["attacks"].as_array().is_some_and(|attacks| attacks.len() >= 2), "{other}");
    }
}

#[test]
fn an_interrupted_evaluation_has_the_same_result_as_an_uninterrupted_one() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "pgd.so,steps=400,step_size=0.002", "pgd.so,steps=20,step_size=0.01"]);
    let command = "eval run --suite mine.toml --batch 8 --restarts 2 --save-examples --threads 1";
    place.host(command).succeeds();
    let expected = latest(&place);
    let examples = format!("run/{}", expected["examples"].as_str().expect("a name"));
    let read_examples = || fs::read(place.path(&examples)).expect("examples");
    let expected_examples = read_examples();
    for (number, signal) in [(2, libc::SIGKILL), (3, libc::SIGINT)] {
        // Inside the second attack.
        let in_second_attack = || {
            let text = found_so_far(&place);
            let found: Value = serde_json::from_str(&text).unwrap_or_default();
            let found = &found["findings"];
            found["results"].as_array().is_some_and(|results| results.len() == 1)
                && found["attack_progress"]["done"].as_u64() >= Some(16)
        };
        let stopped = place.signal_when(command, signal, in_second_attack);
        match signal {
            libc::SIGKILL => stopped.was_killed(signal),
            _ => drop(stopped.fails(130, &["interrupted", "the same command goes on"])),
        }
        assert_eq!(place.run("run").evaluations().len(), number - 1, "nothing is added before the end");
        fs::remove_file(place.path(&examples)).expect("of the evaluation before");
        let words = place.host(command).succeeds().words();
        assert!(words.contains("going on with this evaluation"), "{words}");
        assert_eq!(timeless(latest(&place)), timeless(expected.clone()));
        assert!(read_examples() == expected_examples, "the same examples");
        assert!(!place.path("run/unfinished").exists());
    }
}

/// Starts an evaluation of two attacks with saved examples, and kills it during the second one.
fn killed_in_the_second_attack(place: &Place) -> &'static str {
    suite(place, &["fgsm.so", "pgd.so,steps=400,step_size=0.002"]);
    let command = "eval run --suite mine.toml --batch 8 --threads 1";
    let in_second_attack = || {
        let found: Value = serde_json::from_str(&found_so_far(place)).unwrap_or_default();
        found["findings"]["attack_progress"]["done"].as_u64() >= Some(16)
    };
    place.signal_when(command, libc::SIGKILL, in_second_attack).was_killed(libc::SIGKILL);
    command
}

/// Changes the state of the only unfinished evaluation.
fn edit_state(place: &Place, change: impl FnOnce(&mut Value)) {
    let path = findings(place).expect("unfinished");
    let mut state = json_file(&path);
    change(&mut state);
    write_sealed(&path, &state.to_string());
}

#[test]
fn an_evaluation_continued_with_other_arithmetic_has_a_caveat() {
    let place = trained(0.06);
    let command = killed_in_the_second_attack(&place);
    let mut here = Value::Null;
    edit_state(&place, |state| {
        here = std::mem::replace(&mut state["arithmetic"]["processor"], "other".into())
    });
    let here = here.as_str().expect("a name").to_owned();
    let change = format!("went on with other arithmetic: processor `other`, then `{here}`");
    let outcome = place.host(&format!("{command} --json"));
    let printed = outcome.succeeds_with_warning(&[&change, "docs/evaluation.md, section changed"]).json();
    let saved = latest(&place);
    for caveats in [&printed["caveats"], &saved["result"]["caveats"]] {
        let [caveat] = caveats.as_array().expect("a list").as_slice() else { panic!("{caveats}") };
        assert_eq!(caveat["name"], "changed");
        assert!(caveat["finding"].as_str().is_some_and(|finding| finding.contains(&change)), "{caveat}");
    }
    assert_eq!(saved["settings"]["arithmetic"]["processor"], "other");
    assert_eq!(saved["settings"]["later arithmetic"][0]["processor"], *here);
    assert!(!place.path("run/unfinished").exists(), "it was continued, not begun again");

    // The next evaluation begins with this arithmetic and has no caveat.
    let command = killed_in_the_second_attack(&place);
    place.host(command).succeeds();
    assert_eq!(latest(&place)["settings"]["arithmetic"]["processor"], *here);
    assert_eq!(latest(&place)["verdicts"], saved["verdicts"]);
}

#[test]
fn an_unfinished_evaluation_of_an_older_version_is_continued() {
    let place = trained(0.06);
    let command = killed_in_the_second_attack(&place);
    edit_state(&place, |state| {
        state.as_object_mut().expect("an object").remove("arithmetic");
        let findings = state["findings"].as_object_mut().expect("an object");
        let progress = findings.remove("attack_progress").expect("an attack under way");
        findings.insert("sweep".to_owned(), progress);
    });
    // The older version did not record its arithmetic.
    let unknown = ["that of the beginning is unknown", "section changed"];
    let words = place.host(command).succeeds_with_warning(&unknown).words();
    assert!(words.contains("going on with this evaluation"), "{words}");
    let continued = latest(&place);
    assert_eq!(continued["result"]["caveats"][0]["name"], "changed");
    place.host(command).succeeds();
    let [continued, whole] = [continued, latest(&place)].map(|saved| {
        let mut result = timeless(saved["result"].clone());
        result["caveats"] = serde_json::json!([]);
        result
    });
    assert_eq!(continued, whole);
}

#[test]
fn findings_that_are_damaged_or_foreign_are_refused_and_kept() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "pgd.so,steps=400,step_size=0.001"]);
    let command = "eval run --suite mine.toml --batch 8";
    let in_second_attack = || {
        let text = found_so_far(&place);
        // The second attack is slow.
        text.contains("\"attack\":\"fgsm.so\"") && text.contains("\"done\":")
    };
    place.signal_when(command, libc::SIGKILL, in_second_attack).was_killed(libc::SIGKILL);
    let path = findings(&place).expect("unfinished");
    let whole = fs::read_to_string(&path).expect("readable");
    fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    place
        .refuses(command, &["cannot understand run/unfinished/", "findings.json"])
        .explains(&["remove run/unfinished/"]);
    let unfit = whole.replace("\"done\":", "\"done\":9999");
    assert_ne!(unfit, whole);
    fs::write(&path, &unfit).expect("written");
    place
        .refuses(command, &["run/unfinished/", "findings.json is damaged", "SHA-256"])
        .explains(&["remove run/unfinished/"]);
    write_sealed(&path, &unfit);
    place.refuses(command, &["cannot go on with run/unfinished/", "do not fit one another"]);
    let elsewhere = whole.replace("\"indices\":[0,", "\"indices\":[99999,");
    assert_ne!(elsewhere, whole);
    write_sealed(&path, &elsewhere);
    place.refuses(command, &["cannot go on with run/unfinished/", "do not fit one another"]);
    let foreign = whole.replace("\"seed\":0", "\"seed\":7");
    assert_ne!(foreign, whole);
    write_sealed(&path, &foreign);
    place.refuses(command, &["it is of another evaluation, whose `seed` is 7; expected 0"]);
    // An evaluation with other settings still works.
    place.host("eval run --attack fgsm.so --seed 3").succeeds();
    assert!(path.exists());
}

#[test]
fn examples_that_were_removed_or_changed_during_an_evaluation_are_an_error() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "pgd.so,steps=400,step_size=0.001"]);
    let command = "eval run --suite mine.toml --batch 8 --save-examples";
    let first_attack_is_over = || {
        let text = found_so_far(&place);
        text.contains("\"attack\":\"fgsm.so\"")
    };
    place.signal_when(command, libc::SIGKILL, first_attack_is_over).was_killed(libc::SIGKILL);
    let folder = unfinished_folder(&place);
    let first = folder.join("0000-00000-000000000.safetensors");
    let whole = fs::read(&first).expect("of the first batch");
    edit(&first, |bytes| *bytes.last_mut().expect("a byte") ^= 1);
    place
        .refuses(command, &["run/unfinished/", "0000-00000-000000000.safetensors is damaged", "SHA-256"])
        .explains(&["remove run/unfinished/", "to evaluate from the beginning"]);
    fs::remove_file(&first).expect("removed");
    place
        .refuses(command, &["cannot read run/unfinished/", "0000-00000-000000000.safetensors"])
        .explains(&["remove run/unfinished/", "to evaluate from the beginning"]);
    assert!(!place.path("run/eval.json").exists());
    // What the file of an older version, which has no digests, lacks is found at the end.
    edit_state(&place, |state| _ = state.as_object_mut().map(|state| state.remove("kept")));
    place
        .host(command)
        .fails(1, &["run/unfinished/", "adversarial examples of attack 0, got"])
        .explains(&["remove run/unfinished/", "to evaluate from the beginning"]);
    edit_state(&place, |state| _ = state.as_object_mut().map(|state| state.remove("kept")));
    fs::write(&first, whole).expect("written");
    place.host(command).succeeds();
}

#[test]
fn an_unfinished_suite_has_no_verdict_and_is_kept() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "bad_plugins.so,plugin=outside", "pgd.so,steps=3,step_size=0.02"]);
    let command = "eval run --suite mine.toml --save-examples";
    for _ in 0..2 {
        place.host(command).fails(1, &["outside: run", "candidates outside the threat model"]);
        assert!(
            !place.path("run/eval.json").exists(),
            "the accuracy under FGSM alone is not that of the suite"
        );
        let text = fs::read_to_string(findings(&place).expect("unfinished")).expect("readable");
        assert!(text.contains("\"attack\":\"fgsm.so\""), "{text}");
    }
    let folder = unfinished_folder(&place);
    let part = fs::read_dir(&folder).expect("readable").flatten().map(|entry| entry.path());
    let part = part.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    edit(&part.expect("examples of the first attack"), |bytes| bytes.truncate(50));
    place
        .refuses(command, &["is damaged", "unfinished/"])
        .explains(&["remove ", "to evaluate from the beginning"]);

    // With --attack, the result of each attack counts on its own.
    let separate = "eval run --attack fgsm.so --attack bad_plugins.so,plugin=outside --save-examples";
    place.host(separate).fails(1, &["outside: run"]);
    let saved = latest(&place);
    assert_eq!(saved["result"]["attacks"].as_array().map(Vec::len), Some(1));
    assert_eq!(saved["plugins"].as_array().map(Vec::len), Some(1));
}

#[test]
fn saved_examples_are_those_that_fool_the_model() {
    let place = trained(0.06);
    suite(&place, &["fgsm.so", "pgd.so,steps=10,step_size=0.02"]);
    place.host("eval run --suite mine.toml --save-examples --batch 30").succeeds();
    let saved = latest(&place);
    let examples = saved["examples"].as_str().expect("a name");
    let bytes = fs::read(place.path("run").join(examples)).expect("examples");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let whole = |name: &str| -> Vec<i64> {
        let (words, _) = tensors.tensor(name).expect("present").data().as_chunks::<8>();
        words.iter().map(|word| i64::from_le_bytes(*word)).collect()
    };
    let (points, attacks) = (whole("points"), whole("attacks"));
    let indices = numbers(&saved["verdicts"]["indices"]);
    let broken: Vec<(i64, i64)> = (indices.iter().zip(saved["broken_by"].as_array().expect("a list")))
        .filter_map(|(index, broken_by)| Some((broken_by.as_i64()?, *index)))
        .collect();
    let mut got: Vec<_> = attacks.into_iter().zip(points).collect();
    let mut expected = broken;
    got.sort_unstable();
    expected.sort_unstable();
    assert_eq!(got, expected);
    assert_eq!(tensors.tensor("images").expect("present").shape(), [got.len(), 1, 8, 8]);
    assert_eq!(whole("labels").len(), got.len());
}

#[test]
fn transferred_examples_fool_fewer_points_than_examples_of_the_model_itself() {
    let place = trained(0.06);
    let other = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 4 --batch 20 --out other --epsilon 0.06";
    place.host(&format!("{other} --optimizer adam --learning-rate 0.002 --seed 9")).succeeds();
    let attack = "--attack pgd.so,steps=10,step_size=0.02";
    let own = place.host(&format!("eval run --json {attack}")).succeeds().json();
    let transferred = place.host(&format!("eval run --source other --json {attack}")).ended_with(0).json();
    assert_eq!(transferred["clean"], own["clean"], "the verdicts are still those of `run`");
    assert!(number(&transferred["worst_case"]) > number(&own["worst_case"]), "{transferred}");
    assert!(latest(&place)["source"] == "other");

    // Examples that stop once they fool their own model fool fewer points of another model.
    let apgd = |options: &str| {
        let command =
            format!("eval run --source other --json --attack apgd.so,loss=dlr-targeted,steps=10{options}");
        place.host(&command).ended_with(0).json()
    };
    let (stops, climbs) = (apgd(""), apgd(",keep_climbing=true"));
    assert!(number(&climbs["worst_case"]) < number(&stops["worst_case"]), "{climbs} {stops}");
    assert!(number(&climbs["worst_case"]) <= number(&transferred["worst_case"]), "{climbs}");
    // Nine targets with ten steps each; one forward pass chooses the targets, and one classifies.
    let clean = verdicts(&latest(&place)["verdicts"]["clean"]);
    let attacked = clean.iter().filter(|clean| **clean).count() as u64;
    assert_eq!(passes(&climbs["attacks"][0]), [attacked * (9 * 11 + 2), attacked * 9 * 10]);

    let gradients_of_another =
        format!("eval run --source other --json {attack} --attack square.so,queries=50");
    let printed = place.host(&gradients_of_another).ended_with(0).json();
    assert_eq!(
        printed["caveats"],
        serde_json::json!([]),
        "no gradient masking with another model's gradients"
    );
    assert_eq!(printed["source"], "other");
    let table = place.host(&format!("eval run --source other {attack}")).succeeds().words();
    assert!(table.contains("examples made on other"), "{table}");
    let matrix = place.host(&format!("eval run other --transfer --json {attack}")).succeeds().json();
    assert_eq!(
        matrix["worst_case"][0][0], own["worst_case"],
        "examples of the run itself are on the diagonal"
    );
    assert_eq!(matrix["worst_case"][1][0], transferred["worst_case"], "a row for each source");
    let table = place.host(&format!("eval run other --transfer {attack}")).succeeds().words();
    assert!(table.contains("examples made on") && table.contains("none (clean)"), "{table}");

    place.refuses(&format!("eval run other {attack}"), &["expected one run, got 2"]);
    place.refuses(&format!("eval run --transfer {attack}"), &["expected two runs or more, got 1"]);
    place.refuses(&format!("eval run --source nowhere {attack}"), &["nowhere holds no run"]);
    let wider =
        "train --recipe algorithm-1 --data digits --sampler none --epochs 1 --out wider --epsilon 0.1";
    place.host(wider).succeeds();
    place.refuses(
        &format!("eval run wider --transfer {attack}"),
        &["expected linf, epsilon 0.06, domain [0, 1] as in run, got linf, epsilon 0.1, domain [0, 1]"],
    );
}

#[test]
fn an_interrupted_matrix_has_the_same_result_as_an_uninterrupted_one() {
    let place = trained(0.06);
    let other = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 4 --batch 20 --out other --epsilon 0.06";
    place.host(&format!("{other} --optimizer adam --learning-rate 0.002 --seed 9")).succeeds();
    suite(&place, &["fgsm.so", "pgd.so,steps=400,step_size=0.002"]);
    let command = "eval run other --transfer --suite mine.toml --batch 8 --threads 1";
    let expected = place.host(&format!("{command} --json")).succeeds().json();
    let unfinished = || ["run", "other"].map(|run| place.path(run).join("unfinished").exists());
    assert_eq!(unfinished(), [false, false]);
    for (signal, last) in [(libc::SIGKILL, " --json"), (libc::SIGINT, "")] {
        // Inside the third of four fields: examples of the other run, attacking this run.
        let stopped = place.signal_when(command, signal, || all_findings(&place).len() == 2);
        match signal {
            libc::SIGKILL => stopped.was_killed(signal),
            _ => drop(stopped.fails(130, &["interrupted", "the same command goes on"])),
        }
        assert_eq!(unfinished(), [true, true], "the second field's findings are kept too");
        // An evaluation of one of its fields does not change the findings.
        place.host("eval run --suite mine.toml --batch 8 --threads 1").succeeds();
        assert_eq!(all_findings(&place).len(), 2);
        let started = std::time::Instant::now();
        let outcome = place.host(&format!("{command}{last}")).succeeds();
        println!("the rest of the matrix took {:?}", started.elapsed());
        if last.is_empty() {
            assert!(outcome.words().contains("going on with this matrix"), "{}", outcome.words());
        } else {
            assert_eq!(timeless(outcome.json()), timeless(expected.clone()));
        }
        assert_eq!(unfinished(), [false, false]);
    }
    place.refuses(&format!("{command} --save-examples"), &["--transfer", "--save-examples"]);
    place.refuses("eval run other ./run --transfer", &["expected different runs, got ./run twice"]);
}

#[test]
fn a_model_with_probabilities_has_a_caveat_and_strict_fails() {
    let place = trained_with("--epsilon 0.06 --model nonconforming.so,plugin=probabilities");
    let caveat = ["look like probabilities", "docs/evaluation.md, section probabilities"];
    place.host("eval run --attack fgsm.so").succeeds_with_warning(&caveat);
    let strict = place.host("eval run --attack fgsm.so --strict --json").ended_with(1).json();
    let names: Vec<_> =
        strict["caveats"].as_array().expect("a list").iter().map(|caveat| &caveat["name"]).collect();
    assert!(names.contains(&&Value::from("probabilities")), "{strict}");
}

#[test]
fn suites_leave_out_attacks_that_need_more_than_two_or_three_classes() {
    for (classes, left_out) in
        [(2, vec!["apgd.so,loss=dlr-targeted"]), (3, vec!["apgd.so,loss=dlr-targeted"])]
    {
        let place = Place::empty();
        crate::data::write_classes(&place.path("digits"), 8, 200, classes);
        let train = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 2 --batch 20 --epsilon 0.06 --out run";
        place.host(&format!("{train} --optimizer adam --learning-rate 0.002")).succeeds();
        let printed = place.host("eval run --json --points 20 --suite autoattack").ended_with(0).json();
        assert_eq!(printed["attacks"].as_array().map(Vec::len), Some(4 - left_out.len()), "{printed}");
        for attack in left_out {
            let caveats = printed["caveats"].as_array().expect("a list");
            let names_it = |caveat: &Value| {
                let finding = caveat["finding"].as_str().unwrap_or_default();
                caveat["name"] == "left-out" && finding.starts_with(attack) && finding.contains("classes")
            };
            assert!(caveats.iter().any(names_it), "{printed}");
        }
        place.refuses("eval run --attack apgd.so,loss=dlr-targeted", &["4 classes"]);
    }
}

#[test]
fn bad_suites_are_refused() {
    let place = trained(0.06);
    place
        .refuses("eval run --suite autoatack", &["there is no suite `autoatack`"])
        .explains(&["autoattack-plus"]);
    for (text, parts) in [
        ("attacks = []", ["mine.toml", "`attacks` is empty"]),
        ("attacks = [\"fgsm.so\"]\nstep = 3", ["mine.toml, line 2", "unknown field `step`"]),
        ("attacks = [\"fgsm.so\", \"nothing.so\"]", ["plugin nothing.so was not found", ""]),
        ("attacks = [\"pgd.so,stepsize=1\"]", ["unknown option `stepsize`", ""]),
        ("attacks = [\"pgd.so\"", ["mine.toml, line 1", ""]),
    ] {
        fs::write(place.path("mine.toml"), text).expect("written");
        place.refuses("eval run --suite mine.toml", &parts);
    }
    place.refuses("eval run --suite autoattack --attack fgsm.so", &["--suite"]);
    let path = place.path("run/eval.json");
    fs::write(&path, "{\"evaluations\": []}").expect("written");
    edit(&path, |bytes| bytes.truncate(5));
    place.refuses("eval run --attack fgsm.so", &["run/eval.json"]);
}

/// Prints the verdicts that differ, for docs/evaluation.md.
#[test]
fn verdicts_hardly_depend_on_the_batch() {
    const BATCHES: [usize; 2] = [TEST_POINTS, 7];
    let (mut differing, mut all) = (Vec::new(), 0);
    for (norm, epsilon) in [("linf", 0.06), ("l2", 0.4)] {
        let place = trained_with(&format!("--norm {norm} --epsilon {epsilon}"));
        for attack in
            ["apgd.so", "apgd.so,loss=dlr-targeted,steps=20", "fab.so,steps=20", "square.so,queries=200"]
        {
            let found = BATCHES.map(|batch| {
                place.host(&format!("eval run --attack {attack} --batch {batch}")).ended_with(0);
                latest(&place)["verdicts"].take()
            });
            let [first, second] = found.each_ref().map(|found| verdicts(&found["attacks"][0]));
            let indices = numbers(&found[0]["indices"]);
            all += indices.len();
            for ((first, second), index) in first.iter().zip(&second).zip(indices) {
                if first != second {
                    let say = |stands: &bool| if *stands { "stands" } else { "falls" };
                    let [one, other] = BATCHES;
                    differing.push(format!(
                        "{norm}, {attack}, point {index}: {} in batches of {one}, {} in batches of {other}",
                        say(first),
                        say(second)
                    ));
                }
            }
        }
    }
    // The random draws are the same, so verdicts differ only through the order of additions.
    let list = differing.join("\n");
    println!("{} of {all} verdicts differ between batches of {BATCHES:?}\n{list}", differing.len());
    assert!(differing.len() <= all / 100, "more than 1 % of {all} verdicts differ:\n{list}");
}

#[test]
fn images_that_are_not_square_can_be_attacked() {
    let place = Place::empty();
    write_wide_digits(&place.path("digits"), 6, 400);
    let train = "train --recipe algorithm-1 --data digits --threads 1 --sampler none --epochs 4 --batch 20 --epsilon 0.06 --out run";
    place.host(&format!("{train} --optimizer adam --learning-rate 0.002")).succeeds();
    let printed = place.host("eval run --json --points 20 --suite autoattack").ended_with(0).json();
    assert_eq!(printed["attacks"].as_array().map(Vec::len), Some(4), "{printed}");
    assert!(number(&printed["worst_case"]) < number(&printed["clean"]), "{printed}");
}

/// The size of a change of an image.
pub type Distance = fn(&[f64]) -> f64;

/// Asserts that the latest evaluation of `run` saved examples, each inside the domain and the ball
/// around its image.
pub fn assert_examples_are_allowed(place: &Place, run: &str, epsilon: f64, distance: Distance) {
    const RECORD: usize = 1 + 3 * 32 * 32;
    let pictures = fs::read(place.path("pictures/test_batch.bin")).expect("a batch");
    let saved = place.run(run).evaluations().pop().expect("an evaluation");
    let bytes =
        fs::read(place.path(run).join(saved["examples"].as_str().expect("a name"))).expect("examples");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = |name: &str| tensors.tensor(name).expect("present").data().to_vec();
    let (points, images) = (data("points"), data("images"));
    let (points, _) = points.as_chunks::<8>();
    assert!(!points.is_empty());
    for (point, image) in points.iter().zip(images.chunks(4 * (RECORD - 1))) {
        let record = &pictures[i64::from_le_bytes(*point) as usize * RECORD..][1..RECORD];
        let (image, _) = image.as_chunks::<4>();
        let image: Vec<f64> = image.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect();
        assert!(image.iter().all(|value| (0.0..=1.0).contains(value)), "inside the domain");
        let change: Vec<f64> =
            image.iter().zip(record).map(|(value, byte)| value - f64::from(*byte) / 255.0).collect();
        let distance = distance(&change);
        assert!(distance <= epsilon * (1.0 + 1e-5) && distance > 0.0, "{distance}, epsilon {epsilon}");
    }
}

#[test]
fn the_whole_suite_runs_on_colour_images_of_32_by_32_pixels() {
    let place = Place::empty();
    write_colour_batches(&place.path("pictures"), 40);
    suite(
        &place,
        &["apgd.so,steps=5", "apgd.so,loss=dlr-targeted,steps=5", "fab.so,steps=5", "square.so,queries=20"],
    );
    let largest = |change: &[f64]| change.iter().fold(0.0, |largest: f64, pixel| largest.max(pixel.abs()));
    let length = |change: &[f64]| change.iter().map(|pixel| pixel * pixel).sum::<f64>().sqrt();
    let distances: [(&str, f64, Distance); 2] = [("linf", 0.03, largest), ("l2", 1.5, length)];
    for (norm, epsilon, distance) in distances {
        // The full AutoAttack for a network of one layer; fewer steps for a convolutional one.
        for (model, epochs, suite) in
            [("bad_plugins.so,plugin=linear", 3, "autoattack"), ("cnn.so", 8, "mine.toml")]
        {
            let run = format!("{norm}-{suite}");
            let train = format!(
                "train --recipe algorithm-1 --data pictures --threads 1 --model {model} --sampler none --out {run}"
            );
            let train = format!("{train} --epochs {epochs} --batch 20 --norm {norm} --epsilon {epsilon}");
            place.host(&format!("{train} --optimizer adam --learning-rate 0.002")).succeeds();
            let evaluate =
                format!("eval {run} --json --points 6 --suite {suite} --threads 1 --save-examples");
            let printed = place.host(&evaluate).ended_with(0).json();
            assert_eq!(printed["attacks"].as_array().map(Vec::len), Some(4), "{printed}");
            assert!(number(&printed["clean"]) > 0.5, "{printed}");
            if suite == "autoattack" {
                assert!(number(&printed["worst_case"]) < number(&printed["clean"]), "{printed}");
                assert_examples_are_allowed(&place, &run, epsilon, distance);
                let [square, _] = passes(&printed["attacks"][3]);
                assert!(
                    square > 1000,
                    "some points are robust before Square, which takes its queries: {printed}"
                );
            }
        }
    }
}
