//! Launches of `linear.cu`, and how weights lie on the device.

use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    Cuda,
    args::{ACTIVATION_BYTES, Address, LinearArgs, LinearRowsArgs, QuantizeArgs},
    gpu::{Gpu, Launch},
    scratch::Scratch,
};
use crate::{
    Linear, RawMatrix, Result,
    linear::{
        self, Form, OP, check_ids, check_input,
        ggml::{BLOCK, unpack},
    },
};

const WARPS: usize = 4;
/// Rows of x that a warp of `linear.cu` takes; with more, tensor cores pay.
const GROUP_ROWS: usize = 8;
/// Rows of W, and of x, that a block of `linear_mma.cu` takes.
const TILE_ROWS: usize = 64;

pub fn linear<G: Gpu>(cuda: &Cuda<G>, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    linear::stack(parts, |form, run| {
        Ok(match form {
            Form::Codes4 => Box::new(Quantized::new(cuda, 4, &run)?),
            Form::Codes8 => Box::new(Quantized::new(cuda, 8, &run)?),
            Form::Float(_) => cuda.gpu.float_linear(run)?,
        })
    })
}

/// W (rows, K/32) in blocks: codes, and (d, m) in halves.
struct Quantized<G: Gpu> {
    gpu: Arc<G>,
    activations: Arc<Scratch<G>>,
    tensor_cores: bool,
    bits: usize,
    rows: usize,
    cols: usize,
    codes: G::Buffer,
    scales: G::Buffer,
}

impl<G: Gpu> Quantized<G> {
    fn new(cuda: &Cuda<G>, bits: usize, parts: &[RawMatrix]) -> Result<Self> {
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
        let gpu = cuda.gpu.clone();
        let (codes, scales) = (gpu.upload(&codes)?, gpu.upload(&scales)?);
        let (activations, tensor_cores) = (cuda.activations.clone(), cuda.tensor_cores);
        Ok(Self { gpu, activations, tensor_cores, bits, rows, cols, codes, scales })
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
        self.activations.with(num_blocks * ACTIVATION_BYTES, |coded| {
            gpu.with_addresses(OP, &[x], |from| {
                let num_blocks = num_blocks as u64;
                let args = QuantizeArgs { out: coded, x: from[0], num_blocks };
                let grid = [(num_blocks as usize).div_ceil(WARPS), 1];
                // SAFETY: x has num_x rows of whole blocks, and there is room for each block's codes.
                unsafe { gpu.launch(launch("quantize_activations", grid), &args) }
            })?;
            self.multiply(coded, num_x)
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

impl<G: Gpu> Quantized<G> {
    /// y from `num_x` rows of coded activations.
    fn multiply(&self, coded: Address, num_x: usize) -> Result<Tensor> {
        let gpu = &*self.gpu;
        let launch = if self.tensor_cores && num_x > GROUP_ROWS {
            self.launch_mma(num_x)
        } else {
            let kernel = if self.bits == 4 { "linear_4" } else { "linear_8" };
            launch(kernel, [self.rows.div_ceil(WARPS), num_x.div_ceil(GROUP_ROWS)])
        };
        gpu.output((num_x, self.rows), |y| {
            let args = LinearArgs {
                y,
                x: coded,
                codes: gpu.address(&self.codes),
                scales: gpu.address(&self.scales),
                num_x: num_x as u32,
                rows: self.rows as u32,
                num_blocks: self.num_blocks() as u32,
                unused: 0,
            };
            // SAFETY: y has num_x rows of as many columns as W has rows.
            unsafe { gpu.launch(launch, &args) }
        })
    }

    fn launch_mma(&self, num_x: usize) -> Launch {
        // Two stages of two blocks: padded codes and scales of W's rows, activations of those of x.
        let row_bytes = 2 * (BLOCK * self.bits / 8 + 2 * size_of::<u16>() + ACTIVATION_BYTES) + 16;
        Launch {
            kernel: if self.bits == 4 { "linear_mma_4" } else { "linear_mma_8" },
            grid: [self.rows.div_ceil(TILE_ROWS), num_x.div_ceil(TILE_ROWS)],
            threads: WARPS * 32,
            shared_bytes: 2 * TILE_ROWS * row_bytes,
        }
    }
}

fn launch(kernel: &'static str, grid: [usize; 2]) -> Launch {
    Launch { kernel, grid, threads: WARPS * 32, shared_bytes: 0 }
}
