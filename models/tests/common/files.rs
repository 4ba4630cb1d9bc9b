//! Small model files, made on the spot.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use serde_json::{Value as Json, json};

/// A tensor by its Hugging Face name.
pub type Named = (String, Tensor);

/// Vocabulary, hidden size, query heads, KV heads, head size, feed-forward size of the tiny model.
pub const VOCAB: usize = 96;
pub const HIDDEN: usize = 256;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 64;
pub const WIDE: usize = 512;
pub const LAYERS: usize = 2;

pub fn config() -> Json {
    json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    })
}

/// The weights of a tied model with reproducible random values.
pub fn tensors() -> Vec<Named> {
    let mut seed = 7u64;
    let mut random = |rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((seed >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.25
            })
            .collect();
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    };
    let ones = || Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu).unwrap();
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), random(VOCAB, HIDDEN)),
        ("model.norm.weight".to_owned(), ones()),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, tensor| {
            all.push((format!("model.layers.{layer}.{name}.weight"), tensor));
        };
        add("input_layernorm", ones());
        add("post_attention_layernorm", ones());
        add("self_attn.q_proj", random(HEADS * HEAD_DIM, HIDDEN));
        add("self_attn.k_proj", random(KV_HEADS * HEAD_DIM, HIDDEN));
        add("self_attn.v_proj", random(KV_HEADS * HEAD_DIM, HIDDEN));
        add("self_attn.o_proj", random(HIDDEN, HEADS * HEAD_DIM));
        add("mlp.gate_proj", random(WIDE, HIDDEN));
        add("mlp.up_proj", random(WIDE, HIDDEN));
        add("mlp.down_proj", random(HIDDEN, WIDE));
    }
    all
}

/// Writes a GGUF file as llama.cpp's converter does: other names, q and k permuted.
pub fn write_gguf(path: &Path, dtype: GgmlDType, extra: &[(&str, Value)]) {
    let tensors: Vec<(String, QTensor)> = tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let heads = if name.contains("q_proj") { HEADS } else { KV_HEADS };
            let rotary = name.contains("q_proj") || name.contains("k_proj");
            let tensor = if rotary { interleave(&tensor, heads) } else { tensor };
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            (gguf_name(&name), QTensor::quantize(&tensor, dtype).unwrap())
        })
        .collect();
    let mut metadata = metadata();
    metadata.retain(|(key, _)| !extra.iter().any(|(other, _)| other == key));
    metadata.extend(extra.iter().cloned());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

fn metadata() -> Vec<(&'static str, Value)> {
    vec![
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.embedding_length", Value::U32(HIDDEN as u32)),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.attention.head_count", Value::U32(HEADS as u32)),
        ("llama.attention.head_count_kv", Value::U32(KV_HEADS as u32)),
        ("llama.feed_forward_length", Value::U32(WIDE as u32)),
        ("llama.context_length", Value::U32(128)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.freq_base", Value::F32(10000.0)),
    ]
}

fn interleave(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = tensor.dims2().unwrap();
    let split = tensor.reshape((heads, 2, rows / heads / 2, cols)).unwrap();
    split.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

fn gguf_name(name: &str) -> String {
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Writes one safetensors file; `dtype` is its name in the format.
pub fn write_safetensors(path: &Path, tensors: &[Named], dtype: &str) {
    let mut header = serde_json::Map::new();
    let mut data = vec![];
    for (name, tensor) in tensors {
        let start = data.len();
        for value in tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
            match dtype {
                "F32" => data.extend(value.to_le_bytes()),
                "F16" => data.extend(half::f16::from_f32(value).to_le_bytes()),
                "BF16" => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                _ => unreachable!(),
            }
        }
        let offsets = [start, data.len()];
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": tensor.dims(), "data_offsets": offsets}),
        );
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

/// A folder with the tiny model.
pub fn write_folder(folder: &Path, config: &Json, dtype: &str) -> PathBuf {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    write_safetensors(&folder.join("model.safetensors"), &tensors(), dtype);
    folder.to_owned()
}
