//! Codes as vectors of floats, before their scale, and the loops of a few queries over them.

use std::ops::Range;

use super::{super::simd::Simd, pieces::TOKENS, product::Term};
use crate::codec::Format;

/// One format's codes.
pub trait Codes {
    const FORMAT: Format;

    /// Channels `i..` and `half + i..` of a vector.
    ///
    /// # Safety
    /// `codes` points to a vector of 2 * `half` channels, and i + LANES <= `half`.
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2];
}

pub struct F16s;
pub struct Int8s;

// SAFETY of all blocks: as the trait asks.
impl Codes for F16s {
    const FORMAT: Format = Format::F16;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2] {
        unsafe { [simd.load_f16(codes.add(2 * i)), simd.load_f16(codes.add(2 * (half + i)))] }
    }
}

impl Codes for Int8s {
    const FORMAT: Format = Format::Int8;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2] {
        unsafe { [simd.load_i8(codes.add(i)), simd.load_i8(codes.add(half + i))] }
    }
}

/// Vectors of one format, and what to ask for from memory on the way: all at once it would hold up
/// the loads that are needed now.
pub struct Batch<'a> {
    pub codes: &'a [u8],
    pub tokens: usize,
    /// (tokens): what a code of 1 stands for, of a vector that is wanted with its scale.
    pub steps: Option<&'a [f32]>,
    pub ahead: &'a [u8],
}

const LINE: usize = 64;

/// What `queries` (R, D) and the vectors of a batch add up: partial sums (R, TOKENS, LANES).
#[inline(always)]
pub fn sums<S: Simd, C: Codes, T: Term, const R: usize>(
    simd: S,
    term: T,
    queries: &[f32],
    Batch { codes, tokens, steps, ahead }: Batch,
    sums: &mut [f32],
) {
    let step = ahead.len().div_ceil(LINE).div_ceil(tokens.max(1)).max(1) * LINE;
    let mut ahead = ahead.chunks(step);
    let half = queries.len() / R / 2;
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(half.is_multiple_of(S::LANES) && codes.len() >= tokens * bytes);
    assert!(tokens == 0 || sums.len() >= ((R - 1) * TOKENS + tokens) * S::LANES);
    assert!(steps.is_none_or(|steps| steps.len() >= tokens));
    for token in 0..tokens {
        let mut totals = [simd.splat(0.0); R];
        let step = steps.map(|steps| simd.splat(steps[token]));
        simd.prefetch(ahead.next().unwrap_or_default());
        // SAFETY: whole vectors of codes, queries and sums, as just seen.
        unsafe {
            let codes = codes.as_ptr().add(token * bytes);
            for i in (0..half).step_by(S::LANES) {
                let mut pair = C::pair(simd, codes, half, i);
                if let Some(step) = step {
                    pair = pair.map(|v| simd.mul(step, v));
                }
                let [low, high] = pair;
                for (r, total) in totals.iter_mut().enumerate() {
                    let query = queries.as_ptr().add(r * 2 * half + i);
                    *total = term.add(simd, simd.load(query), low, *total);
                    *total = term.add(simd, simd.load(query.add(half)), high, *total);
                }
            }
            for (r, total) in totals.iter().enumerate() {
                simd.store(sums.as_mut_ptr().add((r * TOKENS + token) * S::LANES), *total);
            }
        }
    }
}

/// Adds weighed vectors to `sums`: N vectors of channels from `channel`, and those `half` further.
#[inline(always)]
pub fn add<S: Simd, C: Codes, const R: usize, const N: usize>(
    simd: S,
    codes: &[u8],
    (half, channel): (usize, usize),
    tokens: Range<usize>,
    weights: &[[f32; TOKENS]; R],
    sums: &mut [[[S::V; 2]; N]; R],
) {
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(channel + N * S::LANES <= half && codes.len() >= tokens.len() * bytes);
    assert!(tokens.end <= TOKENS);
    for (i, token) in tokens.enumerate() {
        let mut vectors = [[simd.splat(0.0); 2]; N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            let first = channel + n * S::LANES;
            // SAFETY: whole vectors of codes, as just seen.
            *vector = unsafe { C::pair(simd, codes.as_ptr().add(i * bytes), half, first) };
        }
        for (weights, sums) in weights.iter().zip(sums.iter_mut()) {
            let weight = simd.splat(weights[token]);
            for (sums, vector) in sums.iter_mut().zip(&vectors) {
                for (sum, v) in sums.iter_mut().zip(vector) {
                    *sum = simd.fma(weight, *v, *sum);
                }
            }
        }
    }
}
