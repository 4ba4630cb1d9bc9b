use std::{collections::BTreeSet, thread, time::Duration};

use keepwell_kernels::PageLayout;
use keepwell_server::metrics::{
    FAMILIES, Kind,
    parse::{Sample, parse},
};
use serde_json::{Value, json};

use super::{
    alice, completion, number,
    server::{COMPLETIONS, Metrics, SOON, Server},
};

/// More tokens than any of these tests waits for.
const LONG: usize = 7000;

/// Whether every way to tell the bytes in use tells the same. Gauges are set one by one: between two
/// of them it does not.
fn bytes_agree(metrics: &Metrics) -> bool {
    let page_bytes = PageLayout::new(64).page_bytes as f64;
    let live = metrics.live_pages() * page_bytes;
    let arena = metrics.num_pages() * page_bytes;
    let share = metrics.sum("vllm:kv_cache_usage_perc", "");
    metrics.sum("keepwell_kv_bytes", "state=\"live\"") == live
        && metrics.sum("keepwell_kv_bytes", "") == arena
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
        metrics.live_pages() == 0.0 && metrics.sum("keepwell_kv_bytes", "state=\"live\"") == 0.0
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

#[test]
fn every_series_is_there_before_the_first_request_and_each_is_of_the_table() {
    let server = Server::with_memory("64MiB");
    let series = |metrics: &Metrics| -> BTreeSet<String> {
        let key = |sample: &Sample| format!("{} {:?}", sample.name, sample.labels);
        parse(metrics.text()).iter().map(key).collect()
    };
    let at_first = series(&server.metrics());
    server.ok(COMPLETIONS, &completion(alice(700), 3, json!({"kv_cache": {"budget": 0.2}})));
    let metrics = server.metrics();
    assert_eq!(series(&metrics).difference(&at_first).next(), None);
    let name = |sample: &str| {
        let is_histogram = |name: &str| {
            let family = FAMILIES.iter().find(|family| family.name == name);
            family.is_some_and(|family| matches!(family.kind, Kind::Histogram(_)))
        };
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.strip_suffix(s));
        base.filter(|base| is_histogram(base)).unwrap_or(sample).to_owned()
    };
    let seen: BTreeSet<String> = parse(metrics.text()).iter().map(|s| name(&s.name)).collect();
    let known: BTreeSet<String> = FAMILIES.iter().map(|f| f.name.to_owned()).collect();
    assert_eq!(known.difference(&seen).next(), None);
    assert_eq!(seen.difference(&known).next(), None);
    for family in FAMILIES {
        assert!(metrics.text().contains(&format!("# HELP {} ", family.name)), "{}", family.name);
    }
}

#[test]
fn a_byte_has_a_price_while_something_runs_that_is_short_of_pages() {
    let server = Server::with_memory("64MiB");
    let price = |metrics: &Metrics| metrics.sum("keepwell_price", "");
    let body = completion(alice(700), LONG, json!({"kv_cache": {"budget": 0.12}}));
    let stream = server.stream(COMPLETIONS, &body);
    server.await_metrics(SOON, |metrics| price(metrics) > 0.0);
    drop(stream);
    server.await_metrics(SOON, |metrics| price(metrics) == 0.0);
}

#[test]
fn counters_and_histograms_tell_what_the_answers_said() {
    let server = Server::with_memory("64MiB");
    // What one leaves in the prefix cache is not the other's.
    let body = |salt: &str| {
        completion(alice(700), 70, json!({"kv_cache": {"budget": 0.12}, "cache_salt": salt}))
    };
    let (first, second) = (server.ok(COMPLETIONS, &body("a")), server.ok(COMPLETIONS, &body("b")));
    let usages = [&first["usage"], &second["usage"]];
    let sum = |of: fn(&Value) -> usize| usages.iter().map(|u| of(u)).sum::<usize>() as f64;
    let metrics = server.metrics();
    let total = |name: &str| metrics.sum(name, "");
    let prompt = sum(|usage| number(&usage["prompt_tokens"]));
    assert_eq!(total("vllm:prompt_tokens_total"), prompt);
    assert_eq!(total("vllm:request_prompt_tokens_sum"), prompt);
    assert_eq!(total("vllm:request_prefill_kv_computed_tokens_sum"), prompt);
    assert_eq!(total("vllm:generation_tokens_total"), 140.0);
    assert_eq!(total("vllm:iteration_tokens_total_sum"), prompt + 140.0);
    assert_eq!(total("vllm:inter_token_latency_seconds_count"), 138.0);
    assert_eq!(total("vllm:request_params_max_tokens_sum"), 140.0);
    let evicted = sum(|usage| number(&usage["kv_cache"]["tokens"]["evicted"]));
    assert!(evicted > 0.0);
    assert_eq!(total("keepwell_kv_entries_evicted_total"), evicted);
    let peak = sum(|usage| number(&usage["kv_cache"]["peak_bytes"]));
    assert_eq!(total("keepwell_request_kv_peak_bytes_sum"), peak);
    assert!(total("keepwell_kv_entries_demoted_total") > 0.0);
    assert!(total("keepwell_kv_reclaimed_bytes_total") > 0.0);
    let retained = total("keepwell_kv_retained_attribution_sum");
    let num_events = total("keepwell_kv_retained_attribution_count");
    assert!(num_events >= 4.0 && retained / num_events > 0.5 && retained < num_events);
    let stages: Vec<_> = ["score", "price", "compact"]
        .map(|stage| metrics.sum("keepwell_compress_seconds_count", stage))
        .into();
    assert_eq!(stages, [num_events; 3]);
    for (whole, parts) in [
        ("vllm:request_inference_time_seconds_sum", ["prefill", "decode"]),
        ("vllm:e2e_request_latency_seconds_sum", ["queue", "inference"]),
    ] {
        let parts: f64 =
            parts.iter().map(|part| total(&format!("vllm:request_{part}_time_seconds_sum"))).sum();
        assert!(parts <= total(whole) + 1e-6, "{whole}");
    }
}

#[test]
fn components_are_parts_of_the_process() {
    let server = Server::with_memory("64MiB");
    server.ok(COMPLETIONS, &completion(alice(700), 3, json!({})));
    let metrics = server.metrics();
    let component = |name: &str| metrics.sum("keepwell_memory_bytes", name);
    assert!(component("weights") > 90e6);
    assert!(component("kv_cache") > 700.0 * 23_040.0 && component("kv_cache") <= (64 << 20) as f64);
    let process = metrics.sum("process_resident_memory_bytes", "");
    let parts: f64 = ["weights", "kv_cache", "rest"].map(component).iter().sum();
    assert!(component("rest") > 0.0 && parts == process, "{parts} of {process}");
    assert_eq!(metrics.sum("keepwell_device_memory_bytes", ""), 0.0);
}

#[test]
fn the_choices_of_a_request_are_sequences_of_one_request() {
    let server = Server::with_memory("4MiB");
    server.ok(COMPLETIONS, &completion("Once upon a time", 5, json!({"n": 3})));
    // Refused: no request of any `n`.
    server.refusal(COMPLETIONS, &completion(alice(600), 5, json!({"n": 2})));
    let metrics = server.metrics();
    for (name, value) in [
        ("request_params_n_count", 1.0),
        ("request_params_n_sum", 3.0),
        ("request_max_num_generation_tokens_count", 1.0),
        ("request_max_num_generation_tokens_sum", 5.0),
        ("request_generation_tokens_count", 3.0),
        ("request_generation_tokens_sum", 15.0),
        ("request_success_total", 3.0),
    ] {
        assert_eq!(metrics.sum(&format!("vllm:{name}"), ""), value, "{name}");
    }
}

#[test]
fn a_request_that_is_looked_at_again_counts_once() {
    let server = Server::start(&["--kv-memory", "128MiB", "--debug-kv"]);
    let body = completion(alice(700), 5, json!({"kv_cache": {"budget": 0.15}}));
    let answer = server.ok(COMPLETIONS, &body);
    let counted = |metrics: &Metrics| -> Vec<String> {
        let is_counted = |line: &&str| {
            let of_requests = ["vllm:", "keepwell_kv_"].iter().any(|name| line.starts_with(name));
            of_requests && ["_total{", "_count{", "_sum{"].iter().any(|name| line.contains(name))
        };
        let mut lines: Vec<_> = metrics.text().lines().filter(is_counted).map(Into::into).collect();
        lines.sort();
        lines
    };
    let before = counted(&server.metrics());
    let id = answer["id"].as_str().unwrap();
    let again = server.get(&format!("/debug/kv/{id}?budget=0.12"));
    assert!(!again["tokens"].as_array().unwrap().is_empty());
    assert_eq!(counted(&server.metrics()), before);
}

#[test]
fn refusals_are_counted_by_what_was_short() {
    let server = Server::start(&["--kv-memory", "4MiB"]);
    server.refusal(COMPLETIONS, &completion(alice(600), 8, json!({})));
    let metrics = server.metrics();
    assert_eq!(metrics.sum("keepwell_kv_budget_rejections_total", ""), 1.0);
    assert_eq!(metrics.sum("vllm:admission_rejections_total", ""), 0.0);
}

#[test]
fn whoever_is_turned_away_is_counted_by_what_there_was_too_much_of() {
    let flags = ["--kv-memory", "256MiB", "--max-sequences", "1"];
    let full_queue = ["--max-waiting", "1"];
    let full_server = ["--max-requests", "2"];
    for (limit, reason) in [(full_queue, "max_num_queued_reqs"), (full_server, "max_requests")] {
        let server = Server::start(&[&flags[..], &limit].concat());
        let body = completion("Once upon a time", LONG, json!({}));
        let running = server.stream(COMPLETIONS, &body);
        let waiting = server.send_only(COMPLETIONS, &body);
        server.await_metrics(SOON, |m| m.sum("vllm:num_requests_waiting", "") == 1.0);
        assert_eq!(server.post(COMPLETIONS, &body).0, 429);
        let metrics = server.metrics();
        assert_eq!(metrics.sum("vllm:admission_rejections_total", ""), 1.0);
        assert_eq!(metrics.sum("vllm:admission_rejections_total", reason), 1.0);
        drop((running, waiting));
    }
}

#[test]
fn the_queue_tells_what_is_waited_for_and_who_got_less_than_asked() {
    let server = Server::start(&[
        "--kv-memory",
        "24MiB",
        "--max-batch-tokens",
        "64",
        "--max-sequences",
        "1",
    ]);
    let squeezed = json!({"kv_cache": {"budget": 1.0, "min_budget": 0.25}});
    let long = server.stream(COMPLETIONS, &completion(alice(1200), 60, squeezed));
    // Once its prompt has filled the arena.
    let prefill = Duration::from_secs(60);
    server
        .await_metrics(prefill, |metrics| metrics.sum("keepwell_requests_below_budget", "") == 1.0);
    let second = server.send_only(COMPLETIONS, &completion("Hello", 4, json!({})));
    server.await_metrics(SOON, |metrics| {
        metrics.sum("keepwell_queue", "sequences") == 1.0
            && metrics.sum("vllm:num_requests_waiting", "") == 1.0
            && metrics.sum("vllm:num_requests_waiting_by_reason", "capacity") == 1.0
    });
    drop((long, second));
}
