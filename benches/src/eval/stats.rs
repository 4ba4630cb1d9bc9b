//! Means, percentiles, and bootstrap intervals over paired samples.

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Resamples of a bootstrap; the ends of a 95 % interval then rest on some fifty of them.
const RESAMPLES: usize = 2000;

/// A 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { f64::NAN } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The value below which a share `q` of `values` lies (nearest rank).
pub fn percentile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// Of the mean.
pub fn mean_interval(values: &[f64], seed: u64) -> Interval {
    bootstrap(values.len(), seed, |picked| average(values, picked))
}

/// Of `mean(a) / mean(b)`, where `a[i]` and `b[i]` come from the same sample.
pub fn ratio_interval(a: &[f64], b: &[f64], seed: u64) -> Interval {
    bootstrap(a.len().min(b.len()), seed, |picked| average(a, picked) / average(b, picked))
}

/// Of `mean(a) - mean(b)`, where `a[i]` and `b[i]` come from the same sample.
pub fn difference_interval(a: &[f64], b: &[f64], seed: u64) -> Interval {
    bootstrap(a.len().min(b.len()), seed, |picked| average(a, picked) - average(b, picked))
}

fn average(values: &[f64], picked: &[usize]) -> f64 {
    picked.iter().map(|&i| values[i]).sum::<f64>() / picked.len() as f64
}

fn bootstrap(n: usize, seed: u64, statistic: impl Fn(&[usize]) -> f64) -> Interval {
    if n == 0 {
        return Interval { low: f64::NAN, high: f64::NAN };
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut picked = vec![0; n];
    let draws: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            picked.iter_mut().for_each(|i| *i = rng.random_range(0..n));
            statistic(&picked)
        })
        .collect();
    Interval { low: percentile(&draws, 0.025), high: percentile(&draws, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, n: usize) -> Vec<f64> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(0.0..1.0)).collect()
    }

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors_to_each_side() {
        let values = noise(1, 400);
        let Interval { low, high } = mean_interval(&values, 7);
        let error = (1.0f64 / 12.0 / 400.0).sqrt();
        assert!(low < mean(&values) && mean(&values) < high);
        assert!((high - low - 2.0 * 1.96 * error).abs() < 0.3 * error);
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_true_mean() {
        let holds = |seed: &u64| {
            let Interval { low, high } = mean_interval(&noise(100 + seed, 60), *seed);
            low < 0.5 && 0.5 < high
        };
        let held = (0..200).filter(holds).count();
        assert!((180..=199).contains(&held), "{held}");
    }

    #[test]
    fn pairing_takes_out_what_samples_have_in_common() {
        let hard = noise(2, 50);
        let half: Vec<f64> = hard.iter().map(|v| 0.5 * v).collect();
        let Interval { low, high } = ratio_interval(&half, &hard, 3);
        assert!((low - 0.5).abs() < 1e-12 && (high - 0.5).abs() < 1e-12);
        let Interval { low, high } = difference_interval(&half, &hard, 3);
        assert!(low < high && high < 0.0);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values = noise(3, 30);
        assert_eq!(mean_interval(&values, 5), mean_interval(&values, 5));
        assert_ne!(mean_interval(&values, 5), mean_interval(&values, 6));
    }

    #[test]
    fn percentiles_are_ranks() {
        let values: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.99), 990.0);
        assert_eq!(percentile(&values, 0.999), 999.0);
        assert_eq!(percentile(&[4.0], 0.5), 4.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
