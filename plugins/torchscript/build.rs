//! Compiles the C++ for what tch does not bind of TorchScript.

use std::path::Path;

const SOURCE: &str = "src/module.cpp";

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let libtorch = Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        // The headers of the autograd, which those of TorchScript include, need C++20.
        .std("c++20")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .warnings(false)
        .opt_level(2)
        .file(SOURCE)
        .compile("torchscript_module");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
}
