//! Instruction sets of x86-64, chosen at run time by what the processor can do. Never AMX: virtual
//! machines were seen to lose its tile state.

mod avx2;
mod avx2_simd;
mod avx2_spread;
mod avx512;
mod avx512_simd;
pub(crate) mod coded;
mod coded_attention;
mod coded_signals;
mod floats;
mod integer;
mod pairs;
mod query_codes;
mod spread;
mod weights;

pub use avx2::Avx2;
pub use avx512::Avx512;

/// Asks for the line with this address, which may be none of the program's.
#[inline(always)]
fn prefetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: prefetching reads nothing, wherever it points, and SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}
