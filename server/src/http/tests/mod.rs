//! The API against a scripted engine and a tokenizer whose tokens are bytes.

mod chat;
mod completions;
mod errors;
mod lifecycle;
mod params;
mod streaming;

use std::sync::Arc;

use anyhow::{Result, bail};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::text::{Chat, Detokenizer, Text};
use super::{App, KvDefaults, ServedModel, router};
use crate::compress::PolicyId;
use crate::engine::fake::{FakeEngine, Script};
use crate::engine::{EngineHandle, GenerateRequest};

pub const MODEL: &str = "org/bytes";
pub const EOS: u32 = 256;
pub const MAX_MODEL_LEN: usize = 200;
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Token id = byte; `EOS` has no text.
pub struct ByteText;

impl Text for ByteText {
    fn encode(&self, text: &str, _add_special: bool) -> Result<Vec<u32>> {
        Ok(ids(text))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        Ok(String::from_utf8(bytes)?)
    }

    /// `user:hi|assistant:`
    fn render_chat(&self, chat: &Chat) -> Result<String> {
        let mut prompt = String::new();
        for message in chat.messages.as_array().unwrap() {
            let (Some(role), Some(content)) =
                (message["role"].as_str(), message["content"].as_str())
            else {
                bail!("a message without text reached the template");
            };
            if content == "panic" {
                panic!("the template panics");
            }
            prompt += &format!("{role}:{content}|");
        }
        Ok(prompt + if chat.add_generation_prompt { "assistant:" } else { "" })
    }

    fn detokenizer(&self, _continues: bool) -> Box<dyn Detokenizer> {
        Box::new(ByteDetokenizer::default())
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        u8::try_from(id).into_iter().collect()
    }

    fn vocab_size(&self) -> usize {
        257
    }
}

#[derive(Default)]
struct ByteDetokenizer(Vec<u8>);

impl Detokenizer for ByteDetokenizer {
    fn push(&mut self, id: u32) -> String {
        self.0.push(id as u8);
        match str::from_utf8(&self.0) {
            Ok(_) => self.flush(),
            Err(_) => String::new(),
        }
    }

    fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

pub fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A script that says this text and stops.
pub fn says(text: &str) -> Script {
    Script::Tokens(ids(text))
}

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

pub fn app(engine: EngineHandle) -> App {
    App {
        engine,
        text: Arc::new(ByteText),
        model: ServedModel::new(MODEL.into(), MAX_MODEL_LEN, vec![EOS]),
        kv_cache: KvDefaults {
            budget: 0.5,
            min_budget: Some(0.25),
            policy: PolicyId::from_name("attribution").unwrap(),
        },
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        max_body_bytes: MAX_BODY_BYTES,
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
