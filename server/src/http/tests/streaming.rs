use serde_json::{Value, json};

use super::{Server, chat_body, completion_body, error_of, ids, says};
use crate::engine::EngineError;
use crate::engine::fake::Script;

const CHAT: &str = "/v1/chat/completions";

fn contents(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn role_then_text_then_one_finish_then_done() {
    let server = Server::new(says("ab"));
    let (chunks, done) = server.stream(CHAT, chat_body(json!({}))).await;
    let choices: Vec<_> = chunks.iter().map(|c| c["choices"][0].clone()).collect();
    let choice = |delta: Value, reason: Value| json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
    let expected = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"content": "a"}), Value::Null),
        choice(json!({"content": "b"}), Value::Null),
        choice(json!({}), json!("stop")),
    ];
    assert_eq!(choices, expected);
    assert!(done);
}

#[tokio::test]
async fn all_chunks_of_an_answer_share_id_time_model_and_object() {
    let server = Server::new(says("ab"));
    let (chunks, _) = server.stream(CHAT, chat_body(json!({}))).await;
    for key in ["id", "created", "model", "object"] {
        assert!(chunks.iter().all(|chunk| chunk[key] == chunks[0][key] && !chunk[key].is_null()));
    }
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn usage_comes_last_with_no_choices_when_asked_for() {
    for (path, body) in
        [(CHAT, chat_body(json!({}))), ("/v1/completions", completion_body(json!({})))]
    {
        let server = Server::new(says("ab"));
        let mut body = body;
        body["stream_options"] = json!({"include_usage": true});
        let (chunks, done) = server.stream(path, body).await;
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 2);
        assert_eq!(last["usage"]["kv_cache"]["budget"], 0.5);
        assert!(others.iter().all(|c| c.get("usage") == Some(&Value::Null)));
        assert!(done);
    }
}

#[tokio::test]
async fn each_choice_has_one_role_and_one_finish() {
    let server = Server::with_scripts(vec![says("one"), says("two"), says("three")]);
    let (chunks, _) = server.stream(CHAT, chat_body(json!({"n": 3}))).await;
    for (index, text) in ["one", "two", "three"].iter().enumerate() {
        let own: Vec<_> =
            chunks.iter().filter(|c| c["choices"][0]["index"] == index).cloned().collect();
        assert_eq!(contents(&own), *text);
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        let finishes = own.iter().filter(|c| !c["choices"][0]["finish_reason"].is_null()).count();
        assert_eq!(finishes, 1);
        assert!(!own.last().unwrap()["choices"][0]["finish_reason"].is_null());
    }
}

#[tokio::test]
async fn a_character_of_several_tokens_arrives_whole() {
    let server = Server::new(says("a€😀"));
    let (chunks, _) = server.stream(CHAT, chat_body(json!({}))).await;
    let pieces: Vec<_> =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, ["", "a", "€", "😀"]);
}

#[tokio::test]
async fn text_is_held_back_while_it_may_become_a_stop_string() {
    let server = Server::new(Script::Hang(ids("aENbEND!")));
    let (chunks, _) = server.stream(CHAT, chat_body(json!({"stop": ["END"]}))).await;
    let pieces: Vec<_> =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, ["", "a", "ENb"]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn held_back_text_carries_the_logprobs_of_its_tokens() {
    let server = Server::new(says("aEb"));
    let body = chat_body(json!({"stop": ["END"], "logprobs": true}));
    let (chunks, _) = server.stream(CHAT, body).await;
    let num_tokens = |c: &Value| c["choices"][0]["logprobs"]["content"].as_array().map(Vec::len);
    let lens: Vec<_> = chunks.iter().map(num_tokens).collect();
    assert_eq!(lens, [None, Some(1), Some(2), None]);
}

#[tokio::test]
async fn an_error_before_the_first_token_is_a_status() {
    let error = EngineError::QueueFull { num_waiting: 3, num_tokens: 30 };
    let server = Server::new(Script::Fail(vec![], error));
    let response = server.post(CHAT, chat_body(json!({"stream": true}))).await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(response).await.0, 429);
}

#[tokio::test]
async fn an_error_in_mid_stream_is_the_last_event() {
    let error = EngineError::Internal("cosmic ray".into());
    let server = Server::new(Script::Fail(ids("a"), error));
    let (chunks, done) = server.stream(CHAT, chat_body(json!({}))).await;
    let error = &chunks.last().unwrap()["error"];
    assert_eq!((&error["type"], &error["param"]), (&json!("server_error"), &Value::Null));
    assert!(error["message"].as_str().unwrap().contains("cosmic ray"));
    assert_eq!(contents(&chunks), "a");
    assert!(!done);
}

#[tokio::test]
async fn continuous_usage_counts_up_in_every_chunk() {
    let server = Server::with_scripts(vec![says("abc"), says("d")]);
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat_body(json!({"stream_options": options, "n": 2}));
    let (chunks, _) = server.stream(CHAT, body).await;
    let counts: Vec<_> =
        chunks.iter().map(|c| c["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts[0] == 0 && counts.last() == Some(&4), "{counts:?}");
    let (last, others) = chunks.split_last().unwrap();
    for usage in others.iter().map(|c| &c["usage"]) {
        let sum =
            usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], sum);
        assert_eq!(usage.as_object().unwrap().len(), 3);
    }
    assert!(last["usage"]["kv_cache"].is_object());
}
