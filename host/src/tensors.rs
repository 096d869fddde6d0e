//! Tensors in files: safetensors.

use crate::{Error, Result};
use safetensors::tensor::{SafeTensors, TensorView};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use tch::{Device, Tensor};

/// Writes named tensors into a file and syncs it.
///
/// # Errors
/// If a dtype is not known to safetensors, or the disk refuses.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let refused = |why: &dyn std::fmt::Display| Error::file("write", path, why).on_the_way();
    let views = tensors.iter().map(|(name, tensor)| Ok((name, OnCpu::new(tensor)?)));
    let views: Vec<_> = views.collect::<Result<_>>()?;
    safetensors::serialize_to_file(views, None, path).map_err(|why| refused(&why))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(|why| refused(&why))
}

/// The named tensors of a file's contents, on the CPU.
///
/// # Errors
/// If they are not whole.
pub fn from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let tensors = SafeTensors::deserialize(bytes).map_err(Error::new)?;
    tensors.iter().map(|(name, view)| Ok((name.to_owned(), tensor(&view)?))).collect()
}

/// The numbers of a tensor, row by row, as bytes of this machine.
///
/// # Errors
/// If libtorch cannot copy it.
pub fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn tensor(view: &TensorView) -> Result<Tensor> {
    let shape: Vec<i64> = view.shape().iter().map(|&side| side as i64).collect();
    let kind = DTYPES.iter().find(|(dtype, _)| *dtype == view.dtype()).map(|(_, kind)| *kind);
    let kind = kind.ok_or_else(|| Error::new(format!("dtype {:?} is not known here", view.dtype())))?;
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

const DTYPES: [(safetensors::Dtype, tch::Kind); 8] = [
    (safetensors::Dtype::BOOL, tch::Kind::Bool),
    (safetensors::Dtype::U8, tch::Kind::Uint8),
    (safetensors::Dtype::I32, tch::Kind::Int),
    (safetensors::Dtype::I64, tch::Kind::Int64),
    (safetensors::Dtype::F16, tch::Kind::Half),
    (safetensors::Dtype::BF16, tch::Kind::BFloat16),
    (safetensors::Dtype::F32, tch::Kind::Float),
    (safetensors::Dtype::F64, tch::Kind::Double),
];

/// A tensor whose bytes can be written.
struct OnCpu {
    tensor: Tensor,
    shape: Vec<usize>,
    dtype: safetensors::Dtype,
}

impl OnCpu {
    fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        let dtype = DTYPES.iter().find(|(_, known)| *known == kind).map(|(dtype, _)| *dtype);
        let dtype =
            dtype.ok_or_else(|| Error::new(format!("a {kind:?} tensor cannot be saved as safetensors")))?;
        let tensor = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
        Ok(Self { shape: tensor.size().iter().map(|&side| side as usize).collect(), tensor, dtype })
    }
}

impl safetensors::View for OnCpu {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}
