//! Where metrics go: histograms with fixed buckets, so that several servers' add up.

use metrics::describe_histogram;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};

use super::latency::{E2E_LATENCY, INTER_TOKEN_LATENCY, TIME_TO_FIRST_TOKEN};

// vLLM's buckets, so that its dashboards and routers read ours; finer ones below them, where small
// models on a CPU live.
const BUCKETS: &[(&str, &[f64])] = &[
    (
        TIME_TO_FIRST_TOKEN,
        &[
            0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5,
            5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
        ],
    ),
    (
        INTER_TOKEN_LATENCY,
        &[
            0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.05,
            0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
        ],
    ),
    (
        E2E_LATENCY,
        &[
            0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0,
            30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
        ],
    ),
    (
        "vllm:iteration_tokens_total",
        &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0],
    ),
    (
        "keepwell_compress_seconds",
        &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0],
    ),
];

/// A recorder's settings: the buckets above, and the model's name on every series.
///
/// # Errors
/// None in practice: the buckets are constants and not empty.
pub fn recorder(model_name: &str) -> Result<PrometheusBuilder, BuildError> {
    let builder = PrometheusBuilder::new().add_global_label("model_name", model_name);
    BUCKETS.iter().try_fold(builder, |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
    })
}

/// Help texts of the HTTP layer's metrics, to be given once a recorder is installed.
pub fn describe() {
    describe_histogram!(TIME_TO_FIRST_TOKEN, "From the request's arrival to its first token");
    describe_histogram!(INTER_TOKEN_LATENCY, "Between two tokens of a sequence");
    describe_histogram!(E2E_LATENCY, "From the request's arrival to the end of the sequence");
}
