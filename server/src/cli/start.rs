//! From flags to a running engine: what `serve` and `chat` have in common.

use std::sync::Arc;

use anyhow::{Result, bail};
use keepwell_kernels::PageLayout;

use super::args::ModelArgs;
use crate::engine::EngineHandle;
use crate::http::{ServedModel, Text};

/// A model that takes requests.
pub struct Started {
    pub engine: EngineHandle,
    pub text: Arc<dyn Text>,
    pub model: ServedModel,
    pub layout: PageLayout,
    /// For the terminal: model, weights, memory, policy.
    pub summary: String,
}

/// Loads the model and starts the engine.
///
/// # Errors
/// An unknown or damaged model, or too little memory for it.
pub fn start(_args: &ModelArgs, _served_name: String) -> Result<Started> {
    bail!("the engine is not there yet")
}
