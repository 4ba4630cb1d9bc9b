use std::time::Instant;

use serde_json::{Value, json};

use super::{
    alice, check_same_up_to_ties, completion, number,
    server::{CHAT, COMPLETIONS, SOON, Server},
    text,
};

fn cached(answer: &Value) -> usize {
    number(&answer["usage"]["prompt_tokens_details"]["cached_tokens"])
}

#[test]
fn a_prefix_seen_before_comes_from_the_cache_and_sooner() {
    let server = Server::with_memory("256MiB");
    for budget in [1.0, 0.28] {
        // What was exact yet would serve every budget.
        let ask = |question: &str, salt: &str| {
            let salt = format!("{salt} {budget}");
            let prompt = format!("{}\n\n{question}", alice(700).repeat(2));
            let kv_cache = json!({"budget": budget});
            let extra = json!({"kv_cache": kv_cache, "cache_salt": salt, "logprobs": 5});
            let started = Instant::now();
            (server.ok(COMPLETIONS, &completion(&prompt, 1, extra)), started.elapsed())
        };
        let (miss, miss_took) = ask("Who is Alice?", "a");
        let (hit, hit_took) = ask("Where is Alice?", "a");
        let prompt_tokens = number(&hit["usage"]["prompt_tokens"]);
        assert_eq!(cached(&miss), 0);
        assert!(cached(&hit) + 64 > prompt_tokens, "{} at {budget}", hit["usage"]);
        assert!(hit_took < miss_took / 2, "{hit_took:?} for {miss_took:?}");
        let (cold, _) = ask("Where is Alice?", "b");
        assert_eq!(cached(&cold), 0, "another salt");
        check_same_up_to_ties(&hit, &cold);
        assert_eq!(hit["usage"]["kv_cache"]["bytes"], cold["usage"]["kv_cache"]["bytes"]);
    }
    let metrics = server.await_metrics(SOON, |metrics| metrics.live_pages() == 0.0);
    assert_eq!(metrics.sum("vllm:kv_cache_usage_perc", ""), 0.0);
    let total = |name: &str| metrics.sum(name, "");
    assert!(metrics.sum("keepwell_kv_pages", "cached") > 0.0);
    assert_eq!(total("vllm:prefix_cache_queries_total"), total("vllm:prompt_tokens_total"));
    let hits = total("vllm:prefix_cache_hits_total");
    assert!(hits > 2000.0 && hits == total("vllm:prompt_tokens_cached_total"));
    assert_eq!(metrics.sum("vllm:prompt_tokens_by_source_total", "local_cache_hit"), hits);
    let computed = total("vllm:request_prefill_kv_computed_tokens_sum");
    assert_eq!(computed, total("vllm:prompt_tokens_total") - hits);
    assert_eq!(metrics.sum("vllm:prompt_tokens_by_source_total", "local_compute"), computed);
    let config = metrics.sum("vllm:cache_config_info", "enable_prefix_caching=\"True\"");
    assert_eq!(config, 1.0);
}

#[test]
fn turns_of_a_chat_and_choices_of_a_prompt_share() {
    let server = Server::with_memory("64MiB");
    let mut messages = vec![json!({"role": "user", "content": "Name three rivers, please."})];
    let mut known = 0;
    for turn in 0..3 {
        let body = json!({"messages": messages, "max_tokens": 30, "temperature": 0});
        let answer = server.ok(CHAT, &body);
        assert!(cached(&answer) >= known / 8 * 8, "turn {turn}: {}", answer["usage"]);
        // The template may write the end of the answer otherwise than the model did.
        known = number(&answer["usage"]["prompt_tokens"]);
        messages.push(json!({"role": "assistant", "content": text(&answer)}));
        messages.push(json!({"role": "user", "content": "And three more?"}));
    }
    let body = completion(alice(300), 4, json!({"n": 4}));
    assert_eq!(cached(&server.ok(COMPLETIONS, &body)), 0, "of the first choice");
    let hits = server.metrics().sum("vllm:prefix_cache_hits_total", "");
    assert!(hits > 3.0 * 250.0, "{hits}");
}

#[test]
fn without_a_prefix_cache_nothing_is_kept() {
    let server = Server::start(&["--kv-memory", "64MiB", "--prefix-cache", "off"]);
    for _ in 0..2 {
        let answer = server.ok(COMPLETIONS, &completion(alice(100), 2, json!({})));
        assert_eq!(cached(&answer), 0);
    }
    let metrics = server.await_metrics(SOON, |metrics| metrics.live_pages() == 0.0);
    assert_eq!(metrics.sum("keepwell_kv_pages", "cached"), 0.0);
    assert_eq!(metrics.sum("vllm:prefix_cache_queries_total", ""), 0.0);
}
