//! `POST /v1/embeddings`: one vector per input, pooled from the model's last states.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Span;

use super::App;
use super::answer::too_slow;
use super::body::{JsonObject, off_worker};
use super::error::ApiError;
use super::fields::Fields;
use super::params::{self, kv_cache, priority};
use super::prompts;
use super::protect::Protect;
use super::user::{self, Caller};
use crate::compress::Spans;
use crate::engine::{
    EngineError, Event, GenerateRequest, Generation, KvCacheParams, Pooling, SamplingParams,
};
use crate::sched::UserId;

use super::openapi::{EmbeddingAnswer, EmbeddingRequest, ErrorEnvelope};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/embeddings", post(create))
}

const MOST_AT_A_TIME: usize = 64;

/// What to embed, and how to write it.
struct Job {
    prompts: Vec<Vec<u32>>,
    pooling: Pooling,
    as_base64: bool,
    /// Leading entries to keep.
    dimensions: Option<usize>,
    kv_cache: KvCacheParams,
    marked: Spans,
    priority: i32,
    user: UserId,
}

#[derive(Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingRequest, responses((status = 200, description = "The answer", body = EmbeddingAnswer), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> Result<Json<List>, ApiError> {
    let preparing = app.clone();
    let mut job = off_worker(move || prepare(&preparing, &body)).await?;
    job.user = caller.or_named(job.user);
    let timeout = app.limits.request_timeout;
    let vectors = tokio::time::timeout(timeout, vectors(&app, &job)).await;
    let vectors = vectors.map_err(|_elapsed| too_slow(timeout))??;
    let embedding = |(index, vector)| Embedding {
        object: "embedding",
        index,
        embedding: written(vector, &job),
    };
    let prompt_tokens = job.prompts.iter().map(Vec::len).sum();
    Span::current().record("prompt_tokens", prompt_tokens);
    Ok(Json(List {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model: app.model.name.clone(),
        usage: Usage { prompt_tokens, total_tokens: prompt_tokens },
    }))
}

fn prepare(app: &App, body: &Map<String, Value>) -> Result<Job, ApiError> {
    let fields = Fields::root(body);
    app.check_model(fields.str("model")?)?;
    let user = user::named(&fields)?;
    params::refuse(&fields, &[("truncate_prompt_tokens", |_| false)])?;
    let as_base64 = word(&fields, "encoding_format", &["float", "base64"])? == 1;
    let pooling = [Pooling::Mean, Pooling::Last][word(&fields, "pooling", &["mean", "last"])?];
    let dimensions = fields.integer("dimensions", 1..=app.model.hidden_size as i64)?;
    let kv_cache = kv_cache(&fields, &app.kv_cache)?;
    let marked = Protect::read(&fields)?.without_messages()?;
    let priority = priority(&fields)?;
    let prompts = prompts::read_only(&fields, app, "input")?;
    let prompts = prompts.into_iter().map(|prompt| prompt.ids).collect();
    Ok(Job { prompts, pooling, as_base64, dimensions, kv_cache, marked, priority, user })
}

/// Which of the words the field has; the first when it is absent.
fn word(fields: &Fields, name: &str, words: &[&str]) -> Result<usize, ApiError> {
    let Some(word) = fields.str(name)? else { return Ok(0) };
    words.iter().position(|known| *known == word).ok_or_else(|| {
        let message = format!("no `{name}` is named `{word}`: expected {}", words.join(" or "));
        ApiError::invalid(name, message)
    })
}

/// The prompts' vectors, some at a time: one request should not fill the queue. Dropping the future
/// cancels those that run.
async fn vectors(app: &App, job: &Job) -> Result<Vec<Vec<f32>>, ApiError> {
    let request = |prompt: &Vec<u32>| GenerateRequest {
        prompt: prompt.clone(),
        max_tokens: 1,
        may_shorten: true,
        stop_token_ids: vec![],
        sampling: SamplingParams::default(),
        kv_cache: job.kv_cache,
        priority: job.priority,
        user: job.user,
        constraint: None,
        marked: job.marked.clone(),
        pooling: Some(job.pooling),
        cache_salt: None,
    };
    let at_a_time = (app.limits.max_waiting / 4).clamp(1, MOST_AT_A_TIME);
    let requests: Vec<_> = job.prompts.iter().map(request).collect();
    let embed = |request| async move { vector(app.engine.generate(request)?).await };
    stream::iter(requests).map(embed).buffered(at_a_time).try_collect().await
}

async fn vector(mut generation: Generation) -> Result<Vec<f32>, ApiError> {
    loop {
        match generation.next().await {
            Some(Event::Embedding(vector)) => return Ok(vector),
            Some(Event::Failed(error)) => return Err(error.into()),
            Some(Event::Finished(_)) => return Err(EngineError::Stopped.into()),
            Some(Event::Token(_) | Event::PromptLogprobs(_)) => {}
            None => {
                return Err(EngineError::Internal("it ended without an answer".into()).into());
            }
        }
    }
}

/// Of length 1, as those of OpenAI are.
fn written(mut vector: Vec<f32>, job: &Job) -> Vector {
    vector.truncate(job.dimensions.unwrap_or(usize::MAX));
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
    match job.as_base64 {
        true => {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(BASE64.encode(bytes))
        }
        false => Vector::Floats(vector),
    }
}
