//! The bodies of requests, as the document shows them. Reading them is the endpoints' work, which
//! names the field that is wrong. What depends on the model and the flags is filled in later.
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

/// The one model that is served.
#[derive(Serialize, ToSchema)]
struct ModelName(String);

/// Of the vocabulary.
#[derive(Serialize, ToSchema)]
struct TokenId(u32);

/// What ends an answer.
#[derive(Serialize, ToSchema)]
struct StopString(String);

/// Choices of a prompt.
#[derive(Serialize, ToSchema)]
struct NumChoices(u32);

/// Alternatives of a token.
#[derive(Serialize, ToSchema)]
struct NumLogprobs(u32);

/// A name of letters, digits, `_`, `-` and `.`.
#[derive(Serialize, ToSchema)]
struct FunctionName(String);

/// Decides which tokens matter.
#[derive(Serialize, ToSchema)]
struct PolicyName(String);

/// What the request's KV cache may cost.
#[derive(Serialize, ToSchema)]
struct KvCache {
    /// Share of the bytes that the same tokens take in F16.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    budget: Option<f32>,
    /// The share that memory pressure may push the request down to; the budget when absent.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    min_budget: Option<f32>,
    policy: Option<PolicyName>,
    /// What of the prompt is never evicted.
    #[schema(max_items = 256)]
    protect: Option<Vec<Protected>>,
}

/// Token positions from a start up to an end, or all up to the end of a chat's system message.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Protected {
    Span([u32; 2]),
    Message(ProtectedMessage),
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProtectedMessage {
    System,
}

#[derive(Serialize, ToSchema)]
struct StreamOptions {
    include_usage: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

/// What all requests that generate have in common.
#[derive(Serialize, ToSchema)]
struct Sampling {
    model: Option<ModelName>,
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
    include_stop_str_in_output: Option<bool>,
    #[schema(max_items = 100)]
    stop_token_ids: Option<Vec<TokenId>>,
    #[schema(min_items = 1)]
    allowed_token_ids: Option<Vec<TokenId>>,
    #[schema(max_items = 256)]
    bad_words: Option<Vec<StopString>>,
    n: Option<NumChoices>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    priority: Option<i32>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
    /// Only requests of equal salts begin with what others left in the prefix cache.
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
    response_format: Option<ResponseFormat>,
    /// A JSON schema.
    guided_json: Option<BTreeMap<String, Value>>,
    guided_regex: Option<String>,
    #[schema(min_items = 1)]
    guided_choice: Option<Vec<StopString>>,
    guided_grammar: Option<String>,
    /// vLLM's newer name for the four above.
    structured_outputs: Option<StructuredOutputs>,
}

/// One of them.
#[derive(Serialize, ToSchema)]
struct StructuredOutputs {
    json: Option<BTreeMap<String, Value>>,
    json_object: Option<bool>,
    regex: Option<String>,
    #[schema(min_items = 1)]
    choice: Option<Vec<StopString>>,
    grammar: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Serialize, ToSchema)]
struct NamedSchema {
    name: Option<String>,
    schema: BTreeMap<String, Value>,
    strict: Option<bool>,
}

/// One string, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Stop {
    One(StopString),
    Several(StopStrings),
}

#[derive(Serialize, ToSchema)]
struct StopStrings(Vec<StopString>);

/// A text, token ids, or a list of either.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Prompt {
    Text(PromptText),
    Ids(TokenIds),
    Texts(PromptTexts),
    ManyIds(ManyTokenIds),
}

#[derive(Serialize, ToSchema)]
struct PromptText(String);

#[derive(Serialize, ToSchema)]
struct TokenIds(Vec<TokenId>);

#[derive(Serialize, ToSchema)]
struct PromptTexts(Vec<PromptText>);

#[derive(Serialize, ToSchema)]
struct ManyTokenIds(Vec<TokenIds>);

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
    /// May be missing where an assistant called tools.
    content: Content,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
}

/// A call that the assistant made.
#[derive(Serialize, ToSchema)]
struct Call {
    id: Option<String>,
    r#type: ToolType,
    function: CalledFunction,
}

#[derive(Serialize, ToSchema)]
struct CalledFunction {
    name: FunctionName,
    /// A JSON object, as text.
    arguments: String,
}

#[derive(Serialize, ToSchema)]
struct Tool {
    r#type: ToolType,
    function: Function,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ToolChoice {
    Word(ToolChoiceWord),
    Named(NamedTool),
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ToolChoiceWord {
    None,
    Auto,
    /// Needs `tools`.
    Required,
}

#[derive(Serialize, ToSchema)]
struct NamedTool {
    r#type: ToolType,
    function: NamedFunction,
}

#[derive(Serialize, ToSchema)]
struct NamedFunction {
    name: FunctionName,
}

#[derive(Serialize, ToSchema)]
struct Function {
    name: FunctionName,
    description: Option<String>,
    /// A JSON schema.
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8, "temperature": 0, "kv_cache": {"budget": 0.28},
}))]
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
    /// Needs `logprobs`.
    top_logprobs: Option<NumLogprobs>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<ToolChoice>,
    parallel_tool_calls: Option<bool>,
    add_generation_prompt: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({"prompt": "Once upon a time", "max_tokens": 8, "logprobs": 1, "echo": true}))]
pub struct CompletionRequest {
    #[serde(flatten)]
    sampling: Sampling,
    prompt: Prompt,
    #[schema(minimum = 0)]
    max_tokens: Option<u32>,
    echo: Option<bool>,
    logprobs: Option<NumLogprobs>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    Float,
    Base64,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum PoolingName {
    Mean,
    Last,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({"input": ["a cat", "a dog"], "dimensions": 64}))]
pub struct EmbeddingRequest {
    model: Option<ModelName>,
    input: Prompt,
    encoding_format: Option<EncodingFormat>,
    #[schema(minimum = 1)]
    dimensions: Option<u32>,
    pooling: Option<PoolingName>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
}

/// A text, or messages, calls and their results.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ResponseInput {
    Text(String),
    Items(Vec<ResponseItem>),
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseItem {
    Message { role: Role, content: Content },
    FunctionCall { call_id: String, name: FunctionName, arguments: String },
    FunctionCallOutput { call_id: String, output: String },
}

#[derive(Serialize, ToSchema)]
struct ResponseText {
    format: Option<TextFormat>,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TextFormat {
    Text,
    JsonObject,
    JsonSchema { name: Option<String>, schema: BTreeMap<String, Value> },
}

/// A function.
#[derive(Serialize, ToSchema)]
struct FlatTool {
    r#type: ToolType,
    name: FunctionName,
    description: Option<String>,
    parameters: Option<BTreeMap<String, Value>>,
}

#[derive(Serialize, ToSchema)]
#[schema(example = json!({"input": "What is the capital of France?", "max_output_tokens": 8}))]
pub struct ResponseRequest {
    model: Option<ModelName>,
    input: ResponseInput,
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
    text: Option<ResponseText>,
    tools: Option<Vec<FlatTool>>,
    tool_choice: Option<ToolChoiceWord>,
    parallel_tool_calls: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    #[schema(min_length = 1)]
    cache_salt: Option<String>,
    user: Option<String>,
    kv_cache: Option<KvCache>,
}

#[derive(Serialize, ToSchema)]
pub struct TokenizeRequest {
    model: Option<ModelName>,
    /// This or `messages`.
    prompt: Option<String>,
    #[schema(min_items = 1)]
    messages: Option<Vec<Message>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize, ToSchema)]
pub struct DetokenizeRequest {
    model: Option<ModelName>,
    tokens: Vec<TokenId>,
}
