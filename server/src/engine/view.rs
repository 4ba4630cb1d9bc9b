//! What the cache keeps of every token of one sequence, read for people to look at.

use keepwell_kernels::{Arena, Backend, PerTier, Result, Tier};

use super::event::read_tokens;
use crate::sched::{Demand, Sequence};

/// One sequence, (layer, KV head) by (layer, KV head).
#[derive(Clone, Debug)]
pub struct KvView {
    /// Those that were computed; the last one drawn is not among them.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    pub num_layers: usize,
    pub budget: f32,
    pub bytes: usize,
    pub f16_bytes: usize,
    /// Bits of one value of K or V in each tier, metadata included.
    pub bits: PerTier<f32>,
    /// Layers times KV heads, in this order; of each, one for each of `tokens`.
    pub heads: Vec<Vec<Kept>>,
}

/// What one head keeps of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// `None`: evicted.
    pub tier: Option<Tier>,
    /// Attribution over the mean of the head's tokens, 0 where nothing was accumulated: at the end,
    /// or when the token was evicted. `None` of what was evicted before the sequence began with it.
    pub score: Option<f32>,
}

const EVICTED: Kept = Kept { tier: None, score: None };

impl KvView {
    /// # Errors
    /// A failing kernel.
    pub fn new(
        seq: &Sequence,
        demand: &Demand,
        arena: &Arena,
        backend: &dyn Backend,
        num_layers: usize,
    ) -> Result<Self> {
        let len = seq.table.len();
        let tokens = read_tokens(backend, arena, &seq.table)?;
        let head = |(head, read): (usize, &crate::compress::HeadTokens)| {
            let pages = &seq.table.head(head).pages;
            let tiers = pages.iter().flat_map(|page| (0..page.len).map(|_| page.tier));
            let mut kept = vec![EVICTED; len];
            let evicted = seq.evicted.iter().flat_map(|evicted| evicted.of_head(head));
            for (position, score) in evicted {
                kept[*position as usize].score = Some(*score);
            }
            // Last: a head that found no pages holds what was to be evicted.
            for ((position, score), tier) in read.positions.iter().zip(read.relative()).zip(tiers) {
                kept[*position as usize] = Kept { tier: Some(tier), score: Some(score) };
            }
            kept
        };
        let layout = &demand.layout;
        // K and V in F16 take 32 bits a channel.
        let channels = layout.f16_token_bytes() as f32 / 4.0;
        Ok(Self {
            tokens: seq.tokens[..len].to_vec(),
            prompt_len: seq.prompt_len.min(len),
            num_layers,
            budget: seq.budget,
            bytes: seq.table.num_pages() * layout.page_bytes,
            f16_bytes: demand.f16_bytes(len),
            bits: PerTier::new(|tier| layout.token_bytes(tier) as f32 * 4.0 / channels),
            heads: tokens.iter().enumerate().map(head).collect(),
        })
    }
}
