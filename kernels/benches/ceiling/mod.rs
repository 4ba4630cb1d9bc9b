//! What the machine can do at most.

use std::time::Instant;

use rayon::prelude::*;

/// The ceiling of whatever reads memory, in GB/s.
pub fn read_bandwidth() -> f64 {
    let data = vec![1u64; 32 << 20];
    let sum = || data.par_chunks(1 << 20).map(|part| part.iter().sum::<u64>()).sum::<u64>();
    let round = |_| {
        let start = Instant::now();
        std::hint::black_box(sum());
        8e-9 * data.len() as f64 / start.elapsed().as_secs_f64()
    };
    (0..8).map(round).fold(0.0, f64::max)
}
