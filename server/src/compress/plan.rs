//! One compress event of one sequence, decided: tiers for all its tokens, then moves.

use std::ops::Range;

use keepwell_kernels::{Move, PageLayout, PageRef, Tier, TokenAttribution};
use rayon::prelude::*;

use super::{Candidate, MAX_TIERS, Policy, Prices, Spans, TokenSignals, assign_at_price, refine};
use crate::cache::{Assignment, Ledger, PageTable, REACH, Repack};

/// Moves that one kernel call stages at most, unless a single head needs more.
const MOVES_PER_BATCH: usize = 16_384;
const HEADS_AT_A_TIME: usize = 16;

/// Position and accumulated signal of each token of one (layer, KV head), in page order.
#[derive(Clone, Debug, Default)]
pub struct HeadTokens {
    pub positions: Vec<u32>,
    pub signals: Vec<f32>,
}

impl HeadTokens {
    pub fn of(tokens: &[TokenAttribution]) -> Self {
        Self {
            positions: tokens.iter().map(|token| token.position).collect(),
            signals: tokens.iter().map(|token| token.attribution).collect(),
        }
    }

    /// The signals over their mean; 0 where nothing was accumulated.
    pub fn relative(&self) -> impl Iterator<Item = f32> {
        let sum: f32 = self.signals.iter().sum();
        let mean = sum / self.signals.len().max(1) as f32;
        self.signals.iter().map(move |signal| if mean > 0.0 { signal / mean } else { 0.0 })
    }
}

/// Tokens that keep a tier whatever their score: never evicted, and fine where that is a small
/// part of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// First positions: attention sinks (StreamingLLM).
    pub sinks: usize,
    /// Last positions: no query has judged them yet.
    pub recent: usize,
    /// Last positions of the prompt: the question and what calls for the answer.
    pub prompt_end: usize,
}

impl Default for Protection {
    fn default() -> Self {
        Self { sinks: 4, recent: 64, prompt_end: 64 }
    }
}

impl Protection {
    fn covers(&self, position: usize, prompt_len: usize, seq_len: usize) -> bool {
        let prompt_end = prompt_len.saturating_sub(self.prompt_end)..prompt_len;
        position < self.sinks || position + self.recent >= seq_len || prompt_end.contains(&position)
    }
}

/// What an event is to achieve.
pub struct Goal<'a> {
    pub policy: &'a dyn Policy,
    pub prices: &'a Prices,
    pub protection: Protection,
    /// Protected besides.
    pub marked: &'a Spans,
    pub prompt_len: usize,
    /// Pages the sequence may hold afterwards.
    pub max_pages: usize,
}

impl Goal<'_> {
    /// The positions of a sequence that are neither protected nor marked.
    pub fn undecided(&self, seq_len: usize) -> Vec<Range<u32>> {
        let is_undecided = |position: &usize| {
            !self.protection.covers(*position, self.prompt_len, seq_len)
                && !self.marked.covers(*position)
        };
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for position in (0..seq_len).filter(is_undecided).map(|position| position as u32) {
            match ranges.last_mut().filter(|range| range.end == position) {
                Some(range) => range.end += 1,
                None => ranges.push(position..position + 1),
            }
        }
        ranges
    }
}

/// What an event decided.
#[derive(Debug)]
pub struct Decision {
    /// A tier for every token of the sequence, per head in page order.
    pub assignments: Vec<Vec<Assignment>>,
    /// The price of a byte, if pages were short.
    pub price: Option<f32>,
}

/// Tiers for every token of the sequence.
pub fn decide(
    table: &PageTable,
    tokens: &[HeadTokens],
    goal: &Goal,
    layout: &PageLayout,
) -> Decision {
    let heads = all_candidates(table, tokens, goal, layout);
    // Pages that end early because the next position is out of their reach.
    let early_ends = table.num_heads() * MAX_TIERS * (table.len() / REACH);
    let max_pages = goal.max_pages.saturating_sub(early_ends);
    let (assignments, price) = assign_at_price(&heads, max_pages, goal.prices, layout);
    Decision { assignments, price }
}

/// The tokens of all heads, scored, as the price sees them.
fn all_candidates(
    table: &PageTable,
    tokens: &[HeadTokens],
    goal: &Goal,
    layout: &PageLayout,
) -> Vec<Vec<Candidate>> {
    let protected = Protected::new(table, goal, layout);
    tokens
        .par_iter()
        .enumerate()
        .map(|(head, tokens)| candidates(table, head, tokens, goal, &protected))
        .collect()
}

/// What protected tokens are kept in, and marked ones apart from the others: the finest that takes no
/// more than an eighth of the pages and that no head refuses.
const PROTECTED: [Tier; 4] = [Tier::K8V8, Tier::K5V5, Tier::K4V4, COARSEST_PROTECTED];
/// And this when there is none.
pub const COARSEST_PROTECTED: Tier = Tier::K3V3;

/// The tiers of protected tokens in one event.
struct Protected<'a> {
    goal: &'a Goal<'a>,
    layout: &'a PageLayout,
    seq_len: usize,
    /// Sinks are unlike all other keys, few, and looked at by every query: exact where that takes a
    /// small part of the budget. The page has room for the next tokens besides.
    sinks: Tier,
    others: Tier,
    marked: Tier,
}

impl<'a> Protected<'a> {
    fn new(table: &PageTable, goal: &'a Goal, layout: &'a PageLayout) -> Self {
        let seq_len = table.len();
        let covers = |position: &usize| goal.protection.covers(*position, goal.prompt_len, seq_len);
        let num_protected = (0..seq_len).filter(covers).count();
        let fits = |tokens: usize, tier: Tier| {
            tokens.div_ceil(layout.capacity(tier)) * table.num_heads() <= goal.max_pages / 8
        };
        let tier_for = |tokens: usize| {
            let serves = |tier: &Tier| fits(tokens, *tier) && !goal.prices.refuses(*tier);
            PROTECTED.into_iter().find(serves).unwrap_or(COARSEST_PROTECTED)
        };
        let others = tier_for(num_protected);
        let marked = tier_for(goal.marked.num_tokens());
        let sinks = if fits(goal.protection.sinks, Tier::F16) { Tier::F16 } else { others };
        Self { goal, layout, seq_len, sinks, others, marked }
    }

    /// What a token is to be kept in, if it is protected. None gets finer.
    fn tier(&self, position: u32, current: Tier) -> Option<Tier> {
        let Goal { protection, prompt_len, marked, .. } = self.goal;
        let position = position as usize;
        let wanted = if position < protection.sinks {
            self.sinks
        } else if protection.covers(position, *prompt_len, self.seq_len) {
            self.others
        } else if marked.covers(position) {
            self.marked
        } else {
            return None;
        };
        let coarser = self.layout.token_bytes(wanted) < self.layout.token_bytes(current);
        Some(if coarser { wanted } else { current })
    }
}

fn candidates(
    table: &PageTable,
    head: usize,
    tokens: &HeadTokens,
    goal: &Goal,
    protected: &Protected,
) -> Vec<Candidate> {
    let HeadTokens { positions, signals } = tokens;
    let mut scores = vec![0f32; positions.len()];
    let seen = TokenSignals { head, seq_len: table.len(), positions, signals };
    goal.policy.score(&seen, &mut scores);
    let mut candidates = Vec::with_capacity(positions.len());
    let mut scored = positions.iter().zip(scores);
    for PageRef { tier, len, .. } in table.head(head).pages.iter().copied() {
        candidates.extend(scored.by_ref().take(usize::from(len)).map(|(&position, score)| {
            Candidate { score, tier, fixed: protected.tier(position, tier) }
        }));
    }
    refine_undecided(positions, &mut candidates, goal.prices.head(head).unforeseen);
    candidates
}

/// Only tokens that are up for a decision are compared with each other: what sinks draw would make
/// all others look alike.
fn refine_undecided(positions: &[u32], candidates: &mut [Candidate], unforeseen: f32) {
    let undecided = |candidate: &Candidate| candidate.fixed.is_none();
    let (positions, mut scores): (Vec<_>, Vec<_>) = positions
        .iter()
        .zip(candidates.iter())
        .filter(|(_, candidate)| undecided(candidate))
        .map(|(position, candidate)| (*position, candidate.score))
        .unzip();
    refine(&positions, &mut scores, unforeseen);
    for (candidate, score) in candidates.iter_mut().filter(|c| undecided(c)).zip(scores) {
        candidate.score = score;
    }
}

/// Books the assignments, and has `compact` make the moves batch by batch: within one all reads come
/// before all writes. Heads that shrink go first, so that the sequence never holds more than the larger
/// of before and after. Returns whether every head found the pages it needed.
pub fn repack<E>(
    table: &mut PageTable,
    ledger: &mut Ledger,
    tokens: &[HeadTokens],
    assignments: &[Vec<Assignment>],
    mut compact: impl FnMut(&[Move]) -> Result<(), E>,
) -> Result<bool, E> {
    let layout = *ledger.layout();
    let mut is_complete = true;
    let mut batch = Vec::new();
    // What a head becomes takes more memory than its coded tokens: few of them at a time.
    for heads in shrinking_first(table, tokens, assignments, &layout).chunks(HEADS_AT_A_TIME) {
        let shared = &*table;
        let new = |&head: &usize| {
            let positions = &tokens[head].positions;
            Repack::new(shared, head, positions, &assignments[head], &layout)
        };
        let repacks: Vec<_> = heads.par_iter().map(new).collect();
        for repack in repacks {
            // A head for which no page is left stays as it is until the next event.
            let Some(moves) = repack.book(table, ledger) else {
                is_complete = false;
                continue;
            };
            if batch.len() + moves.len() > MOVES_PER_BATCH && !batch.is_empty() {
                compact(&batch)?;
                batch.clear();
            }
            batch.extend(moves);
        }
    }
    if !batch.is_empty() {
        compact(&batch)?;
    }
    Ok(is_complete)
}

fn shrinking_first(
    table: &PageTable,
    tokens: &[HeadTokens],
    assignments: &[Vec<Assignment>],
    layout: &PageLayout,
) -> Vec<usize> {
    let change = |(head, (tokens, tiers)): (usize, (&HeadTokens, &Vec<Assignment>))| {
        (Repack::change(table, head, &tokens.positions, tiers, layout), head)
    };
    let mut changes: Vec<_> = tokens.par_iter().zip(assignments).enumerate().map(change).collect();
    changes.sort_unstable();
    changes.into_iter().map(|(_, head)| head).collect()
}

#[cfg(test)]
mod tests;
