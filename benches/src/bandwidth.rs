//! How fast memory can be read: what decoding is measured against.

use std::time::Instant;

use rayon::prelude::*;

/// Larger than any cache.
const BYTES: usize = 512 << 20;
const ROUNDS: usize = 8;
/// Words that are read as one piece of work.
const RUN: usize = 1 << 17;

/// Bytes per second that all threads together read, each from front to back: the best of some
/// rounds.
pub fn measure() -> f64 {
    let data = vec![1u64; BYTES / size_of::<u64>()];
    let round = |_| {
        let start = Instant::now();
        std::hint::black_box(data.par_chunks(RUN).map(sum).sum::<u64>());
        BYTES as f64 / start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}

fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 16];
    for run in words.as_chunks::<16>().0 {
        for (lane, word) in lanes.iter_mut().zip(run) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().sum()
}
