//! Compiles the C++ for what tch does not bind, and makes the program find libtorch
//! wherever it is started from: tch's link flags reach only its own targets.

use std::path::{Path, PathBuf};

const SOURCES: [&str; 3] = ["src/libtorch.cpp", "src/convolution.cpp", "src/winograd.cpp"];

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let libtorch = Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .flag("-fopenmp")
        .include(libtorch.join("include"))
        .warnings(false)
        .opt_level(3)
        .files(SOURCES)
        .compile("host_libtorch");
    // What runs in parallel here has libtorch's threads, so it needs libtorch's own OpenMP.
    match openmp_of(Path::new(&library_folder)) {
        Some(library) => println!("cargo:rustc-link-arg={}", library.display()),
        None => println!("cargo:rustc-link-lib=gomp"),
    }
    println!("cargo:rustc-env=HOST_LIBTORCH={}", libtorch.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rerun-if-changed=build.rs");
    for source in SOURCES.iter().chain(&["src/winograd.h"]) {
        println!("cargo:rerun-if-changed={source}");
    }
}

/// The OpenMP library that lies beside libtorch, if there is one.
fn openmp_of(library_folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(library_folder).ok()?.flatten().map(|entry| entry.path());
    let is_openmp = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libgomp"))
    };
    files.filter(is_openmp).min()
}
