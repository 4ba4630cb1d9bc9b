//! A stretch of the calibration text: what the model predicts after it, exact and coarsened.

use std::{cell::RefCell, ops::Range};

use anyhow::Result;
use candle_core::Tensor;
use keepwell_kernels::{Scoring, Signal, Tier};
use keepwell_models::Probed;
use rayon::prelude::*;

use crate::{
    cache::Assignment,
    compress::{Protection, refine},
    trial::{Lab, Recipe, Trial, Way},
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
    /// After which of them predictions are compared.
    judged: Vec<usize>,
    /// By token judged.
    reference: Vec<Predicted>,
    /// By layer, (forced tokens, hidden) as they enter it: what happens to one layer's cache changes
    /// nothing before.
    states: Vec<Tensor>,
    num_kv_heads: usize,
    /// By head, the refined importance of the prefix's tokens in page order.
    scores: Vec<Vec<f32>>,
}

impl<'a> Window<'a> {
    /// # Errors
    /// A failing kernel, or a system without memory for the cache.
    pub fn new(lab: &Lab<'a>, tokens: &[u32]) -> Result<Self> {
        let (context, continued) = tokens.split_at(tokens.len() - CONTINUED);
        let forced = [continued, &recalled(context)].concat();
        let (before, scored) = context.split_at(context.len() - SCORED);
        let mut prefix = lab.start(Recipe::exact(), context.len() + forced.len())?;
        prefix.observe(before, None)?;
        let scoring = Scoring { rows: SCORED, signal: Signal::Deletion, decay: 1.0 };
        prefix.observe(scored, Some(scoring))?;
        let states = RefCell::new(Vec::new());
        let probe = |_: usize, probed: Probed| {
            if let Probed::States(x) = probed {
                states.borrow_mut().push(x.clone());
            }
            Ok(())
        };
        let judged = judged(continued.len());
        let way = Way { logit_rows: Some(&judged), probe: Some(&probe), ..Way::default() };
        let logits = prefix.fork()?.force_by(&forced, way)?;
        let rows: Vec<_> = logits.rows().collect();
        let reference = rows.par_iter().map(|row| Predicted::new(row)).collect();
        let scores = (0..prefix.num_heads()).map(|head| {
            let states = prefix.states(head)?;
            let (positions, mut scores): (Vec<u32>, Vec<f32>) =
                states.iter().map(|state| (state.position, state.attribution)).unzip();
            let undecided = unprotected(scores.len());
            refine(&positions[undecided.clone()], &mut scores[undecided], 0.0);
            Ok(scores)
        });
        let scores = scores.collect::<Result<_>>()?;
        Ok(Self {
            prefix,
            forced,
            num_continued: continued.len(),
            judged,
            reference,
            states: states.into_inner(),
            num_kv_heads: lab.config().num_kv_heads,
            scores,
        })
    }

    /// What it does to predictions that all unprotected tokens of `heads`, all of one layer, go to `tier`.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn coarsening(&self, heads: &Range<usize>, tier: Tier) -> Result<Divergence> {
        let assign = |head, _| Some(if heads.contains(&head) { tier } else { Tier::F16 });
        self.divergence(heads.start, assign)
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
        let assign = |other, token| (other != head || !evicts(token)).then_some(Tier::F16);
        let whole = self.divergence(head, assign)?;
        let evicted = || undecided.clone().filter(|token| evicts(*token));
        let share = |lost: f32| (lost / undecided.len() as f32).max(f32::MIN_POSITIVE);
        Ok(Divergence {
            continued: whole.continued / share(evicted().map(|token| scores[token]).sum()),
            recalled: whole.recalled / share(evicted().count() as f32),
        })
    }

    /// When `assign` decides, by head and token, what becomes of the prefix's tokens that are not
    /// protected; those of layers before that of `first_head` stay as they are.
    fn divergence(
        &self,
        first_head: usize,
        assign: impl Fn(usize, usize) -> Assignment,
    ) -> Result<Divergence> {
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
        let layer = first_head / self.num_kv_heads;
        let resumed = Some((layer, &self.states[layer]));
        let way = Way { logit_rows: Some(&self.judged), resumed, ..Way::default() };
        let logits = trial.force_by(&self.forced, way)?;
        let rows: Vec<_> = logits.rows().collect();
        let rows = self.reference.par_iter().zip(&rows);
        let each: Vec<f64> = rows.map(|(predicted, logits)| predicted.divergence(logits)).collect();
        let (continued, recalled) = each.split_at(self.num_continued);
        Ok(Divergence { continued: mean(continued), recalled: mean(recalled) })
    }
}

/// Stretches of a context, one after the other.
fn recalled(context: &[u32]) -> Vec<u32> {
    let start = |share: f32| (share * context.len() as f32) as usize;
    RECALLED_FROM.iter().flat_map(|share| &context[start(*share)..][..RECALLED]).copied().collect()
}

/// All of the continuation, and of each stretch what can be foreseen of it.
fn judged(num_continued: usize) -> Vec<usize> {
    let stretches = (0..RECALLED_FROM.len()).map(|index| num_continued + index * RECALLED);
    let foreseeable = stretches.flat_map(|start| start + UNFORESEEABLE..start + RECALLED - 1);
    (0..num_continued).chain(foreseeable).collect()
}

/// Tokens of a context that are up for a decision.
fn unprotected(len: usize) -> Range<usize> {
    let Protection { sinks, recent, .. } = Protection::default();
    sinks..len.saturating_sub(recent).max(sinks)
}

/// Never below 0, which rounding can bring about.
fn mean(divergences: &[f64]) -> f32 {
    (divergences.iter().sum::<f64>() / divergences.len().max(1) as f64).max(0.0) as f32
}

fn median(scores: &[f32]) -> f32 {
    let mut sorted = scores.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// What the exact model says comes next.
struct Predicted {
    /// p, by token.
    probabilities: Vec<f32>,
    sum: f64,
    /// The sum of p times log p.
    negentropy: f64,
}

impl Predicted {
    fn new(logits: &[f32]) -> Self {
        let normalizer = normalizer(logits);
        let log = |logit: &f32| f64::from(*logit) - normalizer;
        let probabilities: Vec<f32> = logits.iter().map(|x| log(x).exp() as f32).collect();
        let sum = probabilities.iter().map(|p| f64::from(*p)).sum();
        let negentropy = dot(&probabilities, logits) - sum * normalizer;
        Self { probabilities, sum, negentropy }
    }

    /// KL divergence of what `logits` say from it.
    fn divergence(&self, logits: &[f32]) -> f64 {
        let predicted = dot(&self.probabilities, logits) - self.sum * normalizer(logits);
        self.negentropy - predicted
    }
}

/// What is to be taken off logits for their exponentials to be probabilities.
fn normalizer(logits: &[f32]) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from((x - largest).exp())).sum();
    f64::from(largest) + sum.ln()
}

/// Sums are kept for each of some lanes: a single one would not vectorize.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    let ((runs, rest), (others, last)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [0f64; 8];
    for (run, other) in runs.iter().zip(others) {
        lanes.iter_mut().zip(run.iter().zip(other)).for_each(|(lane, pair)| *lane += product(pair));
    }
    lanes.iter().sum::<f64>() + rest.iter().zip(last).map(product).sum::<f64>()
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
    fn a_repetition_is_judged_once_it_shows_and_as_long_as_it_goes_on() {
        let judged = judged(2);
        assert_eq!(judged[..4], [0, 1, 2 + 3, 2 + 4]);
        assert_eq!(judged.len(), 2 + 2 * (RECALLED - UNFORESEEABLE - 1));
        // The last token of a stretch is followed by another stretch, or by nothing.
        assert!(!judged.contains(&(2 + RECALLED - 1)) && !judged.contains(&(2 + NUM_RECALLED - 1)));
    }

    #[test]
    fn a_divergence_is_the_sum_of_p_times_the_difference_of_logarithms() {
        let (p, q): ([f32; 3], [f32; 3]) = ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]);
        let logits = |of: [f32; 3], shift: f32| of.map(|x| x.ln() + shift);
        let expected: f32 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let predicted = Predicted::new(&logits(p, 3.0));
        assert!((predicted.divergence(&logits(q, -20.0)) - f64::from(expected)).abs() < 1e-6);
        assert!(predicted.divergence(&logits(p, 7.0)).abs() < 1e-6);
    }

    #[test]
    fn a_mean_of_divergences_is_no_less_than_nothing() {
        assert_eq!(mean(&[-1e-9, 0.0]), 0.0);
        assert_eq!(mean(&[0.25, 0.75]), 0.5);
    }
}
