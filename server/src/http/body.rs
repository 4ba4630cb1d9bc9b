//! From the bytes of a request to a JSON object, and work that may take long.

use std::error::Error;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value};
use tower_http::timeout::TimeoutError;

use super::App;
use super::error::ApiError;

/// Bodies below this parse faster than a hand-over to another thread takes.
const INLINE_BYTES: usize = 64 << 10;
/// A whole body may take so many times as long as one of its pieces: a trickle should not hold a place
/// for ever.
const MAX_PIECES: u32 = 10;

/// The body of a request: a JSON object.
pub struct JsonObject(pub Map<String, Value>);

impl FromRequest<Arc<App>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            let message = "the request's content-type must be application/json";
            let error = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
            return Err(error.code("unsupported_media_type"));
        }
        let read = Bytes::from_request(request, app);
        let read = tokio::time::timeout(app.limits.body_timeout * MAX_PIECES, read).await;
        let bytes = read.map_err(|_elapsed| too_slow())?.map_err(unread)?;
        let object = match bytes.len() {
            ..INLINE_BYTES => parse(&bytes),
            _ => off_worker(move || parse(&bytes)).await,
        };
        object.map(Self)
    }
}

/// The body did not arrive.
fn unread(rejection: BytesRejection) -> ApiError {
    let error = ApiError::new(rejection.status(), rejection.body_text());
    let first: &(dyn Error + 'static) = &rejection;
    let mut causes = std::iter::successors(Some(first), |error| (*error).source());
    if causes.any(|cause| cause.is::<TimeoutError>()) {
        return too_slow();
    }
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => error.code("request_too_large"),
        _ => error.code("incomplete_body"),
    }
}

fn too_slow() -> ApiError {
    let message = "the body took too long to arrive";
    ApiError::new(StatusCode::REQUEST_TIMEOUT, message).code("body_timeout")
}

/// Runs `work` on a thread where it may block: parsing, templates and tokenizers of large prompts.
pub async fn off_worker<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_panic| Err(panicked()))
}

/// What a client hears of a bug: that it is ours.
pub fn panicked() -> ApiError {
    ApiError::internal("the server failed on this request").code("internal_error")
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let mime = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    mime == "application/json" || (mime.starts_with("application/") && mime.ends_with("+json"))
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(malformed("the body must be a JSON object")),
        Err(error) => Err(malformed(format!("the body is not valid JSON: {error}"))),
    }
}

fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, message).code("invalid_json")
}
