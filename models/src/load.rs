//! From a model's name to a model that runs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use keepwell_kernels::Backend;
use serde_json::Value;

use crate::{
    ChatTemplate, Checkpoint, Model, TextTokenizer, WeightFormat, checkpoint::read_json, fetch,
    registry, tokenizer, weights::gguf::MetadataExt,
};

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where downloads are kept; see [`fetch::cache_dir`] for the default.
    pub cache_dir: Option<PathBuf>,
    pub weights: WeightFormat,
}

/// A model with all it takes to serve it.
pub struct Loaded {
    pub model: Box<dyn Model>,
    pub tokenizer: TextTokenizer,
    /// None when the model brings none; it then has no chat endpoint.
    pub template: Option<ChatTemplate>,
    /// The id under which it is served.
    pub name: String,
    /// Its GGUF file, or its folder.
    pub path: PathBuf,
    /// Each of these ends a sequence. May be empty.
    pub eos_token_ids: Vec<u32>,
}

/// Fetches (see [`fetch`](crate::fetch())) and loads a model.
///
/// # Errors
/// The model cannot be found or fetched, or its files are damaged, incomplete or not supported; the
/// message says which and what to do.
pub fn load(model: &str, options: &LoadOptions, backend: Arc<dyn Backend>) -> Result<Loaded> {
    let path = crate::fetch(model, options)?;
    let checkpoint = Checkpoint::open(&path, options.weights)?;
    let text = match checkpoint.is_gguf {
        true => TextParts::of_gguf(&checkpoint, &path)?,
        false => TextParts::of_folder(&checkpoint, &path)?,
    };
    let model_box = build(&checkpoint, &path, backend)?;
    let vocab_size = model_box.config().vocab_size;
    ensure!(
        text.tokenizer.vocab_size() <= vocab_size,
        "{}: the tokenizer has {} tokens, the model only {vocab_size}: they do not belong together",
        path.display(),
        text.tokenizer.vocab_size()
    );
    Ok(Loaded {
        model: model_box,
        tokenizer: text.tokenizer,
        template: text.template,
        name: fetch::served_name(model),
        path,
        eos_token_ids: text.ends.into_iter().filter(|&id| (id as usize) < vocab_size).collect(),
    })
}

/// Loads the weights alone from a GGUF file or a folder.
///
/// # Errors
/// As [`load`].
pub fn load_model(
    path: &Path,
    weights: WeightFormat,
    backend: Arc<dyn Backend>,
) -> Result<Box<dyn Model>> {
    build(&Checkpoint::open(path, weights)?, path, backend)
}

fn build(
    checkpoint: &Checkpoint,
    path: &Path,
    backend: Arc<dyn Backend>,
) -> Result<Box<dyn Model>> {
    registry::build(checkpoint, backend)
        .with_context(|| format!("{} does not make a model", path.display()))
}

/// What a model brings beside its weights.
struct TextParts {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    ends: BTreeSet<u32>,
}

impl TextParts {
    fn of_gguf(checkpoint: &Checkpoint, path: &Path) -> Result<Self> {
        let metadata = &checkpoint.metadata;
        let shown = path.display();
        let (ends, bos, eos) =
            tokenizer::special_ids(metadata).with_context(|| shown.to_string())?;
        let beside = path.with_file_name("tokenizer.json");
        let tokenizer =
            TextTokenizer::from_gguf(metadata).or_else(|error| match beside.exists() {
                true => TextTokenizer::from_file(&beside, Some(&bos)),
                false => Err(error).with_context(|| {
                    format!("{shown}: its tokenizer cannot be used; put a tokenizer.json beside it")
                }),
            })?;
        let source = metadata.text("tokenizer.chat_template");
        let template = source.and_then(|source| compile(source, &bos, &eos));
        Ok(Self { tokenizer, template, ends: ends.into_iter().collect() })
    }

    fn of_folder(checkpoint: &Checkpoint, folder: &Path) -> Result<Self> {
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let generation = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
        let bos = token_text(&config["bos_token"]);
        let eos = token_text(&config["eos_token"]);
        let tokenizer = TextTokenizer::from_file(&folder.join("tokenizer.json"), Some(&bos))?;
        let mut ends: BTreeSet<u32> = BTreeSet::new();
        ends.extend(ids(&generation["eos_token_id"]));
        ends.extend(ids(&checkpoint.settings["eos_token_id"]));
        ends.extend(tokenizer.token_id(&eos));
        let source = template_source(folder, &config)?;
        let template = source.and_then(|source| compile(&source, &bos, &eos));
        Ok(Self { tokenizer, template, ends })
    }
}

/// A template that does not compile takes away chat, not the model.
fn compile(source: &str, bos: &str, eos: &str) -> Option<ChatTemplate> {
    ChatTemplate::new(source, bos, eos)
        .inspect_err(|error| tracing::warn!("chat is not available: {error}"))
        .ok()
}

/// `chat_template.jinja`, or `chat_template` of tokenizer_config.json: a text, or a list of named
/// ones of which `default` counts.
fn template_source(folder: &Path, config: &Value) -> Result<Option<String>> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        let source = std::fs::read_to_string(&file);
        return source.map(Some).with_context(|| format!("cannot read {}", file.display()));
    }
    let value = &config["chat_template"];
    let named = value.as_array().and_then(|list| list.iter().find(|t| t["name"] == "default"));
    let source = named.map_or(value, |named| &named["template"]);
    Ok(source.as_str().map(str::to_owned))
}

/// A special token is a text or an object with a `content`.
fn token_text(value: &Value) -> String {
    value.as_str().or_else(|| value["content"].as_str()).unwrap_or_default().to_owned()
}

/// One id or a list of ids.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
