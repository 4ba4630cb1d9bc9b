//! Elementwise work between matrix products: [`crate::portable::activation`] with vectors.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Op, Simd, exp2};
use crate::{
    Error, Result,
    tensor::{output, with_slice},
};

/// Rows that pay for handing work to another thread.
const MIN_ROWS: usize = 16;
/// Sums are kept for each lane of the widest vector: a single one would not vectorize.
const LANES: usize = 16;

/// See [`crate::Backend::rms_norm`].
pub fn rms_norm<S: Simd>(simd: S, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (num_rows, width) = x.dims2()?;
    if weight.elem_count() != width {
        return Err(Error::shape("rms_norm", format!("{:?} by {:?}", x.shape(), weight.shape())));
    }
    output("rms_norm", (num_rows, width), |out| {
        with_slice("rms_norm", x, |x| {
            with_slice("rms_norm", weight, |weight| {
                out.par_chunks_exact_mut(width)
                    .zip(x.par_chunks_exact(width))
                    .with_min_len(MIN_ROWS)
                    .for_each(|(out, x)| simd.vectorize(RmsNorm { x, weight, eps, out }));
            })
        })?
    })
}

/// See [`crate::Backend::silu_mul`].
pub fn silu_mul<S: Simd>(simd: S, gate_up: &Tensor) -> Result<Tensor> {
    let (num_rows, width) = gate_up.dims2()?;
    let half = width / 2;
    output("silu_mul", (num_rows, half), |out| {
        with_slice("silu_mul", gate_up, |gate_up| {
            out.par_chunks_exact_mut(half)
                .zip(gate_up.par_chunks_exact(width))
                .with_min_len(MIN_ROWS)
                .for_each(|(out, x)| simd.vectorize(SiluMul { x, out }));
        })
    })
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl<S: Simd> Op<S> for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: S) {
        let Self { x, weight, eps, out } = self;
        let mut lanes = [0f32; LANES];
        let (runs, rest) = x.as_chunks::<LANES>();
        for run in runs {
            for (lane, v) in lanes.iter_mut().zip(run) {
                *lane += v * v;
            }
        }
        let squares = lanes.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>();
        let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

struct SiluMul<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<S: Simd> Op<S> for SiluMul<'_> {
    type Out = ();

    #[inline(always)]
    fn run(self, _: S) {
        let (gate, up) = self.x.split_at(self.out.len());
        for ((out, g), u) in self.out.iter_mut().zip(gate).zip(up) {
            let decay = exp2((-g * std::f32::consts::LOG2_E).min(126.0));
            *out = g / (1.0 + decay) * u;
        }
    }
}
