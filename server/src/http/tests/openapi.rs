use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

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
async fn the_document_has_the_bounds_of_this_server() {
    let server = Server::changed(says("x"), |app| app.limits.max_choices = 3);
    let document = json_body(server.get("/openapi.json").await).await;
    let schemas = &document["components"]["schemas"];
    for (name, bound, value) in [
        ("ModelName", "enum", json!([super::MODEL])),
        ("TokenId", "maximum", json!(256)),
        ("StopString", "minLength", json!(1)),
        ("StopStrings", "maxItems", json!(4)),
        ("NumChoices", "maximum", json!(3)),
        ("NumLogprobs", "maximum", json!(20)),
        ("FunctionName", "pattern", json!("^[a-zA-Z0-9_.-]{1,64}$")),
        ("PromptText", "minLength", json!(1)),
        ("PromptTexts", "minItems", json!(1)),
        ("TokenIds", "maxItems", json!(199)),
        ("ManyTokenIds", "maxItems", json!(256)),
    ] {
        assert_eq!(schemas[name][bound], value, "{name}: {}", schemas[name]);
    }
    assert!(schemas["PolicyName"]["enum"].as_array().unwrap().contains(&json!("attribution")));
}

#[tokio::test]
async fn the_examples_of_the_document_are_answered() {
    let server = Server::new(says("x"));
    let document = json_body(server.get("/openapi.json").await).await;
    let mut num_asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) else {
            continue;
        };
        let example = &document["components"]["schemas"][name]["example"];
        if example.is_object() {
            // The fake model's states are three long.
            let mut body = example.clone();
            body.as_object_mut().unwrap().remove("dimensions");
            server.ok(path, body).await;
            num_asked += 1;
        }
    }
    assert_eq!(num_asked, 4);
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
