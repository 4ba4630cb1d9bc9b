//! Which architectures there are.

use std::sync::Arc;

use anyhow::{Context, Result};
use keepwell_kernels::Backend;

use crate::{Checkpoint, Model, arch, config};

/// One way to build a model.
pub struct Architecture {
    /// `model_type` of config.json, `general.architecture` of GGUF.
    pub name: &'static str,
    pub build: fn(&Checkpoint, Arc<dyn Backend>) -> Result<Box<dyn Model>>,
}

pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", build: arch::llama::build },
    Architecture { name: "mistral", build: arch::mistral::build },
];

/// Builds the model of an opened checkpoint.
///
/// # Errors
/// An unknown architecture, or weights and settings that do not make a model.
pub fn build(checkpoint: &Checkpoint, backend: Arc<dyn Backend>) -> Result<Box<dyn Model>> {
    let name = config::architecture(&checkpoint.settings)?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).with_context(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        format!("architecture `{name}` is not supported; known are {}", known.join(", "))
    })?;
    (architecture.build)(checkpoint, backend)
}
