//! Elementwise work between matrix products.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Error, Result,
    tensor::{from_vec, output, with_slice},
};

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let (num_rows, width) = x.dims2()?;
    if weight.elem_count() != width {
        return Err(Error::shape("rms_norm", format!("{:?} by {:?}", x.shape(), weight.shape())));
    }
    let mut out = vec![0f32; num_rows * width];
    with_slice("rms_norm", x, |x| {
        with_slice("rms_norm", weight, |weight| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let mean = x.iter().map(|v| v * v).sum::<f32>() / width as f32;
                let scale = 1.0 / (mean + eps).sqrt();
                for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                    *out = x * scale * w;
                }
            }
        })
    })??;
    from_vec(out, (num_rows, width))
}

/// Memory bounds it: one loop serves every backend.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let shape = x.dims2()?;
    if y.dims() != x.dims() {
        return Err(Error::shape("add", format!("{:?} and {:?}", x.shape(), y.shape())));
    }
    output("add", shape, |sum| {
        with_slice("add", x, |x| {
            with_slice("add", y, |y| {
                sum.iter_mut().zip(x).zip(y).for_each(|((sum, x), y)| *sum = x + y);
            })
        })?
    })
}

pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    let (num_rows, width) = gate_up.dims2()?;
    let half = width / 2;
    let mut out = vec![0f32; num_rows * half];
    with_slice("silu_mul", gate_up, |gate_up| {
        out.par_chunks_exact_mut(half).zip(gate_up.par_chunks_exact(width)).for_each(|(out, x)| {
            let (gate, up) = x.split_at(half);
            for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
                *out = g / (1.0 + (-g).exp()) * u;
            }
        });
    })?;
    from_vec(out, (num_rows, half))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn rms_norm_makes_the_mean_square_one_before_the_weight() {
        let x = Tensor::new(&[[3f32, -4.0], [0.5, 0.5]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let y = rms_norm(&x, &weight, 0.0).unwrap().to_vec2::<f32>().unwrap();
        let root = 12.5f32.sqrt();
        assert!((y[0][0] - 3.0 / root).abs() < 1e-6 && (y[0][1] + 8.0 / root).abs() < 1e-6);
        assert_eq!(y[1], [1.0, 2.0]);
    }

    #[test]
    fn add_sums_what_has_one_shape_and_refuses_the_rest() {
        let x = Tensor::new(&[[3f32, -4.0], [0.5, 0.5]], &Device::Cpu).unwrap();
        let y = Tensor::new(&[[1f32, 2.0], [0.0, -0.5]], &Device::Cpu).unwrap();
        assert_eq!(add(&x, &y).unwrap().to_vec2::<f32>().unwrap(), [[4.0, -2.0], [0.5, 0.0]]);
        assert!(add(&x, &y.narrow(0, 0, 1).unwrap()).is_err());
    }

    #[test]
    fn silu_mul_gates_the_second_half_with_the_first() {
        let x = Tensor::new(&[[0f32, 20.0, 5.0, 3.0]], &Device::Cpu).unwrap();
        let y = silu_mul(&x).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[0][0] == 0.0 && (y[0][1] - 60.0).abs() < 1e-4);
    }
}
