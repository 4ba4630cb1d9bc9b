//! Scores of a group of tokens to weights in integers, in registers: softmax for a few queries.

use std::{arch::x86_64::*, array::from_fn, ops::Range};

use super::{
    Avx512,
    integer::{LANES, floats, unit},
};
use crate::simd::{Simd, attention::pieces::TOKENS};

/// Vectors of a group.
const RUNS: usize = TOKENS / LANES;
/// Queries of a strip at most: as many as one figure each fits into 128 bits.
const MOST: usize = 4;

/// Weights of R queries in integers of B bytes: w = scale * (65536 a + 256 b + c), or
/// w = scale * a.
pub struct CodedWeights<const B: usize, const R: usize> {
    /// (R, B, LANES), the highest byte first: in lane i one byte of each of the tokens i, i + 16,
    /// i + 32 and i + 48.
    pub fours: [[[i32; LANES]; B]; R],
    pub scales: [f32; R],
}

impl<const B: usize, const R: usize> CodedWeights<B, R> {
    /// The largest code, unsigned, with room for rounding.
    const LARGEST: f32 = 255.0 * unit(B);

    /// `largest`: of each query's weights.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(weights: &[[f32; TOKENS]; R], largest: Figures) -> Self {
        let most = _mm512_set1_ps(Self::LARGEST);
        let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest.0, _mm512_setzero_ps());
        let inverses = Figures(_mm512_maskz_div_ps(positive, most, largest.0));
        let mut coded = Self {
            fours: [[[0; LANES]; B]; R],
            scales: Figures(_mm512_div_ps(largest.0, most)).array(),
        };
        for (r, weights) in weights.iter().enumerate() {
            let inverse = inverses.of(r);
            let code = |run| _mm512_cvtps_epi32(_mm512_mul_ps(of_run(weights, run), inverse));
            let bytes = bytes(from_fn(code));
            for (byte, fours) in bytes[3 - B..].iter().zip(&mut coded.fours[r]) {
                // SAFETY: 16 lanes.
                unsafe { _mm512_storeu_epi32(fours.as_mut_ptr(), *byte) };
            }
        }
        coded
    }
}

/// The third, second and lowest byte of each lane, side by side: a transpose of 4 x 4 bytes whose last
/// row nobody wants.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes([a, b, c, d]: [__m512i; RUNS]) -> [__m512i; 3] {
    const ODD_BYTES: u64 = 0xaaaa_aaaa_aaaa_aaaa;
    const ODD_WORDS: u32 = 0xaaaa_aaaa;
    let pair = |low, high| _mm512_mask_blend_epi8(ODD_BYTES, low, high);
    let ab = pair(a, _mm512_slli_epi32::<8>(b));
    let cd = pair(c, _mm512_slli_epi32::<8>(d));
    let second_ab = pair(_mm512_srli_epi32::<8>(a), b);
    let second_cd = pair(_mm512_srli_epi32::<8>(c), d);
    [
        _mm512_mask_blend_epi16(ODD_WORDS, _mm512_srli_epi32::<16>(ab), cd),
        _mm512_mask_blend_epi16(ODD_WORDS, second_ab, _mm512_slli_epi32::<16>(second_cd)),
        _mm512_mask_blend_epi16(ODD_WORDS, ab, _mm512_slli_epi32::<16>(cd)),
    ]
}

/// One figure of each query of a strip, in each part of 128 bits: what depends on a sum or a maximum of
/// lanes is computed for all of them at once, for one alone it is a chain of a hundred cycles.
#[derive(Clone, Copy)]
struct Figures(__m512);

impl Figures {
    /// The first lanes' figures.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(figures: &[f32]) -> Self {
        let mut padded = [0f32; MOST];
        padded[..figures.len()].copy_from_slice(figures);
        // SAFETY: 4 floats.
        Self(_mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(padded.as_ptr()) }))
    }

    /// All lanes of each vector joined by `join`.
    #[inline(always)]
    fn across<const R: usize>(rows: [__m512; R], join: impl Fn(__m512, __m512) -> __m512) -> Self {
        let [a, b, c, d] = from_fn(|i| rows[i.min(R - 1)]);
        // SAFETY: the caller runs with AVX-512.
        unsafe {
            let ab = join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = join(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let all = join(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
            let all = join(all, _mm512_shuffle_f32x4::<0x4e>(all, all));
            Self(join(all, _mm512_shuffle_f32x4::<0xb1>(all, all)))
        }
    }

    /// The figure of query `r` in all lanes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(self, r: usize) -> __m512 {
        match r {
            0 => _mm512_permute_ps::<0x00>(self.0),
            1 => _mm512_permute_ps::<0x55>(self.0),
            2 => _mm512_permute_ps::<0xaa>(self.0),
            _ => _mm512_permute_ps::<0xff>(self.0),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn array<const R: usize>(self) -> [f32; R] {
        let mut figures = [0f32; MOST];
        // SAFETY: 4 floats.
        unsafe { _mm_storeu_ps(figures.as_mut_ptr(), _mm512_castps512_ps128(self.0)) };
        from_fn(|r| figures[r])
    }
}

/// A group's tokens, all but their codes.
pub struct Tokens<'a> {
    pub len: usize,
    pub positions: &'a [u32; TOKENS],
    pub key_scales: &'a [f32; TOKENS],
    pub value_scales: &'a [f32; TOKENS],
}

/// Running figures of some queries: their largest scores, and the sums of their weights relative to
/// these.
pub struct Running<'a> {
    pub largest: &'a mut [f32],
    pub sums: &'a mut [f32],
}

impl Tokens<'_> {
    /// The weights of R queries, with the values' scales, and the factors that bring earlier sums to the
    /// same scale. `scores` are without the keys' scales, and are overwritten; `visible` is what each
    /// query sees, unless all see all of the group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub fn weigh<const B: usize, const R: usize>(
        &self,
        simd: Avx512,
        (scores, visible): (&mut [[f32; TOKENS]; R], Option<&[Range<u32>]>),
        Running { largest, sums }: Running,
    ) -> (CodedWeights<B, R>, [f32; R]) {
        const { assert!(R <= MOST) };
        let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
        let max = |a, b| simd.max(a, b);
        let mut most = [nothing; R];
        for (r, (scores, most)) in scores.iter_mut().zip(&mut most).enumerate() {
            for run in 0..RUNS {
                let seen = self.seen(run, visible.map(|visible| &visible[r]));
                let (score, scale) = (of_run(scores, run), of_run(self.key_scales, run));
                let score = _mm512_mask_mul_ps(nothing, seen, score, scale);
                *most = max(score, *most);
                put_run(scores, run, score);
            }
        }
        let old = Figures::load(largest);
        let new = Figures::across(most, max).0;
        let new = Figures(max(new, old.0));
        // Of a query that has seen nothing yet all weights are 0, relative to anything.
        let is_none = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(new.0, nothing);
        let shift = Figures(_mm512_mask_mov_ps(new.0, is_none, _mm512_setzero_ps()));
        let factors = Figures(simd.exp2(_mm512_sub_ps(old.0, shift.0)));
        let (mut totals, mut heaviest) = ([_mm512_setzero_ps(); R], [_mm512_setzero_ps(); R]);
        for (r, scores) in scores.iter_mut().enumerate() {
            let shift = shift.of(r);
            for run in 0..RUNS {
                let weight = simd.exp2(_mm512_sub_ps(of_run(scores, run), shift));
                totals[r] = _mm512_add_ps(totals[r], weight);
                let weight = _mm512_mul_ps(weight, of_run(self.value_scales, run));
                heaviest[r] = max(weight, heaviest[r]);
                put_run(scores, run, weight);
            }
        }
        let totals = Figures::across(totals, |a, b| simd.add(a, b));
        let totals = simd.fma(Figures::load(sums).0, factors.0, totals.0);
        sums.copy_from_slice(&Figures(totals).array::<R>());
        largest.copy_from_slice(&new.array::<R>());
        (CodedWeights::new(scores, Figures::across(heaviest, max)), factors.array())
    }

    /// Lanes of a run with a token that the query sees.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn seen(&self, run: usize, visible: Option<&Range<u32>>) -> __mmask16 {
        let here = self.len.saturating_sub(run * LANES).min(LANES);
        let here = ((1u32 << here) - 1) as __mmask16;
        let Some(visible) = visible else { return here };
        let positions = &self.positions.as_chunks::<LANES>().0[run];
        // SAFETY: 16 positions.
        let positions = unsafe { _mm512_loadu_epi32(positions.as_ptr().cast()) };
        let start = _mm512_set1_epi32(visible.start as i32);
        let end = _mm512_set1_epi32((visible.end - visible.start) as i32);
        _mm512_mask_cmplt_epu32_mask(here, _mm512_sub_epi32(positions, start), end)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn of_run(all: &[f32; TOKENS], run: usize) -> __m512 {
    floats(&all.as_chunks::<LANES>().0[run])
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put_run(all: &mut [f32; TOKENS], run: usize, figures: __m512) {
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(all.as_chunks_mut::<LANES>().0[run].as_mut_ptr(), figures) };
}
