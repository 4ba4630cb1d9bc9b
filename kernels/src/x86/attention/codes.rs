//! What the kernels know of each format: how its codes become vectors of floats or of 8-bit levels.

use std::{arch::x86_64::*, ops::Range};

use super::{super::simd::Simd, pieces::TOKENS};
use crate::codec::{Format, NORMAL4};

/// One format's codes. Scales are the caller's.
pub trait Codes {
    const FORMAT: Format;

    /// Channels `i..` and `half + i..` of a vector.
    ///
    /// # Safety
    /// `codes` points to a vector of 2 * `half` channels, and i + LANES <= `half`.
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2];

    /// Channels `i..i + 32` and `half + i..half + i + 32`, as signed levels. Not for F16.
    ///
    /// # Safety
    /// The processor has AVX-512 BW; `codes` points to a vector of 2 * `half` channels, and i + 32 <=
    /// `half`.
    unsafe fn levels(codes: *const u8, half: usize, i: usize) -> __m512i;
}

/// Work on the codes of one format, which is a type of its own.
pub trait Visit {
    type Out;
    fn visit<C: Codes>(self) -> Self::Out;
}

/// Calls `visit` for the format's type: the table of formats.
#[inline(always)]
pub fn of<V: Visit>(format: Format, visit: V) -> V::Out {
    match format {
        Format::F16 => visit.visit::<F16s>(),
        Format::Int8 => visit.visit::<Int8s>(),
        Format::Normal4 => visit.visit::<Normal4s>(),
    }
}

struct F16s;
struct Int8s;
struct Normal4s;

/// LANES bytes.
///
/// # Safety
/// `from` points to them.
#[inline(always)]
unsafe fn load<S: Simd>(from: *const u8) -> __m128i {
    // SAFETY: as asked; SSE2 is part of x86-64.
    unsafe {
        if S::LANES == 16 { _mm_loadu_si128(from.cast()) } else { _mm_loadl_epi64(from.cast()) }
    }
}

// SAFETY of all blocks: as the trait asks; a `Simd` proves AVX2.
impl Codes for F16s {
    const FORMAT: Format = Format::F16;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2] {
        unsafe { [simd.load_f16(codes.add(2 * i)), simd.load_f16(codes.add(2 * (half + i)))] }
    }

    #[inline(always)]
    unsafe fn levels(_: *const u8, _: usize, _: usize) -> __m512i {
        unreachable!("F16 has no levels")
    }
}

// SAFETY of all blocks: as above.
impl Codes for Int8s {
    const FORMAT: Format = Format::Int8;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, half: usize, i: usize) -> [S::V; 2] {
        unsafe { [i, half + i].map(|i| simd.floats_of_i8(load::<S>(codes.add(i)))) }
    }

    #[inline(always)]
    unsafe fn levels(codes: *const u8, half: usize, i: usize) -> __m512i {
        unsafe {
            let low = _mm256_loadu_si256(codes.add(i).cast());
            let high = _mm256_loadu_si256(codes.add(half + i).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
    }
}

/// The levels of [`NORMAL4`] by code.
const NORMAL4_LEVELS: [i8; 16] = {
    let mut levels = [0; 16];
    let mut code = 0;
    while code < 16 {
        levels[code] = NORMAL4[code] as i8;
        code += 1;
    }
    levels
};

// SAFETY of all blocks: as above.
impl Codes for Normal4s {
    const FORMAT: Format = Format::Normal4;

    #[inline(always)]
    unsafe fn pair<S: Simd>(simd: S, codes: *const u8, _: usize, i: usize) -> [S::V; 2] {
        unsafe {
            let table = _mm_loadu_si128(NORMAL4_LEVELS.as_ptr().cast());
            let codes = load::<S>(codes.add(i));
            [codes, _mm_srli_epi16::<4>(codes)].map(|codes| {
                let codes = _mm_and_si128(codes, _mm_set1_epi8(15));
                simd.floats_of_i8(_mm_shuffle_epi8(table, codes))
            })
        }
    }

    #[inline(always)]
    unsafe fn levels(codes: *const u8, _: usize, i: usize) -> __m512i {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(NORMAL4_LEVELS.as_ptr().cast()));
            let codes = _mm512_broadcast_i64x4(_mm256_loadu_si256(codes.add(i).cast()));
            let codes = _mm512_mask_srli_epi16::<4>(codes, 0xffff_0000, codes);
            _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)))
        }
    }
}

/// Vectors of one format, and what to ask for from memory on the way: all at once it would hold up
/// the loads that are needed now.
pub struct Batch<'a> {
    pub codes: &'a [u8],
    pub tokens: usize,
    pub ahead: &'a [u8],
}

const LINE: usize = 64;

/// Products of `queries` (R, D) with the vectors of a batch: partial sums (R, TOKENS, LANES).
#[inline(always)]
pub fn dots<S: Simd, C: Codes, const R: usize>(
    simd: S,
    queries: &[f32],
    Batch { codes, tokens, ahead }: Batch,
    sums: &mut [f32],
) {
    let step = ahead.len().div_ceil(LINE).div_ceil(tokens.max(1)).max(1) * LINE;
    let mut ahead = ahead.chunks(step);
    let half = queries.len() / R / 2;
    let bytes = C::FORMAT.vector_bytes(2 * half);
    assert!(half.is_multiple_of(S::LANES) && codes.len() >= tokens * bytes);
    assert!(tokens == 0 || sums.len() >= ((R - 1) * TOKENS + tokens) * S::LANES);
    for token in 0..tokens {
        let mut totals = [simd.splat(0.0); R];
        simd.prefetch(ahead.next().unwrap_or_default());
        // SAFETY: whole vectors of codes, queries and sums, as just seen.
        unsafe {
            let codes = codes.as_ptr().add(token * bytes);
            for i in (0..half).step_by(S::LANES) {
                let [low, high] = C::pair(simd, codes, half, i);
                for (r, total) in totals.iter_mut().enumerate() {
                    let query = queries.as_ptr().add(r * 2 * half + i);
                    *total = simd.fma(simd.load(query), low, *total);
                    *total = simd.fma(simd.load(query.add(half)), high, *total);
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
