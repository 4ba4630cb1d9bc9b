//! A GGUF header's settings in the vocabulary of `config.json`, so that one reader serves both.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{
    TensorFile,
    gguf::{GgufFile, Metadata, MetadataExt},
};

/// (GGUF key after the architecture, `config.json` key).
const SIZES: [(&str, &str); 7] = [
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("attention.sliding_window", "sliding_window"),
];

/// # Errors
/// The header lacks what every model has, or asks for what is not supported.
pub fn to_json(file: &GgufFile, metadata: &Metadata) -> Result<Value> {
    let architecture = metadata.text("general.architecture");
    let architecture = architecture.context("the header lacks `general.architecture`")?;
    let reader = Reader { metadata, architecture };
    let mut settings = Map::new();
    settings.insert("model_type".to_owned(), architecture.into());
    for (key, ours) in SIZES {
        if let Some(size) = reader.size(key)? {
            settings.insert(ours.to_owned(), size.into());
        }
    }
    if let Some(dim) = reader.head_dim(&settings)? {
        settings.insert("head_dim".to_owned(), dim.into());
    }
    if let Some(eps) = reader.float("attention.layer_norm_rms_epsilon") {
        settings.insert("rms_norm_eps".to_owned(), eps.into());
    }
    let embedding =
        file.info("model.embed_tokens.weight").context("`token_embd.weight` is missing")?;
    settings.insert("vocab_size".to_owned(), embedding.shape.first().copied().into());
    settings.insert("tie_word_embeddings".to_owned(), file.info("lm_head.weight").is_none().into());
    settings.insert("rope_parameters".to_owned(), reader.rope());
    Ok(Value::Object(settings))
}

struct Reader<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.metadata.float(&self.key(key))
    }

    /// One number, even where the format allows one per layer.
    fn size(&self, key: &str) -> Result<Option<u64>> {
        let key = self.key(key);
        if let Some(values) = self.metadata.integers(&key) {
            ensure!(values.iter().all(|v| *v == values[0]), "`{key}` differs between layers");
            return Ok(values.first().copied());
        }
        Ok(self.metadata.integer(&key))
    }

    /// The head size when the header states it.
    fn head_dim(&self, settings: &Map<String, Value>) -> Result<Option<u64>> {
        let key = self.size("attention.key_length")?;
        let value = self.size("attention.value_length")?;
        ensure!(key == value || value.is_none(), "keys and values of different size");
        let derived = || {
            let heads = settings.get("num_attention_heads")?.as_u64().filter(|h| *h > 0)?;
            settings.get("hidden_size")?.as_u64().map(|hidden| hidden / heads)
        };
        let head_dim = key.or_else(derived);
        let rotary = self.size("rope.dimension_count")?;
        ensure!(
            rotary.is_none() || head_dim.is_none() || rotary == head_dim,
            "a partial rotary embedding ({rotary:?} of {head_dim:?}) is not supported"
        );
        Ok(key)
    }

    fn rope(&self) -> Value {
        let mut rope = Map::new();
        let mut set = |key: &str, value: Option<f64>| {
            if let Some(value) = value {
                rope.insert(key.to_owned(), json!(value));
            }
        };
        // Before rope.scaling.* there was one key for linear scaling.
        let linear = self.float("rope.scale_linear");
        set("rope_theta", self.float("rope.freq_base"));
        set("factor", self.float("rope.scaling.factor").or(linear));
        set("beta_fast", self.float("rope.scaling.yarn_beta_fast"));
        set("beta_slow", self.float("rope.scaling.yarn_beta_slow"));
        let original = self.float("rope.scaling.original_context_length");
        set("original_max_position_embeddings", original);
        let kind = match self.metadata.text(&self.key("rope.scaling.type")) {
            Some("none") => "default",
            Some(kind) => kind,
            None if linear.is_some() => "linear",
            None => "default",
        };
        rope.insert("rope_type".to_owned(), kind.into());
        // `attn_factor` multiplies YaRN's own temperature; transformers wants the product.
        let factor = self.float("rope.scaling.factor").unwrap_or(1.0).max(1.0);
        if let Some(extra) = self.float("rope.scaling.attn_factor") {
            rope.insert("attention_factor".to_owned(), json!(extra * (0.1 * factor.ln() + 1.0)));
        }
        Value::Object(rope)
    }
}
