//! Latency of one sequence as its client sees it, into histograms.

use std::time::{Duration, Instant};

use metrics::histogram;

pub const TIME_TO_FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
pub const INTER_TOKEN_LATENCY: &str = "vllm:inter_token_latency_seconds";
pub const E2E_LATENCY: &str = "vllm:e2e_request_latency_seconds";

/// Follows one sequence from its arrival to its end.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    arrived: Instant,
    last_token: Option<Instant>,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { arrived: Instant::now(), last_token: None }
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => record(TIME_TO_FIRST_TOKEN, now - self.arrived),
            Some(last) => record(INTER_TOKEN_LATENCY, now - last),
        }
    }

    pub fn finished(&self) {
        record(E2E_LATENCY, self.arrived.elapsed());
    }
}

fn record(name: &'static str, duration: Duration) {
    histogram!(name).record(duration.as_secs_f64());
}
