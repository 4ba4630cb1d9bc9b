//! Kernels for x86-64, chosen at run time by what the processor can do. Never AMX: virtual machines
//! were seen to lose its tile state.

mod activation;
mod attention;
mod avx2;
mod avx2_simd;
mod avx2_spread;
mod avx512;
mod avx512_simd;
mod compact;
mod simd;
mod spread;
mod write_kv;

pub use avx2::Avx2;
pub use avx512::Avx512;
