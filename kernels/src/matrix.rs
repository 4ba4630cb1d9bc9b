//! Weight matrices as a model file holds them.

use candle_core::quantized::GgmlDType;

use crate::{Error, Result};

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

    /// Whether shape and bytes agree. Files come from strangers: `op` is told what is wrong.
    pub fn check(&self, op: &'static str) -> Result<()> {
        let Self { dtype, rows, cols, data } = self;
        let block = dtype.block_size();
        if *rows == 0 || *cols == 0 || cols % block != 0 {
            let reason = format!("{dtype:?} ({rows}, {cols}) is not made of blocks of {block}");
            return Err(Error::shape(op, reason));
        }
        let blocks = (cols / block).checked_mul(*rows);
        let expected = blocks.and_then(|n| n.checked_mul(dtype.type_size()));
        if expected != Some(data.len()) {
            let reason = format!("{dtype:?} ({rows}, {cols}) in {} bytes", data.len());
            return Err(Error::shape(op, reason));
        }
        Ok(())
    }
}
