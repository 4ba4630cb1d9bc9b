//! The exact cache of a context with what simulated methods want to know of it.

use anyhow::Result;
use keepwell_kernels::{Scoring, Signal, Tier};
use keepwell_server::trial::{Lab, Recipe, Trial};
use rayon::prelude::*;

use super::{
    methods::{Compressed, CompressedHead, Needs},
    spy::Spy,
};

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

/// How a context is computed exactly and looked at.
pub struct Read<'a, 'b> {
    pub lab: &'b Lab<'a>,
    pub spy: &'b Spy,
    /// What is looked at; other fields stay empty.
    pub needs: Needs,
    /// Tokens the context may grow to.
    pub capacity: usize,
}

impl<'a> Read<'a, '_> {
    /// Returns what was learnt, and the context to go on from.
    ///
    /// # Errors
    /// More tokens than the capacity, or a failing kernel.
    pub fn prefix(&self, context: &[u32]) -> Result<(Prefix, Trial<'a>)> {
        let (early, late) = context.split_at(context.len().saturating_sub(RECENT));
        let mut trial = self.lab.start(Recipe::exact(), self.capacity)?;
        if self.needs.mass {
            self.spy.start();
        }
        if !early.is_empty() {
            let all = scoring(usize::MAX, Signal::AttentionMass, 1.0);
            trial.observe(early, self.needs.mass.then_some(all))?;
        }
        let early_mass = signals_if(self.needs.mass, &trial)?;
        let deletion = match self.needs.deletion {
            true => deletion(&trial, late)?,
            false => signals_if(false, &trial)?,
        };
        let needs_recent = self.needs.recent_mass || self.needs.mass;
        let recent = scoring(RECENT, Signal::AttentionMass, 0.0);
        trial.observe(late, needs_recent.then_some(recent))?;
        let recent_mass = signals_if(needs_recent, &trial)?;
        let mut largest_query = self.spy.stop();
        largest_query.resize(trial.num_heads(), Vec::new());
        let parts = deletion.into_iter().zip(recent_mass).zip(early_mass).zip(largest_query);
        let heads =
            parts.enumerate().map(|(head, (((deletion, recent_mass), early), largest_query))| {
                let segment = trial.segment(head);
                Head {
                    head_dim: segment.head_dim,
                    mass: if self.needs.mass { sum(&recent_mass, &early) } else { Vec::new() },
                    keys: segment.keys,
                    values: segment.values,
                    recent_mass,
                    deletion,
                    largest_query,
                }
            });
        let heads = heads.collect();
        Ok((Prefix { heads, num_kv_heads: self.lab.config().num_kv_heads }, trial))
    }
}

fn scoring(rows: usize, signal: Signal, decay: f32) -> Scoring {
    Scoring { rows, signal, decay }
}

/// The squared changes of outputs that the queries of `late`, which come next, would see.
fn deletion(trial: &Trial, late: &[u32]) -> Result<Vec<Vec<f32>>> {
    let mut fork = trial.fork()?;
    fork.observe(late, Some(scoring(RECENT, Signal::Deletion, 0.0)))?;
    signals_if(true, &fork)
}

/// Mass from the last queries and from those before, which are fewer tokens.
fn sum(recent: &[f32], early: &[f32]) -> Vec<f32> {
    let early = early.iter().chain(std::iter::repeat(&0.0));
    recent.iter().zip(early).map(|(a, b)| a + b).collect()
}

impl Prefix {
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

/// Accumulated signals of all heads if they are wanted, in the order of positions, in which an exact
/// context stands; else nothing for each.
fn signals_if(is_wanted: bool, trial: &Trial) -> Result<Vec<Vec<f32>>> {
    if !is_wanted {
        return Ok(vec![Vec::new(); trial.num_heads()]);
    }
    let head = |head| Ok(trial.states(head)?.iter().map(|state| state.attribution).collect());
    (0..trial.num_heads()).map(head).collect()
}

/// The exact context after a method was at it: new K and V in F16 pages, dropped tokens gone.
pub fn apply<'a>(exact: &Trial<'a>, compressed: &Compressed) -> Result<Trial<'a>> {
    let mut trial = exact.fork()?;
    for (index, head) in compressed.heads.iter().enumerate() {
        if let Some((keys, values)) = &head.vectors {
            trial.replace(index, keys, values);
        }
    }
    if compressed.heads.iter().any(|head| head.kept.is_some()) {
        // Of an exact context every token is there, in F16, in the order of positions.
        let assignment = |head: &CompressedHead| match &head.kept {
            Some(kept) => kept.iter().map(|kept| kept.then_some(Tier::F16)).collect(),
            None => vec![Some(Tier::F16); exact.len()],
        };
        trial.assign(&compressed.heads.iter().map(assignment).collect::<Vec<_>>())?;
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
    const TOKENS: usize = 200;

    fn world() -> (Box<dyn Model>, Arc<Spy>) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/tiny-llama3");
        let spy = Arc::new(Spy::new(available().remove(0).into()));
        let backend: Arc<dyn Backend> = spy.clone();
        (load_model(&PathBuf::from(folder), WeightFormat::AsFile, backend).unwrap(), spy)
    }

    fn context() -> Vec<u32> {
        (0..TOKENS as u32).map(|i| i * 37 % 509 + 1).collect()
    }

    fn with_prefix(check: impl FnOnce(&Prefix, &Trial, &Lab)) {
        let (model, spy) = world();
        let lab = Lab::new(&*model, &*spy, 64, Protection::default());
        let needs = Needs { mass: true, recent_mass: true, deletion: true };
        let read = Read { lab: &lab, spy: &spy, needs, capacity: 256 };
        let (prefix, exact) = read.prefix(&context()).unwrap();
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
    fn what_is_read_is_the_same_whatever_else_is_read() {
        with_prefix(|prefix, _, lab| {
            let (_, spy) = world();
            let read = |needs| {
                let read = Read { lab, spy: &spy, needs, capacity: 256 };
                read.prefix(&context()).unwrap().0
            };
            let none = Needs::default();
            let recent = read(Needs { recent_mass: true, ..none });
            let deletion = read(Needs { deletion: true, ..none });
            for (head, all) in prefix.heads.iter().enumerate() {
                assert_eq!(recent.heads[head].recent_mass, all.recent_mass);
                assert_eq!(deletion.heads[head].deletion, all.deletion);
                assert_eq!(deletion.heads[head].keys, all.keys);
                assert!(recent.heads[head].mass.is_empty());
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
