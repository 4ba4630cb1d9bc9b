//! AVX-512's vectors for the attention kernels.

use std::arch::x86_64::*;

use super::{
    Avx512,
    simd::{EXP2_SERIES, Op, Simd},
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

/// Channels of a register of signed bytes.
const BLOCK: usize = 64;

/// How the codes of a block of channels become signed bytes.
pub enum Spread {
    /// They are such, from this byte on.
    Bytes(usize),
    Levels(Box<Look>),
}

/// How codes become indices into [`LEVELS`].
pub struct Look {
    /// First byte of the block's codes.
    start: usize,
    /// Brings the code bytes of a lane into its 8 bytes.
    bytes: [u8; BLOCK],
    /// The bit of the lane at which each code starts.
    shifts: [u8; BLOCK],
    masks: [u8; BLOCK],
    markers: [u8; BLOCK],
}

impl Spread {
    /// # Panics
    /// For F16.
    pub fn new(format: Format, dim: usize, block: usize) -> Self {
        match format {
            Format::F16 => panic!("F16 has no signed bytes"),
            Format::Int8 => Self::Bytes(block * BLOCK),
            Format::Levels(bits) => Self::Levels(Box::new(Look::new(&bits, dim, block))),
        }
    }

    /// The block's channels of one coded vector.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn levels(&self, codes: &[u8]) -> __m512i {
        match self {
            Self::Bytes(start) => load(codes[*start..].first_chunk().expect("a whole vector")),
            Self::Levels(look) => look.levels(codes),
        }
    }
}

impl Look {
    fn new(bits: &[u8; 8], dim: usize, block: usize) -> Self {
        let bits = |lane: usize| usize::from(lane_bits(bits, dim, lane));
        let first = block * BLOCK / LANE;
        let zeros = [0; BLOCK];
        let start = (0..first).map(bits).sum();
        let mut look = Self { start, bytes: zeros, shifts: zeros, masks: zeros, markers: zeros };
        let mut offset = 0;
        for lane in 0..BLOCK / LANE {
            let bits = bits(first + lane);
            for i in 0..LANE {
                let channel = lane * LANE + i;
                look.bytes[channel] = (offset + i.min(bits.saturating_sub(1))) as u8;
                look.shifts[channel] = (bits * i) as u8;
                look.masks[channel] = (1 << bits) - 1;
                look.markers[channel] = 1 << bits;
            }
            offset += bits;
        }
        look
    }

    /// Bytes to lanes, bits to bytes, and one look-up.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn levels(&self, codes: &[u8]) -> __m512i {
        const { assert!(LEVELS.len() == 2 * BLOCK) };
        let codes = &codes[self.start..];
        let mask = u64::MAX >> (BLOCK - codes.len().min(BLOCK));
        // SAFETY: the mask leaves out what lies behind the codes; LEVELS are two blocks.
        let (packed, low, high) = unsafe {
            (
                _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast()),
                _mm512_loadu_si512(LEVELS.as_ptr().cast()),
                _mm512_loadu_si512(LEVELS.as_ptr().add(BLOCK).cast()),
            )
        };
        let words = _mm512_permutexvar_epi8(load(&self.bytes), packed);
        let codes = _mm512_multishift_epi64_epi8(load(&self.shifts), words);
        let codes = _mm512_and_si512(codes, load(&self.masks));
        let index = _mm512_or_si512(codes, load(&self.markers));
        _mm512_permutex2var_epi8(low, index, high)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; BLOCK]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// [`Format::unpack`] of many vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack(format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
    let len = format.vector_bytes(dim);
    let vectors = codes.chunks_exact(len).zip(bytes.chunks_exact_mut(dim));
    if !dim.is_multiple_of(BLOCK) {
        return vectors.for_each(|(codes, to)| format.unpack(codes, to));
    }
    let spreads: Vec<_> = (0..dim / BLOCK).map(|block| Spread::new(format, dim, block)).collect();
    for (codes, to) in vectors {
        for (spread, to) in spreads.iter().zip(to.chunks_exact_mut(BLOCK)) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), spread.levels(codes)) };
        }
    }
}
