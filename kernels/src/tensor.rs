//! Between candle tensors and slices.

use candle_core::{CpuStorage, Storage, Tensor};

use crate::{Error, Result};

/// Calls `f` with the elements of a contiguous f32 tensor on the host.
pub fn with_slice<R>(op: &'static str, x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::shape(op, format!("{:?} is not contiguous", x.shape())));
    };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => Ok(f(&data[start..end])),
        _ => Err(Error::shape(op, format!("expected f32 on the host, got {:?}", x.dtype()))),
    }
}

/// A host tensor of the given shape (rows, columns) that takes over `data`.
pub fn from_vec(data: Vec<f32>, shape: (usize, usize)) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &candle_core::Device::Cpu)?)
}
