//! A request's body, for the endpoint that its first byte says, through the whole server with a tiny
//! model: whatever comes, the answer is sound, and nothing is held after it.
#![no_main]

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    http::{Request, StatusCode},
};
use http_body_util::BodyExt;
use keepwell_kernels::{Backend, available};
use keepwell_models::{WeightFormat, load_model};
use keepwell_server::{
    compress::{PolicyId, Protection},
    engine::{Engine, EngineHandle, EngineOptions},
    http::{
        App, ApiKeys, Chat, Detokenizer, Draining, KvDefaults, Limits, Load, ServedModel,
        StoredResponses, TOOL_FORMATS, Text, ToolStyle, grammars, router,
    },
    metrics::memory::MemoryMeter,
    sched::SchedulerLimits,
};
use libfuzzer_sys::fuzz_target;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt;

const EOS: u32 = 256;
const CONTEXT: usize = 160;
const PATHS: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/tokenize",
    "/detokenize",
];

struct World {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let engine = engine().expect("the tiny model");
    World {
        runtime: runtime.expect("a runtime"),
        router: router(app(engine.clone()).expect("a vocabulary")),
        engine,
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((path, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*path) % PATHS.len()];
    let World { runtime, router, engine } = &*WORLD;
    runtime.block_on(async {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(Body::from(body.to_vec())).expect("a request");
        let response = router.clone().oneshot(request).await.expect("no error");
        let status = response.status();
        let is_stream = response.headers().get("content-type").is_some_and(|t| t == "text/event-stream");
        let bytes = response.into_body().collect().await.expect("a whole body").to_bytes();
        check(status, is_stream, &bytes);
    });
    let started = Instant::now();
    while engine.snapshot().pages.num_live > 0 || !engine.snapshot().sequences.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10), "pages are lost");
        std::thread::yield_now();
    }
});

fn check(status: StatusCode, is_stream: bool, body: &Bytes) {
    // A slow machine is no finding.
    let is_late = status == StatusCode::GATEWAY_TIMEOUT;
    assert!(!status.is_server_error() || is_late, "{status}: {}", String::from_utf8_lossy(body));
    if is_stream {
        let text = std::str::from_utf8(body).expect("a stream is text");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        for chunk in data.filter(|data| *data != "[DONE]") {
            let chunk: Value = serde_json::from_str(chunk).expect("a chunk is JSON");
            check_error(&chunk["error"]);
        }
        return;
    }
    let answer: Value = serde_json::from_slice(body).expect("an answer is JSON");
    if !status.is_success() {
        assert!(answer["error"]["message"].is_string() && answer["error"]["code"].is_string(), "{answer}");
    }
}

fn check_error(error: &Value) {
    let is_ours = ["internal_error", "engine_failed", "corrupted_output"].map(Value::from).contains(&error["code"]);
    assert!(!is_ours, "{error}");
}

fn engine() -> Result<EngineHandle> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/tiny-llama3");
    let backend: Arc<dyn Backend> = available().remove(0).into();
    let model = load_model(&path, WeightFormat::AsFile, backend.clone())?;
    let options = EngineOptions {
        kv_memory: 512 << 10,
        limits: SchedulerLimits {
            max_step_tokens: 64,
            max_running: 8,
            max_waiting: 32,
            max_waiting_tokens: 4096,
        },
        protection: Protection::default(),
        calibration: Default::default(),
        on_panic: Default::default(),
        prefix_cache: true,
    };
    Ok(Engine::spawn(model, backend, options)?.0)
}

fn app(engine: EngineHandle) -> Result<App> {
    Ok(App {
        engine,
        grammars: grammars(&Bytewise, &[EOS])?,
        text: Arc::new(Bytewise),
        model: ServedModel::new("m".into(), CONTEXT, vec![EOS], 128),
        kv_cache: KvDefaults { budget: 1.0, min_budget: Some(0.25), policy: PolicyId::default() },
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        memory: MemoryMeter { backend: available().remove(0).into(), weight_bytes: 0 },
        views: None,
        limits: Limits {
            max_choices: 4,
            max_waiting: 32,
            request_timeout: Duration::from_secs(5),
            ..Limits::default()
        },
        api_keys: ApiKeys::default(),
        cors_origins: vec![],
        load: Load::default(),
        responses: StoredResponses::default(),
        draining: Draining::default(),
    })
}

/// Token id = byte; those from `EOS` on have no text.
struct Bytewise;

impl Text for Bytewise {
    fn encode(&self, text: &str, _add_special: bool) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn render_chat(&self, chat: &Chat) -> Result<String> {
        Ok(format!("{}\n", chat.messages))
    }

    fn tool_style(&self) -> ToolStyle {
        ToolStyle { format: &TOOL_FORMATS[0], native: false }
    }

    fn detokenizer(&self, _continues: bool) -> Box<dyn Detokenizer> {
        Box::new(Lossy)
    }

    fn is_special(&self, id: u32) -> bool {
        id >= EOS
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        u8::try_from(id).into_iter().collect()
    }

    fn vocab_size(&self) -> usize {
        257
    }

    fn longest_token(&self) -> usize {
        1
    }
}

/// One character a token.
struct Lossy;

impl Detokenizer for Lossy {
    fn push(&mut self, id: u32) -> String {
        u8::try_from(id).map(char::from).into_iter().collect()
    }

    fn flush(&mut self) -> String {
        String::new()
    }
}
