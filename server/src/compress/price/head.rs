//! The tokens of one head, priced: what each becomes is a matter of its score and the price alone.

use std::ops::Range;

use keepwell_kernels::{PageLayout, PerTier, TIERS, Tier};

use super::{Candidate, HeadPrices, MAX_TIERS, pages};
use crate::cache::Assignment;

/// Factor from a price to one slightly lower.
const SLIGHTLY: f32 = 0.99;
/// The share of what an evicted token loses from which on coarser tiers lose hardly more.
const KNEE: f32 = 0.95;

/// One of the things a token may become, `None` evicts it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) tier: Assignment,
    bytes: f32,
    distortion: f32,
    /// It wins over its coarser neighbour from this `score / price` on.
    from: f32,
}

/// The choices that win for some price, coarse to fine.
#[derive(Debug)]
pub(super) struct Hull(Vec<Choice>);

impl Hull {
    /// Of choices in the order of [`choices`].
    pub(super) fn new(choices: impl Iterator<Item = Choice>) -> Self {
        let mut hull: Vec<Choice> = Vec::new();
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

    pub(super) fn choose(&self, score: f32, price: f32) -> Assignment {
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
    choices: Vec<Choice>,
    hull: Hull,
}

impl Group {
    fn new(tier: Tier, mut scores: Vec<f32>, choices: Vec<Choice>) -> Self {
        scores.sort_unstable_by(f32::total_cmp);
        let add = |sum: &mut f64, score: &f32| {
            let before = *sum;
            *sum += f64::from(*score);
            Some(before)
        };
        let mut sums: Vec<f64> = scores.iter().scan(0.0, add).collect();
        sums.push(scores.iter().map(|s| f64::from(*s)).sum());
        let hull = Hull::new(choices.iter().copied());
        Self { tier, scores, sums, choices, hull }
    }

    /// Leaves some tiers and eviction to choose from.
    fn allow(&mut self, allowed: impl Fn(Tier) -> bool) {
        let choices = self.choices.iter().copied();
        self.hull = Hull::new(choices.filter(|choice| choice.tier.is_none_or(&allowed)));
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
pub(super) struct Head {
    fixed: PerTier<usize>,
    groups: Vec<Group>,
}

impl Head {
    pub(super) fn new(candidates: &[Candidate], prices: &HeadPrices, layout: &PageLayout) -> Self {
        let mut fixed = PerTier::default();
        let mut scores = PerTier::<Vec<f32>>::default();
        for candidate in candidates {
            match candidate.fixed {
                Some(tier) => fixed[tier] += 1,
                None => scores[candidate.tier].push(sane(candidate.score)),
            }
        }
        let groups = TIERS.iter().map(|info| info.tier).filter_map(|tier| {
            let scores = std::mem::take(&mut scores[tier]);
            let choices = || choices(prices, tier, layout);
            (!scores.is_empty()).then(|| Group::new(tier, scores, choices()))
        });
        Self { fixed, groups: groups.collect() }
    }

    pub(super) fn counts(&self, price: f32) -> PerTier<usize> {
        let mut counts = self.fixed;
        self.count_undecided(price, &mut counts);
        counts
    }

    pub(super) fn choose(&self, candidate: &Candidate, price: f32) -> Assignment {
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
    /// Those of a slightly lower price stay in the choice: where equal scores go to one side of the
    /// price together, what that leaves is spent on them.
    pub(super) fn merge_tiers(&mut self, price: f32, layout: &PageLayout) {
        self.allow(|_| true);
        let mut used = self.used(price);
        let more: Vec<_> =
            self.used(SLIGHTLY * price).into_iter().filter(|t| !used.contains(t)).collect();
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
        self.allow(|tier| tiers.contains(&tier));
        self.cost(price, layout)
    }

    fn allow(&mut self, allowed: impl Fn(Tier) -> bool) {
        self.groups.iter_mut().for_each(|group| group.allow(&allowed));
    }
}

/// Finite and not negative; NaN, which should not occur, counts as nothing.
fn sane(score: f32) -> f32 {
    if score > 0.0 { score.min(1e30) } else { 0.0 }
}

/// What a token loses in a tier: never as much as evicted, and never as little as in a finer one. As
/// long as there is room, it is neither coarsened nor evicted.
fn bounded(lost: f32, evicted: f32) -> f32 {
    let knee = KNEE * evicted;
    if lost <= knee { lost } else { evicted - (evicted - knee) * knee / lost }
}

/// What a token in `current` may become: nothing larger, and what is lost already stays lost. Fewest
/// bytes first; of equal bytes the least distortion, to which the others lose.
pub(super) fn choices(prices: &HeadPrices, current: Tier, layout: &PageLayout) -> Vec<Choice> {
    let largest = layout.token_bytes(current);
    let lost = |tier: Tier| {
        prices.key[tier].max(prices.key[current]) + prices.value[tier].max(prices.value[current])
    };
    let evicted = Choice { tier: None, bytes: 0.0, distortion: prices.evicted, from: 0.0 };
    let tiers = TIERS.iter().map(|info| info.tier);
    let kept = tiers.filter(|tier| layout.token_bytes(*tier) <= largest).map(|tier| Choice {
        tier: Some(tier),
        bytes: layout.token_bytes(tier) as f32,
        distortion: bounded(lost(tier), prices.evicted),
        from: 0.0,
    });
    let mut choices: Vec<_> = kept.chain([evicted]).collect();
    choices.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(a.distortion.total_cmp(&b.distortion)));
    choices
}
