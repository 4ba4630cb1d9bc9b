//! What the HTTP layer needs of a tokenizer and a chat template.

use anyhow::Result;
use serde_json::Value;

use super::tools::ToolStyle;
use crate::grammar::Grammars;

/// Between text and token ids. All of it may take long for large inputs: call it off the async
/// workers, but for the single tokens that a [`Detokenizer`] takes.
pub trait Text: Send + Sync {
    /// # Errors
    /// What the tokenizer has against the text.
    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>>;

    /// # Errors
    /// Ids outside the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// One conversation as the prompt the model was trained on, its special tokens included.
    ///
    /// # Errors
    /// The model has no template, or the template refuses the conversation.
    fn render_chat(&self, chat: &Chat) -> Result<String>;

    /// How the model is told of tools, and writes calls.
    fn tool_style(&self) -> ToolStyle;

    /// `continues`: the text goes on in the prompt's last line, so that a space at its start counts.
    fn detokenizer(&self, continues: bool) -> Box<dyn Detokenizer>;

    /// Whether the token is a mark of the model's, which no text makes.
    fn is_special(&self, id: u32) -> bool;

    /// The bytes one token stands for; often not UTF-8 by themselves.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    fn vocab_size(&self) -> usize;

    /// Bytes of the text that one token stands for at most.
    fn longest_token(&self) -> usize;
}

/// What grammars are compiled against.
///
/// # Errors
/// The tokenizer has no tokens.
pub fn grammars(text: &dyn Text, eos_token_ids: &[u32]) -> Result<Grammars> {
    let bytes = |id| (!text.is_special(id)).then(|| text.token_bytes(id));
    let tokens: Vec<_> = (0..text.vocab_size() as u32).map(bytes).collect();
    Grammars::new(&tokens, eos_token_ids)
}

/// Turns a sequence's tokens into text as they come.
pub trait Detokenizer: Send {
    /// The text that became certain with this token: empty inside a character.
    fn push(&mut self, id: u32) -> String;

    /// What was held back, when no token follows.
    fn flush(&mut self) -> String;
}

/// What a chat template reads.
pub struct Chat {
    /// An array of objects with `role` and, as a string, `content`.
    pub messages: Value,
    /// As in the request, for templates that know what to do with them.
    pub tools: Option<Value>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
}
