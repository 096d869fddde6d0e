//! The Python interpreter that host and plugins use, if one is needed.

use crate::{Error, Result, LIBTORCH};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The variable of the environment that names the interpreter.
pub const VARIABLE: &str = "DRO_PYTHON";

/// A Python interpreter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Interpreter {
    /// Its program.
    pub program: PathBuf,
    /// Its version: "3.12.4".
    pub version: String,
    /// Its shared library; none if it was built without one.
    pub library: Option<PathBuf>,
    /// The version and build of its torch ("2.13.0+cu130"); none if it has none.
    pub torch: Option<String>,
}

/// Prints an [`Interpreter`]. It reads the version of torch from its file: importing torch takes
/// seconds.
const DESCRIBE: &str = r#"
import importlib.util, json, os, platform, sys, sysconfig
torch = importlib.util.find_spec("torch")
version = {}
if torch is not None and torch.origin:
    path = os.path.join(os.path.dirname(torch.origin), "version.py")
    if os.path.exists(path):
        exec(open(path).read(), version)
value = sysconfig.get_config_var
names = [value("INSTSONAME"), value("LDLIBRARY")] if value("Py_ENABLE_SHARED") else []
paths = [os.path.join(value("LIBDIR"), name) for name in names if name]
library = next((path for path in paths if os.path.exists(path)), None)
print(json.dumps({"program": sys.executable, "version": platform.python_version(),
                  "library": library, "torch": version.get("__version__")}))
"#;

/// The interpreter's program. In this order: `DRO_PYTHON`; the environment whose torch is this
/// process's libtorch; `python/bin/python` beside the folder of libtorch, where `make python` puts
/// it; the active virtual environment; `python3` on the path.
///
/// # Errors
/// If there is none: the places that were tried.
pub fn program() -> Result<PathBuf> {
    let of_environment = |folder: &Path| folder.join("bin/python");
    let active = env::var_os("VIRTUAL_ENV").map(|folder| of_environment(Path::new(&folder)));
    let on_path = |name: &str| {
        let folders = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&folders).map(|folder| folder.join(name)).collect::<Vec<_>>()
    };
    let around_libtorch = mapped("libtorch_cpu.so").into_iter().flat_map(|library| {
        let folders: Vec<_> = library.ancestors().skip(1).take(6).map(Path::to_owned).collect();
        folders.into_iter().flat_map(|folder| {
            let is_environment = folder.join("pyvenv.cfg").is_file();
            [is_environment.then(|| of_environment(&folder)), Some(of_environment(&folder.join("python")))]
        })
    });
    let Some(given) = env::var_os(VARIABLE).map(PathBuf::from) else {
        let places: Vec<_> = around_libtorch.flatten().chain(active).chain(on_path("python3")).collect();
        return places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
            let tried = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            Error::new(format!("no Python was found (tried {tried}); set {VARIABLE} to its program"))
        });
    };
    let is_name = given.components().count() == 1;
    let mut places =
        if is_name { on_path(&given.to_string_lossy()) } else { vec![given.clone()] }.into_iter();
    places.find(|place| place.is_file()).ok_or_else(|| {
        let given = given.display();
        Error::new(format!("{VARIABLE}: there is no Python interpreter {given}; correct it, or unset it"))
    })
}

/// The interpreter at [`program`], which is run once to describe itself.
///
/// # Errors
/// If there is none, or it fails.
pub fn interpreter() -> Result<Interpreter> {
    let program = program()?;
    let refused =
        |why: &str| Error::new(format!("{} is no Python that can be used: {why}", program.display()));
    let output =
        Command::new(&program).args(["-c", DESCRIBE]).output().map_err(|why| refused(&why.to_string()))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        return Err(refused(printed.lines().last().unwrap_or("it failed without a message")));
    }
    serde_json::from_slice(&output.stdout).map_err(|why| refused(&why.to_string()))
}

impl Interpreter {
    /// Refuses a torch that is not this process's libtorch: tensors cannot cross between the two.
    ///
    /// # Errors
    /// If there is no torch, or one of another version or build: both versions.
    pub fn check_torch(&self) -> Result<()> {
        let program = self.program.display();
        match &self.torch {
            Some(version) if version == LIBTORCH => Ok(()),
            Some(version) => Err(Error::new(format!(
                "the torch of {program} is {version}; expected {LIBTORCH}, the libtorch of this host (`make \
                 python` sets such an environment up, {VARIABLE} names another interpreter)"
            ))),
            None => Err(Error::new(format!(
                "{program} has no torch; expected torch {LIBTORCH}, the libtorch of this host (`make python` \
                 sets such an environment up, {VARIABLE} names another interpreter)"
            ))),
        }
    }
}

/// The file of this name that this process has mapped, if it has.
pub fn mapped(name: &str) -> Option<PathBuf> {
    all_mapped().into_iter().find(|path| path.file_name().is_some_and(|file| file == name))
}

/// All files that this process has mapped, libraries among them, without links on their way. None if
/// the system does not tell.
pub fn all_mapped() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(|line| line.get(line.find('/')?..).map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter_with(torch: Option<&str>) -> Interpreter {
        let torch = torch.map(str::to_owned);
        Interpreter { program: "/env/bin/python".into(), version: "3.12.1".to_owned(), library: None, torch }
    }

    #[test]
    fn another_torch_is_refused_with_both_versions() {
        assert_eq!(interpreter_with(Some(LIBTORCH)).check_torch(), Ok(()));
        let refused = interpreter_with(Some("2.0.1+cu118")).check_torch().expect_err("refused").to_string();
        assert!(refused.contains("is 2.0.1+cu118; expected ") && refused.contains(LIBTORCH), "{refused}");
        let refused = interpreter_with(None).check_torch().expect_err("refused").to_string();
        assert!(refused.contains("/env/bin/python has no torch; expected torch "), "{refused}");
    }

    #[test]
    fn the_libtorch_of_this_process_is_found() {
        let _ = tch::Tensor::from_slice(&[1.0]);
        assert!(mapped("libtorch_cpu.so").expect("mapped").is_file());
    }
}
