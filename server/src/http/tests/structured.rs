use serde_json::{Value, json};

use super::{EOS, Server, chat_body, completion_body, says};
use crate::grammar::{Constraint, Verdict};

const CHAT: &str = "/v1/chat/completions";

/// The constraint that reaches the engine with these fields.
async fn constraint(fields: Value) -> Option<Constraint> {
    let server = Server::new(says("x"));
    server.chat(fields).await;
    server.request(0).constraint
}

/// Whether the answer may be this text and end there.
pub fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    for byte in text.bytes() {
        let mut logits = vec![0.0; 257];
        let verdict = constraint.mask(&mut logits).unwrap();
        if verdict == Verdict::Complete || logits[usize::from(byte)] != 0.0 {
            return false;
        }
        constraint.accept(byte.into()).unwrap();
    }
    let mut logits = vec![0.0; 257];
    constraint.mask(&mut logits).unwrap() == Verdict::Complete || logits[EOS as usize] == 0.0
}

#[tokio::test]
async fn a_response_format_becomes_a_constraint() {
    assert!(constraint(json!({})).await.is_none());
    assert!(constraint(json!({"response_format": {"type": "text"}})).await.is_none());
    let object = constraint(json!({"response_format": {"type": "json_object"}})).await.unwrap();
    assert!(accepts(&object, "{\"a\": 1}") && !accepts(&object, "[]"));
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    let schema = constraint(json!({"response_format": format})).await.unwrap();
    assert!(accepts(&schema, "{\"n\": 1}") && !accepts(&schema, "{\"a\": 1}"));
}

#[tokio::test]
async fn the_names_of_vllm_do_the_same() {
    let schema = json!({"type": "integer"});
    for (kind, value, good, bad) in [
        ("json", schema.clone(), "5", "x"),
        ("json", json!("{\"type\": \"integer\"}"), "5", "x"),
        ("json_object", json!(true), "{}", "5"),
        ("regex", json!("a+b"), "aab", "ab b"),
        ("choice", json!(["yes", "no"]), "no", "maybe"),
        ("grammar", json!("start: \"(\" start \")\" | \"x\""), "((x))", "((x)"),
    ] {
        for fields in
            [json!({format!("guided_{kind}"): value}), json!({"structured_outputs": {kind: value}})]
        {
            let constraint = constraint(fields).await.unwrap();
            assert!(accepts(&constraint, good) && !accepts(&constraint, bad), "{kind}");
        }
    }
}

#[tokio::test]
async fn every_choice_of_an_answer_has_a_grammar_of_its_own() {
    let server = Server::new(says("x"));
    server.complete(json!({"guided_choice": ["ab"], "n": 2})).await;
    for nth in 0..2 {
        assert!(accepts(&server.request(nth).constraint.unwrap(), "ab"));
    }
}

#[tokio::test]
async fn what_cannot_be_followed_is_named() {
    let server = Server::new(says("x"));
    let format = |format: Value| json!({"response_format": format});
    for (fields, param, code) in [
        (format(json!("json")), "response_format", "invalid_type"),
        (format(json!({})), "response_format.type", "missing_required_parameter"),
        (format(json!({"type": "xml"})), "response_format.type", "invalid_value"),
        (
            format(json!({"type": "json_schema"})),
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            format(json!({"type": "json_schema", "json_schema": {"name": "x"}})),
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        (
            format(json!({"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}})),
            "response_format.json_schema.schema",
            "invalid_grammar",
        ),
        (json!({"guided_json": 5}), "guided_json", "invalid_type"),
        (json!({"guided_json": "{"}), "guided_json", "invalid_value"),
        (json!({"guided_regex": "("}), "guided_regex", "invalid_grammar"),
        (json!({"guided_regex": "a".repeat(300_000)}), "guided_regex", "grammar_too_complex"),
        (json!({"guided_choice": []}), "guided_choice", "invalid_value"),
        (json!({"guided_choice": ["a", ""]}), "guided_choice[1]", "invalid_value"),
        (json!({"guided_choice": ["a"], "guided_regex": "a"}), "guided_choice", "invalid_value"),
        (
            json!({"structured_outputs": {"choice": [5]}}),
            "structured_outputs.choice[0]",
            "invalid_type",
        ),
    ] {
        let server = Server::changed(says("x"), |app| app.limits.max_body_bytes = 1 << 20);
        for (path, body) in
            [(CHAT, chat_body(fields.clone())), ("/v1/completions", completion_body(fields))]
        {
            let (status, error) = server.error(path, body).await;
            let got = (status, error["param"].as_str(), error["code"].as_str());
            assert_eq!(got, (400, Some(param), Some(code)), "{error}");
        }
    }
    assert!(server.engine.requests.lock().unwrap().is_empty());
}
