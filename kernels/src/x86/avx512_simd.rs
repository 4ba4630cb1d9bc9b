//! AVX-512's vectors for the attention kernels.

use std::arch::x86_64::*;

use super::{Avx512, prefetch, spread};
use crate::{
    codec::Format,
    simd::{EXP2_SERIES, Op, Simd},
};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
fn run<S: Simd, O: Op<S>>(simd: S, op: O) -> O::Out {
    op.run(simd)
}

// SAFETY of all blocks: a value of `Avx512` proves the features; pointers as the trait asks.
impl Simd for Avx512 {
    type V = __m512;
    const NAME: &str = "avx512";
    const LANES: usize = 16;

    #[inline(always)]
    fn wide(self) -> Option<Avx512> {
        Some(self)
    }

    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Out {
        unsafe { run(self, op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn largest_lane(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn sum_of_lanes(self, v: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn exp2(self, v: __m512) -> __m512 {
        unsafe {
            let whole = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(v);
            // Where v is infinite their difference is no number; the power is 0 for any.
            let r = _mm512_max_ps(_mm512_sub_ps(v, whole), _mm512_set1_ps(-0.5));
            let mut p = _mm512_set1_ps(EXP2_SERIES[0]);
            for c in &EXP2_SERIES[1..] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
            }
            _mm512_scalef_ps(p, whole)
        }
    }

    #[inline(always)]
    fn clamp_f16(self, v: __m512) -> __m512 {
        // A NaN in the second operand is what min and max return.
        unsafe {
            let limit = _mm512_set1_ps(65504.0);
            _mm512_max_ps(_mm512_set1_ps(-65504.0), _mm512_min_ps(limit, v))
        }
    }

    #[inline(always)]
    fn swap(self, v: __m512, half: usize) -> __m512 {
        unsafe {
            _mm512_permutexvar_ps(_mm512_xor_si512(iota(), _mm512_set1_epi32(half as i32)), v)
        }
    }

    #[inline(always)]
    fn signs(self, half: usize) -> __m512 {
        unsafe {
            let negative = _mm512_test_epi32_mask(iota(), _mm512_set1_epi32(half as i32));
            _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0), _mm512_set1_ps(-1.0))
        }
    }

    #[inline(always)]
    fn prefetch_at(self, address: *const u8) {
        prefetch(address);
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        // `_mm512_cvtph_ps` suppresses exceptions, and so cannot load as well.
        unsafe {
            let halves = _mm256_loadu_si256(from.cast());
            _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves)
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: __m512) {
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm256_storeu_si256(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    fn unpack(self, format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
        unsafe { spread::unpack(self, format, dim, codes, bytes) }
    }

    #[inline(always)]
    unsafe fn row_sums(self, rows: *const f32) -> __m512 {
        unsafe { row_sums(rows) }
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        unsafe { transpose(from, from_stride, to, to_stride) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn iota() -> __m512i {
    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
}

/// Rows i and i + HALF share a vector after each step, folded to half their lanes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn row_sums(rows: *const f32) -> __m512 {
    // SAFETY: as the trait asks.
    let mut rows: [__m512; 16] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(rows.add(16 * i)) });
    fold_rows::<8>(&mut rows);
    fold_rows::<4>(&mut rows);
    fold_rows::<2>(&mut rows);
    fold_rows::<1>(&mut rows);
    rows[0]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fold_rows<const HALF: usize>(rows: &mut [__m512; 16]) {
    let (low, high) = halves(HALF);
    for i in 0..HALF {
        let (a, b) = (rows[i], rows[i + HALF]);
        let (low, high) = (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b));
        rows[i] = _mm512_add_ps(low, high);
    }
}

/// Squares of 4 inside the four parts of 128 bits, then the squares of these parts: shuffles that
/// need no indices.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    let mut fours = [[_mm512_setzero_ps(); 4]; 4];
    for (i, four) in fours.iter_mut().enumerate() {
        // SAFETY: as the trait asks.
        let rows = std::array::from_fn(|j| unsafe {
            _mm512_loadu_ps(from.add((4 * i + j) * from_stride))
        });
        *four = transpose_inside(rows);
    }
    for column in 0..4 {
        let parts = transpose_parts(fours.map(|four| four[column]));
        for (part, row) in parts.into_iter().enumerate() {
            // SAFETY: as the trait asks.
            unsafe { _mm512_storeu_ps(to.add((4 * part + column) * to_stride), row) };
        }
    }
}

/// Transposes the 4 x 4 lanes of each part of 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_inside([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let pair = |low: bool, a, b| match low {
        true => _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
        false => _mm512_castps_pd(_mm512_unpackhi_ps(a, b)),
    };
    let (ab, cd) = (pair(true, a, b), pair(true, c, d));
    let (ab_high, cd_high) = (pair(false, a, b), pair(false, c, d));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
    ]
}

/// Transposes the 4 x 4 parts of 128 bits of four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose_parts([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let (ab, ab_high) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
    let (cd, cd_high) = (_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
    [
        _mm512_shuffle_f32x4::<0x88>(ab, cd),
        _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
        _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
    ]
}

/// Indices into two rows: lanes without bit `half` of both, and lanes with it.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(half: usize) -> (__m512i, __m512i) {
    let bit = _mm512_set1_epi32(half as i32);
    let of_second = _mm512_test_epi32_mask(iota(), bit);
    let other = _mm512_set1_epi32(16);
    let low = _mm512_andnot_si512(bit, iota());
    let low = _mm512_mask_add_epi32(low, of_second, low, other);
    (low, _mm512_or_si512(low, bit))
}
