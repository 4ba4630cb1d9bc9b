//! SmolLM2-135M-Instruct against Hugging Face transformers on the same weights in f32. These tests
//! fetch the model (98 MB, once).

mod common;

use std::sync::Arc;

use keepwell_kernels::{Backend, available};
use keepwell_models::{LoadOptions, Loaded, WeightFormat, load, template::Prompt};

fn backend() -> Arc<dyn Backend> {
    Arc::from(available().remove(0))
}

fn loaded(weights: WeightFormat) -> Loaded {
    let options = LoadOptions { weights, ..Default::default() };
    load("smollm2", &options, backend()).unwrap()
}

/// Largest allowed difference of log-probabilities, and of the mean NLL.
fn check(weights: WeightFormat, tolerance: f32, nll_tolerance: f32) {
    let loaded = loaded(weights);
    let golden = common::golden("smollm2.json");
    for (index, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
        let got = common::compare(&*loaded.model, &*backend(), case, usize::MAX);
        let place = format!("{weights:?}, case {index}");
        assert!(got.top10 < tolerance, "{place}: log-probabilities off by {}", got.top10);
        assert!(got.nll < nll_tolerance, "{place}: mean NLL off by {}", got.nll);
        assert!(got.greedy_gap < tolerance, "{place}: greedy tokens off by {}", got.greedy_gap);
    }
}

#[test]
fn dequantized_it_says_what_transformers_says() {
    check(WeightFormat::F32, 0.02, 0.005);
}

#[test]
fn as_the_file_has_it_it_says_the_same() {
    check(WeightFormat::AsFile, 0.02, 0.01);
}

#[test]
fn token_ids_and_rendered_prompts_are_those_of_transformers() {
    let loaded = loaded(WeightFormat::AsFile);
    let golden = common::golden("smollm2.json");
    for case in golden["cases"].as_array().unwrap() {
        let expected = common::ids(&case["input_ids"]);
        let Some(prompt) = case["prompt"].as_str() else {
            let text = loaded.tokenizer.decode(&expected);
            assert_eq!(loaded.tokenizer.encode(&text, false).unwrap(), expected);
            continue;
        };
        assert_eq!(loaded.tokenizer.encode(prompt, false).unwrap(), expected, "{prompt}");
        assert_eq!(loaded.tokenizer.encode(prompt, true).unwrap(), expected, "{prompt}");
        if case["messages"].is_array() {
            let template = loaded.template.as_ref().unwrap();
            let messages = &case["messages"];
            let chat = Prompt { messages, tools: None, add_generation_prompt: true };
            assert_eq!(template.render(&chat).unwrap(), prompt);
        }
    }
}

#[test]
fn greedy_texts_decode_as_in_transformers() {
    let loaded = loaded(WeightFormat::AsFile);
    let golden = common::golden("smollm2.json");
    for case in golden["cases"].as_array().unwrap() {
        let Some(text) = case["greedy_text"].as_str() else { continue };
        let plain = text.replace("<|im_end|>", "").replace("<|endoftext|>", "");
        assert_eq!(loaded.tokenizer.decode(&common::ids(&case["greedy_ids"])), plain);
    }
}

#[test]
fn its_settings_and_ends_are_known() {
    let loaded = loaded(WeightFormat::AsFile);
    let config = loaded.model.config();
    assert_eq!((config.num_layers, config.hidden_size, config.head_dim), (30, 576, 64));
    assert_eq!((config.num_heads, config.num_kv_heads, config.context_len), (9, 3, 8192));
    assert!(config.tied_embeddings);
    assert_eq!(loaded.name, "smollm2");
    assert!(loaded.eos_token_ids.contains(&2));
    assert_eq!(loaded.tokenizer.vocab_size(), 49152);
    let bytes = loaded.model.bytes();
    assert!((90_000_000..120_000_000).contains(&bytes), "weights stay quantized: {bytes} bytes");
}
