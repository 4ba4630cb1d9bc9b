//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::prefetch_after;
use crate::linear::{
    Kernel,
    ggml::BLOCK,
    packed::{ActivationBits, Activations, Block, GROUP_ROWS, GROUPS, LANES, quantize_group},
};

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, and all of [`super::Avx2`].
#[derive(Clone, Copy)]
pub struct Avx512 {
    pub activations: ActivationBits,
}

impl Avx512 {
    pub fn new() -> Option<Self> {
        let can_run = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        can_run.then(|| Self { activations: ActivationBits::default() })
    }
}

impl Kernel for Avx512 {
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
        // SAFETY: `new` saw the features.
        unsafe {
            match self.activations {
                ActivationBits::Eight => rows::<LINES, 1>(panel, x, y),
                ActivationBits::Sixteen => rows::<LINES, 2>(panel, x, y),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn quantize(x: &[[f32; BLOCK]], bits: ActivationBits, out: &mut [Activations]) {
    quantize_group(x, bits, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn rows<const LINES: usize, const BYTES: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    y: &mut [[f32; LANES]],
) {
    match y.len() {
        1 => tile::<LINES, BYTES, 1>(panel, x, y),
        2 => tile::<LINES, BYTES, 2>(panel, x, y),
        3 => tile::<LINES, BYTES, 3>(panel, x, y),
        4 => tile::<LINES, BYTES, 4>(panel, x, y),
        5 => tile::<LINES, BYTES, 5>(panel, x, y),
        6 => tile::<LINES, BYTES, 6>(panel, x, y),
        7 => tile::<LINES, BYTES, 7>(panel, x, y),
        _ => tile::<LINES, BYTES, 8>(panel, x, y),
    }
}

/// R rows by 16 columns; all sums stay in registers. Of activations, the first BYTES count.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn tile<const LINES: usize, const BYTES: usize, const R: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    y: &mut [[f32; LANES]],
) {
    let mut sums = [_mm512_setzero_ps(); R];
    for (block, x) in panel.iter().zip(x) {
        prefetch_after(block);
        let mut high = [_mm512_setzero_si512(); R];
        let mut low = [_mm512_setzero_si512(); R];
        for group in 0..GROUPS {
            let codes = codes(block, group);
            for r in 0..R {
                high[r] = _mm512_dpbusd_epi32(high[r], codes, broadcast(&x.high[r], group));
                if BYTES > 1 {
                    low[r] = _mm512_dpbusd_epi32(low[r], codes, broadcast(&x.low[r], group));
                }
            }
        }
        let (d, m) = (floats(&block.d), floats(&block.m));
        for r in 0..R {
            let dots = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[r]), low[r]);
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_set1_ps(x.scales[r]));
            sums[r] = _mm512_fmadd_ps(d, scaled, sums[r]);
            sums[r] = _mm512_fmadd_ps(m, _mm512_set1_ps(x.sums[r]), sums[r]);
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), sum) };
    }
}

/// Activations 4 * group.., in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(x: &[i8; BLOCK], group: usize) -> __m512i {
    let (groups, _) = x.as_chunks::<4>();
    _mm512_set1_epi32(i32::from_le_bytes(groups[group].map(|x| x as u8)))
}

/// Codes of weights 4 * group.. of 16 rows, one byte each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn codes<const LINES: usize>(block: &Block<LINES>, group: usize) -> __m512i {
    // SAFETY: a line is 64 bytes.
    let line = unsafe { _mm512_loadu_si512(block.codes[group % LINES].as_ptr().cast()) };
    match (LINES == GROUPS, group < LINES) {
        (true, _) => line,
        (_, true) => _mm512_and_si512(line, _mm512_set1_epi8(15)),
        _ => _mm512_and_si512(_mm512_srli_epi16::<4>(line), _mm512_set1_epi8(15)),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats(x: &[half::f16; LANES]) -> __m512 {
    // SAFETY: 16 halves of 2 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}
