//! AVX2's vectors for the attention kernels.

use std::arch::x86_64::*;

use super::{Avx2, avx2_spread, prefetch};
use crate::{
    codec::Format,
    simd::{EXP2_SERIES, Op, Simd},
};

#[target_feature(enable = "avx2,fma,f16c")]
fn run<S: Simd, O: Op<S>>(simd: S, op: O) -> O::Out {
    op.run(simd)
}

// SAFETY of all blocks: a value of `Avx2` proves the features; pointers as the trait asks.
impl Simd for Avx2 {
    type V = __m256;
    const NAME: &str = "avx2";
    const LANES: usize = 8;

    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Out {
        unsafe { run(self, op) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn largest_lane(self, v: __m256) -> f32 {
        unsafe {
            let v = _mm256_max_ps(v, _mm256_permute2f128_ps::<1>(v, v));
            let v = _mm256_max_ps(v, _mm256_shuffle_ps::<0x4e>(v, v));
            _mm256_cvtss_f32(_mm256_max_ps(v, _mm256_shuffle_ps::<0xb1>(v, v)))
        }
    }

    #[inline(always)]
    fn sum_of_lanes(self, v: __m256) -> f32 {
        unsafe {
            let v = _mm256_add_ps(v, _mm256_permute2f128_ps::<1>(v, v));
            let v = _mm256_add_ps(v, _mm256_shuffle_ps::<0x4e>(v, v));
            _mm256_cvtss_f32(_mm256_add_ps(v, _mm256_shuffle_ps::<0xb1>(v, v)))
        }
    }

    #[inline(always)]
    fn exp2(self, v: __m256) -> __m256 {
        unsafe {
            let least = _mm256_set1_ps(-126.0);
            let is_normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(v, least);
            let v = _mm256_max_ps(v, least);
            let whole = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            let r = _mm256_sub_ps(v, whole);
            let mut p = _mm256_set1_ps(EXP2_SERIES[0]);
            for c in &EXP2_SERIES[1..] {
                p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
            }
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(whole));
            let power = _mm256_add_epi32(_mm256_castps_si256(p), exponent);
            _mm256_and_ps(_mm256_castsi256_ps(power), is_normal)
        }
    }

    #[inline(always)]
    fn clamp_f16(self, v: __m256) -> __m256 {
        // A NaN in the second operand is what min and max return.
        unsafe {
            let limit = _mm256_set1_ps(65504.0);
            _mm256_max_ps(_mm256_set1_ps(-65504.0), _mm256_min_ps(limit, v))
        }
    }

    #[inline(always)]
    fn swap(self, v: __m256, half: usize) -> __m256 {
        unsafe {
            let index = _mm256_xor_si256(iota(), _mm256_set1_epi32(half as i32));
            _mm256_permutevar8x32_ps(v, index)
        }
    }

    #[inline(always)]
    fn signs(self, half: usize) -> __m256 {
        unsafe {
            let bit = _mm256_set1_epi32(half as i32);
            let negative = _mm256_cmpeq_epi32(_mm256_and_si256(iota(), bit), bit);
            let (plus, minus) = (_mm256_set1_ps(1.0), _mm256_set1_ps(-1.0));
            _mm256_blendv_ps(plus, minus, _mm256_castsi256_ps(negative))
        }
    }

    #[inline(always)]
    fn prefetch_at(self, address: *const u8) {
        prefetch(address);
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: __m256) {
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            _mm_storeu_si128(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }

    #[inline(always)]
    fn unpack(self, format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
        unsafe { avx2_spread::unpack(format, dim, codes, bytes) }
    }

    #[inline(always)]
    unsafe fn row_sums(self, rows: *const f32) -> __m256 {
        unsafe {
            let r: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(rows.add(8 * i)));
            let fours = |i: usize| {
                let (a, b) = (_mm256_hadd_ps(r[i], r[i + 1]), _mm256_hadd_ps(r[i + 2], r[i + 3]));
                _mm256_hadd_ps(a, b)
            };
            let (a, b) = (fours(0), fours(4));
            let (low, high) =
                (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            _mm256_add_ps(low, high)
        }
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
#[target_feature(enable = "avx2")]
fn iota() -> __m256i {
    _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
}

/// Pairs of rows, pairs of pairs, then halves of vectors.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: as the trait asks.
    let r: [__m256; 8] =
        std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * from_stride)) });
    let pairs: [__m256; 8] = std::array::from_fn(|i| {
        let (a, b) = (r[i & !1], r[i | 1]);
        if i & 1 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
    });
    // Column c of rows 4j..4j + 4, and of column c + 4 in the upper half.
    let fours: [__m256; 8] = std::array::from_fn(|i| {
        let (j, c) = (i / 4 * 4, i % 4);
        let (a, b) = (pairs[j + c / 2], pairs[j + 2 + c / 2]);
        if c & 1 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xee>(a, b) }
    });
    for i in 0..8 {
        let (a, b) = (fours[i % 4], fours[4 + i % 4]);
        let row = if i < 4 {
            _mm256_permute2f128_ps::<0x20>(a, b)
        } else {
            _mm256_permute2f128_ps::<0x31>(a, b)
        };
        // SAFETY: as the trait asks.
        unsafe { _mm256_storeu_ps(to.add(i * to_stride), row) };
    }
}
