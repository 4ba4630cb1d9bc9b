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

/// Rows of x up to which weights are widened row by row, in the cache, where they are used: memory then
/// gives two bytes a weight, where a whole copy is written and read again besides.
const FEW_ROWS: usize = 4;
/// Weights of a task of such a product.
const MIN_TASK_WEIGHTS: usize = 1 << 16;
/// Partial sums of a product of two rows.
const SUMS: usize = 16;

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
            Values::BF16(w) => {
                let mut wide = vec![0f32; range.len()];
                widen(&w[range], &mut wide);
                from_vec(wide, (len, self.cols))
            }
        }
    }
}

impl Values {
    /// The product of a few rows of x (M, cols) with 16-bit weights (rows, cols); `None` of others.
    fn few(&self, x: &[f32], cols: usize) -> Option<Vec<f32>> {
        match self {
            Self::F32(_) => None,
            Self::F16(w) => Some(few(w, x, cols, |w, out| w.convert_to_f32_slice(out))),
            Self::BF16(w) => Some(few(w, x, cols, widen)),
        }
    }
}

/// As `half` does but for the kind of a NaN, for which it looks at each number.
fn widen(w: &[bf16], out: &mut [f32]) {
    out.iter_mut().zip(w).for_each(|(out, w)| *out = f32::from_bits(u32::from(w.to_bits()) << 16));
}

/// x (M, cols) times w (rows, cols), whose rows `widen` brings to f32: (M, rows).
fn few<T: Sync>(
    w: &[T],
    x: &[f32],
    cols: usize,
    widen: impl Fn(&[T], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (num_rows, num_outs) = (x.len() / cols, w.len() / cols);
    // (rows, M): a task's results stand together.
    let mut products = vec![0f32; num_outs * num_rows];
    products
        .par_chunks_exact_mut(num_rows)
        .zip(w.par_chunks_exact(cols))
        .with_min_len((MIN_TASK_WEIGHTS / cols).max(1))
        .for_each_init(
            || vec![0f32; cols],
            |wide, (products, w)| {
                widen(w, wide);
                let products = products.iter_mut().zip(x.chunks_exact(cols));
                products.for_each(|(product, x)| *product = dot(x, wide));
            },
        );
    let of_row = |row: usize| products.iter().skip(row).step_by(num_rows).copied();
    (0..num_rows).flat_map(of_row).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<SUMS>(), b.as_chunks::<SUMS>());
    let mut sums = [0f32; SUMS];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
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
        let num_rows = check_input(x, self.cols)?;
        if (1..=FEW_ROWS).contains(&num_rows) && self.cols > 0 {
            let few = with_slice(OP, x, |x| self.values.few(x, self.cols))?;
            if let Some(y) = few {
                return from_vec(y, (num_rows, self.rows));
            }
        }
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
