//! How many tokens: a number or a distribution.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand_distr::{Distribution, LogNormal, Normal};

/// Written `128`, `uniform:64-256`, `normal:512,64` (mean, deviation) or `lognormal:512,256`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lengths {
    Fixed(usize),
    Uniform(usize, usize),
    Normal(f64, f64),
    /// Mean and deviation of the lengths themselves, not of their logarithms.
    LogNormal(f64, f64),
}

impl Lengths {
    /// At least 1.
    pub fn draw(&self, rng: &mut impl Rng) -> usize {
        let drawn = match *self {
            Self::Fixed(length) => return length,
            Self::Uniform(least, most) => return rng.random_range(least..=most),
            Self::Normal(mean, deviation) => {
                Normal::new(mean, deviation).map_or(mean, |normal| normal.sample(rng))
            }
            Self::LogNormal(mean, deviation) => {
                let variance = (1.0 + (deviation / mean).powi(2)).ln();
                let location = mean.ln() - variance / 2.0;
                LogNormal::new(location, variance.sqrt()).map_or(mean, |normal| normal.sample(rng))
            }
        };
        drawn.round().max(1.0) as usize
    }
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is none of 128, uniform:64-256, normal:512,64 and lognormal:512,256")
        };
        let count = |text: &str| text.trim().parse().ok().filter(|n: &usize| *n > 0);
        let (kind, rest) = text.split_once(':').unwrap_or(("", text));
        let lengths = match kind {
            "" => count(rest).map(Self::Fixed),
            "uniform" => rest.split_once('-').and_then(|(least, most)| {
                let (least, most) = (count(least)?, count(most)?);
                (least <= most).then_some(Self::Uniform(least, most))
            }),
            "normal" => moments(rest).map(|(mean, deviation)| Self::Normal(mean, deviation)),
            "lognormal" => moments(rest).map(|(mean, deviation)| Self::LogNormal(mean, deviation)),
            _ => None,
        };
        lengths.ok_or_else(wrong)
    }
}

/// In words.
impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Uniform(least, most) => write!(f, "{least} to {most}"),
            Self::Normal(mean, deviation) => write!(f, "{mean} \u{b1} {deviation} (normal)"),
            Self::LogNormal(mean, deviation) => write!(f, "{mean} \u{b1} {deviation} (lognormal)"),
        }
    }
}

fn moments(text: &str) -> Option<(f64, f64)> {
    let (mean, deviation) = text.split_once(',')?;
    let (mean, deviation): (f64, f64) = (mean.trim().parse().ok()?, deviation.trim().parse().ok()?);
    let is_sane = (1.0..1e7).contains(&mean) && (0.0..1e7).contains(&deviation);
    is_sane.then_some((mean, deviation))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn what_is_no_length_is_refused() {
        for bad in [
            "",
            "0",
            "-3",
            "x",
            "uniform:9-3",
            "uniform:3",
            "normal:5",
            "normal:nan,1",
            "poisson:3",
        ] {
            assert!(bad.parse::<Lengths>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lengths_are_told_in_words() {
        for (text, words) in [
            ("12", "12"),
            ("uniform:64-256", "64 to 256"),
            ("normal:512,64", "512 \u{b1} 64 (normal)"),
            ("lognormal:512,256.5", "512 \u{b1} 256.5 (lognormal)"),
        ] {
            assert_eq!(text.parse::<Lengths>().unwrap().to_string(), words);
        }
    }

    #[test]
    fn draws_have_the_mean_they_were_asked_for_and_are_never_zero() {
        let mut rng = StdRng::seed_from_u64(7);
        for (text, mean) in [
            ("128", 128.0),
            ("uniform:64-256", 160.0),
            ("normal:100,20", 100.0),
            ("lognormal:100,60", 100.0),
        ] {
            let lengths: Lengths = text.parse().unwrap();
            let draws: Vec<_> = (0..20_000).map(|_| lengths.draw(&mut rng)).collect();
            assert!(draws.iter().all(|draw| *draw > 0));
            let found = draws.iter().sum::<usize>() as f64 / 20_000.0;
            assert!((found / mean - 1.0).abs() < 0.02, "{text}: {found}");
        }
    }
}
