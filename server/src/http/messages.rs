//! The messages of a chat, checked and brought to the form that templates read.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, missing, wrong_type};

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool", "function"];

/// `messages` with every content a string.
pub fn read(fields: &Fields) -> Result<Vec<Value>, ApiError> {
    fields.required("messages")?;
    let messages = fields.array("messages")?.unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` must not be empty"));
    }
    messages.iter().enumerate().map(|(i, m)| message(m, &format!("messages[{i}]"))).collect()
}

/// Other fields pass through: templates may read them. Those that are null are absent: templates
/// ask whether there are calls, and SDKs send back what they got, nulls and all.
fn message(value: &Value, path: &str) -> Result<Value, ApiError> {
    let fields = Fields::nested(value, path)?;
    let role = role(&fields)?;
    let mut message = value.clone();
    if let Value::Object(fields) = &mut message {
        fields.retain(|_, value| !value.is_null());
    }
    message["content"] = json!(content(&fields, role)?);
    if let Some(calls) = fields.array("tool_calls")? {
        message["tool_calls"] = json!(tool_calls(calls, &fields.path("tool_calls"))?);
    }
    Ok(message)
}

/// Templates read the arguments as an object; requests have them as its text.
fn tool_calls(calls: &[Value], path: &str) -> Result<Vec<Value>, ApiError> {
    let call = |(i, call): (usize, &Value)| {
        let fields = Fields::nested(call, &format!("{path}[{i}]"))?;
        fields.required("function")?;
        let Some(function) = fields.object("function")? else { unreachable!("it is required") };
        function.required("name")?;
        function.str("name")?;
        let mut call = call.clone();
        if let Some(Value::String(text)) = function.get("arguments")
            && let Ok(arguments @ Value::Object(_)) = serde_json::from_str(text)
        {
            call["function"]["arguments"] = arguments;
        }
        Ok(call)
    };
    calls.iter().enumerate().map(call).collect()
}

fn role<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    fields.required("role")?;
    let role = fields.str("role")?.unwrap_or_default();
    if ROLES.contains(&role) {
        return Ok(role);
    }
    let message = format!("no role `{role}`: expected one of {}", ROLES.join(", "));
    Err(ApiError::invalid(fields.path("role"), message))
}

fn content(fields: &Fields, role: &str) -> Result<String, ApiError> {
    let path = fields.path("content");
    match fields.get("content") {
        // An assistant that called a tool said nothing.
        None if role == "assistant" => Ok(String::new()),
        None => Err(missing(&path)),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Array(parts)) => parts_text(parts, &path),
        Some(_) => Err(wrong_type(&path, "a string or an array of parts")),
    }
}

/// The text of the parts, a line each, as vLLM and llama.cpp do it.
fn parts_text(parts: &[Value], path: &str) -> Result<String, ApiError> {
    let parts: Result<Vec<_>, _> = parts
        .iter()
        .enumerate()
        .map(|(i, part)| part_text(part, &format!("{path}[{i}]")))
        .collect();
    Ok(parts?.join("\n"))
}

fn part_text<'a>(part: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    let fields = Fields::nested(part, path)?;
    fields.required("type")?;
    let kind = fields.str("type")?.unwrap_or_default();
    if kind != "text" {
        let message = format!("this model reads text only, not parts of type `{kind}`");
        return Err(ApiError::invalid(fields.path("type"), message));
    }
    fields.required("text")?;
    Ok(fields.str("text")?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_null_are_absent_for_the_template() {
        let said =
            json!({"role": "assistant", "content": null, "tool_calls": null, "refusal": null});
        let body = json!({"messages": [said]});
        let messages = read(&Fields::root(body.as_object().unwrap())).unwrap();
        assert_eq!(messages, [json!({"role": "assistant", "content": ""})]);
    }
}
