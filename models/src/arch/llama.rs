//! Llama 2 and 3, SmolLM2, TinyLlama; Mistral too when it comes as GGUF.

use std::sync::Arc;

use anyhow::{Context, Result};
use keepwell_kernels::Backend;

use crate::{Checkpoint, Model, ModelConfig, config::optional_size, layers::Decoder};

pub fn build(checkpoint: &Checkpoint, backend: Arc<dyn Backend>) -> Result<Box<dyn Model>> {
    let mut config = ModelConfig::from_json(&checkpoint.settings)?;
    if checkpoint.is_gguf {
        // transformers gives `llama` no window, but GGUF files call Mistral `llama`.
        let window = optional_size(&checkpoint.settings, "sliding_window")?;
        config.sliding_window = window.map(u32::try_from).transpose().context("sliding_window")?;
    }
    Ok(Box::new(Decoder::load(config, &checkpoint.weights, backend)?))
}
