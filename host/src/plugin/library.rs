//! Finding, checking and opening plugin libraries.

use super::PluginSpec;
use crate::util::files;
use crate::{Error, Result};
use object::{Object, ObjectSection};
use plugin_api::manifest::{CONTRACT, SECTION};
use plugin_api::{LIBTORCH, abi};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::env;
use std::path::{Path, PathBuf};

/// A plugin's manifest, part of its library's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its crate's version.
    pub version: String,
    /// The contract it was built for.
    pub contract: u32,
    /// Version and build of the libtorch it was built for.
    pub libtorch: String,
}

/// The kinds of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A differentiable classifier.
    Model,
    /// A transition kernel.
    Sampler,
    /// A whole procedure.
    Attack,
    /// A kind that this host does not support.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// Its name in manifests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Sampler => "sampler",
            Kind::Attack => "attack",
            Kind::Unknown => "unknown",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Kind::Model => "a model",
            Kind::Sampler => "a sampler",
            Kind::Attack => "an attack",
            Kind::Unknown => "of a kind that this host does not support",
        }
    }
}

/// A plugin library's file, not opened yet.
pub(crate) struct File {
    /// Its path.
    pub(crate) path: PathBuf,
    /// SHA-256 of the whole file, in hexadecimal.
    pub(crate) sha256: String,
    /// Its plugins.
    pub(crate) manifests: Vec<Manifest>,
}

/// The record of a plugin that a run used: how to find it, how to recognise it, and its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The spec as the user wrote it.
    pub spec: String,
    /// The library.
    pub path: PathBuf,
    /// SHA-256 of the library.
    pub sha256: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// The value of every option, defaults included, and the `steps` of a sampler; empty in the
    /// record of an older version.
    #[serde(default)]
    pub options: Map<String, Value>,
}

impl Record {
    /// Records the number of steps that a sampler takes.
    pub(crate) fn set_steps(&mut self, steps: usize) {
        self.options.insert("steps".to_owned(), steps.into());
    }

    /// The record of a plugin that is linked into the program.
    #[cfg(test)]
    pub(crate) fn linked(kind: Kind, name: &str) -> Self {
        let manifest = Manifest {
            kind,
            name: name.to_owned(),
            version: String::new(),
            contract: CONTRACT,
            libtorch: LIBTORCH.to_owned(),
        };
        let (path, sha256, options) = Default::default();
        Self { spec: name.to_owned(), path, sha256, manifest, options }
    }
}

/// A plugin of an open library.
pub struct Opened<Plugin> {
    /// The plugin.
    pub plugin: Plugin,
    /// Its record.
    pub record: Record,
}

/// Reads a library's manifests without opening it.
///
/// # Errors
/// If it cannot be found (with every path tried), is not a library, or has no manifest.
pub(crate) fn inspect(file: &str) -> Result<File> {
    let path = find(file)?;
    let bytes = files::read(&path)?;
    let not_a_plugin = |what: &str| {
        Error::new(format!("{} {what}", path.display()))
            .fix("give the .so of a crate that calls plugin_api's export macros")
    };
    let library =
        object::File::parse(bytes.as_slice()).map_err(|_| not_a_plugin("is not a shared library"))?;
    let section = library
        .section_by_name(SECTION)
        .ok_or_else(|| not_a_plugin("is a shared library without a plugin's manifest"))?;
    let text = section.data().map_err(|_| not_a_plugin("has a manifest that cannot be read"))?;
    let manifests = text
        .split(|byte| matches!(byte, b'\n' | 0))
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<std::result::Result<Vec<Manifest>, _>>()
        .map_err(|error| not_a_plugin(&format!("has a manifest that cannot be read: {error}")))?;
    Ok(File { sha256: files::sha256(&bytes), path, manifests })
}

/// Opens the model that `spec` names.
///
/// # Errors
/// If it cannot be found or opened, or does not fit this host.
pub(crate) fn open_model(spec: &PluginSpec) -> Result<Opened<abi::ModelPlugin>> {
    open(
        spec,
        Kind::Model,
        &spec.options(),
        |plugins| plugins.models,
        |plugin| &plugin.name,
        abi::ModelPlugin::describe,
    )
}

/// Opens the sampler that `spec` names.
///
/// # Errors
/// If it cannot be found or opened, or does not fit this host.
pub fn open_sampler(spec: &PluginSpec) -> Result<Opened<abi::SamplerPlugin>> {
    open(
        spec,
        Kind::Sampler,
        &spec.options(),
        |plugins| plugins.samplers,
        |plugin| &plugin.name,
        abi::SamplerPlugin::describe,
    )
}

/// Opens the attack that `spec` names.
///
/// # Errors
/// As for [`open_model`].
pub(crate) fn open_attack(spec: &PluginSpec) -> Result<Opened<abi::AttackPlugin>> {
    open(
        spec,
        Kind::Attack,
        &spec.attack_options(),
        |plugins| plugins.attacks,
        |plugin| &plugin.name,
        abi::AttackPlugin::describe,
    )
}

/// The plugin of the `accepted` kinds that `spec` names, found by the manifests alone.
///
/// # Errors
/// If the library has no such plugin, or several and `spec` does not choose one.
pub(crate) fn choose(spec: &PluginSpec, accepted: &[Kind]) -> Result<(File, Manifest)> {
    let file = inspect(&spec.file).map_err(|error| match &spec.origin {
        Some(origin) => error.note("in", origin),
        None => error,
    })?;
    let expected = accepted.iter().map(|kind| kind.with_article()).collect::<Vec<_>>().join(" or ");
    let fitting: Vec<_> =
        file.manifests.iter().filter(|manifest| accepted.contains(&manifest.kind)).collect();
    if let (true, Some(other)) = (fitting.is_empty(), file.manifests.first()) {
        let got = other.kind.with_article();
        return Err(spec.error(format!("{} is {got}; expected {expected}", spec.file)));
    }
    let is_meant = |manifest: &Manifest| spec.name.as_ref().is_none_or(|name| *name == manifest.name);
    let meant: Vec<_> = fitting.iter().filter(|manifest| is_meant(manifest)).collect();
    if let [one] = meant.as_slice() {
        let manifest = (**one).clone();
        return Ok((file, manifest));
    }
    let names: Vec<_> = fitting.iter().map(|manifest| manifest.name.as_str()).collect();
    let what = match &spec.name {
        Some(name) => format!("{} has no plugin `{name}` that is {expected}", spec.file),
        None => format!("{} has {} plugins that are {expected}", spec.file, meant.len()),
    };
    Err(spec.error(what).fix(format!("choose one with `,plugin=NAME` among: {}", names.join(", "))))
}

impl Manifest {
    /// Checks that this host can open the plugin.
    ///
    /// # Errors
    /// If it cannot: the versions of the plugin and of this host, and a remedy.
    pub(crate) fn fits(&self) -> std::result::Result<(), (String, &'static str)> {
        if self.contract != CONTRACT {
            let what =
                format!("built for contract {}; this host supports contract {CONTRACT}", self.contract);
            return Err((what, "rebuild it against this host's plugin-api"));
        }
        if self.libtorch != LIBTORCH {
            let what = format!("built for libtorch {}; this host runs {LIBTORCH}", self.libtorch);
            return Err((what, "rebuild it against this host's libtorch (set LIBTORCH to its folder)"));
        }
        Ok(())
    }
}

fn open<Plugin>(
    spec: &PluginSpec,
    kind: Kind,
    given_options: &str,
    of_kind: fn(abi::Plugins) -> Vec<Plugin>,
    name: fn(&Plugin) -> &str,
    describe: fn(&Plugin) -> plugin_api::Result<abi::Description>,
) -> Result<Opened<Plugin>> {
    let (file, manifest) = choose(spec, &[kind])?;
    let described = format!(
        "{} ({} {}, contract {})",
        file.path.display(),
        manifest.name,
        manifest.version,
        manifest.contract
    );
    manifest.fits().map_err(|(what, fix)| {
        spec.error(format!("{} was {what}", spec.file)).note("found", &described).fix(fix)
    })?;
    let refused =
        |why: &str| spec.error(format!("{} cannot be opened: {why}", spec.file)).note("found", &described);
    keep_open(&file.path).map_err(|why| refused(&why))?;
    let plugins = abi::plugins(&file.path).map_err(|why| refused(&why.to_string()))?;
    let plugin =
        of_kind(plugins).into_iter().find(|plugin| name(plugin) == manifest.name).ok_or_else(|| {
            let name = &manifest.name;
            spec.error(format!("{} names `{name}` in its manifest but does not export it", spec.file))
        })?;
    // A plugin with an invalid description opens, so that the conformance checks can report it.
    let schema = describe(&plugin).map(|description| description.options).unwrap_or_default();
    let given = serde_json::from_str(given_options)
        .map_err(|why| spec.error(format!("{}: its options are no JSON object: {why}", spec.file)))?;
    let options = resolved_options(&schema, given);
    let record = Record { spec: spec.to_string(), path: file.path, sha256: file.sha256, manifest, options };
    Ok(Opened { plugin, record })
}

/// The value of every option: the given one, or else the default in the JSON schema of the options.
fn resolved_options(schema: &Value, given: Map<String, Value>) -> Map<String, Value> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let defaults =
        properties.filter_map(|(name, property)| Some((name.clone(), property.get("default")?.clone())));
    // Options that are not in the schema are refused when the plugin is made.
    defaults.chain(given).collect()
}

/// Opens a library with all symbols resolved at once and private to it. It is never closed: its
/// tensors, types and threads may outlive every instance.
fn keep_open(path: &Path) -> std::result::Result<(), String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: opening runs the library's initialisers. It has a plugin's manifest, and the user has
    // chosen to run it with their own rights.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(std::mem::forget).map_err(|error| full_message(&error))
}

/// An error with its causes, first lines only.
fn full_message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let lines: Vec<_> = causes.map(|error| plugin_api::first_line(&error.to_string()).to_owned()).collect();
    lines.join(": ")
}

/// The library's path: as given if it has a folder. Otherwise the file is searched for in the
/// working directory, next to the executable and in DRO_PLUGIN_PATH, with and without `lib` in
/// front.
pub(crate) fn find(file: &str) -> Result<PathBuf> {
    let given = Path::new(file);
    let folder = given.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folders = match folder {
        Some(folder) => vec![folder.to_owned()],
        None => search_path(),
    };
    let name = given.file_name().unwrap_or_default().to_string_lossy();
    let names = [name.to_string(), format!("lib{name}")];
    let tried: Vec<_> =
        folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).collect();
    let found = tried.iter().find(|path| path.is_file());
    found.map(|path| path.canonicalize().unwrap_or_else(|_| path.clone())).ok_or_else(|| {
        let list = tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        Error::new(format!("plugin {file} was not found"))
            .note("tried", list.join(", "))
            .fix("give its path, or put its folder into DRO_PLUGIN_PATH")
    })
}

/// Every plugin library in the folders that are searched, in the order of the search.
pub(crate) fn installed() -> Vec<File> {
    let folders = search_path()
        .into_iter()
        .map(|folder| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder });
    let libraries = folders.flat_map(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "so"));
        paths.sort();
        paths
    });
    let mut files: Vec<File> = Vec::new();
    for file in libraries.filter_map(|path| inspect(&path.display().to_string()).ok()) {
        if !files.iter().any(|known| known.path == file.path) {
            files.push(file);
        }
    }
    files
}

/// The folders that are searched for a plugin named without a folder.
fn search_path() -> Vec<PathBuf> {
    let beside_executable = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let listed = env::var_os("DRO_PLUGIN_PATH").unwrap_or_default();
    let listed: Vec<_> = env::split_paths(&listed).filter(|folder| !folder.as_os_str().is_empty()).collect();
    [PathBuf::new()].into_iter().chain(beside_executable).chain(listed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn options_are_resolved_with_the_defaults_of_the_schema() {
        let schema = json!({"properties": {
            "step_size": {"type": "number", "default": 0.25},
            "epsilon": {"type": ["number", "null"], "default": null},
            "required": {"type": "string"},
        }});
        let resolved = |given: Value| {
            Value::Object(resolved_options(&schema, given.as_object().expect("a map").clone()))
        };
        assert_eq!(resolved(json!({})), json!({"step_size": 0.25, "epsilon": null}));
        let given = json!({"step_size": 1, "required": "yes"});
        assert_eq!(resolved(given), json!({"step_size": 1, "epsilon": null, "required": "yes"}));
        let broken = json!({"error": "no schema"});
        assert_eq!(resolved_options(&broken, Map::new()), Map::new());
    }

    #[test]
    fn a_record_of_an_older_version_has_no_options() {
        let manifest = json!({"kind": "model", "name": "a", "version": "1", "contract": 1, "libtorch": "2"});
        let older = json!({"spec": "a.so", "path": "a.so", "sha256": "0", "manifest": manifest});
        let mut record: Record = serde_json::from_value(older).expect("understood");
        assert_eq!(record.options, Map::new());
        record.set_steps(7);
        assert_eq!(json!(record)["options"], json!({"steps": 7}));
    }

    #[test]
    fn fuzz_libraries_may_be_damaged() {
        use crate::util::fuzz::{USUAL, corpus, withstands};
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.so");
        let read = |path: &Path| inspect(path.to_str().expect("UTF-8"));
        withstands(&[corpus("plugin.so")], &path, USUAL, read);
        std::fs::write(&path, corpus("plugin.so")).expect("written");
        let kinds: Vec<_> = read(&path).expect("valid").manifests.iter().map(|one| one.kind).collect();
        assert_eq!(kinds, [Kind::Sampler, Kind::Attack]);
    }
}
