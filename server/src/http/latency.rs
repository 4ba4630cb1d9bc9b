//! Latency of one sequence as its client sees it, into histograms.

use std::time::{Duration, Instant};

use metrics::{counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use crate::engine::FinishReason;

const TIME_TO_FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
const INTER_TOKEN_LATENCY: &str = "vllm:inter_token_latency_seconds";
const E2E_LATENCY: &str = "vllm:e2e_request_latency_seconds";
const REQUEST_SUCCESS: &str = "vllm:request_success_total";

// vLLM's buckets, so that its dashboards and routers read ours; finer ones below them, where small
// models on a CPU live.
const TIME_TO_FIRST_TOKEN_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN_LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_LATENCY_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Tells the exporter the buckets of the latency histograms.
///
/// # Errors
/// None in practice: the buckets are constants and not empty.
pub fn with_buckets(builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    let full = |name: &str| Matcher::Full(name.to_owned());
    builder
        .set_buckets_for_metric(full(TIME_TO_FIRST_TOKEN), TIME_TO_FIRST_TOKEN_BUCKETS)?
        .set_buckets_for_metric(full(INTER_TOKEN_LATENCY), INTER_TOKEN_LATENCY_BUCKETS)?
        .set_buckets_for_metric(full(E2E_LATENCY), E2E_LATENCY_BUCKETS)
}

/// Help texts, to be given once a recorder is installed.
pub fn describe() {
    describe_histogram!(TIME_TO_FIRST_TOKEN, "From the request's arrival to its first token");
    describe_histogram!(INTER_TOKEN_LATENCY, "Between two tokens of a sequence");
    describe_histogram!(E2E_LATENCY, "From the request's arrival to the end of the sequence");
    describe_counter!(REQUEST_SUCCESS, "Sequences that ended, by the reason they ended for");
}

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

    pub fn finished(&self, reason: FinishReason) {
        record(E2E_LATENCY, self.arrived.elapsed());
        counter!(REQUEST_SUCCESS, "finished_reason" => finish_reason(reason)).increment(1);
    }
}

fn record(name: &'static str, duration: Duration) {
    histogram!(name).record(duration.as_secs_f64());
}

/// The reason's name in the API and in metrics.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
    }
}
