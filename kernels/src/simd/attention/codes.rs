//! Codes as vectors of floats, before their scale, and the loops of a few queries over them.

use super::{
    pieces::{Ahead, TOKENS},
    product::Term,
};
use crate::{codec::Format, simd::Simd};

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

/// Vectors of one format.
pub struct Batch<'a> {
    pub codes: &'a [u8],
    pub tokens: usize,
    /// (tokens): what a code of 1 stands for, of a vector that is wanted with its scale.
    pub steps: Option<&'a [f32]>,
}

/// What `queries` (R, D) and the vectors of a batch add up: partial sums (R, TOKENS, LANES).
#[inline(always)]
pub fn sums<S: Simd, C: Codes, T: Term, const R: usize>(
    simd: S,
    term: T,
    queries: &[f32],
    Batch { codes, tokens, steps }: Batch,
    ahead: &mut Ahead,
    sums: &mut [f32],
) {
    let half = queries.len() / R / 2;
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(half.is_multiple_of(S::LANES) && codes.len() >= tokens * bytes);
    assert!(tokens == 0 || sums.len() >= ((R - 1) * TOKENS + tokens) * S::LANES);
    assert!(steps.is_none_or(|steps| steps.len() >= tokens));
    let mut token = 0;
    while token < tokens {
        let place = Place { codes, bytes, half, token, steps };
        // SAFETY: so many tokens, and whole vectors of codes, queries and sums, as just seen.
        let taken = unsafe {
            if token + PAIR <= tokens {
                place.sums::<S, C, T, R, PAIR>(simd, term, queries, sums)
            } else {
                place.sums::<S, C, T, R, 1>(simd, term, queries, sums)
            }
        };
        ahead.ask(simd, taken);
        token += taken;
    }
}

/// Tokens that share the loads of queries.
const PAIR: usize = 2;

/// A token of a batch, and what lies behind it.
struct Place<'a> {
    codes: &'a [u8],
    bytes: usize,
    half: usize,
    token: usize,
    steps: Option<&'a [f32]>,
}

impl Place<'_> {
    /// N tokens from here, R queries; returns N.
    ///
    /// # Safety
    /// `codes` holds `token + N` vectors of `2 * half` channels, `queries` R of them, and `sums` R rows
    /// of TOKENS vectors up to that token; `half` is a multiple of LANES.
    #[inline(always)]
    unsafe fn sums<S: Simd, C: Codes, T: Term, const R: usize, const N: usize>(
        &self,
        simd: S,
        term: T,
        queries: &[f32],
        sums: &mut [f32],
    ) -> usize {
        let half = self.half;
        let mut totals = [[simd.splat(0.0); N]; R];
        // SAFETY: the caller's.
        unsafe {
            let mut i = 0;
            while i < half {
                let low: [_; N] = self.load::<S, C, N>(simd, i);
                let high: [_; N] = self.load::<S, C, N>(simd, half + i);
                for (r, totals) in totals.iter_mut().enumerate() {
                    let query = queries.as_ptr().add(r * 2 * half + i);
                    let (query_low, query_high) = (simd.load(query), simd.load(query.add(half)));
                    for ((total, low), high) in totals.iter_mut().zip(&low).zip(&high) {
                        *total = term.add(simd, query_low, *low, *total);
                        *total = term.add(simd, query_high, *high, *total);
                    }
                }
                i += S::LANES;
            }
            for (r, totals) in totals.iter().enumerate() {
                for (n, total) in totals.iter().enumerate() {
                    let at = (r * TOKENS + self.token + n) * S::LANES;
                    simd.store(sums.as_mut_ptr().add(at), *total);
                }
            }
        }
        N
    }

    /// Channels `i..i + LANES` of N tokens.
    ///
    /// # Safety
    /// As [`Place::sums`].
    #[inline(always)]
    unsafe fn load<S: Simd, C: Codes, const N: usize>(&self, simd: S, i: usize) -> [S::V; N] {
        let mut vectors = [simd.splat(0.0); N];
        for (n, vector) in vectors.iter_mut().enumerate() {
            let token = self.token + n;
            // SAFETY: the caller's.
            *vector = unsafe { C::load(simd, self.codes.as_ptr().add(token * self.bytes), i) };
            if let Some(steps) = self.steps {
                *vector = simd.mul(simd.splat(steps[token]), *vector);
            }
        }
        vectors
    }
}

/// Adds vectors, weighed from token `first` on, to `sums`: N vectors of channels from `channel`, and those
/// `half` further.
#[inline(always)]
pub fn add<S: Simd, C: Codes, const R: usize, const N: usize>(
    simd: S,
    Batch { codes, tokens, .. }: Batch,
    ahead: &mut Ahead,
    (half, channel): (usize, usize),
    (weights, first): (&[[f32; TOKENS]; R], usize),
    sums: &mut [[[S::V; 2]; N]; R],
) {
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(channel + N * S::LANES <= half && codes.len() >= tokens * bytes);
    assert!(first + tokens <= TOKENS);
    for i in 0..tokens {
        ahead.ask(simd, 1);
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
