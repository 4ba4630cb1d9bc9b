//! From a prepared job to an HTTP answer, streamed or whole. The endpoints differ in their shapes.

use std::sync::Arc;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, BoxStream, StreamExt};

use super::App;
use super::choice::{Choice, Delta, TextToken, Update};
use super::context::TokenLimit;
use super::error::ApiError;
use super::params::Params;
use super::sse;
use super::stop::StopStrings;
use super::usage::Usage;
use crate::dashboard::views::Views;
use crate::engine::{EngineError, FinishReason, GenerateRequest, Generation, SamplingParams};
use crate::metrics::{latency::Stopwatch, table::REQUEST_PARAMS_N};

/// What to generate: `params.n` choices of each prompt.
pub struct Job {
    pub prompts: Vec<Vec<u32>>,
    /// For each prompt.
    pub limits: Vec<TokenLimit>,
    /// Whether the answer goes on in the prompt's last line, as a completion does.
    pub continues: bool,
    pub params: Params,
}

/// How an endpoint writes its answer: JSON texts.
pub trait Shape: Send + 'static {
    /// The answer's id, the same in all chunks.
    fn id(&self) -> &str;
    /// The chunk before the first text of a choice.
    fn opening(&self, index: usize) -> Option<String>;
    fn delta(&self, delta: &Delta) -> String;
    /// The one chunk of a choice that has a finish reason.
    fn finish(&self, index: usize, reason: FinishReason) -> String;
    fn usage(&self, usage: &Usage) -> String;
    /// The answer of a request that does not stream.
    fn whole(&self, choices: &[Whole], usage: &Usage) -> String;
}

/// A choice that ended. The default is one that has not begun.
#[derive(Default)]
pub struct Whole {
    pub text: String,
    pub tokens: Vec<TextToken>,
    pub reason: Option<FinishReason>,
}

pub type Updates = BoxStream<'static, Update>;

/// Runs the job. Dropping the answer, or the future of it, cancels what runs.
pub async fn answer(
    app: &App,
    job: Job,
    shape: impl Shape,
    stopwatch: Stopwatch,
) -> Result<Response, ApiError> {
    let num_prompt_tokens = job.prompts.iter().map(Vec::len).sum();
    let usage = Usage::new(num_prompt_tokens, job.params.kv_cache.budget);
    let num_choices = job.prompts.len() * job.params.n;
    check_num_choices(num_choices, app.max_waiting)?;
    REQUEST_PARAMS_N.histogram(vec![]).record(job.params.n as f64);
    let stream = job.params.stream;
    let updates = submit(app, job, shape.id(), stopwatch)?;
    match stream {
        Some(options) => {
            let opening = (0..num_choices).filter_map(|index| shape.opening(index)).collect();
            sse::answer(updates, opening, shape, usage, options.include_usage).await
        }
        None => whole(updates, num_choices, &shape, usage).await,
    }
}

/// No later time would be better for a request that is longer than the queue.
fn check_num_choices(num_choices: usize, max_waiting: usize) -> Result<(), ApiError> {
    if num_choices <= max_waiting {
        return Ok(());
    }
    let message = format!(
        "the request asks for {num_choices} choices, the server queues {max_waiting} at most: \
         lower `n` or send fewer prompts"
    );
    Err(ApiError::invalid("n", message))
}

/// Hands every choice to the engine.
fn submit(app: &App, job: Job, id: &str, stopwatch: Stopwatch) -> Result<Updates, ApiError> {
    let Job { prompts, limits, continues, params } = job;
    let mut choices = Vec::new();
    for (prompt, limit) in prompts.into_iter().zip(limits) {
        for nth in 0..params.n {
            let request = GenerateRequest {
                prompt: prompt.clone(),
                max_tokens: limit.max_tokens,
                may_shorten: limit.may_shorten,
                stop_token_ids: params.stop_token_ids.clone(),
                sampling: with_nth_seed(&params.sampling, nth),
                kv_cache: params.kv_cache,
            };
            let is_first = choices.is_empty();
            let generation = match app.views.as_ref().filter(|_| is_first) {
                Some(views) => viewed(app, views.clone(), id.to_owned(), request)?,
                None => app.engine.generate(request)?,
            };
            let stop = StopStrings::new(params.stop.clone());
            let detokenizer = app.text.detokenizer(continues);
            choices.push(Choice::new(
                choices.len(),
                generation,
                detokenizer,
                stop,
                stopwatch.clone(),
            ));
        }
    }
    Ok(stream::select_all(choices.into_iter().map(|choice| updates(choice).boxed())).boxed())
}

/// Runs the request and keeps what its cache looks like in the end.
fn viewed(
    app: &App,
    views: Arc<Views>,
    id: String,
    request: GenerateRequest,
) -> Result<Generation, EngineError> {
    let policy = request.kv_cache.policy;
    let (generation, view) = app.engine.generate_viewed(request)?;
    tokio::spawn(async move {
        // None comes of a request that was never computed.
        if let Ok(view) = view.await {
            views.add(id, policy, view);
        }
    });
    Ok(generation)
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
            Update::Delta(delta) => {
                choices[delta.index].text += &delta.text;
                choices[delta.index].tokens.extend(delta.tokens);
            }
            Update::Finished(finished) => {
                choices[finished.index].reason = Some(finished.reason);
                usage.add(finished.num_tokens, &finished.kv_cache);
            }
            Update::Failed(error) => return Err(error),
        }
    }
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(([content_type], shape.whole(&choices, &usage)).into_response())
}
