//! Weights in files of other programs: safetensors, and what PyTorch's `torch.save` writes. Nothing
//! in a file is executed.
//!
//! A `.pt` file since PyTorch 1.6 is a zip archive without compression: `data.pkl` is a pickle of
//! the object, in which each tensor refers to a storage by its key, and `data/KEY` has the numbers
//! of that storage (`torch/serialization.py`, `torch/_utils.py`).

use super::identity::Identity;
use super::tensors;
use crate::util::files;
use crate::util::pickle::{Pickle, Value};
use crate::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use tch::{Device, Kind, Tensor};
use zip::read::ZipArchive;
use zip::write::{SimpleFileOptions, ZipWriter};
use zip::{CompressionMethod, DateTime};

/// Weights that were read from a file.
#[derive(Debug)]
pub struct Weights {
    /// The tensors by name, on the CPU. Some may share memory, as in the file.
    pub tensors: BTreeMap<String, Tensor>,
    /// How they were found, if there was a choice; what was left out.
    pub notes: Vec<String>,
}

/// Names under which checkpoints of common training programs hold the weights.
const NESTED: [&str; 9] = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "model_state",
    "module",
];

/// How many dictionaries in each other are searched.
const DEPTH: usize = 4;

/// What `DataParallel` and `torch.compile` put before every name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK\x03\x04";

/// The first bytes of what `torch.save` wrote before PyTorch 1.6: the pickle of a number.
const OLD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Reads a state dictionary: a `.safetensors` file, or one that `torch.save` wrote since PyTorch
/// 1.6. The file may hold a checkpoint in which the dictionary is under one of the usual names. A
/// prefix of `DataParallel` or `torch.compile` before all names is removed.
///
/// # Errors
/// If the file is another one (the error says which), is not whole, or has no tensors with names.
pub fn read(path: &Path) -> Result<Weights> {
    let mut file = File::open(path).map_err(|why| Error::file("read", path, why))?;
    let first = first_bytes(&mut file).map_err(|why| Error::file("read", path, why))?;
    let is_safetensors =
        first.get(8) == Some(&b'{') || path.extension().is_some_and(|ending| ending == "safetensors");
    let mut weights = match first.as_slice() {
        bytes if bytes.starts_with(ZIP) => Archive::open(path, file)?.weights()?,
        _ if is_safetensors => Weights { tensors: tensors::read(path)?, notes: Vec::new() },
        other => return Err(unknown_format(path, other)),
    };
    while let Some(prefix) = common_prefix(&weights.tensors) {
        weights.tensors = std::mem::take(&mut weights.tensors)
            .into_iter()
            .map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor))
            .collect();
        weights.notes.push(format!("`{prefix}` before every name is left out"));
    }
    if weights.tensors.is_empty() {
        return Err(Error::file("read weights from", path, "it has no tensors"));
    }
    Ok(weights)
}

fn first_bytes(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Read::by_ref(file).take(512).read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(bytes)
}

fn common_prefix(tensors: &BTreeMap<String, Tensor>) -> Option<&'static str> {
    let everywhere =
        |prefix: &&&str| tensors.keys().all(|name| name.len() > prefix.len() && name.starts_with(**prefix));
    PREFIXES.iter().find(everywhere).copied().filter(|_| !tensors.is_empty())
}

/// The error of a file that is neither a zip archive nor safetensors.
fn unknown_format(path: &Path, first: &[u8]) -> Error {
    let refuse = |what: &str| Error::file("read weights from", path, what);
    let is_tar = first.get(257..262) == Some(b"ustar");
    if first.starts_with(OLD) || is_tar {
        let name = path.display().to_string();
        return refuse("it has the format that PyTorch wrote before version 1.6").fix(format!(
            "save it anew with Python: torch.save(torch.load({name:?}, map_location=\"cpu\", weights_only=True), \"new.pt\")"
        ));
    }
    if first.is_empty() {
        return refuse("it is empty");
    }
    if first.starts_with(b"version https://git-lfs") {
        return refuse("it is a pointer of Git LFS, not the file itself").fix("fetch it with `git lfs pull`");
    }
    if first.starts_with(b"\x80") {
        return refuse("it is a pickle, but not one of torch.save").fix(WRITE_IT);
    }
    refuse("it is neither safetensors nor a file of torch.save").fix(WRITE_IT)
}

/// How a file of weights is made.
const WRITE_IT: &str = "write the weights with Python: torch.save(network.state_dict(), FILE)";

/// A file of `torch.save`.
struct Archive<'a> {
    path: &'a Path,
    zip: ZipArchive<BufReader<File>>,
    /// The folder that all of its files are in.
    root: String,
    is_big_endian: bool,
}

impl<'a> Archive<'a> {
    fn open(path: &'a Path, file: File) -> Result<Self> {
        let damaged = |why: &dyn std::fmt::Display| {
            Error::file("read weights from", path, format!("it is damaged or not whole: {why}"))
                .fix("copy or download it again")
        };
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|why| damaged(&why))?;
        let mut names = Vec::new();
        for name in zip.file_names() {
            names.push(name.map_err(|why| damaged(&why))?.into_owned());
        }
        let ends = |end: &str| names.iter().find_map(|name| name.strip_suffix(end));
        let refuse = |what: &str| Error::file("read weights from", path, what);
        if ends("/constants.pkl").is_some() || names.iter().any(|name| name.contains("/code/")) {
            return Err(refuse("it is a TorchScript archive, a network and not only its weights")
                .fix(format!("use it as the network: --model torchscript.so,file={}", path.display())));
        }
        let Some(root) = ends("data.pkl").map(str::to_owned) else {
            if names.iter().any(|name| name.ends_with(".npy")) {
                return Err(refuse("it is an archive of NumPy arrays (.npz)").fix(WRITE_IT));
            }
            if ends("/archive_format").is_some() || ends("serialized_exported_program.json").is_some() {
                return Err(refuse("it is a program of torch.export, a network and not only its weights")
                    .fix(WRITE_IT));
            }
            return Err(refuse("it is a zip archive, but not one of torch.save").fix(WRITE_IT));
        };
        let mut archive = Self { path, zip, root, is_big_endian: false };
        archive.is_big_endian = match archive.zip.index_for_name(&format!("{}byteorder", archive.root)) {
            Some(_) => match archive.record("byteorder")?.as_slice() {
                b"little" => false,
                b"big" => true,
                other => {
                    let order = other.escape_ascii().to_string();
                    return Err(
                        archive.refuse(format!("its byte order is {order:?}; expected little or big"))
                    );
                }
            },
            None => false,
        };
        Ok(archive)
    }

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::file("read weights from", self.path, what)
    }

    /// The bytes of one of its files, checked by their checksum.
    fn record(&mut self, name: &str) -> Result<Vec<u8>> {
        let path = self.path;
        let refuse = |why: &dyn std::fmt::Display| {
            Error::file("read weights from", path, format!("{}: {why}", name.escape_debug()))
                .fix("copy or download the file again")
        };
        let mut entry = self.zip.by_name(&format!("{}{name}", self.root)).map_err(|why| refuse(&why))?;
        // torch.save does not compress: the sizes below are bounded by that of the file.
        let length = fs_length(path)?;
        if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
            return Err(refuse(&"it is compressed, which PyTorch does not do"));
        }
        if entry.size() > length {
            return Err(refuse(&format!(
                "expected {} bytes, and the file has {length} in all",
                entry.size()
            )));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).map_err(|why| refuse(&why))?);
        entry.read_to_end(&mut bytes).map_err(|why| refuse(&why))?;
        Ok(bytes)
    }

    fn weights(mut self) -> Result<Weights> {
        let bytes = self.record("data.pkl")?;
        let pickle = Pickle::read(&bytes).map_err(|fault| self.refuse(fault))?;
        let (found, mut notes) = self.find(pickle.root(), Vec::new())?;
        let mut storages = HashMap::new();
        let (mut tensors, mut others) = (BTreeMap::new(), Vec::new());
        for (key, value) in found.entries().into_iter().flatten() {
            let Some(name) = key.text() else {
                return Err(self.refuse(format!("expected names of tensors, got {key}")));
            };
            match Description::of(value).map_err(|why| self.refuse(format!("`{}`: {why}", shown(name))))? {
                Some(description) => {
                    let tensor = self.tensor(&description, &mut storages);
                    tensors.insert(name.to_owned(), tensor.map_err(|why| why.note("tensor", shown(name)))?);
                }
                None => others.push(shown(name)),
            }
        }
        if !others.is_empty() {
            let count = others.len();
            others.truncate(10);
            notes.push(format!("{count} entries are no tensors and are left out: {}", others.join(", ")));
        }
        Ok(Weights { tensors, notes })
    }

    /// The dictionary of tensors: the value itself, or one in it under a usual name.
    fn find<'p, 'b>(
        &self,
        value: Value<'p, 'b>,
        mut path: Vec<&'static str>,
    ) -> Result<(Value<'p, 'b>, Vec<String>)> {
        let Some(entries) = value.entries() else { return Err(self.no_dictionary(value, &path)) };
        let entries: Vec<_> = entries.collect();
        let is_dictionary = |name: &&str| value.get(name).is_some_and(|inner| inner.entries().is_some());
        // A checkpoint may have a loose tensor, such as the best accuracy, beside its weights.
        let has_weights_inside = NESTED.iter().any(is_dictionary) && path.len() < DEPTH;
        // An entry that cannot be read counts as a tensor: the error should name it.
        let has_tensors = entries.iter().any(|(_, value)| !matches!(Description::of(*value), Ok(None)));
        if has_tensors && !has_weights_inside {
            let found = format!("the weights are those under {}", quoted(&path));
            return Ok((value, (!path.is_empty()).then_some(found).into_iter().collect()));
        }
        let nested = NESTED.iter().find_map(|name| Some((*name, value.get(name)?)));
        match nested {
            Some((name, inner)) if path.len() < DEPTH => {
                path.push(name);
                self.find(inner, path)
            }
            _ => {
                let mut names: Vec<_> =
                    entries.iter().map(|(key, _)| key.text().map_or(key.to_string(), shown)).collect();
                let count = names.len();
                names.truncate(10);
                let place = if path.is_empty() { String::new() } else { format!(" under {}", quoted(&path)) };
                Err(self
                    .refuse(format!("expected a dictionary of tensors{place}, got one without any tensor"))
                    .note("keys", format!("{count}: {}", names.join(", ")))
                    .fix(WRITE_IT))
            }
        }
    }

    /// The error of an object that is no dictionary.
    fn no_dictionary(&self, value: Value<'_, '_>, path: &[&str]) -> Error {
        let place = if path.is_empty() { String::new() } else { format!(" under {}", quoted(path)) };
        let state = value.reduce().and_then(|call| call.state);
        let is_network =
            state.is_some_and(|state| state.get("_modules").is_some() || state.get("_parameters").is_some());
        if is_network {
            return self
                .refuse(format!(
                    "it holds a whole network{place} ({value}), which only Python can load, and not its weights"
                ))
                .fix("save the weights alone, with Python: torch.save(network.state_dict(), FILE)");
        }
        if let Ok(Some(_)) = Description::of(value) {
            return self.refuse(format!("it holds one tensor{place}, without a name")).fix(WRITE_IT);
        }
        self.refuse(format!("expected a dictionary of tensors{place}, got {value}")).fix(WRITE_IT)
    }

    /// The tensor of a description. Its storage is read once, whichever tensors share it.
    fn tensor(
        &mut self,
        description: &Description<'_>,
        storages: &mut HashMap<String, Tensor>,
    ) -> Result<Tensor> {
        let Description { key, kind, storage, offset, shape, strides } = description;
        let size = kind.elt_size_in_bytes() as i64;
        if !storages.contains_key(*key) {
            let mut bytes = self.record(&format!("data/{key}"))?;
            if self.is_big_endian {
                let complex = matches!(kind, Kind::ComplexHalf | Kind::ComplexFloat | Kind::ComplexDouble);
                let part = kind.elt_size_in_bytes() / if complex { 2 } else { 1 };
                bytes.chunks_exact_mut(part).for_each(<[u8]>::reverse);
            }
            let bytes = Tensor::f_from_slice(&bytes)?;
            storages.insert((*key).to_owned(), bytes);
        }
        let bytes = &storages[*key];
        // The last number that the tensor reaches.
        let is_empty = shape.contains(&0);
        let reach = shape.iter().zip(strides).try_fold(*offset, |reach, (side, stride)| {
            reach.checked_add((side - 1).max(0).checked_mul(*stride)?)
        });
        let held = bytes.numel() as i64 / size;
        let fits = is_empty || reach.is_some_and(|reach| reach < held);
        if *storage > held || !fits {
            return Err(self
                .refuse(format!(
                    "a tensor of shape {shape:?} and strides {strides:?} at {offset} of {storage} numbers does not fit \
                     into the {} bytes of data/{}",
                    bytes.numel(),
                    shown(key)
                ))
                .fix("copy or download the file again"));
        }
        if is_empty {
            return Ok(Tensor::f_zeros(shape, (*kind, Device::Cpu))?);
        }
        let whole = bytes.f_narrow(0, 0, held * size)?.f_view_dtype(*kind)?;
        Ok(whole.f_as_strided(shape.as_slice(), strides.as_slice(), *offset)?)
    }
}

fn fs_length(path: &Path) -> Result<u64> {
    std::fs::metadata(path).map(|found| found.len()).map_err(|why| Error::file("read", path, why))
}

/// Names of dictionaries in each other, the innermost first.
fn quoted(path: &[&str]) -> String {
    path.iter().rev().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" in ")
}

/// A name of a file, for messages.
fn shown(name: &str) -> String {
    name.chars().take(80).flat_map(char::escape_debug).collect()
}

/// What a pickle says of a tensor.
struct Description<'p> {
    /// The name of its storage.
    key: &'p str,
    kind: Kind,
    /// The numbers in its storage.
    storage: i64,
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

impl<'p> Description<'p> {
    /// None if the value is no tensor.
    ///
    /// # Errors
    /// If it is one that has no numbers in the file, or not one each.
    fn of(mut value: Value<'p, '_>) -> std::result::Result<Option<Self>, String> {
        // Parameters and subclasses wrap a tensor.
        for _ in 0..DEPTH {
            let Some(call) = value.reduce() else { return Ok(None) };
            let Some((module, function)) = call.callable.global() else { return Ok(None) };
            let arguments: Vec<_> = call.arguments.items().into_iter().flatten().collect();
            match (module, function, arguments.as_slice()) {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..])
                | ("torch._tensor", "_rebuild_from_type", [_, _, data, ..]) => value = *data,
                ("torch._tensor", "_rebuild_from_type_v2", [rebuild, _, arguments, ..]) => {
                    return match rebuild.global() {
                        Some(("torch._utils", name)) => Self::rebuilt(
                            name,
                            arguments.items().into_iter().flatten().collect::<Vec<_>>().as_slice(),
                        ),
                        _ => Err(format!("{value} is no tensor that can be read here")),
                    };
                }
                ("torch._utils", name, arguments) if name.starts_with("_rebuild_") => {
                    return Self::rebuilt(name, arguments);
                }
                _ => return Ok(None),
            }
        }
        Err("a tensor is wrapped too often".to_owned())
    }

    /// What `torch._utils` would be called with.
    fn rebuilt(function: &str, arguments: &[Value<'p, '_>]) -> std::result::Result<Option<Self>, String> {
        let (storage, offset, shape, strides, dtype) = match (function, arguments) {
            ("_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                (storage, offset, shape, strides, None)
            }
            ("_rebuild_tensor_v3", [storage, offset, shape, strides, _, _, dtype, ..]) => {
                (storage, offset, shape, strides, Some(*dtype))
            }
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => {
                let call = data.reduce().and_then(|call| call.callable.global());
                return match call {
                    // A parameter in a parameter may go on for ever.
                    Some((_, name)) if name.contains("parameter") => {
                        Err("a parameter has no tensor".to_owned())
                    }
                    _ => Self::of(*data),
                };
            }
            _ => {
                return Err(format!(
                    "its kind ({}) is not supported; expected dense tensors",
                    shown(function)
                ));
            }
        };
        let parts = storage.persistent().and_then(Value::tuple);
        let [tag, class, key, _, numbers]: [Value<'p, '_>; 5] =
            parts.ok_or("its storage is not described")?;
        if tag.text() != Some("storage") {
            return Err("its storage is not described".to_owned());
        }
        let unknown = || "its storage is not described".to_owned();
        let (class, key) = (class.global().ok_or_else(unknown)?.1, key.text().ok_or_else(unknown)?);
        let name = match dtype {
            Some(dtype) => dtype.global().ok_or_else(unknown)?.1,
            None => class,
        };
        let kind = KINDS.iter().find(|(of_storage, of_dtype, _)| [of_storage, of_dtype].contains(&&name));
        let kind = kind.ok_or_else(|| format!("its dtype ({}) is not supported here", shown(name)))?.2;
        let whole = |list: &Value<'p, '_>| -> Option<Vec<i64>> {
            list.items()?.map(|item| item.integer().filter(|number: &i64| *number >= 0)).collect()
        };
        let (shape, strides) = (whole(shape).ok_or_else(unknown)?, whole(strides).ok_or_else(unknown)?);
        let numbers: i64 = numbers.integer().filter(|count| *count >= 0).ok_or_else(unknown)?;
        // A storage without a type counts bytes.
        let storage =
            if class == "UntypedStorage" { numbers / kind.elt_size_in_bytes() as i64 } else { numbers };
        let offset = offset.integer().filter(|offset: &i64| *offset >= 0).ok_or_else(unknown)?;
        let count = shape.iter().try_fold(1i64, |count, side| count.checked_mul(*side));
        if shape.len() != strides.len() || count.is_none() {
            return Err(format!("shape {shape:?} and strides {strides:?} do not fit together"));
        }
        Ok(Some(Self { key, kind, storage, offset, shape, strides }))
    }
}

/// The names of storages and dtypes in PyTorch. Where there is no storage of a type, its name is
/// that of the dtype.
const KINDS: [(&str, &str, Kind); 17] = [
    ("FloatStorage", "float32", Kind::Float),
    ("DoubleStorage", "float64", Kind::Double),
    ("HalfStorage", "float16", Kind::Half),
    ("BFloat16Storage", "bfloat16", Kind::BFloat16),
    ("LongStorage", "int64", Kind::Int64),
    ("IntStorage", "int32", Kind::Int),
    ("ShortStorage", "int16", Kind::Int16),
    ("CharStorage", "int8", Kind::Int8),
    ("ByteStorage", "uint8", Kind::Uint8),
    ("BoolStorage", "bool", Kind::Bool),
    ("ComplexFloatStorage", "complex64", Kind::ComplexFloat),
    ("ComplexDoubleStorage", "complex128", Kind::ComplexDouble),
    ("complex32", "complex32", Kind::ComplexHalf),
    ("float8_e5m2", "float8_e5m2", Kind::Float8e5m2),
    ("float8_e4m3fn", "float8_e4m3fn", Kind::Float8e4m3fn),
    ("float8_e5m2fnuz", "float8_e5m2fnuz", Kind::Float8e5m2fnuz),
    ("float8_e4m3fnuz", "float8_e4m3fnuz", Kind::Float8e4m3fnuz),
];

/// Bytes at whose multiples the numbers of a storage begin, as PyTorch lays them.
const ALIGNMENT: u16 = 64;

/// Writes a state dictionary as `torch.save` does: `torch.load(path, weights_only=True)` gives an
/// `OrderedDict` of tensors on the CPU in this order. A tensor under two names (tied weights) is
/// written once. The file is whole or absent.
///
/// # Errors
/// If a dtype has no storage in PyTorch, or the disk refuses.
pub fn write_state_dict(path: &Path, state: &[(String, Tensor)]) -> Result<()> {
    let mut pickle = Pickler::default();
    let mut storages: Vec<&Tensor> = Vec::new();
    let mut keys: HashMap<*const c_void, usize> = HashMap::new();
    pickle.begin();
    for (name, tensor) in state {
        let known = KINDS.iter().find(|(storage, dtype, kind)| *kind == tensor.kind() && storage != dtype);
        let (class, ..) = known.ok_or_else(|| {
            Error::new(format!("a {:?} tensor cannot be saved as a state dictionary", tensor.kind()))
        })?;
        let key = *keys.entry(Identity::of(tensor)?.tensor).or_insert_with(|| {
            storages.push(tensor);
            storages.len() - 1
        });
        pickle.tensor(name, class, key, &tensor.size());
    }
    pickle.end();
    files::write_whole_with(path, |file| {
        let mut zip = ZipWriter::new(BufWriter::new(OpenOptions::new().write(true).open(file)?));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .with_alignment(ALIGNMENT);
        let mut record = |name: &str, bytes: &[u8]| -> io::Result<()> {
            let options = options.large_file(bytes.len() as u64 >= u64::from(u32::MAX));
            zip.start_file(format!("archive/{name}"), options)?;
            zip.write_all(bytes)
        };
        record("data.pkl", &pickle.bytes)?;
        record("byteorder", b"little")?;
        for (key, tensor) in storages.iter().enumerate() {
            record(&format!("data/{key}"), &tensors::bytes(tensor).map_err(io::Error::other)?)?;
        }
        record("version", b"3\n")?;
        zip.finish()?.flush()
    })
}

/// The pickle of a state dictionary, protocol 2.
#[derive(Default)]
struct Pickler {
    bytes: Vec<u8>,
}

impl Pickler {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.put(b"X");
        self.put(&(text.len() as u32).to_le_bytes());
        self.put(text.as_bytes());
    }

    fn integer(&mut self, number: i64) {
        match i32::try_from(number) {
            Ok(number) => {
                self.put(b"J");
                self.put(&number.to_le_bytes());
            }
            Err(_) => {
                self.put(b"\x8a\x08");
                self.put(&number.to_le_bytes());
            }
        }
    }

    fn integers(&mut self, numbers: &[i64]) {
        self.put(b"(");
        numbers.iter().for_each(|number| self.integer(*number));
        self.put(b"t");
    }

    fn begin(&mut self) {
        self.put(b"\x80\x02ccollections\nOrderedDict\n)R(");
    }

    /// A key and a tensor without gaps: a call of `_rebuild_tensor_v2` with its storage (an object
    /// outside the pickle), offset, shape, strides, whether it needs a gradient, and no hooks.
    fn tensor(&mut self, name: &str, class: &str, key: usize, shape: &[i64]) {
        let count: i64 = shape.iter().product();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        self.text(name);
        self.put(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.put(format!("ctorch\n{class}\n").as_bytes());
        self.text(&key.to_string());
        self.text("cpu");
        self.integer(count);
        self.put(b"tQ");
        self.integer(0);
        self.integers(shape);
        self.integers(&strides);
        self.put(b"\x89ccollections\nOrderedDict\n)RtR");
    }

    fn end(&mut self) {
        self.put(b"u.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// A file of `tests/corpus/torch`, which `tests/corpus/torch/write.py` writes with PyTorch.
    fn corpus(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus/torch").join(name)
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double).contiguous().view(-1)).expect("numbers")
    }

    fn found(name: &str) -> Weights {
        read(&corpus(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn refused(name: &str) -> String {
        let error = read(&corpus(name)).expect_err("refused");
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn every_dtype_of_pytorch_is_read() {
        let Weights { tensors, notes } = found("dtypes.pt");
        for (_, dtype, kind) in KINDS {
            let tensor = tensors.get(dtype).unwrap_or_else(|| panic!("{dtype}"));
            assert_eq!((tensor.kind(), tensor.size()), (kind, vec![2]), "{dtype}");
            let expected: &[f64] = match kind {
                Kind::ComplexHalf | Kind::ComplexFloat | Kind::ComplexDouble => {
                    assert_eq!(numbers(&tensor.view_as_real()), [1.0, 2.0, 0.0, -1.0]);
                    continue;
                }
                Kind::Bool => &[1.0, 0.0],
                Kind::Uint8 => &[1.0, 255.0],
                Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64 => &[1.0, -2.0],
                _ => &[1.5, -2.0],
            };
            assert_eq!(numbers(tensor), expected, "{dtype}");
        }
        assert!(notes.is_empty());
    }

    #[test]
    fn strides_offsets_and_shared_memory_are_those_of_the_file() {
        let Weights { tensors, .. } = found("views.pt");
        assert_eq!(numbers(&tensors["turned"]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(tensors["turned"].size(), [3, 2]);
        assert_eq!(numbers(&tensors["part"]), [4.0, 5.0]);
        assert_eq!(tensors["none"].size(), [0, 3]);
        assert_eq!((tensors["one"].size(), numbers(&tensors["one"])), (vec![], vec![0.5]));
        assert_eq!(numbers(&tensors["expanded"]), [7.0; 4]);
        assert_eq!(numbers(&tensors["parameter"]), [1.0, 2.0]);
        assert!(!tensors["parameter"].requires_grad());
        // Views of one storage in the file are views of one storage here.
        tch::no_grad(|| drop(tensors["turned"].shallow_clone().fill_(9.0)));
        assert_eq!(numbers(&tensors["part"]), [9.0, 9.0]);
    }

    #[test]
    fn weights_inside_a_checkpoint_are_found_and_said() {
        for (name, place) in [("lightning.pt", "`state_dict`"), ("nested.pt", "`net` in `model`")] {
            let Weights { tensors, notes } = found(name);
            assert_eq!(tensors.keys().collect::<Vec<_>>(), ["bias", "weight"], "{name}");
            assert_eq!(notes[0], format!("the weights are those under {place}"), "{name}");
        }
        let Weights { tensors, notes } = found("parallel.pt");
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
        assert_eq!(
            notes,
            ["`_orig_mod.` before every name is left out", "`module.` before every name is left out"]
        );
        let Weights { tensors, notes } = found("mixed.pt");
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["weight"]);
        assert_eq!(notes, ["2 entries are no tensors and are left out: epoch, name"]);
        assert_eq!(found("weights.safetensors").tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
        assert_eq!(numbers(&found("big-endian.pt").tensors["x"]), [1.5, -2.0]);
    }

    #[test]
    fn other_files_are_named_and_a_fix_is_given() {
        for (name, what, fix) in [
            ("old.pt", "the format that PyTorch wrote before version 1.6", "torch.save(torch.load("),
            (
                "module.pt",
                "it holds a whole network (an object of torch.nn.modules.linear.Linear)",
                "state_dict()",
            ),
            ("module-inside.pt", "it holds a whole network under `model`", "state_dict()"),
            ("scripted.pt", "it is a TorchScript archive", "--model torchscript.so,file="),
            ("arrays.npz", "an archive of NumPy arrays", "torch.save(network.state_dict()"),
            ("sparse.pt", "`weight`: its kind (_rebuild_sparse_tensor) is not supported", ""),
            ("unsigned.pt", "`weight`: its dtype (uint16) is not supported", ""),
            ("one-tensor.pt", "it holds one tensor, without a name", "state_dict()"),
            ("optimizer.pt", "got one without any tensor\n  keys     2: epoch, state", "state_dict()"),
            ("plain.pickle", "it is a pickle, but not one of torch.save", "state_dict()"),
        ] {
            let error = refused(name);
            assert!(error.contains(what) && error.contains(fix), "{name}: {error}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        for (contents, what) in [
            (&b""[..], "it is empty"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (b"hello", "it is neither safetensors nor a file of torch.save"),
        ] {
            let path = folder.path().join("mine.pt");
            fs::write(&path, contents).expect("written");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains(what) && error.contains("mine.pt"), "{error}");
        }
        assert!(
            read(Path::new("nowhere.pt"))
                .expect_err("refused")
                .to_string()
                .contains("cannot read nowhere.pt")
        );
    }

    #[test]
    fn nothing_in_a_file_is_executed() {
        let error = refused("hostile.pt");
        assert!(
            error.contains("`weight`") || error.contains("no tensor") || error.contains("without any tensor"),
            "{error}"
        );
        assert!(fs::metadata("/tmp/executed-by-a-pickle").is_err());
    }

    #[test]
    fn half_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("half.pt");
        let whole = fs::read(corpus("views.pt")).expect("readable");
        for length in [5, 100, whole.len() / 2, whole.len() - 30, whole.len() - 1] {
            fs::write(&path, &whole[..length]).expect("written");
            let error = read(&path).expect_err("refused").to_string();
            assert!(error.contains("damaged or not whole") && error.contains("again"), "{length}: {error}");
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights.pt");
        let matrix = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
        let tied = matrix.tr();
        let state: Vec<_> = [
            ("layer.0.weight", matrix.shallow_clone()),
            ("tied", tied.shallow_clone()),
            ("tied again", tied),
            ("one", Tensor::from(0.5f32)),
            ("none", Tensor::zeros([0, 3], (Kind::Int64, Device::Cpu))),
            ("half", Tensor::from_slice(&[0.25f32]).to_kind(Kind::BFloat16)),
            ("last", matrix.set_requires_grad(true)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        write_state_dict(&path, &state).expect("written");
        let Weights { tensors, notes } = read(&path).expect("whole");
        assert_eq!((tensors.len(), notes.len()), (state.len(), 0));
        for (name, tensor) in &state {
            assert_eq!(
                (tensors[name].kind(), tensors[name].size()),
                (tensor.kind(), tensor.size()),
                "{name}"
            );
            assert_eq!(&tensors[name], &tensor.detach(), "{name}");
        }
        let unknown = [("float8".to_owned(), Tensor::zeros([1], (Kind::Float8e5m2, Device::Cpu)))];
        let error =
            write_state_dict(&folder.path().join("other.pt"), &unknown).expect_err("refused").to_string();
        assert!(error.contains("a Float8e5m2 tensor cannot be saved"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn storages_begin_at_multiples_of_64_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("weights.pt");
        let state: Vec<_> = (0..3i64)
            .map(|count| (format!("w{count}"), Tensor::ones([count], (Kind::Float, Device::Cpu))))
            .collect();
        write_state_dict(&path, &state).expect("written");
        let mut zip = ZipArchive::new(File::open(&path).expect("open")).expect("a zip archive");
        for key in 0..3 {
            let entry = zip.by_name(&format!("archive/data/{key}")).expect("present");
            assert_eq!(entry.data_start().expect("a place") % u64::from(ALIGNMENT), 0);
        }
    }

    #[test]
    fn fuzz_files_of_pytorch_may_be_damaged() {
        use crate::util::fuzz::{USUAL, withstands};
        let folder = tempfile::tempdir().expect("a folder");
        let names = ["dtypes.pt", "views.pt", "lightning.pt", "parallel.pt", "weights.safetensors"];
        let valid = names.map(|name| fs::read(corpus(name)).expect("readable"));
        withstands(&valid, &folder.path().join("mine.pt"), USUAL, |path| read(path).map(drop));
    }
}
