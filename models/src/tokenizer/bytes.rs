//! The bytes each token stands for.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use tokenizers::{DecoderWrapper, Tokenizer, pre_tokenizers::metaspace::PrependScheme};

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// GPT-2: every byte has a printable character of its own.
    ByteLevel,
    /// SentencePiece: U+2581 is a space, `<0x0A>` a byte.
    SentencePiece,
}

/// The space of SentencePiece.
pub const SPACE_MARK: char = '\u{2581}';
/// No vocabulary comes near it; a table of this length is still small.
const LARGEST_VOCABULARY: usize = 1 << 24;

pub struct TokenBytes {
    bytes: Vec<u8>,
    /// Token i is `bytes[starts[i]..starts[i + 1]]`.
    starts: Vec<usize>,
    /// Whether the first space of a text is one the tokenizer added.
    pub strips_first_space: bool,
}

impl TokenBytes {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let (spelling, strips_first_space) = spelling(tokenizer.get_decoder())?;
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |&id| id as usize + 1);
        ensure!(len <= LARGEST_VOCABULARY, "a token has id {}, which is absurd", len - 1);
        let mut tokens = vec![""; len];
        for (token, &id) in &vocab {
            tokens[id as usize] = token;
        }
        let byte_of = byte_level_alphabet();
        let mut table = Self { bytes: vec![], starts: vec![0], strips_first_space };
        for token in tokens {
            match spelling {
                Spelling::ByteLevel => table.push_byte_level(token, &byte_of),
                Spelling::SentencePiece => table.push_sentencepiece(token),
            }
            table.starts.push(table.bytes.len());
        }
        Ok(table)
    }

    fn push_byte_level(&mut self, token: &str, byte_of: &HashMap<char, u8>) {
        let start = self.bytes.len();
        for c in token.chars() {
            let Some(&byte) = byte_of.get(&c) else {
                // An added token, written as plain text.
                self.bytes.truncate(start);
                self.bytes.extend_from_slice(token.as_bytes());
                return;
            };
            self.bytes.push(byte);
        }
    }

    fn push_sentencepiece(&mut self, token: &str) {
        match byte_token(token) {
            Some(byte) => self.bytes.push(byte),
            None => self.bytes.extend(token.replace(SPACE_MARK, " ").bytes()),
        }
    }

    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match id < self.len() {
            true => &self.bytes[self.starts[id]..self.starts[id + 1]],
            false => &[],
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's characters: printable bytes are themselves, the others follow from U+0100 on.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut spell = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    };
    (0..=255).map(|byte| (spell(byte), byte)).collect()
}

/// How the decoder reads tokens, and whether it drops the first space.
fn spelling(decoder: Option<&DecoderWrapper>) -> Result<(Spelling, bool)> {
    let mut kinds = vec![];
    if let Some(decoder) = decoder {
        flatten(decoder, &mut kinds);
    }
    let has = |wanted: fn(&DecoderWrapper) -> bool| kinds.iter().any(|kind| wanted(kind));
    if has(|kind| matches!(kind, DecoderWrapper::ByteLevel(_))) {
        return Ok((Spelling::ByteLevel, false));
    }
    let metaspace = has(|kind| matches!(kind, DecoderWrapper::Metaspace(_)));
    if !metaspace && !has(|kind| matches!(kind, DecoderWrapper::ByteFallback(_))) {
        bail!("its decoder is neither byte-level nor SentencePiece; other kinds are not supported");
    }
    let prepends = |kind: &DecoderWrapper| match kind {
        DecoderWrapper::Metaspace(m) => m.get_prepend_scheme() != PrependScheme::Never,
        DecoderWrapper::Strip(strip) => strip.start > 0,
        _ => false,
    };
    Ok((Spelling::SentencePiece, has(prepends)))
}

fn flatten<'a>(decoder: &'a DecoderWrapper, into: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|inner| flatten(inner, into));
        }
        _ => into.push(decoder),
    }
}
