//! A model that computes nonsense, and an engine that panics.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use super::{
    Healthy, greedy,
    server::{COMPLETIONS, Metrics, Server},
    ties::check_same_up_to_ties,
};

const NAN: u32 = 500;
const PANIC: u32 = 501;
const PATIENCE: Duration = Duration::from_secs(30);
const FAULTS: [&str; 4] = ["--faults", "nan:500,panic:501", "--kv-memory", "32MiB"];

/// A request whose prompt ends with this token.
fn ending_with(token: u32) -> Value {
    json!({"prompt": [40, 41, 42, token], "max_tokens": 8, "temperature": 0})
}

/// Answers to requests that have nothing to do with each other's faults.
fn bystanders(server: &Server) -> Vec<Value> {
    (0..8).map(|nth| server.ok(COMPLETIONS, &bystander(nth))).collect()
}

fn bystander(nth: usize) -> Value {
    greedy(&format!("Bystander {nth} "), 200)
}

#[test]
fn a_poisoned_request_fails_and_those_beside_it_do_not_notice() {
    let healthy = Healthy::start(&FAULTS);
    let server = &healthy.server;
    let alone = bystanders(server);
    thread::scope(|scope| {
        let beside: Vec<_> = (0..8)
            .map(|nth| scope.spawn(move || server.ok(COMPLETIONS, &bystander(nth))))
            .collect();
        for _ in 0..10 {
            let (status, answer) = server.post(COMPLETIONS, &ending_with(NAN));
            assert_eq!((status, &answer["error"]["code"]), (500, &json!("corrupted_output")));
        }
        let (status, answer) =
            server.post("/v1/embeddings", &json!({"input": [40, NAN], "pooling": "mean"}));
        assert_eq!((status, &answer["error"]["code"]), (500, &json!("corrupted_output")));
        for (beside, alone) in beside.into_iter().zip(&alone) {
            check_same_up_to_ties(&beside.join().unwrap(), alone);
        }
    });
    assert_eq!(server.metrics().sum("vllm:corrupted_requests_total", ""), 11.0);
    // What it was computed from is not handed on.
    server.ok(COMPLETIONS, &bystander(0));
    let is_cached = |metrics: &Metrics| metrics.sum("keepwell_kv_pages", "state=\"cached\"") > 0.0;
    server.await_metrics(PATIENCE, is_cached);
    server.post(COMPLETIONS, &ending_with(NAN));
    server.await_metrics(PATIENCE, |metrics| !is_cached(metrics));
    healthy.check();
}

/// Eight streams run when the engine panics.
fn panic_beside_streams(server: &Server) {
    let streams: Vec<_> = (0..8)
        .map(|nth| {
            let mut stream = server.stream(COMPLETIONS, &greedy(&format!("Stream {nth} "), 900));
            assert!(stream.next().is_some());
            stream
        })
        .collect();
    let (status, answer) = server.post(COMPLETIONS, &ending_with(PANIC));
    assert_eq!((status, &answer["error"]["code"]), (500, &json!("engine_failed")), "{answer}");
    let mut num_failed = 0;
    for mut stream in streams {
        let last = stream.by_ref().last().unwrap();
        // A machine may be so slow that one had ended before.
        num_failed += usize::from(last["error"]["code"] == "engine_failed");
        assert!(stream.done || last["error"]["code"] == "engine_failed", "{last}");
    }
    assert!(num_failed > 0);
}

#[test]
fn an_engine_that_panics_ends_its_requests_with_an_error_and_the_process_with_a_code() {
    let mut healthy = Healthy::start(&FAULTS);
    panic_beside_streams(&healthy.server);
    assert_eq!(healthy.server.wait().code(), Some(1));
}

#[test]
fn an_engine_that_is_told_to_goes_on_after_a_panic() {
    let healthy = Healthy::start(&[&FAULTS[..], &["--on-engine-panic", "restart"]].concat());
    let ended = |metrics: &Metrics| metrics.sum("vllm:request_success_total", "");
    for nth in 1..=2 {
        let before = healthy.server.metrics();
        panic_beside_streams(&healthy.server);
        let after = healthy.server.metrics();
        // Of the eight, some may have ended before.
        let num_failed = after.sum("vllm:request_success_total", "error");
        assert!(num_failed >= 2.0 * f64::from(nth), "{num_failed}");
        assert_eq!(ended(&after), ended(&before) + 9.0);
        assert_eq!(after.sum("vllm:request_prompt_tokens_count", ""), ended(&after));
        // The arena's pages stay in the machine's memory.
        let [before, after] = [before, after].map(|m| m.sum("keepwell_memory_bytes", "kv_cache"));
        assert!(after >= before && after > 0.0, "{before} {after}");
        healthy.check();
    }
    let metrics = healthy.server.metrics();
    assert_eq!(metrics.sum("keepwell_engine_restarts_total", ""), 2.0);
}
