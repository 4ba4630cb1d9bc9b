//! One log line per request. What clients send and receive is never logged.

use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

/// Logs method, path, status and the time until the status was known.
pub async fn log(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let (status, latency) = (response.status().as_u16(), started.elapsed());
    tracing::info!(%method, path, status, ?latency, "request");
    response
}
