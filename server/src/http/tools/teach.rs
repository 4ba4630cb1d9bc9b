//! Tools for models whose chat template knows none: the format of Hermes, in plain messages.

use serde_json::{Value, json};

/// Puts the tools into the system message, and calls and results into plain text.
pub fn teach(messages: &mut Vec<Value>, tools: &[Value]) {
    messages.iter_mut().for_each(plain);
    if tools.is_empty() {
        return;
    }
    let lesson = lesson(tools);
    let first = messages.first_mut().filter(|m| m["role"] == "system" || m["role"] == "developer");
    match first {
        Some(system) => {
            let content = system["content"].as_str().unwrap_or_default();
            system["content"] = json!(format!("{content}\n\n{lesson}"));
        }
        None => messages.insert(0, json!({"role": "system", "content": lesson})),
    }
}

fn lesson(tools: &[Value]) -> String {
    let signatures: String = tools.iter().map(|tool| format!("{tool}\n")).collect();
    format!(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
         You are provided with function signatures within <tools></tools> XML tags:\n\
         <tools>\n{signatures}</tools>\n\n\
         For each function call, return a json object with function name and arguments within \
         <tool_call></tool_call> XML tags:\n\
         <tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>"
    )
}

fn plain(message: &mut Value) {
    let content = message["content"].as_str().unwrap_or_default().to_owned();
    if message["role"] == "tool" {
        let result = format!("<tool_response>\n{content}\n</tool_response>");
        *message = json!({"role": "user", "content": result});
    } else if let Some(calls) = message["tool_calls"].as_array() {
        let calls: Vec<_> = calls.iter().map(call).collect();
        let parts = [content].into_iter().filter(|text| !text.is_empty()).chain(calls);
        let content = parts.collect::<Vec<_>>().join("\n");
        *message = json!({"role": message["role"], "content": content});
    }
}

fn call(call: &Value) -> String {
    let function = &call["function"];
    let call = json!({"name": function["name"], "arguments": function["arguments"]});
    format!("<tool_call>\n{call}\n</tool_call>")
}
