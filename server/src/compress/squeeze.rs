//! Memory pressure, decided: one price over the tokens of all sequences says how many pages each of
//! them keeps.
//!
//! A sequence is known by its [`Curve`] alone: the pages it would keep at each price. It comes from
//! histograms of what its tokens' signals are, which a device counts where they lie: most sequences are
//! asked, and then give nothing.

use keepwell_kernels::{Histogram, PageLayout, Tier, histogram};

use super::{
    Goal, Policy, TokenSignals,
    price::{Counted, pages_by_price},
    score::refine_counted,
};
use crate::cache::PageTable;

/// Prices of the ladder are half an octave apart.
const STEPS_PER_OCTAVE: f32 = 2.0;
const LOWEST_OCTAVE: f32 = -32.0;
const NUM_RUNGS: usize = 96;
/// Bisections of the ladder.
const TRIALS: usize = 32;

/// How the signals of a (layer, KV head)'s undecided tokens are spread, by tier.
pub type HeadHistograms = Vec<(Tier, Histogram)>;

/// The pages that a sequence would keep, by the price of a byte.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    held: usize,
    floor: usize,
    /// At each rung of the ladder; not rising.
    kept: Vec<f32>,
}

/// What a squeeze decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// Of a byte.
    pub price: f32,
    /// Of each sequence, in the order of the curves: pages that it keeps at most.
    pub max_pages: Vec<usize>,
}

impl Curve {
    /// Of one sequence, with one of `histograms` for each of its heads; `goal.max_pages` is its floor.
    pub fn new(
        table: &PageTable,
        histograms: &[HeadHistograms],
        goal: &Goal,
        layout: &PageLayout,
    ) -> Self {
        let heads: Vec<_> = (histograms.iter().enumerate())
            .map(|(head, histograms)| {
                counted(
                    histograms,
                    (head, table.len()),
                    goal.policy,
                    goal.prices.head(head).unforeseen,
                )
            })
            .collect();
        let prices: Vec<f32> = (0..NUM_RUNGS).map(|rung| price(rung as f32)).collect();
        let filled = pages_by_price(&heads, &prices, goal.prices, layout);
        Self::from_filled(table.num_pages(), goal.max_pages, &filled)
    }

    /// What is saved is what is no longer filled: the pages that are partly empty stay.
    fn from_filled(held: usize, floor: usize, filled: &[f32]) -> Self {
        let all = filled.first().copied().unwrap_or_default();
        let kept = filled.iter().map(|filled| held as f32 - (all - filled)).collect();
        Self { held, floor, kept }
    }

    /// Pages kept at a place between two rungs: never below the floor, and there at the top.
    fn pages(&self, place: f32) -> usize {
        let (below, part) = (place.floor() as usize, place.fract());
        let Some(low) = self.kept.get(below) else { return self.floor.min(self.held) };
        let high = self.kept.get(below + 1).copied().unwrap_or(self.floor as f32);
        let kept = low + part * (high - low);
        (kept.round().max(0.0) as usize).max(self.floor).min(self.held)
    }
}

/// The tokens of a head with scores as the price sees them. Those of a bin are alike.
fn counted(
    histograms: &HeadHistograms,
    (head, seq_len): (usize, usize),
    policy: &dyn Policy,
    unforeseen: f32,
) -> Vec<Counted> {
    let bins = |(_, histogram): &(Tier, Histogram)| histogram.counts;
    let counts: Vec<u32> = histograms.iter().flat_map(bins).collect();
    let signals: Vec<f32> =
        (0..counts.len()).map(|index| histogram::middle(index % histogram::BINS)).collect();
    let mut scores = vec![1.0; counts.len()];
    // Who reads no signal goes by positions, which a histogram does not know: all tokens are alike.
    if policy.signal().is_some() {
        let positions = vec![0; counts.len()];
        let seen = TokenSignals { head, seq_len, positions: &positions, signals: &signals };
        policy.score(&seen, &mut scores);
    }
    refine_counted(&mut scores, &counts, unforeseen);
    let of_tier = |((tier, histogram), scores): (&(Tier, Histogram), &[f32])| Counted {
        tier: *tier,
        scores: scores.iter().copied().zip(histogram.counts).filter(|(_, n)| *n > 0).collect(),
    };
    histograms.iter().zip(scores.chunks(histogram::BINS)).map(of_tier).collect()
}

fn price(place: f32) -> f32 {
    (place / STEPS_PER_OCTAVE + LOWEST_OCTAVE).exp2()
}

/// The lowest price at which all sequences together give `num_pages` back; if none does, all are at
/// their floors.
pub fn share_out(curves: &[Curve], num_pages: usize) -> Shares {
    let held: usize = curves.iter().map(|curve| curve.held).sum();
    let kept = |place: f32| curves.iter().map(|curve| curve.pages(place)).sum::<usize>();
    let (mut low, mut high) = (0.0, NUM_RUNGS as f32);
    for _ in 0..TRIALS {
        let middle = 0.5 * (low + high);
        if held - kept(middle) >= num_pages { high = middle } else { low = middle }
    }
    let max_pages = curves.iter().map(|curve| curve.pages(high)).collect();
    Shares { price: price(high), max_pages }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps all pages up to a rung, then gives one back at each.
    fn curve(held: usize, floor: usize, from: usize) -> Curve {
        let filled = (0..NUM_RUNGS).map(|rung| held as f32 - rung.saturating_sub(from) as f32);
        Curve::from_filled(held, floor, &filled.collect::<Vec<_>>())
    }

    #[test]
    fn the_cheapest_tokens_go_first_whosever_they_are() {
        let (cheap, dear) = (curve(100, 10, 20), curve(100, 10, 50));
        let shares = share_out(&[dear.clone(), cheap.clone()], 20);
        assert_eq!(shares.max_pages, [100, 80]);
        let more = share_out(&[dear, cheap], 50);
        assert_eq!(more.max_pages, [90, 60], "at one price, 60 rungs up");
        assert!(more.price > shares.price);
    }

    #[test]
    fn nobody_goes_below_their_floor_and_the_others_give_the_more() {
        let shares = share_out(&[curve(100, 95, 20), curve(100, 10, 20)], 40);
        assert_eq!(shares.max_pages, [95, 65]);
    }

    #[test]
    fn what_cannot_be_had_leaves_all_at_their_floors() {
        let curves = [curve(100, 60, 20), curve(50, 50, 0), curve(40, 70, 0)];
        let shares = share_out(&curves, 1000);
        assert_eq!(shares.max_pages, [60, 50, 40]);
    }

    #[test]
    fn no_more_is_taken_than_asked_but_for_a_rounding() {
        let curves: Vec<_> = (0..9).map(|n| curve(200 + 10 * n, 20 * n, 7 * n)).collect();
        let held: usize = curves.iter().map(|curve| curve.held).sum();
        for wanted in [1, 10, 100, 300] {
            let taken = held - share_out(&curves, wanted).max_pages.iter().sum::<usize>();
            assert!((wanted..=wanted + curves.len()).contains(&taken), "{taken} for {wanted}");
        }
        assert!(share_out(&[], 10).max_pages.is_empty());
    }
}
