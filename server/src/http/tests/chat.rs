use serde_json::json;

use super::{EOS, MAX_MODEL_LEN, MODEL, Server, ids, says};
use crate::engine::fake::{KV_BYTES, NUM_CACHED, Script};

#[tokio::test]
async fn an_answer_has_the_shape_of_openai() {
    let body = Server::new(says("hello")).chat(json!({})).await;
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!(MODEL)));
    let choice = json!({
        "index": 0,
        "message": {"role": "assistant", "content": "hello", "refusal": null},
        "logprobs": null,
        "finish_reason": "stop",
    });
    assert_eq!(body["choices"], json!([choice]));
}

#[tokio::test]
async fn usage_tells_tokens_and_the_bytes_of_the_cache_by_tier() {
    let server = Server::new(says("hello"));
    let usage = server.chat(json!({"kv_cache": {"budget": 0.3}})).await["usage"].clone();
    let prompt_tokens = "user:hi|assistant:".len();
    let expected = json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": prompt_tokens + 5,
        "prompt_tokens_details": {"cached_tokens": NUM_CACHED},
        "kv_cache": {
            "budget": 0.3,
            "lowest_budget": 0.3,
            "bytes": KV_BYTES,
            "peak_bytes": 2 * KV_BYTES,
            "f16_bytes": 4 * KV_BYTES,
            "tokens": {"f16": 4, "k8v8": 3, "k8v4": 2, "k4v4": 1, "evicted": 5},
        },
    });
    assert_eq!(usage, expected);
}

#[tokio::test]
async fn the_answer_may_take_the_rest_of_the_context() {
    let server = Server::new(says(""));
    server.chat(json!({})).await;
    server.chat(json!({"max_tokens": 3})).await;
    assert_eq!(server.request(0).max_tokens, MAX_MODEL_LEN - server.request(0).prompt.len());
    assert!(server.request(0).may_shorten && !server.request(1).may_shorten);
}

#[tokio::test]
async fn max_completion_tokens_goes_before_max_tokens() {
    let server = Server::new(says("hello"));
    let body = server.chat(json!({"max_tokens": 9, "max_completion_tokens": 2})).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["message"]["content"], "he");
}

#[tokio::test]
async fn a_null_field_counts_as_absent() {
    let server = Server::new(says("x"));
    let fields = json!({
        "model": null, "temperature": null, "max_tokens": null, "stop": null, "stream": null,
        "stream_options": null, "kv_cache": null, "tools": null, "response_format": null,
    });
    server.chat(fields).await;
}

#[tokio::test]
async fn unknown_fields_and_neutral_values_of_unsupported_ones_are_accepted() {
    let server = Server::new(says("x"));
    let fields = json!({
        "user": "me", "metadata": {"a": 1}, "tools": [], "logit_bias": {}, "min_tokens": 0,
        "response_format": {"type": "text"}, "reasoning_effort": "low",
    });
    server.chat(fields).await;
}

#[tokio::test]
async fn text_parts_are_joined_by_lines() {
    let server = Server::new(says("x"));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    server.chat(json!({"messages": [{"role": "user", "content": parts}]})).await;
    assert_eq!(server.request(0).prompt, ids("user:a\nb|assistant:"));
}

#[tokio::test]
async fn the_generation_prompt_can_be_left_out() {
    let server = Server::new(says("x"));
    server.chat(json!({"add_generation_prompt": false})).await;
    assert_eq!(server.request(0).prompt, ids("user:hi|"));
}

#[tokio::test]
async fn an_assistant_message_may_have_no_content() {
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": []},
        {"role": "user", "content": "b"},
    ]);
    let server = Server::new(says("x"));
    server.chat(json!({"messages": messages})).await;
    assert_eq!(server.request(0).prompt, ids("user:a|assistant:|user:b|assistant:"));
}

#[tokio::test]
async fn the_models_own_stop_tokens_end_an_answer_unless_ignored() {
    let server = Server::new(says("x"));
    server.chat(json!({"stop_token_ids": [7]})).await;
    server.chat(json!({"stop_token_ids": [7], "ignore_eos": true})).await;
    assert_eq!(server.request(0).stop_token_ids, [7, EOS]);
    assert_eq!(server.request(1).stop_token_ids, [7]);
}

#[tokio::test]
async fn choices_keep_their_order_and_their_usage_adds_up() {
    let server = Server::with_scripts(vec![says("one"), says("three"), says("")]);
    let body = server.chat(json!({"n": 3})).await;
    let texts: Vec<_> = (0..3).map(|i| &body["choices"][i]["message"]["content"]).collect();
    assert_eq!(texts, ["one", "three", ""]);
    let indices: Vec<_> = (0..3).map(|i| &body["choices"][i]["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(body["usage"]["completion_tokens"], 8);
    assert_eq!(body["usage"]["prompt_tokens"], "user:hi|assistant:".len());
    assert_eq!(body["usage"]["kv_cache"]["bytes"], 3 * KV_BYTES);
    assert_eq!(body["usage"]["kv_cache"]["tokens"]["evicted"], 15);
}

#[tokio::test]
async fn a_stop_string_ends_the_text_although_the_engine_ran_on() {
    let server = Server::new(Script::Hang(ids("one END two")));
    let body = server.chat(json!({"stop": ["END", "zzz"]})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "one ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], "one END".len());
}

#[tokio::test]
async fn a_half_stop_string_at_the_end_is_text() {
    let body = Server::new(says("one EN")).chat(json!({"stop": "END"})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "one EN");
}

#[tokio::test]
async fn an_incomplete_character_at_the_end_is_replaced() {
    let tokens = ids("aé")[..2].to_vec();
    let body = Server::new(Script::Tokens(tokens)).chat(json!({})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "a\u{fffd}");
}

#[tokio::test]
async fn logprobs_list_each_token_with_its_bytes_and_alternatives() {
    let server = Server::new(says("ab"));
    let body = server.chat(json!({"logprobs": true, "top_logprobs": 2})).await;
    let content = json!([
        {"token": "a", "logprob": 0.0, "bytes": [97], "top_logprobs": [
            {"token": "a", "logprob": 0.0, "bytes": [97]},
            {"token": "b", "logprob": -1.0, "bytes": [98]},
        ]},
        {"token": "b", "logprob": -1.0, "bytes": [98], "top_logprobs": [
            {"token": "b", "logprob": -1.0, "bytes": [98]},
            {"token": "c", "logprob": -2.0, "bytes": [99]},
        ]},
    ]);
    assert_eq!(body["choices"][0]["logprobs"], json!({"content": content, "refusal": null}));
}

#[tokio::test]
async fn logprobs_without_alternatives_have_an_empty_list_of_them() {
    let body = Server::new(says("a")).chat(json!({"logprobs": true})).await;
    assert_eq!(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn tokens_of_a_stop_string_have_no_logprobs_in_the_answer() {
    let server = Server::new(Script::Hang(ids("abXYc")));
    let body = server.chat(json!({"logprobs": true, "stop": "XY"})).await;
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let tokens: Vec<_> = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, ["a", "b"]);
}

#[tokio::test]
async fn a_server_that_shuts_down_says_abort() {
    let body = Server::new(Script::Abort(ids("par"))).chat(json!({})).await;
    assert_eq!(body["choices"][0]["finish_reason"], "abort");
    assert_eq!(body["choices"][0]["message"]["content"], "par");
}
