use axum::body::Body;
use axum::http::Request;
use serde_json::Value;

use super::{Server, json_body, says};

#[tokio::test]
async fn every_path_of_the_document_is_there_with_its_methods() {
    let server = Server::new(says("x"));
    let document = json_body(server.get("/openapi.json").await).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 13, "{:?}", paths.keys());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let request = Request::builder().method(method.to_uppercase().as_str());
            let request = request.uri(path.replace("{id}", "x")).body(Body::empty()).unwrap();
            let response = server.send(request).await;
            let body: Value = json_body(response).await;
            let code = &body["error"]["code"];
            assert!(code != "not_found" && code != "method_not_allowed", "{method} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn the_fields_of_a_request_are_described_with_their_bounds() {
    let server = Server::new(says("x"));
    let document = json_body(server.get("/openapi.json").await).await.to_string();
    for part in
        ["repetition_penalty", "kv_cache", "ErrorEnvelope", "previous_response_id", "bearer"]
    {
        assert!(document.contains(part), "{part}");
    }
}
