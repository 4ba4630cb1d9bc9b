//! What the machine can do at most.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;

/// The instructions that bound a kernel.
#[allow(dead_code, reason = "each benchmark names one")]
#[derive(Clone, Copy)]
pub enum Arithmetic {
    /// Fused multiply-adds of f32: attention.
    F32,
    /// Multiply-adds of 16-bit integers, of pairs: products of quantized weights. AVX-512's kernel takes
    /// two of bytes for each, which go at the same rate; the portable one multiplies floats.
    I16,
}

impl Arithmetic {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32 multiply-adds",
            Self::I16 => "16-bit multiply-adds",
        }
    }

    /// GOP/s of all threads with a backend's instructions, a multiply-add being two: the best of some
    /// rounds.
    pub fn rate(self, backend: &str) -> f64 {
        let round = |_| {
            let start = Instant::now();
            let threads = 0..rayon::current_num_threads();
            let operations: f64 =
                threads.into_par_iter().with_max_len(1).map(|_| self.work(backend)).sum();
            1e-9 * operations / start.elapsed().as_secs_f64()
        };
        (0..5).map(round).fold(0.0, f64::max)
    }

    /// Returns how many operations were done.
    fn work(self, backend: &str) -> f64 {
        #[cfg(target_arch = "x86_64")]
        match (backend, self) {
            // SAFETY: a backend is available only where the processor has its instructions.
            ("avx512", Self::F32) => return unsafe { x86::f32_avx512() },
            // SAFETY: as above.
            ("avx512", Self::I16) => return unsafe { x86::i16_avx512() },
            // SAFETY: as above.
            ("avx2", Self::F32) => return unsafe { x86::f32_avx2() },
            // SAFETY: as above.
            ("avx2", Self::I16) => return unsafe { x86::i16_avx2() },
            _ => {}
        }
        let _ = backend;
        // The portable kernels multiply floats in both cases.
        let mut sums = black_box([1f32; 64]);
        let (a, b) = black_box((0.5f32, 0.5f32));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = *sum * a + b);
        }
        black_box(sums);
        (2 * 64 * ROUNDS) as f64
    }
}

/// Some milliseconds of work.
const ROUNDS: usize = 1 << 20;

/// Chains enough to hide the latency of each.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ROUNDS, black_box};

    const CHAINS: usize = 12;

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2() -> f64 {
        let mut sums = black_box([_mm256_set1_ps(1.0); CHAINS]);
        let (a, b) = black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.5)));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
        }
        black_box(sums);
        (2 * 8 * CHAINS * ROUNDS) as f64
    }

    #[target_feature(enable = "avx2")]
    pub fn i16_avx2() -> f64 {
        let mut sums = black_box([_mm256_set1_epi16(1); CHAINS]);
        let a = black_box(_mm256_set1_epi16(3));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm256_madd_epi16(*sum, a));
        }
        black_box(sums);
        (2 * 16 * CHAINS * ROUNDS) as f64
    }

    #[target_feature(enable = "avx512f")]
    pub fn f32_avx512() -> f64 {
        let mut sums = black_box([_mm512_set1_ps(1.0); CHAINS]);
        let (a, b) = black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.5)));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        black_box(sums);
        (2 * 16 * CHAINS * ROUNDS) as f64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn i16_avx512() -> f64 {
        let mut sums = black_box([_mm512_set1_epi32(1); CHAINS]);
        let (a, b) = black_box((_mm512_set1_epi32(3), _mm512_set1_epi32(5)));
        for _ in 0..ROUNDS {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpwssd_epi32(*sum, a, b));
        }
        black_box(sums);
        (2 * 32 * CHAINS * ROUNDS) as f64
    }
}

/// The ceiling of whatever reads memory, in GB/s: the best of some rounds.
pub fn read_bandwidth() -> f64 {
    let data = vec![1u64; 32 << 20];
    let sum = || data.par_chunks(1 << 20).map(|part| part.iter().sum::<u64>()).sum::<u64>();
    let round = |_| {
        let start = Instant::now();
        black_box(sum());
        8e-9 * data.len() as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(round).fold(0.0, f64::max)
}
