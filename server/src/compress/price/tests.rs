use keepwell_kernels::{TIERS, page::TierInfo};

use super::{
    head::{Hull, choices},
    *,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

fn layout() -> PageLayout {
    PageLayout::new(64)
}

fn candidates(scores: impl IntoIterator<Item = f32>) -> Vec<Candidate> {
    scores.into_iter().map(|score| Candidate { score, tier: Tier::F16, fixed: None }).collect()
}

fn held_pages(assignments: &[Vec<Assignment>]) -> usize {
    let counts = |head: &Vec<Assignment>| {
        PerTier::new(|tier| head.iter().filter(|a| **a == Some(tier)).count())
    };
    assignments.iter().map(|head| super::pages(&counts(head), &layout())).sum()
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
    assert!(assigned[0].windows(2).all(|pair| bytes(pair[0]) <= bytes(pair[1])));
    assert!(bytes(assigned[0][399]) > bytes(assigned[0][0]));
}

fn bytes(assignment: Assignment) -> usize {
    assignment.map_or(0, |tier| layout().token_bytes(tier))
}

#[test]
fn what_is_refused_is_never_used_however_dear_eviction_is() {
    let mut head = Prices::default().head(0).clone();
    let is_refused = |tier: Tier| tier.name().starts_with("k2") || tier.name().starts_with("k1");
    TIERS.iter().filter(|i| is_refused(i.tier)).for_each(|i| head.key[i.tier] = REFUSED);
    let heads = vec![candidates((0..400).map(|i| (i as f32 / 20.0).exp2()))];
    for prices in [Prices::new(vec![head.clone()]), Prices::new(vec![head]).reluctant()] {
        for max_pages in [4, 8, 12, 16, 24] {
            let assigned = assign(&heads, max_pages, &prices, &layout());
            assert!(held_pages(&assigned) <= max_pages);
            assert!(assigned[0].iter().flatten().all(|tier| !is_refused(*tier)), "{max_pages}");
        }
    }
}

#[test]
fn the_pages_never_exceed_the_limit_in_a_thousand_random_worlds() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..1000 {
        let num_heads = rng.random_range(1..6);
        let heads: Vec<Vec<Candidate>> = (0..num_heads)
            .map(|_| {
                let tiers: [Tier; 6] =
                    rng.random::<[u8; 6]>().map(|n| TIERS[usize::from(n) % TIERS.len()].tier);
                (0..rng.random_range(0..200))
                    .map(|_| Candidate {
                        score: rng.random_range(-20f32..20.0).exp2(),
                        tier: tiers[rng.random_range(0..tiers.len())],
                        fixed: rng.random_bool(0.05).then_some(Tier::K4V4),
                    })
                    .collect()
            })
            .collect();
        let max_pages = rng.random_range(1..80);
        let assigned = assign(&heads, max_pages, &Prices::default(), &layout());
        let floor: usize = heads.iter().filter(|h| h.iter().any(|c| c.fixed.is_some())).count();
        assert!(held_pages(&assigned) <= max_pages.max(floor));
        for (candidate, assignment) in heads.iter().flatten().zip(assigned.iter().flatten()) {
            match candidate.fixed {
                Some(tier) => assert_eq!(*assignment, Some(tier)),
                None => assert!(bytes(*assignment) <= bytes(Some(candidate.tier)), "it grew"),
            }
        }
    }
}

#[test]
fn no_assignment_of_as_few_bytes_loses_less_in_tiny_worlds() {
    // Exhaustive over 5 options for 6 tokens.
    const OPTIONS: [Assignment; 5] =
        [None, Some(Tier::K2V2), Some(Tier::K4V4), Some(Tier::K8V4), Some(Tier::F16)];
    let mut rng = StdRng::seed_from_u64(2);
    let prices = Prices::default();
    let prices = prices.head(0);
    for _ in 0..50 {
        let scores: Vec<f32> = (0..6).map(|_| rng.random_range(-6f32..6.0).exp2()).collect();
        let distortion = |assigned: &[Assignment]| -> f32 {
            let cost =
                |a: &Assignment| a.map_or(prices.evicted, |t| prices.key[t] + prices.value[t]);
            assigned.iter().zip(&scores).map(|(a, s)| s * cost(a)).sum()
        };
        let total = |assigned: &[Assignment]| assigned.iter().map(|a| bytes(*a)).sum::<usize>();
        let price = rng.random_range(-18f32..2.0).exp2();
        let choices = choices(prices, Tier::F16, &layout()).into_iter();
        let hull = Hull::new(choices.filter(|choice| OPTIONS.contains(&choice.tier)));
        let ours: Vec<_> = scores.iter().map(|s| hull.choose(*s, price)).collect();
        let best = (0..5usize.pow(6))
            .map(|code| -> Vec<_> { (0..6).map(|i| OPTIONS[code / 5usize.pow(i) % 5]).collect() })
            .filter(|a| total(a) <= total(&ours))
            .map(|a| distortion(&a))
            .fold(f32::INFINITY, f32::min);
        assert!(distortion(&ours) <= best * 1.0001, "{ours:?} for {scores:?}");
    }
}

#[test]
fn a_head_uses_few_tiers_and_none_for_a_handful_of_tokens() {
    let mut rng = StdRng::seed_from_u64(3);
    let heads: Vec<_> = (0..5)
        .map(|_| candidates((0..1000).map(|_| rng.random_range(-20f32..20.0).exp2())))
        .collect();
    let assigned = assign(&heads, 5 * 1000 / 30, &Prices::default(), &layout());
    for head in &assigned {
        let counts = PerTier::new(|tier| head.iter().filter(|a| **a == Some(tier)).count());
        let used: Vec<_> = counts.values().filter(|count| **count > 0).collect();
        assert!(used.len() <= MAX_TIERS, "{used:?}");
    }
    assert!(held_pages(&assigned) <= 5 * 1000 / 30);
}

#[test]
fn a_head_whose_keys_matter_more_than_its_values_gets_finer_keys() {
    let price = |key: f32, value: f32| HeadPrices {
        key: PerTier::new(|tier| key * normal_error(tier.info().key)),
        value: PerTier::new(|tier| value * normal_error(tier.info().value)),
        evicted: 1e6,
        unforeseen: 0.0,
    };
    let prices = Prices::new(vec![price(100.0, 1.0), price(1.0, 100.0)]);
    let heads = vec![candidates([1.0; 600]), candidates([1.0; 600])];
    let assigned = assign(&heads, 50, &prices, &layout());
    let size = |head: usize, of: fn(&TierInfo) -> Format| -> usize {
        let tiers = assigned[head].iter().flatten();
        tiers.map(|tier| of(tier.info()).vector_bytes(64)).sum()
    };
    assert!(size(0, |t| t.key) > size(0, |t| t.value));
    assert!(size(1, |t| t.value) > size(1, |t| t.key));
}

/// Tokens of ten heads that an event brought down to `max_pages` before the prompt was at its end.
fn compressed_once(max_pages: usize, prices: &Prices) -> Vec<Vec<Candidate>> {
    let mut rng = StdRng::seed_from_u64(4);
    let mut score = || rng.random_range(-6f32..6.0).exp2();
    let heads: Vec<_> = (0..10).map(|_| candidates((0..600).map(|_| score()))).collect();
    let assigned = assign(&heads, max_pages, &prices.reluctant(), &layout());
    let again = |(candidates, tiers): (&Vec<Candidate>, &Vec<Assignment>)| {
        let kept = candidates.iter().zip(tiers);
        let now = |(c, tier): (&Candidate, &Assignment)| Some(Candidate { tier: (*tier)?, ..*c });
        kept.filter_map(now).collect()
    };
    heads.iter().zip(&assigned).map(again).collect()
}

#[test]
fn a_second_event_frees_no_more_than_it_has_to() {
    // In a coarse tier a token is hardly worth more than an evicted one.
    for evicted in [0.1, 0.3, 1.0, 30.0] {
        let cheap = HeadPrices { evicted, ..Prices::default().head(0).clone() };
        let prices = Prices::new(vec![cheap]);
        let heads = compressed_once(130, &prices);
        for max_pages in [128, 120, 100, 70] {
            let held = held_pages(&assign(&heads, max_pages, &prices, &layout()));
            assert!(
                (max_pages - 5..=max_pages).contains(&held),
                "{held} of {max_pages} at {evicted}"
            );
        }
    }
}

#[test]
fn what_equal_scores_leave_over_is_spent_on_finer_tiers() {
    // Equal scores: one price would put every head on the same side.
    let heads = vec![candidates([1.0; 58]); 10];
    let assigned = assign(&heads, 25, &Prices::default(), &layout());
    assert!((23..=25).contains(&held_pages(&assigned)), "{}", held_pages(&assigned));
}

#[test]
fn scores_beyond_reason_do_not_break_the_order() {
    let heads = vec![candidates([0.0, f32::MIN_POSITIVE, 1.0, f32::MAX, f32::INFINITY])];
    for max_pages in 0..3 {
        let assigned = assign(&heads, max_pages, &Prices::default(), &layout());
        assert!(held_pages(&assigned) <= max_pages.max(1));
    }
}
