//! Compiles the C++ for what tch does not bind, and makes the program find libtorch
//! wherever it is started from: tch's link flags reach only its own targets.

use std::path::Path;

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
    println!("cargo:rustc-env=HOST_LIBTORCH={}", libtorch.display());
    println!("cargo:rustc-env=HOST_PROFILE={}", std::env::var("PROFILE").expect("cargo names the profile"));
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
}
