//! Weight matrices as a model file holds them.

use candle_core::quantized::GgmlDType;

/// A weight matrix (rows = out, cols = in), row-major, in the format of the file.
#[derive(Clone)]
pub struct RawMatrix {
    pub dtype: GgmlDType,
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<u8>,
}

impl RawMatrix {
    /// Bytes of one row. Quantized formats cover a row with whole blocks.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.dtype.block_size() * self.dtype.type_size()
    }
}
