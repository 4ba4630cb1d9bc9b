use std::thread;

use serde_json::{Value, json};

use super::{
    CAPITAL, alice, chat, completion, number,
    server::{CHAT, COMPLETIONS, SOON, Server, Streamed},
};

const BUDGET: f32 = 0.28;
/// Tokens a sequence decodes between two compress events.
const EVENT_INTERVAL: usize = 64;
/// Without compression, a prompt of this many tokens takes more than its budget and a window.
const LONG_PROMPT: usize = 500;

/// SmolLM2's, over all layers.
const NUM_HEADS: usize = 30 * 3;
/// Keys and values of 64 numbers each, two bytes a number.
const F16_ENTRY_BYTES: usize = 256;
const PAGE_BYTES: usize = 2112;
/// Pages of 8 tokens that a head writes between two compress events; the first need not be new.
const WINDOW_PAGES: usize = EVENT_INTERVAL / 8 + 1;
/// Tokens of a prompt computed at a time.
const CHUNK: usize = 128;
/// What a prompt still coming in may hold above its budget: a chunk kept, and the one being written.
const CHUNK_PAGES: usize = 2 * (CHUNK / 8 + 1);
/// One of each tier.
const OPEN_PAGES: usize = 4;

/// The bytes of the budget and of so many pages a head. Plain numbers, nothing of the scheduler's.
fn bound(f16_bytes: usize, pages: usize) -> usize {
    (f64::from(BUDGET) * f16_bytes as f64) as usize + NUM_HEADS * (pages + OPEN_PAGES) * PAGE_BYTES
}

/// Entries add up, bytes and peak keep their bounds, and long prompts have been compressed.
fn check_account(usage: &Value) {
    let kv_cache = &usage["kv_cache"];
    // The last token was drawn but never computed.
    let len = number(&usage["total_tokens"]) - 1;
    let f16_bytes = len * NUM_HEADS * F16_ENTRY_BYTES;
    assert_eq!(number(&kv_cache["f16_bytes"]), f16_bytes, "{usage}");
    let entries = kv_cache["tokens"].as_object().unwrap();
    let sum: usize = entries.values().map(number).sum();
    assert_eq!(sum, len * NUM_HEADS, "{usage}");

    let bytes = number(&kv_cache["bytes"]);
    let most = bound(f16_bytes, WINDOW_PAGES);
    assert!(bytes <= most, "above {most}: {usage}");
    let most = bound(f16_bytes, CHUNK_PAGES);
    assert!(number(&kv_cache["peak_bytes"]) <= most, "above {most}: {usage}");

    if number(&usage["prompt_tokens"]) > LONG_PROMPT {
        let demoted = sum - number(&entries["f16"]);
        assert!(demoted > 0 && bytes < f16_bytes / 2, "{usage}");
    }
}

/// Its chunks are short, so that a prompt left uncompressed would be seen in its peak.
fn in_chunks(memory: &str) -> Server {
    Server::start(&["--kv-memory", memory, "--max-batch-tokens", &CHUNK.to_string()])
}

fn after_a_story(num_tokens: usize) -> Value {
    let story = format!("Here is a story:\n\n{}", alice(num_tokens));
    json!([
        {"role": "user", "content": story},
        {"role": "assistant", "content": "Thank you for the story."},
        {"role": "user", "content": CAPITAL},
    ])
}

#[test]
fn sixteen_compressed_streams_finish_right_within_budget_and_their_accounts_add_up() {
    let server = in_chunks("256MiB");
    let ask = |nth: usize| -> Streamed {
        let mut body = chat(CAPITAL, json!({"kv_cache": {"budget": BUDGET}, "max_tokens": 24}));
        if nth.is_multiple_of(2) {
            body["messages"] = after_a_story(550 + 25 * nth);
            // Past one compress event of decoding.
            body["max_tokens"] = json!(EVENT_INTERVAL + 8);
            body["ignore_eos"] = json!(true);
        }
        server.stream(CHAT, &body).collect_choice()
    };
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..16).map(|nth| scope.spawn(move || ask(nth))).collect();
        asked.into_iter().map(|answer| answer.join().unwrap()).collect()
    });
    for answer in &answers {
        assert!(answer.text.contains("Paris"), "{answer:?}");
        assert!(["stop", "length"].contains(&&*answer.finish_reason), "{answer:?}");
        check_account(&answer.usage);
    }
    let is_long = |answer: &&Streamed| number(&answer.usage["prompt_tokens"]) > LONG_PROMPT;
    assert_eq!(answers.iter().filter(is_long).count(), 8);
    server.await_metrics(SOON, |metrics| metrics.live_pages() == 0.0);
}

#[test]
fn a_budget_of_one_changes_nothing() {
    // A hit rounds sums differently, and is told of.
    let server = Server::start(&["--kv-memory", "64MiB", "--prefix-cache", "off"]);
    let ask = |extra: Value| server.ok(COMPLETIONS, &completion(alice(200), 80, extra));
    let plain = ask(json!({"logprobs": 3}));
    let full = ask(json!({"logprobs": 3, "kv_cache": {"budget": 1.0}}));
    assert_eq!(full["choices"], plain["choices"]);
    assert_eq!(full["usage"], plain["usage"]);
    let kv_cache = &full["usage"]["kv_cache"];
    let len = number(&full["usage"]["total_tokens"]) - 1;
    assert_eq!(number(&kv_cache["tokens"]["f16"]), len * NUM_HEADS);
}

#[test]
fn every_policy_serves() {
    let server = in_chunks("64MiB");
    for policy in keepwell_server::compress::POLICIES {
        let kv_cache = json!({"budget": BUDGET, "policy": policy.name()});
        let body = completion(alice(550), 8, json!({"kv_cache": kv_cache}));
        check_account(&server.ok(COMPLETIONS, &body)["usage"]);
    }
}
