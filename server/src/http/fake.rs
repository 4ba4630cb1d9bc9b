//! A tokenizer whose tokens are bytes, to test what needs one.

use std::sync::Arc;

use anyhow::{Result, bail};
use keepwell_kernels::{Choice, open};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::{
    ApiKeys, App, Chat, Detokenizer, Draining, KvDefaults, Limits, Load, ServedModel,
    StoredResponses, TOOL_FORMATS, Text, ToolStyle, grammars,
};
use crate::compress::PolicyId;
use crate::engine::EngineHandle;
use crate::engine::fake::Script;
use crate::metrics::memory::MemoryMeter;

pub const MODEL: &str = "org/bytes";
pub const EOS: u32 = 256;
pub const MAX_MODEL_LEN: usize = 200;
pub const MAX_BODY_BYTES: usize = 64 << 10;
pub const MAX_WAITING: usize = 64;

/// Token id = byte; `EOS` has no text.
pub struct ByteText;

impl Text for ByteText {
    fn encode(&self, text: &str, _add_special: bool) -> Result<Vec<u32>> {
        Ok(ids(text))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        Ok(String::from_utf8(bytes)?)
    }

    /// `user:hi|assistant:`
    fn render_chat(&self, chat: &Chat) -> Result<String> {
        let mut prompt = String::new();
        for message in chat.messages.as_array().unwrap() {
            let (Some(role), Some(content)) =
                (message["role"].as_str(), message["content"].as_str())
            else {
                bail!("a message without text reached the template");
            };
            if content == "panic" {
                panic!("the template panics");
            }
            prompt += &format!("{role}:{content}|");
        }
        Ok(prompt + if chat.add_generation_prompt { "assistant:" } else { "" })
    }

    fn tool_style(&self) -> ToolStyle {
        ToolStyle { format: &TOOL_FORMATS[0], native: false }
    }

    fn detokenizer(&self, _continues: bool) -> Box<dyn Detokenizer> {
        Box::new(ByteDetokenizer::default())
    }

    fn is_special(&self, id: u32) -> bool {
        id == EOS
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        u8::try_from(id).into_iter().collect()
    }

    fn vocab_size(&self) -> usize {
        257
    }

    fn longest_token(&self) -> usize {
        1
    }
}

#[derive(Default)]
struct ByteDetokenizer(Vec<u8>);

impl Detokenizer for ByteDetokenizer {
    fn push(&mut self, id: u32) -> String {
        self.0.push(id as u8);
        match str::from_utf8(&self.0) {
            Ok(_) => self.flush(),
            Err(_) => String::new(),
        }
    }

    fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

pub fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A script that says this text and stops.
pub fn says(text: &str) -> Script {
    Script::Tokens(ids(text))
}

pub fn app(engine: EngineHandle) -> App {
    App {
        engine,
        text: Arc::new(ByteText),
        grammars: grammars(&ByteText, &[EOS]).unwrap(),
        model: ServedModel::new(MODEL.into(), MAX_MODEL_LEN, vec![EOS], 3),
        kv_cache: KvDefaults {
            budget: 0.5,
            min_budget: Some(0.25),
            policy: PolicyId::from_name("attribution").unwrap(),
        },
        metrics: PrometheusBuilder::new().build_recorder().handle(),
        memory: MemoryMeter { backend: open(Choice::Cpu).unwrap().into(), weight_bytes: 0 },
        views: None,
        limits: Limits {
            max_body_bytes: MAX_BODY_BYTES,
            max_waiting: MAX_WAITING,
            ..Limits::default()
        },
        api_keys: ApiKeys::default(),
        cors_origins: vec![],
        load: Load::default(),
        responses: StoredResponses::default(),
        draining: Draining::default(),
    }
}
