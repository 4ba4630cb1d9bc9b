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

/// Vectors of one format, and what to ask for from memory on the way: all at once it would hold up
/// the loads that are needed now.
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
        // SAFETY: whole vectors of codes, queries and sums, as just seen.
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

/// A token of a batch.
struct Place<'a> {
    codes: &'a [u8],
    bytes: usize,
    half: usize,
    token: usize,
    steps: Option<&'a [f32]>,
}

impl Place<'_> {
    /// N tokens from here; returns N.
    ///
    /// # Safety
    /// `codes`, `queries` (R, D), `sums` and `steps` have as much.
    #[inline(always)]
    unsafe fn sums<S: Simd, C: Codes, T: Term, const R: usize, const N: usize>(
        &self,
        simd: S,
        term: T,
        queries: &[f32],
        sums: &mut [f32],
    ) -> usize {
        let Self { codes, bytes, half, token, steps } = *self;
        let mut totals = [[simd.splat(0.0); R]; N];
        unsafe {
            let codes = codes.as_ptr().add(token * bytes);
            let mut i = 0;
            while i < half {
                let mut low = [simd.splat(0.0); N];
                let mut high = [simd.splat(0.0); N];
                for n in 0..N {
                    low[n] = C::load(simd, codes.add(n * bytes), i);
                    high[n] = C::load(simd, codes.add(n * bytes), half + i);
                    if let Some(steps) = steps {
                        let step = simd.splat(steps[token + n]);
                        (low[n], high[n]) = (simd.mul(step, low[n]), simd.mul(step, high[n]));
                    }
                }
                for r in 0..R {
                    let query = queries.as_ptr().add(r * 2 * half + i);
                    let (q_low, q_high) = (simd.load(query), simd.load(query.add(half)));
                    for n in 0..N {
                        totals[n][r] = term.add(simd, q_low, low[n], totals[n][r]);
                        totals[n][r] = term.add(simd, q_high, high[n], totals[n][r]);
                    }
                }
                i += S::LANES;
            }
            for (n, totals) in totals.iter().enumerate() {
                for (r, total) in totals.iter().enumerate() {
                    let at = (r * TOKENS + token + n) * S::LANES;
                    simd.store(sums.as_mut_ptr().add(at), *total);
                }
            }
        }
        N
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
