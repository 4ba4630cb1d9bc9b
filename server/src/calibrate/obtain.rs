//! A calibration for a model that was just loaded.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use keepwell_kernels::{Backend, heap};
use keepwell_models::{LoadOptions, Loaded, fetch::cache_dir};
use tracing::{info, warn};

use super::{
    file::Shape,
    key::key,
    measure,
    store::{Known, Store},
};

/// Steps of a progress bar, and how many of them a line of the log stands for.
const STEPS: u64 = 100;
const STEPS_A_LINE: u64 = 20;

/// From the cache, or measured now on `text` and kept there. A model that cannot be measured is
/// served all the same, as uncalibrated as without a text.
pub fn obtain(text: Option<&str>, loaded: &Loaded, backend: &dyn Backend) -> Known {
    let Some(text) = text else { return Known::default() };
    let obtained = load_or_measure(text, loaded, backend);
    // Measuring, where it had to be done, took more memory than serving will.
    heap::trim();
    match obtained {
        Ok(known) => {
            info!("{}", describe(&known));
            known
        }
        Err(error) => {
            warn!("the KV cache is not calibrated, small budgets will cost more: {error:#}");
            Known::default()
        }
    }
}

fn load_or_measure(text: &str, loaded: &Loaded, backend: &dyn Backend) -> Result<Known> {
    let tokens = loaded.tokenizer.encode(text, true)?;
    let measure = || {
        let progress = Progress::start();
        measure(&*loaded.model, backend, &tokens, &|done| progress.report(done))
    };
    match store(loaded, &tokens) {
        Ok(store) => store.load_or(&loaded.name, measure),
        Err(error) => {
            warn!("a calibration cannot be kept: {error:#}");
            let start = Instant::now();
            Ok(Known { calibration: measure()?, measured_in: Some(start.elapsed()) })
        }
    }
}

fn store(loaded: &Loaded, tokens: &[u32]) -> Result<Store> {
    let config = loaded.model.config();
    let shape =
        Shape { num_heads: config.num_layers * config.num_kv_heads, head_dim: config.head_dim };
    let cache = cache_dir(&LoadOptions::default())?;
    Ok(Store::new(&cache, key(&loaded.path, tokens)?, shape))
}

fn describe(known: &Known) -> String {
    let from = match known.measured_in {
        None => "cached".to_owned(),
        Some(time) => format!("measured in {:.0} s", time.as_secs_f32()),
    };
    match known.calibration.refused.join(", ") {
        refused if refused.is_empty() => format!("KV cache calibrated ({from})"),
        refused => {
            format!("KV cache calibrated ({from}); not used, for they would break it: {refused}")
        }
    }
}

/// A bar on a terminal, lines in the log otherwise.
struct Progress {
    bar: Option<ProgressBar>,
    /// Next step worth a line.
    next: Cell<u64>,
}

impl Progress {
    fn start() -> Self {
        if !stderr().is_terminal() {
            info!("calibrating the KV cache, once per model");
            return Self { bar: None, next: Cell::new(STEPS_A_LINE) };
        }
        let bar = ProgressBar::new(STEPS);
        let template = "calibrating the KV cache, once per model {bar:30} {percent}%, {eta} left";
        // A template that does not parse leaves the plain bar.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar: Some(bar), next: Cell::new(0) }
    }

    /// `done`: from 0 to 1.
    fn report(&self, done: f32) {
        let step = (done * STEPS as f32) as u64;
        match &self.bar {
            Some(bar) => bar.set_position(step.min(STEPS)),
            None if step >= self.next.get() && step < STEPS => {
                info!("calibrating the KV cache: {step} %");
                self.next.set(step - step % STEPS_A_LINE + STEPS_A_LINE);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::Calibration, *};

    #[test]
    fn the_log_says_where_it_came_from_and_what_was_refused() {
        let refused = vec!["keys in 2 bits".to_owned(), "keys in 1 bit".to_owned()];
        let calibration = Calibration { refused, ..Calibration::default() };
        assert_eq!(
            describe(&Known { calibration, measured_in: Some(Duration::from_millis(41_300)) }),
            "KV cache calibrated (measured in 41 s); not used, for they would break it: keys in 2 \
             bits, keys in 1 bit"
        );
        assert_eq!(describe(&Known::default()), "KV cache calibrated (cached)");
    }
}
