use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use serde_json::{Value, json};

use super::{
    CAPITAL, alice, chat, check_same_up_to_ties, completion, number,
    server::{CHAT, COMPLETIONS, SOON, Server},
    text,
};

#[test]
fn a_request_too_large_for_memory_is_refused_with_advice_and_a_small_one_still_served() {
    // 176 tokens.
    let server = Server::with_memory("4MiB");
    let error = server.refusal(COMPLETIONS, &completion(alice(600), 8, json!({})));
    assert_eq!(error["code"], "kv_memory_exceeded", "{error}");
    let message = error["message"].as_str().unwrap();
    for advice in ["shorten the prompt", "max_tokens", "kv_cache.budget"] {
        assert!(message.contains(advice), "{message}");
    }
    let mut streamed = completion("Hello", 400, json!({}));
    streamed["stream"] = json!(true);
    assert_eq!(server.refusal(COMPLETIONS, &streamed)["code"], "kv_memory_exceeded");

    let answer = server.ok(CHAT, &chat(CAPITAL, json!({"max_tokens": 16})));
    assert!(text(&answer).contains("Paris"), "{answer}");
}

#[test]
fn without_max_tokens_an_answer_is_shortened_to_what_memory_holds() {
    let server = Server::with_memory("4MiB");
    let answer = server.ok(CHAT, &chat(CAPITAL, json!({"ignore_eos": true})));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let usage = &answer["usage"];
    assert!(number(&usage["completion_tokens"]) > 100, "{usage}");
    assert!(number(&usage["kv_cache"]["bytes"]) <= 4 << 20, "{usage}");
}

#[test]
fn a_floor_lets_a_request_in_that_its_budget_would_not() {
    let server = Server::start(&["--kv-memory", "24MiB", "--max-batch-tokens", "64"]);
    let body = |kv_cache: Value| completion(alice(1200), 8, json!({"kv_cache": kv_cache}));
    server.refusal(COMPLETIONS, &body(json!({"budget": 1.0})));
    let squeezed = server.ok(COMPLETIONS, &body(json!({"budget": 1.0, "min_budget": 0.25})));
    let kv_cache = &squeezed["usage"]["kv_cache"];
    let share = |name: &str| kv_cache[name].as_f64().unwrap();
    assert!(share("budget") < 1.0, "{kv_cache}");
    assert!((0.25..=share("budget")).contains(&share("lowest_budget")), "{kv_cache}");
    assert!(number(&kv_cache["peak_bytes"]) <= 24 << 20, "{kv_cache}");
}

#[test]
fn requests_beyond_memory_wait_and_end_as_they_would_alone() {
    // 704 tokens, for six requests that grow from 30 to 230 each.
    let server = Server::with_memory("16MiB");
    let body = |nth: usize| {
        let prompt = &alice(100)[10 * nth..][..120];
        completion(prompt, 200, json!({"logprobs": 5}))
    };
    let together: Vec<_> = thread::scope(|scope| {
        let ask = |nth| server.ok(COMPLETIONS, &body(nth));
        let asked: Vec<_> = (0..6).map(|nth| scope.spawn(move || ask(nth))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    let metrics = server.metrics();
    // They named what they need: nobody is let in who would have to give way.
    assert_eq!(metrics.sum("vllm:num_preemptions_total", ""), 0.0);
    assert_eq!((metrics.live_pages(), metrics.num_running()), (0.0, 0.0));
    for (nth, together) in together.iter().enumerate() {
        assert_eq!(number(&together["usage"]["completion_tokens"]), 200);
        check_same_up_to_ties(together, &server.ok(COMPLETIONS, &body(nth)));
    }
}

#[test]
fn with_a_floor_requests_beyond_memory_run_together_and_nobody_waits() {
    // 1,056 tokens in F16, for six requests of 500.
    let server = Server::start(&["--kv-memory", "24MiB", "--max-batch-tokens", "64"]);
    let ask = |kv_cache: Value| {
        let body = |nth: usize| {
            completion(&alice(500)[40 * nth..][..1600], 100, json!({"kv_cache": kv_cache}))
        };
        let most_running = AtomicUsize::new(0);
        let usages: Vec<_> = thread::scope(|scope| {
            let ask = |nth| server.ok(COMPLETIONS, &body(nth))["usage"].clone();
            let asked: Vec<_> = (0..6).map(|nth| scope.spawn(move || ask(nth))).collect();
            while asked.iter().any(|asked| !asked.is_finished()) {
                most_running.fetch_max(server.metrics().num_running() as usize, Relaxed);
            }
            asked.into_iter().map(|usage| usage.join().unwrap()).collect()
        });
        (usages, most_running.into_inner())
    };
    let (exact, most_exact) = ask(json!({"budget": 1.0}));
    let (elastic, most_elastic) = ask(json!({"min_budget": 0.15}));
    assert_eq!((most_exact, most_elastic), (2, 6));
    for usage in exact.iter().chain(&elastic) {
        assert_eq!(number(&usage["completion_tokens"]), 100);
        assert!(usage["kv_cache"]["lowest_budget"].as_f64().unwrap() > 0.149, "{usage}");
    }
    let metrics = server.await_metrics(SOON, |metrics| {
        metrics.live_pages() == 0.0 && metrics.sum("keepwell_pressure_price", "") == 0.0
    });
    assert_eq!(metrics.sum("vllm:num_preemptions_total", ""), 0.0);
    assert!(metrics.sum("keepwell_squeezes_total", "") > 0.0);
    assert_eq!(metrics.sum("keepwell_requests_below_budget", ""), 0.0);
}

#[test]
fn compressed_requests_beyond_memory_wait_and_finish_too() {
    // Each takes about 8 MiB at its peak.
    let server = Server::start(&["--kv-memory", "12MiB", "--max-batch-tokens", "64"]);
    let body = completion(alice(700), 72, json!({"kv_cache": {"budget": 0.28}}));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| server.stream(COMPLETIONS, &body).collect_choice());
        }
    });
    let metrics = server.await_metrics(SOON, |metrics| metrics.live_pages() == 0.0);
    assert_eq!(metrics.sum("vllm:request_success_total", "length"), 4.0);
}
