//! Between weight formats and row orders.

use std::borrow::Cow;

use anyhow::Result;
use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage, QTensor},
};
use half::{bf16, f16};
use keepwell_kernels::RawMatrix;

/// Dequantizes `data`.
pub fn to_f32(dtype: GgmlDType, data: &[u8]) -> Result<Vec<f32>> {
    Ok(match dtype {
        GgmlDType::F32 => elements(data, f32::from_le_bytes),
        GgmlDType::F16 => elements(data, |b| f16::from_le_bytes(b).to_f32()),
        GgmlDType::BF16 => elements(data, |b| bf16::from_le_bytes(b).to_f32()),
        _ => {
            let len = data.len() / dtype.type_size() * dtype.block_size();
            let storage = QStorage::from_data(Cow::Borrowed(data), &Device::Cpu, dtype)?;
            QTensor::new(storage, len)?.dequantize(&Device::Cpu)?.to_vec1()?
        }
    })
}

fn elements<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}

pub fn to_f32_matrix(matrix: RawMatrix) -> Result<RawMatrix> {
    let values = to_f32(matrix.dtype, &matrix.data)?;
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Ok(RawMatrix { dtype: GgmlDType::F32, data, ..matrix })
}

/// Reorders the rows of each head from pairs (0, D/2), (1, D/2 + 1), ... to 0, 1, ..., D - 1. Rows
/// move whole, so quantized blocks stay as they are.
pub fn half_split(matrix: RawMatrix, head_dim: usize) -> RawMatrix {
    let row_bytes = matrix.row_bytes();
    let mut data = Vec::with_capacity(matrix.data.len());
    for head in matrix.data.chunks_exact(head_dim * row_bytes) {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let start = (2 * pair + half) * row_bytes;
                data.extend_from_slice(&head[start..start + row_bytes]);
            }
        }
    }
    RawMatrix { data, ..matrix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_back_in_half_split_order_head_by_head() {
        // Two heads of size 4; the file's rows are named after their half-split place.
        let file_order = [0u8, 2, 1, 3, 4, 6, 5, 7];
        let data = file_order.iter().flat_map(|&row| [row; 8]).collect();
        let matrix = RawMatrix { dtype: GgmlDType::F32, rows: 8, cols: 2, data };
        let rows: Vec<u8> = half_split(matrix, 4).data.chunks(8).map(|row| row[0]).collect();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn half_precision_formats_read_as_their_values() {
        let f16 = f16::from_f32(-1.5).to_le_bytes();
        assert_eq!(to_f32(GgmlDType::F16, &f16).unwrap(), [-1.5]);
        let bf16 = bf16::from_f32(3.0).to_le_bytes();
        assert_eq!(to_f32(GgmlDType::BF16, &bf16).unwrap(), [3.0]);
    }
}
