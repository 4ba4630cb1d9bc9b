//! Launches of `activation.cu`.

use candle_core::Tensor;

use super::{
    args::{AddArgs, RmsNormArgs, SiluMulArgs},
    gpu::{Gpu, Launch},
};
use crate::{Error, Result};

/// Threads of a block.
const THREADS: usize = 256;
const WARP: usize = 32;

pub fn rms_norm<G: Gpu>(gpu: &G, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (num_rows, width) = x.dims2()?;
    if weight.elem_count() != width || width == 0 {
        return Err(Error::shape("rms_norm", format!("{:?} by {:?}", x.shape(), weight.shape())));
    }
    let launch = Launch {
        kernel: "rms_norm",
        grid: [num_rows, 1],
        threads: THREADS,
        shared_bytes: THREADS / WARP * size_of::<f32>(),
    };
    gpu.with_addresses("rms_norm", &[x, weight], |from| {
        gpu.output((num_rows, width), |out| {
            let args = RmsNormArgs { out, x: from[0], weight: from[1], width: width as u32, eps };
            // SAFETY: x and out have num_rows rows of `width`, weight one.
            unsafe { gpu.launch(launch, &args) }
        })
    })
}

pub fn add<G: Gpu>(gpu: &G, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let shape = x.dims2()?;
    if y.dims() != x.dims() {
        return Err(Error::shape("add", format!("{:?} and {:?}", x.shape(), y.shape())));
    }
    let len = x.elem_count();
    gpu.with_addresses("add", &[x, y], |from| {
        gpu.output(shape, |out| {
            let args = AddArgs { out, x: from[0], y: from[1], len: len as u64 };
            // SAFETY: all three have `len` elements.
            unsafe { gpu.launch(elementwise("add", len), &args) }
        })
    })
}

pub fn silu_mul<G: Gpu>(gpu: &G, gate_up: &Tensor) -> Result<Tensor> {
    let (num_rows, width) = gate_up.dims2()?;
    if width % 2 != 0 {
        return Err(Error::shape("silu_mul", format!("{:?} has no halves", gate_up.shape())));
    }
    let half = width / 2;
    gpu.with_addresses("silu_mul", &[gate_up], |from| {
        gpu.output((num_rows, half), |out| {
            let (rows, half) = (num_rows as u64, half as u64);
            let args = SiluMulArgs { out, gate_up: from[0], rows, half };
            // SAFETY: gate_up has num_rows rows of 2 * half, out of half.
            unsafe { gpu.launch(elementwise("silu_mul", num_rows * width / 2), &args) }
        })
    })
}

/// A thread for each of `len` elements.
fn elementwise(kernel: &'static str, len: usize) -> Launch {
    Launch { kernel, grid: [len.div_ceil(THREADS), 1], threads: THREADS, shared_bytes: 0 }
}
