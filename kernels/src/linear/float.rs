//! Products with weights in F32, F16 or BF16.

use candle_core::{Tensor, quantized::GgmlDType};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{OP, check_ids, check_input};
use crate::{
    Linear, RawMatrix, Result,
    tensor::{from_vec, with_slice},
};

/// Rows of W converted at a time: enough for candle's product, little beside a whole copy.
const ROWS_PER_PRODUCT: usize = 512;

/// Weights (rows, cols), as precise as in the file.
pub struct Float {
    rows: usize,
    cols: usize,
    values: Values,
}

enum Values {
    F32(Tensor),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Float {
    /// Joins checked parts of one format.
    pub fn new(dtype: GgmlDType, parts: Vec<RawMatrix>) -> Result<Self> {
        let rows = parts.iter().map(|part| part.rows).sum();
        let cols = parts[0].cols;
        let values = match dtype {
            GgmlDType::F16 => Values::F16(read(parts, f16::from_le_bytes)),
            GgmlDType::BF16 => Values::BF16(read(parts, bf16::from_le_bytes)),
            _ => Values::F32(from_vec(read(parts, f32::from_le_bytes), (rows, cols))?),
        };
        Ok(Self { rows, cols, values })
    }

    /// Rows `start..start + len` as f32.
    fn block(&self, start: usize, len: usize) -> Result<Tensor> {
        let range = start * self.cols..(start + len) * self.cols;
        match &self.values {
            Values::F32(w) => Ok(w.narrow(0, start, len)?),
            Values::F16(w) => from_vec(w[range].to_f32_vec(), (len, self.cols)),
            Values::BF16(w) => from_vec(w[range].to_f32_vec(), (len, self.cols)),
        }
    }
}

/// The numbers of all parts, freeing each part when it is read.
fn read<const N: usize, T: Copy + Send>(
    parts: Vec<RawMatrix>,
    number: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.data.len() / N).sum());
    for part in parts {
        out.par_extend(part.data.as_chunks::<N>().0.par_iter().map(|bytes| number(*bytes)));
    }
    out
}

impl Linear for Float {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        check_input(x, self.cols)?;
        let step = match self.values {
            Values::F32(_) => self.rows,
            _ => ROWS_PER_PRODUCT,
        };
        let outs = (0..self.rows).step_by(step).map(|start| {
            let w = self.block(start, step.min(self.rows - start))?;
            Ok(x.matmul(&w.t()?)?)
        });
        let outs = outs.collect::<Result<Vec<_>>>()?;
        Ok(if outs.len() == 1 { outs[0].clone() } else { Tensor::cat(&outs, 1)? })
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.rows)?;
        let mut out = Vec::with_capacity(ids.len() * self.cols);
        for &id in ids {
            with_slice(OP, &self.block(id as usize, 1)?, |row| out.extend_from_slice(row))?;
        }
        from_vec(out, (ids.len(), self.cols))
    }

    fn bytes(&self) -> usize {
        let bytes = match self.values {
            Values::F32(_) => 4,
            _ => 2,
        };
        self.rows * self.cols * bytes
    }
}
