use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::{
    MAX_BODY_BYTES, MAX_MODEL_LEN, Server, chat_body, completion_body, error_of, post, says,
};
use crate::engine::EngineError;
use crate::engine::fake::Script;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Each of these fields must be refused with 400 under this `param` and `code`.
async fn refuses(path: &str, body: fn(Value) -> Value, cases: &[(Value, &str, &str)]) {
    let server = Server::new(says("x"));
    for (fields, param, code) in cases {
        let (status, error) = server.error(path, body(fields.clone())).await;
        let got = (status, error["param"].as_str(), error["code"].as_str());
        assert_eq!(got, (400, Some(*param), Some(*code)), "{fields}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    assert!(server.engine.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn wrong_types_are_named() {
    let cases = [
        (json!({"model": 1}), "model"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"temperature": true}), "temperature"),
        (json!({"top_p": []}), "top_p"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"top_k": "5"}), "top_k"),
        (json!({"min_p": {}}), "min_p"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": 1e30}), "seed"),
        (json!({"max_tokens": 16.0}), "max_tokens"),
        (json!({"max_tokens": "16"}), "max_tokens"),
        (json!({"n": "2"}), "n"),
        (json!({"stop": 5}), "stop"),
        (json!({"stop": ["a", 5]}), "stop[1]"),
        (json!({"stop_token_ids": 5}), "stop_token_ids"),
        (json!({"stop_token_ids": [1, "a"]}), "stop_token_ids[1]"),
        (json!({"ignore_eos": 1}), "ignore_eos"),
        (json!({"min_tokens": "1"}), "min_tokens"),
        (json!({"logit_bias": [5]}), "logit_bias"),
        (json!({"logit_bias": {"5": "1"}}), "logit_bias.5"),
        (json!({"priority": 0.5}), "priority"),
        (json!({"user": 5}), "user"),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": 1}}),
            "stream_options.continuous_usage_stats",
        ),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream": true, "stream_options": true}), "stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"presence_penalty": "0"}), "presence_penalty"),
        (json!({"kv_cache": 0.5}), "kv_cache"),
        (json!({"kv_cache": {"budget": "0.5"}}), "kv_cache.budget"),
        (json!({"kv_cache": {"min_budget": []}}), "kv_cache.min_budget"),
        (json!({"kv_cache": {"policy": 1}}), "kv_cache.policy"),
    ];
    let cases: Vec<_> = cases.into_iter().map(|(f, param)| (f, param, "invalid_type")).collect();
    refuses(CHAT, chat_body, &cases).await;
    refuses(COMPLETIONS, completion_body, &cases).await;
}

#[tokio::test]
async fn values_out_of_range_are_named() {
    let cases = [
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": 1e300}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"top_k": u64::MAX}), "top_k"),
        (json!({"min_p": -1}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -2.5}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -5}), "max_tokens"),
        (json!({"max_tokens": u64::MAX}), "max_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"stop": "x".repeat(2000)}), "stop"),
        (json!({"stop_token_ids": [257]}), "stop_token_ids[0]"),
        (json!({"min_tokens": -1}), "min_tokens"),
        (json!({"min_tokens": 5, "max_tokens": 4}), "min_tokens"),
        (json!({"min_tokens": 500}), "min_tokens"),
        (json!({"logit_bias": {"5": 100.5}}), "logit_bias.5"),
        (json!({"logit_bias": {"257": 1}}), "logit_bias.257"),
        (json!({"logit_bias": {"a": 1}}), "logit_bias.a"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias.-1"),
        (json!({"priority": 1u64 << 40}), "priority"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"kv_cache": {"budget": 0}}), "kv_cache.budget"),
        (json!({"kv_cache": {"budget": 1e-60}}), "kv_cache.budget"),
        (json!({"kv_cache": {"budget": 1.01}}), "kv_cache.budget"),
        (json!({"kv_cache": {"min_budget": 0}}), "kv_cache.min_budget"),
        (json!({"kv_cache": {"min_budget": 0.6}}), "kv_cache.min_budget"),
        (json!({"kv_cache": {"budget": 0.1, "min_budget": 0.2}}), "kv_cache.min_budget"),
        (json!({"kv_cache": {"policy": "magic"}}), "kv_cache.policy"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [100_000]}), "allowed_token_ids[0]"),
        (json!({"bad_words": ["a", ""]}), "bad_words[1]"),
        (json!({"bad_words": vec!["a"; 257]}), "bad_words"),
    ];
    let cases: Vec<_> = cases.into_iter().map(|(f, param)| (f, param, "invalid_value")).collect();
    refuses(CHAT, chat_body, &cases).await;
    refuses(COMPLETIONS, completion_body, &cases).await;
}

#[tokio::test]
async fn what_cannot_be_protected_is_refused() {
    let kv_cache = |protect: Value| json!({"kv_cache": {"protect": protect}});
    let at = |path: &str, code: &'static str| (format!("kv_cache.protect{path}"), code);
    for (protect, (param, code)) in [
        (json!("system"), at("", "invalid_type")),
        (json!([0, 5]), at("[0]", "invalid_type")),
        (json!([[0, 5], "user"]), at("[1]", "invalid_type")),
        (json!([[0, 5, 9]]), at("[0]", "invalid_type")),
        (json!([[0, 5.5]]), at("[0][1]", "invalid_type")),
        (json!([[-1, 5]]), at("[0][0]", "invalid_value")),
        (json!([[0, u64::MAX]]), at("[0][1]", "invalid_value")),
        (json!([[5, 5]]), at("[0]", "invalid_value")),
        (json!([[9, 5]]), at("[0]", "invalid_value")),
        (json!(vec![[0, 5]; 257]), at("", "invalid_value")),
    ] {
        refuses(CHAT, chat_body, &[(kv_cache(protect), &param, code)]).await;
    }
    let system = [(kv_cache(json!(["system"])), "kv_cache.protect", "invalid_value")];
    refuses("/v1/completions", completion_body, &system).await;
}

#[tokio::test]
async fn unknown_fields_of_the_kv_cache_are_refused() {
    let fields = json!({"kv_cache": {"bugdet": 0.5}});
    refuses(CHAT, chat_body, &[(fields, "kv_cache.bugdet", "unknown_parameter")]).await;
}

#[tokio::test]
async fn what_would_change_the_answer_and_is_not_supported_is_refused() {
    let unsupported = |fields, param| (fields, param, "unsupported_parameter");
    let cases = [unsupported(json!({"prompt_logprobs": 1}), "prompt_logprobs")];
    refuses(CHAT, chat_body, &cases).await;
    let cases = [
        unsupported(json!({"suffix": "x"}), "suffix"),
        unsupported(json!({"tools": [{"type": "function"}]}), "tools"),
    ];
    refuses(COMPLETIONS, completion_body, &cases).await;
}

#[tokio::test]
async fn messages_are_checked_to_the_last_part() {
    let part = |part: Value| json!([{"role": "user", "content": [part]}]);
    let cases = [
        (json!(null), "messages", "missing_required_parameter"),
        (json!([]), "messages", "invalid_value"),
        (json!("hi"), "messages", "invalid_type"),
        (json!(["hi"]), "messages[0]", "invalid_type"),
        (json!([{"content": "hi"}]), "messages[0].role", "missing_required_parameter"),
        (json!([{"role": 1, "content": "hi"}]), "messages[0].role", "invalid_type"),
        (json!([{"role": "robot", "content": "hi"}]), "messages[0].role", "invalid_value"),
        (json!([{"role": "user"}]), "messages[0].content", "missing_required_parameter"),
        (
            json!([{"role": "user", "content": "a"}, {"role": "user", "content": 5}]),
            "messages[1].content",
            "invalid_type",
        ),
        (part(json!("a")), "messages[0].content[0]", "invalid_type"),
        (part(json!({})), "messages[0].content[0].type", "missing_required_parameter"),
        (part(json!({"type": "image_url"})), "messages[0].content[0].type", "invalid_value"),
        (
            part(json!({"type": "text"})),
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        (part(json!({"type": "text", "text": 1})), "messages[0].content[0].text", "invalid_type"),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|(m, param, code)| (json!({"messages": m}), param, code)).collect();
    refuses(CHAT, chat_body, &cases).await;
}

#[tokio::test]
async fn prompts_are_checked_to_the_last_token() {
    let cases = [
        (json!(null), "prompt", "missing_required_parameter"),
        (json!(""), "prompt", "invalid_value"),
        (json!([]), "prompt", "invalid_value"),
        (json!({}), "prompt", "invalid_type"),
        (json!(5), "prompt", "invalid_type"),
        (json!([5, "a"]), "prompt[1]", "invalid_type"),
        (json!([5, 257]), "prompt[1]", "invalid_value"),
        (json!([5, -1]), "prompt[1]", "invalid_value"),
        (json!(["a", 5]), "prompt[1]", "invalid_type"),
        (json!(["a", ""]), "prompt[1]", "invalid_value"),
        (json!([[5], [5, 1.5]]), "prompt[1][1]", "invalid_type"),
        (json!(vec!["a"; 257]), "prompt", "invalid_value"),
    ];
    let cases: Vec<_> =
        cases.into_iter().map(|(p, param, code)| (json!({"prompt": p}), param, code)).collect();
    refuses(COMPLETIONS, completion_body, &cases).await;
}

#[tokio::test]
async fn logprobs_are_spelled_differently_by_the_two_endpoints() {
    let chat = [
        (json!({"logprobs": 1}), "logprobs", "invalid_type"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "invalid_value"),
        (json!({"top_logprobs": 2}), "top_logprobs", "invalid_value"),
    ];
    refuses(CHAT, chat_body, &chat).await;
    let completions = [
        (json!({"logprobs": true}), "logprobs", "invalid_type"),
        (json!({"logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"logprobs": -1}), "logprobs", "invalid_value"),
    ];
    refuses(COMPLETIONS, completion_body, &completions).await;
}

#[tokio::test]
async fn prompt_and_answer_must_fit_the_context() {
    let code = "context_length_exceeded";
    let cases = [
        (json!({"prompt": "x".repeat(MAX_MODEL_LEN)}), "prompt", code),
        (json!({"prompt": "x".repeat(9999), "max_tokens": 1}), "prompt", code),
        (json!({"prompt": ["a", "x".repeat(MAX_MODEL_LEN)]}), "prompt[1]", code),
        // Not even read any more: the third is no prompt.
        (json!({"prompt": ["a", "x".repeat(MAX_MODEL_LEN), 5]}), "prompt[1]", code),
        (json!({"prompt": "ab", "max_tokens": MAX_MODEL_LEN - 1}), "max_tokens", code),
    ];
    refuses(COMPLETIONS, completion_body, &cases).await;
    let messages = json!([{"role": "user", "content": "x".repeat(MAX_MODEL_LEN)}]);
    let cases = [
        (json!({"messages": messages}), "messages", code),
        (json!({"max_completion_tokens": MAX_MODEL_LEN}), "max_completion_tokens", code),
    ];
    refuses(CHAT, chat_body, &cases).await;
    let server = Server::new(says("x"));
    server.complete(json!({"prompt": "ab", "max_tokens": MAX_MODEL_LEN - 2})).await;
    server.complete(json!({"prompt": "x".repeat(MAX_MODEL_LEN - 1)})).await;
    assert_eq!(server.request(1).max_tokens, 1);
}

#[tokio::test]
async fn another_model_is_404() {
    let server = Server::new(says("x"));
    let (status, error) = server.error(CHAT, chat_body(json!({"model": "gpt-4"}))).await;
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    assert_eq!(error["param"], "model");
}

#[tokio::test]
async fn what_is_not_json_is_400_without_a_param() {
    let server = Server::new(says("x"));
    for body in ["", "{", "[]", "null", r#"{"temperature": 1e999}"#, r#"{"a": "\ud800"}"#] {
        let (status, error) = error_of(server.send(post(CHAT, body)).await).await;
        let expected = (400, &json!("invalid_json"), &Value::Null);
        assert_eq!((status, &error["code"], &error["param"]), expected, "{body}");
    }
    let (status, _) = error_of(server.send(post(CHAT, vec![0xff, 0xfe])).await).await;
    assert_eq!(status, 400);
    let (status, _) = error_of(server.send(post(CHAT, "[".repeat(10_000))).await).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn rejections_of_the_framework_wear_the_envelope() {
    let server = Server::new(says("x"));
    let request = |method: Method, path: &str| {
        Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    };
    let cases = [
        (request(Method::GET, "/nowhere"), 404),
        (request(Method::GET, "/v1/models/nope"), 404),
        (request(Method::GET, CHAT), 405),
        (request(Method::POST, "/health"), 405),
        (request(Method::POST, CHAT), 415),
        (post(COMPLETIONS, " ".repeat(MAX_BODY_BYTES + 1)), 413),
    ];
    for (request, expected) in cases {
        let (status, error) = error_of(server.send(request).await).await;
        assert_eq!(status, expected, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn a_content_type_may_name_its_charset() {
    let server = Server::new(says("x"));
    let request = Request::post(CHAT).header("content-type", "application/json; charset=utf-8");
    let body = Body::from(chat_body(json!({})).to_string());
    assert_eq!(server.send(request.body(body).unwrap()).await.status(), 200);
}

#[tokio::test]
async fn what_the_engine_says_becomes_a_status() {
    let cases = [
        (
            EngineError::DoesNotFit { needed_bytes: 2, total_bytes: 1 },
            400,
            "kv_memory_exceeded",
            "invalid_request_error",
        ),
        (
            EngineError::QueueFull { num_waiting: 9, num_tokens: 90 },
            429,
            "queue_full",
            "rate_limit_error",
        ),
        (EngineError::Stopped, 503, "shutting_down", "service_unavailable_error"),
        (EngineError::Internal("bug".into()), 500, "internal_error", "server_error"),
    ];
    for (engine_error, status, code, kind) in cases {
        let server = Server::new(Script::Fail(vec![], engine_error));
        let response = server.post(CHAT, chat_body(json!({}))).await;
        assert_eq!(response.headers().contains_key("retry-after"), status == 429);
        let (got, error) = error_of(response).await;
        assert_eq!((got, &error["code"], &error["type"]), (status, &json!(code), &json!(kind)));
    }
}

#[tokio::test]
async fn an_engine_that_dies_on_a_request_is_500() {
    let (status, _) = Server::new(Script::Die).error(CHAT, chat_body(json!({}))).await;
    assert_eq!(status, 500);
}

#[tokio::test]
async fn a_panic_is_500_and_says_nothing_of_itself() {
    let messages = json!([{"role": "user", "content": "panic"}]);
    let server = Server::new(says("x"));
    let (status, error) = server.error(CHAT, chat_body(json!({"messages": messages}))).await;
    assert_eq!((status, &error["type"]), (500, &json!("server_error")));
    assert!(!error["message"].as_str().unwrap().contains("template"));
}
