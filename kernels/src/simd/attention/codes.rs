//! Codes as vectors of floats, before their scale, and the loops of a few queries over them.

use std::slice::Chunks;

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

/// What is left to ask for, as much of it with each token.
struct Ahead<'a> {
    lines: Chunks<'a, u8>,
    per_token: usize,
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    fn new(bytes: &'a [u8], tokens: usize) -> Self {
        let lines = bytes.chunks(LINE);
        Self { per_token: lines.len().div_ceil(tokens.max(1)), lines }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self, simd: S) {
        self.of_a_token().for_each(|line| simd.prefetch_at(line.as_ptr()));
    }

    #[inline(always)]
    fn of_a_token(&mut self) -> impl Iterator<Item = &'a [u8]> {
        self.lines.by_ref().take(self.per_token)
    }
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
    let mut ahead = Ahead::new(ahead, tokens);
    let half = queries.len() / R / 2;
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(half.is_multiple_of(S::LANES) && codes.len() >= tokens * bytes);
    assert!(tokens == 0 || sums.len() >= ((R - 1) * TOKENS + tokens) * S::LANES);
    assert!(steps.is_none_or(|steps| steps.len() >= tokens));
    for token in 0..tokens {
        let mut totals = [simd.splat(0.0); R];
        let step = steps.map(|steps| simd.splat(steps[token]));
        ahead.ask(simd);
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

/// Adds vectors, weighed from token `first` on, to `sums`: N vectors of channels from `channel`, and those
/// `half` further.
#[inline(always)]
pub fn add<S: Simd, C: Codes, const R: usize, const N: usize>(
    simd: S,
    Batch { codes, tokens, ahead, .. }: Batch,
    (half, channel): (usize, usize),
    (weights, first): (&[[f32; TOKENS]; R], usize),
    sums: &mut [[[S::V; 2]; N]; R],
) {
    let mut ahead = Ahead::new(ahead, tokens);
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(channel + N * S::LANES <= half && codes.len() >= tokens * bytes);
    assert!(first + tokens <= TOKENS);
    for i in 0..tokens {
        ahead.ask(simd);
        // One vector of codes at a time, for all queries: 12 sums, 3 weights and it fill 16 registers.
        let weights: [_; R] = std::array::from_fn(|r| simd.splat(weights[r][first + i]));
        for n in 0..N {
            for (upper, channel) in
                [channel + n * S::LANES, half + channel + n * S::LANES].into_iter().enumerate()
            {
                // SAFETY: whole vectors of codes, as just seen.
                let vector = unsafe { C::load(simd, codes.as_ptr().add(i * bytes), channel) };
                for (weight, sums) in weights.iter().zip(sums.iter_mut()) {
                    sums[n][upper] = simd.fma(*weight, vector, sums[n][upper]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_asks_for_each_line_of_a_later_page_once_and_for_nothing_else() {
        let page = vec![0u8; 2112];
        for (bytes, tokens) in [(&page[..], 8), (&page[..1056], 8), (&page[1056..], 3), (&[], 8)] {
            let mut ahead = Ahead::new(bytes, tokens);
            let lines: Vec<_> =
                (0..tokens).flat_map(|_| ahead.of_a_token().collect::<Vec<_>>()).collect();
            assert_eq!(lines.concat().len(), bytes.len());
            assert!(lines.iter().all(|line| bytes.as_ptr_range().contains(&line.as_ptr())));
        }
    }
}
