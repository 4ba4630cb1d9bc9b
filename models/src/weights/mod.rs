//! The tensors of a model, whatever file holds them, by their Hugging Face names.

mod convert;
pub mod gguf;
pub mod gguf_settings;
pub mod safetensors;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::quantized::GgmlDType;
use keepwell_kernels::RawMatrix;

/// In which format weights are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the file has them; quantized weights stay quantized.
    #[default]
    AsFile,
    /// Everything dequantized to f32: for comparison with other implementations.
    F32,
}

/// Formats that can be read. What else GGUF knows holds activations, not weights.
const READABLE: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// What a file's header says about one tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub dtype: GgmlDType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Byte range in its file, checked against the file's length.
    pub start: u64,
    pub len: usize,
}

impl TensorInfo {
    /// # Errors
    /// A tensor that does not lie within `file_len` bytes, or is no whole number of blocks.
    fn checked(dtype: GgmlDType, shape: Vec<usize>, start: u64, file_len: u64) -> Result<Self> {
        ensure!(READABLE.contains(&dtype), "its format {dtype:?} is not supported");
        let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let elements = elements.with_context(|| format!("its shape {shape:?} is absurd"))?;
        let columns = shape.last().copied().unwrap_or(1);
        ensure!(
            columns.is_multiple_of(dtype.block_size()),
            "its rows of {columns} are no whole {dtype:?} blocks"
        );
        let len = (elements / dtype.block_size()).checked_mul(dtype.type_size());
        let len = len.with_context(|| format!("its shape {shape:?} is absurd"))?;
        let end = start.checked_add(len as u64);
        ensure!(
            end.is_some_and(|end| end <= file_len),
            "it needs {len} bytes at offset {start}, but the file has {file_len}: it is truncated; \
             fetch it again"
        );
        Ok(Self { dtype, shape, start, len })
    }
}

/// A file, or several, with tensors in it.
pub trait TensorFile: Send {
    fn path(&self) -> &Path;

    /// By Hugging Face name.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// The bytes of a tensor, row-major.
    fn read(&self, name: &str) -> Result<Vec<u8>>;

    /// Whether the rows of q and k pair channels 2i and 2i + 1 in RoPE, as GGUF files of the llama
    /// architecture do, instead of i and i + D/2.
    fn interleaved_rope(&self) -> bool;
}

/// A model's tensors, handed out in the format they shall have in memory.
pub struct Weights {
    file: Box<dyn TensorFile>,
    format: WeightFormat,
}

impl Weights {
    pub fn new(file: Box<dyn TensorFile>, format: WeightFormat) -> Self {
        Self { file, format }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.file.info(name).is_some()
    }

    /// A matrix of (rows, cols).
    ///
    /// # Errors
    /// The tensor is missing, has another shape, or cannot be read.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<RawMatrix> {
        let dtype = self.expect(name, &[rows, cols])?.dtype;
        let matrix = RawMatrix { dtype, rows, cols, data: self.file.read(name)? };
        match self.format {
            WeightFormat::AsFile => Ok(matrix),
            WeightFormat::F32 => convert::to_f32_matrix(matrix),
        }
    }

    /// A projection to q or k: (num_heads * head_dim, cols), its rows in half-split order.
    pub fn rotary_matrix(
        &self,
        name: &str,
        num_heads: usize,
        rows: usize,
        cols: usize,
    ) -> Result<RawMatrix> {
        let matrix = self.matrix(name, rows, cols)?;
        Ok(match self.file.interleaved_rope() {
            true => convert::half_split(matrix, rows / num_heads),
            false => matrix,
        })
    }

    /// A vector as f32.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let dtype = self.expect(name, &[len])?.dtype;
        convert::to_f32(dtype, &self.file.read(name)?)
    }

    fn expect(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let path = self.file.path().display();
        let info = self.file.info(name).with_context(|| {
            format!("{path} has no tensor `{name}`: the model is incomplete or of another kind")
        })?;
        ensure!(
            info.shape == shape,
            "{path}: tensor `{name}` has shape {:?}, but the model's settings ask for {shape:?}: \
             weights and settings do not belong together",
            info.shape
        );
        Ok(info)
    }
}
