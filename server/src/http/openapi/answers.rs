//! The bodies of answers, as the document shows them. The schema fuzzer holds the server to them.
#![allow(dead_code)] // Described, never made.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A server-sent event of a streamed answer.
#[derive(Serialize, ToSchema)]
pub struct StreamEvent {
    /// A chunk as JSON, or `[DONE]` at the end of a chat or a completion.
    data: String,
    /// A response's events have names.
    event: Option<String>,
}

/// The answer to a chat that is not streamed.
#[derive(Serialize, ToSchema)]
pub struct ChatAnswer {
    id: String,
    object: String,
    /// Unix seconds.
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: AnswerUsage,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: u32,
    message: AnswerMessage,
    logprobs: Option<AnswerChatLogprobs>,
    /// `stop`, `length`, `tool_calls` or `abort`.
    finish_reason: Option<String>,
    /// The stop string or token that ended it.
    stop_reason: Option<Value>,
}

#[derive(Serialize, ToSchema)]
struct AnswerMessage {
    role: String,
    /// `null` when there is nothing but calls.
    content: Option<String>,
    refusal: Option<String>,
    tool_calls: Option<Vec<AnswerCall>>,
}

#[derive(Serialize, ToSchema)]
struct AnswerCall {
    id: String,
    r#type: String,
    function: AnswerFunction,
}

#[derive(Serialize, ToSchema)]
struct AnswerFunction {
    name: String,
    /// JSON.
    arguments: String,
}

#[derive(Serialize, ToSchema)]
struct AnswerChatLogprobs {
    content: Vec<AnswerToken>,
    refusal: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct AnswerToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<AnswerAlternative>,
}

#[derive(Serialize, ToSchema)]
struct AnswerAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The answer to a completion that is not streamed.
#[derive(Serialize, ToSchema)]
pub struct CompletionAnswer {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: AnswerUsage,
}

#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    index: u32,
    text: String,
    logprobs: Option<AnswerCompletionLogprobs>,
    finish_reason: Option<String>,
    stop_reason: Option<Value>,
}

/// Parallel arrays.
#[derive(Serialize, ToSchema)]
struct AnswerCompletionLogprobs {
    text_offset: Vec<u32>,
    tokens: Vec<String>,
    /// `null` for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}

/// What a request cost.
#[derive(Serialize, ToSchema)]
struct AnswerUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: CachedTokens,
    kv_cache: AnswerKvCache,
}

#[derive(Serialize, ToSchema)]
struct CachedTokens {
    /// Tokens of the prompt that were in the prefix cache.
    cached_tokens: u32,
}

/// Summed over the choices.
#[derive(Serialize, ToSchema)]
struct AnswerKvCache {
    budget: f32,
    /// The least that was in force at any time.
    lowest_budget: f32,
    bytes: u64,
    peak_bytes: u64,
    /// What the same tokens take in F16.
    f16_bytes: u64,
    /// (token, layer, KV head) entries by tier, and those evicted.
    tokens: BTreeMap<String, u64>,
}

#[derive(Serialize, ToSchema)]
pub struct EmbeddingAnswer {
    object: String,
    data: Vec<AnswerEmbedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Serialize, ToSchema)]
struct AnswerEmbedding {
    object: String,
    index: u32,
    embedding: AnswerVector,
}

/// Of length 1; in base64 the floats are little-endian.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum AnswerVector {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// The fields of the request that are not named here are repeated.
#[derive(Serialize, ToSchema)]
pub struct ResponseAnswer {
    id: String,
    object: String,
    created_at: u64,
    /// `completed`, `incomplete`, `in_progress` or `failed`.
    status: String,
    model: String,
    /// Messages and function calls.
    output: Vec<BTreeMap<String, Value>>,
    usage: Option<ResponseUsage>,
    error: Option<BTreeMap<String, Value>>,
    incomplete_details: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
struct ResponseUsage {
    input_tokens: u32,
    input_tokens_details: CachedTokens,
    output_tokens: u32,
    output_tokens_details: ReasoningTokens,
    total_tokens: u32,
    kv_cache: AnswerKvCache,
}

#[derive(Serialize, ToSchema)]
struct ReasoningTokens {
    reasoning_tokens: u32,
}

#[derive(Serialize, ToSchema)]
pub struct ResponseDeleted {
    id: String,
    object: String,
    deleted: bool,
}

#[derive(Serialize, ToSchema)]
pub struct ModelList {
    object: String,
    data: Vec<ModelCard>,
}

#[derive(Serialize, ToSchema)]
pub struct ModelCard {
    id: String,
    object: String,
    created: u64,
    owned_by: String,
    /// Tokens of prompt and answer together.
    max_model_len: u32,
}

#[derive(Serialize, ToSchema)]
pub struct TokenizeAnswer {
    count: u32,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize, ToSchema)]
pub struct DetokenizeAnswer {
    prompt: String,
}

#[derive(Serialize, ToSchema)]
pub struct VersionAnswer {
    version: String,
}

#[derive(Serialize, ToSchema)]
pub struct LoadAnswer {
    /// Requests being answered.
    server_load: u32,
}
