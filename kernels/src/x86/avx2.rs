//! AVX2 with FMA and F16C.

use std::arch::x86_64::*;

use candle_core::Tensor;

use super::{
    activation,
    attention::{attention, attribution::attribute},
    compact::compact,
    write_kv::write_kv,
};
use crate::{
    Arena, Attended, AttentionPlan, Backend, Linear, Move, RawMatrix, Result, RopeTable,
    linear::{
        self, Kernel,
        ggml::BLOCK,
        packed::{Activations, Block, GROUP_ROWS, GROUPS, LANES, quantize_group},
    },
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

impl Backend for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn linear(&self, parts: Vec<RawMatrix>) -> Result<Box<dyn Linear>> {
        linear::linear(*self, parts)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        activation::rms_norm(*self, x, weight, eps)
    }

    fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        activation::silu_mul(*self, gate_up)
    }

    fn write_kv(
        &self,
        arena: &mut Arena,
        layer: usize,
        qkv: &Tensor,
        rope: &RopeTable,
        plan: &AttentionPlan,
    ) -> Result<Tensor> {
        write_kv(*self, arena, layer, qkv, rope, plan)
    }

    fn attention(
        &self,
        arena: &Arena,
        layer: usize,
        q: &Tensor,
        plan: &AttentionPlan,
    ) -> Result<Attended> {
        attention(*self, arena, layer, q, plan)
    }

    fn attribute(
        &self,
        arena: &mut Arena,
        layer: usize,
        q: &Tensor,
        attended: &Attended,
        plan: &AttentionPlan,
    ) -> Result<()> {
        attribute(*self, arena, layer, q, attended, plan)
    }

    fn compact(&self, arena: &mut Arena, moves: &[Move]) -> Result<()> {
        compact(*self, arena, moves);
        Ok(())
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
        // 16 registers hold the sums of 4 rows by 8 columns.
        for (i, y) in y.chunks_mut(4).enumerate() {
            for lane in [0, 8] {
                // SAFETY: `new` saw the features.
                unsafe {
                    match y.len() {
                        1 => tile::<LINES, 1>(panel, x, (4 * i, lane), y),
                        2 => tile::<LINES, 2>(panel, x, (4 * i, lane), y),
                        3 => tile::<LINES, 3>(panel, x, (4 * i, lane), y),
                        _ => tile::<LINES, 4>(panel, x, (4 * i, lane), y),
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn quantize(x: &[[f32; BLOCK]], out: &mut [Activations]) {
    quantize_group(x, out);
}

/// R rows from `row` by 8 columns from `lane`.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<const LINES: usize, const R: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    (row, lane): (usize, usize),
    y: &mut [[f32; LANES]],
) {
    let mut sums = [_mm256_setzero_ps(); R];
    for (block, x) in panel.iter().zip(x) {
        let high = dots::<LINES, R>(block, &x.high[row..row + R], lane);
        let low = dots::<LINES, R>(block, &x.low[row..row + R], lane);
        let (d, m) = (floats(&block.d[lane..]), floats(&block.m[lane..]));
        for r in 0..R {
            let scale = _mm256_set1_ps(x.scales[row + r]);
            let dots = _mm256_add_epi32(_mm256_slli_epi32::<8>(high[r]), low[r]);
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), scale);
            sums[r] = _mm256_fmadd_ps(d, scaled, sums[r]);
            sums[r] = _mm256_fmadd_ps(m, _mm256_set1_ps(x.sums[row + r]), sums[r]);
        }
    }
    for (y, sum) in y.iter_mut().zip(sums) {
        let y = &mut y[lane..lane + 8];
        // SAFETY: 8 floats.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), sum) };
    }
}

/// Integer products of R rows with 8 columns of a block.
///
/// `maddubs` adds pairs in 16 bits and saturates, so codes enter it 4 bits at a time: 8 groups of
/// pairs of 15 * 128 stay below 2^15. 8-bit codes are a low and a high half, weighed 1 and 16.
#[inline]
#[target_feature(enable = "avx2")]
fn dots<const LINES: usize, const R: usize>(
    block: &Block<LINES>,
    x: &[[i8; BLOCK]],
    lane: usize,
) -> [__m256i; R] {
    let mut low = [_mm256_setzero_si256(); R];
    let mut high = [_mm256_setzero_si256(); R];
    for (g, line) in block.codes.iter().enumerate() {
        let (codes_low, codes_high) = nibbles(&line[lane * 4..lane * 4 + 32]);
        for r in 0..R {
            let x_low = group(&x[r], g);
            low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(codes_low, x_low));
            let x_high = group(&x[r], if LINES == GROUPS { g } else { g + LINES });
            high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(codes_high, x_high));
        }
    }
    let weight = _mm256_set1_epi16(if LINES == GROUPS { 16 } else { 1 });
    std::array::from_fn(|r| {
        let low = _mm256_madd_epi16(low[r], _mm256_set1_epi16(1));
        _mm256_add_epi32(low, _mm256_madd_epi16(high[r], weight))
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn nibbles(line: &[u8]) -> (__m256i, __m256i) {
    assert!(line.len() == 32);
    // SAFETY: 32 bytes.
    let line = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
    let mask = _mm256_set1_epi8(15);
    (_mm256_and_si256(line, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(line), mask))
}

/// Activations 4 * g..4 * g + 4, in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn group(x: &[i8; BLOCK], g: usize) -> __m256i {
    let (x, _) = x.as_chunks::<4>();
    _mm256_set1_epi32(i32::from_le_bytes(x[g].map(|x| x as u8)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn floats(x: &[half::f16]) -> __m256 {
    assert!(x.len() >= 8);
    // SAFETY: 8 halves of 2 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}
