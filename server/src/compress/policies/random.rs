use super::RANK_OCTAVES;
use crate::compress::{Policy, TokenSignals};

/// A fixed pseudo-random number per (head, position): the floor any policy must beat.
pub struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn score(&self, tokens: &TokenSignals, out: &mut [f32]) {
        for (score, &position) in out.iter_mut().zip(tokens.positions) {
            let seed = (tokens.head as u64) << 32 | u64::from(position);
            let uniform = (splitmix64(seed) >> 40) as f32 / (1u64 << 24) as f32;
            *score = (uniform * RANK_OCTAVES).exp2();
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn splitmix64(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
