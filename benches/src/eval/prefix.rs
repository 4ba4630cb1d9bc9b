//! The exact cache of a context with what simulated methods want to know of it.

use anyhow::Result;
use keepwell_kernels::{Scoring, Signal};
use keepwell_server::trial::{Lab, Recipe, Trial};
use rayon::prelude::*;

use super::{methods::Compressed, spy::Spy};

/// Tokens that every simulated method leaves exact, at both ends of the context.
pub const SINKS: usize = 4;
pub const RECENT: usize = 64;

/// One (layer, KV head): N tokens in the order of their positions, D channels.
#[derive(Clone, Debug, Default)]
pub struct Head {
    pub head_dim: usize,
    /// (N, D), rotated as in the cache.
    pub keys: Vec<f32>,
    /// (N, D), rotated as in the cache.
    pub values: Vec<f32>,
    /// Attention each token got from all queries, summed over them and over the query heads.
    pub mass: Vec<f32>,
    /// The same from the last [`RECENT`] queries.
    pub recent_mass: Vec<f32>,
    /// Squared change of the head's output if the token were deleted, from the same queries.
    pub deletion: Vec<f32>,
    /// Largest query magnitude per (original) channel.
    pub largest_query: Vec<f32>,
}

impl Head {
    pub fn len(&self) -> usize {
        self.keys.len() / self.head_dim.max(1)
    }

    pub fn key(&self, token: usize) -> &[f32] {
        &self.keys[token * self.head_dim..(token + 1) * self.head_dim]
    }
}

/// What a method is given: all heads of all layers, in this order.
#[derive(Clone, Debug, Default)]
pub struct Prefix {
    pub heads: Vec<Head>,
    pub num_kv_heads: usize,
}

impl Prefix {
    /// Computes the context exactly. Returns what was learnt, and the context to go on from.
    pub fn read<'a>(
        lab: &Lab<'a>,
        spy: &Spy,
        context: &[u32],
        capacity: usize,
    ) -> Result<(Self, Trial<'a>)> {
        let (early, late) = context.split_at(context.len().saturating_sub(RECENT));
        let scoring = |rows, signal, decay| Some(Scoring { rows, signal, decay });
        let mut trial = lab.start(Recipe::exact(), capacity)?;
        spy.start();
        if !early.is_empty() {
            trial.observe(early, scoring(usize::MAX, Signal::AttentionMass, 1.0))?;
        }
        let early_mass = signals(&trial)?;
        let mut fork = trial.fork()?;
        fork.observe(late, scoring(RECENT, Signal::Deletion, 0.0))?;
        let deletion = signals(&fork)?;
        drop(fork);
        trial.observe(late, scoring(RECENT, Signal::AttentionMass, 0.0))?;
        let (recent_mass, largest_query) = (signals(&trial)?, spy.stop());
        let num_heads = trial.num_heads();
        let parts = deletion.into_iter().zip(recent_mass).zip(early_mass).zip(largest_query);
        let heads =
            (0..num_heads).zip(parts).map(|(head, (((deletion, recent), early), largest))| {
                let segment = trial.segment(head);
                let early = early.into_iter().chain(std::iter::repeat(0.0));
                Head {
                    head_dim: segment.head_dim,
                    mass: recent.iter().zip(early).map(|(a, b)| a + b).collect(),
                    keys: segment.keys,
                    values: segment.values,
                    recent_mass: recent,
                    deletion,
                    largest_query: largest,
                }
            });
        let heads = heads.collect();
        Ok((Self { heads, num_kv_heads: lab.config().num_kv_heads }, trial))
    }

    pub fn num_tokens(&self) -> usize {
        self.heads.first().map_or(0, Head::len)
    }

    pub fn head_dim(&self) -> usize {
        self.heads.first().map_or(0, |head| head.head_dim)
    }

    /// Tokens a method may touch.
    pub fn free(&self) -> std::ops::Range<usize> {
        let end = self.num_tokens().saturating_sub(RECENT);
        SINKS.min(end)..end
    }

    /// Bytes of one token of one head in F16.
    pub fn f16_token_bytes(&self) -> f64 {
        4.0 * self.head_dim() as f64
    }

    /// Bytes of everything in F16.
    pub fn f16_bytes(&self) -> f64 {
        (self.heads.len() * self.num_tokens()) as f64 * self.f16_token_bytes()
    }

    /// Bytes of the tokens no method touches.
    pub fn protected_bytes(&self) -> f64 {
        let num_tokens = self.num_tokens() - self.free().len();
        (self.heads.len() * num_tokens) as f64 * self.f16_token_bytes()
    }

    /// `f` of every head, in parallel.
    pub fn map<T: Send>(&self, f: impl Fn(usize, &Head) -> T + Sync) -> Vec<T> {
        self.heads.par_iter().enumerate().map(|(index, head)| f(index, head)).collect()
    }
}

/// Accumulated signals of all heads. An exact context stands in the order of its positions.
fn signals(trial: &Trial) -> Result<Vec<Vec<f32>>> {
    let head = |head| Ok(trial.states(head)?.iter().map(|state| state.attribution).collect());
    (0..trial.num_heads()).map(head).collect()
}

/// The exact context after a method was at it: new K and V in F16 pages, dropped tokens gone.
pub fn apply<'a>(exact: &Trial<'a>, compressed: &Compressed) -> Result<Trial<'a>> {
    let mut trial = exact.fork()?;
    for (index, head) in compressed.heads.iter().enumerate() {
        if let Some((keys, values)) = &head.vectors {
            trial.edit(index, |segment| {
                segment.keys.copy_from_slice(keys);
                segment.values.copy_from_slice(values);
            });
        }
    }
    if compressed.heads.iter().any(|head| head.kept.is_some()) {
        let assignments: Vec<Vec<_>> = (0..trial.num_heads())
            .map(|head| {
                let states = trial.states(head)?;
                let kept = compressed.heads[head].kept.as_deref();
                let keeps = |token: usize| kept.is_none_or(|kept| kept[token]);
                Ok(states.iter().map(|s| keeps(s.position as usize).then_some(s.tier)).collect())
            })
            .collect::<Result<_>>()?;
        trial.assign(&assignments)?;
    }
    Ok(trial)
}
