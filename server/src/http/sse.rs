//! Answers as server-sent events, in the order OpenAI's clients expect: openings, deltas, one finish
//! per choice, the usage if it was asked for, `[DONE]`. An error ends the stream without `[DONE]`.

use std::convert::Infallible;
use std::pin::Pin;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Peekable, Stream, StreamExt};

use super::answer::{Shape, Updates};
use super::choice::Update;
use super::error::ApiError;
use super::params::StreamOptions;
use super::usage::{ChunkUsage, Usage};

/// How long the status line waits for the engine's first word: long enough for a refusal to become
/// a proper status, short enough for a client that waits for headers.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Proxies close connections that say nothing, typically after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The streamed answer.
///
/// # Errors
/// What the engine has against the request, if it says so before anything was sent.
pub async fn answer(
    updates: Updates,
    num_choices: usize,
    shape: impl Shape,
    usage: Usage,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    let mut updates = Box::pin(updates.peekable());
    first_word(updates.as_mut()).await?;
    let body =
        Body { updates, shape, usage, options, num_tokens: vec![0; num_choices], ended: false };
    let chunks = stream::iter(body.openings()).chain(chunks(body));
    Ok(response(chunks.map(|chunk| Event::default().data(chunk))))
}

/// A stream of events as an answer.
pub fn response(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    let events = events.map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Else nginx collects the stream before it passes it on.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

pub async fn first_word(updates: Pin<&mut Peekable<Updates>>) -> Result<(), ApiError> {
    match tokio::time::timeout(FIRST_WORD, updates.peek()).await {
        Ok(Some(Update::Failed(error))) => Err(error.clone()),
        _ => Ok(()),
    }
}

struct Body<S> {
    updates: Pin<Box<Peekable<Updates>>>,
    shape: S,
    usage: Usage,
    options: StreamOptions,
    /// Of each choice so far.
    num_tokens: Vec<usize>,
    ended: bool,
}

impl<S: Shape> Body<S> {
    fn openings(&self) -> Vec<String> {
        let usage = self.chunk_usage();
        (0..self.num_tokens.len()).filter_map(|i| self.shape.opening(i, usage)).collect()
    }

    fn chunk_usage(&self) -> ChunkUsage {
        let StreamOptions { include_usage, continuous_usage_stats } = self.options;
        let so_far = || self.usage.so_far(self.num_tokens.iter().sum());
        include_usage.then(|| continuous_usage_stats.then(so_far))
    }

    /// The next chunks; `None` after the last ones.
    async fn next(&mut self) -> Option<Vec<String>> {
        if self.ended {
            return None;
        }
        Some(match self.updates.next().await {
            Some(Update::Prompt(prompt)) => {
                self.shape.prompt(&prompt, self.chunk_usage()).into_iter().collect()
            }
            Some(Update::Delta(delta)) => {
                self.num_tokens[delta.index] = delta.num_tokens;
                vec![self.shape.delta(&delta, self.chunk_usage())]
            }
            Some(Update::Finished(finished)) => {
                self.usage.add(&finished);
                self.num_tokens[finished.index] = finished.num_tokens;
                vec![self.shape.finish(&finished, self.chunk_usage())]
            }
            Some(Update::Failed(error)) => {
                self.ended = true;
                vec![error.to_json()]
            }
            None => {
                self.ended = true;
                let usage = self.options.include_usage.then(|| self.shape.usage(&self.usage));
                usage.into_iter().chain(["[DONE]".to_owned()]).collect()
            }
        })
    }
}

fn chunks<S: Shape>(body: Body<S>) -> impl Stream<Item = String> {
    let next = |mut body: Body<S>| async { Some((stream::iter(body.next().await?), body)) };
    stream::unfold(body, next).flatten()
}
