//! One request to an OpenAI-compatible server, timed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use futures_util::StreamExt;
use serde_json::{Map, Value, json};

use super::record::{KvCache, Outcome, Record};

/// An answer's line may not be longer: a hostile server must not fill the memory.
const MAX_LINE: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Endpoint {
    Chat,
    Completions,
}

pub struct Client {
    http: reqwest::Client,
    /// Without a slash at its end and without `/v1`.
    pub base: String,
    pub model: String,
    pub endpoint: Endpoint,
    pub deadline: Duration,
    /// Fields for every request's body.
    pub extra: Map<String, Value>,
    key: Option<String>,
}

impl Client {
    /// `key` is sent as a bearer token.
    ///
    /// # Errors
    /// No TLS on this system.
    pub fn new(url: &str, endpoint: Endpoint, key: Option<String>) -> Result<Self> {
        // Another part of the program may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(usize::MAX)
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(10))
            .build()?;
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let (model, deadline, extra) = (String::new(), Duration::from_secs(60), Map::new());
        Ok(Self { http, base, model, endpoint, deadline, extra, key })
    }

    /// The first model that the server lists.
    ///
    /// # Errors
    /// The server does not answer, or lists none.
    pub async fn first_model(&self) -> Result<String> {
        let url = format!("{}/v1/models", self.base);
        let asked = self.with_key(self.http.get(&url)).send().await?.error_for_status();
        let text = asked.with_context(|| format!("{url} lists no models"))?.text().await?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["data"][0]["id"].as_str().context("the server lists no model")?.to_owned())
    }

    /// The text of a page, `None` if there is none.
    pub async fn get(&self, url: &str) -> Option<String> {
        let request = self.http.get(url).timeout(Duration::from_secs(5));
        request.send().await.ok()?.error_for_status().ok()?.text().await.ok()
    }

    fn with_key(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Asks, and reads the answer to its end or the deadline. `messages` are a chat; a completion
    /// gets their texts in one.
    pub async fn ask(&self, messages: &[Value], max_tokens: usize, start: Instant) -> Record {
        let body = self.body(messages, max_tokens).to_string();
        let path = match self.endpoint {
            Endpoint::Chat => "chat/completions",
            Endpoint::Completions => "completions",
        };
        let request = self.with_key(self.http.post(format!("{}/v1/{path}", self.base)));
        let request = request.header("content-type", "application/json").body(body);
        let sent = Instant::now();
        let mut record = Record { sent: (sent - start).as_secs_f64(), ..Record::default() };
        let mut reader = Reader { sent, last: None, ended: false, record: &mut record };
        let outcome = match tokio::time::timeout(self.deadline, reader.read(request)).await {
            Ok(Ok(())) => Outcome::Ok,
            Ok(Err(error)) => Outcome::Error(error),
            Err(_) => Outcome::Timeout,
        };
        let end = reader.last.filter(|_| outcome == Outcome::Ok).unwrap_or_else(Instant::now);
        record.e2e = (end - sent).as_secs_f64();
        record.outcome = outcome;
        record
    }

    fn body(&self, messages: &[Value], max_tokens: usize) -> Value {
        let mut body = json!({
            "model": self.model,
            "max_tokens": max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self.endpoint {
            Endpoint::Chat => body["messages"] = messages.into(),
            Endpoint::Completions => {
                let texts = messages.iter().filter_map(|message| message["content"].as_str());
                body["prompt"] = texts.collect::<Vec<_>>().join("\n").into();
            }
        }
        for (name, value) in &self.extra {
            body[name] = value.clone();
        }
        body
    }
}

/// Reads one stream of server-sent events.
struct Reader<'a> {
    sent: Instant,
    /// When the last text came.
    last: Option<Instant>,
    ended: bool,
    record: &'a mut Record,
}

impl Reader<'_> {
    async fn read(&mut self, request: reqwest::RequestBuilder) -> Result<(), String> {
        let response = request.send().await.map_err(|error| cause(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(status.as_u16().to_string());
        }
        let mut bytes = response.bytes_stream();
        let mut line = Vec::new();
        while let Some(part) = bytes.next().await {
            let part = part.map_err(|error| cause(&error))?;
            for piece in part.split_inclusive(|byte| *byte == b'\n') {
                line.extend_from_slice(piece);
                if line.len() > MAX_LINE {
                    return Err("a line of the answer is too long".into());
                }
                if line.last() == Some(&b'\n') {
                    self.line(&line)?;
                    line.clear();
                }
            }
        }
        self.line(&line)?;
        if self.ended { Ok(()) } else { Err("the answer ended without [DONE]".into()) }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.ended = true;
            return self.end();
        }
        let chunk: Value =
            serde_json::from_slice(data).map_err(|_| "a chunk of the answer is no JSON")?;
        if !chunk["error"].is_null() {
            return Err("the answer ended with an error".into());
        }
        self.usage(&chunk["usage"]);
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            // Thinking is output too, whatever servers call it; one may come beside an empty other.
            let delta = &choice["delta"];
            let thought = [delta["reasoning_content"].as_str(), delta["reasoning"].as_str()];
            let said = [text].into_iter().chain(thought).flatten().find(|text| !text.is_empty());
            if let Some(text) = said {
                self.text(text);
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        let now = Instant::now();
        match self.last.replace(now) {
            None => self.record.ttft = Some((now - self.sent).as_secs_f64()),
            Some(last) => self.record.gaps.push((now - last).as_secs_f32()),
        }
        self.record.text.push_str(text);
    }

    fn usage(&mut self, usage: &Value) {
        let count = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        let Some(_) = usage.as_object() else { return };
        self.record.prompt_tokens = count(&usage["prompt_tokens"]);
        self.record.output_tokens = count(&usage["completion_tokens"]);
        self.record.cached_tokens = count(&usage["prompt_tokens_details"]["cached_tokens"]);
        let kv = &usage["kv_cache"];
        let bytes = |name: &str| kv[name].as_f64();
        if let (Some(held), Some(peak), Some(f16)) =
            (bytes("bytes"), bytes("peak_bytes"), bytes("f16_bytes"))
        {
            self.record.kv = Some(KvCache { bytes: held, peak_bytes: peak, f16_bytes: f16 });
        }
    }

    fn end(&mut self) -> Result<(), String> {
        // An answer may be a stop token alone.
        match (self.record.output_tokens, self.record.ttft) {
            (0, None) => Err("the answer has neither text nor usage".into()),
            (0, Some(_)) => {
                self.record.output_tokens = self.record.gaps.len() + 1;
                self.record.is_estimate = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The innermost reason: the outer ones only repeat the address.
fn cause(error: &reqwest::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
