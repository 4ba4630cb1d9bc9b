//! Policies against the best baseline that takes at least as many bytes, sample by sample.

use serde::Serialize;

use super::{
    rows::{Results, quality},
    stats::{difference_interval, mean, ratio_interval},
    tasks::Mode,
};

/// A baseline that takes this much less still counts as equal.
const TOLERANCE: f64 = 0.99;
/// Beyond so many times the policy's bytes the comparison would say nothing.
const MOST: f64 = 1.5;

/// A policy and the best of the baselines that it must beat.
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
    pub baseline_bytes_ratio: f64,
    pub baseline_value: f64,
    /// For `kl` the ratio of the means, below 1 when the policy is better; else the difference of the
    /// scores, above 0 when it is better.
    pub effect: f64,
    /// Paired 95 % bootstrap interval of the effect.
    pub low: f64,
    pub high: f64,
}

impl Comparison {
    pub fn is_ratio(&self) -> bool {
        self.task == "kl"
    }
}

pub fn comparisons(results: &Results) -> Vec<Comparison> {
    let tasks = results.tasks();
    let policies = || (0..results.arms.len()).filter(|arm| results.arms[*arm].is_policy());
    tasks
        .iter()
        .flat_map(|task| policies().filter_map(|arm| compare(results, *task, arm)))
        .collect()
}

fn compare(
    results: &Results,
    (task, mode): (&'static str, Mode),
    arm: usize,
) -> Option<Comparison> {
    let qualities =
        |arm| -> Vec<f64> { results.outcomes(task, mode, arm).into_iter().map(quality).collect() };
    let bytes = |arm| -> f64 {
        let outcomes = results.outcomes(task, mode, arm);
        mean(&outcomes.iter().map(|outcome| outcome.bytes_ratio).collect::<Vec<_>>())
    };
    let is_ratio = task == "kl";
    let loss = |arm: usize| if is_ratio { mean(&qualities(arm)) } else { -mean(&qualities(arm)) };
    let rivals = rivals(results, bytes(arm), bytes);
    let best = rivals.into_iter().min_by(|a, b| loss(*a).total_cmp(&loss(*b)))?;
    let (ours, theirs) = (qualities(arm), qualities(best));
    let (value, baseline_value) = (mean(&ours), mean(&theirs));
    let (effect, interval) = match is_ratio {
        true => (value / baseline_value, ratio_interval(&ours, &theirs, results.seed)),
        false => (value - baseline_value, difference_interval(&ours, &theirs, results.seed)),
    };
    Some(Comparison {
        policy: results.arms[arm].name(),
        budget: results.arms[arm].budget?,
        bytes_ratio: bytes(arm),
        task,
        mode,
        n: ours.len(),
        value,
        baseline: results.arms[best].name(),
        baseline_bytes_ratio: bytes(best),
        baseline_value,
        effect,
        low: interval.low,
        high: interval.high,
    })
}

/// Of each family the smallest arm that takes at least `bytes`.
fn rivals(results: &Results, bytes: f64, bytes_of: impl Fn(usize) -> f64) -> Vec<usize> {
    let mut rivals: Vec<(&str, f64, usize)> = Vec::new();
    for (index, arm) in results.arms.iter().enumerate() {
        let (Some(family), size) = (arm.family(), bytes_of(index)) else { continue };
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
    fn what_is_smaller_or_far_larger_is_no_rival() {
        let results = results();
        let bytes = |arm: usize| [1.0, 0.2, 0.53, 0.19][arm];
        assert!(rivals(&results, 0.2, bytes).is_empty());
        let bytes = |arm: usize| [1.0, 0.2, 0.28, 0.199][arm];
        assert_eq!(rivals(&results, 0.2, bytes), [3]);
    }
}
