//! What compression itself takes: scoring, pricing and compacting, as a share of the time it is part
//! of.

use std::time::{Duration, Instant};

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

/// Seconds, and `(scoring + events) / seconds`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub tokens: usize,
    pub seconds: f64,
    pub scoring_seconds: f64,
    /// Reading scores, pricing and compacting.
    pub event_seconds: f64,
    pub share: f64,
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
            let Share { tokens, seconds, scoring_seconds, event_seconds, share } = share;
            println!(
                "{what:8} {tokens:5} tokens  {seconds:7.3} s, of it scoring {scoring_seconds:.3} s, \
                 events {event_seconds:.3} s: {:.1} %",
                100.0 * share
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
    let events_before = trial.event_time();
    spy.take_scoring_time();
    let started = Instant::now();
    run(trial)?;
    let seconds = started.elapsed().as_secs_f64();
    let scoring = spy.take_scoring_time();
    let events: Duration = trial.event_time() - events_before;
    let (scoring_seconds, event_seconds) = (scoring.as_secs_f64(), events.as_secs_f64());
    let share = (scoring_seconds + event_seconds) / seconds;
    Ok(Share { tokens, seconds, scoring_seconds, event_seconds, share })
}
