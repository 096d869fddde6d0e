//! Records which libtorch this build is bound to, for manifests and messages.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let library_folder = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let root = Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    let_cargo_find(&library_folder);
    println!("cargo:rustc-env=PLUGIN_API_LIBTORCH={}", libtorch_version(root));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", root.join("include/torch/headeronly/version.h").display());
}

/// Test binaries of crates that depend on this crate have no run path to libtorch. Cargo adds link
/// search folders to LD_LIBRARY_PATH of the programs that it starts, if the folders lie in the
/// target folder. This makes a link there.
fn let_cargo_find(library_folder: &str) {
    let link = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("libtorch");
    let _ = fs::remove_file(&link);
    if std::os::unix::fs::symlink(library_folder, &link).is_ok() {
        println!("cargo:rustc-link-search=native={}", link.display());
    }
}

/// Version and build ("2.13.0+cu130"): libtorch's archives name it in `build-version`,
/// Python's wheels in `version.py`; the header knows the version alone.
fn libtorch_version(root: &Path) -> String {
    if let Ok(text) = fs::read_to_string(root.join("build-version")) {
        return text.trim().to_owned();
    }
    if let Ok(text) = fs::read_to_string(root.join("version.py")) {
        let line = text.lines().find(|line| line.starts_with("__version__"));
        if let Some(version) = line.and_then(|line| line.split(['\'', '"']).nth(1)) {
            return version.to_owned();
        }
    }
    let header = fs::read_to_string(root.join("include/torch/headeronly/version.h")).unwrap_or_default();
    let number = |name: &str| header.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let parts = ["MAJOR", "MINOR", "PATCH"].map(|part| number(&format!("#define TORCH_VERSION_{part} ")));
    match parts {
        [Some(major), Some(minor), Some(patch)] => format!("{major}.{minor}.{patch}"),
        _ => "unknown".to_owned(),
    }
}
