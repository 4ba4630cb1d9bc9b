//! One span and one log line per request. What clients send and receive is never logged.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::stream::{Stream, StreamExt};
use tracing::{Instrument, Span, field::Empty, info, info_span};

use super::answer::Updates;
use super::choice::Update;

/// Logs method, path, status and the time until the answer's end; of what was generated also the
/// answer's id and its tokens. What handling the request logs carries the span, and so all of that.
pub async fn log(request: Request, next: Next) -> Response {
    let span = info_span!(
        "http",
        method = %request.method(),
        path = request.uri().path(),
        id = Empty,
        prompt_tokens = Empty,
        completion_tokens = Empty,
    );
    let line = Line { span: span.clone(), started: Instant::now(), status: None, is_whole: false };
    until_sent(line, next.run(request).instrument(span).await)
}

/// What is logged when it is dropped.
struct Line {
    span: Span,
    started: Instant,
    /// `None` while there is no answer.
    status: Option<u16>,
    /// Whether the answer came to its end.
    is_whole: bool,
}

impl Drop for Line {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let _of_request = self.span.enter();
        match self.status {
            Some(status) if self.is_whole => info!(status, seconds, "request"),
            Some(status) => info!(status, seconds, "request: the client left during the answer"),
            None => info!(seconds, "request: the client left before an answer"),
        }
    }
}

fn until_sent(mut line: Line, response: Response) -> Response {
    line.status = Some(response.status().as_u16());
    if response.body().size_hint().exact().is_some() {
        line.is_whole = true;
        return response;
    }
    response.map(|body| Body::from_stream(Sending { pieces: body.into_data_stream(), line }))
}

/// A body on its way. What it knows goes into the span before the line is logged: fields are dropped
/// in this order.
struct Sending {
    pieces: BodyDataStream,
    line: Line,
}

impl Stream for Sending {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        let piece = ready!(self.pieces.poll_next_unpin(context));
        self.line.is_whole = piece.is_none();
        Poll::Ready(piece)
    }
}

/// Writes into the request's span which answer this is, and once it ends what it cost.
pub fn account(
    id: &str,
    num_prompt_tokens: usize,
    num_choices: usize,
    updates: Updates,
) -> Updates {
    let span = Span::current();
    span.record("id", id).record("prompt_tokens", num_prompt_tokens);
    let mut account = Account { span, num_tokens: vec![0; num_choices] };
    updates.inspect(move |update| account.take(update)).boxed()
}

struct Account {
    span: Span,
    /// Of each choice so far.
    num_tokens: Vec<usize>,
}

impl Account {
    fn take(&mut self, update: &Update) {
        match update {
            Update::Delta(delta) => self.num_tokens[delta.index] = delta.num_tokens,
            Update::Finished(finished) => self.num_tokens[finished.index] = finished.num_tokens,
            Update::Prompt(_) | Update::Failed(_) => {}
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.span.record("completion_tokens", self.num_tokens.iter().sum::<usize>());
    }
}
