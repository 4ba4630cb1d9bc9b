//! Launches of `linear.cu`, and how weights lie on the device.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    args::{ACTIVATION_BYTES, LinearArgs, LinearRowsArgs, QuantizeArgs},
    gpu::{Gpu, Launch},
};
use crate::{
    Linear, RawMatrix, Result,
    linear::{
        self, Form, OP, check_ids, check_input,
        ggml::{BLOCK, unpack},
    },
};

const WARPS: usize = 4;
const GROUP_ROWS: usize = 8;

pub fn linear<G: Gpu>(gpu: &Arc<G>, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    linear::stack(parts, |form, run| {
        Ok(match form {
            Form::Codes4 => Box::new(Quantized::new(gpu.clone(), 4, &run)?),
            Form::Codes8 => Box::new(Quantized::new(gpu.clone(), 8, &run)?),
            Form::Float(_) => gpu.float_linear(run)?,
        })
    })
}

/// W (rows, K/32) in blocks: codes, and (d, m) in halves.
struct Quantized<G: Gpu> {
    gpu: Arc<G>,
    bits: usize,
    rows: usize,
    cols: usize,
    codes: G::Buffer,
    scales: G::Buffer,
}

impl<G: Gpu> Quantized<G> {
    fn new(gpu: Arc<G>, bits: usize, parts: &[RawMatrix]) -> Result<Self> {
        let rows = parts.iter().map(|part| part.rows).sum::<usize>();
        let cols = parts[0].cols;
        let blocks: Vec<_> = parts
            .par_iter()
            .flat_map(|part| (0..part.rows).into_par_iter().map(move |row| (part, row)))
            .flat_map_iter(|(part, row)| {
                let bytes = &part.data[row * part.row_bytes()..][..part.row_bytes()];
                (0..cols / BLOCK).map(move |index| unpack(part.dtype, bytes, index))
            })
            .collect();
        let scales: Vec<u16> =
            blocks.iter().flat_map(|block| [block.d.to_bits(), block.m.to_bits()]).collect();
        let codes: Vec<u8> = match bits {
            4 => blocks.iter().flat_map(|block| nibbles(&block.codes)).collect(),
            _ => blocks.iter().flat_map(|block| block.codes).collect(),
        };
        let (codes, scales) = (gpu.upload(&codes)?, gpu.upload(&scales)?);
        Ok(Self { gpu, bits, rows, cols, codes, scales })
    }

    fn num_blocks(&self) -> usize {
        self.cols / BLOCK
    }
}

/// Weights i and i + 16 share byte i.
fn nibbles(codes: &[u8; BLOCK]) -> [u8; BLOCK / 2] {
    std::array::from_fn(|i| codes[i] | codes[i + BLOCK / 2] << 4)
}

impl<G: Gpu> Linear for Quantized<G> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let num_x = check_input(x, self.cols)?;
        let (gpu, num_blocks) = (&*self.gpu, num_x * self.num_blocks());
        let coded = gpu.alloc(num_blocks * ACTIVATION_BYTES)?;
        let quantize =
            QuantizeArgs { out: gpu.address(&coded), x: 0, num_blocks: num_blocks as u64 };
        let multiply = LinearArgs {
            y: 0,
            x: gpu.address(&coded),
            codes: gpu.address(&self.codes),
            scales: gpu.address(&self.scales),
            num_x: num_x as u32,
            rows: self.rows as u32,
            num_blocks: self.num_blocks() as u32,
            unused: 0,
        };
        let kernel = if self.bits == 4 { "linear_4" } else { "linear_8" };
        gpu.with_addresses(OP, &[x], |from| {
            // SAFETY: x has num_x rows of whole blocks, and there is room for each block's codes.
            unsafe {
                let grid = [num_blocks.div_ceil(WARPS), 1];
                let args = QuantizeArgs { x: from[0], ..quantize };
                gpu.launch(launch("quantize_activations", grid), &args)
            }?;
            gpu.output((num_x, self.rows), |y| {
                let grid = [self.rows.div_ceil(WARPS), num_x.div_ceil(GROUP_ROWS)];
                // SAFETY: y has num_x rows of as many columns as W has rows.
                unsafe { gpu.launch(launch(kernel, grid), &LinearArgs { y, ..multiply }) }
            })
        })
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        check_ids(ids, self.rows)?;
        let gpu = &*self.gpu;
        let uploaded = gpu.upload(ids)?;
        gpu.output((ids.len(), self.cols), |out| {
            let args = LinearRowsArgs {
                out,
                ids: gpu.address(&uploaded),
                codes: gpu.address(&self.codes),
                scales: gpu.address(&self.scales),
                num_ids: ids.len() as u64,
                num_blocks: self.num_blocks() as u32,
                bits: self.bits as u32,
            };
            let grid = [(ids.len() * self.cols).div_ceil(WARPS * 32), 1];
            // SAFETY: the ids were checked.
            unsafe { gpu.launch(launch("linear_rows", grid), &args) }
        })
    }

    fn bytes(&self) -> usize {
        self.rows * self.num_blocks() * (BLOCK * self.bits / 8 + 2 * size_of::<u16>())
    }
}

fn launch(kernel: &'static str, grid: [usize; 2]) -> Launch {
    Launch { kernel, grid, threads: WARPS * 32, shared_bytes: 0 }
}
