//! How long an evaluation takes: an estimate at the start, a bar or lines on the way.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
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

/// A line on the way for so much of the work.
const PERCENT_A_LINE: u64 = 5;

/// Work in units of one prefilled token.
pub fn work(arm: &Arm, sample: &Sample) -> u64 {
    let context = sample.context.len() as f64;
    let compression = match arm.contender {
        Contender::Policy(_) => context,
        Contender::Method(_) if arm.is_full() => 1.5 * context,
        Contender::Method(_) => SIMULATION * context,
    };
    let after = match &sample.then {
        Then::Continue(tokens) | Then::Follow(tokens) => 2 * tokens.len(),
        Then::Ask(questions) => questions.iter().map(|q| q.prompt.len()).sum(),
    };
    let decoded = match &sample.then {
        Then::Follow(tokens) if arm.is_policy() => tokens.len(),
        Then::Continue(_) | Then::Follow(_) => 0,
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

/// A bar on a terminal, lines otherwise.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    done: u64,
    started: Instant,
    /// Percent worth the next line.
    next: u64,
}

impl Progress {
    /// # Errors
    /// None that depends on the arguments.
    pub fn start(total: u64) -> Result<Self> {
        let bar = stderr().is_terminal().then(|| bar(total)).transpose()?;
        let started = Instant::now();
        Ok(Self { bar, total, done: 0, started, next: PERCENT_A_LINE })
    }

    /// `work` more is done, the last of it on `what`.
    pub fn advance(&mut self, work: u64, what: &str) {
        self.done += work;
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
            bar.set_position(self.done);
        } else if let Some(line) = self.line(self.started.elapsed()) {
            eprintln!("{line}: {what}");
        }
    }

    /// What to say after `elapsed`, if enough was done since something was said.
    fn line(&mut self, elapsed: Duration) -> Option<String> {
        let percent = 100 * self.done / self.total.max(1);
        if percent < self.next {
            return None;
        }
        self.next = percent - percent % PERCENT_A_LINE + PERCENT_A_LINE;
        let left = self.total.saturating_sub(self.done) as f64 / self.done.max(1) as f64;
        Some(format!("{percent} %, {} left", HumanDuration(elapsed.mul_f64(left))))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: u64) -> Result<ProgressBar> {
    let template = "{msg:24} {wide_bar} {percent:>3} %  {elapsed_precise}, {eta_precise} left";
    let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(template)?);
    bar.enable_steady_tick(Duration::from_millis(500));
    Ok(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_lines_say_how_much_time_is_left() {
        let started = Instant::now();
        let mut progress =
            Progress { bar: None, total: 200, done: 0, started, next: PERCENT_A_LINE };
        let mut after = |done, seconds| {
            progress.done = done;
            progress.line(Duration::from_secs(seconds))
        };
        assert_eq!(after(9, 9), None);
        assert_eq!(after(50, 60).as_deref(), Some("25 %, 3 minutes left"));
        assert_eq!(after(59, 70), None);
        assert!(after(60, 72).is_some());
    }
}
