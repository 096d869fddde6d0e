//! Tensors in files: safetensors.

use crate::util::files;
use crate::{Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Writes named tensors into a file, which is whole or absent.
///
/// # Errors
/// If a dtype is not known to safetensors, or the disk refuses.
pub(crate) fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let tensors = tensors.iter().map(|(name, tensor)| Ok((name, OnCpu::new(tensor)?)));
    let mut tensors: Vec<_> = tensors.collect::<Result<_>>()?;
    // Numbers of more bytes come first, so that all of them are where their type allows.
    tensors.sort_by(|(name, one), (other, two)| two.dtype.cmp(&one.dtype).then(name.cmp(other)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, on_cpu)| {
        let start = end;
        end += on_cpu.len();
        let shape = on_cpu.tensor.size().iter().map(|&side| side as usize).collect();
        ((*name).clone(), TensorInfo { dtype: on_cpu.dtype, shape, data_offsets: (start, end) })
    });
    let header = Metadata::new(None, infos.collect()).map_err(|why| Error::file("write", path, why))?;
    let mut header = serde_json::to_vec(&header).map_err(|why| Error::file("write", path, why))?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    files::write_whole_with(path, |file| {
        let mut file = OpenOptions::new().write(true).open(file)?;
        files::write_all(&mut file, &(header.len() as u64).to_le_bytes())?;
        files::write_all(&mut file, &header)?;
        tensors.iter().try_for_each(|(_, tensor)| files::write_all(&mut file, tensor.bytes()))
    })
}

/// The bytes of which the numbers begin at a multiple.
const ALIGNMENT: usize = 8;

/// The named tensors of a file, on the CPU. They are mapped into memory: the file must not be
/// changed while they are used. It may be removed.
///
/// # Errors
/// If the file is not whole.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let not_whole = |why: String| Error::file("understand", path, why);
    let mut file = File::open(path).map_err(|why| Error::file("read", path, why))?;
    let length = file.metadata().map_err(|why| Error::file("read", path, why))?.len();
    let mut header_length = [0; 8];
    file.read_exact(&mut header_length).map_err(|why| not_whole(why.to_string()))?;
    let header_length = u64::from_le_bytes(header_length);
    let first = header_length.saturating_add(8);
    if first > length {
        return Err(not_whole(format!("expected a header of {header_length} bytes, got {length} in all")));
    }
    let mut header = vec![0; header_length as usize];
    file.read_exact(&mut header).map_err(|why| not_whole(why.to_string()))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|why| not_whole(why.to_string()))?;
    let expected = first + header.data_len() as u64;
    if length != expected {
        return Err(not_whole(format!("expected {expected} bytes, got {length}")));
    }
    // By its descriptor: libtorch requires names in UTF-8.
    let opened = format!("/proc/self/fd/{}", file.as_raw_fd());
    let bytes = Tensor::f_from_file(&opened, false, length as i64, (Kind::Uint8, Device::Cpu))?;
    let tensor = |info: &TensorInfo| -> Result<Tensor> {
        let (start, end) = info.data_offsets;
        let shape: Vec<i64> = info.shape.iter().map(|&side| side as i64).collect();
        let kind = DTYPES.iter().find(|(dtype, _)| *dtype == info.dtype).map(|(_, kind)| *kind);
        let kind = kind.ok_or_else(|| not_whole(format!("dtype {:?} is not known here", info.dtype)))?;
        let start = first as usize + start;
        let bytes = bytes.f_narrow(0, start as i64, (end + first as usize - start) as i64)?;
        // Another program may have written the tensor at an address that its type does not allow.
        let aligned = start.is_multiple_of(kind.elt_size_in_bytes());
        let bytes = if aligned { bytes } else { bytes.copy() };
        Ok(bytes.f_view_dtype(kind)?.f_reshape(shape)?)
    };
    header.tensors().into_iter().map(|(name, info)| Ok((name, tensor(info)?))).collect()
}

/// The numbers of a tensor, row by row, in the byte order of this machine.
pub(crate) fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

const DTYPES: [(safetensors::Dtype, Kind); 12] = [
    (safetensors::Dtype::BOOL, Kind::Bool),
    (safetensors::Dtype::U8, Kind::Uint8),
    (safetensors::Dtype::I8, Kind::Int8),
    (safetensors::Dtype::I16, Kind::Int16),
    (safetensors::Dtype::I32, Kind::Int),
    (safetensors::Dtype::I64, Kind::Int64),
    (safetensors::Dtype::F16, Kind::Half),
    (safetensors::Dtype::BF16, Kind::BFloat16),
    (safetensors::Dtype::F32, Kind::Float),
    (safetensors::Dtype::F64, Kind::Double),
    (safetensors::Dtype::F8_E5M2, Kind::Float8e5m2),
    (safetensors::Dtype::F8_E4M3, Kind::Float8e4m3fn),
];

/// A contiguous tensor on the CPU, for writing.
struct OnCpu {
    tensor: Tensor,
    dtype: safetensors::Dtype,
}

impl OnCpu {
    fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        let dtype = DTYPES.iter().find(|(_, known)| *known == kind).map(|(dtype, _)| *dtype);
        let dtype =
            dtype.ok_or_else(|| Error::new(format!("a {kind:?} tensor cannot be saved as safetensors")))?;
        Ok(Self { tensor: tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?, dtype })
    }

    fn len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }

    fn bytes(&self) -> &[u8] {
        // An empty tensor has no memory.
        if self.len() == 0 {
            return &[];
        }
        // SAFETY: a contiguous tensor on the CPU, which this holds, has its numbers in one piece.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast_const().cast(), self.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &tempfile::TempDir, tensors: &[(String, Tensor)]) -> std::path::PathBuf {
        let path = folder.path().join("tensors");
        write(&path, tensors).expect("written");
        path
    }

    #[test]
    fn a_file_is_as_readable_as_any_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = written(&folder, &[("one".to_owned(), Tensor::from(0.1))]);
        let other = folder.path().join("other");
        std::fs::write(&other, "text").expect("written");
        let [tensors, other] = [path, other].map(|path| path.metadata().expect("a file").permissions());
        assert_eq!(tensors, other);
    }

    #[test]
    fn tensors_come_back_as_they_were() {
        let folder = tempfile::tempdir().expect("a folder");
        let numbers = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
        let tensors = [
            ("turned".to_owned(), numbers.tr()),
            ("none".to_owned(), Tensor::zeros([0, 3], (Kind::Double, Device::Cpu))),
            ("bytes".to_owned(), numbers.to_kind(Kind::Uint8)),
            ("half".to_owned(), numbers.to_kind(Kind::Half) - 0.25),
            ("short".to_owned(), numbers.to_kind(Kind::Int16) - 3),
            ("one".to_owned(), Tensor::from(0.1)),
        ];
        let path = written(&folder, &tensors);
        let read = read(&path).expect("whole");
        std::fs::remove_file(path).expect("removed");
        assert_eq!(read.len(), tensors.len());
        for (name, tensor) in &tensors {
            assert_eq!((read[name].kind(), read[name].size()), (tensor.kind(), tensor.size()), "{name}");
            assert_eq!(&read[name], tensor, "{name}");
        }
    }

    #[test]
    fn what_begins_at_an_odd_byte_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("elsewhere");
        let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let numbers = [1.5f32, -2.0].map(f32::to_le_bytes).concat();
        assert_eq!(header.len() % 4, 2);
        let contents = [&(header.len() as u64).to_le_bytes()[..], header, &numbers].concat();
        std::fs::write(&path, contents).expect("written");
        let read = read(&path).expect("whole");
        assert_eq!(Vec::<f32>::try_from(&read["x"]).expect("f32"), [1.5, -2.0]);
    }

    #[test]
    fn half_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = written(&folder, &[("x".to_owned(), Tensor::from_slice(&[1i64, 2]))]);
        let whole = std::fs::read(&path).expect("readable");
        for length in [0, 7, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).expect("truncated");
            let refused = read(&path).err().unwrap_or_else(|| panic!("{length} bytes are refused"));
            assert!(refused.to_string().contains("cannot understand"), "{refused}");
        }
    }

    #[test]
    fn fuzz_files_may_be_damaged() {
        use crate::util::fuzz::{USUAL, corpus, withstands};
        let folder = tempfile::tempdir().expect("a folder");
        withstands(
            &[corpus("weights.safetensors")],
            &folder.path().join("mine.safetensors"),
            USUAL,
            |path| {
                // Every number can be read.
                read(path)?.values().try_for_each(|tensor| bytes(tensor).map(drop))
            },
        );
    }
}
