//! What every object of one answer repeats.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::usage::{ChunkUsage, Usage};
use crate::engine::FinishReason;

/// The identity of an answer.
pub struct Identity {
    id: String,
    created: u64,
    model: String,
}

#[derive(Serialize)]
struct Envelope<'a, C, U> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<U>,
}

impl Identity {
    pub fn new(prefix: &str, model: &str) -> Self {
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        Self { id, created: unix_seconds(), model: model.to_owned() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// An answer or its last chunk, with the usage.
    pub fn with_usage<C: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: &Usage,
    ) -> String {
        self.json(object, choices, Some(usage))
    }

    /// A chunk before the last one.
    pub fn chunk<C: Serialize>(
        &self,
        object: &'static str,
        choice: C,
        usage: ChunkUsage,
    ) -> String {
        self.json(object, &[choice], usage)
    }

    fn json<C: Serialize, U: Serialize>(
        &self,
        object: &'static str,
        choices: &[C],
        usage: Option<U>,
    ) -> String {
        let Self { id, created, model, .. } = self;
        let envelope = Envelope { id, object, created: *created, model, choices, usage };
        serde_json::to_string(&envelope).expect("plain data serializes")
    }
}

pub fn unix_seconds() -> u64 {
    // A clock before 1970 is no reason to fail.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The reason's name.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    reason.name()
}
