//! The API over HTTP with a real model: SmolLM2, which the first run fetches into the cache.

mod chat;
mod compression;
mod debug_kv;
mod limits;
mod memory;
mod metrics;
mod prefix_cache;
mod sampling;
#[path = "../common/server.rs"]
mod server;
mod shutdown;
#[path = "../common/ties.rs"]
mod ties;

use serde_json::{Value, json};

use ties::check_same_up_to_ties;

/// The opening of Lewis Carroll's "Alice's Adventures in Wonderland" (1865).
const ALICE: &str = include_str!("alice.txt");
const CAPITAL: &str = "What is the capital of France?";

/// A greedy chat about one message, with `extra` fields.
fn chat(content: &str, extra: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": content}], "temperature": 0});
    merged(body, extra)
}

/// A greedy completion that goes on to `max_tokens`.
fn completion(prompt: &str, max_tokens: usize, extra: Value) -> Value {
    let body = json!({
        "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
    });
    merged(body, extra)
}

fn merged(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// About this many tokens of text.
fn alice(num_tokens: usize) -> &'static str {
    &ALICE[..num_tokens * 4]
}

/// The text of the first choice.
fn text(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count")) as usize
}
