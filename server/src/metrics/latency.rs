//! Latency of one sequence as its client sees it, into histograms.

use std::time::Instant;

use metrics::Histogram;

use super::table::{E2E_LATENCY, INTER_TOKEN_LATENCY, TIME_TO_FIRST_TOKEN};

/// Follows one sequence from its request's arrival to its end.
#[derive(Clone)]
pub struct Stopwatch {
    arrived: Instant,
    last_token: Option<Instant>,
    /// Looked up once: it is told of every token.
    inter_token: Histogram,
}

impl Stopwatch {
    pub fn start() -> Self {
        let inter_token = INTER_TOKEN_LATENCY.histogram(vec![]);
        Self { arrived: Instant::now(), last_token: None, inter_token }
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => TIME_TO_FIRST_TOKEN.histogram(vec![]).record(now - self.arrived),
            Some(last) => self.inter_token.record(now - last),
        }
    }

    pub fn finished(&self) {
        E2E_LATENCY.histogram(vec![]).record(self.arrived.elapsed());
    }
}
