//! The resident form of quantized weights, and of the activations they meet.
//!
//! A panel is 16 output rows. For each 32 weights along k it holds one [`Block`]: scales and minima
//! of the 16 rows, then the codes, so ordered that one line of 64 bytes gives 4 consecutive k for
//! each row: what one `vpdpbusd` multiplies with 4 broadcast activations.

use std::str::FromStr;

use half::f16;
use rayon::prelude::*;

use super::ggml::{BLOCK, Unpacked, unpack};
use crate::{Error, RawMatrix, Result};

/// Output rows of a panel.
pub const LANES: usize = 16;
/// Runs of 4 weights in a block.
pub const GROUPS: usize = BLOCK / 4;

/// 16 rows by 32 weights. `LINES` is 4 for 4-bit codes and 8 for 8-bit ones.
///
/// Line g holds, for each row, weights 4g..4g+4; with 4 bits these are the low nibbles, and the
/// high ones hold weights 4(g+4)..4(g+4)+4.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Block<const LINES: usize> {
    pub d: [f16; LANES],
    pub m: [f16; LANES],
    pub codes: [[u8; 4 * LANES]; LINES],
}

impl<const LINES: usize> Block<LINES> {
    const ZERO: Self =
        Self { d: [f16::ZERO; LANES], m: [f16::ZERO; LANES], codes: [[0; 4 * LANES]; LINES] };

    /// The code of weight `k` of the block's row `lane`.
    pub fn code(&self, lane: usize, k: usize) -> u8 {
        let byte = self.codes[k / 4 % LINES][lane * 4 + k % 4];
        if LINES == GROUPS { byte } else { byte >> (k / 4 / LINES * 4) & 15 }
    }

    fn put(&mut self, lane: usize, row: &Unpacked) {
        (self.d[lane], self.m[lane]) = (row.d, row.m);
        for (k, code) in row.codes.iter().enumerate() {
            self.codes[k / 4 % LINES][lane * 4 + k % 4] |= code << (k / 4 / LINES * 4);
        }
    }
}

/// Rows of one matrix, or of several one after the other, padded with zeros to whole panels.
pub struct Packed<const LINES: usize> {
    pub rows: usize,
    pub cols: usize,
    blocks: Vec<Block<LINES>>,
}

impl<const LINES: usize> Packed<LINES> {
    /// Packs checked parts of the same number of columns, freeing each when it is done.
    pub fn new(parts: Vec<RawMatrix>) -> Self {
        let rows = parts.iter().map(|part| part.rows).sum::<usize>();
        let cols = parts[0].cols;
        let panel_len = cols / BLOCK;
        let mut blocks = vec![Block::ZERO; rows.div_ceil(LANES) * panel_len];
        let mut start = 0;
        for part in parts {
            let first = start / LANES;
            let panels = blocks[first * panel_len..].par_chunks_exact_mut(panel_len);
            panels.take((start + part.rows).div_ceil(LANES) - first).enumerate().for_each(
                |(i, panel)| {
                    let panel_start = (first + i) * LANES;
                    for row in panel_start.max(start)..(panel_start + LANES).min(start + part.rows)
                    {
                        put_row(panel, row - panel_start, &part, row - start);
                    }
                },
            );
            start += part.rows;
        }
        Self { rows, cols, blocks }
    }

    pub fn num_panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub fn panel(&self, index: usize) -> &[Block<LINES>] {
        let len = self.cols / BLOCK;
        &self.blocks[index * len..(index + 1) * len]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.blocks)
    }

    /// Row `row` (cols), dequantized.
    pub fn dequantize(&self, row: usize, out: &mut [f32]) {
        let lane = row % LANES;
        for (out, block) in out.chunks_exact_mut(BLOCK).zip(self.panel(row / LANES)) {
            let (d, m) = (block.d[lane].to_f32(), block.m[lane].to_f32());
            for (k, out) in out.iter_mut().enumerate() {
                *out = d * f32::from(block.code(lane, k)) + m;
            }
        }
    }
}

fn put_row<const LINES: usize>(
    panel: &mut [Block<LINES>],
    lane: usize,
    part: &RawMatrix,
    row: usize,
) {
    let bytes = &part.data[row * part.row_bytes()..][..part.row_bytes()];
    for (index, block) in panel.iter_mut().enumerate() {
        block.put(lane, &unpack(part.dtype, bytes, index));
    }
}

/// Rows of x that meet a panel together.
pub const GROUP_ROWS: usize = 8;

/// How many bits an activation keeps where it meets quantized weights; and, with AVX-512, in attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationBits {
    /// As in llama.cpp. Half the integer products, and the log-probabilities of a small model are off by
    /// up to 0.45. AVX-512's attention then multiplies queries of 16 bits and weights of 8, in prefill too:
    /// beside the former its rounding is small.
    Eight,
    /// As exact as floats, next to weights of 4 or 8 bits. The second byte costs products, of which a
    /// decode step, bound by memory, has plenty.
    #[default]
    Sixteen,
}

impl FromStr for ActivationBits {
    type Err = Error;

    /// `8` or `16`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "8" => Ok(Self::Eight),
            "16" => Ok(Self::Sixteen),
            _ => Err(Error::Unsupported(format!("activations of `{text}` bits: 8 or 16"))),
        }
    }
}

impl ActivationBits {
    /// All codes are multiples of it.
    const fn step(self) -> i16 {
        match self {
            Self::Eight => 256,
            Self::Sixteen => 1,
        }
    }
}

/// 32 activations of up to 8 rows: x = scale * (256 * high + low), where `low` is 0 of those that keep
/// 8 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Activations {
    pub high: [[i8; BLOCK]; GROUP_ROWS],
    pub low: [[i8; BLOCK]; GROUP_ROWS],
    pub scales: [f32; GROUP_ROWS],
    /// scale * sum of (256 * high + low), what the weights' minima are multiplied with.
    pub sums: [f32; GROUP_ROWS],
}

impl Activations {
    pub const ZERO: Self = Self {
        high: [[0; BLOCK]; GROUP_ROWS],
        low: [[0; BLOCK]; GROUP_ROWS],
        scales: [0.0; GROUP_ROWS],
        sums: [0.0; GROUP_ROWS],
    };
}

/// Codes up to 8 rows of x, each of `out.len()` blocks.
#[inline(always)]
pub fn quantize_group(x: &[[f32; BLOCK]], bits: ActivationBits, out: &mut [Activations]) {
    for (row, x) in x.chunks_exact(out.len()).enumerate() {
        for (x, out) in x.iter().zip(&mut *out) {
            let codes = (&mut out.high[row], &mut out.low[row]);
            (out.scales[row], out.sums[row]) = quantize(x, bits, codes);
        }
    }
}

/// The largest code: its high byte, rounded, is 127.
const LARGEST_CODE: f32 = 127.0 * 256.0;

/// Codes one block. Returns its scale and scale * sum of codes.
#[inline(always)]
fn quantize(
    x: &[f32; BLOCK],
    bits: ActivationBits,
    (high, low): (&mut [i8; BLOCK], &mut [i8; BLOCK]),
) -> (f32, f32) {
    // Magnitudes compare as integers, which vectorizes; a NaN is the largest and reaches y.
    let largest = f32::from_bits(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0));
    let step = bits.step();
    let inverse = if largest == 0.0 { 0.0 } else { LARGEST_CODE / f32::from(step) / largest };
    let mut sum = 0i32;
    for ((high, low), v) in high.iter_mut().zip(low).zip(x) {
        // 1.5 * 2^23 leaves no bits for a fraction: the sum rounds to even, and its low half is the
        // integer in two's complement.
        let code = ((v * inverse + 12_582_912.0).to_bits() as i16).wrapping_mul(step);
        *low = code as i8;
        *high = ((i32::from(code) + 128) >> 8) as i8;
        sum += i32::from(code);
    }
    let scale = largest / LARGEST_CODE;
    (scale, scale * sum as f32)
}
