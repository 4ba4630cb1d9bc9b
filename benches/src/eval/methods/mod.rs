//! Published methods, simulated: one file and one table line each.
//!
//! A method takes the exact K and V of a context and returns what is left of them after its own
//! quantizer and its own choice of tokens. Its bytes are those of its own format by formula: codes,
//! scales and zeros, positions where tokens are dropped, the exact tokens at both ends in F16. Page
//! slack, tables and scores are not charged: a lower bound, in favour of the method.

mod diffkv;
mod full;
mod h2o;
mod keydiff;
mod kivi;
mod mikv;
mod random;
mod rdkv;
mod sink_recent;
mod snapkv;
mod uniform;

use keepwell_kernels::hadamard;

use super::prefix::{Head, Prefix};

/// Every simulated method; the first is the exact cache.
pub static METHODS: &[&dyn Method] = &[
    &full::Full,
    &uniform::Uniform { name: "uniform_k8v8", key: 8, value: 8 },
    &uniform::Uniform { name: "uniform_k8v4", key: 8, value: 4 },
    &uniform::Uniform { name: "uniform_k4v4", key: 4, value: 4 },
    &uniform::Uniform { name: "uniform_k3v3", key: 3, value: 3 },
    &uniform::Uniform { name: "uniform_k2v2", key: 2, value: 2 },
    &kivi::Kivi { name: "kivi_4", bits: 4 },
    &kivi::Kivi { name: "kivi_2", bits: 2 },
    &mikv::MiKv,
    &diffkv::DiffKv,
    &rdkv::RdKv,
    &snapkv::SnapKv,
    &keydiff::KeyDiff,
    &h2o::H2o,
    &sink_recent::SinkRecent,
    &random::Random,
];

/// A way to make a context smaller.
pub trait Method: Sync {
    fn name(&self) -> &'static str;

    /// Formats of one idea at different sizes share a family: a comparison takes one of them.
    fn family(&self) -> &'static str {
        self.name()
    }

    /// Whether its size is its own, whatever the budget.
    fn is_fixed(&self) -> bool {
        false
    }

    /// What it reads of a [`Head`] besides K and V.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn compress(&self, prefix: &Prefix, target: &Target) -> Compressed;
}

/// Fields of a [`Head`] that come from queries, each of which takes time to read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Needs {
    /// `mass` and `largest_query`: of all queries.
    pub mass: bool,
    pub recent_mass: bool,
    pub deletion: bool,
}

impl Needs {
    /// What either needs.
    pub fn or(self, other: Self) -> Self {
        Self {
            mass: self.mass | other.mass,
            recent_mass: self.recent_mass | other.recent_mass,
            deletion: self.deletion | other.deletion,
        }
    }
}

/// What a method is to reach.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Bytes of the whole context.
    pub bytes: f64,
    pub seed: u64,
}

/// One head after a method was at it.
#[derive(Clone, Debug, Default)]
pub struct CompressedHead {
    /// K and V (N, D), rotated; `None` when they are exact.
    pub vectors: Option<(Vec<f32>, Vec<f32>)>,
    /// Per token whether it is still there; `None` when all are.
    pub kept: Option<Vec<bool>>,
}

#[derive(Clone, Debug)]
pub struct Compressed {
    pub heads: Vec<CompressedHead>,
    pub bytes: f64,
}

/// A position as 16 bits, as the pages of the server have it.
const POSITION_BYTES: f64 = 2.0;

/// Bytes of `dim` codes.
fn code_bytes(dim: usize, bits: u32) -> f64 {
    (dim * bits as usize) as f64 / 8.0
}

/// How many tokens of each head may stay exact.
fn exact_tokens_per_head(prefix: &Prefix, target: &Target) -> usize {
    let bytes = (target.bytes - prefix.protected_bytes()).max(0.0) / prefix.heads.len() as f64;
    let count = (bytes / (prefix.f16_token_bytes() + POSITION_BYTES)) as usize;
    count.min(prefix.free().len())
}

/// Drops all but the `count` best free tokens of each head.
fn evict(
    prefix: &Prefix,
    count: usize,
    score: impl Fn(usize, &Head) -> Vec<f32> + Sync,
) -> Compressed {
    let kept = prefix.map(|index, head| keep_best(prefix, &score(index, head), count));
    evicted(prefix, kept)
}

/// Charges what is kept in F16.
fn evicted(prefix: &Prefix, kept: Vec<Vec<bool>>) -> Compressed {
    let num_kept: usize =
        kept.iter().map(|head| head[prefix.free()].iter().filter(|k| **k).count()).sum();
    let heads = kept.into_iter().map(|kept| CompressedHead { vectors: None, kept: Some(kept) });
    let token_bytes = prefix.f16_token_bytes() + POSITION_BYTES;
    Compressed {
        heads: heads.collect(),
        bytes: prefix.protected_bytes() + num_kept as f64 * token_bytes,
    }
}

/// Protected tokens and the `count` best of the others; earlier ones win ties.
fn keep_best(prefix: &Prefix, scores: &[f32], count: usize) -> Vec<bool> {
    let free = prefix.free();
    let mut order: Vec<usize> = free.clone().collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut kept = vec![true; prefix.num_tokens()];
    kept[free].fill(false);
    order.iter().take(count).for_each(|&token| kept[token] = true);
    kept
}

/// K and V of the free tokens, changed by `change`, in the channels of the cache.
fn requantize(
    prefix: &Prefix,
    change: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<CompressedHead> {
    prefix.map(|index, head| {
        let free = prefix.free().start * head.head_dim..prefix.free().end * head.head_dim;
        let (mut keys, mut values) = (head.keys.clone(), head.values.clone());
        change(index, &mut keys[free.clone()], &mut values[free]);
        CompressedHead { vectors: Some((keys, values)), kept: None }
    })
}

/// Runs `change` on vectors of `dim` channels turned back to the model's own channels.
fn in_original_channels(x: &mut [f32], dim: usize, change: impl FnOnce(&mut [f32])) {
    x.chunks_exact_mut(dim).for_each(hadamard::rotate_back);
    change(x);
    x.chunks_exact_mut(dim).for_each(hadamard::rotate);
}

/// The largest `x` in `low..high` for which `fits(2^x)` holds, given that it holds at `low`: how a
/// threshold or a price is scaled to meet a budget.
fn bisect(low: f64, high: f64, fits: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (low, high);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if fits(middle.exp2()) { low = middle } else { high = middle }
    }
    low.exp2()
}

#[cfg(test)]
mod tests;
