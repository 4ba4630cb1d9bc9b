//! Encoding of one rotated vector in few bits: the specification of every format.

use half::f16;

/// How one vector of K or V is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    F16,
    /// Signed 8-bit integers times one f16 scale (largest magnitude over 127).
    Int8,
    /// 4-bit indices into [`NORMAL4`] times one f16 scale. Byte `i` holds channel `i` in its low
    /// nibble and channel `i + D/2` in its high one.
    Normal4,
}

/// Lloyd-Max levels of a standard normal variable at 4 bits (Max 1960, table 1), the largest of them
/// 127: after the Hadamard rotation channels are close to normal, and levels that are integers of 8
/// bits are multiplied as such. Rounding them to integers costs 2e-5 of a vector's power.
pub const NORMAL4: [f32; 16] = [
    -127.0, -96.0, -75.0, -58.0, -44.0, -31.0, -18.0, -6.0, 6.0, 18.0, 31.0, 44.0, 58.0, 75.0,
    96.0, 127.0,
];

/// The largest level of [`NORMAL4`] over the standard deviation that it stands for.
const NORMAL4_UNIT: f32 = 127.0 / 2.7326;

impl Format {
    /// Bytes of the codes of a vector of `dim` channels.
    pub const fn vector_bytes(self, dim: usize) -> usize {
        match self {
            Self::F16 => 2 * dim,
            Self::Int8 => dim,
            Self::Normal4 => dim / 2,
        }
    }

    /// Bytes of the vector's scale.
    pub const fn scale_bytes(self) -> usize {
        match self {
            Self::F16 => 0,
            Self::Int8 | Self::Normal4 => 2,
        }
    }

    /// Codes `x` and returns its scale (1 for F16, which has none). Inlined, so that code compiled for
    /// an instruction set uses its vectors; the result is the same bit by bit.
    #[inline(always)]
    pub fn encode(self, x: &[f32], codes: &mut [u8]) -> f16 {
        match self {
            Self::F16 => encode_f16(x, codes),
            Self::Int8 => encode_int8(x, codes),
            Self::Normal4 => encode_normal4(x, codes),
        }
    }

    pub fn decode(self, codes: &[u8], scale: f16, x: &mut [f32]) {
        let scale = scale.to_f32();
        match self {
            Self::F16 => {
                for (v, b) in x.iter_mut().zip(codes.chunks_exact(2)) {
                    *v = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Self::Int8 => {
                for (v, &code) in x.iter_mut().zip(codes) {
                    *v = f32::from(code as i8) * scale;
                }
            }
            Self::Normal4 => {
                let (low, high) = x.split_at_mut(codes.len());
                for ((a, b), &code) in low.iter_mut().zip(high).zip(codes) {
                    *a = NORMAL4[usize::from(code & 15)] * scale;
                    *b = NORMAL4[usize::from(code >> 4)] * scale;
                }
            }
        }
    }
}

/// 1.5 * 2^23: an integer added to it is found in the low bits of the sum. Conversions that saturate
/// do not vectorize.
const MAGIC: f32 = 12_582_912.0;

/// Values beyond f16 are clamped: an infinity in the cache would poison every later token.
pub fn to_f16(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

fn encode_f16(x: &[f32], codes: &mut [u8]) -> f16 {
    for (b, v) in codes.chunks_exact_mut(2).zip(x) {
        b.copy_from_slice(&to_f16(*v).to_le_bytes());
    }
    f16::ONE
}

#[inline(always)]
fn encode_int8(x: &[f32], codes: &mut [u8]) -> f16 {
    let largest = fold_lanes(x, |m, v| if v.abs() > m { v.abs() } else { m }, f32::max);
    let scale = to_f16(largest / 127.0);
    let inverse = inverse_or_zero(scale.to_f32());
    for (code, v) in codes.iter_mut().zip(x) {
        *code = ((v * inverse).round().clamp(-127.0, 127.0) + MAGIC).to_bits() as u8;
    }
    scale
}

#[inline(always)]
fn encode_normal4(x: &[f32], codes: &mut [u8]) -> f16 {
    let power = fold_lanes(x, |sum, v| sum + v * v, |a, b| a + b);
    let inverse = NORMAL4_UNIT * inverse_or_zero((power / x.len() as f32).sqrt());
    let (low, high) = x.split_at(codes.len());
    let (mut dot, mut norm) = ([0f32; LANES], [0f32; LANES]);
    let halves = low.chunks(BLOCK).zip(high.chunks(BLOCK));
    for (codes, (low, high)) in codes.chunks_mut(BLOCK).zip(halves) {
        let low_codes = choose(low, inverse, &mut dot, &mut norm);
        let high_codes = choose(high, inverse, &mut dot, &mut norm);
        for (code, (a, b)) in codes.iter_mut().zip(low_codes.iter().zip(&high_codes)) {
            *code = (a | b << 4) as u8;
        }
    }
    // The scale that fits the chosen levels best; least squares costs one pass and takes off the
    // part of the error that all channels share.
    to_f16(fold(dot, |a, b| a + b) / fold(norm, |a, b| a + b))
}

/// Channels that are coded at a time: so many that compilers vectorize the loop, so few that what is
/// in between stays in L1.
const BLOCK: usize = 64;

/// Indices of the levels closest to `x * inverse`; adds up the products of `x` with the levels and
/// the squares of these.
#[inline(always)]
fn choose(
    x: &[f32],
    inverse: f32,
    dot: &mut [f32; LANES],
    norm: &mut [f32; LANES],
) -> [u32; BLOCK] {
    let (mut codes, mut levels) = ([0; BLOCK], [0f32; BLOCK]);
    for ((v, code), level) in x.iter().zip(&mut codes).zip(&mut levels) {
        (*code, *level) = nearest_level(v * inverse);
    }
    add_products(x, &levels, dot);
    add_products(&levels[..x.len()], &levels, norm);
    codes
}

/// Index and value of the level of [`NORMAL4`] closest to `v`.
#[inline(always)]
fn nearest_level(v: f32) -> (u32, f32) {
    let mut nearest = (0, NORMAL4[0]);
    for i in 1..NORMAL4.len() {
        let middle = 0.5 * (NORMAL4[i - 1] + NORMAL4[i]);
        nearest = if v > middle { (i as u32, NORMAL4[i]) } else { nearest };
    }
    nearest
}

#[inline(always)]
fn add_products(a: &[f32], b: &[f32], lanes: &mut [f32; LANES]) {
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
}

/// Sums go round this many lanes, then halves are joined: the order is part of the specification,
/// and one that vectors of any width can follow bit by bit.
const LANES: usize = 16;

#[inline(always)]
fn fold_lanes(x: &[f32], add: impl Fn(f32, f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (runs, rest) = x.as_chunks::<LANES>();
    for run in runs {
        for (lane, v) in lanes.iter_mut().zip(run) {
            *lane = add(*lane, *v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane = add(*lane, *v);
    }
    fold(lanes, join)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            *low = join(*low, *high);
        }
    }
    lanes[0]
}

fn inverse_or_zero(x: f32) -> f32 {
    if x > 0.0 { 1.0 / x } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const FORMATS: [Format; 3] = [Format::F16, Format::Int8, Format::Normal4];

    fn gaussian(seed: u64, dim: usize) -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        let uniform = |rng: &mut StdRng| rng.random_range(-0.5f32..0.5);
        (0..dim).map(|_| (0..12).map(|_| uniform(&mut rng)).sum::<f32>()).collect()
    }

    fn round_trip(format: Format, x: &[f32]) -> Vec<f32> {
        let mut codes = vec![0; format.vector_bytes(x.len())];
        let scale = format.encode(x, &mut codes);
        let mut y = vec![0.0; x.len()];
        format.decode(&codes, scale, &mut y);
        y
    }

    #[test]
    fn the_error_of_each_format_stays_below_its_bound() {
        // Normalized mean squared error for a normal source: 16 Lloyd-Max levels leave .0095,
        // 8 bits of the largest of 64 values about 4e-5, f16 rounds to 2^-11.
        for (format, bound) in FORMATS.into_iter().zip([1e-7, 8e-5, 0.0115]) {
            let (mut error, mut power) = (0f64, 0f64);
            for seed in 0..200 {
                let x = gaussian(seed, 64);
                for (a, b) in x.iter().zip(round_trip(format, &x)) {
                    error += f64::from(a - b).powi(2);
                    power += f64::from(*a).powi(2);
                }
            }
            assert!(error / power < bound, "{format:?}: {}", error / power);
        }
    }

    #[test]
    fn scaling_a_vector_scales_what_comes_back() {
        for format in FORMATS {
            let x = gaussian(3, 64);
            let big: Vec<f32> = x.iter().map(|v| v * 16.0).collect();
            let (x, big) = (round_trip(format, &x), round_trip(format, &big));
            assert!(x.iter().zip(&big).all(|(a, b)| (a * 16.0 - b).abs() <= 2e-3 * b.abs()));
        }
    }

    #[test]
    fn a_zero_vector_and_one_beyond_f16_come_back_finite() {
        for format in FORMATS {
            assert_eq!(round_trip(format, &[0.0; 32]), [0.0; 32]);
            assert!(round_trip(format, &[1e30; 32]).iter().all(|v| v.is_finite()));
        }
    }
}
