//! Instruction sets of 64-bit ARM, chosen at run time by what the processor can do.

mod neon;
mod neon_simd;
mod neon_spread;

use std::arch::{aarch64::*, asm};

pub use neon::Neon;

/// Four halves as floats. The intrinsic needs a newer Rust than this crate does.
#[inline(always)]
fn to_floats(halves: uint16x4_t) -> float32x4_t {
    let floats;
    // SAFETY: NEON is part of AArch64, and the instruction touches registers only.
    unsafe {
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

/// Four floats rounded to halves, ties to even.
#[inline(always)]
fn to_halves(floats: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: as above.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {floats:v}.4s",
            halves = lateout(vreg) halves,
            floats = in(vreg) floats,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    halves
}
