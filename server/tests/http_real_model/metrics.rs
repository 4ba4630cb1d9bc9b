use std::{thread, time::Duration};

use keepwell_kernels::PageLayout;
use serde_json::json;

use super::{
    completion,
    server::{COMPLETIONS, Metrics, SOON, Server},
};

/// More tokens than any of these tests waits for.
const LONG: usize = 7000;

/// Whether every way to tell the bytes in use tells the same. Gauges are set one by one: between two
/// of them it does not.
fn bytes_agree(metrics: &Metrics) -> bool {
    let page_bytes = PageLayout::new(64).page_bytes as f64;
    let live = metrics.live_pages() * page_bytes;
    let share = metrics.sum("vllm:kv_cache_usage_perc", "");
    metrics.sum("keepwell_kv_bytes", "state=\"live\"") == live
        && (share * metrics.num_pages() * page_bytes - live).abs() < 1.0
}

#[test]
fn gauges_agree_while_streams_run_and_are_zero_when_they_have_ended() {
    let server = Server::with_memory("64MiB");
    let compressed = json!({"kv_cache": {"budget": 0.28}});
    thread::scope(|scope| {
        for extra in [json!({}), compressed] {
            let server = &server;
            let body = completion("Once upon a time", 300, extra);
            scope.spawn(move || server.stream(COMPLETIONS, &body).collect_choice());
        }
        let both = server.await_metrics(SOON, |metrics| metrics.num_running() == 2.0);
        assert!(both.live_pages() > 0.0);
        while server.metrics().num_running() > 0.0 {
            server.await_metrics(SOON, bytes_agree);
            thread::sleep(Duration::from_millis(50));
        }
    });
    let empty = |metrics: &Metrics| {
        metrics.live_pages() == 0.0 && metrics.sum("keepwell_kv_bytes", "") == 0.0
    };
    let after = server.await_metrics(SOON, |metrics| empty(metrics) && bytes_agree(metrics));
    assert_eq!(after.sum("vllm:request_success_total", "length"), 2.0);
    assert_eq!(after.sum("vllm:generation_tokens_total", ""), 600.0);
}

#[test]
fn a_client_that_leaves_takes_its_pages_with_it() {
    let server = Server::with_memory("256MiB");
    let body = completion("Once upon a time", LONG, json!({}));
    let ran = |metrics: &Metrics| metrics.live_pages() > 0.0;
    let freed = |metrics: &Metrics| metrics.num_running() == 0.0 && metrics.live_pages() == 0.0;

    let mut stream = server.stream(COMPLETIONS, &body);
    assert!(stream.next().is_some());
    server.await_metrics(SOON, ran);
    drop(stream);
    server.await_metrics(SOON, freed);

    let connection = server.send_only(COMPLETIONS, &body);
    server.await_metrics(SOON, ran);
    drop(connection);
    let after = server.await_metrics(SOON, freed);
    assert_eq!(after.sum("vllm:request_success_total", "abort"), 2.0);
}
