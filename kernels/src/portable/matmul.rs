//! Matrix products: the arithmetic every other kernel reproduces, up to the order of float sums.

use crate::{
    Linear, RawMatrix, Result,
    linear::{
        self, Kernel,
        ggml::BLOCK,
        packed::{ActivationBits, Activations, Block, LANES, quantize_group},
    },
    portable::Portable,
};

pub fn linear(parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
    linear::linear(Portable, parts)
}

impl Kernel for Portable {
    fn quantize(self, x: &[[f32; BLOCK]], out: &mut [Activations]) {
        quantize_group(x, ActivationBits::Sixteen, out);
    }

    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &[Activations],
        y: &mut [[f32; LANES]],
    ) {
        y.fill([0.0; LANES]);
        for (block, x) in panel.iter().zip(x) {
            let d = block.d.map(f32::from);
            let m = block.m.map(f32::from);
            let codes = unpack(block);
            for (row, y) in y.iter_mut().enumerate() {
                let dots = dots(&codes, &x.high[row], &x.low[row]);
                for lane in 0..LANES {
                    y[lane] += d[lane] * (x.scales[row] * dots[lane] as f32);
                    y[lane] += m[lane] * x.sums[row];
                }
            }
        }
    }
}

/// Codes (k, lane).
fn unpack<const LINES: usize>(block: &Block<LINES>) -> [[i16; LANES]; BLOCK] {
    std::array::from_fn(|k| std::array::from_fn(|lane| i16::from(block.code(lane, k))))
}

fn dots(codes: &[[i16; LANES]; BLOCK], high: &[i8; BLOCK], low: &[i8; BLOCK]) -> [i32; LANES] {
    let mut dots = [0; LANES];
    for ((codes, high), low) in codes.iter().zip(high).zip(low) {
        let x = 256 * i32::from(*high) + i32::from(*low);
        for (dot, code) in dots.iter_mut().zip(codes) {
            *dot += i32::from(*code) * x;
        }
    }
    dots
}
