//! The error envelope of the OpenAI API: every answer that is not a success has this shape.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::EngineError;

/// Seconds after which a client that found the queue full may try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What went wrong, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field at fault, as a path: `messages[1].content`.
    pub param: Option<String>,
    /// For programs: `context_length_exceeded`, `model_not_found`, ...
    pub code: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// 400: the request is at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).at(param).code("invalid_value")
    }

    /// 404: there is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).code("not_found")
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The envelope as JSON text, for the middle of a stream.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.envelope()).expect("strings serialize")
    }

    fn envelope(&self) -> Envelope<'_> {
        let error = Body {
            message: &self.message,
            r#type: self.kind(),
            param: self.param.as_deref(),
            code: self.code,
        };
        Envelope { error }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.envelope())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let (status, code) = match &error {
            EngineError::DoesNotFit { .. } => (StatusCode::BAD_REQUEST, "kv_memory_exceeded"),
            EngineError::MarksTooMuch { .. } => (StatusCode::BAD_REQUEST, "protects_too_much"),
            EngineError::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            EngineError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
            EngineError::Grammar(_) => (StatusCode::BAD_REQUEST, "grammar_too_complex"),
            EngineError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal_error"),
            EngineError::Corrupted => (StatusCode::INTERNAL_SERVER_ERROR, "corrupted_output"),
            EngineError::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, "engine_failed"),
        };
        Self::new(status, error.to_string()).code(code)
    }
}
