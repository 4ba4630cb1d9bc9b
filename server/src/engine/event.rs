//! A compress event of one sequence: score -> price -> compact.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use keepwell_kernels::{Arena, Backend, PerTier, Result};
use rayon::prelude::*;

use crate::{
    cache::{Assignment, Ledger, PageTable},
    compress::{Goal, HeadTokens, Prices, decide, repack},
    sched::{Demand, Purity, Sequence},
};

use super::KvUsage;

/// The page memory and its account.
pub struct Memory<'a> {
    pub arena: &'a mut Arena,
    pub ledger: &'a mut Ledger,
}

/// What an event did and took.
#[derive(Debug)]
pub struct Report {
    pub reclaimed_bytes: usize,
    /// (token, layer, KV head) entries by the smaller tier they moved to.
    pub demoted: PerTier<usize>,
    pub num_evicted: usize,
    /// Share of the attribution still held, mean over heads; `None` when nothing was accumulated.
    pub retained: Option<f64>,
    /// Of a byte, if pages were short.
    pub price: Option<f32>,
    score: Duration,
    decide: Duration,
    compact: Duration,
}

impl Report {
    pub fn stages(&self) -> [(&'static str, Duration); 3] {
        [("score", self.score), ("price", self.decide), ("compact", self.compact)]
    }
}

/// Brings the sequence down to what its budget allows. `None` when it was within its limit.
pub fn compress_event(
    backend: &dyn Backend,
    memory: Memory,
    seq: &mut Sequence,
    demand: &Demand,
    prices: &Prices,
) -> Result<Option<Report>> {
    let max_pages = seq.limit(demand);
    if !seq.is_compressed() || seq.table.num_pages() <= max_pages {
        return Ok(None);
    }
    if seq.budget < seq.asked_budget {
        seq.sharing.is_at_best(Purity::Private);
    }
    compress_to(max_pages, backend, memory, seq, (demand, prices)).map(Some)
}

/// Brings the sequence down to so many pages.
pub fn compress_to(
    max_pages: usize,
    backend: &dyn Backend,
    memory: Memory,
    seq: &mut Sequence,
    (demand, prices): (&Demand, &Prices),
) -> Result<Report> {
    let started = Instant::now();
    let tokens = read_tokens(backend, memory.arena, &seq.table)?;
    let scored = Instant::now();
    let prices = prices_for(seq, prices);
    let goal = goal(seq, demand, &prices, max_pages);
    let (pages_before, evicted_before) = (seq.table.num_pages(), seq.table.num_evicted());
    let layout = *memory.ledger.layout();
    let decision = decide(&seq.table, &tokens, &goal, &layout);
    if let Some(evicted) = &mut seq.evicted {
        evicted.note(&tokens, &decision.assignments);
    }
    let decided = Instant::now();
    let done = execute(backend, memory, &mut seq.table, &tokens, &decision.assignments)?;
    // A head that found no pages depends on what else holds them.
    seq.sharing.is_at_best(if done.is_complete { Purity::Recipe } else { Purity::Private });
    let freed = pages_before.saturating_sub(seq.table.num_pages());
    Ok(Report {
        reclaimed_bytes: freed * layout.page_bytes,
        demoted: done.demoted,
        num_evicted: seq.table.num_evicted() - evicted_before,
        retained: retained(&tokens, &decision.assignments),
        price: decision.price,
        score: scored - started,
        decide: decided - scored,
        compact: decided.elapsed(),
    })
}

pub(super) fn prices_for<'a>(seq: &Sequence, prices: &'a Prices) -> Cow<'a, Prices> {
    match seq.demotes_first() {
        true => Cow::Owned(prices.reluctant()),
        false => Cow::Borrowed(prices),
    }
}

pub(super) fn goal<'a>(
    seq: &'a Sequence,
    demand: &Demand,
    prices: &'a Prices,
    max_pages: usize,
) -> Goal<'a> {
    Goal {
        policy: seq.policy.policy(),
        prices,
        protection: demand.protection,
        marked: &seq.marked,
        prompt_len: seq.prompt_len,
        max_pages,
    }
}

/// Share of the signals whose tokens are kept, mean over the heads that have any.
fn retained(tokens: &[HeadTokens], assignments: &[Vec<Assignment>]) -> Option<f64> {
    let share = |(head, tiers): (&HeadTokens, &Vec<Assignment>)| {
        let signals = head.signals.iter().map(|signal| f64::from(*signal));
        let kept = signals.clone().zip(tiers).filter(|(_, tier)| tier.is_some());
        let (kept, all): (f64, f64) = (kept.map(|(signal, _)| signal).sum(), signals.sum());
        (all > 0.0).then_some(kept / all)
    };
    let shares: Vec<f64> = tokens.iter().zip(assignments).filter_map(share).collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// What became of decisions.
pub struct Done {
    /// Entries that changed their tier, by the new one.
    pub demoted: PerTier<usize>,
    /// Whether every head found the pages it needed.
    pub is_complete: bool,
}

/// Carries out what was decided for every token.
pub fn execute(
    backend: &dyn Backend,
    memory: Memory,
    table: &mut PageTable,
    tokens: &[HeadTokens],
    assignments: &[Vec<Assignment>],
) -> Result<Done> {
    let mut demoted = PerTier::default();
    let Memory { arena, ledger } = memory;
    let is_complete = repack(table, ledger, tokens, assignments, |moves| {
        for to in moves.iter().filter(|m| m.from_tier != m.to_tier).map(|m| m.to_tier) {
            demoted[to] += 1;
        }
        backend.compact(arena, moves)
    })?;
    Ok(Done { demoted, is_complete })
}

/// Positions and signals of all heads, in page order.
pub fn read_tokens(
    backend: &dyn Backend,
    arena: &Arena,
    table: &PageTable,
) -> Result<Vec<HeadTokens>> {
    let heads = || (0..table.num_heads()).map(|head| &table.head(head).pages);
    // In one call: a device takes a launch, and answers, for each.
    let pages: Vec<_> = heads().flatten().copied().collect();
    let tokens = backend.attributions(arena, &pages)?;
    let mut rest = &tokens[..];
    let of_heads = heads().map(|pages| {
        let (here, after) = rest.split_at(pages.iter().map(|page| usize::from(page.len)).sum());
        rest = after;
        here
    });
    let of_heads: Vec<_> = of_heads.collect();
    Ok(of_heads.into_par_iter().map(HeadTokens::of).collect())
}

/// What the sequence holds, by the ledger.
pub fn usage(seq: &Sequence, demand: &Demand) -> KvUsage {
    let page_bytes = demand.layout.page_bytes;
    let holdings = seq.table.holdings();
    KvUsage {
        budget: seq.budget,
        lowest_budget: seq.lowest_budget,
        bytes: holdings.num_pages() * page_bytes,
        peak_bytes: seq.table.peak_pages() * page_bytes,
        f16_bytes: demand.f16_bytes(seq.table.len()),
        tokens: Box::new(holdings.tokens),
        evicted: seq.table.num_evicted(),
    }
}
