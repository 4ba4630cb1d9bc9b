//! A server that answers at once: what the client takes by itself is measured against it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::extract::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Router, serve};
use futures_util::{StreamExt, stream};
use keepwell_kernels::TIERS;
use keepwell_server::metrics::table::KV_BYTES;
use keepwell_server::metrics::{FAMILIES, Family, Kind};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::sleep;

/// How the stub answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pub before_first: Duration,
    pub between: Duration,
}

/// Serves on a thread of its own until the process ends.
///
/// # Errors
/// No port or no thread is to be had.
pub fn start(pace: Pace) -> Result<SocketAddr> {
    // Not of the caller's runtime, if it has one.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let completion = move |Json(body): Json<Value>| async move { answer(&body, pace) };
    let router = Router::new()
        .route("/v1/models", get(|| async { Json(json!({"data": [{"id": "stub"}]})) }))
        .route("/metrics", get(|| async { metrics() }))
        .route("/metrics/flaky", get(flaky))
        .route("/v1/chat/completions", post(completion))
        .route("/v1/completions", post(completion));
    std::thread::Builder::new().name("stub".into()).spawn(move || {
        // It ends with the process.
        let _ = runtime.block_on(async {
            serve(TcpListener::from_std(listener)?.tap_io(|io| _ = io.set_nodelay(true)), router)
                .await
        });
    })?;
    Ok(address)
}

/// As long as Keepwell's: every family, of labels only those of the KV bytes; every value is 1.
fn metrics() -> String {
    let line = |name: &str, labels: &str| format!("{name}{{engine=\"0\"{labels}}} 1\n");
    let family = |Family { name, kind, .. }: &Family| match kind {
        Kind::Histogram(bounds) => {
            let bucket = |le| line(&format!("{name}_bucket"), &format!(",le=\"{le}\""));
            bounds.iter().map(bucket).collect()
        }
        _ if *name == KV_BYTES.name => {
            let tier = |tier| line(name, &format!(",state=\"live\",tier=\"{tier}\""));
            TIERS.iter().map(|info| tier(info.name)).collect()
        }
        _ => line(name, ""),
    };
    FAMILIES.iter().map(family).collect()
}

/// As [`metrics`], but every other one fails, beginning with the first.
async fn flaky() -> Result<String, StatusCode> {
    static NUM_ASKED: AtomicUsize = AtomicUsize::new(0);
    match NUM_ASKED.fetch_add(1, Ordering::Relaxed) % 2 {
        0 => Err(StatusCode::SERVICE_UNAVAILABLE),
        _ => Ok(metrics()),
    }
}

/// As many tokens as asked for. The text `squeezed` at a prompt's start has it say what the cache
/// held, `think` begin with a thought; `refuse`, `hang`, `cut`, `fail` and `silent` make it misbehave.
fn answer(body: &Value, pace: Pace) -> Response {
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    let prompt = last.map_or(&body["prompt"], |message| &message["content"]);
    let prompt = prompt.as_str().unwrap_or_default();
    let num_tokens = body["max_tokens"].as_u64().unwrap_or(16);
    let is_chat = body["messages"].is_array();
    let thinks = prompt.starts_with("think");
    let token = |nth| match is_chat {
        true if thinks && nth == 0 => {
            event(&json!({"choices": [{"index": 0, "delta": {"content": "", "reasoning": "hm"}}]}))
        }
        true => event(&json!({"choices": [{"index": 0, "delta": {"content": " word"}}]})),
        false => event(&json!({"choices": [{"index": 0, "text": " word"}]})),
    };
    let mut chunks: Vec<Bytes> = (0..num_tokens).map(token).collect();
    let mut usage = json!({
        "prompt_tokens": prompt.split_whitespace().count(), "completion_tokens": num_tokens,
    });
    if prompt.starts_with("squeezed") {
        usage["kv_cache"] = json!({"bytes": 300, "peak_bytes": 500, "f16_bytes": 1000});
    }
    chunks.push(event(&json!({"choices": [], "usage": usage})));
    chunks.push("data: [DONE]\n\n".into());
    match prompt.split(' ').next().unwrap_or_default() {
        "refuse" => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        "hang" => chunks.truncate(0),
        "cut" => chunks.truncate(1),
        "fail" => chunks = vec![event(&json!({"error": {"message": "x"}}))],
        "silent" => chunks = vec![chunks.pop().expect("the end was pushed")],
        _ => {}
    }
    let hangs = prompt.starts_with("hang");
    let paced = stream::iter(chunks.into_iter().enumerate()).then(move |(nth, chunk)| async move {
        let pause = if nth == 0 { pace.before_first } else { pace.between };
        if !pause.is_zero() {
            sleep(pause).await;
        }
        Ok::<_, Infallible>(chunk)
    });
    let body = match hangs {
        true => Body::from_stream(paced.chain(stream::pending())),
        false => Body::from_stream(paced),
    };
    ([("content-type", "text/event-stream")], body).into_response()
}

fn event(chunk: &Value) -> Bytes {
    format!("data: {chunk}\n\n").into()
}
