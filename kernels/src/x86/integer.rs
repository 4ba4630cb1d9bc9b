//! Products of coded vectors in integers: what [`super::coded`] is made of.
//!
//! Queries have 24 bits of their largest channel and weights ([`super::weights`]) 24 bits of the largest
//! weight of their group, as three bytes, so that products with levels of 8 bits are about as exact as
//! in f32. (With 16 bits, both were off by up to 2e-5.) Where activations of 8 bits are asked for,
//! queries have two bytes and weights one.

use std::{arch::x86_64::*, array::from_fn};

use super::{
    Avx512,
    avx512_simd::transpose_parts,
    spread::{self, Line},
    weights::CodedWeights,
};
use crate::simd::{Simd, attention::pieces::TOKENS};

/// Channels of a register.
pub const WIDTH: usize = spread::BLOCK;
/// Groups of 4 channels of a register.
const GROUPS: usize = WIDTH / 4;
/// Tokens of a vector of scores.
pub const LANES: usize = 16;
/// The weight of the highest of so many bytes.
pub const fn unit(bytes: usize) -> f32 {
    (1 << (8 * (bytes - 1))) as f32
}

/// Some queries in integers of B bytes, the highest first: q = scale * (65536 a + 256 b + c), or
/// q = scale * (256 a + b).
#[derive(Default)]
pub struct CodedQueries<const B: usize> {
    pub len: usize,
    /// (D / 4, queries, B): four channels of one byte each.
    groups: Vec<i32>,
    /// What levels that were made unsigned add too much to the sum of each byte, negated.
    bias: Vec<[i32; B]>,
    scales: Vec<f32>,
}

impl<const B: usize> CodedQueries<B> {
    /// The largest code: its highest byte is 127.
    const LARGEST: f32 = 127.0 * unit(B);

    /// Holds `data` (queries, D) from now on; D is a multiple of WIDTH.
    #[target_feature(enable = "avx512f")]
    pub fn fill(&mut self, data: &[f32], head_dim: usize) {
        self.len = data.len() / head_dim;
        self.groups.resize(data.len() / 4 * B, 0);
        self.bias.clear();
        self.bias.resize(self.len, [0; B]);
        self.scales.resize(self.len, 0.0);
        for (i, query) in data.chunks_exact(head_dim).enumerate() {
            self.put(i, query);
        }
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
        let inverse = if largest > 0.0 { Self::LARGEST / largest } else { 0.0 };
        self.scales[index] = largest / Self::LARGEST;
        for (i, run) in runs.iter().enumerate() {
            let scaled = _mm512_mul_ps(floats(run), _mm512_set1_ps(inverse));
            self.put_run(index, i * LANES / 4, _mm512_cvtps_epi32(scaled));
        }
    }

    /// 16 codes, whose groups begin with number `group`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put_run(&mut self, index: usize, group: usize, mut codes: __m512i) {
        for byte in (0..B).rev() {
            let last = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(codes));
            codes = _mm512_srai_epi32::<8>(_mm512_sub_epi32(codes, last));
            self.bias[index][byte] -= 128 * _mm512_reduce_add_epi32(last);
            let mut fours = [0; LANES / 4];
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(fours.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(last)) };
            for (i, four) in fours.into_iter().enumerate() {
                self.groups[((group + i) * self.len + index) * B + byte] = four;
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub fn floats(run: &[f32; LANES]) -> __m512 {
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

/// Rows of levels (tokens, WIDTH) to fours of tokens for each channel: lines 4 i.. hold tokens i, i + 16,
/// i + 32 and i + 48, as weights are coded. Line r of these has channels 4 r.. of each 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub fn interleave_values(rows: &[Line; TOKENS], len: usize, out: &mut [Line]) {
    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate().take(num_fours(len)) {
        let row = |run: usize| load(&rows[run * LANES + i]);
        let (a, b, c, d) = (row(0), row(1), row(2), row(3));
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        store(&mut out[0], _mm512_unpacklo_epi16(ab, cd));
        store(&mut out[1], _mm512_unpackhi_epi16(ab, cd));
        store(&mut out[2], _mm512_unpacklo_epi16(ab_high, cd_high));
        store(&mut out[3], _mm512_unpackhi_epi16(ab_high, cd_high));
    }
}

/// Fours that hold the first `len` tokens of a group.
#[inline]
fn num_fours(len: usize) -> usize {
    const { assert!(TOKENS == 4 * LANES) };
    len.min(LANES)
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
pub fn dots<const B: usize, const R: usize>(
    queries: &CodedQueries<B>,
    keys: &[Line],
    len: usize,
    scores: &mut [[f32; TOKENS]; R],
) {
    let mut start = 0;
    while start < len {
        // Two vectors of tokens share what is loaded of the queries.
        if len - start > LANES {
            dots_of::<B, R, 2>(queries, keys, start, scores);
            start += 2 * LANES;
        } else {
            dots_of::<B, R, 1>(queries, keys, start, scores);
            start += LANES;
        }
    }
}

/// The same for N vectors of tokens from `start`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots_of<const B: usize, const R: usize, const N: usize>(
    queries: &CodedQueries<B>,
    keys: &[Line],
    start: usize,
    scores: &mut [[f32; TOKENS]; R],
) {
    let first = start / LANES;
    assert!(queries.len == R && first + N <= TOKENS / LANES && start + N * LANES <= TOKENS);
    let mut sums = [[[_mm512_setzero_si512(); N]; B]; R];
    for (sums, bias) in sums.iter_mut().zip(&queries.bias) {
        for (sums, bias) in sums.iter_mut().zip(bias) {
            *sums = [_mm512_set1_epi32(*bias); N];
        }
    }
    let (lines, _) = keys.as_chunks::<{ TOKENS / LANES }>();
    let bytes = queries.groups.as_chunks::<B>().0.as_chunks::<R>().0;
    for (lines, bytes) in lines.iter().zip(bytes) {
        for r in 0..R {
            for byte in 0..B {
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
            let sum = join(from_fn(|byte| sums[r][byte][n]) as [_; B]);
            let score = _mm512_mul_ps(sum, _mm512_set1_ps(queries.scales[r]));
            let out = &mut scores[r][start + n * LANES..][..LANES];
            // SAFETY: 16 floats.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), score) };
        }
    }
}

/// Rows of R outputs: out = factor * out + weights V, for channels `channel..channel + WIDTH`.
/// `values`: fours of tokens, 4 lines each.
pub struct Outputs<'a, const R: usize> {
    pub out: &'a mut [f32],
    pub stride: usize,
    pub channel: usize,
    pub factors: &'a [f32; R],
}

impl<const R: usize> Outputs<'_, R> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn add<const B: usize>(
        &mut self,
        weights: &CodedWeights<B, R>,
        values: &[Line],
        len: usize,
    ) {
        let (fours, _) = values.as_chunks::<4>();
        let fours = &fours[..num_fours(len)];
        let low = line_sums::<B, R, 0>(weights, fours);
        let high = line_sums::<B, R, 2>(weights, fours);
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

/// Sums of lines N and N + 1 of each four: so few that all stay in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn line_sums<const B: usize, const R: usize, const N: usize>(
    weights: &CodedWeights<B, R>,
    fours: &[[Line; 4]],
) -> [[__m512; 2]; R] {
    assert!(fours.len() <= LANES);
    let mut sums = [[[_mm512_setzero_si512(); 2]; B]; R];
    for (i, lines) in fours.iter().enumerate() {
        let values = [load(&lines[N]), load(&lines[N + 1])];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (byte, sums) in sums.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(weights.fours[r][byte][i]);
                for (sum, values) in sums.iter_mut().zip(values) {
                    *sum = _mm512_dpbusd_epi32(*sum, four, values);
                }
            }
        }
    }
    let mut floats = [[_mm512_setzero_ps(); 2]; R];
    for r in 0..R {
        for n in 0..2 {
            let sum = join(from_fn(|byte| sums[r][byte][n]) as [_; B]);
            floats[r][n] = _mm512_mul_ps(sum, _mm512_set1_ps(weights.scales[r]));
        }
    }
    floats
}

/// 65536 a + 256 b + c, 256 a + b or a, where the last two together stay below 2^31.
#[inline]
#[target_feature(enable = "avx512f")]
fn join<const B: usize>(sums: [__m512i; B]) -> __m512 {
    let pair = |a, b| _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(a), b));
    match &sums[..] {
        [a] => _mm512_cvtepi32_ps(*a),
        [a, b] => pair(*a, *b),
        [a, b, c] => {
            let unit = _mm512_set1_ps(unit(B));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(*a), unit, pair(*b, *c))
        }
        _ => unreachable!("integers have one to three bytes"),
    }
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
