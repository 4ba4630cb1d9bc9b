//! Policies against the baselines that take at least as many bytes, and against the full cache,
//! sample by sample.

use serde::Serialize;

use super::{
    methods::METHODS,
    rows::{Results, quality},
    stats::{difference_interval, mean, ratio_interval},
    tasks::Mode,
};

/// A baseline that takes this much less still counts as equal.
const TOLERANCE: f64 = 0.99;
/// Beyond so many times the policy's bytes the comparison would say nothing.
const MOST: f64 = 1.5;

/// Tasks whose values are divergences, which are compared by their ratio.
const DIVERGENCES: [&str; 2] = ["kl", "long"];

/// A policy and one of the baselines that it must beat, or the full cache.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub policy: &'static str,
    pub budget: f64,
    pub bytes_ratio: f64,
    pub task: &'static str,
    pub mode: Mode,
    pub n: usize,
    /// Mean divergence or score of the policy.
    pub value: f64,
    pub baseline: &'static str,
    /// Whether this is the best of the baselines.
    pub is_best: bool,
    pub baseline_bytes_ratio: f64,
    pub baseline_value: f64,
    /// Of divergences the ratio of the means, below 1 when the policy is better; else the difference of the
    /// scores, above 0 when it is better.
    pub effect: f64,
    /// Paired 95 % bootstrap interval of the effect.
    pub low: f64,
    pub high: f64,
}

impl Comparison {
    pub fn is_ratio(&self) -> bool {
        DIVERGENCES.contains(&self.task)
    }

    pub fn is_to_full(&self) -> bool {
        self.baseline == METHODS[0].name()
    }
}

/// Every policy against every rival, the best first, and its scores against the full cache's.
pub fn comparisons(results: &Results) -> Vec<Comparison> {
    let of_task = |task: (&'static str, Mode)| {
        let policies = results.arms_in(task.0, task.1).filter(|arm| results.arms[*arm].is_policy());
        policies.flat_map(move |arm| compare(results, task, arm))
    };
    results.tasks().into_iter().flat_map(of_task).collect()
}

/// One arm's side of a comparison.
struct Side {
    arm: usize,
    bytes_ratio: f64,
    qualities: Vec<f64>,
}

fn compare(results: &Results, (task, mode): (&'static str, Mode), arm: usize) -> Vec<Comparison> {
    let side = |arm: usize| {
        let outcomes = results.outcomes(task, mode, arm);
        let bytes: Vec<f64> = outcomes.iter().map(|outcome| outcome.bytes_ratio).collect();
        let qualities = outcomes.into_iter().map(quality).collect();
        Side { arm, bytes_ratio: mean(&bytes), qualities }
    };
    let is_ratio = DIVERGENCES.contains(&task);
    let loss = |side: &Side| if is_ratio { mean(&side.qualities) } else { -mean(&side.qualities) };
    let ours = side(arm);
    let there: Vec<usize> = results.arms_in(task, mode).collect();
    let sizes = there.iter().map(|arm| (*arm, side(*arm).bytes_ratio));
    let mut theirs: Vec<_> =
        rivals(results, ours.bytes_ratio, sizes).into_iter().map(side).collect();
    theirs.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    let comparison = |is_best: bool, theirs: &Side| {
        let (value, baseline_value) = (mean(&ours.qualities), mean(&theirs.qualities));
        let pair = (&ours.qualities[..], &theirs.qualities[..], results.seed);
        let (effect, interval) = match is_ratio {
            true => (value / baseline_value, ratio_interval(pair.0, pair.1, pair.2)),
            false => (value - baseline_value, difference_interval(pair.0, pair.1, pair.2)),
        };
        Comparison {
            policy: results.arms[arm].name(),
            budget: results.arms[arm].budget.unwrap_or(ours.bytes_ratio),
            bytes_ratio: ours.bytes_ratio,
            task,
            mode,
            n: ours.qualities.len(),
            value,
            baseline: results.arms[theirs.arm].name(),
            is_best,
            baseline_bytes_ratio: theirs.bytes_ratio,
            baseline_value,
            effect,
            low: interval.low,
            high: interval.high,
        }
    };
    let ranked = theirs.iter().enumerate();
    let mut all: Vec<_> = ranked.map(|(rank, theirs)| comparison(rank == 0, theirs)).collect();
    // No rival, but what scores are measured by; of divergence it has none.
    let full = there.into_iter().filter(|arm| results.arms[*arm].is_full() && !is_ratio);
    all.extend(full.map(|arm| comparison(false, &side(arm))));
    all
}

/// Of each family the smallest arm that takes at least `bytes`; `sizes` are those of the arms there are.
fn rivals(results: &Results, bytes: f64, sizes: impl Iterator<Item = (usize, f64)>) -> Vec<usize> {
    let mut rivals: Vec<(&str, f64, usize)> = Vec::new();
    for (index, size) in sizes {
        let Some(family) = results.arms[index].family() else { continue };
        if size < TOLERANCE * bytes || size > MOST * bytes {
            continue;
        }
        match rivals.iter_mut().find(|rival| rival.0 == family) {
            Some(rival) if size < rival.1 => *rival = (family, size, index),
            Some(_) => {}
            None => rivals.push((family, size, index)),
        }
    }
    rivals.into_iter().map(|(_, _, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::rows::tests::results;

    #[test]
    fn a_policy_meets_the_closest_format_of_a_family_that_is_not_smaller() {
        let comparisons = comparisons(&results());
        let kl = comparisons.iter().find(|c| c.task == "kl").unwrap();
        assert_eq!((kl.policy, kl.baseline), ("attribution", "uniform_k4v4"));
        // Pairing: every sample has the same ratio, so the interval has no width.
        assert!((kl.effect - 0.25).abs() < 1e-9 && (kl.high - kl.low).abs() < 1e-9);
    }

    #[test]
    fn scores_are_compared_by_their_difference() {
        let comparisons = comparisons(&results());
        let needle = comparisons.iter().find(|c| c.task == "needle").unwrap();
        assert!((needle.effect - 0.375).abs() < 1e-9);
        assert!(needle.low <= needle.effect && needle.effect <= needle.high);
    }

    #[test]
    fn scores_stand_beside_those_of_the_full_cache() {
        let comparisons = comparisons(&results());
        let full: Vec<_> = comparisons.iter().filter(|c| c.is_to_full()).collect();
        assert_eq!((full.len(), full[0].task, full[0].is_best), (1, "needle", false));
        assert!((full[0].effect + 0.125).abs() < 1e-9 && full[0].low < full[0].effect);
    }

    #[test]
    fn what_is_smaller_or_far_larger_is_no_rival() {
        let results = results();
        let rivals = |sizes: [f64; 4]| rivals(&results, 0.2, sizes.into_iter().enumerate());
        assert!(rivals([1.0, 0.2, 0.53, 0.19]).is_empty());
        assert_eq!(rivals([1.0, 0.2, 0.28, 0.199]), [3]);
    }
}
