//! What a model's settings say, in the vocabulary of Hugging Face's `config.json`.

use anyhow::{Context, Result, bail, ensure};
use keepwell_kernels::Rope;
use serde_json::Value;

use crate::rope;

/// The sizes of a decoder. All are positive; `num_heads` is a multiple of `num_kv_heads`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub architecture: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    /// Channels of one head, even.
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context_len: usize,
    pub rms_norm_eps: f32,
    /// A query at position t sees positions in `(t - window, t]`.
    pub sliding_window: Option<u32>,
    pub rope: Rope,
    /// Whether the output projection is the token embedding.
    pub tied_embeddings: bool,
}

/// No real model comes near it, and products of two sizes stay far from overflow.
const LARGEST_SIZE: usize = 1 << 24;

impl ModelConfig {
    /// Reads the settings shared by all architectures. The sliding window is left to the
    /// architecture.
    ///
    /// # Errors
    /// A missing, absurd or unsupported setting, named.
    pub fn from_json(settings: &Value) -> Result<Self> {
        refuse_unsupported(settings)?;
        let num_heads = size(settings, "num_attention_heads")?;
        let hidden_size = size(settings, "hidden_size")?;
        let context_len = size_or(settings, "max_position_embeddings", 2048)?;
        let head_dim = size_or(settings, "head_dim", hidden_size / num_heads)?;
        ensure!(head_dim.is_multiple_of(2), "`head_dim` is {head_dim}; RoPE needs an even number");
        let config = Self {
            architecture: architecture(settings)?.to_owned(),
            vocab_size: size(settings, "vocab_size")?,
            hidden_size,
            num_layers: size(settings, "num_hidden_layers")?,
            num_heads,
            num_kv_heads: size_or(settings, "num_key_value_heads", num_heads)?,
            head_dim,
            intermediate_size: size(settings, "intermediate_size")?,
            context_len,
            rms_norm_eps: float_or(settings, "rms_norm_eps", 1e-6)? as f32,
            sliding_window: None,
            rope: rope::from_json(settings, head_dim, context_len)?,
            tied_embeddings: flag(settings, "tie_word_embeddings"),
        };
        ensure!(
            config.num_heads.is_multiple_of(config.num_kv_heads),
            "{} query heads cannot share {} KV heads evenly",
            config.num_heads,
            config.num_kv_heads
        );
        ensure!(config.rms_norm_eps >= 0.0, "`rms_norm_eps` must not be negative");
        Ok(config)
    }

    /// Width of the fused q, k and v: `(H + 2G) * D`.
    pub fn qkv_size(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }
}

/// The `model_type` of the settings.
pub fn architecture(settings: &Value) -> Result<&str> {
    settings["model_type"].as_str().context("the settings name no `model_type`")
}

fn refuse_unsupported(settings: &Value) -> Result<()> {
    for bias in ["attention_bias", "mlp_bias"] {
        ensure!(!flag(settings, bias), "`{bias}` is set; biases are not supported");
    }
    if let Some(activation) = settings["hidden_act"].as_str() {
        ensure!(activation == "silu", "activation `{activation}` is not supported, only `silu`");
    }
    Ok(())
}

/// A required positive size.
fn size(settings: &Value, key: &str) -> Result<usize> {
    match optional_size(settings, key)? {
        Some(size) => Ok(size),
        None => bail!("the settings lack `{key}`"),
    }
}

fn size_or(settings: &Value, key: &str, default: usize) -> Result<usize> {
    let size = optional_size(settings, key)?.unwrap_or(default);
    ensure!(size > 0, "`{key}` comes to 0; the settings contradict each other");
    Ok(size)
}

/// A size, when it is there and not null.
pub fn optional_size(settings: &Value, key: &str) -> Result<Option<usize>> {
    let value = &settings[key];
    if value.is_null() {
        return Ok(None);
    }
    let size = value.as_u64().and_then(|v| usize::try_from(v).ok());
    match size {
        Some(size) if (1..=LARGEST_SIZE).contains(&size) => Ok(Some(size)),
        _ => bail!("`{key}` is {value}; it must be an integer in 1..={LARGEST_SIZE}"),
    }
}

/// A finite number, or `default` when the key is missing or null.
pub fn float_or(settings: &Value, key: &str, default: f64) -> Result<f64> {
    let value = &settings[key];
    if value.is_null() {
        return Ok(default);
    }
    value
        .as_f64()
        .filter(|v| v.is_finite())
        .with_context(|| format!("`{key}` is {value}, no number"))
}

fn flag(settings: &Value, key: &str) -> bool {
    settings[key].as_bool().unwrap_or(false)
}
