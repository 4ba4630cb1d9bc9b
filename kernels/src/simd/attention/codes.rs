//! Codes as vectors of floats, before their scale, and the loops of a few queries over them.

use std::ops::Range;

use super::{pieces::TOKENS, product::Term};
use crate::{
    codec::Format,
    simd::{LINE, Simd},
};

/// One format's codes.
pub trait Codes {
    const FORMAT: Format;

    /// Channels `i..i + LANES` of a vector.
    ///
    /// # Safety
    /// `codes` points to a vector of at least so many channels.
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, i: usize) -> S::V;
}

pub struct F16s;
pub struct Int8s;

// SAFETY of all blocks: as the trait asks.
impl Codes for F16s {
    const FORMAT: Format = Format::F16;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, i: usize) -> S::V {
        unsafe { simd.load_f16(codes.add(2 * i)) }
    }
}

impl Codes for Int8s {
    const FORMAT: Format = Format::Int8;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, codes: *const u8, i: usize) -> S::V {
        unsafe { simd.load_i8(codes.add(i)) }
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

/// What `queries` (R, D) and the vectors of a batch add up: partial sums (R, TOKENS, LANES).
#[inline(always)]
pub fn sums<S: Simd, C: Codes, T: Term, const R: usize>(
    simd: S,
    term: T,
    queries: &[f32],
    Batch { codes, tokens, steps, ahead }: Batch,
    sums: &mut [f32],
) {
    let (lines, mut next) = (ahead.len().div_ceil(LINE * tokens.max(1)), ahead.as_ptr());
    let half = queries.len() / R / 2;
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(half.is_multiple_of(S::LANES) && codes.len() >= tokens * bytes);
    assert!(tokens == 0 || sums.len() >= ((R - 1) * TOKENS + tokens) * S::LANES);
    assert!(steps.is_none_or(|steps| steps.len() >= tokens));
    for token in 0..tokens {
        let mut totals = [simd.splat(0.0); R];
        let step = steps.map(|steps| simd.splat(steps[token]));
        for _ in 0..lines {
            simd.prefetch_at(next);
            next = next.wrapping_add(LINE);
        }
        // SAFETY: whole vectors of codes, queries and sums, as just seen.
        unsafe {
            let codes = codes.as_ptr().add(token * bytes);
            let mut i = 0;
            while i < half {
                let mut pair = [i, half + i].map(|i| C::load(simd, codes, i));
                if let Some(step) = step {
                    pair = pair.map(|v| simd.mul(step, v));
                }
                let [low, high] = pair;
                for (r, total) in totals.iter_mut().enumerate() {
                    let query = queries.as_ptr().add(r * 2 * half + i);
                    *total = term.add(simd, simd.load(query), low, *total);
                    *total = term.add(simd, simd.load(query.add(half)), high, *total);
                }
                i += S::LANES;
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
        // One vector of codes at a time, for all queries: 12 sums, 3 weights and it fill 16 registers.
        let weights: [_; R] = std::array::from_fn(|r| simd.splat(weights[r][token]));
        for n in 0..N {
            for (upper, first) in
                [channel + n * S::LANES, half + channel + n * S::LANES].into_iter().enumerate()
            {
                // SAFETY: whole vectors of codes, as just seen.
                let vector = unsafe { C::load(simd, codes.as_ptr().add(i * bytes), first) };
                for (weight, sums) in weights.iter().zip(sums.iter_mut()) {
                    sums[n][upper] = simd.fma(*weight, vector, sums[n][upper]);
                }
            }
        }
    }
}
