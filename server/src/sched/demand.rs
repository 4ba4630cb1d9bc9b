//! How many pages a sequence may need: what admission and compression count with.

use keepwell_kernels::{PageLayout, Tier};

use super::sequence::EVENT_INTERVAL;
use crate::compress::Protection;

/// Page arithmetic for one model and server.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    pub layout: PageLayout,
    /// Layers times KV heads.
    pub num_heads: usize,
    /// Tokens of the largest prefill chunk.
    pub max_chunk: usize,
    pub protection: Protection,
}

impl Demand {
    /// Bytes of K and V of `len` tokens in plain F16.
    pub fn f16_bytes(&self, len: usize) -> usize {
        len * self.num_heads * self.layout.f16_token_bytes()
    }

    /// Pages a compressed sequence of `len` tokens may hold after an event: its share of the F16
    /// bytes, yet never less than its protected tokens take.
    pub fn limit(&self, budget: f32, len: usize) -> usize {
        let bytes = f64::from(budget) * self.f16_bytes(len) as f64;
        let share = (bytes / self.layout.page_bytes as f64) as usize;
        share.max(self.num_heads * self.protected_pages(len))
    }

    /// Pages per head of the tokens that are never evicted, at the coarsest tier.
    fn protected_pages(&self, len: usize) -> usize {
        let Protection { sinks, recent, prompt_end } = self.protection;
        len.min(sinks + recent + prompt_end).div_ceil(self.layout.capacity(Tier::K4V4))
    }

    /// The most pages the sequence holds on its way to `len` tokens: what it may keep plus what it
    /// writes in F16 until the next event.
    pub fn peak(&self, budget: f32, len: usize) -> usize {
        let f16_pages = |len: usize| len.div_ceil(self.layout.capacity(Tier::F16));
        if budget >= 1.0 {
            return self.num_heads * f16_pages(len);
        }
        // One page of slack: the open page need not start with the chunk.
        let window = len.min(self.max_chunk.max(EVENT_INTERVAL));
        self.limit(budget, len) + self.num_heads * (f16_pages(window) + 1)
    }
}
