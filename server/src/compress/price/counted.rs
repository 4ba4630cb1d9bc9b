//! Pages by price for tokens of which is only known how many have which score.

use keepwell_kernels::{PageLayout, Tier};
use rayon::prelude::*;

use super::{
    HeadPrices, Prices,
    head::{Hull, choices},
};

/// Undecided tokens of one head that are in one tier: scores, and how many have each.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    pub tier: Tier,
    pub scores: Vec<(f32, u32)>,
}

/// Pages that the tokens of all heads fill at each price of `at`, in parts of a page: without the one
/// of each head and tier that is partly empty, it falls steadily as the price rises.
pub fn pages_by_price(
    heads: &[Vec<Counted>],
    at: &[f32],
    prices: &Prices,
    layout: &PageLayout,
) -> Vec<f32> {
    let of_head = |(index, head): (usize, &Vec<Counted>)| {
        let of_tier = |counted: &Counted| filled(counted, at, prices.head(index), layout);
        head.iter().map(of_tier).fold(vec![0.0; at.len()], add)
    };
    heads.par_iter().enumerate().map(of_head).reduce(|| vec![0.0; at.len()], add)
}

fn add(sum: Vec<f32>, more: Vec<f32>) -> Vec<f32> {
    sum.iter().zip(more).map(|(a, b)| a + b).collect()
}

fn filled(counted: &Counted, at: &[f32], prices: &HeadPrices, layout: &PageLayout) -> Vec<f32> {
    let hull = Hull::new(choices(prices, counted.tier, layout).into_iter());
    let at_price = |price: &f32| {
        let pages = |(score, count): &(f32, u32)| {
            let tier = hull.choose(*score, *price);
            tier.map_or(0.0, |tier| *count as f32 / layout.capacity(tier) as f32)
        };
        counted.scores.iter().map(pages).sum()
    };
    at.iter().map(at_price).collect()
}

#[cfg(test)]
mod tests {
    use keepwell_kernels::Histogram;
    use keepwell_kernels::histogram::middle;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::{
        super::{Candidate, head::Head},
        *,
    };

    #[test]
    fn octaves_fill_about_as_many_pages_as_the_tokens_one_by_one() {
        let (layout, prices) = (PageLayout::new(64), Prices::default());
        let mut rng = StdRng::seed_from_u64(1);
        let scores: Vec<f32> = (0..3000).map(|_| rng.random_range(-8f32..8.0).exp2()).collect();
        let mut histogram = Histogram::default();
        scores.iter().for_each(|score| histogram.add(*score));
        let counted = Counted {
            tier: Tier::F16,
            scores: (0..).map(middle).zip(histogram.counts).filter(|(_, n)| *n > 0).collect(),
        };
        let candidate = |&score: &f32| Candidate { score, tier: Tier::F16, fixed: None };
        let candidates: Vec<_> = scores.iter().map(candidate).collect();
        let head = Head::new(&candidates, prices.head(0), &layout);
        let at: Vec<f32> = (-14..10).map(|octave| (octave as f32).exp2()).collect();
        let by_octave = pages_by_price(&[vec![counted]], &at, &prices, &layout);
        for (price, by_octave) in at.iter().zip(by_octave) {
            let pages =
                |(tier, count): (Tier, &usize)| *count as f32 / layout.capacity(tier) as f32;
            let exact: f32 = head.counts(*price).iter().map(pages).sum();
            assert!(
                (by_octave - exact).abs() < 0.05 * exact + 3.0,
                "{by_octave} {exact} at {price}"
            );
        }
    }

    #[test]
    fn pages_fall_as_the_price_rises_from_all_tokens_where_they_are_to_none() {
        let layout = PageLayout::new(64);
        let counted = |tier| Counted { tier, scores: vec![(0.0, 40), (0.5, 100), (3.0, 60)] };
        let heads = vec![vec![counted(Tier::F16), counted(Tier::K4V4)], vec![counted(Tier::K8V8)]];
        let at: Vec<f32> = (-40..20).map(|octave| (octave as f32).exp2()).collect();
        let filled = pages_by_price(&heads, &at, &Prices::default(), &layout);
        let all = |tier| 160.0 / layout.capacity(tier) as f32;
        let worth_something = all(Tier::F16) + all(Tier::K4V4) + all(Tier::K8V8);
        assert!((filled[0] - worth_something).abs() < 1e-3, "{} {worth_something}", filled[0]);
        assert!(filled.windows(2).all(|pair| pair[0] >= pair[1]));
        assert_eq!(filled.last(), Some(&0.0));
    }
}
