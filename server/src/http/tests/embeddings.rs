use serde_json::json;

use super::{MAX_MODEL_LEN, Server, ids, says};
use crate::engine::Pooling;
use crate::engine::fake::Script;

const PATH: &str = "/v1/embeddings";

#[tokio::test]
async fn each_input_has_a_vector_of_length_one() {
    let server = Server::new(says(""));
    let body = server.ok(PATH, json!({"input": ["a", "bcd"]})).await;
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(super::MODEL)));
    for (index, data) in body["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&data["object"], &data["index"]), (&json!("embedding"), &json!(index)));
        let vector: Vec<f64> = serde_json::from_value(data["embedding"].clone()).unwrap();
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6, "{vector:?}");
    }
    assert_eq!(body["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
    assert_eq!(server.request(1).prompt, ids("bcd"));
    assert_eq!(server.request(0).pooling, Some(Pooling::Mean));
}

#[tokio::test]
async fn base64_is_the_same_vector_in_little_endian_floats() {
    let server = Server::new(says(""));
    let fields =
        json!({"input": [97, 98], "encoding_format": "base64", "dimensions": 1, "pooling": "last"});
    let body = server.ok(PATH, fields).await;
    assert_eq!(body["data"][0]["embedding"], "AACAPw==", "1.0");
    assert_eq!(server.request(0).pooling, Some(Pooling::Last));
}

#[tokio::test]
async fn an_input_may_fill_the_context() {
    let server = Server::new(says(""));
    server.ok(PATH, json!({"input": "x".repeat(MAX_MODEL_LEN)})).await;
    assert_eq!(server.request(0).max_tokens, 1);
}

#[tokio::test]
async fn more_inputs_than_the_queue_holds_are_embedded_one_after_the_other() {
    let server = Server::new(says(""));
    let body = server.ok(PATH, json!({"input": vec!["a"; 2 * super::MAX_WAITING]})).await;
    assert_eq!(body["data"].as_array().unwrap().len(), 2 * super::MAX_WAITING);
    assert_eq!(body["usage"]["prompt_tokens"], 2 * super::MAX_WAITING);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_named() {
    let server = Server::new(says(""));
    for (fields, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": {}}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": "x".repeat(MAX_MODEL_LEN + 1)}), "input"),
        (json!({"input": "a", "dimensions": 4}), "dimensions"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "a", "pooling": 1}), "pooling"),
        (json!({"input": vec!["a"; 2049]}), "input"),
    ] {
        let (status, error) = server.error(PATH, fields).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}

#[tokio::test]
async fn what_the_engine_says_is_passed_on() {
    let full = crate::engine::EngineError::QueueFull { num_waiting: 1, num_tokens: 1 };
    let app = |app: &mut crate::http::App| app.engine = crate::engine::fake::FakeEngine::dead();
    for (server, status) in [
        (Server::new(Script::Fail(vec![], full)), 429),
        (Server::new(Script::Die), 500),
        (Server::changed(says(""), app), 503),
    ] {
        assert_eq!(server.error(PATH, json!({"input": "a"})).await.0, status);
    }
}
