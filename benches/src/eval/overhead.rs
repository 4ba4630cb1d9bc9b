//! What compression itself takes: scoring, pricing and compacting, as a share of the time it is part
//! of.

use std::time::Instant;

use anyhow::{Context, Result};
use keepwell_server::trial::{Lab, Recipe, Trial};
use serde::Serialize;

use super::spy::Spy;

/// Tokens of the prompt and of the answer that are timed.
const PROMPT: usize = 2000;
const DECODED: usize = 256;
const RECIPE_BUDGET: f32 = 0.2;
/// The quickest of so many runs counts: what else the machine does only adds.
const RUNS: usize = 3;

/// Seconds, and the share of them that compression takes: the sum of the parts over all.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub tokens: usize,
    pub seconds: f64,
    /// In the forward pass.
    pub scoring_seconds: f64,
    /// Reading the scores, the first part of a compress event.
    pub read_seconds: f64,
    pub price_seconds: f64,
    pub compact_seconds: f64,
    pub share: f64,
}

impl Share {
    fn new(tokens: usize, seconds: f64, parts: [f64; 4]) -> Self {
        let [scoring_seconds, read_seconds, price_seconds, compact_seconds] = parts;
        let share = parts.iter().sum::<f64>() / seconds;
        Self {
            tokens,
            seconds,
            scoring_seconds,
            read_seconds,
            price_seconds,
            compact_seconds,
            share,
        }
    }

    /// The parts as shares of all, with their names.
    pub fn parts(&self) -> [(&'static str, f64); 4] {
        [
            ("scoring", self.scoring_seconds),
            ("reading scores", self.read_seconds),
            ("pricing", self.price_seconds),
            ("compacting", self.compact_seconds),
        ]
        .map(|(name, seconds)| (name, seconds / self.seconds))
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Overhead {
    pub budget: f32,
    pub prefill: Share,
    pub decode: Share,
}

impl Overhead {
    /// # Errors
    /// A failing kernel.
    pub fn measure(lab: &Lab, spy: &Spy, text: &[u32], is_quick: bool) -> Result<Self> {
        let prompt: Vec<u32> = text.iter().copied().cycle().take(PROMPT).collect();
        let runs = if is_quick { 1 } else { RUNS };
        let runs = (0..runs).map(|_| Self::run(lab, spy, &prompt)).collect::<Result<Vec<_>>>()?;
        let quickest = |of: fn(&Self) -> Share| -> Result<Share> {
            let shares = runs.iter().map(of);
            shares.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).context("there was a run")
        };
        let (prefill, decode) = (quickest(|run| run.prefill)?, quickest(|run| run.decode)?);
        Ok(Self { budget: RECIPE_BUDGET, prefill, decode })
    }

    fn run(lab: &Lab, spy: &Spy, prompt: &[u32]) -> Result<Self> {
        let recipe = Recipe { budget: RECIPE_BUDGET, ..Recipe::exact() };
        let mut trial = lab.start(recipe, prompt.len() + DECODED)?;
        let prefill = timed(&mut trial, spy, prompt.len(), |trial| trial.prefill(prompt))?;
        // No stop token: an answer of a known length.
        let generate = |trial: &mut Trial| trial.generate(DECODED, &[]).map(drop);
        let decode = timed(&mut trial, spy, DECODED, generate)?;
        Ok(Self { budget: RECIPE_BUDGET, prefill, decode })
    }

    pub fn print(&self) {
        println!("\nScoring, pricing and compacting at budget {}", self.budget);
        for (what, share) in [("prefill", self.prefill), ("decode", self.decode)] {
            let part = |(name, part): (&str, f64)| format!("{name} {:.2} %", 100.0 * part);
            let Share { tokens, seconds, .. } = share;
            println!(
                "{what:8} {tokens:5} tokens  {seconds:7.3} s, of it {:.2} %: {}",
                100.0 * share.share,
                share.parts().map(part).join(", ")
            );
        }
    }
}

fn timed(
    trial: &mut Trial,
    spy: &Spy,
    tokens: usize,
    run: impl FnOnce(&mut Trial) -> Result<()>,
) -> Result<Share> {
    let before = trial.event_time();
    spy.take_scoring_time();
    let started = Instant::now();
    run(trial)?;
    let seconds = started.elapsed().as_secs_f64();
    let scoring = spy.take_scoring_time();
    let event = trial.event_time();
    let parts = [
        scoring,
        event.score - before.score,
        event.price - before.price,
        event.compact - before.compact,
    ];
    Ok(Share::new(tokens, seconds, parts.map(|part| part.as_secs_f64())))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Overhead {
        /// Half of it for scoring.
        pub fn of_share(share: f64) -> Self {
            let parts = [0.5, 0.25, 0.125, 0.125].map(|part| 2.0 * share * part);
            let share = Share::new(100, 2.0, parts);
            Self { budget: RECIPE_BUDGET, prefill: share, decode: share }
        }
    }

    #[test]
    fn the_parts_add_up_to_the_share() {
        let share = Overhead::of_share(0.04).prefill;
        assert!((share.share - 0.04).abs() < 1e-12);
        assert!((share.parts().iter().map(|(_, part)| part).sum::<f64>() - 0.04).abs() < 1e-12);
    }
}
