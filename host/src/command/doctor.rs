//! `host doctor`: what this host runs on, and what is wrong with it.

use crate::command::arguments::DoctorArguments;
use crate::plugin::library::{self, Kind, Manifest};
use crate::plugin::{PluginSpec, parse, trust};
use crate::torch::arithmetic::{Arithmetic, gpus};
use crate::torch::{c10d, device};
use crate::util::console::{quoted, say};
use crate::{Error, Result, data};
use plugin_api::{LIBTORCH, contract, python};
use serde::Serialize;
use std::path::Path;
use std::{env, fs};
use tch::Device;

/// Something that was looked at.
#[derive(Serialize)]
struct Finding {
    /// The group that it belongs to.
    section: &'static str,
    /// What it is.
    name: String,
    /// What was found.
    state: String,
    /// What is wrong with it.
    #[serde(flatten)]
    wrong: Option<Wrong>,
}

/// What is wrong, and what to do.
#[derive(Serialize)]
struct Wrong {
    wrong: String,
    fix: String,
}

impl Finding {
    fn new(section: &'static str, name: impl ToString, state: impl ToString) -> Self {
        Self { section, name: name.to_string(), state: state.to_string(), wrong: None }
    }

    fn wrong(mut self, wrong: impl ToString, fix: impl ToString) -> Self {
        self.wrong = Some(Wrong { wrong: wrong.to_string(), fix: fix.to_string() });
        self
    }

    /// The fix is that of the error, or else `fix`.
    fn error(self, error: &Error, fix: &str) -> Self {
        self.wrong(error.first_line(), error.advice().unwrap_or(fix))
    }
}

/// `host doctor`
pub fn run(arguments: &DoctorArguments) -> Result<u8> {
    let mut findings = versions();
    findings.extend(devices()?);
    findings.extend(plugins());
    findings.extend(data_sets(&arguments.data_folder));
    findings.push(trusted());
    findings.push(python_torch());
    let count = findings.iter().filter(|finding| finding.wrong.is_some()).count();
    for finding in &findings {
        show(finding, arguments.json)?;
    }
    if !arguments.json {
        say(match count {
            0 => "all is well".to_owned(),
            1 => "1 thing is wrong".to_owned(),
            _ => format!("{count} things are wrong"),
        });
    }
    Ok(u8::from(count > 0))
}

fn show(finding: &Finding, json: bool) -> Result<()> {
    if json {
        say(serde_json::to_string(finding).map_err(Error::new)?);
        return Ok(());
    }
    let Finding { section, name, state, wrong } = finding;
    say(format_args!("{section:10} {name:22} {state}"));
    if let Some(Wrong { wrong, fix }) = wrong {
        say(format_args!("    wrong    {wrong}\n    fix      {fix}"));
    }
    Ok(())
}

/// Versions of the host and of what it is made of.
fn versions() -> Vec<Finding> {
    let program = env::current_exe().map_or_else(|why| why.to_string(), |path| path.display().to_string());
    let host = format!("{}, {} build, {program}", env!("CARGO_PKG_VERSION"), env!("HOST_PROFILE"));
    vec![
        Finding::new("version", "host", host),
        Finding::new("version", "contract", contract::CURRENT),
        libtorch(),
        Finding::new("version", "c10d", processes()),
    ]
}

/// Whether several processes can train together. One that cannot is no mistake.
fn processes() -> &'static str {
    if c10d::has_groups() {
        "with Gloo: several processes can train together"
    } else {
        "without Gloo: one process trains alone (install libgloo-dev and build again)"
    }
}

/// libtorch: the version that the host was built for, and the one that its folder states.
fn libtorch() -> Finding {
    let Some(library) = python::mapped("libtorch_cpu.so") else {
        return Finding::new("version", "libtorch", LIBTORCH)
            .wrong("where it was loaded from cannot be told (/proc/self/maps)", "mount /proc");
    };
    let folder = library.parent().unwrap_or(Path::new("/"));
    let finding = Finding::new("version", "libtorch", format!("{LIBTORCH}, {}", folder.display()));
    let stated = fs::read_to_string(folder.join("../version.py")).unwrap_or_default();
    let stated = stated.lines().find(|line| line.starts_with("__version__"));
    match stated.and_then(|line| line.split(['\'', '"']).nth(1)) {
        Some(version) if version != LIBTORCH => finding.wrong(
            format!("its folder has {version}; the host was built for {LIBTORCH}"),
            "build the host against this libtorch (LIBTORCH), or install it again (make install)",
        ),
        _ => finding,
    }
}

/// The processor, its arithmetic and the GPU.
fn devices() -> Result<Vec<Finding>> {
    let arithmetic = Arithmetic::current(Device::Cpu)?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let cpu = format!("{}, {cores} threads", arithmetic.processor);
    let library = |name: &str, version: Option<String>| version.map(|version| format!("{name} {version}"));
    let libraries = [
        library("oneDNN", arithmetic.onednn),
        library("MKL", arithmetic.mkl),
        library("OpenMP", arithmetic.openmp),
    ];
    let kernels: Vec<_> =
        std::iter::once(arithmetic.instruction_set).chain(libraries.into_iter().flatten()).collect();
    Ok(vec![
        Finding::new("device", "cpu", cpu),
        Finding::new("device", "kernels", kernels.join(", ")),
        cuda(&gpus()),
    ])
}

/// Whether a GPU can be used, and if not, which of the reasons it is. It is wrong only if the
/// machine has one.
fn cuda(gpus: &[String]) -> Finding {
    let models = gpus.join(" and ");
    match (device::open(Device::Cuda(0)), gpus.is_empty()) {
        (Ok(_), _) => Finding::new("device", "cuda", format!("usable: {models}")),
        (Err(why), true) => Finding::new("device", "cuda", format!("not usable: {}", why.first_line())),
        (Err(why), false) => {
            Finding::new("device", "cuda", format!("not usable: {models}")).error(&why, "use --device cpu")
        }
    }
}

/// Every library in the folders that are searched, opened.
fn plugins() -> Vec<Finding> {
    let (files, folders) = library::libraries();
    let found = files.iter().flat_map(|path| plugins_of(path)).collect::<Vec<_>>();
    if found.is_empty() {
        let folders =
            folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        let none = Finding::new("plugin", "none", format!("searched: {folders}"));
        return vec![none.wrong(
            "no plugin was found",
            "copy the libraries of plugins beside this program, or put their folder into DRO_PLUGIN_PATH",
        )];
    }
    found
}

/// What is known of one library: a finding for each of its plugins.
fn plugins_of(path: &Path) -> Vec<Finding> {
    let shown = path.display();
    let rebuild = "build it again, or remove it";
    let file = match library::inspect(&shown.to_string()) {
        Ok(file) => file,
        Err(why) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return vec![Finding::new("plugin", name, shown).error(&why, rebuild)];
        }
    };
    let finding = |manifest: &Manifest| {
        let Manifest { kind, name, version, .. } = manifest;
        let finding = Finding::new("plugin", name, format!("{} {version}, {shown}", kind.name()));
        if let Err((what, fix)) = manifest.fits() {
            return finding.wrong(what, fix);
        }
        match parse(&quoted_spec(path, name)).and_then(|spec| opens(&spec, *kind)) {
            Ok(()) => finding,
            Err(why) => finding.error(&why, rebuild),
        }
    };
    // Plugins that are made for tests lie next to the executable, too.
    file.manifests.iter().filter(|manifest| !manifest.is_for_tests()).map(finding).collect()
}

/// The spec of a plugin of a library, whose path may have commas.
fn quoted_spec(path: &Path, name: &str) -> String {
    format!("{},plugin={name}", serde_json::json!(path.display().to_string()))
}

fn opens(spec: &PluginSpec, kind: Kind) -> Result<()> {
    let described = match kind {
        Kind::Model => library::open_model(spec)?.description,
        Kind::Sampler => library::open_sampler(spec)?.description,
        Kind::Attack => library::open_attack(spec)?.description,
        Kind::Objective => library::open_objective(spec)?.description,
        Kind::Unknown => return Err(Error::new("it is of a kind that this host does not support")),
    };
    described.map(drop)
}

/// The known data sets in a folder. One that is missing is no mistake.
fn data_sets(folder: &Path) -> Vec<Finding> {
    let of = |name: &str| {
        let place = folder.join(name);
        let shown = place.display();
        let fetch = format!("host data fetch {name} --data-folder {}", quoted(folder.display()));
        match data::load(name, folder) {
            Ok(dataset) => {
                let [train, test] = [dataset.train.count(), dataset.test.count()];
                let state =
                    |files: &str| format!("{train} training and {test} test images, {files}, {shown}");
                match &dataset.origin {
                    data::Origin::Altered(how) => {
                        Finding::new("data", name, state("altered")).wrong(how, &fetch)
                    }
                    _ => Finding::new("data", name, state("the published files")),
                }
            }
            Err(_) if !place.exists() => {
                Finding::new("data", name, format!("not there; `{fetch}` fetches it"))
            }
            Err(why) => Finding::new("data", name, shown).wrong(why.first_line(), &fetch),
        }
    };
    data::NAMES.into_iter().map(of).collect()
}

/// The user's list of trusted libraries.
fn trusted() -> Finding {
    match trust::count() {
        Ok((list, count)) => Finding::new("trust", "list", format!("{count} files, {}", list.display())),
        Err(why) => Finding::new("trust", "list", "").error(&why, "set XDG_DATA_HOME to a folder of yours"),
    }
}

/// The Python that `python.so` uses. It is wrong only if the user named it.
fn python_torch() -> Finding {
    let is_named = env::var_os(python::VARIABLE).is_some();
    let found = python::interpreter().and_then(|python| python.check_torch().map(|()| python));
    match found {
        Ok(python) => {
            let state = format!("{} with torch {LIBTORCH}, {}", python.version, python.program.display());
            Finding::new("python", "for python.so", state)
        }
        Err(why) if is_named => Finding::new("python", "for python.so", "not usable")
            .wrong(why, format!("name a Python with torch {LIBTORCH} in {}, or unset it", python::VARIABLE)),
        Err(why) => Finding::new("python", "for python.so", format!("not usable: {why}")),
    }
}
