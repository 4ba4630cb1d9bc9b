//! Products of coded vectors in integers: what [`super::coded`] is made of.
//!
//! Queries have 24 bits of their largest channel and weights 24 bits of the largest weight of their
//! group, as three bytes, so that products with levels of 8 bits are about as exact as in f32. (With 16
//! bits, both were off by up to 2e-5.)

use std::arch::x86_64::*;

use super::{
    Avx512,
    avx512_simd::transpose_parts,
    spread::{self, Line},
};
use crate::simd::{Simd, attention::pieces::TOKENS};

/// Channels of a register.
pub const WIDTH: usize = spread::BLOCK;
/// Groups of 4 channels of a register.
const GROUPS: usize = WIDTH / 4;
/// Tokens of a vector of scores.
pub const LANES: usize = 16;
/// Bytes of a query's channel and of a weight, the highest first.
const BYTES: usize = 3;
/// The largest code of a query: its highest byte is 127.
const LARGEST_QUERY: f32 = 127.0 * 65_536.0;
/// The largest code of a weight, unsigned, with room for rounding.
const LARGEST_WEIGHT: f32 = 255.0 * 65_536.0;

/// Some queries in integers: q = scale * (65536 a + 256 b + c).
pub struct CodedQueries {
    pub len: usize,
    /// (D / 4, queries, BYTES): four channels of one byte each.
    groups: Vec<i32>,
    /// What levels that were made unsigned add too much to the sum of each byte, negated.
    bias: Vec<[i32; BYTES]>,
    scales: Vec<f32>,
}

impl CodedQueries {
    /// `data` (queries, D); D is a multiple of WIDTH.
    #[target_feature(enable = "avx512f")]
    pub fn new(data: &[f32], head_dim: usize) -> Self {
        let len = data.len() / head_dim;
        let mut queries = Self {
            len,
            groups: vec![0; data.len() / 4 * BYTES],
            bias: vec![[0; BYTES]; len],
            scales: vec![0.0; len],
        };
        for (i, query) in data.chunks_exact(head_dim).enumerate() {
            queries.put(i, query);
        }
        queries
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put(&mut self, index: usize, query: &[f32]) {
        let (runs, _) = query.as_chunks::<LANES>();
        let mut largest = _mm512_setzero_si512();
        for run in runs {
            // Magnitudes compare as integers; a NaN is the largest and reaches the scores.
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(floats(run))));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
        let inverse = if largest > 0.0 { LARGEST_QUERY / largest } else { 0.0 };
        self.scales[index] = largest / LARGEST_QUERY;
        for (i, run) in runs.iter().enumerate() {
            let scaled = _mm512_mul_ps(floats(run), _mm512_set1_ps(inverse));
            self.put_run(index, i * LANES / 4, _mm512_cvtps_epi32(scaled));
        }
    }

    /// 16 codes, whose groups begin with number `group`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put_run(&mut self, index: usize, group: usize, mut codes: __m512i) {
        for byte in (0..BYTES).rev() {
            let last = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(codes));
            codes = _mm512_srai_epi32::<8>(_mm512_sub_epi32(codes, last));
            self.bias[index][byte] -= 128 * _mm512_reduce_add_epi32(last);
            let mut fours = [0; LANES / 4];
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(fours.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(last)) };
            for (i, four) in fours.into_iter().enumerate() {
                self.groups[((group + i) * self.len + index) * BYTES + byte] = four;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats(run: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(run.as_ptr()) }
}

/// Rows of levels (tokens, WIDTH) to (groups, tokens): line g * 4 + i holds four channels of each of
/// 16 tokens.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose_keys(simd: Avx512, rows: &[Line; TOKENS], len: usize, out: &mut [Line]) {
    assert!(out.len() >= GROUPS * TOKENS / LANES);
    for token in (0..len).step_by(LANES) {
        let from: *const Line = rows[token..token + LANES].as_ptr();
        let to: *mut Line = &raw mut out[token / LANES];
        // SAFETY: 16 lines are read; line g * 4 is below the length just seen.
        unsafe { simd.transpose(from.cast(), WIDTH / 4, to.cast(), TOKENS) };
    }
}

/// Rows of levels (tokens, WIDTH) to runs of 4 tokens for each channel: lines 4 i.. hold tokens 4 i..
/// Line r of these has channels 4 r.. of each 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn interleave_values(rows: &[Line; TOKENS], len: usize, out: &mut [Line]) {
    for (rows, out) in rows.chunks_exact(4).zip(out.chunks_exact_mut(4)).take(len.div_ceil(4)) {
        let row = |i: usize| load(&rows[i]);
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        store(&mut out[0], _mm512_unpacklo_epi16(ab, cd));
        store(&mut out[1], _mm512_unpackhi_epi16(ab, cd));
        store(&mut out[2], _mm512_unpacklo_epi16(ab_high, cd_high));
        store(&mut out[3], _mm512_unpackhi_epi16(ab_high, cd_high));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, bytes: __m512i) {
    // SAFETY: a line is 64 aligned bytes.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), bytes) };
}

/// Scores of R queries with the keys (registers, groups, tokens), before the keys' scales.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn dots<const R: usize>(
    queries: &CodedQueries,
    keys: &[Line],
    len: usize,
    scores: &mut [[f32; TOKENS]; R],
) {
    let mut start = 0;
    while start < len {
        // Two vectors of tokens share what is loaded of the queries.
        if len - start > LANES {
            dots_of::<R, 2>(queries, keys, start, scores);
            start += 2 * LANES;
        } else {
            dots_of::<R, 1>(queries, keys, start, scores);
            start += LANES;
        }
    }
}

/// The same for N vectors of tokens from `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots_of<const R: usize, const N: usize>(
    queries: &CodedQueries,
    keys: &[Line],
    start: usize,
    scores: &mut [[f32; TOKENS]; R],
) {
    let first = start / LANES;
    assert!(queries.len == R && first + N <= TOKENS / LANES && start + N * LANES <= TOKENS);
    let mut sums = [[[_mm512_setzero_si512(); N]; BYTES]; R];
    for (sums, bias) in sums.iter_mut().zip(&queries.bias) {
        for (sums, bias) in sums.iter_mut().zip(bias) {
            *sums = [_mm512_set1_epi32(*bias); N];
        }
    }
    let (lines, _) = keys.as_chunks::<{ TOKENS / LANES }>();
    let bytes = queries.groups.as_chunks::<BYTES>().0.as_chunks::<R>().0;
    for (lines, bytes) in lines.iter().zip(bytes) {
        for r in 0..R {
            for byte in 0..BYTES {
                let query = _mm512_set1_epi32(bytes[r][byte]);
                for n in 0..N {
                    let sum = &mut sums[r][byte][n];
                    *sum = _mm512_dpbusd_epi32(*sum, load(&lines[first + n]), query);
                }
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            let sum = join(sums[r][0][n], sums[r][1][n], sums[r][2][n]);
            let score = _mm512_mul_ps(sum, _mm512_set1_ps(queries.scales[r]));
            let out = &mut scores[r][start + n * LANES..][..LANES];
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), score) };
        }
    }
}

/// Weights of R queries in integers: w = scale * (65536 a + 256 b + c).
pub struct CodedWeights<const R: usize> {
    bytes: [[[u8; TOKENS]; BYTES]; R],
    scales: [f32; R],
}

impl<const R: usize> CodedWeights<R> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new(weights: &[[f32; TOKENS]; R]) -> Self {
        let mut coded = Self { bytes: [[[0; TOKENS]; BYTES]; R], scales: [0.0; R] };
        for (r, weights) in weights.iter().enumerate() {
            let (runs, _) = weights.as_chunks::<LANES>();
            let mut largest = _mm512_setzero_ps();
            for run in runs {
                largest = _mm512_max_ps(floats(run), largest);
            }
            let largest = _mm512_reduce_max_ps(largest);
            let inverse = if largest > 0.0 { LARGEST_WEIGHT / largest } else { 0.0 };
            coded.scales[r] = largest / LARGEST_WEIGHT;
            for (i, run) in runs.iter().enumerate() {
                let scaled = _mm512_mul_ps(floats(run), _mm512_set1_ps(inverse));
                let codes = _mm512_cvtps_epi32(scaled);
                let bytes = [_mm512_srli_epi32::<16>(codes), _mm512_srli_epi32::<8>(codes), codes];
                for (codes, to) in bytes.into_iter().zip(&mut coded.bytes[r]) {
                    let to = &mut to[i * LANES..][..LANES];
                    // SAFETY: 16 bytes.
                    unsafe {
                        _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(codes));
                    }
                }
            }
        }
        coded
    }

    /// One byte of each of four tokens.
    #[inline]
    fn four(&self, r: usize, byte: usize, quad: usize) -> i32 {
        i32::from_le_bytes(self.bytes[r][byte].as_chunks::<4>().0[quad])
    }
}

/// Rows of R outputs: out = factor * out + weights V, for channels `channel..channel + WIDTH`.
/// `values`: quads of tokens, 4 lines each.
pub struct Outputs<'a, const R: usize> {
    pub out: &'a mut [f32],
    pub stride: usize,
    pub channel: usize,
    pub factors: &'a [f32; R],
}

impl<const R: usize> Outputs<'_, R> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn add(&mut self, weights: &CodedWeights<R>, values: &[Line], len: usize) {
        let (quads, _) = values.as_chunks::<4>();
        let quads = &quads[..len.div_ceil(4)];
        let low = line_sums::<R, 0>(weights, quads);
        let high = line_sums::<R, 2>(weights, quads);
        let Self { stride, channel, .. } = *self;
        for r in 0..R {
            let factor = _mm512_set1_ps(self.factors[r]);
            let parts = transpose_parts([low[r][0], low[r][1], high[r][0], high[r][1]]);
            for (i, part) in parts.into_iter().enumerate() {
                let out = &mut self.out[r * stride + channel + i * LANES..][..LANES];
                // SAFETY: 16 floats.
                unsafe {
                    let sum = _mm512_fmadd_ps(factor, _mm512_loadu_ps(out.as_ptr()), part);
                    _mm512_storeu_ps(out.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// Sums of lines N and N + 1 of each quad: so few that all stay in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn line_sums<const R: usize, const N: usize>(
    weights: &CodedWeights<R>,
    quads: &[[Line; 4]],
) -> [[__m512; 2]; R] {
    assert!(quads.len() <= TOKENS / 4);
    let mut sums = [[[_mm512_setzero_si512(); 2]; BYTES]; R];
    for (i, quad) in quads.iter().enumerate() {
        let values = [load(&quad[N]), load(&quad[N + 1])];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (byte, sums) in sums.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(weights.four(r, byte, i));
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = _mm512_dpbusd_epi32(*sum, four, values);
                }
            }
        }
    }
    let mut floats = [[_mm512_setzero_ps(); 2]; R];
    for r in 0..R {
        for n in 0..2 {
            let sum = join(sums[r][0][n], sums[r][1][n], sums[r][2][n]);
            floats[r][n] = _mm512_mul_ps(sum, _mm512_set1_ps(weights.scales[r]));
        }
    }
    floats
}

/// 65536 a + 256 b + c; the last two stay below 2^31.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(a: __m512i, b: __m512i, c: __m512i) -> __m512 {
    let low = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(b), c));
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), _mm512_set1_ps(65_536.0), low)
}

/// Sums of the squares of the levels of turned keys.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub fn square_sums(keys: &[Line], len: usize, out: &mut [f32; TOKENS]) {
    let (lines, _) = keys.as_chunks::<{ TOKENS / LANES }>();
    let (runs, _) = out.as_chunks_mut::<LANES>();
    for (i, run) in runs.iter_mut().enumerate().take(len.div_ceil(LANES)) {
        let mut sum = _mm512_setzero_si512();
        for lines in lines {
            let levels = _mm512_xor_si512(load(&lines[i]), _mm512_set1_epi8(-128));
            let levels = _mm512_abs_epi8(levels);
            sum = _mm512_dpbusd_epi32(sum, levels, levels);
        }
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(run.as_mut_ptr(), _mm512_cvtepi32_ps(sum)) };
    }
}
