//! One price turns scores into tiers.
//!
//! Minimize the sum of `score * distortion(head, tier)` over all tokens of all heads, while the pages
//! fit. For a price λ per byte each token takes the tier that minimizes
//! `score * distortion(tier) + λ * bytes(tier)`; λ is the smallest that fits (Shoham and Gersho
//! 1988). Only tiers on the lower hull of (bytes, distortion) can win, and which of them depends on
//! `score / λ` alone: with scores sorted, one trial of λ costs a few searches per head.

mod counted;
mod fill;
mod head;
mod tier_set;

use keepwell_kernels::{PageLayout, PerTier, Tier, codec::Format};
use rayon::prelude::*;

use crate::cache::Assignment;
pub use counted::{Counted, pages_by_price};
use fill::fill;
use head::{Head, Merged};

/// Tiers that the undecided tokens of one head use at most: each has a page that is partly empty.
pub const MAX_TIERS: usize = 4;
const TRIALS: usize = 40;
/// How far below the price at which all tiers fit the one is looked for at which fewer do.
const MERGE_OCTAVES: f32 = 4.0;
const MERGE_TRIALS: usize = 5;

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

/// The price of keys in a format that breaks the head: no token is ever put there, whatever eviction
/// costs.
pub const REFUSED: f32 = f32::MAX;

impl HeadPrices {
    /// Whether a token with such keys is as good as evicted.
    fn refuses(&self, tier: Tier) -> bool {
        self.key[tier] >= self.evicted
    }
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

    /// Whether the tier's keys are as bad as none in any head.
    pub fn refuses(&self, tier: Tier) -> bool {
        self.heads.iter().any(|head| head.refuses(tier))
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
    merge_tiers(&mut market, max_pages, layout);
    let (finer, fits) = bisect(&market, max_pages, layout);
    let upgraded = spend_rest(&market, fits, finer, max_pages, layout);
    let decide = |(head, upgraded): (&Head, bool), candidates: &Vec<Candidate>| -> Vec<_> {
        let price = if upgraded { finer } else { fits };
        let choose = |c: &Candidate| c.fixed.or_else(|| head.choose(c, price));
        let mut tiers: Vec<_> = candidates.iter().map(choose).collect();
        fill(head, candidates, &mut tiers, layout);
        tiers
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

fn pages(counts: &PerTier<usize>, layout: &PageLayout) -> usize {
    let used = counts.iter().filter(|(_, count)| **count > 0);
    used.map(|(tier, count)| count.div_ceil(layout.capacity(tier))).sum()
}

/// A price that does not fit and one close above it that does, if any does.
fn bisect(heads: &[Head], max_pages: usize, layout: &PageLayout) -> (f32, f32) {
    let pages_at = |price| heads.par_iter().map(|h| pages(&h.counts(price), layout)).sum::<usize>();
    search((-100.0, 100.0), TRIALS, |price| pages_at(price) <= max_pages)
}

/// Each head gives up tiers, at the lowest price at which what is then left fits. That is below the
/// price at which all tiers together fit: a tier that is given up saves the page that was partly
/// empty besides. At that price too many would be given up, and tokens in them evicted for nothing.
fn merge_tiers(heads: &mut [Head], max_pages: usize, layout: &PageLayout) {
    let merge = |price| -> Vec<Merged> {
        heads.par_iter().map(|head| head.merged(price, layout)).collect()
    };
    let highest = bisect(heads, max_pages, layout).1.log2();
    let mut tried = [None, None];
    let (finer, fits) = search((highest - MERGE_OCTAVES, highest), MERGE_TRIALS, |price| {
        let merged = merge(price);
        let fits = num_pages(&merged).sum::<usize>() <= max_pages;
        tried[usize::from(fits)] = Some(merged);
        fits
    });
    // All trials may have gone one way.
    let [too_fine, fitting] = tried;
    let finer = too_fine.unwrap_or_else(|| merge(finer));
    let fits = fitting.unwrap_or_else(|| merge(fits));
    let pages = |merged| num_pages(merged).collect::<Vec<_>>();
    let upgraded = upgrade(&pages(&fits), &pages(&finer), max_pages);
    let left = upgraded.into_iter().zip(finer.iter().zip(&fits));
    let left =
        left.map(|(upgraded, (finer, fits))| if upgraded { finer.tiers } else { fits.tiers });
    heads.iter_mut().zip(left).for_each(|(head, tiers)| head.allow(tiers));
}

fn num_pages(merged: &[Merged]) -> impl Iterator<Item = usize> {
    merged.iter().map(|head| head.pages)
}

/// Which heads may have their finer choice, taken one after the other.
fn upgrade(fits: &[usize], finer: &[usize], max_pages: usize) -> Vec<bool> {
    let mut used: usize = fits.iter().sum();
    let upgraded = |(fits, finer): (&usize, &usize)| {
        let upgraded = used - fits + finer <= max_pages;
        if upgraded {
            used = used - fits + finer;
        }
        upgraded
    };
    fits.iter().zip(finer).map(upgraded).collect()
}

/// The price below which `fits` does not hold and the one above it, each tried or an end of the range:
/// of logarithms.
fn search(
    (mut low, mut high): (f32, f32),
    trials: usize,
    mut fits: impl FnMut(f32) -> bool,
) -> (f32, f32) {
    // The ends of the range are not tried, and equal nothing.
    let mut tried = [f32::NAN; 2];
    for _ in 0..trials {
        let middle = 0.5 * (low + high);
        // No number is between the two any more.
        if tried.contains(&middle) {
            break;
        }
        let fits = fits(middle.exp2());
        if fits {
            high = middle
        } else {
            low = middle
        }
        tried[usize::from(fits)] = middle;
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
    let pages_at =
        |price| -> Vec<_> { heads.iter().map(|head| pages(&head.counts(price), layout)).collect() };
    upgrade(&pages_at(fits), &pages_at(finer), max_pages)
}

#[cfg(test)]
mod tests;
