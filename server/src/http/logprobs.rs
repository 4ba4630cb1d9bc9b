//! Log-probabilities in the two formats of the OpenAI API.

use serde::{Serialize, Serializer};

use super::choice::TextToken;
use super::text::Text;

/// JSON has no infinity; this is what OpenAI sends for it.
const LOWEST: f32 = -9999.0;

/// `choices[].logprobs` of chat completions.
#[derive(Serialize)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct ChatToken {
    #[serde(flatten)]
    chosen: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Serialize)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// `choices[].logprobs` of completions: parallel arrays.
#[derive(Serialize)]
pub struct CompletionLogprobs {
    text_offset: Vec<usize>,
    /// `null` for the first token of a prompt, which nothing predicts.
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<TopLogprobs>>,
}

/// An object from token to log-probability, likeliest first, the chosen one always among them.
struct TopLogprobs(Vec<(String, f32)>);

impl ChatLogprobs {
    pub fn new(tokens: &[TextToken], text: &dyn Text) -> Self {
        Self { content: tokens.iter().map(|t| chat_token(t, text)).collect(), refusal: None }
    }
}

fn chat_token(token: &TextToken, text: &dyn Text) -> ChatToken {
    let alternative = |&(id, logprob): &(u32, f32)| {
        let bytes = text.token_bytes(id);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Alternative { token, logprob: logprob.max(LOWEST), bytes }
    };
    let (chosen, top) = match &token.logprobs {
        Some(logprobs) => (logprobs.chosen, &logprobs.top[..]),
        None => (LOWEST, &[][..]),
    };
    ChatToken {
        chosen: alternative(&(token.id, chosen)),
        top_logprobs: top.iter().map(alternative).collect(),
    }
}

impl CompletionLogprobs {
    pub fn new(tokens: &[TextToken], text: &dyn Text) -> Self {
        Self {
            text_offset: tokens.iter().map(|t| t.offset).collect(),
            token_logprobs: tokens.iter().map(chosen_logprob).collect(),
            tokens: tokens.iter().map(|t| token_name(t.id, text)).collect(),
            top_logprobs: tokens.iter().map(|t| top_logprobs(t, text)).collect(),
        }
    }
}

fn chosen_logprob(token: &TextToken) -> Option<f32> {
    token.logprobs.as_ref().map(|logprobs| logprobs.chosen.max(LOWEST))
}

fn top_logprobs(token: &TextToken, text: &dyn Text) -> Option<TopLogprobs> {
    let logprobs = token.logprobs.as_ref()?;
    let mut top = logprobs.top.clone();
    if !top.iter().any(|&(id, _)| id == token.id) {
        top.push((token.id, logprobs.chosen));
    }
    let named = |&(id, logprob): &(u32, f32)| (token_name(id, text), logprob.max(LOWEST));
    Some(TopLogprobs(top.iter().map(named).collect()))
}

/// A token's text or, when its bytes are only part of a character, `bytes:\xe2\x82`.
fn token_name(id: u32, text: &dyn Text) -> String {
    String::from_utf8(text.token_bytes(id)).unwrap_or_else(|error| {
        let hex = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", hex.collect::<String>())
    })
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}
