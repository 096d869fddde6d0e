use crate::command::arguments::{NewArguments, NewKind};
use crate::util::console::say;
use crate::util::files;
use crate::{Error, Result};
use plugin_api::python;
use std::env;
use std::path::{Path, PathBuf};

/// The folder of the host's sources when it was built; plugin-api is beside it.
const HOST_SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// The profile that this program was built in: "debug" or "release". A plugin is built in the same
/// one: libtorch's bindings, which take minutes, are then compiled already.
const PROFILE: &str = env!("HOST_PROFILE");

/// The versions of the host's dependencies. A plugin uses the same versions, so that compiled
/// crates are shared.
const LOCKED_VERSIONS: &str = include_str!("../../../Cargo.lock");

/// The template of a new plugin: its source, its name and its type. The tests build and check each
/// template.
fn template(kind: NewKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        NewKind::Model => (include_str!("../../../plugins/cnn/src/lib.rs"), "cnn", "Cnn"),
        NewKind::Sampler => (include_str!("../../../plugins/langevin/src/lib.rs"), "langevin", "Langevin"),
        NewKind::Attack => (include_str!("../../../examples/my-attack/src/lib.rs"), "my-attack", "MyAttack"),
        NewKind::Objective => {
            (include_str!("../../../examples/my-objective/src/lib.rs"), "my-objective", "MyObjective")
        }
    }
}

/// `host new`
pub fn run(arguments: &NewArguments) -> Result<u8> {
    let NewArguments { kind, name, path } = arguments;
    check_name(name)?;
    let folder = path.join(name);
    if folder.exists() {
        return Err(
            Error::new(format!("{} already exists", folder.display())).fix("choose another name or --path")
        );
    }
    let (repository, libtorch) = (repository()?, libtorch()?);
    // All plugins share the target folder: two crates of one name would overwrite each other's
    // library.
    if ["plugins", "examples"].iter().any(|folder| repository.join(folder).join(name).exists()) {
        return Err(Error::new(format!("there is already a plugin `{name}`")).fix("choose another name"));
    }
    let target_folder = repository.join("target");
    let plugin = target_folder.join(PROFILE).join(format!("lib{}.so", name.replace('-', "_")));
    let plugin = plugin.display().to_string();
    let (source, old_name, old_type) = template(*kind);

    files::write_folder(&folder, |folder| {
        let write = |file: &str, text: String| {
            let path = folder.join(file);
            let above = path.parent().unwrap_or(folder);
            files::create_folders(above).map_err(|why| Error::file("create", above, why))?;
            files::write_whole(&path, text.as_bytes())
        };
        write("src/lib.rs", renamed(source, (old_name, old_type), (name, &type_name(name))))?;
        write("tests/conformance.rs", conformance_test(name))?;
        write("Cargo.toml", cargo_toml(name, &repository))?;
        write("Cargo.lock", LOCKED_VERSIONS.to_owned())?;
        write(".cargo/config.toml", cargo_config(&target_folder, &libtorch))?;
        write("README.md", readme(*kind, name, &plugin))
    })?;

    say(format_args!("wrote {}: a copy of {old_name}", folder.display()));
    say(format_args!("  plugin-api  {}", repository.join("plugin-api").display()));
    say(format_args!("  libtorch    {}", libtorch.display()));
    say(format_args!("  library     {plugin}"));
    say(format_args!("  build       cd {} && {}", folder.display(), cargo("build")));
    say(format_args!("  check       host conform {plugin}"));
    say(format_args!("  use         {}", usage(*kind, &plugin)));
    Ok(0)
}

/// Refuses names that cargo does not accept or that need escapes in a manifest.
fn check_name(name: &str) -> Result<()> {
    let good = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    if name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && name.chars().all(good)
        && !name.ends_with('-')
    {
        return Ok(());
    }
    Err(Error::new(format!(
        "expected a name of lower-case letters, digits and `-`, like my-idea; got `{name}`"
    )))
}

/// The clone that this program lies in, which may have been moved or copied since it was built;
/// otherwise the one that it was built in.
fn repository() -> Result<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let built_in = Path::new(HOST_SOURCES).parent().unwrap_or(Path::new("/"));
    let mut places = program.ancestors().skip(1).chain([built_in]);
    places.find(|place| place.join("plugin-api/Cargo.toml").is_file()).map(Path::to_owned).ok_or_else(|| {
        Error::new(format!("the sources of this host are no longer in {}", built_in.display()))
            .note("nor", format!("in a folder around {}", program.display()))
            .fix("run the host from its clone")
    })
}

/// The folder of a libtorch that plugins can be built against: the one that this process uses, or,
/// if that has no headers, as the one that `make install` copies, the one that the host was built
/// against.
fn libtorch() -> Result<PathBuf> {
    let loaded =
        python::mapped("libtorch_cpu.so").and_then(|library| library.ancestors().nth(2).map(Path::to_owned));
    let places = loaded.into_iter().chain([PathBuf::from(env!("HOST_LIBTORCH"))]).collect::<Vec<_>>();
    places.iter().find(|place| place.join("include").is_dir()).cloned().ok_or_else(|| {
        let tried = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>();
        Error::new("there is no libtorch with headers, against which a plugin could be built")
            .note("tried", tried.join(", "))
            .fix("run `make setup` in the clone of the host")
    })
}

/// `my-idea` becomes `MyIdea`.
fn type_name(name: &str) -> String {
    let capitalised = name.split('-').filter(|word| !word.is_empty()).map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    capitalised.collect()
}

/// The template under its new name. Comments stay unchanged: they describe the mathematics.
fn renamed(source: &str, (old_name, old_type): (&str, &str), (name, type_name): (&str, &str)) -> String {
    let lines = source.lines().map(|line| {
        if line.trim_start().starts_with("//") {
            line.to_owned()
        } else {
            line.replace(&format!("\"{old_name}\""), &format!("\"{name}\"")).replace(old_type, type_name)
        }
    });
    lines.map(|line| line + "\n").collect()
}

fn conformance_test(name: &str) -> String {
    let crate_name = name.replace('-', "_");
    format!("//! The checks that every plugin must pass.\n\nconformance::conformance_tests!({crate_name});\n")
}

fn cargo_toml(name: &str, repository: &Path) -> String {
    let (plugin_api, conformance) = (repository.join("plugin-api"), repository.join("tests/conformance"));
    format!(
        "[package]
name = \"{name}\"
version = \"0.1.0\"
edition = \"2024\"
publish = false

[lib]
crate-type = [\"cdylib\", \"rlib\"]

[dependencies]
plugin-api = {{ path = {plugin_api:?} }}
schemars = \"1\"
serde = {{ version = \"1\", features = [\"derive\"] }}

[dev-dependencies]
conformance = {{ path = {conformance:?} }}

[[test]]
name = \"conformance\"
harness = false

# Makes this crate its own workspace, even inside another one.
[workspace]
"
    )
}

fn cargo_config(target_folder: &Path, libtorch: &Path) -> String {
    format!(
        "# The libtorch and the target folder of the host, so that libtorch's bindings are compiled only once.

[build]
target-dir = {target_folder:?}

[env]
LIBTORCH = {libtorch:?}

[profile.dev]
opt-level = 1
debug = \"line-tables-only\"
"
    )
}

/// A command of cargo in the profile of this program.
fn cargo(command: &str) -> String {
    let flag = if PROFILE == "release" { " --release" } else { "" };
    format!("cargo {command}{flag}")
}

/// The command that uses the plugin.
fn usage(kind: NewKind, plugin: &str) -> String {
    match kind {
        NewKind::Model => format!("host train --model {plugin}"),
        NewKind::Sampler => format!("host train --sampler {plugin}"),
        NewKind::Attack => format!("host eval RUN --attack {plugin}"),
        NewKind::Objective => format!("host train --recipe algorithm-1 --objective {plugin}"),
    }
}

fn readme(kind: NewKind, name: &str, plugin: &str) -> String {
    let (use_it, build, test) = (usage(kind, plugin), cargo("build"), cargo("test"));
    format!(
        "# {name}

    {build}
    {test} --no-fail-fast
    host inspect {plugin}
    host conform {plugin}
    {use_it}

The host was built in the profile `{PROFILE}`. In this profile, libtorch's bindings are compiled
already; the first build in another one compiles them, which takes minutes.

`Cargo.toml` has the path of plugin-api, `.cargo/config.toml` the paths of libtorch and of the target
folder. Rebuild the plugin when the contract or libtorch changes; otherwise the host refuses to open
it.

Tests in `src/lib.rs`, if any, are tests of the template. Replace them when you change the
computation. `tests/conformance.rs` checks any plugin.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_type_names_and_invalid_names_are_refused() {
        assert_eq!(type_name("my-idea2"), "MyIdea2");
        assert!(check_name("my-idea").is_ok());
        for name in ["", "My", "2d", "a_b", "a-", "../a", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn names_change_in_code_but_not_in_comments() {
        let source = "//! Langevin Monte Carlo\nexport_sampler!(\"langevin\", Langevin);\n";
        let renamed = renamed(source, ("langevin", "Langevin"), ("my-idea", "MyIdea"));
        assert_eq!(renamed, "//! Langevin Monte Carlo\nexport_sampler!(\"my-idea\", MyIdea);\n");
    }
}
