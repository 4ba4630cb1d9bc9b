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

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use keepwell_kernels::{Backend, available};
    use keepwell_models::{Model, WeightFormat, load_model};
    use keepwell_server::compress::Protection;

    use super::*;
    use crate::eval::methods::CompressedHead;

    const TOKENS: usize = 200;

    fn world() -> (Box<dyn Model>, Arc<Spy>) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/tiny-llama3");
        let spy = Arc::new(Spy::new(available().remove(0).into()));
        let backend: Arc<dyn Backend> = spy.clone();
        (load_model(&PathBuf::from(folder), WeightFormat::AsFile, backend).unwrap(), spy)
    }

    fn with_prefix(check: impl FnOnce(&Prefix, &Trial, &Lab)) {
        let (model, spy) = world();
        let lab = Lab::new(&*model, &*spy, 64, Protection::default());
        let context: Vec<u32> = (0..TOKENS as u32).map(|i| i * 37 % 509 + 1).collect();
        let (prefix, exact) = Prefix::read(&lab, &spy, &context, 256).unwrap();
        check(&prefix, &exact, &lab);
    }

    #[test]
    fn signals_are_complete_and_attention_adds_up_to_one_a_query() {
        with_prefix(|prefix, exact, lab| {
            assert_eq!((prefix.num_tokens(), exact.len()), (TOKENS, TOKENS));
            let config = lab.config();
            let group = (config.num_heads / config.num_kv_heads) as f32;
            for head in &prefix.heads {
                let sums = [&head.mass, &head.recent_mass].map(|m| m.iter().sum::<f32>() / group);
                // Sums are kept in bf16.
                assert!((sums[0] - TOKENS as f32).abs() < 0.05 * TOKENS as f32, "{sums:?}");
                assert!((sums[1] - RECENT as f32).abs() < 0.05 * RECENT as f32, "{sums:?}");
                assert!(head.deletion.iter().all(|d| *d >= 0.0) && head.deletion.len() == TOKENS);
                assert!(head.largest_query.iter().all(|q| *q > 0.0));
            }
        });
    }

    #[test]
    fn what_a_method_leaves_alone_is_bit_identical_and_what_it_drops_is_gone() {
        with_prefix(|prefix, exact, _| {
            let bytes = prefix.f16_bytes();
            let mut heads = vec![CompressedHead::default(); prefix.heads.len()];
            let same = apply(exact, &Compressed { heads: heads.clone(), bytes }).unwrap();
            let head = &prefix.heads[1];
            heads[1].vectors = Some((head.keys.clone(), head.values.clone()));
            let rewritten = apply(exact, &Compressed { heads: heads.clone(), bytes }).unwrap();
            for mut trial in [same, rewritten] {
                let logits = trial.force(&[7, 8]).unwrap();
                let expected = exact.fork().unwrap().force(&[7, 8]).unwrap();
                assert!(logits.rows().eq(expected.rows()));
            }
            heads[2].kept = Some((0..TOKENS).map(|token| token % 2 == 0).collect());
            let halved = apply(exact, &Compressed { heads, bytes }).unwrap();
            assert_eq!(halved.usage().evicted, TOKENS / 2);
            assert!(halved.states(2).unwrap().iter().all(|state| state.position % 2 == 0));
            assert_eq!(halved.states(1).unwrap().len(), TOKENS);
        });
    }
}
