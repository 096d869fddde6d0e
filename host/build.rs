//! Compiles the C++ for what tch does not bind, and makes the program find libtorch
//! wherever it is started from: tch's link flags reach only its own targets.

use std::path::{Path, PathBuf};

const SOURCE: &str = "src/torch/libtorch.cpp";
const GROUPS: &str = "src/torch/c10d.cpp";
const NCCL: &str = "src/torch/nccl.cpp";

/// Where Gloo's headers are looked for after the folder that `GLOO_INCLUDE` names: where `make setup`
/// puts them, and where Debian's libgloo-dev does.
const GLOO: [&str; 2] = ["../.setup/gloo/usr/include", "/usr/include"];

/// Where the headers of NCCL and CUDA are looked for after the folder that `CUDA_INCLUDE` names and
/// beside libtorch: where `make cuda-headers` puts them, and where a CUDA toolkit does.
const CUDA: [&str; 3] = ["../.setup/cuda", "/usr/local/cuda/include", "/usr/include"];

/// Those that libtorch's own headers ask for.
const CUDA_HEADERS: [&str; 7] = [
    "nccl.h",
    "cuda_runtime_api.h",
    "crt/host_defines.h",
    "nv/target",
    "cublas_v2.h",
    "cusparse.h",
    "cusolverDn.h",
];

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
    let library = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("nccl.so");
    let lacks = build_nccl(libtorch, &library).err().unwrap_or_default();
    if !lacks.is_empty() {
        // The program carries an empty one.
        std::fs::write(&library, "").expect("OUT_DIR can be written to");
    }
    println!("cargo:rustc-env=HOST_NCCL={}", library.display());
    println!("cargo:rustc-env=HOST_NCCL_LACKS={lacks}");
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
    println!("cargo:rerun-if-changed={NCCL}");
    println!("cargo:rerun-if-changed=src/torch/attempt.h");
    println!("cargo:rerun-if-changed=src/torch/c10d.h");
    println!("cargo:rerun-if-env-changed=GLOO_INCLUDE");
    println!("cargo:rerun-if-env-changed=CUDA_INCLUDE");
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

/// Builds the library of groups that sum through NCCL, or says in a line what was missing.
fn build_nccl(libtorch: &Path, library: &Path) -> Result<(), String> {
    let beside = libtorch.parent().unwrap_or(libtorch).join("nvidia");
    let beside = ["cu13/include", "nccl/include"].map(|folder| beside.join(folder));
    let given = std::env::var_os("CUDA_INCLUDE").map(PathBuf::from);
    let folders: Vec<_> = given.into_iter().chain(beside).chain(CUDA.map(PathBuf::from)).collect();
    for file in ["lib/libtorch_cuda.so", "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"] {
        if !libtorch.join(file).is_file() {
            return Err(format!("its libtorch has no {file}"));
        }
    }
    let mut compiler = cc::Build::new().cpp(true).std("c++20").opt_level(2).get_compiler().to_command();
    compiler.args(["-shared", "-fPIC", "-fvisibility=hidden", "-D_GLIBCXX_USE_CXX11_ABI=1"]);
    for header in CUDA_HEADERS {
        let Some(folder) = folders.iter().find(|folder| folder.join(header).is_file()) else {
            return Err(format!("there was no header {header} (make cuda-headers fetches it)"));
        };
        // The compiler has its own place for this folder in its search.
        if folder != Path::new("/usr/include") {
            compiler.arg("-isystem").arg(folder);
        }
    }
    for folder in ["include", "include/torch/csrc/api/include"] {
        compiler.arg("-isystem").arg(libtorch.join(folder));
    }
    compiler.arg(NCCL).arg("-o").arg(library).arg("-L").arg(libtorch.join("lib"));
    compiler.args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    let output = compiler.output().map_err(|why| format!("the compiler did not start: {why}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("cargo:warning=the library for NCCL cannot be compiled: {}", errors.replace('\n', " | "));
    Err("its library for NCCL could not be compiled (the warnings of the build say why)".to_owned())
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
