//! How fast memory can be read: what decoding is measured against.

use std::time::Instant;

use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::Backend;
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

/// The same of a device, as STREAM measures it: bytes per second that `add` moves.
///
/// # Errors
/// Too little memory for 1.5 GiB.
pub fn measure_device(backend: &dyn Backend) -> Result<f64> {
    const ROWS: usize = 1 << 15;
    const COLS: usize = 1 << 12;
    let [x, y] = [1f32, 2.0].map(|value| Tensor::full(value, (ROWS, COLS), &backend.device()));
    let (x, y) = (x?, y?);
    let one = x.narrow(0, 0, 1)?.contiguous()?;
    let round = |_| -> Result<f64> {
        // Reading from a device ends when all before is done.
        one.to_vec2::<f32>()?;
        let start = Instant::now();
        let _sum = backend.add(&x, &y)?;
        one.to_vec2::<f32>()?;
        Ok((3 * ROWS * COLS * size_of::<f32>()) as f64 / start.elapsed().as_secs_f64())
    };
    (0..ROUNDS).map(round).try_fold(0.0, |most, rate| Ok(f64::max(most, rate?)))
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
