//! Positive floats in one byte: scales of coded vectors.

use half::f16;

/// Infinity in the scales' format.
const INFINITY: u16 = 0xf8;

/// A scale in a byte, to the nearest: the upper exponent and mantissa bits of an f16 (5 and 3).
#[inline(always)]
pub fn to_scale(x: f32) -> u8 {
    let bits = f16::from_f32(x.max(0.0)).to_bits();
    ((bits + 0x40) >> 7).min(INFINITY - 1) as u8
}

/// A scale in a byte that is no smaller than `x`, as far as an f16 is.
#[inline(always)]
pub fn to_scale_above(x: f32) -> u8 {
    let bits = f16::from_f32(x.max(0.0)).to_bits();
    ((bits + 0x7f) >> 7).min(INFINITY - 1) as u8
}

/// Without a conversion of f16, which is a call where the processor may lack it: its bits are those of
/// an f32 but for the exponent's bias, and a product corrects that, below the normal numbers too.
#[inline(always)]
pub fn from_scale(byte: u8) -> f32 {
    /// 2^(127 - 15): the biases' difference.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    f32::from_bits(u32::from(byte) << 20) * REBIAS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_comes_back_within_a_sixteenth_and_one_from_above_is_never_smaller() {
        for i in 1..2000 {
            let x = 1e-3 * 1.01f32.powi(i % 1500);
            let (near, above) = (from_scale(to_scale(x)), from_scale(to_scale_above(x)));
            assert!((near - x).abs() <= x / 16.0 + 1e-5, "{x} {near}");
            assert!(above >= x * 0.9995 && above <= x * 1.126 + 1e-5, "{x} {above}");
        }
    }

    #[test]
    fn every_scale_is_the_f16_of_its_bits() {
        for byte in 0..INFINITY as u8 {
            assert_eq!(from_scale(byte), f16::from_bits(u16::from(byte) << 7).to_f32(), "{byte}");
        }
    }

    #[test]
    fn a_scale_is_never_infinite_nor_a_zero_anything_else() {
        for to in [to_scale, to_scale_above] {
            assert_eq!(from_scale(to(0.0)), 0.0);
            assert!(from_scale(to(f32::MAX)).is_finite());
            assert_eq!(from_scale(to(f32::NAN)), 0.0);
        }
    }
}
