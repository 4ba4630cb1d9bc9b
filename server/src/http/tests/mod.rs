//! The API against a scripted engine and a tokenizer whose tokens are bytes.

mod chat;
mod completions;
mod dashboard;
mod embeddings;
mod errors;
mod lifecycle;
mod limits;
mod openapi;
mod params;
mod responses;
mod streaming;
mod structured;
mod tokenize;
mod tools;
mod trace;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

pub use super::fake::{EOS, MAX_BODY_BYTES, MAX_MODEL_LEN, MAX_WAITING, MODEL, app, ids, says};
use super::{App, router};
use crate::engine::GenerateRequest;
use crate::engine::fake::{FakeEngine, Script};

/// A server in this process; `engine` saw what it was asked.
pub struct Server {
    pub router: Router,
    pub engine: FakeEngine,
}

impl Server {
    pub fn new(script: Script) -> Self {
        Self::with_scripts(vec![script])
    }

    pub fn with_scripts(scripts: Vec<Script>) -> Self {
        let engine = FakeEngine::new(scripts);
        Self { router: router(app(engine.handle.clone())), engine }
    }

    /// With what `change` makes of the app.
    pub fn changed(script: Script, change: impl FnOnce(&mut App)) -> Self {
        let engine = FakeEngine::new(vec![script]);
        let mut app = app(engine.handle.clone());
        change(&mut app);
        Self { router: router(app), engine }
    }

    pub fn request(&self, nth: usize) -> GenerateRequest {
        self.engine.requests.lock().unwrap()[nth].clone()
    }

    pub async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Response<Body> {
        self.send(post(path, body.to_string())).await
    }

    pub async fn get(&self, path: &str) -> Response<Body> {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The answer of a request that must succeed.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, body).await;
        let status = response.status();
        let body = json_body(response).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub async fn chat(&self, extra: Value) -> Value {
        self.ok("/v1/chat/completions", chat_body(extra)).await
    }

    pub async fn complete(&self, extra: Value) -> Value {
        self.ok("/v1/completions", completion_body(extra)).await
    }

    /// Status and `error` of a request that must fail.
    pub async fn error(&self, path: &str, body: Value) -> (u16, Value) {
        error_of(self.post(path, body).await).await
    }

    /// The JSON chunks of a stream, and whether `[DONE]` came last.
    pub async fn stream(&self, path: &str, mut body: Value) -> (Vec<Value>, bool) {
        body["stream"] = json!(true);
        let response = self.post(path, body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = text_body(response).await;
        let data: Vec<_> = text.split("\n\n").filter_map(|e| e.strip_prefix("data: ")).collect();
        let done = data.last() == Some(&"[DONE]");
        let chunks = data.iter().filter(|d| **d != "[DONE]");
        (chunks.map(|chunk| serde_json::from_str(chunk).unwrap()).collect(), done)
    }
}

pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(body.into()).unwrap()
}

pub fn chat_body(extra: Value) -> Value {
    merged(json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}), extra)
}

pub fn completion_body(extra: Value) -> Value {
    merged(json!({"model": MODEL, "prompt": "abc"}), extra)
}

fn merged(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

pub async fn text_body(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub async fn json_body(response: Response<Body>) -> Value {
    serde_json::from_str(&text_body(response).await).unwrap()
}

/// Checks the envelope and gives status and `error`.
pub async fn error_of(response: Response<Body>) -> (u16, Value) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = json_body(response).await;
    let keys: Vec<_> = body["error"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    (status, body["error"].clone())
}
