use super::*;
use crate::Result;
use crate::plugin::PluginSpec;
use crate::util::fuzz::{USUAL, for_cases, toml_files, withstands};
use proptest::prelude::{any, prop_assert};
use std::path::Path;

fn read(text: &str) -> Result<Experiment> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("e.toml");
    std::fs::write(&path, text).expect("written");
    Experiment::read(&path)
}

fn first_line(text: &str) -> String {
    let error = read(text).expect_err("refused").to_string();
    let line = error.lines().next().unwrap_or_default();
    line.rsplit('/').next().unwrap_or_default().to_owned()
}

#[test]
fn errors_in_a_file_name_the_line() {
    assert!(
        first_line("[train]\nepochs = 3\nepoch = 3\n").starts_with("e.toml, line 3: unknown field `epoch`")
    );
    assert!(
        first_line("[train]\nepochs = \"3\"\n").starts_with("e.toml, line 2: invalid type: string \"3\"")
    );
    assert!(first_line("\n\nsampler = \"a.so,x\"\n").starts_with("e.toml, line 3: expected option=value"));
    assert!(first_line("modell = \"cnn.so\"\n").starts_with("e.toml, line 1: unknown field `modell`"));
    assert!(first_line("[train\n").starts_with("e.toml, line 1: "));
    assert_eq!(first_line("[sweep]\n"), "e.toml: expected one experiment, got a sweep: it has a [sweep]");
}

#[test]
fn plugins_have_their_line_as_origin() {
    let text = "sampler = \"a.so\"\n[eval]\nattacks = [\n\"b.so\",\n\"c.so\"]\n";
    let experiment = read(text).expect("valid");
    let line =
        |spec: &PluginSpec| spec.origin.clone().expect("an origin").rsplit(' ').next().map(str::to_owned);
    assert_eq!(experiment.sampler.0.as_ref().and_then(line).as_deref(), Some("1"));
    assert_eq!(line(&experiment.eval.attacks[1]).as_deref(), Some("5"));
}

#[test]
fn every_experiment_file_is_valid_and_a_recipe() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let files = std::fs::read_dir(&folder).expect("a folder").flatten().map(|entry| entry.path());
    let files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect();
    assert_eq!(files.len(), recipes().count());
    for file in files {
        let experiment = Experiment::read(&file).expect("valid");
        experiment.validate().expect("valid");
        let is_of_file =
            |about: &str| about.ends_with(&format!("{})", file.file_name().expect("a name").display()));
        let (name, _) = recipes().find(|(_, about)| is_of_file(about)).expect("a recipe");
        assert!(recipe(name).expect("a recipe").differences(&experiment).is_empty());
    }
    let error = recipe("dmeo").expect_err("refused").to_string();
    assert!(error.starts_with("--recipe: there is no recipe `dmeo`") && error.contains("algorithm-1"));
}

#[test]
fn the_file_of_algorithm_1_has_the_defaults_of_files() {
    let differences = recipe("algorithm-1").expect("a recipe").differences(&Experiment::default());
    let keys: Vec<_> = differences.iter().map(|(key, _)| key.as_str()).collect();
    // The file gives the options of its sampler explicitly.
    assert_eq!(keys, ["sampler"]);
}

#[test]
fn keys_override_an_experiment_and_unchanged_plugins_keep_their_origin() {
    let base = read("sampler = \"a.so\"\n[train]\nprobe = \"b.so\"\nmomentum = 0.5\n").expect("valid");
    let keys: toml::Table = toml::from_str("train = { epochs = 7, probe = \"c.so\" }").expect("TOML");
    let changed = base.with(&keys).expect("valid");
    assert_eq!((changed.train.epochs, changed.train.momentum), (7, 0.5));
    let origin = |experiment: &Experiment, role| {
        let (_, spec) = experiment.plugins().find(|(known, _)| *known == role).expect("a plugin");
        spec.origin.clone()
    };
    assert_eq!(origin(&changed, Role::Sampler), origin(&base, Role::Sampler));
    assert!(origin(&changed, Role::Sampler).is_some_and(|origin| origin.ends_with("e.toml, line 1")));
    assert_eq!(origin(&changed, Role::Probe), None, "this plugin is not from the file");
    let differences = changed.differences(&base);
    assert_eq!(differences, [("train.epochs".into(), 7.into()), ("train.probe".into(), "c.so".into())]);
    let unknown: toml::Table = toml::from_str("train = { epoch = 7 }").expect("TOML");
    assert!(base.with(&unknown).expect_err("refused").to_string().contains("unknown field `epoch`"));
}

#[test]
fn every_function_finds_all_plugins_of_an_experiment() {
    let mut experiment = Experiment::default();
    experiment.train.probe = Some("probe.so".parse().expect("a spec"));
    experiment.train.trace = Some("trace.so".parse().expect("a spec"));
    let roles = |experiment: &Experiment| {
        let mut roles: Vec<_> = experiment.plugins().map(|(role, _)| role).collect();
        roles.dedup();
        roles
    };
    assert_eq!(roles(&experiment), Role::ALL);
    let mut changed = experiment.clone();
    let same = changed.plugins_mut().into_iter().map(|(role, spec)| (role, spec.to_string()));
    assert!(same.eq(experiment.plugins().map(|(role, spec)| (role, spec.to_string()))));
    // Every key of the table whose value contains `.so` is the key of a role.
    let mut found = Vec::new();
    fn walk(prefix: &str, value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(inner) => {
                inner.iter().for_each(|(key, value)| walk(&format!("{prefix}.{key}"), value, found));
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| walk(prefix, value, found)),
            serde_json::Value::String(text) if text.contains(".so") => {
                found.push(prefix.trim_start_matches('.').to_owned());
            }
            _ => {}
        }
    }
    walk("", &serde_json::json!(experiment), &mut found);
    found.sort();
    found.dedup();
    let mut keys = Role::ALL.map(Role::key);
    keys.sort_unstable();
    assert_eq!(found, keys);
}

#[test]
fn the_error_names_a_value_out_of_range() {
    let refusal = |change: &dyn Fn(&mut Experiment)| {
        let mut experiment = Experiment::default();
        change(&mut experiment);
        experiment.validate().expect_err("refused").to_string()
    };
    assert_eq!(
        refusal(&|e| e.threat.epsilon = -0.1),
        "threat.epsilon: expected a number of at least 0, got -0.1"
    );
    assert_eq!(
        refusal(&|e| e.train.momentum = 1.0),
        "train.momentum: expected a number from 0 to below 1, got 1"
    );
    assert_eq!(
        refusal(&|e| e.train.learning_rate = f64::NAN),
        "train.learning_rate: expected a finite number above 0, got NaN"
    );
    assert!(refusal(&|e| e.train.device = "gpu".into()).contains("expected cpu, cuda or cuda:N, got `gpu`"));
    assert!(Experiment::default().validate().is_ok());
}

#[test]
fn mode_fused_takes_the_sampler_gradient_in_training_mode_only() {
    let mut train = Train::default();
    assert_eq!(train.sampler_gradient(), ModelMode::Eval);
    train.sampler_gradient = Some(ModelMode::Train);
    assert_eq!(train.sampler_gradient(), ModelMode::Train);
    train = Train { mode: Mode::Fused, ..Train::default() };
    assert_eq!(train.sampler_gradient(), ModelMode::Train);
    train.sampler_gradient = Some(ModelMode::Eval);
    let refused = Experiment { train, ..Experiment::default() }.validate().expect_err("refused");
    assert!(refused.to_string().starts_with("train.sampler_gradient: expected train (in mode fused"));
    assert!(read("[train]\nsampler_gradient = \"eval\"\n").is_ok());
}

#[test]
fn options_of_another_schedule_are_refused() {
    let refusal = |written: &str| {
        let experiment = read(&format!("[train]\n{written}\n")).expect("TOML");
        experiment.validate().expect_err("refused").to_string().lines().next().unwrap_or_default().to_owned()
    };
    let rising =
        "train.milestones: expected shares of the run above 0 and below 1, each above the one before it";
    for (written, expected) in [
        ("milestones = [0.5]", "train.milestones: only the step schedule uses it".to_owned()),
        (
            "schedule = \"one-cycle\"\nstep_factor = 0.5",
            "train.step_factor: only the step schedule uses it".to_owned(),
        ),
        (
            "schedule = \"step\"\npeak_at = 0.5",
            "train.peak_at: only the one-cycle schedule uses it".to_owned(),
        ),
        (
            "schedule = \"one-cycle\"\nwarmup_epochs = 1",
            "train.warmup_epochs: the one-cycle schedule already rises from 0".to_owned(),
        ),
        (
            "schedule = \"one-cycle\"\npeak_at = 1.0",
            "train.peak_at: expected a share of the run above 0 and below 1, got 1".to_owned(),
        ),
        (
            "schedule = \"step\"\nstep_factor = nan",
            "train.step_factor: expected a number above 0 and below 1, got NaN".to_owned(),
        ),
        ("schedule = \"step\"\nmilestones = []", format!("{rising}, got []")),
        ("schedule = \"step\"\nmilestones = [0.0, 0.5]", format!("{rising}, got [0.0, 0.5]")),
        ("schedule = \"step\"\nmilestones = [0.5, 0.5]", format!("{rising}, got [0.5, 0.5]")),
        ("schedule = \"step\"\nmilestones = [0.8, 0.5]", format!("{rising}, got [0.8, 0.5]")),
    ] {
        assert_eq!(refusal(written), expected);
    }
}

#[test]
fn numbers_of_a_file_may_be_fractions() {
    let text = "[threat]\nepsilon = \"8/255\"\ndomain = [\"-1/2\", 1]\n[train]\nlearning_rate = \"1/10\"\n\
                schedule = \"step\"\nmilestones = [\"1/4\", 0.5]\nstep_factor = \"1/5\"\n";
    let Experiment { threat, train, .. } = read(text).expect("valid");
    assert_eq!((threat.epsilon, threat.domain), (8.0 / 255.0, (-0.5, 1.0)));
    assert_eq!((train.learning_rate, train.step_factor), (0.1, Some(0.2)));
    assert_eq!(train.milestones.as_deref(), Some([0.25, 0.5].as_slice()));
    let refusal = |text: &str| read(text).expect_err("refused").to_string();
    let refused = refusal("[threat]\nepsilon = \"8:255\"\n");
    assert!(refused.contains("line 2") && refused.contains("a fraction such as 8/255"), "{refused}");
    assert!(refusal("[threat]\nradius = 1\n").contains("unknown field `radius`"));
}

#[test]
fn a_file_gives_another_norm_a_radius_of_its_own() {
    let refused = read("\n[threat]\nnorm = \"l2\"\n").expect_err("refused").to_string();
    assert!(refused.starts_with("threat.norm: l2 needs an epsilon of its own"), "{refused}");
    assert!(refused.contains("e.toml, line 3"), "{refused}");
    assert!(read("[threat]\nnorm = \"linf\"\n").is_ok());
    assert!(read("[threat]\nnorm = \"l2\"\nepsilon = 2\n").is_ok());
}

#[test]
fn a_text_file_is_utf_8() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.toml");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        Experiment::read(&path)
    };
    let text = "[train]\nepochs = 3\n";
    // Some editors write a mark of the byte order in UTF-8, too.
    for start in ["", "\u{feff}"] {
        assert_eq!(read(format!("{start}{text}").as_bytes()).expect("valid").train.epochs, 3);
    }
    let marked: Vec<u16> = format!("\u{feff}{text}").encode_utf16().collect();
    let bytes = |words: &[u16], order: fn(u16) -> [u8; 2]| words.iter().copied().flat_map(order).collect();
    let files: [(Vec<u8>, &str); 5] = [
        (bytes(&marked, u16::to_le_bytes), "is UTF-16"),
        (bytes(&marked, u16::to_be_bytes), "is UTF-16"),
        (bytes(&marked[1..], u16::to_le_bytes), "has zero bytes, as UTF-16 or a binary file"),
        (b"[train]\n# caf\xe9\n".to_vec(), "has a byte in line 2 that is not UTF-8"),
        (b"\x7fELF\0\xff".to_vec(), "has a byte in line 1 that is not UTF-8"),
    ];
    for (bytes, what) in files {
        let error = read(&bytes).expect_err("refused");
        assert_eq!(error.first_line(), format!("{} {what}: expected a text in UTF-8", path.display()));
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn fuzz_experiment_files_may_be_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    withstands(&toml_files("examples"), &folder.path().join("mine.toml"), USUAL, |path| {
        Experiment::read(path)?.validate().map_err(|error| error.note("in", path.display()))
    });
}

#[test]
fn fuzz_suites_may_be_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |path: &std::path::Path| suite::attacks(path.to_str().expect("UTF-8"));
    withstands(&toml_files("host/suites"), &folder.path().join("mine.toml"), USUAL, read);
}

#[test]
fn fuzz_experiments_come_back_as_they_were_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.toml");
    let number = || 1e-12f64..1e12;
    let values =
        (number(), number(), any::<u32>(), any::<u16>(), proptest::option::of(1..9usize), "[ -~]{1,20}");
    for_cases(&values, |(rate, epsilon, seed, epochs, threads, name)| {
        let mut experiment = Experiment::default();
        experiment.train.learning_rate = rate;
        experiment.threat.epsilon = epsilon;
        experiment.train.seed = seed.into();
        experiment.train.epochs = epochs.into();
        experiment.train.threads = threads;
        experiment.data.name = name;
        std::fs::write(&path, toml::to_string(&experiment).expect("TOML")).expect("written");
        prop_assert!(Experiment::read(&path).expect("valid").differences(&experiment).is_empty());
        let json = serde_json::to_vec(&experiment).expect("JSON");
        let read: Experiment = serde_json::from_slice(&json).expect("valid");
        prop_assert!(read.differences(&experiment).is_empty());
        Ok(())
    });
}
