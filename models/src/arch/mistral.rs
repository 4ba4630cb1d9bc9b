//! Mistral: Llama with a sliding window.

use std::sync::Arc;

use anyhow::{Context, Result};
use keepwell_kernels::Backend;

use crate::{Checkpoint, Model, ModelConfig, config::optional_size, layers::Decoder};

/// What transformers assumes when `sliding_window` is missing. `null` means none.
const DEFAULT_WINDOW: u32 = 4096;

pub fn build(checkpoint: &Checkpoint, backend: Arc<dyn Backend>) -> Result<Box<dyn Model>> {
    let mut config = ModelConfig::from_json(&checkpoint.settings)?;
    config.sliding_window = match checkpoint.settings.get("sliding_window") {
        None => Some(DEFAULT_WINDOW),
        Some(_) => optional_size(&checkpoint.settings, "sliding_window")?
            .map(u32::try_from)
            .transpose()
            .context("sliding_window")?,
    };
    Ok(Box::new(Decoder::load(config, &checkpoint.weights, backend)?))
}
