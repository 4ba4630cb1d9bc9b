//! One tiny model in every file format: all say nearly the same.

mod common;

use std::{path::Path, sync::Arc};

use candle_core::quantized::{GgmlDType, gguf_file::Value};
use common::files;
use keepwell_kernels::{Backend, available, portable::Portable};
use keepwell_models::{Model, WeightFormat, load_model};
use serde_json::json;

const TOKENS: [u32; 12] = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26];

fn open(path: &Path, weights: WeightFormat) -> Box<dyn Model> {
    load_model(path, weights, backend()).unwrap()
}

fn every_backend() -> impl Iterator<Item = Arc<dyn Backend>> {
    available().into_iter().map(Arc::from)
}

fn backend() -> Arc<dyn Backend> {
    Arc::from(available().remove(0))
}

fn logprobs(model: &dyn Model) -> Vec<Vec<f32>> {
    logprobs_on(&*backend(), model)
}

fn logprobs_on(backend: &dyn Backend, model: &dyn Model) -> Vec<Vec<f32>> {
    let mut sequence = common::Sequence::new(backend, model.config(), TOKENS.len());
    sequence.feed(model, &TOKENS, &(0..TOKENS.len()).collect::<Vec<_>>())
}

fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let squares: f32 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
    (squares / a.iter().flatten().count() as f32).sqrt()
}

fn reference() -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = files::write_folder(folder.path(), &files::config(), "F32");
    logprobs(&*open(&path, WeightFormat::AsFile))
}

#[test]
fn every_gguf_format_loads_and_says_what_the_floats_say() {
    let reference = reference();
    // Largest root mean square difference of log-probabilities, by the format's own loss.
    let formats = [
        (GgmlDType::F32, 1e-4),
        (GgmlDType::F16, 2e-3),
        (GgmlDType::BF16, 1e-2),
        (GgmlDType::Q8_0, 3e-2),
        (GgmlDType::Q6K, 0.1),
        (GgmlDType::Q5K, 0.2),
        (GgmlDType::Q4K, 0.5),
        (GgmlDType::Q4_1, 0.5),
        (GgmlDType::Q4_0, 0.5),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (dtype, tolerance) in formats {
        let path = folder.path().join(format!("{dtype:?}.gguf"));
        files::write_gguf(&path, dtype, &[]);
        for weights in [WeightFormat::AsFile, WeightFormat::F32] {
            let off = distance(&logprobs(&*open(&path, weights)), &reference);
            assert!(off < tolerance, "{dtype:?} as {weights:?} is off by {off}");
        }
    }
}

#[test]
fn a_quantized_model_says_the_same_on_every_backend() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [GgmlDType::Q4_1, GgmlDType::Q8_0, GgmlDType::Q6K] {
        let path = folder.path().join(format!("{dtype:?}.gguf"));
        files::write_gguf(&path, dtype, &[]);
        let says = |backend: Arc<dyn Backend>| {
            let model = load_model(&path, WeightFormat::AsFile, backend.clone()).unwrap();
            logprobs_on(&*backend, &*model)
        };
        let right = says(Arc::new(Portable));
        for backend in every_backend() {
            let off = distance(&says(backend.clone()), &right);
            // Keys and values are rounded to f16, up or down.
            assert!(off < 1e-3, "{}: {dtype:?} is off by {off}", backend.name());
        }
    }
}

#[test]
fn quantized_weights_take_the_bytes_of_their_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    files::write_gguf(&path, GgmlDType::Q8_0, &[]);
    let quantized = open(&path, WeightFormat::AsFile).bytes();
    let floats = open(&path, WeightFormat::F32).bytes();
    assert!(quantized * 3 < floats, "{quantized} and {floats} bytes");
}

#[test]
fn safetensors_load_in_every_float_format_whole_or_in_shards() {
    let reference = reference();
    for (dtype, tolerance) in [("F32", 1e-6), ("F16", 2e-3), ("BF16", 2e-2)] {
        let folder = tempfile::tempdir().unwrap();
        let path = files::write_folder(folder.path(), &files::config(), dtype);
        let off = distance(&logprobs(&*open(&path, WeightFormat::AsFile)), &reference);
        assert!(off < tolerance, "{dtype} is off by {off}");
    }
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path());
    let off = distance(&logprobs(&*open(folder.path(), WeightFormat::AsFile)), &reference);
    assert!(off < 1e-6, "shards are off by {off}");
}

fn write_shards(folder: &Path) {
    let tensors = files::tensors();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (name, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        files::write_safetensors(&folder.join(name), part, "F32");
        map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(folder.join("config.json"), files::config().to_string()).unwrap();
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path());
    std::fs::remove_file(folder.path().join("b.safetensors")).unwrap();
    let error = load_model(folder.path(), WeightFormat::AsFile, backend()).err().unwrap();
    assert!(format!("{error:#}").contains("b.safetensors"), "{error:#}");
}

#[test]
fn rope_scaling_of_a_gguf_header_equals_that_of_a_config() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = |name: &str, extra: &[(&str, Value)]| {
        let path = folder.path().join(name);
        files::write_gguf(&path, GgmlDType::F32, extra);
        open(&path, WeightFormat::AsFile).config().rope.clone()
    };
    let config = |scaling: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = files::config();
        config["rope_scaling"] = scaling;
        let path = files::write_folder(folder.path(), &config, "F32");
        open(&path, WeightFormat::AsFile).config().rope.clone()
    };
    let kind = |kind: &str| ("llama.rope.scaling.type", Value::String(kind.to_owned()));
    let factor = ("llama.rope.scaling.factor", Value::F32(4.0));
    let original = ("llama.rope.scaling.original_context_length", Value::U32(32));
    let linear = config(json!({"type": "linear", "factor": 4.0}));
    assert_eq!(gguf("linear", &[kind("linear"), factor.clone()]), linear);
    assert_eq!(gguf("old", &[("llama.rope.scale_linear", Value::F32(4.0))]), linear);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    assert_eq!(gguf("yarn", &[kind("yarn"), factor, original]), config(yarn));
}

#[test]
fn a_gguf_file_may_state_a_sliding_window() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    files::write_gguf(
        &path,
        GgmlDType::Q4_0,
        &[("llama.attention.sliding_window", Value::U32(16))],
    );
    assert_eq!(open(&path, WeightFormat::AsFile).config().sliding_window, Some(16));
}

#[test]
fn only_the_wanted_rows_get_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = files::write_folder(folder.path(), &files::config(), "F32");
    for backend in every_backend() {
        let model = load_model(&path, WeightFormat::AsFile, backend.clone()).unwrap();
        let all = logprobs_on(&*backend, &*model);
        let mut sequence = common::Sequence::new(&*backend, model.config(), TOKENS.len());
        // As the chunks of a prompt but the last, which want no logits.
        assert!(sequence.feed(&*model, &TOKENS[..4], &[]).is_empty());
        let some = sequence.feed(&*model, &TOKENS[4..], &[0, 5]);
        assert!(distance(&some, &[all[4].clone(), all[9].clone()]) < 1e-3);
    }
}
