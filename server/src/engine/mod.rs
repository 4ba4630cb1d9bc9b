//! The engine thread: it owns the model, the arena and every sequence.

pub(crate) mod event;
#[cfg(test)]
pub(crate) mod fake;
mod faults;
pub(crate) mod gather;
mod handle;
mod heartbeat;
mod pooling;
mod prompt_logprobs;
mod run;
mod sampler;
pub(crate) mod snapshot;
pub(crate) mod squeeze;
pub(crate) mod view;

pub use faults::Faults;
pub use handle::{
    EngineError, EngineHandle, Event, FinishReason, GenerateRequest, Generation, KvCacheParams,
    KvUsage, Outcome, SampledToken, SamplingParams, TokenLogprobs,
};
pub use pooling::Pooling;
pub use run::{Engine, EngineInfo, EngineOptions, OnPanic};
pub use snapshot::Snapshot;
pub use view::KvView;
