//! A response in the making: its items, and the object that clients get.

use serde_json::{Map, Value, json};

use super::super::chat::call_id;
use super::super::choice::Delta;
use super::super::envelope::unix_seconds;
use super::super::usage::Usage;
use super::super::user::Caller;
use crate::engine::FinishReason;

/// Fields of the request that the response repeats, with what they are when absent.
fn repeated() -> [(&'static str, Value); 12] {
    [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("store", json!(true)),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", json!(1.0)),
        ("user", Value::Null),
    ]
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    InProgress,
    Completed,
    /// It reached its limit of tokens, or the server shut down.
    Incomplete(&'static str),
    Failed,
}

/// An item of the output.
#[derive(Clone, Debug)]
pub enum Item {
    Message { id: String, text: String },
    Call { id: String, call_id: String, name: String, arguments: String },
}

/// A response until it is complete.
pub struct Making {
    id: String,
    created: u64,
    model: String,
    request: Map<String, Value>,
    /// What was said before.
    messages: Vec<Value>,
    /// Who may go on from it, if it is kept.
    pub keeper: Option<Caller>,
    items: Vec<Item>,
    status: Status,
}

impl Making {
    pub fn new(
        model: &str,
        request: Map<String, Value>,
        messages: Vec<Value>,
        keeper: Option<Caller>,
    ) -> Self {
        Self {
            id: new_id("resp"),
            created: unix_seconds(),
            model: model.to_owned(),
            request,
            messages,
            keeper,
            items: vec![],
            status: Status::InProgress,
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn items(&self) -> &[Item] {
        &self.items
    }

    pub fn take(&mut self, delta: &Delta) {
        if !delta.text.is_empty() {
            match self.items.last_mut() {
                Some(Item::Message { text, .. }) => *text += &delta.text,
                _ => {
                    let (id, text) = (new_id("msg"), delta.text.clone());
                    self.items.push(Item::Message { id, text });
                }
            }
        }
        for piece in &delta.calls {
            if let Some(name) = piece.name.clone() {
                let (id, call_id) = (new_id("fc"), call_id());
                self.items.push(Item::Call { id, call_id, name, arguments: String::new() });
            }
            if let Some(Item::Call { arguments, .. }) = self.items.last_mut() {
                *arguments += &piece.arguments;
            }
        }
    }

    pub fn finish(&mut self, reason: FinishReason) {
        self.status = match reason {
            FinishReason::Stop => Status::Completed,
            FinishReason::Length => Status::Incomplete("max_output_tokens"),
            FinishReason::Abort => Status::Incomplete("server_shutdown"),
        };
        if self.items.is_empty() {
            let (id, text) = (new_id("msg"), String::new());
            self.items.push(Item::Message { id, text });
        }
    }

    pub fn fail(&mut self) {
        self.status = Status::Failed;
    }

    /// The conversation, for those that go on from here.
    pub fn conversation(&self) -> Vec<Value> {
        let text = |item: &Item| match item {
            Item::Message { text, .. } => Some(text.clone()),
            Item::Call { .. } => None,
        };
        let call = |item: &Item| match item {
            Item::Message { .. } => None,
            Item::Call { call_id, name, arguments, .. } => Some(json!({
                "id": call_id, "type": "function",
                "function": {"name": name, "arguments": arguments},
            })),
        };
        let content: String = self.items.iter().filter_map(text).collect();
        let calls: Vec<_> = self.items.iter().filter_map(call).collect();
        let mut answer = json!({"role": "assistant", "content": content});
        if !calls.is_empty() {
            answer["tool_calls"] = calls.into();
        }
        self.messages.iter().cloned().chain([answer]).collect()
    }

    /// What the client gets.
    pub fn object(&self, usage: Option<&Usage>) -> Value {
        let mut object = json!({
            "id": self.id, "object": "response", "created_at": self.created,
            "status": self.status.name(), "model": self.model, "error": null,
            "incomplete_details": self.status.details(),
            "output": self.items.iter().map(|item| item.object(self.status)).collect::<Vec<_>>(),
            "usage": usage.map(usage_object),
            "background": false, "service_tier": "default", "truncation": "disabled",
            "reasoning": {"effort": null, "summary": null},
        });
        for (name, default) in repeated() {
            let asked = self.request.get(name).filter(|value| !value.is_null());
            object[name] = asked.cloned().unwrap_or(default);
        }
        object
    }
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
            Self::Failed => "failed",
        }
    }

    fn details(self) -> Value {
        match self {
            Self::Incomplete(reason) => json!({"reason": reason}),
            _ => Value::Null,
        }
    }
}

impl Item {
    pub fn id(&self) -> &str {
        match self {
            Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }

    pub fn object(&self, status: Status) -> Value {
        let status = status.name();
        match self {
            Self::Message { id, text } => json!({
                "type": "message", "id": id, "status": status, "role": "assistant",
                "content": [text_part(text)],
            }),
            Self::Call { id, call_id, name, arguments } => json!({
                "type": "function_call", "id": id, "call_id": call_id, "status": status,
                "name": name, "arguments": arguments,
            }),
        }
    }
}

pub fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage_object(usage: &Usage) -> Value {
    let tokens = usage.tokens();
    let all = json!(usage);
    json!({
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": all["prompt_tokens_details"],
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens.total_tokens,
        "kv_cache": all["kv_cache"],
    })
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{:032x}", rand::random::<u128>())
}
