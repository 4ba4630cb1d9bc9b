//! The tokens of one head, priced: what each becomes is a matter of its score and the price alone.

use std::ops::Range;

use keepwell_kernels::{PageLayout, PerTier, TIERS, Tier};

use super::{
    Candidate, HeadPrices, MAX_TIERS, REFUSED, pages,
    tier_set::{AssignmentSet, TierSet},
};
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

    fn has(&self, tier: Tier) -> bool {
        self.0.iter().any(|choice| choice.tier == Some(tier))
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
        // Of numbers that are not negative the bits are in the same order.
        scores.sort_unstable_by_key(|score| score.to_bits());
        let (mut sums, mut sum) = (Vec::with_capacity(scores.len() + 1), 0.0);
        for score in &scores {
            sums.push(sum);
            sum += f64::from(*score);
        }
        sums.push(sum);
        let hull = Hull::new(choices.iter().copied());
        Self { tier, scores, sums, choices, hull }
    }

    /// Leaves these tiers and eviction to choose from.
    fn allow(&mut self, tiers: TierSet) {
        self.hull = Hull::new(self.choices_among(tiers));
    }

    fn choices_among(&self, tiers: TierSet) -> impl Iterator<Item = Choice> {
        let is_left = move |choice: &&Choice| choice.tier.is_none_or(|tier| tiers.contains(tier));
        self.choices.iter().filter(is_left).copied()
    }

    /// Ranges of `scores` with what they become at a price.
    fn split<'a>(
        &'a self,
        hull: &'a Hull,
        price: f32,
    ) -> impl Iterator<Item = (&'a Choice, Range<usize>)> {
        let mut end = self.scores.len();
        hull.0.iter().rev().map(move |choice| {
            let range = self.first_from(choice.from * price, end)..end;
            end = range.start;
            (choice, range)
        })
    }

    /// The first of the scores before `end` that is no less; `end` without one.
    fn first_from(&self, least: f32, end: usize) -> usize {
        let scores = &self.scores[..end];
        // Most tiers of a hull have no tokens.
        match scores.last().is_some_and(|last| *last >= least) {
            true => scores.partition_point(|score| *score < least),
            false => end,
        }
    }

    /// Counts the tokens by what they become at a price. Returns what is lost by that.
    fn settle(&self, hull: &Hull, price: f32, counts: &mut PerTier<usize>) -> f64 {
        let lost = |(choice, range): (&Choice, Range<usize>)| {
            if let Some(tier) = choice.tier {
                counts[tier] += range.len();
            }
            f64::from(choice.distortion) * (self.sums[range.end] - self.sums[range.start])
        };
        self.split(hull, price).map(lost).sum()
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
        let (mut fixed, mut undecided) = (PerTier::default(), PerTier::<usize>::default());
        for candidate in candidates {
            match candidate.fixed {
                Some(tier) => fixed[tier] += 1,
                None => undecided[candidate.tier] += 1,
            }
        }
        // All heads are held at once: each list is as long as it has to be.
        let mut scores = PerTier::new(|tier| Vec::with_capacity(undecided[tier]));
        for candidate in candidates.iter().filter(|candidate| candidate.fixed.is_none()) {
            scores[candidate.tier].push(sane(candidate.score));
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

    /// By the tier that undecided tokens have: from which of their choices to `tier` they may go for more
    /// bytes and less loss.
    pub(super) fn helped(&self, tier: Tier) -> PerTier<AssignmentSet> {
        let mut helped = PerTier::default();
        for group in &self.groups {
            let then = group.choices.iter().find(|choice| choice.tier == Some(tier));
            let is_helped = |now: &&Choice| {
                then.is_some_and(|then| now.bytes < then.bytes && now.distortion > then.distortion)
            };
            let choices = group.choices.iter().filter(is_helped);
            helped[group.tier] = choices.map(|choice| choice.tier).collect();
        }
        helped
    }

    /// The tiers that are left where some are given up as long as the pages that saves are worth more
    /// than what it loses, and until no more than [`MAX_TIERS`] are left.
    ///
    /// Those of a slightly lower price stay in the choice: where equal scores go to one side of the
    /// price together, what that leaves is spent on them.
    pub(super) fn merged(&self, price: f32, layout: &PageLayout) -> Merged {
        let used = self.used(price);
        let more = self.used(SLIGHTLY * price).iter().filter(|tier| !used.contains(*tier));
        // Of those that cost the same the first in this order goes.
        let order: Vec<_> = used.iter().chain(more).collect();
        let mut merge = Merge::new(self, order.iter().copied().collect(), price, layout);
        while merge.tiers.len() > 1 {
            let left = order.iter().filter(|tier| merge.tiers.contains(**tier));
            let trials = left.map(|tier| (*tier, merge.without(*tier)));
            let least = trials.min_by(|a, b| a.1.total.total_cmp(&b.1.total));
            let Some((tier, cost)) = least else { break };
            if cost.total >= merge.cost.total && merge.tiers.len() <= MAX_TIERS {
                break;
            }
            merge.give_up(tier, cost);
        }
        Merged { tiers: merge.tiers, pages: merge.cost.pages }
    }

    fn count_undecided(&self, price: f32, counts: &mut PerTier<usize>) {
        for group in &self.groups {
            group.settle(&group.hull, price, counts);
        }
    }

    /// The tiers that undecided tokens use at a price.
    fn used(&self, price: f32) -> TierSet {
        let mut counts = PerTier::default();
        self.count_undecided(price, &mut counts);
        counts.iter().filter(|(_, count)| **count > 0).map(|(tier, _)| tier).collect()
    }

    /// Leaves these tiers and eviction to choose from.
    pub(super) fn allow(&mut self, tiers: TierSet) {
        self.groups.iter_mut().for_each(|group| group.allow(tiers));
    }
}

/// What a head that gave up tiers has left, and the pages that its tokens then fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub(super) tiers: TierSet,
    pub(super) pages: usize,
}

#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Distortion and pages, in the price's currency.
    total: f32,
    pages: usize,
}

/// A head at a price, on its way to fewer tiers.
struct Merge<'a> {
    head: &'a Head,
    price: f32,
    layout: &'a PageLayout,
    tiers: TierSet,
    cost: Cost,
    parts: Vec<Part<'a>>,
}

/// One of its groups.
struct Part<'a> {
    group: &'a Group,
    /// Those left.
    choices: Vec<Choice>,
    hull: Hull,
    counts: PerTier<usize>,
    lost: f64,
}

impl<'a> Merge<'a> {
    fn new(head: &'a Head, tiers: TierSet, price: f32, layout: &'a PageLayout) -> Self {
        let parts: Vec<_> =
            head.groups.iter().map(|group| Part::new(group, tiers, price)).collect();
        let none = Cost { total: 0.0, pages: 0 };
        let mut merge = Self { head, price, layout, tiers, cost: none, parts };
        merge.cost = merge.sum(|part, counts| part.add(counts));
        merge
    }

    /// What it costs to give up one tier more.
    fn without(&self, tier: Tier) -> Cost {
        self.sum(|part, counts| part.add_without(tier, self.price, counts))
    }

    fn give_up(&mut self, tier: Tier, cost: Cost) {
        self.tiers = self.tiers.without(tier);
        self.cost = cost;
        self.parts.iter_mut().for_each(|part| part.give_up(tier, self.price));
    }

    /// Of what the parts add to the counts and say that they lose.
    fn sum(&self, add: impl Fn(&Part, &mut PerTier<usize>) -> f64) -> Cost {
        let mut counts = self.head.fixed;
        let lost: f64 = self.parts.iter().map(|part| add(part, &mut counts)).sum();
        let pages = pages(&counts, self.layout);
        let bytes = pages * self.layout.page_bytes;
        Cost { total: lost as f32 + self.price * bytes as f32, pages }
    }
}

impl<'a> Part<'a> {
    fn new(group: &'a Group, tiers: TierSet, price: f32) -> Self {
        let choices: Vec<_> = group.choices_among(tiers).collect();
        let hull = Hull::new(choices.iter().copied());
        let mut counts = PerTier::default();
        let lost = group.settle(&hull, price, &mut counts);
        Self { group, choices, hull, counts, lost }
    }

    fn add(&self, counts: &mut PerTier<usize>) -> f64 {
        counts.values_mut().zip(self.counts.values()).for_each(|(sum, count)| *sum += count);
        self.lost
    }

    fn add_without(&self, tier: Tier, price: f32, counts: &mut PerTier<usize>) -> f64 {
        match self.hull.has(tier) {
            true => self.group.settle(&self.hull_without(tier), price, counts),
            false => self.add(counts),
        }
    }

    fn give_up(&mut self, tier: Tier, price: f32) {
        let had = self.hull.has(tier);
        self.choices.retain(|choice| choice.tier != Some(tier));
        if had {
            self.hull = Hull::new(self.choices.iter().copied());
            self.counts = PerTier::default();
            self.lost = self.group.settle(&self.hull, price, &mut self.counts);
        }
    }

    fn hull_without(&self, tier: Tier) -> Hull {
        Hull::new(self.choices.iter().filter(|choice| choice.tier != Some(tier)).copied())
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

/// What a token in `current` may become: nothing larger, no format that is refused, and what is lost
/// already stays lost. Fewest
/// bytes first; of equal bytes the least distortion, to which the others lose.
pub(super) fn choices(prices: &HeadPrices, current: Tier, layout: &PageLayout) -> Vec<Choice> {
    let largest = layout.token_bytes(current);
    let lost = |tier: Tier| {
        prices.key[tier].max(prices.key[current]) + prices.value[tier].max(prices.value[current])
    };
    let evicted = Choice { tier: None, bytes: 0.0, distortion: prices.evicted, from: 0.0 };
    let is_left = |tier: &Tier| {
        let is_refused = *tier != current && prices.key[*tier] >= REFUSED;
        !is_refused && layout.token_bytes(*tier) <= largest
    };
    let kept = TIERS.iter().map(|info| info.tier).filter(is_left).map(|tier| Choice {
        tier: Some(tier),
        bytes: layout.token_bytes(tier) as f32,
        distortion: bounded(lost(tier), prices.evicted),
        from: 0.0,
    });
    let mut choices: Vec<_> = kept.chain([evicted]).collect();
    choices.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(a.distortion.total_cmp(&b.distortion)));
    choices
}
