//! One price turns scores into tiers.
//!
//! Minimize the sum of `score * distortion(head, tier)` over all tokens of all heads, while the pages
//! fit. For a price λ per byte each token takes the tier that minimizes
//! `score * distortion(tier) + λ * bytes(tier)`; λ is the smallest that fits (Shoham and Gersho
//! 1988). Only tiers on the lower hull of (bytes, distortion) can win, and which of them depends on
//! `score / λ` alone: with scores sorted, one trial of λ costs a few searches per head.

use std::ops::Range;

use keepwell_kernels::{PageLayout, PerTier, TIERS, Tier, codec::Format};
use rayon::prelude::*;

use crate::cache::Assignment;

/// Tiers that the undecided tokens of one head use at most: each has a page that is partly empty.
pub const MAX_TIERS: usize = 4;
const TRIALS: usize = 40;

/// Expected distortion of a token of score 1 of one head.
///
/// Quantization: errors of different tokens are independent, and so are those of keys and values.
/// Eviction: the errors of evicted tokens add up coherently, and the next query may ask for what the
/// last ones ignored, so that its price is high.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPrices {
    /// By the tier's key format.
    pub key: PerTier<f32>,
    /// By the tier's value format.
    pub value: PerTier<f32>,
    pub evicted: f32,
    /// Share of the price, from 0 to 1, that all tokens owe alike, whatever their score: what a later
    /// question asks for cannot be told from the queries so far.
    pub unforeseen: f32,
}

/// What each head's tiers cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Prices {
    /// One for each (layer, KV head), or one for all.
    heads: Vec<HeadPrices>,
}

impl Prices {
    pub fn new(heads: Vec<HeadPrices>) -> Self {
        Self { heads }
    }

    pub fn heads(&self) -> &[HeadPrices] {
        &self.heads
    }

    /// The same, with eviction only where nothing else makes room.
    pub fn reluctant(&self) -> Self {
        const RELUCTANCE: f32 = 100.0;
        let head =
            |head: &HeadPrices| HeadPrices { evicted: RELUCTANCE * head.evicted, ..head.clone() };
        Self::new(self.heads.iter().map(head).collect())
    }

    pub fn head(&self, head: usize) -> &HeadPrices {
        self.heads.get(head).unwrap_or(&self.heads[0])
    }
}

/// Without calibration: all heads alike, the errors of the formats for normal channels.
impl Default for Prices {
    fn default() -> Self {
        const LOGIT_NOISE: f32 = 5.0;
        const EVICTED: f32 = 30.0;
        const UNFORESEEN: f32 = 0.5;
        let key = PerTier::new(|tier| LOGIT_NOISE * normal_error(tier.info().key));
        let value = PerTier::new(|tier| normal_error(tier.info().value));
        Self::new(vec![HeadPrices { key, value, evicted: EVICTED, unforeseen: UNFORESEEN }])
    }
}

/// Normalized mean squared error of a format for normal channels that are alike.
pub fn normal_error(format: Format) -> f32 {
    /// Lloyd-Max levels with 0 to 6 bits (Max 1960).
    const LEVELS: [f32; 7] = [1.0, 0.3634, 0.1175, 0.034_54, 0.009_497, 0.002_499, 0.000_7];
    match format {
        Format::F16 => 0.0,
        Format::Int8 => 1e-4,
        Format::Levels(bits) => bits.iter().map(|b| LEVELS[usize::from(*b)]).sum::<f32>() / 8.0,
    }
}

/// One token up for a decision. It may stay or become smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub score: f32,
    pub tier: Tier,
    /// Its tier is settled already (a protected token).
    pub fixed: Option<Tier>,
}

/// Tiers for all tokens of all heads such that the pages are at most `max_pages`, if that is
/// possible without touching fixed tokens; else everything that may be evicted is.
pub fn assign(
    heads: &[Vec<Candidate>],
    max_pages: usize,
    prices: &Prices,
    layout: &PageLayout,
) -> Vec<Vec<Assignment>> {
    assign_at_price(heads, max_pages, prices, layout).0
}

/// As [`assign`], and the price that fits, if pages were short.
pub fn assign_at_price(
    heads: &[Vec<Candidate>],
    max_pages: usize,
    prices: &Prices,
    layout: &PageLayout,
) -> (Vec<Vec<Assignment>>, Option<f32>) {
    let held: usize = heads.iter().map(|head| pages(&held(head), layout)).sum();
    if held <= max_pages {
        let settle = |head: &Vec<Candidate>| head.iter().map(|c| Some(settled(c))).collect();
        return (heads.iter().map(settle).collect(), None);
    }
    let new = |(index, head): (usize, &Vec<Candidate>)| Head::new(head, prices.head(index), layout);
    let mut market: Vec<_> = heads.par_iter().enumerate().map(new).collect();
    let (finer, fits) = bisect(&market, max_pages, layout);
    market.par_iter_mut().for_each(|head| head.merge_tiers(finer, fits, layout));
    let (finer, fits) = bisect(&market, max_pages, layout);
    let upgraded = spend_rest(&market, fits, finer, max_pages, layout);
    let decide = |(head, upgraded): (&Head, bool), candidates: &Vec<Candidate>| {
        let price = if upgraded { finer } else { fits };
        candidates.iter().map(|c| c.fixed.or_else(|| head.choose(c, price))).collect()
    };
    let tiers =
        market.par_iter().zip(upgraded).zip(heads).map(|(head, c)| decide(head, c)).collect();
    (tiers, Some(fits))
}

/// Where a token is when nothing is squeezed.
fn settled(candidate: &Candidate) -> Tier {
    candidate.fixed.unwrap_or(candidate.tier)
}

fn held(head: &[Candidate]) -> PerTier<usize> {
    let mut counts = PerTier::default();
    head.iter().for_each(|candidate| counts[settled(candidate)] += 1);
    counts
}

/// Pages that the tokens of all heads fill at each of `prices`, in parts of a page: without the one
/// of each head and tier that is partly empty, it falls steadily as the price rises.
pub fn filled_pages(
    heads: &[Vec<Candidate>],
    at: &[f32],
    prices: &Prices,
    layout: &PageLayout,
) -> Vec<f32> {
    let filled = |(index, candidates): (usize, &Vec<Candidate>)| -> Vec<f32> {
        let head = Head::new(candidates, prices.head(index), layout);
        at.iter().map(|price| filled(&head.counts(*price), layout)).collect()
    };
    let add = |sum: Vec<f32>, head: Vec<f32>| sum.iter().zip(head).map(|(a, b)| a + b).collect();
    heads.par_iter().enumerate().map(filled).reduce(|| vec![0.0; at.len()], add)
}

fn filled(counts: &PerTier<usize>, layout: &PageLayout) -> f32 {
    counts.iter().map(|(tier, count)| *count as f32 / layout.capacity(tier) as f32).sum()
}

fn pages(counts: &PerTier<usize>, layout: &PageLayout) -> usize {
    counts.iter().map(|(tier, count)| count.div_ceil(layout.capacity(tier))).sum()
}

/// A price that does not fit and one close above it that does, if any does.
fn bisect(heads: &[Head], max_pages: usize, layout: &PageLayout) -> (f32, f32) {
    let (mut low, mut high) = (-100f32, 100f32);
    for _ in 0..TRIALS {
        let middle = 0.5 * (low + high);
        let total: usize = heads.par_iter().map(|h| pages(&h.counts(middle.exp2()), layout)).sum();
        if total <= max_pages { high = middle } else { low = middle }
    }
    (low.exp2(), high.exp2())
}

/// Equal scores go to one side of the price together; what that leaves is spent on the finer choice,
/// head by head.
fn spend_rest(
    heads: &[Head],
    fits: f32,
    finer: f32,
    max_pages: usize,
    layout: &PageLayout,
) -> Vec<bool> {
    let pages = |head: &Head, price| pages(&head.counts(price), layout);
    let costs: Vec<_> = heads.iter().map(|h| (pages(h, fits), pages(h, finer))).collect();
    let mut used: usize = costs.iter().map(|(fits, _)| fits).sum();
    costs
        .iter()
        .map(|(fits, finer)| {
            let upgraded = used - fits + finer <= max_pages;
            if upgraded {
                used = used - fits + finer;
            }
            upgraded
        })
        .collect()
}

/// One of the things a token may become, `None` evicts it.
#[derive(Clone, Copy, Debug)]
struct Choice {
    tier: Assignment,
    bytes: f32,
    distortion: f32,
    /// It wins over its coarser neighbour from this `score / price` on.
    from: f32,
}

/// The choices that win for some price, coarse to fine.
#[derive(Debug)]
struct Hull(Vec<Choice>);

impl Hull {
    fn new(mut choices: Vec<Choice>) -> Self {
        // Fewest bytes first; of equal bytes the least distortion, to which the others then lose.
        choices.sort_by(|a, b| {
            a.bytes.total_cmp(&b.bytes).then(a.distortion.total_cmp(&b.distortion))
        });
        let mut hull: Vec<Choice> = Vec::with_capacity(choices.len());
        for mut choice in choices {
            if hull.last().is_some_and(|last| choice.distortion >= last.distortion) {
                continue;
            }
            while let Some(last) = hull.last() {
                choice.from = (choice.bytes - last.bytes) / (last.distortion - choice.distortion);
                if choice.from > last.from {
                    break;
                }
                hull.pop();
            }
            hull.push(choice);
        }
        Self(hull)
    }

    fn choose(&self, score: f32, price: f32) -> Assignment {
        let index = self.0.partition_point(|choice| choice.from * price <= score);
        self.0.get(index.saturating_sub(1)).and_then(|choice| choice.tier)
    }
}

/// The undecided tokens of a head that are now in one tier.
#[derive(Debug)]
struct Group {
    tier: Tier,
    /// Ascending.
    scores: Vec<f32>,
    /// Of the scores before each, and of all.
    sums: Vec<f64>,
    hull: Hull,
}

impl Group {
    fn new(tier: Tier, mut scores: Vec<f32>, hull: Hull) -> Self {
        scores.sort_unstable_by(f32::total_cmp);
        let add = |sum: &mut f64, score: &f32| {
            let before = *sum;
            *sum += f64::from(*score);
            Some(before)
        };
        let mut sums: Vec<f64> = scores.iter().scan(0.0, add).collect();
        sums.push(scores.iter().map(|s| f64::from(*s)).sum());
        Self { tier, scores, sums, hull }
    }

    /// Ranges of `scores` with what they become at a price.
    fn split(&self, price: f32) -> impl Iterator<Item = (&Choice, Range<usize>)> {
        let start =
            move |choice: &Choice| self.scores.partition_point(|s| *s < choice.from * price);
        let mut end = self.scores.len();
        self.hull.0.iter().rev().map(move |choice| {
            let range = start(choice).min(end)..end;
            end = range.start;
            (choice, range)
        })
    }
}

/// One head's tokens, ready to be priced.
#[derive(Debug)]
struct Head<'a> {
    prices: &'a HeadPrices,
    fixed: PerTier<usize>,
    groups: Vec<Group>,
}

impl<'a> Head<'a> {
    fn new(candidates: &[Candidate], prices: &'a HeadPrices, layout: &PageLayout) -> Self {
        let mut fixed = PerTier::default();
        let mut scores = PerTier::<Vec<f32>>::default();
        for candidate in candidates {
            match candidate.fixed {
                Some(tier) => fixed[tier] += 1,
                None => scores[candidate.tier].push(sane(candidate.score)),
            }
        }
        let all = |_: Tier| true;
        let groups = TIERS.iter().map(|info| info.tier).filter_map(|tier| {
            let scores = std::mem::take(&mut scores[tier]);
            let hull = || hull(prices, tier, layout, all);
            (!scores.is_empty()).then(|| Group::new(tier, scores, hull()))
        });
        Self { prices, fixed, groups: groups.collect() }
    }

    fn counts(&self, price: f32) -> PerTier<usize> {
        let mut counts = self.fixed;
        self.count_undecided(price, &mut counts);
        counts
    }

    fn choose(&self, candidate: &Candidate, price: f32) -> Assignment {
        let group = self.groups.iter().find(|group| group.tier == candidate.tier);
        group.and_then(|group| group.hull.choose(sane(candidate.score), price))
    }

    /// Distortion and pages at a price, in the price's currency.
    fn cost(&self, price: f32, layout: &PageLayout) -> f32 {
        let lost = |group: &Group| -> f64 {
            let sum = |range: Range<usize>| group.sums[range.end] - group.sums[range.start];
            group
                .split(price)
                .map(|(choice, range)| f64::from(choice.distortion) * sum(range))
                .sum()
        };
        let distortion: f64 = self.groups.iter().map(lost).sum();
        let bytes = pages(&self.counts(price), layout) * layout.page_bytes;
        distortion as f32 + price * bytes as f32
    }

    /// Gives up tiers as long as the pages that saves are worth more than what it loses, and until no
    /// more than [`MAX_TIERS`] are left.
    ///
    /// Those of a finer price that does not quite fit stay in the choice: [`spend_rest`] needs them.
    fn merge_tiers(&mut self, finer: f32, price: f32, layout: &PageLayout) {
        let mut used = self.used(price);
        let more: Vec<_> = self.used(finer).into_iter().filter(|t| !used.contains(t)).collect();
        used.extend(more);
        let mut cost = self.restrict(&used, price, layout);
        while used.len() > 1 {
            let without = |skipped: usize| -> Vec<Tier> {
                used.iter().enumerate().filter(|(i, _)| *i != skipped).map(|(_, t)| *t).collect()
            };
            let trials = (0..used.len()).map(|skipped| {
                let tiers = without(skipped);
                (self.restrict(&tiers, price, layout), tiers)
            });
            let trials: Vec<_> = trials.collect();
            let Some((least, tiers)) = trials.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)) else {
                break;
            };
            if least >= cost && used.len() <= MAX_TIERS {
                break;
            }
            (cost, used) = (least, tiers);
        }
        self.restrict(&used, price, layout);
    }

    fn count_undecided(&self, price: f32, counts: &mut PerTier<usize>) {
        for (choice, range) in self.groups.iter().flat_map(|group| group.split(price)) {
            if let Some(tier) = choice.tier {
                counts[tier] += range.len();
            }
        }
    }

    /// The tiers that undecided tokens use at a price.
    fn used(&self, price: f32) -> Vec<Tier> {
        let mut counts = PerTier::default();
        self.count_undecided(price, &mut counts);
        counts.iter().filter(|(_, count)| **count > 0).map(|(tier, _)| tier).collect()
    }

    /// Leaves these tiers and eviction to choose from; returns what that costs.
    fn restrict(&mut self, tiers: &[Tier], price: f32, layout: &PageLayout) -> f32 {
        for group in &mut self.groups {
            group.hull = hull(self.prices, group.tier, layout, |tier| tiers.contains(&tier));
        }
        self.cost(price, layout)
    }
}

/// Finite and not negative; NaN, which should not occur, counts as nothing.
fn sane(score: f32) -> f32 {
    if score > 0.0 { score.min(1e30) } else { 0.0 }
}

/// What a token in `current` may become, of the tiers that are allowed: nothing larger, and what is
/// lost already stays lost.
fn hull(
    prices: &HeadPrices,
    current: Tier,
    layout: &PageLayout,
    allowed: impl Fn(Tier) -> bool,
) -> Hull {
    let largest = layout.token_bytes(current);
    let lost = |tier: Tier| {
        prices.key[tier].max(prices.key[current]) + prices.value[tier].max(prices.value[current])
    };
    let evicted = Choice { tier: None, bytes: 0.0, distortion: prices.evicted, from: 0.0 };
    let tiers = TIERS.iter().map(|info| info.tier).filter(|tier| allowed(*tier));
    let kept = tiers.filter(|tier| layout.token_bytes(*tier) <= largest).map(|tier| Choice {
        tier: Some(tier),
        bytes: layout.token_bytes(tier) as f32,
        distortion: lost(tier).min(prices.evicted),
        from: 0.0,
    });
    Hull::new(kept.chain([evicted]).collect())
}

#[cfg(test)]
mod tests;
