//! How long an evaluation takes: an estimate at the start, a bar on the way.

use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use keepwell_server::trial::{Lab, Recipe};

use super::{
    arms::{Arm, Contender},
    tasks::{Sample, Then},
};

/// Tokens whose prefill is timed.
const TIMED: usize = 512;
/// What simulating a method takes, as a share of the prefill.
const SIMULATION: f64 = 0.4;
/// Prefilled tokens in the time of one that is decoded.
const DECODING: f64 = 8.0;

/// Work in units of one prefilled token.
pub fn work(arm: &Arm, sample: &Sample) -> u64 {
    let context = sample.context.len() as f64;
    let compression = match arm.contender {
        Contender::Policy(_) => context,
        Contender::Method(_) if arm.is_full() => 1.5 * context,
        Contender::Method(_) => SIMULATION * context,
    };
    let after = match &sample.then {
        Then::Continue(tokens) => 2 * tokens.len(),
        Then::Ask(questions) => questions.iter().map(|q| q.prompt.len()).sum(),
    };
    let decoded = match &sample.then {
        Then::Continue(_) => 0,
        // An answer ends before its longest: a sentence around the digits.
        Then::Ask(questions) => questions.iter().map(|q| q.digits.len() + 8).sum(),
    };
    (compression + after as f64 + DECODING * decoded as f64) as u64
}

/// Seconds of one unit of work, from a prefill of `tokens`.
///
/// # Errors
/// A failing kernel.
pub fn seconds_per_unit(lab: &Lab, tokens: &[u32]) -> Result<f64> {
    let tokens = &tokens[..tokens.len().min(TIMED)];
    lab.start(Recipe::exact(), TIMED)?.prefill(&tokens[..tokens.len().min(64)])?;
    let started = Instant::now();
    lab.start(Recipe::exact(), TIMED)?.prefill(tokens)?;
    Ok(started.elapsed().as_secs_f64() / tokens.len().max(1) as f64)
}

pub fn bar(total: u64) -> Result<ProgressBar> {
    let template = "{msg:24} {wide_bar} {percent:>3} %  {elapsed_precise}, {eta_precise} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(template)?);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}
