//! A whole model folder: weights, tokenizer, chat template and end tokens.

mod common;

use std::{path::Path, sync::Arc};

use common::files;
use keepwell_kernels::available;
use keepwell_models::{LoadOptions, Loaded, load, template::Prompt};
use serde_json::{Value, json};

fn write(folder: &Path, name: &str, value: Value) {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    std::fs::write(folder.join(name), text).unwrap();
}

/// A byte-level tokenizer of `len` tokens, the last three of them special.
fn tokenizer(len: u32) -> Value {
    let vocab: serde_json::Map<String, Value> = (0..len - 3)
        .map(|id| (char::from_u32(0x100 + id).unwrap().to_string(), json!(id)))
        .collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "normalizer": null, "post_processor": null,
        "added_tokens": [special(len - 3, "<s>"), special(len - 2, "</s>"), special(len - 1, "<end>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = files::config();
    config["eos_token_id"] = json!(7);
    files::write_folder(folder.path(), &config, "BF16");
    write(folder.path(), "tokenizer.json", tokenizer(96));
    folder
}

fn try_load(folder: &Path) -> anyhow::Result<Loaded> {
    load(folder.to_str().unwrap(), &LoadOptions::default(), Arc::from(available().remove(0)))
}

fn rendered(loaded: &Loaded) -> Option<String> {
    let messages = json!([{"role": "user", "content": "x"}]);
    let prompt = Prompt { messages: &messages, tools: None, add_generation_prompt: false };
    loaded.template.as_ref().map(|template| template.render(&prompt).unwrap())
}

#[test]
fn ends_come_from_every_place_that_names_them() {
    let folder = folder();
    write(folder.path(), "generation_config.json", json!({"eos_token_id": [5, 6, 1_000_000]}));
    let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    write(folder.path(), "tokenizer_config.json", config);
    let loaded = try_load(folder.path()).unwrap();
    assert_eq!(loaded.eos_token_ids, [5, 6, 7, 94]);
    assert_eq!(loaded.tokenizer.bos_id(), Some(93));
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(loaded.name, name);
}

#[test]
fn a_chat_template_comes_as_text_as_a_list_or_as_a_file() {
    let folder = folder();
    assert_eq!(rendered(&try_load(folder.path()).unwrap()), None);
    let config = |template: Value| json!({"eos_token": "</s>", "chat_template": template});
    write(folder.path(), "tokenizer_config.json", config(json!("text{{ eos_token }}")));
    assert_eq!(rendered(&try_load(folder.path()).unwrap()).as_deref(), Some("text</s>"));
    let list = json!([{"name": "rag", "template": "no"}, {"name": "default", "template": "list"}]);
    write(folder.path(), "tokenizer_config.json", config(list));
    assert_eq!(rendered(&try_load(folder.path()).unwrap()).as_deref(), Some("list"));
    write(folder.path(), "chat_template.jinja", json!("file"));
    assert_eq!(rendered(&try_load(folder.path()).unwrap()).as_deref(), Some("file"));
    write(folder.path(), "chat_template.jinja", json!("{% broken"));
    assert_eq!(rendered(&try_load(folder.path()).unwrap()), None);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = folder();
    write(folder.path(), "tokenizer.json", tokenizer(97));
    let error = format!("{:#}", try_load(folder.path()).err().unwrap());
    assert!(error.contains("has 97 tokens, the model only 96"), "{error}");
}

#[test]
fn a_damaged_side_file_is_named() {
    for name in ["tokenizer_config.json", "generation_config.json", "config.json"] {
        let folder = folder();
        write(folder.path(), name, json!("{ cut off"));
        let error = format!("{:#}", try_load(folder.path()).err().unwrap());
        assert!(error.contains(name), "{error}");
    }
}
