use serde_json::{Value, json};

use super::{EOS, MODEL, Server, ids, says};
use crate::engine::fake::Script;

fn texts(body: &Value) -> Vec<&str> {
    let choices = body["choices"].as_array().unwrap();
    choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_answer_has_the_shape_of_openai() {
    let body = Server::new(says("def")).complete(json!({})).await;
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!(MODEL)));
    let choice = json!({"index": 0, "text": "def", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"]["total_tokens"], 6);
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let server = Server::new(says(&"x".repeat(50)));
    let body = server.complete(json!({})).await;
    assert_eq!(texts(&body), ["x".repeat(16)]);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_prompt_may_be_text_or_ids_or_a_list_of_either() {
    let cases = [
        (json!("ab"), vec!["ab"]),
        (json!(["ab", "c"]), vec!["ab", "c"]),
        (json!([97, 98]), vec!["ab"]),
        (json!([[97, 98], [99]]), vec!["ab", "c"]),
    ];
    for (prompt, expected) in cases {
        let server = Server::new(says("x"));
        let body = server.complete(json!({"prompt": prompt, "echo": true})).await;
        let prompts: Vec<_> = (0..expected.len()).map(|i| server.request(i).prompt).collect();
        assert_eq!(prompts, expected.iter().map(|p| ids(p)).collect::<Vec<_>>());
        assert_eq!(texts(&body), expected.iter().map(|p| format!("{p}x")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn choices_of_several_prompts_follow_each_other() {
    let server = Server::with_scripts(["1", "2", "3", "4"].map(says).to_vec());
    let body = server.complete(json!({"prompt": ["a", "bb"], "n": 2, "echo": true})).await;
    assert_eq!(texts(&body), ["a1", "a2", "bb3", "bb4"]);
    assert_eq!(body["usage"]["prompt_tokens"], 3);
    assert_eq!(body["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn logprobs_are_parallel_arrays_with_offsets_in_characters() {
    let server = Server::new(says("aéb"));
    let logprobs = server.complete(json!({"logprobs": 1})).await["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9", "b"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2]));
    assert_eq!(logprobs["token_logprobs"], json!([0.0, -1.0, -2.0, -3.0]));
    assert_eq!(logprobs["top_logprobs"][3], json!({"b": -3.0}));
}

#[tokio::test]
async fn logprobs_0_still_reports_the_chosen_token() {
    let server = Server::new(says("a"));
    let body = server.complete(json!({"logprobs": 0})).await;
    assert_eq!(body["choices"][0]["logprobs"]["top_logprobs"], json!([{"a": 0.0}]));
    assert_eq!(server.request(0).sampling.logprobs, Some(0));
}

#[tokio::test]
async fn tokens_without_text_keep_their_logprobs() {
    let server = Server::new(Script::Tokens(vec![97, 0xc3]));
    let body = server.complete(json!({"logprobs": 0})).await;
    assert_eq!(texts(&body), ["a\u{fffd}"]);
    assert_eq!(body["choices"][0]["logprobs"]["tokens"], json!(["a", "bytes:\\xc3"]));
}

#[tokio::test]
async fn echo_streams_the_prompt_first() {
    let server = Server::new(says("de"));
    let body = super::completion_body(json!({"echo": true}));
    let (chunks, done) = server.stream("/v1/completions", body).await;
    let texts: Vec<_> = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["abc", "d", "e", ""]);
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert!(done);
}

#[tokio::test]
async fn special_tokens_may_be_part_of_a_prompt() {
    let server = Server::new(says("x"));
    server.complete(json!({"prompt": [97, EOS]})).await;
    assert_eq!(server.request(0).prompt, [97, EOS]);
}

#[tokio::test]
async fn an_echo_with_logprobs_has_those_of_the_prompt() {
    let server = Server::new(says("de"));
    let body = server.complete(json!({"echo": true, "logprobs": 0, "n": 2})).await;
    assert_eq!(server.request(0).sampling.prompt_logprobs, Some(0));
    for choice in body["choices"].as_array().unwrap() {
        assert_eq!(choice["text"], "abcde");
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"], json!(["a", "b", "c", "d", "e"]));
        assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3, 4]));
        assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -2.0, 0.0, -1.0]));
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][1], json!({"b": -1.0}));
    }
}

#[tokio::test]
async fn an_echo_without_tokens_of_its_own_scores_the_prompt() {
    for prompt in ["abc", "a"] {
        let server = Server::new(says("x"));
        let fields = json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": 0});
        let body = server.complete(fields).await;
        assert_eq!(server.request(0).max_tokens, 1);
        let choice = &body["choices"][0];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(prompt), &json!("length")));
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), prompt.len());
        assert_eq!(body["usage"]["completion_tokens"], 0);
    }
}

#[tokio::test]
async fn an_echo_with_logprobs_streams_the_prompt_once_they_are_known() {
    let server = Server::new(says("d"));
    let body = super::completion_body(json!({"echo": true, "logprobs": 0}));
    let (chunks, done) = server.stream("/v1/completions", body).await;
    let texts: Vec<_> = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["abc", "d", ""]);
    assert_eq!(chunks[0]["choices"][0]["logprobs"]["token_logprobs"], json!([null, -1.0, -2.0]));
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([3]));
    assert!(done);
}
