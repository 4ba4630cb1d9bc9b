//! One file per architecture.

pub mod llama;
pub mod mistral;
