//! The crates under examples/: they are built outside the workspace and used with the existing
//! host.

use crate::harness::{Place, Run, build_beside_host, built, cargo_test, repository, sha256};
use std::fs;

const TRAIN: &str =
    "train --recipe algorithm-1 --data digits --threads 1 --epochs 3 --batch 20 --epsilon 0.1";

/// Builds an example by `cargo build` in its folder; the host must not change.
fn with_example(name: &str, library: &str, test: impl FnOnce(&Place)) {
    let host = sha256(&built("host"));
    build_beside_host(&repository().join("examples").join(name), []);
    assert!(built(library).is_file(), "{library} is beside the host");
    let place = Place::with_digits(8, 200);
    place.host(&format!("conform {library}")).succeeds();
    test(&place);
    assert_eq!(sha256(&built("host")), host, "the host was not rebuilt");
}

fn train(place: &Place, flags: &str, out: &str) -> Run {
    // So short a training may warn that the accuracy is at chance level.
    place.host(&format!("{TRAIN} {flags} --out {out}")).ended_with(0);
    place.run(out)
}

#[test]
fn my_sampler_gives_other_weights_than_langevin() {
    with_example("my-sampler", "libmy_sampler.so", |place| {
        let mine = train(place, "--sampler my_sampler.so", "mine");
        let shipped = train(place, "--sampler langevin.so", "shipped");
        let [mine, shipped] = [mine, shipped].map(|run| run.weights());
        assert!(mine.keys().eq(shipped.keys()));
        assert!(mine != shipped);
    });
}

#[test]
fn my_model_learns_with_other_parameters_than_cnn() {
    with_example("my-model", "libmy_model.so", |place| {
        let mine = train(place, "--model my_model.so --sampler fgsm.so", "mine");
        let shipped = train(place, "--model cnn.so --sampler fgsm.so", "shipped");
        assert!(!mine.weights().keys().eq(shipped.weights().keys()));
        let printed = place.host("eval mine --json --attack fgsm.so").succeeds().json();
        assert!(printed["clean"].as_f64().is_some_and(|clean| clean > 0.5), "{printed}");
    });
}

#[test]
fn my_attack_fools_the_model_at_other_points_than_pgd() {
    with_example("my-attack", "libmy_attack.so", |place| {
        train(place, "--sampler none --optimizer adam --learning-rate 0.002", "run");
        place.host("eval run --attack my_attack.so --attack pgd.so,steps=10,step_size=0.02").succeeds();
        let evaluation = &place.run("run").evaluations()[0];
        let [mine, shipped] = [0, 1].map(|number| &evaluation["verdicts"]["attacks"][number]);
        assert_ne!(mine, shipped);
        assert_ne!(*mine, evaluation["verdicts"]["clean"], "it fools some points");
    });
}

#[test]
fn my_objective_gives_other_weights_than_the_losses_that_it_mixes() {
    with_example("my-objective", "libmy_objective.so", |place| {
        let [natural, mixed, particles] = ["1", "0.5", "0"].map(|share| {
            let objective = format!("--objective my_objective.so,natural={share}");
            train(place, &objective, &format!("mine-{share}")).weights()
        });
        assert!(mixed != natural && mixed != particles);
        assert!(particles == train(place, "", "shipped").weights(), "the cross-entropy at the particles");
    });
}

#[test]
fn cargo_test_of_a_new_plugin_runs_the_conformance_checks() {
    let place = Place::empty();
    place.host("new sampler sloppy").succeeds();
    let source = place.path("sloppy/src/lib.rs");
    let good = fs::read_to_string(&source).expect("written");
    let checks = || cargo_test(&place.path("sloppy"), ["--test", "conformance"]);
    let (passed, printed) = checks();
    assert!(passed, "{printed}");
    assert!(printed.contains("[only `host conform` loads] sloppy load-cold"), "{printed}");

    let ascent = "ascent * step_size";
    assert!(good.contains(ascent));
    fs::write(&source, good.replace(ascent, "ascent * -step_size")).expect("written");
    let (passed, printed) = checks();
    assert!(!passed, "{printed}");
    let failed: Vec<_> = printed.lines().filter(|line| line.ends_with("FAILED")).collect();
    assert!(failed.len() == 1 && failed[0].contains("sloppy sampler-ascent"), "{printed}");
    assert!(printed.contains("expected  a mean loss above"), "{printed}");
}

#[test]
fn a_new_plugin_builds_conforms_and_trains() {
    let place = Place::with_digits(8, 200);
    for (kind, name) in [
        ("sampler", "new-sampler"),
        ("model", "new-model"),
        ("attack", "new-attack"),
        ("objective", "new-objective"),
    ] {
        let words = place.host(&format!("new {kind} {name}")).succeeds().words();
        // The plugin is built in the host's profile, in which its dependencies are compiled already.
        assert_eq!(words.contains("cargo build --release\n"), built("").ends_with("release"), "{words}");
        let library = built(&format!("lib{}.so", name.replace('-', "_"))).display().to_string();
        assert!(words.contains(&library), "{words}");
        place.refuses(&format!("new {kind} {name}"), &["already exists"]);
        build_beside_host(&place.path(name), []);
        let library = format!("lib{}.so", name.replace('-', "_"));
        place.host(&format!("conform {library}")).succeeds();
    }
    place.refuses("new sampler langevin", &["there is already a plugin `langevin`"]);
    place.refuses("new sampler New", &["expected a name of lower-case letters", "`New`"]);
    // A new plugin is a copy of a shipped one, so training gives the same weights.
    let new = train(&place, "--model new_model.so --sampler new_sampler.so", "new");
    let shipped = train(&place, "--model cnn.so --sampler langevin.so", "shipped");
    assert!(new.weights() == shipped.weights());
    place.host("eval new --attack new_attack.so,queries=5").succeeds();
    train(&place, "--objective new_objective.so", "mixed");
    for name in ["new_sampler", "new_model", "new_attack", "new_objective"] {
        fs::remove_file(built(&format!("lib{name}.so"))).expect("built here");
    }
}

#[test]
fn the_files_of_the_paper_are_valid_sweeps() {
    let place = Place::with_digits(28, 20);
    let folder = repository().join("examples/paper");
    let files = [folder.clone(), folder.join("quick")].into_iter().flat_map(|folder| {
        fs::read_dir(folder)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_file())
    });
    for file in files {
        // The data are replaced, since the real ones may be missing.
        let text = fs::read_to_string(&file).expect("readable");
        let lines = text.lines().filter(|line| !line.contains("points = ")).map(|line| match line {
            _ if line.starts_with("name = ") => "name = \"digits\"",
            line => line,
        });
        fs::write(place.path("paper.toml"), lines.collect::<Vec<_>>().join("\n")).expect("written");
        let listed = place.host("sweep paper.toml --dry-run").succeeds().words();
        assert!(listed.contains("waiting"), "{}: {listed}", file.display());
    }
}
