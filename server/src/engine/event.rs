//! A compress event of one sequence: score -> price -> compact.

use keepwell_kernels::{Arena, Backend, Result};
use rayon::prelude::*;

use crate::{
    cache::{Assignment, Ledger, PageTable},
    compress::{Goal, HeadTokens, Prices, decide, repack},
    sched::{Demand, Sequence},
};

use super::KvUsage;

/// The page memory and its account.
pub struct Memory<'a> {
    pub arena: &'a mut Arena,
    pub ledger: &'a mut Ledger,
}

/// Brings the sequence down to what its budget allows. Returns the pages freed, or `None` when it
/// was within its limit.
pub fn compress_event(
    backend: &dyn Backend,
    memory: Memory,
    seq: &mut Sequence,
    demand: &Demand,
    prices: &Prices,
) -> Result<Option<usize>> {
    let max_pages = demand.limit(seq.budget, seq.budgeted_len());
    if seq.table.num_pages() <= max_pages {
        return Ok(None);
    }
    let tokens = read_tokens(backend, memory.arena, &seq.table)?;
    // While a prompt comes in, what reads it next may still ask for anything: demoted tokens can tell
    // it, evicted ones cannot.
    let reluctant = (seq.num_pending() > 1).then(|| prices.reluctant());
    let goal = Goal {
        policy: seq.policy.policy(),
        prices: reluctant.as_ref().unwrap_or(prices),
        protection: demand.protection,
        prompt_len: seq.prompt_len,
        max_pages,
    };
    let before = seq.table.num_pages();
    let assignments = decide(&seq.table, &tokens, &goal, memory.ledger.layout());
    execute(backend, memory, &mut seq.table, &tokens, &assignments)?;
    Ok(Some(before.saturating_sub(seq.table.num_pages())))
}

/// Carries out what was decided for every token.
pub fn execute(
    backend: &dyn Backend,
    memory: Memory,
    table: &mut PageTable,
    tokens: &[HeadTokens],
    assignments: &[Vec<Assignment>],
) -> Result<()> {
    for moves in &repack(table, memory.ledger, tokens, assignments) {
        backend.compact(memory.arena, moves)?;
    }
    Ok(())
}

/// Positions and signals of all heads, in page order.
pub fn read_tokens(
    backend: &dyn Backend,
    arena: &Arena,
    table: &PageTable,
) -> Result<Vec<HeadTokens>> {
    let read = |head: usize| {
        let tokens = backend.attributions(arena, &table.head(head).pages)?;
        let (positions, signals) = tokens.iter().map(|t| (t.position, t.attribution)).unzip();
        Ok(HeadTokens { positions, signals })
    };
    (0..table.num_heads()).into_par_iter().map(read).collect()
}

/// What the sequence holds, by the ledger.
pub fn usage(seq: &Sequence, demand: &Demand) -> KvUsage {
    let page_bytes = demand.layout.page_bytes;
    let holdings = seq.table.holdings();
    KvUsage {
        budget: seq.budget,
        bytes: holdings.num_pages() * page_bytes,
        peak_bytes: seq.table.peak_pages() * page_bytes,
        f16_bytes: demand.f16_bytes(seq.table.len()),
        tokens: Box::new(holdings.tokens),
        evicted: seq.table.num_evicted(),
    }
}
