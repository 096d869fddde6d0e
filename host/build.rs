//! Makes the program find libtorch wherever it is started from: tch's link flags reach only
//! its own targets.

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rerun-if-changed=build.rs");
}
