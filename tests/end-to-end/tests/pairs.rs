//! `host data check`: pairs of training points within 2 epsilon, and their section of a report.

use crate::data::{Samples, digits, write};
use crate::harness::{Place, edit, json_file};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Points of 2 x 2 pixels. In linf, the first two (labels 0 and 1) are 16 steps apart, the third
/// and the fourth (label 0) are equal, and the fifth (label 1) is 17 steps from the third.
fn place() -> Place {
    let place = Place::empty();
    let pixels = [[10, 0, 0, 0], [26, 0, 0, 0], [0, 200, 200, 0], [0, 200, 200, 0], [0, 200, 217, 0]];
    let train = Samples { pixels: pixels.concat(), labels: vec![0, 1, 0, 0, 1] };
    let test = Samples { pixels: vec![1, 2, 3, 4, 5, 6, 7, 8], labels: vec![0, 1] };
    write(&place.path("points"), 2, &train, &test);
    place
}

const CHECK: &str = "data check --data points --threads 1 --epsilon";

fn counts(answer: &Value) -> [&Value; 6] {
    let [same, different] = ["same_label", "different_label"].map(|kind| &answer[kind]);
    [
        &same["within"],
        &same["equal"],
        &different["within"],
        &different["equal"],
        &answer["points_in_pairs"],
        &answer["unavoidable_errors"],
    ]
}

#[test]
fn pairs_are_counted_up_to_2_epsilon_exactly() {
    let place = place();
    let answer = place.host(&format!("{CHECK} 8/255 --json")).succeeds().json();
    assert_eq!(counts(&answer), [&json!(1), &json!(1), &json!(1), &json!(0), &json!(4), &json!(1.0)]);
    assert_eq!((&answer["compared"], &answer["assumption_3_1"]), (&json!(10), &json!(false)));
    assert_eq!(answer["lowest_error"], 0.2);
    let closest = &answer["different_label"]["closest"];
    assert_eq!((&closest[0]["points"], &closest[0]["labels"]), (&json!([0, 1]), &json!([0, 1])));
    assert_eq!(answer["different_label"]["smallest"], 16.0 / 255.0);
    assert_eq!(closest[1]["points"], json!([2, 4]));

    let more = place.host(&format!("{CHECK} 8.5/255 --json")).succeeds().json();
    // The fifth point conflicts with the third and the fourth.
    assert_eq!(counts(&more), [&json!(1), &json!(1), &json!(3), &json!(0), &json!(5), &json!(2.0)]);
    let none = place.host(&format!("{CHECK} 7.9/255 --train-points 3 --json")).succeeds().json();
    assert_eq!(counts(&none), [&json!(0), &json!(0), &json!(0), &json!(0), &json!(0), &json!(0.0)]);
    assert_eq!((&none["points"], &none["assumption_3_1"]), (&json!(3), &json!(true)));
    let l2 = place.host(&format!("{CHECK} 8/255 --norm l2 --json")).succeeds().json();
    assert_eq!((&l2["norm"], counts(&l2)), (&json!("l2"), counts(&answer)));
}

#[test]
fn the_answer_says_whether_the_assumption_holds_and_what_follows() {
    let place = place();
    let words = place.host(&format!("{CHECK} 8/255")).succeeds().words();
    assert!(words.contains("pairs within 2 epsilon: 2; Assumption 3.1 does not hold\n"), "{words}");
    assert!(words.contains("at least 1 of these 5 points (20.0000 %)"), "{words}");
    let words = place.host(&format!("{CHECK} 0 --train-points 3")).succeeds().words();
    assert!(words.contains("pairs within 2 epsilon: 0; Assumption 3.1 holds\n"), "{words}");
    assert!(words.contains("so that these pairs make no error unavoidable"), "{words}");
}

#[test]
fn a_result_is_kept_in_a_file_that_is_not_replaced_without_consent() {
    let place = place();
    let printed = place.host(&format!("{CHECK} 8/255 --json --out first.json")).succeeds().json();
    assert_eq!(json_file(&place.path("first.json")), printed);
    assert!(fs::read_to_string(place.path("first.json")).expect("a file").contains("\"sha256\": "));

    let again = format!("{CHECK} 0 --out first.json");
    place.refuses(&again, &["first.json already exists"]).explains(&["--force"]);
    place.host(&format!("{again} --force")).succeeds();
    assert_eq!(json_file(&place.path("first.json"))["epsilon"], 0.0);
    fs::write(place.path("mine.json"), "{\"mine\": 1}").expect("written");
    let other = format!("{CHECK} 0 --out mine.json --force");
    place
        .refuses(&other, &["mine.json is no result of `host data check`"])
        .explains(&["choose another name"]);
    place.refuses(&format!("{CHECK} 0 --out points"), &["expected a file, got the folder points"]);
    place.refuses(&format!("{CHECK} 0 --out nowhere/a.json"), &["there is no folder nowhere"]);
    place.refuses(&format!("{CHECK} 0 --force"), &["required arguments were not provided"]);
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let place = place();
    for (epsilon, got) in [("-0.1", "got -0.1"), ("nan", "got NaN"), ("inf", "got inf")] {
        let expected = ["--epsilon: expected a number of at least 0", got];
        place.refuses(&format!("{CHECK} {epsilon} --out a.json"), &expected);
    }
    place.refuses(&format!("{CHECK} x"), &["invalid value 'x'", "a number, or a fraction such as 8/255"]);
    place.refuses(&format!("{CHECK} 0.1 --norm l0"), &["invalid value 'l0'"]).explains(&["linf, l2"]);
    place.refuses("data check --data points", &["required arguments were not provided"]);
    place.refuses("data check --data nowhere --epsilon 0.1", &["nowhere", "no such folder"]);
    place.refuses("data check --data mnist --epsilon 0.1", &["mnist is missing", "data/mnist"]);
    let threads = "data check --data points --epsilon 0.1 --threads 0";
    place.refuses(threads, &["threads: expected at least 1", "got 0"]);
    for points in [0, 1, 6] {
        let expected = format!("expected 2 to 5 training points, got {points}");
        place.refuses(&format!("{CHECK} 0.1 --train-points {points}"), &[&expected]);
    }
    let one_class = Samples { pixels: vec![3, 1, 4, 1, 5, 9, 2, 6], labels: vec![1, 1] };
    write(&place.path("points"), 2, &one_class, &one_class);
    place.refuses(&format!("{CHECK} 0.1"), &["all 2 training points have the label 1", "two classes"]);
    fs::write(place.path("points/train-images-idx3-ubyte"), "damaged").expect("written");
    place.refuses(&format!("{CHECK} 0.1"), &["train-images-idx3-ubyte"]);
}

/// Whether a process whose working directory is this folder handles signals that stop it.
pub fn handles_interrupts(folder: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    let mut here =
        processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder));
    here.any(|process: PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        // The signals that always stop a command are registered one after the other.
        let stops = [libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];
        stops.into_iter().all(|signal| caught & 1 << (signal - 1) != 0)
    })
}

#[test]
fn ctrl_c_ends_a_check_without_a_result() {
    let place = Place::empty();
    // All pairs are within 2 epsilon, so that every pixel is compared.
    write(&place.path("points"), 28, &digits(28, 20_000, 10, 1), &digits(28, 10, 10, 2));
    let folder = place.path(".").canonicalize().expect("a folder");
    let command = format!("{CHECK} 1 --out result.json");
    place
        .signal_when(&command, libc::SIGINT, || handles_interrupts(&folder))
        .was_interrupted(&["there is no result"]);
    assert!(!place.path("result.json").exists());
}

#[test]
fn a_report_shows_the_closest_pairs_and_the_bound() {
    let place = place();
    place.host(&format!("{CHECK} 8/255 --out check.json")).succeeds();
    let page = crate::report::report(&place, "check.json");
    for part in [
        "pairs within 2 epsilon: 2; Assumption 3.1 does not hold",
        "at least 1 of these 5 points (20.0000 %)",
        "Bhagoji et al. 2019",
        "4 points are in at least one pair within 2 epsilon, 2 in one of different labels.",
        "id=\"data-points-same-pairs\"",
        "id=\"data-points-different-pairs\"",
        "points 0 (0) and 1 (1), 0.0627 apart",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("Error against cost"), "sections about runs, of which there are none");
    let table = fs::read_to_string(place.path("report/data-points-pairs.csv")).expect("a table");
    assert!(table.contains("\ndifferent,1,0,0.0627"), "{table}");
    assert!(place.path("report/data-points-different-pairs.png").is_file());

    // Pictures need the data that were checked.
    fs::rename(place.path("points"), place.path("moved")).expect("renamed");
    let page = crate::report::report(&place, "check.json --force");
    let missing = "the closest pairs cannot be shown: the recorded data";
    assert!(page.contains(missing) && page.contains("Assumption 3.1 does not hold"), "{page}");
    let page = crate::report::report(&place, "check.json --force --data-folder moved");
    assert!(!page.contains(missing) && page.contains("id=\"data-points-same-pairs\""));
    edit(&place.path("moved/train-labels-idx1-ubyte"), |bytes| bytes[12] = 0);
    let page = crate::report::report(&place, "check.json --force --data-folder moved");
    assert!(page.contains("train-labels-idx1-ubyte is not the recorded one"), "{page}");
}

#[test]
fn a_report_refuses_files_that_are_no_data_check() {
    let place = place();
    place.host(&format!("{CHECK} 8/255 --out check.json")).succeeds();
    let file = place.path("check.json");
    let text = fs::read_to_string(&file).expect("a result");
    fs::write(&file, text.replace("\"epsilon\": 0.03", "\"epsilon\": 0.13")).expect("written");
    place.refuses("report check.json", &["check.json is damaged", "SHA-256"]);
    place.refuses(
        "report points/t10k-labels-idx1-ubyte",
        &["cannot understand points/t10k-labels-idx1-ubyte"],
    );
    fs::write(place.path("mine.json"), "{}").expect("written");
    place.refuses("report mine.json", &["cannot understand mine.json"]).explains(&["host data check --out"]);
}
