//! A JSON schema, a regular expression or Lark, by the first byte; then an answer that follows it.
#![no_main]

use std::sync::LazyLock;

use keepwell_server::grammar::{Constraint, Grammar, Grammars, Verdict};
use libfuzzer_sys::fuzz_target;

const EOS: u32 = 256;
const WORDS: [&str; 8] = ["{\"", "true", "\":", "\",", " \"", "null", "0.", "abc"];

/// Bytes, an end, and a few words.
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(|| {
    let mut tokens: Vec<_> = (0..=255u8).map(|byte| Some(vec![byte])).collect();
    tokens.push(None);
    tokens.extend(WORDS.map(|word| Some(word.into())));
    Grammars::new(&tokens, &[EOS]).expect("a vocabulary")
});

fuzz_target!(|data: &[u8]| {
    let Some((kind, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let grammar = match kind % 3 {
        0 => match serde_json::from_str(text) {
            Ok(schema) => Grammar::JsonSchema(schema),
            Err(_) => return,
        },
        1 => Grammar::Regex(text.to_owned()),
        _ => Grammar::Lark(text.to_owned()),
    };
    if let Ok(constraint) = GRAMMARS.compile(&grammar) {
        follow(constraint, text.len());
    }
});

/// Takes tokens that the grammar allows, not always the first.
fn follow(mut constraint: Constraint, seed: usize) {
    for nth in 0..40 {
        let mut logits = [0.0; 257 + WORDS.len()];
        let Ok(Verdict::Open) = constraint.mask(&mut logits) else { return };
        let allowed: Vec<u32> = (0..).zip(logits).filter(|(_, l)| *l == 0.0).map(|(id, _)| id).collect();
        assert!(!allowed.is_empty(), "open, and nothing may follow");
        let id = allowed[(seed + nth * 7) % allowed.len()];
        if id == EOS || constraint.accept(id) != Ok(Verdict::Open) {
            return;
        }
    }
}
