//! Memory pressure: one price over the tokens of all running sequences.

use std::ops::Range;

use keepwell_kernels::{Arena, Backend, PageRef, Result};

use super::event::{Memory, Report, compress_to, goal, prices_for};
use crate::{
    cache::PageTable,
    compress::{Curve, HeadHistograms, Prices, share_out},
    sched::{Demand, Purity, Scheduler, Sequence},
};

/// What a squeeze did.
#[derive(Debug)]
pub struct Squeeze {
    /// Of a byte: what all tokens had to be worth.
    pub price: f32,
    /// Of the sequences that gave something.
    pub reports: Vec<Report>,
}

/// Demotes the cheapest tokens of all running sequences until `num_pages` are given back, or all are
/// at their floors. `None` when they are there already.
pub fn squeeze(
    num_pages: usize,
    backend: &dyn Backend,
    memory: Memory,
    scheduler: &mut Scheduler,
    prices: &Prices,
) -> Result<Option<Squeeze>> {
    let demand = *scheduler.demand();
    let mut giving: Vec<_> =
        scheduler.all_running_mut().filter(|seq| has_room(seq, &demand)).collect();
    if giving.is_empty() {
        return Ok(None);
    }
    let curve = |seq: &&mut Sequence| curve(backend, &memory, seq, &demand, prices);
    let curves = giving.iter().map(curve).collect::<Result<Vec<_>>>()?;
    let shares = share_out(&curves, num_pages);
    let mut reports = Vec::new();
    for (seq, max_pages) in giving.iter_mut().zip(shares.max_pages) {
        if max_pages >= seq.table.num_pages() {
            continue;
        }
        let memory = Memory { arena: &mut *memory.arena, ledger: &mut *memory.ledger };
        reports.push(compress_to(max_pages, backend, memory, seq, (&demand, prices))?);
        seq.sharing.is_at_best(Purity::Private);
        seq.grant(demand.share(max_pages, seq.budgeted_len()));
    }
    Ok(Some(Squeeze { price: shares.price, reports }))
}

/// Whether it holds more than it has to be left.
fn has_room(seq: &Sequence, demand: &Demand) -> bool {
    seq.is_scored() && seq.table.num_pages() > floor(seq, demand)
}

fn floor(seq: &Sequence, demand: &Demand) -> usize {
    demand.limit(seq.min_budget, seq.budgeted_len())
}

fn curve(
    backend: &dyn Backend,
    memory: &Memory,
    seq: &Sequence,
    demand: &Demand,
    prices: &Prices,
) -> Result<Curve> {
    let prices = prices_for(seq, prices);
    let goal = goal(seq, demand, &prices, floor(seq, demand));
    let undecided = goal.undecided(seq.table.len());
    let histograms = histograms(backend, memory.arena, &seq.table, &undecided)?;
    Ok(Curve::new(&seq.table, &histograms, &goal, memory.ledger.layout()))
}

/// Of all heads, of the tokens at some positions.
fn histograms(
    backend: &dyn Backend,
    arena: &Arena,
    table: &PageTable,
    positions: &[Range<u32>],
) -> Result<Vec<HeadHistograms>> {
    let by_tier = |head: usize| {
        let mut pages = table.head(head).pages.clone();
        pages.sort_by_key(|page| page.tier as usize);
        pages
    };
    let heads: Vec<_> = (0..table.num_heads()).map(by_tier).collect();
    // In one call: a device takes a launch, and answers, for each.
    let groups: Vec<&[PageRef]> = heads.iter().flat_map(|pages| of_tiers(pages)).collect();
    let mut counted = backend.histograms(arena, &groups, positions)?.into_iter();
    let of_head = |pages: &Vec<PageRef>| {
        let tiers = of_tiers(pages).map(|pages| pages[0].tier);
        tiers.zip(counted.by_ref()).collect()
    };
    Ok(heads.iter().map(of_head).collect())
}

/// Pages of one tier after each other.
fn of_tiers(pages: &[PageRef]) -> impl Iterator<Item = &[PageRef]> {
    pages.chunk_by(|a, b| a.tier == b.tier)
}
