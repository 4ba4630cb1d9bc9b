//! Vectors of F16 pages as integers with a scale each: levels of 8 bits, or words of 16.

use std::arch::x86_64::*;

use super::{
    Avx512,
    integer::LANES,
    spread::{BLOCK, Line, Wanted},
};
use crate::simd::attention::pieces::Ahead;

pub const LARGEST_LEVEL: f32 = 127.0;
pub const LARGEST_WORD: f32 = 32_767.0;

/// Vectors (tokens, dim) of F16, little-endian.
pub struct Vectors<'a> {
    pub codes: &'a [u8],
    pub dim: usize,
}

impl Vectors<'_> {
    /// What an integer of each vector is worth, if its largest channel becomes `largest`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn to_steps(&self, largest: f32, steps: &mut [f32]) {
        for (vector, step) in self.each().zip(steps) {
            let most = |most, run| _mm512_max_ps(most, _mm512_abs_ps(load(run)));
            let most = runs(vector).iter().fold(_mm512_setzero_ps(), most);
            *step = _mm512_reduce_max_ps(most) / largest;
        }
    }

    /// Block `i` of 64 channels of each vector, a line each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn to_levels(
        &self,
        i: usize,
        steps: &[f32],
        Wanted { simd, flip, ahead }: Wanted,
        rows: &mut [Line],
    ) {
        for ((vector, step), row) in self.each().zip(steps).zip(rows) {
            ahead.ask(simd, 1);
            let inverse = inverse(*step);
            let runs = &runs(vector)[i * BLOCK / LANES..];
            for (run, levels) in runs.iter().zip(row.0.as_chunks_mut::<LANES>().0) {
                let codes = _mm512_cvtps_epi32(_mm512_mul_ps(load(run), inverse));
                let bytes = _mm_xor_si128(_mm512_cvtepi32_epi8(codes), _mm_set1_epi8(flip as i8));
                // SAFETY: 16 bytes.
                unsafe { _mm_storeu_si128(levels.as_mut_ptr().cast(), bytes) };
            }
        }
    }

    /// Block `i` of 32 channels of each vector, a line each.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn to_words(
        &self,
        i: usize,
        steps: &[f32],
        (simd, ahead): (Avx512, &mut Ahead),
        rows: &mut [Line],
    ) {
        const WORD: usize = 2;
        for ((vector, step), row) in self.each().zip(steps).zip(rows) {
            ahead.ask(simd, 1);
            let inverse = inverse(*step);
            let runs = &runs(vector)[i * BLOCK / WORD / LANES..];
            for (run, words) in runs.iter().zip(row.0.as_chunks_mut::<{ WORD * LANES }>().0) {
                let codes = _mm512_cvtps_epi32(_mm512_mul_ps(load(run), inverse));
                let codes = _mm512_cvtepi32_epi16(codes);
                // SAFETY: 32 bytes.
                unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), codes) };
            }
        }
    }

    #[inline]
    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.codes.chunks_exact(2 * self.dim)
    }
}

#[inline]
fn runs(vector: &[u8]) -> &[[u8; 2 * LANES]] {
    vector.as_chunks().0
}

#[inline]
#[target_feature(enable = "avx512f")]
fn inverse(step: f32) -> __m512 {
    _mm512_set1_ps(if step > 0.0 { 1.0 / step } else { 0.0 })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(run: &[u8; 2 * LANES]) -> __m512 {
    // SAFETY: 16 halves of 2 bytes.
    let halves = unsafe { _mm256_loadu_si256(run.as_ptr().cast()) };
    // `_mm512_cvtph_ps` suppresses exceptions, and so cannot load as well.
    _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves)
}
