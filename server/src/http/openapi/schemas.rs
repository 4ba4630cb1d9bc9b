//! The bodies of requests, as the document shows them. Reading them is the endpoints' work, which
//! names the field that is wrong.
#![allow(dead_code)] // Described, never made.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Every answer that is not a success.
#[derive(Serialize, ToSchema)]
pub struct ErrorEnvelope {
    error: ErrorBody,
}

#[derive(Serialize, ToSchema)]
struct ErrorBody {
    message: String,
    r#type: String,
    /// The field at fault, as a path.
    param: Option<String>,
    code: Option<String>,
}

/// What the request's KV cache may cost.
#[derive(Serialize, ToSchema)]
struct KvCache {
    /// Share of the bytes that the same tokens take in F16.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    budget: Option<f32>,
    /// The share that memory pressure may push the request down to; the budget when absent.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    min_budget: Option<f32>,
    policy: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// What all requests that generate have in common.
#[derive(Serialize, ToSchema)]
struct Sampling {
    model: Option<String>,
    #[schema(minimum = 0.0, maximum = 2.0)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    top_p: Option<f32>,
    #[schema(minimum = -1)]
    top_k: Option<i32>,
    #[schema(minimum = 0.0, maximum = 1.0)]
    min_p: Option<f32>,
    seed: Option<i64>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2.0, maximum = 2.0)]
    frequency_penalty: Option<f32>,
    #[schema(exclusive_minimum = 0.0, maximum = 10.0)]
    repetition_penalty: Option<f32>,
    /// From token ids to numbers from -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
    #[schema(minimum = 0)]
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    stop: Option<Stop>,
    #[schema(max_items = 100)]
    stop_token_ids: Option<Vec<u32>>,
    #[schema(minimum = 1, maximum = 16)]
    n: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    priority: Option<i32>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
    /// `text`, `json_object` or `json_schema`.
    response_format: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
}

/// Up to four strings.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// A text, token ids, or a list of either.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A string, or parts of text.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Serialize, ToSchema)]
struct Part {
    r#type: PartType,
    text: String,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PartType {
    Text,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ToolType {
    Function,
}

#[derive(Serialize, ToSchema)]
struct Message {
    role: Role,
    content: Option<Content>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Tool {
    r#type: ToolType,
    function: Function,
}

#[derive(Serialize, ToSchema)]
struct Function {
    name: String,
    description: Option<String>,
    /// A JSON schema.
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
pub struct ChatRequest {
    #[serde(flatten)]
    sampling: Sampling,
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    logprobs: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or a function.
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    add_generation_prompt: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub struct CompletionRequest {
    #[serde(flatten)]
    sampling: Sampling,
    prompt: Prompt,
    #[schema(minimum = 0)]
    max_tokens: Option<u32>,
    echo: Option<bool>,
    #[schema(minimum = 0, maximum = 20)]
    logprobs: Option<u32>,
}

#[derive(Serialize, ToSchema)]
pub struct EmbeddingRequest {
    model: Option<String>,
    input: Prompt,
    /// `float` or `base64`.
    encoding_format: Option<String>,
    #[schema(minimum = 1)]
    dimensions: Option<u32>,
    /// `mean` or `last`.
    pooling: Option<String>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
}

#[derive(Serialize, ToSchema)]
pub struct ResponseRequest {
    model: Option<String>,
    /// A text, or items: messages, calls and their results.
    input: Value,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    stream: Option<bool>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<u32>,
    #[schema(minimum = 0.0, maximum = 2.0)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    top_p: Option<f32>,
    /// Its `format` is `text`, `json_object` or `json_schema`.
    text: Option<BTreeMap<String, Value>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
}

#[derive(Serialize, ToSchema)]
pub struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}
