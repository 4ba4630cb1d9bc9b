//! What a request cost: tokens, and bytes of KV cache.

use keepwell_kernels::{PerTier, Tier};
use serde::{Serialize, Serializer};

use super::choice::Finished;

/// Summed over the choices of a request; each prompt counts once.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Usage {
    #[serde(flatten)]
    tokens: TokenCounts,
    prompt_tokens_details: PromptTokensDetails,
    kv_cache: KvCache,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TokenCounts {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

/// What a chunk before the last one says of the usage: no such field, `null`, or the tokens so far.
pub type ChunkUsage = Option<Option<TokenCounts>>;

impl TokenCounts {
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
struct PromptTokensDetails {
    cached_tokens: usize,
}

#[derive(Clone, Debug, Default, Serialize)]
struct KvCache {
    budget: f32,
    /// The least that was in force at any time.
    lowest_budget: f32,
    bytes: usize,
    peak_bytes: usize,
    f16_bytes: usize,
    #[serde(serialize_with = "by_tier")]
    tokens: Entries,
}

/// (token, layer, KV head) entries.
#[derive(Clone, Debug, Default)]
struct Entries {
    kept: PerTier<usize>,
    evicted: usize,
}

impl Usage {
    /// The account of a request with this budget, before any of its choices ended.
    pub fn new(prompt_tokens: usize, budget: f32) -> Self {
        let kv_cache = KvCache { budget, lowest_budget: budget, ..KvCache::default() };
        Self { tokens: TokenCounts::new(prompt_tokens, 0), kv_cache, ..Self::default() }
    }

    /// Prompt and answer.
    pub fn tokens(&self) -> TokenCounts {
        self.tokens
    }

    /// The tokens when the choices have this many so far.
    pub fn so_far(&self, completion_tokens: usize) -> TokenCounts {
        TokenCounts::new(self.tokens.prompt_tokens, completion_tokens)
    }

    /// Adds a choice that ended. Of the choices' budgets the lowest shows.
    pub fn add(&mut self, choice: &Finished) {
        let Finished { num_tokens, num_cached_tokens, kv_cache: kv, .. } = choice;
        self.tokens = self.so_far(self.tokens.completion_tokens + num_tokens);
        self.prompt_tokens_details.cached_tokens += num_cached_tokens;
        let total = &mut self.kv_cache;
        total.budget = total.budget.min(kv.budget);
        total.lowest_budget = total.lowest_budget.min(kv.lowest_budget);
        total.bytes += kv.bytes;
        total.peak_bytes += kv.peak_bytes;
        total.f16_bytes += kv.f16_bytes;
        total.tokens.evicted += kv.evicted;
        for (sum, kept) in total.tokens.kept.values_mut().zip(kv.tokens.values()) {
            *sum += kept;
        }
    }
}

fn by_tier<S: Serializer>(entries: &Entries, serializer: S) -> Result<S::Ok, S::Error> {
    // A request uses few of the tiers: the others are left out.
    let used = entries.kept.iter().filter(|(tier, count)| *tier == Tier::F16 || **count > 0);
    let kept = used.map(|(tier, count)| (tier.name(), *count));
    serializer.collect_map(kept.chain([("evicted", entries.evicted)]))
}
