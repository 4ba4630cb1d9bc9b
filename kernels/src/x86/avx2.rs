//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use super::prefetch_after;
use crate::linear::{
    Kernel,
    ggml::BLOCK,
    packed::{ActivationBits, Activations, Block, GROUP_ROWS, GROUPS, LANES, quantize_group},
};

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2 {
    activations: ActivationBits,
}

impl Avx2 {
    pub fn new() -> Option<Self> {
        let can_run = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        can_run.then(|| Self { activations: ActivationBits::default() })
    }
}

impl Kernel for Avx2 {
    fn with_activations(self, activations: ActivationBits) -> Self {
        Self { activations }
    }

    fn quantize(self, x: &[[f32; BLOCK]], out: &mut [Activations]) {
        // SAFETY: `new` saw the features.
        unsafe { quantize(x, self.activations, out) }
    }

    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &[Activations],
        y: &mut [[f32; LANES]],
    ) {
        debug_assert!((1..=GROUP_ROWS).contains(&y.len()));
        use ActivationBits::{Eight, Sixteen};
        let strip = strip::<LINES>(self.activations);
        for (i, y) in y.chunks_mut(strip).enumerate() {
            // SAFETY: `new` saw the features.
            unsafe {
                match (self.activations, y.len()) {
                    (Sixteen, 1) => tile::<LINES, 2, 1>(panel, x, i * strip, y),
                    (Sixteen, 2) => tile::<LINES, 2, 2>(panel, x, i * strip, y),
                    (Sixteen, 3) => tile::<LINES, 2, 3>(panel, x, i * strip, y),
                    (Sixteen, _) => tile::<LINES, 2, MOST_ROWS>(panel, x, i * strip, y),
                    (Eight, 1) => tile::<LINES, 1, 1>(panel, x, i * strip, y),
                    (Eight, 2) => tile::<LINES, 1, 2>(panel, x, i * strip, y),
                    (Eight, 3) => tile::<LINES, 1, 3>(panel, x, i * strip, y),
                    (Eight, _) => tile::<LINES, 1, MOST_ROWS>(panel, x, i * strip, y),
                }
            }
        }
    }
}

/// Rows that pass over a panel together: 16 registers hold the integer sums of 4 rows by 16 columns,
/// and what they are made of. Of bytes times 4-bit codes, each byte of an activation has its own.
const fn strip<const LINES: usize>(bits: ActivationBits) -> usize {
    match bits {
        ActivationBits::Sixteen if LINES < GROUPS => MOST_ROWS / 2,
        _ => MOST_ROWS,
    }
}

const MOST_ROWS: usize = 4;
/// Columns of a register.
const HALF: usize = LANES / 2;

#[target_feature(enable = "avx2,fma")]
fn quantize(x: &[[f32; BLOCK]], bits: ActivationBits, out: &mut [Activations]) {
    quantize_group(x, bits, out);
}

/// R rows from `row` by 16 columns, of activations of BYTES bytes.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const LINES: usize, const BYTES: usize, const R: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    row: usize,
    y: &mut [[f32; LANES]],
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for (block, x) in panel.iter().zip(x) {
        if row == 0 {
            prefetch_after(block);
        }
        let dots = if LINES == GROUPS {
            wide_dots::<LINES, R>(block, x, row)
        } else if BYTES == 1 {
            byte_dots::<LINES, R>(block, x, row)
        } else {
            narrow_dots::<LINES, R>(block, x, row)
        };
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

/// Integer products of R rows with the 16 columns of a block of 4-bit codes. Bytes of activations
/// are multiplied as they are, two at a time: sums of 16 products of 4 and 8 bits are below 2^15.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow_dots<const LINES: usize, const R: usize>(
    block: &Block<LINES>,
    x: &Activations,
    row: usize,
) -> [[__m256i; 2]; R] {
    let x: [_; R] = std::array::from_fn(|r| [&x.high[row + r], &x.low[row + r]].map(fours));
    let mut sums = [[[_mm256_setzero_si256(); 2]; 2]; R];
    for g in 0..LINES {
        let (lower, upper) = nibbles(&block.codes[g]);
        for (codes, g) in [(lower, g), (upper, g + LINES)] {
            for (sums, x) in sums.as_flattened_mut().iter_mut().zip(x.as_flattened()) {
                add_products(sums, codes, x[g]);
            }
        }
    }
    let (of_high, of_low) = (_mm256_set1_epi16(256), _mm256_set1_epi16(1));
    sums.map(|[high, low]| {
        let join = |half: usize| {
            let high = _mm256_madd_epi16(high[half], of_high);
            _mm256_add_epi32(high, _mm256_madd_epi16(low[half], of_low))
        };
        [join(0), join(1)]
    })
}

/// The same of the high bytes of activations alone. Apart from [`narrow_dots`], for one function of so
/// many bytes does not keep its sums in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn byte_dots<const LINES: usize, const R: usize>(
    block: &Block<LINES>,
    x: &Activations,
    row: usize,
) -> [[__m256i; 2]; R] {
    let x: [_; R] = std::array::from_fn(|r| fours(&x.high[row + r]));
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for g in 0..LINES {
        let (lower, upper) = nibbles(&block.codes[g]);
        for (codes, g) in [(lower, g), (upper, g + LINES)] {
            for (sums, x) in sums.iter_mut().zip(&x) {
                add_products(sums, codes, x[g]);
            }
        }
    }
    let of_high = _mm256_set1_epi16(256);
    let join = |sums| _mm256_madd_epi16(sums, of_high);
    sums.map(|[left, right]| [join(left), join(right)])
}

/// Adds the products of four activations with four codes of each column, two in a word.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products(sums: &mut [__m256i; 2], codes: [__m256i; 2], x: [i8; 4]) {
    let x = _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)));
    for (sum, codes) in sums.iter_mut().zip(codes) {
        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, x));
    }
}

/// The same with 8-bit codes, whose products with words are far below 2^31.
#[inline]
#[target_feature(enable = "avx2")]
fn wide_dots<const LINES: usize, const R: usize>(
    block: &Block<LINES>,
    x: &Activations,
    row: usize,
) -> [[__m256i; 2]; R] {
    let words: [Words; R] = std::array::from_fn(|r| Words::new(&x.high[row + r], &x.low[row + r]));
    let mask = _mm256_set1_epi16(0xff);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for g in 0..LINES {
        let codes = bytes(&block.codes[g]);
        let even = codes.map(|codes| _mm256_and_si256(codes, mask));
        let odd = codes.map(|codes| _mm256_srli_epi16::<8>(codes));
        for (sums, words) in sums.iter_mut().zip(&words) {
            for (codes, x) in [(even, words.even[g]), (odd, words.odd[g])] {
                let x = _mm256_set1_epi32(x);
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(codes, x));
                }
            }
        }
    }
    sums
}

/// 32 activations of a row in pairs of 16 bits, as 8-bit codes leave a line when it is read in words:
/// of each group of four the first and the third, and the second and the last.
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

/// A row in groups of four.
#[inline]
fn fours(x: &[i8; BLOCK]) -> &[[i8; 4]; GROUPS] {
    x.as_chunks().0.first_chunk().expect("32 are 8 times 4")
}

/// The low nibbles of a line in bytes, and the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(line: &[u8; 4 * LANES]) -> ([__m256i; 2], [__m256i; 2]) {
    let (codes, mask) = (bytes(line), _mm256_set1_epi8(15));
    let upper = codes.map(|codes| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask));
    (codes.map(|codes| _mm256_and_si256(codes, mask)), upper)
}

/// The two halves of a line, 8 columns each.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes(line: &[u8; 4 * LANES]) -> [__m256i; 2] {
    let half = |start: usize| {
        let half = &line[start..start + 4 * HALF];
        // SAFETY: 32 bytes.
        unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
    };
    [half(0), half(4 * HALF)]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn floats(x: &[half::f16]) -> __m256 {
    assert!(x.len() >= 8);
    // SAFETY: 8 halves of 2 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}
