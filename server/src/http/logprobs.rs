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
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<TopLogprobs>,
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
    ChatToken {
        chosen: alternative(&(token.id, token.logprobs.chosen)),
        top_logprobs: token.logprobs.top.iter().map(alternative).collect(),
    }
}

impl CompletionLogprobs {
    pub fn new(tokens: &[TextToken], text: &dyn Text) -> Self {
        Self {
            text_offset: tokens.iter().map(|t| t.offset).collect(),
            token_logprobs: tokens.iter().map(|t| t.logprobs.chosen.max(LOWEST)).collect(),
            tokens: tokens.iter().map(|t| token_name(t.id, text)).collect(),
            top_logprobs: tokens.iter().map(|t| top_logprobs(t, text)).collect(),
        }
    }
}

fn top_logprobs(token: &TextToken, text: &dyn Text) -> TopLogprobs {
    let mut top = token.logprobs.top.clone();
    if !top.iter().any(|&(id, _)| id == token.id) {
        top.push((token.id, token.logprobs.chosen));
    }
    TopLogprobs(top.iter().map(|&(id, lp)| (token_name(id, text), lp.max(LOWEST))).collect())
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
