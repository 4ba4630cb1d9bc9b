//! When sessions begin.

use std::str::FromStr;

use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Exp};
use serde::{Deserialize, Serialize};

use super::workload::Session;

/// How load is put on the server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Closed loop: so many requests at a time, each sent when another ends.
    Concurrency(usize),
    /// Open loop: sessions arrive at random, so many a second on average, whatever the server does.
    Rate(f64),
    /// Open loop: sessions arrive when the dataset says.
    Trace,
}

impl Load {
    pub fn name(&self) -> String {
        match self {
            Self::Concurrency(num) => format!("closed loop, {num} at a time"),
            Self::Rate(rate) => format!("open loop, Poisson, {rate}/s"),
            Self::Trace => "open loop, trace".into(),
        }
    }
}

/// Of `--rate`: sessions a second, or `trace`.
impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "trace" {
            return Ok(Self::Trace);
        }
        let rate = text.parse().ok().filter(|rate: &f64| *rate > 0.0 && *rate <= 1e6);
        rate.map(Self::Rate).ok_or_else(|| format!("`{text}` is neither a rate nor `trace`"))
    }
}

/// Seconds after the start at which each of the sessions begins.
pub fn poisson(rate: f64, num: usize, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let gaps = Exp::new(rate).expect("a rate is positive");
    let next = |at: &mut f64, _| {
        *at += gaps.sample(&mut rng);
        Some(*at)
    };
    (0..num).scan(0.0, next).collect()
}

/// Those that the dataset gives `num` sessions from the one with number `first`, which begins at 0;
/// sessions without a time begin with the one before. None is behind the dataset's end.
pub fn trace(dataset: &[Session], first: usize, num: usize) -> Vec<f64> {
    let times = dataset.iter().scan(0f64, |last, session| {
        *last = session.at.unwrap_or(*last);
        Some(*last)
    });
    let mut times: Vec<f64> = times.skip(first % dataset.len().max(1)).take(num).collect();
    let start = times.iter().copied().fold(f64::INFINITY, f64::min);
    times.iter_mut().for_each(|at| *at -= start);
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poisson_arrivals_have_their_rate_and_exponential_gaps() {
        let times = poisson(50.0, 20_000, 3);
        let rate = 20_000.0 / times[19_999];
        assert!((rate / 50.0 - 1.0).abs() < 0.03, "{rate}");
        // The share of gaps longer than the mean is 1/e.
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > 1.0 / 50.0).count();
        assert!((long as f64 / 20_000.0 - (-1f64).exp()).abs() < 0.02);
    }

    #[test]
    fn a_trace_begins_at_zero_and_keeps_its_gaps() {
        let session = |at| Session { at, history: vec![], turns: vec![] };
        let sessions = [Some(5.0), None, Some(7.5)].map(session);
        assert_eq!(trace(&sessions, 0, 9), [0.0, 0.0, 2.5]);
        // From the second on, which begins with the first; and so behind the end, where it is anew.
        for first in [1, 4] {
            assert_eq!(trace(&sessions, first, 9), [0.0, 2.5]);
        }
        assert_eq!(trace(&sessions, 2, 9), [0.0]);
    }

    #[test]
    fn rates_are_numbers_above_zero_or_the_trace() {
        assert_eq!("2.5".parse(), Ok(Load::Rate(2.5)));
        assert_eq!("trace".parse(), Ok(Load::Trace));
        for bad in ["0", "-1", "x", "inf", "nan"] {
            assert!(bad.parse::<Load>().is_err(), "{bad}");
        }
    }
}
