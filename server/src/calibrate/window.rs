//! A stretch of the calibration text: what the model predicts after it, exact and coarsened.

use std::ops::Range;

use anyhow::Result;
use keepwell_kernels::{Scoring, Signal, Tier};
use rayon::prelude::*;

use crate::{
    cache::Assignment,
    compress::{Protection, refine},
    trial::{Lab, Logits, Recipe, Trial},
};

/// Tokens that are coarsened.
const PREFIX: usize = 704;
/// Tokens that follow them in the text.
const CONTINUED: usize = 28;
/// Then come stretches of the prefix once more, of this length, from these shares of it.
const RECALLED: usize = 14;
const RECALLED_FROM: [f32; 2] = [0.15, 0.6];
/// A repetition shows as one only after its first tokens.
const UNFORESEEABLE: usize = 3;
/// Queries that judge the prefix.
const SCORED: usize = 64;

/// Tokens of the text that one window takes.
pub const LEN: usize = PREFIX + CONTINUED;
/// With fewer there is nothing to coarsen.
pub const SHORTEST: usize = 256;
/// Tokens that are repeated after it.
pub const NUM_RECALLED: usize = RECALLED * RECALLED_FROM.len();

/// KL divergence from the exact predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Of what comes next in the text.
    pub continued: f32,
    /// Of what was read before and comes again: what a later question asks for. Some heads do little
    /// else (retrieval heads, arXiv 2404.15574), and matter to running text not at all.
    pub recalled: f32,
}

impl Divergence {
    pub fn is_finite(self) -> bool {
        self.continued.is_finite() && self.recalled.is_finite()
    }
}

impl std::ops::AddAssign for Divergence {
    fn add_assign(&mut self, other: Self) {
        self.continued += other.continued;
        self.recalled += other.recalled;
    }
}

impl std::ops::Div<f32> for Divergence {
    type Output = Self;

    fn div(self, by: f32) -> Self {
        Self { continued: self.continued / by, recalled: self.recalled / by }
    }
}

/// A prefix in F16 and what the model predicts after it.
pub struct Window<'a> {
    prefix: Trial<'a>,
    /// The continuation, then the stretches that come again.
    forced: Vec<u32>,
    num_continued: usize,
    reference: Vec<Vec<f32>>,
    /// By head, the refined importance of the prefix's tokens in page order.
    scores: Vec<Vec<f32>>,
}

impl<'a> Window<'a> {
    /// # Errors
    /// A failing kernel, or a system without memory for the cache.
    pub fn new(lab: &Lab<'a>, tokens: &[u32]) -> Result<Self> {
        let (context, continued) = tokens.split_at(tokens.len() - CONTINUED);
        let forced = [continued, &recalled(context)].concat();
        let (before, judged) = context.split_at(context.len() - SCORED);
        let mut prefix = lab.start(Recipe::exact(), context.len() + forced.len())?;
        prefix.observe(before, None)?;
        let scoring = Scoring { rows: SCORED, signal: Signal::Deletion, decay: 1.0 };
        prefix.observe(judged, Some(scoring))?;
        let reference = log_softmax(&prefix.fork()?.force(&forced)?);
        let scores = (0..prefix.num_heads()).map(|head| {
            let states = prefix.states(head)?;
            let (positions, mut scores): (Vec<u32>, Vec<f32>) =
                states.iter().map(|state| (state.position, state.attribution)).unzip();
            let undecided = unprotected(scores.len());
            refine(&positions[undecided.clone()], &mut scores[undecided], 0.0);
            Ok(scores)
        });
        let scores = scores.collect::<Result<_>>()?;
        Ok(Self { prefix, forced, num_continued: continued.len(), reference, scores })
    }

    /// What it does to predictions that all unprotected tokens of `heads` go to `tier`.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn coarsening(&self, heads: &Range<usize>, tier: Tier) -> Result<Divergence> {
        self.divergence(|head, _| Some(if heads.contains(&head) { tier } else { Tier::F16 }))
    }

    /// The same when the tokens below the head's median importance are evicted; and for each unit of
    /// what is lost: of importance where the text goes on, of tokens where it is repeated.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn eviction(&self, head: usize) -> Result<Divergence> {
        let undecided = unprotected(self.prefix.len());
        let scores = &self.scores[head];
        let median = median(&scores[undecided.clone()]);
        let evicts = |token: usize| scores[token] < median;
        let whole =
            self.divergence(|other, token| (other != head || !evicts(token)).then_some(Tier::F16))?;
        let evicted = || undecided.clone().filter(|token| evicts(*token));
        let share = |lost: f32| (lost / undecided.len() as f32).max(f32::MIN_POSITIVE);
        Ok(Divergence {
            continued: whole.continued / share(evicted().map(|token| scores[token]).sum()),
            recalled: whole.recalled / share(evicted().count() as f32),
        })
    }

    /// When `assign` decides, by head and token, what becomes of the prefix's tokens that are not
    /// protected.
    fn divergence(&self, assign: impl Fn(usize, usize) -> Assignment) -> Result<Divergence> {
        let mut trial = self.prefix.fork()?;
        let len = self.prefix.len();
        let of_head = |head: usize| -> Vec<Assignment> {
            let decide = |token: usize| match unprotected(len).contains(&token) {
                true => assign(head, token),
                false => Some(Tier::F16),
            };
            (0..len).map(decide).collect()
        };
        trial.assign(&(0..trial.num_heads()).map(of_head).collect::<Vec<_>>())?;
        let predicted = log_softmax(&trial.force(&self.forced)?);
        let rows = self.reference.par_iter().zip(&predicted);
        let each: Vec<f64> = rows.map(|(p, q)| kl_divergence(p, q)).collect();
        let (continued, recalled) = each.split_at(self.num_continued);
        let foreseeable = recalled
            .chunks(RECALLED)
            .flat_map(|stretch| &stretch[UNFORESEEABLE.min(stretch.len())..stretch.len() - 1]);
        Ok(Divergence { continued: mean(continued), recalled: mean(foreseeable) })
    }
}

/// Stretches of a context, one after the other.
fn recalled(context: &[u32]) -> Vec<u32> {
    let start = |share: f32| (share * context.len() as f32) as usize;
    RECALLED_FROM.iter().flat_map(|share| &context[start(*share)..][..RECALLED]).copied().collect()
}

/// Tokens of a context that are up for a decision.
fn unprotected(len: usize) -> Range<usize> {
    let Protection { sinks, recent, .. } = Protection::default();
    sinks..len.saturating_sub(recent).max(sinks)
}

/// Never below 0, which rounding can bring about.
fn mean<'a>(divergences: impl IntoIterator<Item = &'a f64>) -> f32 {
    let (sum, count) = divergences.into_iter().fold((0.0, 0), |(sum, n), d| (sum + d, n + 1));
    (sum / f64::from(count.max(1))).max(0.0) as f32
}

fn median(scores: &[f32]) -> f32 {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn log_softmax(logits: &Logits) -> Vec<Vec<f32>> {
    let rows: Vec<_> = logits.rows().collect();
    let of_row = |row: &&[f32]| -> Vec<f32> {
        let largest = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f32 = row.iter().map(|x| (x - largest).exp()).sum();
        let normalizer = largest + sum.ln();
        row.iter().map(|x| x - normalizer).collect()
    };
    rows.par_iter().map(of_row).collect()
}

/// Of log-probabilities `q` from `p`.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| f64::from(p.exp() * (p - q))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_of_the_context_come_again_whole() {
        let context: Vec<u32> = (0..400).collect();
        let recalled = recalled(&context);
        assert_eq!(recalled.len(), NUM_RECALLED);
        assert_eq!(recalled[..RECALLED], context[60..60 + RECALLED]);
        assert!(recalled.chunks(RECALLED).all(|s| s.windows(2).all(|pair| pair[1] == pair[0] + 1)));
    }

    #[test]
    fn a_mean_of_divergences_is_no_less_than_nothing() {
        assert_eq!(mean(&[-1e-9, 0.0]), 0.0);
        assert_eq!(mean(&[0.25, 0.75]), 0.5);
    }
}
