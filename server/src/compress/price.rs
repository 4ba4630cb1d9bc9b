//! One price turns scores into tiers.
//!
//! Minimize the sum of `score * distortion(tier)` over all tokens of all heads, while the pages
//! fit. For a price λ per byte each token takes the tier that minimizes
//! `score * distortion(tier) + λ * bytes(tier)`; λ is the smallest that fits. Scores are binned, so
//! that one trial of λ costs a few look-ups per head instead of a pass over the tokens.

use keepwell_kernels::{PageLayout, TIERS, Tier};

use crate::cache::Assignment;

const NUM_TIERS: usize = TIERS.len();
/// Scores are binned by the upper 12 bits of their f32: 8 bins an octave, up to the last finite one.
const NUM_BINS: usize = 0x7f8;
const TRIALS: usize = 40;

/// Expected distortion of a token of score 1 in each tier, and when evicted.
///
/// Quantization: relative error of keys times the logit noise it makes, plus that of values
/// (first order, with errors of different tokens independent). Eviction: the errors of evicted
/// tokens add up coherently, and the next query may ask for what the last ones ignored; priced this
/// high, tokens are evicted only when the coarsest tier does not fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    pub distortion: [f32; NUM_TIERS],
    pub evicted: f32,
}

impl Default for Prices {
    fn default() -> Self {
        const LOGIT_NOISE: f32 = 5.0;
        const EIGHT_BITS: f32 = 5e-5;
        const FOUR_BITS: f32 = 0.0095;
        Self {
            distortion: [
                0.0,
                LOGIT_NOISE * EIGHT_BITS + EIGHT_BITS,
                LOGIT_NOISE * EIGHT_BITS + FOUR_BITS,
                LOGIT_NOISE * FOUR_BITS + FOUR_BITS,
            ],
            evicted: 30.0,
        }
    }
}

/// One token up for a decision. It may stay or go to a coarser tier, never back.
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
    let histograms: Vec<_> = heads.iter().map(|head| Histogram::new(head)).collect();
    let pages = |choices: &Choices| -> usize {
        histograms.iter().map(|histogram| histogram.pages(choices, layout)).sum()
    };
    let free = Choices::new(0.0, prices, layout);
    let total = pages(&free);
    if total <= max_pages {
        return apply(heads, |_| &free);
    }
    // Invariant of the bisection: `low` does not fit; `high` fits, or nothing does.
    let (mut low, mut high) = (-80f32, 20f32);
    for _ in 0..TRIALS {
        let middle = 0.5 * (low + high);
        if pages(&Choices::new(middle.exp2(), prices, layout)) <= max_pages {
            high = middle;
        } else {
            low = middle;
        }
    }
    let fits = Choices::new(high.exp2(), prices, layout);
    let finer = Choices::new(low.exp2(), prices, layout);
    let upgraded = spend_rest(&histograms, &fits, &finer, max_pages, layout);
    apply(heads, |head| if upgraded[head] { &finer } else { &fits })
}

/// A bin of equal scores goes to one side of the price as a whole; what that leaves is spent on
/// the finer choice, head by head.
fn spend_rest(
    histograms: &[Histogram],
    fits: &Choices,
    finer: &Choices,
    max_pages: usize,
    layout: &PageLayout,
) -> Vec<bool> {
    let costs: Vec<_> =
        histograms.iter().map(|h| (h.pages(fits, layout), h.pages(finer, layout))).collect();
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

fn apply<'a>(
    heads: &[Vec<Candidate>],
    choices: impl Fn(usize) -> &'a Choices,
) -> Vec<Vec<Assignment>> {
    let decide = |choices: &Choices, c: &Candidate| {
        c.fixed.map_or_else(|| choices.choose(c.tier, bin(c.score)), Some)
    };
    heads
        .iter()
        .enumerate()
        .map(|(index, head)| head.iter().map(|c| decide(choices(index), c)).collect())
        .collect()
}

fn bin(score: f32) -> usize {
    ((score.max(0.0).to_bits() >> 20) as usize).min(NUM_BINS - 1)
}

fn bin_score(bin: usize) -> f32 {
    f32::from_bits((bin as u32) << 20 | 1 << 19)
}

/// For one price: from which bin on a token of a tier prefers each option.
struct Choices {
    /// `[tier][k]`: first bin whose choice is at least as fine as option k, where options go from
    /// evicted (0) over the coarsest tier (1) to F16 (`NUM_TIERS`).
    first_bin: [[usize; NUM_TIERS + 1]; NUM_TIERS],
}

impl Choices {
    fn new(price: f32, prices: &Prices, layout: &PageLayout) -> Self {
        let first_bin = std::array::from_fn(|tier| {
            let option = |bin: usize| best_option(tier, bin_score(bin), price, prices, layout);
            std::array::from_fn(|k| {
                // Options grow with the score: partition the bins.
                let (mut low, mut high) = (0, NUM_BINS);
                while low < high {
                    let middle = (low + high) / 2;
                    if option(middle) >= k { high = middle } else { low = middle + 1 }
                }
                low
            })
        });
        Self { first_bin }
    }

    fn choose(&self, tier: Tier, bin: usize) -> Assignment {
        let option = (0..=NUM_TIERS).rev().find(|&k| bin >= self.first_bin[tier as usize][k]);
        option_tier(option.unwrap_or(0))
    }
}

/// Option k as a tier: 0 is evicted, 1 the coarsest.
fn option_tier(option: usize) -> Assignment {
    option.checked_sub(1).map(|k| TIERS[NUM_TIERS - 1 - k].tier)
}

fn best_option(
    current: usize,
    score: f32,
    price: f32,
    prices: &Prices,
    layout: &PageLayout,
) -> usize {
    let cost = |option: usize| match option_tier(option) {
        None => score * prices.evicted,
        Some(tier) => {
            score * prices.distortion[tier as usize] + price * layout.token_bytes(tier) as f32
        }
    };
    // Finer wins a tie: without pressure nothing moves.
    (0..=NUM_TIERS - current)
        .map(|option| (cost(option), option))
        .reduce(|best, next| if next.0 <= best.0 { next } else { best })
        .map_or(0, |(_, option)| option)
}

/// The tokens of one head, counted.
struct Histogram {
    /// `[tier][bin]`: undecided tokens now in the tier with a score below the bin.
    below: Vec<[u32; NUM_TIERS]>,
    fixed: [usize; NUM_TIERS],
}

impl Histogram {
    fn new(head: &[Candidate]) -> Self {
        let mut below = vec![[0; NUM_TIERS]; NUM_BINS + 1];
        let mut fixed = [0; NUM_TIERS];
        for candidate in head {
            match candidate.fixed {
                Some(tier) => fixed[tier as usize] += 1,
                None => below[bin(candidate.score) + 1][candidate.tier as usize] += 1,
            }
        }
        for bin in 1..=NUM_BINS {
            let lower = below[bin - 1];
            for (count, lower) in below[bin].iter_mut().zip(lower) {
                *count += lower;
            }
        }
        Self { below, fixed }
    }

    fn pages(&self, choices: &Choices, layout: &PageLayout) -> usize {
        let mut counts = self.fixed;
        for (tier, first_bin) in choices.first_bin.iter().enumerate() {
            for option in 1..=NUM_TIERS {
                let end = first_bin.get(option + 1).copied().unwrap_or(NUM_BINS);
                let start = first_bin[option].min(end);
                let count = self.below[end][tier] - self.below[start][tier];
                counts[NUM_TIERS - option] += count as usize;
            }
        }
        TIERS.iter().zip(counts).map(|(t, n)| n.div_ceil(layout.capacity(t.tier))).sum()
    }
}

#[cfg(test)]
mod tests;
