//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use crate::linear::{
    Kernel,
    ggml::BLOCK,
    packed::{Activations, Block, GROUP_ROWS, GROUPS, LANES, quantize_group},
};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn new() -> Option<Self> {
        let can_run = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        can_run.then_some(Self(()))
    }
}

impl Kernel for Avx2 {
    fn quantize(self, x: &[[f32; BLOCK]], out: &mut [Activations]) {
        // SAFETY: `new` saw the features.
        unsafe { quantize(x, out) }
    }

    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &[Activations],
        y: &mut [[f32; LANES]],
    ) {
        debug_assert!((1..=GROUP_ROWS).contains(&y.len()));
        for (i, y) in y.chunks_mut(STRIP).enumerate() {
            // SAFETY: `new` saw the features.
            unsafe {
                match y.len() {
                    1 => tile::<LINES, 1>(panel, x, i * STRIP, y),
                    2 => tile::<LINES, 2>(panel, x, i * STRIP, y),
                    3 => tile::<LINES, 3>(panel, x, i * STRIP, y),
                    _ => tile::<LINES, STRIP>(panel, x, i * STRIP, y),
                }
            }
        }
    }
}

/// Rows that pass over a panel together: 16 registers hold the sums of 4 rows by 16 columns, and what
/// they are made of.
const STRIP: usize = 4;
/// Columns of a register.
const HALF: usize = LANES / 2;

#[target_feature(enable = "avx2,fma")]
fn quantize(x: &[[f32; BLOCK]], out: &mut [Activations]) {
    quantize_group(x, out);
}

/// R rows from `row` by 16 columns.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const LINES: usize, const R: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    row: usize,
    y: &mut [[f32; LANES]],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, x) in panel.iter().zip(x) {
        let words: [Words; R] =
            std::array::from_fn(|r| Words::new(&x.high[row + r], &x.low[row + r]));
        let dots = dots(block, &words);
        for half in 0..2 {
            let (d, m) = (floats(&block.d[half * HALF..]), floats(&block.m[half * HALF..]));
            for r in 0..R {
                let scale = _mm256_set1_ps(x.scales[row + r]);
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[r][half]), scale);
                let sum = _mm256_fmadd_ps(d, scaled, sums[r][half]);
                sums[r][half] = _mm256_fmadd_ps(m, _mm256_set1_ps(x.sums[row + r]), sum);
            }
        }
    }
    for (y, sums) in y.iter_mut().zip(sums) {
        for (y, sum) in y.chunks_exact_mut(HALF).zip(sums) {
            // SAFETY: 8 floats.
            unsafe { _mm256_storeu_ps(y.as_mut_ptr(), sum) };
        }
    }
}

/// 32 activations of a row in pairs of 16 bits, as weights leave a line when it is read in words: of
/// each group of four the first and the third, and the second and the last.
#[repr(align(32))]
struct Words {
    even: [i32; GROUPS],
    odd: [i32; GROUPS],
}

impl Words {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(high: &[i8; BLOCK], low: &[i8; BLOCK]) -> Self {
        let mut words = Self { even: [0; GROUPS], odd: [0; GROUPS] };
        // SAFETY: 32 bytes each.
        unsafe {
            let high = _mm256_loadu_si256(high.as_ptr().cast());
            let low = _mm256_loadu_si256(low.as_ptr().cast());
            let low_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(low));
            let even = _mm256_add_epi16(_mm256_slli_epi16::<8>(high), low_even);
            let high_odd = _mm256_and_si256(high, _mm256_set1_epi16(0xff00u16 as i16));
            let odd = _mm256_add_epi16(high_odd, _mm256_srai_epi16::<8>(low));
            _mm256_store_si256(words.even.as_mut_ptr().cast(), even);
            _mm256_storeu_si256(words.odd.as_mut_ptr().cast(), odd);
        }
        words
    }
}

/// Integer products of R rows with the 16 columns of a block: 32 products of 8 and 16 bits are far
/// below 2^31.
#[inline]
#[target_feature(enable = "avx2")]
fn dots<const LINES: usize, const R: usize>(
    block: &Block<LINES>,
    x: &[Words; R],
) -> [[__m256i; 2]; R] {
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (g, line) in block.codes.iter().enumerate() {
        let (first, second) = line.split_at(4 * HALF);
        if LINES == GROUPS {
            let codes = [bytes(first), bytes(second)];
            add(&mut sums, codes.map(|c| c.0), |r| x[r].even[g]);
            add(&mut sums, codes.map(|c| c.1), |r| x[r].odd[g]);
        } else {
            let codes = [nibbles(first), nibbles(second)];
            add(&mut sums, codes.map(|c| c.0.0), |r| x[r].even[g]);
            add(&mut sums, codes.map(|c| c.0.1), |r| x[r].odd[g]);
            add(&mut sums, codes.map(|c| c.1.0), |r| x[r].even[g + LINES]);
            add(&mut sums, codes.map(|c| c.1.1), |r| x[r].odd[g + LINES]);
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn add<const R: usize>(
    sums: &mut [[__m256i; 2]; R],
    codes: [__m256i; 2],
    x: impl Fn(usize) -> i32,
) {
    for (r, sums) in sums.iter_mut().enumerate() {
        let x = _mm256_set1_epi32(x(r));
        for (sum, codes) in sums.iter_mut().zip(codes) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(codes, x));
        }
    }
}

/// The even bytes of each column, and the odd ones, as words.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(line: &[u8]) -> (__m256i, __m256i) {
    assert!(line.len() == 32);
    // SAFETY: 32 bytes.
    let line = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
    (_mm256_and_si256(line, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(line))
}

/// The same of the low nibbles and of the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(line: &[u8]) -> ((__m256i, __m256i), (__m256i, __m256i)) {
    let ((even, odd), mask) = (bytes(line), _mm256_set1_epi16(15));
    let low = (_mm256_and_si256(even, mask), _mm256_and_si256(odd, mask));
    (low, (_mm256_srli_epi16::<4>(even), _mm256_srli_epi16::<4>(odd)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn floats(x: &[half::f16]) -> __m256 {
    assert!(x.len() >= 8);
    // SAFETY: 8 halves of 2 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}
