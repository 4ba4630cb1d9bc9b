//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use serde::Serialize;
use serde_json::{Map, Value};

use super::App;
use super::answer::{Job, JobPrompt, Shape, Whole, answer};
use super::body::{JsonObject, off_worker};
use super::choice::Delta;
use super::context::{self, MaxTokens};
use super::envelope::{Identity, finish_reason};
use super::error::ApiError;
use super::fields::Fields;
use super::latency::Stopwatch;
use super::logprobs::ChatLogprobs;
use super::messages;
use super::params::Params;
use super::text::{Chat, Text};
use super::usage::{ChunkUsage, Usage};
use crate::engine::FinishReason;

const CHUNK: &str = "chat.completion.chunk";

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/chat/completions", post(create))
}

async fn create(
    State(app): State<Arc<App>>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let stopwatch = Stopwatch::start();
    let preparing = app.clone();
    let (job, shape) = off_worker(move || prepare(&preparing, &body)).await?;
    answer(&app, job, shape, stopwatch).await
}

fn prepare(app: &App, body: &Map<String, Value>) -> Result<(Job, ChatShape), ApiError> {
    let fields = Fields::root(body);
    let mut params = Params::read(&fields, app)?;
    params.sampling.logprobs = num_logprobs(&fields, app)?;
    let names = ["max_completion_tokens", "max_tokens"];
    let max_tokens = MaxTokens::read(&fields, &names, 1, usize::MAX)?;
    let prompt = prompt(&fields, app)?;
    let limit = max_tokens.within(app, prompt.len(), "messages")?;
    params.check_min_tokens(limit)?;
    let shape = ChatShape {
        identity: Identity::new("chatcmpl", &app.model.name),
        text: app.text.clone(),
        logprobs: params.sampling.logprobs.is_some(),
    };
    let prompts = vec![JobPrompt { ids: prompt, limit, echo: None }];
    let job = Job { prompts, continues: false, params };
    Ok((job, shape))
}

fn num_logprobs(fields: &Fields, app: &App) -> Result<Option<usize>, ApiError> {
    let logprobs = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=app.limits.max_logprobs as i64)?;
    if !logprobs && top.is_some_and(|top| top > 0) {
        let message = "`top_logprobs` needs `logprobs` to be true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(logprobs.then(|| top.unwrap_or(0)))
}

/// The tokens of a request's conversation.
pub fn prompt(fields: &Fields, app: &App) -> Result<Vec<u32>, ApiError> {
    tokenize(&chat(fields)?, app)
}

fn chat(fields: &Fields) -> Result<Chat, ApiError> {
    let messages = Value::Array(messages::read(fields)?);
    let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
    Ok(Chat { messages, add_generation_prompt })
}

/// The texts of special tokens in messages are special tokens too, as in vLLM: who passes on what
/// strangers wrote has to take them out.
fn tokenize(chat: &Chat, app: &App) -> Result<Vec<u32>, ApiError> {
    let refused = |error: anyhow::Error| ApiError::invalid("messages", format!("{error:#}"));
    let prompt = app.text.render_chat(chat).map_err(refused)?;
    context::check_text(&prompt, app, "messages")?;
    // The template wrote the special tokens itself.
    app.text.encode(&prompt, false).map_err(refused)
}

struct ChatShape {
    identity: Identity,
    text: Arc<dyn Text>,
    logprobs: bool,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: MessageDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct MessageDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Shape for ChatShape {
    fn opening(&self, index: usize, usage: ChunkUsage) -> Option<String> {
        let delta = MessageDelta { role: Some("assistant"), content: Some("") };
        Some(self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason: None }, usage))
    }

    fn delta(&self, delta: &Delta, usage: ChunkUsage) -> String {
        let logprobs = self.logprobs.then(|| ChatLogprobs::new(&delta.tokens, &*self.text));
        let message = MessageDelta { role: None, content: Some(&delta.text) };
        let index = delta.index;
        self.chunk(ChunkChoice { index, delta: message, logprobs, finish_reason: None }, usage)
    }

    fn finish(&self, index: usize, reason: FinishReason, usage: ChunkUsage) -> String {
        let delta = MessageDelta::default();
        let finish_reason = Some(finish_reason(reason));
        self.chunk(ChunkChoice { index, delta, logprobs: None, finish_reason }, usage)
    }

    fn usage(&self, usage: &Usage) -> String {
        self.identity.with_usage::<ChunkChoice>(CHUNK, &[], usage)
    }

    fn whole(&self, choices: &[Whole], usage: &Usage) -> String {
        let choices: Vec<_> =
            choices.iter().enumerate().map(|(index, whole)| self.choice(index, whole)).collect();
        self.identity.with_usage("chat.completion", &choices, usage)
    }
}

impl ChatShape {
    fn chunk(&self, choice: ChunkChoice, usage: ChunkUsage) -> String {
        self.identity.chunk(CHUNK, choice, usage)
    }

    fn choice<'a>(&self, index: usize, whole: &'a Whole) -> Choice<'a> {
        Choice {
            index,
            message: Message { role: "assistant", content: &whole.text, refusal: None },
            logprobs: self.logprobs.then(|| ChatLogprobs::new(&whole.tokens, &*self.text)),
            finish_reason: whole.reason.map(finish_reason),
        }
    }
}
