//! Damaged, hostile and contradictory files end in an error that says what is wrong.

mod common;

use std::{path::Path, sync::Arc};

use candle_core::quantized::{GgmlDType, gguf_file::Value};
use common::files;
use keepwell_kernels::available;
use keepwell_models::{LoadOptions, WeightFormat, fetch, load, load_model};
use serde_json::json;

fn error(path: &Path) -> String {
    let backend = Arc::from(available().remove(0));
    format!("{:#}", load_model(path, WeightFormat::AsFile, backend).err().expect("it is refused"))
}

#[test]
fn a_gguf_file_cut_off_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    files::write_gguf(&path, GgmlDType::Q8_0, &[]);
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 3, 8, 20, 100, 400, 1200, whole.len() / 2, whole.len() - 64] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(error(&path).contains("fetch it again"), "{len} bytes: {}", error(&path));
    }
}

#[test]
fn a_gguf_file_with_any_byte_of_its_header_changed_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    files::write_gguf(&path, GgmlDType::Q8_0, &[("general.alignment", Value::U32(32))]);
    let whole = std::fs::read(&path).unwrap();
    let backend: Arc<dyn keepwell_kernels::Backend> = Arc::from(available().remove(0));
    for place in (0..1600).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0xA5;
        std::fs::write(&path, &damaged).unwrap();
        let _ = load_model(&path, WeightFormat::AsFile, backend.clone());
    }
}

#[test]
fn a_gguf_file_with_alignment_zero_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    files::write_gguf(&path, GgmlDType::F16, &[("general.alignment", Value::U32(0))]);
    assert!(error(&path).contains("no GGUF file or is damaged"));
}

/// In memory such a list would take 32 times what it takes in the file.
#[test]
fn a_gguf_file_whose_header_goes_on_and_on_is_refused_before_it_is_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend(0u64.to_le_bytes()); // tensors
    header.extend(1u64.to_le_bytes()); // settings
    header.extend(1u64.to_le_bytes()); // length of the key
    header.extend(b"a");
    header.extend(9u32.to_le_bytes()); // a list
    header.extend(0u32.to_le_bytes()); // of bytes
    header.extend((1u64 << 30).to_le_bytes());
    std::fs::write(&path, &header).unwrap();
    // The bytes are there, in a file with a hole.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(header.len() as u64 + (1 << 30)).unwrap();
    assert!(error(&path).contains("no GGUF file or is damaged"), "{}", error(&path));
}

#[test]
fn a_safetensors_file_cut_off_or_lying_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    files::write_folder(folder.path(), &files::config(), "F16");
    let path = folder.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(error(folder.path()).contains("fetch it again"), "{len} bytes");
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, &huge).unwrap();
    assert!(error(folder.path()).contains("no safetensors file"));
    let headers = [
        r#"{"a": {"dtype": "F32", "shape": [18446744073709551615, 2], "data_offsets": [0, 8]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [18446744073709551615, 7]}}"#,
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#,
        r#"{"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}"#,
        r#"{"a": 1}"#,
        r#"[1, 2]"#,
    ];
    for header in headers {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend([0; 64]);
        std::fs::write(&path, file).unwrap();
        error(folder.path());
    }
}

#[test]
fn absurd_settings_are_refused_by_name() {
    let cases = [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("num_attention_heads", json!("four")),
        ("num_attention_heads", json!(u64::MAX)),
        ("num_hidden_layers", json!(0)),
        ("hidden_size", json!(0)),
        ("hidden_size", json!(128)),
        ("vocab_size", json!(97)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(4)),
        ("num_hidden_layers", json!(3)),
        ("head_dim", json!(63)),
        ("rms_norm_eps", json!("small")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 0})),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0})),
        ("tie_word_embeddings", json!(false)),
        ("model_type", json!(null)),
    ];
    for (key, value) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut config = files::config();
        config[key] = value.clone();
        let path = files::write_folder(folder.path(), &config, "F16");
        assert!(!error(&path).is_empty(), "{key}: {value}");
    }
}

#[test]
fn an_unknown_architecture_is_answered_with_the_known_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = files::config();
    config["model_type"] = json!("rwkv");
    let path = files::write_folder(folder.path(), &config, "F16");
    assert!(error(&path).contains("`rwkv` is not supported; known are llama, mistral"));
}

#[test]
fn a_model_that_is_nowhere_is_refused_with_what_would_do() {
    let refuse = |model: &str| format!("{:#}", fetch(model, &LoadOptions::default()).unwrap_err());
    assert!(refuse("no-such-model").contains("org/name"));
    let folder = tempfile::tempdir().unwrap();
    assert!(refuse(folder.path().to_str().unwrap()).contains("holds no model"));
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    assert!(refuse(folder.path().to_str().unwrap()).contains("2 GGUF files; name one"));
}

#[test]
fn a_model_without_a_tokenizer_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let path = files::write_folder(folder.path(), &files::config(), "F16");
    let load = |path: &Path| {
        let backend = Arc::from(available().remove(0));
        let loaded = load(path.to_str().unwrap(), &LoadOptions::default(), backend);
        format!("{:#}", loaded.err().unwrap())
    };
    assert!(load(&path).contains("put the model's tokenizer.json beside"));
    let path = folder.path().join("model.gguf");
    files::write_gguf(&path, GgmlDType::F16, &[]);
    assert!(load(&path).contains("has no tokenizer"));
}
