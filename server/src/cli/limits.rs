//! Flags of `serve` that bound what clients may ask, and say who they may be.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::{HeaderValue, StatusCode};
use bytesize::ByteSize;
use clap::{Args, value_parser};

use super::args::{duration, memory};
use super::listen::ConnectionLimits;
use crate::http::{ApiKeys, Limits};

/// Keys, separated by commas. No flag: arguments can be read by every user of the machine.
const KEYS_VARIABLE: &str = "KEEPWELL_API_KEY";

#[derive(Clone, Debug, Args)]
pub struct LimitArgs {
    /// File of API keys, one a line; `#` starts a comment. KEEPWELL_API_KEY has more of them
    #[arg(long, env = "KEEPWELL_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Web page that may read answers, such as https://chat.example; may be repeated, `*` is all
    /// [default: none]
    #[arg(long, env = "KEEPWELL_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origin: Vec<HeaderValue>,

    /// Largest body of a request
    #[arg(long, env = "KEEPWELL_MAX_BODY_SIZE", default_value = "32MiB", value_parser = memory)]
    pub max_body_size: ByteSize,

    /// Largest headers of a request
    #[arg(long, env = "KEEPWELL_MAX_HEADER_SIZE", default_value = "64KiB", value_parser = header_size)]
    pub max_header_size: ByteSize,

    /// Tokens of a prompt [default: what the model's context holds]
    #[arg(long, env = "KEEPWELL_MAX_PROMPT_TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub max_prompt_tokens: Option<u32>,

    /// Tokens of a chat's answer whose request names no limit, such as one that follows a loose JSON
    /// schema for ever [default: what the model's context holds]
    #[arg(long, env = "KEEPWELL_DEFAULT_MAX_TOKENS", value_parser = value_parser!(u32).range(1..))]
    pub default_max_tokens: Option<u32>,

    /// Choices per prompt, `n`
    #[arg(long, env = "KEEPWELL_MAX_CHOICES", default_value_t = 16, value_parser = value_parser!(u32).range(1..=1024))]
    pub max_choices: u32,

    /// Stop strings of a request
    #[arg(long, env = "KEEPWELL_MAX_STOP_STRINGS", default_value_t = 4, value_parser = value_parser!(u32).range(0..=64))]
    pub max_stop_strings: u32,

    /// Alternatives per token, `top_logprobs`
    #[arg(long, env = "KEEPWELL_MAX_LOGPROBS", default_value_t = 20, value_parser = value_parser!(u32).range(0..=1000))]
    pub max_logprobs: u32,

    /// Requests that are answered at the same time, waiting ones included
    #[arg(long, env = "KEEPWELL_MAX_REQUESTS", default_value_t = 1024, value_parser = value_parser!(u32).range(1..))]
    pub max_requests: u32,

    /// What a client hears that should come back later: 429, or 503 as in vLLM
    #[arg(long, env = "KEEPWELL_OVERLOAD_STATUS", default_value = "429", value_parser = overload)]
    pub overload_status: StatusCode,

    /// How long a client may take over the headers of its next request
    #[arg(long, env = "KEEPWELL_HEADER_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub header_timeout: Duration,

    /// How long a client may send nothing of a body that is not complete; all of it may take ten times
    /// as long
    #[arg(long, env = "KEEPWELL_BODY_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,

    /// How long a client may take nothing of its answer
    #[arg(long, env = "KEEPWELL_WRITE_TIMEOUT", default_value = "60s", value_parser = duration)]
    pub write_timeout: Duration,

    /// How long a request may take in all
    #[arg(long, env = "KEEPWELL_REQUEST_TIMEOUT", default_value = "60m", value_parser = duration)]
    pub request_timeout: Duration,
}

impl LimitArgs {
    pub fn limits(&self, max_waiting: usize) -> Limits {
        Limits {
            max_body_bytes: bytes(self.max_body_size),
            max_header_bytes: bytes(self.max_header_size),
            max_prompt_tokens: self.max_prompt_tokens.map_or(usize::MAX, |most| most as usize),
            default_max_tokens: self.default_max_tokens.map_or(usize::MAX, |most| most as usize),
            max_choices: self.max_choices as usize,
            max_stop_strings: self.max_stop_strings as usize,
            max_logprobs: self.max_logprobs as usize,
            max_requests: self.max_requests as usize,
            max_waiting,
            overload_status: self.overload_status,
            body_timeout: self.body_timeout,
            request_timeout: self.request_timeout,
        }
    }

    pub fn connections(&self) -> ConnectionLimits {
        ConnectionLimits {
            header_timeout: self.header_timeout,
            max_header_bytes: bytes(self.max_header_size),
            write_timeout: self.write_timeout,
        }
    }

    /// Those of the file and those of the environment.
    ///
    /// # Errors
    /// The file cannot be read, or there is no key in what was named as a source of them: then
    /// everybody could come in.
    pub fn api_keys(&self) -> Result<ApiKeys> {
        let mut keys = vec![];
        if let Ok(variable) = std::env::var(KEYS_VARIABLE) {
            keys.extend(
                variable.split(',').map(str::trim).filter(|k| !k.is_empty()).map(String::from),
            );
            ensure!(!keys.is_empty(), "{KEYS_VARIABLE} is set and has no key");
        }
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read --api-key-file {}", path.display()))?;
            let num_before = keys.len();
            keys.extend(key_lines(&text));
            ensure!(keys.len() > num_before, "--api-key-file {} has no key", path.display());
        }
        Ok(ApiKeys::new(keys))
    }
}

fn key_lines(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(String::from)
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// hyper panics below 8 KiB.
fn header_size(text: &str) -> Result<ByteSize, String> {
    let size = memory(text)?;
    match size.as_u64() {
        0..8192 => Err("it must be at least 8KiB".into()),
        _ => Ok(size),
    }
}

fn overload(text: &str) -> Result<StatusCode, String> {
    match text {
        "429" => Ok(StatusCode::TOO_MANY_REQUESTS),
        "503" => Ok(StatusCode::SERVICE_UNAVAILABLE),
        _ => Err("it is 429 or 503".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_without_comments_and_spaces() {
        let keys: Vec<_> = key_lines("# ours\n  one \n\ntwo\r\n#three\n").collect();
        assert_eq!(keys, ["one", "two"]);
    }
}
