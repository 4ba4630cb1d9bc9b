//! NEON's vectors for the attention kernels: two registers each, so that loops that were cut for 16
//! registers of twice the size fill these 32.

use std::arch::{aarch64::*, asm};

use super::{Neon, neon_spread, to_floats, to_halves};
use crate::{
    codec::Format,
    simd::{EXP2_SERIES, Op, Simd},
};

type V = float32x4x2_t;

// SAFETY of all blocks: NEON is part of AArch64; pointers as the trait asks.
impl Simd for Neon {
    type V = V;
    const NAME: &str = "neon";
    const LANES: usize = 8;

    /// All functions are compiled for NEON.
    #[inline(always)]
    fn vectorize<O: Op<Self>>(self, op: O) -> O::Out {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        unsafe { twice(vdupq_n_f32(x)) }
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        unsafe { float32x4x2_t(vsubq_f32(a.0, b.0), vsubq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        unsafe { float32x4x2_t(vmaxnmq_f32(a.0, b.0), vmaxnmq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn largest_lane(self, v: V) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(v.0, v.1)) }
    }

    #[inline(always)]
    fn sum_of_lanes(self, v: V) -> f32 {
        unsafe { vaddvq_f32(vaddq_f32(v.0, v.1)) }
    }

    #[inline(always)]
    fn exp2(self, v: V) -> V {
        unsafe { float32x4x2_t(exp2(v.0), exp2(v.1)) }
    }

    #[inline(always)]
    fn clamp_f16(self, v: V) -> V {
        // Both return a NaN for a NaN.
        unsafe {
            let (least, most) = (vdupq_n_f32(-65504.0), vdupq_n_f32(65504.0));
            let clamp = |v| vmaxq_f32(least, vminq_f32(most, v));
            float32x4x2_t(clamp(v.0), clamp(v.1))
        }
    }

    #[inline(always)]
    fn swap(self, v: V, half: usize) -> V {
        unsafe {
            match half {
                1 => float32x4x2_t(vrev64q_f32(v.0), vrev64q_f32(v.1)),
                2 => float32x4x2_t(vextq_f32::<2>(v.0, v.0), vextq_f32::<2>(v.1, v.1)),
                _ => float32x4x2_t(v.1, v.0),
            }
        }
    }

    #[inline(always)]
    fn signs(self, half: usize) -> V {
        let sign = |lane: usize| if lane & half == 0 { 1.0 } else { -1.0 };
        let signs: [f32; 8] = std::array::from_fn(sign);
        unsafe { self.load(signs.as_ptr()) }
    }

    #[inline(always)]
    fn prefetch_at(self, address: *const u8) {
        // SAFETY: prefetching reads nothing, wherever it points.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> V {
        unsafe { float32x4x2_t(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, v: V) {
        unsafe {
            vst1q_f32(to, v.0);
            vst1q_f32(to.add(4), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> V {
        unsafe {
            let (low, high) = (vld1_u8(from), vld1_u8(from.add(8)));
            let floats = |halves| to_floats(vreinterpret_u16_u8(halves));
            float32x4x2_t(floats(low), floats(high))
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, v: V) {
        unsafe {
            vst1_u8(to, vreinterpret_u8_u16(to_halves(v.0)));
            vst1_u8(to.add(8), vreinterpret_u8_u16(to_halves(v.1)));
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> V {
        unsafe {
            let words = vmovl_s8(vld1_s8(from.cast()));
            let (low, high) = (vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words));
            float32x4x2_t(vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }

    #[inline(always)]
    fn unpack(self, format: Format, dim: usize, codes: &[u8], bytes: &mut [u8]) {
        unsafe { neon_spread::unpack(format, dim, codes, bytes) }
    }

    #[inline(always)]
    unsafe fn row_sums(self, rows: *const f32) -> V {
        unsafe {
            let halved = |i: usize| {
                let row = self.load(rows.add(8 * i));
                vaddq_f32(row.0, row.1)
            };
            let pair = |i| vpaddq_f32(halved(i), halved(i + 1));
            let four = |i| vpaddq_f32(pair(i), pair(i + 2));
            float32x4x2_t(four(0), four(4))
        }
    }

    /// In squares of 4.
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for (row, col) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            unsafe {
                let rows =
                    std::array::from_fn(|i| vld1q_f32(from.add((row + i) * from_stride + col)));
                for (i, turned) in transpose_four(rows).into_iter().enumerate() {
                    vst1q_f32(to.add((col + i) * to_stride + row), turned);
                }
            }
        }
    }
}

#[inline(always)]
fn twice(v: float32x4_t) -> V {
    float32x4x2_t(v, v)
}

/// [`Simd::exp2`]; a NaN stays.
#[inline]
#[target_feature(enable = "neon")]
fn exp2(v: float32x4_t) -> float32x4_t {
    let least = vdupq_n_f32(-126.0);
    let is_below = vcltq_f32(v, least);
    let v = vmaxq_f32(v, least);
    let whole = vrndnq_f32(v);
    let r = vsubq_f32(v, whole);
    let mut p = vdupq_n_f32(EXP2_SERIES[0]);
    for c in &EXP2_SERIES[1..] {
        p = vfmaq_f32(vdupq_n_f32(*c), p, r);
    }
    let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(whole));
    let power = vaddq_s32(vreinterpretq_s32_f32(p), exponent);
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(power), is_below))
}

#[inline]
#[target_feature(enable = "neon")]
fn transpose_four([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let pair = |a, b| (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    let (ab, ab_odd) = pair(vtrn1q_f32(a, b), vtrn2q_f32(a, b));
    let (cd, cd_odd) = pair(vtrn1q_f32(c, d), vtrn2q_f32(c, d));
    [vtrn1q_f64(ab, cd), vtrn1q_f64(ab_odd, cd_odd), vtrn2q_f64(ab, cd), vtrn2q_f64(ab_odd, cd_odd)]
        .map(|row| vreinterpretq_f32_f64(row))
}
