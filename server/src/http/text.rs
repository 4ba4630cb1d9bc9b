//! What the HTTP layer needs of a tokenizer and a chat template.

use anyhow::Result;
use serde_json::Value;

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

    /// `continues`: the text goes on in the prompt's last line, so that a space at its start counts.
    fn detokenizer(&self, continues: bool) -> Box<dyn Detokenizer>;

    /// The bytes one token stands for; often not UTF-8 by themselves.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    fn vocab_size(&self) -> usize;

    /// Bytes of the text that one token stands for at most.
    fn longest_token(&self) -> usize;
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
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
}
