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

/// One moment of the server. Metrics are by name, and lack the labels that all series share.
#[derive(Serialize, ToSchema)]
pub struct DashboardState {
    server: DashboardServer,
    gauges: BTreeMap<String, Vec<DashboardSeries>>,
    counters: BTreeMap<String, Vec<DashboardSeries>>,
    /// `ttft`, `itl`, `e2e` and `queue`.
    histograms: BTreeMap<String, DashboardHistogram>,
    /// What runs and waits, oldest first.
    sequences: Vec<DashboardSequence>,
}

#[derive(Serialize, ToSchema)]
struct DashboardServer {
    version: String,
    model: String,
    max_model_len: u32,
    /// Of requests that name none.
    budget: f32,
    /// Whether `/debug/kv` tells of requests.
    debug_kv: bool,
}

#[derive(Serialize, ToSchema)]
struct DashboardSeries {
    labels: BTreeMap<String, String>,
    value: f64,
}

#[derive(Serialize, ToSchema)]
struct DashboardHistogram {
    /// Pairs of an upper bound in seconds and how many were not above it.
    buckets: Vec<Vec<f64>>,
    sum: f64,
    count: f64,
}

#[derive(Serialize, ToSchema)]
struct DashboardSequence {
    id: u64,
    /// `prefill`, `decode`, or what it waits for: `sequences`, `memory`, `step` or `preempted`.
    stage: String,
    prompt_tokens: u32,
    /// Those whose keys and values are in the cache.
    computed_tokens: u32,
    generated_tokens: u32,
    max_tokens: u32,
    /// In force.
    budget: f32,
    asked_budget: f32,
    kv_bytes: u64,
    /// What the same tokens take in F16.
    f16_bytes: u64,
}

/// The last requests whose cache can be looked at, newest first.
#[derive(Serialize, ToSchema)]
pub struct KeptRequests {
    requests: Vec<KeptRequest>,
}

#[derive(Serialize, ToSchema)]
struct KeptRequest {
    /// That of the answer.
    id: String,
    tokens: u32,
    budget: f32,
}

/// What the cache kept of a request, over all layers or of one.
#[derive(Serialize, ToSchema)]
pub struct KeptCache {
    id: String,
    budget: f32,
    /// `null`: over all layers.
    layer: Option<u32>,
    num_layers: u32,
    /// Tokens of the prompt; those after it are the answer's.
    prompt_tokens: u32,
    bytes: u64,
    f16_bytes: u64,
    /// Bits of a value in each tier that is used, metadata included.
    bits: BTreeMap<String, f32>,
    tokens: Vec<KeptToken>,
}

#[derive(Serialize, ToSchema)]
struct KeptToken {
    text: String,
    /// Mean over heads, an evicted entry counting 0.
    bits: f32,
    /// Attribution as a multiple of the head's mean, mean over the heads that hold the token.
    score: Option<f32>,
    /// The same when it was evicted, over the heads that did.
    evicted_score: Option<f32>,
    /// Heads by what they keep the token in; `evicted` among them.
    tiers: BTreeMap<String, u32>,
}
