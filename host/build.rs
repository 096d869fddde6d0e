//! Makes the program find libtorch wherever it is started from: tch's link flags reach only
//! its own targets.

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let libtorch =
        std::path::Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    println!("cargo:rustc-env=HOST_LIBTORCH={}", libtorch.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rerun-if-changed=build.rs");
}
