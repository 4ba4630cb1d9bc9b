use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::structured::accepts;
use super::{Server, error_of, ids, json_body, post, says, text_body};
use crate::engine::EngineError;
use crate::engine::fake::Script;
use crate::http::ApiKeys;

const PATH: &str = "/v1/responses";
const CALL: &str = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn long(scripts: Vec<Script>) -> Server {
    let engine = crate::engine::fake::FakeEngine::new(scripts);
    let mut app = super::app(engine.handle.clone());
    app.model.max_model_len = 5000;
    Server { router: crate::http::router(app), engine }
}

fn prompt(server: &Server, nth: usize) -> String {
    server.request(nth).prompt.iter().map(|id| *id as u8 as char).collect()
}

/// (name, data) of the events.
async fn events(server: &Server, mut body: Value) -> Vec<(String, Value)> {
    body["stream"] = json!(true);
    let text = text_body(server.post(PATH, body).await).await;
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        assert_eq!(data["type"], name);
        (name, data)
    };
    let events: Vec<_> = text.split("\n\n").filter(|e| !e.is_empty()).map(event).collect();
    for (nth, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], nth);
    }
    events
}

#[tokio::test]
async fn a_text_in_is_a_message_out() {
    let server = long(vec![says("hello")]);
    let body = server
        .ok(PATH, json!({"input": "hi", "instructions": "be kind", "metadata": {"a": "b"}}))
        .await;
    assert_eq!(prompt(&server, 0), "system:be kind|user:hi|assistant:");
    assert_eq!((&body["object"], &body["status"]), (&json!("response"), &json!("completed")));
    assert!(body["id"].as_str().unwrap().starts_with("resp_"));
    let message = &body["output"][0];
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(message["content"][0]["text"], "hello");
    assert_eq!(message["content"][0]["type"], "output_text");
    assert_eq!((&body["usage"]["output_tokens"], &body["metadata"]["a"]), (&json!(5), &json!("b")));
}

#[tokio::test]
async fn a_limit_that_was_reached_makes_it_incomplete() {
    let server = long(vec![says("hello")]);
    let body = server.ok(PATH, json!({"input": "hi", "max_output_tokens": 2})).await;
    assert_eq!(
        (&body["status"], &body["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(body["output"][0]["content"][0]["text"], "he");
}

#[tokio::test]
async fn one_response_goes_on_from_another_without_its_instructions() {
    let server = long(vec![says("one"), says("two"), says("x")]);
    let first = server.ok(PATH, json!({"input": "hi", "instructions": "A"})).await;
    let id = first["id"].as_str().unwrap();
    let next = json!({"input": "and?", "instructions": "B", "previous_response_id": id});
    server.ok(PATH, next).await;
    assert_eq!(prompt(&server, 1), "system:B|user:hi|assistant:one|user:and?|assistant:");
    let path = format!("{PATH}/{id}");
    assert_eq!(json_body(server.get(&path).await).await, first);
    let delete = || Request::delete(&path).body(Body::empty()).unwrap();
    assert_eq!(json_body(server.send(delete()).await).await["deleted"], true);
    assert_eq!(error_of(server.send(delete()).await).await.0, 404);
    assert_eq!(error_of(server.get(&path).await).await.1["code"], "response_not_found");
    let unknown = json!({"input": "x", "previous_response_id": id});
    let (status, error) = server.error(PATH, unknown).await;
    assert_eq!((status, &error["param"]), (404, &json!("previous_response_id")));
    let forgotten = server.ok(PATH, json!({"input": "x", "store": false})).await;
    let path = format!("{PATH}/{}", forgotten["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.status(), 404);
}

#[tokio::test]
async fn a_response_exists_for_the_holder_of_its_key_alone() {
    let server = Server::changed(says("x"), |app| {
        app.api_keys = ApiKeys::new(["first", "second"]);
        app.model.max_model_len = 1000;
    });
    let with = |key: &str, mut request: Request<Body>| {
        let bearer = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        server.send(request)
    };
    let created = with("first", post(PATH, json!({"input": "hi"}).to_string())).await;
    let id = json_body(created).await["id"].as_str().unwrap().to_owned();
    let get = || Request::get(format!("{PATH}/{id}")).body(Body::empty()).unwrap();
    let delete = || Request::delete(format!("{PATH}/{id}")).body(Body::empty()).unwrap();
    let go_on = || post(PATH, json!({"input": "x", "previous_response_id": id}).to_string());
    for request in [get(), delete(), go_on()] {
        assert_eq!(with("second", request).await.status(), 404);
    }
    for request in [get(), go_on(), delete()] {
        assert_eq!(with("first", request).await.status(), 200);
    }
}

#[tokio::test]
async fn items_of_the_input_become_messages() {
    let server = long(vec![says("x")]);
    let input = json!([
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+1?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{\"a\":1}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]);
    server.ok(PATH, json!({"input": input})).await;
    let expected = "developer:be kind|user:1+1?|assistant:<tool_call>\n{\"name\":\"add\",\
                    \"arguments\":{\"a\":1}}\n</tool_call>|user:<tool_response>\n2\n\
                    </tool_response>|assistant:";
    assert_eq!(server.request(0).prompt, ids(expected));
}

#[tokio::test]
async fn calls_are_items_and_a_format_is_a_grammar() {
    let tool = json!({"type": "function", "name": "add", "parameters": {"type": "object"}});
    let server = long(vec![says(&format!("Ok.{CALL}")), says(CALL), says("{}")]);
    let body = server.ok(PATH, json!({"input": "hi", "tools": [tool]})).await;
    assert_eq!(body["output"][0]["content"][0]["text"], "Ok.");
    let call = &body["output"][1];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("add")));
    assert_eq!(call["arguments"], "{\"a\": 1}");
    let choice = json!({"type": "function", "name": "add"});
    server.ok(PATH, json!({"input": "hi", "tools": [tool], "tool_choice": choice})).await;
    assert!(accepts(&server.request(1).constraint.unwrap(), CALL));
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}});
    server.ok(PATH, json!({"input": "hi", "text": {"format": format}})).await;
    assert!(accepts(&server.request(2).constraint.unwrap(), "{}"));
}

#[tokio::test]
async fn a_stream_tells_of_every_item_and_part_from_its_start_to_its_end() {
    let server = long(vec![says("hey")]);
    let events = events(&server, json!({"input": "hi"})).await;
    let names: Vec<_> =
        events.iter().map(|(name, _)| name.trim_start_matches("response.")).collect();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(names, expected);
    assert_eq!(events[7].1["text"], "hey");
    let response = &events[10].1["response"];
    assert_eq!(response["output"][0]["content"][0]["text"], "hey");
    assert_eq!(response["output"][0]["id"], events[4].1["item_id"]);
    assert_eq!(response["usage"]["output_tokens"], 3);
    let path = format!("{PATH}/{}", response["id"].as_str().unwrap());
    assert_eq!(json_body(server.get(&path).await).await, *response);
}

#[tokio::test]
async fn a_stream_of_text_and_calls_closes_each_before_it_opens_the_next() {
    let tool = json!({"type": "function", "name": "add", "parameters": {"type": "object"}});
    let server = long(vec![says(&format!("Ok.{CALL}{CALL}"))]);
    let events = events(&server, json!({"input": "hi", "tools": [tool]})).await;
    let mut open = None;
    for (name, data) in &events {
        match name.as_str() {
            "response.output_item.added" => {
                assert!(open.replace(data["output_index"].clone()).is_none())
            }
            "response.output_item.done" => {
                assert_eq!(open.take(), Some(data["output_index"].clone()))
            }
            _ => {}
        }
    }
    let arguments: String = events
        .iter()
        .filter(|(n, d)| n.ends_with("arguments.delta") && d["output_index"] == 2)
        .map(|(_, d)| d["delta"].as_str().unwrap())
        .collect();
    assert_eq!(arguments, "{\"a\": 1}");
    assert_eq!(events.last().unwrap().1["response"]["output"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_stream_ends_well_without_a_word_and_with_an_error() {
    let empty = events(&long(vec![says("")]), json!({"input": "hi"})).await;
    assert_eq!(empty.last().unwrap().0, "response.completed");
    assert_eq!(empty.last().unwrap().1["response"]["output"][0]["content"][0]["text"], "");
    let script = Script::Fail(ids("a"), EngineError::Internal("bug".into()));
    let failed = events(&long(vec![script]), json!({"input": "hi"})).await;
    let (name, data) = failed.last().unwrap();
    assert_eq!((name.as_str(), &data["response"]["status"]), ("response.failed", &json!("failed")));
    assert_eq!(data["response"]["error"]["code"], "internal_error");
}

#[tokio::test]
async fn what_cannot_be_answered_is_named() {
    let server = long(vec![says("x")]);
    for (fields, param) in [
        (json!({}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": [5]}), "input[0]"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (json!({"input": [{"content": "a"}]}), "input[0].role"),
        (json!({"input": [{"type": "image"}]}), "input[0].type"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": "a", "background": true}), "background"),
        (json!({"input": "a", "temperature": 5}), "temperature"),
        (json!({"input": "a", "tools": [5]}), "tools[0]"),
        (json!({"input": "a", "tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"input": "a", "text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        (json!({"input": "a", "previous_response_id": 5}), "previous_response_id"),
    ] {
        let (status, error) = server.error(PATH, fields).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
}
