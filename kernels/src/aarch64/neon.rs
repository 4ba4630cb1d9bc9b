//! NEON with its dot products of bytes.

use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};

use super::to_floats;
use crate::linear::{
    Kernel,
    ggml::BLOCK,
    packed::{ActivationBits, Activations, Block, GROUP_ROWS, GROUPS, LANES, quantize_group},
};

/// Proof that the processor has NEON and dot products: ARMv8.2 with an extension that nearly all
/// have, and what came later.
#[derive(Clone, Copy)]
pub struct Neon {
    activations: ActivationBits,
}

impl Neon {
    pub fn new() -> Option<Self> {
        let can_run =
            is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod");
        can_run.then(|| Self { activations: ActivationBits::default() })
    }
}

impl Kernel for Neon {
    fn with_activations(self, activations: ActivationBits) -> Self {
        Self { activations }
    }

    fn quantize(self, x: &[[f32; BLOCK]], out: &mut [Activations]) {
        quantize_group(x, self.activations, out);
    }

    fn panel<const LINES: usize>(
        self,
        panel: &[Block<LINES>],
        x: &[Activations],
        y: &mut [[f32; LANES]],
    ) {
        debug_assert!((1..=GROUP_ROWS).contains(&y.len()));
        for (i, y) in y.chunks_mut(STRIP).enumerate() {
            let row = i * STRIP;
            // SAFETY: `new` saw the features.
            unsafe {
                if y.len() == 1 {
                    tile::<LINES, 1, QUADS>(panel, x, (row, 0), y);
                    continue;
                }
                for quad in [0, QUADS / 2] {
                    let start = (row, quad);
                    match y.len() {
                        2 => tile::<LINES, 2, { QUADS / 2 }>(panel, x, start, y),
                        3 => tile::<LINES, 3, { QUADS / 2 }>(panel, x, start, y),
                        _ => tile::<LINES, STRIP, { QUADS / 2 }>(panel, x, start, y),
                    }
                }
            }
        }
    }
}

/// Rows that pass over half the columns of a panel together: 32 registers hold their sums, what these
/// are made of, and little else.
const STRIP: usize = 4;
/// Columns of a register.
const QUAD: usize = 4;
const QUADS: usize = LANES / QUAD;
/// Activations of a register: a product picks four of them.
const RUN: usize = 16;
/// Codes of 8 bits are multiplied as signed bytes, this much less.
const OFFSET: u8 = 128;

/// R rows by N quads of columns, from these.
#[target_feature(enable = "neon,dotprod")]
fn tile<const LINES: usize, const R: usize, const N: usize>(
    panel: &[Block<LINES>],
    x: &[Activations],
    (row, quad): (usize, usize),
    y: &mut [[f32; LANES]],
) {
    assert!(row + R <= GROUP_ROWS && quad + N <= QUADS);
    let mut sums = [[vdupq_n_f32(0.0); N]; R];
    for (block, x) in panel.iter().zip(x) {
        let dots = Dots::<R, N>::new(block, x, row, quad).joined();
        for n in 0..N {
            let (d, mut m) = (floats(&block.d, quad + n), floats(&block.m, quad + n));
            if LINES == GROUPS {
                m = vfmaq_n_f32(m, d, f32::from(OFFSET));
            }
            for r in 0..R {
                let scaled = vmulq_n_f32(vcvtq_f32_s32(dots[r][n]), x.scales[row + r]);
                let sum = vfmaq_f32(sums[r][n], d, scaled);
                sums[r][n] = vfmaq_n_f32(sum, m, x.sums[row + r]);
            }
        }
    }
    for (y, sums) in y.iter_mut().zip(sums) {
        let (quads, _) = y[quad * QUAD..].as_chunks_mut::<QUAD>();
        for (y, sum) in quads.iter_mut().zip(sums) {
            // SAFETY: 4 floats.
            unsafe { vst1q_f32(y.as_mut_ptr(), sum) };
        }
    }
}

/// Integer products of R rows with N quads of columns of a block, of the high bytes of activations
/// and of the low ones.
struct Dots<const R: usize, const N: usize> {
    high: [[int32x4_t; N]; R],
    low: [[int32x4_t; N]; R],
}

impl<const R: usize, const N: usize> Dots<R, N> {
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn new<const LINES: usize>(
        block: &Block<LINES>,
        x: &Activations,
        row: usize,
        quad: usize,
    ) -> Self {
        let zeros = [[vdupq_n_s32(0); N]; R];
        let mut dots = Self { high: zeros, low: zeros };
        dots.add_run::<LINES, 0>(block, x, row, quad);
        dots.add_run::<LINES, 1>(block, x, row, quad);
        dots
    }

    /// Adds the products with activations 16 I.. of each row.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn add_run<const LINES: usize, const I: usize>(
        &mut self,
        block: &Block<LINES>,
        x: &Activations,
        row: usize,
        quad: usize,
    ) {
        let x = std::array::from_fn(|r| (load(&x.high[row + r], I), load(&x.low[row + r], I)));
        let first = I * RUN / 4;
        self.add::<0>(codes(block, first, quad), &x);
        self.add::<1>(codes(block, first + 1, quad), &x);
        self.add::<2>(codes(block, first + 2, quad), &x);
        self.add::<3>(codes(block, first + 3, quad), &x);
    }

    /// Adds the products with group I of the activations in a register, high and low.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn add<const I: usize>(&mut self, codes: [int8x16_t; N], x: &[(int8x16_t, int8x16_t); R]) {
        for (r, (high, low)) in x.iter().enumerate() {
            for (n, codes) in codes.into_iter().enumerate() {
                self.high[r][n] = dot::<I>(self.high[r][n], codes, *high);
                self.low[r][n] = dot::<I>(self.low[r][n], codes, *low);
            }
        }
    }

    /// 32 products of 8 and 16 bits are far below 2^31.
    #[inline]
    #[target_feature(enable = "neon")]
    fn joined(self) -> [[int32x4_t; N]; R] {
        let join = |high, low| vaddq_s32(vshlq_n_s32::<8>(high), low);
        std::array::from_fn(|r| std::array::from_fn(|n| join(self.high[r][n], self.low[r][n])))
    }
}

/// Adds the products of four codes of each lane with activations 4 I.. of x. There is an intrinsic, but
/// not in stable Rust.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const I: usize>(mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction touches registers only, and the feature is enabled.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{i}]",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            i = const I,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Codes of weights 4 * group.. of N quads of columns, as signed bytes.
#[inline]
#[target_feature(enable = "neon")]
fn codes<const LINES: usize, const N: usize>(
    block: &Block<LINES>,
    group: usize,
    quad: usize,
) -> [int8x16_t; N] {
    let (quads, _) = block.codes[group % LINES].as_chunks::<{ 4 * QUAD }>();
    std::array::from_fn(|n| {
        // SAFETY: 16 bytes.
        let bytes = unsafe { vld1q_u8(quads[quad + n].as_ptr()) };
        vreinterpretq_s8_u8(match (LINES == GROUPS, group < LINES) {
            (true, _) => veorq_u8(bytes, vdupq_n_u8(OFFSET)),
            (_, true) => vandq_u8(bytes, vdupq_n_u8(15)),
            _ => vshrq_n_u8::<4>(bytes),
        })
    })
}

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[i8; BLOCK], run: usize) -> int8x16_t {
    // SAFETY: 16 bytes.
    unsafe { vld1q_s8(x.as_chunks::<RUN>().0[run].as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn floats(x: &[half::f16; LANES], quad: usize) -> float32x4_t {
    // SAFETY: 4 halves of 2 bytes.
    to_floats(unsafe { vld1_u16(x.as_chunks::<QUAD>().0[quad].as_ptr().cast()) })
}
