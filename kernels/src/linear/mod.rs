//! Weight matrices made ready for products: y = x W^T.
//!
//! Quantized weights keep their 4 or 8 bits and meet activations quantized per block of 32 to 16 bits,
//! as two bytes (or to 8, by choice): y = sum over blocks of d * s * dot(code, xq) + m * s * sum(xq).
//! Float weights go through candle.
//!
//! There is one shape of inner loop, up to 8 rows of activations by 16 rows of weights: with one row it
//! waits for memory, which no other shape would read faster, and with 8 it computes as fast as with
//! more, whose groups pass over a panel in the cache. AVX-512's BF16 products are not used: two
//! products of bytes (VNNI) for each weight and activation go as fast, the activations keep 16 bits
//! instead of 8, and the weights 4 or 8.
//!
//! `rten-gemm` 0.27 was weighed: its block-quantized product takes symmetric 4-bit blocks only (no
//! minimum, no 8 bits) and reads weights in the order of the file, with no interleave of rows.

mod float;
pub mod ggml;
pub mod packed;
mod quantized;

use candle_core::{Tensor, quantized::GgmlDType};
use smallvec::SmallVec;

pub use packed::ActivationBits;
pub use quantized::Kernel;

use self::{float::Float, packed::GROUPS, packed::Packed, quantized::Quantized};
use crate::{
    Error, Linear, RawMatrix, Result,
    tensor::{give_back, output, with_slice},
};

pub(crate) const OP: &str = "linear";

/// What decides whether two parts can be packed as one.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Codes4,
    Codes8,
    Float(GgmlDType),
}

/// The rows of `parts`, one after the other, for products by `kernel`.
pub fn linear<K: Kernel>(kernel: K, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    stack(parts, |form, run| pack(kernel, form, run))
}

/// Checks the parts and packs each run of one form.
pub(crate) fn stack(
    parts: Vec<RawMatrix>,
    pack: impl Fn(Form, Vec<RawMatrix>) -> Result<Box<dyn Linear>>,
) -> Result<Box<dyn Linear>> {
    check(&parts)?;
    let mut stack = Vec::new();
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let form = form(part.dtype)?;
        let mut run = vec![part];
        while let Some(next) = parts.next_if(|next| self::form(next.dtype).ok() == Some(form)) {
            run.push(next);
        }
        let num_rows = run.iter().map(|part| part.rows).sum::<usize>();
        stack.push((num_rows, pack(form, run)?));
    }
    Ok(if stack.len() == 1 { stack.remove(0).1 } else { Box::new(Stacked(stack)) })
}

fn check(parts: &[RawMatrix]) -> Result<()> {
    let cols = parts.first().ok_or_else(|| Error::shape(OP, "no matrix given"))?.cols;
    for part in parts {
        part.check(OP)?;
        if part.cols != cols {
            let reason = format!("parts of {cols} and {} columns in one matrix", part.cols);
            return Err(Error::shape(OP, reason));
        }
    }
    Ok(())
}

fn form(dtype: GgmlDType) -> Result<Form> {
    match (dtype, ggml::code_bits(dtype)) {
        (_, Some(4)) => Ok(Form::Codes4),
        (_, Some(_)) => Ok(Form::Codes8),
        (GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16, None) => Ok(Form::Float(dtype)),
        _ => Err(Error::Unsupported(format!(
            "weights in {dtype:?}: requantize to Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K"
        ))),
    }
}

fn pack<K: Kernel>(kernel: K, form: Form, run: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    Ok(match form {
        Form::Codes4 => Box::new(Quantized { kernel, weights: Packed::<{ GROUPS / 2 }>::new(run) }),
        Form::Codes8 => Box::new(Quantized { kernel, weights: Packed::<GROUPS>::new(run) }),
        Form::Float(dtype) => Box::new(Float::new(dtype, run)?),
    })
}

/// Products with checked float parts of one format, on the host.
#[cfg(feature = "cuda-emu")]
pub(crate) fn float_linear(parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    Ok(Box::new(Float::new(parts[0].dtype, parts)?))
}

/// Of query, key and value.
const MOST_FORMS: usize = 3;

/// Parts of different forms, each with its number of rows: their outputs stand side by side.
struct Stacked(Vec<(usize, Box<dyn Linear>)>);

impl Linear for Stacked {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let outs = self.0.iter().map(|(_, part)| part.forward(x));
        let outs = outs.collect::<Result<SmallVec<[Tensor; MOST_FORMS]>>>()?;
        if !x.device().is_cpu() {
            return Ok(Tensor::cat(&outs, 1)?);
        }
        let y = side_by_side(&outs)?;
        outs.into_iter().for_each(give_back);
        Ok(y)
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.0.iter().map(|(num_rows, _)| num_rows).sum())?;
        if ids.is_empty() {
            return self.0[0].1.rows(ids);
        }
        let rows = ids.iter().map(|&id| self.row(id)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(_, part)| part.bytes()).sum()
    }
}

impl Stacked {
    fn row(&self, id: u32) -> Result<Tensor> {
        let mut rest = id as usize;
        for (num_rows, part) in &self.0 {
            if rest < *num_rows {
                return part.rows(&[rest as u32]);
            }
            rest -= num_rows;
        }
        unreachable!("ids were checked")
    }
}

/// (M, the sum of widths) of matrices (M, a width each) on the host.
fn side_by_side(parts: &[Tensor]) -> Result<Tensor> {
    let num_rows = parts[0].dims()[0];
    let width: usize = parts.iter().map(|part| part.dims()[1]).sum();
    output(OP, (num_rows, width), |y| {
        let mut start = 0;
        for part in parts {
            let len = part.dims()[1];
            with_slice(OP, part, |part| {
                for (y, part) in y.chunks_exact_mut(width).zip(part.chunks_exact(len)) {
                    y[start..start + len].copy_from_slice(part);
                }
            })?;
            start += len;
        }
        Ok(())
    })
}

/// Hostile token ids end here.
pub(crate) fn check_ids(ids: &[u32], num_rows: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= num_rows) {
        Some(id) => Err(Error::shape("rows", format!("row {id} of a matrix of {num_rows} rows"))),
        None => Ok(()),
    }
}

/// x is (M, in): returns M.
pub(crate) fn check_input(x: &Tensor, cols: usize) -> Result<usize> {
    match x.dims() {
        [num_rows, width] if *width == cols => Ok(*num_rows),
        dims => Err(Error::shape(OP, format!("x {dims:?} by a matrix of {cols} columns"))),
    }
}
