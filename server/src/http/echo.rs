//! A prompt that its answer repeats, with the log-probabilities of its tokens.

use super::choice::TextToken;
use super::text::Text;
use crate::engine::TokenLogprobs;

/// The tokens of a prompt in its text.
#[derive(Clone)]
pub struct Echo {
    /// Characters of the prompt's text.
    pub num_chars: usize,
    ids: Vec<u32>,
    /// For each token, the characters before it.
    offsets: Vec<usize>,
    /// Of the tokens after the first, as far as they are known.
    logprobs: Vec<TokenLogprobs>,
}

impl Echo {
    pub fn new(prompt: &str, ids: &[u32], text: &dyn Text) -> Self {
        let mut detokenizer = text.detokenizer(false);
        let mut num_decoded = 0;
        let mut offset = |id: &u32| {
            let offset = num_decoded;
            num_decoded += detokenizer.push(*id).chars().count();
            offset
        };
        let offsets = ids.iter().map(&mut offset).collect();
        let num_chars = prompt.chars().count();
        Self { num_chars, ids: ids.to_vec(), offsets, logprobs: vec![] }
    }

    pub fn extend(&mut self, logprobs: Vec<TokenLogprobs>) {
        self.logprobs.extend(logprobs);
    }

    /// The prompt's tokens; the first has no log-probability.
    pub fn into_tokens(self) -> Vec<TextToken> {
        let logprobs = std::iter::once(None).chain(self.logprobs.into_iter().map(Some));
        let tokens = self.ids.into_iter().zip(self.offsets).zip(logprobs);
        tokens.map(|((id, offset), logprobs)| TextToken { id, logprobs, offset }).collect()
    }
}
