//! What partly empty pages have room for.

use keepwell_kernels::{PageLayout, PerTier, TIERS, Tier};

use super::{Candidate, head::Head};
use crate::cache::Assignment;

/// Gives the slots that are left in the pages of one head's tiers, the finest first, to the best tokens
/// of coarser ones, and what these leave to the next, down to evicted ones. It takes no page more.
pub(super) fn fill(
    head: &Head,
    candidates: &[Candidate],
    tiers: &mut [Assignment],
    layout: &PageLayout,
) {
    let mut counts = PerTier::<usize>::default();
    tiers.iter().flatten().for_each(|tier| counts[*tier] += 1);
    let mut used: Vec<_> = TIERS.iter().map(|i| i.tier).filter(|t| counts[*t] > 0).collect();
    used.sort_by_key(|tier| std::cmp::Reverse(layout.token_bytes(*tier)));
    // Finer tiers take from coarser ones, whose pages are there all the same.
    let slots = PerTier::new(|tier| counts[tier].next_multiple_of(layout.capacity(tier)));
    for tier in used {
        let room = slots[tier] - counts[tier];
        for index in best_coarser(head, candidates, tiers, tier, room) {
            if let Some(left) = tiers[index].replace(tier) {
                counts[left] -= 1;
            }
            counts[tier] += 1;
        }
    }
}

/// Indices of the up to `room` best tokens that are coarser and need not be.
fn best_coarser(
    head: &Head,
    candidates: &[Candidate],
    tiers: &[Assignment],
    tier: Tier,
    room: usize,
) -> Vec<usize> {
    if room == 0 {
        return Vec::new();
    }
    let score = |index: &usize| candidates[*index].score;
    // Of equal scores the first in the pages.
    let best_first = |a: &usize, b: &usize| score(b).total_cmp(&score(a)).then(a.cmp(b));
    let of_tier = head.helped(tier);
    let is_helped = |(candidate, now): (&Candidate, &Assignment)| {
        candidate.fixed.is_none() && of_tier[candidate.tier].contains(*now)
    };
    let mut helped: Vec<_> = (candidates.iter().zip(tiers).enumerate())
        .filter_map(|(index, token)| is_helped(token).then_some(index))
        .collect();
    if helped.len() > room {
        helped.select_nth_unstable_by(room, best_first);
        helped.truncate(room);
    }
    helped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Prices;

    #[test]
    fn the_room_of_a_finer_tier_goes_to_the_best_of_the_coarser_and_theirs_to_evicted_ones() {
        let (layout, prices) = (PageLayout::new(64), Prices::default());
        let candidates: Vec<_> = (0..200)
            .map(|score| Candidate { score: score as f32, tier: Tier::F16, fixed: None })
            .collect();
        let head = Head::new(&candidates, prices.head(0), &layout);
        let mut tiers: Vec<Assignment> = vec![None; 200];
        tiers[150..190].fill(Some(Tier::K3V3));
        tiers[190..].fill(Some(Tier::K8V8));
        fill(&head, &candidates, &mut tiers, &layout);
        let of = |tier: Assignment| tiers.iter().filter(|t| **t == tier).count();
        assert_eq!((of(Some(Tier::K8V8)), of(Some(Tier::K3V3)), of(None)), (15, 78, 107));
        assert!(tiers.is_sorted_by_key(|t| t.map_or(0, |tier| layout.token_bytes(tier))));
    }

    #[test]
    fn neither_settled_tokens_nor_those_that_are_coarse_already_get_finer() {
        let layout = PageLayout::new(64);
        let candidate = |tier, fixed| Candidate { score: 1.0, tier, fixed };
        let mut candidates = vec![candidate(Tier::F16, Some(Tier::K8V8))];
        candidates.extend([candidate(Tier::K4V4, None); 20]);
        candidates.extend([candidate(Tier::F16, Some(Tier::K3V3)); 20]);
        let head = Head::new(&candidates, Prices::default().head(0), &layout);
        // K8V8 has room for fourteen more.
        let now = |c: &Candidate| c.fixed.or((c.tier == Tier::K4V4).then_some(Tier::K3V3));
        let mut assigned: Vec<Assignment> = candidates.iter().map(now).collect();
        fill(&head, &candidates, &mut assigned, &layout);
        assert_eq!(assigned[0], Some(Tier::K8V8));
        assert!(assigned[1..21].iter().flatten().all(|tier| *tier != Tier::K8V8));
        assert!(assigned[21..].iter().all(|tier| *tier == Some(Tier::K3V3)));
    }
}
