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
mod made;
mod pairs;
mod query_codes;
mod spread;
mod weights;

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

pub use avx2::Avx2;
pub use avx512::Avx512;

use crate::{linear::packed::Block, simd::LINE};

/// Asks for the line with this address, which may be none of the program's, to be brought as near as L2: what
/// is not wanted soon shall not fill the few places in which L1 awaits lines.
#[inline(always)]
fn prefetch(address: *const u8) {
    // SAFETY: prefetching reads nothing, wherever it points, and SSE is part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
}

/// Blocks of weights that are asked for before their turn: as much as memory delivers while one is on its
/// way.
const BLOCKS_AHEAD: usize = 8;

/// Asks for a block of weights after this one, of the next panels too. A thread that multiplies eight rows
/// has no more than three blocks in flight by itself, and the processor's own guesses end with each page.
#[inline(always)]
fn prefetch_after<const LINES: usize>(block: &Block<LINES>) {
    let ahead = std::ptr::from_ref(block).wrapping_add(BLOCKS_AHEAD).cast::<i8>();
    for line in 0..size_of::<Block<LINES>>() / LINE {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line * LINE)) };
    }
}
