//! A tiny random model with a tokenizer of single bytes: a server of it starts at once.

use std::{fs, path::PathBuf};

use serde_json::{Map, Value, json};

const NUM_SPECIAL: usize = 3;
const VOCAB_SIZE: usize = 512;
const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";

/// A folder with the model, which is gone when dropped.
pub struct TinyModel(tempfile::TempDir);

impl TinyModel {
    pub fn write() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/tiny-llama3");
        for name in ["config.json", "generation_config.json", "model.safetensors"] {
            fs::copy(fixture.join(name), folder.path().join(name)).unwrap();
        }
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE});
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer.json"), tokenizer().to_string()).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

/// Three special tokens, the 256 bytes, and words that no text makes: every token shows in an answer.
fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let bytes = byte_characters().into_iter().map(String::from);
    let words = (NUM_SPECIAL + 256..VOCAB_SIZE).map(|id| format!("\u{120}w{id}"));
    let tokens = special.into_iter().map(String::from).chain(bytes).chain(words);
    let vocab: Map<_, _> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let added = |(id, content): (usize, &str)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": special.into_iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [],
        },
    })
}

/// GPT-2's characters for the bytes: printable ones are themselves, the others follow from U+0100 on.
fn byte_characters() -> Vec<char> {
    let mut others = '\u{100}'..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => others.next().unwrap(),
    };
    (0..=255).map(character).collect()
}
