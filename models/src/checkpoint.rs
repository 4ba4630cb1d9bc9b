//! An opened model on disk: settings and tensors, before they become a model.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::weights::{
    WeightFormat, Weights,
    gguf::{GgufFile, Metadata},
    gguf_settings,
    safetensors::SafetensorsFolder,
};

/// What a file or folder holds.
pub struct Checkpoint {
    /// In the vocabulary of `config.json`.
    pub settings: Value,
    pub weights: Weights,
    pub is_gguf: bool,
    /// The GGUF header; empty for safetensors.
    pub metadata: Metadata,
}

impl Checkpoint {
    /// Opens a GGUF file or a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// Something is missing or damaged; the message says what.
    pub fn open(path: &Path, format: WeightFormat) -> Result<Self> {
        match path.is_dir() {
            true => Self::open_folder(path, format),
            false => Self::open_gguf(path, format),
        }
    }

    fn open_gguf(path: &Path, format: WeightFormat) -> Result<Self> {
        let mut file = GgufFile::open(path)?;
        let metadata = std::mem::take(&mut file.metadata);
        let settings = gguf_settings::to_json(&file, &metadata)
            .with_context(|| format!("{} holds no usable model", path.display()))?;
        Ok(Self {
            settings,
            weights: Weights::new(Box::new(file), format),
            is_gguf: true,
            metadata,
        })
    }

    fn open_folder(folder: &Path, format: WeightFormat) -> Result<Self> {
        let files = SafetensorsFolder::open(folder)?;
        let settings = read_json(&folder.join("config.json"))?.with_context(|| {
            format!("{} has no config.json; a model folder needs it", folder.display())
        })?;
        Ok(Self {
            settings,
            weights: Weights::new(Box::new(files), format),
            is_gguf: false,
            metadata: Metadata::new(),
        })
    }
}

/// A JSON object from a file, or None when there is no such file.
pub fn read_json(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let value: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no JSON; fetch it again", path.display()))?;
    ensure!(value.is_object(), "{} holds no JSON object", path.display());
    Ok(Some(value))
}
