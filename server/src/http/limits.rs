//! What one client may ask of the server.

use std::time::Duration;

use axum::http::StatusCode;

/// Each has a flag of `keepwell serve`.
#[derive(Clone, Debug)]
pub struct Limits {
    pub max_body_bytes: usize,
    /// Of the request line and all headers.
    pub max_header_bytes: usize,
    /// Tokens of a prompt; the model's context bounds them as well.
    pub max_prompt_tokens: usize,
    /// Tokens of a chat's answer whose request names no limit; the context bounds them as well.
    pub default_max_tokens: usize,
    /// Choices per prompt.
    pub max_choices: usize,
    pub max_stop_strings: usize,
    /// Alternatives per token.
    pub max_logprobs: usize,
    /// Requests being answered, those in the engine's queue included.
    pub max_requests: usize,
    /// Sequences that the engine's queue holds.
    pub max_waiting: usize,
    /// What a client hears that should come back later: 429, or 503 as in vLLM.
    pub overload_status: StatusCode,
    /// From the first byte of a body's piece to the next.
    pub body_timeout: Duration,
    /// From a request's arrival to the end of its answer.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_header_bytes: 64 << 10,
            max_prompt_tokens: usize::MAX,
            default_max_tokens: usize::MAX,
            max_choices: 16,
            max_stop_strings: 4,
            max_logprobs: 20,
            max_requests: 1024,
            max_waiting: 256,
            overload_status: StatusCode::TOO_MANY_REQUESTS,
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(3600),
        }
    }
}
