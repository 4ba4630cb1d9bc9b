//! Products of many queries with the keys of F16 pages, both in 16 bits: two channels a lane, at twice
//! the rate of f32.

use std::arch::x86_64::*;

use super::{
    floats::LARGEST_WORD,
    integer::{LANES, floats},
    spread::Line,
};
use crate::simd::attention::pieces::TOKENS;

/// Vectors of a group.
const RUNS: usize = TOKENS / LANES;

/// Some queries in integers of 16 bits.
#[derive(Default)]
pub struct PairedQueries {
    pub len: usize,
    /// (D / 2, queries): two channels.
    pairs: Vec<i32>,
    scales: Vec<f32>,
}

impl PairedQueries {
    /// Holds `data` (queries, D) from now on; D is a multiple of 16.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn fill(&mut self, data: &[f32], head_dim: usize) {
        self.len = data.len() / head_dim;
        self.pairs.resize(data.len() / 2, 0);
        self.scales.resize(self.len, 0.0);
        let norm = longest(head_dim);
        for (i, query) in data.chunks_exact(head_dim).enumerate() {
            self.put(i, query, norm);
        }
    }

    /// Scaled to a vector of this `norm`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn put(&mut self, index: usize, query: &[f32], norm: f32) {
        let (runs, _) = query.as_chunks::<LANES>();
        let squares = runs
            .iter()
            .fold(_mm512_setzero_ps(), |sum, run| _mm512_fmadd_ps(floats(run), floats(run), sum));
        let length = _mm512_reduce_add_ps(squares).sqrt();
        let inverse = if length > 0.0 { norm / length } else { 0.0 };
        self.scales[index] = length / norm;
        for (i, run) in runs.iter().enumerate() {
            let codes = _mm512_cvtps_epi32(_mm512_mul_ps(floats(run), _mm512_set1_ps(inverse)));
            let mut words = [0i16; LANES];
            // SAFETY: 16 words.
            unsafe {
                _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(codes));
            }
            for (j, [low, high]) in words.as_chunks::<2>().0.iter().enumerate() {
                let pair = i32::from(*low as u16) | i32::from(*high) << 16;
                self.pairs[(i * LANES / 2 + j) * self.len + index] = pair;
            }
        }
    }

    /// Scores of R queries with the keys (pairs of channels, tokens), before the keys' scales.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub fn dots<const R: usize>(&self, keys: &[Line], len: usize, scores: &mut [[f32; TOKENS]; R]) {
        assert!(self.len == R && len <= TOKENS);
        let mut sums = [[_mm512_setzero_si512(); RUNS]; R];
        let (keys, _) = keys.as_chunks::<RUNS>();
        for (lines, pairs) in keys.iter().zip(self.pairs.as_chunks::<R>().0) {
            for (sums, pair) in sums.iter_mut().zip(pairs) {
                let pair = _mm512_set1_epi32(*pair);
                for (sum, line) in sums.iter_mut().zip(lines) {
                    // SAFETY: a line is 64 aligned bytes.
                    let line = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
                    *sum = _mm512_dpwssd_epi32(*sum, line, pair);
                }
            }
        }
        for ((sums, scale), scores) in sums.iter().zip(&self.scales).zip(scores) {
            for (sum, scores) in sums.iter().zip(scores.as_chunks_mut::<LANES>().0) {
                let score = _mm512_mul_ps(_mm512_cvtepi32_ps(*sum), _mm512_set1_ps(*scale));
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), score) };
            }
        }
    }
}

/// The longest query whose product with any key stays below 2^31, by the Cauchy-Schwarz inequality: a
/// key's channels are at most [`LARGEST_WORD`], and rounding makes a query longer by at most half the
/// root of D.
fn longest(head_dim: usize) -> f32 {
    let root = (head_dim as f32).sqrt();
    (1u32 << 31) as f32 / (LARGEST_WORD * root) - root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::Avx512;

    #[test]
    fn no_product_of_the_largest_keys_and_queries_overflows() {
        if Avx512::new().is_none() {
            return;
        }
        for head_dim in [64, 128, 256] {
            let alike = vec![3.5f32; head_dim];
            let mut single = vec![0f32; head_dim];
            single[head_dim - 1] = -1e9;
            for query in [alike, single] {
                let mut queries = PairedQueries::default();
                // SAFETY: a value of `Avx512` proves the features.
                unsafe { queries.fill(&query, head_dim) };
                let key = i16::MAX.to_le_bytes();
                let line = Line(std::array::from_fn(|i| key[i % 2]));
                let keys = vec![line; head_dim / 2 * RUNS];
                let mut scores = [[0f32; TOKENS]];
                // SAFETY: as above.
                unsafe { queries.dots(&keys, TOKENS, &mut scores) };
                let wanted = LARGEST_WORD * query.iter().sum::<f32>();
                for score in scores[0] {
                    assert!((score / wanted - 1.0).abs() < 1e-3, "{score} for {wanted}");
                }
            }
        }
    }
}
