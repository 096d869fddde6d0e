//! Records which libtorch this build is bound to, for manifests and messages.

use std::path::Path;
use std::{env, fs};

fn main() {
    let library_folder =
        env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let root = Path::new(&library_folder)
        .parent()
        .expect("libtorch's lib folder has a parent");
    println!(
        "cargo:rustc-env=PLUGIN_API_LIBTORCH={}",
        libtorch_version(root)
    );
    println!("cargo:rerun-if-changed=build.rs");
    println!(
        "cargo:rerun-if-changed={}",
        root.join("build-version").display()
    );
    println!(
        "cargo:rerun-if-changed={}",
        root.join("version.py").display()
    );
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
    let header =
        fs::read_to_string(root.join("include/torch/headeronly/version.h")).unwrap_or_default();
    let number = |name: &str| {
        header
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let parts =
        ["MAJOR", "MINOR", "PATCH"].map(|part| number(&format!("#define TORCH_VERSION_{part} ")));
    match parts {
        [Some(major), Some(minor), Some(patch)] => format!("{major}.{minor}.{patch}"),
        _ => "unknown".to_owned(),
    }
}
