//! GGUF's quantized formats, read in blocks of 32 weights: w = d * code + m.
//!
//! Layouts: ggml's `ggml-common.h` and `dequantize_row_*` in `ggml-quants.c`.

use candle_core::quantized::GgmlDType;
use half::f16;

/// Weights along k that share a scale.
pub const BLOCK: usize = 32;

/// 32 weights of one row. `codes` are below 16 for formats of [`code_bits`] 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unpacked {
    pub d: f16,
    pub m: f16,
    pub codes: [u8; BLOCK],
}

/// Bits in which a format's codes are kept, or `None` for what is not a quantized format we read.
pub fn code_bits(dtype: GgmlDType) -> Option<usize> {
    use GgmlDType::*;
    match dtype {
        Q4_0 | Q4_1 | Q4K => Some(4),
        Q2K | Q3K | Q5_0 | Q5_1 | Q5K | Q6K | Q8_0 => Some(8),
        _ => None,
    }
}

/// Block number `index` of a row. The formats with 16 weights to a scale (Q2_K, Q3_K, Q6_K) are
/// quantized anew to 8 bits; all others keep their codes exactly, and their scales as precisely as f16
/// can.
pub fn unpack(dtype: GgmlDType, row: &[u8], index: usize) -> Unpacked {
    let sub_blocks = dtype.block_size() / BLOCK;
    let bytes = dtype.type_size();
    let block = &row[index / sub_blocks * bytes..][..bytes];
    let sub = index % sub_blocks;
    match dtype {
        GgmlDType::Q4_0 => offset_by(8.0, float(block, 0), nibbles(&block[2..])),
        GgmlDType::Q4_1 => affine(block, nibbles(&block[4..])),
        GgmlDType::Q5_0 => {
            offset_by(16.0, float(block, 0), with_fifth_bit(nibbles(&block[6..]), &block[2..]))
        }
        GgmlDType::Q5_1 => affine(block, with_fifth_bit(nibbles(&block[8..]), &block[4..])),
        GgmlDType::Q8_0 => {
            let codes = std::array::from_fn(|i| block[2 + i].wrapping_add(128));
            offset_by(128.0, float(block, 0), codes)
        }
        GgmlDType::Q4K => k_scaled(block, sub, half_of_pair(&block[16..], sub)),
        GgmlDType::Q5K => {
            let low = half_of_pair(&block[48..], sub);
            let high = &block[16..48];
            let codes = std::array::from_fn(|i| low[i] | (high[i] >> sub & 1) << 4);
            k_scaled(block, sub, codes)
        }
        GgmlDType::Q2K => requantize(&q2_k(block, sub)),
        GgmlDType::Q3K => requantize(&q3_k(block, sub)),
        GgmlDType::Q6K => requantize(&q6_k(block, sub)),
        _ => unreachable!("{dtype:?} has no code bits"),
    }
}

fn float(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn offset_by(zero: f32, d: f32, codes: [u8; BLOCK]) -> Unpacked {
    Unpacked { d: f16::from_f32(d), m: f16::from_f32(-zero * d), codes }
}

fn affine(block: &[u8], codes: [u8; BLOCK]) -> Unpacked {
    let [d, m] = [0, 2].map(|at| f16::from_le_bytes([block[at], block[at + 1]]));
    Unpacked { d, m, codes }
}

/// Byte i holds weight i in its low nibble and weight i + 16 in its high one.
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

fn with_fifth_bit(low: [u8; BLOCK], high: &[u8]) -> [u8; BLOCK] {
    std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4)
}

/// Sub-blocks 2j and 2j + 1 share 32 bytes: low nibbles, then high ones.
fn half_of_pair(bytes: &[u8], sub: usize) -> [u8; BLOCK] {
    let pair = &bytes[sub / 2 * BLOCK..][..BLOCK];
    std::array::from_fn(|i| pair[i] >> (sub % 2 * 4) & 15)
}

/// Q4_K and Q5_K: eight 6-bit scales and minima in 12 bytes, factors d and dmin before them.
fn k_scaled(block: &[u8], sub: usize, codes: [u8; BLOCK]) -> Unpacked {
    let packed = &block[4..16];
    let (scale, min) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let both = packed[sub + 4];
        (both & 15 | packed[sub - 4] >> 6 << 4, both >> 4 | packed[sub] >> 6 << 4)
    };
    let d = f16::from_f32(float(block, 0) * f32::from(scale));
    let m = f16::from_f32(-float(block, 2) * f32::from(min));
    Unpacked { d, m, codes }
}

/// Two bits of each weight of a sub-block: four sub-blocks share 32 bytes.
fn bit_pairs(bytes: &[u8], sub: usize) -> [u8; BLOCK] {
    let four = &bytes[sub / 4 * BLOCK..][..BLOCK];
    std::array::from_fn(|i| four[i] >> (sub % 4 * 2) & 3)
}

/// Q2_K: 16 scales and minima of 4 bits each, 64 bytes of bit pairs, d and dmin.
fn q2_k(block: &[u8], sub: usize) -> [f32; BLOCK] {
    let codes = bit_pairs(&block[16..], sub);
    let (d, d_min) = (float(block, 80), float(block, 82));
    std::array::from_fn(|i| {
        let packed = block[2 * sub + i / 16];
        d * f32::from(packed & 15) * f32::from(codes[i]) - d_min * f32::from(packed >> 4)
    })
}

/// Q3_K: 32 bytes of high bits, a bit a sub-block, 64 of bit pairs, 16 scales of 6 bits, d.
fn q3_k(block: &[u8], sub: usize) -> [f32; BLOCK] {
    let codes = bit_pairs(&block[32..], sub);
    let packed = &block[96..108];
    let scale = |index: usize| {
        let low = packed[index % 8] >> (index / 8 * 4) & 15;
        let high = packed[8 + index % 4] >> (index / 4 * 2) & 3;
        f32::from(low | high << 4) - 32.0
    };
    let d = float(block, 108);
    std::array::from_fn(|i| {
        let below = if block[i] >> sub & 1 == 1 { 0.0 } else { 4.0 };
        d * scale(2 * sub + i / 16) * (f32::from(codes[i]) - below)
    })
}

/// Q6_K: 128 bytes of low nibbles, 64 of high bit pairs, 16 scales (i8), d.
fn q6_k(block: &[u8], sub: usize) -> [f32; BLOCK] {
    let (half, quarter) = (sub / 4, sub % 4);
    let low = &block[half * 64 + quarter % 2 * BLOCK..];
    let high = &block[128 + half * BLOCK..];
    let scales = &block[192 + half * 8 + quarter * 2..];
    let d = float(block, 208);
    std::array::from_fn(|i| {
        let code = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
        d * f32::from(scales[i / 16] as i8) * (f32::from(code) - 32.0)
    })
}

/// 8 bits between the smallest and the largest weight.
fn requantize(w: &[f32; BLOCK]) -> Unpacked {
    let (low, high) =
        w.iter().fold((f32::MAX, f32::MIN), |(low, high), &w| (low.min(w), high.max(w)));
    let m = f16::from_f32(low);
    let d = f16::from_f32((high - m.to_f32()) / 255.0);
    let inverse = if d.to_f32() > 0.0 { 1.0 / d.to_f32() } else { 0.0 };
    let codes = w.map(|w| ((w - m.to_f32()) * inverse).round() as u8);
    Unpacked { d, m, codes }
}
