//! Compiles the C++ for what tch does not bind, and makes the program find libtorch
//! wherever it is started from: tch's link flags reach only its own targets.

use std::path::{Path, PathBuf};

const SOURCE: &str = "src/torch/libtorch.cpp";
const GROUPS: &str = "src/torch/c10d.cpp";

/// Where Gloo's headers are looked for after the folder that `GLOO_INCLUDE` names: where `make setup`
/// puts them, and where Debian's libgloo-dev does.
const GLOO: [&str; 2] = ["../.setup/gloo/usr/include", "/usr/include"];

fn main() {
    let library_folder = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's folder");
    let libtorch = Path::new(&library_folder).parent().expect("libtorch's lib folder has a parent");
    let build = |standard: &str| {
        let mut build = cc::Build::new();
        build.cpp(true).std(standard).flag("-D_GLIBCXX_USE_CXX11_ABI=1");
        build.include(libtorch.join("include")).warnings(false).opt_level(3);
        build
    };
    build("c++17").file(SOURCE).compile("host_libtorch");
    let mut groups = build("c++20");
    // Without the headers the program is built all the same, and says at run time what it lacks.
    if let Some(gloo) = gloo().filter(|_| has_c10d(libtorch)) {
        groups.define("HOST_GLOO", None).include(libtorch.join("include/torch/csrc/api/include"));
        // The compiler has its own place for this folder in its search.
        if gloo != Path::new("/usr/include") {
            groups.flag("-isystem").flag(gloo);
        }
    }
    groups.file(GROUPS).compile("host_c10d");
    println!("cargo:rustc-env=HOST_PROFILE={}", std::env::var("PROFILE").expect("cargo names the profile"));
    // The program finds the libtorch beside it first: that of its own clone, if the clone was moved
    // or copied.
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/{}", from_program(&library_folder).display());
    // Then that of an installed program.
    println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../lib/host/libtorch/torch/lib");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{library_folder}");
    println!("cargo:rustc-env=HOST_LIBTORCH={}", libtorch.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={GROUPS}");
    println!("cargo:rerun-if-changed=src/torch/attempt.h");
    println!("cargo:rerun-if-env-changed=GLOO_INCLUDE");
    // A file that is missing would be taken for a changed one.
    if let Some(gloo) = gloo() {
        println!("cargo:rerun-if-changed={}", gloo.join("gloo/algorithm.h").display());
    }
}

/// The folder of Gloo's headers, if they are installed.
fn gloo() -> Option<PathBuf> {
    let given = std::env::var_os("GLOO_INCLUDE").map(PathBuf::from);
    let mut folders = given.into_iter().chain(GLOO.map(PathBuf::from));
    folders.find(|folder| folder.join("gloo/algorithm.h").is_file())
}

/// Whether this libtorch has c10d with Gloo.
fn has_c10d(libtorch: &Path) -> bool {
    libtorch.join("include/torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").is_file()
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
