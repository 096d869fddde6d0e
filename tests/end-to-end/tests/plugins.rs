//! `host inspect`, `host plugins`, and a host whose folder was moved.

use crate::harness::{Place, edit, repository};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn inspect_shows_all_plugins_of_a_library_or_the_one_that_is_named() {
    let place = Place::empty();
    let names = |file: &str| -> Vec<String> {
        let shown = place.host(&format!("inspect {file} --json")).succeeds().json();
        let plugins = shown["plugins"].as_array().expect("a list").iter();
        plugins.map(|plugin| plugin["manifest"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert!(names("bad_plugins.so").len() > 2);
    assert_eq!(names("bad_plugins.so,plugin=linear"), ["linear"]);
    let words = place.host("inspect bad_plugins.so,plugin=linear").succeeds().words();
    assert!(words.contains("\nlinear ") && !words.contains("\nmomentum "), "{words}");
    place
        .refuses("inspect bad_plugins.so,plugin=square", &["bad_plugins.so has no plugin `square`"])
        .explains(&["choose one of: ", "linear"]);
    place.refuses("inspect langevin.so,noise=1", &["host inspect takes FILE or FILE,plugin=NAME"]);
}

#[test]
fn inspect_shows_what_an_objective_declares() {
    let place = Place::empty();
    let words = place.host("inspect mart.so").succeeds().words();
    assert!(words.contains("the sampler climbs the cross-entropy (mode faithful)"), "{words}");
    assert!(words.contains("further passes of an update: 1 a point, 0 a particle"), "{words}");
    assert!(!words.contains("trains in one process"), "{words}");
    let words = place.host("inspect dro.so,plugin=cvar").succeeds().words();
    assert!(words.contains("the loss of a point depends on others of the minibatch"), "{words}");
    let shown = place.host("inspect grad_align.so --json").succeeds().json();
    let passes = serde_json::json!({"per_point": 0, "per_particle": 4});
    assert_eq!(shown["plugins"][0]["declaration"]["passes"], passes);
    let sampler = place.host("inspect langevin.so --json").succeeds().json();
    assert!(sampler["plugins"][0].get("declaration").is_none());
}

#[test]
fn a_host_without_plugins_says_so_and_where_it_looked() {
    let place = Place::empty();
    let host = place.copy_built("host");
    let mut command = Command::new(&host);
    let looked = [&place.path("").display().to_string(), "/nowhere/plugins", "."].map(str::to_owned);
    command.arg("plugins").current_dir(place.path("")).env("DRO_PLUGIN_PATH", "/nowhere/plugins");
    let outcome = place.outcome(&mut command).succeeds_with_warning(&["no plugin was found in: "]);
    let folders = outcome.first_line();
    let folders = folders.split_once("in: ").and_then(|(_, rest)| rest.split_once(';')).expect("folders").0;
    let trimmed = |folder: &str| folder.trim_end_matches('/').to_owned();
    assert!(folders.split(", ").map(trimmed).eq(looked.iter().map(|folder| trimmed(folder))), "{folders}");
    assert!(outcome.words().is_empty());
}

/// The program's run path: a way to libtorch from the program's folder, and the absolute path.
fn run_path(host: &Path) -> (String, String) {
    let bytes = fs::read(host).expect("readable");
    let start = bytes.windows(8).position(|window| window == b"$ORIGIN/").expect("a run path");
    let path = bytes[start..].split(|byte| *byte == 0).next().expect("a text");
    let path = String::from_utf8(path.to_vec()).expect("a path");
    let (relative, others) = path.split_once(':').expect("several folders");
    // Between the two is the folder of an installed libtorch.
    let absolute = others.rsplit(':').next().expect("a folder");
    (relative.trim_start_matches("$ORIGIN/").to_owned(), absolute.to_owned())
}

/// A clone that was moved after its build: its old path does not exist any more, and libtorch lies
/// where it lay relative to the program.
#[test]
fn a_moved_clone_finds_its_libtorch_and_writes_its_own_paths() {
    let place = Place::empty();
    let (relative, absolute) = run_path(&place.copy_built("host"));
    // As many folders as the way goes up; the last two are the target folder's.
    let up = Path::new(&relative).components().filter(|part| part.as_os_str() == "..").count();
    let inner: PathBuf = (0..up.saturating_sub(2)).map(|depth| format!("folder-{depth}")).collect();
    let clone = place.path("").join(inner);
    let program = clone.join("target/debug");
    fs::create_dir_all(&program).expect("folders");
    fs::rename(place.path("host"), program.join("host")).expect("moved");
    let libtorch = program.join(&relative);
    let above = libtorch.parent().expect("a folder");
    // The way leads through folders that have to exist.
    let above: PathBuf = above.components().fold(PathBuf::new(), |path, part| match part.as_os_str() {
        up if up == ".." => path.parent().expect("a folder").to_owned(),
        _ => path.join(part),
    });
    fs::create_dir_all(&above).expect("folders");
    std::os::unix::fs::symlink(&absolute, above.join("lib")).expect("a link");
    std::os::unix::fs::symlink(repository().join("plugin-api"), clone.join("plugin-api")).expect("a link");
    edit(&program.join("host"), |bytes| {
        let whole = format!(":{absolute}\0").into_bytes();
        let start = bytes.windows(whole.len()).position(|window| window == whole).expect("the run path");
        bytes[start + 1..start + whole.len() - 1].fill(b'x');
    });

    let mut new = Command::new(program.join("host"));
    new.args(["new", "sampler", "mine", "--path"]).arg(place.path("")).env_remove("LD_LIBRARY_PATH");
    place.outcome(&mut new).succeeds();
    let read = |file: &str| fs::read_to_string(place.path("mine").join(file)).expect("a file");
    let manifest = read("Cargo.toml");
    assert!(manifest.contains(&format!("path = {:?}", clone.join("plugin-api"))), "{manifest}");
    let config = read(".cargo/config.toml");
    assert!(config.contains(&format!("target-dir = {:?}", clone.join("target"))), "{config}");
    let library = fs::canonicalize(&absolute).expect("libtorch");
    assert!(config.contains(&format!("LIBTORCH = {:?}", library.parent().expect("a folder"))), "{config}");
}
