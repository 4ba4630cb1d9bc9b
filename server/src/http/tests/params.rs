use serde_json::json;

use super::{App, MAX_MODEL_LEN, MAX_WAITING, Server, chat_body, completion_body, post, says};
use crate::compress::Spans;
use crate::engine::fake::{NUM_CACHED, Script};
use crate::engine::{KvCacheParams, SamplingParams};
use crate::http::ApiKeys;
use crate::sched::UserId;

#[tokio::test]
async fn defaults_are_those_of_the_engine_and_of_the_servers_flags() {
    let server = Server::new(says("x"));
    server.complete(json!({})).await;
    assert_eq!(server.request(0).sampling, SamplingParams::default());
    let KvCacheParams { budget, min_budget, policy } = server.request(0).kv_cache;
    assert_eq!((budget, min_budget, policy.policy().name()), (0.5, 0.25, "attribution"));
}

#[tokio::test]
async fn every_sampling_field_reaches_the_engine() {
    let server = Server::new(says("x"));
    let fields = json!({
        "temperature": 0, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": u64::MAX,
        "presence_penalty": -1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1,
        "logprobs": 3, "logit_bias": {"5": -1.5, "6": 100}, "min_tokens": 2, "user": "me",
        "allowed_token_ids": [7, 8], "bad_words": ["a", " bc"],
    });
    server.complete(fields).await;
    let expected = SamplingParams {
        temperature: 0.0,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.05,
        seed: Some(u64::MAX),
        presence_penalty: -1.5,
        frequency_penalty: 0.5,
        repetition_penalty: 1.1,
        logit_bias: vec![(5, -1.5), (6, 100.0)],
        allowed_token_ids: Some(vec![7, 8]),
        // Each at a text's start and after a space.
        bad_words: [" a", " bc", "a", "bc"].map(super::ids).to_vec(),
        min_tokens: 2,
        logprobs: Some(3),
        prompt_logprobs: None,
    };
    assert_eq!(server.request(0).sampling, expected);
}

#[tokio::test]
async fn the_priority_reaches_the_engine() {
    let server = Server::new(says("x"));
    server.complete(json!({"priority": -3})).await;
    server.complete(json!({})).await;
    assert_eq!((server.request(0).priority, server.request(1).priority), (-3, 0));
}

#[tokio::test]
async fn users_are_told_apart_by_key_and_without_keys_by_name() {
    let body = |name: &str| completion_body(json!({"user": name})).to_string();
    let user = async |server: &Server, name: &str, key: Option<&str>| {
        let mut request = post("/v1/completions", body(name));
        if let Some(key) = key {
            let value = format!("Bearer {key}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        assert_eq!(server.send(request).await.status(), 200);
        server.engine.requests.lock().unwrap().last().unwrap().user
    };
    let open = Server::new(says("x"));
    let (a, b) = (user(&open, "a", None).await, user(&open, "b", None).await);
    assert!(a != b && a != UserId::ANONYMOUS);
    assert_eq!(user(&open, "a", Some("unchecked")).await, a, "no key was asked for");
    assert_eq!(user(&open, "", None).await, UserId::ANONYMOUS);

    let keys = |app: &mut App| app.api_keys = ApiKeys::new(["first", "second"]);
    let closed = Server::changed(says("x"), keys);
    let first = user(&closed, "a", Some("first")).await;
    assert_ne!(first, user(&closed, "a", Some("second")).await);
    assert_eq!(first, user(&closed, "b", Some("first")).await, "a name makes no second user");
}

#[tokio::test]
async fn a_salt_tells_who_shares_the_prefix_cache() {
    let server = Server::new(says("x"));
    for salt in [json!("a"), json!("b"), json!("a"), json!(null)] {
        server.complete(json!({"cache_salt": salt})).await;
    }
    server.chat(json!({"cache_salt": "a"})).await;
    let response = json!({"input": "hi", "cache_salt": "a"});
    server.ok("/v1/responses", response).await;
    server.complete(json!({})).await;
    let salts: Vec<_> = (0..7).map(|nth| server.request(nth).cache_salt.unwrap()).collect();
    assert_eq!([salts[2], salts[4], salts[5]], [salts[0]; 3]);
    assert_eq!(salts[3], salts[6]);
    assert!(salts[0] != salts[1] && salts[0] != salts[3] && salts[1] != salts[3]);
}

#[tokio::test]
async fn a_salt_is_a_string_that_is_not_empty() {
    let server = Server::new(says("x"));
    for (path, body) in [
        ("/v1/completions", completion_body(json!({}))),
        ("/v1/chat/completions", chat_body(json!({}))),
        ("/v1/responses", json!({"input": "hi"})),
    ] {
        for salt in [json!(""), json!(7), json!(["a"])] {
            let mut body = body.clone();
            body["cache_salt"] = salt;
            let (status, error) = server.error(path, body).await;
            assert_eq!((status, &error["param"]), (400, &json!("cache_salt")), "{path}");
        }
    }
}

#[tokio::test]
async fn cached_tokens_count_once_for_each_prompt() {
    let server = Server::new(says("x"));
    let body = server.complete(json!({"prompt": ["abcd", "abcde"], "n": 3})).await;
    assert_eq!(body["usage"]["prompt_tokens_details"]["cached_tokens"], 2 * NUM_CACHED);
    let body = server.ok("/v1/responses", json!({"input": "hi"})).await;
    assert_eq!(body["usage"]["input_tokens_details"]["cached_tokens"], NUM_CACHED);
}

#[tokio::test]
async fn stop_strings_count_from_min_tokens_on() {
    let server = Server::new(says("abcabc"));
    let body = server.complete(json!({"stop": "b", "min_tokens": 3})).await;
    assert_eq!(body["choices"][0]["text"], "abca");
    assert_eq!(body["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn the_stop_string_that_ended_an_answer_is_named_and_kept_if_wanted() {
    let server = Server::new(Script::Hang(super::ids("abcd")));
    let fields = json!({"stop": ["x", "bc"], "include_stop_str_in_output": true});
    let choice = server.complete(fields.clone()).await["choices"][0].take();
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("abc"), &json!("bc")));
    let choice = server.chat(fields).await["choices"][0].take();
    assert_eq!(choice["message"]["content"], "abc");
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("bc")));
    let (chunks, _) =
        server.stream("/v1/completions", super::completion_body(json!({"stop": "c"}))).await;
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!("c")));
}

#[tokio::test]
async fn top_k_of_minus_one_is_off() {
    let server = Server::new(says("x"));
    server.complete(json!({"top_k": -1})).await;
    assert_eq!(server.request(0).sampling.top_k, 0);
}

#[tokio::test]
async fn choices_have_seeds_of_their_own() {
    let server = Server::new(says("x"));
    server.complete(json!({"prompt": ["a", "b"], "n": 2, "seed": 7})).await;
    let seeds: Vec<_> = (0..4).map(|i| server.request(i).sampling.seed).collect();
    assert_eq!(seeds, [Some(7), Some(8), Some(7), Some(8)]);
}

#[tokio::test]
async fn a_request_sets_its_own_budget_and_policy() {
    let server = Server::new(says("x"));
    let kv_cache = json!({"budget": 0.25, "min_budget": 0.125, "policy": "recency"});
    server.complete(json!({"kv_cache": kv_cache})).await;
    let KvCacheParams { budget, min_budget, policy } = server.request(0).kv_cache;
    assert_eq!((budget, min_budget, policy.policy().name()), (0.25, 0.125, "recency"));
}

#[tokio::test]
async fn a_request_marks_spans_of_its_prompt_and_a_chat_its_system_message() {
    let server = Server::new(says("x"));
    server
        .complete(json!({"kv_cache": {"protect": [[5, 9], [0, 2], [8, 4_000_000_000u32]]}}))
        .await;
    assert_eq!(server.request(0).marked, Spans::new(vec![0..2, 5..4_000_000_000]));
    let messages =
        json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "a"}]);
    server.chat(json!({"messages": messages, "kv_cache": {"protect": ["system", [20, 22]]}})).await;
    let len = "system:be kind|".len();
    assert_eq!(server.request(1).marked, Spans::new(vec![0..len, 20..22]));
    let user = json!([{"role": "user", "content": "a"}]);
    server.chat(json!({"messages": user, "kv_cache": {"protect": ["system"]}})).await;
    server.chat(json!({"messages": messages})).await;
    assert!(server.request(2).marked.is_empty() && server.request(3).marked.is_empty());
}

#[tokio::test]
async fn the_servers_floor_bends_to_a_lower_budget() {
    let server = Server::new(says("x"));
    server.complete(json!({"kv_cache": {"budget": 0.1}})).await;
    server.complete(json!({"kv_cache": {"budget": 1}})).await;
    let kv = |nth| server.request(nth).kv_cache;
    assert_eq!((kv(0).budget, kv(0).min_budget), (0.1, 0.1));
    assert_eq!((kv(1).budget, kv(1).min_budget), (1.0, 0.25));
}

#[tokio::test]
async fn a_negative_seed_is_one_too() {
    let server = Server::new(says("A"));
    server.complete(json!({"seed": -1})).await;
    assert_eq!(server.request(0).sampling.seed, Some(u64::MAX));
}

#[tokio::test]
async fn more_choices_than_the_queue_holds_are_refused_and_not_told_to_try_again() {
    let server = Server::new(says("A"));
    let body = json!({"prompt": vec!["a"; MAX_WAITING / 8], "n": 9});
    let (status, error) = server.error("/v1/completions", body).await;
    assert_eq!((status, &error["param"]), (400, &json!("n")));
    assert!(server.engine.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_text_that_cannot_fit_is_refused_before_it_is_tokenized() {
    let server = Server::new(says("A"));
    let content = "x".repeat(MAX_MODEL_LEN + 1);
    let chat = json!({"messages": [{"role": "user", "content": &content}]});
    for (path, body, param) in [
        ("/v1/completions", json!({"prompt": ["a", content]}), "prompt[1]"),
        ("/v1/chat/completions", chat, "messages"),
    ] {
        let (status, error) = server.error(path, body).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)));
        assert_eq!(error["code"], "context_length_exceeded");
        assert!(error["message"].as_str().unwrap().contains("at least"), "{error}");
    }
}
