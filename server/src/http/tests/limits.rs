use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;

use super::{Server, chat_body, completion_body, error_of, ids, json_body, post, says};
use crate::engine::fake::Script;
use crate::http::ApiKeys;

const CHAT: &str = "/v1/chat/completions";

fn locked() -> Server {
    Server::changed(says("x"), |app| app.api_keys = ApiKeys::new(["first", "second"]))
}

fn with_key(path: &str, authorization: &str) -> Request<Body> {
    let request = Request::get(path).header("authorization", authorization);
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn without_a_known_key_everything_but_the_probes_is_401() {
    let server = locked();
    let wrong = ["", "first", "Bearer", "Bearer ", "Bearer firs", "Bearer first2", "Basic first"];
    let guarded = [CHAT, "/v1/models", "/load", "/version", "/nowhere", "/tokenize"];
    // The dashboard's page is for everyone, what it shows is not.
    let shown = ["/dashboard/state", "/debug/kv", "/debug/kv/r", "/dashboard/nowhere"];
    for path in guarded.into_iter().chain(shown) {
        for authorization in wrong {
            let response = server.send(with_key(path, authorization)).await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            let (status, error) = error_of(response).await;
            assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")), "{path}");
        }
        assert_eq!(server.get(path).await.status(), StatusCode::UNAUTHORIZED);
    }
    let parts = ["/dashboard", "/dashboard/assets/main.js"];
    for path in ["/health", "/live", "/ready", "/metrics"].into_iter().chain(parts) {
        assert_eq!(server.get(path).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn each_key_opens_and_the_scheme_has_no_case() {
    let server = locked();
    for authorization in ["Bearer first", "Bearer second", "bearer first", "Bearer  second "] {
        let response = server.send(with_key("/v1/models", authorization)).await;
        assert_eq!(response.status(), StatusCode::OK, "{authorization}");
    }
}

#[tokio::test]
async fn each_key_has_a_prefix_cache_of_its_own() {
    let server = locked();
    for (key, salt) in [("first", json!("a")), ("second", json!("a")), ("first", json!(null))] {
        let mut request =
            post("/v1/completions", completion_body(json!({"cache_salt": salt})).to_string());
        let bearer = format!("Bearer {key}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        assert_eq!(server.send(request).await.status(), StatusCode::OK);
    }
    let salts = [0, 1, 2].map(|nth| server.request(nth).cache_salt.unwrap());
    assert!(salts[0] != salts[1] && salts[0] != salts[2], "{salts:?}");
}

fn from_page(path: &str, method: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("origin", "https://a.example");
    request.header("access-control-request-method", "POST").body(Body::empty()).unwrap()
}

#[tokio::test]
async fn pages_may_read_answers_only_when_their_origin_is_named() {
    let allowed = |origins: &'static [&str]| {
        Server::changed(says("x"), |app| {
            app.cors_origins = origins.iter().map(|o| o.parse().unwrap()).collect();
            app.api_keys = ApiKeys::new(["key"]);
        })
    };
    let allow = "access-control-allow-origin";
    for (origins, expected) in [
        (&[][..], None),
        (&["https://b.example"], None),
        (&["https://b.example", "https://a.example"], Some("https://a.example")),
        (&["*"], Some("*")),
    ] {
        let server = allowed(origins);
        let response = server.send(from_page("/v1/models", "GET")).await;
        assert_eq!(response.headers().get(allow).map(|v| v.to_str().unwrap()), expected);
        assert!(!response.headers().contains_key("access-control-allow-credentials"));
        // The question before the question has no key.
        let response = server.send(from_page(CHAT, "OPTIONS")).await;
        assert_eq!(response.headers().get(allow).map(|v| v.to_str().unwrap()), expected);
    }
}

#[tokio::test]
async fn pages_may_send_the_headers_that_sdks_add_and_delete_what_is_stored() {
    let server = Server::changed(says("x"), |app| app.cors_origins = vec!["*".parse().unwrap()]);
    let mut request = from_page("/v1/responses/id", "OPTIONS");
    let asked = "authorization,content-type,x-stainless-lang";
    request.headers_mut().insert("access-control-request-headers", asked.parse().unwrap());
    let response = server.send(request).await;
    assert_eq!(response.headers()["access-control-allow-headers"], asked);
    let methods = response.headers()["access-control-allow-methods"].to_str().unwrap();
    assert!(methods.contains("DELETE"), "{methods}");
}

#[tokio::test]
async fn a_request_counts_until_its_answer_is_sent_and_too_many_are_429() {
    let server = Server::changed(Script::Hang(ids("a")), |app| app.limits.max_requests = 1);
    let stream = server.post(CHAT, chat_body(json!({"stream": true}))).await;
    assert_eq!(json_body(server.get("/load").await).await, json!({"server_load": 1}));
    let response = server.post(CHAT, chat_body(json!({}))).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = error_of(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("too_many_requests")));
    drop(stream);
    assert_eq!(json_body(server.get("/load").await).await, json!({"server_load": 0}));
    server.ok("/tokenize", json!({"prompt": "a"})).await;
    assert_eq!(json_body(server.get("/load").await).await, json!({"server_load": 0}));
}

#[tokio::test]
async fn overload_has_the_status_that_the_operator_chose() {
    let server = Server::changed(says("a"), |app| {
        app.limits.max_requests = 0;
        app.limits.overload_status = StatusCode::SERVICE_UNAVAILABLE;
    });
    let response = server.post(CHAT, chat_body(json!({}))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"1".parse().unwrap())
    );
}

#[tokio::test]
async fn limits_are_the_operators() {
    let server = Server::changed(says("x"), |app| {
        app.limits.max_choices = 2;
        app.limits.max_stop_strings = 1;
        app.limits.max_logprobs = 3;
        app.limits.max_prompt_tokens = 4;
    });
    let cases = [
        (json!({"n": 3}), "n", "invalid_value"),
        (json!({"stop": ["a", "b"]}), "stop", "invalid_value"),
        (json!({"logprobs": 4}), "logprobs", "invalid_value"),
        (json!({"prompt": [1, 2, 3, 4, 5]}), "prompt", "prompt_too_long"),
        (json!({"prompt": "abcde"}), "prompt", "context_length_exceeded"),
    ];
    for (fields, param, code) in cases {
        let (status, error) = server.error("/v1/completions", completion_body(fields)).await;
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)));
    }
    let fields = json!({"n": 2, "stop": ["a"], "logprobs": 3, "prompt": "abcd"});
    server.complete(fields).await;
}

#[tokio::test]
async fn an_answer_without_a_limit_of_its_own_has_the_operators() {
    let server = Server::changed(says(&"x".repeat(50)), |app| app.limits.default_max_tokens = 20);
    for (fields, expected) in [(json!({}), 20), (json!({"max_tokens": 30}), 30)] {
        let answer = server.chat(fields).await;
        assert_eq!(answer["usage"]["completion_tokens"], expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn headers_are_counted_to_the_byte() {
    let server = Server::changed(says("x"), |app| app.limits.max_header_bytes = 1000);
    // GET /ready HTTP/1.1, x: and the line breaks.
    let ask = async |len: usize| {
        let request = Request::get("/ready").header("x", "y".repeat(len)).body(Body::empty());
        server.send(request.unwrap()).await
    };
    assert_eq!(ask(1000 - 21 - 5).await.status(), 200);
    let (status, error) = error_of(ask(1000 - 21 - 4).await).await;
    assert_eq!((status, &error["code"]), (431, &json!("headers_too_large")));
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_cancelled_and_told() {
    let slow = || {
        Server::changed(Script::Hang(ids("a")), |app| {
            app.limits.request_timeout = Duration::from_millis(300);
        })
    };
    let server = slow();
    let (status, error) = server.error(CHAT, chat_body(json!({}))).await;
    assert_eq!((status, &error["code"]), (504, &json!("request_timeout")));
    server.engine.cancelled.notified().await;
    let (chunks, done) = slow().stream(CHAT, chat_body(json!({}))).await;
    assert_eq!(chunks.last().unwrap()["error"]["code"], "request_timeout");
    assert!(!done);
}

#[tokio::test]
async fn a_body_that_stalls_is_not_waited_for() {
    let server = Server::changed(says("x"), |app| {
        app.limits.body_timeout = Duration::from_millis(30);
    });
    let stalled = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let (status, error) = error_of(server.send(post(CHAT, Body::from_stream(stalled))).await).await;
    assert_eq!((status, &error["code"]), (408, &json!("body_timeout")), "{error}");
}

#[tokio::test]
async fn a_body_that_trickles_is_not_waited_for_either() {
    let server = Server::changed(says("x"), |app| {
        app.limits.body_timeout = Duration::from_millis(30);
    });
    let pieces = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::io::Error>(vec![b' ']), ()))
    });
    let (status, error) = error_of(server.send(post(CHAT, Body::from_stream(pieces))).await).await;
    assert_eq!((status, &error["code"]), (408, &json!("body_timeout")), "{error}");
}

#[tokio::test]
async fn codes_name_what_is_wrong_with_a_body_or_a_path() {
    let server = Server::new(says("x"));
    let large = post(CHAT, " ".repeat(super::MAX_BODY_BYTES + 1));
    let plain = Request::post(CHAT).body(Body::from("{}")).unwrap();
    let no_text = Request::get("/v1/models/%ff").body(Body::empty()).unwrap();
    for (request, status, code) in [
        (large, 413, "request_too_large"),
        (plain, 415, "unsupported_media_type"),
        (no_text, 400, "invalid_value"),
    ] {
        let (got, error) = error_of(server.send(request).await).await;
        assert_eq!((got, &error["code"]), (status, &json!(code)));
    }
}

#[tokio::test]
async fn a_server_that_drains_is_healthy_and_not_ready() {
    let server = Server::changed(says("x"), |app| app.draining.begin());
    assert_eq!(server.get("/health").await.status(), 200);
    assert_eq!(server.get("/live").await.status(), 200);
    let (status, error) = error_of(server.get("/ready").await).await;
    assert_eq!((status, &error["code"]), (503, &json!("shutting_down")));
}

#[tokio::test]
async fn while_the_model_loads_only_the_process_is_alive() {
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        tower::ServiceExt::oneshot(crate::http::loading(), request).await.unwrap()
    };
    assert_eq!(ask("/live").await.status(), 200);
    for path in ["/health", "/ready", "/v1/models"] {
        let (status, error) = error_of(ask(path).await).await;
        assert_eq!((status, &error["code"]), (503, &json!("loading")));
    }
    assert!(ask("/live").await.into_body().collect().await.is_ok());
}
