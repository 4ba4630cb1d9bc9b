//! Tokenizers from hand-made GGUF headers and tokenizer.json files.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use keepwell_models::TextTokenizer;
use serde_json::json;

type Header = HashMap<String, Value>;

fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(texts.into_iter().map(|t| Value::String(t.to_owned())).collect())
}

/// Keys without `tokenizer.ggml.`.
fn header(entries: Vec<(&str, Value)>) -> Header {
    entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
}

/// A Llama 2 vocabulary in small: <unk>, <s>, </s>, all bytes, then pieces with falling scores.
const PIECES: [&str; 16] = [
    "\u{2581}h",
    "el",
    "lo",
    "hel",
    "\u{2581}hello",
    "\u{2581}",
    "h",
    "e",
    "l",
    "o",
    "w",
    "\u{2581}w",
    "a",
    "\u{2581}a",
    "hello",
    "\u{2581}hel",
];

fn sentencepiece() -> Header {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = ["<unk>", "<s>", "</s>"].into_iter();
    let tokens = tokens.chain(bytes.iter().map(String::as_str)).chain(PIECES);
    let kinds = [2, 3, 3].into_iter().chain([6; 256]).chain([1; PIECES.len()]);
    let scores = [0.0; 259].into_iter().chain((0..PIECES.len()).map(|i| -(i as f32)));
    header(vec![
        ("model", Value::String("llama".to_owned())),
        ("tokens", texts(tokens)),
        ("token_type", Value::Array(kinds.map(Value::I32).collect())),
        ("scores", Value::Array(scores.map(Value::F32).collect())),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("unknown_token_id", Value::U32(0)),
    ])
}

fn piece(text: &str) -> u32 {
    259 + PIECES.iter().position(|p| *p == text).unwrap() as u32
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = TextTokenizer::from_gguf(&sentencepiece()).unwrap();
    let space = "\u{2581}";
    let ids = tokenizer.encode("hello a", true).unwrap();
    assert_eq!(ids, [1, piece("\u{2581}hello"), piece("\u{2581}a")]);
    // "el" has a better score than "lo", so the "l" goes to the left.
    let ids = tokenizer.encode("elo", false).unwrap();
    assert_eq!(ids, [piece(space), piece("el"), piece("o")]);
    let byte = |b: u32| 3 + b;
    let ids = tokenizer.encode("é\n", false).unwrap();
    assert_eq!(ids, [piece(space), byte(0xC3), byte(0xA9), byte(0x0A)]);
    assert_eq!(tokenizer.decode(&ids), "é\n");
}

#[test]
fn sentencepiece_keeps_inner_spaces_and_drops_its_own_first_one() {
    let tokenizer = TextTokenizer::from_gguf(&sentencepiece()).unwrap();
    for text in ["a  w", " a", "hello  hello w"] {
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
    }
    let ids = tokenizer.encode("w", false).unwrap();
    let mut goes_on = tokenizer.stream().continuing();
    assert_eq!(goes_on.push(ids[0]).as_deref(), Some(" w"));
    assert_eq!(tokenizer.token_text(ids[0]), " w");
}

#[test]
fn a_bos_in_the_text_is_not_doubled() {
    let tokenizer = TextTokenizer::from_gguf(&sentencepiece()).unwrap();
    let ids = tokenizer.encode("<s>h", true).unwrap();
    assert_eq!(ids, tokenizer.encode("h", true).unwrap());
    assert_eq!(tokenizer.encode("<s>h", false).unwrap(), ids);
    assert!(tokenizer.encode("", true).unwrap() == [1] && tokenizer.bos_id() == Some(1));
}

#[test]
fn special_tokens_have_no_text_but_a_name() {
    let tokenizer = TextTokenizer::from_gguf(&sentencepiece()).unwrap();
    assert_eq!(tokenizer.decode(&[1, piece("a"), 2]), "a");
    assert_eq!(tokenizer.token_text(2), "</s>");
    assert_eq!(tokenizer.token_bytes(999_999), b"");
    assert_eq!(tokenizer.vocab_size(), 259 + PIECES.len());
}

/// Byte-level BPE: `<|s|>`, `<|e|>`, then one token for each character of the alphabet that the
/// tests use, and two merges.
fn byte_level(pre: &str, extra: Vec<(&str, Value)>) -> Header {
    let alphabet = "0123456789abĠðŁĺĢÃ©";
    let singles: Vec<String> = alphabet.chars().map(String::from).collect();
    let tokens = ["<|s|>", "<|e|>"].into_iter().chain(singles.iter().map(String::as_str));
    let tokens: Vec<&str> = tokens.chain(["Ġa", "12", "mark"]).collect();
    let kinds = tokens.iter().map(|token| match *token {
        "<|s|>" | "<|e|>" => 3,
        "mark" => 4,
        _ => 1,
    });
    let mut entries = vec![
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String(pre.to_owned())),
        ("token_type", Value::Array(kinds.map(Value::I32).collect())),
        ("tokens", texts(tokens)),
        ("merges", texts(["Ġ a", "1 2"])),
        ("bos_token_id", Value::U32(0)),
        ("eos_token_id", Value::U32(1)),
    ];
    entries.extend(extra);
    header(entries)
}

fn pieces(tokenizer: &TextTokenizer, text: &str, add_special: bool) -> Vec<String> {
    let ids = tokenizer.encode(text, add_special).unwrap();
    ids.iter().map(|&id| tokenizer.token_text(id)).collect()
}

#[test]
fn byte_level_text_gets_no_space_in_front_and_digits_are_cut_as_the_header_says() {
    let smollm = TextTokenizer::from_gguf(&byte_level("smollm", vec![])).unwrap();
    assert_eq!(pieces(&smollm, "12 a", true), ["1", "2", " a"]);
    let gpt2 = TextTokenizer::from_gguf(&byte_level("gpt-2", vec![])).unwrap();
    assert_eq!(pieces(&gpt2, "a12 a", true), ["a", "12", " a"]);
    let llama3 = TextTokenizer::from_gguf(&byte_level("llama-bpe", vec![])).unwrap();
    assert_eq!(pieces(&llama3, "a12", true), ["<|s|>", "a", "12"]);
    assert_eq!(pieces(&llama3, "<|s|>a", true), ["<|s|>", "a"]);
}

#[test]
fn the_header_decides_about_bos_and_eos() {
    let flags =
        |bos, eos| vec![("add_bos_token", Value::Bool(bos)), ("add_eos_token", Value::Bool(eos))];
    let tokenizer = TextTokenizer::from_gguf(&byte_level("smollm", flags(true, true))).unwrap();
    assert_eq!(pieces(&tokenizer, "b", true), ["<|s|>", "b", "<|e|>"]);
    assert_eq!(pieces(&tokenizer, "b", false), ["b"]);
    let tokenizer =
        TextTokenizer::from_gguf(&byte_level("llama-bpe", flags(false, false))).unwrap();
    assert_eq!(pieces(&tokenizer, "b", true), ["b"]);
}

#[test]
fn a_user_defined_token_is_whole_and_has_text() {
    let tokenizer = TextTokenizer::from_gguf(&byte_level("smollm", vec![])).unwrap();
    let ids = tokenizer.encode("amarkb", false).unwrap();
    assert_eq!(ids.len(), 3);
    assert_eq!(tokenizer.decode(&ids), "amarkb");
}

#[test]
fn a_stream_never_shows_half_an_emoji() {
    let tokenizer = TextTokenizer::from_gguf(&byte_level("smollm", vec![])).unwrap();
    let ids = tokenizer.encode("é\u{1F600}a", false).unwrap();
    assert_eq!(ids.len(), 7);
    let mut stream = tokenizer.stream();
    let shown: Vec<_> = ids.iter().map(|&id| stream.push(id)).collect();
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(shown, [None, text("é"), None, None, None, text("\u{1F600}"), text("a")]);
    assert_eq!(stream.flush(), None);
    assert_eq!(stream.push(ids[2]), None);
    assert_eq!(stream.flush(), text("\u{FFFD}"));
}

#[test]
fn a_header_that_makes_no_tokenizer_is_refused() {
    let broken: Vec<(&str, Value)> = vec![
        ("model", Value::String("bert".to_owned())),
        ("model", Value::U32(1)),
        ("tokens", Value::U32(1)),
        ("tokens", Value::Array(vec![Value::U32(1)])),
        ("merges", texts(["nospace"])),
        ("merges", texts(["not there"])),
        ("token_type", Value::Array(vec![Value::I32(1)])),
    ];
    for (key, value) in broken {
        let header = byte_level("smollm", vec![(key, value.clone())]);
        assert!(TextTokenizer::from_gguf(&header).is_err(), "{key}: {value:?}");
    }
    let mut header = sentencepiece();
    header.remove("tokenizer.ggml.scores");
    assert!(TextTokenizer::from_gguf(&header).is_err());
}

#[test]
fn a_tokenizer_json_is_read_without_its_truncation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2}, "merges": []},
    });
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let tokenizer = TextTokenizer::from_file(&path, Some("<s>")).unwrap();
    assert_eq!(tokenizer.encode("<s>ab ba", true).unwrap(), [3, 0, 1, 2, 1, 0]);
    assert_eq!((tokenizer.bos_id(), tokenizer.vocab_size()), (Some(3), 4));
    for broken in ["", "{}", "[1]", r#"{"model": 1}"#] {
        std::fs::write(&path, broken).unwrap();
        assert!(TextTokenizer::from_file(&path, None).is_err());
    }
}
