//! From a prepared job to an HTTP answer, streamed or whole. The endpoints differ in their shapes.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt};

use super::App;
use super::choice::{Choice, Delta, Finished, Making, PromptDelta, StopReason, TextToken, Update};
use super::context::TokenLimit;
use super::echo::Echo;
use super::error::ApiError;
use super::params::Params;
use super::sse;
use super::stop::StopStrings;
use super::tools::{CallPiece, Tools};
use super::trace;
use super::usage::{ChunkUsage, Usage};
use super::user::Caller;
use crate::compress::Spans;
use crate::dashboard::views::{Viewing, Views};
use crate::engine::{EngineError, FinishReason, GenerateRequest, Generation, SamplingParams};
use crate::metrics::latency::Stopwatch;

/// What to generate: `params.n` choices of each prompt.
pub struct Job {
    pub prompts: Vec<JobPrompt>,
    /// Whether the answer goes on in the prompt's last line, as a completion does.
    pub continues: bool,
    pub params: Params,
    pub tools: Option<Tools>,
    pub caller: Caller,
}

impl Job {
    pub fn sent_by(&mut self, caller: Caller) {
        self.caller = caller;
        self.params.sent_by(caller);
    }
}

pub struct JobPrompt {
    pub ids: Vec<u32>,
    pub limit: TokenLimit,
    pub marked: Spans,
    /// Present when the answer repeats the prompt.
    pub echo: Option<Echo>,
}

/// How an endpoint writes its answer: JSON texts.
pub trait Shape: Send + 'static {
    /// The answer's id, the same in all chunks.
    fn id(&self) -> &str;
    /// The chunk before the first text of a choice.
    fn opening(&self, index: usize, usage: ChunkUsage) -> Option<String>;
    /// The chunk with a prompt's log-probabilities.
    fn prompt(&self, _prompt: &PromptDelta, _usage: ChunkUsage) -> Option<String> {
        None
    }
    fn delta(&self, delta: &Delta, usage: ChunkUsage) -> String;
    /// The one chunk of a choice that has a finish reason.
    fn finish(&self, finished: &Finished, usage: ChunkUsage) -> String;
    fn usage(&self, usage: &Usage) -> String;
    /// The answer of a request that does not stream.
    fn whole(&self, choices: &[Whole], usage: &Usage) -> String;
}

/// A choice that ended. The default is one that has not begun.
#[derive(Default)]
pub struct Whole {
    pub text: String,
    pub tokens: Vec<TextToken>,
    pub calls: Vec<ToolCall>,
    pub reason: Option<FinishReason>,
    pub stop_reason: Option<StopReason>,
}

/// A whole call.
#[derive(Default)]
pub struct ToolCall {
    pub name: String,
    pub arguments: String,
}

impl Whole {
    fn take_calls(&mut self, pieces: Vec<CallPiece>) {
        for CallPiece { name, arguments, .. } in pieces {
            if let Some(name) = name {
                self.calls.push(ToolCall { name, ..ToolCall::default() });
            }
            // Calls arrive one after the other, each with its name first.
            self.calls.last_mut().into_iter().for_each(|call| call.arguments += &arguments);
        }
    }
}

pub type Updates = BoxStream<'static, Update>;

/// Runs the job, whose answer has this id. Dropping the updates cancels what runs.
pub fn run(
    app: &App,
    job: Job,
    id: &str,
    stopwatch: Stopwatch,
) -> Result<(Updates, Usage), ApiError> {
    let num_prompt_tokens = job.prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let usage = Usage::new(num_prompt_tokens, job.params.kv_cache.budget);
    let num_choices = job.prompts.len() * job.params.n;
    check_num_choices(num_choices, app.limits.max_waiting, "n")?;
    let updates = submit(app, job, id, stopwatch)?;
    let updates = trace::account(id, num_prompt_tokens, num_choices, updates);
    Ok((until(app.limits.request_timeout, updates), usage))
}

/// Answers with the job's outcome. Dropping the answer, or the future of it, cancels what runs.
pub async fn answer(
    app: &App,
    job: Job,
    shape: impl Shape,
    stopwatch: Stopwatch,
) -> Result<Response, ApiError> {
    let num_choices = job.prompts.len() * job.params.n;
    let stream = job.params.stream;
    let (updates, usage) = run(app, job, shape.id(), stopwatch)?;
    match stream {
        Some(options) => sse::answer(updates, num_choices, shape, usage, options).await,
        None => whole(updates, num_choices, &shape, usage).await,
    }
}

/// No later time would be better for a request that is longer than the queue.
pub fn check_num_choices(
    num_choices: usize,
    max_waiting: usize,
    param: &str,
) -> Result<(), ApiError> {
    if num_choices <= max_waiting {
        return Ok(());
    }
    let message = format!(
        "the request asks for {num_choices} choices, the server queues {max_waiting} at most: \
         lower `n` or send fewer prompts"
    );
    Err(ApiError::invalid(param, message))
}

/// Hands every choice to the engine.
fn submit(app: &App, job: Job, id: &str, stopwatch: Stopwatch) -> Result<Updates, ApiError> {
    let Job { prompts, continues, params, tools, caller } = job;
    let mut choices = Vec::new();
    for prompt in prompts {
        for (nth, stopwatch) in stopwatch.choices(params.n).enumerate() {
            let request = request(&prompt, &params, nth);
            let is_first = choices.is_empty();
            let generation = match app.views.as_ref().filter(|_| is_first) {
                Some(views) => {
                    let (policy, marked) = (request.kv_cache.policy, request.marked.clone());
                    let viewing = Viewing { id: id.to_owned(), caller, policy, marked };
                    viewed(app, views.clone(), viewing, request)?
                }
                None => app.engine.generate(request)?,
            };
            let making = Making {
                index: choices.len(),
                detokenizer: app.text.detokenizer(continues),
                stop: StopStrings::new(params.stop.clone(), params.include_stop),
                eos_token_ids: app.model.eos_token_ids.clone(),
                min_tokens: params.sampling.min_tokens,
                echo: prompt.echo.clone(),
                tools: tools.as_ref().map(|tools| tools.parser(app)),
                echo_only: prompt.limit.max_tokens == 0,
                stopwatch,
                is_first: nth == 0,
            };
            choices.push(Choice::new(generation, making));
        }
    }
    Ok(stream::select_all(choices.into_iter().map(|choice| updates(choice).boxed())).boxed())
}

/// Runs the request and keeps what its cache looks like in the end.
fn viewed(
    app: &App,
    views: Arc<Views>,
    viewing: Viewing,
    request: GenerateRequest,
) -> Result<Generation, EngineError> {
    let (generation, view) = app.engine.generate_viewed(request)?;
    tokio::spawn(async move {
        // None comes of a request that was never computed.
        if let Ok(view) = view.await {
            views.add(viewing, view);
        }
    });
    Ok(generation)
}

fn request(prompt: &JobPrompt, params: &Params, nth: usize) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.ids.clone(),
        // Nothing comes out of an engine that does not draw a token.
        max_tokens: prompt.limit.max_tokens.max(1),
        may_shorten: prompt.limit.may_shorten,
        stop_token_ids: params.stop_token_ids.clone(),
        sampling: with_nth_seed(&params.sampling, nth),
        kv_cache: params.kv_cache,
        marked: prompt.marked.clone(),
        priority: params.priority,
        user: params.user,
        constraint: params.constraint.clone(),
        pooling: None,
        cache_salt: Some(params.cache_salt),
    }
}

/// Fails what is not finished in time.
fn until(timeout: Duration, updates: Updates) -> Updates {
    let deadline = tokio::time::Instant::now() + timeout;
    let next = move |updates: Option<Updates>| async move {
        let mut updates = updates?;
        match tokio::time::timeout_at(deadline, updates.next()).await {
            Ok(update) => Some((update?, Some(updates))),
            // Dropping the updates cancels what runs.
            Err(_elapsed) => Some((Update::Failed(too_slow(timeout)), None)),
        }
    };
    stream::unfold(Some(updates), next).boxed()
}

pub fn too_slow(timeout: Duration) -> ApiError {
    let message = format!("the request was not finished within {timeout:?}");
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).code("request_timeout")
}

/// The choices of one prompt draw from different seeds, else they would be equal.
fn with_nth_seed(sampling: &SamplingParams, nth: usize) -> SamplingParams {
    let seed = sampling.seed.map(|seed| seed.wrapping_add(nth as u64));
    SamplingParams { seed, ..sampling.clone() }
}

fn updates(choice: Choice) -> impl stream::Stream<Item = Update> {
    stream::unfold(choice, |mut choice| async move { Some((choice.next().await?, choice)) })
}

async fn whole(
    mut updates: Updates,
    num_choices: usize,
    shape: &impl Shape,
    mut usage: Usage,
) -> Result<Response, ApiError> {
    let mut choices = Vec::new();
    choices.resize_with(num_choices, Whole::default);
    while let Some(update) = updates.next().await {
        match update {
            Update::Prompt(prompt) => choices[prompt.index].tokens = prompt.tokens,
            Update::Delta(delta) => {
                choices[delta.index].text += &delta.text;
                choices[delta.index].tokens.extend(delta.tokens);
                choices[delta.index].take_calls(delta.calls);
            }
            Update::Finished(finished) => {
                choices[finished.index].reason = Some(finished.reason);
                usage.add(&finished);
                choices[finished.index].stop_reason = finished.stop_reason;
            }
            Update::Failed(error) => return Err(error),
        }
    }
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(([content_type], shape.whole(&choices, &usage)).into_response())
}
