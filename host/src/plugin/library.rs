//! Finding, checking and opening plugin libraries.

use super::{Guard, PluginSpec, call, running, trust};
use crate::error::absolute;
use crate::util::console::warn;
use crate::util::files;
use crate::{Error, Result};
use object::{Object, ObjectSection};
use plugin_api::manifest::{CONTRACT, SECTION};
use plugin_api::{LIBTORCH, abi};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::{env, fs};

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
    /// The losses of the outer and the inner problem.
    Objective,
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
            Kind::Objective => "objective",
            Kind::Unknown => "unknown",
        }
    }

    fn with_article(self) -> &'static str {
        match self {
            Kind::Model => "a model",
            Kind::Sampler => "a sampler",
            Kind::Attack => "an attack",
            Kind::Objective => "an objective",
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
    /// The files that options name, by option.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, NamedFile>,
}

/// A file that an option of a plugin names. The schema of such an option says `"x-file": "data"`, or
/// `"x-file": "code"` for a file whose code the plugin runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedFile {
    /// Its absolute path.
    pub path: PathBuf,
    /// SHA-256 of its contents, in hexadecimal.
    pub sha256: String,
    /// Whether it is code: one that only the record of a run names must be trusted.
    pub code: bool,
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
        let (path, sha256, options, files) = Default::default();
        Self { spec: name.to_owned(), path, sha256, manifest, options, files }
    }
}

/// A plugin of an open library.
pub struct Opened<Plugin> {
    /// The plugin.
    pub plugin: Plugin,
    /// Its record.
    pub record: Record,
    /// The given options, a JSON object. Paths of files are absolute.
    pub options: String,
    /// Its description. A plugin with an invalid one opens, so that the conformance checks can
    /// report it.
    pub description: Result<abi::Description>,
}

/// The largest number of bytes of the manifests of a library.
const MOST_BYTES: usize = 1 << 20;

/// The largest number of bytes of a name or version in a manifest.
const MOST_BYTES_OF_A_NAME: usize = 200;

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
    if text.len() > MOST_BYTES {
        return Err(not_a_plugin(&format!(
            "has a manifest of {} bytes; expected at most {MOST_BYTES}",
            text.len()
        )));
    }
    let manifests = text
        .split(|byte| matches!(byte, b'\n' | 0))
        .filter(|line| !line.is_empty())
        .map(serde_json::from_slice)
        .collect::<std::result::Result<Vec<Manifest>, _>>()
        .map_err(|error| not_a_plugin(&format!("has a manifest that cannot be read: {error}")))?;
    let is_odd = |text: &String| text.len() > MOST_BYTES_OF_A_NAME || text.contains(char::is_control);
    if manifests
        .iter()
        .flat_map(|manifest| [&manifest.name, &manifest.version, &manifest.libtorch])
        .any(is_odd)
    {
        return Err(not_a_plugin(&format!(
            "has a manifest with a control character or a text of more than {MOST_BYTES_OF_A_NAME} bytes"
        )));
    }
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

/// Opens the objective that `spec` names.
///
/// # Errors
/// As for [`open_model`].
pub(crate) fn open_objective(spec: &PluginSpec) -> Result<Opened<abi::ObjectivePlugin>> {
    open(
        spec,
        Kind::Objective,
        &spec.options(),
        |plugins| plugins.objectives,
        |plugin| &plugin.name,
        abi::ObjectivePlugin::describe,
    )
}

/// The plugin of the `accepted` kinds that `spec` names, found by the manifests alone. If there are
/// plugins of several of these kinds, those of the first one are meant.
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
    let of_kind = |kind: &Kind| meant.iter().filter(|manifest| manifest.kind == *kind).collect::<Vec<_>>();
    let preferred = accepted.iter().map(of_kind).find(|found| !found.is_empty()).unwrap_or_default();
    if let [one] = preferred.as_slice() {
        let manifest = (***one).clone();
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
    /// Whether it is made for tests of the host, which are built beside it.
    pub(crate) fn is_for_tests(&self) -> bool {
        self.version.ends_with("-test")
    }

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
    if spec.is_recorded {
        trust::check(&file.path, &file.sha256)?;
    }
    let plugins = open_library(&spec.file, &file)?.map_err(|why| refused(&why))?;
    let plugin =
        of_kind(plugins).into_iter().find(|plugin| name(plugin) == manifest.name).ok_or_else(|| {
            let name = &manifest.name;
            spec.error(format!("{} names `{name}` in its manifest but does not export it", spec.file))
        })?;
    let description = call(&manifest.name, "describe", [], || describe(&plugin));
    let schema = description.as_ref().map(|description| &description.options).unwrap_or(&Value::Null);
    let mut given = serde_json::from_str(given_options)
        .map_err(|why| spec.error(format!("{}: its options are no JSON object: {why}", spec.file)))?;
    let files = named_files(schema, &mut given).map_err(|why| spec.error(why))?;
    for file in files.values().filter(|file| file.code && spec.is_recorded) {
        trust::check(&file.path, &file.sha256)?;
    }
    let given_options = Value::Object(given.clone()).to_string();
    let options = resolved_options(schema, given);
    let spec = spec.to_string();
    let record = Record { spec, path: file.path, sha256: file.sha256, manifest, options, files };
    Ok(Opened { plugin, record, options: given_options, description })
}

/// The files that given options name, by option. Their paths become absolute.
///
/// # Errors
/// If there is no such file, or it cannot be read.
fn named_files(schema: &Value, given: &mut Map<String, Value>) -> Result<BTreeMap<String, NamedFile>> {
    let mut found = BTreeMap::new();
    for (option, property) in schema["properties"].as_object().into_iter().flatten() {
        let code = match property["x-file"].as_str() {
            Some("code") => true,
            Some("data") => false,
            _ => continue,
        };
        let Some(Value::String(named)) = given.get_mut(option) else { continue };
        let path = absolute(Path::new(named));
        if !path.is_file() {
            return Err(Error::new(format!("option `{option}`: there is no file {named}")));
        }
        *named = path.to_str().map(str::to_owned).ok_or_else(|| {
            Error::new(format!("option `{option}`: the path {} is not UTF-8", path.display()))
        })?;
        let (_, sha256) = files::size_and_sha256(&path)?;
        found.insert(option.clone(), NamedFile { path, sha256, code });
    }
    Ok(found)
}

/// The value of every option: the given one, or else the default in the JSON schema of the options.
fn resolved_options(schema: &Value, given: Map<String, Value>) -> Map<String, Value> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let defaults =
        properties.filter_map(|(name, property)| Some((name.clone(), property.get("default")?.clone())));
    // Options that are not in the schema are refused when the plugin is made.
    defaults.chain(given).collect()
}

/// The plugins of a library, or why it cannot be opened. Before it is opened for the first time, a
/// child process tries to open it. `name` is the file as the spec names it.
///
/// # Errors
/// If the child process crashes or ends.
fn open_library(name: &str, file: &File) -> Result<std::result::Result<abi::Plugins, String>> {
    /// SHA-256 of the libraries that a child process has opened.
    static TRIED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if !tried.contains(&file.sha256) {
        if let Some(passed_over) = passed_over(name, &file.path) {
            warn(format_args!(
                "{name} is {}; the file {passed_over} in the working directory is not used: ./{passed_over} names it",
                file.path.display()
            ));
        }
        try_to_open(&file.path)?;
        tried.insert(file.sha256.clone());
    }
    Ok(running::run(format!("{}: opening", file.path.display()), || keep_open(&file.path)))
}

/// Opens a library with all symbols resolved at once and private to it. It is never closed: its
/// tensors, types and threads may outlive every instance.
fn keep_open(path: &Path) -> std::result::Result<abi::Plugins, String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    let guard = Guard::before([]).map_err(|error| error.to_string())?;
    // SAFETY: opening runs the library's initialisers. It has a plugin's manifest, and the user has
    // chosen to run it with their own rights.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(std::mem::forget).map_err(|error| full_message(&error))?;
    guard.after("its initialiser").map_err(|error| error.first_line().to_owned())?;
    abi::plugins(path).map_err(|why| why.to_string())
}

/// Opens a library in a child process: the loader crashes on some damaged files, and an initialiser
/// may end its process.
///
/// # Errors
/// If the child process crashes or ends before the library is open. Other errors are left to the
/// caller, who opens the library next.
fn try_to_open(path: &Path) -> Result<()> {
    /// The exit code of a child process that survived.
    const SURVIVED: i32 = 99;
    /// The child is ended by SIGALRM after this time.
    const SECONDS_TO_OPEN: u32 = 120;
    let nowhere = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|why| Error::file("open", Path::new("/dev/null"), why))?;
    // SAFETY: the child has one thread, a copy of this one. It opens the library as its parent does
    // later; the allocator and the loader of glibc are usable after a fork. It ends by `_exit`, so
    // that it runs nothing that the parent has registered, and by a signal if its parent ends. It
    // does not print, and leaves no core file.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
            libc::alarm(SECONDS_TO_OPEN);
            for stream in 0..3 {
                libc::dup2(nowhere.as_raw_fd(), stream);
            }
            let opened = catch_unwind(|| keep_open(path).map(drop));
            std::mem::forget(opened);
            libc::_exit(SURVIVED)
        }
    }
    let mut status = 0;
    // SAFETY: `status` is written to. The child is waited for once; without memory for a child
    // (-1), there is none, and the library is opened without a trial.
    while child > 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        if io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            return Ok(());
        }
    }
    let status = ExitStatus::from_raw(status);
    match (child > 0, status.code()) {
        (false, _) | (true, Some(SURVIVED)) => Ok(()),
        (true, None) => {
            let what = format!("opening {} crashes the process: {status}", path.display());
            Err(Error::new(what).fix("the file is damaged, or its initialisers are wrong: build it again"))
        }
        (true, Some(_)) => {
            let what = format!("opening {} ends the process: {status}", path.display());
            Err(Error::new(what).fix("do not call exit while the library is opened").on_the_way())
        }
    }
}

/// An error with its causes, first lines only.
fn full_message(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let lines: Vec<_> = causes.map(|error| plugin_api::first_line(&error.to_string()).to_owned()).collect();
    lines.join(": ")
}

/// The library's path: as given if it has a folder. Otherwise the file is searched for, with and
/// without `lib` in front, in the [`searched_folders`], and last in the working directory: a file
/// there does not take the place of a plugin that is installed.
pub(crate) fn find(file: &str) -> Result<PathBuf> {
    let given = Path::new(file);
    let folder = given.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folders = match folder {
        Some(folder) => vec![folder.to_owned()],
        None => search_path(),
    };
    let names = names(given);
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

/// The names of a library's file, with and without `lib` in front.
fn names(file: &Path) -> [String; 2] {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    [name.to_string(), format!("lib{name}")]
}

/// The other library of this name in the working directory, if the name has no folder.
fn passed_over(file: &str, found: &Path) -> Option<String> {
    let is_other =
        |name: &String| Path::new(name).canonicalize().is_ok_and(|path| path.is_file() && path != found);
    names(Path::new(file)).into_iter().filter(|_| !file.contains('/')).find(is_other)
}

/// Every plugin library in the folders that are searched, in the order of the search, and these
/// folders.
pub(crate) fn installed() -> (Vec<File>, Vec<PathBuf>) {
    let (libraries, folders) = libraries();
    (libraries.iter().filter_map(|path| inspect(&path.display().to_string()).ok()).collect(), folders)
}

/// Every shared library in the folders that are searched, in the order of the search, and these
/// folders. One that is found on two ways is here once.
pub(crate) fn libraries() -> (Vec<PathBuf>, Vec<PathBuf>) {
    let working = |folder: PathBuf| if folder.as_os_str().is_empty() { ".".into() } else { folder };
    let folders: Vec<_> = search_path().into_iter().map(working).collect();
    let libraries = folders.iter().flat_map(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "so"));
        paths.sort();
        paths
    });
    let mut found: Vec<PathBuf> = Vec::new();
    for path in libraries.filter_map(|path| path.canonicalize().ok()) {
        if !found.contains(&path) {
            found.push(path);
        }
    }
    (found, folders)
}

/// The folders that are searched for a plugin named without a folder.
fn search_path() -> Vec<PathBuf> {
    searched_folders().into_iter().chain([PathBuf::new()]).collect()
}

/// The folder of plugins of an installed host, from the folder of its program.
const INSTALLED: &str = "../lib/host/plugins";

/// The folders whose libraries the user has chosen: that of the executable, that into which `make
/// install` puts plugins, and DRO_PLUGIN_PATH.
pub(super) fn searched_folders() -> Vec<PathBuf> {
    let program = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let installed = program.as_ref().and_then(|folder| folder.join(INSTALLED).canonicalize().ok());
    let listed = env::var_os("DRO_PLUGIN_PATH").unwrap_or_default();
    let listed = env::split_paths(&listed).filter(|folder| !folder.as_os_str().is_empty());
    program.into_iter().chain(installed).chain(listed).collect()
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
    fn files_that_options_name_become_absolute_and_are_digested() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("net.py");
        std::fs::write(&path, "class Net: ...").expect("written");
        let schema = json!({"properties": {
            "file": {"type": "string", "x-file": "code"},
            "other": {"type": ["string", "null"], "x-file": "data"},
            "name": {"type": "string"},
        }});
        let mut given = json!({"file": path.parent().expect("a folder").join("./net.py"), "name": "net.py"});
        let given = given.as_object_mut().expect("a map");
        let found = named_files(&schema, given).expect("found");
        assert_eq!(json!(given), json!({"file": path, "name": "net.py"}));
        let sha256 = files::sha256(b"class Net: ...");
        assert_eq!(found, [("file".to_owned(), NamedFile { path, sha256, code: true })].into());
        given.insert("other".to_owned(), "gone.npy".into());
        let refused = named_files(&schema, given).expect_err("refused");
        assert_eq!(refused.first_line(), "option `other`: there is no file gone.npy");
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
