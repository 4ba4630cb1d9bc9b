//! `GET /dashboard/state`: one moment of the server as JSON.

use serde_json::{Map, Value, json};

use crate::engine::Snapshot;
use crate::metrics::parse::{Sample, parse};
use crate::metrics::table::{E2E_LATENCY, INTER_TOKEN_LATENCY, QUEUE_TIME, TIME_TO_FIRST_TOKEN};
use crate::metrics::{FAMILIES, Family, Kind};

/// The sequences, and whatever `scrape` (an answer of `/metrics`) says:
///
/// - `gauges` and `counters`: by name, every series with its labels and its value
/// - `histograms`: `ttft`, `itl`, `e2e` and `queue`, each with cumulative `[bound, count]` pairs in
///   seconds, `sum` and `count`
/// - `sequences`: what runs and waits, oldest first
pub fn state(snapshot: &Snapshot, scrape: &str) -> Value {
    let samples = parse(scrape);
    let of_kind = |wanted: fn(&Kind) -> bool| {
        let families = FAMILIES.iter().filter(|family| wanted(&family.kind));
        families.map(|family| (family.name.to_owned(), series(family, &samples).into())).collect()
    };
    let histograms = [
        ("ttft", TIME_TO_FIRST_TOKEN),
        ("itl", INTER_TOKEN_LATENCY),
        ("e2e", E2E_LATENCY),
        ("queue", QUEUE_TIME),
    ];
    let histograms =
        histograms.map(|(name, family)| (name.to_owned(), histogram(&family, &samples)));
    json!({
        "gauges": Value::Object(of_kind(|kind| *kind == Kind::Gauge)),
        "counters": Value::Object(of_kind(|kind| *kind == Kind::Counter)),
        "histograms": Value::Object(Map::from_iter(histograms)),
        "sequences": sequences(snapshot),
    })
}

/// Labels that all series of a server have alike: they are left out.
const COMMON: [&str; 2] = ["model_name", "engine"];

fn series(family: &Family, samples: &[Sample]) -> Vec<Value> {
    let one = |sample: &Sample| {
        let labels = sample.labels.iter().filter(|(name, _)| !COMMON.contains(&name.as_str()));
        let labels = labels.map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        json!({"labels": Map::from_iter(labels), "value": sample.value})
    };
    samples.iter().filter(|sample| sample.name == family.name).map(one).collect()
}

fn histogram(family: &Family, samples: &[Sample]) -> Value {
    let part = |suffix: &str| {
        let name = format!("{}_{suffix}", family.name);
        samples.iter().filter(move |sample| sample.name == name)
    };
    let buckets: Vec<_> = part("bucket")
        .filter_map(|sample| Some((sample.label("le")?.parse::<f64>().ok()?, sample.value)))
        .filter(|(bound, _)| bound.is_finite())
        .collect();
    let total = |suffix: &str| part(suffix).map(|sample| sample.value).sum::<f64>();
    json!({"buckets": buckets, "sum": total("sum"), "count": total("count")})
}

fn sequences(snapshot: &Snapshot) -> Vec<Value> {
    let state = |seq: &crate::engine::snapshot::SequenceState| {
        json!({
            "id": seq.id.0,
            "stage": seq.stage.name(),
            "prompt_tokens": seq.prompt_len,
            "computed_tokens": seq.num_computed,
            "generated_tokens": seq.num_generated,
            "max_tokens": seq.max_tokens,
            "budget": seq.budget,
            "asked_budget": seq.asked_budget,
            "kv_bytes": seq.kv_bytes,
            "f16_bytes": seq.f16_bytes,
        })
    };
    snapshot.sequences.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_keeps_its_labels_and_histograms_their_buckets() {
        let scrape = "vllm:num_requests_running{engine=\"0\"} 2\n\
            keepwell_kv_bytes{state=\"live\",tier=\"f16\"} 7\n\
            keepwell_kv_bytes{state=\"free\",tier=\"none\"} 3\n\
            keepwell_kv_bytes{state=\"cached\",tier=\"f16\"} 3\n\
            keepwell_kv_bytes{state=\"cached\",tier=\"k4v4\"} 2\n\
            vllm:generation_tokens_total 9\n\
            vllm:prompt_tokens_by_source_total{source=\"local_compute\"} 8\n\
            vllm:prompt_tokens_by_source_total{source=\"local_cache_hit\"} 6\n\
            vllm:time_to_first_token_seconds_bucket{le=\"0.1\"} 4\n\
            vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"} 5\n\
            vllm:time_to_first_token_seconds_sum 0.5\nvllm:time_to_first_token_seconds_count 5\n";
        let state = state(&Snapshot::default(), scrape);
        let one = |labels: Value, value: f64| json!({"labels": labels, "value": value});
        let gauges = &state["gauges"];
        assert_eq!(gauges["vllm:num_requests_running"], json!([one(json!({}), 2.0)]));
        let live = one(json!({"state": "live", "tier": "f16"}), 7.0);
        let free = one(json!({"state": "free", "tier": "none"}), 3.0);
        let cached = [("f16", 3.0), ("k4v4", 2.0)]
            .map(|(tier, bytes)| one(json!({"state": "cached", "tier": tier}), bytes));
        let [exact, coarse] = cached;
        assert_eq!(gauges["keepwell_kv_bytes"], json!([live, free, exact, coarse]));
        let sources = [("local_compute", 8.0), ("local_cache_hit", 6.0)]
            .map(|(source, tokens)| one(json!({"source": source}), tokens));
        assert_eq!(state["counters"]["vllm:prompt_tokens_by_source_total"], json!(sources));
        let ttft = &state["histograms"]["ttft"];
        assert_eq!(*ttft, json!({"buckets": [[0.1, 4.0]], "sum": 0.5, "count": 5.0}));
        assert_eq!(state["histograms"]["itl"]["count"], 0.0);
    }
}
