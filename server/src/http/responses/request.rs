//! From a request for a response to one for a chat.

use serde_json::{Map, Value, json};

use super::super::App;
use super::super::error::ApiError;
use super::super::fields::{Fields, missing, wrong_type};
use super::super::params::{self, is_empty};
use super::super::user::Caller;
use super::unknown;

/// Fields that mean the same in a chat.
const SHARED: &[&str] = &[
    "allowed_token_ids",
    "bad_words",
    "cache_salt",
    "frequency_penalty",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_json_object",
    "guided_regex",
    "ignore_eos",
    "include_stop_str_in_output",
    "kv_cache",
    "logit_bias",
    "min_p",
    "min_tokens",
    "model",
    "parallel_tool_calls",
    "presence_penalty",
    "priority",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
    "user",
];

/// A request, understood.
pub struct Request {
    /// The same as a chat.
    pub chat: Map<String, Value>,
    /// Its messages without the instructions, which are not passed on to later responses.
    pub messages: Vec<Value>,
    /// Whether others may go on from the response.
    pub store: bool,
}

/// # Errors
/// What has no meaning here, and unknown earlier responses.
pub fn read(fields: &Fields, app: &App, caller: Caller) -> Result<Request, ApiError> {
    let is_false = |value: &Value| *value == Value::Bool(false);
    params::refuse(fields, &[("background", is_false), ("conversation", |_| false)])?;
    params::refuse(fields, &[("prompt", |_| false), ("include", is_empty)])?;
    params::refuse(fields, &[("top_logprobs", |value| *value == json!(0))])?;
    let mut messages = earlier(fields, app, caller)?;
    messages.extend(input(fields)?);
    let mut chat = Map::new();
    for name in SHARED {
        chat.extend(fields.get(name).map(|value| ((*name).to_owned(), value.clone())));
    }
    let instructions = fields.str("instructions")?;
    let system = instructions.map(|text| json!({"role": "system", "content": text}));
    let all: Vec<_> = system.into_iter().chain(messages.iter().cloned()).collect();
    chat.insert("messages".into(), all.into());
    if let Some(max) = fields.get("max_output_tokens") {
        params::integer_at_least_one(fields, "max_output_tokens")?;
        chat.insert("max_completion_tokens".into(), max.clone());
    }
    if let Some(format) = format(fields)? {
        chat.insert("response_format".into(), format);
    }
    if let Some(tools) = fields.array("tools")? {
        let tools: Result<Vec<_>, _> = tools.iter().enumerate().map(tool).collect();
        chat.insert("tools".into(), tools?.into());
    }
    if let Some(choice) = fields.get("tool_choice") {
        chat.insert("tool_choice".into(), tool_choice(choice));
    }
    let store = fields.bool("store")?.unwrap_or(true);
    Ok(Request { chat, messages, store })
}

/// The conversation that this one goes on from.
fn earlier(fields: &Fields, app: &App, caller: Caller) -> Result<Vec<Value>, ApiError> {
    let Some(id) = fields.str("previous_response_id")? else { return Ok(vec![]) };
    let stored = app.responses.get(id, caller);
    let stored = stored.ok_or_else(|| unknown(id).at("previous_response_id"))?;
    Ok(stored.messages.clone())
}

fn input(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    match fields.required("input")? {
        Value::String(text) => Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) => {
            let mut messages = vec![];
            for (i, value) in items.iter().enumerate() {
                item(value, &format!("input[{i}]"), &mut messages)?;
            }
            Ok(messages)
        }
        _ => Err(wrong_type("input", "a string or an array of items")),
    }
}

/// One item of the input: a message, a call that the model made, or its result.
fn item(value: &Value, path: &str, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let fields = Fields::nested(value, path)?;
    match fields.str("type")?.unwrap_or("message") {
        "message" => {
            let role = fields.required("role")?;
            messages.push(json!({"role": role, "content": content(&fields)?}));
        }
        "function_call" => {
            fields.required("name")?;
            let (name, arguments) = (fields.str("name")?, fields.str("arguments")?);
            let function = json!({"name": name, "arguments": arguments.unwrap_or("{}")});
            let call = json!({"id": value["call_id"], "type": "function", "function": function});
            push_call(call, messages);
        }
        "function_call_output" => {
            fields.required("output")?;
            let output = content_of(&fields, "output")?;
            let id = &value["call_id"];
            messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // What a reasoning model thought is not shown to this one.
        "reasoning" => {}
        other => {
            let path = fields.path("type");
            let message = format!("this server does not know items of type `{other}`");
            return Err(ApiError::invalid(path, message));
        }
    }
    Ok(())
}

/// Calls of one turn are one message.
fn push_call(call: Value, messages: &mut Vec<Value>) {
    let calls = messages.last_mut().and_then(|last| last.get_mut("tool_calls"));
    let last = calls.and_then(Value::as_array_mut);
    match last {
        Some(calls) => calls.push(call),
        None => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
    }
}

fn content(fields: &Fields) -> Result<Value, ApiError> {
    fields.required("content")?;
    content_of(fields, "content")
}

/// A text, or the parts of a chat's message.
fn content_of(fields: &Fields, name: &str) -> Result<Value, ApiError> {
    let path = fields.path(name);
    match fields.get(name) {
        Some(Value::String(text)) => Ok(json!(text)),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .map(|(i, value)| part(value, &format!("{path}[{i}]")))
            .collect::<Result<Vec<_>, _>>()
            .map(Value::Array),
        _ => Err(wrong_type(&path, "a string or an array of parts")),
    }
}

fn part(value: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::nested(value, path)?;
    fields.required("type")?;
    match fields.str("type")?.unwrap_or_default() {
        "input_text" | "output_text" | "text" => {
            fields.required("text")?;
            Ok(json!({"type": "text", "text": fields.str("text")?}))
        }
        other => {
            let message = format!("this model reads text only, not parts of type `{other}`");
            Err(ApiError::invalid(fields.path("type"), message))
        }
    }
}

/// `text.format`, in the form that a chat has it.
fn format(fields: &Fields) -> Result<Option<Value>, ApiError> {
    let Some(text) = fields.object("text")? else { return Ok(None) };
    let Some(format) = text.object("format")? else { return Ok(None) };
    format.required("type")?;
    match format.str("type")? {
        Some("json_schema") => {
            let schema = format.required("schema")?;
            let inner = json!({"name": format.str("name")?, "schema": schema});
            Ok(Some(json!({"type": "json_schema", "json_schema": inner})))
        }
        kind => Ok(Some(json!({"type": kind}))),
    }
}

/// Functions lie flat here, and nested in a chat.
fn tool((i, value): (usize, &Value)) -> Result<Value, ApiError> {
    let path = format!("tools[{i}]");
    let mut function = value.as_object().ok_or_else(|| wrong_type(&path, "an object"))?.clone();
    let kind = function.remove("type").ok_or_else(|| missing(&format!("{path}.type")))?;
    Ok(json!({"type": kind, "function": function}))
}

fn tool_choice(choice: &Value) -> Value {
    match choice.get("name") {
        Some(name) => json!({"type": choice["type"], "function": {"name": name}}),
        None => choice.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_after_a_message_leaves_it_as_it_is() {
        let mut messages = vec![json!({"role": "user", "content": "1+1?"})];
        let call = json!({"type": "function_call", "call_id": "c", "name": "add"});
        item(&call, "input[1]", &mut messages).unwrap();
        item(&call, "input[2]", &mut messages).unwrap();
        assert_eq!(messages[0], json!({"role": "user", "content": "1+1?"}));
        assert_eq!(messages[1]["tool_calls"].as_array().unwrap().len(), 2);
    }
}
