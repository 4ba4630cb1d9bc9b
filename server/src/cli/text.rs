//! The model's tokenizer and template, as the HTTP layer wants them.

use anyhow::{Context, Result};
use keepwell_models::{ChatTemplate, DecodeStream, TextTokenizer, template::Prompt};

use crate::http::{Chat, Detokenizer, TOOL_FORMATS, Text, ToolFormat, ToolStyle};

pub struct ModelText {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    longest_token: usize,
}

impl ModelText {
    pub fn new(tokenizer: TextTokenizer, template: Option<ChatTemplate>) -> Self {
        let ids = 0..tokenizer.vocab_size() as u32;
        let longest_token = ids.map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        Self { tokenizer, template, longest_token }
    }
}

impl Text for ModelText {
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, add_special)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(self.tokenizer.decode(ids))
    }

    fn render_chat(&self, chat: &Chat) -> Result<String> {
        let template = self.template.as_ref();
        let template = template.context("this model has no chat template: use /v1/completions")?;
        let Chat { messages, tools, add_generation_prompt } = chat;
        let (tools, add_generation_prompt) = (tools.as_ref(), *add_generation_prompt);
        Ok(template.render(&Prompt { messages, tools, add_generation_prompt })?)
    }

    fn tool_style(&self) -> ToolStyle {
        let template = self.template.as_ref();
        let native = template.is_some_and(ChatTemplate::reads_tools);
        let taught = |format: &&ToolFormat| template.is_some_and(|t| t.mentions(format.mark));
        let format = TOOL_FORMATS.iter().find(taught).filter(|_| native);
        ToolStyle { format: format.unwrap_or(&TOOL_FORMATS[0]), native }
    }

    fn detokenizer(&self, continues: bool) -> Box<dyn Detokenizer> {
        let stream = self.tokenizer.stream();
        Box::new(Streaming(if continues { stream.continuing() } else { stream }))
    }

    fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_special(id)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(id).to_vec()
    }

    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn longest_token(&self) -> usize {
        self.longest_token
    }
}

struct Streaming(DecodeStream);

impl Detokenizer for Streaming {
    fn push(&mut self, id: u32) -> String {
        self.0.push(id).unwrap_or_default()
    }

    fn flush(&mut self) -> String {
        self.0.flush().unwrap_or_default()
    }
}
