//! One span and one log line per request. What clients send and receive is never logged.

use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, info_span};

/// Logs method, path, status and the time until the status was known. What handling the request logs
/// carries the span, and so method and path.
pub async fn log(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let span = info_span!("http", method = %request.method(), path = request.uri().path());
    async move {
        let response = next.run(request).await;
        let (status, seconds) = (response.status().as_u16(), started.elapsed().as_secs_f64());
        tracing::info!(status, seconds, "request");
        response
    }
    .instrument(span)
    .await
}
