use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

fn layout() -> PageLayout {
    PageLayout::new(64)
}

fn candidates(scores: impl IntoIterator<Item = f32>) -> Vec<Candidate> {
    scores.into_iter().map(|score| Candidate { score, tier: Tier::F16, fixed: None }).collect()
}

fn pages(assignments: &[Vec<Assignment>]) -> usize {
    let of_tier = |head: &[Assignment], tier: Tier| {
        head.iter().filter(|a| **a == Some(tier)).count().div_ceil(layout().capacity(tier))
    };
    assignments.iter().map(|h| TIERS.iter().map(|t| of_tier(h, t.tier)).sum::<usize>()).sum()
}

#[test]
fn nothing_moves_while_everything_fits() {
    let heads = vec![candidates((0..80).map(|i| i as f32)); 3];
    let assigned = assign(&heads, 30, &Prices::default(), &layout());
    assert!(assigned.iter().flatten().all(|a| *a == Some(Tier::F16)));
}

#[test]
fn the_important_tokens_stay_finer_than_the_others() {
    let heads = vec![candidates((0..400).map(|i| (i as f32 / 20.0).exp2()))];
    let assigned = assign(&heads, 16, &Prices::default(), &layout());
    let rank = |a: &Assignment| a.map_or(usize::MAX, |t| t as usize);
    assert!(assigned[0].windows(2).all(|pair| rank(&pair[0]) >= rank(&pair[1])));
    assert!(rank(&assigned[0][399]) < rank(&assigned[0][0]));
}

#[test]
fn the_pages_never_exceed_the_limit_in_a_thousand_random_worlds() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..1000 {
        let num_heads = rng.random_range(1..6);
        let heads: Vec<Vec<Candidate>> = (0..num_heads)
            .map(|_| {
                (0..rng.random_range(0..200))
                    .map(|_| Candidate {
                        score: rng.random_range(-20f32..20.0).exp2(),
                        tier: TIERS[rng.random_range(0..TIERS.len())].tier,
                        fixed: rng.random_bool(0.05).then_some(Tier::K4V4),
                    })
                    .collect()
            })
            .collect();
        let max_pages = rng.random_range(1..80);
        let assigned = assign(&heads, max_pages, &Prices::default(), &layout());
        let floor: usize = heads.iter().filter(|h| h.iter().any(|c| c.fixed.is_some())).count();
        assert!(pages(&assigned) <= max_pages.max(floor));
        for (candidate, assignment) in heads.iter().flatten().zip(assigned.iter().flatten()) {
            assert!(assignment.is_none_or(|tier| tier >= candidate.tier), "a tier got finer");
            assert!(candidate.fixed.is_none_or(|tier| *assignment == Some(tier)));
        }
    }
}

#[test]
fn no_assignment_of_as_few_bytes_loses_less_in_tiny_worlds() {
    // Exhaustive over 5 options for 6 tokens. Scores are binned, 8 bins an octave, so two tokens of
    // one bin may change places: an eighth of the distortion at most.
    let mut rng = StdRng::seed_from_u64(2);
    let prices = Prices::default();
    for _ in 0..50 {
        let scores: Vec<f32> = (0..6).map(|_| rng.random_range(-6f32..6.0).exp2()).collect();
        let distortion = |assigned: &[Assignment]| -> f32 {
            let cost = |a: &Assignment| a.map_or(prices.evicted, |t| prices.distortion[t as usize]);
            assigned.iter().zip(&scores).map(|(a, s)| s * cost(a)).sum()
        };
        let bytes = |assigned: &[Assignment]| -> usize {
            assigned.iter().flatten().map(|t| layout().token_bytes(*t)).sum()
        };
        let price = rng.random_range(-18f32..2.0).exp2();
        let choices = Choices::new(price, &prices, &layout());
        let ours: Vec<_> = scores.iter().map(|s| choices.choose(Tier::F16, bin(*s))).collect();
        let best = every_assignment(6)
            .filter(|a| bytes(a) <= bytes(&ours))
            .map(|a| distortion(&a))
            .fold(f32::INFINITY, f32::min);
        assert!(distortion(&ours) <= 1.125 * best, "{ours:?} for {scores:?}");
    }
}

#[test]
fn what_a_bin_leaves_over_is_spent_on_finer_tiers() {
    // Equal scores: one price would put every head on the same side.
    let heads = vec![candidates([1.0; 58]); 10];
    let assigned = assign(&heads, 25, &Prices::default(), &layout());
    assert!((23..=25).contains(&pages(&assigned)), "{}", pages(&assigned));
}

fn every_assignment(num_tokens: u32) -> impl Iterator<Item = Vec<Assignment>> {
    (0..5usize.pow(num_tokens))
        .map(move |code| (0..num_tokens).map(|i| option_tier(code / 5usize.pow(i) % 5)).collect())
}

#[test]
fn scores_beyond_reason_do_not_break_the_order() {
    let heads = vec![candidates([0.0, f32::MIN_POSITIVE, 1.0, f32::MAX, f32::INFINITY])];
    for max_pages in 0..3 {
        let assigned = assign(&heads, max_pages, &Prices::default(), &layout());
        assert!(pages(&assigned) <= max_pages.max(1));
    }
}
