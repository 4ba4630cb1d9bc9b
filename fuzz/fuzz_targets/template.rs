//! A chat template, then the messages that it is given.
#![no_main]

use keepwell_fuzz::parts;
use keepwell_models::{ChatTemplate, template::Prompt};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// More than the template's fuel pays for.
const MOST: usize = 512 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((messages, source)) = parts(data) else { return };
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let messages: Value = serde_json::from_slice(messages)
        .unwrap_or_else(|_| json!([{"role": "user", "content": String::from_utf8_lossy(messages)}]));
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let tools = template.reads_tools().then_some(&tools);
    let prompt = Prompt { messages: &messages, tools, add_generation_prompt: true };
    if let Ok(text) = template.render(&prompt) {
        assert!(text.len() < MOST);
    }
});
