use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::{Server, json_body, says};
use crate::dashboard::views::{
    Views,
    tests::{view, viewing},
};

#[tokio::test]
async fn every_path_of_the_document_is_there_with_its_methods() {
    let server = Server::new(says("x"));
    let document = json_body(server.get("/openapi.json").await).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 18, "{:?}", paths.keys());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let request = Request::builder().method(method.to_uppercase().as_str());
            let request = request.uri(path.replace("{id}", "x")).body(Body::empty()).unwrap();
            let response = server.send(request).await;
            let is_text =
                response.headers()["content-type"].to_str().unwrap().starts_with("text/plain");
            assert_eq!(is_text, path == "/metrics");
            if is_text {
                continue;
            }
            let body: Value = json_body(response).await;
            let code = &body["error"]["code"];
            assert!(code != "not_found" && code != "method_not_allowed", "{method} {path}: {body}");
        }
    }
}

/// Whether a value has the shape of a schema: names and kinds, not bounds.
fn fits(value: &Value, schema: &Value, document: &Value) -> bool {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fits(value, &document["components"]["schemas"][name], document);
    }
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    kinds.iter().any(|kind| match kind.as_str().unwrap() {
        "object" => value.as_object().is_some_and(|object| {
            let all = object.iter().all(|(name, value)| {
                let schema =
                    schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                schema.is_object() && fits(value, schema, document)
            });
            let required = schema["required"].as_array().into_iter().flatten();
            all && required.into_iter().all(|name| object.contains_key(name.as_str().unwrap()))
        }),
        "array" => {
            value.as_array().is_some_and(|v| v.iter().all(|v| fits(v, &schema["items"], document)))
        }
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        kind => panic!("{kind}"),
    })
}

#[tokio::test]
async fn what_the_dashboard_reads_is_what_the_document_says() {
    let views = Views::default();
    views.add(viewing("x"), view());
    let server = Server::changed(says("x"), |app| app.views = Some(Arc::new(views)));
    let document = json_body(server.get("/openapi.json").await).await;
    for (path, asked) in [
        ("/dashboard/state", "/dashboard/state"),
        ("/debug/kv", "/debug/kv"),
        ("/debug/kv/{id}", "/debug/kv/x"),
        ("/debug/kv/{id}", "/debug/kv/x?layer=0"),
    ] {
        let answer = &document["paths"][path]["get"]["responses"]["200"];
        let schema = &answer["content"]["application/json"]["schema"];
        let body = json_body(server.get(asked).await).await;
        assert!(fits(&body, schema, &document), "{asked}: {body}");
        assert!(!fits(&json!({}), schema, &document));
    }
    let params = document["paths"]["/debug/kv/{id}"]["get"]["parameters"].as_array().unwrap();
    let params: Vec<_> = params.iter().map(|p| (&p["name"], &p["in"], &p["required"])).collect();
    let (id, query) = ((&json!("id"), &json!("path"), &json!(true)), json!("query"));
    let optional = [json!("layer"), json!("budget")];
    let [layer, budget] = optional.each_ref().map(|name| (name, &query, &Value::Bool(false)));
    assert_eq!(params.len(), 3);
    assert_eq!(params[0], id);
    assert!(params.contains(&layer) && params.contains(&budget), "{params:?}");
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
