//! A record of what decides the last bits of a result besides the program and its options: the
//! processor, the libraries that libtorch calls, and the flags of its arithmetic.

use crate::torch::device::refusal;
use crate::torch::precision::Precision;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};
use std::fs;
use std::path::Path;
use tch::Device;

/// How a process computes on a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arithmetic {
    /// Model name of the processor.
    pub processor: String,
    /// Instruction set of libtorch's own kernels on the CPU: `DEFAULT`, `AVX2`, `AVX512`, …
    pub instruction_set: String,
    /// Version of oneDNN; none in a libtorch without it.
    pub onednn: Option<String>,
    /// Version of MKL; none in a libtorch without it.
    pub mkl: Option<String>,
    /// Version of OpenMP; none in a libtorch without it.
    pub openmp: Option<String>,
    /// Threads of libtorch on the CPU.
    pub threads: usize,
    /// `cpu` or `cuda`. The number of a GPU has no influence on its arithmetic.
    pub device: String,
    /// On CUDA, the models of the GPUs in this machine, each once.
    pub gpus: Vec<String>,
    /// On CUDA, the version of the driver.
    pub driver: Option<String>,
    /// On CUDA, the version of cuDNN.
    pub cudnn: Option<i64>,
    /// Whether convolutions of f32 on a GPU may use TF32.
    pub tf32_cudnn: bool,
    /// Whether matrix products of f32 on a GPU may use TF32.
    pub tf32_cublas: bool,
    /// Whether oneDNN may use TF32.
    pub tf32_onednn: bool,
    /// libtorch's `float32_matmul_precision`: `highest`, `high` or `medium`.
    pub float32_matmul_precision: String,
    /// Whether cuDNN uses deterministic algorithms only.
    pub cudnn_deterministic: bool,
    /// Whether cuDNN chooses algorithms by measuring them.
    pub cudnn_benchmark: bool,
    /// Whether libtorch refuses operations without a deterministic algorithm.
    pub deterministic_algorithms: bool,
}

/// Mirrors `HostArithmetic` in libtorch.cpp.
#[repr(C)]
struct Found {
    instruction_set: *const c_char,
    onednn: *const c_char,
    mkl: *const c_char,
    openmp: *const c_char,
    float32_matmul_precision: *const c_char,
    cudnn: i64,
    tf32_cudnn: bool,
    tf32_cublas: bool,
    tf32_onednn: bool,
    cudnn_deterministic: bool,
    cudnn_benchmark: bool,
    deterministic_algorithms: bool,
}

unsafe extern "C" {
    fn host_arithmetic(found: *mut Found) -> *const c_char;
}

impl Arithmetic {
    /// The arithmetic of this process on `device`, which must have been opened.
    ///
    /// # Errors
    /// If libtorch does not answer.
    pub fn current(device: Device) -> Result<Self> {
        let mut found = std::mem::MaybeUninit::<Found>::uninit();
        // SAFETY: `found` is a `HostArithmetic` that the function may write.
        if let Some(why) = refusal(unsafe { host_arithmetic(found.as_mut_ptr()) }) {
            return Err(Error::new(format!("libtorch cannot describe its arithmetic: {why}")));
        }
        // SAFETY: the function returned no error, so that it wrote all fields.
        let found = unsafe { found.assume_init() };
        let text = |pointer: *const c_char| {
            // SAFETY: each string is null or lives until this thread's next call of the function.
            (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
        };
        let on_cuda = matches!(device, Device::Cuda(_));
        Ok(Self {
            processor: processor(&cpuinfo()),
            instruction_set: text(found.instruction_set).unwrap_or_default(),
            onednn: text(found.onednn),
            mkl: text(found.mkl),
            openmp: text(found.openmp),
            threads: tch::get_num_threads() as usize,
            device: if on_cuda { "cuda" } else { "cpu" }.to_owned(),
            gpus: if on_cuda { gpus() } else { Vec::new() },
            driver: if on_cuda { driver(Path::new(NVIDIA)) } else { None },
            cudnn: (on_cuda && found.cudnn != 0).then_some(found.cudnn),
            tf32_cudnn: found.tf32_cudnn,
            tf32_cublas: found.tf32_cublas,
            tf32_onednn: found.tf32_onednn,
            float32_matmul_precision: text(found.float32_matmul_precision).unwrap_or_default(),
            cudnn_deterministic: found.cudnn_deterministic,
            cudnn_benchmark: found.cudnn_benchmark,
            deterministic_algorithms: found.deterministic_algorithms,
        })
    }

    /// That of updates in this precision, which alone may use TF32.
    pub(crate) fn of_updates(self, precision: Precision) -> Self {
        let is_allowed = precision == Precision::Tf32;
        Self { tf32_cudnn: is_allowed, tf32_cublas: is_allowed, ..self }
    }

    /// What differs in `later`, each with both values: "processor `A`, then `B`".
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let [before, after] = [self, later].map(|arithmetic| serde_json::json!(arithmetic));
        let fields = before.as_object().into_iter().flatten();
        let differing = fields.filter(|(field, value)| after[field.as_str()] != **value);
        differing
            .map(|(field, value)| {
                let name = field.replace('_', " ");
                format!("{name} {}, then {}", shown(value), shown(&after[field.as_str()]))
            })
            .collect()
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(" and "),
        value => value.to_string(),
    }
}

/// What the kernel says of the processor; nothing where there is no such file.
fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// The first value of this name in the text of `/proc/cpuinfo`.
fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut values = lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    values.find(|value| !value.is_empty()).map(str::to_owned)
}

/// Names in `/proc/cpuinfo` of instructions for bf16: two of x86, one of ARM.
pub(crate) const BF16: [&str; 3] = ["avx512_bf16", "amx_bf16", "bf16"];

/// Whether the processor lacks instructions for bf16; not if the kernel does not list any.
pub(crate) fn lacks_bf16() -> bool {
    lacks_bf16_in(&cpuinfo())
}

fn lacks_bf16_in(cpuinfo: &str) -> bool {
    let listed = field(cpuinfo, "flags").or_else(|| field(cpuinfo, "Features"));
    listed.is_some_and(|listed| !listed.split_whitespace().any(|name| BF16.contains(&name)))
}

/// The processor's model name in the text of `/proc/cpuinfo`. Kernels for ARM write only the
/// numbers of implementer and part; if there is nothing at all, the name is the architecture's.
fn processor(cpuinfo: &str) -> String {
    let by_numbers = || {
        let [implementer, part] = ["CPU implementer", "CPU part"].map(|name| field(cpuinfo, name));
        Some(format!("{}, implementer {}, part {}", std::env::consts::ARCH, implementer?, part?))
    };
    field(cpuinfo, "model name").or_else(by_numbers).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Where NVIDIA's driver describes itself.
const NVIDIA: &str = "/proc/driver/nvidia";

/// The models of the GPUs in this machine, sorted, each once.
pub(crate) fn gpus() -> Vec<String> {
    gpus_of(Path::new(NVIDIA))
}

/// The models of the GPUs that the driver's folder lists, sorted.
fn gpus_of(driver: &Path) -> Vec<String> {
    let folders = fs::read_dir(driver.join("gpus")).into_iter().flatten().flatten();
    let texts = folders.filter_map(|folder| fs::read_to_string(folder.path().join("information")).ok());
    let model = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(line.trim().to_owned())
    };
    texts.filter_map(model).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The version in the driver's folder: the first word of its first line that begins with a digit.
fn driver(driver: &Path) -> Option<String> {
    let text = fs::read_to_string(driver.join("version")).ok()?;
    let is_version = |word: &&str| word.starts_with(|letter: char| letter.is_ascii_digit());
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_processor_an_instruction_set_and_threads() {
        let found = Arithmetic::current(Device::Cpu).expect("libtorch answers");
        assert!(!found.processor.is_empty() && !found.instruction_set.is_empty(), "{found:?}");
        assert_eq!(found.threads, tch::get_num_threads() as usize);
        assert!(found.openmp.as_ref().is_some_and(|version| version.contains("OpenMP")), "{found:?}");
        assert_eq!((found.device.as_str(), found.float32_matmul_precision.as_str()), ("cpu", "highest"));
        assert_eq!((&found.gpus, &found.driver, found.cudnn), (&Vec::new(), &None, None));
        let written = serde_json::to_string(&found).expect("JSON");
        assert_eq!(serde_json::from_str::<Arithmetic>(&written).expect("the same"), found);
    }

    #[test]
    fn a_processor_without_bf16_is_one_whose_list_lacks_it() {
        let x86 = |flags: &str| format!("processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 {flags} sse\n");
        for (listed, lacks) in [
            (x86("avx512f"), true),
            (x86("avx512_bf16"), false),
            (x86("amx_bf16"), false),
            ("Features\t: fp asimd bf16 sve\n".to_owned(), false),
            ("Features\t: fp asimd sve\n".to_owned(), true),
            ("processor\t: 0\n".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(lacks_bf16_in(&listed), lacks, "{listed}");
        }
    }

    #[test]
    fn differences_name_the_field_and_both_values() {
        let before = Arithmetic {
            processor: "A".to_owned(),
            mkl: Some("MKL 1".to_owned()),
            threads: 4,
            gpus: vec!["H100".to_owned(), "H200".to_owned()],
            ..Default::default()
        };
        let after = Arithmetic {
            processor: "B".to_owned(),
            mkl: None,
            threads: 2,
            gpus: Vec::new(),
            tf32_cudnn: true,
            ..before.clone()
        };
        assert!(before.differences(&before).is_empty());
        let mut differences = before.differences(&after);
        differences.sort();
        assert_eq!(
            differences,
            [
                "gpus `H100` and `H200`, then none",
                "mkl `MKL 1`, then none",
                "processor `A`, then `B`",
                "tf32 cudnn false, then true",
                "threads 4, then 2",
            ]
        );
    }

    #[test]
    fn the_processor_is_named_whatever_the_architecture() {
        let intel = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some CPU @ 2 GHz\n\nmodel name\t: other\n";
        assert_eq!(processor(intel), "Some CPU @ 2 GHz");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert!(processor(arm).ends_with(", implementer 0x41, part 0xd0c"), "{}", processor(arm));
        assert_eq!(processor(""), std::env::consts::ARCH);
    }

    #[test]
    fn gpus_and_driver_are_read_from_the_drivers_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!((gpus_of(folder.path()), driver(folder.path())), (Vec::new(), None));
        for (address, model) in [("0000:01:00.0", "H200"), ("0000:02:00.0", "H100"), ("0000:03:00.0", "H100")]
        {
            let gpu = folder.path().join("gpus").join(address);
            fs::create_dir_all(&gpu).expect("a folder");
            let text = format!("Model: \t\t NVIDIA {model}\nIRQ:   \t\t 1\n");
            fs::write(gpu.join("information"), text).expect("written");
        }
        let version =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Jan 1 UTC 2026\nGCC 12\n";
        fs::write(folder.path().join("version"), version).expect("written");
        assert_eq!(gpus_of(folder.path()), ["NVIDIA H100", "NVIDIA H200"]);
        assert_eq!(driver(folder.path()).as_deref(), Some("580.159.04"));
    }
}
