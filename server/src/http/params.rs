//! The request fields that both endpoints share.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::App;
use super::context::TokenLimit;
use super::error::ApiError;
use super::fields::{self, Fields, above_zero, wrong_type};
use super::protect::Protect;
use super::structured;
use super::user::{self, Caller};
use crate::cache::Salt;
use crate::compress::{POLICIES, PolicyId};
use crate::engine::{KvCacheParams, SamplingParams};
use crate::grammar::Constraint;
use crate::sched::UserId;

/// Text is held back while it may be the start of a stop string, so these stay short.
const MAX_STOP_BYTES: usize = 1024;
const MAX_BIASES: usize = 1024;
const MAX_BAD_WORDS: usize = 256;

/// Fields that change the answer and that this server does not know how to honour, each with the
/// values that ask for nothing. Silence would be a wrong answer, so anything else is refused.
const UNSUPPORTED: &[(&str, AsksNothing)] = &[
    ("best_of", |v| v.as_u64() == Some(1)),
    ("function_call", |v| v == "none"),
    ("functions", is_empty),
    ("prompt_logprobs", |_| false),
    ("return_token_ids", is_false),
    ("return_tokens_as_token_ids", is_false),
    ("suffix", |v| v == ""),
    ("truncate_prompt_tokens", |_| false),
    ("use_beam_search", is_false),
];

pub type AsksNothing = fn(&Value) -> bool;

/// What the server does for requests that do not say.
#[derive(Clone, Copy, Debug)]
pub struct KvDefaults {
    pub budget: f32,
    /// Without one, a request's floor is its budget.
    pub min_budget: Option<f32>,
    pub policy: PolicyId,
}

#[derive(Clone, Debug)]
pub struct Params {
    pub sampling: SamplingParams,
    /// None of them empty.
    pub stop: Vec<String>,
    /// Whether the answer has the stop string that ends it.
    pub include_stop: bool,
    pub stop_token_ids: Vec<u32>,
    /// Choices per prompt.
    pub n: usize,
    pub stream: Option<StreamOptions>,
    pub kv_cache: KvCacheParams,
    pub protect: Protect,
    pub priority: i32,
    /// Who asks, unless an API key tells better.
    pub user: UserId,
    /// What the answer must follow.
    pub constraint: Option<Constraint>,
    pub cache_salt: Salt,
}

#[derive(Clone, Copy, Debug)]
pub struct StreamOptions {
    pub include_usage: bool,
    /// Whether each chunk has the tokens so far, which vLLM does on top of the usage at the end.
    pub continuous_usage_stats: bool,
}

impl Params {
    /// Reads everything but `logprobs`, which the endpoints spell differently.
    pub fn read(fields: &Fields, app: &App) -> Result<Self, ApiError> {
        app.check_model(fields.str("model")?)?;
        refuse(fields, UNSUPPORTED)?;
        Ok(Self {
            sampling: sampling(fields, app)?,
            stop: stop_strings(fields, app.limits.max_stop_strings)?,
            include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
            stop_token_ids: stop_token_ids(fields, app)?,
            n: fields.integer("n", 1..=app.limits.max_choices as i64)?.unwrap_or(1),
            stream: stream_options(fields)?,
            kv_cache: kv_cache(fields, &app.kv_cache)?,
            protect: Protect::read(fields)?,
            priority: priority(fields)?,
            user: user::named(fields)?,
            constraint: structured::read(fields, app)?,
            cache_salt: cache_salt(fields)?,
        })
    }

    /// Notes who sent the request, if an API key tells: users are known by it, and each key has a
    /// prefix cache of its own. How soon an answer comes tells nobody what others asked.
    pub fn sent_by(&mut self, caller: Caller) {
        self.user = caller.or_named(self.user);
        self.cache_salt = caller.salted(self.cache_salt);
    }

    /// # Errors
    /// `min_tokens` asks for more than may be generated.
    pub fn check_min_tokens(&self, limit: TokenLimit) -> Result<(), ApiError> {
        let (min, max) = (self.sampling.min_tokens, limit.max_tokens);
        if min <= max {
            return Ok(());
        }
        let message = format!("`min_tokens` is {min}, but {max} tokens at most are generated");
        Err(ApiError::invalid("min_tokens", message))
    }
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

pub fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

/// Refuses those fields of `table` that ask for something.
pub fn refuse(fields: &Fields, table: &[(&str, AsksNothing)]) -> Result<(), ApiError> {
    let asked = |&&(name, asks_nothing): &&(&str, AsksNothing)| {
        fields.get(name).is_some_and(|value| !asks_nothing(value))
    };
    match table.iter().find(asked) {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("this server does not support `{name}`");
            Err(ApiError::invalid(*name, message).code("unsupported_parameter"))
        }
    }
}

/// # Errors
/// The field is there and is no integer above 0.
pub fn integer_at_least_one(fields: &Fields, name: &str) -> Result<(), ApiError> {
    fields.integer::<i64>(name, 1..=i64::from(u32::MAX)).map(drop)
}

fn sampling(fields: &Fields, app: &App) -> Result<SamplingParams, ApiError> {
    let default = SamplingParams::default();
    // vLLM's -1 and our 0 are both "off".
    let top_k: Option<i64> = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(default.temperature),
        top_p: fields.number("top_p", above_zero(1.0))?.unwrap_or(default.top_p),
        top_k: top_k.map_or(default.top_k, |k| k.max(0) as usize),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        seed: fields.seed("seed")?,
        presence_penalty: fields
            .number("presence_penalty", -2.0..=2.0)?
            .unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(default.frequency_penalty),
        repetition_penalty: fields
            .number("repetition_penalty", above_zero(10.0))?
            .unwrap_or(default.repetition_penalty),
        logit_bias: logit_bias(fields, app)?,
        allowed_token_ids: allowed_token_ids(fields, app)?,
        bad_words: bad_words(fields, app)?,
        min_tokens: fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0),
        logprobs: None,
        prompt_logprobs: None,
    })
}

/// An object from token ids, as strings, to biases.
fn logit_bias(fields: &Fields, app: &App) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(vec![]) };
    let num_biases = biases.keys().count();
    if num_biases > MAX_BIASES {
        let message = format!("`logit_bias` has {num_biases} tokens, {MAX_BIASES} at most");
        return Err(ApiError::invalid("logit_bias", message));
    }
    let bias = |key: &str| {
        let id = key.parse().ok().filter(|&id: &u32| (id as usize) < app.text.vocab_size());
        let Some(id) = id else {
            let path = biases.path(key);
            let message = format!("`{path}`: its name must be the id of a token");
            return Err(ApiError::invalid(path, message));
        };
        // `null` is no bias.
        Ok((id, biases.number(key, -100.0..=100.0)?.unwrap_or(0.0)))
    };
    biases.keys().map(bias).collect()
}

/// At least one.
fn allowed_token_ids(fields: &Fields, app: &App) -> Result<Option<Vec<u32>>, ApiError> {
    match fields.array("allowed_token_ids")? {
        None => Ok(None),
        Some([]) => {
            Err(ApiError::invalid("allowed_token_ids", "`allowed_token_ids` must not be empty"))
        }
        Some(ids) => token_ids(ids, "allowed_token_ids", app).map(Some),
    }
}

/// The tokens of each word, at a text's start and after a space.
fn bad_words(fields: &Fields, app: &App) -> Result<Vec<Vec<u32>>, ApiError> {
    let words = fields.array("bad_words")?.unwrap_or_default();
    if words.len() > MAX_BAD_WORDS {
        let message = format!("`bad_words` has {} words, {MAX_BAD_WORDS} at most", words.len());
        return Err(ApiError::invalid("bad_words", message));
    }
    let mut all = vec![];
    for (i, word) in words.iter().enumerate() {
        let path = format!("bad_words[{i}]");
        let word = word.as_str().ok_or_else(|| wrong_type(&path, "a string"))?.trim_start();
        stop_string(word, &path)?;
        for text in [word.to_owned(), format!(" {word}")] {
            let refused = |error| ApiError::invalid(&path, format!("{error:#}"));
            all.push(app.text.encode(&text, false).map_err(refused)?);
        }
    }
    all.retain(|ids| !ids.is_empty());
    all.sort();
    all.dedup();
    Ok(all)
}

/// Lower is more urgent, as in vLLM.
pub fn priority(fields: &Fields) -> Result<i32, ApiError> {
    let range = i64::from(i32::MIN)..=i64::from(i32::MAX);
    Ok(fields.integer("priority", range)?.unwrap_or(0))
}

/// As in vLLM: a string that is not empty. Without one, requests share with all that have none.
fn cache_salt(fields: &Fields) -> Result<Salt, ApiError> {
    match fields.str("cache_salt")? {
        None => Ok(Salt::default()),
        Some("") => {
            let message = "`cache_salt` must be a non-empty string if provided";
            Err(ApiError::invalid("cache_salt", message))
        }
        Some(salt) => Ok(Salt(Sha256::digest(salt).into())),
    }
}

fn stop_strings(fields: &Fields, most: usize) -> Result<Vec<String>, ApiError> {
    match fields.get("stop") {
        None => Ok(vec![]),
        Some(Value::String(stop)) => Ok(vec![stop_string(stop, "stop")?]),
        Some(Value::Array(stops)) if stops.len() > most => {
            let message = format!("`stop` has {} strings, {most} at most are allowed", stops.len());
            Err(ApiError::invalid("stop", message))
        }
        Some(Value::Array(stops)) => stops
            .iter()
            .enumerate()
            .map(|(i, stop)| {
                let path = format!("stop[{i}]");
                let text = stop.as_str().ok_or_else(|| wrong_type(&path, "a string"))?;
                stop_string(text, &path)
            })
            .collect(),
        Some(_) => Err(wrong_type("stop", "a string or an array of strings")),
    }
}

fn stop_string(text: &str, path: &str) -> Result<String, ApiError> {
    match text.len() {
        1..=MAX_STOP_BYTES => Ok(text.to_owned()),
        _ => {
            let message = format!("`{path}` must have from 1 to {MAX_STOP_BYTES} bytes");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// The request's own and, unless they are to be ignored, the model's.
fn stop_token_ids(fields: &Fields, app: &App) -> Result<Vec<u32>, ApiError> {
    let mut ids = match fields.array("stop_token_ids")? {
        None => vec![],
        Some(values) => token_ids(values, "stop_token_ids", app)?,
    };
    if !fields.bool("ignore_eos")?.unwrap_or(false) {
        ids.extend(&app.model.eos_token_ids);
    }
    Ok(ids)
}

/// Ids of the vocabulary.
pub fn token_ids(values: &[Value], path: &str, app: &App) -> Result<Vec<u32>, ApiError> {
    let last = app.text.vocab_size().saturating_sub(1) as i64;
    let id = |(i, value)| fields::integer(value, &format!("{path}[{i}]"), 0..=last);
    values.iter().enumerate().map(id).collect()
}

fn stream_options(fields: &Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    if !stream && options.is_some() {
        let message = "`stream_options` needs `stream` to be true";
        return Err(ApiError::invalid("stream_options", message));
    }
    let flag = |name| -> Result<bool, ApiError> {
        let asked = options.as_ref().map(|options| options.bool(name)).transpose()?;
        Ok(asked.flatten().unwrap_or(false))
    };
    let include_usage = flag("include_usage")?;
    let continuous_usage_stats = flag("continuous_usage_stats")?;
    Ok(stream.then_some(StreamOptions { include_usage, continuous_usage_stats }))
}

pub fn kv_cache(fields: &Fields, defaults: &KvDefaults) -> Result<KvCacheParams, ApiError> {
    let Some(fields) = fields.object("kv_cache")? else {
        let min_budget = defaults.min_budget.unwrap_or(defaults.budget).min(defaults.budget);
        return Ok(KvCacheParams { budget: defaults.budget, min_budget, policy: defaults.policy });
    };
    let known = ["budget", "min_budget", "policy", "protect"];
    if let Some(key) = fields.keys().find(|key| !known.contains(key)) {
        let path = fields.path(key);
        let message = format!("unknown field `{path}`: expected one of {}", known.join(", "));
        return Err(ApiError::invalid(path, message).code("unknown_parameter"));
    }
    let budget = fields.number("budget", above_zero(1.0))?.unwrap_or(defaults.budget);
    let min_budget = fields.number("min_budget", above_zero(1.0))?;
    if min_budget.is_some_and(|min| min > budget) {
        let message = format!("`kv_cache.min_budget` must be at most the budget, {budget}");
        return Err(ApiError::invalid("kv_cache.min_budget", message));
    }
    let min_budget = min_budget.or(defaults.min_budget).unwrap_or(budget).min(budget);
    let policy = fields.str("policy")?.map(policy).transpose()?.unwrap_or(defaults.policy);
    Ok(KvCacheParams { budget, min_budget, policy })
}

fn policy(name: &str) -> Result<PolicyId, ApiError> {
    PolicyId::from_name(name).ok_or_else(|| {
        let names: Vec<_> = POLICIES.iter().map(|policy| policy.name()).collect();
        let message = format!("no policy `{name}`: expected one of {}", names.join(", "));
        ApiError::invalid("kv_cache.policy", message)
    })
}
