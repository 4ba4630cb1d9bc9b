//! Keepwell: an LLM inference server that keeps what matters in its KV cache.

pub mod cache;
pub mod calibrate;
pub mod cli;
pub mod compress;
pub mod dashboard;
pub mod engine;
pub mod grammar;
pub mod http;
pub mod metrics;
pub mod sched;
pub mod threads;
pub mod trial;
