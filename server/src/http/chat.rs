//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use rand::distr::{Alphanumeric, SampleString};
use serde::Serialize;
use serde_json::{Map, Value};

use super::App;
use super::answer::{Job, JobPrompt, Shape, ToolCall, Whole, answer};
use super::body::{JsonObject, off_worker};
use super::choice::{Delta, Finished, StopReason};
use super::context::{self, MaxTokens};
use super::envelope::{Identity, finish_reason};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::ChatLogprobs;
use super::messages;
use super::params::Params;
use super::protect;
use super::text::{Chat, Text};
use super::tools::{CallPiece, Tools, teach};
use super::usage::{ChunkUsage, Usage};
use super::user::Caller;
use crate::engine::FinishReason;
use crate::grammar::Constraint;
use crate::metrics::latency::Stopwatch;

const CHUNK: &str = "chat.completion.chunk";

use super::openapi::{ChatAnswer, ChatRequest, ErrorEnvelope, StreamEvent};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/chat/completions", post(create))
}

#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses((status = 200, description = "The answer", content((ChatAnswer = "application/json"), (StreamEvent = "text/event-stream"))), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let stopwatch = Stopwatch::start();
    let preparing = app.clone();
    let (mut job, shape) = off_worker(move || prepare(&preparing, &body)).await?;
    job.sent_by(caller);
    answer(&app, job, shape, stopwatch).await
}

fn prepare(app: &App, body: &Map<String, Value>) -> Result<(Job, ChatShape), ApiError> {
    let job = job(app, &Fields::root(body))?;
    let shape = ChatShape {
        identity: Identity::new("chatcmpl", &app.model.name),
        text: app.text.clone(),
        logprobs: job.params.sampling.logprobs.is_some(),
    };
    Ok((job, shape))
}

/// What to generate for a chat.
pub fn job(app: &App, fields: &Fields) -> Result<Job, ApiError> {
    let mut params = Params::read(fields, app)?;
    params.sampling.logprobs = num_logprobs(fields, app)?;
    let names = ["max_completion_tokens", "max_tokens"];
    let max_tokens = MaxTokens::read(fields, &names, 1, app.limits.default_max_tokens)?;
    let tools = Tools::read(fields)?;
    params.constraint = constraint(params.constraint.take(), tools.as_ref(), app)?;
    let prompt = prompt_with(fields, tools.as_ref(), app)?;
    let limit = max_tokens.within(app, prompt.len(), "messages")?;
    params.check_min_tokens(limit)?;
    let marked = params.protect.with_system(|| system_end(&prompt, fields, tools.as_ref(), app))?;
    let prompts = vec![JobPrompt { ids: prompt, limit, marked, echo: None }];
    Ok(Job { prompts, continues: false, params, tools, caller: Caller::UNKNOWN })
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
    prompt_with(fields, Tools::read(fields)?.as_ref(), app)
}

fn prompt_with(fields: &Fields, tools: Option<&Tools>, app: &App) -> Result<Vec<u32>, ApiError> {
    let messages = messages::read(fields)?;
    let add_generation_prompt = fields.bool("add_generation_prompt")?.unwrap_or(true);
    tokenize(&with_tools(messages, tools, add_generation_prompt, app), app)
}

/// Where the prompt comes to differ from one that has only the system's messages.
fn system_end(
    prompt: &[u32],
    fields: &Fields,
    tools: Option<&Tools>,
    app: &App,
) -> Result<usize, ApiError> {
    let is_system = |message: &Value| message["role"] == "system" || message["role"] == "developer";
    let messages = messages::read(fields)?.into_iter().take_while(is_system).collect();
    let chat = with_tools(messages, tools, false, app);
    // Templates do not expect a conversation of nothing.
    if chat.messages.as_array().is_none_or(Vec::is_empty) {
        return Ok(0);
    }
    let text = app.text.render_chat(&chat).map_err(|error| protect::refused(&error))?;
    let alone = app.text.encode(&text, false).map_err(|error| protect::refused(&error))?;
    Ok(prompt.iter().zip(&alone).take_while(|(a, b)| a == b).count())
}

fn with_tools(
    mut messages: Vec<Value>,
    tools: Option<&Tools>,
    add_generation_prompt: bool,
    app: &App,
) -> Chat {
    let specs = tools.map(|tools| tools.specs.clone());
    let tools = match app.text.tool_style().native {
        true => specs.map(Value::Array),
        false => {
            teach(&mut messages, specs.as_deref().unwrap_or_default());
            None
        }
    };
    Chat { messages: Value::Array(messages), tools, add_generation_prompt }
}

/// Of the answer's form, or of the calls that it must make.
fn constraint(
    form: Option<Constraint>,
    tools: Option<&Tools>,
    app: &App,
) -> Result<Option<Constraint>, ApiError> {
    let forced = tools.map(|tools| tools.constraint(app)).transpose()?.flatten();
    if form.is_some() && forced.is_some() {
        let message = "an answer that must call a tool cannot have a `response_format`";
        return Err(ApiError::invalid("tool_choice", message));
    }
    Ok(form.or(forced))
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
    /// vLLM's.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a StopReason>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    /// `null` when there is nothing but calls.
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<MessageCall<'a>>,
}

#[derive(Serialize)]
struct MessageCall<'a> {
    id: String,
    r#type: &'static str,
    function: CallFunction<'a>,
}

#[derive(Serialize)]
struct CallFunction<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: MessageDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a StopReason>,
}

impl<'a> ChunkChoice<'a> {
    /// One that has no end yet.
    fn new(index: usize, delta: MessageDelta<'a>, logprobs: Option<ChatLogprobs>) -> Self {
        Self { index, delta, logprobs, finish_reason: None, stop_reason: None }
    }
}

#[derive(Default, Serialize)]
struct MessageDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<DeltaCall<'a>>,
}

#[derive(Serialize)]
struct DeltaCall<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: CallFunction<'a>,
}

impl<'a> DeltaCall<'a> {
    fn new(piece: &'a CallPiece) -> Self {
        let name = piece.name.as_deref();
        Self {
            index: piece.nth,
            id: name.map(|_| call_id()),
            r#type: name.map(|_| "function"),
            function: CallFunction { name, arguments: &piece.arguments },
        }
    }
}

impl<'a> MessageCall<'a> {
    fn new(call: &'a ToolCall) -> Self {
        let function = CallFunction { name: Some(&call.name), arguments: &call.arguments };
        Self { id: call_id(), r#type: "function", function }
    }
}

/// Templates of Mistral's models take no other form when the call comes back.
pub(super) fn call_id() -> String {
    Alphanumeric.sample_string(&mut rand::rng(), 9)
}

/// An answer that ends with its calls is waiting for their results.
fn reason(reason: FinishReason, has_called: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_called => "tool_calls",
        reason => finish_reason(reason),
    }
}

impl Shape for ChatShape {
    fn id(&self) -> &str {
        self.identity.id()
    }

    fn opening(&self, index: usize, usage: ChunkUsage) -> Option<String> {
        let delta =
            MessageDelta { role: Some("assistant"), content: Some(""), ..MessageDelta::default() };
        Some(self.chunk(ChunkChoice::new(index, delta, None), usage))
    }

    fn delta(&self, delta: &Delta, usage: ChunkUsage) -> String {
        let logprobs = self.logprobs.then(|| ChatLogprobs::new(&delta.tokens, &*self.text));
        let message = MessageDelta {
            role: None,
            content: Some(&*delta.text).filter(|text| !text.is_empty() || delta.calls.is_empty()),
            tool_calls: delta.calls.iter().map(DeltaCall::new).collect(),
        };
        self.chunk(ChunkChoice::new(delta.index, message, logprobs), usage)
    }

    fn finish(&self, finished: &Finished, usage: ChunkUsage) -> String {
        let open = ChunkChoice::new(finished.index, MessageDelta::default(), None);
        let finish_reason = Some(reason(finished.reason, finished.has_called));
        let stop_reason = finished.stop_reason.as_ref();
        self.chunk(ChunkChoice { finish_reason, stop_reason, ..open }, usage)
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
            message: Message {
                role: "assistant",
                content: Some(&*whole.text).filter(|t| !t.is_empty() || whole.calls.is_empty()),
                refusal: None,
                tool_calls: whole.calls.iter().map(MessageCall::new).collect(),
            },
            logprobs: self.logprobs.then(|| ChatLogprobs::new(&whole.tokens, &*self.text)),
            finish_reason: whole.reason.map(|r| reason(r, !whole.calls.is_empty())),
            stop_reason: whole.stop_reason.as_ref(),
        }
    }
}
