//! The engine thread: it owns the model, the arena and every sequence.

#[cfg(test)]
pub(crate) mod fake;
mod gather;
mod handle;
mod metrics;
mod run;
mod sampler;

pub use handle::{
    EngineError, EngineHandle, Event, FinishReason, GenerateRequest, Generation, KvCacheParams,
    KvUsage, Outcome, SampledToken, SamplingParams, TokenLogprobs,
};
pub use run::{Engine, EngineInfo, EngineOptions};
