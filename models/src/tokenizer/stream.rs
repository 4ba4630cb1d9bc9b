//! Token by token to text, never half a character.

use super::TextTokenizer;

/// Turns a sequence's tokens into text as they come. A character that spans tokens is held back
/// until it is whole. The pieces, put together, equal [`TextTokenizer::decode`].
pub struct DecodeStream {
    tokenizer: TextTokenizer,
    /// Bytes of an incomplete character: at most three.
    held: Vec<u8>,
    drop_space: bool,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: TextTokenizer) -> Self {
        let drop_space = tokenizer.strips_first_space();
        Self { tokenizer, held: vec![], drop_space }
    }

    /// For text that goes on from a prompt: keeps the first space, which SentencePiece tokenizers
    /// otherwise count as their own.
    pub fn continuing(mut self) -> Self {
        self.drop_space = false;
        self
    }

    /// Takes one token; returns the text that became whole, if any. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.tokenizer.is_special(id) {
            return None;
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if std::mem::take(&mut self.drop_space) {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.held.extend_from_slice(bytes);
        let text = take_whole(&mut self.held);
        (!text.is_empty()).then_some(text)
    }

    /// What is left at the end: an incomplete character, as U+FFFD.
    pub fn flush(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| String::from_utf8_lossy(&held).into_owned())
    }
}

/// Takes all whole characters off the front; bytes that can never become one turn into U+FFFD.
fn take_whole(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in held.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == held.len();
        if invalid.is_empty() || (at_end && may_continue(invalid)) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    held.drain(..taken);
    text
}

/// Whether bytes at the end of the input are the start of a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_possible_start_of_a_character_is_held_back() {
        let mut held = b"ab\xF0\x9F\x98".to_vec();
        assert_eq!(take_whole(&mut held), "ab");
        assert_eq!(held, b"\xF0\x9F\x98");
        held.push(0x80);
        assert_eq!(take_whole(&mut held), "\u{1F600}");
        let mut broken = b"\xFFx\xC3".to_vec();
        assert_eq!(take_whole(&mut broken), "\u{FFFD}x");
        assert_eq!(broken, b"\xC3");
    }
}
