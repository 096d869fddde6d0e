//! Compiles the C++ for what tch does not bind, and makes the program find libtorch
//! wherever it is started from: tch's link flags reach only its own targets.

use std::path::{Path, PathBuf};

const SOURCE: &str = "src/torch/libtorch.cpp";

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let libtorch = Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .include(libtorch.join("include"))
        .warnings(false)
        .opt_level(3)
        .file(SOURCE)
        .compile("host_libtorch");
    println!("cargo:rustc-env=HOST_PROFILE={}", std::env::var("PROFILE").expect("cargo names the profile"));
    // The program finds the libtorch beside it first: that of its own clone, if the clone was moved
    // or copied.
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/{}", from_program(&library_folder).display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
}

/// The way from the folder of the program to another folder.
fn from_program(folder: &str) -> PathBuf {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // The program's folder has build/host-HASH/out.
    let program = out.ancestors().nth(3).expect("cargo's folders");
    let folder = Path::new(folder);
    let shared =
        program.components().zip(folder.components()).take_while(|(one, other)| one == other).count();
    let up = program.components().skip(shared).map(|_| "..");
    up.collect::<PathBuf>().join(folder.components().skip(shared).collect::<PathBuf>())
}
