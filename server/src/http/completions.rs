//! `POST /v1/completions`.

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
use super::choice::{Delta, Finished, PromptDelta, StopReason};
use super::context::MaxTokens;
use super::echo::Echo;
use super::envelope::{Identity, finish_reason};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::CompletionLogprobs;
use super::params::{Params, is_empty, refuse};
use super::prompts::{self, Prompt};
use super::text::Text;
use super::usage::{ChunkUsage, Usage};
use super::user::Caller;
use crate::metrics::latency::Stopwatch;

const OBJECT: &str = "text_completion";
/// OpenAI's, and vLLM's.
const DEFAULT_MAX_TOKENS: usize = 16;

use super::openapi::{CompletionAnswer, CompletionRequest, ErrorEnvelope, StreamEvent};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/completions", post(create))
}

#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, responses((status = 200, description = "The answer", content((CompletionAnswer = "application/json"), (StreamEvent = "text/event-stream"))), (status = "default", description = "What is wrong", body = ErrorEnvelope)))]
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

fn prepare(app: &App, body: &Map<String, Value>) -> Result<(Job, CompletionShape), ApiError> {
    let fields = Fields::root(body);
    refuse(&fields, &[("tools", is_empty)])?;
    let mut params = Params::read(&fields, app)?;
    params.sampling.logprobs = fields.integer("logprobs", 0..=app.limits.max_logprobs as i64)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    if echo {
        params.sampling.prompt_logprobs = params.sampling.logprobs;
    }
    // Without a token of its own an answer has only the prompt to show.
    let least = i64::from(!echo);
    let max_tokens = MaxTokens::read(&fields, &["max_tokens"], least, DEFAULT_MAX_TOKENS)?;
    let prompts = prompts::read(&fields, app, max_tokens)?;
    prompts.iter().try_for_each(|prompt| params.check_min_tokens(prompt.limit))?;
    let echoes = if echo { echoes(&prompts, app)? } else { vec![] };
    let shape = CompletionShape {
        identity: Identity::new("cmpl", &app.model.name),
        text: app.text.clone(),
        logprobs: params.sampling.logprobs.is_some(),
        echoes,
        n: params.n,
    };
    let marked = params.protect.without_messages()?;
    let job_prompt = |(index, prompt): (usize, Prompt)| JobPrompt {
        echo: shape
            .echoes
            .get(index)
            .filter(|_| shape.logprobs)
            .map(|text| Echo::new(text, &prompt.ids, &*app.text)),
        ids: prompt.ids,
        limit: prompt.limit,
        marked: marked.clone(),
    };
    let prompts = prompts.into_iter().enumerate().map(job_prompt).collect();
    let caller = Caller::UNKNOWN;
    Ok((Job { prompts, continues: true, params, tools: None, caller }, shape))
}

/// The text of each prompt.
fn echoes(prompts: &[Prompt], app: &App) -> Result<Vec<String>, ApiError> {
    let text = |prompt: &Prompt| match &prompt.text {
        Some(text) => Ok(text.clone()),
        None => app
            .text
            .decode(&prompt.ids)
            .map_err(|error| ApiError::invalid(&prompt.param, format!("{error:#}"))),
    };
    prompts.iter().map(text).collect()
}

struct CompletionShape {
    identity: Identity,
    text: Arc<dyn Text>,
    logprobs: bool,
    /// What stands before the text of each prompt's choices; empty without `echo`.
    echoes: Vec<String>,
    /// Choices per prompt.
    n: usize,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    /// vLLM's.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a StopReason>,
}

impl<'a> Choice<'a> {
    /// One that has no end yet.
    fn new(index: usize, text: &'a str, logprobs: Option<CompletionLogprobs>) -> Self {
        Self { index, text, logprobs, finish_reason: None, stop_reason: None }
    }
}

impl Shape for CompletionShape {
    fn id(&self) -> &str {
        self.identity.id()
    }

    fn opening(&self, index: usize, usage: ChunkUsage) -> Option<String> {
        // With log-probabilities the prompt comes when they are known.
        let text = self.echo(index).filter(|_| !self.logprobs)?;
        Some(self.chunk(Choice::new(index, text, None), usage))
    }

    fn prompt(&self, prompt: &PromptDelta, usage: ChunkUsage) -> Option<String> {
        let index = prompt.index;
        let logprobs = Some(CompletionLogprobs::new(&prompt.tokens, &*self.text));
        let text = self.echo(index)?;
        Some(self.chunk(Choice::new(index, text, logprobs), usage))
    }

    fn delta(&self, delta: &Delta, usage: ChunkUsage) -> String {
        let logprobs = self.logprobs.then(|| CompletionLogprobs::new(&delta.tokens, &*self.text));
        self.chunk(Choice::new(delta.index, &delta.text, logprobs), usage)
    }

    fn finish(&self, finished: &Finished, usage: ChunkUsage) -> String {
        let finish_reason = Some(finish_reason(finished.reason));
        let stop_reason = finished.stop_reason.as_ref();
        let open = Choice::new(finished.index, "", None);
        self.chunk(Choice { finish_reason, stop_reason, ..open }, usage)
    }

    fn usage(&self, usage: &Usage) -> String {
        self.identity.with_usage::<Choice>(OBJECT, &[], usage)
    }

    fn whole(&self, choices: &[Whole], usage: &Usage) -> String {
        let echo = |index| self.echo(index).unwrap_or_default().to_owned();
        let texts: Vec<_> = choices.iter().enumerate().map(|(i, c)| echo(i) + &c.text).collect();
        let choices: Vec<_> = choices
            .iter()
            .zip(&texts)
            .enumerate()
            .map(|(index, (whole, text))| self.choice(index, text, whole))
            .collect();
        self.identity.with_usage(OBJECT, &choices, usage)
    }
}

impl CompletionShape {
    fn echo(&self, index: usize) -> Option<&str> {
        self.echoes.get(index / self.n).map(String::as_str)
    }

    fn chunk(&self, choice: Choice, usage: ChunkUsage) -> String {
        self.identity.chunk(OBJECT, choice, usage)
    }

    fn choice<'a>(&self, index: usize, text: &'a str, whole: &'a Whole) -> Choice<'a> {
        Choice {
            index,
            text,
            logprobs: self.logprobs.then(|| CompletionLogprobs::new(&whole.tokens, &*self.text)),
            finish_reason: whole.reason.map(finish_reason),
            stop_reason: whole.stop_reason.as_ref(),
        }
    }
}
