//! What became of one request.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds after the stage's start.
    pub sent: f64,
    /// Seconds that it was sent later than it should have been: the client's own delay.
    pub late: f64,
    /// Seconds from sending to the first token; `None` when none came.
    pub ttft: Option<f64>,
    /// Seconds between chunks with text.
    pub gaps: Vec<f32>,
    /// Seconds from sending to the end.
    pub e2e: f64,
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    /// Prompt tokens that the server says it had.
    pub cached_tokens: usize,
    /// The answer had no `usage`: tokens are chunks.
    pub is_estimate: bool,
    pub outcome: Outcome,
    pub kv: Option<KvCache>,
    /// The answer, for the next turn.
    #[serde(skip)]
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    #[default]
    Ok,
    /// Not done within the deadline.
    Timeout,
    /// The status, or what went wrong.
    Error(String),
}

/// `usage.kv_cache`, where the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvCache {
    pub bytes: f64,
    pub peak_bytes: f64,
    pub f16_bytes: f64,
}

impl Record {
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// Time per output token after the first, in seconds.
    pub fn tpot(&self) -> Option<f64> {
        let others = self.output_tokens.checked_sub(1).filter(|others| *others > 0)?;
        Some((self.e2e - self.ttft?) / others as f64)
    }
}
