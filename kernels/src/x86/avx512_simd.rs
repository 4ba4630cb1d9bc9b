//! AVX-512's vectors for the attention kernels.

use std::arch::x86_64::*;

use super::{
    Avx512,
    simd::{Op, Simd},
};
use crate::codec::{Format, LANE, LEVELS, lane_bits};

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
fn run<S: Simd, O: Op<S>>(simd: S, op: O) -> O::Out {
    op.run(simd)
}

// SAFETY of all blocks: a value of `Avx512` proves the features; pointers as the trait asks.
impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;

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
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
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
        unsafe { unpack(format, dim, codes, bytes) }
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

/// Swaps the off-diagonal blocks of 8, 4, 2 and 1 lanes in turn.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    let mut rows = [_mm512_setzero_ps(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: as the trait asks.
        *row = unsafe { _mm512_loadu_ps(from.add(i * from_stride)) };
    }
    let rows = swap_blocks::<1>(swap_blocks::<2>(swap_blocks::<4>(swap_blocks::<8>(rows))));
    for (i, row) in rows.iter().enumerate() {
        // SAFETY: as the trait asks.
        unsafe { _mm512_storeu_ps(to.add(i * to_stride), *row) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn swap_blocks<const HALF: usize>(mut rows: [__m512; 16]) -> [__m512; 16] {
    let (low, high) = halves(HALF);
    for i in 0..16 {
        if i & HALF == 0 {
            let (a, b) = (rows[i], rows[i + HALF]);
            rows[i] = _mm512_permutex2var_ps(a, low, b);
            rows[i + HALF] = _mm512_permutex2var_ps(a, high, b);
        }
    }
    rows
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

/// Channels of a register of signed bytes.
const BLOCK: usize = 64;

/// How codes become indices into [`LEVELS`], for a block of channels.
struct Spread {
    /// First byte of the codes.
    start: usize,
    /// Brings the code bytes of a lane into its 8 bytes.
    bytes: [u8; BLOCK],
    /// The bit of the lane at which each code starts.
    shifts: [u8; BLOCK],
    masks: [u8; BLOCK],
    markers: [u8; BLOCK],
}

impl Spread {
    fn new(bits: &[u8; 8], dim: usize, block: usize) -> Self {
        let bits = |lane: usize| usize::from(lane_bits(bits, dim, lane));
        let first = block * BLOCK / LANE;
        let start = (0..first).map(bits).sum();
        let mut spread = Self {
            start,
            bytes: [0; BLOCK],
            shifts: [0; BLOCK],
            masks: [0; BLOCK],
            markers: [0; BLOCK],
        };
        let mut offset = 0;
        for lane in 0..BLOCK / LANE {
            let bits = bits(first + lane);
            for i in 0..LANE {
                let channel = lane * LANE + i;
                spread.bytes[channel] = (offset + i.min(bits.saturating_sub(1))) as u8;
                spread.shifts[channel] = (bits * i) as u8;
                spread.masks[channel] = (1 << bits) - 1;
                spread.markers[channel] = 1 << bits;
            }
            offset += bits;
        }
        spread
    }
}

/// [`Format::unpack`] of many vectors: bytes to lanes, bits to bytes, and one look-up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack(format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
    let len = format.vector_bytes(dim);
    let vectors = codes.chunks_exact(len);
    let Format::Levels(bits) = format else {
        return vectors.zip(bytes.chunks_exact_mut(dim)).for_each(|(c, to)| format.unpack(c, to));
    };
    if !dim.is_multiple_of(BLOCK) {
        return vectors.zip(bytes.chunks_exact_mut(dim)).for_each(|(c, to)| format.unpack(c, to));
    }
    // SAFETY: each load is of an array of 64 bytes, or masked to what is left of the codes; each
    // store is to 64 bytes of a chunk of `dim`.
    unsafe {
        let load = |bytes: &[u8; BLOCK]| _mm512_loadu_si512(bytes.as_ptr().cast());
        let low = _mm512_loadu_si512(LEVELS.as_ptr().cast());
        let high = _mm512_loadu_si512(LEVELS.as_ptr().add(BLOCK).cast());
        for block in 0..dim / BLOCK {
            let spread = Spread::new(&bits, dim, block);
            let [lanes, shifts] = [load(&spread.bytes), load(&spread.shifts)];
            let [masks, markers] = [load(&spread.masks), load(&spread.markers)];
            let vectors = codes.chunks_exact(len).zip(bytes.chunks_exact_mut(dim));
            for (codes, to) in vectors {
                let codes = &codes[spread.start..];
                let mask = u64::MAX >> (BLOCK - codes.len().min(BLOCK));
                let packed = _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast());
                let words = _mm512_permutexvar_epi8(lanes, packed);
                let codes = _mm512_multishift_epi64_epi8(shifts, words);
                let index = _mm512_or_si512(_mm512_and_si512(codes, masks), markers);
                let levels = _mm512_permutex2var_epi8(low, index, high);
                _mm512_storeu_si512(to[block * BLOCK..][..BLOCK].as_mut_ptr().cast(), levels);
            }
        }
    }
}
