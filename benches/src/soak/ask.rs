//! Requests, and what the server says of itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use keepwell_server::metrics::parse::{Sample, parse};
use serde_json::{Value, json};

/// No request of the mix takes longer.
const TIMEOUT: Duration = Duration::from_secs(300);

pub struct Server {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Server {
    /// # Errors
    /// No TLS on this system.
    pub fn new(url: &str, key: Option<String>) -> Result<Self> {
        // Another part of the program may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(TIMEOUT).tcp_nodelay(true).build()?;
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self { http, base, key })
    }

    async fn send(&self, path: &str, body: String) -> Result<reqwest::Response> {
        let mut request = self.http.post(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        Ok(request.header("content-type", "application/json").body(body).send().await?)
    }

    /// Status and answer to a body that need not be JSON.
    pub async fn raw(&self, path: &str, body: String) -> Result<(u16, Value)> {
        let response = self.send(path, body).await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let answer = serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
        Ok((status, answer))
    }

    /// The answer to a request that must succeed.
    pub async fn ok(&self, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = self.raw(path, body.to_string()).await?;
        ensure!(status == 200, "{status}: {answer}");
        Ok(answer)
    }

    /// Text and finish reason of the one choice of a stream that must succeed.
    pub async fn streamed(&self, path: &str, body: &Value) -> Result<(String, String)> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.send(path, body.to_string()).await?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "{status}: {text}");
        ensure!(text.trim_end().ends_with("data: [DONE]"), "no [DONE] after {text}");
        let (mut whole, mut reason) = (String::new(), String::new());
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        for chunk in data.filter(|data| *data != "[DONE]") {
            let chunk: Value = serde_json::from_str(chunk)?;
            let choice = &chunk["choices"][0];
            whole += text_of(choice);
            reason += choice["finish_reason"].as_str().unwrap_or_default();
        }
        Ok((whole, reason))
    }

    /// Begins a stream, takes `num_parts` of it, and leaves.
    pub async fn leave(&self, path: &str, body: &Value, num_parts: usize) -> Result<()> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let response = self.send(path, body.to_string()).await?;
        ensure!(response.status().is_success(), "{}", response.status());
        let parts = response.bytes_stream().take(num_parts);
        parts.for_each(|_| std::future::ready(())).await;
        Ok(())
    }

    /// # Errors
    /// The server has no metrics.
    pub async fn metrics(&self) -> Result<Vec<Sample>> {
        let asked = self.http.get(format!("{}/metrics", self.base)).send().await?;
        Ok(parse(&asked.error_for_status()?.text().await?))
    }

    /// Live pages, and sequences that run or wait.
    pub async fn held(&self) -> Result<f64> {
        let is_held = |sample: &&Sample| match sample.name.as_str() {
            "keepwell_kv_pages" => sample.label("state") == Some("live"),
            name => ["vllm:num_requests_running", "vllm:num_requests_waiting"].contains(&name),
        };
        let metrics = self.metrics().await?;
        ensure!(metrics.iter().any(|sample| is_held(&sample)), "this is no Keepwell server");
        Ok(metrics.iter().filter(is_held).map(|sample| sample.value).sum())
    }
}

/// Of a choice, or a piece of one, of either endpoint.
pub fn text_of(choice: &Value) -> &str {
    let chat = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str());
    chat.or(choice["text"].as_str()).unwrap_or_default()
}
