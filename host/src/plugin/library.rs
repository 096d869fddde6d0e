//! Finding, checking and opening plugin libraries.

use super::PluginSpec;
use crate::util::files;
use crate::{Error, Result};
use object::{Object, ObjectSection};
use plugin_api::manifest::{CONTRACT, SECTION};
use plugin_api::{LIBTORCH, abi};
use serde::{Deserialize, Serialize};
use std::env;
use std::path::{Path, PathBuf};

/// What a plugin says of itself in its library's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its crate's version.
    pub version: String,
    /// The contract it was built for.
    pub contract: u32,
    /// The libtorch it was built for, version and build.
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
    /// One that this host does not know yet.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// Its name in manifests.
    pub fn name(self) -> &'static str {
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
            Kind::Unknown => "of a kind that this host does not know",
        }
    }
}

/// A plugin's library as it lies on disk, not yet running.
pub struct File {
    /// Where it was found.
    pub path: PathBuf,
    /// SHA-256 of the whole file, in hexadecimal.
    pub sha256: String,
    /// Its plugins.
    pub manifests: Vec<Manifest>,
}

/// Which plugin a run used, so that it can be found and recognised again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As the user wrote it.
    pub spec: String,
    /// The library.
    pub path: PathBuf,
    /// SHA-256 of the library.
    pub sha256: String,
    /// The plugin's own words.
    pub manifest: Manifest,
}

impl Record {
    /// The record of a plugin that is linked into the program.
    #[cfg(test)]
    pub fn linked(kind: Kind, name: &str) -> Self {
        let manifest = Manifest {
            kind,
            name: name.to_owned(),
            version: String::new(),
            contract: CONTRACT,
            libtorch: LIBTORCH.to_owned(),
        };
        Self { spec: name.to_owned(), path: PathBuf::new(), sha256: String::new(), manifest }
    }
}

/// A plugin of an open library.
pub struct Opened<Plugin> {
    /// What it can make.
    pub plugin: Plugin,
    /// Which it is.
    pub record: Record,
}

/// Reads what is known of a library without running it.
///
/// # Errors
/// If it cannot be found (naming every place tried), is not a library, or has no manifest.
pub fn inspect(file: &str) -> Result<File> {
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
pub fn open_model(spec: &PluginSpec) -> Result<Opened<abi::ModelPlugin>> {
    open(spec, Kind::Model, |plugins| plugins.models, |plugin| &plugin.name)
}

/// Opens the sampler that `spec` names.
///
/// # Errors
/// As for [`open_model`].
pub fn open_sampler(spec: &PluginSpec) -> Result<Opened<abi::SamplerPlugin>> {
    open(spec, Kind::Sampler, |plugins| plugins.samplers, |plugin| &plugin.name)
}

/// Opens the attack that `spec` names.
///
/// # Errors
/// As for [`open_model`].
pub fn open_attack(spec: &PluginSpec) -> Result<Opened<abi::AttackPlugin>> {
    open(spec, Kind::Attack, |plugins| plugins.attacks, |plugin| &plugin.name)
}

/// The plugin among `accepted` kinds that `spec` means, read from the manifests alone.
///
/// # Errors
/// If the library has no such plugin, or several and `spec` does not say which.
pub fn choose(spec: &PluginSpec, accepted: &[Kind]) -> Result<(File, Manifest)> {
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
    /// Whether this host can open the plugin.
    ///
    /// # Errors
    /// What the plugin was built for, what this host has, and what to do.
    pub fn fits(&self) -> std::result::Result<(), (String, &'static str)> {
        if self.contract != CONTRACT {
            let what = format!("built for contract {}; this host knows contract {CONTRACT}", self.contract);
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
    of_kind: fn(abi::Plugins) -> Vec<Plugin>,
    name: fn(&Plugin) -> &str,
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
    let record = Record { spec: spec.to_string(), path: file.path, sha256: file.sha256, manifest };
    Ok(Opened { plugin, record })
}

/// Opens a library with all its symbols resolved now, private to it, and never closes it:
/// tensors, types and threads of its own may outlive every instance.
fn keep_open(path: &Path) -> std::result::Result<(), String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // SAFETY: opening runs the library's initialisers. A plugin is native code that the user
    // chose to run with their own rights; its manifest says that it is one of ours.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(std::mem::forget).map_err(|error| full_message(&error))
}

/// An error with its causes, first lines only.
fn full_message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let lines: Vec<_> = causes.map(|error| plugin_api::first_line(&error.to_string()).to_owned()).collect();
    lines.join(": ")
}

/// The library's path: as given if it names a folder; else in the working directory, next to
/// the executable, or in DRO_PLUGIN_PATH, with or without `lib` in front.
fn find(file: &str) -> Result<PathBuf> {
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
pub fn installed() -> Vec<File> {
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

/// The folders in which a plugin named without one is looked for.
fn search_path() -> Vec<PathBuf> {
    let beside_executable = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let listed = env::var_os("DRO_PLUGIN_PATH").unwrap_or_default();
    let listed: Vec<_> = env::split_paths(&listed).filter(|folder| !folder.as_os_str().is_empty()).collect();
    [PathBuf::new()].into_iter().chain(beside_executable).chain(listed).collect()
}
